"""Unwrapping in space: phase advance between echoes, turns, and where they may be wrong."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from precondqsm_bids.numerics.arguments import checked
from precondqsm_bids.numerics.arrays import median, neighbours
from precondqsm_bids.numerics.bodies import bodies
from precondqsm_bids.numerics.constants import hz_per_ppm
from precondqsm_bids.numerics.dipole import bounding_box
from precondqsm_bids.numerics.echoes import TWO_PI, Echoes, fit_phase, turn_back

F32 = npt.NDArray[np.float32]
BY_FAR = 4.0
"""Precision of the field by another spacing, over that by the shortest, from which it is taken."""
PLANES = 4
"""Planes whose neighbours are looked at together: temporaries stay in the processor's cache."""


def phase_advance(echoes: Echoes) -> tuple[npt.NDArray, float]:
    """``sum_e s_(e+1) s_e*`` over the pairs of the shortest spacing, and that spacing (s).

    Pairs whose advance is not that of the first one (eddy currents, readouts that alternate) are
    left out: the mean cosine of the difference, weighted by magnitude, must exceed 0.8. Of one
    echo it is the advance since the excitation, ``s |s|`` over the echo time, with the phase
    offset in it.
    """
    signal, te = echoes.signal, echoes.echo_times
    if te.size == 1:
        return signal[:, 0] * np.abs(signal[:, 0]), float(te[0])
    return _advance_over(echoes, float(np.diff(te).min()))


def _advance_over(echoes: Echoes, wanted: float) -> tuple[npt.NDArray, float]:
    """Phase advance over neighbouring echoes of a spacing (s) that agree, and their spacing."""
    signal, spacing = echoes.signal, np.diff(echoes.echo_times)
    first, *others = np.flatnonzero(np.abs(spacing - wanted) < wanted * 0.01 + 1e-7)
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

    mask = mask[bounding_box(mask)]
    volume = np.ma.masked_array(np.zeros(mask.shape, np.float32), mask=~mask)
    volume.data[mask] = wrapped
    # Reliability sorting is deterministic only with a fixed seed (ties are broken at random).
    plane = volume.squeeze() if volume.shape.count(1) == 1 else volume  # of a single slice
    turns = np.asarray(unwrap_phase(plane, rng=0)).reshape(mask.shape)[mask]
    turns = np.round((turns - wrapped) / TWO_PI)
    return _centred(wrapped + TWO_PI * turns.astype(np.float32))


