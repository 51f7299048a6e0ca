"""Coarse grid: the region of interest in blocks of voxels, for what needs no fine detail."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from precondqsm_bids.numerics.dipole import Geometry
from precondqsm_bids.numerics.solver import MARGIN

F32 = npt.NDArray[np.float32]
VOXELS = 20_000
"""Voxels of the coarse region, about: enough for the field to tell the coefficients of cells, at a
tenth of the work."""
LEAST_MARGIN = 4
"""Blocks around the coarse region, at least."""


class CoarseRegion:
    """Means over blocks of voxels, and the region of interest on the grid of the blocks.

    About 20,000 blocks, whatever the voxels: no length of an object is assumed.

    Parameters
    ----------
    geometry : Geometry
        Region of interest, voxel size (mm), direction of B0, threads.

    Examples
    --------
    >>> mask = np.ones((60, 60, 60), bool)
    >>> coarse = CoarseRegion(Geometry(mask, (1, 1, 1), (0, 0, 1)))
    >>> print(coarse.shape, coarse.mean(np.ones(mask.shape)).min())
    (30, 30, 30) 1.0
    """

    def __init__(self, geometry: Geometry):
        mask = geometry.mask
        size = np.asarray(geometry.voxel_size, float)
        edge = (np.count_nonzero(mask) * np.prod(size) / VOXELS) ** (1 / 3)
        self.blocks = np.maximum(np.rint(edge / size), 1).astype(int)
        self.shape = tuple(int(n) for n in -(-np.array(mask.shape) // self.blocks))
        place = [i // k for i, k in zip(np.nonzero(mask), self.blocks, strict=True)]
        self.number = np.ravel_multi_index(place, self.shape)
        self.mask = mask
        self.count = np.bincount(self.number, minlength=int(np.prod(self.shape)))
        # As much room for sources outside as on the grid of the voxels.
        self.margin = max(LEAST_MARGIN, round(MARGIN / float(np.cbrt(np.prod(self.blocks)))))
        # Half a block of object at least, as in a voxel of the region itself; of a region in which
        # no block is full, half of the fullest.
        inside = (self.count >= self.count.max() / 2).reshape(self.shape)
        self.geometry = Geometry(inside, size * self.blocks, *geometry[2:])

    def mean(self, image: npt.NDArray) -> F32:
        """Mean over the voxels of the region in each block, zero outside the coarse region."""
        total = np.bincount(self.number, image[self.mask], self.count.size)
        mean = (total / np.maximum(self.count, 1)).reshape(self.shape)
        return np.where(self.geometry.mask, mean, 0).astype(np.float32)

    def smoothed(self, values: npt.NDArray, width: float) -> F32:
        """Mean in a Gaussian window of the coarse region, its width in blocks of equal edges."""
        mask, size = self.geometry.mask, np.asarray(self.geometry.voxel_size, float)
        sigma = width * np.cbrt(np.prod(size)) / size
        total, share = (
            ndimage.gaussian_filter(np.where(mask, image, 0).astype(np.float32), sigma, truncate=3)
            for image in (values, 1)
        )
        return np.where(mask, total / np.maximum(share, 1e-6), 0).astype(np.float32)

    def on_voxels(self, values: F32) -> F32:
        """Values of the blocks at the voxels of the region, linear between their middles."""
        inside = self.geometry.mask
        nearest = ndimage.distance_transform_edt(
            ~inside, return_distances=False, return_indices=True
        )
        filled = values[tuple(nearest)]
        place = [
            (index + 0.5) / block - 0.5
            for index, block in zip(np.nonzero(self.mask), self.blocks, strict=True)
        ]
        out = np.zeros(self.mask.shape, np.float32)
        out[self.mask] = ndimage.map_coordinates(filled, place, order=1, mode='nearest')
        return out
