"""Background removal: projection onto dipole fields (PDF)."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from precondqsm_bids.numerics.solver import DipoleSystem

F32 = npt.NDArray[np.float32]


class BackgroundRemoval(NamedTuple):
    """Result of :func:`pdf`, (X, Y, Z), zero outside the mask."""

    local_field: F32
    """Field of the sources inside the mask, ppm."""
    background_field: F32
    """Field of the sources outside, ppm."""
    relative_residual: float
    """Norm of the gradient of the last iteration over that of the first."""


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
    voxel_size, b0_dir : (3,) array_like
        Voxel size, mm; direction of B0 along the voxel axes.
    weights : (X, Y, Z) ndarray, optional
        ``W``, see :func:`noise_weights`; one if omitted.
    iterations : int
        Conjugate-gradient iterations.
    workers : int
        Threads of the Fourier transforms.

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
    system = DipoleSystem(mask, voxel_size, b0_dir, workers)
    outside = np.float32(1) - system.grid.embed(mask)
    w_squared = system.grid.embed(mask if weights is None else weights * mask) ** 2
    sources = np.zeros(system.grid.shape, np.float32)
    residual = system.grid.embed(field * mask)
    ratio = system.descend(sources, residual, w_squared, outside, iterations)
    background = system.grid.extract(system.convolve(sources), mask.shape)
    background[~mask] = 0
    local = np.where(mask, field - background, 0).astype(np.float32)
    return BackgroundRemoval(local, background, ratio)
