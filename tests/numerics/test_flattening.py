"""Flattening against closed-form fields and its own linearity."""

import numpy as np
import pytest

from precondqsm_bids.numerics.flattening import flatten_field
from precondqsm_bids.phantom.fields import sphere_field

VOXEL_SIZE, N = (1.0, 1.0, 2.0), (44, 44, 22)
B0_DIR = np.array([0, np.sin(0.4), np.cos(0.4)])
AXES = [(np.arange(n) - (n - 1) / 2) * d for n, d in zip(N, VOXEL_SIZE, strict=True)]
POINTS = np.stack(np.meshgrid(*AXES, indexing='ij'), axis=-1)
R = np.linalg.norm(POINTS, axis=-1)
CENTRE = np.array([4.0, -2.0, 2.0])


def sphere_share(centre, radius, factor=5):
    axes = [
        ((np.arange(n * factor) + 0.5) / factor - n / 2) * d
        for n, d in zip(N, VOXEL_SIZE, strict=True)
    ]
    x, y, z = np.meshgrid(*axes, indexing='ij', sparse=True)
    x, y, z = x - centre[0], y - centre[1], z - centre[2]
    inside = (x**2 + y**2 + z**2 <= radius**2).reshape(N[0], factor, N[1], factor, N[2], factor)
    return inside.mean(axis=(1, 3, 5))


def test_true_prior_and_shape_leave_nothing():
    # A water sphere of 18 mm in air (-9.41 ppm) that holds one of 7 mm, +1.2 ppm
    field = -9.41 * sphere_field(POINTS, 18.0, B0_DIR)
    field += 1.2 * sphere_field(POINTS - CENTRE, 7.0, B0_DIR)
    inner = np.linalg.norm(POINTS - CENTRE, axis=-1)
    mask = (R < 14) & (np.abs(inner - 7) > 4)
    result = flatten_field(
        field,
        1.2 * sphere_share(CENTRE, 7.0),
        mask,
        VOXEL_SIZE,
        B0_DIR,
        -9.41 * sphere_share((0, 0, 0), 18.0),
    )
    left = result.flattened_field[mask]
    # 1 % of the peak of either sphere's own field outside; the staircase is all that is left
    assert np.abs(left).max() < 0.01 * 9.41
    assert np.sqrt(np.mean(left**2)) < 1e-3 * 9.41
    np.testing.assert_allclose(
        result.flattened_field + result.prior_field, np.where(mask, field, 0), atol=1e-6
    )


def test_zero_outside_the_mask_and_types():
    mask = R < 12
    result = flatten_field(np.ones(N), np.ones(N), mask, VOXEL_SIZE, B0_DIR)
    for volume in result:
        assert volume.dtype == np.float32
        assert np.all(volume[~mask] == 0)


def test_sources_outside_the_mask_count():
    # The shape reaches beyond the region of interest: its field must be that of the whole.
    mask = R < 8
    shell = -9.41 * sphere_share((0, 0, 0), 18.0)
    result = flatten_field(np.zeros(N), np.zeros(N), mask, VOXEL_SIZE, B0_DIR, shell)
    assert np.abs(result.prior_field[mask]).max() < 1e-3 * 9.41  # inside a sphere: no field


def test_superposition():
    rng = np.random.default_rng(0)
    mask, prior, shape = R < 14, *rng.normal(size=(2, *N))
    both = flatten_field(np.zeros(N), prior, mask, VOXEL_SIZE, B0_DIR, shape)
    first = flatten_field(np.zeros(N), prior, mask, VOXEL_SIZE, B0_DIR)
    second = flatten_field(first.flattened_field, shape, mask, VOXEL_SIZE, B0_DIR)
    np.testing.assert_allclose(second.flattened_field, both.flattened_field, atol=2e-5)


def test_zero_prior_changes_nothing():
    field = np.random.default_rng(1).normal(size=N).astype(np.float32)
    mask = R < 14
    result = flatten_field(field, np.zeros(N), mask, VOXEL_SIZE, B0_DIR)
    np.testing.assert_array_equal(result.flattened_field, np.where(mask, field, 0))


def test_errors():
    mask = np.ones((4, 4, 4), bool)
    with pytest.raises(ValueError, match=r'\(4, 4, 3\)'):
        flatten_field(np.zeros((4, 4, 4)), np.zeros((4, 4, 3)), mask, (1, 1, 1), (0, 0, 1))
    prior = np.zeros((4, 4, 4))
    prior[1, 1, 1] = np.inf
    with pytest.raises(ValueError, match='not finite'):
        flatten_field(np.zeros((4, 4, 4)), prior, mask, (1, 1, 1), (0, 0, 1))


def test_field_that_is_not_known_in_the_region_is_refused():
    mask, chi = np.ones(N, bool), np.zeros(N, np.float32)
    field = np.zeros(N)
    field[3, 4, 5] = np.nan
    with pytest.raises(ValueError, match='total_field is not finite in 1 voxels'):
        flatten_field(field, chi, mask, VOXEL_SIZE, B0_DIR)
    mask[3, 4, 5] = False
    assert not flatten_field(field, chi, mask, VOXEL_SIZE, B0_DIR).flattened_field.any()
