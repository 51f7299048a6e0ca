"""Echo fitting: total field, its standard deviation, R2* and S0 from multi-echo data.

The model of a voxel's complex signal is

    S(TE) = S0 exp(-R2* TE) exp(i (phi0 + 2 pi gammabar B0 field TE))

with complex Gaussian noise of standard deviation ``sigma`` in each channel. For such noise
maximum likelihood is least squares of the complex signal, which is what is solved here: first
for the phase (field and offset), then, the phase being known, for R2* and S0 on the demodulated
signal, and for the field again. The demodulated signal has zero-mean noise, so late echoes that
hold only noise do not bias R2* as they would bias a fit of magnitudes.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from precondqsm_bids.numerics.bodies import bodies
from precondqsm_bids.numerics.constants import hz_per_ppm
from precondqsm_bids.numerics.dipole import bounding_box
from precondqsm_bids.numerics.echo_phase import EchoPhase, echo_phase, take_off
from precondqsm_bids.numerics.noise import (
    Air,
    air_around,
    local_level,
    noise_from_residual,
    noise_inside,
    without_floor,
)
from precondqsm_bids.numerics.phase_fit import chunks, fit_phase, in_chunks, phase_line, turn_back
from precondqsm_bids.numerics.phase_offset import Offset, smooth_offset
from precondqsm_bids.numerics.unwrapping import count_jumps, phase_advance, unwrap

F32 = npt.NDArray[np.float32]
TWO_PI = np.float32(2 * np.pi)
MIXED = 3.0
"""Mean squared residual, over the noise variance, above which one field and one rate do not
describe a voxel."""
LEAST_SNR = 8.0
"""Length of the signal of all echoes over the noise below which the phase may be turns off."""
LEAST_NOISE = 1e-3
"""Least noise that is found, over the median signal of about 1: no scan has less."""
DEEPEST = np.float32(5.0)
"""Largest ``R2* TE1``: a first echo below exp(-5) of S0 cannot be measured."""


class EchoFit(NamedTuple):
    """What :func:`fit_echoes` found; maps are (X, Y, Z) and zero outside the mask."""

    total_field: F32
    """Relative field, ppm."""
    field_sd: F32
    """Standard deviation of the field, ppm."""
    r2star: F32
    """Effective transverse relaxation rate, 1/s; zero where it is not reliable."""
    s0: F32
    """Signal at TE = 0, in the unit of the magnitude; zero where it is not reliable."""
    phase_offset: F32
    """Phase at TE = 0 as the field fit used it, rad."""
    usable_echoes: npt.NDArray[np.uint8]
    """Number of echoes whose fitted signal exceeds twice the noise."""
    reliable: npt.NDArray[np.bool_]
    """Voxels whose R2* has at least two usable echoes, their own or pooled with neighbours'."""
    misfit: F32
    """Root mean square of the residual over ``noise_sd``: 1 where the model describes the voxel
    and the noise is that of the median voxel."""
    noise_sd: float
    """Noise of one channel (real or imaginary), in the unit of the magnitude."""
    noise_source: str
    """``given``, ``phase`` (what the phase fit leaves) or ``magnitude`` (its second
    differences)."""
    air: Air | None
    """Noise of the air around the object and its channels, where it is air."""
    offset_model: str
    """``quartic`` or ``spline`` (smooth phase offset), or ``voxelwise``."""
    offset_misfit: float
    """Root mean square of what the smooth offset leaves in blocks of voxels, rad."""
    own_offset: npt.NDArray[np.bool_]
    """Voxels whose offset is free: all with ``voxelwise``, those at a pole with ``spline``."""
    echo_phase: EchoPhase | None
    """Constant and gradient of the phase of each echo that were taken off; None for two."""
    body_turns: tuple[int, ...]
    """Turns that each body but the largest was moved by, so that its phase offset continues that
    of the largest; empty for one body."""


class OneEcho(NamedTuple):
    """What :func:`field_of_one_echo` found; maps are (X, Y, Z) and zero outside the mask."""

    total_field: F32
    """Relative field, ppm, with the phase offset in it."""
    field_sd: F32
    """Standard deviation of the field by the noise, ppm."""
    usable_echoes: npt.NDArray[np.uint8]
    """1 where the magnitude exceeds twice the noise."""
    noise_sd: float
    """Noise of one channel (real or imaginary), in the unit of the magnitude."""
    noise_source: str
    """``given``, ``air`` or ``magnitude`` (its second differences inside the object)."""


