"""Crash files of Nipype in one line."""

from precondqsm_bids.cli.failures import describe_crash


def test_an_empty_crash_file(tmp_path):
    crash = tmp_path / 'crash-20250101-000000-me-echo_fit-1234.txt'
    crash.touch()
    assert 'echo_fit' in describe_crash(crash, {})
    assert 'No space left on device' in describe_crash(crash, {})


SWALLOWED = """Node: precondqsm_bids_wf.participant_01_wf.sub_01_wf.precondqsm_wf.prior_fit
Working directory: /work/prior_fit

Traceback (most recent call last):
  File "nipype/utils/filemanip.py", line 695, in savepkl
    with pkl_open(tmpfile, "wb") as pkl_file:
OSError: [Errno 28] No space left on device

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "nipype/pipeline/engine/utils.py", line 294, in load_resultfile
    raise FileNotFoundError(results_file)
FileNotFoundError: /work/prior_fit/result_prior_fit.pklz


When creating this crashfile, the results file corresponding
to the node could not be found."""


def test_a_full_work_folder_is_reported_though_nipype_misses_the_result(tmp_path):
    crash = tmp_path / 'crash.txt'
    crash.write_text(SWALLOWED)
    assert describe_crash(crash, {'sub_01_wf': 'sub-01'}) == (
        'sub-01 prior_fit: OSError: [Errno 28] No space left on device in the work folder '
        '(/work/prior_fit): make room, or give another with -w'
    )


def test_of_two_other_errors_the_last_is_reported(tmp_path):
    crash = tmp_path / 'crash.txt'
    crash.write_text(
        SWALLOWED.replace(
            'FileNotFoundError: /work/prior_fit/result_prior_fit.pklz', 'KeyError: 3'
        )
    )
    assert describe_crash(crash, {}) == 'prior_fit: KeyError: 3'
