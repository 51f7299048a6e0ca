"""Phase as scanners and converters store it: its scale, its sign, and what readouts do to it.

Everything here happens before the echo fit, in this order: stored values become radians by one
scale for all echoes of a run (:func:`phase_to_radians`); then :func:`repair_phase` undoes a sign
that alternates from slice to slice, takes the difference between odd and even echoes of bipolar
readouts away, and turns the phase round if its sign is the opposite of the convention

    S(TE) = S0 exp(-R2* TE) exp(i (phi0 + 2 pi gammabar B0 field TE)).

A constant added to all echoes alike is part of ``phi0`` and without meaning, so that the zero of
stored codes does not matter.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from precondqsm_bids.numerics.constants import AIR_CHI, WATER_CHI, hz_per_ppm
from precondqsm_bids.numerics.dipole import bounding_box, forward_field
from precondqsm_bids.numerics.echo_fit import _unwrap, check_echoes, noise_level, phase_advance

F32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
TWO_PI = 2 * np.pi
UNITS = ('rad', 'arbitrary')
"""What BIDS allows as ``Units`` of a phase image."""
LEAST_CODES = 250
"""Least number of steps of a turn: fewer would be a rounding of the phase to 1.4 degrees."""
MOST_CODES = 1 << 17
"""Most steps of a turn that are looked for: scanners store 12 to 16 bits."""
LEAST_DIFFERENCE = 0.1
"""Odd-even difference of the phase, rad (root mean square), from which it is corrected. Less
moves the field by a few 0.001 ppm that are smooth, and phase that tissue or eddy currents bend in
time must not look like it."""
LEAST_CORRELATION = 0.3
"""Partial correlation of the measured field with that of the shape that decides its sign."""
COEFFICIENTS = (0.4, 2.5)
"""Range of the absolute coefficient of the shape's field that decides its sign; 1 by theory."""


class PhaseScale(NamedTuple):
    """How stored phase becomes radians: ``(stored - middle) 2 pi / turn``."""

    turn: float
    """Stored units of a full turn."""
    middle: float
    """Stored value of 0 rad."""
    convention: str
    """``radians``, ``milliradians``, ``degrees``, ``codes`` (a power of two of steps) or
    ``range`` (the range that noise fills)."""


class ShapeField(NamedTuple):
    """What :func:`shape_field` found, ppm, (X, Y, Z) each."""

    field: F32
    """Field of the object in air, going on beyond the edges that cut it off."""
    beyond: tuple[F32, ...]
    """Parts of it that come from beyond each such edge, three of rising distance."""


class PhaseSign(NamedTuple):
    """What :func:`phase_sign` found."""

    sign: int
    """+1 if the phase has the sign of the convention, -1 if it is reversed."""
    coefficient: float
    """Coefficient of the shape's field in the measured one: near +1 or -1."""
    correlation: float
    """Partial correlation of the two, polynomials of second order and the like taken off both."""
    decisive: bool
    """Whether coefficient and correlation decide the sign."""


class ReadoutDifference(NamedTuple):
    """What :func:`readout_difference` found."""

    difference: F32
    """Phase of the second, fourth, ... echo beyond that of the others, rad, (X, Y, Z)."""
    size: float
    """Its root mean square over the mask, rad."""
    coherence: float
    """0 to 1: how well a constant and a gradient describe it (mean resultant length)."""
    bipolar: bool
    """Whether it is large and coherent enough to be that of bipolar readouts."""


class PhaseRepair(NamedTuple):
    """What :func:`repair_phase` did."""

    phase: F32
    """Phase of the convention, rad, (X, Y, Z, E)."""
    alternating_axes: tuple[int, ...]
    """Array axes along which the sign of the signal alternated from slice to slice."""
    readout: ReadoutDifference | None
    """Difference between odd and even echoes; None if the echo times do not tell it."""
    sign: int
    """Sign that the phase had: +1, or -1 if it was turned round."""
    sign_test: PhaseSign | None
    """The field against that of the shape; None if no shape was given."""
    notes: tuple[str, ...]
    """What was repaired or is doubtful, in sentences."""


# --- scale ------------------------------------------------------------------------------------