def check_echoes(
    magnitude: npt.NDArray, phase: npt.NDArray, echo_times: npt.ArrayLike, least: int = 2
) -> npt.NDArray[np.float64]:
    """Echo times (s) as an array, after checking them and the data against each other.

    Raises
    ------
    ValueError
        Shapes differ, fewer than ``least`` echoes, or echo times that are not increasing seconds.
    """
    te = np.asarray(echo_times, dtype=np.float64)
    if magnitude.shape != phase.shape:
        raise ValueError(f'magnitude {magnitude.shape} and phase {phase.shape} differ in shape')
    if magnitude.ndim != 4 or te.shape != magnitude.shape[-1:]:
        raise ValueError(
            f'magnitude must be (X, Y, Z, echoes) with one echo time each: '
            f'shape {magnitude.shape}, {te.size} echo times'
        )
    if te.size < least:
        raise ValueError(
            f'fitting the field and R2* takes at least two echoes, got {te.size}; the field of '
            'one echo is field_of_one_echo'
        )
    if not np.all(np.isfinite(te)) or te[0] <= 0 or np.any(np.diff(te) <= 0):
        raise ValueError(f'echo times must be positive and increasing, in seconds: {te.tolist()}')
    if te[-1] > 1:
        raise ValueError(f'echo times are in seconds, these look like milliseconds: {te.tolist()}')
    return te


def field_of_one_echo(
    magnitude: npt.NDArray,
    phase: npt.NDArray,
    echo_time: float,
    field_strength: float,
    mask: npt.NDArray[np.bool_],
    *,
    object_mask: npt.NDArray[np.bool_] | None = None,
    predicted_field: npt.NDArray | None = None,
    noise_sd: float | None = None,
) -> OneEcho:
    """Field of a single echo: its phase, unwrapped in space, over its echo time.

    ``field = (phase - phi0) / (2 pi gammabar B0 TE)``, and one echo does not tell ``phi0``. The
    offset of coil and transmitter is smooth over the object; as far as it is harmonic, background
    removal takes it for the field of sources outside. R2* and S0 are not known.

    The standard deviation is that of the phase, ``sigma / magnitude``. It holds no more than the
    noise: a voxel that unwrapping puts a turn off does not show.

    Parameters
    ----------
    magnitude : (X, Y, Z) ndarray
        Measured magnitude, any unit.
    phase : (X, Y, Z) ndarray
        Measured phase, rad.
    echo_time : float
        s
    field_strength : float
        B0, T.
    mask : (X, Y, Z) ndarray of bool
        Voxels whose field is wanted.
    object_mask : (X, Y, Z) ndarray of bool, optional
        The whole object, around which air may be; ``mask`` if omitted.
    predicted_field : (X, Y, Z) ndarray, optional
        As for :func:`fit_echoes`: it may help unwrapping and enters nothing else.
    noise_sd : float, optional
        Noise of one channel; from the air (:func:`~precondqsm_bids.numerics.noise.air_around`), or
        from the object itself where there is none
        (:func:`~precondqsm_bids.numerics.noise.noise_inside`).

    Returns
    -------
    OneEcho

    Raises
    ------
    ValueError
        See :func:`check_echoes`; also for an empty mask or values that are not finite.

    References
    ----------
    Herraez et al., Appl Opt 2002;41:7437 (unwrapping). Gudbjartsson & Patz, Magn Reson Med
    1995;34:910 (noise of magnitude and phase).

    Examples
    --------
    >>> phase = np.full((4, 4, 4), 2 * np.pi * 127.729 * 0.05 * 0.02)
    >>> one = field_of_one_echo(np.ones((4, 4, 4)), phase, 0.02, 3.0, np.ones((4, 4, 4), bool),
    ...                         noise_sd=0.01)
    >>> print(one.total_field[0, 0, 0].round(4), one.field_sd[0, 0, 0].round(5))
    0.05 0.00062
    """
    te = check_echoes(magnitude[..., None], phase[..., None], [echo_time], least=1)
    if not mask.any():
        raise ValueError('the mask is empty: there is no voxel whose field could be found')
    signal, unit = _masked_signal(magnitude[..., None], phase[..., None], mask, None)
    noise_source = 'given'
    if noise_sd is None:
        air = air_around(magnitude[..., None], mask if object_mask is None else object_mask)
        noise_sd = air.noise_sd if air else noise_inside(magnitude, mask)
        noise_source = 'air' if air else 'magnitude'
    amplitude = np.abs(signal[:, 0])
    relative = max(noise_sd / unit, 1e-6)

    prediction = np.zeros(len(signal), np.float32)
    if predicted_field is not None:
        prediction += predicted_field[mask]
    field = _field_from_advance(signal, te, field_strength, mask, prediction) + prediction
    turn = 1 / (hz_per_ppm(field_strength) * echo_time)
    sd = relative / np.maximum(amplitude, np.finfo(np.float32).tiny) * turn / TWO_PI
    total_field, field_sd = np.zeros(mask.shape, np.float32), np.zeros(mask.shape, np.float32)
    total_field[mask], field_sd[mask] = field, np.minimum(sd, turn)
    usable = np.zeros(mask.shape, np.uint8)
    usable[mask] = amplitude > 2 * relative
    return OneEcho(total_field, field_sd, usable, float(relative * unit), noise_source)


