"""Total variation against a solver that knows nothing of it, and its weight by its definition."""

import numpy as np
import pytest
from kernels import full_kernel
from scipy import fft, optimize

from precondqsm_bids.method import Arm
from precondqsm_bids.numerics.closed_form import ClosedForm, closed_form, gradient_power
from precondqsm_bids.numerics.dipole import Geometry, dipole_kernel, forward_field
from precondqsm_bids.numerics.dipole_inversion import invert, l2_inversion
from precondqsm_bids.numerics.solver import solver_grid
from precondqsm_bids.numerics.total_variation import tv_inversion
from precondqsm_bids.phantom.fields import sphere_field

TILTED = np.array([0.3, -0.4, 0.87]) / np.linalg.norm([0.3, -0.4, 0.87])
VOXEL_SIZE = np.array([1.0, 1.2, 2.0])
RNG = np.random.default_rng(0)
MASK = RNG.random((5, 4, 4)) > 0.2
WEIGHTS = RNG.uniform(0.5, 1.5, MASK.shape) * MASK
FIELD = RNG.normal(size=MASK.shape)


def slopes(chi, voxel_size):
    """Forward differences, cyclic, of each axis."""
    return np.stack([(np.roll(chi, -1, i) - chi) / h for i, h in enumerate(voxel_size)])


class Smoothed:
    """The functional with ``|g|`` rounded off at zero, for a general minimiser."""

    def __init__(self, form, alpha, roundness):
        self.shape, self.alpha, self.roundness = form.grid.shape, alpha, roundness
        self.kernel = full_kernel(self.shape, VOXEL_SIZE, TILTED)
        self.field = form.grid.embed(FIELD * MASK).astype(float)
        self.w_squared = form.grid.embed(WEIGHTS).astype(float) ** 2

    def convolve(self, chi):
        return fft.ifftn(fft.fftn(chi) * self.kernel).real

    def value(self, chi, roundness=0.0):
        left = self.convolve(chi) - self.field
        length = np.sqrt(slopes(chi, VOXEL_SIZE) ** 2 + roundness**2)
        return 0.5 * np.sum(self.w_squared * left**2) + self.alpha * length.sum()

    def __call__(self, x):
        chi = x.reshape(self.shape)
        g = slopes(chi, VOXEL_SIZE)
        g /= np.sqrt(g**2 + self.roundness**2)
        rough = sum((np.roll(part, 1, i) - part) / VOXEL_SIZE[i] for i, part in enumerate(g))
        data = self.convolve(self.w_squared * (self.convolve(chi) - self.field))
        return self.value(chi, self.roundness), (data + self.alpha * rough).ravel()


def test_minimum_is_that_of_a_general_minimiser():
    # On a small grid, so that the other is done before long
    grid, view = solver_grid(MASK, margin=2), (VOXEL_SIZE, TILTED)
    kernel = dipole_kernel(grid.shape, *view)
    form = ClosedForm(
        Geometry(MASK, *view), grid, kernel, gradient_power(grid.shape, VOXEL_SIZE), 1 + 0 * kernel
    )
    found = tv_inversion(form, FIELD, 0.3, WEIGHTS, iterations=1000, tolerance=0)
    assert found.iterations == 1000
    start = np.zeros(np.prod(grid.shape))
    for roundness in (0.1, 1e-2, 1e-3, 1e-4):
        smoothed = Smoothed(form, found.tv_weight, roundness)
        options = {'maxiter': 3000, 'maxfun': 4000, 'ftol': 1e-12, 'gtol': 1e-8}
        start = optimize.minimize(smoothed, start, jac=True, method='L-BFGS-B', options=options).x
    expected = grid.extract(start.reshape(grid.shape), MASK.shape)[MASK]
    difference = (found.chi[MASK] - found.chi[MASK].mean()) - (expected - expected.mean())
    assert np.std(difference) < 0.01 * np.std(expected)
    # and it is not the map that it started from
    l2 = form.volume(form.divided(form.spectrum(FIELD), 0.3))[MASK]
    assert np.std(l2 - l2.mean() - (expected - expected.mean())) > 0.2 * np.std(expected)


def test_weight_is_that_at_which_both_penalties_weigh_the_same():
    mask = np.ones((9, 8, 7), bool)
    field = np.random.default_rng(1).normal(size=mask.shape)
    form = closed_form(Geometry(mask, VOXEL_SIZE, TILTED))
    found = tv_inversion(form, field, 0.3, iterations=1)
    whole = fft.irfftn(form.divided(form.spectrum(field), 0.3), s=form.grid.shape)
    whole = whole[form.grid.inner]
    g = np.concatenate([np.diff(whole, axis=i).ravel() / h for i, h in enumerate(VOXEL_SIZE)])
    assert found.tv_weight * np.abs(g).sum() == pytest.approx(0.3**2 * np.sum(g**2), rel=1e-4)


