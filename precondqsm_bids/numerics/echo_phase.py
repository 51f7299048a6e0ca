"""Phase per echo: what eddy currents, delays and readouts add to each echo alone.

Eddy currents, gradient delays and the alternating readouts of bipolar echoes add to the phase of
each echo a constant and a gradient in space that are no straight line in TE. Free fits of field
and offset leave them in their residual, where they are found.
"""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from precondqsm_bids.numerics.arrays import side_by_side
from precondqsm_bids.numerics.echoes import Echoes, fit_phase, sample, turn_back

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
MOST_VOXELS = 50_000
"""Voxels that the rounds of free fits take, evenly over the mask: four numbers an echo are
sought."""
LEAST_COHERENCE = 0.5
"""Mean of an echo's signal along the phase of the fit, over that of its magnitude, below which the
echo is noise."""
SIGNIFICANT = 10.0
"""Root mean square phase of an echo over its standard error from which it is taken off."""
LEAST_SIZE = 0.005
"""Smallest root mean square phase that is taken off, rad: less moves the field by 0.0005 ppm."""
ROUNDS = 4
"""Rounds of a free fit of field and offset and a fit of what it leaves."""


class EchoPhase(NamedTuple):
    """Result of :func:`echo_phase`."""

    coefficients: F64
    """(E, 4): constant at the centre of the mask, rad, and gradient along the array axes,
    rad/mm, of each echo."""
    centre: F64
    """(3,) centre of the mask, voxel indices."""
    size: F64
    """(E,) root mean square over the voxels of the fit, rad."""
    field: F64
    """(4,) constant, ppm, and gradient, ppm/mm, that the first field has to be given: which part
    of the phase is linear in TE is a matter of convention."""


def positions(mask: Bools, voxel_size: npt.ArrayLike) -> tuple[F64, F32]:
    """Centre of the mask (voxel indices), and 1 and the position relative to it, mm, (V, 4)."""
    index = np.nonzero(mask)
    centre = np.array([axis.mean() for axis in index])
    columns = [
        ((axis - c) * size).astype(np.float32)
        for axis, c, size in zip(index, centre, np.asarray(voxel_size, float), strict=True)
    ]
    return centre, np.stack([np.ones_like(columns[0]), *columns], axis=1)


