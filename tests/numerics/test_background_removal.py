"""PDF and V-SHARP against closed forms, dense least squares, loops and their identities."""

import inspect

import numpy as np
import pytest
from scipy import fft

from precondqsm_bids.method import BACKGROUNDS, Arm
from precondqsm_bids.numerics.background_removal import pdf, remove_background
from precondqsm_bids.numerics.dipole import Geometry, cyclic_prism_kernel
from precondqsm_bids.numerics.solver import noise_weights, solver_grid
from precondqsm_bids.numerics.vsharp import vsharp
from precondqsm_bids.phantom.fields import sphere_field

N = 40
VOXEL_SIZE = np.array([1.0, 1.0, 1.0])
POINTS = np.stack(np.indices((N, N, N)), axis=-1) - (N - 1) / 2
R = np.linalg.norm(POINTS, axis=-1)
SPHERE = R < 13
TILTED = np.array([0.3, -0.4, 0.87]) / np.linalg.norm([0.3, -0.4, 0.87])


def dipole(position, moment, b0_dir, points=POINTS):
    """Field (ppm) of a small body: moment is susceptibility times volume, ppm mm^3."""
    offset = points - np.asarray(position, float)
    r2 = np.maximum(np.sum(offset**2, axis=-1), 0.5)
    return moment * (3 * (offset @ b0_dir) ** 2 / r2 - 1) / (4 * np.pi * r2**1.5)


def outside_field(b0_dir, seed=0, sources=12):
    rng = np.random.default_rng(seed)
    field = np.zeros(SPHERE.shape)
    for _ in range(sources):
        way = rng.normal(size=3)
        position = way / np.linalg.norm(way) * rng.uniform(17, 24)
        field += dipole(position, rng.normal(0, 300), b0_dir)
    return field


@pytest.mark.parametrize('b0_dir', [np.array([0, 0, 1.0]), TILTED])
def test_field_of_outside_dipoles_is_removed(b0_dir):
    field = outside_field(b0_dir)
    result = pdf(field, SPHERE, VOXEL_SIZE, b0_dir)
    left = np.linalg.norm(result.local_field) / np.linalg.norm(field[SPHERE])
    assert left < 0.02
    np.testing.assert_allclose(
        result.local_field + result.background_field, np.where(SPHERE, field, 0), atol=1e-5
    )


def test_constant_shift_of_the_frequency_is_background():
    # The scanner's centre frequency is no susceptibility. Sources outside cannot make a constant
    # exactly, but PDF must not leave it as if it were local.
    result = pdf(np.ones(SPHERE.shape), SPHERE, VOXEL_SIZE, (0, 0, 1))
    assert np.abs(result.local_field[R < 9].mean()) < 0.1


@pytest.mark.parametrize('radius', [3.0, 4.0])
def test_local_source_is_kept_but_for_its_harmonic_part(radius):
    # Fields of outside sources are the harmonic functions of the region. For a region between
    # the radii a and R the field of a source at its centre, r^-3 Y2, shares with r^2 Y2 the part
    # ((R^2 - a^2) / 2)^2 7 / R^7 3 / (a^-3 - R^-3) of its energy, which no method can keep.
    edge = 13.0
    shared = (edge**2 - radius**2) ** 2 / 4 * 7 / edge**7 * 3 / (radius**-3 - edge**-3)
    field = sphere_field(POINTS, radius, TILTED)
    local = pdf(field, SPHERE, VOXEL_SIZE, TILTED).local_field
    kept = np.vdot(local[SPHERE], field[SPHERE]) / np.vdot(field[SPHERE], field[SPHERE])
    assert kept == pytest.approx(1 - shared, abs=0.05)


def test_local_and_background_fields_are_told_apart():
    local = dipole((1, 2, -2), 8.0, TILTED) * (np.linalg.norm(POINTS - [1, 2, -2], axis=-1) > 1.5)
    background = outside_field(TILTED, seed=3)
    kept = pdf(local + background, SPHERE, VOXEL_SIZE, TILTED).local_field
    alone = pdf(local, SPHERE, VOXEL_SIZE, TILTED).local_field
    assert np.linalg.norm(background[SPHERE]) > 3 * np.linalg.norm(local[SPHERE])
    assert np.linalg.norm(kept - alone) < 0.05 * np.linalg.norm(background[SPHERE])


