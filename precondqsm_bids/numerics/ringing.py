"""Ringing of edges, since k-space ends: found in the magnitude, and taken off it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import fft

from precondqsm_bids.numerics.arrays import side_by_side
from precondqsm_bids.numerics.dipole import bounding_box, frequencies
from precondqsm_bids.numerics.echoes import sample

F32 = npt.NDArray[np.float32]
SHIFTS = (0.2, -0.2, 0.4, -0.4)
"""Fractions of a voxel by which the grid is moved; 17 instead of 5 places gain 0.1 % of NRMSE."""
MARGIN = 16
"""Voxels around the region that are looked at."""
LEAST_PLANES = 32
"""Fewest planes across an axis along which ringing is looked for: of fewer chance would tell."""
LINES = 3_000
"""Lines along an axis, about, from which it is told whether the images ring."""
LESS = 0.8
"""Part of k-space that is left of the images where they must ring."""
LEAST_RANGE = 0.05
"""Least difference between images that must ring and such that do not, for a verdict."""
FROM, WHOLE = 0.55, 0.65
"""Where the images stand between such that do not ring (0) and such that must (1), from which they
are corrected at all, and in full. Means over voxels have 0.2 to 0.53 (more in noise, where the
correction does neither good nor harm), images whose k-space ends 0.66 or more, real scans 0.5 to
1.5."""
PART_VALUES = 1 << 16
"""Values of lines that are handled at a time, which stay in the processor's cache."""


class Ringing(NamedTuple):
    """Ringing of the edges, as :func:`find_ringing` has found it."""

    share: tuple[float, float, float]
    """How much of the correction is made along each axis, 0 to 1."""
    places: tuple[npt.NDArray[np.int8] | None, ...]
    """Along each axis, for each voxel of the lines that cross the mask: 0 if it stays, else the
    number of its shift; None where nothing is done."""
    columns: tuple[npt.NDArray[np.bool_], ...]
    """Which lines along each axis cross the mask, of those of the box."""
    box: tuple[slice, slice, slice]
    """Part of the volume that is looked at."""


def find_ringing(
    magnitude: npt.NDArray, mask: npt.NDArray[np.bool_], workers: int = 1
) -> Ringing | None:
    """Whether the magnitude rings, and by how much the grid is to be moved in each voxel.

    An image whose k-space ends is one that was convolved with a ``sinc`` and sampled. Beside an
    edge the samples hit its lobes, the more the less the edge lies midway between two voxels. So
    each voxel's surroundings are sampled on grids that are moved by fractions of a voxel, and of
    these the one is taken that varies least over three voxels on one side, and interpolated
    linearly to where the voxel is. The image is split into three, one for each axis, so that along
    each only its own ringing counts: with ``c_i = 1 + cos(2 pi k_i)``

        F_1 = F c_2 c_3 / (c_1 c_2 + c_2 c_3 + c_1 c_3),  and so on

    All echoes have the same edges, so that the shifts are found in their mean, once.

    Voxels that are means over their volume, as many simulations have them, do not ring, and lose
    by this. Whether an image does is told by itself: by how far the variation of its lines
    falls. With ``a`` that of the image, ``b`` the same where only 0.8 of its k-space is left, so
    that it must ring, and ``c`` that of means of two voxels, where the lobes cancel, it stands at
    ``(c - a) / (c - b)``: nothing is done below 0.55, all from 0.65.

    Memory: 28 bytes per voxel of the mask's box with its margin.

    Parameters
    ----------
    magnitude : (X, Y, Z, E) ndarray
        Measured magnitude, any unit.
    mask : (X, Y, Z) ndarray of bool
        Voxels where it counts.
    workers : int
        Threads.

    Returns
    -------
    Ringing or None
        None if along no axis anything is to be done.

    References
    ----------
    Kellner E et al., Magn Reson Med 2016;76:1574 (local shifts); Bautista T et al., Proc ISMRM
    2021;29:3535 (three axes).

    Examples
    --------
    A ball on a fine grid, the middle of its k-space, and its means over the same voxels:

    >>> fine = ((np.indices((128, 128, 128)) - 64.7) ** 2).sum(axis=0) < 40**2
    >>> lines = np.fft.fftshift(np.fft.fftn(fine))[48:80, 48:80, 48:80]
    >>> cut = np.abs(np.fft.ifftn(np.fft.ifftshift(lines)))[..., None] / 64
    >>> mask = np.ones((32, 32, 32), bool)
    >>> print(find_ringing(cut, mask).share)
    (1.0, 1.0, 1.0)
    >>> means = fine.reshape(32, 4, 32, 4, 32, 4).mean(axis=(1, 3, 5))[..., None]
    >>> print(find_ringing(means, mask))
    None
    """
    box = bounding_box(mask, MARGIN)
    inside, cut = mask[box], _cut(box, mask.shape)
    crossing = tuple(np.asarray(inside.any(axis)) for axis in range(3))
    mean: F32 = np.asarray(np.mean(magnitude[box], axis=-1, dtype=np.float32))
    share = [0.0] * 3
    places: list[npt.NDArray[np.int8] | None] = [None] * 3
    for axis, own in _split(mean, workers, [n >= LEAST_PLANES for n in mean.shape]):
        lines = np.moveaxis(own, axis, -1)[crossing[axis]]
        some = lines[sample(crossing[axis][..., None], LINES)]
        share[axis] = _share(_level(some)[0] if cut[axis] else some)
        if share[axis]:
            places[axis] = _places(lines, cut[axis], workers)
    if not any(share):
        return None
    return Ringing((share[0], share[1], share[2]), tuple(places), crossing, box)


