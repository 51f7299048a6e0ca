"""The contrast prior has no walls: planes that repeat, across which its steps are larger."""

import numpy as np
from scipy import ndimage

from benchmarks.walls import walls
from precondqsm_bids.numerics.dipole import Geometry, forward_field
from precondqsm_bids.numerics.prior.basis import constant_parcels
from precondqsm_bids.numerics.prior.contrast import contrast_cells
from precondqsm_bids.numerics.prior.fit import FitOptions, fit_prior

MOST = 1.1
SHAPE, VOXEL_SIZE, B0_DIR = (48, 48, 40), (2.5, 2.5, 2.5), (0.0, 0.0, 1.0)
POINTS = (np.stack(np.indices(SHAPE), axis=-1) - (np.array(SHAPE) - 1) / 2) * VOXEL_SIZE
MASK = np.sum((POINTS / [55, 55, 45]) ** 2, axis=-1) < 1


def test_prior_from_contrast_that_says_nothing_has_no_walls():
    rng = np.random.default_rng(0)
    chi, contrast = (ndimage.gaussian_filter(rng.normal(size=SHAPE), 2.0) for _ in range(2))
    field = forward_field(np.where(MASK, chi, 0), VOXEL_SIZE, B0_DIR)
    cells = contrast_cells([contrast], MASK, VOXEL_SIZE)
    blocks = constant_parcels(np.floor(POINTS / 15) @ [1, 100, 10000], MASK)

    def most(bases, *periods):
        geometry = Geometry(MASK, VOXEL_SIZE, B0_DIR)
        prior = fit_prior(field, bases, geometry, options=FitOptions(40)).prior_chi
        prior = prior + 1e-4 * rng.normal(size=SHAPE)
        return max(walls(prior, MASK, VOXEL_SIZE, periods).values())

    assert most(cells) < MOST
    assert most([blocks], 15) > 3
