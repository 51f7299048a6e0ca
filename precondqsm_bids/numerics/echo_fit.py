"""Echo fitting: total field, its standard deviation, R2* and S0 from multi-echo data.

The model of a voxel's complex signal is

    S(TE) = S0 exp(-R2* TE) exp(i (phi0 + 2 pi gammabar B0 field TE))

with complex Gaussian noise of standard deviation ``sigma`` in each channel. For such noise
maximum likelihood is least squares of the complex signal, which is what is solved here: first
for the phase (field and offset), then, the phase being known, for R2* and S0 on the demodulated
signal, and for the field again. The demodulated signal has zero-mean noise, so late echoes that
hold only noise do not bias R2* as they would bias a fit of magnitudes.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from precondqsm_bids.numerics.air import Air, air_around, without_floor
from precondqsm_bids.numerics.arguments import checked
from precondqsm_bids.numerics.arrays import from_box, side_by_side
from precondqsm_bids.numerics.constants import hz_per_ppm
from precondqsm_bids.numerics.decay import Decay, field_across_voxels, fit_signal, pool_decay
from precondqsm_bids.numerics.dipole import bounding_box
from precondqsm_bids.numerics.echo_phase import EchoPhase, echo_phase, take_off
from precondqsm_bids.numerics.echoes import (
    Echoes,
    check_echoes,
    fit_phase,
    in_place,
    root_sum_of_squares,
)
from precondqsm_bids.numerics.fat import find_fat
from precondqsm_bids.numerics.noise import CHUNK, local_level, noise_from_residual, noise_inside
from precondqsm_bids.numerics.phase_offset import Offset, smooth_offset
from precondqsm_bids.numerics.ringing import Ringing, find_ringing, without_ringing
from precondqsm_bids.numerics.unwrapping import field_from_advance, join_bodies, repair_wraps

F32 = npt.NDArray[np.float32]
MIXED = 3.0
"""Mean squared residual, over the noise variance, above which one field and one rate do not
describe a voxel."""
SUSPECT = 2.5
"""The same above which a voxel may be the wall of a strong source."""
WALLS, STEP = 0.1, 0.15
"""Share of these that are expected to be walls, and how far the field of one is expected off,
ppm: a tenth to a half of the step of the susceptibility."""
EVIDENCE = 0.3
"""Logarithm of the odds of a wall for each noise variance that the quadrature has more: a tenth of
what it would be of pure noise, since ringing, flow and ghosts leave some too."""
SLOPE_ERROR = 0.2
"""Error of the initial slope of a wall by two echoes, relative to its departure."""
QUADRATURE = np.float32(0.5)
"""Power of the ringing in quadrature, over that in phase with the signal, where most of it is: the
field's error over its deviation is then 0.9 to 1.2 in heads and tubes, which was 1.2 to 1.8."""
LEAST_SNR = 8.0
"""Length of the signal of all echoes over the noise below which the phase may be turns off."""
LEAST_NOISE = 1e-3
"""Least noise that is found, over the median signal of about 1: no scan has less."""


class EchoFit(NamedTuple):
    """Result of :func:`fit_echoes`; maps are (X, Y, Z) and zero outside the mask."""

    total_field: F32
    """Relative field, ppm."""
    field_sd: F32
    """Standard deviation of the field, ppm."""
    r2star: F32
    """Effective transverse relaxation rate, 1/s; zero where it is not reliable."""
    r2star_sd: F32
    """Standard deviation of R2* by the noise, 1/s."""
    magnitude_sd: F32
    """Noise of one channel in each voxel, and so of the root sum of squares over the echoes, in
    the unit of the magnitude."""
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
    fat: npt.NDArray[np.bool_]
    """Voxels of the mask that are fat, in which nothing was fitted."""
    magnitude: F32
    """Root sum of squares over the echoes, of every voxel, free of the ringing that was found."""
    ringing: Ringing | None
    """Ringing that was taken off the magnitude before R2* and S0 were fitted."""


