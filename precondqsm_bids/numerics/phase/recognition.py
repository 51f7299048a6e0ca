"""Images that are not what their names say: recognised before the sign of the phase is looked for.

Each function is one statistic of arrays and one decision. Thresholds lie between what good data
and the fault have on phantoms and on real scans (``tests/numerics/test_recognition.py``), far from
the good data: a fault that is not recognised fails later, with a message that says less, while a
good scan that is refused cannot be reconstructed at all.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from precondqsm_bids.numerics.arrays import block_means, median, neighbours
from precondqsm_bids.numerics.constants import WATER_IN_AIR, hz_per_ppm
from precondqsm_bids.numerics.dipole import bounding_box
from precondqsm_bids.numerics.echoes import Echoes
from precondqsm_bids.numerics.phase.readout import alternating_axes
from precondqsm_bids.numerics.phase.scale import common_value, jumps
from precondqsm_bids.numerics.phase.shape_field import shim_terms
from precondqsm_bids.numerics.scan import Scan

Bools = npt.NDArray[np.bool_]
TWO_PI = 2 * np.pi
PLANES = 8
"""Planes whose differences are summed at a time."""
LEAST_VOXELS = 200
"""Voxels of the smallest object that is looked at: a few may do anything."""
EVEN = 0.25
"""Fraction of an even histogram that every bin of a wrapped phase with noise has; a magnitude's
upper bins are all but empty, or those between object and air are."""
SYMMETRY = 0.1
"""Fraction by which the ends of a phase around 0 may differ in size."""
SAME_IMAGE = 0.9
"""Correlation of phase and magnitude, and of their differences between neighbours, above which
they are one image. Their noise is independent in good data."""
GROWTH = (1.05, 0.8)
"""Factor from the first to the last echo, and fraction of the object where the magnitude grows by
more than that, from which echo times are called reversed."""
SLOW_PHASE = (0.25, 0.25)
"""rad, root mean square of the smoothed phase below which it is called filtered, and its fraction
of what is expected of the object's shape, ..."""
EXPECTED_PHASE = 0.2
"""... where that is at least this, rad, whatever a shim takes off."""
OUTLINE_ERROR = 0.04
"""Error of the slow field that an outline of voxels makes, over the step from air to water, times
the object's radius in voxels. Ellipsoids have no such field; the staircase of their voxels, and a
border that dephases here more than there, give them 0.02 to 0.04 (radii of 13 to 30 voxels, 1.5 to
9.4 T, first echoes of 2 to 20 ms)."""
ADVANCE = 0.25
"""Coefficient of the shape's field in the phase advance, by that of the first echo's phase, below
which (with three standard errors) the phase does not grow, where ..."""
FIRST_ECHO = (0.1, 2.5)
"""... the coefficient of the shape's field in the first echo, for the time between echoes, lies
within (1 of a difference by theory; heads whose region is their brain have 0.12), and ..."""
LEAST_CORRELATION = 0.15
"""... its correlation there is at least this."""


def is_phase(data: npt.NDArray) -> bool:
    """Check for the values of a wrapped phase in an image: magnitude and phase swapped.

    Either it is negative in a fifth of the voxels or more, to the same size as it is positive
    (-pi..pi); or it fills its range evenly, every 32nd of it to at least a quarter of an even
    share, and jumps by more than half of it between at least 5 % of the neighbours (0..4095 with
    noise in the air). The most common value (blanked air) is left out.

    >>> rng = np.random.default_rng(0)
    >>> noise = rng.normal(size=(2, 20, 20, 20))
    >>> is_phase(np.hypot(*noise)), is_phase(np.arctan2(*noise) + 4)
    (False, True)
    """
    data = np.asarray(data)
    stride = max(1, data.size >> 20) | 1
    values = np.asarray(data.ravel()[::stride], np.float64)
    blank = common_value(values)
    values = values[values != blank] if blank is not None else values
    if values.size < 1000:
        return False
    low, high = float(values.min()), float(values.max())
    if low < 0 < high and abs(high + low) < SYMMETRY * (high - low):
        return bool(np.mean(values < 0) > 0.2)
    if low < 0:
        return False
    bins = np.histogram(values, 32, (low, high))[0]
    if bins.min() < EVEN * values.size / 32:
        return False
    return jumps(data[..., None], blank, (high - low) / 2) > 0.05