def without_ringing(image: npt.NDArray, ringing: Ringing, workers: int = 1) -> F32:
    """An image freed of the ringing that was found, on the lines that cross the mask.

    Memory: 24 bytes per voxel of the box.

    Parameters
    ----------
    image : (X, Y, Z) ndarray
        Magnitude of one echo.
    ringing : Ringing
        Result of :func:`find_ringing`.
    workers : int
        Threads.

    Returns
    -------
    (x, y, z) ndarray of float32
        The box of ``ringing``, not negative.
    """
    out = image[ringing.box].astype(np.float32)
    cut = _cut(ringing.box, image.shape)
    for axis, own in _split(out, workers, ringing.share):
        lines, places = np.moveaxis(own, axis, -1)[ringing.columns[axis]], ringing.places[axis]
        assert places is not None
        change = _moved(lines, places, cut[axis], workers)
        change -= lines
        change *= np.float32(ringing.share[axis])
        np.moveaxis(out, axis, -1)[ringing.columns[axis]] += change
    return np.maximum(out, 0, out=out)


def _cut(box: tuple[slice, slice, slice], shape: tuple[int, ...]) -> list[bool]:
    """Along which axes the box is less than the volume, whose ends meet in the image."""
    return [part.stop - part.start < n for part, n in zip(box, shape, strict=True)]


def _split(image: F32, workers: int, wanted: Sequence[float]) -> Iterator[tuple[int, F32]]:
    """The axes that are wanted, and the part of the image whose ringing is along each.

    The image may change once the first is there.
    """
    spectrum = fft.rfftn(image, workers=workers)
    # At the highest frequency of two axes nothing belongs to either: a little keeps it finite.
    c = [
        (1.0 + 1e-6 + np.cos(2 * np.pi * k)).astype(np.float32)
        for k in frequencies(image.shape, (1, 1, 1))
    ]
    whole = c[0] * c[1] + c[1] * c[2] + c[0] * c[2]
    for axis in np.flatnonzero(wanted):
        one, other = (c[i] for i in range(3) if i != axis)
        own = spectrum * (one * other / whole)
        yield int(axis), fft.irfftn(own, s=image.shape, overwrite_x=True, workers=workers)


