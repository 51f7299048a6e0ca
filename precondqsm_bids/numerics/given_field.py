"""A field that was measured elsewhere, in the place of the echo fit."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from precondqsm_bids.numerics.air import air_around
from precondqsm_bids.numerics.arguments import checked
from precondqsm_bids.numerics.arrays import check_shapes
from precondqsm_bids.numerics.constants import hz_per_ppm
from precondqsm_bids.numerics.field_quality import judge_field
from precondqsm_bids.numerics.measure_field import MeasuredField, t2star_of
from precondqsm_bids.numerics.noise import noise_inside
from precondqsm_bids.numerics.one_echo import OneEcho
from precondqsm_bids.numerics.phase.sign import (
    NOT_COMPARED,
    PhaseSign,
    compare_with_shape,
    decide_sign,
)
from precondqsm_bids.numerics.prior.r2prime import R2_RANGE

F32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
UNITS = ('ppm', 'Hz', 'rad/s', 'T')
"""Units of a field."""
LEAST_SHAPE, MOST_SHAPE = 0.3, 3.0
"""Field of the object's shape in a given field, over that of water in air, below which its unit is
in doubt and above which it is another one. Phantoms and heads here have 0.9 to 1.3; rad/s taken
for Hz is 6.3 times, Hz for ppm 4 to 300 times, and the reverse so much less."""
MOST_FIELD = 100.0
"""ppm; 99th percentile of a total field, less its median, beyond which it is in another unit: air
and water differ by 9.4, and a field in Hz taken for ppm is 64 to 300 times too large."""
MOST_SD = 1.0
"""ppm; a voxel without signal says no less."""
JUMP, AGAINST = 0.75, 0.75
"""Step between neighbours, over the range of a field, from which it may be a wrap, and fraction of
such steps that are against the slope around them if they are wraps: 0.9 to 1, of walls 0.5."""
SOME_WRAPS, MANY_WRAPS, LEAST_WRAPS = 1e-3, 5e-3, 20
"""Fraction of neighbours from which wraps are warned of and refused, and least number of them.
Fields that are unwrapped have none; those of phantoms and heads that wrap at 0.4 to 3.2 ppm 0.001
to 0.2."""
EVEN = 0.15
"""Least share of each 32nd of the range, over an even one, of a field of many wraps: 0.16 to 0.9
there, in a field of sharp walls alone up to 0.09."""
FOURTH = (1, -4, 6, -4, 1)
"""Coefficients of a fourth difference."""
MOST_HOLES = 0.01
"""Fraction of the object without a field, inside where there is one, that is reported."""


class GivenField(NamedTuple):
    """A total field on one grid, and what is known of it besides its values."""

    total_field: npt.NDArray
    """Relative field, ppm, positive where the frequency is higher, (X, Y, Z) as all. Where it is 0
    or not a number it is not known."""
    magnitude: npt.NDArray
    """Of one echo or of all, any unit."""
    field_strength: float
    """B0, T."""
    voxel_size: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """mm"""
    b0_dir: npt.ArrayLike = (0.0, 0.0, 1.0)
    """Direction of B0 along the voxel axes."""
    b0_stated: bool = False
    """The user states the direction; it is the header's otherwise."""
    stored_axes: tuple[int, int, int] = (0, 1, 2)
    """Axis of the file that each axis of the arrays is."""
    field_sd: npt.NDArray | None = None
    """Standard deviation of the field, ppm; by its fourth differences if None."""
    r2star: npt.NDArray | None = None
    """R2*, 1/s; not a number, or 0 with all around it, where it is not known."""
    sign: int | None = None
    """+1 or -1: what the field is multiplied by; +1 if None, and the shape's field is to agree."""


def in_ppm(field: npt.NDArray, units: str, field_strength: float) -> F32:
    """A field in one of :data:`UNITS` as ppm; field strength in T.

    >>> print(in_ppm(np.array([127.729]), 'Hz', 3.0).round(3))
    [1.]
    >>> print(in_ppm(np.array([802.545]), 'rad/s', 3.0).round(3), in_ppm(np.ones(1), 'T', 2.0))
    [1.] [500000.]

    Raises ValueError of another unit.
    """
    return np.asarray(field / _per_ppm(units, field_strength), np.float32)


def from_ppm(field: npt.NDArray, units: str, field_strength: float) -> F32:
    """A field in ppm as one in :data:`UNITS`, the inverse of :func:`in_ppm`.

    >>> print(from_ppm(np.ones(1), 'Hz', 3.0).round(3), from_ppm(np.ones(1), 'rad/s', 3.0).round())
    [127.729] [803.]
    """
    return np.asarray(field * _per_ppm(units, field_strength), np.float32)


