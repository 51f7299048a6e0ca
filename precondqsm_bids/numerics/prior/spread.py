"""Spread: how far two fits of one prior lie apart."""

import numpy as np
import numpy.typing as npt

from precondqsm_bids.numerics.coarse import CoarseRegion
from precondqsm_bids.numerics.dipole import Geometry

F32 = npt.NDArray[np.float32]
SMOOTHED = 1.5
"""Width (standard deviation) over which the difference of two fits is smoothed, blocks: within a
block they must differ, since one of them has no detail."""
WINDOW = 3.0
"""Width of the window in which its mean square is taken, blocks."""


def prior_spread(coarse_chi: npt.NDArray, prior_chi: npt.NDArray, geometry: Geometry) -> F32:
    """Standard deviation of a fitted prior by its fit, from two fits on two grids.

    A prior was fitted to the means over blocks of voxels, too
    (:func:`~precondqsm_bids.numerics.prior.verdict.judge_prior`). Field and contrast are the same,
    what the grids do not share is an accident: how the walls of strong sources fill
    the voxels, where the iterations end, what goes to the sources outside. If their errors are
    independent, and of variances as the edges of block and voxel, whose ratio is ``r``, that of
    the prior is

        sd^2 = < (G (a - b))^2 > / (1 + r)

    with ``G`` a Gaussian window of 1.5 blocks and the mean over one of 3. What is wrong with both
    alike it cannot show.

    Parameters
    ----------
    coarse_chi : ndarray
        Prior of the coarse grid (:class:`~precondqsm_bids.numerics.coarse.CoarseRegion`), ppm.
    prior_chi : (X, Y, Z) ndarray
        Prior of the voxels, ppm.
    geometry : Geometry
        Region of interest, voxel size (mm), direction of B0, threads.

    Returns
    -------
    (X, Y, Z) ndarray of float32
        ppm, zero outside the region.

    Examples
    --------
    >>> mask = np.ones((24, 24, 24), bool); geometry = Geometry(mask, (1, 1, 1), (0, 0, 1))
    >>> chi = np.zeros(mask.shape); other = np.where(np.indices(mask.shape)[0] < 12, 0.1, -0.1)
    >>> print(*(prior_spread(coarse, chi, geometry)[0, 0, 0].round(3) for coarse in (chi, other)))
    0.0 0.071
    """
    coarse = CoarseRegion(geometry)
    inside = coarse.geometry.mask
    difference = coarse_chi - coarse.mean(prior_chi)
    difference -= np.median(difference[inside])  # the field does not tell a constant
    square = coarse.smoothed(coarse.smoothed(difference, SMOOTHED) ** 2, WINDOW)
    edge = np.float32(np.cbrt(np.prod(coarse.blocks)))
    return np.sqrt(coarse.on_voxels(square) / (1 + edge))