@checked
def ambiguous_fraction(
    total_field: npt.NDArray,
    field_sd: npt.NDArray,
    echo_times: npt.ArrayLike,
    field_strength: float,
    mask: npt.NDArray[np.bool_],
) -> float:
    """Fraction of neighbours whose fields differ by more than half a turn of the shortest spacing.

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
        low, high = neighbours(axis)
        for k in range(0, len(volume), PLANES):
            part = slice(k, k + PLANES)
            step = np.abs(volume[high][part] - volume[low][part])
            pair = np.minimum(weight[high][part], weight[low][part])
            jumps += float(np.sum(pair[step > limit], dtype=float))
            pairs += float(np.sum(pair, dtype=float))
    return jumps, pairs


def field_from_advance(echoes: Echoes, prediction: F32, known: F32 | None = None) -> F32:
    """First field less the prediction (ppm), from the phase advance over the shortest spacing.

    The prediction takes most wraps out of the advance where it is right, as it is at the ends of
    a container, and adds some where it is wrong, as it may be beside a sinus. Where wraps are
    left, the advance itself is unwrapped too, and the one with fewer jumps is taken. If that is
    ``known`` (ppm, but for rounding) and has no jump in one piece, nothing is unwrapped again:
    what has no jump is the same by every way.

    Where other spacings tell the field much better than the shortest one, they refine it.
    """
    return _refined(echoes, prediction, _from_shortest(echoes, prediction, known))


def _refined(echoes: Echoes, prediction: F32, field: F32) -> F32:
    """A field by the shortest spacing (ppm), refined by one that tells it better by far.

    A pair of late echoes, one close behind the other, has a field so uncertain that the phase of
    all echoes together would be turns off. Its mean over 27 voxels takes most wraps out of the
    advance over the longer spacing, and what is left is unwrapped. Of both fields that
    counts to which the phase of all echoes fits better.
    """
    wider = _telling_spacing(echoes)
    if wider is None:
        return field
    advance, spacing = _advance_over(echoes, wider)
    step = TWO_PI * np.float32(hz_per_ppm(echoes.field_strength) * spacing)
    weight = echoes.volume(np.abs(advance))
    least = np.finfo(np.float32).tiny
    mean = ndimage.uniform_filter(weight * echoes.volume(field), 3, mode='constant')
    mean /= np.maximum(ndimage.uniform_filter(weight, 3, mode='constant'), least)
    level = mean[echoes.mask]
    left = unwrap(np.angle(advance * turn_back(step * (level + prediction))), echoes.mask)
    refined = (level + left / step).astype(np.float32)
    better = _coherence(echoes, refined + prediction) > _coherence(echoes, field + prediction)
    return refined if better else field


def _coherence(echoes: Echoes, field: F32) -> float:
    """Signal of all echoes in phase with a line through it that is fitted from a first field."""
    field, offset = field.astype(np.float32), np.zeros_like(field)
    fit_phase(echoes, field, offset, True)
    found = 0.0
    for part in echoes.chunks():
        turned = echoes.demodulated(field, offset, part).real * np.abs(echoes.signal[part])
        found += float(np.sum(turned, dtype=np.float64))
    return found


def _telling_spacing(echoes: Echoes) -> float | None:
    """The spacing (s) by which the field is refined; None if the shortest tells it well."""
    spacing = np.diff(echoes.echo_times)
    if spacing.size < 2:
        return None
    size = np.abs(echoes.signal[:: max(1, len(echoes.signal) // 20_000)])
    pairs = np.minimum(size[:, 1:], size[:, :-1]) * spacing
    alike = np.abs(spacing - spacing[:, None]) < 0.01 * spacing[:, None] + 1e-7
    precision = np.array([np.median(np.sqrt((pairs[:, pair] ** 2).sum(1))) for pair in alike])
    if precision[np.argmin(spacing)] * BY_FAR >= precision.max():
        return None
    return float(spacing[precision > precision.max() / 2].min())


def _from_shortest(echoes: Echoes, prediction: F32, known: F32 | None) -> F32:
    """First field less the prediction (ppm), from the phase advance over the shortest spacing."""
    advance, spacing = phase_advance(echoes)
    step = TWO_PI * np.float32(hz_per_ppm(echoes.field_strength) * spacing)
    if not prediction.any():
        return _plain(advance, step, echoes.mask, known) / step
    amplitude = echoes.volume(np.sqrt(np.abs(advance)))

    def jumps(phase: F32) -> float:
        return count_jumps(echoes.volume(phase), amplitude, np.pi)[0]

    if known is not None and ndimage.label(echoes.mask)[1] == 1:
        plain = _plain(advance, step, echoes.mask, known)
        if not jumps(plain):
            return _centred(plain - step * prediction) / step
    wrapped = np.empty_like(prediction)

    def turn(part: slice) -> None:
        wrapped[part] = np.angle(advance[part] * turn_back(step * prediction[part]))

    echoes.in_chunks(turn)
    unwrapped = unwrap(wrapped, echoes.mask)
    if left := jumps(unwrapped):
        plain = _plain(advance, step, echoes.mask, known)
        if jumps(plain) < left:
            unwrapped = plain - step * prediction
    return unwrapped / step


def _plain(
    advance: npt.NDArray, step: np.float32, mask: npt.NDArray[np.bool_], known: F32 | None
) -> F32:
    """The advance unwrapped (rad), with the turns of a field that is known."""
    wrapped = np.angle(advance)
    if known is None:
        return unwrap(wrapped, mask)
    return wrapped + TWO_PI * np.round((step * known - wrapped) / TWO_PI)


def _centred(phase: F32) -> F32:
    """A phase (rad) moved by whole turns so that its median is within half a turn of 0."""
    return phase - TWO_PI * np.float32(np.round(median(phase) / TWO_PI))


def repair_wraps(echoes: Echoes, field: F32, offset: F32, own: npt.NDArray[np.bool_]) -> None:
    """Move the field by whole turns of the echo spacing where the known offset asks for it.

    A voxel unwrapped one turn off is ``1 / dTE`` off in frequency, which turns the first echo by
    ``TE1 / dTE``: with the offset known the coherent sum of all echoes tells the turns apart.
    """
    signal, to_rad = echoes.signal, echoes.to_rad
    step = echoes.turn
    candidates = np.array([0, -1, 1], np.float32)
    middle = np.median(field)

    def repair(part: slice) -> None:
        rotated = echoes.demodulated(field, offset, part)
        rotated *= np.abs(signal[part])
        score = np.stack(
            [(rotated * np.exp(-1j * c * step * to_rad)).real.sum(1) for c in candidates]
        )
        # With TE1 near half the spacing a turn up and a turn down look alike: the one that ends
        # nearer to the rest of the object counts.
        down, up = np.abs(field[part] - middle - step), np.abs(field[part] - middle + step)
        alike = np.abs(score[1] - score[2]) < 0.2 * (np.abs(signal[part]) ** 2).sum(1)
        score[1, alike & (up < down)] = -np.inf
        score[2, alike & (down <= up)] = -np.inf
        best = np.argmax(score, axis=0)
        # Only a clear win moves a voxel: half of what full coherence would give.
        clear = score.max(0) - score[0] > 0.5 * (np.abs(signal[part]) ** 2).sum(1)
        clear &= ~own[part]  # an offset of the voxel's own holds the turn
        field[part] += np.where(clear, candidates[best] * step, 0)

    echoes.in_chunks(repair)


def join_bodies(echoes: Echoes, field: F32, offset: F32) -> tuple[int, ...]:
    """Move each body but the largest by whole turns, field and offset in place; the turns.

    Bodies are those of the region (:func:`bodies`); pieces of one that share no face, and so are
    unwrapped apart, are moved too, and its turns are those of its largest piece.

    A body that is unwrapped alone may be any number of turns of the echo spacing off. Each turn
    moves its offset by ``2 pi TE1 / dTE``. Taken is the number that brings offset and field,
    both as medians of the 2,000 voxels that are nearest to the other body, closest together: the
    offset to half a radian, the field (a prediction taken off) to 1.5 ppm.
    """
    labels, to_rad = bodies(echoes.mask, by_faces=True), echoes.to_rad
    if labels.max() < 2:
        return ()
    turn = float(echoes.turn)
    points = np.stack(np.nonzero(echoes.mask), axis=1).astype(np.float32)
    of = labels[echoes.mask]
    main = np.flatnonzero(of == 1)
    turns = np.zeros(labels.max() + 1, int)
    for number in range(2, labels.max() + 1):
        own = np.flatnonzero(of == number)
        near_main = main[_nearest(points[main], points[own].mean(0))]
        near_own = own[_nearest(points[own], points[near_main].mean(0))]
        apart = float(np.median(field[near_own]) - np.median(field[near_main]))
        change = np.angle(
            np.exp(1j * offset[near_own]).mean() * np.exp(-1j * offset[near_main]).mean()
        )
        counts = np.arange(-8, 9)
        moved = np.angle(np.exp(1j * (change - counts * turn * float(to_rad[0]))))
        cost = (moved / 0.5) ** 2 + ((apart + counts * turn) / 1.5) ** 2
        best = int(counts[np.argmin(cost)])
        turns[number] = best
        if best:
            here, there = field[own] + np.float32(best * turn), offset[own]
            fit_phase(replace(echoes, signal=echoes.signal[own]), here, there, True)
            field[own], offset[own] = here, there
    body = bodies(echoes.mask)[echoes.mask]
    largest = (np.bincount(of[body == i]).argmax() for i in range(2, body.max() + 1))
    return tuple(int(turns[piece]) for piece in largest)


def _nearest(points: F32, to: F32, most: int = 2000) -> npt.NDArray[np.intp]:
    """Indices of the ``most`` points nearest to a position."""
    distance = ((points - to) ** 2).sum(1)
    return (
        np.argpartition(distance, most - 1)[:most]
        if distance.size > most
        else np.arange(distance.size)
    )
