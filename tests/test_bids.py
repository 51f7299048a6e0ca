"""Which files make a run, and what is said when they do not."""

import gzip
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from precondqsm_bids.bids import InputError, check_description, find_runs, read_filters


def names(paths):
    return [Path(path).name for path in paths]


def only_problem(dataset, **keywords):
    runs, problems = find_runs(dataset.root, **keywords)
    assert (len(runs), len(problems)) == (0, 1), problems
    assert problems[0].fatal
    return problems[0]


# -- finding ------------------------------------------------------------------------------------


def test_a_run(dataset):
    dataset.add_run()
    (run,), problems = find_runs(dataset.root)
    assert not problems
    assert (run.subject, run.session, run.entities, run.label) == ('01', None, {}, 'sub-01')
    assert run.echo_times == (0.004, 0.008, 0.012)
    assert run.field_strength == 3.0
    assert names(run.magnitude) == [f'sub-01_echo-{i}_part-mag_MEGRE.nii.gz' for i in (1, 2, 3)]
    assert names(run.phase) == [f'sub-01_echo-{i}_part-phase_MEGRE.nii.gz' for i in (1, 2, 3)]
    assert run.metadata['EchoTime'] == 0.004
    assert run.labels is None


def test_echoes_are_ordered_by_time_not_by_name(dataset):
    """Ten echoes: as strings echo-10 comes before echo-2; and echo-1 is the last of all here."""
    times = (0.05, *(0.004 * i for i in range(1, 10)))
    dataset.add_run(echo_times=times)
    (run,), _ = find_runs(dataset.root)
    assert run.echo_times == tuple(sorted(times))
    echoes = [name.split('_')[1] for name in names(run.phase)]
    assert echoes == [f'echo-{i}' for i in (*range(2, 11), 1)]


def test_runs_are_grouped_by_all_other_entities(dataset):
    for stem in ('sub-01_ses-a_acq-x_run-1', 'sub-01_ses-a_acq-x_run-2', 'sub-01_ses-b'):
        dataset.add_run(stem)
    runs, problems = find_runs(dataset.root)
    assert not problems
    assert [run.label for run in runs] == [
        'sub-01_ses-a_acq-x_run-1',
        'sub-01_ses-a_acq-x_run-2',
        'sub-01_ses-b',
    ]
    assert runs[0].entities == {'acq': 'x', 'run': '1'}


def test_magnitude_without_part(dataset):
    dataset.add_run(magnitude_part='')
    (run,), problems = find_runs(dataset.root)
    assert not problems
    assert names(run.magnitude)[0] == 'sub-01_echo-1_MEGRE.nii.gz'


def test_multi_echo_t2starw(dataset):
    dataset.add_run(suffix='T2starw', extension='.nii')
    (run,), _ = find_runs(dataset.root)
    assert names(run.phase)[2] == 'sub-01_echo-3_part-phase_T2starw.nii'


def test_plain_t2starw_is_left_alone(dataset):
    dataset.write_image(dataset.root / 'sub-01/anat/sub-01_T2starw.nii.gz')
    runs, (note,) = find_runs(dataset.root)
    assert (runs, note.kind) == ([], 'skipped')
    assert 'without echo and part' in note.message


def test_megre_comes_before_t2starw_of_the_same_name(dataset):
    dataset.add_run()
    dataset.add_run(suffix='T2starw')
    (run,), (problem,) = find_runs(dataset.root)
    assert 'MEGRE' in run.magnitude[0]
    assert not problem.fatal
    assert 'T2starw' in problem.file
    (run,), (note,) = find_runs(dataset.root, filters={'megre': {'suffix': 'T2starw'}})
    assert 'T2starw' in run.magnitude[0]
    assert (note.kind, note.message) == (
        'skipped',
        '6 images, this is the first: left out by --bids-filter-file',
    )


def test_labels_match_exactly(dataset):
    for subject in ('1', '01', '011'):
        dataset.add_run(f'sub-{subject}')
    runs, _ = find_runs(dataset.root, participant_label=['01'])
    assert [run.subject for run in runs] == ['01']


def test_sessions_match_exactly(dataset):
    for session in ('a', 'ab'):
        dataset.add_run(f'sub-01_ses-{session}')
    dataset.add_run('sub-02')
    runs, _ = find_runs(dataset.root, session_label=['a'])
    assert [run.label for run in runs] == ['sub-01_ses-a']


def test_unknown_labels_are_usage_errors(dataset):
    dataset.add_run('sub-01_ses-a')
    with pytest.raises(InputError, match=r'no participant 9 in .*its participants are: 01$'):
        find_runs(dataset.root, participant_label=['9'])
    with pytest.raises(InputError, match=r'no session b .*its sessions are: a$'):
        find_runs(dataset.root, session_label=['b'])


