"""Solver: the grid of fast Fourier lengths, and conjugate gradients for the sources of a field.

What the prior fit and the background removal share.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import fft

from precondqsm_bids.numerics.arguments import checked
from precondqsm_bids.numerics.arrays import from_box
from precondqsm_bids.numerics.dipole import bounding_box, cyclic_prism_kernel

F32 = npt.NDArray[np.float32]
Result = TypeVar('Result')

PART_VOXELS = 1 << 17
"""Voxels handled at a time, in planes along the first axis."""
LINE_VOXELS = 1 << 16
"""Frequencies transformed along the first axis at a time."""
RUNS = 4
"""Runs of parts for each thread."""
MODEL_ERROR = 0.05
"""Model error of the field, ppm: it keeps strong sources, whose signal decays
fast, from losing their say to the noise alone."""


class DipoleGrid(NamedTuple):
    """A region of interest on the grid of fast Fourier lengths that the solvers work on."""

    box: tuple[slice, slice, slice]
    """Part of the input that is kept."""
    inner: tuple[slice, slice, slice]
    """Where that part stands on the solver's grid, from its first voxel on."""
    shape: tuple[int, int, int]
    """Matrix of the solver's grid."""

    def in_box(self, volume: npt.NDArray) -> npt.NDArray[np.float32]:
        """Copy of what is kept of ``volume``."""
        return np.array(volume[self.box], np.float32, order='C')

    def embed(self, volume: npt.NDArray) -> npt.NDArray[np.float32]:
        """Copy of ``volume`` on the solver's grid, zero where it does not reach."""
        out = np.zeros(self.shape, dtype=np.float32)
        out[self.inner] = volume[self.box]
        return out

    def outside(self, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
        """1 in the voxels of the solver's grid outside a region, 0 inside."""
        return np.float32(1) - self.embed(mask)

    def extract(self, volume: npt.NDArray, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Copy of ``volume`` back on the input's grid of ``shape``, zero outside the box."""
        return from_box(volume[self.inner].astype(np.float32, copy=False), self.box, shape)


MARGIN = 12
"""Voxels on each side of the region on the solver's grid."""


def solver_grid(mask: npt.NDArray[np.bool_], margin: int = MARGIN) -> DipoleGrid:
    """Grid for cyclic convolutions: the region's box with ``margin`` voxels on every side.

    The grid has no ends: what is before the box stands behind what is after it. The margin leaves
    room for sources outside the region, also where it touches the edge of the field of view (a
    slab), and keeps the region apart from its own cyclic image. It depends on the region alone, so
    that empty slices around an object change nothing.

    >>> solver_grid(np.ones((20, 20, 11), bool), margin=4).shape
    (30, 30, 20)
    """
    box = bounding_box(mask)
    sizes = [s.stop - s.start for s in box]
    n0, n1, n2 = (fft.next_fast_len(n + 2 * margin, real=True) for n in sizes)
    i0, i1, i2 = (slice(0, n) for n in sizes)
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
        """Add ``F t z`` to the box of part ``i`` of a field, ppm."""

    def collect(self, i: int, weighted: F32) -> None:
        """Take the box of part ``i`` of ``W^2 r`` for :meth:`transposed`."""

    def transposed(self) -> npt.NDArray[np.float64]:
        """``(F t)' W^2 r`` of the residual that was collected."""


class Further(NamedTuple):
    """Unknowns of :meth:`DipoleSystem.descend` beside single voxels."""

    sources: Unknowns | None = None
    field: FieldUnknowns | None = None


class DipoleSystem:
    """Least squares of a field over sources, ``min_x || W (f - D x) ||^2``, on the solver's grid.

    Two convolutions an iteration. The field is known in the mask's box, where ``W`` is not zero,
    and the sources are on the whole grid, so that one convolution ends in the box and the other
    begins there. All is done in parts that stay in the processor's cache, on as many threads as
    there are: planes with the transforms along their two axes, and lines with those along the
    first. At these sizes the arithmetic waits for the memory.

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
        self.parts = _cut(n0, PART_VOXELS // (n1 * n2))
        first, *across = self.grid.inner
        # What of each part lies in the mask's box: of some nothing does.
        self.planes = [_overlap(part, first) for part in self.parts]
        self.boxes = [(planes, *across) for planes in self.planes]
        self.lines = _cut(n1, LINE_VOXELS // (n0 * self.kernel.shape[2]))

    def spectrum(self) -> npt.NDArray[np.complex64]:
        """Where a convolution takes place: an array for the half spectrum of the grid."""
        return np.empty(self.kernel.shape, np.complex64)

    def convolve(self, chi: F32) -> F32:
        """Field (ppm) of ``chi`` (ppm), a new array."""
        field, spectrum = np.empty(self.grid.shape, np.float32), self.spectrum()

        def back(i: int) -> None:
            field[self.parts[i]] = self.back(spectrum, self.parts[i])

        def begin(i: int) -> None:
            self.transform(spectrum, self.parts[i], chi[self.parts[i]])

        with ThreadPoolExecutor(self.workers) as pool:
            each = Each(pool, self.workers)
            each(len(self.parts), begin)
            each(len(self.lines), lambda i: self.multiply(spectrum, i))
            each(len(self.parts), back)
        return field

    def transform(self, spectrum: npt.NDArray[np.complex64], planes: slice, values: F32) -> None:
        """Transform planes of the grid, or of the box, along their two axes, into their place."""
        _, n1, n2 = self.grid.shape
        rows = fft.rfft(values, n2, axis=2)
        spectrum[planes] = fft.fft(rows, n1, axis=1, overwrite_x=True)

    def multiply(
        self, spectrum: npt.NDArray[np.complex64], i: int, given: int = -1, wanted: int = -1
    ) -> None:
        """Transform some lines along the first axis, multiply by the kernel, and transform back.

        Of ``spectrum`` the first ``given`` planes are not zero, and ``wanted`` are made; all by
        default.
        """
        n0, lines = self.grid.shape[0], self.lines[i]
        given, wanted = (n0 if n < 0 else n for n in (given, wanted))
        part = fft.fft(spectrum[:given, lines], n0, axis=0)
        part *= self.kernel[:, lines]
        spectrum[:wanted, lines] = fft.ifft(part, axis=0, overwrite_x=True)[:wanted]

    def back(
        self, spectrum: npt.NDArray[np.complex64], planes: slice, rows: int = -1, columns: int = -1
    ) -> F32:
        """Some planes of the spectrum, which it takes for its work, transformed back.

        Of those the first ``rows`` and ``columns`` are made; all by default.
        """
        _, n1, n2 = self.grid.shape
        rows, columns = (n if given < 0 else given for n, given in ((n1, rows), (n2, columns)))
        part = fft.ifft(spectrum[planes], axis=1, overwrite_x=True)[:, :rows]
        return fft.irfft(part, n2, axis=2)[..., :columns]

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
            ``r = f - D x``, ppm, on the mask's box.
        w_squared : ndarray
            ``W^2``, on the mask's box.
        expected_squared : ndarray
            ``S^2``, square of the expected size of a voxel's own source, on the solver's grid;
            zero where there is none.
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
            return state.run(iterations, Each(pool, self.workers))


class Each:
    """Calls of a function for each of several parts, on the threads of a pool."""

    def __init__(self, pool: ThreadPoolExecutor, workers: int):
        self.pool, self.runs = pool, RUNS * workers

    def __call__(self, count: int, function: Callable[[int], Result]) -> list[Result]:
        """Results in the order of the parts: no sum depends on the number of threads."""
        if self.runs == RUNS:
            return [function(i) for i in range(count)]
        # A few runs of parts for each thread: a thread that is held up delays no other.
        bounds = [k * count // self.runs for k in range(self.runs + 1)]
        batches = [range(a, b) for a, b in pairwise(bounds)]
        return list(chain(*self.pool.map(lambda batch: [function(i) for i in batch], batches)))


class _Descent:
    """Conjugate gradients on the normal equations ``D W^2 D x = D W^2 f`` (``D`` is symmetric).

    Every unknown is in units of its expected size, ``x = S y``; written for ``x`` this is
    preconditioning by ``S^2``, which for single voxels is a product:

        g = D W^2 r                                           the negative gradient
        gamma_k = <g, S^2 g>
        d = S^2 g + beta d,          beta = gamma_k / gamma_(k-1)
        alpha = gamma_k / <D d, W^2 D d>
        x += alpha d,    r -= alpha D d

    Further unknowns ``y`` of columns ``E s`` have the gradient ``(E s)' g`` and add to ``d``;
    those of the field itself, ``z`` of columns ``F t``, have ``(F t)' W^2 r`` and add to ``D d``.

    The gradient is made of the residual in each iteration: that takes no more transforms than its
    own recurrence, and one array less.
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
        self.spectrum = system.spectrum()
        self.gradient, self.direction = np.empty_like(sources), np.zeros_like(sources)
        self.image = np.zeros_like(residual)
        self.alpha = self.beta = np.float32(0)
        self.unknowns, self.shift = further
        self.y = self.unknowns.values if self.unknowns else np.zeros(0)
        self.y_direction = np.zeros_like(self.y)
        self.z = self.shift.values if self.shift else np.zeros(0)
        self.z_direction = np.zeros_like(self.z)

    def run(self, iterations: int, each: Each) -> float:
        """Norm of the last gradient over that of the first."""
        system, box = self.system, self.residual.shape[0]
        parts, lines = len(system.parts), len(system.lines)
        gamma = first = self._gamma(each)
        for _ in range(iterations):
            if gamma <= 1e-10 * first or gamma == 0:
                break
            if self.unknowns:
                self.unknowns.set(self.y_gradient)
            self.y_direction *= self.beta
            self.y_direction += self.y_gradient
            self.z_direction *= self.beta
            self.z_direction += self.z_gradient
            each(parts, self._turn)
            if self.shift:
                self.shift.set(self.z_direction)
            each(lines, lambda i: system.multiply(self.spectrum, i, wanted=box))
            self.alpha = np.float32(gamma / sum(each(parts, self._image)))
            self.y += self.alpha * self.y_direction
            self.z += self.alpha * self.z_direction
            previous, gamma = gamma, self._gamma(each)
            self.beta = np.float32(gamma / previous)
        each(parts, self._move)
        return float(np.sqrt(gamma / first)) if first > 0 else 0.0

    def _gamma(self, each: Each) -> float:
        """``<g, S^2 g>`` over voxels and further unknowns, with the gradient at the residual."""
        system, box = self.system, self.residual.shape[0]
        each(len(system.parts), self._weigh)
        each(len(system.lines), lambda i: system.multiply(self.spectrum, i, given=box))
        energy = sum(each(len(system.parts), self._measure))
        self.y_gradient = self.unknowns.transposed() if self.unknowns else np.zeros(0)
        self.z_gradient = self.shift.transposed() if self.shift else np.zeros(0)
        return energy + float(np.sum(self.y_gradient**2) + np.sum(self.z_gradient**2))

    def _weigh(self, i: int) -> None:
        """Take the step off the residual, and begin the convolution of ``W^2 r``."""
        planes = self.system.planes[i]
        if planes.start == planes.stop:
            return
        residual = self.residual[planes]
        residual -= self.alpha * self.image[planes]
        weighted = self.w_squared[planes] * residual
        if self.shift:
            self.shift.collect(i, weighted)
        self.system.transform(self.spectrum, planes, weighted)

    def _measure(self, i: int) -> float:
        """End the convolution, which is the gradient, and give its energy."""
        part = self.system.parts[i]
        g = self.gradient[part]
        g[:] = self.system.back(self.spectrum, part)
        if self.unknowns:
            self.unknowns.collect(i, self.gradient[self.system.boxes[i]].reshape(-1))
        return _energy(self.expected_squared[part], g)

    def _move(self, i: int) -> None:
        """Add the step to the sources."""
        part = self.system.parts[i]
        self.sources[part] += self.alpha * self.direction[part]

    def _turn(self, i: int) -> None:
        """Add the last step to the sources, take the next direction, and begin its convolution."""
        self._move(i)
        part = self.system.parts[i]
        d = self.direction[part]
        d *= self.beta
        d += self.expected_squared[part] * self.gradient[part]
        added = self.unknowns.map(i) if self.unknowns else None
        if added is not None:
            box = self.direction[self.system.boxes[i]]
            box += added.reshape(box.shape)
        self.system.transform(self.spectrum, part, self.direction[part])

    def _image(self, i: int) -> float:
        """End the convolution of the direction in the box, and give the energy of its field."""
        planes = self.system.planes[i]
        if planes.start == planes.stop:
            return 0.0
        image = self.image[planes]
        image[:] = self.system.back(self.spectrum, planes, *image.shape[1:])
        if self.shift:
            self.shift.add(i, image)
        return _energy(self.w_squared[planes], image)


def _energy(weights: F32, values: F32) -> float:
    """``<v, w v>``; numpy's sums are by pairs, as good in single precision."""
    products = weights * values
    products *= values
    return float(np.sum(products))


def _cut(length: int, step: int) -> list[slice]:
    """Parts of an axis of ``length``, each of ``step`` or less and of one at least."""
    step = max(step, 1)
    return [slice(i, min(i + step, length)) for i in range(0, length, step)]


def _overlap(one: slice, other: slice) -> slice:
    """Part that two slices have in common, possibly empty."""
    start = max(one.start, other.start)
    return slice(start, max(start, min(one.stop, other.stop)))
