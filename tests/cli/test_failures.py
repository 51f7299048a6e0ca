"""Crash files of Nipype in one line."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from precondqsm_bids.cli.failures import describe_crash, in_words, of_input
from precondqsm_bids.inputs.run import Problem


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


@pytest.mark.parametrize(
    ('given', 'written', 'said'),
    [
        ('sub-1_part-phase_MEGRE.nii.gz', 'sub-1_part-phase_MEGRE_volume-2.nii', ' (volume 2)'),
        ('sub-1_echo-1_part-real_MEGRE.nii', 'sub-1_echo-1_part-phase_MEGRE.nii', ''),
    ],
)
def test_a_failure_names_the_files_and_options_of_the_user(given, written, said):
    """The node reads files in the work folder, and names fields of the method."""
    run = SimpleNamespace(sources=(f'/raw/anat/{given}',))
    path = f'/my work/wf/sub_1_wf/standard_echoes/{written}'
    what = f'echo_fit: ValueError: {path} and its other echoes: leave phase_sign out, or state '
    what += 'b0_dir'
    assert in_words(what, [run], Path('/my work')) == (
        f'echo_fit: ValueError: /raw/anat/{given}{said} and its other echoes: leave --phase-sign '
        'out, or state --b0-dir'
    )


def test_files_that_are_not_of_single_echoes_stay():
    what = 'ValueError: /w/a/standard_echoes/mask.nii is empty; see /raw/phase_sign/x.nii'
    assert in_words(what, [], Path('/w')) == what


def test_failure_of_the_input_names_the_file(tmp_path):
    """Also on the page, which has only the reason."""
    call = SimpleNamespace(settings=SimpleNamespace(output_dir=tmp_path), log_name='x')
    failure = of_input(call, Problem('1', '/raw/a.nii', 'cannot be found: restore it'))
    assert failure.what == '/raw/a.nii: cannot be found: restore it'
    assert str(failure).count('/raw/a.nii') == 1
