"""Which field maps of derivatives make a run."""

import numpy as np
import pytest
from inputs import find, names

FIELD = {'Units': 'Hz', 'MagneticFieldStrength': 3}


class Derivatives:
    """A dataset of derivatives that a test fills as it needs."""

    def __init__(self, dataset, root):
        self.dataset, self.root = dataset, root

    def add(self, name, folder='sub-01/fmap', metadata=None, **image):
        path = self.dataset.write_image(self.root / folder / f'{name}.nii.gz', **image)
        if metadata:
            self.dataset.write_json(path.with_name(f'{name}.json'), metadata)
        return path

    def find(self, **keywords):
        derivatives = keywords.pop('derivatives', {'mine': self.root})
        return find(self.dataset.root, field='derivatives', derivatives=derivatives, **keywords)


@pytest.fixture
def derivatives(dataset, tmp_path):
    (dataset.root / 'sub-01').mkdir()
    return Derivatives(dataset, tmp_path / 'mine')


def only_error(derivatives, **keywords):
    runs, problems = derivatives.find(**keywords)
    assert not runs
    (message,) = (problem.message for problem in problems if problem.fatal)
    return message


def test_a_field_with_all_that_goes_with_it(derivatives):
    derivatives.add('sub-01_run-1_fieldmap', metadata=FIELD)
    derivatives.add('sub-01_run-1_desc-sd_fieldmap', metadata=FIELD)
    derivatives.add('sub-01_run-1_magnitude')
    derivatives.add('sub-01_run-1_R2starmap', 'sub-01/anat', {'Units': '1/s'})
    derivatives.add('sub-01_run-2_R2starmap', 'sub-01/anat', {'Units': '1/s'})
    (run,), problems = derivatives.find()
    assert not problems
    assert (run.label, run.echo_times, run.one_echo) == ('sub-01_run-1', (), False)
    assert (run.field_units, run.field_strength, run.without_r2star) == ('Hz', 3, False)
    assert names(run.sources) == [
        f'sub-01_run-1_{name}.nii.gz'
        for name in ('fieldmap', 'magnitude', 'desc-sd_fieldmap', 'R2starmap')
    ]


def test_outputs_of_this_program(derivatives):
    """The total field counts, and the others are listed."""
    for desc in ('total', 'flattened', 'local'):
        derivatives.add(f'sub-01_desc-{desc}_fieldmap', metadata=FIELD)
    derivatives.add('sub-01_magnitude')
    (run,), problems = derivatives.find()
    assert names([run.field]) == ['sub-01_desc-total_fieldmap.nii.gz']
    assert run.label == 'sub-01'
    assert run.without_r2star
    assert [problem.kind for problem in problems] == ['skipped'] * 2
    assert 'is not a total field by its name (desc-flattened)' in problems[0].message
    (run,), _ = derivatives.find(filters={'fieldmap': {'description': 'local'}})
    assert names([run.field]) == ['sub-01_desc-local_fieldmap.nii.gz']


def test_the_first_dataset_counts(derivatives, dataset, tmp_path):
    other = Derivatives(dataset, tmp_path / 'other')
    for one in (derivatives, other):
        one.add('sub-01_fieldmap', metadata=FIELD)
        one.add('sub-01_magnitude')
    order = {'other': other.root, 'mine': derivatives.root}
    (run,), problems = derivatives.find(derivatives=order)
    assert run.field.startswith(str(other.root))
    assert 'field not used: ' in problems[0].message


def test_units_strength_and_sidecars_are_inherited(derivatives, dataset):
    derivatives.add('sub-01_fieldmap')
    derivatives.add('sub-01_magnitude')
    dataset.write_json(derivatives.root / 'fieldmap.json', FIELD | {'Units': 'rad/s'})
    (run,), _ = derivatives.find()
    assert (run.field_units, run.field_strength) == ('rad/s', 3)


@pytest.mark.parametrize(
    'metadata, message',
    [
        ({'MagneticFieldStrength': 3}, 'Units None are not one of ppm, Hz, rad/s, T'),
        ({'Units': 'mT', 'MagneticFieldStrength': 3}, "Units 'mT' are not one of"),
        ({'Units': 'Hz'}, 'has no MagneticFieldStrength'),
    ],
)
def test_metadata_that_do_not_do(derivatives, metadata, message):
    derivatives.add('sub-01_fieldmap', metadata=metadata)
    derivatives.add('sub-01_magnitude')
    assert message in only_error(derivatives)


def test_the_field_strength_may_be_given(derivatives):
    derivatives.add('sub-01_fieldmap', metadata={'Units': 'Hz'})
    derivatives.add('sub-01_magnitude')
    (run,), _ = derivatives.find(field_strength=7.0)
    assert run.field_strength == 7
    assert run.missing == ('MagneticFieldStrength (--field-strength given)',)


def test_magnitude_and_grid(derivatives):
    derivatives.add('sub-01_fieldmap', metadata=FIELD)
    assert 'no _magnitude of this run, on its grid' in only_error(derivatives)
    derivatives.add('sub-01_run-2_magnitude')
    derivatives.add('sub-01_magnitude', affine=np.diag([2, 2, 3, 1.0]))
    message = only_error(derivatives)
    assert 'magnitude not used: affine differs by 1 mm' in message


def test_deviation_in_other_units(derivatives):
    derivatives.add('sub-01_fieldmap', metadata=FIELD)
    derivatives.add('sub-01_desc-sd_fieldmap', metadata=FIELD | {'Units': 'ppm'})
    assert "Units 'ppm' differ from 'Hz' of " in only_error(derivatives)


def test_r2star_where_the_prior_is_made_of_it(derivatives):
    derivatives.add('sub-01_fieldmap', metadata=FIELD)
    derivatives.add('sub-01_magnitude')
    message = only_error(derivatives, prior='r2prime')
    assert 'has no R2starmap beside it, and --prior r2prime is made of R2*: add it' in message


def test_sessions_and_spaces(derivatives):
    for session in 'ab':
        folder = f'sub-01/ses-{session}/fmap'
        derivatives.add(f'sub-01_ses-{session}_fieldmap', folder, FIELD)
        derivatives.add(f'sub-01_ses-{session}_magnitude', folder)
    derivatives.add('sub-01_ses-b_space-MNI_fieldmap', 'sub-01/ses-b/fmap', FIELD)
    (run,), problems = derivatives.find(session_label=['b'])
    assert run.label == 'sub-01_ses-b'
    assert sorted(problem.message for problem in problems) == [
        'is in the space MNI: the field is needed as it was scanned',
        'not among the sessions of --session-label',
    ]


def test_nothing_there(derivatives):
    derivatives.root.mkdir()
    runs, (problem,) = derivatives.find()
    assert (runs, problem.kind) == ([], 'skipped')
    assert problem.message == 'no _fieldmap in the folders of -d'