def echo_phase(
    echoes: Echoes, field: F32, voxel_size: npt.ArrayLike = (1.0, 1.0, 1.0)
) -> EchoPhase:
    """Constant and gradient of the phase of each echo, beyond what is linear in TE.

        angle(S_e) = phi0(r) + 2 pi gammabar B0 TE_e field(r) + a_e + b_e . r

    Of three echoes or more; the first field (V,), ppm, must be right to a part of a turn of every
    spacing, but for a constant and a gradient, and the voxel size is in mm.

    Field and offset are free in each voxel. Their fit leaves of ``a_e + b_e . r`` what is neither
    constant nor linear in TE, and four numbers for each echo are fitted to it robustly in up to
    50,000 voxels of the mask (three rounds without what is beyond three deviations), four times in
    all, since voxels of different decay weight the echoes differently. Before the first round each
    echo is brought in line with the first field on the circle, so that a phase of any size does
    not look like a turn.

    What is constant or linear in TE, a harmonic field and offset, cannot be told from the
    others. It is taken such that the phases are small: from the constants a line in TE is taken
    off that leaves the least on the circle, from the gradients their weighted line. So half a
    turn at every second echo, which is what a field of ``1 / (2 dTE)`` does, counts as field. What
    is below 0.005 rad or ten standard errors is left alone, and so is an echo of noise.

    Memory: 80 bytes per voxel, and 30 E bytes for each of up to 50,000; no Fourier transform.

    References
    ----------
    Lu W et al., Magn Reson Med 2008;60:198 (bipolar readouts: a constant and a gradient). Li J et
    al., MAGMA 2015;28:347 (the same for susceptibility mapping).

    Examples
    --------
    >>> te = np.array([2, 4, 6, 8]) * 1e-3
    >>> mask = np.ones((12, 12, 12), bool)
    >>> x = np.nonzero(mask)[0][:, None] - 5.5
    >>> phase = 0.2 + 40 * te + np.array([0, 1, 0, 1]) * (0.5 + 0.1 * x)  # bipolar
    >>> echoes = Echoes(np.exp(1j * phase).astype(np.complex64), te, mask, 3.0)
    >>> found = echo_phase(echoes, np.full(len(x), 0.05, np.float32))
    >>> print(found.coefficients[:, :2].round(3).tolist())
    [[-0.1, -0.02], [0.3, 0.06], [-0.3, -0.06], [0.1, 0.02]]
    """
    mask, to_rad = echoes.mask, echoes.to_rad
    centre, design = positions(mask, voxel_size)
    chosen = sample(mask, MOST_VOXELS)
    used, r = echoes.signal.T[:, chosen].T, design[chosen].astype(np.float64)
    power = used.real**2 + used.imag**2
    weight = np.minimum(power, np.median(power, axis=0))
    found = _aligned(echoes, field, design, np.asarray(voxel_size, float))
    turned = replace(echoes, signal=used * turn_back((found @ r.T).T))
    across = np.ascontiguousarray(r.T)
    for _ in range(ROUNDS):
        own, offset = field[chosen].copy(), np.zeros(len(used), np.float32)
        fit_phase(turned, own, offset, True)
        left = turned.demodulated(own, offset)
        angle = np.angle(left)
        planes = [partial(_plane, x, w, across) for x, w in zip(angle.T, weight.T, strict=True)]
        step = np.stack(side_by_side(echoes.workers, *planes))
        found += step
        turned.signal[...] *= turn_back((step @ r.T).T)
    # An echo that is noise everywhere has no phase, and no say in what is linear in TE.
    coherent = np.maximum(left.real.mean(0, dtype=float), 0)
    known = coherent > LEAST_COHERENCE * np.abs(left).mean(0, dtype=float)
    found, line = _without_line(found, to_rad.astype(float), np.where(known, coherent, 0) ** 2)
    error = 1.4826 * np.median(np.abs(angle), axis=0)
    # Four voxels are described by four numbers whatever they are.
    error = error * np.sqrt(4 / (len(used) - 4)) if len(used) > 4 else np.full(len(found), np.inf)
    size = np.sqrt(np.mean((r @ found.T) ** 2, axis=0))
    found[~known | (size < np.maximum(SIGNIFICANT * error, LEAST_SIZE))] = 0
    if not found.any():
        line[:] = 0
    size = np.sqrt(np.mean((r @ found.T) ** 2, axis=0))
    return EchoPhase(found, centre, size, line)


def _aligned(echoes: Echoes, field: F32, design: F32, size: F64) -> F64:
    """Constant and gradient of each echo against the first, the first field taken off, (E, 4).

    The gradient from neighbouring voxels, so that it may be of many turns over the object.
    """
    signal, to_rad = echoes.signal, echoes.to_rad
    out = np.zeros((len(to_rad), 4))
    first = signal[:, 0].conj()

    def align(e: int) -> None:
        turned = np.empty_like(first)
        for part in echoes.chunks():
            step = signal[part, e] * first[part]
            step /= np.sqrt(np.maximum(np.abs(step), np.finfo(np.float32).tiny))
            turned[part] = step * turn_back(field[part] * (to_rad[e] - to_rad[0]))
        volume = echoes.volume(turned)
        reverse = volume.conj()
        for axis in range(3):
            along, back = np.moveaxis(volume, axis, 0), np.moveaxis(reverse, axis, 0)
            total = np.sum(along[1:] * back[:-1], dtype=complex)
            out[e, 1 + axis] = np.angle(total) / size[axis]
        turned *= turn_back(design[:, 1:] @ out[e, 1:].astype(np.float32))
        out[e, 0] = np.angle(np.sum(turned, dtype=complex))

    side_by_side(echoes.workers, *(partial(align, e) for e in range(1, len(to_rad))))
    return out


