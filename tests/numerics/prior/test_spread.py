"""Two fits of one prior lie as far apart as they are both off."""

import numpy as np
import pytest
from scipy import ndimage

from precondqsm_bids.numerics.coarse import CoarseRegion
from precondqsm_bids.numerics.dipole import Geometry
from precondqsm_bids.numerics.prior.spread import prior_spread

SHAPE = (60, 66, 54)
X = np.stack(np.indices(SHAPE)) - (np.array(SHAPE)[:, None, None, None] - 1) / 2
MASK = (X[0] / 28) ** 2 + (X[1] / 31) ** 2 + (X[2] / 25) ** 2 < 1


def slow_error(rng, size):
    """An error of long wavelength, ppm."""
    values = ndimage.gaussian_filter(rng.normal(size=SHAPE), 8)
    return size * values / values[MASK].std()


@pytest.mark.parametrize('voxel_size', [(1, 1, 1), (1, 1, 2.5)])
def test_two_fits_with_errors_of_their_own_say_how_large_these_are(voxel_size):
    geometry = Geometry(MASK, voxel_size, (0, 0, 1))
    coarse = CoarseRegion(geometry)
    rng = np.random.default_rng(1)
    truth = rng.normal(size=SHAPE)  # which both have right, whatever its detail
    larger = 0.01 * np.sqrt(np.cbrt(np.prod(coarse.blocks)))  # error of larger voxels
    found = [
        prior_spread(
            coarse.mean(truth + slow_error(rng, larger)), truth + slow_error(rng, 0.01), geometry
        )
        for _ in range(8)
    ]
    size = np.sqrt(np.mean([spread[MASK] ** 2 for spread in found]))
    assert size == pytest.approx(0.01, rel=0.2)
    assert all(not spread[~MASK].any() for spread in found)


def test_spread_is_where_the_fits_differ_and_does_not_see_a_constant():
    geometry = Geometry(MASK, (1, 1, 1), (0, 0, 1))
    coarse, half = CoarseRegion(geometry), X[0] < 0
    error = np.where(half, slow_error(np.random.default_rng(2), 0.01), 0)
    spread = prior_spread(coarse.mean(error + 0.3), np.zeros(SHAPE), geometry)
    assert spread[MASK & (X[0] < -14)].mean() > 5 * spread[MASK & (X[0] > 14)].mean()
    assert spread.max() < 0.03


def test_coarse_values_come_back_to_the_voxels():
    """A plane is a plane again, but for half a block at the border."""
    geometry = Geometry(MASK, (1, 1, 1), (0, 0, 1))
    coarse = CoarseRegion(geometry)
    assert coarse.blocks.tolist() == [2, 2, 2]
    deep = ndimage.binary_erosion(MASK, iterations=6)
    back = coarse.on_voxels(coarse.mean(X[1]))
    np.testing.assert_allclose(back[deep], X[1][deep], atol=1e-4)
    assert np.abs(back - X[1])[MASK].max() < 2.5
    np.testing.assert_allclose(coarse.smoothed(np.ones(coarse.shape), 2)[coarse.geometry.mask], 1)
