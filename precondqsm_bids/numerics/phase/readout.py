"""What readouts do to the phase: slices of alternating sign, odd and even echoes that differ."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from precondqsm_bids.numerics.echo_fit import check_echoes
from precondqsm_bids.numerics.unwrapping import phase_advance

F32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
LEAST_DIFFERENCE = 0.1
"""Odd-even difference of the phase, rad (root mean square), from which it is corrected. Less
moves the field by a few 0.001 ppm that are smooth, and phase that tissue or eddy currents bend in
time must not look like it."""


class ReadoutDifference(NamedTuple):
    """What :func:`readout_difference` found."""

    difference: F32
    """Phase of the second, fourth, ... echo beyond that of the others, rad, (X, Y, Z)."""
    size: float
    """Its root mean square over the mask, rad."""
    coherence: float
    """0 to 1: how well a constant and a gradient describe it (mean resultant length)."""
    bipolar: bool
    """Whether it is large and coherent enough to be that of bipolar readouts."""


def alternating_axes(
    magnitude: npt.NDArray, phase: npt.NDArray, echo_times: npt.ArrayLike, mask: Bools
) -> tuple[int, ...]:
    """Array axes along which the sign of the signal alternates from slice to slice.

    Some scanners reconstruct volumes without centring k-space along the slices, which turns every
    second slice by half a turn, in all echoes alike. A steep field does the same in one echo but
    grows with time. So the phase between neighbouring voxels is carried back to TE = 0,

        angle(s_1(r + e) s_1*(r)) - TE1 / dTE angle(a(r + e) a*(r)),   a = sum_e s_(e+1) s_e*,

    and the mean of its cosine over all neighbours in the mask, weighted by magnitude, is near +1
    for ordinary data and near -1 for alternating ones. An axis alternates below -0.3. The phase of
    a single echo is taken as it is.

    Parameters
    ----------
    magnitude, phase : (X, Y, Z, E) ndarray
        Echoes; phase in rad.
    echo_times : (E,) array_like
        Echo times, s.
    mask : (X, Y, Z) ndarray of bool
        The object.

    Examples
    --------
    >>> te = [0.004, 0.008]
    >>> phase = 0.3 * np.indices((8, 8, 8))[0][..., None] * np.array([1, 2])
    >>> phase[:, :, 1::2] += np.pi
    >>> alternating_axes(np.ones(phase.shape), phase, te, np.ones((8, 8, 8), bool))
    (2,)
    """
    te = check_echoes(magnitude, phase, echo_times, least=1)
    signal = _signal(magnitude, phase, mask)
    return _alternating_axes(signal, te, mask)


def _alternating_axes(signal: npt.NDArray, te: npt.NDArray, mask: Bools) -> tuple[int, ...]:
    advance, spacing = phase_advance(signal, te)
    first = signal[:, 0]
    found = []
    for axis in range(3):
        low, high = _neighbours(mask, axis)
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


def _signal(magnitude: npt.NDArray, phase: npt.NDArray, mask: Bools) -> npt.NDArray:
    """Complex echoes of the masked voxels, (V, E)."""
    return (magnitude[mask] * np.exp(1j * phase[mask])).astype(np.complex64)


def _neighbours(mask: Bools, axis: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Indices among the masked voxels of all pairs of neighbours along ``axis``."""
    index = np.full(mask.shape, -1, np.intp)
    index[mask] = np.arange(np.count_nonzero(mask))
    index = np.moveaxis(index, axis, 0)
    both = (index[:-1] >= 0) & (index[1:] >= 0)
    return index[:-1][both], index[1:][both]


def readout_difference(
    magnitude: npt.NDArray, phase: npt.NDArray, echo_times: npt.ArrayLike, mask: Bools
) -> ReadoutDifference | None:
    """Phase by which the even echoes of bipolar readouts differ from the odd ones.

    Echoes that are read in alternating directions carry a phase of alternating sign, a constant
    and a gradient (eddy currents, gradient delays). For three echoes of equal spacing

        u = s_e^2 s*_(e-1) s*_(e+1)   has the phase   +-2 d(r),

    whatever field and phase offset are. With the sign of every second triplet reversed, their
    sum over the echoes (weights: inverse variance of the phase) is fitted with
    ``d = d0 + g . r`` on the circle, first the gradient from neighbouring voxels, then all four
    numbers by least squares.

    The difference is known up to half a turn, since half a turn at every second echo is what a
    field of ``1 / (2 dTE)`` does. The smaller difference is taken, unless only the other leaves
    the object's phase advance near zero (within a third of half a turn), where the scanner's
    adjustment of its frequency puts it.

    It counts as bipolar from a root mean square of 0.1 rad and a coherence of 0.5. Monopolar data
    stay far below 0.1 rad and are never touched.

    Parameters
    ----------
    magnitude, phase : (X, Y, Z, E) ndarray
        Echoes; phase in rad.
    echo_times : (E,) array_like
        Echo times, s.
    mask : (X, Y, Z) ndarray of bool
        The object.

    Returns
    -------
    ReadoutDifference or None
        None where there are no three successive echoes of equal spacing (to 1 %).

    References
    ----------
    Lu W et al., Magn Reson Med 2008;60:198 (bipolar multi-echo). Li J et al., MAGMA 2015;28:347
    (for susceptibility mapping; a constant and a gradient along all three axes suffice).

    Examples
    --------
    >>> te = np.array([2, 4, 6, 8]) * 1e-3
    >>> phase = 0.2 + 100 * te + np.zeros((12, 12, 12, 4))
    >>> phase[..., 1::2] += 0.5 + 0.1 * (np.indices((12, 12, 12))[0][..., None] - 5.5)
    >>> found = readout_difference(np.ones(phase.shape), phase, te, np.ones((12, 12, 12), bool))
    >>> print(found.bipolar, found.difference[[0, -1], 0, 0].round(3))
    True [-0.05  1.05]
    """
    te = check_echoes(magnitude, phase, echo_times)
    return _readout_difference(_signal(magnitude, phase, mask), te, mask)