@checked
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
    first_field: npt.NDArray | None = None,
    noise_sd: float | None = None,
    workers: int = 1,
) -> EchoFit:
    """Fit the complex multi-echo model in every voxel of ``mask``.

    1. The phase advance between neighbouring echoes (all pairs of the shortest spacing that
       agree, each weighted by its magnitudes) is unwrapped in space and gives a first field, which
       a spacing that tells it far better refines.
    2. The magnitude is freed of the floor that a root sum of squares of channels has, where the
       air tells it (:func:`~precondqsm_bids.numerics.air.air_around`). Of three echoes or more,
       the constant and gradient of the phase of each echo that are not
       linear in TE are taken off: :func:`~precondqsm_bids.numerics.echo_phase.echo_phase`.
    3. Gauss-Newton on the complex residual refines field and phase offset together. What it
       leaves is the noise. Fat, whose chemical shift shows in field and offset
       (:func:`~precondqsm_bids.numerics.fat.find_fat`), is left out of the mask, and what is left
       fitted anew. Bodies that are not connected are unwrapped each for itself: each is
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
    7. Where the signal is not that of one field and one rate, the voxel may be the wall of a
       strong source. The initial slope of the phase is that of its mean field, which the field
       follows as far as it is likely to be one. Only a local departure counts: what the phase
       does in the whole neighbourhood is no wall.
    8. Where the magnitude rings, since k-space ends
       (:func:`~precondqsm_bids.numerics.ringing.find_ringing`), R2* and S0 are fitted once more
       with the ringing taken off it. The field stays that of the measured signal; its standard
       deviation holds what such ringing does to the phase.

    Memory: 8 E + 140 bytes per voxel of the mask beside input and maps; no Fourier transform of
    three axes but four for each echo where the magnitude rings.

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
    first_field : (X, Y, Z) ndarray, optional
        Field by the unwrapped phase advance of these echoes, ppm, if it is known already
        (:class:`~precondqsm_bids.numerics.phase.repair.PhaseRepair`): saves unwrapping it again.
    noise_sd : float, optional
        Noise of one channel. If omitted, from what the phase fit leaves, of two echoes from the
        magnitude inside the object
        (:func:`~precondqsm_bids.numerics.noise.noise_inside`).
    workers : int
        Threads.

    Raises
    ------
    ValueError
        See :func:`~precondqsm_bids.numerics.echoes.check_echoes`; also for an empty mask, masks
        and fields of another shape, or values that are not finite.

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
    box = bounding_box(mask)
    images = magnitude[box], phase[box]
    echoes = Echoes.of(images, te, mask[box], field_strength, air, workers)
    prediction = np.zeros(len(echoes.signal), np.float32)
    if predicted_field is not None:
        prediction += predicted_field[box][echoes.mask]
    known = None if first_field is None else first_field[mask]
    field = field_from_advance(echoes, prediction, known)
    if predicted_field is not None:
        echoes.take_off(prediction)
    own_phase = _own_phase(echoes, field, voxel_size, [side.start for side in box])
    offset = np.zeros_like(field)
    sd = fit_phase(echoes, field, offset, True)
    noise = _noise(echoes, field, offset, noise_sd)
    fat = from_box(find_fat(echoes, field, offset, sd * noise.sd, voxel_size), box, mask.shape)
    if fat.any():
        fit = fit_echoes(
            magnitude, phase, te, field_strength, mask & ~fat, object_mask=object_mask,
            voxel_size=voxel_size, predicted_field=predicted_field, noise_sd=noise_sd,
            workers=workers,
        )  # fmt: skip
        return fit._replace(fat=fat | fit.fat)
    turns = join_bodies(echoes, field, offset)
    smooth = smooth_offset(offset, sd * noise.local, echoes.mask, voxel_size)
    decay, pooled = _fit_decay(echoes, field, prediction, smooth, noise.local)
    combined, ringing = _take_off_ringing(echoes, magnitude, mask, air, decay.field_sd)
    if ringing:
        decay, pooled = _decay_again(echoes, field, prediction, smooth, noise.local, decay)
    maps = _maps(decay, pooled, smooth, noise, np.float32(echoes.unit))
    maps['total_field'] = lambda: field + prediction
    volumes = side_by_side(
        workers, *(partial(lambda values: in_place(values(), mask), v) for v in maps.values())
    )
    return EchoFit(
        **dict(zip(maps, volumes, strict=True)),
        noise_sd=float(noise.sd * echoes.unit),
        noise_source=noise.source,
        air=air,
        offset_model=smooth.model,
        offset_misfit=float(smooth.misfit),
        echo_phase=own_phase,
        body_turns=turns,
        fat=fat,
        magnitude=combined,
        ringing=ringing,
    )


def _own_phase(
    echoes: Echoes, field: F32, voxel_size: npt.ArrayLike, first: list[int]
) -> EchoPhase | None:
    """Phase of each echo, taken off echoes and field in place; None of two echoes.

    ``first`` is the voxel of the volume at which the box of the echoes begins.
    """
    if echoes.echo_times.size < 3:
        return None
    found = echo_phase(echoes, field, voxel_size)
    field += take_off(echoes, found, voxel_size)
    return found._replace(centre=found.centre + first)


def _fit_decay(
    echoes: Echoes, field: F32, prediction: F32, smooth: Offset, noise: F32
) -> tuple[Decay, npt.NDArray]:
    """The field with the offset fixed, in place, the decay, and usable echoes with neighbours'."""
    if smooth.model != 'voxelwise':
        repair_wraps(echoes, field, smooth.offset, smooth.own)
        fit_phase(echoes, field, smooth.offset, smooth.free)
    across = field_across_voxels(field + prediction, echoes.mask, echoes.workers)
    decay = fit_signal(echoes, field, smooth.offset, across, noise, smooth.free)
    _doubt_field(echoes, field, smooth, decay, noise)
    return decay, _pooled(echoes, field, smooth, decay, noise)


