"""Background removal: projection onto dipole fields (PDF)."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import fft

from precondqsm_bids.numerics.dipole import dipole_kernel, solver_grid

F32 = npt.NDArray[np.float32]
FLOOR = 0.05
"""What the model does not know of the field, ppm: it keeps strong sources, whose signal decays
fast, from losing their say to the noise alone."""


class BackgroundRemoval(NamedTuple):
    """What :func:`pdf` computed, (X, Y, Z), zero outside the mask."""

    local_field: F32
    """Field of the sources inside the mask, ppm."""
    background_field: F32
    """Field of the sources outside, ppm."""
    relative_residual: float
    """Norm of the gradient of the last iteration over that of the first."""


def noise_weights(
    field_sd: npt.NDArray, mask: npt.NDArray[np.bool_], floor: float = FLOOR
) -> npt.NDArray[np.float32]:
    """Weights ``1 / sqrt(field_sd^2 + floor^2)``, scaled to a root mean square of one.

    Parameters
    ----------
    field_sd : (X, Y, Z) ndarray
        Standard deviation of the field, ppm.
    mask : (X, Y, Z) ndarray of bool
        Region of interest; the weight is zero outside.
    floor : float
        What the model does not know, ppm.

    Examples
    --------
    >>> noise_weights(np.full((1, 1, 2), 0.1), np.ones((1, 1, 2), bool)).round(3)
    array([[[1., 1.]]], dtype=float32)
    """
    variance = field_sd[mask].astype(np.float64) ** 2 + floor**2
    positive = variance[variance > 0]
    # A voxel without noise (simulated data) must not outweigh all others.
    least = 1e-6 * np.median(positive) if positive.size else 1.0
    values = 1 / np.sqrt(np.maximum(variance, least))
    weights = np.zeros(mask.shape, np.float32)
    weights[mask] = values / np.sqrt(np.mean(values**2))
    return weights


def pdf(
    field: npt.NDArray,
    mask: npt.NDArray[np.bool_],
    voxel_size: npt.ArrayLike,
    b0_dir: npt.ArrayLike,
    weights: npt.NDArray | None = None,
    iterations: int = 30,
    workers: int = 1,
) -> BackgroundRemoval:
    """Remove the field of sources outside the mask.

    Solves ``min_x || W (f - D x) ||^2`` over susceptibilities ``x`` that are zero inside the
    mask, by conjugate gradients on the normal equations. The iteration is semi-convergent: its
    number regularises, and 30 is right; hundreds fit noise and local sources.

    Memory: 36 bytes per voxel of the mask's box with its margin; transforms: two pairs an
    iteration and one at either end.

    Parameters
    ----------
    field : (X, Y, Z) ndarray
        Measured (or flattened) field, ppm.
    mask : (X, Y, Z) ndarray of bool
        Region of interest.
    voxel_size : (3,) array_like
        Voxel size, mm.
    b0_dir : (3,) array_like
        Direction of B0 along the voxel axes.
    weights : (X, Y, Z) ndarray, optional
        ``W``, see :func:`noise_weights`; one if omitted.
    iterations : int
        Conjugate-gradient iterations.
    workers : int
        Threads of the Fourier transforms.

    Returns
    -------
    BackgroundRemoval

    Raises
    ------
    ValueError
        The mask is empty, shapes differ, or ``iterations`` is not positive.

    References
    ----------
    Liu T et al., NMR Biomed 2011;24:1129.

    Examples
    --------
    A source outside is removed, one inside stays:

    >>> from precondqsm_bids.numerics.dipole import forward_field
    >>> x, y, z = np.indices((32, 32, 32)) - 16
    >>> mask = x**2 + y**2 + z**2 < 8**2
    >>> outside = forward_field((abs(x - 12) + abs(y) + abs(z) < 3) * 5.0, (1, 1, 1), (0, 0, 1))
    >>> left = pdf(outside, mask, (1, 1, 1), (0, 0, 1)).local_field
    >>> print(np.linalg.norm(left) / np.linalg.norm(outside[mask]) < 0.05)
    True
    """
    if field.shape != mask.shape or (weights is not None and weights.shape != mask.shape):
        raise ValueError(f'field {field.shape}, mask {mask.shape} or weights differ in shape')
    if not mask.any():
        raise ValueError('the mask is empty: there is no field to remove a background from')
    if iterations < 1:
        raise ValueError(f'the number of PDF iterations must be positive: {iterations}')
    grid = solver_grid(mask)
    inside = np.zeros(grid.shape, bool)
    inside[grid.inner] = mask[grid.box]
    w_squared = grid.embed(mask if weights is None else weights * mask) ** 2
    kernel = dipole_kernel(grid.shape, voxel_size, b0_dir)

    def convolve(x: F32) -> F32:
        spectrum = fft.rfftn(x, workers=workers)
        spectrum *= kernel
        return fft.irfftn(spectrum, s=grid.shape, overwrite_x=True, workers=workers)

    def adjoint(y: F32) -> F32:
        out = convolve(y)
        out[inside] = 0
        return out

    residual = adjoint(w_squared * grid.embed(field * mask))
    direction = residual.copy()
    x = np.zeros(grid.shape, np.float32)
    energy = first = dot(residual, residual)
    for _ in range(iterations):
        if energy <= 1e-10 * first:
            break
        image = convolve(direction)
        image *= w_squared
        image = adjoint(image)
        step = np.float32(energy / dot(direction, image))
        x += step * direction
        image *= step
        residual -= image
        previous, energy = energy, dot(residual, residual)
        direction *= np.float32(energy / previous)
        direction += residual
    background = grid.extract(convolve(x), mask.shape)
    background[~mask] = 0
    local = np.where(mask, field - background, 0).astype(np.float32)
    ratio = float(np.sqrt(energy / first)) if first > 0 else 0.0
    return BackgroundRemoval(local, background, ratio)


def dot(a: F32, b: F32) -> float:
    """Inner product, summed in double precision.

    Not a BLAS call: on a busy machine the threads of one cost hundreds of times the sum.
    """
    return float(np.sum(a * b, dtype=np.float64))
