"""Slices of alternating sign, as some scanners reconstruct them."""

import numpy as np
import numpy.typing as npt

from precondqsm_bids.numerics.echoes import Echoes
from precondqsm_bids.numerics.unwrapping import phase_advance

Bools = npt.NDArray[np.bool_]


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
    >>> alternating_axes(Echoes.of(np.ones(phase.shape), phase, te, mask))
    (2,)
    """
    advance, spacing = phase_advance(echoes)
    first, te = echoes.signal[:, 0], echoes.echo_times
    found = []
    for axis in range(3):
        low, high = _neighbours(echoes.mask, axis)
        if low.size < 100:
            continue
        step = first[high] * first[low].conj()
        turn = np.angle(step)
        if te.size > 1:
            turn -= te[0] / spacing * np.angle(advance[high] * advance[low].conj())
        cosine = np.cos(turn)
        weight = np.sqrt(np.abs(step)).astype(np.float64)
        if np.sum(weight * cosine) < -0.3 * np.sum(weight):
            found.append(axis)
    return tuple(found)


def _neighbours(mask: Bools, axis: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Indices among the masked voxels of all pairs of neighbours along ``axis``."""
    index = np.full(mask.shape, -1, np.intp)
    index[mask] = np.arange(np.count_nonzero(mask))
    index = np.moveaxis(index, axis, 0)
    both = (index[:-1] >= 0) & (index[1:] >= 0)
    return index[:-1][both], index[1:][both]
