"""Outline of the object in air, and the measured field on the coarse grid it is compared on."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from precondqsm_bids.numerics.arrays import block_means
from precondqsm_bids.numerics.dipole import bounding_box

F64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

MOST_VOXELS = 48
"""Voxels along an axis of the grid on which fields of shapes are compared: 4 mm in a head."""
OUTLINES = (0.04, 0.1)
"""Radii, in largest extents of the object, by which it is closed: 8 and 20 mm in a head. Skull,
sinuses and air cells give no signal alike; which of them is air is not known, and cavities that
are wrongly air or tissue have fields of several ppm. Of the two the outline whose field fits
better counts: in the simulated heads that is the larger (partial correlation .86, .69 at half of
it, .18 unclosed), in a real head with wide sinuses the smaller (.79, .31 with the larger)."""


class CoarseField(NamedTuple):
    """A measured field and the object on a coarse grid, (X, Y, Z) each."""

    field: F64
    """Mean of the field over the masked voxels of each block, ppm."""
    sd: F64
    """Mean of its standard deviation, ppm."""
    mask: Bools
    """Blocks of which half is masked."""
    shape: Bools
    """Blocks of which half is object."""
    voxel_size: F64
    """mm"""


def coarse_field(
    field: npt.NDArray,
    sd: npt.NDArray,
    mask: Bools,
    shape: Bools,
    voxel_size: npt.ArrayLike,
    most: int = MOST_VOXELS,
) -> CoarseField:
    """Means of a field (ppm) and its deviation over blocks, at most ``most`` along an axis.

    The field is known in the mask. Where the last block is not full, the object goes on in it as
    it ends.

    >>> field = np.arange(8.0).reshape(8, 1, 1); mask = np.ones(field.shape, bool); mask[0] = False
    >>> coarse = coarse_field(field, field, mask, mask, (1, 1, 1), most=4)
    >>> coarse.field.ravel(), coarse.voxel_size
    (array([1. , 2.5, 4.5, 6.5]), array([2., 1., 1.]))
    """
    factors = [-(-n // most) for n in field.shape]
    fraction = block_means(mask.astype(np.float64), factors, 'constant')
    known = np.maximum(fraction, 1e-12)
    of_mask = [np.where(mask, v, 0).astype(np.float64) for v in (field, sd)]
    means = [
        np.where(fraction > 0, block_means(v, factors, 'constant') / known, 0) for v in of_mask
    ]
    whole = block_means(shape.astype(np.float64), factors) >= 0.5
    size = np.asarray(voxel_size, np.float64) * factors
    return CoarseField(means[0], means[1], fraction >= 0.5, whole, size)


def closed_outline(shape: Bools, voxel_size: npt.ArrayLike, radius: float) -> Bools:
    """The object closed by a ball (radius in mm): gaps narrower than its diameter are filled.

    The object goes on beyond the edges of the field of view as it ends there.

    >>> shape = np.ones((1, 1, 9), bool); shape[..., 2] = False; shape[..., 4:8] = False
    >>> closed_outline(shape, (1, 1, 1), 1.0)[0, 0].astype(int)
    array([1, 1, 1, 1, 0, 0, 0, 0, 1])
    """
    size = np.asarray(voxel_size, np.float64)
    margin = [(int(np.ceil(radius / d)) + 1,) * 2 for d in size]
    padded = np.pad(shape, margin, mode='edge')
    if padded.all() or not padded.any():
        return shape
    near = ndimage.distance_transform_edt(~padded, sampling=size) <= radius
    if near.all():
        return np.ones_like(shape)
    closed = padded | (ndimage.distance_transform_edt(near, sampling=size) > radius)
    return closed[tuple(slice(n, -n) for n, _ in margin)]


def outline_radii(shape: Bools, voxel_size: npt.ArrayLike) -> list[float]:
    """Radii of `OUTLINES` for an object, mm.

    >>> outline_radii(np.ones((20, 40, 30), bool), (1, 1, 1))
    [1.6, 4.0]
    """
    size = np.asarray(voxel_size, np.float64)
    box = bounding_box(shape)
    largest = max((s.stop - s.start) * d for s, d in zip(box, size, strict=True))
    return [float(fraction * largest) for fraction in OUTLINES]


def cut_fraction(shape: Bools, voxel_size: npt.ArrayLike) -> float:
    """Fraction of the object's surface that is the edge of the field of view: 0 if it lies within.

    >>> shape = np.zeros((4, 4, 4), bool); shape[1:3, 1:3, :] = True
    >>> round(cut_fraction(shape, (1, 1, 1)), 2), cut_fraction(shape[1:3, 1:3], (1, 1, 1))
    (0.2, 1.0)
    """
    size = np.asarray(voxel_size, np.float64)
    cut = surface = 0.0
    for axis in range(3):
        area = float(np.prod(size) / size[axis])
        ends = sum(int(np.count_nonzero(shape.take(k, axis))) for k in (0, -1))
        cut += area * ends
        surface += area * (ends + int(np.count_nonzero(np.diff(shape, axis=axis))))
    return cut / surface if surface else 0.0