def _readout_difference(
    signal: npt.NDArray, te: npt.NDArray, mask: Bools
) -> ReadoutDifference | None:
    spacing = np.diff(te)
    middles = [
        e
        for e in range(1, len(te) - 1)
        if abs(spacing[e] - spacing[e - 1]) < 0.01 * spacing[e] + 1e-7
    ]
    if not middles:
        return None
    tiny = np.finfo(np.float32).tiny
    peak = np.float32(np.abs(signal).max()) or np.float32(1)
    total = np.zeros(len(signal), np.complex64)
    weight = np.zeros(len(signal), np.float32)
    for e in middles:
        # Relative to the largest: fourth powers of any unit must stay within single precision.
        before, here, after = (signal[:, i] / peak for i in (e - 1, e, e + 1))
        triplet = here**2 * before.conj() * after.conj()
        squares = [np.maximum(np.abs(s) ** 2, 1e-12) for s in (before, here, after)]
        precision = 1 / (1 / squares[0] + 4 / squares[1] + 1 / squares[2])
        triplet *= precision / np.maximum(np.abs(triplet), tiny)
        total += triplet if e % 2 else triplet.conj()
        weight += precision
    # A strong source must not outvote the rest by its magnitude: no voxel above the median.
    limit = np.median(weight)
    total *= np.minimum(1, limit / np.maximum(weight, tiny))
    weight = np.minimum(weight, limit)

    centre = [float(index.mean()) for index in np.nonzero(mask)]
    r = np.stack(
        [index.astype(np.float32) - c for index, c in zip(np.nonzero(mask), centre, strict=True)],
        axis=1,
    )
    gradient = np.zeros(3)
    for axis in range(3):
        low, high = _neighbours(mask, axis)
        if low.size:
            gradient[axis] = np.angle(np.sum(total[high] * total[low].conj(), dtype=complex))
    left = total * np.exp(-1j * (r @ gradient.astype(np.float32)))
    coefficients = np.array([np.angle(left.sum(dtype=complex)), *gradient])
    design = np.column_stack([np.ones(len(r)), r]).astype(np.float64)
    size = np.abs(total).astype(np.float64)
    normal = (design * size[:, None]).T @ design
    normal += 1e-9 * np.diag(np.diag(normal)) + 1e-30 * np.eye(4)  # an axis of one slice
    for _ in range(5):
        left = total * np.exp(-1j * (design @ coefficients)).astype(np.complex64)
        step = np.linalg.solve(normal, design.T @ (size * np.angle(left)))
        coefficients = coefficients + step
    coherence = abs(complex(left.sum(dtype=complex))) / max(float(weight.sum(dtype=float)), 1e-30)
    coefficients = coefficients / 2
    coefficients[0] -= np.pi * np.round(coefficients[0] / np.pi)

    rms = float(np.sqrt(np.mean((design @ coefficients) ** 2)))
    if rms >= LEAST_DIFFERENCE:
        mean = _mean_advance(signal, (design @ coefficients).astype(np.float32))
        if mean.real < -0.5:  # half a turn more brings the object near the scanner's frequency
            coefficients[0] -= np.pi * (1 if coefficients[0] > 0 else -1)
            rms = float(np.sqrt(np.mean((design @ coefficients) ** 2)))
    grid = [np.arange(n) - c for n, c in zip(mask.shape, centre, strict=True)]
    parts = [g * c for g, c in zip(grid, coefficients[1:], strict=True)]
    difference = coefficients[0] + parts[0][:, None, None] + parts[1][:, None] + parts[2]
    return ReadoutDifference(
        difference.astype(np.float32),
        rms,
        coherence,
        rms >= LEAST_DIFFERENCE and coherence >= 0.5,
    )


def _mean_advance(signal: npt.NDArray, difference: F32) -> complex:
    """Mean direction of the advance between echoes, ``difference`` undone: 1 near the centre."""
    turn = np.exp(-1j * difference)
    total = 0j
    for j in range(signal.shape[1] - 1):
        step = signal[:, j + 1] * signal[:, j].conj() * (turn.conj() if j % 2 else turn)
        total += complex(step.sum(dtype=complex)) / max(
            float(np.abs(step).sum(dtype=float)), 1e-30
        )
    return total / (signal.shape[1] - 1)
