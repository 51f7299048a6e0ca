"""Smoothing of a contrast: as far as it varies by its noise, and no further."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

F32 = npt.NDArray[np.float32]
WIDTH = 0.8
"""Standard deviation of the Gaussian neighbourhood, voxels: the noise is that of each voxel."""
REACH = 3
"""Its reach, in standard deviations."""


def without_noise(image: npt.NDArray, sd: npt.NDArray, mask: npt.NDArray[np.bool_]) -> F32:
    """Image whose departures from their neighbourhood are reduced by what noise has of them.

        y = m + (1 - s) (x - m),    s = min(c sd^2 / V, 1)

    with ``m`` a Gaussian mean over the mask (:data:`WIDTH`), ``V`` such a mean of ``(x - m)^2``,
    and ``c sd^2`` what white noise would have of it: ``c`` is the sum of squares of the filter
    that makes ``x - m``. Where edges make ``V`` large, or the noise is small, the image stays.

    Memory: 24 bytes per voxel; no Fourier transform.

    Parameters
    ----------
    image : (X, Y, Z) ndarray
        Any unit.
    sd : (X, Y, Z) ndarray
        Standard deviation of its noise, in that unit.
    mask : (X, Y, Z) ndarray of bool
        Voxels that are known: the others are neither changed nor neighbours.

    References
    ----------
    Lee JS, IEEE Trans Pattern Anal Mach Intell 1980;2:165.

    Examples
    --------
    >>> noise = np.random.default_rng(0).normal(0, 1, (20, 20, 20))
    >>> image = noise + 20 * (np.indices(noise.shape)[0] > 9)
    >>> left = without_noise(image, np.ones_like(image), np.ones(image.shape, bool))
    >>> print(left[:6].std() < 0.4, round(left[10:].mean() - left[:10].mean()))
    True 20
    """
    weight = ndimage.gaussian_filter(mask.astype(np.float32), WIDTH, truncate=REACH)
    np.maximum(weight, np.finfo(np.float32).tiny, out=weight)

    def mean(values: npt.NDArray) -> F32:
        known = np.where(mask, values, np.float32(0))
        return ndimage.gaussian_filter(known, WIDTH, truncate=REACH) / weight

    image = image.astype(np.float32, copy=False)
    departure = image - mean(image)
    of_noise = _noise_of_departure() * np.square(sd, dtype=np.float32)
    variance = np.maximum(mean(departure**2), np.finfo(np.float32).tiny)
    share = of_noise / np.maximum(variance, of_noise)
    return np.where(mask, image - share * departure, image)


def _noise_of_departure() -> np.float32:
    """Variance that white noise of variance one has after ``x - m``."""
    voxel = np.zeros((2 * REACH + 1,) * 3)
    voxel[(REACH,) * 3] = 1
    return np.float32(np.sum((voxel - ndimage.gaussian_filter(voxel, WIDTH, truncate=REACH)) ** 2))