def _per_ppm(units: str, field_strength: float) -> float:
    """What 1 ppm is in one of :data:`UNITS`."""
    if units not in UNITS:
        raise ValueError(f'units {units!r} of a field are not one of {", ".join(UNITS)}')
    return {
        'ppm': 1.0,
        'Hz': hz_per_ppm(field_strength),
        'rad/s': 2 * np.pi * hz_per_ppm(field_strength),
        'T': 1e-6 * field_strength,
    }[units]


def known_region(field: npt.NDArray, mask: npt.NDArray | None = None) -> npt.NDArray | None:
    """A mask, or 1, where a field is known: not 0 and a number; None if that is everywhere.

    >>> known_region(np.array([0.1, 0, np.nan, 2])).tolist()
    [1, 0, 0, 1]
    """
    known = _known(field)
    if mask is None:
        return None if known.all() else known.astype(np.uint8)
    return np.where(known, mask, 0)


def region_asked(
    field: npt.NDArray | None, mask: npt.NDArray | None, inside: str
) -> npt.NDArray | str:
    """What restricts a region: a mask, where a given field is known, or what is to be found.

    >>> region_asked(np.ones(3), None, 'brain'), region_asked(None, None, 'auto')
    ('brain', 'auto')
    """
    if field is not None:
        mask = known_region(field, mask)
    return inside if mask is None else mask


def _known(field: npt.NDArray) -> Bools:
    return np.isfinite(field) & (field != 0)


@checked
def take_field(
    given: GivenField, mask: Bools, shape_mask: Bools | None = None, workers: int = 1
) -> MeasuredField:
    """A given total field as the echo fit would give it: judged, with its standard deviation.

    The phase noise of a voxel is inverse to its signal, so that ``field_sd = k / magnitude``; the
    scale k is that of the field's fourth differences (:func:`field_scale`). R2* is taken as it is,
    and is reliable where it is known and there is signal.

    The sign and the direction of B0 are compared with the field of the object's shape
    (:func:`~precondqsm_bids.numerics.phase.sign.shape_evidence`), which warns.

    Parameters
    ----------
    given : GivenField
        The field, and what is known of it.
    mask : (X, Y, Z) ndarray of bool
        Region of interest, inside :func:`known_region`.
    shape_mask : (X, Y, Z) ndarray of bool, optional
        Object in air, for the comparison.
    workers : int
        Threads of the Fourier transforms.

    Raises
    ------
    ValueError
        The field is not one in ppm, is not known in the whole mask, or contradicts the stated
        sign or the header's direction of B0; it is wrapped; R2* is not one in 1/s; most of the
        region has no signal.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> field = 0.05 + rng.normal(0, 0.01, (12, 12, 12))
    >>> given = GivenField(field, np.ones(field.shape), 3.0)
    >>> found = take_field(given, np.ones(field.shape, bool))
    >>> print(found.total_field.mean().round(2), found.field_sd.mean().round(2), found.r2star)
    0.05 0.01 None
    """
    _check(given, mask)
    sign = given.sign or 1
    field = np.where(mask, sign * given.total_field, 0).astype(np.float32)
    magnitude = np.asarray(given.magnitude, np.float32)
    sd, sd_source = _deviation(given, field, mask)
    air = air_around(magnitude[..., None], mask if shape_mask is None else shape_mask)
    noise_sd = air.noise_sd if air else noise_inside(magnitude, mask)
    usable = (mask & (magnitude > 2 * noise_sd)).astype(np.uint8)
    source = 'air' if air else 'magnitude'
    quality = judge_field(OneEcho(field, sd, usable, noise_sd, source), mask)
    test, axes, doubts = NOT_COMPARED
    if shape_mask is not None:
        test, axes, doubts = compare_with_shape(field, sd, (mask, shape_mask), given, workers)
    doubts += (*_wraps(field, usable > 0), *_compare_unit(test), *_doubts(test, given.sign))
    agrees = test is not None and test.decisive and test.sign > 0
    warnings = [*quality.warnings, *doubts]
    if (holes := _holes(_known(given.total_field), mask)) > MOST_HOLES:
        warnings.append(
            f'the field is 0 or not a number in {holes:.1%} of what surrounds it: these voxels '
            'are not in the region'
        )
    record = {
        'echo_times': [],
        'field_source': 'given',
        'field_strength': given.field_strength,
        'field_strength_source': 'given',
        'phase_sign': sign,
        'phase_sign_source': 'given' if given.sign else
                             'field of the shape' if agrees else 'convention',
        'phase_sign_coefficient': test.coefficient if test else None,
        'phase_sign_correlation': test.correlation if test else None,
        'b0_dir': np.asarray(given.b0_dir, float).round(6).tolist(),
        'b0_dir_source': 'given' if given.b0_stated else 'header',
        'b0_contradicted': bool(axes and axes.better),
        'field_sd_source': sd_source,
        'median_field_sd': float(np.median(sd[mask])),
        'no_signal_fraction': quality.unusable_fraction,
        'noise_sd': noise_sd,
        'noise_source': source,
        'bodies': quality.bodies,
        'warnings': warnings,
    }  # fmt: skip
    maps = field, sd, usable, magnitude, mask, record
    if given.r2star is None:
        return MeasuredField(*maps)
    r2star = np.where(mask & np.isfinite(given.r2star), given.r2star, 0).astype(np.float32)
    # A fit that ends at 0 has neighbours that do not; a map that is masked has none.
    _check_rate(r2star[usable > 0])
    reliable = (usable > 0) & np.isfinite(given.r2star) & (ndimage.maximum_filter(r2star, 3) > 0)
    record['reliable_fraction'] = float(reliable[mask].mean())
    return MeasuredField(*maps, r2star, t2star_of(r2star), reliable=reliable)