def test_other_folders_are_no_part_of_the_dataset(dataset):
    dataset.add_run()
    for folder in ('derivatives/x', 'sourcedata', 'code', 'out'):
        shutil.copytree(dataset.root / 'sub-01', dataset.root / folder / 'sub-01')
    runs, problems = find_runs(dataset.root, ignore=[dataset.root / 'out'])
    assert (len(runs), problems) == (1, [])


def test_metadata_are_inherited(dataset):
    """Field strength only at the root, echo time for both parts; the nearest word counts."""
    folder = dataset.add_run(echo_times=(0.004, 0.008))
    for sidecar in folder.glob('*.json'):
        sidecar.unlink()
    dataset.write_json(dataset.root / 'MEGRE.json', {'MagneticFieldStrength': 7, 'EchoTime': 0.9})
    dataset.write_json(dataset.root / 'part-phase_MEGRE.json', {'Units': 'rad'})
    dataset.write_json(folder / 'sub-01_echo-1_MEGRE.json', {'EchoTime': 0.004, 'FlipAngle': 12})
    dataset.write_json(folder / 'sub-01_echo-2_MEGRE.json', {'EchoTime': 0.008})
    dataset.write_json(folder / 'sub-01_echo-1_part-mag_MEGRE.json', {'FlipAngle': 15})
    (run,), problems = find_runs(dataset.root)
    assert not problems
    assert run.echo_times == (0.004, 0.008)
    assert run.field_strength == 7.0
    assert run.metadata == {'MagneticFieldStrength': 7, 'EchoTime': 0.004, 'FlipAngle': 15}
    assert run.phase_units == 'rad'


def test_index_is_kept_and_belongs_to_its_dataset(dataset, tmp_path):
    dataset.add_run('sub-01')
    dataset.add_run('sub-02')
    database = tmp_path / 'db'
    find_runs(dataset.root, participant_label=['01'], database_dir=database)
    runs, _ = find_runs(dataset.root, participant_label=['02'], database_dir=database)
    assert [run.label for run in runs] == ['sub-02']
    shutil.copytree(dataset.root, tmp_path / 'other')
    with pytest.raises(InputError, match='is that of'):
        find_runs(tmp_path / 'other', database_dir=database)


def test_index_that_was_not_finished_is_not_kept(dataset, tmp_path, monkeypatch):
    from bids.layout import BIDSLayoutIndexer

    dataset.add_run('sub-01')
    database = tmp_path / 'db'

    def stopped(*args, **keywords):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(BIDSLayoutIndexer, '_index_dir', stopped)
        with pytest.raises(KeyboardInterrupt):
            find_runs(dataset.root, database_dir=database)
    assert not list(database.rglob('*.sqlite'))
    runs, _ = find_runs(dataset.root, database_dir=database)
    assert [run.label for run in runs] == ['sub-01']
    assert [path.name for path in database.rglob('*.sqlite')] == ['layout_index.sqlite']


# -- filters ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'wanted, labels',
    [
        ({'acquisition': 'hi'}, ['sub-01_acq-hi_run-01', 'sub-01_acq-hi_run-02']),
        ({'acquisition': None}, ['sub-01']),
        ({'acquisition': '*'}, ['sub-01_acq-hi_run-01', 'sub-01_acq-hi_run-02']),
        ({'run': 2}, ['sub-01_acq-hi_run-02']),
        ({'run': ['1', None]}, ['sub-01', 'sub-01_acq-hi_run-01']),
        ({'acquisition': 'h'}, []),
    ],
)
def test_filters(dataset, tmp_path, wanted, labels):
    for stem in ('sub-01', 'sub-01_acq-hi_run-01', 'sub-01_acq-hi_run-02'):
        dataset.add_run(stem, echo_times=(0.004, 0.008))
    filters = read_filters(dataset.write_json(tmp_path / 'filters.json', {'megre': wanted}))
    runs, problems = find_runs(dataset.root, filters=filters)
    assert [run.label for run in runs] == labels
    assert [problem.kind for problem in problems] == ['skipped']
    assert f'{4 * (3 - len(labels))} images' in problems[0].message


@pytest.mark.parametrize(
    'content, message',
    [
        ('{"megre": {"acq": "hi"}}', 'unknown entity "acq"'),
        ('{"bold": {}}', 'unknown query "bold"; known: megre, dseg, mask'),
        ('{"megre": "hi"}', 'filters look like'),
        ('[]', 'filters look like'),
        ('{"megre": {"run": {"a": 1}}}', 'should be a label'),
        ('{"megre": {"run": true}}', 'should be a label'),
        ('{', 'not valid JSON'),
        (None, 'cannot read'),
    ],
)
def test_bad_filters_are_refused(tmp_path, content, message):
    path = tmp_path / 'filters.json'
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_filters(path)


@pytest.mark.parametrize(
    'content, message',
    [
        (None, 'cannot read'),
        ('{', 'not valid JSON'),
        ('{"Name": "x"}', 'lacks BIDSVersion'),
        ('[]', 'lacks Name and BIDSVersion'),
    ],
)
def test_description(tmp_path, content, message):
    if content is not None:
        (tmp_path / 'dataset_description.json').write_text(content)
    with pytest.raises(InputError, match=f'{message}.*--skip-bids-validation'):
        check_description(tmp_path)


