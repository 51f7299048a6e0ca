"""Closed form of the l2 inversion: division in k-space, on the grid of the solvers."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import fft

from precondqsm_bids.numerics.arguments import checked
from precondqsm_bids.numerics.dipole import Geometry, dipole_kernel, frequencies
from precondqsm_bids.numerics.solver import DipoleGrid, solver_grid

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


def gradient_power(shape: tuple[int, int, int], voxel_size: npt.ArrayLike) -> F32:
    """``|G|^2`` of the forward difference, ``sum_i (2 - 2 cos(2 pi k_i h_i)) / h_i^2``, 1/mm^2.

    On the half spectrum of ``shape``.

    >>> gradient_power((2, 2, 2), (1, 1, 1))[1, 1, 1].item()
    12.0
    """
    h = np.asarray(voxel_size, float)
    k = frequencies(shape, h)
    return sum(
        ((2 - 2 * np.cos(2 * np.pi * ki * hi)) / hi**2).astype(np.float32)
        for ki, hi in zip(k, h, strict=True)
    )


class ClosedForm(NamedTuple):
    """``chi = F^-1 [D F f / (D^2 + lambda^2 |G|^2)]`` of one region, for many fields and lambdas.

    >>> mask = np.ones((8, 8, 8), bool)
    >>> form = closed_form(Geometry(mask, (1, 1, 1), (0, 0, 1)))
    >>> spectrum = form.spectrum(np.random.default_rng(0).normal(size=mask.shape))
    >>> print(form.volume(form.divided(spectrum, 0.1)).shape)
    (8, 8, 8)
    """

    geometry: Geometry
    """Region of interest, its voxels, B0 and the threads."""
    grid: DipoleGrid
    """The solver's grid."""
    kernel: F32
    """``D`` on the half spectrum of the grid."""
    gradient: F32
    """``|G|^2``, 1/mm^2."""
    multiplicity: F32
    """How many frequencies each element stands for: 1 or 2, and 0 for the mean."""

    def spectrum(self, volume: npt.NDArray) -> npt.NDArray[np.complex64]:
        """``F f`` of a volume (X, Y, Z), of which the region alone counts. One transform."""
        values = self.grid.embed(volume)
        values[self.grid.inner] *= self.geometry.mask[self.grid.box]
        return fft.rfftn(values, workers=self.geometry.workers)

    def volume(self, spectrum: npt.NDArray[np.complex64]) -> F32:
        """``F^-1`` back on the input's grid (X, Y, Z), zero outside the region. One transform."""
        mask, grid = self.geometry.mask, self.grid
        values = fft.irfftn(spectrum, s=grid.shape, workers=self.geometry.workers)
        out = np.zeros(mask.shape, np.float32)
        np.copyto(out[grid.box], values[grid.inner], where=mask[grid.box])
        return out

    def inside(self, spectrum: npt.NDArray[np.complex64]) -> F32:
        """The values of :meth:`volume` within the region, (V,)."""
        values = fft.irfftn(spectrum, s=self.grid.shape, workers=self.geometry.workers)
        return values[self.grid.inner][self.geometry.mask[self.grid.box]]

    def divided(self, spectrum: npt.NDArray, reg_weight: float) -> npt.NDArray:
        """Spectrum of the susceptibility at one lambda (mm), complex64; its mean is zero."""
        divisor = self.gradient * np.float32(reg_weight**2)
        divisor += self.kernel**2
        divisor[0, 0, 0] = 1
        np.divide(self.kernel, divisor, out=divisor)
        return spectrum * divisor

    def power(self, spectrum: npt.NDArray[np.complex64]) -> F32:
        """``|F f|^2`` scaled to squared norms over voxels, each frequency counted."""
        power = spectrum.real**2 + spectrum.imag**2
        power /= np.float32(np.prod(self.grid.shape))
        power *= self.multiplicity
        return power


@checked
def closed_form(geometry: Geometry) -> ClosedForm:
    """Kernel and gradient of a region of interest on the solver's grid.

    Parameters
    ----------
    geometry : Geometry
        Region of interest, voxel size (mm), direction of B0, threads.

    Examples
    --------
    >>> form = closed_form(Geometry(np.ones((8, 8, 8), bool), (1, 1, 1), (0, 0, 1)))
    >>> form.kernel.shape == form.gradient.shape
    True
    """
    grid = solver_grid(geometry.mask)
    kernel = dipole_kernel(grid.shape, geometry.voxel_size, geometry.b0_dir)
    multiplicity = np.ones(kernel.shape, np.float32)
    # Frequencies that stand for their negatives too
    multiplicity[..., 1 : (grid.shape[2] + 1) // 2] = 2
    multiplicity[0, 0, 0] = 0
    gradient = gradient_power(grid.shape, geometry.voxel_size)
    return ClosedForm(geometry, grid, kernel, gradient, multiplicity)