def _pooled(
    echoes: Echoes, field: F32, smooth: Offset, decay: Decay, noise: F32
) -> npt.NDArray[np.uint8]:
    """Usable echoes with neighbours', and R2* and S0 by these, in place."""
    pooled = pool_decay(echoes, field, smooth.offset, decay, noise)
    # A decay of which one echo or none is seen could be any: no number is better than noise.
    decay.r2star[pooled < 2] = decay.s0[pooled < 2] = 0
    return pooled


def _take_off_ringing(
    echoes: Echoes,
    magnitude: npt.NDArray,
    mask: npt.NDArray[np.bool_],
    air: Air | None,
    field_sd: F32,
) -> tuple[npt.NDArray, Ringing | None]:
    """Take ringing off the amplitude of the echoes, and add to the field's deviation, in place.

    The phase rings as well. What the magnitude ``m_e`` had more than ``a_e``, in quadrature, is a
    field of ``sum_e a_e t_e (m_e - a_e) / sum_e a_e^2 t_e^2`` with ``t_e`` in rad/ppm; of its mean
    square over 27 voxels :data:`QUADRATURE` counts.

    Returns the root sum of squares over the echoes, too without ringing, and what was found.
    """
    combined = root_sum_of_squares(magnitude)
    ringing = find_ringing(magnitude, mask, echoes.workers)
    if ringing is None:
        return combined, None
    inside, squares = mask[ringing.box], np.zeros_like(combined[ringing.box])
    tiny = np.finfo(np.float32).tiny
    turned, length = np.zeros_like(field_sd), np.full_like(field_sd, tiny)
    for e, per_ppm in enumerate(echoes.to_rad):
        image = without_ringing(magnitude[..., e], ringing, echoes.workers)
        measured = np.maximum(np.abs(echoes.signal[:, e]), tiny)
        amplitude = without_floor(image[inside], air) / np.float32(echoes.unit)
        turned += amplitude * per_ppm * (measured - amplitude)
        length += (amplitude * per_ppm) ** 2
        echoes.signal[:, e] *= amplitude / measured
        squares += image**2
    combined[ringing.box] = np.sqrt(squares)
    square, known = (
        ndimage.uniform_filter(echoes.volume(values), 3, mode='constant')[echoes.mask]
        for values in ((turned / length) ** 2, np.ones_like(field_sd))
    )
    square = np.maximum(square, 0) / np.maximum(known, tiny)  # running sums round below zero
    np.hypot(field_sd, np.sqrt(QUADRATURE * square), out=field_sd)
    return combined, ringing