# -- what can be wrong --------------------------------------------------------------------------


def edit(path, **changes):
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def test_one_bad_participant_stops_no_other(dataset):
    dataset.add_run('sub-01')
    folder = dataset.add_run('sub-02')
    (folder / 'sub-02_echo-1_part-mag_MEGRE.json').write_text('{"EchoTime": 0.004')
    runs, (problem,) = find_runs(dataset.root)
    assert [run.subject for run in runs] == ['01']
    assert problem.subject == '02'
    assert problem.file.endswith('sub-02_echo-1_part-mag_MEGRE.json')
    assert 'not a readable JSON' in problem.message


@pytest.mark.parametrize(
    'value, message',
    [
        (None, 'has no EchoTime'),
        (4.0, 'EchoTime 4.0 looks like milliseconds; BIDS has seconds: write 0.004'),
        (-0.004, 'EchoTime -0.004 is not a positive number'),
        ('0.004', "EchoTime '0.004' is not a positive number"),
        (float('nan'), 'EchoTime nan is not a positive number'),
        (0.008, 'EchoTime 0.008 s is that of .*sub-01_echo-2_part-mag_MEGRE.nii.gz too'),
    ],
)
def test_echo_time(dataset, value, message):
    folder = dataset.add_run()
    for part in ('mag', 'phase'):
        edit(folder / f'sub-01_echo-1_part-{part}_MEGRE.json', EchoTime=value)
    problem = only_problem(dataset)
    assert problem.file.endswith('sub-01_echo-1_part-mag_MEGRE.nii.gz')
    with pytest.raises(ValueError, match=message):
        raise ValueError(problem.message)


def test_echo_times_of_a_pair_differ(dataset):
    folder = dataset.add_run()
    edit(folder / 'sub-01_echo-2_part-phase_MEGRE.json', EchoTime=0.009)
    problem = only_problem(dataset)
    assert '0.008 s differs from 0.009 s' in problem.message


@pytest.mark.parametrize('part, name', [('phase', 'no phase'), ('mag', 'no magnitude')])
def test_half_a_pair(dataset, part, name):
    folder = dataset.add_run()
    (folder / f'sub-01_echo-2_part-{part}_MEGRE.nii.gz').unlink()
    problem = only_problem(dataset)
    assert f'has {name} beside it' in problem.message
    assert 'echo-2' in problem.file


def test_real_and_imaginary_parts(dataset):
    folder = dataset.add_run()
    for path in folder.glob('*part-*'):
        path.rename(Path(str(path).replace('-mag', '-real').replace('-phase', '-imag')))
    (run,), problems = find_runs(dataset.root)
    assert not problems
    assert not run.as_needed
    assert (run.magnitude, run.phase) == ((), ())
    assert names(run.sources) == [
        f'sub-01_echo-{i}_part-{part}_MEGRE.nii.gz' for part in ('real', 'imag') for i in (1, 2, 3)
    ]
    (folder / 'sub-01_echo-2_part-imag_MEGRE.nii.gz').unlink()
    assert 'has no imaginary part beside it' in only_problem(dataset).message


def test_magnitude_and_phase_come_before_real_and_imaginary_parts(dataset):
    folder = dataset.add_run()
    dataset.write_image(folder / 'sub-01_echo-1_part-real_MEGRE.nii.gz')
    (run,), (note,) = find_runs(dataset.root)
    assert run.as_needed
    assert (note.kind, note.message) == (
        'skipped',
        'left out: the run is read from its magnitude and phase',
    )


def add_4d(dataset, echo_times=(0.004, 0.008), volumes=2):
    anat = dataset.root / 'sub-01/anat'
    for part in ('mag', 'phase'):
        dataset.write_image(anat / f'sub-01_part-{part}_MEGRE.nii.gz', shape=(4, 5, 6, volumes))
    metadata = {'MagneticFieldStrength': 3, 'EchoTime': echo_times}
    dataset.write_json(anat / 'sub-01_MEGRE.json', metadata)


def test_one_file_with_an_axis_of_echoes(dataset):
    add_4d(dataset)
    (run,), problems = find_runs(dataset.root)
    assert not problems
    assert (run.echo_times, run.matrix, run.echoes_in_one_file) == (
        (0.004, 0.008),
        (4, 5, 6),
        True,
    )
    assert names(run.sources) == ['sub-01_part-mag_MEGRE.nii.gz', 'sub-01_part-phase_MEGRE.nii.gz']


