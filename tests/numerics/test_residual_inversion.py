"""The residual of a fitted prior is inverted by the field's noise and the prior's steps."""

import numpy as np
import pytest
from kernels import full_kernel
from scipy import fft, ndimage
from scipy.sparse import linalg

from precondqsm_bids.method import Arm
from precondqsm_bids.numerics import (
    Geometry,
    Residual,
    closed_form,
    forward_field,
    invert,
    residual_inversion,
)

SHAPE, VOXEL_SIZE, B0_DIR = (14, 17, 12), (2.0, 1.5, 2.5), (0.0, 0.3, 0.954)
X = np.stack(np.indices(SHAPE)) - (np.array(SHAPE)[:, None, None, None] - 1) / 2
MASK = (X[0] / 6) ** 2 + (X[1] / 7.5) ** 2 + (X[2] / 5) ** 2 < 1
GEOMETRY = Geometry(MASK, VOXEL_SIZE, B0_DIR)
FORM = closed_form(GEOMETRY)


def smooth(seed):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(SHAPE), 1.5)
    return (noise / noise[MASK].std()).astype(np.float32)


PRIOR = 0.05 * np.tanh(3 * smooth(1)) * MASK
SD = np.where(X[1] > 2, 0.02, 0.004) * MASK
FIELD = MASK * (
    forward_field(0.05 * smooth(2) * MASK, VOXEL_SIZE, B0_DIR)
    + 0.3 * SD * np.random.default_rng(3).standard_normal(SHAPE)
)
KNOWN = Residual(SD, PRIOR)


def sizes(prior):
    """Voxel by voxel: the root of the mean step to the neighbours in the region, per mm."""
    steps = np.zeros(SHAPE)
    for place in np.argwhere(MASK):
        found = []
        for axis, length in enumerate(VOXEL_SIZE):
            for side in (-1, 1):
                other = place.copy()
                other[axis] += side
                if 0 <= other[axis] < SHAPE[axis] and MASK[tuple(other)]:
                    found.append(abs(prior[tuple(other)] - prior[tuple(place)]) / length)
        steps[tuple(place)] = np.mean(found) if found else 0
    return (steps**2 + 0.09 * np.mean(steps[MASK] ** 2)) ** 0.25


def weights(sd):
    """Voxel by voxel, of noise that the standard deviation knows whole."""
    middle = np.median(sd[MASK])
    mean = np.mean([min(value, 4 * middle) ** 2 for value in sd[MASK]])
    return np.maximum(mean / np.maximum(sd, middle / 2) ** 2, 0.1)


def solved(field, reg_weight, trust):
    """The least squares over y of mean 0, in double precision, with a kernel of its own."""
    shape, grid = FORM.grid.shape, FORM.grid
    kernel = full_kernel(shape, VOXEL_SIZE, B0_DIR)
    inside = np.zeros(shape, bool)
    inside[grid.inner] = MASK[grid.box]
    size, w_squared, f = np.ones(shape), np.full(shape, 1 - trust), np.zeros(shape)
    powers = sizes(PRIOR) ** trust
    size[inside] = (powers / np.sqrt(np.mean(powers[MASK] ** 2)))[MASK]
    w_squared[inside] = (weights(SD) ** trust)[MASK]
    f[inside] = field[MASK]

    def dipole(chi):
        return fft.ifftn(fft.fftn(chi) * kernel).real

    def normal(y):
        y = y.reshape(shape)
        found = size * dipole(w_squared * dipole(size * y))
        for axis, length in enumerate(VOXEL_SIZE):
            found += (
                reg_weight**2 * (2 * y - np.roll(y, 1, axis) - np.roll(y, -1, axis)) / length**2
            )
        return (found - found.mean()).ravel()

    operator = linalg.LinearOperator((inside.size,) * 2, normal)
    right = (size * dipole(w_squared * f)).ravel()
    y, status = linalg.cg(operator, right - right.mean(), rtol=1e-10, maxiter=3000)
    assert status == 0
    return np.where(MASK, grid.extract(size * y.reshape(shape), SHAPE), 0)


