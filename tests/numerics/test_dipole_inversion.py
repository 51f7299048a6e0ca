"""The closed-form inversion and its L-curve against explicit operators."""

import numpy as np
import pytest
from kernels import full_kernel
from operators import assert_adjoint
from scipy import fft, ndimage
from scipy.sparse.linalg import LinearOperator, cg

from precondqsm_bids.method import Arm
from precondqsm_bids.numerics.closed_form import gradient_power
from precondqsm_bids.numerics.dipole import Geometry, forward_field
from precondqsm_bids.numerics.dipole_inversion import (
    RULES,
    invert,
    l2_inversion,
    without_outliers,
)
from precondqsm_bids.numerics.l_curve import NO_CURVE, REG_WEIGHTS, l_curve
from precondqsm_bids.numerics.solver import solver_grid
from precondqsm_bids.phantom.fields import sphere_field

TILTED = np.array([0.3, -0.4, 0.87]) / np.linalg.norm([0.3, -0.4, 0.87])
VOXEL_SIZE = np.array([1.0, 1.2, 2.0])
RNG = np.random.default_rng(0)
MASK = RNG.random((7, 6, 5)) > 0.2
FIELD = RNG.normal(size=MASK.shape)


def gradient(chi, voxel_size):
    """Forward differences, cyclic, one component an axis."""
    return [(np.roll(chi, -1, axis) - chi) / voxel_size[axis] for axis in range(3)]


def minus_divergence(parts, voxel_size):
    """Adjoint of :func:`gradient`."""
    return sum(
        (np.roll(part, 1, axis) - part) / voxel_size[axis] for axis, part in enumerate(parts)
    )


def dipole_field(chi, kernel):
    return fft.ifftn(fft.fftn(chi) * kernel).real


@pytest.mark.parametrize(
    'b0_dir, reg_weight', [(TILTED, 0.1), (TILTED, 2.0), (np.array([0, 0, 1.0]), 0.5)]
)
def test_solves_the_normal_equations(b0_dir, reg_weight):
    # (D'D + lambda^2 G'G) chi = D'f by conjugate gradients on operators made of rolls
    grid = solver_grid(MASK)
    field = grid.embed(FIELD * MASK).astype(float)
    kernel = full_kernel(grid.shape, VOXEL_SIZE, b0_dir)

    def normal(x):
        chi = x.reshape(grid.shape)
        data = dipole_field(dipole_field(chi, kernel), kernel)
        smooth = minus_divergence(gradient(chi, VOXEL_SIZE), VOXEL_SIZE)
        return (data + reg_weight**2 * smooth).ravel()

    size = field.size
    right = dipole_field(field, kernel).ravel()
    solution, failed = cg(LinearOperator((size, size), normal), right, rtol=1e-6, maxiter=3000)
    assert not failed
    expected = grid.extract(solution.reshape(grid.shape), MASK.shape)
    result = l2_inversion(FIELD, MASK, VOXEL_SIZE, b0_dir, reg_weight)
    np.testing.assert_allclose(
        result.chi, np.where(MASK, expected, 0), atol=1e-4 * np.abs(expected).max()
    )
    assert result.reg_weight == reg_weight
    assert result.chi.dtype == np.float32


def test_gradient_power_is_that_of_forward_differences():
    shape = (8, 7, 6)
    chi = RNG.normal(size=shape)
    spectrum = fft.rfftn(chi)
    filtered = fft.irfftn(spectrum * gradient_power(shape, VOXEL_SIZE), s=shape)
    expected = minus_divergence(gradient(chi, VOXEL_SIZE), VOXEL_SIZE)
    np.testing.assert_allclose(filtered, expected, atol=1e-5)


@pytest.mark.parametrize('index', [0, 20, 41, 60, 80])
@pytest.mark.parametrize('mask', [MASK, np.ones((8, 9, 6), bool)])
def test_curve_holds_the_norms_of_the_maps(index, mask):
    field = np.random.default_rng(1).normal(size=mask.shape)
    curve = l2_inversion(field, mask, VOXEL_SIZE, TILTED).curve
    grid = solver_grid(mask)
    f = grid.embed(field * mask).astype(float)
    f -= f.mean()  # the mean is not determined
    kernel = full_kernel(grid.shape, VOXEL_SIZE, TILTED)
    weight = curve.reg_weights[index]
    power = sum(
        ((2 - 2 * np.cos(2 * np.pi * fft.fftfreq(n))) / d**2).reshape(
            [-1 if i == axis else 1 for i in range(3)]
        )
        for axis, (n, d) in enumerate(zip(grid.shape, VOXEL_SIZE, strict=True))
    )
    divisor = kernel**2 + weight**2 * power
    divisor[0, 0, 0] = 1
    chi = fft.ifftn(kernel * fft.fftn(f) / divisor).real
    assert curve.consistency[index] == pytest.approx(
        np.linalg.norm(dipole_field(chi, kernel) - f), rel=1e-3
    )
    assert curve.regularization[index] == pytest.approx(
        np.linalg.norm(gradient(chi, VOXEL_SIZE)), rel=1e-3
    )


