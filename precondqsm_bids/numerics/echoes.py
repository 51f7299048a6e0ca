"""Straight lines through the phase of the echoes: the step that field and offset fits share."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from precondqsm_bids.numerics.air import Air, without_floor

F32 = npt.NDArray[np.float32]
_CHUNK = 1 << 15  # voxels handled at a time: temporaries stay in the processor's cache


def chunks(length: int) -> list[slice]:
    """Slices that cover ``length``."""
    return [slice(start, start + _CHUNK) for start in range(0, length, _CHUNK)]


def in_chunks(function: Callable[[slice], None], length: int, workers: int) -> None:
    """Call ``function`` with slices that cover ``length``, on ``workers`` threads."""
    parts = chunks(length)
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(function, parts))


def sample(mask: npt.NDArray[np.bool_], most: int) -> npt.NDArray[np.intp]:
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
    out = np.empty(phase.shape, np.complex64)
    out.real = np.cos(phase)
    out.imag = np.sin(-phase)
    return out


def phase_line(
    weight: F32, score: F32, to_rad: F32, free: npt.NDArray[np.bool_] | bool
) -> tuple[F32, F32, F32, F32]:
    """Weighted straight line through a residual phase: intercept, slope, and their variances.

    ``weight`` (V, E) is the squared amplitude, ``score`` the weight times the residual; where
    ``free`` is false the intercept is zero. Variances are per unit of squared noise.
    """
    tiny = np.finfo(np.float32).tiny
    w2 = np.maximum(weight @ to_rad**2, tiny)
    r1 = score @ to_rad
    if free is False or (not np.isscalar(free) and not np.any(free)):
        return np.zeros_like(r1), r1 / w2, np.zeros_like(r1), 1 / w2
    w0, w1, r0 = np.maximum(weight.sum(1), tiny), weight @ to_rad, score.sum(1)
    determinant = np.maximum(w0 * w2 - w1**2, 1e-6 * w0 * w2 + tiny)
    intercept = (w2 * r0 - w1 * r1) / determinant
    slope = (w0 * r1 - w1 * r0) / determinant
    variances = w2 / determinant, w0 / determinant
    if free is True or np.all(free):
        return intercept, slope, *variances
    zero = np.float32(0)
    return (
        np.where(free, intercept, zero),
        np.where(free, slope, r1 / w2),
        np.where(free, variances[0], zero),
        np.where(free, variances[1], 1 / w2),
    )


def fit_phase(
    signal: npt.NDArray,
    to_rad: F32,
    field: F32,
    offset: F32,
    free: npt.NDArray[np.bool_] | bool,
    workers: int,
    iterations: int = 3,
) -> F32:
    """Refine the field, and the offset where ``free``, in place; the offset's sd per unit noise.

    Gauss-Newton with the measured magnitudes as amplitudes: each step is a straight-line fit of
    the residual phase, weights magnitude squared. With ``free=True`` it starts with the phase that
    the first field and offset leave.
    """
    offset_sd = np.empty_like(field)

    def refine(part: slice) -> None:
        s = signal[part]
        here = free if isinstance(free, bool) else free[part]
        weight = s.real**2 + s.imag**2
        rotated = s * turn_back(offset[part, None] + field[part, None] * to_rad)
        if free is True:
            start = np.angle((rotated * np.abs(s)).sum(1))
            offset[part] += start
            rotated *= turn_back(start[:, None])
        for _ in range(iterations):
            turn, slope, variance, _ = phase_line(weight, weight * np.angle(rotated), to_rad, here)
            offset[part] += turn
            field[part] += slope
            rotated *= turn_back(turn[:, None] + slope[:, None] * to_rad)
        offset_sd[part] = np.sqrt(variance)

    in_chunks(refine, len(signal), workers)
    return offset_sd


def check_echoes(
    magnitude: npt.NDArray, phase: npt.NDArray, echo_times: npt.ArrayLike, least: int = 2
) -> npt.NDArray[np.float64]:
    """Echo times (s) as an array, after checking them and the data against each other.

    Raises
    ------
    ValueError
        Shapes differ, fewer than ``least`` echoes, or echo times that are not increasing seconds.
    """
    te = np.asarray(echo_times, dtype=np.float64)
    if magnitude.shape != phase.shape:
        raise ValueError(f'magnitude {magnitude.shape} and phase {phase.shape} differ in shape')
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


def masked_signal(
    magnitude: npt.NDArray, phase: npt.NDArray, mask: npt.NDArray[np.bool_], air: Air | None
) -> tuple[npt.NDArray[np.complex64], float]:
    """Signal of the masked voxels, (V, E), and the unit in which it is.

    The unit is the median of the first echo, as a power of two, so that neither squares of squares
    nor rounding depend on the unit of the magnitude.
    """
    signal = np.empty((np.count_nonzero(mask), magnitude.shape[-1]), np.complex64)
    unit = 1.0
    for e in range(signal.shape[1]):
        amplitude = without_floor(magnitude[..., e][mask], air)
        if e == 0 and 0 < (median := float(np.median(amplitude))) < np.inf:
            unit = float(np.exp2(np.round(np.log2(median))))
        signal[:, e] = turn_back(-phase[..., e][mask])
        signal[:, e] *= amplitude / amplitude.dtype.type(unit)
    if bad := np.count_nonzero(~np.isfinite(signal.sum(1))):
        raise ValueError(f'magnitude or phase is not finite in {bad} voxels of the mask')
    return signal, unit


def in_place(values: npt.NDArray, mask: npt.NDArray[np.bool_]) -> npt.NDArray:
    """Values of the masked voxels in place, zero elsewhere."""
    out = np.zeros(mask.shape, values.dtype)
    out[mask] = values
    return out


def demodulate(signal: npt.NDArray, field: F32, to_rad: F32) -> None:
    """Multiply ``signal`` (V, E) by ``exp(-i field to_rad)``, in place."""
    for part in chunks(len(signal)):
        signal[part] *= turn_back(field[part, None] * to_rad)