def field_scale(field: npt.NDArray, magnitude: npt.NDArray, mask: Bools) -> float:
    """Scale k (ppm times the unit of the magnitude) of a field's noise, ``sd = k / magnitude``.

    Fourth differences along an axis, ``f1 - 4 f2 + 6 f3 - 4 f4 + f5``, take off all that is a
    cubic over five voxels, and of white noise have ``sqrt(70)`` times the standard deviation.
    They hold some of what is finer, so that the axis with the least counts, and its median: noise
    of 0.01 ppm is found 1.07 times as large in tubes at 3.2 mm, 1.13 in a head at 3 mm; of 0.002
    ppm 1.14 and 1.5 times (second differences: 1.2, 1.4, 1.9 and 2.6).

    >>> rng = np.random.default_rng(0); magnitude = rng.uniform(1, 2, (24, 24, 24))
    >>> field = rng.normal(size=magnitude.shape) / magnitude
    >>> print(round(field_scale(field, magnitude, magnitude > 0), 1))
    1.0
    """
    scales = []
    for axis in range(3):
        f, m, inside = (np.moveaxis(v, axis, 0) for v in (field, magnitude, mask))
        windows = [slice(i, len(f) - 4 + i) for i in range(5)]
        if len(f) < 5:
            continue
        whole = np.logical_and.reduce([inside[w] & (m[w] > 0) for w in windows])
        fourth = sum(c * f[w][whole] for c, w in zip(FOURTH, windows, strict=True))
        variance = sum(
            c**2 / np.asarray(m[w][whole], np.float64) ** 2
            for c, w in zip(FOURTH, windows, strict=True)
        )
        found = np.abs(fourth) / np.sqrt(variance)
        if found.size:
            scales.append(1.4826 * float(np.median(found)))
    return min(scales, default=0.0)


def _deviation(given: GivenField, field: F32, mask: Bools) -> tuple[F32, str]:
    """Standard deviation of the field, ppm, and where it is from."""
    if given.field_sd is not None:
        sd, source = np.asarray(given.field_sd, np.float32), 'given'
        if not np.isfinite(sd[mask]).all() or sd[mask].min() < 0:
            raise ValueError('field_sd is negative or not finite inside the region: correct it')
    else:
        k = field_scale(field, given.magnitude, mask)
        sd, source = np.full_like(field, MOST_SD), 'fourth differences of the field'
        np.divide(np.float32(k), given.magnitude, out=sd, where=given.magnitude > 0)
    return np.where(mask, np.minimum(sd, np.float32(MOST_SD)), 0).astype(np.float32), source


def _check(given: GivenField, mask: Bools) -> None:
    """Raise ValueError if the parts do not go together, or the field is not one in ppm."""
    check_parts(given)
    if not mask.any():
        raise ValueError('the mask is empty: the field is known nowhere in the object')
    values = given.total_field[mask]
    most = float(np.percentile(np.abs(values - np.median(values)), 99))
    if most > MOST_FIELD:
        raise ValueError(
            f'total_field has values of {most:.3g} ppm about its median, more than '
            f'{MOST_FIELD:g}: it is in another unit than its metadata say, or wrapped'
        )
    if most == 0:
        raise ValueError('total_field has one value in the whole region and tells nothing')


