"""Air around the object: its noise, the channels of the magnitude, and their floor."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import gammaincinv

from precondqsm_bids.numerics.arrays import median as middle
from precondqsm_bids.numerics.morphology import dilated

LEAST_AIR, MOST_ZERO = 1_000, 0.01
"""Fewest voxels of air, and fraction of them without signal from which a scanner has set it to
zero."""
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
    """Result of :func:`air_around`."""

    noise_sd: float
    """Noise of one channel (real or imaginary), in the unit of the magnitude."""
    channels: float
    """Channels whose root sum of squares the magnitude is; 1 for a Rayleigh distribution."""

    @property
    def floor(self) -> float:
        """Addition of the root sum of squares to the squared magnitude beyond one channel."""
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
    outside = air_voxels(magnitude[..., -1], object_mask, 3)
    if outside is None:
        return None
    values = magnitude[..., -1][outside]
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


def air_voxels(
    magnitude: npt.NDArray, object_mask: npt.NDArray[np.bool_], margin: int
) -> npt.NDArray[np.bool_] | None:
    """Voxels that are ``margin`` off the object, (X, Y, Z) as the magnitude of one echo.

    None if they are less than 1,000, or more than 1 % of them zero: a scanner may have set them.

    >>> nowhere = np.zeros((24, 24, 24), bool)
    >>> air_voxels(np.ones(nowhere.shape), nowhere, 1).all()
    np.True_
    >>> air_voxels(np.zeros(nowhere.shape), nowhere, 1) is None
    True
    """
    outside = ~dilated(object_mask, margin)
    values = magnitude[outside]
    if values.size < LEAST_AIR or np.count_nonzero(values <= 0) > MOST_ZERO * values.size:
        return None
    return outside


def _is_dark(
    magnitude: npt.NDArray,
    object_mask: npt.NDArray[np.bool_],
    outside: npt.NDArray[np.bool_],
    median: float,
) -> bool:
    """The outside is darker than the object and does not decay, as noise does not."""
    first = magnitude[..., 0]
    if object_mask.any() and median > MOST_BRIGHT * middle(first[object_mask]):
        return False
    return bool(middle(first[outside]) < MOST_DECAY * median)


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

    Nothing is taken off where nothing is known of the air.

    >>> without_floor(np.array([5.0, 3.0]), Air(1.0, 9.0)).tolist()
    [3.0, 0.0]
    """
    if air is None or air.floor == 0:
        return magnitude
    squared = np.square(magnitude, dtype=np.result_type(magnitude, np.float32))
    return np.sqrt(np.maximum(squared - np.float32(air.floor), 0))
