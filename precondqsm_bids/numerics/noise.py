"""Noise of one channel: from the object itself, and from what the phase fit leaves."""

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.special import gamma, gammaincinv

from precondqsm_bids.numerics.arguments import checked
from precondqsm_bids.numerics.arrays import median, side_by_side
from precondqsm_bids.numerics.echoes import Echoes

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
CHUNK = 1 << 15
"""Voxels that are handled at a time: temporaries stay in the processor's cache."""
PLANES = 4
"""Planes whose second differences are taken at a time."""


@checked
def noise_inside(magnitude: npt.NDArray, mask: npt.NDArray[np.bool_]) -> float:
    """Noise of one channel from the object itself, for images without air around it.

    The second difference along an axis takes off what is smooth and leaves noise of ``sqrt(6)``
    times the standard deviation; the median of its size is not moved by edges.

    Parameters
    ----------
    magnitude : (X, Y, Z) ndarray
        Measured magnitude of one echo, well above the noise in most of the mask.
    mask : (X, Y, Z) ndarray of bool
        The object.

    Examples
    --------
    >>> noise = np.random.default_rng(0).normal(100, 3, (24, 24, 24))
    >>> print(round(noise_inside(noise, np.ones(noise.shape, bool)), 1))
    3.0
    """
    differences = []
    for axis in range(3):
        places = [
            tuple(part if a == axis else slice(None) for a in range(3))
            for part in (slice(None, -2), slice(1, -1), slice(2, None))
        ]
        for k in range(0, len(mask), PLANES):
            near = slice(k, k + PLANES + (2 if axis == 0 else 0))
            values = magnitude[near].astype(np.float32, copy=False)  # unsigned ones would wrap
            whole = np.logical_and.reduce([mask[near][place] for place in places])
            low, middle, high = (values[place] for place in places)
            differences.append(np.abs((low - 2 * middle + high)[whole]))
    found = np.concatenate(differences)
    return float(1.4826 * median(found) / np.sqrt(6)) if found.size else 0.0


def noise_from_residual(echoes: Echoes, field: F32, offset: F32) -> tuple[float, F32]:
    """Noise of one channel, and its local level (V,), from what a free phase fit leaves.

    Field (ppm) and offset (rad) are those of the fit, (V,); what counts is the quadrature.

    Each voxel spends two of its E degrees of freedom, three or more, on field and offset; the rest
    over the noise variance is chi-square distributed, whose median over the voxels gives the
    noise. Noise varies in space: prescan normalisation and parallel imaging amplify it, and where
    coils cancel in the combination only the phase is noisy. So its local level is that of the
    cube root of the variance, which is nearly normal (Wilson & Hilferty), as a robust mean over
    7 x 7 x 7 voxels: what a wall of a strong source leaves is no noise. At the core of a pole the
    phase is noise in a few voxels only; from four echoes on, a polynomial in TE of up to third
    degree is taken off, which describes what a wall does to the phase, and where the mean over
    3 x 3 x 3 voxels of what is left is higher by a half, it counts.

    Memory: 90 bytes per voxel; no Fourier transform.
    """
    variance, rough = _left_variance(echoes, field, offset)
    number = echoes.echo_times.size
    freedom = number - 2
    measured = variance[variance > 0]  # a scanner may have set some of the voxels to zero
    if measured.size == 0:
        return 0.0, variance
    noise_sd = float(np.sqrt(median(measured) / _chi2_median(freedom)))
    kinds = [(variance, freedom, 7)]
    if rough is not None:
        kinds.append((rough, number - 1 - _degree(number), 3))
    level, *close = side_by_side(
        echoes.workers,
        *(
            partial(_variance_level, values / np.float32(noise_sd**2), free, echoes.mask, size)
            for values, free, size in kinds
        ),
    )
    if close:
        level = np.where(close[0] > 2.25 * level, close[0], level)
    return noise_sd, np.float32(noise_sd) * np.sqrt(np.maximum(level, np.float32(1e-4)))


def _degree(echoes: int) -> int:
    """Degree of the polynomial in TE beyond which nothing but noise is expected."""
    return min(3, echoes - 2)


def _chi2_median(freedom: int) -> float:
    """Median of a chi-square variable over its degrees of freedom."""
    return 2 * float(gammaincinv(freedom / 2, 0.5)) / freedom