@pytest.mark.parametrize(
    'echo_times, message',
    [
        (0.004, '2 volumes and EchoTime 0.004: write the list'),
        (None, 'has no EchoTime: write the list of the 2 echo times'),
        ([0.004], '2 volumes and 1 echo times [0.004]'),
        ([0.008, 0.004], '[0.008, 0.004] does not increase'),
        ([0.004, 8], 'EchoTime 8 looks like milliseconds'),
    ],
)
def test_echo_times_of_one_file(dataset, echo_times, message):
    add_4d(dataset, echo_times)
    assert message in only_problem(dataset).message


def test_the_same_image_twice(dataset):
    folder = dataset.add_run()
    dataset.write_image(folder / 'sub-01_echo-1_part-mag_MEGRE.nii')
    assert 'same echo and part as' in only_problem(dataset).message


def test_one_echo_is_a_run_and_is_told(dataset):
    dataset.add_run(echo_times=(0.004,))
    (run,), (problem,) = find_runs(dataset.root, r2_map=True)  # no map is looked for
    assert run.one_echo
    assert run.echo_times == (0.004,)
    assert problem.kind == 'warning'
    assert 'is the only echo (EchoTime 0.004 s)' in problem.message


def test_one_echo_has_no_prior_of_r2star(dataset):
    dataset.add_run(echo_times=(0.004,))
    message = only_problem(dataset, r2star_priors=['r2prime']).message
    assert '--prior r2prime is made of R2*' in message


def test_shapes_differ(dataset):
    folder = dataset.add_run()
    dataset.write_image(folder / 'sub-01_echo-2_part-phase_MEGRE.nii.gz', shape=(4, 5, 7))
    problem = only_problem(dataset)
    assert problem.file.endswith('sub-01_echo-2_part-phase_MEGRE.nii.gz')
    assert '(4, 5, 7) differs from (4, 5, 6) of ' in problem.message
    assert 'sub-01_echo-1_part-mag_MEGRE.nii.gz' in problem.message


@pytest.mark.parametrize('shift, accepted', [(0.0005, True), (0.002, False)])
def test_affines_differ(dataset, shift, accepted):
    folder = dataset.add_run()
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[0, 3] += shift
    dataset.write_image(folder / 'sub-01_echo-2_part-phase_MEGRE.nii.gz', affine=affine)
    runs, problems = find_runs(dataset.root)
    assert bool(runs) == accepted
    assert all('affine' in p.message and '0.002' in p.message for p in problems)
    assert bool(problems) != accepted


def test_not_three_dimensional(dataset):
    folder = dataset.add_run()
    for path in folder.glob('*.nii.gz'):
        dataset.write_image(path, shape=(4, 5, 6, 2))
    assert '(4, 5, 6, 2)' in only_problem(dataset).message


def broken(kind, path):
    if kind == 'empty':
        path.write_bytes(b'')
    elif kind == 'text':
        path.write_bytes(b'not an image at all')
    elif kind == 'gzip of nothing':
        path.write_bytes(gzip.compress(b''))
    elif kind == 'cut in its header':
        path.write_bytes(path.read_bytes()[:40])
    elif kind == 'link to nowhere':
        path.unlink()
        path.symlink_to('annex/object')
    elif kind == 'no affine':
        image = nib.Nifti1Image(np.ones((4, 5, 6), np.float32), None)
        image.header['sform_code'] = 1
        nib.save(image, path)


@pytest.mark.parametrize(
    'kind',
    ['empty', 'text', 'gzip of nothing', 'cut in its header', 'link to nowhere', 'no affine'],
)
def test_a_broken_image_stops_its_participant_only(dataset, kind):
    dataset.add_run('sub-01')
    folder = dataset.add_run('sub-02')
    path = folder / 'sub-02_echo-3_part-phase_MEGRE.nii.gz'
    broken(kind, path)
    runs, (problem,) = find_runs(dataset.root)
    assert [run.subject for run in runs] == ['01']
    assert problem.file == str(path)


def test_truncated_without_compression(dataset):
    folder = dataset.add_run(extension='.nii')
    path = folder / 'sub-01_echo-3_part-phase_MEGRE.nii'
    path.write_bytes(path.read_bytes()[:-1])
    # 352 bytes of header, 4 * 5 * 6 voxels of 4 bytes
    assert 'truncated: 831 bytes of 832' in only_problem(dataset).message


def test_a_file_in_another_participants_folder(dataset):
    folder = dataset.add_run()
    dataset.write_image(folder / 'sub-02_echo-1_part-mag_MEGRE.nii.gz')
    runs, (problem,) = find_runs(dataset.root)
    assert [run.subject for run in runs] == ['01']
    assert problem.subject == '01'
    assert 'belongs into the folder sub-02/anat' in problem.message


def test_field_strength(dataset):
    dataset.add_run(field_strength=None)
    assert '--field-strength TESLA' in only_problem(dataset).message
    (run,), _ = find_runs(dataset.root, field_strength=1.5)
    assert run.field_strength == 1.5
    assert run.missing == ('MagneticFieldStrength (--field-strength given)',)


