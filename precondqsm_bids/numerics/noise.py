"""Noise of one channel: from air, from the object itself, from what the phase fit leaves."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

F32 = npt.NDArray[np.float32]


def noise_level(magnitude: npt.NDArray, mask: npt.NDArray[np.bool_]) -> float | None:
    """Noise of one channel from the air around the object, None where there is no air.

    In air the magnitude is Rayleigh distributed, of median ``sigma sqrt(2 ln 2)``. The last echo
    is used: it holds the least ghosting and ringing.

    Parameters
    ----------
    magnitude : (X, Y, Z, E) ndarray
        Measured magnitude.
    mask : (X, Y, Z) ndarray of bool
        The object.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> noise = np.hypot(*rng.normal(0, 3, (2, 20, 20, 20, 1)))
    >>> print(round(noise_level(noise, np.zeros((20, 20, 20), bool)), 1))
    3.0
    """
    air = ~ndimage.binary_dilation(mask, iterations=3)
    values = magnitude[..., -1][air]
    values = values[values > 0]  # scanners may blank the air
    if values.size < 1000:
        return None
    return float(np.median(values) / np.sqrt(2 * np.log(2)))


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
        whole = inside[:-2] & inside[1:-1] & inside[2:]
        second = values[:-2] - 2 * values[1:-1] + values[2:]
        differences.append(np.abs(second[whole]))
    found = np.concatenate(differences)
    return float(1.4826 * np.median(found) / np.sqrt(6)) if found.size else 0.0


def noise_from_residual(signal: npt.NDArray, to_rad: F32, field: F32, offset: F32) -> float:
    """Noise of one channel, from the quadrature component that the phase fit leaves.

    Each voxel spends two of its E degrees of freedom on the fit. The median over voxels keeps
    out those that the model does not describe.
    """
    echoes = signal.shape[1]
    quadrature = (signal * np.exp(-1j * (offset[:, None] + field[:, None] * to_rad))).imag
    if echoes < 3:
        return float(np.abs(signal).max()) * 1e-2
    variance = (quadrature**2).sum(1) / (echoes - 2)
    # Median of a chi-square over its mean, Wilson & Hilferty.
    return float(np.sqrt(np.median(variance) / (1 - 2 / (9 * (echoes - 2))) ** 3))