def spectra(seed=2):
    """Spectra of a signal over noise, as the inversion meets them."""
    rng = np.random.default_rng(seed)
    d = rng.uniform(0, 2 / 3, 4000) ** 2
    e = rng.uniform(0.01, 12, 4000)
    return 1 / e**2 * d + 1e-4 * rng.exponential(size=4000), d, e


def test_curvature_is_that_of_the_published_curve():
    weights = np.logspace(-3, 1, 4001)
    curve = l_curve(*spectra(), weights)
    t = np.log(weights)
    x, y = np.log(curve.consistency), np.log(curve.regularization)
    dx, dy = np.gradient(x, t), np.gradient(y, t)
    ddx, ddy = np.gradient(dx, t), np.gradient(dy, t)
    expected = (dx * ddy - dy * ddx) / (dx**2 + dy**2) ** 1.5
    inner = slice(50, -50, 50)
    scale = np.abs(curve.curvature).max()
    np.testing.assert_allclose(curve.curvature[inner], expected[inner], atol=0.01 * scale)
    # and it is the same number on a coarse grid
    coarse = l_curve(*spectra(), weights[::100])
    np.testing.assert_allclose(coarse.curvature, curve.curvature[::100], rtol=1e-5)


@pytest.mark.parametrize('ratio', [1e-4, 0.01, 1.0, 4.0])
def test_corner_of_a_single_frequency(ratio):
    # consistency = s, regularization ~ 1 - s with s = l^2 e / (d + l^2 e): the curve of
    # ln s against ln (1 - s) is symmetric about s = 1/2, where it bends by -1/sqrt(2).
    curve = l_curve(np.array([3.0]), np.array([0.2 * ratio]), np.array([0.2]))
    assert curve.reg_weight == pytest.approx(np.sqrt(ratio), rel=2e-3)
    assert np.abs(curve.curvature).max() == pytest.approx(np.sqrt(0.5), rel=5e-3)
    assert curve.curvature.max() < 0
    assert curve.warnings == ()


@pytest.mark.parametrize('ratio', [1e-9, 1e5])
def test_corner_beyond_the_grid_is_said(ratio):
    curve = l_curve(np.array([3.0]), np.array([ratio]), np.array([1.0]))
    assert len(curve.warnings) == 1
    assert 'end of the grid' in curve.warnings[0]
    assert 'reg_weight' in curve.warnings[0]
    assert curve.reg_weight in (REG_WEIGHTS[0], REG_WEIGHTS[-1])


def test_flat_curve_is_said():
    # Self-similar over 16 decades, far beyond the grid: a straight line, but for rounding
    e = np.logspace(-8, 8, 4000)
    curve = l_curve(np.ones(e.size), np.ones(e.size), e, np.logspace(-0.5, 0.5, 41))
    assert np.abs(curve.curvature).max() < 0.1
    assert any('flat' in w or 'end of the grid' in w for w in curve.warnings)


def test_corner_between_signal_and_noise():
    # Below the corner noise takes over: the regularization norm is that of a map of noise; above
    # it signal is lost. The corner must lie where the error of the map is small.
    axes = [np.arange(n) - (n - 1) / 2 for n in (36, 36, 36)]
    points = np.stack(np.meshgrid(*axes, indexing='ij'), axis=-1)
    r = np.linalg.norm(points, axis=-1)
    field = sphere_field(points, 6.0, TILTED) + np.random.default_rng(3).normal(0, 0.02, r.shape)
    mask = np.ones(r.shape, bool)
    result = l2_inversion(field, mask, (1, 1, 1), TILTED)
    truth = (r <= 6).astype(float)

    def error(weight):
        chi = l2_inversion(field, mask, (1, 1, 1), TILTED, weight).chi
        return np.linalg.norm((chi - chi.mean()) - (truth - truth.mean()))

    best = min(error(w) for w in np.logspace(-2.5, 0.5, 25))
    assert error(result.reg_weight) < 1.25 * best
    assert result.reg_weight == result.curve.reg_weight


