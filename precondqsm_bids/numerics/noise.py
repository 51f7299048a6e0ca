"""Noise of one channel: from air, from the object itself, from what the phase fit leaves."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.special import gamma, gammaincinv

from precondqsm_bids.numerics.phase_fit import chunks, turn_back

F32 = npt.NDArray[np.float32]
AIR_TOLERANCE = 0.03
"""Relative departure of the quantiles from those of the distribution that still counts as air."""
MOST_CHANNELS = 128
"""Most channels of a root sum of squares that are looked for."""
MOST_UNEVEN = 0.1
"""Relative deviation of medians over blocks of space, less that of noise, that is still air."""
MOST_BRIGHT = 0.7
"""Median of the air over that of the object in the first echo from which it is no air."""
MOST_DECAY = 1.3
"""Median of the first echo over that of the last from which it is no air: noise does not decay."""


class Air(NamedTuple):
    """What :func:`air_around` found."""

    noise_sd: float
    """Noise of one channel (real or imaginary), in the unit of the magnitude."""
    channels: float
    """Channels whose root sum of squares the magnitude is; 1 for a Rayleigh distribution."""

    @property
    def floor(self) -> float:
        """What the root sum of squares adds to the squared magnitude beyond one channel."""
        return 2 * max(self.channels - 1, 0) * self.noise_sd**2


def air_around(magnitude: npt.NDArray, object_mask: npt.NDArray[np.bool_]) -> Air | None:
    """Noise and channels from the air around the object, None where there is no such air.

    In air the squared magnitude over the noise variance is chi-square distributed, with two
    degrees of freedom for each channel of a root sum of squares; one channel makes a Rayleigh
    distribution. But what is around the object need not be air: scanners set the background to
    zero, damp or amplify it, and around a mask of the brain lies the scalp. So the ninth decile
    over the lower quartile tells the channels, and the median over the lower quartile must be that
    of so many, to 3 %; less than 1 % may be zero. Many channels are nearly normal, as any even
    medium with noise is: so medians over blocks of space must agree to 10 %, and the median must
    be below 0.7 of the object's in the first echo, and above 1 / 1.3 of its own there. The last
    echo is used: it holds the least ghosting and ringing.

    Parameters
    ----------
    magnitude : (X, Y, Z, E) ndarray
        Measured magnitude.
    object_mask : (X, Y, Z) ndarray of bool
        The whole object, not a region inside it.

    References
    ----------
    Gudbjartsson & Patz, Magn Reson Med 1995;34:910 (one channel). Constantinides et al., Magn
    Reson Med 1997;38:852 (several).

    Examples
    --------
    >>> rng, nowhere = np.random.default_rng(0), np.zeros((24, 24, 24), bool)
    >>> for channels in (1, 8):
    ...     noise = np.linalg.norm(rng.normal(0, 3, (2 * channels, 24, 24, 24, 1)), axis=0)
    ...     air = air_around(noise, nowhere)
    ...     print(round(air.noise_sd, 1), round(air.channels))
    3.0 1
    3.0 8
    >>> noise = np.hypot(*rng.normal(0, 3, (2, 24, 24, 24, 1)))
    >>> air_around(noise * np.linspace(1, 3, 24)[:, None, None, None], nowhere) is None  # uneven
    True
    """
    outside = ~ndimage.binary_dilation(object_mask, iterations=3)
    values = magnitude[..., -1][outside]
    if values.size < 1000 or np.count_nonzero(values <= 0) > 0.01 * values.size:
        return None
    quartile, median, decile = np.quantile(values, (0.25, 0.5, 0.9))
    channels = np.geomspace(0.5, MOST_CHANNELS, 400)
    quartiles, medians, deciles = (np.sqrt(2 * gammaincinv(channels, p)) for p in (0.25, 0.5, 0.9))
    best = int(np.argmin(np.abs(deciles / quartiles - decile / quartile)))
    fits = abs(median / quartile / (medians / quartiles)[best] - 1) < AIR_TOLERANCE
    if not fits or channels[best] < 0.8 or not _is_dark(magnitude, object_mask, outside, median):
        return None
    # Of the median of n values: sqrt(pi / 2n) standard deviations, here from the lower quartile.
    deviation = np.sqrt(np.pi / 2) * (median - quartile) / 0.6745 / median
    if _unevenness(magnitude[..., -1], outside, median, deviation) > MOST_UNEVEN:
        return None
    if channels[best] < 1.3:
        return Air(float(median / np.sqrt(2 * np.log(2))), 1.0)
    return Air(float(median / medians[best]), float(channels[best]))


def _is_dark(
    magnitude: npt.NDArray,
    object_mask: npt.NDArray[np.bool_],
    outside: npt.NDArray[np.bool_],
    median: float,
) -> bool:
    """The outside is darker than the object and does not decay, as noise does not."""
    first = magnitude[..., 0]
    if object_mask.any() and median > MOST_BRIGHT * np.median(first[object_mask]):
        return False
    return bool(np.median(first[outside]) < MOST_DECAY * median)


def _unevenness(
    volume: npt.NDArray, outside: npt.NDArray[np.bool_], median: float, deviation: float
) -> float:
    """Relative deviation of the medians over 4 x 4 x 4 blocks, less that of noise."""
    excess, total = 0.0, 0
    edges = [np.linspace(0, n, 5).astype(int) for n in volume.shape]
    for i, j, k in np.ndindex(4, 4, 4):
        block = tuple(slice(e[n], e[n + 1]) for e, n in zip(edges, (i, j, k), strict=True))
        values = volume[block][outside[block]]
        if values.size >= 100:
            of_noise = deviation**2 / values.size
            excess += values.size * ((np.median(values) / median - 1) ** 2 - of_noise)
            total += values.size
    return float(np.sqrt(max(excess, 0) / max(total, 1)))


def without_floor(magnitude: npt.NDArray, air: Air | None) -> npt.NDArray:
    """Magnitude freed of the floor that a root sum of squares has beyond that of one channel.

    ``sqrt(max(magnitude^2 - 2 (N - 1) sigma^2, 0))``: the mean square of a sum over N channels is
    that of the signal and ``2 N sigma^2``, that of one channel of the signal and ``2 sigma^2``.

    Parameters
    ----------
    magnitude : ndarray
        Measured magnitude.
    air : Air, optional
        What the air is; nothing is taken off without it.

    Examples
    --------
    >>> without_floor(np.array([5.0, 3.0]), Air(1.0, 9.0)).tolist()
    [3.0, 0.0]
    """
    if air is None or air.floor == 0:
        return magnitude
    squared = np.square(magnitude, dtype=np.result_type(magnitude, np.float32))
    return np.sqrt(np.maximum(squared - np.float32(air.floor), 0))


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
        values, inside = np.moveaxis(magnitude, axis, 0), np.moveaxis(mask, axis, 0)
        values = values.astype(np.float32, copy=False)  # integers without a sign would wrap
        whole = inside[:-2] & inside[1:-1] & inside[2:]
        second = values[:-2] - 2 * values[1:-1] + values[2:]
        differences.append(np.abs(second[whole]))
    found = np.concatenate(differences)
    return float(1.4826 * np.median(found) / np.sqrt(6)) if found.size else 0.0


def noise_from_residual(
    signal: npt.NDArray, to_rad: F32, field: F32, offset: F32, mask: npt.NDArray[np.bool_]
) -> tuple[float, F32]:
    """Noise of one channel, from the quadrature component that a free phase fit leaves.

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

    Parameters
    ----------
    signal : (V, E) ndarray of complex
        Echoes of the masked voxels.
    to_rad : (E,) ndarray
        Phase per field, rad/ppm.
    field, offset : (V,) ndarray
        Fitted field, ppm, and offset, rad.
    mask : (X, Y, Z) ndarray of bool
        The voxels.

    Returns
    -------
    noise_sd : float
        Median over the voxels.
    level : (V,) ndarray
        Local noise, in the unit of the signal, from a hundredth of ``noise_sd`` up.
    """
    variance, rough = _left_variance(signal, to_rad, field, offset)
    freedom = signal.shape[1] - 2
    measured = variance[variance > 0]  # a scanner may have set some of the voxels to zero
    if measured.size == 0:
        return 0.0, variance
    noise_sd = float(np.sqrt(np.median(measured) / _chi2_median(freedom)))
    level = _variance_level(variance / np.float32(noise_sd**2), freedom, mask, 7)
    if rough is not None:
        freedom = signal.shape[1] - 1 - _degree(signal.shape[1])
        close = _variance_level(rough / np.float32(noise_sd**2), freedom, mask, 3)
        level = np.where(close > 2.25 * level, close, level)
    return noise_sd, np.float32(noise_sd) * np.sqrt(np.maximum(level, np.float32(1e-4)))


def _degree(echoes: int) -> int:
    """Degree of the polynomial in TE beyond which nothing but noise is expected."""
    return min(3, echoes - 2)


def _chi2_median(freedom: int) -> float:
    """Median of a chi-square variable over its degrees of freedom."""
    return 2 * float(gammaincinv(freedom / 2, 0.5)) / freedom


def _left_variance(
    signal: npt.NDArray, to_rad: F32, field: F32, offset: F32
) -> tuple[F32, F32 | None]:
    """Variance per degree of freedom of the quadrature component, and of its rough part.

    The rough part, of four echoes or more, is what the polynomial in TE leaves of the phase.
    """
    echoes = signal.shape[1]
    degree = _degree(echoes)
    t = (2 * (to_rad - to_rad[0]) / (to_rad[-1] - to_rad[0]) - 1).astype(np.float32)
    powers = t[:, None] ** np.arange(2 * degree + 1, dtype=np.float32)  # (E, 2 degree + 1)
    index = np.arange(degree + 1)
    index = index[:, None] + index
    variance = np.empty(len(signal), np.float32)
    rough = np.empty_like(variance) if echoes > 3 else None
    for part in chunks(len(signal)):
        turn = turn_back(offset[part, None] + field[part, None] * to_rad)
        s = signal[part] * turn
        quadrature, amplitude = s.imag, np.abs(s)
        variance[part] = (quadrature**2).sum(1) / (echoes - 2)
        if rough is None:
            continue
        normal = (amplitude**2 @ powers)[:, index].astype(np.float64)
        normal += 1e-6 * normal[:, :1, :1] * np.eye(degree + 1) + 1e-30 * np.eye(degree + 1)
        right = (amplitude * quadrature) @ powers[:, : degree + 1]
        found = np.linalg.solve(normal, right[..., None].astype(np.float64))[..., 0]
        left = quadrature - amplitude * (found.astype(np.float32) @ powers[:, : degree + 1].T)
        rough[part] = (left**2).sum(1) / (echoes - 1 - degree)
    return variance, rough


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


def local_level(values: F32, sd: F32, mask: npt.NDArray[np.bool_], size: int = 7) -> F32:
    """Robust mean of ``values`` over the cube of ``size`` voxels around each masked voxel.

    Weights are ``1 / sd^2``, but no voxel counts more than the median one; values beyond three
    deviations of the level are left out, in four rounds.

    Parameters
    ----------
    values, sd : (V,) ndarray
        Values at the masked voxels and their standard deviations.
    mask : (X, Y, Z) ndarray of bool
        The voxels.
    size : int
        Edge of the cube, voxels.
    """

    def box(v: npt.NDArray) -> F32:
        volume = np.zeros(mask.shape, np.float32)
        volume[mask] = v
        return ndimage.uniform_filter(volume, size, mode='constant')[mask]

    limit = np.float32(np.median(sd))
    tiny = np.float32(np.finfo(np.float32).tiny)
    least = np.float32(0.5e-6 / size**3)
    weight = np.square(limit / np.maximum(sd, limit), dtype=np.float32)
    weight = np.maximum(weight, np.float32(1e-6))  # beyond which sums over the cube lose it
    low, high = np.median(values) + np.array([-100, 100], np.float32) * limit
    clipped = np.clip(values, low, high)
    level, kept = clipped, weight
    for _ in range(4):
        total = box(kept)
        found = box(kept * clipped) / np.maximum(total, tiny)
        # Where all of a cube were left out its last level stands.
        level = np.where(total > least, found, level)
        left = np.abs(clipped - level)
        spread = np.maximum(sd, np.float32(1.4826 * np.median(left)))
        kept = np.where(left < 3 * spread, weight, np.float32(0))
    return level.astype(np.float32)
