"""Scale of stored phase: radians, degrees or codes, by one rule for all echoes of a run."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from precondqsm_bids.numerics.arguments import checked

F32 = npt.NDArray[np.float32]
TWO_PI = 2 * np.pi
UNITS = ('rad', 'arbitrary')
"""``Units`` of a phase image that BIDS allows."""
LEAST_CODES = 250
"""Least number of steps of a turn: fewer would be a rounding of the phase to 1.4 degrees."""
MOST_CODES = 1 << 17
"""Most steps of a turn that are looked for: scanners store 12 to 16 bits."""
SMOOTH = {'rad': 0.75, None: 0.9}
"""Fraction of neighbours less than half a turn apart from which a range of more than a turn is
that of unwrapped radians, with ``Units`` and without: all in an object, some three quarters in
air."""
ANOTHER_TURN = 0.05
"""Difference from a turn, relative to it, from which a range that noise fills is another one."""


class PhaseScale(NamedTuple):
    """How stored phase becomes radians: ``(stored - middle) 2 pi / turn``."""

    turn: float
    """Stored units of a full turn."""
    middle: float
    """Stored value of 0 rad."""
    convention: str
    """``radians``, ``milliradians``, ``degrees``, ``codes`` (a power of two of steps), ``range``
    (the range that noise fills) or ``unwrapped`` (radians beyond a turn)."""


@checked
def phase_scale(phase: npt.NDArray, units: str | None = None) -> PhaseScale:
    """Scale of stored phase, from its values in all echoes of a run together.

    Wrapped phase fills a whole turn wherever there is noise, in air above all, or where the field
    wraps; so the range of all values is the turn. Stated as rules, the first that holds counts:

    1. ``units='rad'``: radians, whatever their range; but not if all values are whole numbers
       or span more than 100, unless they are smooth (rule 8), nor if they fill (rule 6) a range
       that is not a turn, as 0..1 and -1..1.
    2. The range is that of radians (2 pi), milliradians (2000 pi) or degrees (360), to 0.2 %.
    3. The values are whole multiples of a step and span a power of two of such steps (256 or
       more, to 0.5 %), from 0, around 0, or from anywhere if the range is filled (rule 6):
       0..4095, -2048..2047, -4096..4094, 0..8190, all these times any slope.
    4. Whole numbers that lie in 0..4095, -2048..2047 or -4096..4095 and span 90 % of it.
    5. As 2, to 2 %.
    6. The range is *filled*: outside the most common value (blanked air) both outermost 32nds of
       the range hold at least a quarter of an even share, and at least 5 % of the neighbouring
       voxels differ by more than half of it. Then it is the turn, provided that it has at least
       250 steps.
    7. No ``units``, the range below a turn and within -3 pi..3 pi, no whole numbers: radians,
       unless the range is that of turns or normalised values (0..1, -1..1, -0.5..0.5).
    8. No ``units``, a range of more than a turn, no whole numbers, and *smooth*: 90 % of the
       neighbouring voxels (without the most common value) less than half a turn apart: radians
       that somebody has unwrapped. With ``units='rad'`` 75 % will do.

    Nothing here looks at one echo alone, so that an echo whose extremes are not reached is scaled
    as the others.

    Parameters
    ----------
    phase : (X, Y, Z, E) or other ndarray
        Stored phase, all echoes.
    units : {'rad', 'arbitrary'}, optional
        ``Units`` of the metadata.

    Raises
    ------
    ValueError
        The phase is not finite or constant, an echo's range is not that of the others, ``units``
        contradict the values, or no rule holds. The message has the range.

    References
    ----------
    Brain Imaging Data Structure, entity ``part`` (phase in ``rad`` or ``arbitrary`` units).

    Examples
    --------
    >>> codes = np.random.default_rng(0).integers(0, 4096, (12, 12, 12, 3))
    >>> phase_scale(codes)
    PhaseScale(turn=4096.0, middle=2048.0, convention='codes')
    >>> phase_scale(codes * 1.5348 - 3142).convention
    'milliradians'
    """
    if units not in (None, '', *UNITS):
        raise ValueError(f'phase units are "rad" or "arbitrary", not {units!r}: correct Units')
    echoes = phase if phase.ndim == 4 else phase[..., None]
    ranges = [(float(e.min()), float(e.max())) for e in np.moveaxis(echoes, -1, 0)]
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    if not np.isfinite(low + high):
        count = np.count_nonzero(~np.isfinite(phase))
        raise ValueError(
            f'the phase has values that are not finite: {count} of {phase.size}; '
            'store 0 where there is none'
        )
    span = high - low
    if span == 0:
        raise ValueError(f'the phase is {low:g} in every voxel and echo: it holds no phase')
    values = _sample(echoes)
    step = _step(values)
    if units == 'rad':
        return _declared(echoes, values, low, high, step)
    scale = _found(echoes, values, low, high, step, bool(units))
    if scale.convention not in ('radians', 'unwrapped'):
        for i, (least, most) in enumerate(ranges):
            if most - least < 0.02 * scale.turn:
                raise ValueError(
                    f'the phase of echo {i + 1} runs from {least:g} to {most:g}, that of all '
                    f'echoes from {low:g} to {high:g}: the echoes are not scaled alike; store '
                    'all of them in radians'
                )
    return scale


def _found(
    echoes: npt.NDArray,
    values: npt.NDArray,
    low: float,
    high: float,
    step: float | None,
    declared: bool,
) -> PhaseScale:
    """Scale of what the metadata do not call radians: rules 2 to 8."""
    span = high - low
    filled = _is_filled(echoes, values, low, high)
    if scale := _recognised(low, high, step, filled):
        return scale
    if filled and (not step or span / step >= LEAST_CODES):
        turn = span + (step or 0)
        return PhaseScale(turn, low + turn / 2, 'range')
    if not declared and _may_be_radians(low, high, step):
        return PhaseScale(TWO_PI, 0.0, 'radians')
    beyond = not declared and span > TWO_PI and not _whole_numbers(low, step)
    if beyond and _smoothness(echoes, common_value(values)) >= SMOOTH[None]:
        return PhaseScale(TWO_PI, 0.0, 'unwrapped')
    raise ValueError(
        f'{_range(low, high, step)}, which is neither radians nor a known range of codes, nor a '
        'range that noise fills from end to end; store it in radians and write "Units": "rad" '
        'into its sidecar'
    )


def _sample(echoes: npt.NDArray, most: int = 1 << 20) -> npt.NDArray:
    """Up to ``most`` of the values, evenly over voxels and echoes, float64."""
    voxels = math.prod(echoes.shape[:-1])
    step = max(1, echoes.size // most) | 1  # odd: rarely in step with the matrix
    rows = echoes[np.unravel_index(np.arange(0, voxels, step), echoes.shape[:-1])]
    return np.asarray(rows, np.float64).ravel()


def _step(values: npt.NDArray) -> float | None:
    """Distance of which all differences of ``values`` are multiples, None if there is none."""
    unique = np.unique(values)
    if unique.size < 3:
        return None
    span = float(unique[-1] - unique[0])
    rounding = 4 * float(np.finfo(np.float32).eps) * float(np.abs(unique[[0, -1]]).max())
    gaps = np.diff(unique)
    gaps = gaps[gaps > rounding]
    if gaps.size == 0:
        return None
    # The smallest gap is known to the rounding of its ends only; its multiples refine it.
    step = float(gaps.min())
    for limit in (8, 64, 1024, MOST_CODES):
        near = gaps[gaps < limit * step]
        step = float(near.sum() / np.rint(near / step).sum())
    if not 1 <= round(span / step) <= MOST_CODES:
        return None
    step = span / round(span / step)
    off = (unique - unique[0]) / step
    tolerance = max(0.05, 2 * rounding / step)
    if tolerance > 0.2 or float(np.abs(off - np.rint(off)).max()) > tolerance:
        return None
    return step


def _declared(
    echoes: npt.NDArray, values: npt.NDArray, low: float, high: float, step: float | None
) -> PhaseScale:
    """Scale of what the metadata call radians."""
    wide = high - low > 100
    smooth = (
        wide
        and _recognised(low, high, step, filled=False) is None
        and _smoothness(echoes, common_value(values)) >= SMOOTH['rad']
    )
    if _whole_numbers(low, step) or (wide and not smooth):
        raise ValueError(
            f'{_range(low, high, step)}, which are no radians, though its Units are "rad"; write '
            '"Units": "arbitrary" into the sidecar if these are codes of a full turn, else store '
            'radians'
        )
    if _fills_another_turn(echoes, values, low, high):
        raise ValueError(
            f'{_range(low, high, step)}, which noise fills from end to end: that is a whole turn, '
            'and no radians, though its Units are "rad"; write "Units": "arbitrary" into the '
            'sidecar, else store radians'
        )
    return PhaseScale(TWO_PI, 0.0, 'unwrapped' if smooth else 'radians')


def _fills_another_turn(echoes: npt.NDArray, values: npt.NDArray, low: float, high: float) -> bool:
    """Check that wrapped noise fills a range, and that this is not a turn in radians.

    A quarter turn from 0 is that of unsigned parts, which is said of the echo that has it.
    """
    span = high - low
    turn = abs(span / TWO_PI - 1) < ANOTHER_TURN
    quarter = abs(low) < 0.02 and abs(span - np.pi / 2) < 0.02
    return not turn and not quarter and _is_filled(echoes, values, low, high)


def _range(low: float, high: float, step: float | None) -> str:
    return f'the phase runs from {low:g} to {high:g}' + (f' in steps of {step:g}' if step else '')


def _whole_numbers(low: float, step: float | None) -> bool:
    return step is not None and _is_whole(low) and _is_whole(step)


def common_value(values: npt.NDArray) -> float | None:
    """Value of blanked air: the most common one, if it is that of more than 5 %."""
    common, count = np.unique(values, return_counts=True)
    return float(common[np.argmax(count)]) if count.max() > 0.05 * values.size else None


def _neighbours(
    echoes: npt.NDArray, blank: float | None
) -> Iterator[tuple[npt.NDArray, npt.NDArray]]:
    """Differences (float64) of neighbouring voxels along each axis, without blanked ones.

    With each, which pairs count.
    """
    for axis in range(min(echoes.ndim - 1, 3)):
        first, second = (np.moveaxis(echoes, axis, 0)[part] for part in (np.s_[:-1], np.s_[1:]))
        stride = max(1, first.size >> 22)
        one, two = first[::stride], second[::stride]
        both = np.ones(one.shape, bool) if blank is None else (one != blank) & (two != blank)
        yield np.subtract(two, one, dtype=np.float64), both


def _smoothness(echoes: npt.NDArray, blank: float | None) -> float:
    """Fraction of neighbouring voxels that are less than pi apart."""
    near = pairs = 0
    for difference, both in _neighbours(echoes, blank):
        near += int(np.count_nonzero(both & (np.abs(difference) < np.pi)))
        pairs += int(np.count_nonzero(both))
    return near / max(pairs, 1)


def jumps(echoes: npt.NDArray, blank: float | None, limit: float) -> float:
    """Fraction of neighbouring voxels that differ by more than ``limit``."""
    found = pairs = 0
    for difference, both in _neighbours(echoes, blank):
        found += int(np.count_nonzero(both & (np.abs(difference) > limit)))
        pairs += int(np.count_nonzero(both))
    return found / max(pairs, 1)


def _recognised(low: float, high: float, step: float | None, filled: bool) -> PhaseScale | None:
    """Scale of a known range, None if the range is none."""
    known = ((TWO_PI, 'radians'), (1000 * TWO_PI, 'milliradians'), (360.0, 'degrees'))
    for tolerance in (0.002, 0.02):
        for turn, convention in known:
            # 0..359 and -180..180 are both a turn.
            if min(abs(high - low + s - turn) for s in (0, step or 0)) < tolerance * turn:
                middle = 0.0 if convention == 'radians' else _middle(low, high, turn)
                return PhaseScale(turn, middle, convention)
        if turn := _turn_of_codes(low, high, step, filled):
            return PhaseScale(turn, _middle(low, high, turn), 'codes')
    return None


def _turn_of_codes(low: float, high: float, step: float | None, filled: bool) -> float:
    """Turn of codes, in stored units; 0 if they are none."""
    if step is None:
        return 0.0
    codes = (high - low) / step + 1
    power = float(2 ** np.round(np.log2(codes)))
    turn = power * step
    anchored = min(abs(low), abs(low + turn / 2)) < 0.01 * turn
    if power >= 256 and abs(codes - power) <= 0.005 * power and (filled or anchored):
        return turn
    if _is_whole(low) and _is_whole(step):
        for first, turn in ((0, 4096.0), (-2048, 4096.0), (-4096, 8192.0)):
            if first <= low and high < first + turn and high - low > 0.9 * turn:
                return turn
    return 0.0


def _is_whole(value: float) -> bool:
    return value == 0 or (round(value) != 0 and abs(value - round(value)) < 1e-6)


def _may_be_radians(low: float, high: float, step: float | None) -> bool:
    """Check of a range that nothing fills: it can only be that of radians."""
    normalised = any(
        abs(low - a) < 0.01 and abs(high - b) < 0.01 for a, b in ((0, 1), (-1, 1), (-0.5, 0.5))
    )
    within = -3.01 * np.pi <= low and high <= 3.01 * np.pi and high - low < TWO_PI
    return within and not normalised and not _whole_numbers(low, step)


def _middle(low: float, high: float, turn: float) -> float:
    """Middle of a turn that begins at 0 or lies around it, else of the range."""
    slack = 1e-3 * turn
    if -turn / 2 - slack <= low and high <= turn / 2 + slack:
        return 0.0
    if -slack <= low and high <= turn + slack:
        return turn / 2
    return (low + high) / 2


def _is_filled(echoes: npt.NDArray, values: npt.NDArray, low: float, high: float) -> bool:
    """Check that the values fill the range to both ends and jump across it."""
    span = high - low
    blank = common_value(values)
    if blank is not None:
        values = values[values != blank]
    if values.size < 1000:
        return False
    fraction = np.histogram(values, 32, (low, high))[0] / values.size
    if min(fraction[0], fraction[-1]) < 0.25 / 32:
        return False
    return jumps(echoes, blank, span / 2) > 0.05


@checked
def phase_to_radians(phase: npt.NDArray, scale: PhaseScale, overwrite: bool = False) -> F32:
    """Stored phase in radians by the one scale of all echoes of a run.

    ``(stored - middle) 2 pi / turn``, computed in double precision and stored in single; radians
    are returned as they are.

    Parameters
    ----------
    phase : (X, Y, Z, E) or other ndarray
        Stored phase.
    scale : PhaseScale
        What :func:`phase_scale` finds.
    overwrite : bool
        Whether a phase in single precision is changed in place.

    Examples
    --------
    >>> codes = np.array([-4096, 0, 4094])
    >>> phase_to_radians(codes, phase_scale(codes, 'arbitrary')).round(3)
    array([-3.142,  0.   ,  3.14 ], dtype=float32)
    """
    if scale.convention in ('radians', 'unwrapped'):
        return np.asarray(phase, np.float32)
    in_place = overwrite and phase.dtype == np.float32
    out = phase if in_place else np.empty(phase.shape, np.float32)
    for i in range(len(phase)):  # in double precision, a part at a time
        out[i] = (np.asarray(phase[i], np.float64) - scale.middle) * (TWO_PI / scale.turn)
    return out
