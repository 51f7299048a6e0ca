"""The ROI interface: the functions' numbers, in a table that says what each column is."""

import nibabel as nb
import numpy as np
import pytest

from precondqsm_bids.interfaces.roi_values import RoiValues
from precondqsm_bids.interfaces.volumes import state_b0
from precondqsm_bids.numerics.constants import GAMMA_BAR
from precondqsm_bids.outputs.tables import read_table

SHAPE = (40, 40, 60)
AFFINE = nb.affines.from_matvec(np.eye(3), [-20, -20, -30])


def save(folder, name, data):
    path = folder / f'{name}.nii.gz'
    nb.Nifti1Image(np.asarray(data), AFFINE).to_filename(path)
    return str(path)


@pytest.fixture
def inputs(tmp_path):
    """A rod of 0.6 ppm in agar, in the field that it has along B0: a third of that inside."""
    x, y, z = np.indices(SHAPE) - np.array([20, 20, 30]).reshape(3, 1, 1, 1)
    mask = np.hypot(x, y) < 18
    rod = (np.hypot(x, y) <= 6) & (abs(z) < 26)
    chi = np.where(rod, 0.7, 0.1).astype(np.float32)
    chi[x > 0] += np.float32(0.02)
    # dphi = 2 pi gammabar B0 dt chi / 3, so the field in ppm is chi / 3
    dt, b0 = 0.01, 3.0
    dphi = 2 * np.pi * GAMMA_BAR * b0 * dt * 0.6e-6 / 3
    field = np.where(np.hypot(x, y) <= 6, dphi / (2 * np.pi * GAMMA_BAR * b0 * dt) * 1e6, 0)
    return {
        'labels': save(tmp_path, 'labels', np.where(rod, 4, np.where(mask, 9, 0)).astype('u1')),
        'label_names': {4: 'rod', 9: 'agar'},
        'mask': save(tmp_path, 'mask', mask.astype('u1')),
        'precond_chi': save(tmp_path, 'chi', chi),
        'total_field': save(tmp_path, 'field', (field + 0.3 + 0.01 * x).astype('f4')),
    }


def test_table_by_hand(inputs, tmp_path):
    result = RoiValues(**inputs).run(cwd=tmp_path).outputs
    rod, agar = read_table(result.out_file)
    assert (rod['index'], rod['name'], agar['name']) == (4, 'rod', 'agar')
    labels = np.asanyarray(nb.load(inputs['labels']).dataobj)
    assert rod['n_voxels'] == rod['precond_chi_n'] == np.sum(labels == 4)
    chi = nb.load(inputs['precond_chi']).get_fdata()
    assert rod['precond_chi_mean'] == pytest.approx(chi[labels == 4].mean(), abs=1e-5)
    assert rod['precond_chi_median'] == pytest.approx(0.7, abs=1e-5)
    assert rod['precond_chi_minus_medium'] == pytest.approx(
        chi[labels == 4].mean() - chi[labels == 9].mean(), abs=1e-5
    )
    assert agar['precond_chi_minus_medium'] == 0
    assert rod['cylinder_reference'] == pytest.approx(0.6, abs=1e-3)
    assert rod['cylinder_angle'] == pytest.approx(0, abs=0.1)
    assert agar['cylinder_reference'] is None
    assert 'r2star_mean' not in rod


@pytest.mark.parametrize('direction', [(1, 0, 0), (0, -1, 0.0), (0.5, 0, 0.75**0.5), (0, 0, -1)])
def test_cylinder_in_the_direction_of_b0_that_was_stated(inputs, tmp_path, direction):
    """As ``b0_dir`` has it, whatever the affine says; it is in the mask's header."""
    image = nb.load(inputs['mask'])
    state_b0(image.header, direction)
    image.to_filename(tmp_path / 'stated.nii')
    result = RoiValues(**inputs | {'mask': str(tmp_path / 'stated.nii')}).run(cwd=tmp_path)
    rod, _ = read_table(result.outputs.out_file)
    cosine = abs(direction[2])
    assert rod['cylinder_angle'] == pytest.approx(np.degrees(np.arccos(cosine)), abs=0.2)
    expected = 0.6 * (2 / 3) / (cosine**2 - 1 / 3)  # the field of the fixture is 0.2 ppm inside
    assert rod['cylinder_reference'] == pytest.approx(expected, rel=5e-3)


def test_labels_with_a_fourth_axis_of_one_are_read(inputs, tmp_path):
    plain = read_table(RoiValues(**inputs).run(cwd=tmp_path).outputs.out_file)
    labels = np.asarray(nb.load(inputs['labels']).dataobj)
    inputs['labels'] = save(tmp_path, 'four', labels[..., None])
    assert read_table(RoiValues(**inputs).run(cwd=tmp_path).outputs.out_file) == plain


def test_dictionary_describes_each_column(inputs, tmp_path):
    result = RoiValues(**inputs).run(cwd=tmp_path).outputs
    assert list(result.columns) == list(read_table(result.out_file)[0])
    assert result.columns['precond_chi_mean']['Units'] == 'ppm'
    assert 'Units' not in result.columns['precond_chi_n']
    assert 'agar' in result.columns['precond_chi_minus_medium']['Description']


def test_mean_has_the_error_and_support_of_the_record(inputs, tmp_path):
    known = {'4': {'error': 0.012, 'support': 0.8, 'pattern_support': 0.25}}
    record = {'uncertainty': {'regions': known}}
    result = RoiValues(**inputs, record=record, chi_sd=inputs['precond_chi']).run(cwd=tmp_path)
    rod, agar = read_table(result.outputs.out_file)
    columns = ('precond_chi_error', 'precond_chi_support', 'precond_chi_pattern_support')
    assert [rod[name] for name in columns] == [0.012, 0.8, 0.25]
    assert [agar[name] for name in columns] == [None] * 3
    assert result.outputs.columns['precond_chi_error']['Units'] == 'ppm'
    assert 'chi_sd_mean' in rod
    assert 'chi_sd_minus_medium' not in rod  # a standard deviation has no medium


def test_voxels_outside_the_region_do_not_count(inputs, tmp_path):
    mask = np.zeros(SHAPE, 'u1')
    mask[20, 20, 30] = 1
    result = RoiValues(**inputs | {'mask': save(tmp_path, 'point', mask)}).run(cwd=tmp_path)
    rod, agar = read_table(result.outputs.out_file)
    assert rod['precond_chi_n'] == 1
    assert rod['n_voxels'] > 1000
    assert agar['precond_chi_n'] == 0
    assert agar['precond_chi_mean'] is None


def test_labels_on_another_grid_are_refused_with_both_files(inputs, tmp_path):
    inputs['labels'] = save(tmp_path, 'small', np.ones((4, 4, 4), 'u1'))
    with pytest.raises(ValueError, match=r'mask.*small.*differ in matrix size'):
        RoiValues(**inputs).run(cwd=tmp_path)
