"""Smoothing by the noise, against what the variance of white noise must be and known edges."""

import numpy as np
import pytest
from scipy import ndimage

from precondqsm_bids.numerics.dipole import Geometry, forward_field
from precondqsm_bids.numerics.prior.estimate import PriorInputs, estimate_prior
from precondqsm_bids.numerics.prior.smoothing import WIDTH, without_noise

SHAPE = (30, 28, 26)
X = np.indices(SHAPE) - (np.array(SHAPE)[:, None, None, None] - 1) / 2
BALL = np.sqrt(np.sum(X**2, axis=0)) < 12
EVERYWHERE = np.ones(SHAPE, bool)


def noise(seed, sd=1.0):
    return np.random.default_rng(seed).normal(0, sd, SHAPE)


def test_noise_alone_becomes_its_mean():
    """Of doubtful noise nothing but the Gaussian mean is left, whose variance is known."""
    weights = np.exp(-(np.arange(-2, 3.0) ** 2) / (2 * WIDTH**2))  # to 3 x 0.8 = 2.4 voxels
    left = np.sum((weights / weights.sum()) ** 2) ** 3
    found = without_noise(noise(0), np.full(SHAPE, 10.0), EVERYWHERE)
    assert np.std(found[4:-4, 4:-4, 4:-4]) == pytest.approx(np.sqrt(left), rel=0.05)
    known = without_noise(noise(0), np.full(SHAPE, 1.0), EVERYWHERE)
    assert np.std(known) < 0.5


@pytest.mark.parametrize('sd', [0.03, 0.3, 1.0, 3.0])
def test_it_takes_noise_and_nothing_else(sd):
    """Whatever the noise, the image is nearer to the truth than before; without noise, it stays.

    Edges of 10 and a texture of 0.3 that is as fine as the voxels allow.
    """
    clean = 10.0 * BALL + 0.3 * np.sign(np.sin(1.1 * X[0]) * np.sin(1.3 * X[1]))
    image = clean + noise(1, sd)
    found = without_noise(image, np.full(SHAPE, sd), EVERYWHERE)
    before, after = (np.std(values - clean) for values in (image, found))
    assert after < before
    edge = ndimage.binary_dilation(BALL) & ~ndimage.binary_erosion(BALL)
    assert np.std((found - clean)[edge]) < 1.02 * np.std((image - clean)[edge])
    if sd >= 1:
        assert after < 0.65 * before
    np.testing.assert_array_equal(
        without_noise(clean, np.zeros(SHAPE), EVERYWHERE), clean.astype(np.float32)
    )


def test_voxels_that_are_not_known_have_no_part():
    image = noise(2)
    unknown = ~BALL
    found = without_noise(np.where(BALL, image, 1e6), np.full(SHAPE, 10.0), BALL)
    np.testing.assert_array_equal(found[unknown], np.float32(1e6))
    other = without_noise(np.where(BALL, image, -7.0), np.full(SHAPE, 10.0), BALL)
    np.testing.assert_array_equal(found[BALL], other[BALL])
    assert np.std(found[BALL]) < 0.6


def test_the_prior_of_a_noisy_contrast_is_better_without_its_noise():
    """R2* that follows susceptibility, under noise as large as its spread."""
    structure = ndimage.gaussian_filter(noise(3), 2.0)
    chi = 0.05 * np.tanh(2 * structure / structure[BALL].std()) * BALL
    geometry = Geometry(BALL, (2, 2, 2.5), (0, 0.3, 0.954))
    field = forward_field(chi, *geometry[1:3], BALL) + BALL * noise(4, 1e-3)
    images = PriorInputs(
        field.astype(np.float32),
        np.full(SHAPE, 1e-3, np.float32),
        magnitude=np.ones(SHAPE),
        r2star=(20 + 200 * chi + noise(5, 10.0)).astype(np.float32),
        inner=True,
    )

    def error(images):
        found = estimate_prior(images, geometry).prior_chi[BALL]
        return np.std(found - chi[BALL]) / np.std(chi[BALL])

    raw = error(images)
    assert error(images._replace(r2star_sd=np.full(SHAPE, 10.0))) < 0.75 * raw
    assert error(images._replace(r2star_sd=np.zeros(SHAPE))) == pytest.approx(raw, rel=1e-6)
