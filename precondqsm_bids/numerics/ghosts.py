"""Ghosts of a field that fluctuates during the scan, found in the air and taken off.

Breathing changes the field from one line of k-space to the next. A line that sees it higher by
``f`` Hz has its signal turned by ``2 pi f TE``, which throws a part of the object along the phase
encoding, into the air as into the object, where it is taken for susceptibility. In the air nothing
but noise should be: so the frequencies of the lines are those that leave the least signal there,
as an autofocus finds them, for all echoes together. What a navigator would have measured is then
taken off. Only the part of the fluctuation that is alike everywhere is found, and that throws the
object by more than what rings beside its edges.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import fft, linalg, ndimage

from precondqsm_bids.numerics.air import air_voxels
from precondqsm_bids.numerics.arrays import side_by_side
from precondqsm_bids.numerics.echoes import complex_signal
from precondqsm_bids.numerics.lines import lines_of, some_columns

Bools = npt.NDArray[np.bool_]
F64 = npt.NDArray[np.float64]
MARGIN = 4
"""Voxels around the object that are left out: what rings beside an edge is no ghost."""
FEW, MANY = 5_000, 20_000
"""Voxels of air from which an axis is chosen, and from which the frequencies are found."""
LEAST_SHARE = 0.15
"""Share of the energy of the air in the last echo that the lines of the inner half of k-space must
explain. Where nothing fluctuates it is below 0.02 of phantoms, and 0.08 in a round bottle that
rings far; ghosts of less are half of the noise."""
THROWN = 6
"""Voxels by which a ghost lies off, at least. What changes less from line to line moves or blurs
the edges of the object, which the air tells little of."""
ROUNDS = 6
"""Gauss-Newton rounds; the expected size of the phases is found along with them."""
FIRST_PHASE = 0.05
"""Expected phase of a line in the first round, rad at the mean echo time."""
CHUNK = 2048
"""Voxels that are handled at a time."""


class Ghosts(NamedTuple):
    """Result of :func:`find_ghosts`."""

    axis: int
    """Axis of the phase encoding."""
    frequency: F64
    """(N,) Hz, of each line in the order of :func:`numpy.fft.fftfreq`."""
    share: float
    """Share of the energy of the air in the last echo that lines of the inner half of k-space had
    thrown there."""
    size: float
    """Root mean square phase of the lines in the last echo, rad."""


def find_ghosts(
    magnitude: npt.NDArray, phase: npt.NDArray, echo_times: npt.ArrayLike, object_mask: Bools
) -> Ghosts | None:
    """Frequency of each phase-encoding line by the air around the object.

    With ``s_n(r)`` the part of the image that line n of k-space makes, the corrected signal of an
    echo is ``sum_n s_n(r) exp(-2 pi i f_n TE)``. Its energy in voxels of air, over that of the
    noise, and ``sum f_n^2`` over its expected value are minimised together, by Gauss-Newton. The
    expected value is that of the marginal likelihood, found in the same rounds: where there are no
    ghosts it goes to zero, and with it the frequencies. Of these what is smooth over the lines (a
    Gaussian of ``N / (2 pi 6)`` lines) is taken off, which throws by less than six voxels. They
    are ghosts if those of the inner half of k-space, which holds the object, explain enough of
    the air: what rings is in the outer half. The axis is that of most.

    Memory, whatever the images: 8 bytes per line and echo of 2,000 columns, 50 KiB per line;
    Fourier transforms of these columns along one axis alone.

    Parameters
    ----------
    magnitude, phase : (X, Y, Z, E) ndarray
        Signal as measured, any unit and rad.
    echo_times : (E,) array_like
        s.
    object_mask : (X, Y, Z) ndarray of bool
        The whole object, around which there is air.

    Returns
    -------
    Ghosts or None
        None where there are no ghosts above the noise, or no air: too little of it, or the
        scanner has set it to zero.

    References
    ----------
    Atkinson D et al., IEEE Trans Med Imaging 1997;16:903 (autofocus). Wen J et al., Magn Reson
    Med 2015;73:195 (fluctuations of the field in gradient echoes, by a navigator).
    MacKay DJC, Neural Comput 1992;4:415 (expected size by marginal likelihood).

    Examples
    --------
    >>> rng, n = np.random.default_rng(0), np.arange(32)
    >>> inside = np.zeros((24, 32, 24), bool); inside[8:16, 11:21, 8:16] = True
    >>> lines = np.fft.fft(100.0 * inside, axis=1)
    >>> f = 3 * np.sin(1.9 * n)  # Hz
    >>> ghosted = np.fft.ifft(lines * np.exp(2j * np.pi * f * 0.02)[:, None], axis=1)
    >>> ghosted = ghosted + rng.normal(size=inside.shape) + 1j * rng.normal(size=inside.shape)
    >>> ghosted = ghosted[..., None]
    >>> found = find_ghosts(np.abs(ghosted), np.angle(ghosted), [0.02], inside)
    >>> print(found.axis, found.share > 0.7, np.corrcoef(found.frequency, f)[0, 1] > 0.8)
    1 True True
    """
    te = np.asarray(echo_times, np.float64)
    air = air_voxels(magnitude[..., -1], object_mask, MARGIN)
    if air is None:
        return None
    of_last = magnitude[..., -1:], phase[..., -1:]
    shares = [
        _fitted(_columns(of_last, air, axis, FEW), te[-1:], ROUNDS // 2)[1] for axis in range(3)
    ]
    axis = int(np.argmax(shares))
    if shares[axis] < LEAST_SHARE / 2:
        return None
    phases, share = _fitted(_columns((magnitude, phase), air, axis, MANY), te, ROUNDS)
    if share < LEAST_SHARE:
        return None
    frequency = phases / (2 * np.pi * te.mean())
    return Ghosts(axis, frequency, share, float(phases.std() * te[-1] / te.mean()))


def without_ghosts(
    magnitude: npt.NDArray,
    phase: npt.NDArray,
    echo_times: npt.ArrayLike,
    ghosts: Ghosts,
    workers: int = 1,
    overwrite: bool = False,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Magnitude and phase with the turns of the lines taken off.

    Memory: 8 bytes per voxel and echo for what is returned, unless it overwrites the images, and
    24 per voxel and thread; two Fourier transforms along one axis per echo.

    Parameters
    ----------
    magnitude, phase : (X, Y, Z, E) ndarray
        Signal as measured, any unit and rad.
    echo_times : (E,) array_like
        s.
    ghosts : Ghosts
        The axis and the frequencies of its lines.
    workers : int
        Threads.
    overwrite : bool
        Images in single precision are changed in place.

    Returns
    -------
    magnitude, phase : (X, Y, Z, E) ndarray of float32
        In the unit of the magnitude, and rad.

    Examples
    --------
    >>> image = np.ones((4, 4, 4, 1)); image[0] = 2
    >>> still = Ghosts(0, np.zeros(4), 1.0, 0.0)
    >>> print(without_ghosts(image, 0 * image, [0.01], still)[0][:, 0, 0, 0])
    [2. 1. 1. 1.]
    """
    te = np.asarray(echo_times, np.float64)
    corrected = tuple(
        image if overwrite and image.dtype == np.float32 else np.empty(image.shape, np.float32)
        for image in (magnitude, phase)
    )
    along = [1, 1, 1]
    along[ghosts.axis] = -1

    def correct(e: int) -> None:
        signal = complex_signal(magnitude[..., e], phase[..., e])
        lines = fft.fft(signal, axis=ghosts.axis, overwrite_x=True)
        turn = np.exp(-2j * np.pi * ghosts.frequency * te[e])
        lines *= turn.astype(np.complex64).reshape(along)
        signal = fft.ifft(lines, axis=ghosts.axis, overwrite_x=True)
        corrected[0][..., e], corrected[1][..., e] = np.abs(signal), np.angle(signal)

    side_by_side(workers, *(partial(correct, e) for e in range(te.size)))
    return corrected[0], corrected[1]