def _share(lines: F32) -> float:
    """How much of the correction these lines ask for."""
    n = lines.shape[1]
    pairs = [lines[:, first : first + (n - first) // 2 * 2] for first in (0, 1)]
    smooth = [np.float32(0.5) * (two[:, ::2] + two[:, 1::2]) for two in pairs]
    own, most, least = _fall([lines]), _fall(_cropped(lines)), _fall(smooth)
    if least - most < LEAST_RANGE:
        return 0.0
    return float(np.clip(((least - own) / (least - most) - FROM) / (WHOLE - FROM), 0, 1))


def _cropped(lines: F32) -> Iterator[F32]:
    """Lines of which a part of k-space is left, on grids that lie in four ways to the edges.

    Together they lie in the same way to a line and to its mirror image.
    """
    n = lines.shape[1]
    kept = max(4, 2 * round(LESS * n / 2))
    k = np.arange(kept // 2 + 1)
    spectrum = fft.rfft(lines, axis=1)[:, : kept // 2 + 1]
    for place in (-0.375, -0.125, 0.125, 0.375):
        first = (n / kept - 1) / 2 + place * n / kept
        moved = spectrum * np.exp(2j * np.pi * k / n * first).astype(np.complex64)
        moved[:, -1] = moved[:, -1].real
        yield fft.irfft(moved, kept, axis=1)


def _fall(images: Iterable[F32]) -> float:
    """Variation of lines on the best grid in each place, over that on their own."""
    total, best = 0.0, 0.0
    for lines in images:
        own, spectrum = _variation(lines), fft.rfft(lines, axis=1)
        total += float(own.sum(dtype=float))
        for shift in _shifts(lines.shape[1])[0]:
            moved = fft.irfft(spectrum * shift, lines.shape[1], axis=1)
            np.minimum(own, _variation(moved), out=own)
        best += float(own.sum(dtype=float))
    return best / total if total > 0 else 1.0


def _shifts(n: int) -> tuple[list[npt.NDArray], list[npt.NDArray]]:
    """Factors on the spectrum of a line that sample it on each moved grid, and those that
    interpolate from there to its own."""
    k = fft.rfftfreq(n)
    there, back = [], []
    for shift in SHIFTS:
        moved = np.exp(2j * np.pi * k * shift)
        if n % 2 == 0:  # the highest frequency stands for both of its signs
            moved[-1] = moved[-1].real
        other = np.exp(-2j * np.pi * k * np.sign(shift))
        there.append(moved.astype(np.complex64))
        back.append((moved * (1 - abs(shift) + abs(shift) * other)).astype(np.complex64))
    return there, back


def _variation(lines: F32) -> F32:
    """Sum of three differences of neighbours on that side of each voxel where it is less."""
    n = lines.shape[1]
    steps = np.empty((len(lines), n + 8), np.float32)
    inner = steps[:, 4:-4]
    np.subtract(lines[:, 1:], lines[:, :-1], out=inner[:, 1:])
    np.subtract(lines[:, 0], lines[:, -1], out=inner[:, 0])
    np.abs(inner, out=inner)
    steps[:, :4], steps[:, -4:] = inner[:, -4:], inner[:, :4]
    three = steps[:, :-2] + steps[:, 1:-1]
    three += steps[:, 2:]
    return np.minimum(three[:, 1 : n + 1], three[:, 6 : n + 6])


def _level(lines: F32) -> tuple[npt.NDArray, npt.NDArray]:
    """Lines less the slope between their ends, which do not meet; and those slopes."""
    slope = (lines[:, -1:] - lines[:, :1]) / np.float32(lines.shape[1] - 1)
    ramp = slope * np.arange(lines.shape[1], dtype=np.float32)
    return lines - ramp, ramp


def _in_parts(lines: F32, workers: int, function: Callable[[slice], None]) -> None:
    """Call a function with slices of lines."""
    step = max(1, PART_VALUES // lines.shape[1])
    parts = (slice(k, k + step) for k in range(0, len(lines), step))
    side_by_side(workers, *(partial(function, part) for part in parts))


def _places(lines: F32, cut: bool, workers: int) -> npt.NDArray[np.int8]:
    """Number of the grid on which each voxel's surroundings vary least; 0 is their own."""
    out = np.zeros(lines.shape, np.int8)
    shifts, _ = _shifts(lines.shape[1])

    def choose(part: slice) -> None:
        here = _level(lines[part])[0] if cut else lines[part]
        least, spectrum = _variation(here), fft.rfft(here, axis=1)
        for number, shift in enumerate(shifts, 1):
            varies = _variation(fft.irfft(spectrum * shift, here.shape[1], axis=1))
            np.putmask(out[part], varies < least, number)
            np.minimum(least, varies, out=least)

    _in_parts(lines, workers, choose)
    return out


def _moved(lines: F32, places: npt.NDArray[np.int8], cut: bool, workers: int) -> F32:
    """Values of lines from the grids that were chosen."""
    out = lines.copy()
    _, back = _shifts(lines.shape[1])

    def take(part: slice) -> None:
        here, ramp = _level(lines[part]) if cut else (lines[part], None)
        spectrum = fft.rfft(here, axis=1)
        for number, factor in enumerate(back, 1):
            moved = fft.irfft(spectrum * factor, here.shape[1], axis=1)
            if ramp is not None:
                moved += ramp
            np.copyto(out[part], moved, where=places[part] == number)

    _in_parts(lines, workers, take)
    return out