def likeness(phase: npt.NDArray, magnitude: npt.NDArray, mask: Bools) -> tuple[float, float]:
    """Correlation of an echo's phase with its magnitude in the object, and of their differences.

    Both are near 1 for a magnitude that is stored as phase, whatever its scale: above
    :data:`SAME_IMAGE`. In good data the differences between neighbours are those of noise, which
    is independent in magnitude and phase, and of edges, which a field does not follow; so they
    are not looked at (0) where the values are not alike.

    >>> magnitude = np.random.default_rng(0).normal(9, 1, (9, 9, 9))
    >>> print(np.round(likeness(4 * magnitude + 1, magnitude, magnitude > 0), 3))
    [1. 1.]
    """
    values = _correlation(*(v[mask].astype(np.float64) for v in (phase, magnitude)))
    if values <= SAME_IMAGE:
        return values, 0.0
    one, two = np.asarray(phase, np.float64), np.asarray(magnitude, np.float64)
    differences: list[npt.NDArray] = []
    for axis in range(3):
        both = np.diff(mask.astype(np.int8), axis=axis) == 0
        both &= np.take(mask, range(1, mask.shape[axis]), axis)
        differences.append(np.stack([np.diff(v, axis=axis)[both] for v in (one, two)]))
    return values, _correlation(*np.concatenate(differences, axis=1))


def _correlation(one: npt.NDArray, two: npt.NDArray) -> float:
    """Pearson's, 0 where there is none."""
    if one.size < LEAST_VOXELS or one.std() == 0 or two.std() == 0:
        return 0.0
    return float(np.corrcoef(one, two)[0, 1])


def unsigned_parts(real: npt.NDArray, imaginary: npt.NDArray) -> bool:
    """Check for real and imaginary parts without their signs, so that phase fills a quarter turn.

    Neither is negative anywhere, and either the phase of what is not 0 is that of
    :func:`fills_quarter_turn`, or the faces of the field of view have one value in both parts, to
    2 %, with deviations of less than a tenth of it: codes whose 0 is in the middle of their range.

    >>> parts = np.random.default_rng(0).normal(size=(2, 20, 20, 20))
    >>> unsigned_parts(*np.abs(parts)), unsigned_parts(*parts + 20), unsigned_parts(*parts)
    (True, True, False)
    """
    if np.nanmin(real) < 0 or np.nanmin(imaginary) < 0:
        return False
    there = (real > 0) | (imaginary > 0)
    if fills_quarter_turn(np.arctan2(imaginary[there], real[there])):
        return True
    faces = np.ones(real.shape, bool)
    faces[1:-1, 1:-1, 1:-1] = False
    one, other = (np.asarray(part[faces], np.float64) for part in (real, imaginary))
    level = float(np.median(one))
    deviation = max(float(np.median(np.abs(part - np.median(part)))) for part in (one, other))
    alike = abs(float(np.median(other)) - level) < 0.02 * level
    return level > 0 and alike and deviation < 0.1 * level


def fills_quarter_turn(phase: npt.NDArray) -> bool:
    """Check for a phase (rad) that fills the turn's first quarter, and nothing else.

    To both ends: each 16th of it has at least a quarter of an even share.

    >>> fills_quarter_turn(np.linspace(0, np.pi / 2, 5000)), fills_quarter_turn(np.zeros(5000))
    (True, False)
    """
    if phase.size < 1000 or phase.min() < -1e-3 or phase.max() > np.pi / 2 + 1e-3:
        return False
    bins = np.histogram(phase, 16, (0, np.pi / 2))[0]
    return bool(bins.min() >= EVEN * phase.size / 16)


class Growth(NamedTuple):
    """Result of :func:`growth`."""

    factor: float
    """Median of the last echo's magnitude over that of the first."""
    fraction: float
    """Fraction of the object in which it grows by more than 5 %."""
    reversed: bool
    """That is most of it."""


def growth(magnitude: npt.NDArray, mask: Bools) -> Growth:
    """Growth of the magnitude from the first echo to the last: none where signal decays.

    Echo times in reverse order, or echoes that are scaled one by one, let it grow in nearly the
    whole object; noise, or fat that comes into phase again, in parts of it.

    >>> decay = np.exp(-20 * np.array([0.004, 0.02])) * np.ones((9, 9, 9, 1))
    >>> mask = np.ones((9, 9, 9), bool)
    >>> growth(decay, mask).reversed, growth(decay[..., ::-1], mask).reversed
    (False, True)
    """
    first, last = (magnitude[..., e][mask] for e in (0, -1))
    there = first > 0
    if np.count_nonzero(there) < LEAST_VOXELS:
        return Growth(1.0, 0.0, False)
    ratio = last[there].astype(np.float64) / first[there]
    fraction = float(np.mean(ratio > GROWTH[0]))
    return Growth(float(median(ratio)), fraction, fraction > GROWTH[1])