def test_field_strength_as_measured_is_kept(dataset):
    dataset.add_run(field_strength=2.89362)
    (run,), problems = find_runs(dataset.root)
    assert (run.field_strength, problems) == (2.89362, [])


def test_field_strength_of_the_metadata_comes_first(dataset):
    dataset.add_run(field_strength=3.0)
    (run,), (note,) = find_runs(dataset.root, field_strength=1.5)
    assert run.field_strength == 3.0
    assert note.kind == 'warning'
    assert '3 T is used, not 1.5 T of --field-strength' in note.message
    assert find_runs(dataset.root, field_strength=3.0)[1] == []


@pytest.mark.parametrize('value', [30000, 0.01, '3', -3])
def test_absurd_field_strength(dataset, value):
    dataset.add_run(field_strength=value)
    message = only_problem(dataset).message
    assert f'MagneticFieldStrength {value!r} is not between 0.1 and 25.0 T' in message
    assert ('3 T in gauss?' in message) == (value == 30000)
    assert 'give --field-strength TESLA' in message
    (run,), (note,) = find_runs(dataset.root, field_strength=3.0)
    assert run.field_strength == 3.0
    assert '3 T of --field-strength is used' in note.message


def test_field_strengths_differ(dataset):
    folder = dataset.add_run()
    edit(folder / 'sub-01_echo-2_part-phase_MEGRE.json', MagneticFieldStrength=1.5)
    assert '3.0 T differs from 1.5 T' in only_problem(dataset).message


def test_units_of_the_phase(dataset):
    folder = dataset.add_run()
    second, third = (folder / f'sub-01_echo-{i}_part-phase_MEGRE.json' for i in (2, 3))
    assert find_runs(dataset.root)[0][0].phase_units is None
    edit(third, Units='arbitrary')
    assert find_runs(dataset.root)[0][0].phase_units == 'arbitrary'
    edit(second, Units='rad')
    problem = only_problem(dataset)
    assert "Units 'arbitrary' differ from 'rad'" in problem.message
    assert str(second).replace('.json', '') in problem.message
    edit(second, Units='radians')
    assert "not 'radians': correct them" in only_problem(dataset).message


# -- labels -------------------------------------------------------------------------------------

TUBES = {1: 'agar', 2: 'tube A'}


def test_labels_of_the_dataset(dataset):
    dataset.add_run()
    path = dataset.add_labels('sub-01/anat/sub-01_dseg.nii.gz', TUBES)
    (run,), problems = find_runs(dataset.root)
    assert not problems
    assert (run.labels, run.label_names) == (str(path), TUBES)


def test_labels_of_derivatives_come_first(dataset):
    """Anywhere below the participant's folder, with the names at the root of the derivatives."""
    dataset.add_run()
    dataset.add_labels('sub-01/anat/sub-01_dseg.nii.gz', TUBES)
    truth = dataset.root / 'derivatives' / 'truth'
    path = dataset.add_labels('derivatives/truth/sub-01/anat/sub-01_desc-x_dseg.nii.gz')
    (truth / 'dseg.tsv').write_text('index\tname\tcolor\n3\tiron\t#ff0000\n')
    (run,), (note,) = find_runs(dataset.root, derivatives={'truth': truth})
    assert (run.labels, run.label_names) == (str(path), {3: 'iron'})
    assert not note.fatal
    assert 'comes first' in note.message
    (run,), problems = find_runs(
        dataset.root, derivatives={'truth': truth}, filters={'dseg': {'description': None}}
    )
    assert run.label_names == TUBES
    assert not problems


@pytest.mark.parametrize(
    'name', ['sub-011/anat/sub-011_dseg', 'sub-01/ses-b/anat/sub-01_ses-b_dseg']
)
def test_labels_of_another_participant_or_session(dataset, name):
    dataset.add_run('sub-01_ses-a')
    dataset.add_labels(f'{name}.nii.gz', TUBES)
    (run,), problems = find_runs(dataset.root)
    assert run.labels is None
    assert all(problem.skipped for problem in problems)


def test_labels_of_another_run(dataset):
    dataset.add_run('sub-01_run-1')
    dataset.add_run('sub-01_run-2')
    dataset.add_labels('sub-01/anat/sub-01_run-2_dseg.nii.gz', TUBES)
    (one, two), problems = find_runs(dataset.root)
    assert one.labels is None
    assert two.label_names == TUBES
    assert not problems


@pytest.mark.parametrize(
    'image, message',
    [
        ({'shape': (4, 5, 7)}, 'shape (4, 5, 7) differs from (4, 5, 6)'),
        ({'affine': np.diag([2.0, 2.0, 2.1, 1.0])}, 'affine differs by 0.1 mm'),
    ],
)
def test_labels_off_the_grid_are_told_of(dataset, image, message):
    dataset.add_run()
    path = dataset.add_labels('sub-01/anat/sub-01_dseg.nii.gz', TUBES, **image)
    (run,), (note,) = find_runs(dataset.root)
    assert run.labels is None
    assert (note.file, note.fatal) == (str(path), False)
    assert message in note.message


