"""Decay of the echoes: R2* and S0 in turn with the phase, and of voxels together."""

from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from precondqsm_bids.numerics.arrays import side_by_side
from precondqsm_bids.numerics.echoes import TWO_PI, Echoes, along_echoes, phase_line, turn_back

F32 = npt.NDArray[np.float32]
DEEPEST = np.float32(5.0)
"""Largest ``R2* TE1``: a first echo below exp(-5) of S0 cannot be measured."""


def field_across_voxels(field: F32, mask: npt.NDArray[np.bool_], workers: int = 1) -> F32:
    """Change of the field (ppm) across each voxel along the three axes, (V, 3).

    Central differences, one-sided at the border of the mask; the smaller of the two one-sided
    differences where they disagree in size, since a jump at the wall of a source is no gradient
    across the voxel.
    """
    volume = np.full(mask.shape, np.nan, np.float32)
    volume[mask] = field
    out = np.empty((len(field), 3), np.float32)

    def along(axis: int) -> None:
        step = np.diff(volume, axis=axis)
        pad = [(0, 0)] * 3
        pad[axis] = (1, 0)
        before = np.pad(step, pad, constant_values=np.nan)[mask]
        pad[axis] = (0, 1)
        after = np.pad(step, pad, constant_values=np.nan)[mask]
        smaller = np.where(np.abs(before) <= np.abs(after), before, after)
        one_sided = np.where(np.isnan(before), after, np.where(np.isnan(after), before, smaller))
        out[:, axis] = np.nan_to_num(one_sided)

    side_by_side(workers, *(partial(along, axis) for axis in range(3)))
    return out


class Decay(NamedTuple):
    """Result of :func:`fit_signal`, (V,) each."""

    field_sd: F32
    """Standard deviation of the field, ppm."""
    r2star: F32
    """1/s"""
    r2star_sd: F32
    """Standard deviation of R2* by the noise, 1/s."""
    s0: F32
    """In the unit of the echoes."""
    usable_echoes: npt.NDArray[np.uint8]
    """Echoes whose fitted signal exceeds twice the noise."""
    misfit: F32
    """Mean squared residual over the noise variance."""
    snr: F32
    """Length of the signal of all echoes over the noise."""


def fit_signal(
    echoes: Echoes,
    field: F32,
    offset: F32,
    field_across_voxel: F32,
    noise: F32,
    fit_offset: npt.NDArray[np.bool_] | bool,
) -> Decay:
    """Maximum likelihood of decay and phase in turn; ``field`` and ``offset`` are refined.

    The dephasing by a linear field across the voxel, a product of ``sinc`` over the axes, is part
    of the model, so that R2* is not inflated by background gradients (Fernandez-Seara & Wehrli,
    Magn Reson Med 2000;44:358).
    """
    te, to_rad = echoes.te, echoes.to_rad
    field_sd, r2star, r2star_sd, s0, misfit, snr = (np.empty_like(field) for _ in range(6))
    usable = np.empty(len(field), np.uint8)

    def refine(part: slice) -> None:
        own = fit_offset if isinstance(fit_offset, bool) else fit_offset[part]
        sigma = noise[part]
        rotated = echoes.demodulated(field, offset, part)
        dephasing = np.ones_like(rotated, np.float32)
        for axis in range(3):
            turns = along_echoes(field_across_voxel[part, axis], to_rad / TWO_PI)
            dephasing *= np.sinc(turns)
        dephasing[dephasing < 0.2] = 0  # at and beyond the first zero an echo tells nothing
        rate, log_s0 = _first_decay(rotated, dephasing, te, sigma)
        rate, amplitude = _refine_decay(rotated.real, dephasing, te, rate, log_s0, 5)
        for _ in range(2):
            model = amplitude[:, None] * dephasing * np.exp(along_echoes(-rate, te))
            turn, slope, _, variance = phase_line(model**2, model * rotated.imag, to_rad, own)
            # A step beyond a radian at the first echo is one that the data do not support.
            slope = np.clip(slope, -1 / to_rad[0], 1 / to_rad[0])
            offset[part] += turn
            field[part] += slope
            rotated *= turn_back(turn[:, None] + along_echoes(slope, to_rad))
        log_s0 = np.log(np.maximum(amplitude, np.float32(1e-6) * sigma))
        rate, amplitude = _refine_decay(rotated.real, dephasing, te, rate, log_s0, 3)
        model = amplitude[:, None] * dephasing * np.exp(along_echoes(-rate, te))
        # What a wrong offset leaves is a straight line too, and none of this residual.
        weight = model**2
        turn, slope, _, free = phase_line(weight, model * rotated.imag, to_rad, True)
        line = model * (turn[:, None] + along_echoes(slope, to_rad))
        left = ((rotated.real - model) ** 2 + (rotated.imag - line) ** 2) * (dephasing > 0)
        freedom = np.maximum(2 * np.count_nonzero(dephasing, axis=1) - 4, 1)
        misfit[part] = left.sum(1) / (freedom * sigma**2)
        r2star[part], s0[part] = rate, amplitude
        # ln S0 and R2* are to the real part what a free offset and the field are to the other.
        r2star_sd[part] = sigma * np.sqrt(free) * (to_rad[0] / te[0])
        field_sd[part] = sigma * np.sqrt(variance)
        usable[part] = np.count_nonzero(model > 2 * sigma[:, None], axis=1)
        snr[part] = np.sqrt((model**2).sum(1)) / sigma

    echoes.in_chunks(refine)
    return Decay(field_sd, r2star, r2star_sd, s0, usable, misfit, snr)


