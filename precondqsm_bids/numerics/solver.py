"""Solver: the grid of fast Fourier lengths, and conjugate gradients for the sources of a field.

What the prior fit and the background removal share.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import fft

from precondqsm_bids.numerics.arguments import checked
from precondqsm_bids.numerics.arrays import from_box, in_parts
from precondqsm_bids.numerics.dipole import bounding_box, cyclic_prism_kernel

F32 = npt.NDArray[np.float32]
Result = TypeVar('Result')

PART_VOXELS = 1 << 16
"""Voxels handled at a time between the convolutions."""
RUNS = 4
"""Runs of parts for each thread, between the convolutions."""
MODEL_ERROR = 0.05
"""Model error of the field, ppm: it keeps strong sources, whose signal decays
fast, from losing their say to the noise alone."""


class DipoleGrid(NamedTuple):
    """A region of interest on the grid of fast Fourier lengths that the solvers work on."""

    box: tuple[slice, slice, slice]
    """Part of the input that is kept."""
    inner: tuple[slice, slice, slice]
    """Where that part stands on the solver's grid."""
    shape: tuple[int, int, int]
    """Matrix of the solver's grid."""

    def embed(self, volume: npt.NDArray) -> npt.NDArray[np.float32]:
        """Copy of ``volume`` on the solver's grid, zero where it does not reach."""
        out = np.zeros(self.shape, dtype=np.float32)
        out[self.inner] = volume[self.box]
        return out

    def extract(self, volume: npt.NDArray, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Copy of ``volume`` back on the input's grid of ``shape``, zero outside the box."""
        return from_box(volume[self.inner].astype(np.float32, copy=False), self.box, shape)


MARGIN = 12
"""Voxels around the region on the solver's grid."""


def solver_grid(mask: npt.NDArray[np.bool_], margin: int = MARGIN) -> DipoleGrid:
    """Grid for cyclic convolutions: the region's box with ``margin`` voxels on every side.

    The margin leaves room for sources outside the region, also where it touches the edge of
    the field of view (a slab), and keeps the region apart from its own cyclic image. It depends
    on the region alone, so that empty slices around an object change nothing.

    >>> solver_grid(np.ones((20, 20, 11), bool), margin=4).shape
    (30, 30, 20)
    """
    box = bounding_box(mask)
    sizes = [s.stop - s.start for s in box]
    n0, n1, n2 = (fft.next_fast_len(n + 2 * margin, real=True) for n in sizes)
    i0, i1, i2 = (slice(margin, margin + n) for n in sizes)
    return DipoleGrid(box, (i0, i1, i2), (n0, n1, n2))


@checked
def noise_weights(
    field_sd: npt.NDArray, mask: npt.NDArray[np.bool_], model_error: float = MODEL_ERROR
) -> npt.NDArray[np.float32]:
    """Weights ``1 / sqrt(field_sd^2 + model_error^2)``, scaled to a root mean square of one.

    Parameters
    ----------
    field_sd : (X, Y, Z) ndarray
        Standard deviation of the field, ppm.
    mask : (X, Y, Z) ndarray of bool
        Region of interest; the weight is zero outside.
    model_error : float
        Model error of the field, ppm.

    Examples
    --------
    >>> noise_weights(np.full((1, 1, 2), 0.1), np.ones((1, 1, 2), bool)).round(3)
    array([[[1., 1.]]], dtype=float32)
    """
    variance = field_sd[mask].astype(np.float64) ** 2 + model_error**2
    positive = variance[variance > 0]
    # A voxel without noise (simulated data) must not outweigh all others.
    least = 1e-6 * np.median(positive) if positive.size else 1.0
    values = 1 / np.sqrt(np.maximum(variance, least))
    weights = np.zeros(mask.shape, np.float32)
    weights[mask] = values / np.sqrt(np.mean(values**2))
    return weights


class Unknowns(Protocol):
    """Unknowns of :meth:`DipoleSystem.descend` that each move many voxels at once.

    They add ``E s y`` to the sources in the mask's box: ``y`` in units of their expected sizes
    ``s``, ``E`` what each adds to each voxel. Parts are those of the system.
    """

    values: npt.NDArray[np.float64]
    """``y``: the start, and then the solution."""

    def set(self, values: npt.NDArray) -> None:
        """Take these values for :meth:`map`."""

    def map(self, i: int) -> F32 | None:
        """``E s y`` in the box of part ``i``, ppm, flattened; None if it is zero."""

    def collect(self, i: int, values: F32) -> None:
        """Take the box of part ``i`` of a map, flattened, for :meth:`transposed`."""

    def transposed(self) -> npt.NDArray[np.float64]:
        """``(E s)' g`` of the map ``g`` whose parts were collected."""


class FieldUnknowns(Protocol):
    """Unknowns of :meth:`DipoleSystem.descend` that add to the field itself, ``F t z``."""

    values: npt.NDArray[np.float64]
    """``z`` in units of their expected sizes ``t``: the start, and then the solution."""

    def set(self, values: npt.NDArray[np.float64]) -> None:
        """Take these values for :meth:`add`."""

    def add(self, i: int, field: F32) -> None:
        """Add ``F t z`` to part ``i`` of a field, ppm."""

    def collect(self, i: int, w_squared: F32, residual: F32) -> None:
        """Take part ``i`` of ``W^2`` and ``r`` for :meth:`transposed`."""

    def transposed(self) -> npt.NDArray[np.float64]:
        """``(F t)' W^2 r`` of the residual that was collected."""


class Further(NamedTuple):
    """Unknowns of :meth:`DipoleSystem.descend` beside single voxels."""

    sources: Unknowns | None = None
    field: FieldUnknowns | None = None


class DipoleSystem:
    """Least squares of a field over sources, ``min_x || W (f - D x) ||^2``, on the solver's grid.

    Two convolutions an iteration. What lies between them is done in parts of a few planes that
    stay in the processor's cache, on as many threads as the transforms have: at these sizes the
    arithmetic waits for the memory.

    Parameters
    ----------
    mask : (X, Y, Z) ndarray of bool
        Region of interest.
    voxel_size : (3,) array_like
        Voxel size, mm.
    b0_dir : (3,) array_like
        Direction of B0 along the voxel axes.
    workers : int
        Threads.
    margin : int
        Voxels around the region.
    """

    def __init__(
        self,
        mask: npt.NDArray[np.bool_],
        voxel_size: npt.ArrayLike,
        b0_dir: npt.ArrayLike,
        workers: int = 1,
        margin: int = MARGIN,
    ):
        self.grid = solver_grid(mask, margin)
        self.kernel = cyclic_prism_kernel(self.grid.shape, voxel_size, b0_dir)
        self.workers = workers
        n0, n1, n2 = self.grid.shape
        planes = max(1, PART_VOXELS // (n1 * n2))
        self.parts = [slice(i, min(i + planes, n0)) for i in range(0, n0, planes)]
        first, *across = self.grid.inner
        # What of each part lies in the mask's box: of some nothing does.
        self.boxes = [(_overlap(part, first), *across) for part in self.parts]

    def convolve(self, chi: F32) -> F32:
        """Field (ppm) of ``chi`` (ppm), a new array."""
        spectrum = fft.rfftn(chi, workers=self.workers)
        in_parts(self.workers, np.multiply, spectrum, self.kernel, spectrum)
        return fft.irfftn(spectrum, s=self.grid.shape, overwrite_x=True, workers=self.workers)

    def descend(
        self,
        sources: F32,
        residual: F32,
        w_squared: F32,
        expected_squared: F32,
        iterations: int,
        further: Further = Further(),  # noqa: B008 (never changed)
    ) -> float:
        """Conjugate gradients; ``sources`` and ``residual`` are updated in place.

        Parameters
        ----------
        sources : ndarray
            ``x``, ppm, on the solver's grid: the start, and then the solution.
        residual : ndarray
            ``r = f - D x``, ppm.
        w_squared : ndarray
            ``W^2``.
        expected_squared : ndarray
            ``S^2``, square of the expected size of a voxel's own source; zero where there is none.
        iterations : int
            Conjugate-gradient iterations.
        further : Further, optional
            Further unknowns, whose values are updated in place too; those of the field are no
            sources, ``r = f - D x - F t z``.

        Returns
        -------
        float
            Norm of the last gradient over that of the first.
        """
        state = _Descent(self, sources, residual, w_squared, expected_squared, further)
        with ThreadPoolExecutor(self.workers) as pool:
            return state.run(iterations, pool)


class _Descent:
    """Conjugate gradients on the normal equations ``D W^2 D x = D W^2 f`` (``D`` is symmetric).

    Every unknown is in units of its expected size, ``x = S y``; written for ``x`` this is
    preconditioning by ``S^2``, which for single voxels is a product:

        g = D W^2 r                                           the negative gradient
        gamma_k = <g, S^2 g>
        d = S^2 g + beta d,          beta = gamma_k / gamma_(k-1)
        alpha = gamma_k / <D d, W^2 D d>
        x += alpha d,    r -= alpha D d,    g -= alpha D W^2 D d

    Further unknowns ``y`` of columns ``E s`` have the gradient ``(E s)' g`` and add to ``d``;
    those of the field itself, ``z`` of columns ``F t``, have ``(F t)' W^2 r`` and add to ``D d``.
    """

    def __init__(
        self,
        system: DipoleSystem,
        sources: F32,
        residual: F32,
        w_squared: F32,
        expected_squared: F32,
        further: Further,
    ):
        self.system = system
        self.sources, self.residual = sources, residual
        self.w_squared, self.expected_squared = w_squared, expected_squared
        self.gradient = system.convolve(w_squared * residual)
        self.direction = np.zeros_like(self.gradient)
        self.image = self.weighted = self.change = self.gradient
        self.alpha = self.beta = 0.0
        self.unknowns, self.shift = further
        self.y = self.unknowns.values if self.unknowns else np.zeros(0)
        self.y_gradient, self.y_direction = np.zeros_like(self.y), np.zeros_like(self.y)
        self.z = self.shift.values if self.shift else np.zeros(0)
        self.z_gradient, self.z_direction = np.zeros_like(self.z), np.zeros_like(self.z)

    def run(self, iterations: int, pool: ThreadPoolExecutor) -> float:
        """Norm of the last gradient over that of the first."""
        # A few runs of parts for each thread: a thread that is held up delays no other.
        count, runs = len(self.system.parts), RUNS * self.system.workers
        batches = [range(k * count // runs, (k + 1) * count // runs) for k in range(runs)]

        def each(function: Callable[[int], Result]) -> Iterator[Result]:
            # In the order of the parts: no sum depends on the number of threads.
            return chain(*pool.map(lambda batch: [function(i) for i in batch], batches))

        gamma = first = self._gamma(each(self._measure))
        for _ in range(iterations):
            if gamma <= 1e-10 * first or gamma == 0:
                break
            if self.unknowns:
                self.unknowns.set(self.y_gradient)
            self.y_direction *= self.beta
            self.y_direction += self.y_gradient
            list(each(self._turn))
            self.image = self.system.convolve(self.direction)
            if self.shift:
                self.z_direction *= self.beta
                self.z_direction += self.z_gradient
                self.shift.set(self.z_direction)
            self.weighted = np.empty_like(self.image)
            self.alpha = gamma / sum(each(self._weigh))
            self.change = self.system.convolve(self.weighted)
            self.y += self.alpha * self.y_direction
            self.z += self.alpha * self.z_direction
            previous, gamma = gamma, self._gamma(each(self._advance))
            self.beta = gamma / previous
        return float(np.sqrt(gamma / first)) if first > 0 else 0.0

    def _gamma(self, energies: Iterator[float]) -> float:
        """``<g, S^2 g>`` over voxels and further unknowns, whose gradient it has made."""
        energy = sum(energies)
        if self.unknowns:
            self.y_gradient = self.unknowns.transposed()
        if self.shift:
            self.z_gradient = self.shift.transposed()
        return energy + float(np.sum(self.y_gradient**2) + np.sum(self.z_gradient**2))

    def _measure(self, i: int) -> float:
        part = self.system.parts[i]
        g = self.gradient[part]
        if self.unknowns:
            self.unknowns.collect(i, self.gradient[self.system.boxes[i]].reshape(-1))
        if self.shift:
            self.shift.collect(i, self.w_squared[part], self.residual[part])
        return float(np.sum(self.expected_squared[part] * g * g, dtype=np.float64))

    def _turn(self, i: int) -> None:
        part = self.system.parts[i]
        d = self.direction[part]
        d *= np.float32(self.beta)
        d += self.expected_squared[part] * self.gradient[part]
        added = self.unknowns.map(i) if self.unknowns else None
        if added is not None:
            d = self.direction[self.system.boxes[i]]
            d += added.reshape(d.shape)

    def _weigh(self, i: int) -> float:
        part = self.system.parts[i]
        if self.shift:
            self.shift.add(i, self.image[part])
        np.multiply(self.image[part], self.w_squared[part], out=self.weighted[part])
        return float(np.sum(self.image[part] * self.weighted[part], dtype=np.float64))

    def _advance(self, i: int) -> float:
        part, alpha = self.system.parts[i], np.float32(self.alpha)
        self.sources[part] += alpha * self.direction[part]
        self.residual[part] -= alpha * self.image[part]
        self.gradient[part] -= alpha * self.change[part]
        return self._measure(i)


def _overlap(one: slice, other: slice) -> slice:
    """Part that two slices have in common, possibly empty."""
    start = max(one.start, other.start)
    return slice(start, max(start, min(one.stop, other.stop)))