class _Columns(NamedTuple):
    """Voxels of air, and the lines of the columns that they lie in."""

    lines: npt.NDArray[np.complex64]
    """(C, N, E), of each column."""
    column: npt.NDArray[np.intp]
    """(V,) column of each voxel."""
    position: npt.NDArray[np.intp]
    """(V,) place in it."""


def _columns(
    images: tuple[npt.NDArray, npt.NDArray], air: Bools, axis: int, number: int
) -> _Columns:
    """About so many voxels of air, of columns along the axis that chance chooses."""
    air = np.moveaxis(air, axis, -1)
    held = air.sum(-1)
    places = some_columns(held > 0)
    enough = np.searchsorted(np.cumsum(held[tuple(places.T)]), number) + 1
    places = places[:enough]
    column, position = np.nonzero(air[tuple(places.T)])
    lines = lines_of(images, places, axis)
    lines /= np.float32(lines.shape[1])
    return _Columns(lines, column, position)


def _fitted(columns: _Columns, te: F64, rounds: int) -> tuple[F64, float]:
    """Phases of the lines at the mean echo time, (N,) rad, and the share of the last echo's energy
    in the air that the inner ones take away."""
    number = columns.lines.shape[1]
    phases, expected = np.zeros(number), FIRST_PHASE**2
    times = te / te.mean()
    before = _energy(columns, phases, times[-1])
    for _ in range(rounds):
        normal, right = _normal_equations(columns, phases, times)
        step = linalg.cho_factor(normal + np.eye(number) / expected)
        spread = linalg.cho_solve(step, np.eye(number))
        phases = phases + spread @ (right - phases / expected)
        known = number - np.trace(spread) / expected
        expected = max(float(phases @ phases) / max(known, 1e-9), 1e-8)
    smooth = ndimage.gaussian_filter1d(
        fft.fftshift(phases), number / (2 * np.pi * THROWN), mode='nearest'
    )
    phases -= fft.ifftshift(smooth)
    inner = np.abs(fft.fftfreq(number)) < 0.25
    after = _energy(columns, inner * phases, times[-1])
    return phases, 1 - after / before if before > 0 else 0.0