@pytest.mark.parametrize(
    'table, message',
    [
        (None, 'no TSV'),
        ('index\tlabel\n1\ta\n', 'KeyError'),
        ('index\tname\none\ta\n', 'ValueError'),
        ('index\tname\n1\ta\n1\tb\n', 'there twice'),
        ('index\tname\n1\ta\n2\ta\n', 'there twice'),
        ('index\tname\n', 'no rows'),
    ],
)
def test_labels_without_names_are_told_of(dataset, table, message):
    dataset.add_run()
    path = dataset.add_labels('sub-01/anat/sub-01_dseg.nii.gz')
    if table:
        path.with_name('sub-01_dseg.tsv').write_text(table)
    (run,), (note,) = find_runs(dataset.root)
    assert run.labels is None
    assert message in note.message


def test_reference_should_be_a_label(dataset):
    dataset.add_run('sub-01')
    dataset.add_run('sub-02')
    dataset.add_labels('sub-01/anat/sub-01_dseg.nii.gz', TUBES)
    runs, (problem,) = find_runs(dataset.root, reference='agar')
    assert [run.subject for run in runs] == ['01']
    assert problem.subject == '02'
    _, (problem, _) = find_runs(dataset.root, reference='water')
    assert '--reference water is not one of its labels (agar, tube A)' in problem.message


# -- geometry -----------------------------------------------------------------------------------


def write_forms(path, qform=None, sform=None, codes=(0, 0), shape=(4, 5, 6)):
    """An image whose header has these two transforms."""
    image = nib.Nifti1Image(np.ones(shape, np.float32), None)
    image.header.set_zooms((2, 2, 2))
    for setter, affine, code in (
        (image.header.set_qform, qform, codes[0]),
        (image.header.set_sform, sform, codes[1]),
    ):
        if affine is not None:
            setter(affine, code)
    # Written by hand: nibabel's image would fill in the codes.
    with path.open('wb') as stream:
        data = np.ones(shape, np.float32)
        header = image.header
        header['vox_offset'], header['magic'] = 352, b'n+1'
        header.write_to(stream)
        stream.write(b'\0' * 4 + data.tobytes(order='F'))
    return path


def add_forms(dataset, **forms):
    folder = dataset.add_run(extension='.nii')
    for path in folder.glob('*.nii'):
        write_forms(path, **forms)
    return folder


STRAIGHT = np.diag([2.0, 2.0, 2.0, 1.0])
TILTED = STRAIGHT.copy()
TILTED[1:3, 1:3] = 2 * np.array([[0.8, -0.6], [0.6, 0.8]])
FLIPPED = np.diag([-2.0, 2.0, 2.0, 1.0])


def test_neither_qform_nor_sform(dataset):
    add_forms(dataset)
    problem = only_problem(dataset)
    assert problem.file.endswith('sub-01_echo-1_part-mag_MEGRE.nii')
    assert 'neither qform nor sform' in problem.message
    assert 'give --b0-dir X Y Z' in problem.message
    (run,), problems = find_runs(dataset.root, b0_dir=(0, 1, 0))
    assert (run.b0_dir, run.as_needed, problems) == ((0.0, 1.0, 0.0), False, [])
    assert run.missing == ('affine (--b0-dir given)',)


def test_b0_dir_comes_before_the_header(dataset):
    dataset.add_run()
    (run,), (note,) = find_runs(dataset.root, b0_dir=(0, 2, 0))
    assert (run.b0_dir, run.as_needed) == ((0.0, 2.0, 0.0), False)
    assert not note.fatal
    assert 'along [0.0, 1.0, 0.0] of the voxel axes by --b0-dir, which is used' in note.message
    assert 'along [0.0, 0.0, 1.0] by the affine, 90.0 degrees apart' in note.message
    _, notes = find_runs(dataset.root, b0_dir=(0, 0, -1))  # the same field
    assert notes == []


@pytest.mark.parametrize(
    'forms, message',
    [
        ({'qform': TILTED, 'sform': STRAIGHT, 'codes': (1, 1)}, '36.9 degrees apart; the sform'),
        ({'qform': FLIPPED, 'sform': STRAIGHT, 'codes': (1, 1)}, 'up to 4 mm, with the same dir'),
        ({'qform': STRAIGHT, 'sform': STRAIGHT, 'codes': (1, 1)}, None),
        ({'qform': TILTED, 'codes': (1, 0)}, None),
    ],
    ids=['tilted', 'flipped', 'equal', 'qform only'],
)
def test_qform_and_sform(dataset, forms, message):
    add_forms(dataset, **forms)
    (run,), problems = find_runs(dataset.root)
    assert run.as_needed
    assert [message in problem.message for problem in problems] == ([True] if message else [])


def test_sform_of_a_template(dataset):
    add_forms(dataset, qform=TILTED, sform=STRAIGHT, codes=(1, 4))
    assert 'copy the qform into the sform' in only_problem(dataset).message