def _decay_again(
    echoes: Echoes, field: F32, prediction: F32, smooth: Offset, noise: F32, decay: Decay
) -> tuple[Decay, npt.NDArray]:
    """R2* and S0 of echoes whose amplitude has changed, and usable echoes with neighbours'.

    The field and all that is said of it stay as they were measured.
    """
    across = field_across_voxels(field + prediction, echoes.mask, echoes.workers)
    own = fit_signal(echoes, field.copy(), smooth.offset.copy(), across, noise, smooth.free)
    pooled = _pooled(echoes, field, smooth, own, noise)
    return decay._replace(r2star=own.r2star, r2star_sd=own.r2star_sd, s0=own.s0), pooled


class _Noise(NamedTuple):
    """Noise of one channel, in the unit of the echoes."""

    sd: float
    local: F32
    """(V,)"""
    source: str


def _maps(
    decay: Decay, pooled: npt.NDArray, smooth: Offset, noise: _Noise, unit: np.float32
) -> dict[str, Callable[[], npt.NDArray]]:
    """How each map of the result is made, (V,), in the units of the result."""
    return {
        'field_sd': lambda: decay.field_sd,
        'r2star': lambda: decay.r2star,
        'r2star_sd': lambda: decay.r2star_sd,
        'magnitude_sd': lambda: noise.local * unit,
        's0': lambda: decay.s0 * unit,
        'phase_offset': lambda: np.angle(np.exp(1j * smooth.offset)).astype(np.float32),
        'usable_echoes': lambda: decay.usable_echoes,
        'reliable': lambda: pooled >= 2,
        'misfit': lambda: np.sqrt(decay.misfit) * noise.local / np.float32(noise.sd),
        'own_offset': lambda: smooth.own,
    }


def _noise(echoes: Echoes, field: F32, offset: F32, given: float | None) -> _Noise:
    """Noise that is given, that of the residual, or of two echoes that of the magnitude."""
    if given is None and echoes.echo_times.size > 2:
        sd, local = noise_from_residual(echoes, field, offset)
        sd = max(sd, LEAST_NOISE)
        return _Noise(sd, np.maximum(local, np.float32(max(sd / 100, LEAST_NOISE))), 'phase')
    if given is None:
        first = echoes.volume(np.abs(echoes.signal[:, 0]))
        sd, source = max(noise_inside(first, echoes.mask), LEAST_NOISE), 'magnitude'
    else:
        sd, source = max(given / echoes.unit, 1e-6), 'given'
    return _Noise(sd, np.full_like(field, sd), source)