def _left_variance(echoes: Echoes, field: F32, offset: F32) -> tuple[F32, F32 | None]:
    """Variance per degree of freedom of the quadrature component, and of its rough part.

    The rough part, of four echoes or more, is what the polynomial in TE leaves of the phase.
    """
    to_rad, number = echoes.to_rad, echoes.echo_times.size
    degree = _degree(number)
    t = (2 * (to_rad - to_rad[0]) / (to_rad[-1] - to_rad[0]) - 1).astype(np.float32)
    powers = t[:, None] ** np.arange(2 * degree + 1, dtype=np.float32)  # (E, 2 degree + 1)
    index = np.arange(degree + 1)
    index = index[:, None] + index
    variance = np.empty_like(field)
    rough = np.empty_like(variance) if number > 3 else None

    def measure(part: slice) -> None:
        s = echoes.demodulated(field, offset, part)
        quadrature, amplitude = s.imag, np.abs(s)
        variance[part] = (quadrature**2).sum(1) / (number - 2)
        if rough is None:
            return
        normal = (powers.T @ (amplitude**2).T).astype(np.float64)[index]
        normal[range(degree + 1), range(degree + 1)] += 1e-6 * normal[0, 0] + 1e-30
        right = powers[:, : degree + 1].T @ (amplitude * quadrature).T
        found = _solve(normal, right.astype(np.float64)).astype(np.float32)
        left = quadrature - amplitude * (powers[:, : degree + 1] @ found).T
        rough[part] = (left**2).sum(1) / (number - 1 - degree)

    echoes.in_chunks(measure)
    return variance, rough


def _solve(normal: F64, right: F64) -> F64:
    """Solutions (K, V) of V systems with positive definite matrices (K, K, V), all at a time.

    By Gaussian elimination, which needs no pivots there; both arguments are overwritten.
    """
    size = len(right)
    for i in range(size):
        for j in range(i + 1, size):
            factor = normal[j, i] / normal[i, i]
            normal[j, i + 1 :] -= factor * normal[i, i + 1 :]
            right[j] -= factor * right[i]
    for i in reversed(range(size)):
        right[i] -= (normal[i, i + 1 :] * right[i + 1 :]).sum(0)
        right[i] /= normal[i, i]
    return right


def _variance_level(ratio: F32, freedom: int, mask: npt.NDArray[np.bool_], size: int) -> F32:
    """Local level of a variance ratio that is chi-square distributed over its freedom."""
    # Moments of its cube root; the approximation of Wilson & Hilferty is 3 % off for one.
    mean, square = (
        (2 / freedom) ** power * gamma(freedom / 2 + power) / gamma(freedom / 2)
        for power in (1 / 3, 2 / 3)
    )
    sd = np.sqrt(square - mean**2)
    root = np.cbrt(ratio) / np.float32(mean)
    deviation = np.full(root.shape, sd / mean, np.float32)
    return local_level(root.astype(np.float32), deviation, mask, size) ** 3


def local_level(
    values: F32, sd: F32, mask: npt.NDArray[np.bool_], size: int = 7, workers: int = 1
) -> F32:
    """Robust mean of values (V,) over the cube of ``size`` voxels around each masked voxel.

    Weights are ``1 / sd^2`` by the values' standard deviations, but no voxel counts more than the
    median one; values beyond three deviations of the level are left out, in four rounds.
    """

    def means() -> Callable[[F32], F32]:
        volume = np.zeros(mask.shape, np.float32)
        mean = np.empty_like(volume)

        def box(v: F32) -> F32:
            volume[mask] = v
            ndimage.uniform_filter(volume, size, mean, mode='constant')
            return mean[mask]

        return box

    one = means()
    other = means() if workers > 1 else one
    limit = np.float32(median(sd))
    tiny = np.float32(np.finfo(np.float32).tiny)
    least = np.float32(0.5e-6 / size**3)
    weight = np.square(limit / np.maximum(sd, limit), dtype=np.float32)
    weight = np.maximum(weight, np.float32(1e-6))  # beyond which sums over the cube lose it
    low, high = median(values) + np.array([-100, 100], np.float32) * limit
    clipped = np.clip(values, low, high)
    level, left, kept, product = clipped.copy(), np.empty_like(clipped), weight, weight * clipped
    chunks = [slice(k, k + CHUNK) for k in range(0, len(values), CHUNK)]
    for last in (False, False, False, True):
        total, found = side_by_side(workers, partial(one, kept), partial(other, product))
        for part in chunks:
            # Where all of a cube were left out its last level stands.
            mean = found[part] / np.maximum(total[part], tiny)
            level[part] = np.where(total[part] > least, mean, level[part])
            left[part] = np.abs(clipped[part] - level[part])
        if last:
            break
        usual, kept = np.float32(1.4826 * median(left)), np.empty_like(weight)
        for part in chunks:
            near = left[part] < 3 * np.maximum(sd[part], usual)
            kept[part] = np.where(near, weight[part], np.float32(0))
            product[part] = kept[part] * clipped[part]
    return level.astype(np.float32)