def _parts(
    columns: _Columns, phases: F64, times: F64
) -> Iterator[tuple[int, npt.NDArray[np.complex64]]]:
    """Number of each echo, and what the corrected lines make of some voxels of air, (V, N).

    Echoes are numbered from the last, which is -1: the last times are enough.
    """
    waves = fft.ifft(np.eye(len(phases), dtype=np.complex64), axis=0, norm='forward')
    for e, time in enumerate(times, start=-len(times)):
        turned = columns.lines[..., e] * np.exp(-1j * time * phases).astype(np.complex64)
        for k in range(0, len(columns.column), CHUNK):
            part = slice(k, k + CHUNK)
            yield e, turned[columns.column[part]] * waves[columns.position[part]]


def _energy(columns: _Columns, phases: F64, time: float) -> float:
    """Energy of the last echo in the air, at its time over the mean one."""
    parts = (part.sum(1) for _, part in _parts(columns, phases, np.array([time])))
    return sum(float(np.vdot(left, left).real) for left in parts)


def _normal_equations(columns: _Columns, phases: F64, times: F64) -> tuple[F64, F64]:
    """Matrix and right-hand side of a Gauss-Newton step.

    Echoes count by their energy in the air, that of the noise and of the ghosts together.
    """
    echoes, number = len(times), len(phases)
    square = np.zeros((echoes, number, number), np.float32)
    along, energy = np.zeros((echoes, number)), np.zeros(echoes)
    for e, parts in _parts(columns, phases, times):
        left = parts.sum(1)
        # d(left) / d(phase) = -i parts; real and imaginary parts are equations of their own.
        equations = np.concatenate([parts.imag, -parts.real])
        square[e] += equations.T @ equations
        along[e] -= equations.T @ np.concatenate([left.real, left.imag])
        energy[e] += np.vdot(left, left).real
    weight = np.divide(
        2 * len(columns.column), energy, out=np.zeros_like(energy), where=energy > 0
    )
    normal = np.tensordot(weight * times**2, square, 1)
    return normal, (weight * times) @ along
