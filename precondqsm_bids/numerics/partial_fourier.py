"""Partial Fourier: lines of k-space on one side that were not measured and are zero."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from precondqsm_bids.numerics.lines import lines_of, some_columns

EMPTY = 0.3
"""Energy of a line over that of its mirror image below which it is empty. Of lines that were
measured it is 0.4 to 2.5, the more unequal the more the field bends the object's phase."""
LEAST_LINES, LEAST_SHARE = 3, 1 / 8
"""Fewest empty lines, and their least share of those on one side."""
OFF_CENTRE = 1 / 8
"""Distance of the line of most energy from the middle, over all lines, from which k-space is taken
to be stored off centre (a ramp of phase in the image): a shim moves it by less."""


def measured_lines(
    magnitude: npt.NDArray, phase: npt.NDArray, mask: npt.NDArray[np.bool_]
) -> tuple[float, float, float]:
    """Share of the lines of k-space that were measured, along each axis; 1 if all.

    The energy of an object at a spatial frequency and at its opposite is alike, as the noise is.
    Where from some frequency on to the outermost one side has less than 0.3 of the other, its
    lines were left out. The middle is the line of most energy where that is far from the one of
    no frequency. Zeros on both sides (an interpolation) are not looked for, and zeros that
    the scanner has filled by the other side are not seen.

    Memory: 16 bytes per line of 2,000 columns; one Fourier transform of these along each axis.

    Parameters
    ----------
    magnitude, phase : (X, Y, Z) ndarray
        Signal of the first echo, any unit and rad.
    mask : (X, Y, Z) ndarray of bool
        The object.

    References
    ----------
    McGibney G et al., Magn Reson Med 1993;30:51 (partial Fourier and its reconstructions).

    Examples
    --------
    >>> rng = np.random.default_rng(0); mask = np.ones((8, 32, 8), bool)
    >>> lines = np.fft.fft(rng.normal(size=mask.shape), axis=1)
    >>> lines[:, 16:24] = 0
    >>> partial = np.fft.ifft(lines, axis=1)
    >>> measured_lines(np.abs(partial), np.angle(partial), mask)
    (1.0, 0.75, 1.0)
    """
    x, y, z = (_measured(magnitude, phase, mask, axis) for axis in range(3))
    return x, y, z


def _measured(
    magnitude: npt.NDArray, phase: npt.NDArray, mask: npt.NDArray[np.bool_], axis: int
) -> float:
    """Share of the lines along one axis that were measured."""
    lines = lines_of((magnitude[..., None], phase[..., None]), some_columns(mask.any(axis)), axis)
    energy = np.mean(np.abs(lines[..., 0]) ** 2, axis=0)
    middle = int(np.argmax(energy))
    if min(middle, len(energy) - middle) > OFF_CENTRE * len(energy):
        energy = np.roll(energy, -middle)
    half = (len(energy) - 1) // 2
    up, down = energy[1 : half + 1], energy[-1 : -half - 1 : -1]
    with np.errstate(divide='ignore', invalid='ignore'):
        ratio = np.log(down / up)
    if not np.isfinite(ratio).any():
        return 1.0
    ratio = ndimage.median_filter(np.nan_to_num(ratio, posinf=99, neginf=-99), 3, mode='nearest')
    empty = np.sign(ratio) * (np.abs(ratio) > -np.log(EMPTY))
    same = np.flatnonzero(empty != empty[-1]) if empty[-1] else np.arange(half)
    missing = half - 1 - (same[-1] if same.size else -1)
    if missing < max(LEAST_LINES, LEAST_SHARE * half):
        return 1.0
    if len(energy) % 2 == 0:
        missing += 1  # the line that has no mirror image
    return float(1 - missing / len(energy))
