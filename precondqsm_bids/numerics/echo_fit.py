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
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from precondqsm_bids.numerics.constants import hz_per_ppm
from precondqsm_bids.numerics.noise import noise_from_residual, noise_inside, noise_level
from precondqsm_bids.numerics.unwrapping import count_jumps, phase_advance, unwrap

F32 = npt.NDArray[np.float32]
TWO_PI = np.float32(2 * np.pi)
MIXED = 3.0
"""Mean squared residual, over the noise variance, above which one field and one rate do not
describe a voxel."""
DEEPEST = np.float32(5.0)
"""Largest ``R2* TE1``: a first echo below exp(-5) of S0 cannot be measured."""
_CHUNK = 1 << 15  # voxels handled at a time: temporaries stay in the processor's cache


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
    """Root mean square of the residual over the noise: 1 where the model describes the voxel."""
    noise_sd: float
    """Noise of one channel (real or imaginary), in the unit of the magnitude."""
    offset_model: str
    """``quartic`` (smooth phase offset) or ``voxelwise``."""
    offset_misfit: float
    """Root mean square of what the quartic leaves of the phase offset, rad."""


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
    predicted_field : (X, Y, Z) ndarray, optional
        As for :func:`fit_echoes`: it may help unwrapping and enters nothing else.
    noise_sd : float, optional
        Noise of one channel; from the air (:func:`noise_level`), or from the object itself where
        there is none (:func:`noise_inside`).

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
    signal = (magnitude[mask] * np.exp(1j * phase[mask])).astype(np.complex64)[:, None]
    if bad := np.count_nonzero(~np.isfinite(signal)):
        raise ValueError(f'magnitude or phase is not finite in {bad} voxels of the mask')
    if noise_sd is None:
        noise_sd = noise_level(magnitude[..., None], mask)
    if noise_sd is None:
        noise_sd = noise_inside(magnitude, mask)
    noise_sd = max(noise_sd, float(np.abs(signal).max()) * 1e-7)

    prediction = np.zeros(len(signal), np.float32)
    if predicted_field is not None:
        prediction += predicted_field[mask]
    field = _field_from_advance(signal, te, field_strength, mask, prediction) + prediction
    amplitude = np.abs(signal[:, 0])
    turn = 1 / (hz_per_ppm(field_strength) * echo_time)
    sd = noise_sd / np.maximum(amplitude, np.finfo(np.float32).tiny) * turn / TWO_PI
    total_field, field_sd = np.zeros(mask.shape, np.float32), np.zeros(mask.shape, np.float32)
    total_field[mask], field_sd[mask] = field, np.minimum(sd, turn)
    usable = (mask & (magnitude > 2 * noise_sd)).astype(np.uint8)
    return OneEcho(total_field, field_sd, usable, float(noise_sd))