def phase_scale(phase: npt.NDArray, units: str | None = None) -> PhaseScale:
    """Scale of stored phase, from its values in all echoes of a run together.

    Wrapped phase fills a whole turn wherever there is noise, in air above all, or where the field
    wraps; so the range of all values is the turn. Stated as rules, the first that holds counts:

    1. ``units='rad'``: radians, whatever their range; but not if all values are whole numbers
       or span more than 100, which no phase in radians does.
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

    Nothing here looks at one echo alone, so that an echo whose extremes are not reached is scaled
    as the others.

    Parameters
    ----------
    phase : (X, Y, Z, E) or other ndarray
        Stored phase, all echoes.
    units : {'rad', 'arbitrary'}, optional
        ``Units`` of the metadata.

    Returns
    -------
    PhaseScale

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
        return _declared(low, high, step)
    filled = _is_filled(echoes, values, low, high)
    scale = _recognised(low, high, step, filled)
    if scale is None and filled:
        steps = span / step if step else np.inf
        if steps >= LEAST_CODES:
            turn = span + (step or 0)
            scale = PhaseScale(turn, low + turn / 2, 'range')
    if scale is None and not units and _may_be_radians(low, high, step):
        scale = PhaseScale(TWO_PI, 0.0, 'radians')
    if scale is None:
        raise ValueError(
            f'the phase runs from {low:g} to {high:g}'
            + (f' in steps of {step:g}' if step else '')
            + ', which is neither radians nor a known range of codes, nor a range that noise '
            'fills from end to end; store it in radians and write "Units": "rad" into its sidecar'
        )
    if scale.convention != 'radians':
        for i, (least, most) in enumerate(ranges):
            if most - least < 0.02 * scale.turn:
                raise ValueError(
                    f'the phase of echo {i + 1} runs from {least:g} to {most:g}, that of all '
                    f'echoes from {low:g} to {high:g}: the echoes are not scaled alike; store '
                    'all of them in radians'
                )
    return scale


def _sample(echoes: npt.NDArray, most: int = 1 << 20) -> npt.NDArray:
    """Up to ``most`` of the values, evenly over voxels and echoes, float64."""
    flat = echoes.reshape(-1, echoes.shape[-1])
    rows = flat[:: max(1, flat.size // most) | 1]  # odd: rarely in step with the matrix
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


def _declared(low: float, high: float, step: float | None) -> PhaseScale:
    """Scale of what the metadata call radians."""
    if (step is not None and _is_whole(low) and _is_whole(step)) or high - low > 100:
        raise ValueError(
            f'the phase runs from {low:g} to {high:g}'
            + (f' in steps of {step:g}' if step else '')
            + ', which are no radians, though its Units are "rad"; write "Units": "arbitrary" '
            'into the sidecar if these are codes of a full turn, else store radians'
        )
    return PhaseScale(TWO_PI, 0.0, 'radians')


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
    """Whether a range that nothing fills can only be that of radians."""
    normalised = any(
        abs(low - a) < 0.01 and abs(high - b) < 0.01 for a, b in ((0, 1), (-1, 1), (-0.5, 0.5))
    )
    whole = step is not None and _is_whole(low) and _is_whole(step)
    within = -3.01 * np.pi <= low and high <= 3.01 * np.pi and high - low < TWO_PI
    return within and not normalised and not whole


def _middle(low: float, high: float, turn: float) -> float:
    """Middle of a turn that begins at 0 or lies around it, else of the range."""
    slack = 1e-3 * turn
    if -turn / 2 - slack <= low and high <= turn / 2 + slack:
        return 0.0
    if -slack <= low and high <= turn + slack:
        return turn / 2
    return (low + high) / 2


def _is_filled(echoes: npt.NDArray, values: npt.NDArray, low: float, high: float) -> bool:
    """Whether the values fill the range to both ends and jump across it."""
    span = high - low
    common, count = np.unique(values, return_counts=True)
    blank = common[np.argmax(count)] if count.max() > 0.05 * values.size else None
    if blank is not None:
        values = values[values != blank]
    if values.size < 1000:
        return False
    share = np.histogram(values, 32, (low, high))[0] / values.size
    if min(share[0], share[-1]) < 0.25 / 32:
        return False
    jumps, pairs = 0, 0
    for axis in range(min(echoes.ndim - 1, 3)):
        first, second = (np.moveaxis(echoes, axis, 0)[part] for part in (np.s_[:-1], np.s_[1:]))
        stride = max(1, first.size >> 22)
        one, two = first[::stride], second[::stride]
        both = np.ones(one.shape, bool) if blank is None else (one != blank) & (two != blank)
        jumps += int(np.count_nonzero(both & (np.abs(two - one) > span / 2)))
        pairs += int(np.count_nonzero(both))
    return jumps > 0.05 * max(pairs, 1)


def phase_to_radians(phase: npt.NDArray, units: str | None = None) -> F32:
    """Stored phase in radians, by the one scale of :func:`phase_scale` for all echoes.

    ``(stored - middle) 2 pi / turn``, computed in double precision and stored in single; radians
    are returned as they are.

    Parameters
    ----------
    phase : (X, Y, Z, E) or other ndarray
        Stored phase, all echoes of a run.
    units : {'rad', 'arbitrary'}, optional
        ``Units`` of the metadata.

    Raises
    ------
    ValueError
        See :func:`phase_scale`.

    Examples
    --------
    >>> codes = np.array([-4096, 0, 4094])
    >>> phase_to_radians(codes, 'arbitrary').round(3)
    array([-3.142,  0.   ,  3.14 ], dtype=float32)
    """
    return apply_scale(phase, phase_scale(phase, units))


def apply_scale(phase: npt.NDArray, scale: PhaseScale) -> F32:
    """Stored phase in radians by a scale that is known; see :func:`phase_to_radians`."""
    if scale.convention == 'radians':
        return np.asarray(phase, np.float32)
    out = np.empty(phase.shape, np.float32)
    for i in range(len(phase)):  # in double precision, a part at a time
        out[i] = (np.asarray(phase[i], np.float64) - scale.middle) * (TWO_PI / scale.turn)
    return out


# --- sign -------------------------------------------------------------------------------------


def phase_sign(
    field: npt.NDArray,
    shape_field: npt.NDArray,
    mask: Bools,
    sd: npt.NDArray | None = None,
    *,
    beyond: Sequence[npt.NDArray] = (),
    floor: float = 0.02,
    iterations: int = 5,
) -> PhaseSign:
    """Sign of the measured field against that which the shape of the object predicts.

    A shim hides the shape's field behind solid harmonics of first and second order, so that the
    plain correlation says little. Here the field is regressed on both together,

        field = c shape_field + sum_{i+j+k <= 2} p_ijk x^i y^j z^k + sum_m q_m beyond_m,

    weighted by ``1 / (sd^2 + floor^2)``, and again with voxels down-weighted that the model
    leaves out (strong sources; Cauchy weights). The polynomials hold the solid harmonics
    whatever the orientation and voxel size; the last sum is what is not known of an object that
    the field of view cuts off. The sign of ``c`` decides if ``0.4 <= |c| <= 2.5``
    and the partial correlation, that of the two fields after all else, is 0.3 or more.

    Parameters
    ----------
    field : (X, Y, Z) ndarray
        Measured field by the sign that the phase was taken to have, ppm.
    shape_field : (X, Y, Z) ndarray
        Field of the object's shape in air, ppm.
    mask : (X, Y, Z) ndarray of bool
        Where both are known.
    sd : (X, Y, Z) ndarray, optional
        Standard deviation of the field, ppm.
    beyond : sequence of (X, Y, Z) ndarray
        Fields from beyond the field of view, ppm: :func:`shape_field`.
    floor : float
        What the model does not know, ppm.
    iterations : int
        Rounds of the down-weighting.

    Returns
    -------
    PhaseSign

    Raises
    ------
    ValueError
        Shapes differ or the mask is empty.

    Examples
    --------
    >>> x, y, z = np.indices((9, 9, 9)) / 4 - 1
    >>> measured = -np.exp(x) * np.cos(3 * y) + 2 * x - z**2  # reversed, and a shim
    >>> found = phase_sign(measured, np.exp(x) * np.cos(3 * y), np.ones((9, 9, 9), bool))
    >>> print(found.sign, round(found.coefficient, 2), round(found.correlation, 2))
    -1 -1.0 -1.0
    """
    if not field.shape == shape_field.shape == mask.shape:
        raise ValueError(
            f'field {field.shape}, shape field {shape_field.shape} and mask {mask.shape} differ '
            'in shape'
        )
    voxels = np.flatnonzero(mask)
    if voxels.size == 0:
        raise ValueError('the mask is empty: there is no field to compare with that of the shape')
    voxels = voxels[:: max(1, voxels.size // 200_000)]
    f, s = (np.asarray(v.ravel()[voxels], np.float64) for v in (field, shape_field))
    columns = [np.asarray(part.ravel()[voxels], np.float64)[:, None] for part in beyond]
    others = np.hstack([_second_order(mask.shape, voxels), *columns])
    variance = np.full(f.shape, floor**2)
    if sd is not None:
        variance += np.asarray(sd.ravel()[voxels], np.float64) ** 2
    weight = 1 / variance
    for _ in range(iterations):
        root = np.sqrt(weight)[:, None]
        both = np.stack([f, s], axis=1)
        fitted = np.linalg.lstsq(root * others, root * both, rcond=None)[0]
        f_left, s_left = (both - others @ fitted).T
        power = float(np.sum(weight * s_left**2))
        product = float(np.sum(weight * f_left * s_left))
        coefficient = product / power if power > 0 else 0.0
        total = float(np.sum(weight * f_left**2))
        correlation = product / np.sqrt(power * total) if power * total > 0 else 0.0
        residual = (f_left - coefficient * s_left) / np.sqrt(variance)
        scale = 1.4826 * np.median(np.abs(residual)) + 1e-9
        weight = 1 / (variance * (1 + (residual / (3 * scale)) ** 2))
    decisive = bool(
        abs(correlation) >= LEAST_CORRELATION
        and COEFFICIENTS[0] <= abs(coefficient) <= COEFFICIENTS[1]
    )
    return PhaseSign(-1 if coefficient < 0 else 1, coefficient, float(correlation), decisive)


def _second_order(shape: tuple[int, ...], voxels: npt.NDArray) -> npt.NDArray[np.float64]:
    """The ten monomials up to second order at flat indices, coordinates -1 to 1, (V, 10)."""
    x, y, z = (
        2 * index / max(n - 1, 1) - 1
        for index, n in zip(np.unravel_index(voxels, shape), shape, strict=True)
    )
    one = np.ones_like(x)
    return np.stack([one, x, y, z, x * x, y * y, z * z, x * y, y * z, x * z], axis=1)


def shape_field(
    shape: Bools,
    voxel_size: npt.ArrayLike,
    b0_dir: npt.ArrayLike,
    mask: Bools,
    workers: int = 1,
) -> ShapeField:
    """Field of the object's shape in air.

    The step from water to air, convolved with the dipole, as though every voxel of the border
    were filled. Where the object is cut off by the edge of the field of view (a slab) it goes on
    as it ends there, for as far as its largest other extent: an object that ended at the edge
    would have a field of the wrong sign inside a thin slab. How it really goes on is not known,
    so that the fields of its continuation to 1/16, to 1/4 and to the whole of that length are
    returned for each edge: what is left when they are regressed out does not depend on it.

    Memory: that of :func:`~precondqsm_bids.numerics.dipole.forward_field`, and 12 bytes per voxel
    and cut edge. The continuation is computed on a grid of 1/64 of its length.

    Parameters
    ----------
    shape : (X, Y, Z) ndarray of bool
        Object against air.
    voxel_size : (3,) array_like
        Voxel size, mm.
    b0_dir : (3,) array_like
        Direction of B0 along the voxel axes.
    mask : (X, Y, Z) ndarray of bool
        Where the field is wanted; zero elsewhere.
    workers : int
        Threads of the Fourier transforms.

    Returns
    -------
    ShapeField

    Examples
    --------
    A slab across a long cylinder along B0 has the field of the cylinder, a constant:

    >>> x, y = np.indices((24, 24)) - 11.5
    >>> slab = np.repeat((np.hypot(x, y) < 8)[..., None], 4, axis=2)
    >>> found = shape_field(slab, (1, 1, 1), (0, 0, 1), slab)
    >>> print(round(found.field[slab].mean(), 1), found.field[slab].std() < 0.2, len(found.beyond))
    -2.4 True 6
    """
    h = np.asarray(voxel_size, float)
    step = np.float32(WATER_CHI - AIR_CHI)
    field = forward_field(step * shape, h, b0_dir, mask, workers)
    beyond = []
    for coarse, source, inside in _continuations(shape, h):
        far = forward_field(step * source, coarse, b0_dir, workers=workers)
        part = np.zeros(shape.shape, np.float32)
        positions = [
            ((index + 0.5) * ratio - 0.5).astype(np.float32)
            for index, ratio in zip(np.nonzero(mask), h / coarse, strict=True)
        ]
        # Not across the edge: the field jumps there, by the step along B0.
        part[mask] = ndimage.map_coordinates(far[inside], positions, order=1, mode='nearest')
        field += part
        beyond.append(part)
    return ShapeField(field, tuple(beyond))


def _continuations(
    shape: Bools, h: npt.NDArray[np.float64]
) -> Iterator[tuple[npt.NDArray[np.float64], F32, tuple[slice, ...]]]:
    """Shells of what lies beyond each edge that cuts the object: voxel size (mm), share of object,
    and where the field of view stands in it.

    The grid divides the field of view evenly, so that its edges are faces of voxels.
    """
    extent = [(s.stop - s.start) * d for s, d in zip(bounding_box(shape), h, strict=True)]
    cut = [[bool(shape.take(k, axis).any()) for k in (0, -1)] for axis in range(3)]
    if not np.any(cut):
        return
    lengths = [max(extent[other] for other in range(3) if other != axis) for axis in range(3)]
    size = max(length for length, ends in zip(lengths, cut, strict=True) if any(ends)) / 64
    counts = [
        max(1, int(np.round(n * d / max(size, d)))) for n, d in zip(shape.shape, h, strict=True)
    ]
    coarse = np.array([n * d / c for n, d, c in zip(shape.shape, h, counts, strict=True)])
    added = [
        [int(np.ceil(length / d)) if end else 0 for end in ends]
        for length, d, ends in zip(lengths, coarse, cut, strict=True)
    ]
    index = [np.arange(-a[0], c + a[1]) for a, c in zip(added, counts, strict=True)]
    positions = np.meshgrid(
        *((i + 0.5) * c / d - 0.5 for i, c, d in zip(index, coarse, h, strict=True)), indexing='ij'
    )
    # Positions beyond the field of view have the value of its edge.
    solid = ndimage.map_coordinates(shape.astype(np.float32), positions, order=1, mode='nearest')
    inside = tuple(slice(a[0], a[0] + c) for a, c in zip(added, counts, strict=True))
    owned = np.zeros(solid.shape, bool)
    owned[inside] = True
    for axis in range(3):
        for side in (0, 1):
            if not cut[axis][side]:
                continue
            i = index[axis].reshape([-1 if other == axis else 1 for other in range(3)])
            depth = (-i if side == 0 else i - counts[axis] + 1) / added[axis][side]
            for inner, outer in ((0, 1 / 16), (1 / 16, 1 / 4), (1 / 4, 1)):
                # Corners beyond two edges belong to the first that reaches them.
                shell = ~owned & (depth > inner) & (depth <= outer + 1e-9)
                owned |= shell
                yield coarse, np.where(shell, solid, np.float32(0)), inside


# --- what readouts do to the phase --------------------------------------------------------------


def alternating_axes(
    magnitude: npt.NDArray, phase: npt.NDArray, echo_times: npt.ArrayLike, mask: Bools
) -> tuple[int, ...]:
    """Array axes along which the sign of the signal alternates from slice to slice.

    Some scanners reconstruct volumes without centring k-space along the slices, which turns every
    second slice by half a turn, in all echoes alike. A steep field does the same in one echo but
    grows with time. So the phase between neighbouring voxels is carried back to TE = 0,

        angle(s_1(r + e) s_1*(r)) - TE1 / dTE angle(a(r + e) a*(r)),   a = sum_e s_(e+1) s_e*,

    and the mean of its cosine over all neighbours in the mask, weighted by magnitude, is near +1
    for ordinary data and near -1 for alternating ones. An axis alternates below -0.3. The phase of
    a single echo is taken as it is.

    Parameters
    ----------
    magnitude, phase : (X, Y, Z, E) ndarray
        Echoes; phase in rad.
    echo_times : (E,) array_like
        Echo times, s.
    mask : (X, Y, Z) ndarray of bool
        The object.

    Examples
    --------
    >>> te = [0.004, 0.008]
    >>> phase = 0.3 * np.indices((8, 8, 8))[0][..., None] * np.array([1, 2])
    >>> phase[:, :, 1::2] += np.pi
    >>> alternating_axes(np.ones(phase.shape), phase, te, np.ones((8, 8, 8), bool))
    (2,)
    """
    te = check_echoes(magnitude, phase, echo_times, least=1)
    signal = _signal(magnitude, phase, mask)
    return _alternating_axes(signal, te, mask)


def _alternating_axes(signal: npt.NDArray, te: npt.NDArray, mask: Bools) -> tuple[int, ...]:
    advance, spacing = phase_advance(signal, te)
    first = signal[:, 0]
    found = []
    for axis in range(3):
        low, high = _neighbours(mask, axis)
        if low.size < 100:
            continue
        step = first[high] * first[low].conj()
        turn = np.angle(step)
        if te.size > 1:
            turn -= te[0] / spacing * np.angle(advance[high] * advance[low].conj())
        cosine = np.cos(turn)
        weight = np.sqrt(np.abs(step)).astype(np.float64)
        if np.sum(weight * cosine) < -0.3 * np.sum(weight):
            found.append(axis)
    return tuple(found)


def _signal(magnitude: npt.NDArray, phase: npt.NDArray, mask: Bools) -> npt.NDArray:
    """Complex echoes of the masked voxels, (V, E)."""
    return (magnitude[mask] * np.exp(1j * phase[mask])).astype(np.complex64)


def _neighbours(mask: Bools, axis: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Indices among the masked voxels of all pairs of neighbours along ``axis``."""
    index = np.full(mask.shape, -1, np.intp)
    index[mask] = np.arange(np.count_nonzero(mask))
    index = np.moveaxis(index, axis, 0)
    both = (index[:-1] >= 0) & (index[1:] >= 0)
    return index[:-1][both], index[1:][both]


