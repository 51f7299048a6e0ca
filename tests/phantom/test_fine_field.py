"""The field on a fine grid against closed forms that share nothing with it."""

import numpy as np
import pytest
from operators import assert_adjoint

from precondqsm_bids.phantom.fields import cylinder_field, sphere_field
from precondqsm_bids.phantom.fine_field import (
    alias_factor,
    block_mean,
    good_length,
    object_field,
    periodic_field,
)


def grid(spacing, extent=48.0):
    """Points of a centred grid, (N0, N1, N2, 3), mm."""
    lengths = [
        good_length(int(extent / size), factor)
        for size, factor in zip(spacing, alias_factor(spacing), strict=True)
    ]
    axes = [(np.arange(n) - (n - 1) / 2) * size for n, size in zip(lengths, spacing, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing='ij'), axis=-1)


def direction(tilt, azimuth):
    tilt, azimuth = np.radians([tilt, azimuth])
    return np.array([np.sin(tilt) * np.cos(azimuth), np.sin(tilt) * np.sin(azimuth), np.cos(tilt)])


@pytest.mark.parametrize('tilt, azimuth', [(0, 0), (45, 90), (90, 0), (50, 30)])
@pytest.mark.parametrize('spacing', [(1.0, 1.0, 1.0), (1.0, 0.75, 1.5)])
def test_sphere(tilt, azimuth, spacing):
    points = grid(spacing)
    radius = 8.0
    distance = np.linalg.norm(points, axis=-1)
    chi = (distance <= radius).astype(np.float32)
    b0_dir = direction(tilt, azimuth)
    field = object_field(chi, spacing, b0_dir)
    # the volume that the points make up, not the nominal one
    volume = chi.sum() * np.prod(spacing) / (4 / 3 * np.pi * radius**3)
    error = field - volume * sphere_field(points, radius, b0_dir)
    rim = 2 * max(spacing)
    assert np.sqrt(np.mean(error[distance < radius - rim] ** 2)) < 0.005
    assert np.sqrt(np.mean(error[distance > radius + rim] ** 2)) < 0.001


def test_images_are_what_padding_removes():
    # off the middle, so that the nearest image is near
    points = grid((1.0, 1.0, 1.0))
    centre = np.array([8.0, -6, 7])
    distance = np.linalg.norm(points - centre, axis=-1)
    chi = (distance <= 7).astype(np.float32)
    b0_dir = direction(20, 90)
    exact = sphere_field(points - centre, 7.0, b0_dir) * chi.sum() / (4 / 3 * np.pi * 7**3)
    away = distance > 10
    alone = np.abs(object_field(chi, (1, 1, 1), b0_dir) - exact)[away].max()
    with_images = np.abs(periodic_field(chi, (1, 1, 1), b0_dir) - exact)[away].max()
    assert alone < 0.01
    assert with_images > 4 * alone


def test_tilted_cylinder():
    points = grid((1.0, 1.0, 1.0), 60.0)
    inside = (np.hypot(points[..., 0], points[..., 1]) <= 6) & (np.abs(points[..., 2]) <= 15)
    b0_dir = direction(30, 90)
    field = object_field(inside.astype(np.float32), (1, 1, 1), b0_dir)
    exact = cylinder_field(points[::3, ::3, ::3], 6.0, 30.0, b0_dir)
    core = (np.hypot(points[..., 0], points[..., 1]) <= 4) & (np.abs(points[..., 2]) <= 12)
    core = core[::3, ::3, ::3]
    assert field[::3, ::3, ::3][core].mean() == pytest.approx(exact[core].mean(), abs=0.005)


def test_linear_and_cyclic():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 12, 16, 20), dtype=np.float32)
    b0_dir = direction(40, 20)

    def apply(chi):
        return periodic_field(chi, (1, 1, 2), b0_dir)

    np.testing.assert_allclose(apply(2 * a - b), 2 * apply(a) - apply(b), atol=1e-5)
    shifted = np.roll(a, (3, -2, 5), (0, 1, 2))
    np.testing.assert_allclose(apply(shifted), np.roll(apply(a), (3, -2, 5), (0, 1, 2)), atol=1e-5)
    assert_adjoint(apply, apply, a.shape)  # the kernel is real and even


def test_lengths_must_fit():
    with pytest.raises(ValueError, match=r'\(10, 12, 12\) must be multiples of \(4, 4, 4\)'):
        object_field(np.zeros((10, 12, 12), np.float32), (1, 1, 1), (0, 0, 1))
    assert block_mean(np.ones((8, 4, 4)), (4, 2, 2)).shape == (2, 2, 2)
