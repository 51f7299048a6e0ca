"""Contrast prior: cells of the joint histogram of images and maps, in windows of space."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from precondqsm_bids.numerics.arguments import checked
from precondqsm_bids.numerics.prior.basis import Basis, Overlap
from precondqsm_bids.numerics.prior.lattice import hats, lattice

F32 = npt.NDArray[np.float32]

TRANSITION = 0.5
"""Half width of the transition between two contrast cells, in widths of the narrower."""


class Scale(NamedTuple):
    """One scale of the contrast prior: histogram bins within windows of space."""

    spacing: float
    """Distance of the nodes of the lattice, the width of a window at half its height, in cube
    roots of the region's volume; infinite for the whole region."""
    bins: tuple[int, ...]
    """Bins per contrast."""
    size: float = 1.0
    """Expected size of its constants, relative to three quarters of that of the local field."""


SCALES = (
    Scale(np.inf, (24, 12), 1.5),
    Scale(3 / 8, (8, 8), 0.9),
    Scale(3 / 16, (6, 6), 0.6),
    Scale(3 / 32, (4, 4), 0.3),
)
"""Nodes 40, 20 and 10 mm apart in a brain of 1.2 l, and 5, 2.5 and 1 mm in one of 2 ml (rat)."""

LEAST_SPACING = 2.0
"""Distance of the nodes in voxels (cube root of a voxel's volume), at least: at one voxel each
would be a coefficient of its own, which tells nothing of its contrast."""


def node_spacing(scale: Scale, mask: npt.NDArray[np.bool_], voxel_size: npt.ArrayLike) -> float:
    """Distance of the nodes of a scale in a region, mm: relative to its size, but of two voxels.

    The field does not change when an object is scaled with all that is in it, since the dipole
    kernel has no length. So a map may not change either, whatever size the header states: windows
    follow the region.

    >>> round(node_spacing(Scale(0.25, (4,)), np.ones((20, 20, 20), bool), (3, 3, 3)), 3)
    15.0
    """
    voxel = float(np.prod(np.asarray(voxel_size, float)))
    size = float(np.cbrt(np.count_nonzero(mask) * voxel))
    return max(scale.spacing * size, LEAST_SPACING * float(np.cbrt(voxel)))


def bin_edges(values: npt.NDArray, bins: int) -> npt.NDArray[np.float64]:
    """Inner edges of ``bins`` bins, half by volume (quantiles) and half by value range.

    Quantiles alone merge small objects of strong contrast, equal steps alone waste bins on
    values that hardly occur. The range ends at the 0.1st and 99.9th percentile.

    >>> bin_edges(np.arange(101.0), 4).round(1)
    array([33.4, 50. , 66.6])
    """
    by_value = (bins - 1) // 2 + (bins - 1) % 2
    by_volume = bins - 1 - by_value
    volumes = np.linspace(0, 100, by_volume + 2)[1:-1]
    low, high, *quantiles = np.percentile(values, [0.1, 99.9, *volumes])
    equal = np.linspace(low, high, by_value + 2)[1:-1]
    edges = np.unique(np.concatenate([equal, quantiles]))
    return edges[edges > np.min(values)]  # below the least value there is nothing to tell apart


@checked
def contrast_cells(
    contrasts: Sequence[npt.NDArray],
    mask: npt.NDArray[np.bool_],
    voxel_size: npt.ArrayLike,
    scales: Sequence[Scale] = SCALES,
) -> list[Basis]:
    """Cells of the contrasts' joint histogram times windows of space, one basis per scale.

    Static dephasing says that susceptibility is a function of R2'; here the field learns the
    function, as one constant per cell, coarse over the whole region and finer in windows of
    space, which overlap smoothly (:mod:`~precondqsm_bids.numerics.prior.lattice`): of each scale
    a node is at the centre of the region, so that the direction in which an axis is stored does
    not matter.

    Parameters
    ----------
    contrasts : sequence of (X, Y, Z) ndarray
        Maps on one grid, such as R2* and the first magnitude, any unit. NaN where a map is not
        known, as R2* of voxels without a second echo: they are a bin of their own, and not the
        lowest.
    mask : (X, Y, Z) ndarray of bool
        Region of interest.
    voxel_size : (3,) array_like
        Voxel size, mm.
    scales : sequence of Scale
        Lattices and bins.

    Returns
    -------
    list of Basis

    Examples
    --------
    >>> r2star = np.arange(8.0).reshape(2, 2, 2)
    >>> cells = contrast_cells([r2star], np.ones((2, 2, 2), bool), (1, 1, 1),
    ...                        [Scale(np.inf, (4,))])
    >>> cells[0].parcels
    4
    """
    if not mask.any():
        raise ValueError('the mask is empty: it has no contrast')
    inside = np.nonzero(mask)
    values = [np.asarray(contrast)[mask] for contrast in contrasts]
    # Few images have more voxels than 32 bits can number.
    number: type[np.signedinteger] = np.int32 if mask.size < 2**31 else np.int64
    voxels = np.flatnonzero(mask).astype(number)
    bases = []
    for scale in scales:
        places = [_places(value, bins) for value, bins in zip(values, scale.bins, strict=False)]
        basis = _soft_cells(places, voxels, mask)
        if np.isfinite(spacing := node_spacing(scale, mask, voxel_size)):
            first, second, third = (
                hats(
                    (np.arange(number) - np.mean(index)) * size,
                    slice(int(index.min()), int(index.max()) + 1),
                    spacing,
                )
                for number, index, size in zip(
                    mask.shape, inside, np.asarray(voxel_size, float), strict=True
                )
            )
            parts = [(voxels, basis.labels[mask]), *(o[:2] for o in basis.overlaps)]
            basis = basis._replace(lattice=lattice((first, second, third), parts, mask.shape))
        bases.append(basis._replace(gain=np.full(basis.parcels, scale.size)))
    return bases


