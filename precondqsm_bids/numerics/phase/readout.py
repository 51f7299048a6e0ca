"""Slices of alternating sign, as some scanners reconstruct them."""

import numpy as np
import numpy.typing as npt

from precondqsm_bids.numerics.arrays import neighbours
from precondqsm_bids.numerics.dipole import bounding_box
from precondqsm_bids.numerics.echoes import Echoes, in_place
from precondqsm_bids.numerics.unwrapping import phase_advance

Bools = npt.NDArray[np.bool_]
Complex = npt.NDArray[np.complexfloating]
PLANES = 4
"""Planes whose neighbours are looked at together: temporaries stay in the processor's cache."""


def alternating_axes(echoes: Echoes) -> tuple[int, ...]:
    """Array axes along which the sign of the signal alternates from slice to slice.

    Some scanners reconstruct volumes without centring k-space along the slices, which turns every
    second slice by half a turn, in all echoes alike. A steep field does the same in one echo but
    grows with time. So the phase between neighbouring voxels is carried back to TE = 0,

        angle(s_1(r + e) s_1*(r)) - TE1 / dTE angle(a(r + e) a*(r)),   a = sum_e s_(e+1) s_e*,

    and the mean of its cosine over all neighbours in the mask, weighted by magnitude, is near +1
    for ordinary data and near -1 for alternating ones. An axis alternates below -0.3. The phase of
    a single echo is taken as it is.

    >>> te, mask = np.array([0.004, 0.008]), np.ones((8, 8, 8), bool)
    >>> phase = 0.3 * np.indices((8, 8, 8))[0][..., None] * np.array([1, 2])
    >>> phase[:, :, 1::2] += np.pi
    >>> alternating_axes(Echoes.of((np.ones(phase.shape), phase), te, mask))
    (2,)
    """
    advance, spacing = phase_advance(echoes)
    te = echoes.echo_times
    part = te[0] / spacing if te.size > 1 else 0.0
    box = bounding_box(echoes.mask)
    mask = echoes.mask[box]
    first, advance = (in_place(values, mask) for values in (echoes.signal[:, 0], advance))
    found = []
    for axis in range(3):
        number, along, weight = _alternation(mask, first, advance, part, axis)
        if number >= 100 and along < -0.3 * weight:
            found.append(axis)
    return tuple(found)


def _alternation(
    mask: Bools, first: Complex, advance: Complex, part: float, axis: int
) -> tuple[int, float, float]:
    """Neighbours along ``axis``, their weighted cosines, and their weights, a few planes at a
    time."""
    number, sums = 0, np.zeros(2)
    low, high = neighbours(axis)
    both = mask[low] & mask[high]
    for k in range(0, len(both), PLANES):
        planes = slice(k, k + PLANES)
        where = both[planes]
        one, two = (volume[high][planes][where] for volume in (first, advance))
        one *= first[low][planes][where].conj()
        turn = np.angle(one)
        if part:
            two *= advance[low][planes][where].conj()
            turn -= part * np.angle(two)
        weight = np.sqrt(np.abs(one)).astype(np.float64)
        number += one.size
        sums += np.sum(weight * np.cos(turn)), np.sum(weight)
    return number, float(sums[0]), float(sums[1])