def check_parts(given: GivenField) -> None:
    """Raise ValueError unless a given field and its magnitude are one volume each."""
    shape = given.total_field.shape
    if len(shape) != 3:
        raise ValueError(f'total_field must have three dimensions, not shape {shape}')
    check_shapes('total_field', shape, magnitude=given.magnitude)
    if given.sign not in (None, 1, -1):
        raise ValueError(f'sign is 1 or -1, or None where it is not known: {given.sign}')


def _wraps(field: npt.NDArray, mask: Bools) -> tuple[str, ...]:
    """Doubts of a field that is wrapped. Raises ValueError where there are many wraps.

    A wrap is a step of a whole turn, which is the range of a wrapped field, between neighbours,
    against the slope on both sides. Many of them fill the range evenly, as walls do not.
    """
    values = field[mask]
    turn = float(np.ptp(values)) if values.size else 0.0
    share = _steps(field, mask, turn)
    if share < SOME_WRAPS:
        return ()
    words = (
        f'total_field steps by nearly its whole range, {turn:.3g} ppm, between {share:.2%} of the '
        'neighbouring voxels, as a wrapped phase does'
    )
    least = np.histogram(values, 32)[0].min() * 32 / values.size
    if share > MANY_WRAPS and least > EVEN:
        raise ValueError(f'{words}: unwrap the phase before it is made a field')
    return (f'{words}: is it unwrapped?',)


def _steps(field: npt.NDArray, mask: Bools, turn: float) -> float:
    """Fraction of the neighbours that are nearly a turn apart, 0 if these are no wraps."""
    steps = against = lines = 0
    for axis in range(3):
        f, inside = (np.moveaxis(v, axis, 0) for v in (field, mask))
        line = [slice(i, max(len(f) - 3, 0) + i) for i in range(4)]
        whole = np.logical_and.reduce([inside[part] for part in line])
        at = whole & (np.abs(f[line[2]] - f[line[1]]) > JUMP * turn)
        one, two, three, four = (f[part][at] for part in line)
        lines += int(np.count_nonzero(whole))
        steps += one.size
        against += int(np.count_nonzero((two - one + four - three) * (three - two) < 0))
    enough = steps >= LEAST_WRAPS and against >= AGAINST * steps
    return steps / lines if enough else 0.0


def _check_rate(r2star: npt.NDArray) -> None:
    """Raise ValueError if R2* is in another unit than 1/s, or is T2*."""
    known = r2star[r2star > 0]
    low, high = R2_RANGE
    if known.size and not low <= (middle := float(np.median(known))) <= high:
        raise ValueError(
            f'r2star has a median of {middle:.3g} in the region of interest, not between {low} '
            f'and {high:g}: R2* is in 1/s; convert it (1/ms, T2*), or leave it out'
        )


def _compare_unit(test: PhaseSign | None) -> tuple[str, ...]:
    """Doubts of the unit of a field, by the size of that of the object's shape in it.

    Raises ValueError where it is larger than any tissue's or liquid's.
    """
    size = abs(test.coefficient) if test is not None and test.decisive else 1.0
    if size > MOST_SHAPE:
        raise ValueError(
            f"total_field has {size:.3g} times the field that the object's shape has in air: it "
            'is in another unit than its metadata say'
        )
    if size < LEAST_SHAPE:
        return (
            f"the given field has {size:.2g} times the field that the object's shape has in air: "
            'is it in another unit than its metadata say, or was a background removed?',
        )
    return ()


def _doubts(test: PhaseSign | None, sign: int | None) -> tuple[str, ...]:
    """Doubts of the sign of a field, which has been multiplied by the one that was stated."""
    if test is not None and sign:
        # The field has its sign already: the shape's is to be +1.
        return decide_sign(test._replace(sign=test.sign * sign), sign).warnings
    if test is None or not test.decisive or test.sign > 0:
        return ()
    return (
        "the given field has the opposite sign of that of the object's shape (partial "
        f'correlation {test.correlation:.2f}): it should be positive where the frequency is '
        'higher, as around what is paramagnetic. If it is reversed, every susceptibility has '
        'the wrong sign: negate it, or state the sign -1',
    )


def _holes(known: Bools, mask: Bools) -> float:
    """Voxels that the known field surrounds and lacks, over those of the mask."""
    inside = ndimage.binary_fill_holes(known) & ~known
    return float(np.count_nonzero(inside)) / float(np.count_nonzero(mask))