class _Places(NamedTuple):
    """Where the voxels stand in the bins of one contrast."""

    bins: npt.NDArray[np.int64]
    """Bin of each voxel."""
    other: npt.NDArray[np.int64]
    """The neighbouring bin at its nearest edge."""
    fraction: F32
    """Fraction of that bin."""
    number: int
    """Number of bins."""


def _places(values: npt.NDArray, bins: int) -> _Places:
    """Bins of one contrast; values that are not known (NaN) are a bin of their own, the last."""
    known = np.isfinite(values)
    if known.all():
        return _Places(*_soft_bin(values, bin_edges(values, bins)), bins)
    found = np.full(values.size, bins, np.int64)
    other, fraction = found.copy(), np.zeros(values.size, np.float32)
    if known.any():
        found[known], other[known], fraction[known] = _soft_bin(
            values[known], bin_edges(values[known], bins)
        )
    return _Places(found, other, fraction, bins + 1)


def _soft_bin(
    values: npt.NDArray, edges: npt.NDArray
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], F32]:
    """Bin of each value, the neighbouring bin at its nearest edge, and the fraction of that bin.

    The fraction is a half on the edge and falls to zero at ``TRANSITION`` widths from it: a value
    that moves across an edge moves from one bin to the other gradually. Without this the rounding
    of a float decides which cell a voxel belongs to, and by how much its prior jumps.
    """
    edges, values = edges.astype(np.float32), values.astype(np.float32, copy=False)
    bins = np.digitize(values, edges)
    if edges.size == 0:
        return bins, bins, np.zeros(values.size, np.float32)
    width = np.diff(edges) if edges.size > 1 else np.array([np.ptp(values) / 2])
    width = np.minimum(np.append(width[0], width), np.append(width, width[-1]))
    reach = np.maximum(TRANSITION * width, np.finfo(np.float32).tiny)
    below, above = np.maximum(bins - 1, 0), np.minimum(bins, edges.size - 1)
    from_below = np.abs(values - edges[below]) / reach[below]
    from_above = np.abs(values - edges[above]) / reach[above]
    from_below[bins == 0] = from_above[bins == edges.size] = np.inf
    other = np.where(from_below < from_above, bins - 1, bins + 1)
    fraction = np.float32(0.5) * np.clip(1 - np.minimum(from_below, from_above), 0, None)
    return bins, other, fraction


def _soft_cells(
    places: Sequence[_Places], voxels: npt.NDArray[np.signedinteger], mask: npt.NDArray[np.bool_]
) -> Basis:
    """Constants of the cells of the histogram, with overlaps where a voxel has two bins."""
    entries = []
    for corner in np.ndindex(*(2,) * len(places)):
        key, weight = np.zeros(voxels.size, np.int64), np.ones(voxels.size, np.float32)
        for second, (here, other, fraction, number) in zip(corner, places, strict=True):
            key = key * number + (other if second else here)
            weight = weight * (fraction if second else 1 - fraction)
        used = np.flatnonzero(weight > 0) if any(corner) else slice(None)
        entries.append((key[used], weight[used], voxels[used]))
    used = np.zeros(int(np.prod([place.number for place in places])), bool)
    for key, _, _ in entries:
        used[key] = True
    cell_of = np.cumsum(used, dtype=np.int32) - 1
    own, *others = (cell_of[key] for key, _, _ in entries)
    labels, weight = np.full(mask.shape, -1, np.int32), np.zeros(mask.shape, np.float32)
    labels[mask], weight[mask] = own, entries[0][1]
    overlaps = tuple(
        Overlap(at, label, w) for label, (_, w, at) in zip(others, entries[1:], strict=True)
    )
    return Basis(labels, weight, 0.0, overlaps)