def readout_difference(
    magnitude: npt.NDArray, phase: npt.NDArray, echo_times: npt.ArrayLike, mask: Bools
) -> ReadoutDifference | None:
    """Phase by which the even echoes of bipolar readouts differ from the odd ones.

    Echoes that are read in alternating directions carry a phase of alternating sign, a constant
    and a gradient (eddy currents, gradient delays). For three echoes of equal spacing

        u = s_e^2 s*_(e-1) s*_(e+1)   has the phase   +-2 d(r),

    whatever field and phase offset are. With the sign of every second triplet reversed, their
    sum over the echoes (weights: inverse variance of the phase) is fitted with
    ``d = d0 + g . r`` on the circle, first the gradient from neighbouring voxels, then all four
    numbers by least squares.

    The difference is known up to half a turn, since half a turn at every second echo is what a
    field of ``1 / (2 dTE)`` does. The smaller difference is taken, unless only the other leaves
    the object's phase advance near zero (within a third of half a turn), where the scanner's
    adjustment of its frequency puts it.

    It counts as bipolar from a root mean square of 0.1 rad and a coherence of 0.5. Monopolar data
    stay far below 0.1 rad and are never touched.

    Parameters
    ----------
    magnitude, phase : (X, Y, Z, E) ndarray
        Echoes; phase in rad.
    echo_times : (E,) array_like
        Echo times, s.
    mask : (X, Y, Z) ndarray of bool
        The object.

    Returns
    -------
    ReadoutDifference or None
        None where there are no three successive echoes of equal spacing (to 1 %).

    References
    ----------
    Lu W et al., Magn Reson Med 2008;60:198 (bipolar multi-echo). Li J et al., MAGMA 2015;28:347
    (for susceptibility mapping; a constant and a gradient along all three axes suffice).

    Examples
    --------
    >>> te = np.array([2, 4, 6, 8]) * 1e-3
    >>> phase = 0.2 + 100 * te + np.zeros((12, 12, 12, 4))
    >>> phase[..., 1::2] += 0.5 + 0.1 * (np.indices((12, 12, 12))[0][..., None] - 5.5)
    >>> found = readout_difference(np.ones(phase.shape), phase, te, np.ones((12, 12, 12), bool))
    >>> print(found.bipolar, found.difference[[0, -1], 0, 0].round(3))
    True [-0.05  1.05]
    """
    te = check_echoes(magnitude, phase, echo_times)
    return _readout_difference(_signal(magnitude, phase, mask), te, mask)