def pool_decay(
    echoes: Echoes, field: F32, offset: F32, decay: Decay, noise: F32
) -> npt.NDArray[np.uint8]:
    """R2* and S0 where only one echo is usable, from such voxels together, in place.

    Demodulated signals of the 27 voxels around add up in phase. Only voxels of this kind are
    pooled, so that a fast decay does not mix with the medium around it, and at least a third of
    the 27 must be: noise that looks like an echo comes alone. Returns the usable echoes, counted
    against the pooled noise.
    """
    te, usable = echoes.te, decay.usable_echoes.copy()
    short = np.flatnonzero(usable == 1)
    if short.size == 0:
        return usable
    where = tuple(index[short] for index in np.nonzero(echoes.mask))
    real = echoes.demodulated(field, offset, short).real.astype(np.float32)

    def pool(values: npt.NDArray) -> F32:
        volume = np.zeros(echoes.mask.shape, np.float32)
        volume[where] = values
        return ndimage.uniform_filter(volume, 3, mode='constant')[where] * np.float32(27)

    count, *pooled = side_by_side(
        echoes.workers,
        *(partial(pool, values) for values in (np.ones(short.size, np.float32), *real.T)),
    )
    count = np.maximum(np.round(count), 1)
    real = (np.stack(pooled, axis=1) / count[:, None]).astype(np.float32)
    own_noise = noise[short]
    pooled_noise = own_noise / np.sqrt(count)
    dephasing = np.ones_like(real)
    rate, log_s0 = _first_decay(real + 0j, dephasing, te, own_noise)
    rate, amplitude = _refine_decay(real, dephasing, te, rate, log_s0, 8)
    model = amplitude[:, None] * np.exp(along_echoes(-rate, te))
    many = count >= 9
    decay.r2star[short[many]], decay.s0[short[many]] = rate[many], amplitude[many]
    decay.r2star_sd[short[many]] /= np.sqrt(count[many])
    usable[short[many]] = np.count_nonzero(model > 2 * pooled_noise[:, None], axis=1)[many]
    return usable


def _first_decay(rotated: npt.NDArray, dephasing: F32, te: F32, noise: F32) -> tuple[F32, F32]:
    """R2* and ln S0 by the log-linear fit, weights squared magnitude less the noise floor."""
    weight = rotated.real**2 + rotated.imag**2 - 2 * noise[:, None] ** 2
    np.maximum(weight, 1e-3 * noise[:, None] ** 2, out=weight)
    log_s = 0.5 * np.log(weight) - np.log(np.where(dephasing > 0, dephasing, 1))
    weight *= dephasing > 0
    w0, w1, w2 = weight.sum(1) + np.finfo(np.float32).tiny, weight @ te, weight @ te**2
    l0, l1 = (weight * log_s).sum(1), (weight * log_s) @ te
    determinant = np.maximum(w0 * w2 - w1**2, 1e-9 * w0 * w2 + np.finfo(np.float32).tiny)
    rate = np.clip((w1 * l0 - w0 * l1) / determinant, 0, DEEPEST / te[0])
    return rate, (l0 + w1 * rate) / w0


def _refine_decay(
    real: F32, dephasing: F32, te: F32, rate: F32, log_s0: F32, iterations: int
) -> tuple[F32, F32]:
    """R2* and S0 by Gauss-Newton in (R2*, ln S0) on the real, demodulated signal."""
    tiny = np.finfo(np.float32).tiny
    for _ in range(iterations):
        model = dephasing * np.exp(log_s0[:, None] - along_echoes(rate, te))
        score = model * (real - model)
        model *= model
        w0, w1, w2 = model.sum(1), model @ te, model @ te**2
        r0, r1 = score.sum(1), score @ te
        determinant = np.maximum(w0 * w2 - w1**2, 1e-6 * w0 * w2 + tiny)
        log_s0 = log_s0 + np.clip((w2 * r0 - w1 * r1) / determinant, -1, 1)
        step = np.clip((w1 * r0 - w0 * r1) / determinant, -0.5 * rate - 20, 0.5 * rate + 20)
        rate = np.clip(rate + step, 0, DEEPEST / te[0])
    # With the rate at its bound S0 is the linear least-squares amplitude.
    model = dephasing * np.exp(along_echoes(-rate, te))
    amplitude = (model * real).sum(1) / np.maximum((model**2).sum(1), tiny)
    return rate, np.maximum(amplitude, 0)