def test_right_sources_to_start_with_leave_nothing():
    """The field is that of sources on the grid by a plain cyclic convolution."""
    grid = solver_grid(SPHERE)
    kernel = cyclic_prism_kernel(grid.shape, VOXEL_SIZE, TILTED)
    sources = np.zeros(grid.shape, np.float32)
    sources[3, 4, 5], sources[-2, 20, 20] = 100, -300
    whole = fft.irfftn(fft.rfftn(sources) * kernel, s=grid.shape)
    field = grid.extract(whole, SPHERE.shape)
    inside = grid.embed(SPHERE)
    plain = pdf(field, SPHERE, VOXEL_SIZE, TILTED, iterations=1)
    found = pdf(field, SPHERE, VOXEL_SIZE, TILTED, iterations=1, start=sources + 7 * inside)
    assert (plain.start, found.start) == ('zero', 'prior_fit')
    size = np.abs(field[SPHERE]).max()
    assert np.abs(found.local_field).max() < 1e-5 * size
    assert np.abs(plain.local_field).max() > 0.1 * size


def test_start_of_another_grid_is_refused():
    with pytest.raises(ValueError, match=r'start \(9, 9, 9\) is not on the grid of this mask'):
        pdf(SPHERE * 1.0, SPHERE, VOXEL_SIZE, (0, 0, 1), start=np.zeros((9, 9, 9)))


def test_thirty_iterations_by_default():
    assert inspect.signature(pdf).parameters['iterations'].default == 30
    field = outside_field(TILTED, seed=1)
    np.testing.assert_array_equal(
        pdf(field, SPHERE, VOXEL_SIZE, TILTED).local_field,
        pdf(field, SPHERE, VOXEL_SIZE, TILTED, iterations=30).local_field,
    )


def test_size_of_the_field_does_not_matter():
    # Conjugate gradients are not linear in the data, but they are homogeneous.
    field = outside_field(TILTED, seed=2)
    one = pdf(field, SPHERE, VOXEL_SIZE, TILTED).local_field
    minus = pdf(-1000 * field, SPHERE, VOXEL_SIZE, TILTED).local_field
    np.testing.assert_allclose(minus, -1000 * one, atol=1e-3 * np.abs(1000 * field[SPHERE]).max())


def small_problem():
    rng = np.random.default_rng(5)
    shape = (3, 4, 3)
    mask = rng.random(shape) > 0.2
    field = rng.normal(size=shape)
    return mask, field, rng.uniform(0.5, 2, shape)


@pytest.mark.parametrize('iterations', [1, 2, 5])
@pytest.mark.parametrize('weighted', [False, True])
def test_iterates_are_those_of_conjugate_gradients(iterations, weighted):
    # After n steps conjugate gradients have minimised the misfit over the Krylov space
    # span{g, H g, ... H^(n-1) g}, H = A' W^2 A, g = A' W^2 f: solved here by dense least squares.
    mask, field, weights = small_problem()
    if not weighted:
        weights = np.ones_like(weights)
    voxel_size = (1.0, 1.2, 2.0)
    grid = solver_grid(mask)
    kernel = cyclic_prism_kernel(grid.shape, voxel_size, TILTED).astype(float)
    inside = grid.embed(mask) > 0
    w = grid.embed(weights * mask).astype(float)
    f = grid.embed(field * mask).astype(float)

    def convolve(x):
        return fft.irfftn(fft.rfftn(x) * kernel, s=grid.shape)

    basis, vector = [], np.where(inside, 0, convolve(w**2 * f))
    for _ in range(iterations):
        for other in basis:
            vector = vector - np.vdot(other, vector) * other
        vector = vector / np.linalg.norm(vector)
        basis.append(vector)
        vector = np.where(inside, 0, convolve(w**2 * convolve(vector)))
    fields = np.stack([convolve(b)[inside] for b in basis], axis=1)
    steps = np.linalg.lstsq(w[inside][:, None] * fields, (w * f)[inside], rcond=None)[0]
    result = pdf(field, mask, voxel_size, TILTED, weights if weighted else None, iterations)
    np.testing.assert_allclose(result.background_field[mask], fields @ steps, atol=2e-4)