def _readout_difference(
    signal: npt.NDArray, te: npt.NDArray, mask: Bools
) -> ReadoutDifference | None:
    spacing = np.diff(te)
    middles = [
        e
        for e in range(1, len(te) - 1)
        if abs(spacing[e] - spacing[e - 1]) < 0.01 * spacing[e] + 1e-7
    ]
    if not middles:
        return None
    tiny = np.finfo(np.float32).tiny
    peak = np.float32(np.abs(signal).max()) or np.float32(1)
    total = np.zeros(len(signal), np.complex64)
    weight = np.zeros(len(signal), np.float32)
    for e in middles:
        # Relative to the largest: fourth powers of any unit must stay within single precision.
        before, here, after = (signal[:, i] / peak for i in (e - 1, e, e + 1))
        triplet = here**2 * before.conj() * after.conj()
        squares = [np.maximum(np.abs(s) ** 2, 1e-12) for s in (before, here, after)]
        precision = 1 / (1 / squares[0] + 4 / squares[1] + 1 / squares[2])
        triplet *= precision / np.maximum(np.abs(triplet), tiny)
        total += triplet if e % 2 else triplet.conj()
        weight += precision
    # A strong source must not outvote the rest by its magnitude: no voxel above the median.
    limit = np.median(weight)
    total *= np.minimum(1, limit / np.maximum(weight, tiny))
    weight = np.minimum(weight, limit)

    centre = [float(index.mean()) for index in np.nonzero(mask)]
    r = np.stack(
        [index.astype(np.float32) - c for index, c in zip(np.nonzero(mask), centre, strict=True)],
        axis=1,
    )
    gradient = np.zeros(3)
    for axis in range(3):
        low, high = _neighbours(mask, axis)
        if low.size:
            gradient[axis] = np.angle(np.sum(total[high] * total[low].conj(), dtype=complex))
    left = total * np.exp(-1j * (r @ gradient.astype(np.float32)))
    coefficients = np.array([np.angle(left.sum(dtype=complex)), *gradient])
    design = np.column_stack([np.ones(len(r)), r]).astype(np.float64)
    size = np.abs(total).astype(np.float64)
    normal = (design * size[:, None]).T @ design
    normal += 1e-9 * np.diag(np.diag(normal)) + 1e-30 * np.eye(4)  # an axis of one slice
    for _ in range(5):
        left = total * np.exp(-1j * (design @ coefficients)).astype(np.complex64)
        step = np.linalg.solve(normal, design.T @ (size * np.angle(left)))
        coefficients = coefficients + step
    coherence = abs(complex(left.sum(dtype=complex))) / max(float(weight.sum(dtype=float)), 1e-30)
    coefficients = coefficients / 2
    coefficients[0] -= np.pi * np.round(coefficients[0] / np.pi)

    rms = float(np.sqrt(np.mean((design @ coefficients) ** 2)))
    if rms >= LEAST_DIFFERENCE:
        mean = _mean_advance(signal, (design @ coefficients).astype(np.float32))
        if mean.real < -0.5:  # half a turn more brings the object near the scanner's frequency
            coefficients[0] -= np.pi * (1 if coefficients[0] > 0 else -1)
            rms = float(np.sqrt(np.mean((design @ coefficients) ** 2)))
    grid = [np.arange(n) - c for n, c in zip(mask.shape, centre, strict=True)]
    parts = [g * c for g, c in zip(grid, coefficients[1:], strict=True)]
    difference = coefficients[0] + parts[0][:, None, None] + parts[1][:, None] + parts[2]
    return ReadoutDifference(
        difference.astype(np.float32),
        rms,
        coherence,
        rms >= LEAST_DIFFERENCE and coherence >= 0.5,
    )