def fit_echoes(
    magnitude: npt.NDArray,
    phase: npt.NDArray,
    echo_times: npt.ArrayLike,
    field_strength: float,
    mask: npt.NDArray[np.bool_],
    *,
    predicted_field: npt.NDArray | None = None,
    noise_sd: float | None = None,
    workers: int = 1,
) -> EchoFit:
    """Fit the complex multi-echo model in every voxel of ``mask``.

    1. The phase advance between neighbouring echoes (all pairs of the shortest spacing, each
       weighted by its magnitudes) is unwrapped in space and gives a first field.
    2. Gauss-Newton on the complex residual refines field and phase offset together.
    3. The offset is smooth over the object: a polynomial of fourth order is fitted to it where
       it is reliable, wraps between echoes that it exposes are repaired, and the field is fitted
       again with the offset fixed, which is where the precision in fast-decaying voxels comes
       from. Where a quartic does not describe the offset it stays free in each voxel.
    4. R2* and S0 by least squares of the demodulated signal, with the dephasing by the field's
       own gradient in the model; then the field once more, every echo weighted by its modelled
       signal instead of its measured magnitude, which in late echoes is mostly noise.
    5. Where only one echo is usable, R2* is that of the mean demodulated signal of such
       voxels among the 27 around: a T2* below the echo spacing shows in many voxels together.
    6. Where the signal is not that of one field and one rate (the wall of a strong source), the
       field is the initial slope of the phase, which is that of the voxel's mean field.

    Memory: 8 E + 60 bytes per voxel of the mask beside the input; no Fourier transform.

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
    predicted_field : (X, Y, Z) ndarray, optional
        A prediction of the field, ppm, removed from the signal and added again at the end. It
        needs not be accurate: the phase is unwrapped without it if that leaves fewer jumps.
    noise_sd : float, optional
        Noise of one channel; estimated from the air (:func:`noise_level`), or from the
        residuals where there is none.
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
    signal = (magnitude[mask] * np.exp(1j * phase[mask])).astype(np.complex64)  # (V, E)
    if not np.all(np.isfinite(signal)):
        bad = np.count_nonzero(~np.isfinite(signal).all(axis=1))
        raise ValueError(f'magnitude or phase is not finite in {bad} voxels of the mask')
    if noise_sd is None:
        noise_sd = noise_level(magnitude, mask)

    to_rad = TWO_PI * np.float32(hz_per_ppm(field_strength)) * te.astype(np.float32)  # rad/ppm
    prediction = np.zeros(len(signal), np.float32)
    if predicted_field is not None:
        prediction += predicted_field[mask]
    field = _field_from_advance(signal, te, field_strength, mask, prediction)
    if predicted_field is not None:
        _demodulate(signal, prediction, to_rad)
    offset = np.zeros_like(field)
    sd = _fit_phase(signal, to_rad, field, offset, True, workers)
    if noise_sd is None:
        noise_sd = noise_from_residual(signal, to_rad, field, offset)
    noise_sd = max(noise_sd, float(np.abs(signal).max()) * 1e-7)

    smooth, misfit, model = _smooth_offset(offset, sd * noise_sd, mask)
    free = model == 'voxelwise'
    if not free:
        offset = smooth
        _repair_wraps(signal, to_rad, field, offset)
        _fit_phase(signal, to_rad, field, offset, False, workers)
    fit = _fit_signal(
        signal,
        to_rad,
        te.astype(np.float32),
        field,
        offset,
        _voxel_gradient(field + prediction, mask),
        noise_sd,
        free,
        workers,
    )
    field_sd, r2star, s0, usable, misfit_ratio = fit
    # A residual beyond noise: several fields or rates in one voxel, flow, a ghost, ringing.
    mixed = np.flatnonzero(misfit_ratio > MIXED)
    field_sd[mixed] *= np.sqrt(misfit_ratio[mixed])
    if not free:
        # An error of the offset turns the field by what a line through the origin makes of it.
        field_sd[...] = np.hypot(field_sd, misfit / to_rad[len(te) // 2])
        change, early_sd = _initial_slope(signal[mixed], to_rad, field[mixed], offset[mixed])
        early_sd *= noise_sd
        bent = np.abs(change) > 3 * early_sd
        field[mixed[bent]] += change[bent]
        field_sd[mixed[bent]] = np.hypot(early_sd, 0.2 * change)[bent]
    pooled = _pool_decay(signal, to_rad, te.astype(np.float32), field, offset, r2star, s0,
                         usable, noise_sd, mask)  # fmt: skip
    # A decay of which one echo or none is seen could be any: no number is better than noise.
    r2star[pooled < 2] = s0[pooled < 2] = 0
    np.minimum(field_sd, np.float32(1 / (hz_per_ppm(field_strength) * te[0])), out=field_sd)

    def volume(values: npt.NDArray) -> npt.NDArray:
        out = np.zeros(mask.shape, values.dtype)
        out[mask] = values
        return out

    return EchoFit(
        volume(field + prediction),
        volume(field_sd),
        volume(r2star),
        volume(s0),
        volume(np.angle(np.exp(1j * offset)).astype(np.float32)),
        volume(usable),
        volume(pooled >= 2),
        volume(np.sqrt(misfit_ratio)),
        float(noise_sd),
        model,
        float(misfit),
    )


def _demodulate(signal: npt.NDArray, field: F32, to_rad: F32) -> None:
    """Multiply ``signal`` (V, E) by ``exp(-i field to_rad)``, in place."""
    for start in range(0, len(signal), _CHUNK):
        part = slice(start, start + _CHUNK)
        signal[part] *= np.exp(-1j * field[part, None] * to_rad)


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
    unwrapped = unwrap(np.angle(advance * np.exp(-1j * step * prediction)), mask)
    if not prediction.any():
        return unwrapped / step
    amplitude = np.zeros(mask.shape, np.float32)
    amplitude[mask] = np.sqrt(np.abs(advance))

    def jumps(phase: F32) -> float:
        volume = np.zeros(mask.shape, np.float32)
        volume[mask] = phase
        return count_jumps(volume, amplitude, np.pi)[0]

    if left := jumps(unwrapped):
        plain = unwrap(np.angle(advance), mask)
        if jumps(plain) < left:
            unwrapped = plain - step * prediction
    return unwrapped / step


def _in_chunks(function: Callable[[slice], None], length: int, workers: int) -> None:
    """Call ``function`` with slices that cover ``length``, on ``workers`` threads."""
    parts = [slice(start, start + _CHUNK) for start in range(0, length, _CHUNK)]
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(function, parts))


def _line(
    weight: F32, score: F32, to_rad: F32, free: bool
) -> tuple[F32 | np.float32, F32, F32, F32]:
    """Weighted straight line through a residual phase: intercept, slope, and their variances.

    ``weight`` (V, E) is the squared amplitude, ``score`` the weight times the residual; without
    ``free`` the intercept is zero. Variances are per unit of squared noise.
    """
    tiny = np.finfo(np.float32).tiny
    w2 = np.maximum(weight @ to_rad**2, tiny)
    r1 = score @ to_rad
    if not free:
        return np.float32(0), r1 / w2, 0 * w2, 1 / w2
    w0, w1, r0 = np.maximum(weight.sum(1), tiny), weight @ to_rad, score.sum(1)
    determinant = np.maximum(w0 * w2 - w1**2, 1e-6 * w0 * w2 + tiny)
    return (
        (w2 * r0 - w1 * r1) / determinant,
        (w0 * r1 - w1 * r0) / determinant,
        w2 / determinant,
        w0 / determinant,
    )


def _fit_phase(
    signal: npt.NDArray,
    to_rad: F32,
    field: F32,
    offset: F32,
    free: bool,
    workers: int,
    iterations: int = 3,
) -> F32:
    """Refine the field, and the offset if ``free``, in place; the offset's sd per unit noise.

    Gauss-Newton with the measured magnitudes as amplitudes: each step is a straight-line fit of
    the residual phase, weights magnitude squared. A free offset starts from the phase that the
    first field leaves.
    """
    offset_sd = np.empty_like(field)

    def refine(part: slice) -> None:
        s = signal[part]
        weight = s.real**2 + s.imag**2
        rotated = s * np.exp(-1j * (offset[part, None] + field[part, None] * to_rad))
        if free:
            offset[part] = np.angle((rotated * np.abs(s)).sum(1))
            rotated *= np.exp(-1j * offset[part, None])
        for _ in range(iterations):
            turn, slope, variance, _ = _line(weight, weight * np.angle(rotated), to_rad, free)
            offset[part] += turn
            field[part] += slope
            rotated *= np.exp(-1j * (np.reshape(turn, (-1, 1)) + slope[:, None] * to_rad))
        offset_sd[part] = np.sqrt(variance)

    _in_chunks(refine, len(signal), workers)
    return offset_sd


def _polynomial(mask: npt.NDArray[np.bool_], order: int) -> F32:
    """Monomials up to ``order`` at the masked voxels, coordinates scaled to -1..1, (V, terms)."""
    coordinates = []
    for axis, index in enumerate(np.nonzero(mask)):
        half = max((mask.shape[axis] - 1) / 2, 1)
        coordinates.append((index / half - 1).astype(np.float32))
    x, y, z = coordinates
    return np.stack(
        [
            x**i * y**j * z**k
            for total in range(order + 1)
            for i in range(total, -1, -1)
            for j in range(total - i, -1, -1)
            for k in [total - i - j]
        ],
        axis=1,
    )


def _smooth_offset(
    offset: F32, offset_sd: F32, mask: npt.NDArray[np.bool_], order: int = 4
) -> tuple[F32, float, str]:
    """Quartic fit of the phase offset, what it leaves (rad), and whether to use it.

    Fitted on the circle (only ``exp(i offset)`` enters) where the offset is known to 0.3 rad.
    The polynomial serves if the block medians of what it leaves stay below 0.1 rad.
    """
    good = np.flatnonzero(offset_sd < 0.3)
    if good.size < 1000:
        return offset, 0.0, 'voxelwise'
    used = good[:: max(1, good.size // 200_000)]
    monomials = _polynomial(mask, order)
    a = monomials[used].astype(np.float64)
    weight = np.minimum(1 / np.maximum(offset_sd[used], 1e-6), 100.0)[:, None]
    start = np.angle(np.exp(1j * offset[used]).mean())
    residual = np.angle(np.exp(1j * (offset[used] - start)))
    if np.mean(np.abs(residual) > 0.75 * np.pi) > 0.01:
        unwrapped = unwrap(np.angle(np.exp(1j * (offset - start))), mask)
        residual = unwrapped[used]
    coefficients = np.zeros(a.shape[1])
    coefficients[0] = start
    fitted = np.full(len(used), start)
    for _ in range(6):
        step = np.linalg.lstsq(a * weight, residual * weight[:, 0], rcond=None)[0]
        coefficients += step
        fitted = a @ coefficients
        residual = np.angle(np.exp(1j * (offset[used] - fitted)))
        # Outliers (wraps between echoes, strong sources) lose their weight.
        scale = 1.4826 * np.median(np.abs(residual)) + 1e-6
        weight = np.minimum(1 / np.maximum(offset_sd[used], 1e-6), 100.0)[:, None]
        weight = weight * np.where(np.abs(residual) < 4 * scale, 1, 1e-3)[:, None]
    smooth = (monomials @ coefficients.astype(np.float32)).astype(np.float32)

    left = np.angle(np.exp(1j * (offset[good] - smooth[good])))
    blocks = np.ravel_multi_index(
        [index[good] // 8 for index in np.nonzero(mask)], [n // 8 + 1 for n in mask.shape]
    )
    # Medians, so that a rim of voxels a turn off does not speak for its block.
    order_by_block = np.lexsort((left, blocks))
    count = np.bincount(blocks)
    first = np.cumsum(count) - count
    median = left[order_by_block][(first + count // 2)[count > 64]]
    misfit = float(np.sqrt(np.mean(median**2))) if median.size else 0.0
    return smooth, misfit, 'quartic' if misfit < 0.1 else 'voxelwise'


def _repair_wraps(signal: npt.NDArray, to_rad: F32, field: F32, offset: F32) -> None:
    """Move the field by whole turns of the echo spacing where the known offset asks for it.

    A voxel unwrapped one turn off is ``1 / dTE`` off in frequency, which turns the first echo by
    ``TE1 / dTE``: with the offset known the coherent sum of all echoes tells the turns apart.
    """
    step = np.float32(TWO_PI / (to_rad[1:] - to_rad[:-1]).min())
    candidates = np.array([0, -1, 1], np.float32)
    middle = np.median(field)
    for start in range(0, len(signal), _CHUNK):
        part = slice(start, start + _CHUNK)
        rotated = signal[part] * np.exp(-1j * (offset[part, None] + field[part, None] * to_rad))
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
        field[part] += np.where(clear, candidates[best] * step, 0)


def _initial_slope(signal: npt.NDArray, to_rad: F32, field: F32, offset: F32) -> tuple[F32, F32]:
    """What the initial slope of the phase adds to the field, and its sd per unit noise.

    Where a voxel holds several fields and rates (the wall of a strong source) its phase is no
    straight line: late echoes follow whichever part decays slowest. The slope at TE = 0 is that
    of the mean field whatever the parts are. Two echoes give it to second order:
    ``(t2 theta1 / t1 - t1 theta2 / t2) / (t2 - t1)``.
    """
    t1, t2 = to_rad[0], to_rad[1]
    residual = np.angle(
        signal[:, :2] * np.exp(-1j * (offset[:, None] + field[:, None] * to_rad[:2]))
    )
    a, b = t2 / (t1 * (t2 - t1)), t1 / (t2 * (t2 - t1))
    amplitude = np.maximum(np.abs(signal[:, :2]), np.finfo(np.float32).tiny)
    sd = np.hypot(a / amplitude[:, 0], b / amplitude[:, 1])
    return (a * residual[:, 0] - b * residual[:, 1]).astype(np.float32), sd


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
    noise_sd: float,
    free: bool,
    workers: int,
) -> tuple[F32, F32, F32, npt.NDArray[np.uint8], F32]:
    """Maximum likelihood of decay and phase in turn; ``field`` and ``offset`` are refined.

    Returns the field's sd (ppm), R2* (1/s), S0, the usable echoes and the mean squared residual
    over the noise variance. The dephasing by a linear field across the voxel, a product of
    ``sinc`` over the axes, is part of the model, so that R2* is not inflated by background
    gradients (Fernandez-Seara & Wehrli, Magn Reson Med 2000;44:358).
    """
    field_sd, r2star, s0, misfit = (np.empty_like(field) for _ in range(4))
    usable = np.empty(len(field), np.uint8)

    def refine(part: slice) -> None:
        rotated = signal[part] * np.exp(-1j * (offset[part, None] + field[part, None] * to_rad))
        loss = np.ones(rotated.shape, np.float32)
        for axis in range(3):
            loss *= np.sinc(spread[part, axis, None] * to_rad / TWO_PI)
        loss[loss < 0.2] = 0  # at and beyond the first zero an echo tells nothing
        rate, log_s0 = _first_decay(rotated, loss, te, noise_sd)
        rate, amplitude = _refine_decay(rotated.real, loss, te, rate, log_s0, 5)
        for _ in range(2):
            model = amplitude[:, None] * loss * np.exp(-rate[:, None] * te)
            turn, slope, _, variance = _line(model**2, model * rotated.imag, to_rad, free)
            # A step beyond a radian at the first echo is one that the data do not support.
            slope = np.clip(slope, -1 / to_rad[0], 1 / to_rad[0])
            offset[part] += turn
            field[part] += slope
            rotated *= np.exp(-1j * (np.reshape(turn, (-1, 1)) + slope[:, None] * to_rad))
        log_s0 = np.log(np.maximum(amplitude, np.float32(1e-6 * noise_sd)))
        rate, amplitude = _refine_decay(rotated.real, loss, te, rate, log_s0, 3)
        model = amplitude[:, None] * loss * np.exp(-rate[:, None] * te)
        # What a wrong offset leaves is a straight line too, and none of this residual.
        weight = model**2
        turn, slope, _, _ = _line(weight, model * rotated.imag, to_rad, True)
        line = model * (np.reshape(turn, (-1, 1)) + slope[:, None] * to_rad)
        left = ((rotated.real - model) ** 2 + (rotated.imag - line) ** 2) * (loss > 0)
        freedom = np.maximum(2 * np.count_nonzero(loss, axis=1) - 4, 1)
        misfit[part] = left.sum(1) / (freedom * np.float32(noise_sd**2))
        r2star[part], s0[part] = rate, amplitude
        field_sd[part] = noise_sd * np.sqrt(variance)
        usable[part] = np.count_nonzero(model > 2 * noise_sd, axis=1)

    _in_chunks(refine, len(signal), workers)
    return field_sd, r2star, s0, usable, misfit


def _pool_decay(
    signal: npt.NDArray,
    to_rad: F32,
    te: F32,
    field: F32,
    offset: F32,
    r2star: F32,
    s0: F32,
    usable: npt.NDArray[np.uint8],
    noise_sd: float,
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
    real = (signal[short] * np.exp(-1j * turn)).real.astype(np.float32)

    def pool(values: npt.NDArray) -> F32:
        volume = np.zeros(mask.shape, np.float32)
        volume[where] = values
        return ndimage.uniform_filter(volume, 3, mode='constant')[where] * np.float32(27)

    count = np.maximum(np.round(pool(np.ones(short.size))), 1)
    real = (np.stack([pool(echo) for echo in real.T], axis=1) / count[:, None]).astype(np.float32)
    noise = np.float32(noise_sd) / np.sqrt(count)
    loss = np.ones_like(real)
    rate, log_s0 = _first_decay(real + 0j, loss, te, noise_sd)
    rate, amplitude = _refine_decay(real, loss, te, rate, log_s0, 8)
    model = amplitude[:, None] * np.exp(-rate[:, None] * te)
    many = count >= 9
    r2star[short[many]], s0[short[many]] = rate[many], amplitude[many]
    usable[short[many]] = np.count_nonzero(model > 2 * noise[:, None], axis=1)[many]
    return usable


def _first_decay(rotated: npt.NDArray, loss: F32, te: F32, noise_sd: float) -> tuple[F32, F32]:
    """R2* and ln S0 by the log-linear fit, weights squared magnitude less the noise floor."""
    weight = rotated.real**2 + rotated.imag**2 - np.float32(2 * noise_sd**2)
    np.maximum(weight, np.float32(1e-3 * noise_sd**2), out=weight)
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