def test_many_iterations_reach_the_least_squares_solution():
    # There are more sources than voxels: a dense lstsq explains any field, noise and all.
    mask, field, weights = small_problem()
    voxel_size = (1.0, 1.2, 2.0)
    grid = solver_grid(mask)
    kernel = fft.irfftn(cyclic_prism_kernel(grid.shape, voxel_size, TILTED), s=grid.shape)
    inside = grid.embed(mask) > 0
    targets, sources = np.argwhere(inside), np.argwhere(~inside)
    offsets = (targets[:, None] - sources[None]) % grid.shape
    matrix = kernel[tuple(np.moveaxis(offsets, -1, 0))]
    solution = np.linalg.lstsq(matrix, field[mask], rcond=None)[0]
    result = pdf(field, mask, voxel_size, TILTED, weights, iterations=60)
    np.testing.assert_allclose(result.background_field[mask], matrix @ solution, atol=1e-3)
    assert result.relative_residual < 1e-4


@pytest.mark.parametrize('iterations', [60, 200])
def test_iterating_on_at_the_solution_does_not_diverge(iterations):
    mask, field, weights = small_problem()
    result = pdf(field, mask, (1.0, 1.2, 2.0), TILTED, weights, iterations=iterations)
    assert np.linalg.norm(result.local_field) < 1e-3 * np.linalg.norm(field[mask])


def test_residual_shrinks_with_the_iterations():
    field = outside_field(TILTED, seed=4)
    left = [
        np.linalg.norm(pdf(field, SPHERE, VOXEL_SIZE, TILTED, iterations=n).local_field)
        for n in (1, 5, 10, 30)
    ]
    assert np.all(np.diff(left) < 0)


def test_untrusted_voxels_get_no_say():
    field = outside_field(TILTED, seed=6)
    spoilt = field.copy()
    bad = (slice(18, 22), slice(19, 23), slice(20, 24))
    spoilt[bad] += 20
    sd = np.full(field.shape, 0.01)
    sd[bad] = 20
    weights = noise_weights(sd, SPHERE)
    clean = pdf(field, SPHERE, VOXEL_SIZE, TILTED).background_field
    with_weights = pdf(spoilt, SPHERE, VOXEL_SIZE, TILTED, weights).background_field
    without = pdf(spoilt, SPHERE, VOXEL_SIZE, TILTED).background_field
    assert np.linalg.norm(with_weights - clean) < 0.05 * np.linalg.norm(without - clean)


def test_scale_of_the_weights_does_not_matter():
    field = outside_field(TILTED, seed=7)
    weights = np.random.default_rng(0).uniform(0.5, 1.5, field.shape)
    a, b = (pdf(field, SPHERE, VOXEL_SIZE, TILTED, k * weights).local_field for k in (1, 1e3))
    np.testing.assert_allclose(a, b, atol=1e-3 * np.abs(field[SPHERE]).max())


