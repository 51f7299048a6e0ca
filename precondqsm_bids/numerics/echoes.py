"""The echoes of a region, and straight lines through their phase: what the fits share."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from precondqsm_bids.numerics.air import Air, without_floor
from precondqsm_bids.numerics.arrays import check_shapes, median, side_by_side
from precondqsm_bids.numerics.constants import hz_per_ppm

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
TWO_PI = np.float32(2 * np.pi)
PLANES = 4
"""Planes of a volume that are gathered at a time."""
_CHUNK = 1 << 13  # voxels handled at a time: temporaries stay in the processor's cache


@dataclass(frozen=True, eq=False)
class Echoes:
    """Complex echoes of the V voxels of a mask.

    Their model is ``S0 exp(-R2* TE) exp(i (offset + field to_rad))``.
    """

    signal: npt.NDArray[np.complex64]
    """(V, E), in the unit ``unit`` of the magnitude; best with each echo as one piece of memory,
    as :meth:`of` makes it: loops over voxels are long ones then."""
    echo_times: F64
    """(E,) s"""
    mask: Bools
    """The voxels, (X, Y, Z)."""
    field_strength: float = np.nan
    """B0, T; not needed as long as no field is asked for."""
    unit: float = 1.0
    """Median of the first echo as a power of two, so that neither squares of squares nor rounding
    depend on the unit of the magnitude."""
    workers: int = 1
    """Threads."""

    @classmethod
    def of(
        cls,
        images: tuple[npt.NDArray, npt.NDArray],
        echo_times: npt.ArrayLike,
        mask: Bools,
        field_strength: float = np.nan,
        air: Air | None = None,
        workers: int = 1,
    ) -> 'Echoes':
        """Echoes of the masked voxels from magnitude and phase (rad), (X, Y, Z, E) each.

        With ``air`` the magnitude is freed of its floor.
        """
        magnitude, phase = images
        te = check_echoes(magnitude, phase, echo_times, least=1)
        signal = np.empty((te.size, np.count_nonzero(mask)), np.complex64).T
        unit, middle = 1.0, float(median(without_floor(magnitude[..., 0][mask], air)))
        if 0 < middle < np.inf:
            unit = float(np.exp2(np.round(np.log2(middle))))

        def fill(e: int) -> None:
            end = 0
            for k in range(0, len(mask), PLANES):
                where, planes = mask[k : k + PLANES], slice(k, k + PLANES)
                turned = turn_back(-phase[planes, ..., e][where])
                amplitude = without_floor(magnitude[planes, ..., e][where], air)
                turned *= amplitude / np.result_type(amplitude, np.float32).type(unit)
                begin, end = end, end + len(turned)
                signal[begin:end, e] = turned

        side_by_side(workers, *(partial(fill, e) for e in range(te.size)))
        echoes = cls(signal, te, mask, field_strength, unit, workers)
        bad = sum(np.count_nonzero(~np.isfinite(signal[k].sum(1))) for k in echoes.chunks())
        if bad:
            raise ValueError(f'magnitude or phase is not finite in {bad} voxels of the mask')
        return echoes

    @property
    def te(self) -> F32:
        """Echo times in single precision, (E,), s."""
        return self.echo_times.astype(np.float32)

    @property
    def to_rad(self) -> F32:
        """Phase per field, (E,), rad/ppm."""
        return TWO_PI * np.float32(hz_per_ppm(self.field_strength)) * self.te

    @property
    def turn(self) -> np.float32:
        """Field of a whole turn over the shortest spacing, ppm."""
        return TWO_PI / np.diff(self.to_rad).min()

    def first(self, number: int) -> 'Echoes':
        """The first echoes alone."""
        return replace(self, signal=self.signal[:, :number], echo_times=self.echo_times[:number])

    def volume(self, values: npt.NDArray) -> npt.NDArray:
        """Values (V,) in their places, zero elsewhere, (X, Y, Z)."""
        return in_place(values, self.mask)

    def demodulated(
        self, field: F32, offset: F32, part: slice | npt.NDArray[np.intp] = slice(None)
    ) -> npt.NDArray[np.complex64]:
        """Signal of a part of the voxels without the phase of field and offset."""
        phase = along_echoes(field[part], self.to_rad)
        phase += offset[part, None]
        return self.signal[part] * turn_back(phase)

    def take_off(self, field: F32) -> None:
        """Take the phase of a field (ppm) off the signal, in place."""

        def turn(part: slice) -> None:
            self.signal[part] *= turn_back(along_echoes(field[part], self.to_rad))

        self.in_chunks(turn)

    def in_chunks(self, function: Callable[[slice], None]) -> None:
        """Call ``function`` with slices that cover the voxels, on the threads."""
        parts = self.chunks()
        with ThreadPoolExecutor(self.workers) as pool:
            list(pool.map(function, parts))

    def chunks(self) -> list[slice]:
        """Slices that cover the voxels."""
        return [slice(k, k + _CHUNK) for k in range(0, len(self.signal), _CHUNK)]


def check_echoes(
    magnitude: npt.NDArray, phase: npt.NDArray, echo_times: npt.ArrayLike, least: int = 2
) -> F64:
    """Echo times (s) as an array, after checking them and the data against each other.

    Raises
    ------
    ValueError
        Shapes differ, fewer than ``least`` echoes, or echo times that are not increasing seconds.
    """
    te = np.asarray(echo_times, dtype=np.float64)
    check_shapes('phase', phase.shape, magnitude=magnitude)
    if te.ndim != 1:
        raise ValueError(f'echo_times should be one time for each echo, in seconds: {te.tolist()}')
    if magnitude.ndim != 4 or te.shape != magnitude.shape[-1:]:
        raise ValueError(
            f'magnitude must be (X, Y, Z, echoes) with one echo time each: '
            f'shape {magnitude.shape}, {te.size} echo times'
        )
    if te.size < least:
        raise ValueError(
            f'fitting the field and R2* takes at least two echoes, got {te.size}; the field of '
            'one echo is field_of_one_echo'
        )
    if not np.all(np.isfinite(te)) or te[0] <= 0 or np.any(np.diff(te) <= 0):
        raise ValueError(f'echo times must be positive and increasing, in seconds: {te.tolist()}')
    if te[-1] > 1:
        raise ValueError(f'echo times are in seconds, these look like milliseconds: {te.tolist()}')
    return te


def root_sum_of_squares(magnitude: npt.NDArray) -> npt.NDArray:
    """Over the echoes, the last axis; floating: squares of stored integers would overflow."""
    kind = np.result_type(magnitude, np.float32)
    return np.sqrt(np.einsum('...e,...e->...', magnitude, magnitude, dtype=kind))


def in_place(values: npt.NDArray, mask: Bools) -> npt.NDArray:
    """Values of the masked voxels in their places, zero elsewhere."""
    out = np.zeros(mask.shape, values.dtype)
    out[mask] = values
    return out


def sample(mask: Bools, most: int) -> npt.NDArray[np.intp]:
    """Indices among the masked voxels of about ``most`` of them, spread evenly.

    The choice depends on the distance from the centre of the grid alone, so that it is the same
    however the axes are stored.
    """
    count = np.count_nonzero(mask)
    if count <= most:
        return np.arange(count)
    squares = [(2 * np.arange(n, dtype=np.uint32) - np.uint32(n - 1)) ** 2 for n in mask.shape]
    distance = squares[0][:, None, None] + squares[1][:, None] + squares[2]
    distance *= np.uint32(2654435761)  # modulo 2^32: multiples of the golden ratio
    return np.flatnonzero(distance[mask] < np.uint32(2**32 * most / count))


def turn_back(phase: npt.NDArray) -> npt.NDArray[np.complex64]:
    """``exp(-i phase)``; from sine and cosine, several times faster than the exponential."""
    out = np.empty_like(phase, np.complex64)
    out.real = np.cos(phase)
    out.imag = np.sin(-phase)
    return out


def complex_signal(magnitude: npt.NDArray, phase: npt.NDArray) -> npt.NDArray[np.complex64]:
    """``magnitude exp(i phase)``, in single precision.

    >>> complex_signal(np.array([2.0]), np.array([0.0])).tolist()
    [(2+0j)]
    """
    signal = turn_back(-phase.astype(np.float32, copy=False))
    signal *= magnitude.astype(np.float32, copy=False)
    return signal


def difference_of_phase(one: npt.NDArray, other: npt.NDArray | float) -> F32:
    """Difference of two phases on the circle, rad."""
    apart = one - other
    return (apart - TWO_PI * np.round(apart / TWO_PI)).astype(np.float32)


def along_echoes(values: npt.NDArray, times: npt.NDArray) -> npt.NDArray:
    """``values times``, (V, E), each echo as one piece of memory."""
    return np.multiply.outer(times, values).T


def phase_line(
    weight: F32, score: F32, to_rad: F32, fit_offset: Bools | bool
) -> tuple[F32, F32, F32, F32]:
    """Weighted straight line through a residual phase: intercept, slope, and their variances.

    ``weight`` (V, E) is the squared amplitude, ``score`` the weight times the residual; where
    ``fit_offset`` is false the intercept is zero. Variances are per unit of squared noise.
    """
    tiny = np.finfo(np.float32).tiny
    w2 = np.maximum(weight @ to_rad**2, tiny)
    r1 = score @ to_rad
    if not np.any(fit_offset):
        return np.zeros_like(r1), r1 / w2, np.zeros_like(r1), 1 / w2
    w0, w1, r0 = np.maximum(weight.sum(1), tiny), weight @ to_rad, score.sum(1)
    determinant = np.maximum(w0 * w2 - w1**2, 1e-6 * w0 * w2 + tiny)
    intercept = (w2 * r0 - w1 * r1) / determinant
    slope = (w0 * r1 - w1 * r0) / determinant
    variances = w2 / determinant, w0 / determinant
    if np.all(fit_offset):
        return intercept, slope, *variances
    zero = np.float32(0)
    return (
        np.where(fit_offset, intercept, zero),
        np.where(fit_offset, slope, r1 / w2),
        np.where(fit_offset, variances[0], zero),
        np.where(fit_offset, variances[1], 1 / w2),
    )


def fit_phase(
    echoes: Echoes, field: F32, offset: F32, fit_offset: Bools | bool, iterations: int = 3
) -> F32:
    """Refine the field, and the offset where ``fit_offset``, in place; the offset's sd per noise.

    Gauss-Newton with the measured magnitudes as amplitudes: each step is a straight-line fit of
    the residual phase, weights magnitude squared. With ``fit_offset=True`` it starts with the
    phase that the first field and offset leave.
    """
    to_rad = echoes.to_rad
    offset_sd = np.empty_like(field)

    def refine(part: slice) -> None:
        s = echoes.signal[part]
        here = fit_offset if isinstance(fit_offset, bool) else fit_offset[part]
        weight = s.real**2 + s.imag**2
        rotated = echoes.demodulated(field, offset, part)
        if fit_offset is True:
            start = np.angle((rotated * np.abs(s)).sum(1))
            offset[part] += start
            rotated *= turn_back(start[:, None])
        left = np.angle(rotated)
        for _ in range(iterations):
            turn, slope, variance, _ = phase_line(weight, weight * left, to_rad, here)
            offset[part] += turn
            field[part] += slope
            left -= along_echoes(slope, to_rad)
            left -= turn[:, None]
            left -= TWO_PI * np.rint(left * (1 / TWO_PI))
        offset_sd[part] = np.sqrt(variance)

    echoes.in_chunks(refine)
    return offset_sd