@pytest.mark.parametrize(
    'change, message',
    [
        ({'xyzt_units': 1}, 'lengths are in meters'),
        ({'xyzt_units': 3}, 'lengths are in microns'),
        ({'pixdim': [1, 2000, 2000, 2000, 0, 0, 0, 0]}, '2000 x 2000 x 2000 mm is not between'),
        ({'scl_slope': 1e35, 'scl_inter': 0, 'datatype': 4, 'bitpix': 16}, 'beyond what single'),
        ({'datatype': 32, 'bitpix': 64}, 'complex numbers (complex64)'),
        ({'datatype': 128, 'bitpix': 24}, 'colours?'),
    ],
)
def test_headers_that_cannot_be_right(dataset, change, message):
    folder = add_forms(dataset, qform=STRAIGHT, codes=(1, 0), shape=(8, 8, 8))
    for path in folder.glob('*.nii'):
        content = path.read_bytes()
        header = nib.Nifti1Header(content[:348])
        for key, value in change.items():
            header[key] = value
        path.write_bytes(header.binaryblock + content[348:] + b'\0' * 4096)
    assert message in only_problem(dataset).message


def test_a_slice_is_no_volume(dataset):
    folder = dataset.add_run()
    for path in folder.glob('*.nii.gz'):
        dataset.write_image(path, shape=(64, 64, 1))
    assert 'has the matrix 64 x 64 x 1; 4 voxels are the least' in only_problem(dataset).message


# -- masks --------------------------------------------------------------------------------------


def test_mask_of_derivatives(dataset, tmp_path):
    """Its own participant's, on its own grid, desc-brain first."""
    dataset.add_run('sub-01_ses-a')
    derivatives = {'seg': tmp_path / 'seg'}
    find = {'derivatives': derivatives, 'mask': 'derivatives'}
    anat = tmp_path / 'seg/sub-01/ses-a/anat'
    dataset.write_image(anat / 'sub-01_ses-b_desc-brain_mask.nii.gz')
    dataset.write_image(tmp_path / 'seg/sub-011/anat/sub-011_desc-brain_mask.nii.gz')
    off = dataset.write_image(anat / 'sub-01_ses-a_desc-brain_mask.nii.gz', shape=(4, 5, 7))
    problem = only_problem(dataset, **find)
    assert 'no _mask of this run, on its grid' in problem.message
    assert f'{off}: mask not used: shape (4, 5, 7) differs from (4, 5, 6)' in problem.message
    body = dataset.write_image(anat / 'sub-01_ses-a_desc-body_mask.nii.gz')
    (run,), (note,) = find_runs(dataset.root, **find)
    assert (run.mask, note.kind) == (str(body), 'warning')
    brain = dataset.write_image(off)
    (run,), (note,) = find_runs(dataset.root, **find)
    assert (run.mask, note.file, note.kind) == (str(brain), str(body), 'skipped')
    filters = {'mask': {'description': 'body'}}
    (run,), problems = find_runs(dataset.root, **find, filters=filters)
    assert (run.mask, problems) == (str(body), [])
    assert find_runs(dataset.root, derivatives=derivatives)[0][0].mask is None


def test_mask_file(dataset, tmp_path):
    dataset.add_run()
    path = dataset.write_image(tmp_path / 'mask.nii')
    (run,), problems = find_runs(dataset.root, mask=str(path))
    assert (run.mask, problems) == (str(path), [])
    dataset.write_image(path, affine=np.diag([2.0, 2.0, 2.1, 1.0]))
    problem = only_problem(dataset, mask=str(path))
    assert problem.file == str(path)
    assert '--mask: affine differs by 0.1 mm from' in problem.message


# -- what is left out ---------------------------------------------------------------------------


def test_what_is_left_out_is_told(dataset):
    dataset.add_run('sub-01_ses-a')
    dataset.add_run('sub-01_ses-b', echo_times=(0.004, 0.008))
    dataset.write_image(dataset.root / 'sub-01/ses-a/qsm/sub-01_ses-a_echo-1_MEGRE.nii.gz')
    dataset.write_image(dataset.root / 'sub-02/anat/sub-02_T1w.nii.gz')
    runs, problems = find_runs(dataset.root, session_label=['a'])
    assert [run.label for run in runs] == ['sub-01_ses-a']
    assert [(p.kind, p.message) for p in problems] == [
        ('skipped', 'not in a folder anat or swi, where BIDS has such images'),
        (
            'skipped',
            '4 images, this is the first: not among the sessions of --session-label',
        ),
        ('skipped', 'no multi-echo images'),
    ]


def test_the_draft_folder_for_susceptibility(dataset):
    folder = dataset.add_run()
    folder.rename(folder.with_name('swi'))
    (run,), problems = find_runs(dataset.root)
    assert (run.label, problems) == ('sub-01', [])


# -- tissue, R2, susceptibility maps -------------------------------------------------------------