def test_only_the_field_in_the_mask_counts_and_the_map_is_zero_outside():
    geometry = Geometry(MASK, VOXEL_SIZE, TILTED)
    plain = invert(FIELD, geometry, Arm(inversion='tv'), WEIGHTS)
    spoilt = invert(np.where(MASK, FIELD, 1e6), geometry, Arm(inversion='tv'), WEIGHTS)
    np.testing.assert_array_equal(spoilt.chi, plain.chi)
    assert not plain.chi[~MASK].any()


@pytest.mark.parametrize('axes, flips', [((2, 0, 1), ()), ((1, 0, 2), (0,)), ((0, 1, 2), (1, 2))])
def test_storage_does_not_matter(axes, flips):
    plain = invert(FIELD, Geometry(MASK, VOXEL_SIZE, TILTED), Arm(inversion='tv'), WEIGHTS)
    b0_dir = TILTED[list(axes)].copy()
    b0_dir[list(flips)] *= -1
    field, mask, weights = (np.flip(a.transpose(axes), flips) for a in (FIELD, MASK, WEIGHTS))
    geometry = Geometry(mask, VOXEL_SIZE[list(axes)], b0_dir)
    moved = invert(field, geometry, Arm(inversion='tv'), weights)
    back = np.flip(moved.chi, flips).transpose(np.argsort(axes))
    assert moved.further['tv_weight'] == pytest.approx(plain.further['tv_weight'], rel=1e-3)
    # The difference is forwards in the one and backwards in the other: the same but for rounding.
    np.testing.assert_allclose(back, plain.chi, atol=2e-3 * np.abs(plain.chi).max())


def ball_case(voxel_size, noise, seed=0):
    """Field of a ball in closed form, with noise, in a larger ball."""
    n = np.round(32 / np.asarray(voxel_size)).astype(int)
    points = (np.stack(np.indices(n), axis=-1) - (n - 1) / 2) * voxel_size
    radius = np.linalg.norm(points, axis=-1)
    field = 0.5 * sphere_field(points, 6.0, TILTED)
    field += np.random.default_rng(seed).normal(0, noise, radius.shape)
    return field, radius < 15, 0.5 * (radius <= 6)


def error(chi, truth, mask):
    """Standard deviation of the error over that of the truth."""
    return np.std((chi - truth)[mask]) / np.std(truth[mask])


@pytest.mark.parametrize('voxel_size', [(1.0, 1.0, 1.0), (1.0, 1.0, 2.0)])
@pytest.mark.parametrize('noise', [0.002, 0.02])
def test_close_to_the_best_weight_in_hindsight_and_better_than_l2(voxel_size, noise):
    field, mask, truth = ball_case(voxel_size, noise)
    geometry = Geometry(mask, voxel_size, TILTED)
    tv = invert(field, geometry, Arm(rule='risk', inversion='tv'))
    l2 = l2_inversion(field, *geometry[:3], rule='risk')
    assert tv.reg_weight == l2.reg_weight
    form = closed_form(geometry)
    best = min(
        error(tv_inversion(form, field, factor * tv.reg_weight).chi, truth, mask)
        for factor in (0.5, 1.4, 2)
    )
    assert error(tv.chi, truth, mask) < min(1.25 * best, 0.92 * error(l2.chi, truth, mask))


def test_sixty_pairs_of_transforms_at_most(monkeypatch):
    count = {'n': 0}

    def counted(function):
        def call(*args, **keywords):
            count['n'] += 1
            return function(*args, **keywords)

        return call

    for name in ('rfftn', 'irfftn'):
        monkeypatch.setattr(fft, name, counted(getattr(fft, name)))
    # Behind a prior, where the map is weak and settles late
    noise = 0.01 * np.random.default_rng(0).normal(size=(12, 11, 10))
    field = noise + forward_field(noise, (1, 1, 1), TILTED)
    count['n'] = 0
    found = invert(field, Geometry(field < 9, (1, 1, 1), TILTED), Arm(rule='risk', inversion='tv'))
    assert 2 * found.further['iterations'] < count['n'] / 2 <= 60


def test_a_constant_factor_of_the_field_is_one_of_the_map():
    geometry = Geometry(MASK, VOXEL_SIZE, TILTED)
    plain, large = (invert(f * FIELD, geometry, Arm(inversion='tv'), WEIGHTS) for f in (1, 1e3))
    np.testing.assert_allclose(large.chi, 1e3 * plain.chi, rtol=0.02, atol=1e3 * 2e-4)
    assert large.further['tv_weight'] == pytest.approx(1e3 * plain.further['tv_weight'], rel=1e-3)


def test_of_a_field_that_is_zero_the_susceptibility_is_zero():
    found = invert(0 * FIELD, Geometry(MASK, VOXEL_SIZE, TILTED), Arm(inversion='tv'), WEIGHTS)
    assert not found.chi.any()


def test_an_unknown_inversion_is_refused():
    with pytest.raises(ValueError, match=r"one of l2, tv, not 'l1'"):
        invert(FIELD, Geometry(MASK, VOXEL_SIZE, TILTED), Arm(inversion='l1'))