@pytest.mark.parametrize('factor', [0.5, 3.0])
def test_lambda_is_a_length(factor):
    # The same array with voxels of half the size is the same problem with half the lambda.
    plain = l2_inversion(FIELD, MASK, VOXEL_SIZE, TILTED, 0.4)
    scaled = l2_inversion(FIELD, MASK, factor * VOXEL_SIZE, TILTED, 0.4 * factor)
    np.testing.assert_allclose(scaled.chi, plain.chi, atol=1e-5)
    np.testing.assert_allclose(scaled.curve.reg_weights, factor * plain.curve.reg_weights)
    np.testing.assert_allclose(scaled.curve.consistency, plain.curve.consistency, rtol=1e-3)


def test_corner_scales_with_the_voxel_and_not_with_the_field():
    axes = [np.arange(n) - (n - 1) / 2 for n in (24, 24, 24)]
    points = np.stack(np.meshgrid(*axes, indexing='ij'), axis=-1)
    field = sphere_field(points, 5.0, TILTED) + np.random.default_rng(4).normal(0, 0.02, (24,) * 3)
    mask = np.ones(field.shape, bool)
    plain = l2_inversion(field, mask, (1, 1, 1), TILTED).reg_weight
    halved = l2_inversion(field, mask, (0.5, 0.5, 0.5), TILTED).reg_weight
    louder = l2_inversion(1000 * field, mask, (1, 1, 1), TILTED).reg_weight
    assert halved == pytest.approx(plain / 2, rel=0.02)
    assert louder == pytest.approx(plain, rel=1e-3)


def test_linear_in_the_field_at_fixed_lambda():
    other = RNG.normal(size=MASK.shape)
    a, b, c = (
        l2_inversion(f, MASK, VOXEL_SIZE, TILTED, 0.3).chi
        for f in (FIELD, other, 2 * FIELD - 3 * other)
    )
    np.testing.assert_allclose(c, 2 * a - 3 * b, atol=1e-4)


def test_self_adjoint():
    def invert(field):
        return l2_inversion(field * MASK, MASK, VOXEL_SIZE, TILTED, 0.3).chi * MASK

    assert_adjoint(invert, invert, MASK.shape)


def test_divergence_is_the_adjoint_of_the_gradient():
    """Of the operators that stand here for those of the closed form."""

    def derivatives(chi):
        return np.stack(gradient(chi, VOXEL_SIZE))

    def back(parts):
        return minus_divergence(parts, VOXEL_SIZE)

    assert_adjoint(derivatives, back, MASK.shape, (3, *MASK.shape))


def test_larger_lambda_gives_a_smoother_and_weaker_map():
    curve = l2_inversion(FIELD, MASK, VOXEL_SIZE, TILTED).curve
    assert np.all(np.diff(curve.consistency) > 0)
    assert np.all(np.diff(curve.regularization) < 0)


def test_only_the_field_in_the_mask_counts():
    spoilt = np.where(MASK, FIELD, 1e6)
    result = l2_inversion(spoilt, MASK, VOXEL_SIZE, TILTED)
    plain = l2_inversion(FIELD, MASK, VOXEL_SIZE, TILTED)
    np.testing.assert_array_equal(result.chi, plain.chi)
    assert np.all(result.chi[~MASK] == 0)