def _mean_advance(signal: npt.NDArray, difference: F32) -> complex:
    """Mean direction of the advance between echoes, ``difference`` undone: 1 near the centre."""
    turn = np.exp(-1j * difference)
    total = 0j
    for j in range(signal.shape[1] - 1):
        step = signal[:, j + 1] * signal[:, j].conj() * (turn.conj() if j % 2 else turn)
        total += complex(step.sum(dtype=complex)) / max(
            float(np.abs(step).sum(dtype=float)), 1e-30
        )
    return total / (signal.shape[1] - 1)


# --- all of it ----------------------------------------------------------------------------------


def first_field(
    magnitude: npt.NDArray,
    phase: npt.NDArray,
    echo_times: npt.ArrayLike,
    field_strength: float,
    mask: Bools,
) -> tuple[F32, F32]:
    """Cheap field and its standard deviation, ppm, from the phase advance between echoes.

    ``angle(sum_e s_(e+1) s_e*)`` over the shortest echo spacing, unwrapped in space. No prediction
    enters, so that its sign is that of the phase; the phase offset enters where there is one echo.

    Parameters
    ----------
    magnitude, phase : (X, Y, Z, E) ndarray
        Echoes; phase in rad.
    echo_times : (E,) array_like
        Echo times, s.
    field_strength : float
        B0, T.
    mask : (X, Y, Z) ndarray of bool
        Where the field is wanted; zero elsewhere.

    Examples
    --------
    >>> te = np.array([0.004, 0.008])
    >>> phase = np.full((4, 4, 4, 1), 0.1) + 2 * np.pi * 127.729 * 0.05 * te
    >>> field, _ = first_field(np.ones(phase.shape), phase, te, 3.0, np.ones((4, 4, 4), bool))
    >>> print(field[0, 0, 0].round(4))
    0.05
    """
    te = check_echoes(magnitude, phase, echo_times, least=1)
    signal = _signal(magnitude, phase, mask)
    return _first_field(signal, te, field_strength, mask, noise_level(magnitude, mask))


