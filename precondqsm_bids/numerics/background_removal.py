"""Background removal: projection onto dipole fields (PDF), or means over spheres (V-SHARP)."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from precondqsm_bids.method import BACKGROUNDS, Arm
from precondqsm_bids.numerics.arguments import checked
from precondqsm_bids.numerics.dipole import Geometry
from precondqsm_bids.numerics.solver import DipoleSystem
from precondqsm_bids.numerics.vsharp import TooThin, vsharp

F32 = npt.NDArray[np.float32]

LEAST_KNOWN = 0.5
"""Fraction of the region that spheres must know for `vsharp-or-pdf` to take them. A brain keeps
0.93 at 2 mm and 0.85 at 4 mm; a slab of it at 2 mm 0.72 of eight slices, 0.57 of five, 0.48 of
four."""


class BackgroundRemoval(NamedTuple):
    """Result of :func:`pdf` and :func:`remove_background`, (X, Y, Z), zero outside ``known``."""

    local_field: F32
    """Field of the sources inside the mask, ppm."""
    background_field: F32
    """Field of the sources outside, ppm."""
    relative_residual: float
    """Norm of the gradient of the last iteration over that of the first; not a number without
    iterations."""
    known: npt.NDArray[np.bool_]
    """Where the fields are known: the mask, or the mask without its rim."""
    radii: tuple[float, ...] = ()
    """Radii of the spheres, mm."""
    start: str = 'zero'
    """What the iterations started with: ``zero``, or the sources of the ``prior_fit``."""

    def record(self, arm: Arm, model_error: float | None) -> dict[str, Any]:
        """Choices as plain numbers; ``model_error`` is None without weights."""
        record: dict[str, Any] = {'method': 'vsharp' if self.radii else 'pdf'}
        if arm.background != 'pdf':
            record['known_voxels'] = int(np.count_nonzero(self.known))
        if self.radii:
            record['radii'] = list(self.radii)
            return record
        record['iterations'] = arm.iterations
        record['start'] = self.start
        record['relative_residual'] = self.relative_residual
        record['noise_weights'] = model_error is not None
        record['model_error'] = model_error
        return record


@checked
def pdf(
    field: npt.NDArray,
    mask: npt.NDArray[np.bool_],
    voxel_size: npt.ArrayLike,
    b0_dir: npt.ArrayLike,
    weights: npt.NDArray | None = None,
    iterations: int = 30,
    workers: int = 1,
    *,
    start: npt.NDArray | None = None,
) -> BackgroundRemoval:
    """Remove the field of sources outside the mask.

    Solves ``min_x || W (f - D x) ||^2`` over susceptibilities ``x`` that are zero inside the
    mask, by conjugate gradients on the normal equations. The iteration is semi-convergent: its
    number regularises, and 30 is right; hundreds fit noise and local sources.

    Memory: 32 bytes per voxel of the mask's box with its margin; transforms: two pairs an
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
    start : ndarray, optional
        ``x`` to begin with, ppm, on the grid of
        :func:`~precondqsm_bids.numerics.solver.solver_grid`, as
        :attr:`PriorFit.outer_chi <precondqsm_bids.numerics.PriorFit>` is; zero if omitted.

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
    if not mask.any():
        raise ValueError('the mask is empty: there is no field to remove a background from')
    if iterations < 1:
        raise ValueError(f'the number of PDF iterations must be positive: {iterations}')
    system = DipoleSystem(mask, voxel_size, b0_dir, workers)
    outside = system.grid.outside(mask)
    w_squared = system.grid.in_box(mask if weights is None else weights * mask) ** 2
    residual = system.grid.in_box(field * mask)
    if start is None:
        sources = np.zeros(system.grid.shape, np.float32)
    elif start.shape != system.grid.shape:
        raise ValueError(
            f'start {start.shape} is not on the grid of this mask {system.grid.shape}: take the '
            'sources of a fit with the same mask'
        )
    else:
        sources = outside * start
        residual -= system.convolve(sources)[system.grid.inner]
    ratio = system.descend(sources, residual, w_squared, outside, iterations)
    background = system.grid.extract(system.convolve(sources), mask.shape)
    background[~mask] = 0
    local = np.where(mask, field - background, 0).astype(np.float32)
    begun = 'zero' if start is None else 'prior_fit'
    return BackgroundRemoval(local, background, ratio, mask, start=begun)


@checked
def remove_background(
    field: npt.NDArray,
    geometry: Geometry,
    arm: Arm,
    weights: npt.NDArray | None = None,
    start: npt.NDArray | None = None,
) -> BackgroundRemoval:
    """Remove the field of sources outside the region, as an arm of the method has it.

    Parameters
    ----------
    field : (X, Y, Z) ndarray
        Measured (or flattened) field, ppm.
    geometry : Geometry
        Region of interest, voxel size (mm), direction of B0, threads.
    arm : Arm
        Its ``background`` and ``iterations`` count: :func:`pdf` or :func:`vsharp`, or the second
        where it knows half of the region and the first elsewhere.
    weights : (X, Y, Z) ndarray, optional
        ``W`` of :func:`pdf`; the spheres have none.
    start : ndarray, optional
        Sources that :func:`pdf` begins with, ppm.

    Raises
    ------
    ValueError
        What the functions raise, or a word that is not known.

    Examples
    --------
    >>> z = np.indices((16, 16, 16))[2] / 100
    >>> geometry = Geometry(z < 9, (1, 1, 1), (0, 0, 1))
    >>> words = 'pdf', 'vsharp', 'vsharp-or-pdf'
    >>> [int(remove_background(z, geometry, Arm(background=word)).known.sum()) for word in words]
    [4096, 2744, 2744]
    """
    if arm.background not in BACKGROUNDS:
        raise ValueError(
            f'the background removal is one of {", ".join(BACKGROUNDS)}, not {arm.background!r}'
        )
    mask, voxel_size, b0_dir, workers = geometry
    otherwise = arm.background == 'vsharp-or-pdf'
    if arm.background != 'pdf':
        try:
            found = vsharp(field, geometry)
        except TooThin:
            if not otherwise:
                raise
        else:
            known = np.count_nonzero(found.known)
            if not otherwise or known >= LEAST_KNOWN * np.count_nonzero(mask):
                return BackgroundRemoval(
                    found.local_field, found.background_field, np.nan, found.known, found.radii
                )
    return pdf(field, mask, voxel_size, b0_dir, weights, arm.iterations, workers, start=start)
