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

from precondqsm_bids.numerics.air import Air, air_around
from precondqsm_bids.numerics.constants import hz_per_ppm
from precondqsm_bids.numerics.decay import fit_signal, pool_decay, voxel_gradient
from precondqsm_bids.numerics.dipole import bounding_box
from precondqsm_bids.numerics.echo_phase import EchoPhase, echo_phase, take_off
from precondqsm_bids.numerics.echoes import (
    check_echoes,
    demodulate,
    fit_phase,
    in_place,
    masked_signal,
    turn_back,
)
from precondqsm_bids.numerics.noise import local_level, noise_from_residual, noise_inside
from precondqsm_bids.numerics.phase_offset import Offset, smooth_offset
from precondqsm_bids.numerics.unwrapping import field_from_advance, join_bodies, repair_wraps

F32 = npt.NDArray[np.float32]
TWO_PI = np.float32(2 * np.pi)
MIXED = 3.0
"""Mean squared residual, over the noise variance, above which one field and one rate do not
describe a voxel."""
LEAST_SNR = 8.0
"""Length of the signal of all echoes over the noise below which the phase may be turns off."""
LEAST_NOISE = 1e-3
"""Least noise that is found, over the median signal of about 1: no scan has less."""


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
       air tells it (:func:`~precondqsm_bids.numerics.air.air_around`). Of three echoes or more,
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
    signal, unit = masked_signal(magnitude[box], phase[box], mask, air)
    to_rad = TWO_PI * np.float32(hz_per_ppm(field_strength)) * te.astype(np.float32)  # rad/ppm
    prediction = np.zeros(len(signal), np.float32)
    if predicted_field is not None:
        prediction += predicted_field[box][mask]
    field = field_from_advance(signal, te, field_strength, mask, prediction)
    if predicted_field is not None:
        demodulate(signal, prediction, to_rad)
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
            noise_sd = max(noise_inside(in_place(np.abs(signal[:, 0]), mask), mask), LEAST_NOISE)
        else:
            noise_sd = max(noise_sd / unit, 1e-6)
        noise = np.full_like(field, noise_sd)
    turns = join_bodies(signal, to_rad, field, offset, mask, workers)

    smooth = smooth_offset(offset, sd * noise, mask, voxel_size)
    free: npt.NDArray[np.bool_] | bool = smooth.own
    if smooth.model != 'voxelwise':
        if smooth.model == 'quartic':
            free = False
        offset = smooth.offset
        repair_wraps(signal, to_rad, field, offset, smooth.own)
        fit_phase(signal, to_rad, field, offset, free, workers)
    fit = fit_signal(
        signal,
        to_rad,
        te.astype(np.float32),
        field,
        offset,
        voxel_gradient(field + prediction, mask),
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
    pooled = pool_decay(signal, to_rad, te.astype(np.float32), field, offset, r2star, s0,
                         usable, noise, mask)  # fmt: skip
    # A decay of which one echo or none is seen could be any: no number is better than noise.
    r2star[pooled < 2] = s0[pooled < 2] = 0
    np.minimum(field_sd, turn, out=field_sd)

    def volume(values: npt.NDArray) -> npt.NDArray:
        out = np.zeros(whole, values.dtype)
        out[box] = in_place(values, mask)
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