@pytest.mark.parametrize('trust', [1.0, 0.4])
def test_map_is_that_of_the_least_squares(trust):
    found = residual_inversion(FORM, FIELD, KNOWN, 1.0, trust, iterations=300)
    expected = solved(FIELD, 1.0, trust)
    assert np.abs(found - expected)[MASK].max() < 0.01 * np.abs(expected).max()


def test_ten_iterations_are_near_the_end():
    few = residual_inversion(FORM, FIELD, KNOWN, 1.0)
    many = residual_inversion(FORM, FIELD, KNOWN, 1.0, iterations=300)
    assert np.std((few - many)[MASK]) < 0.1 * np.std(many[MASK])


def test_a_dropped_prior_leaves_the_closed_form():
    found = residual_inversion(FORM, FIELD, KNOWN, 1.0, trust=0.0)
    plain = FORM.volume(FORM.divided(FORM.spectrum(FIELD), 1.0))
    np.testing.assert_allclose(found, plain, atol=1e-6)
    arm = Arm(rule='risk', clip_outliers=True)
    field = FIELD.astype(np.float32)
    np.testing.assert_array_equal(
        invert(field, GEOMETRY, arm, trust=0.0, residual=KNOWN).chi,
        invert(field, GEOMETRY, arm, trust=0.0).chi,
    )


def test_noise_where_it_is_known_to_be_counts_less():
    chi = 0.05 * smooth(2) * MASK
    field = MASK * forward_field(chi, VOXEL_SIZE, B0_DIR)
    sd = np.where(X[1] > 2, 0.03, 0.001) * MASK
    noisy = field + sd * np.random.default_rng(5).standard_normal(SHAPE)
    flat = np.zeros(SHAPE)
    error = {
        name: np.std((residual_inversion(FORM, noisy, Residual(given, flat), 0.1) - chi)[MASK])
        for name, given in {'known': sd, 'unknown': MASK * 0.02}.items()
    }
    assert error['known'] < 0.8 * error['unknown']


def test_what_the_prior_lacks_is_looked_for_at_its_edges():
    wall = (X[0] > 0) * MASK
    chi = 0.02 * MASK * (np.abs(X[0] - 0.0) < 1)
    field = MASK * forward_field(chi, VOXEL_SIZE, B0_DIR)
    field += MASK * np.random.default_rng(6).normal(0, 0.002, SHAPE)
    sd = MASK * 0.002

    def error(prior):
        return np.std((residual_inversion(FORM, field, Residual(sd, prior), 0.5) - chi)[MASK])

    assert error(0.1 * wall) < 0.9 * error(np.zeros(SHAPE))


def test_a_shift_that_is_no_field_of_a_dipole_weighs_all_alike():
    """Noise of the cone that no deviation knows: the weights become those of a uniform field."""
    shift = MASK * 0.05 * np.random.default_rng(7).standard_normal(SHAPE)
    sd = np.where(X[1] > 2, 0.002, 0.001) * MASK
    flat = np.zeros(SHAPE)
    found = residual_inversion(FORM, shift, Residual(sd, flat), 1.0)
    alike = residual_inversion(FORM, shift, Residual(MASK * 0.001, flat), 1.0)
    assert np.std((found - alike)[MASK]) < 0.01 * np.std(alike[MASK])


def test_storage_does_not_matter():
    found = residual_inversion(FORM, FIELD, KNOWN, 1.0)
    turned = Geometry(
        MASK.transpose(2, 0, 1)[::-1], (2.5, 2.0, 1.5), (-B0_DIR[2], B0_DIR[0], B0_DIR[1])
    )
    field, sd, prior = (v.transpose(2, 0, 1)[::-1] for v in (FIELD, SD, PRIOR))
    other = residual_inversion(closed_form(turned), field, Residual(sd, prior), 1.0)
    np.testing.assert_allclose(other, found.transpose(2, 0, 1)[::-1], atol=1e-5)


def test_field_without_a_deviation_is_weighed_alike():
    found = residual_inversion(FORM, FIELD, Residual(0 * SD, PRIOR), 1.0)
    alike = residual_inversion(FORM, FIELD, Residual(MASK * 1e-9, PRIOR), 1.0)
    np.testing.assert_allclose(found, alike, atol=1e-6)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match='differ in shape'):
        residual_inversion(FORM, FIELD, Residual(SD[:-1], PRIOR), 1.0)
