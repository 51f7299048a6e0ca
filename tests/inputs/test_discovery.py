"""Which files make a run."""

import pytest
from inputs import find, names

from precondqsm_bids.inputs.run import InputError


def test_a_run(dataset):
    dataset.add_run()
    (run,), problems = find(dataset.root)
    assert not problems
    assert (run.subject, run.session, run.entities, run.label) == ('01', None, {}, 'sub-01')
    assert run.echo_times == (0.004, 0.008, 0.012)
    assert run.field_strength == 3.0
    assert names(run.magnitude) == [f'sub-01_echo-{i}_part-mag_MEGRE.nii.gz' for i in (1, 2, 3)]
    assert names(run.phase) == [f'sub-01_echo-{i}_part-phase_MEGRE.nii.gz' for i in (1, 2, 3)]
    assert run.metadata['EchoTime'] == 0.004
    assert run.labels is None


def test_runs_are_grouped_by_all_other_entities(dataset):
    for stem in ('sub-01_ses-a_acq-x_run-1', 'sub-01_ses-a_acq-x_run-2', 'sub-01_ses-b'):
        dataset.add_run(stem)
    runs, problems = find(dataset.root)
    assert not problems
    assert [run.label for run in runs] == [
        'sub-01_ses-a_acq-x_run-1',
        'sub-01_ses-a_acq-x_run-2',
        'sub-01_ses-b',
    ]
    assert runs[0].entities == {'acq': 'x', 'run': '1'}


def test_megre_comes_before_t2starw_of_the_same_name(dataset):
    dataset.add_run()
    dataset.add_run(suffix='T2starw')
    (run,), (problem,) = find(dataset.root)
    assert 'MEGRE' in run.magnitude[0]
    assert not problem.fatal
    assert 'T2starw' in problem.file
    (run,), (note,) = find(dataset.root, filters={'megre': {'suffix': 'T2starw'}})
    assert 'T2starw' in run.magnitude[0]
    assert (note.kind, note.message) == (
        'skipped',
        '6 images, this is the first: left out by --bids-filter-file',
    )


def test_labels_match_exactly(dataset):
    for subject in ('1', '01', '011'):
        dataset.add_run(f'sub-{subject}')
    runs, _ = find(dataset.root, participant_label=['01'])
    assert [run.subject for run in runs] == ['01']


def test_sessions_match_exactly(dataset):
    for session in ('a', 'ab'):
        dataset.add_run(f'sub-01_ses-{session}')
    dataset.add_run('sub-02')
    runs, _ = find(dataset.root, session_label=['a'])
    assert [run.label for run in runs] == ['sub-01_ses-a']


def test_unknown_labels_are_usage_errors(dataset):
    dataset.add_run('sub-01_ses-a')
    with pytest.raises(InputError, match=r'no participant 9 in .*its participants are: 01$'):
        find(dataset.root, participant_label=['9'])
    with pytest.raises(InputError, match=r'no session b .*its sessions are: a$'):
        find(dataset.root, session_label=['b'])


def test_one_bad_participant_stops_no_other(dataset):
    dataset.add_run('sub-01')
    folder = dataset.add_run('sub-02')
    (folder / 'sub-02_echo-1_part-mag_MEGRE.json').write_text('{"EchoTime": 0.004')
    runs, (problem,) = find(dataset.root)
    assert [run.subject for run in runs] == ['01']
    assert problem.subject == '02'
    assert problem.file.endswith('sub-02_echo-1_part-mag_MEGRE.json')
    assert 'not a readable JSON' in problem.message


@pytest.mark.parametrize('field_strength, refused', [(2.89, False), (1.5, True), (7.0, True)])
def test_r2_of_the_literature_is_that_of_3_tesla(dataset, field_strength, refused):
    dataset.add_run(field_strength=field_strength)
    dataset.add_labels('sub-01/anat/sub-01_dseg.nii.gz', {1: 'GM', 2: 'WM'})
    runs, problems = find(dataset.root, r2='literature')
    assert bool(runs) != refused
    assert [problem.fatal for problem in problems] == [True] * refused
    for problem in problems:
        assert problem.file.endswith('sub-01_echo-1_part-mag_MEGRE.nii.gz')
        assert f'MagneticFieldStrength is {field_strength:g} T' in problem.message
        assert 'give --r2 NUMBER, median or map' in problem.message


def test_r2_of_the_literature_is_not_read_of_one_echo(dataset):
    dataset.add_run(echo_times=(0.004,), field_strength=7.0)
    dataset.add_labels('sub-01/anat/sub-01_dseg.nii.gz', {1: 'GM', 2: 'WM'})
    assert len(find(dataset.root, r2='literature')[0]) == 1
