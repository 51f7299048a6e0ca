"""Erosion, dilation, balls, Gaussian means and medians of whole volumes, fast.

Layers and balls are unions of shifted masks, eight voxels a byte: an exact distance of every voxel
takes ten times as long where the question is whether it is below one radius.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from precondqsm_bids.numerics.arrays import neighbours, side_by_side

F32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

EXCHANGES = (
    (12, 2), (24, 19), (19, 14), (10, 12), (6, 4), (6, 10), (2, 24), (10, 4), (4, 15), (12, 2),
    (12, 10), (19, 7), (13, 5), (5, 15), (7, 24), (15, 24), (19, 7), (15, 22), (5, 2), (13, 19),
    (7, 22), (4, 5), (10, 4), (13, 10), (15, 2), (2, 7), (10, 4), (10, 5), (16, 7), (18, 15),
    (5, 19), (4, 5), (4, 18), (19, 15), (15, 16), (2, 16), (19, 21), (18, 19), (18, 5), (2, 21),
    (21, 15), (8, 2), (8, 5), (19, 8), (2, 21), (2, 11), (2, 8), (5, 11), (5, 2), (2, 8), (8, 20),
    (8, 2),
)  # fmt: skip
"""Of a cube of 27 values that is sorted along each axis (index 9 i + 3 j + k), pairs of which the
smaller comes first: after the last of them the median is at MIDDLE. It was searched for by chance:
that it holds for the 980 sorted cubes of zeros and ones proves it for any values."""
MIDDLE = 2


def dilated(mask: Bools, layers: int = 1) -> Bools:
    """A mask and ``layers`` layers of voxels around it; neighbours share a face.

    >>> dilated(np.array([[[False, False, False, True]]])).tolist()
    [[[False, False, True, True]]]
    """
    for _ in range(layers):
        grown = mask.copy()
        for axis in range(mask.ndim):
            low, high = neighbours(axis)
            grown[low] |= mask[high]
            grown[high] |= mask[low]
        mask = grown
    return mask


def eroded(mask: Bools, layers: int = 1) -> Bools:
    """A mask without its outermost ``layers`` layers of voxels; neighbours share a face.

    The edge of the field of view is not a border: what is there goes on beyond it.

    >>> eroded(np.array([[[False, True, True, True]]])).tolist()
    [[[False, False, True, True]]]
    """
    return ~dilated(~mask, layers)


def within(mask: Bools, radius: float, voxel_size: npt.ArrayLike) -> Bools:
    """Voxels whose centre is at most ``radius`` from that of a voxel of the mask.

    Parameters
    ----------
    mask : (X, Y, Z) ndarray of bool
        Any.
    radius : float
        In the unit of the voxel size.
    voxel_size : (3,) array_like
        Any unit.

    Examples
    --------
    >>> mask = np.zeros((5, 5, 5), bool); mask[2, 2, 2] = True
    >>> [int(within(mask, radius, (1, 1, 1)).sum()) for radius in (0, 1, 1.5, 2)]
    [1, 7, 19, 33]
    """
    a, b, c = np.asarray(voxel_size, np.float64)
    reach = [
        min(int(radius / edge) + 1, n - 1) for edge, n in zip((a, b, c), mask.shape, strict=True)
    ]
    lengths: dict[int, list[tuple[int, int]]] = {}
    along = (np.arange(reach[2] + 1) * c) ** 2
    for i in range(-reach[0], reach[0] + 1):
        for j in range(-reach[1], reach[1] + 1):
            fits = np.sqrt((i * a) ** 2 + (j * b) ** 2 + along) <= radius
            if fits.any():
                lengths.setdefault(int(np.count_nonzero(fits)) - 1, []).append((i, j))
    out = np.zeros((*mask.shape[:2], -(-mask.shape[2] // 8)), np.uint8)
    run = mask.copy()  # of voxels up to so many away along the last axis
    for length in range(max(lengths, default=-1) + 1):
        if length:
            run[..., length:] |= mask[..., :-length]
            run[..., :-length] |= mask[..., length:]
        packed = np.packbits(run, axis=-1) if length in lengths else run
        for i, j in lengths.get(length, ()):
            (to_i, from_i), (to_j, from_j) = _moved(i), _moved(j)
            out[to_i, to_j] |= packed[from_i, from_j]
    return np.unpackbits(out, axis=-1, count=mask.shape[2]).view(np.bool_)


def deeper(mask: Bools, depth: float, voxel_size: npt.ArrayLike) -> Bools:
    """Voxels of a mask whose centre is more than ``depth`` from those of all other voxels.

    The edge of the field of view is not a border.

    >>> deeper(np.array([[[True, True, True, False]]]), 1.5, (1, 1, 1)).tolist()
    [[[True, True, False, False]]]
    >>> int(deeper(np.ones((3, 3, 3), bool), 1, (1, 1, 1)).sum())
    27
    """
    return ~within(~mask, depth, voxel_size)


def gaussian(volume: npt.NDArray, sigma: npt.ArrayLike, truncate: float = 4.0) -> F32:
    """Gaussian mean as :func:`scipy.ndimage.gaussian_filter`, mirrored at the edges.

    One product with a matrix along each axis, which costs the same for any width.

    Parameters
    ----------
    volume : (X, Y, Z) ndarray
        Any.
    sigma : float or (3,) array_like
        Standard deviations, voxels.
    truncate : float
        Reach, standard deviations.

    Examples
    --------
    >>> point = np.zeros((9, 9, 9)); point[4, 4, 4] = 1
    >>> blurred = gaussian(point, 1.0)
    >>> round(float(blurred[4, 4, 4]), 3), round(float(blurred.sum()), 3)
    (0.063, 1.0)
    """
    rows = [
        ndimage.gaussian_filter1d(np.eye(n), width, 0, truncate=truncate)
        for n, width in zip(volume.shape, np.broadcast_to(sigma, 3), strict=True)
    ]
    return _along_axes(volume, rows)


def gaussian_of_lines(
    volume: F32, sigma: npt.ArrayLike, workers: int = 1, **given: Any
) -> npt.NDArray[np.float32]:
    """What :func:`scipy.ndimage.gaussian_filter` gives, to the last bit, on several threads.

    >>> point = np.zeros((5, 5, 5), np.float32); point[2, 2, 2] = 1
    >>> np.array_equal(gaussian_of_lines(point, 1.0, 2), ndimage.gaussian_filter(point, 1.0))
    True
    """
    out = volume
    for axis, width in enumerate(np.broadcast_to(np.asarray(sigma, float), 3)):
        source, out = out, out if axis else np.empty(volume.shape, np.float32)
        # Lines along one axis know nothing of each other.
        ends = np.linspace(0, volume.shape[axis == 0], workers + 1).astype(int)
        parts = [
            (slice(None),) * (axis == 0) + (slice(low, high),) for low, high in pairwise(ends)
        ]
        side_by_side(
            workers,
            *(
                partial(
                    ndimage.gaussian_filter1d, source[part], width, axis, output=out[part], **given
                )
                for part in parts
            ),
        )
    return out


def median_of_27(volume: F32, workers: int = 1) -> F32:
    """Median of each voxel and its 26 neighbours as :func:`scipy.ndimage.median_filter`, mirrored.

    Triples are sorted along one axis after the other, which neighbours share; 19 of the 27 are
    then left, and :data:`EXCHANGES` among them. All are minima and maxima of whole planes: a tenth
    of the time. Memory: 120 bytes per voxel of a plane for each thread.

    >>> print(median_of_27(np.arange(27, dtype=np.float32).reshape(3, 3, 3))[1, 1, 1])
    13.0
    """
    out = np.empty_like(volume)
    steps = _steps(EXCHANGES, MIDDLE)

    def one(i: int) -> None:
        around = volume[[max(i - 1, 0), i, min(i + 1, len(volume) - 1)]]
        around = np.pad(around, ((0, 0), (1, 1), (1, 1)), mode='edge')
        cube = list(_sorted(*around))
        cube = [one for part in cube for one in _sorted(part[:-2], part[1:-1], part[2:])]
        cube = [one for part in cube for one in _sorted(part[:, :-2], part[:, 1:-1], part[:, 2:])]
        out[i] = _exchanged(cube, steps)

    side_by_side(workers, *(partial(one, i) for i in range(len(volume))))
    return out


def _sorted(a: npt.NDArray, b: npt.NDArray, c: npt.NDArray) -> tuple[npt.NDArray, ...]:
    """Smallest, middle and largest of three images."""
    low, high = np.minimum(a, b), np.maximum(a, b)
    middle = np.minimum(high, c)
    np.maximum(high, c, out=high)
    smallest = np.minimum(low, middle)
    return smallest, np.maximum(low, middle, out=middle), high


def _steps(
    pairs: Sequence[tuple[int, int]], last: int
) -> list[tuple[tuple[int, int], bool, bool]]:
    """Pairs, and whether what comes after one needs its smaller and its larger value."""
    needed, steps = {last}, []
    for pair in reversed(pairs):
        steps.append((pair, pair[0] in needed, pair[1] in needed))
        needed.update(pair)
    return steps[::-1]


def _exchanged(
    cube: list[npt.NDArray], steps: Sequence[tuple[tuple[int, int], bool, bool]]
) -> npt.NDArray:
    """Median of a sorted cube of images, which it takes for its own."""
    spare = np.empty_like(cube[MIDDLE])
    for (a, b), smaller, larger in steps:
        if smaller and larger:
            np.minimum(cube[a], cube[b], out=spare)
            np.maximum(cube[a], cube[b], out=cube[b])
            cube[a], spare = spare, cube[a]
        elif smaller:
            np.minimum(cube[a], cube[b], out=cube[a])
        else:
            np.maximum(cube[a], cube[b], out=cube[b])
    return cube[MIDDLE]


def interpolated(volume: npt.NDArray, places: Sequence[npt.NDArray[np.float64]]) -> F32:
    """Linear between voxel centres, at the products of ``places`` (voxels) along the axes.

    Beyond the first and last centres their values go on.

    >>> interpolated(np.arange(2.0).reshape(2, 1, 1), [np.array([-1, 0.25]), [0], [0]]).ravel()
    array([0.  , 0.25], dtype=float32)
    """
    rows = []
    for n, wanted in zip(volume.shape, places, strict=True):
        where = np.clip(wanted, 0, n - 1)
        rows.append(np.maximum(1 - np.abs(where[:, None] - np.arange(n)), 0))
    return _along_axes(volume, rows)


def _along_axes(volume: npt.NDArray, rows: Sequence[npt.NDArray[np.float64]]) -> F32:
    """Product with a matrix along each axis."""
    first, second, third = (matrix.astype(np.float32) for matrix in rows)
    out = np.ascontiguousarray(volume, np.float32)
    _, n1, n2 = out.shape
    out = (first @ out.reshape(len(out), -1)).reshape(-1, n1, n2)
    return np.matmul(second, out) @ third.T


def _moved(step: int) -> tuple[slice, slice]:
    """Where a shift by ``step`` takes values to, and where it takes them from."""
    if step >= 0:
        return slice(step, None), slice(None, -step or None)
    return slice(None, step), slice(-step, None)