def fit_echoes(
    magnitude: npt.NDArray,
    phase: npt.NDArray,
    echo_times: npt.ArrayLike,
    field_strength: float,
    mask: npt.NDArray[np.bool_],
    *,
    object_mask: npt.NDArray[np.bool_] | None = None,
    voxel_size: npt.ArrayLike = (1.0, 1.0, 1.0),
    predicted_field: npt.NDArray | None = None,
    noise_sd: float | None = None,
    workers: int = 1,
) -> EchoFit:
    """Fit the complex multi-echo model in every voxel of ``mask``.

    1. The phase advance between neighbouring echoes (all pairs of the shortest spacing that
       agree, each weighted by its magnitudes) is unwrapped in space and gives a first field.
    2. The magnitude is freed of the floor that a root sum of squares of channels has, where the
       air tells it (:func:`~precondqsm_bids.numerics.noise.air_around`). Of three echoes or more,
       the constant and gradient of the phase of each echo that are not
       linear in TE are taken off: :func:`~precondqsm_bids.numerics.echo_phase.echo_phase`.
    3. Gauss-Newton on the complex residual refines field and phase offset together. What it
       leaves is the noise. Bodies that are not connected are unwrapped each for itself: each is
       moved by the whole turns that let its offset continue that of the largest body.
    4. The offset is smooth over the object
       (:func:`~precondqsm_bids.numerics.phase_offset.smooth_offset`): wraps between echoes that
       it exposes are repaired, and the field is fitted again with the offset fixed, which is
       where the precision in fast-decaying voxels comes from. Where nothing smooth describes it,
       as at a pole of the receive phase, it stays free in the voxel.
    5. R2* and S0 by least squares of the demodulated signal, with the dephasing by the field's
       own gradient in the model; then the field once more, every echo weighted by its modelled
       signal instead of its measured magnitude, which in late echoes is mostly noise.
    6. Where only one echo is usable, R2* is that of the mean demodulated signal of such
       voxels among the 27 around: a T2* below the echo spacing shows in many voxels together.
       The standard deviation of such a voxel's field holds the turn that it may be off.
    7. Where the signal is not that of one field and one rate (the wall of a strong source), the
       field is the initial slope of the phase, which is that of the voxel's mean field. Only a
       local departure counts: what the phase does in the whole neighbourhood is no wall.

    Memory: 8 E + 140 bytes per voxel of the mask beside input and maps; no Fourier transform.

    Parameters
    ----------
    magnitude : (X, Y, Z, E) ndarray
        Measured magnitude, any unit.
    phase : (X, Y, Z, E) ndarray
        Measured phase, rad.
    echo_times : (E,) array_like
        Echo times, s, increasing.
    field_strength : float
        B0, T.
    mask : (X, Y, Z) ndarray of bool
        Voxels to fit.
    object_mask : (X, Y, Z) ndarray of bool, optional
        The whole object, around which air may be; ``mask`` if omitted.
    voxel_size : (3,) array_like
        Voxel size, mm.
    predicted_field : (X, Y, Z) ndarray, optional
        A prediction of the field, ppm, removed from the signal and added again at the end. It
        needs not be accurate: the phase is unwrapped without it if that leaves fewer jumps.
    noise_sd : float, optional
        Noise of one channel. If omitted, from what the phase fit leaves, of two echoes from the
        magnitude inside the object
        (:func:`~precondqsm_bids.numerics.noise.noise_inside`).
    workers : int
        Threads.

    Returns
    -------
    EchoFit

    Raises
    ------
    ValueError
        See :func:`check_echoes`; also for an empty mask or values that are not finite.

    References
    ----------
    Liu T et al., Magn Reson Med 2013;69:467 (nonlinear field fit). Herraez et al., Appl Opt
    2002;41:7437 (unwrapping).

    Examples
    --------
    >>> te = np.array([4e-3, 8e-3, 12e-3])
    >>> phase = np.full((4, 4, 4, 1), 0.1) + 2 * np.pi * 127.729 * 0.05 * te
    >>> fit = fit_echoes(np.exp(-30 * te) + 0 * phase, phase, te, 3.0, np.ones((4, 4, 4), bool),
    ...                  noise_sd=1e-3)
    >>> print(fit.total_field[0, 0, 0].round(4), fit.r2star[0, 0, 0].round(2))
    0.05 30.0
    """
    te = check_echoes(magnitude, phase, echo_times)
    if not mask.any():
        raise ValueError('the mask is empty: there is no voxel to fit')
    air = air_around(magnitude, mask if object_mask is None else object_mask)
    box, whole = bounding_box(mask), mask.shape
    mask = mask[box]
    signal, unit = _masked_signal(magnitude[box], phase[box], mask, air)
    to_rad = TWO_PI * np.float32(hz_per_ppm(field_strength)) * te.astype(np.float32)  # rad/ppm
    prediction = np.zeros(len(signal), np.float32)
    if predicted_field is not None:
        prediction += predicted_field[box][mask]
    field = _field_from_advance(signal, te, field_strength, mask, prediction)
    if predicted_field is not None:
        _demodulate(signal, prediction, to_rad)
    own_phase = None
    if te.size > 2:
        own_phase = echo_phase(signal, to_rad, field, mask, voxel_size, workers)
        field += take_off(signal, own_phase, mask, voxel_size, workers)
        own_phase = own_phase._replace(centre=own_phase.centre + [side.start for side in box])
    offset = np.zeros_like(field)
    sd = fit_phase(signal, to_rad, field, offset, True, workers)
    noise_source = 'given' if noise_sd is not None else 'phase' if te.size > 2 else 'magnitude'
    if noise_source == 'phase':
        noise_sd, noise = noise_from_residual(signal, to_rad, field, offset, mask)
        noise_sd = max(noise_sd, LEAST_NOISE)
        noise = np.maximum(noise, np.float32(max(noise_sd / 100, LEAST_NOISE)))
    else:
        if noise_sd is None:
            noise_sd = max(noise_inside(_volume(np.abs(signal[:, 0]), mask), mask), LEAST_NOISE)
        else:
            noise_sd = max(noise_sd / unit, 1e-6)
        noise = np.full_like(field, noise_sd)
    turns = _join_bodies(signal, to_rad, field, offset, mask, workers)

    smooth = smooth_offset(offset, sd * noise, mask, voxel_size)
    free: npt.NDArray[np.bool_] | bool = smooth.own
    if smooth.model != 'voxelwise':
        if smooth.model == 'quartic':
            free = False
        offset = smooth.offset
        _repair_wraps(signal, to_rad, field, offset, smooth.own)
        fit_phase(signal, to_rad, field, offset, free, workers)
    fit = _fit_signal(
        signal,
        to_rad,
        te.astype(np.float32),
        field,
        offset,
        _voxel_gradient(field + prediction, mask),
        noise,
        free,
        workers,
    )
    field_sd, r2star, s0, usable, misfit_ratio, snr = fit
    # A residual beyond noise: several fields or rates in one voxel, flow, a ghost, ringing.
    mixed = np.flatnonzero(misfit_ratio > MIXED)
    field_sd[mixed] *= np.sqrt(misfit_ratio[mixed])
    # An error of the offset turns the field by what a line through the origin makes of it.
    error = np.where(smooth.own, 0, np.hypot(smooth.error, smooth.misfit))
    field_sd[...] = np.hypot(field_sd, error / to_rad[len(te) // 2])
    _follow_initial_slope(signal, to_rad, field, offset, field_sd, mixed, smooth, noise, mask)
    turn = np.float32(1 / (hz_per_ppm(field_strength) * te[0]))
    # The phase of one echo, or of echoes that hold little but noise, is known but for turns.
    lone = (usable < 2) | (snr < LEAST_SNR)
    field_sd[lone] = np.hypot(field_sd[lone], turn / np.sqrt(np.float32(12)))
    pooled = _pool_decay(signal, to_rad, te.astype(np.float32), field, offset, r2star, s0,
                         usable, noise, mask)  # fmt: skip
    # A decay of which one echo or none is seen could be any: no number is better than noise.
    r2star[pooled < 2] = s0[pooled < 2] = 0
    np.minimum(field_sd, turn, out=field_sd)

    def volume(values: npt.NDArray) -> npt.NDArray:
        out = np.zeros(whole, values.dtype)
        out[box] = _volume(values, mask)
        return out

    return EchoFit(
        total_field=volume(field + prediction),
        field_sd=volume(field_sd),
        r2star=volume(r2star),
        s0=volume(s0 * np.float32(unit)),
        phase_offset=volume(np.angle(np.exp(1j * offset)).astype(np.float32)),
        usable_echoes=volume(usable),
        reliable=volume(pooled >= 2),
        misfit=volume(np.sqrt(misfit_ratio) * noise / np.float32(noise_sd)),
        noise_sd=float(noise_sd * unit),
        noise_source=noise_source,
        air=air,
        offset_model=smooth.model,
        offset_misfit=float(smooth.misfit),
        own_offset=volume(smooth.own),
        echo_phase=own_phase,
        body_turns=turns,
    )


def _masked_signal(
    magnitude: npt.NDArray, phase: npt.NDArray, mask: npt.NDArray[np.bool_], air: Air | None
) -> tuple[npt.NDArray[np.complex64], float]:
    """Signal of the masked voxels, (V, E), and the unit in which it is.

    The unit is the median of the first echo, as a power of two, so that neither squares of squares
    nor rounding depend on the unit of the magnitude.
    """
    signal = np.empty((np.count_nonzero(mask), magnitude.shape[-1]), np.complex64)
    unit = 1.0
    for e in range(signal.shape[1]):
        amplitude = without_floor(magnitude[..., e][mask], air)
        if e == 0 and 0 < (median := float(np.median(amplitude))) < np.inf:
            unit = float(np.exp2(np.round(np.log2(median))))
        signal[:, e] = turn_back(-phase[..., e][mask])
        signal[:, e] *= amplitude / amplitude.dtype.type(unit)
    if bad := np.count_nonzero(~np.isfinite(signal.sum(1))):
        raise ValueError(f'magnitude or phase is not finite in {bad} voxels of the mask')
    return signal, unit


def _volume(values: npt.NDArray, mask: npt.NDArray[np.bool_]) -> npt.NDArray:
    """Values of the masked voxels in place, zero elsewhere."""
    out = np.zeros(mask.shape, values.dtype)
    out[mask] = values
    return out


def _demodulate(signal: npt.NDArray, field: F32, to_rad: F32) -> None:
    """Multiply ``signal`` (V, E) by ``exp(-i field to_rad)``, in place."""
    for part in chunks(len(signal)):
        signal[part] *= turn_back(field[part, None] * to_rad)


def _field_from_advance(
    signal: npt.NDArray,
    te: npt.NDArray,
    field_strength: float,
    mask: npt.NDArray[np.bool_],
    prediction: F32,
) -> F32:
    """First field less the prediction (ppm), from the phase advance over the shortest spacing.

    The prediction takes most wraps out of the advance where it is right, as it is at the ends of
    a container, and adds some where it is wrong, as it may be beside a sinus. Where wraps are
    left, the advance itself is unwrapped too, and the one with fewer jumps is taken.
    """
    advance, spacing = phase_advance(signal, te)
    step = TWO_PI * np.float32(hz_per_ppm(field_strength) * spacing)
    unwrapped = unwrap(np.angle(advance * turn_back(step * prediction)), mask)
    if not prediction.any():
        return unwrapped / step
    amplitude = _volume(np.sqrt(np.abs(advance)), mask)

    def jumps(phase: F32) -> float:
        return count_jumps(_volume(phase, mask), amplitude, np.pi)[0]

    if left := jumps(unwrapped):
        plain = unwrap(np.angle(advance), mask)
        if jumps(plain) < left:
            unwrapped = plain - step * prediction
    return unwrapped / step


def _repair_wraps(
    signal: npt.NDArray, to_rad: F32, field: F32, offset: F32, own: npt.NDArray[np.bool_]
) -> None:
    """Move the field by whole turns of the echo spacing where the known offset asks for it.

    A voxel unwrapped one turn off is ``1 / dTE`` off in frequency, which turns the first echo by
    ``TE1 / dTE``: with the offset known the coherent sum of all echoes tells the turns apart.
    """
    step = np.float32(TWO_PI / (to_rad[1:] - to_rad[:-1]).min())
    candidates = np.array([0, -1, 1], np.float32)
    middle = np.median(field)
    for part in chunks(len(signal)):
        rotated = signal[part] * turn_back(offset[part, None] + field[part, None] * to_rad)
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


def _initial_slope(signal: npt.NDArray, to_rad: F32, field: F32, offset: F32) -> tuple[F32, F32]:
    """What the initial slope of the phase adds to the field, and its sd per unit noise.

    Where a voxel holds several fields and rates (the wall of a strong source) its phase is no
    straight line: late echoes follow whichever part decays slowest. The slope at TE = 0 is that
    of the mean field whatever the parts are. Two echoes give it to second order:
    ``(t2 theta1 / t1 - t1 theta2 / t2) / (t2 - t1)``.
    """
    t1, t2 = to_rad[0], to_rad[1]
    residual = np.angle(signal[:, :2] * turn_back(offset[:, None] + field[:, None] * to_rad[:2]))
    a, b = t2 / (t1 * (t2 - t1)), t1 / (t2 * (t2 - t1))
    amplitude = np.maximum(np.abs(signal[:, :2]), np.finfo(np.float32).tiny)
    sd = np.hypot(a / amplitude[:, 0], b / amplitude[:, 1])
    return (a * residual[:, 0] - b * residual[:, 1]).astype(np.float32), sd


def _follow_initial_slope(
    signal: npt.NDArray,
    to_rad: F32,
    field: F32,
    offset: F32,
    field_sd: F32,
    mixed: npt.NDArray[np.intp],
    smooth: Offset,
    noise: F32,
    mask: npt.NDArray[np.bool_],
) -> None:
    """Move mixed voxels to the initial slope of their phase, field and its sd in place.

    Only by what the departure has beyond that of the 7 x 7 x 7 voxels around: an error of the
    phase that is smooth in space bends it everywhere, and is no wall of a source. An error of the
    offset turns the slope by ``error (1 / t1 + 1 / t2)``.
    """
    mixed = mixed[~smooth.own[mixed]]  # an own offset has taken the first echo's departure
    if mixed.size == 0:
        return
    change, early_sd = _initial_slope(signal, to_rad, field, offset)
    early_sd = np.hypot(early_sd * noise, smooth.error * (1 / to_rad[0] + 1 / to_rad[1]))
    around = local_level(change, early_sd, mask)[mixed]
    change, early_sd = change[mixed] - around, early_sd[mixed]
    bent = np.abs(change) > 3 * early_sd
    field[mixed[bent]] += change[bent]
    field_sd[mixed[bent]] = np.hypot(early_sd, 0.2 * change)[bent]


def _join_bodies(
    signal: npt.NDArray,
    to_rad: F32,
    field: F32,
    offset: F32,
    mask: npt.NDArray[np.bool_],
    workers: int,
) -> tuple[int, ...]:
    """Move each body but the largest by whole turns, field and offset in place; the turns.

    A body that is unwrapped alone may be any number of turns of the echo spacing off. Each turn
    moves its offset by ``2 pi TE1 / dTE``. Taken is the number that brings offset and field,
    both as medians of the 2,000 voxels that are nearest to the other body, closest together: the
    offset to half a radian, the field (a prediction taken off) to 1.5 ppm.
    """
    labels = bodies(mask)
    if labels.max() < 2:
        return ()
    turn = float(TWO_PI / np.diff(to_rad).min())
    points = np.stack(np.nonzero(mask), axis=1).astype(np.float32)
    of = labels[mask]
    main = np.flatnonzero(of == 1)
    out = []
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
        out.append(best)
        if best:
            here, there = field[own] + np.float32(best * turn), offset[own]
            fit_phase(signal[own], to_rad, here, there, True, workers)
            field[own], offset[own] = here, there
    return tuple(out)


def _nearest(points: F32, to: F32, most: int = 2000) -> npt.NDArray[np.intp]:
    """Indices of the ``most`` points nearest to a position."""
    distance = ((points - to) ** 2).sum(1)
    return (
        np.argpartition(distance, most - 1)[:most]
        if distance.size > most
        else np.arange(distance.size)
    )


def _voxel_gradient(field: F32, mask: npt.NDArray[np.bool_]) -> F32:
    """Change of the field (ppm) across each voxel along the three axes, (V, 3).

    Central differences, one-sided at the border of the mask; the smaller of the two one-sided
    differences where they disagree in size, since a jump at the wall of a source is no gradient
    across the voxel.
    """
    volume = np.full(mask.shape, np.nan, np.float32)
    volume[mask] = field
    out = np.empty((len(field), 3), np.float32)
    for axis in range(3):
        step = np.diff(volume, axis=axis)
        pad = [(0, 0)] * 3
        pad[axis] = (1, 0)
        before = np.pad(step, pad, constant_values=np.nan)[mask]
        pad[axis] = (0, 1)
        after = np.pad(step, pad, constant_values=np.nan)[mask]
        smaller = np.where(np.abs(before) <= np.abs(after), before, after)
        one_sided = np.where(np.isnan(before), after, np.where(np.isnan(after), before, smaller))
        out[:, axis] = np.nan_to_num(one_sided)
    return out


def _fit_signal(
    signal: npt.NDArray,
    to_rad: F32,
    te: F32,
    field: F32,
    offset: F32,
    spread: F32,
    noise: F32,
    free: npt.NDArray[np.bool_] | bool,
    workers: int,
) -> tuple[F32, F32, F32, npt.NDArray[np.uint8], F32, F32]:
    """Maximum likelihood of decay and phase in turn; ``field`` and ``offset`` are refined.

    Returns the field's sd (ppm), R2* (1/s), S0, the usable echoes, the mean squared residual over
    the noise variance, and the length of the signal of all echoes over the noise. The dephasing
    by a linear field across the voxel, a product of ``sinc`` over the axes, is part of the model,
    so that R2* is not inflated by background gradients (Fernandez-Seara & Wehrli, Magn Reson Med
    2000;44:358).
    """
    field_sd, r2star, s0, misfit, snr = (np.empty_like(field) for _ in range(5))
    usable = np.empty(len(field), np.uint8)

    def refine(part: slice) -> None:
        own = free if isinstance(free, bool) else free[part]
        sigma = noise[part]
        rotated = signal[part] * turn_back(offset[part, None] + field[part, None] * to_rad)
        loss = np.ones(rotated.shape, np.float32)
        for axis in range(3):
            loss *= np.sinc(spread[part, axis, None] * to_rad / TWO_PI)
        loss[loss < 0.2] = 0  # at and beyond the first zero an echo tells nothing
        rate, log_s0 = _first_decay(rotated, loss, te, sigma)
        rate, amplitude = _refine_decay(rotated.real, loss, te, rate, log_s0, 5)
        for _ in range(2):
            model = amplitude[:, None] * loss * np.exp(-rate[:, None] * te)
            turn, slope, _, variance = phase_line(model**2, model * rotated.imag, to_rad, own)
            # A step beyond a radian at the first echo is one that the data do not support.
            slope = np.clip(slope, -1 / to_rad[0], 1 / to_rad[0])
            offset[part] += turn
            field[part] += slope
            rotated *= turn_back(turn[:, None] + slope[:, None] * to_rad)
        log_s0 = np.log(np.maximum(amplitude, np.float32(1e-6) * sigma))
        rate, amplitude = _refine_decay(rotated.real, loss, te, rate, log_s0, 3)
        model = amplitude[:, None] * loss * np.exp(-rate[:, None] * te)
        # What a wrong offset leaves is a straight line too, and none of this residual.
        weight = model**2
        turn, slope, _, _ = phase_line(weight, model * rotated.imag, to_rad, True)
        line = model * (turn[:, None] + slope[:, None] * to_rad)
        left = ((rotated.real - model) ** 2 + (rotated.imag - line) ** 2) * (loss > 0)
        freedom = np.maximum(2 * np.count_nonzero(loss, axis=1) - 4, 1)
        misfit[part] = left.sum(1) / (freedom * sigma**2)
        r2star[part], s0[part] = rate, amplitude
        field_sd[part] = sigma * np.sqrt(variance)
        usable[part] = np.count_nonzero(model > 2 * sigma[:, None], axis=1)
        snr[part] = np.sqrt((model**2).sum(1)) / sigma

    in_chunks(refine, len(signal), workers)
    return field_sd, r2star, s0, usable, misfit, snr


def _pool_decay(
    signal: npt.NDArray,
    to_rad: F32,
    te: F32,
    field: F32,
    offset: F32,
    r2star: F32,
    s0: F32,
    usable: npt.NDArray[np.uint8],
    noise: F32,
    mask: npt.NDArray[np.bool_],
) -> npt.NDArray[np.uint8]:
    """R2* and S0 where only one echo is usable, from such voxels together, in place.

    Demodulated signals of the 27 voxels around add up in phase. Only voxels of this kind are
    pooled, so that a fast decay does not mix with the medium around it, and at least a third of
    the 27 must be: noise that looks like an echo comes alone. Returns the usable echoes, counted
    against the pooled noise.
    """
    usable = usable.copy()
    short = np.flatnonzero(usable == 1)
    if short.size == 0:
        return usable
    where = tuple(index[short] for index in np.nonzero(mask))
    turn = offset[short, None] + field[short, None] * to_rad
    real = (signal[short] * turn_back(turn)).real.astype(np.float32)

    def pool(values: npt.NDArray) -> F32:
        volume = np.zeros(mask.shape, np.float32)
        volume[where] = values
        return ndimage.uniform_filter(volume, 3, mode='constant')[where] * np.float32(27)

    count = np.maximum(np.round(pool(np.ones(short.size))), 1)
    real = (np.stack([pool(echo) for echo in real.T], axis=1) / count[:, None]).astype(np.float32)
    own_noise = noise[short]
    pooled_noise = own_noise / np.sqrt(count)
    loss = np.ones_like(real)
    rate, log_s0 = _first_decay(real + 0j, loss, te, own_noise)
    rate, amplitude = _refine_decay(real, loss, te, rate, log_s0, 8)
    model = amplitude[:, None] * np.exp(-rate[:, None] * te)
    many = count >= 9
    r2star[short[many]], s0[short[many]] = rate[many], amplitude[many]
    usable[short[many]] = np.count_nonzero(model > 2 * pooled_noise[:, None], axis=1)[many]
    return usable


def _first_decay(rotated: npt.NDArray, loss: F32, te: F32, noise: F32) -> tuple[F32, F32]:
    """R2* and ln S0 by the log-linear fit, weights squared magnitude less the noise floor."""
    weight = rotated.real**2 + rotated.imag**2 - 2 * noise[:, None] ** 2
    np.maximum(weight, 1e-3 * noise[:, None] ** 2, out=weight)
    log_s = 0.5 * np.log(weight) - np.log(np.where(loss > 0, loss, 1))
    weight *= loss > 0
    w0, w1, w2 = weight.sum(1) + np.finfo(np.float32).tiny, weight @ te, weight @ te**2
    l0, l1 = (weight * log_s).sum(1), (weight * log_s) @ te
    determinant = np.maximum(w0 * w2 - w1**2, 1e-9 * w0 * w2 + np.finfo(np.float32).tiny)
    rate = np.clip((w1 * l0 - w0 * l1) / determinant, 0, DEEPEST / te[0])
    return rate, (l0 + w1 * rate) / w0


def _refine_decay(
    real: F32, loss: F32, te: F32, rate: F32, log_s0: F32, iterations: int
) -> tuple[F32, F32]:
    """R2* and S0 by Gauss-Newton in (R2*, ln S0) on the real, demodulated signal."""
    tiny = np.finfo(np.float32).tiny
    for _ in range(iterations):
        model = loss * np.exp(log_s0[:, None] - rate[:, None] * te)
        score = model * (real - model)
        model *= model
        w0, w1, w2 = model.sum(1), model @ te, model @ te**2
        r0, r1 = score.sum(1), score @ te
        determinant = np.maximum(w0 * w2 - w1**2, 1e-6 * w0 * w2 + tiny)
        log_s0 = log_s0 + np.clip((w2 * r0 - w1 * r1) / determinant, -1, 1)
        step = np.clip((w1 * r0 - w0 * r1) / determinant, -0.5 * rate - 20, 0.5 * rate + 20)
        rate = np.clip(rate + step, 0, DEEPEST / te[0])
    # With the rate at its bound S0 is the linear least-squares amplitude.
    model = loss * np.exp(-rate[:, None] * te)
    amplitude = (model * real).sum(1) / np.maximum((model**2).sum(1), tiny)
    return rate, np.maximum(amplitude, 0)