FREESURFER = {2: 'Left-Cerebral-White-Matter', 3: 'Left-Cerebral-Cortex', 13: 'Right-Pallidum'}
FREESURFER |= {41: 'Right-Cerebral-White-Matter', 0: 'Unknown'}


def test_tissue_of_labels(dataset):
    """The table at the root of the derivatives, as sMRIPrep has it."""
    dataset.add_run()
    root = dataset.root / 'derivatives/smriprep'
    dataset.add_labels('derivatives/smriprep/sub-01/anat/sub-01_desc-aseg_dseg.nii.gz')
    rows = [f'{index}\t{name}' for index, name in FREESURFER.items()]
    (root / 'desc-aseg_dseg.tsv').write_text('\n'.join(['index\tname', *rows]) + '\n')
    (run,), problems = find_runs(dataset.root, derivatives={'s': root}, tissue=True)
    assert not problems
    assert names(run.tissue.files) == ['sub-01_desc-aseg_dseg.nii.gz']
    assert run.tissue.classes == ('WM', 'GM', 'pallidum')
    assert run.tissue.label_classes == {2: 'WM', 3: 'GM', 13: 'pallidum', 41: 'WM'}
    assert not run.tissue.resampled
    (run,), _ = find_runs(dataset.root, derivatives={'s': root})
    assert run.tissue is None  # nobody asked


def test_tissue_of_the_anatomical_image_of_another_acquisition(dataset):
    """What a T1w image is called is nothing that the run's name would have to say."""
    dataset.add_run('sub-01_ses-a_acq-gre_run-2')
    folder = 'derivatives/seg/sub-01/ses-a/anat'
    for label in ('GM', 'WM', 'CSF', 'CSF'):
        dataset.add_labels(f'{folder}/sub-01_ses-a_acq-mprage_run-1_label-{label}_probseg.nii.gz')
    root = dataset.root / 'derivatives/seg'
    (run,), problems = find_runs(dataset.root, derivatives={'s': root}, tissue=True)
    assert not problems
    assert sorted(run.tissue.classes) == ['CSF', 'GM', 'WM']
    assert run.tissue.label_classes is None
    assert [name.split('label-')[1][:2] for name in names(run.tissue.files)] == [
        name[:2] for name in run.tissue.classes
    ]


def test_tissue_is_chosen_by_a_filter(dataset):
    dataset.add_run()
    for desc in ('one', 'two'):
        dataset.add_labels(f'sub-01/anat/sub-01_desc-{desc}_dseg.nii.gz', {1: 'GM', 2: 'WM'})
    filters = {'tissue': {'description': 'two'}}
    (run,), _ = find_runs(dataset.root, tissue=True, filters=filters)
    assert names(run.tissue.files) == ['sub-01_desc-two_dseg.nii.gz']


def test_r2_map_of_the_run_comes_first(dataset):
    dataset.add_run('sub-01_run-2')
    for stem in ('sub-01_run-1_R2map', 'sub-01_run-2_R2map', 'sub-01_acq-x_T2map'):
        dataset.write_image(dataset.root / f'sub-01/anat/{stem}.nii.gz')
    (run,), problems = find_runs(dataset.root, r2_map=True)
    assert names([run.r2_map]) == ['sub-01_run-2_R2map.nii.gz']
    assert run.r2_map_kind == 'R2map'
    assert [problem.kind for problem in problems] == ['skipped', 'skipped']


def test_contrasts_of_the_run_come_in_the_order_of_their_suffixes(dataset):
    dataset.add_run('sub-01_run-2')
    for stem in ('sub-01_run-1_T1w', 'sub-01_run-2_T1w', 'sub-01_R1map', 'sub-02_R1map'):
        dataset.write_image(dataset.root / f'{stem[:6]}/anat/{stem}.nii.gz')
    (run,), problems = find_runs(
        dataset.root, participant_label=['01'], contrasts=('R1map', 'T1w')
    )
    assert names(run.contrasts) == ['sub-01_R1map.nii.gz', 'sub-01_run-2_T1w.nii.gz']
    assert [problem.kind for problem in problems] == ['skipped']
    filters = {'contrast': {'run': ['1', None]}}
    (run,), _ = find_runs(
        dataset.root, participant_label=['01'], contrasts=('T1w',), filters=filters
    )
    assert names(run.contrasts) == ['sub-01_run-1_T1w.nii.gz']


def test_prior_maps_are_on_the_grid_of_every_run(dataset, tmp_path):
    dataset.add_run()
    good = dataset.write_image(tmp_path / 'good.nii.gz')
    bad = dataset.write_image(tmp_path / 'bad.nii.gz', affine=np.diag([2.0, 2.0, 2.1, 1.0]))
    assert not find_runs(dataset.root, prior_maps=[good])[1]
    problem = only_problem(dataset, prior_maps=[good, bad])
    assert problem.file == str(bad)
    assert 'affine differs by 0.1 mm' in problem.message
