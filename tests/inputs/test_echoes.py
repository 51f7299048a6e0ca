"""Echoes of a run: parts, echo times, units."""

from pathlib import Path

import pytest
from inputs import edit, find, names, only_problem


def test_echoes_are_ordered_by_time_not_by_name(dataset):
    """Ten echoes: as strings echo-10 comes before echo-2; and echo-1 is the last of all here."""
    times = (0.05, *(0.004 * i for i in range(1, 10)))
    dataset.add_run(echo_times=times)
    (run,), _ = find(dataset.root)
    assert run.echo_times == tuple(sorted(times))
    echoes = [name.split('_')[1] for name in names(run.phase)]
    assert echoes == [f'echo-{i}' for i in (*range(2, 11), 1)]


def test_magnitude_without_part(dataset):
    dataset.add_run(magnitude_part='')
    (run,), problems = find(dataset.root)
    assert not problems
    assert names(run.magnitude)[0] == 'sub-01_echo-1_MEGRE.nii.gz'


def test_multi_echo_t2starw(dataset):
    dataset.add_run(suffix='T2starw', extension='.nii')
    (run,), _ = find(dataset.root)
    assert names(run.phase)[2] == 'sub-01_echo-3_part-phase_T2starw.nii'


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
    (run,), problems = find(dataset.root)
    assert not problems
    assert run.echo_times == (0.004, 0.008)
    assert run.field_strength == 7.0
    assert run.metadata == {'MagneticFieldStrength': 7, 'EchoTime': 0.004, 'FlipAngle': 15}
    assert run.phase_units == 'rad'


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


@pytest.mark.parametrize('part', ['mag', 'phase'])
def test_echo_time_of_one_of_a_pair_holds_for_both(dataset, part):
    folder = dataset.add_run()
    edit(folder / f'sub-01_echo-2_part-{part}_MEGRE.json', EchoTime=None)
    (run,), _ = find(dataset.root)
    assert run.echo_times[1] == 0.008


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
    (run,), problems = find(dataset.root)
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
    (run,), (note,) = find(dataset.root)
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
    (run,), problems = find(dataset.root)
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
    (run,), (problem,) = find(dataset.root, r2='map')  # no map is looked for
    assert run.one_echo
    assert run.echo_times == (0.004,)
    assert problem.kind == 'warning'
    assert 'is the only echo (EchoTime 0.004 s)' in problem.message


def test_one_echo_has_no_prior_of_r2star(dataset):
    dataset.add_run(echo_times=(0.004,))
    message = only_problem(dataset, prior='r2prime').message
    assert '--prior r2prime is made of R2*' in message


def test_units_of_the_phase(dataset):
    folder = dataset.add_run()
    second, third = (folder / f'sub-01_echo-{i}_part-phase_MEGRE.json' for i in (2, 3))
    assert find(dataset.root)[0][0].phase_units is None
    edit(third, Units='arbitrary')
    assert find(dataset.root)[0][0].phase_units == 'arbitrary'
    edit(second, Units='rad')
    problem = only_problem(dataset)
    assert "Units 'arbitrary' differ from 'rad'" in problem.message
    assert str(second).replace('.json', '') in problem.message
    edit(second, Units='radians')
    assert "not 'radians': correct them" in only_problem(dataset).message
