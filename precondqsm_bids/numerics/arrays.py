"""Checks that arrays are what they are taken for, and work on several at a time."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import numpy.typing as npt


def check_finite(data: npt.NDArray, name: str) -> None:
    """Raise ValueError if an array has NaN or infinity; the message opens with its name.

    >>> check_finite(np.array([1.0, np.nan]), 'echo.nii')
    Traceback (most recent call last):
    ...
    ValueError: echo.nii has 1 voxels that are not finite (NaN 1, infinite 0): set them to 0, ...
    """
    if np.all(np.isfinite(data)):
        return
    nan, infinite = int(np.isnan(data).sum()), int(np.isinf(data).sum())
    raise ValueError(
        f'{name} has {nan + infinite} voxels that are not finite (NaN {nan}, infinite '
        f'{infinite}): set them to 0, or export the image again'
    )


def check_voxel_size(voxel_size: npt.ArrayLike) -> None:
    """Raise ValueError unless voxels have three positive edges (mm)."""
    size = np.asarray(voxel_size, float)
    if size.shape != (3,) or not np.all((size > 0) & (size < np.inf)):
        raise ValueError(f'voxel_size should be three positive lengths, in mm: {voxel_size!r}')


def check_shapes(of: str, shape: tuple[int, ...], **parts: npt.NDArray | None) -> None:
    """Raise ValueError, with its name, if a part that is there has not the shape of something.

    >>> check_shapes('the echoes', (2, 2), mask=np.ones((2, 3)), field=None)
    Traceback (most recent call last):
    ...
    ValueError: mask (2, 3) and the echoes (2, 2) differ in shape
    """
    for name, part in parts.items():
        if part is not None and part.shape != shape:
            raise ValueError(f'{name} {part.shape} and {of} {shape} differ in shape')


def check_grid(data: npt.NDArray, name: str, mask: npt.NDArray[np.bool_]) -> None:
    """Raise ValueError unless a map has the matrix of the mask; it may have classes beside.

    >>> check_grid(np.zeros((2, 2, 2)), 'r2_map', np.ones((2, 2, 3), bool))
    Traceback (most recent call last):
    ...
    ValueError: r2_map (2, 2, 2) and mask (2, 2, 3) differ in matrix size: resample the first
    """
    if data.shape[:3] != mask.shape:
        raise ValueError(
            f'{name} {data.shape} and mask {mask.shape} differ in matrix size: resample the first'
        )


def check_map(data: npt.NDArray, name: str, mask: npt.NDArray[np.bool_]) -> None:
    """Raise ValueError unless a map has the matrix of the mask and finite values."""
    check_grid(data, name, mask)
    check_finite(data, name)


def in_box(images: Any, name: str, mask: npt.NDArray, box: tuple[slice, slice, slice]) -> Any:
    """Images, and those of a mapping, in a box of the mask whose matrix they have; else unchanged.

    >>> mask = np.ones((4, 4, 4), bool); box = (slice(1, 3),) * 3
    >>> found = in_box({'map': np.zeros((4, 4, 4, 2)), 'b0': 3.0}, '', mask, box)
    >>> print(found['map'].shape, found['b0'])
    (2, 2, 2, 2) 3.0
    """
    if isinstance(images, Mapping):
        return {key: in_box(image, key, mask, box) for key, image in images.items()}
    if not isinstance(images, np.ndarray):
        return images
    check_grid(images, name, mask)
    return images[box]


def from_box(
    values: npt.NDArray, box: tuple[slice, slice, slice], shape: tuple[int, ...]
) -> npt.NDArray:
    """Values of a box on the whole grid, zero outside.

    >>> print(from_box(np.ones((1, 1, 1)), (slice(1, 2),) * 3, (2, 2, 2)).sum())
    1.0
    """
    out = np.zeros(shape, values.dtype)
    out[box] = values
    return out


def block_means(
    volume: npt.NDArray, block: Sequence[int], fill: Literal['edge', 'constant'] = 'edge'
) -> npt.NDArray:
    """Means over blocks of voxels; those at the far ends are filled up with their edge, or zero.

    >>> block_means(np.arange(5.0).reshape(5, 1, 1), (2, 1, 1)).ravel().tolist()
    [0.5, 2.5, 4.0]
    """
    beyond = [(0, -n % k) for n, k in zip(volume.shape, block, strict=True)]
    padded = np.pad(volume, beyond, mode=fill)
    split = [part for n, k in zip(padded.shape, block, strict=True) for part in (n // k, k)]
    return padded.reshape(split).mean(axis=(1, 3, 5))


def neighbours(axis: int, distance: int = 1) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where the lower and the upper of two voxels so far apart along an axis stand in a volume.

    >>> low, high = neighbours(2); volume = np.array([[[1, 3, 6]]])
    >>> (volume[high] - volume[low]).tolist()
    [[[2, 3]]]
    """
    before = (slice(None),) * axis
    return (*before, slice(None, -distance)), (*before, slice(distance, None))


def check_inside(data: npt.NDArray, name: str, mask: npt.NDArray[np.bool_]) -> None:
    """Raise ValueError unless an array has the shape of a mask and finite values inside it.

    >>> check_inside(np.array([1.0, np.nan]), 'residual_chi', np.array([True, True]))
    Traceback (most recent call last):
    ...
    ValueError: residual_chi is not finite in 1 voxels of the region
    """
    check_shapes('mask', mask.shape, **{name: data})
    if unknown := int(np.count_nonzero(~np.isfinite(data[mask]))):
        raise ValueError(f'{name} is not finite in {unknown} voxels of the region')


def median(values: npt.NDArray[np.floating]) -> Any:
    """The median, to the last bit that of numpy, of many values several times faster.

    Two ranks of a sample enclose it, so that only what lies between them is sorted; where they do
    not, all is.

    >>> values = np.random.default_rng(0).normal(size=300_000)
    >>> bool(median(values) == np.median(values))
    True
    """
    flat = values.ravel()
    if flat.size < 50_000:
        return np.median(flat)
    some = np.sort(flat[:: (flat.size // 8000) | 1])
    low, high = some[some.size // 2 - 250], some[some.size // 2 + 250]
    below, above, between = 0, 0, []
    for k in range(0, flat.size, 1 << 15):  # temporaries stay in the processor's cache
        part = flat[k : k + (1 << 15)]
        from_low, to_high = part >= low, part <= high
        between.append(part[from_low & to_high])
        below += np.count_nonzero(to_high) - between[-1].size
        above += np.count_nonzero(from_low) - between[-1].size
    near = np.concatenate(between)
    ranks = [(flat.size - 1) // 2 - below, flat.size // 2 - below]
    # With NaN not all are counted.
    if ranks[0] < 0 or ranks[1] >= near.size or below + near.size + above < flat.size:
        return np.median(flat)
    return np.partition(near, ranks)[ranks].mean()


def side_by_side(workers: int, *tasks: Callable[[], Any]) -> list[Any]:
    """Results of functions that are called at the same time, on up to ``workers`` threads.

    Of several that raise, the error is that of the first in order.

    >>> side_by_side(2, lambda: 1, lambda: 2)
    [1, 2]
    """
    if workers < 2:
        return [task() for task in tasks]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda task: task(), tasks))