@pytest.mark.parametrize('axes', [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize('flips', [(), (0,), (1, 2)])
def test_storage_does_not_matter(axes, flips):
    plain = l2_inversion(FIELD, MASK, VOXEL_SIZE, TILTED)
    axes = list(axes)
    b0_dir = TILTED[axes].copy()
    b0_dir[list(flips)] *= -1
    moved = l2_inversion(
        np.flip(FIELD.transpose(axes), flips),
        np.flip(MASK.transpose(axes), flips),
        VOXEL_SIZE[axes],
        b0_dir,
    )
    assert moved.reg_weight == pytest.approx(plain.reg_weight, rel=1e-4)
    back = np.flip(moved.chi, flips).transpose(np.argsort(axes))
    np.testing.assert_allclose(back, plain.chi, atol=1e-4 * np.abs(plain.chi).max())


@pytest.mark.parametrize('noise', [0.002, 0.2])
def test_smaller_of_both_rules(noise):
    """Noise of a broad spectrum makes the least expected error smoother than the corner."""
    rng = np.random.default_rng(0)
    chi = np.zeros((24, 24, 24), np.float32)
    chi[9:15, 8:16, 7:17] = 1
    mask = np.ones(chi.shape, bool)
    field = forward_field(chi, (1, 1, 1), (0, 0, 1)) + noise * rng.normal(size=chi.shape)
    geometry = Geometry(mask, (1, 1, 1), (0, 0, 1))
    found = {rule: invert(field, geometry, Arm(rule=rule)).reg_weight for rule in RULES}
    corner = max(found['l-curve'], 1 / 8)
    assert found['risk-or-corner'] == pytest.approx(min(found['risk'], corner))
    assert found['risk'] != found['l-curve']


@pytest.mark.parametrize('rule', ['l-curve', 'risk'])
@pytest.mark.parametrize('size', [0.0, 1e-12])
@pytest.mark.parametrize('given', [None, 0.3])
def test_of_a_field_that_is_zero_the_susceptibility_is_zero(rule, size, given):
    result = l2_inversion(size * FIELD, MASK, VOXEL_SIZE, TILTED, given, rule=rule)
    np.testing.assert_array_equal(result.chi, np.zeros(MASK.shape, np.float32))
    assert result.reg_weight == given if given else np.isnan(result.reg_weight)
    assert result.curve is NO_CURVE
    assert 'zero everywhere' in result.curve.warnings[0]


def test_a_small_field_is_inverted_as_a_large_one():
    large = l2_inversion(FIELD, MASK, VOXEL_SIZE, TILTED)
    small = l2_inversion(1e-6 * FIELD, MASK, VOXEL_SIZE, TILTED)
    assert small.reg_weight == pytest.approx(large.reg_weight, rel=1e-4)
    np.testing.assert_allclose(1e6 * small.chi, large.chi, rtol=1e-3, atol=1e-5)


def test_errors():
    args = ((1, 1, 1), (0, 0, 1))
    with pytest.raises(ValueError, match='differ in shape'):
        l2_inversion(FIELD[1:], MASK, *args)
    with pytest.raises(ValueError, match='mask is empty'):
        l2_inversion(FIELD, ~np.ones_like(MASK), *args)
    for weight in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match='lambda must be positive'):
            l2_inversion(FIELD, MASK, *args, weight)


# --- outliers ---------------------------------------------------------------------------------

EVERYWHERE = np.ones((20, 20, 20), bool)


def test_noise_of_the_usual_size_stays():
    noise = np.random.default_rng(0).normal(0, 0.01, EVERYWHERE.shape)
    kept = without_outliers(noise, EVERYWHERE)
    inner = (slice(2, -2),) * 3
    assert np.linalg.norm((kept - noise)[inner]) < 0.03 * np.linalg.norm(noise[inner])


def test_wrap_is_taken_out_and_an_unknown_source_is_not():
    points = np.stack(np.indices(EVERYWHERE.shape), axis=-1) - 9.5
    field = sphere_field(points, 4.0, np.array([0, 0, 1.0])) * 0.3
    wrapped = field.copy()
    wrapped[3, 4, 5] += 2.5
    kept = without_outliers(wrapped, EVERYWHERE)
    assert abs(kept[3, 4, 5] - field[3, 4, 5]) < 0.05 * 2.5
    # the source, which no prior knows, stands far above everything else and stays
    ratio = np.linalg.norm(without_outliers(field, EVERYWHERE)) / np.linalg.norm(field)
    assert 0.85 < ratio <= 1.001


def test_without_outliers_is_zero_outside():
    mask = EVERYWHERE.copy()
    mask[:5] = False
    assert not without_outliers(np.ones(mask.shape), mask)[:5].any()


def test_an_uncertain_voxel_takes_after_its_neighbours():
    """By a loop over the neighbours of one voxel, and by what is left of its error."""
    rng = np.random.default_rng(1)
    shape = EVERYWHERE.shape
    smooth = 0.05 * np.sin(np.indices(shape).sum(axis=0) / 6)
    sd = np.full(shape, 0.01)
    sd[rng.random(shape) < 0.03] = 1.0
    sd[9:11, 9:11, 9:11] = 1.0  # a void of eight voxels, which no median sees
    field = smooth + sd * rng.normal(size=shape)
    weights = 1 / np.hypot(sd, 0.02)
    kept = without_outliers(field, EVERYWHERE, weights)
    void = (slice(9, 11),) * 3
    assert np.abs(kept - smooth)[void].max() < 0.05
    assert np.abs(without_outliers(field, EVERYWHERE) - smooth)[void].max() > 0.3
    uncertain = sd == 1
    assert np.sqrt(np.mean((kept - smooth)[uncertain] ** 2)) < 0.02
    # The others are as they were.
    alone = without_outliers(np.where(uncertain, smooth, field), EVERYWHERE)
    assert np.abs(kept - alone)[~uncertain].max() < 0.03
    centre, certainty = (10, 10, 10), weights**2
    total = among = weighed = 0.0
    for at in np.ndindex(shape):
        distance = np.subtract(at, centre)
        if np.abs(distance).max() <= 6:
            g = np.exp(-(distance @ distance) / (2 * 1.5**2)) * certainty[at]
            total, among, weighed = total + g * field[at], among + g, weighed + g / certainty[at]
    lacking = among / weighed / certainty[centre] - 4
    expected = (field[centre] + lacking * total / among) / (1 + lacking)
    assert kept[centre] == pytest.approx(expected, abs=0.01)


def test_weights_alike_change_nothing():
    field = np.random.default_rng(2).normal(0, 0.01, EVERYWHERE.shape)
    mask = EVERYWHERE.copy()
    mask[:4] = False
    weights = np.where(mask, 0.3, 0)
    same = without_outliers(field, mask, weights)
    np.testing.assert_array_equal(same, without_outliers(field, mask))


def test_a_hole_of_the_signal_costs_the_map_little():
    """A source beside voxels whose field is noise: the closed form alone believes them."""
    points = np.stack(np.indices(EVERYWHERE.shape), axis=-1) - 9.5
    inside = np.linalg.norm(points, axis=-1) < 4
    rng = np.random.default_rng(3)
    sd = np.where(rng.random(inside.shape) < 0.02, 0.5, 0.002)
    field = 0.2 * sphere_field(points, 4.0, np.array([0, 0, 1.0])) + sd * rng.normal(size=sd.shape)
    arm = Arm(rule='risk', clip_outliers=True)
    geometry = Geometry(EVERYWHERE, (1, 1, 1), (0, 0, 1))
    errors = []
    for weights in (None, 1 / np.hypot(sd, 0.02)):
        chi = invert(field, geometry, arm, weights).chi
        errors.append(np.std(chi - 0.2 * inside))
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize('width', [0, 1])
def test_lambda_beyond_the_corner_takes_a_prior_that_counts(width):
    """A corner of less than an eighth of a voxel (white noise) holds back to that."""
    geometry, arm = Geometry(EVERYWHERE, (1, 1, 1), (0, 0, 1)), Arm(rule='risk')
    noise = np.random.default_rng(4).normal(size=EVERYWHERE.shape)
    noise = ndimage.gaussian_filter(noise, width)
    found = {t: invert(noise, geometry, arm, trust=t) for t in (1.0, 0.5, 0.0)}
    corner = found[1.0].curve.reg_weight
    assert (corner < 1 / 8) == (width == 0)
    most = max(corner, 1 / 8)
    assert found[1.0].reg_weight > 1.2 * most
    assert found[0.0].reg_weight == pytest.approx(most)
    assert found[0.5].reg_weight == pytest.approx(np.sqrt(found[1.0].reg_weight * most))
    points = np.stack(np.indices(EVERYWHERE.shape), axis=-1) - 9.5
    source = sphere_field(points, 4.0, np.array([0, 0, 1.0])) + 1e-4 * noise
    below = [invert(source, geometry, arm, trust=t) for t in (1.0, 0.0)]
    assert below[0].reg_weight < below[0].curve.reg_weight  # nothing to hold back
    assert below[0].reg_weight == below[1].reg_weight


def test_the_inversion_clips_outliers_where_it_is_asked_to():
    field = np.random.default_rng(0).normal(0, 0.01, EVERYWHERE.shape)
    field[5, 6, 7] += 2.5
    given = (EVERYWHERE, (1, 1, 1), (0, 0, 1), 0.3)
    clipped = l2_inversion(field, *given, clip_outliers=True)
    expected = l2_inversion(without_outliers(field, EVERYWHERE), *given)
    np.testing.assert_array_equal(clipped.chi, expected.chi)
    assert np.abs(clipped.chi).max() < 0.5 * np.abs(l2_inversion(field, *given).chi).max()