def _first_field(
    signal: npt.NDArray,
    te: npt.NDArray,
    field_strength: float,
    mask: Bools,
    noise_sd: float | None,
) -> tuple[F32, F32]:
    advance, spacing = phase_advance(signal, te)
    to_rad = np.float32(TWO_PI * hz_per_ppm(field_strength) * spacing)
    amplitude = np.sqrt(np.abs(advance))
    if noise_sd is None:  # no air: a plain guess, since only the weights of voxels depend on it
        noise_sd = 0.02 * float(np.median(amplitude))
    ratio = np.sqrt(2) * noise_sd / np.maximum(amplitude, 1e-3 * noise_sd + 1e-30)
    field, sd = np.zeros(mask.shape, np.float32), np.zeros(mask.shape, np.float32)
    field[mask] = _unwrap(np.angle(advance), mask) / to_rad
    sd[mask] = np.minimum(ratio, np.pi) / to_rad
    return field, sd


def repair_phase(
    magnitude: npt.NDArray,
    phase: npt.NDArray,
    echo_times: npt.ArrayLike,
    field_strength: float,
    mask: Bools,
    *,
    shape: ShapeField | None = None,
    sign: int | None = None,
) -> PhaseRepair:
    """Phase of the convention: slices of one sign, odd and even echoes alike, the right sign.

    Slices are repaired first (:func:`alternating_axes`), since nothing can be unwrapped before;
    then the difference between odd and even echoes is taken off (:func:`readout_difference`);
    then the sign is looked at (:func:`phase_sign`) with the :func:`first_field` of what is left,
    the mask eroded by a voxel where that leaves any: the shape's field is least certain in the
    border.

    Parameters
    ----------
    magnitude, phase : (X, Y, Z, E) ndarray
        Echoes; phase in rad.
    echo_times : (E,) array_like
        Echo times, s.
    field_strength : float
        B0, T.
    mask : (X, Y, Z) ndarray of bool
        The object.
    shape : ShapeField, optional
        Field of the object's shape in air (:func:`shape_field`). Without it the sign is taken as
        it is.
    sign : {1, -1}, optional
        Sign that the phase has; found from the field if omitted.

    Returns
    -------
    PhaseRepair
        Its ``phase`` is the very array that was given if nothing had to be repaired.

    Raises
    ------
    ValueError
        The sign cannot be told from the field; the message has coefficient, correlation and the
        option that states it. See also :func:`~precondqsm_bids.numerics.echo_fit.check_echoes`.

    Examples
    --------
    >>> te = np.array([2, 4, 6]) * 1e-3
    >>> phase = 0.2 + 100 * te + np.zeros((12, 12, 12, 3))
    >>> phase[..., 1] += 0.5
    >>> mask = np.ones((12, 12, 12), bool)
    >>> repaired = repair_phase(np.ones(phase.shape), phase, te, 3.0, mask, sign=1)
    >>> print(repaired.notes[0])
    odd and even echoes differ by 0.50 rad (bipolar readouts): corrected
    """
    te = check_echoes(magnitude, phase, echo_times, least=1)
    if sign not in (None, 1, -1):
        raise ValueError(f'the sign of the phase is 1 or -1, not {sign!r}')
    if not mask.any():
        raise ValueError('the mask is empty: there is no phase to look at')
    notes = []
    signal = _signal(magnitude, phase, mask)
    repaired = phase

    axes = _alternating_axes(signal, te, mask)
    for axis in axes:
        odd = [slice(None)] * 4
        odd[axis] = slice(1, None, 2)
        repaired = repaired.copy() if repaired is phase else repaired
        repaired[tuple(odd)] += np.float32(np.pi)
        signal[np.nonzero(mask)[axis] % 2 == 1] *= -1
        notes.append(
            'the sign of the signal alternates from slice to slice: every second slice was turned '
            'by half a turn'
        )

    readout = _readout_difference(signal, te, mask)
    if readout is not None and readout.bipolar:
        repaired = repaired.copy() if repaired is phase else repaired
        repaired[..., 1::2] -= readout.difference[..., None]
        signal[:, 1::2] *= np.exp(-1j * readout.difference[mask])[:, None]
        notes.append(
            f'odd and even echoes differ by {readout.size:.2f} rad (bipolar readouts): corrected'
        )

    test = None
    if shape is not None:
        field, sd = _first_field(signal, te, field_strength, mask, noise_level(magnitude, mask))
        # The edge of the field of view is no border of the object.
        inner = ndimage.binary_erosion(mask, border_value=1)
        test = phase_sign(
            field, shape.field, inner if inner.any() else mask, sd, beyond=shape.beyond
        )
    found = sign or _sign_of(test)
    if sign and test is not None and test.decisive and test.sign != sign:
        notes.append(
            f'the sign of the phase was given as {sign:+d}, but the field of the shape says '
            f'{test.sign:+d} (coefficient {test.coefficient:.2f}, partial correlation '
            f'{test.correlation:.2f})'
        )
    if found < 0:
        repaired = np.negative(repaired, out=None if repaired is phase else repaired)
        notes.append('the sign of the phase is reversed: it was negated')
    return PhaseRepair(repaired, axes, readout, found, test, tuple(notes))


def _sign_of(test: PhaseSign | None) -> int:
    """Sign that the test decides; +1 where there was nothing to test it with."""
    if test is None:
        return 1
    if not test.decisive:
        raise ValueError(
            'the sign of the phase cannot be told: in the measured field the field of the '
            f"object's shape has the coefficient {test.coefficient:.2f} (+1 or -1 by theory, "
            f'{COEFFICIENTS[0]:g} to {COEFFICIENTS[1]:g} in size decides) and the partial '
            f'correlation {test.correlation:.2f} ({LEAST_CORRELATION:g} in size decides); state '
            'it: --phase-sign +1 if the phase grows with time where the field is stronger, '
            '--phase-sign -1 if it falls'
        )
    return test.sign