def _doubt_field(echoes: Echoes, field: F32, smooth: Offset, decay: Decay, noise: F32) -> None:
    """Deviation of the field by more than noise, and the field of mixed voxels, in place."""
    to_rad, field_sd = echoes.to_rad, decay.field_sd
    # A residual beyond noise: several fields or rates in one voxel, flow, a ghost, ringing.
    mixed = np.flatnonzero(decay.misfit > MIXED)
    field_sd[mixed] *= np.sqrt(decay.misfit[mixed])
    # An error of the offset turns the field by what a line through the origin makes of it.
    error = np.where(smooth.own, 0, np.hypot(smooth.error, smooth.misfit))
    field_sd[...] = np.hypot(field_sd, error / to_rad[len(to_rad) // 2])
    # An own offset has taken the first echo's departure.
    suspect = np.flatnonzero((decay.misfit > SUSPECT) & ~smooth.own)
    if suspect.size:
        _move_walls(echoes, field, field_sd, smooth, noise, suspect)
    turn = np.float32(1 / (hz_per_ppm(echoes.field_strength) * echoes.echo_times[0]))
    # The phase of one echo, or of echoes that hold little but noise, is known but for turns.
    lone = (decay.usable_echoes < 2) | (decay.snr < LEAST_SNR)
    field_sd[lone] = np.hypot(field_sd[lone], turn / np.sqrt(np.float32(12)))
    np.minimum(field_sd, turn, out=field_sd)


def _move_walls(
    echoes: Echoes,
    field: F32,
    field_sd: F32,
    smooth: Offset,
    noise: F32,
    suspect: npt.NDArray[np.intp],
) -> None:
    """Move walls of strong sources to the initial slope of their phase, field and sd in place.

    Where a voxel holds several fields and rates its phase is no straight line: late echoes follow
    whichever part decays slowest. The slope at TE = 0 is that of the mean field whatever the parts
    are, and departs from the fitted one by some tenths of a ppm. With ``d`` the departure and
    ``s`` its standard deviation, a wall is expected to have ``N(0, t^2 + s^2)`` and the others
    ``N(0, s^2)``, so that the odds of a wall are

        w / (1 - w) * s / sqrt(t^2 + s^2) * exp(d^2 g / (2 s^2) + 0.3 q),  g = t^2 / (t^2 + s^2)

    with ``w`` their share of the suspect voxels, ``t`` the expected size (:data:`WALLS`,
    :data:`STEP`) and ``q`` what the quadrature of all echoes has beyond the noise variance. A
    field moves by ``P g d`` with P the probability, and its variance is that of the mixture.
    """
    departure, sd = _departure(echoes, field, smooth, noise, suspect)
    excess = np.empty_like(sd)
    for k in range(0, suspect.size, CHUNK):
        part = suspect[k : k + CHUNK]
        left = echoes.demodulated(field, smooth.offset, part).imag / noise[part, None]
        excess[k : k + CHUNK] = (left**2).sum(1) / (len(echoes.to_rad) - 1) - 1
    follows = STEP**2 / (STEP**2 + sd**2)
    evidence = 0.5 * follows * (departure / sd) ** 2 + EVIDENCE * np.maximum(excess, 0)
    odds = WALLS / (1 - WALLS) * np.sqrt(1 - follows) * np.exp(np.minimum(evidence, 50))
    wall = odds / (1 + odds)
    move = follows * departure
    field[suspect] += wall * move
    variance = ((1 - wall) * field_sd[suspect]) ** 2 + wall * follows * sd**2
    variance += wall * (1 - wall) * move**2 + (SLOPE_ERROR * wall * move) ** 2
    field_sd[suspect] = np.sqrt(variance)


def _departure(
    echoes: Echoes, field: F32, smooth: Offset, noise: F32, suspect: npt.NDArray[np.intp]
) -> tuple[F32, F32]:
    """Initial slope of the phase less the field, and its standard deviation, ppm.

    Two echoes give it to second order: ``(t2 theta1 / t1 - t1 theta2 / t2) / (t2 - t1)``.

    Only what it has beyond that of the 7 x 7 x 7 voxels around counts: an error of the phase that
    is smooth in space bends it everywhere, and is no wall of a source. An error of the offset
    turns the slope by ``error (1 / t1 + 1 / t2)``.
    """
    t1, t2 = echoes.to_rad[:2]
    early = echoes.first(2)
    residual = np.angle(early.demodulated(field, smooth.offset))
    a, b = t2 / (t1 * (t2 - t1)), t1 / (t2 * (t2 - t1))
    amplitude = np.maximum(np.abs(early.signal), np.finfo(np.float32).tiny)
    sd = np.hypot(a / amplitude[:, 0], b / amplitude[:, 1])
    departure = (a * residual[:, 0] - b * residual[:, 1]).astype(np.float32)
    sd = np.hypot(sd * noise, smooth.error * (1 / t1 + 1 / t2)).astype(np.float32)
    around = local_level(departure, sd, echoes.mask, workers=echoes.workers)[suspect]
    return departure[suspect] - around, sd[suspect]