class SlowPhase(NamedTuple):
    """Result of :func:`slow_phase`."""

    size: float
    """Root mean square of the smoothed phase, rad; the largest of first, middle and last echo."""
    expected: float
    """Least that the field of the shape makes of it, rad, whatever a shim takes off, and whatever
    the outline has wrong."""
    filtered: bool
    """The first is small and the second is not."""


def slow_phase(scan: Scan, mask: Bools, shape_field: npt.NDArray) -> SlowPhase:
    """Slow variations of the phase against those that the object's shape must make.

    A high-pass or homodyne filter (as for susceptibility-weighted images) divides the signal by
    its smoothed self, so that the smoothed signal of what is left has phase 0. Here the complex
    signal, of equal size in every voxel, is smoothed with a Gaussian of an eighth of the object's
    extent (10 voxels at most), and its phase taken. The field of the shape in air, times the echo
    time, less what polynomials of second order (a shim) can take off, is the least that must be
    there; its mean square is that of the field less that of the error of an outline made of
    voxels (:data:`OUTLINE_ERROR`). An ellipsoid or a long tube has none of it, and is never called
    filtered.

    Echoes of less than 0.3 times the magnitude of the strongest are left out. Smoothing begins
    with means over blocks of up to 3 voxels.
    """
    times, phase = np.asarray(scan.echo_times, np.float64), scan.phase
    # An echo whose noise hides its slow phase would seem filtered.
    level = [float(median(scan.magnitude[..., e][mask])) for e in range(times.size)]
    usable = [e for e in range(times.size) if level[e] > 0.3 * max(level)]
    box = ndimage.find_objects(mask.astype(np.int8))[0]
    inside = mask[box]
    sigma = [float(np.clip(n / 8, 0, 10)) if n > 3 else 0.0 for n in inside.shape]
    block = [max(1, int(width / 3)) for width in sigma]
    sigma = [width / size for width, size in zip(sigma, block, strict=True)]
    fraction = _blocks(inside.astype(np.float32), block)
    there = fraction > 0.5
    size = 0.0
    for echo in {usable[0], usable[len(usable) // 2], usable[-1]}:
        real, imaginary = (
            ndimage.gaussian_filter(_blocks(part(phase[box][..., echo]) * inside, block), sigma)
            for part in (np.cos, np.sin)
        )
        size = max(size, float(np.sqrt(np.mean(np.arctan2(imaginary, real)[there] ** 2))))
    echo = usable[-1]
    expected = _blocks(np.where(inside, shape_field[box], 0), block)
    weight = np.maximum(ndimage.gaussian_filter(fraction, sigma), 1e-6)
    expected = ndimage.gaussian_filter(expected.astype(np.float64), sigma) / weight
    radius = np.cbrt(0.75 / np.pi * np.count_nonzero(mask))
    error = OUTLINE_ERROR * abs(WATER_IN_AIR) / radius
    left = np.sqrt(max(float(_without_shim(expected, there).var()) - error**2, 0))
    radians = float(TWO_PI * hz_per_ppm(scan.field_strength) * times[echo] * left)
    least = min(SLOW_PHASE[0], SLOW_PHASE[1] * radians)
    return SlowPhase(size, radians, size < least and radians > EXPECTED_PHASE)


def _blocks(data: npt.NDArray, block: Sequence[int]) -> npt.NDArray:
    """Means over blocks of voxels; what does not fill a block at the far ends is left out.

    >>> _blocks(np.arange(7.0).reshape(7, 1, 1), (3, 1, 1)).ravel()
    array([1., 4.])
    """
    whole = tuple(slice(n // b * b) for n, b in zip(data.shape, block, strict=True))
    return block_means(data[whole], block)


def _without_shim(field: npt.NDArray, mask: Bools) -> npt.NDArray[np.float64]:
    """Values in the mask less their fit by polynomials of second order."""
    voxels = np.flatnonzero(mask)
    voxels = voxels[:: max(1, voxels.size // 200_000)]
    design = shim_terms(mask.shape, voxels)
    values = np.asarray(field.ravel()[voxels], np.float64)
    return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]


class Advance(NamedTuple):
    """Result of :func:`phase_growth`."""

    coefficient: float
    """Coefficient of the shape's field in the phase advance from the first echo to the second: +1
    or -1 in theory."""
    error: float
    """Its standard error."""
    first: float
    """Coefficient in the phase of the first echo, for the time between the echoes."""
    correlation: float
    """Correlation of the two in the first echo."""
    differences: bool
    """The first echo has the field of the shape and the advance has not."""


def phase_growth(scan: Scan, mask: Bools, shape_field: npt.NDArray) -> Advance | None:
    """Growth of the phase with echo time: none where every echo has the same phase difference.

    The differences between neighbouring voxels, of the first echo's phase and of the advance to
    the second, need no unwrapping. Along each axis they are regressed on those of the shape's
    field (ppm), after polynomials of first order (a shim, a readout) are taken off both. None of a
    single echo, or where the shape has no field to compare with.
    """
    times = np.asarray(scan.echo_times, np.float64)[:2]
    if scan.one_echo:
        return None
    box = bounding_box(mask, 2)
    mask, shape_field = mask[box], shape_field[box]
    # The border is where the field of the shape is least certain.
    inner = ndimage.binary_erosion(mask, iterations=2, border_value=1)
    inner = inner if np.count_nonzero(inner) >= 1000 else mask
    images = scan.magnitude[box][..., :2], scan.phase[box][..., :2]
    echoes = Echoes.of(images, times, mask)
    # Slices whose sign alternates are repaired later.
    axes = set(range(3)) - set(alternating_axes(echoes))
    first, second = (echoes.volume(echo) for echo in echoes.signal.T)
    del echoes
    for one, two in zip(first, second, strict=True):
        two *= one.conj()
    moments, number = _step_moments(shape_field, (first, second), inner, axes)
    scale = TWO_PI * hz_per_ppm(scan.field_strength) * (times[1] - times[0])
    power = scale**2 * moments[0, 0]
    if power <= 0:
        return None
    coefficient, of_first = (float(scale * moments[0, k] / power) for k in (2, 1))
    left = max(moments[2, 2] - coefficient**2 * power, 0.0)
    error = float(np.sqrt(left / number / power))
    size = float(np.sqrt(moments[0, 0] * moments[1, 1]))
    correlation = float(moments[0, 1]) / size if size > 0 and number >= LEAST_VOXELS else 0.0
    # What is due: the phase of the first echo grows in proportion to the time.
    due = abs(of_first) * min(1.0, (times[1] - times[0]) / times[0])
    differences = (
        abs(coefficient) + 3 * error < ADVANCE * due
        and FIRST_ECHO[0] < abs(of_first) < FIRST_ECHO[1]
        and abs(correlation) > LEAST_CORRELATION
    )
    return Advance(coefficient, error, of_first, correlation, differences)


def _step_moments(
    shape_field: npt.NDArray, signals: Sequence[npt.NDArray], inner: Bools, axes: Iterable[int]
) -> tuple[npt.NDArray[np.float64], int]:
    """Sums of products of the differences between neighbours, and their number.

    Of the shape's field and of the phase of each signal, (S + 1, S + 1), along all axes, of each
    of which polynomials of first order are taken off; axes of few neighbours are left out. The
    sums go over a few planes at a time: nothing of the size of the volume is kept.
    """
    total, number = np.zeros((len(signals) + 1, len(signals) + 1)), 0
    for axis in axes:
        here, there = neighbours(axis)
        both = inner[here] & inner[there]
        if (count := int(np.count_nonzero(both))) < 100:
            continue
        number += count
        sums = np.zeros((len(signals) + 5, len(signals) + 5))
        for low in range(0, len(both), PLANES):
            part = slice(low, low + PLANES)
            where = both[part]
            i, j, k = np.nonzero(where)
            steps = [
                (shape_field[there][part] - shape_field[here][part])[where],
                *(np.angle(s[there][part][where] * s[here][part][where].conj()) for s in signals),
            ]
            rows = np.stack([np.ones(len(i)), (i + low) / 10, j / 10, k / 10, *steps])
            sums += rows @ rows.T
        cross = sums[:4, 4:]
        # An axis of one slice makes a row of zeros.
        total += sums[4:, 4:] - cross.T @ np.linalg.pinv(sums[:4, :4], hermitian=True) @ cross
    return total, number
