"""Dipole fields against closed forms, naive loops and the identities of the operator."""

import itertools
from functools import partial

import numpy as np
import pytest
from operators import assert_adjoint
from scipy import fft

from precondqsm_bids.numerics.dipole import (
    PrismConvolution,
    b0_direction,
    bounding_box,
    cyclic_prism_kernel,
    dipole_kernel,
    forward_field,
    prism_kernel,
)
from precondqsm_bids.numerics.solver import solver_grid
from precondqsm_bids.phantom.fields import cylinder_field

OBLIQUE = np.array([0.3, -0.5, 0.8]) / np.linalg.norm([0.3, -0.5, 0.8])


def direction(tilt, azimuth=90.0):
    tilt, azimuth = np.radians([tilt, azimuth])
    return np.array([np.sin(tilt) * np.cos(azimuth), np.sin(tilt) * np.sin(azimuth), np.cos(tilt)])


def coordinates(shape, voxel_size, factor=1):
    """Centres (mm) of the voxels, or of ``factor`` points per voxel and axis; centred grid."""
    return [
        ((np.arange(n * factor) + 0.5) / factor - n / 2) * d
        for n, d in zip(shape, voxel_size, strict=True)
    ]


def share(shape, voxel_size, inside, factor):
    """Share of each voxel in the body ``inside(x, y, z)``."""
    x, y, z = coordinates(shape, voxel_size, factor)
    out = np.zeros(shape, np.float32)
    for k, height in enumerate(z):
        plane = inside(x[:, None], y[None, :], height)
        plane = plane.reshape(shape[0], factor, shape[1], factor).mean(axis=(1, 3))
        out[:, :, k // factor] += plane / factor
    return out


def point_dipole(points, b0_dir):
    """Field of a point of unit volume and susceptibility."""
    r2 = np.sum(points**2, axis=-1)
    return (3 * (points @ b0_dir) ** 2 / r2 - 1) / (4 * np.pi * r2**1.5)


def cross(volume, kernel):
    """Cyclic convolution by a half-spectrum kernel."""
    return fft.irfftn(fft.rfftn(volume) * kernel, s=volume.shape)


# --- closed forms ---------------------------------------------------------------------------


@pytest.mark.parametrize('voxel_size', [(1, 1, 1), (1, 1, 2), (1, 1, 3)])
@pytest.mark.parametrize('tilt', [0, 25, 45])
def test_sphere(voxel_size, tilt):
    # (R / r)^3 (cos^2 theta - 1/3) outside, 0 inside. A staircase of partly filled voxels is no
    # sphere: its own error falls below 1e-3 of chi four voxels from the surface.
    radius, b0_dir = 20.0, direction(tilt)
    shape = tuple(int(np.ceil(56 / d)) for d in voxel_size)
    chi = share(shape, voxel_size, lambda x, y, z: x**2 + y**2 + z**2 <= radius**2, 6)
    field = forward_field(chi, voxel_size, b0_dir)

    points = np.stack(np.meshgrid(*coordinates(shape, voxel_size), indexing='ij'), axis=-1)
    r = np.linalg.norm(points, axis=-1)
    off = np.abs(r - radius) / max(voxel_size)  # voxels from the surface
    truth = np.where(r < radius, 0, (radius / r) ** 3 * ((points @ b0_dir / r) ** 2 - 1 / 3))
    error = field - truth
    outside, inside = (r > radius) & (off >= 2), (r < radius) & (off >= 2)
    assert np.abs(error[outside]).max() < 0.01 * 2 / 3
    assert np.linalg.norm(error[outside]) < 0.01 * np.linalg.norm(truth[outside])
    assert np.sqrt(np.mean(error[inside] ** 2)) < 1e-3
    assert np.abs(error[inside & (off >= 4)]).max() < 1e-3
    # and no bias that the staircase could not explain
    assert abs(error[inside].mean()) < 2e-4


@pytest.mark.parametrize('voxel_size', [(1, 1, 1), (1, 1, 2)])
@pytest.mark.parametrize('tilt', [0, 25, 90])
def test_finite_cylinder(voxel_size, tilt):
    radius, height, b0_dir = 12.0, 36.0, direction(tilt)
    shape = tuple(int(n / d) for n, d in zip((48, 48, 60), voxel_size, strict=True))

    def inside(x, y, z):
        return (x**2 + y**2 <= radius**2) & (abs(z) <= height / 2)

    field = forward_field(share(shape, voxel_size, inside, 6), voxel_size, b0_dir)
    points = np.stack(np.meshgrid(*coordinates(shape, voxel_size), indexing='ij'), axis=-1)
    truth = cylinder_field(points, radius, height, b0_dir)
    rho, z = np.hypot(points[..., 0], points[..., 1]), np.abs(points[..., 2])
    d = max(voxel_size)
    near = (np.abs(rho - radius) < 2 * d) & (z < height / 2 + 2 * d)
    near |= (np.abs(z - height / 2) < 2 * d) & (rho < radius + 2 * d)
    error = (field - truth)[~near]
    assert np.abs(error).max() < 0.01
    assert np.sqrt(np.mean(error**2)) < 1e-3


def test_long_cylinder():
    # (cos^2 theta - 1/3) / 2 inside; a^2 sin^2 theta cos 2 phi / (2 rho^2) outside, at mid-height
    # of a cylinder so long that its ends give less than 1e-3.
    shape, radius, b0_dir = (32, 32, 321), 6.0, direction(90, azimuth=0)
    chi = share(shape, (1, 1, 1), lambda x, y, z: x**2 + y**2 <= radius**2, 6)
    middle = forward_field(chi, (1, 1, 1), b0_dir)[:, :, 160]
    x, y = (axis[:, None] for axis in coordinates(shape, (1, 1, 1))[:2])
    y = y.T
    rho2 = x**2 + y**2
    inside, outside = rho2 < (radius - 2) ** 2, rho2 > (radius + 2) ** 2
    truth = radius**2 * (x**2 - y**2) / (2 * rho2**2)
    assert np.abs(middle[inside] + 1 / 6).max() < 5e-3
    assert np.abs(middle - truth)[outside].max() < 5e-3


def test_far_field_is_a_point_dipole():
    shape, b0_dir = (24, 20, 16), OBLIQUE
    chi = np.zeros(shape)
    chi[3, 2, 1] = 2.0
    voxel_size = np.array([1.0, 0.8, 1.2])
    field = forward_field(chi, voxel_size, b0_dir)
    for index in [(23, 19, 15), (20, 2, 1), (3, 18, 14)]:
        offset = (np.array(index) - [3, 2, 1]) * voxel_size
        expected = 2 * np.prod(voxel_size) * point_dipole(offset, b0_dir)
        assert field[index] == pytest.approx(expected, rel=0.01, abs=1e-8)


# --- the voxel-integrated kernel -------------------------------------------------------------


@pytest.mark.parametrize('voxel_size', [(1.0, 1.0, 1.0), (1.0, 1.0, 3.0), (0.7, 1.0, 1.6)])
@pytest.mark.parametrize('b0_dir', [direction(0), direction(25), OBLIQUE])
def test_prism_kernel_is_a_sum_of_point_dipoles(voxel_size, b0_dir):
    # The voxel cut into 24^3 points; the midpoint rule is off by (h / r)^2 / 24 at distance r
    shape, cuts = (3, 3, 3), 24
    kernel = prism_kernel(shape, voxel_size, b0_dir)
    inside = np.stack(
        np.meshgrid(*(((np.arange(cuts) + 0.5) / cuts - 0.5) * d for d in voxel_size)), axis=-1
    ).reshape(-1, 3)
    volume = np.prod(voxel_size) / cuts**3
    for offset in itertools.product(range(-2, 3), repeat=3):
        if offset == (0, 0, 0):
            continue
        points = np.array(offset) * voxel_size - inside
        expected = volume * point_dipole(points, b0_dir).sum()
        assert kernel[offset] == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize('voxel_size', [(1.0, 1.0, 1.0), (1.0, 1.0, 3.0), (0.7, 1.0, 1.6)])
@pytest.mark.parametrize('axis', [0, 1, 2])
def test_prism_kernel_at_its_own_voxel(voxel_size, axis):
    # B0 along an axis charges the two faces across it: the demagnetising factor at the centre is
    # their solid angle over 4 pi (van Oosterom & Strackee 1983 for a rectangle).
    length = voxel_size[axis]
    width, height = (voxel_size[i] for i in range(3) if i != axis)
    diagonal = np.sqrt(np.sum(np.square(voxel_size)))
    solid_angle = 8 * np.arctan(width * height / (length * diagonal))
    own = prism_kernel((2, 2, 2), voxel_size, np.eye(3)[axis])[0, 0, 0]
    assert own == pytest.approx(1 / 3 - solid_angle / (4 * np.pi), abs=1e-6)


@pytest.mark.parametrize('shape', [(16, 15, 14), (12, 14, 9)])
@pytest.mark.parametrize('voxel_size', [(1.0, 1.0, 1.0), (0.7, 1.0, 1.6)])
def test_cyclic_kernel_is_that_of_voxels_repeated_without_end(shape, voxel_size):
    """The voxel in closed form, and its repetitions as point dipoles, cells within a ball.

    What lies beyond the ball has no field but a constant, and D(0) = 0 takes that off.
    """
    kernel = fft.irfftn(cyclic_prism_kernel(shape, voxel_size, OBLIQUE), s=shape)
    own = prism_kernel(tuple(n // 2 + 1 for n in shape), voxel_size, OBLIQUE)
    h, cell = np.array(voxel_size), np.array(shape) * voxel_size
    reach = 7 * cell.max()
    counts = [range(-int(reach / c), int(reach / c) + 1) for c in cell]
    cells = np.array(list(itertools.product(*counts)))
    images = cells[cells.any(axis=1)] * cell
    images = images[np.linalg.norm(images, axis=1) < reach]
    found, expected = [], []
    for offset in [(0, 0, 0), (1, 0, 0), (0, 0, 1), (2, 1, 3), (5, 5, 4), (5, 0, 0), (-4, 2, -3)]:
        far = point_dipole(np.array(offset) * h - images, OBLIQUE).sum() * np.prod(h)
        expected.append(own[offset] + far)
        found.append(kernel[offset])
    difference = np.array(found) - expected
    np.testing.assert_allclose(difference - difference.mean(), 0, atol=2e-4)
    assert abs(difference.mean()) < 1e-3


@pytest.mark.parametrize('shape', [(3, 4, 5), (1, 4, 2), (2, 1, 1)])
def test_convolution_is_the_naive_sum(shape):
    rng = np.random.default_rng(1)
    chi = rng.normal(size=shape)
    voxel_size = (1.0, 1.3, 2.0)
    kernel = prism_kernel(shape, voxel_size, OBLIQUE)
    expected = np.zeros(shape)
    for target in np.ndindex(shape):
        for source in np.ndindex(shape):
            offset = tuple(t - s for t, s in zip(target, source, strict=True))
            expected[target] += kernel[offset] * chi[source]
    np.testing.assert_allclose(forward_field(chi, voxel_size, OBLIQUE), expected, atol=2e-6)


def test_no_alias_from_sources_at_the_edge():
    # The field of a source in the corner does not depend on the matrix that holds it.
    small, large = np.zeros((9, 10, 11)), np.zeros((20, 21, 22))
    small[0, 9, 0] = large[0, 9, 0] = 3
    args = ((1, 1, 2), OBLIQUE)
    np.testing.assert_allclose(
        forward_field(small, *args), forward_field(large, *args)[:9, :10, :11], atol=1e-6
    )


# --- identities ------------------------------------------------------------------------------


def test_forward_field_is_linear_and_self_adjoint():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 11, 12, 13)).astype(np.float32)
    args = ((1, 0.8, 2), OBLIQUE)
    ax, ay = forward_field(x, *args), forward_field(y, *args)
    np.testing.assert_allclose(forward_field(2 * x - 3 * y, *args), 2 * ax - 3 * ay, atol=3e-5)
    forward = partial(forward_field, voxel_size=args[0], b0_dir=args[1])
    assert_adjoint(forward, forward, x.shape)


def test_k_space_kernel_is_self_adjoint():
    apply = partial(cross, kernel=dipole_kernel((8, 9, 10), (1, 0.8, 2), OBLIQUE))
    assert_adjoint(apply, apply, (8, 9, 10))


@pytest.mark.parametrize('shape', [(6, 5, 4), (5, 6, 7)])
@pytest.mark.parametrize('b0_dir', [(0, 0, 1), (1, 0, 0), tuple(OBLIQUE)])
def test_k_space_kernel_by_its_formula(shape, b0_dir):
    voxel_size = (1.0, 1.5, 2.0)
    kernel = dipole_kernel(shape, voxel_size, b0_dir)
    for index in np.ndindex(kernel.shape):
        signed = [i if i <= (n - 1) // 2 else i - n for i, n in zip(index, shape, strict=True)]
        # At the Nyquist frequency +k and -k are one sample, whose value is their mean.
        choices = [
            (s, -s) if 2 * abs(s) == n else (s,) for s, n in zip(signed, shape, strict=True)
        ]
        values = []
        for j in itertools.product(*choices):
            k = np.array(j) / (np.array(shape) * voxel_size)
            values.append(1 / 3 - (k @ b0_dir) ** 2 / (k @ k) if k.any() else 0.0)
        assert kernel[index] == pytest.approx(np.mean(values), abs=1e-6)


def test_k_space_kernel_has_no_mean_field():
    # Twice the mean of cos^2 over the sphere is 2/3: the trace of the tensor is zero
    kernels = [dipole_kernel((8, 9, 10), (1, 1.2, 2), b) for b in np.eye(3)]
    assert np.abs(sum(kernels)).max() < 1e-6
    field = cross(np.random.default_rng(4).normal(size=(8, 9, 10)), kernels[1])
    assert abs(field.mean()) < 1e-7


@pytest.mark.parametrize('axis', [0, 1, 2])
@pytest.mark.parametrize('shape', [(8, 9, 10), (9, 10, 8)])
def test_flipped_axis(shape, axis):
    chi = np.random.default_rng(5).normal(size=shape)
    b0_flipped = np.where(np.arange(3) == axis, -1, 1) * OBLIQUE
    voxel_size = (1.0, 0.9, 2.0)
    field = forward_field(chi, voxel_size, OBLIQUE)
    flipped = forward_field(np.flip(chi, axis), voxel_size, b0_flipped)
    np.testing.assert_allclose(np.flip(flipped, axis), field, atol=2e-6)
    field = cross(chi, dipole_kernel(shape, voxel_size, OBLIQUE))
    flipped = cross(np.flip(chi, axis), dipole_kernel(shape, voxel_size, b0_flipped))
    np.testing.assert_allclose(np.flip(flipped, axis), field, atol=2e-6)


@pytest.mark.parametrize('order', list(itertools.permutations(range(3)))[1:])
def test_permuted_axes(order):
    chi = np.random.default_rng(6).normal(size=(8, 9, 10))
    voxel_size = np.array([1.0, 0.9, 2.0])
    order = list(order)
    back = np.argsort(order)
    permuted = chi.transpose(order)
    moved = voxel_size[order], OBLIQUE[order]
    field = forward_field(chi, voxel_size, OBLIQUE)
    np.testing.assert_allclose(forward_field(permuted, *moved).transpose(back), field, atol=2e-6)
    field = cross(chi, dipole_kernel(chi.shape, voxel_size, OBLIQUE))
    again = cross(permuted, dipole_kernel(permuted.shape, *moved)).transpose(back)
    np.testing.assert_allclose(again, field, atol=2e-6)


@pytest.mark.parametrize('shape', [(12, 13, 14), (5, 1, 8)])
def test_convolution_object_equals_the_function(shape):
    chi = np.random.default_rng(7).normal(size=shape).astype(np.float32)
    convolve = PrismConvolution(shape, (1, 1, 2), OBLIQUE)
    np.testing.assert_allclose(
        convolve(chi), forward_field(chi, (1, 1, 2), OBLIQUE), atol=1e-6, rtol=0
    )


def test_sign_of_b0_and_its_length_do_not_matter():
    chi = np.random.default_rng(8).normal(size=(6, 6, 6))
    field = forward_field(chi, (1, 1, 1), OBLIQUE)
    np.testing.assert_array_equal(forward_field(chi, (1, 1, 1), -OBLIQUE), field)
    np.testing.assert_allclose(forward_field(chi, (1, 1, 1), 7 * OBLIQUE), field, atol=1e-7)


def test_mask_only_crops():
    rng = np.random.default_rng(9)
    chi = np.zeros((20, 21, 22))
    chi[3:6, 4:9, 5:8] = rng.normal(size=(3, 5, 3))
    mask = np.zeros(chi.shape, bool)
    mask[8:14, 2:10, 9:20] = True
    field = forward_field(chi, (1, 1, 2), OBLIQUE, mask)
    everywhere = forward_field(chi, (1, 1, 2), OBLIQUE)
    assert np.all(field[~mask] == 0)
    np.testing.assert_allclose(field[mask], everywhere[mask], atol=1e-6)


# --- direction of B0 -------------------------------------------------------------------------


def rotation(axis, angle):
    """Rotation matrix by Rodrigues' formula."""
    x, y, z = np.asarray(axis, float) / np.linalg.norm(axis)
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


@pytest.mark.parametrize('angle', [0.0, 0.3, 1.2, -2.5])
@pytest.mark.parametrize('voxel_size', [(1, 1, 1), (0.7, 1.1, 3)])
@pytest.mark.parametrize('flips', list(itertools.product((1, -1), repeat=3)))
@pytest.mark.parametrize('order', [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_b0_direction(angle, voxel_size, flips, order):
    # Stepping d mm along b0_dir in voxel axes must move d mm along the scanner's z.
    rotated = rotation((1, 2, -0.5), angle) @ np.diag(flips)[:, list(order)]
    affine = np.eye(4)
    affine[:3, :3] = rotated * voxel_size
    affine[:3, 3] = (10, -20, 30)
    b0_dir = b0_direction(affine)
    assert np.linalg.norm(b0_dir) == pytest.approx(1, abs=1e-12)
    steps = 5 * b0_dir / voxel_size
    np.testing.assert_allclose(affine[:3, :3] @ steps, [0, 0, 5], atol=1e-5)


def test_b0_direction_ignores_rounding_in_the_header():
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[2, 0] = 1e-8
    assert b0_direction(affine).tolist() == [0, 0, 1]


def test_b0_direction_of_a_sheared_affine_is_its_nearest_rotation():
    # A shear of 1 % is split between the axes by the polar factor: half of it each.
    affine = np.eye(4)
    affine[2, 0] = 0.01
    assert b0_direction(affine) == pytest.approx([0.005, 0, 1], abs=1e-4)


# --- errors and grids ------------------------------------------------------------------------


@pytest.mark.parametrize('affine', [np.zeros((4, 4)), np.diag([1.0, 1, 0, 1])])
def test_singular_affine(affine):
    with pytest.raises(ValueError, match='singular') as error:
        b0_direction(affine)
    assert 'qform or sform' in str(error.value)


def test_singular_affine_says_so_without_warnings():
    with pytest.raises(ValueError, match='singular'):
        b0_direction(np.full((4, 4), np.nan))


@pytest.mark.parametrize('b0_dir', [(0, 0, 0), (0, 1), (np.nan, 0, 1)])
def test_bad_direction(b0_dir):
    for function in (dipole_kernel, prism_kernel, cyclic_prism_kernel):
        with pytest.raises(ValueError, match='b0_dir'):
            function((4, 4, 4), (1, 1, 1), b0_dir)


def test_bad_susceptibility():
    chi = np.zeros((4, 4, 4))
    chi[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match='1 voxels that are not finite'):
        forward_field(chi, (1, 1, 1), (0, 0, 1))
    with pytest.raises(ValueError, match=r'\(4, 4\)'):
        forward_field(np.zeros((4, 4)), (1, 1, 1), (0, 0, 1))
    with pytest.raises(ValueError, match='differ in shape'):
        forward_field(np.zeros((4, 4, 4)), (1, 1, 1), (0, 0, 1), np.ones((4, 4, 5), bool))


def test_solver_grid_round_trip():
    mask = np.zeros((20, 21, 22), bool)
    mask[2:9, 0:21, 5:6] = True
    grid = solver_grid(mask)
    volume = np.random.default_rng(10).normal(size=mask.shape).astype(np.float32) * mask
    embedded = grid.embed(volume)
    assert all(n >= s.stop + 12 for n, s in zip(grid.shape, grid.inner, strict=True))
    assert embedded.sum() == pytest.approx(volume.sum(), rel=1e-4)
    np.testing.assert_array_equal(grid.extract(embedded, mask.shape), volume)
    assert_adjoint(grid.embed, partial(grid.extract, shape=mask.shape), mask.shape, grid.shape)


def test_bounding_box_clips_its_margin():
    mask = np.zeros((5, 6, 7), bool)
    mask[1, 5, 3] = True
    box = bounding_box(mask, margin=2)
    assert [(s.start, s.stop) for s in box] == [(0, 4), (3, 6), (1, 6)]


def test_single_precision_loses_nothing_that_counts():
    # An object in air: 9.41 ppm, of which 1e-5 ppm may be lost (1.1e-6 measured here)
    x, y, z = np.indices((45, 41, 37)) - 20.0
    chi = np.where(x**2 + 1.3 * y**2 + z**2 < 250, -9.41, 0.0)
    chi += np.random.default_rng(0).normal(0, 0.1, chi.shape)
    kernel = prism_kernel(chi.shape, (1, 1, 1.5), direction(25)).astype(np.float64)
    spectrum = fft.rfftn(kernel) * fft.rfftn(chi, kernel.shape)
    double = fft.irfftn(spectrum, kernel.shape)[tuple(slice(n) for n in chi.shape)]
    single = forward_field(chi, (1, 1, 1.5), direction(25))
    assert np.abs(single - double).max() < 1e-5