@pytest.mark.parametrize('axes', [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize('flips', [(), (0,), (1, 2)])
def test_storage_does_not_matter(axes, flips):
    box = (slice(4, 36), slice(2, 35), slice(6, 37))
    mask, field = SPHERE[box], (outside_field(TILTED) + dipole((2, 1, 0), 3.0, TILTED))[box]
    voxel_size = np.array([1.0, 1.1, 1.3])
    plain = pdf(field, mask, voxel_size, TILTED).local_field
    axes = list(axes)
    b0_dir = TILTED[axes].copy()
    b0_dir[list(flips)] *= -1
    moved = pdf(
        np.flip(field.transpose(axes), flips),
        np.flip(mask.transpose(axes), flips),
        voxel_size[axes],
        b0_dir,
    )
    back = np.flip(moved.local_field, flips).transpose(np.argsort(axes))
    np.testing.assert_allclose(back, plain, atol=1e-3 * np.abs(field[mask]).max())


def test_empty_slices_change_nothing():
    field = outside_field(TILTED)
    padded = np.pad(np.where(SPHERE, field, 0), ((0, 5), (3, 0), (7, 2)))
    mask = np.pad(SPHERE, ((0, 5), (3, 0), (7, 2)))
    moved = pdf(padded, mask, VOXEL_SIZE, TILTED).local_field[mask]
    plain = pdf(field, SPHERE, VOXEL_SIZE, TILTED).local_field[SPHERE]
    np.testing.assert_allclose(moved, plain, atol=1e-6)


def test_no_field_leaves_nothing():
    result = pdf(np.zeros(SPHERE.shape), SPHERE, VOXEL_SIZE, TILTED)
    assert not result.local_field.any()
    assert result.relative_residual == 0


def test_noise_weights():
    sd = np.full((2, 3, 4), 0.01)
    sd[0] = 0.04
    mask = np.ones(sd.shape, bool)
    mask[1, 2] = False
    weights = noise_weights(sd, mask, model_error=0.0)
    assert weights[1, 0, 0] / weights[0, 0, 0] == pytest.approx(4)
    assert np.mean(weights[mask].astype(float) ** 2) == pytest.approx(1)
    assert np.all(weights[~mask] == 0)
    # what the model does not know levels them: sqrt(0.04^2 + 0.03^2) = 0.05
    floor = noise_weights(sd, mask, model_error=0.03)
    assert floor[1, 0, 0] / floor[0, 0, 0] == pytest.approx(0.05 / np.hypot(0.01, 0.03))


def test_voxels_without_noise_do_not_swallow_the_rest():
    sd = np.full((4, 4, 4), 0.01)
    sd[0, 0, 0] = 0
    weights = noise_weights(sd, np.ones(sd.shape, bool))
    assert np.all(np.isfinite(weights))
    assert weights.min() > 1e-3
    assert np.all(noise_weights(0 * sd, np.ones(sd.shape, bool)) == 1)


def test_errors():
    mask = np.ones((4, 4, 4), bool)
    field = np.zeros(mask.shape)
    with pytest.raises(ValueError, match='differ in shape'):
        pdf(field[:3], mask, (1, 1, 1), (0, 0, 1))
    with pytest.raises(ValueError, match='differ in shape'):
        pdf(field, mask, (1, 1, 1), (0, 0, 1), np.ones((4, 4, 3)))
    with pytest.raises(ValueError, match='mask is empty'):
        pdf(field, ~mask, (1, 1, 1), (0, 0, 1))
    with pytest.raises(ValueError, match='positive: 0'):
        pdf(field, mask, (1, 1, 1), (0, 0, 1), iterations=0)


# --- means over spheres -----------------------------------------------------------------------

BALL = Geometry(SPHERE, (1, 1, 1), TILTED)


def test_words_are_those_of_the_method():
    for word in BACKGROUNDS:
        assert remove_background(R, BALL, Arm(background=word)).known.any()
    with pytest.raises(ValueError, match=r"one of pdf, vsharp, vsharp-or-pdf, not 'sharp'"):
        remove_background(R, BALL, Arm(background='sharp'))


@pytest.mark.parametrize('voxel_size', [(1, 1, 1), (1, 1, 3), (2, 1.3, 1)])
def test_harmonic_polynomials_are_removed_on_any_voxels(voxel_size):
    """Up to the second degree to rounding, whatever the voxels: they are all even moments."""
    n = np.round(30 / np.asarray(voxel_size)).astype(int)
    x, y, z = np.moveaxis((np.stack(np.indices(n), -1) - n / 2) * voxel_size, -1, 0)
    mask = x**2 + y**2 + z**2 < 14**2
    geometry = Geometry(mask, voxel_size, TILTED)
    for field in (1 + x - 2 * z, x**2 - z**2, x * y + 2 * z**2 - x**2 - y**2):
        found = vsharp(field, geometry)
        assert found.known.sum() > 0.4 * mask.sum()
        assert np.abs(found.local_field).max() < 2e-3 * np.ptp(field[mask])


def test_spheres_remove_the_field_of_outside_dipoles():
    field = outside_field(TILTED)
    found = vsharp(field, BALL)
    inner = field[found.known]
    assert np.std(found.local_field[found.known]) < 0.15 * np.std(inner)
    np.testing.assert_allclose(
        found.local_field + found.background_field, np.where(found.known, field, 0), atol=1e-5
    )


def test_field_of_a_source_inside_is_kept():
    field = sphere_field(POINTS, 3.0, TILTED)
    found = vsharp(field, BALL)
    known = found.known
    assert np.std((found.local_field - field)[known]) < 0.05 * np.std(field[known])


def test_rim_is_what_no_sphere_of_one_voxel_fits_into():
    field = outside_field(TILTED)
    found = vsharp(field, BALL)
    near = np.zeros_like(SPHERE)
    for axis in range(3):
        for shift in (-1, 1):
            near |= np.roll(~SPHERE, shift, axis)
    np.testing.assert_array_equal(found.known, SPHERE & ~near)
    assert not found.local_field[~found.known].any()
    assert not found.background_field[~found.known].any()


def test_is_the_naive_mean_over_spheres_before_the_division():
    # Where the region is so small that one radius fits, it is SHARP, and without the division
    # (threshold above any filter: nothing is given back) nothing is left.
    rng = np.random.default_rng(0)
    field, mask = rng.normal(size=(7, 8, 9)), np.ones((7, 8, 9), bool)
    found = vsharp(field, Geometry(mask, (1, 1, 1), TILTED), 1.0, threshold=0)
    assert found.radii == (1.0,)
    centred = field - field.mean()
    naive = np.zeros_like(field)
    for i, j, k in np.ndindex(*field.shape):
        if 0 < i < 6 and 0 < j < 7 and 0 < k < 8:
            total = centred[i, j, k] + sum(
                centred[i + a, j + b, k + c]
                for a, b, c in np.concatenate([np.eye(3, dtype=int), -np.eye(3, dtype=int)])
            )
            naive[i, j, k] = centred[i, j, k] - total / 7
    # The filter of the division, applied to the local field of the whole grid, gives that again;
    # here it is only known within, so that its Laplacian there must agree.
    local, inner = found.local_field, (slice(2, -2),) * 3
    again = local - sum(
        np.roll(local, shift, axis) for axis in range(3) for shift in (-1, 1)
    ) / 7 - local / 7  # fmt: skip
    np.testing.assert_allclose(again[inner], naive[inner], atol=1e-4)


def test_only_the_field_in_the_mask_counts_and_storage_does_not_matter():
    field = outside_field(TILTED) + sphere_field(POINTS, 3.0, TILTED)
    plain = vsharp(field, BALL).local_field
    spoilt = vsharp(np.where(SPHERE, field, 1e6), BALL).local_field
    np.testing.assert_array_equal(spoilt, plain)
    moved = vsharp(np.flip(field.transpose(2, 0, 1), 1), BALL._replace(mask=SPHERE)).local_field
    back = np.flip(moved, 1).transpose(1, 2, 0)
    np.testing.assert_allclose(back, plain, atol=1e-4 * np.abs(plain).max())


def test_what_is_too_thin_is_refused():
    mask = np.zeros((9, 9, 9), bool)
    mask[:, :, 4:6] = True
    with pytest.raises(ValueError, match='mask is nowhere deeper than 1 mm: no sphere of a voxel'):
        vsharp(np.zeros(mask.shape), Geometry(mask, (1, 1, 1), TILTED))
    with pytest.raises(ValueError, match='mask is empty'):
        vsharp(np.zeros(mask.shape), Geometry(mask & False, (1, 1, 1), TILTED))
    with pytest.raises(ValueError, match='differ in shape'):
        vsharp(np.zeros((3, 3, 3)), Geometry(mask, (1, 1, 1), TILTED))


@pytest.mark.parametrize(
    'planes, taken', [(0, 'error'), (2, 'pdf'), (3, 'pdf'), (8, 'pdf'), (10, 'vsharp')]
)
def test_spheres_are_taken_where_they_know_half_of_the_region(planes, taken):
    """Of a slab of n planes of 10 x 10 voxels the smallest sphere knows n - 2 planes of 8 x 8."""
    mask = np.zeros((12, 12, 14), bool)
    mask[1:-1, 1:-1, 2 : 2 + planes] = True
    field = np.random.default_rng(0).normal(size=mask.shape)
    geometry, arm = (
        Geometry(mask, (1, 1, 1), TILTED),
        Arm(iterations=3, background='vsharp-or-pdf'),
    )
    if taken == 'error':
        with pytest.raises(ValueError, match='mask is empty'):
            remove_background(field, geometry, arm)
        return
    share = max(planes - 2, 0) * 64 / (planes * 100)
    assert (share >= 0.5) == (taken == 'vsharp')
    found = remove_background(field, geometry, arm)
    plain = remove_background(field, geometry, arm._replace(background=taken))
    np.testing.assert_array_equal(found.local_field, plain.local_field)
    np.testing.assert_array_equal(found.known, plain.known)
    record = found.record(arm, None)
    assert record['method'] == taken
    assert record['known_voxels'] == found.known.sum()


def test_projection_by_the_table_is_the_function_and_knows_the_whole_region():
    field = outside_field(TILTED)
    found = remove_background(field, BALL, Arm(iterations=3))
    np.testing.assert_array_equal(
        found.local_field, pdf(field, SPHERE, (1, 1, 1), TILTED, None, 3).local_field
    )
    assert found.known is SPHERE
