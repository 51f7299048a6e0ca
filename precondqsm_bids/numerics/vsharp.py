"""Background removal by means over spheres of several radii (V-SHARP)."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

from precondqsm_bids.numerics.arguments import checked
from precondqsm_bids.numerics.arrays import from_box
from precondqsm_bids.numerics.dipole import Geometry
from precondqsm_bids.numerics.solver import solver_grid

F32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

LARGEST_RADIUS = 12.0
"""Radius of the largest sphere, mm."""
LEAST_FRACTION = 0.4
"""Least fraction of the region that takes the largest sphere, by whose filter all is divided."""
STEP = np.sqrt(2)
"""Factor between radii."""
THRESHOLD = 0.05
"""Least size of the largest sphere's filter that is divided by."""


class TooThin(ValueError):
    """A region in which no sphere fits."""


class Vsharp(NamedTuple):
    """Result of :func:`vsharp`."""

    local_field: F32
    """Field of the sources inside the region, ppm, (X, Y, Z), zero outside ``known``."""
    background_field: F32
    """Field of the sources outside, ppm, zero there too."""
    known: Bools
    """Where a sphere fits: the region without its rim, (X, Y, Z)."""
    radii: tuple[float, ...]
    """Radii of the spheres, mm."""


@checked
def vsharp(
    field: npt.NDArray,
    geometry: Geometry,
    largest_radius: float = LARGEST_RADIUS,
    threshold: float = THRESHOLD,
) -> Vsharp:
    """Remove the field of sources outside the region by its mean-value property.

    A field of sources outside a sphere is harmonic within it, and its value at the centre is the
    mean over the sphere. With ``S_R`` that mean, ``f - S_R f`` has the sources inside alone. Each
    voxel takes the largest sphere that lies in the region with all its voxels; what the largest
    filter took of the inner sources is given back by division:

        g(r) = f - S_R(r) f,    f_local = F^-1 [F g / (1 - F S_Rmax)],   0 where it is < threshold

    Radii run from the largest edge of a voxel in steps of sqrt(2), as far as 0.4 of the region
    takes the largest: the division is right for those. In the rim, where not even the
    smallest sphere fits, the field is not known. On voxels of unequal edges a sphere of few of
    them is no sphere: its weights are ``1 + sum_i a_i (x_i^2 - <x_i^2>)`` with equal second
    moments, so that the mean is exact for every harmonic polynomial of second degree.

    Two transforms a radius and three besides, on the solver's grid; memory: 40 bytes per voxel of
    it. The direction of B0 and the noise do not enter.

    Parameters
    ----------
    field : (X, Y, Z) ndarray
        Measured (or flattened) field, ppm.
    geometry : Geometry
        Region of interest, voxel size (mm), threads.
    largest_radius : float
        mm.
    threshold : float
        Least size of the filter that is divided by.

    Raises
    ------
    ValueError
        Shapes differ, the mask is empty, or (:class:`TooThin`) no sphere fits into the region.

    References
    ----------
    Schweser et al., NeuroImage 2011;54:2789 (SHARP); Li, Wu & Liu, NeuroImage 2011;55:1645 and Wu
    et al., Magn Reson Med 2012;67:137 (radii that vary).

    Examples
    --------
    >>> z = np.indices((24, 24, 24))[2].astype(float)
    >>> found = vsharp(z, Geometry(np.ones(z.shape, bool), (1, 1, 1), (0, 0, 1)))
    >>> print(np.abs(found.local_field).max() < 1e-3, found.known.sum() == 22**3)
    True True
    """
    mask = geometry.mask
    if not mask.any():
        raise ValueError('the mask is empty: there is no field to remove a background from')
    grid, sizes = solver_grid(mask), np.asarray(geometry.voxel_size, float)
    padded = ndimage.distance_transform_edt(np.pad(mask[grid.box], 1), sampling=sizes)
    depth = padded[1:-1, 1:-1, 1:-1].astype(np.float32)
    taken = float(np.quantile(depth[depth > 0], 1 - LEAST_FRACTION))
    radii = _radii(sizes, min(largest_radius, taken / 1.0001))
    if depth.max() <= radii[0] * 1.00005:
        raise TooThin(
            f'the mask is nowhere deeper than {depth.max():.3g} mm: no sphere of a voxel '
            f'({sizes.max():g} mm) fits; take a larger mask or the background removal pdf'
        )
    # Far from zero a mean in float32 would lose digits; a constant is harmonic.
    spectrum = fft.rfftn(
        grid.embed(np.where(mask, field - field[mask].mean(), 0)), workers=geometry.workers
    )

    def back(values: npt.NDArray[np.complex64]) -> F32:
        return fft.irfftn(values, s=grid.shape, overwrite_x=True, workers=geometry.workers)

    filtered = np.zeros(grid.shape, np.float32)
    for radius in radii:
        kept = 1 - _sphere(grid.shape, sizes, radius, geometry.workers)
        fits = depth > radius * 1.00005
        filtered[grid.inner][fits] = back(spectrum * kept)[grid.inner][fits]
    inverse = np.where(np.abs(kept) < threshold, 0, 1 / np.maximum(np.abs(kept), 1e-6))
    local = back(fft.rfftn(filtered, workers=geometry.workers) * (inverse * np.sign(kept)))
    known = from_box(depth > radii[0] * 1.00005, grid.box, mask.shape)
    local = np.where(known, grid.extract(local, mask.shape), 0).astype(np.float32)
    background = np.where(known, field - local, 0).astype(np.float32)
    return Vsharp(local, background, known, tuple(radii))


def _radii(sizes: npt.NDArray, largest: float) -> list[float]:
    """From the largest edge of a voxel to the largest radius, increasing."""
    smallest = float(sizes.max())
    count = int(np.log(max(largest / smallest, 1)) / np.log(STEP) + 1e-9) + 1
    return [smallest * float(STEP) ** i for i in range(count)]


def _sphere(shape: tuple[int, int, int], sizes: npt.NDArray, radius: float, workers: int) -> F32:
    """Spectrum of the mean over the voxels within a radius, which is real."""
    x = [
        (fft.fftfreq(n, 1 / n) * size).reshape([-1 if i == axis else 1 for i in range(3)])
        for axis, (n, size) in enumerate(zip(shape, sizes, strict=True))
    ]
    inside = np.nonzero(x[0] ** 2 + x[1] ** 2 + x[2] ** 2 <= (radius * 1.00005) ** 2)
    squares = np.stack([axis.ravel()[i] ** 2 for axis, i in zip(x, inside, strict=True)])
    moments = squares.mean(axis=1)
    centred = squares - moments[:, None]
    # Weights of mean one whose second moments are the mean of the three
    covariance = centred @ centred.T / len(squares[0])
    slopes = np.linalg.lstsq(covariance, moments.mean() - moments, rcond=None)[0]
    weights = np.zeros(shape, np.float32)
    weights[inside] = (1 + slopes @ centred) / len(squares[0])
    return fft.rfftn(weights, workers=workers).real
