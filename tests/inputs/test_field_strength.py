"""The field strength: where it is from, and what contradicts it."""

import pytest
from inputs import edit, find, only_problem

from precondqsm_bids.inputs.field_strength import strength_of
from precondqsm_bids.numerics.constants import hz_per_ppm


def test_field_strength(dataset):
    dataset.add_run(field_strength=None)
    assert '--field-strength TESLA' in only_problem(dataset).message
    (run,), _ = find(dataset.root, field_strength=1.5)
    assert run.field_strength == 1.5
    assert run.missing == ('MagneticFieldStrength (--field-strength given)',)


def test_field_strength_as_measured_is_kept(dataset):
    dataset.add_run(field_strength=2.89362)
    (run,), problems = find(dataset.root)
    assert (run.field_strength, problems) == (2.89362, [])


def test_field_strength_of_the_metadata_comes_first(dataset):
    dataset.add_run(field_strength=3.0)
    (run,), (note,) = find(dataset.root, field_strength=1.5)
    assert run.field_strength == 3.0
    assert note.kind == 'warning'
    assert '3 T is used, not 1.5 T of --field-strength' in note.message
    assert find(dataset.root, field_strength=3.0)[1] == []


@pytest.mark.parametrize('value', [30000, 0.01, '3', -3])
def test_absurd_field_strength(dataset, value):
    dataset.add_run(field_strength=value)
    message = only_problem(dataset).message
    assert f'MagneticFieldStrength {value!r} is not between 0.1 and 25 T' in message
    assert ('3 T in gauss?' in message) == (value == 30000)
    assert 'give --field-strength TESLA' in message
    (run,), (note,) = find(dataset.root, field_strength=3.0)
    assert run.field_strength == 3.0
    assert '3 T of --field-strength is used' in note.message


def test_field_strengths_differ(dataset):
    folder = dataset.add_run()
    edit(folder / 'sub-01_echo-2_part-phase_MEGRE.json', MagneticFieldStrength=1.5)
    assert '3.0 T differs from 1.5 T' in only_problem(dataset).message


@pytest.mark.parametrize('frequency', [63.87, 123.2, 127.74, 297.2])
def test_one_ppm_of_the_field_is_one_ppm_of_the_frequency(frequency):
    assert hz_per_ppm(strength_of(frequency)) == pytest.approx(frequency, rel=1e-12)
