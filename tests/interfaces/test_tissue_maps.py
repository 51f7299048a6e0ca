"""Segmentations on the grid of a run: as they are, or resampled by their affines."""

from pathlib import Path

import nibabel as nb
import numpy as np
import pytest

from precondqsm_bids.interfaces.mask_on_grid import MaskOnGrid
from precondqsm_bids.interfaces.roi_values import RoiValues
from precondqsm_bids.interfaces.tissue_maps import TissueMaps

GRID = np.diag([2.0, 2.0, 2.0, 1.0])
SHAPE = (6, 7, 8)


def save(path, data, affine=GRID):
    nb.save(nb.Nifti1Image(data, affine), path)
    return str(path)


@pytest.fixture
def grid(tmp_path):
    return save(tmp_path / 'mag.nii.gz', np.ones(SHAPE, np.float32))


def tissue(tmp_path, **inputs):
    folder = tmp_path / 'out'
    folder.mkdir()
    image = nb.load(TissueMaps(**inputs).run(cwd=str(folder)).outputs.tissue)
    np.testing.assert_allclose(image.affine, GRID)
    return np.asanyarray(image.dataobj)


def finer():
    """A grid of 1 mm, turned by a quarter, whose voxels tile those of the run."""
    shape = (14, 12, 16)
    affine = np.array([[0, 1, 0, -0.5], [-1, 0, 0, 12.5], [0, 0, 1, -0.5], [0, 0, 0, 1.0]])
    return shape, affine


def where(shape, affine):
    """Scanner coordinates of every voxel, mm."""
    return nb.affines.apply_affine(affine, np.stack(np.indices(shape), axis=-1))


LABELS = {'classes': ['WM', 'GM'], 'label_classes': {2: 'WM', 41: 'WM', 3: 'GM', 42: 'GM'}}


def test_labels_on_the_grid_become_classes(tmp_path, grid):
    labels = np.random.default_rng(0).choice([0, 2, 3, 41, 42, 99], SHAPE).astype(np.int32)
    path = save(tmp_path / 'dseg.nii.gz', labels)
    found = tissue(tmp_path, segmentation=[path], grid=grid, **LABELS)
    expected = np.select([np.isin(labels, (2, 41)), np.isin(labels, (3, 42))], [1, 2], 0)
    np.testing.assert_array_equal(found, expected)


def test_labels_on_another_grid_take_the_nearest(tmp_path, grid):
    shape, affine = finer()

    def label(points):  # halves of space, no border near a voxel of either grid
        return np.where(points[..., 0] > 4.9, 42, 2).astype(np.int16)

    path = save(tmp_path / 'dseg.nii.gz', label(where(shape, affine)), affine)
    found = tissue(tmp_path, segmentation=[path], grid=grid, **LABELS)
    np.testing.assert_array_equal(found, np.where(label(where(SHAPE, GRID)) == 42, 2, 1))


def test_mask_on_another_grid_takes_the_nearest(tmp_path, grid):
    """Under the name that it had, which the record shows."""
    shape, affine = finer()
    path = save(tmp_path / 'a_mask.nii.gz', (where(shape, affine)[..., 0] > 4.9) * 1.0, affine)
    folder = tmp_path / 'out'
    folder.mkdir()
    found = MaskOnGrid(mask=path, grid=grid).run(cwd=str(folder)).outputs.mask
    assert Path(found).name.partition('.')[0] == 'a_mask'
    expected = where(SHAPE, GRID)[..., 0] > 4.9
    np.testing.assert_array_equal(nb.load(found).get_fdata(), expected)


def test_shares_on_another_grid_are_linear(tmp_path, grid):
    shape, affine = finer()

    def share(points):  # linear in space, which linear interpolation keeps
        return (0.1 + 0.05 * points[..., 0] + 0.01 * points[..., 2]).astype(np.float32)

    paths = [
        save(tmp_path / f'{name}.nii.gz', values, affine)
        for name, values in (
            ('GM', share(where(shape, affine))),
            ('WM', 1 - share(where(shape, affine))),
        )
    ]
    found = tissue(tmp_path, segmentation=paths, classes=['GM', 'WM'], grid=grid)
    expected = share(where(SHAPE, GRID))
    inside = (slice(0, 6), slice(0, 7), slice(0, 8))
    np.testing.assert_allclose(found[inside][..., 0], expected[inside], atol=1e-4)
    np.testing.assert_allclose(found[inside][..., 1], 1 - expected[inside], atol=1e-4)


@pytest.mark.parametrize(
    'value, message',
    [
        (255.0, 'has values from 255 to 255; the fractions .* are 0 to 1'),
        (np.nan, 'not finite'),
        (0.0, 'has no tissue'),
    ],
)
def test_shares_that_cannot_be(tmp_path, grid, value, message):
    path = save(tmp_path / 'GM.nii.gz', np.full(SHAPE, value, np.float32))
    with pytest.raises(ValueError, match=message):
        tissue(tmp_path, segmentation=[path, path], classes=['GM', 'WM'], grid=grid)


def test_a_segmentation_of_something_else(tmp_path, grid):
    path = save(tmp_path / 'dseg.nii.gz', np.full(SHAPE, 7, np.int16))
    with pytest.raises(ValueError, match=r'dseg\.nii\.gz has no tissue \(WM, GM\) within'):
        tissue(tmp_path, segmentation=[path], grid=grid, **LABELS)


def test_classes_without_an_image_are_named(tmp_path, grid):
    image = save(tmp_path / 'seg.nii.gz', np.ones(SHAPE, np.int16))
    inputs = {'segmentation': [image], 'grid': grid}
    with pytest.raises(ValueError, match='label_classes has CSF, not among the classes'):
        TissueMaps(**inputs, classes=['GM'], label_classes={1: 'GM', 2: 'CSF'}).run(cwd=tmp_path)
    with pytest.raises(ValueError, match='1 images of segmentation for 2 classes'):
        TissueMaps(**inputs, classes=['GM', 'WM']).run(cwd=tmp_path)


@pytest.mark.parametrize('value', [1.5, np.nan])
def test_labels_that_were_interpolated_are_refused(tmp_path, grid, value):
    data = np.ones(SHAPE, np.float32)
    data[0, 0, :3] = value
    path = save(tmp_path / 'dseg.nii.gz', data)
    words = r'no whole numbers, such as 1\.5 \(in 3 voxels\)|not finite'
    with pytest.raises(ValueError, match=words):
        tissue(tmp_path, segmentation=[path], grid=grid, **LABELS)
    values = RoiValues(labels=path, mask=grid, precond_chi=grid)
    with pytest.raises(ValueError, match=r'no whole numbers|is not a number'):
        values.run(cwd=str(tmp_path))