def _plane(values: npt.NDArray, weight: npt.NDArray, r: F64) -> npt.NDArray:
    """Constant and gradient of ``values`` by weighted least squares, outliers left out.

    ``r`` is 1 and the positions, (4, V).
    """
    kept = weight
    for _ in range(4):
        normal = (r * kept) @ r.T
        normal += 1e-9 * np.diag(np.diag(normal)) + 1e-30 * np.eye(4)  # an axis of one slice
        plane = np.linalg.solve(normal, r @ (kept * values))
        left = np.abs(values - plane @ r)
        kept = weight * (left < 3 * 1.4826 * np.median(left) + 1e-6)
    return plane


def _without_line(found: F64, to_rad: F64, power: F64) -> tuple[F64, F64]:
    """The phases less a line in TE, and the slope of the line, (4,), ppm and ppm/mm.

    The constants are known but for whole turns; the slope among those of a turn of the shortest
    spacing is the one that leaves the least on the circle.
    """
    if not power.any():
        return np.zeros_like(found), np.zeros(4)
    weight = power / power.sum()
    half = np.pi / np.diff(to_rad).min()
    slopes = np.linspace(-half, half, 2001)
    slopes = slopes[np.argsort(np.abs(slopes), kind='stable')]
    turned = np.exp(1j * (found[:, 0] - slopes[:, None] * to_rad))
    mean = np.angle(turned @ weight)
    left = np.angle(turned * np.exp(-1j * mean[:, None]))
    cost = (left**2) @ weight
    best = int(np.flatnonzero(cost <= cost.min() + 1e-6)[0])
    phases = found.copy()
    phases[:, 0] = left[best]
    design = np.column_stack([np.ones_like(to_rad), to_rad])
    root = np.sqrt(weight)[:, None]
    lines = np.linalg.lstsq(design * root, phases * root, rcond=None)[0]
    slope = lines[1].copy()
    slope[0] += slopes[best]
    return phases - design @ lines, slope


def take_off(echoes: Echoes, phase: EchoPhase, voxel_size: npt.ArrayLike) -> F32:
    """Take the phases off the echoes, in place; the change of the field, ppm."""
    design = positions(echoes.mask, voxel_size)[1]
    coefficients = phase.coefficients.astype(np.float32)

    def turn(part: slice) -> None:
        echoes.signal[part] *= turn_back((coefficients @ design[part].T).T)

    echoes.in_chunks(turn)
    return design @ phase.field.astype(np.float32)


def left_phase(
    phase: npt.NDArray,
    to_rad: npt.ArrayLike,
    field: npt.NDArray,
    r2star_te: npt.NDArray,
    own: npt.NDArray | float = 0.0,
) -> F32:
    """Phase of each echo that neither field nor phase offset explains, rad.

        angle(exp(i (phase_e - own_e - 2 pi gammabar B0 TE_e field - phi0)))

    ``phi0`` is free in each voxel: the mean of the rest over the echoes on the circle, each by its
    power ``exp(-2 R2* TE_e)``. What is left is noise where the voxel has one field, and otherwise
    what moves or flows between the echoes, fat, ghosts, or a wall of a strong source.

    Parameters
    ----------
    phase : (..., E) ndarray
        Phase of the convention, rad.
    to_rad : (E,) array_like
        ``2 pi gammabar B0 TE``, rad/ppm.
    field : (...) ndarray
        ppm.
    r2star_te : (..., E) ndarray
        R2* TE.
    own : (..., E) ndarray
        What was taken off each echo (:func:`echo_phase`), rad.

    Examples
    --------
    >>> to_rad, own = np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.1, 0.0])
    >>> phase = 0.5 + 0.2 * to_rad + own
    >>> left_phase(phase, to_rad, np.float32(0.2), 0 * to_rad, own).round(3) + 0
    array([0., 0., 0.], dtype=float32)
    >>> left_phase(phase, to_rad, np.float32(0.2), 0 * to_rad).round(2)
    array([-0.03,  0.07, -0.03], dtype=float32)
    """
    turns = phase - own - np.asarray(field)[..., None] * np.asarray(to_rad)
    signal = turn_back(-turns.astype(np.float32))
    mean = np.sum(signal * np.exp(-2 * r2star_te), axis=-1, keepdims=True)
    return np.angle(signal * mean.conj()).astype(np.float32)
