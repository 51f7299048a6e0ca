"""Unwrapping in space: phase advance between echoes, turns, and where they may be wrong."""

import numpy as np
import numpy.typing as npt

from precondqsm_bids.numerics.constants import hz_per_ppm

F32 = npt.NDArray[np.float32]
TWO_PI = np.float32(2 * np.pi)


def phase_advance(signal: npt.NDArray, te: npt.NDArray) -> tuple[npt.NDArray, float]:
    """``sum_e s_(e+1) s_e*`` over the pairs of the shortest spacing, and that spacing (s).

    Pairs whose advance is not that of the first one (eddy currents, readouts that alternate) are
    left out: the mean cosine of the difference, weighted by magnitude, must exceed 0.8. Of one
    echo it is the advance since the excitation, ``s |s|`` over the echo time, with the phase
    offset in it.
    """
    if te.size == 1:
        return signal[:, 0] * np.abs(signal[:, 0]), float(te[0])
    spacing = np.diff(te)
    pairs = np.flatnonzero(spacing < spacing.min() * 1.01 + 1e-7)
    first, *others = pairs
    advance = signal[:, first + 1] * signal[:, first].conj()
    reference, kept = advance.copy(), [first]
    for j in others:
        step = signal[:, j + 1] * signal[:, j].conj()
        along = step * reference.conj()
        if np.sum(along.real, dtype=float) > 0.8 * np.sum(np.abs(along), dtype=float):
            advance += step
            kept.append(j)
    return advance, float(spacing[kept].mean())


def unwrap(wrapped: F32, mask: npt.NDArray[np.bool_]) -> F32:
    """Spatially unwrapped phase (rad) of the masked voxels, its median within half a turn of 0."""
    wrapped = wrapped.astype(np.float32)
    if np.ptp(wrapped) < np.pi:  # nothing can be wrapped
        return wrapped
    from skimage.restoration import unwrap_phase  # here: importing the nodes must stay quick

    volume = np.ma.masked_array(np.zeros(mask.shape, np.float32), mask=~mask)
    volume.data[mask] = wrapped
    # Reliability sorting is deterministic only with a fixed seed (ties are broken at random).
    turns = np.asarray(unwrap_phase(volume, rng=0))[mask]
    turns = np.round((turns - wrapped) / TWO_PI)
    unwrapped = wrapped + TWO_PI * turns.astype(np.float32)
    return unwrapped - TWO_PI * np.float32(np.round(np.median(unwrapped) / TWO_PI))


def ambiguous_fraction(
    total_field: npt.NDArray,
    field_sd: npt.NDArray,
    echo_times: npt.ArrayLike,
    field_strength: float,
    mask: npt.NDArray[np.bool_],
) -> float:
    """Share of neighbours whose fields differ by more than half a turn of the shortest spacing.

    Unwrapping takes neighbours to be less than half a turn apart. Where the echoes are so far
    apart that they are not, it may be wrong by whole turns. Only voxels whose field is known to a
    tenth of a turn count, so that noise is not taken for it.

    Parameters
    ----------
    total_field, field_sd : (X, Y, Z) ndarray
        Fitted field and its standard deviation, ppm.
    echo_times : (E,) array_like
        Echo times, s. Of a single echo, 0 and its time: its spacing is that from the excitation.
    field_strength : float
        B0, T.
    mask : (X, Y, Z) ndarray of bool
        The voxels that were fitted.

    Examples
    --------
    >>> field = np.zeros((4, 1, 1)); field[2:] = 0.4  # a turn of 20 ms at 3 T is 0.39 ppm
    >>> known, mask = np.full(field.shape, 0.01), np.ones(field.shape, bool)
    >>> print(round(ambiguous_fraction(field, known, [0.005, 0.025], 3.0, mask), 2))
    0.33
    >>> print(ambiguous_fraction(field, known, [0.005, 0.009], 3.0, mask))
    0.0
    """
    turn = 1 / (hz_per_ppm(field_strength) * float(np.diff(echo_times).min()))
    known = mask & (field_sd < 0.1 * turn)
    jumps, pairs = count_jumps(total_field, known.astype(np.float32), turn / 2)
    return jumps / max(pairs, 1)


def count_jumps(volume: npt.NDArray, weight: F32, limit: float) -> tuple[float, float]:
    """Weight of the neighbours that differ by more than ``limit``, and of all neighbours.

    The weight of a pair is the lesser of its voxels'.
    """
    jumps = pairs = 0.0
    for axis in range(3):
        step = np.moveaxis(np.abs(np.diff(volume, axis=axis)), axis, 0)
        along = np.moveaxis(weight, axis, 0)
        pair = np.minimum(along[1:], along[:-1])
        jumps += float(np.sum(pair[step > limit], dtype=float))
        pairs += float(np.sum(pair, dtype=float))
    return jumps, pairs
