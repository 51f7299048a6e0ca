"""Field of the object's shape in air, going on beyond the edges that cut the object off."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from precondqsm_bids.numerics.arguments import checked
from precondqsm_bids.numerics.constants import WATER_IN_AIR
from precondqsm_bids.numerics.dipole import PrismConvolution, bounding_box, forward_field
from precondqsm_bids.numerics.echoes import in_place

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


class ShapeField(NamedTuple):
    """Result of :func:`shape_field`, ppm, (X, Y, Z) each."""

    field: F32
    """Field of the object in air, going on beyond the edges that cut it off."""
    beyond: tuple[F32, ...]
    """Parts of it that come from beyond each such edge, three of rising distance."""


@checked
def shape_field(
    shape: Bools,
    voxel_size: npt.ArrayLike,
    b0_dir: npt.ArrayLike,
    mask: Bools,
    workers: int = 1,
    *,
    apart: bool = True,
) -> ShapeField:
    """Field of the object's shape in air.

    The step from water to air, convolved with the dipole, as though every voxel of the border
    were filled. Where the object is cut off by the edge of the field of view (a slab) it goes on
    as it ends there, for as far as its largest other extent: an object that ended at the edge
    would have a field of the wrong sign inside a thin slab. How it really goes on is not known,
    so that the fields of its continuation to 1/16, to 1/4 and to the whole of that length are
    returned for each edge: what is left when they are regressed out does not depend on it.

    Memory: that of :func:`~precondqsm_bids.numerics.dipole.forward_field`, and 12 bytes per voxel
    and cut edge. The continuation is computed on a grid of 1/64 of its length.

    Parameters
    ----------
    shape : (X, Y, Z) ndarray of bool
        Object against air.
    voxel_size, b0_dir : (3,) array_like
        Voxel size, mm; direction of B0 along the voxel axes.
    mask : (X, Y, Z) ndarray of bool
        Where the field is wanted; zero elsewhere.
    workers : int
        Threads of the Fourier transforms.
    apart : bool
        Whether the parts from beyond the edges are wanted, besides the sum.

    Examples
    --------
    A slab across a long cylinder along B0 has the field of the cylinder, a constant:

    >>> x, y = np.indices((24, 24)) - 11.5
    >>> slab = np.repeat((np.hypot(x, y) < 8)[..., None], 4, axis=2)
    >>> found = shape_field(slab, (1, 1, 1), (0, 0, 1), slab)
    >>> print(round(found.field[slab].mean(), 1), found.field[slab].std() < 0.2, len(found.beyond))
    -2.4 True 6
    """
    h = np.asarray(voxel_size, float)
    step = np.float32(WATER_IN_AIR)
    field = forward_field(step * shape, h, b0_dir, mask, workers)
    convolution, fields = None, []
    for coarse, source, inside in _continuations(shape, h):
        if convolution is None:  # one grid for all of them
            convolution = PrismConvolution(source.shape, coarse, b0_dir, workers)
            positions = [
                ((index + 0.5) * ratio - 0.5).astype(np.float32)
                for index, ratio in zip(np.nonzero(mask), h / coarse, strict=True)
            ]
        # Not across the edge: the field jumps there, by the step along B0.
        fields.append(convolution(step * source)[inside])
    if not fields:
        return ShapeField(field, ())

    def at_mask(far: F32) -> F32:
        return ndimage.map_coordinates(far, positions, order=1, mode='nearest')

    if not apart:
        field[mask] += at_mask(np.sum(fields, axis=0))
        return ShapeField(field, ())
    beyond = []
    for far in fields:
        beyond.append(in_place(at_mask(far), mask))
        field += beyond[-1]
    return ShapeField(field, tuple(beyond))


def _continuations(shape: Bools, h: F64) -> Iterator[tuple[F64, F32, tuple[slice, ...]]]:
    """Shells of what lies beyond each edge that cuts the object.

    Of each the voxel size (mm), the fraction of object, and where the field of view stands in it.

    The grid divides the field of view evenly, so that its edges are faces of voxels.
    """
    extent = [(s.stop - s.start) * d for s, d in zip(bounding_box(shape), h, strict=True)]
    cut = [[bool(shape.take(k, axis).any()) for k in (0, -1)] for axis in range(3)]
    if not np.any(cut):
        return
    lengths = [max(extent[other] for other in range(3) if other != axis) for axis in range(3)]
    size = max(length for length, ends in zip(lengths, cut, strict=True) if any(ends)) / 64
    counts = [
        max(1, int(np.round(n * d / max(size, d)))) for n, d in zip(shape.shape, h, strict=True)
    ]
    coarse = np.array([n * d / c for n, d, c in zip(shape.shape, h, counts, strict=True)])
    added = [
        [int(np.ceil(length / d)) if end else 0 for end in ends]
        for length, d, ends in zip(lengths, coarse, cut, strict=True)
    ]
    index = [np.arange(-a[0], c + a[1]) for a, c in zip(added, counts, strict=True)]
    positions = np.meshgrid(
        *((i + 0.5) * c / d - 0.5 for i, c, d in zip(index, coarse, h, strict=True)), indexing='ij'
    )
    # Positions beyond the field of view have the value of its edge.
    solid = ndimage.map_coordinates(shape.astype(np.float32), positions, order=1, mode='nearest')
    inside = tuple(slice(a[0], a[0] + c) for a, c in zip(added, counts, strict=True))
    owned = np.zeros(solid.shape, bool)
    owned[inside] = True
    for axis in range(3):
        for side in (0, 1):
            if not cut[axis][side]:
                continue
            i = index[axis].reshape([-1 if other == axis else 1 for other in range(3)])
            depth = (-i if side == 0 else i - counts[axis] + 1) / added[axis][side]
            for inner, outer in ((0, 1 / 16), (1 / 16, 1 / 4), (1 / 4, 1)):
                # Corners beyond two edges belong to the first that reaches them.
                shell = ~owned & (depth > inner) & (depth <= outer + 1e-9)
                owned |= shell
                yield coarse, np.where(shell, solid, np.float32(0)), inside


def shim_terms(shape: tuple[int, ...], voxels: npt.NDArray) -> F64:
    """Monomials up to second order, as a shim has them, at flat indices, (V, 10).

    Coordinates are -1 to 1 along each axis of ``shape``.
    """
    x, y, z = (
        2 * index / max(n - 1, 1) - 1
        for index, n in zip(np.unravel_index(voxels, shape), shape, strict=True)
    )
    one = np.ones_like(x)
    return np.stack([one, x, y, z, x * x, y * y, z * z, x * y, y * z, x * z], axis=1)
