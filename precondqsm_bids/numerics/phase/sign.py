"""Sign of stored phase: by the field of the object's shape, the vendor, the convention."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from precondqsm_bids.numerics.arguments import checked
from precondqsm_bids.numerics.arrays import side_by_side
from precondqsm_bids.numerics.dipole import forward_field
from precondqsm_bids.numerics.phase.outline import (
    CoarseField,
    closed_outline,
    coarse_field,
    cut_fraction,
    outline_radii,
)
from precondqsm_bids.numerics.phase.shape_field import ShapeField, shape_field, shim_terms

F64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
LEAST_CORRELATION = 0.4
"""Partial correlation of the measured field with that of the shape that decides its sign."""
LEAST_COEFFICIENT = 0.1
"""Coefficient from which it decides: of less, what the outline has wrong may be the evidence."""
SHELLS = 4
"""Layers of equal volume, by depth below the surface, in which the correlation is looked at."""
STABLE_SHELLS = 3
"""Layers that must have the sign of the whole, the outermost among them."""
CONTRADICTION = 0.6
"""Partial correlation at which the field refuses a stated sign of the other kind; a weaker one
warns."""
MODEL_ERROR = 0.02
"""Field that the shape and a shim do not describe, ppm."""
ROUNDS = 5
"""Rounds in which what they leave out (strong sources) loses weight."""
LEAST_VOXELS = 300
"""Voxels of the coarse grid below which nothing is compared."""
MOST_CUT = 0.25
"""Fraction of the object's surface on the edge of the field of view up to which axes are
compared."""
BETTER = 1.3
"""Factor on the unexplained variance that makes another axis of B0 worth a warning."""
FULL_SIZE = 0.7
"""Coefficient from which another axis is compared. Around its axis of rotation an object across B0
has minus half of the field that it would have along B0, and the rest is at its ends, where the
outline is least right: a bottle has 0.45 to 0.52 with an axis that is wrong. A head and a bottle
have 0.8 to 1.2 with the axis that is right."""
CERTAIN = (0.85, 3.0)
"""Partial correlation of the other axis, and factor, from which the header's must be wrong."""
FAR = 45.0
"""Angle to the header's direction, degrees, from which a voxel axis is another direction."""
VENDOR_SIGNS = {'siemens': 1, 'philips': 1, 'ge': -1}
"""Usual sign of the phase by vendor. The readers of the MEDI toolbox conjugate the phase of
Siemens and Philips and take the complex images of GE as they are; users find the phase of GE
reversed against that of Siemens of the same sequence (UKRIN-MAPS, ukat, issue 33); that of a
Siemens head has the sign +1 by the field of its shape. Converters and reconstructions of a site's
own may differ, so that this is weak evidence."""


class PhaseSign(NamedTuple):
    """Result of :func:`phase_sign`."""

    sign: int
    """+1 if the phase has the sign of the convention, -1 if it is reversed."""
    coefficient: float
    """Coefficient of the shape's field in the measured one: near +1 or -1 for the true shape."""
    correlation: float
    """Partial correlation of the two, polynomials of second order and the like taken off both."""
    shells: tuple[float, ...]
    """The same within layers of equal volume, the outermost first."""
    decisive: bool
    """Correlation and coefficient are large enough, the first of one sign in the layers."""
    radius: float = 0.0
    """Radius by which the object was closed, mm."""


class AxisTest(NamedTuple):
    """Result of :func:`compare_axes`."""

    correlations: tuple[float, float, float]
    """Partial correlation with the shape's field for B0 along each voxel axis."""
    best: int
    """Voxel axis that fits best among those far from the header's direction."""
    factor: float
    """Unexplained variance by the header's direction over that by the best axis."""
    better: bool
    """The axis fits clearly better than the header's direction."""
    certain: bool
    """It fits so well, and so much better, that the header must be wrong."""


class SignDecision(NamedTuple):
    """Result of :func:`decide_sign`."""

    sign: int
    """+1, or -1: the phase is to be negated."""
    source: str
    """``given``, ``field of the shape``, ``vendor`` or ``convention``."""
    warnings: tuple[str, ...]
    """Assumptions and doubts, in sentences."""


@checked
def phase_sign(
    field: npt.NDArray,
    shape_field: npt.NDArray,
    mask: Bools,
    sd: npt.NDArray | None = None,
    *,
    beyond: Sequence[npt.NDArray] = (),
    depth: npt.NDArray | None = None,
) -> PhaseSign:
    """Sign of the measured field against that which the shape of the object predicts.

    A shim hides the shape's field behind solid harmonics of first and second order, so that the
    plain correlation says little. Here the field is regressed on both together,

        field = c shape_field + sum_{i+j+k <= 2} p_ijk x^i y^j z^k + sum_m q_m beyond_m,

    weighted by ``1 / (sd^2 + model_error^2)``, and again with voxels down-weighted that the model
    leaves out (strong sources; Cauchy weights). The polynomials hold the solid harmonics
    whatever the orientation and voxel size; the last sum is what is not known of an object that
    the field of view cuts off. The sign of ``c`` decides if the partial correlation, that of the
    two fields after all else, is `LEAST_CORRELATION` or more and has the same sign in
    `STABLE_SHELLS` of the layers of depth, the outermost among them, and ``c`` is not below
    `LEAST_COEFFICIENT`. Beyond that its size decides nothing: cavities that are not known make it
    anything up to 3.

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
        Fields of what is not known, ppm: from beyond the field of view (:func:`shape_field`), and
        of cavities.
    depth : (X, Y, Z) ndarray, optional
        Depth below the object's surface, for the layers; one layer if omitted.

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
    voxels = np.flatnonzero(mask)
    if voxels.size == 0:
        raise ValueError('the mask is empty: there is no field to compare with that of the shape')
    voxels = voxels[:: max(1, voxels.size // 200_000)]
    f, s = (np.asarray(v.ravel()[voxels], np.float64) for v in (field, shape_field))
    columns = [np.asarray(part.ravel()[voxels], np.float64)[:, None] for part in beyond]
    others = np.hstack([shim_terms(mask.shape, voxels), *columns])
    variance = np.full(f.shape, MODEL_ERROR**2)
    if sd is not None:
        variance += np.asarray(sd.ravel()[voxels], np.float64) ** 2
    weight = 1 / variance
    for _ in range(ROUNDS):
        root = np.sqrt(weight)[:, None]
        both = np.stack([f, s], axis=1)
        fitted = np.linalg.lstsq(root * others, root * both, rcond=None)[0]
        f_left, s_left = (both - others @ fitted).T
        power = float(np.sum(weight * s_left**2))
        coefficient = float(np.sum(weight * f_left * s_left)) / power if power > 0 else 0.0
        correlation = _correlation(f_left, s_left, weight)
        last = weight
        residual = (f_left - coefficient * s_left) / np.sqrt(variance)
        scale = 1.4826 * np.median(np.abs(residual)) + 1e-9
        weight = 1 / (variance * (1 + (residual / (3 * scale)) ** 2))
    shells = [correlation]
    if depth is not None:
        order = np.argsort(np.asarray(depth.ravel()[voxels]), kind='stable')
        parts = np.array_split(order, SHELLS)
        shells = [_correlation(f_left[part], s_left[part], last[part]) for part in parts]
    sign = -1 if coefficient < 0 else 1
    agreeing = sum(sign * shell > 0 for shell in shells)
    decisive = (
        abs(correlation) >= LEAST_CORRELATION
        and abs(coefficient) >= LEAST_COEFFICIENT
        and sign * shells[0] > 0
        and agreeing >= min(STABLE_SHELLS, len(shells))
    )
    return PhaseSign(sign, coefficient, correlation, tuple(shells), bool(decisive))


def _correlation(one: F64, other: F64, weight: F64) -> float:
    """Weighted correlation of two residuals about zero; 0 where there is nothing to correlate."""
    power = float(np.sum(weight * one**2)) * float(np.sum(weight * other**2))
    return float(np.sum(weight * one * other)) / float(np.sqrt(power)) if power > 1e-20 else 0.0


def shape_evidence(
    coarse: CoarseField, b0_dir: npt.ArrayLike, workers: int = 1
) -> PhaseSign | None:
    """Sign by the field of the object's outline, of the two
    of :func:`~precondqsm_bids.numerics.phase.outline.outline_radii` that fits better.

    What the outline encloses without signal may be air, bone, plastic or a bleeding: its field has
    a coefficient of its own, of either sign, so that only the outer surface tells the sign.

    None where nothing can be compared: no air around the object, or hardly a voxel.

    False positives, on fields that owe nothing to the shape (random sources inside, random dipoles
    around, both; 27 kinds in masks of heads, brains, slabs and tubes, 40 draws each): the
    correlation exceeds 0.3 in 5 %, 0.35 in 2.2 % and 0.4 in 1.1 % of them, half of these with the
    wrong sign. Layers hardly lower this, because such fields are as coherent in depth.

    Phantoms, 155 scans and parts of scans (heads of 1 to 5 mm, hard, 7 T, one echo, brain masks,
    slabs of 8 and 16 slices, tubes at four tilts): of 109 with at least 0.3 one has the wrong
    sign, of 103 with at least 0.35 and 98 with at least 0.4 none. All whole heads (.79 to .86),
    their upper halves (.72 to .85), brains (.74 to .89) and tubes (.50 to .98) are among the 98,
    and about half of the slabs; not slabs across a cylinder along B0, and not slabs through the
    base of the skull, where it is between -.35 and .38. Real: a head .79, its brain .90, a round
    phantom .12.
    """
    if np.count_nonzero(coarse.mask) < LEAST_VOXELS or not coarse.shape.any():
        return None

    def test(radius: float) -> PhaseSign | None:
        body = closed_outline(coarse.shape, coarse.voxel_size, radius)
        if body.all():
            return None
        return _test(coarse, body, _predicted(coarse, body, b0_dir), radius)

    radii = outline_radii(coarse.shape, coarse.voxel_size)
    tests = side_by_side(workers, *(partial(test, radius) for radius in radii))
    found = [test for test in tests if test is not None]
    return max(found, key=lambda test: (test.decisive, abs(test.correlation)), default=None)


def _predicted(coarse: CoarseField, body: Bools, b0_dir: npt.ArrayLike) -> ShapeField:
    """Field of an outline that is filled; that of its cavities is among what is not known."""
    filled = ndimage.binary_fill_holes(body)
    found = shape_field(filled, coarse.voxel_size, b0_dir, coarse.mask)
    cavities = filled & ~body
    if not cavities.any():
        return found
    of_cavities = forward_field(cavities, coarse.voxel_size, b0_dir, coarse.mask)
    return found._replace(beyond=(*found.beyond, of_cavities))


def _test(coarse: CoarseField, body: Bools, predicted: ShapeField, radius: float) -> PhaseSign:
    """The measured field against that of an outline, in layers below its surface."""
    depth = ndimage.distance_transform_edt(body, sampling=coarse.voxel_size)
    fields = coarse.field, predicted.field, coarse.mask, coarse.sd
    return phase_sign(*fields, beyond=predicted.beyond, depth=depth)._replace(radius=radius)


def compare_axes(
    coarse: CoarseField, b0_dir: npt.ArrayLike, header: PhaseSign | None, workers: int = 1
) -> AxisTest | None:
    """Fit of the shape's field for B0 along each voxel axis against the header's direction.

    The fields of one shape for B0 along three perpendicular directions add up to zero inside it,
    so that along a wrong axis the correlation is negative and may be large (-0.80 where the true
    axis has 0.97), and the third field follows from two. What counts is the variance that each
    leaves unexplained, for the outline that fits the header's direction, and only an axis along
    which the shape's field has its full size (`FULL_SIZE`). None where the field of view cuts the
    object off by so much that its field is not known.
    """
    if header is None or cut_fraction(coarse.shape, coarse.voxel_size) > MOST_CUT:
        return None
    body = closed_outline(coarse.shape, coarse.voxel_size, header.radius)
    along = (partial(_predicted, coarse, body, b) for b in np.eye(3)[:2])
    one, two = side_by_side(workers, *along)
    beyond = tuple(-(u + v) for u, v in zip(one.beyond, two.beyond, strict=True))
    three = ShapeField(-(one.field + two.field), beyond)
    fields = (partial(_test, coarse, body, field, header.radius) for field in (one, two, three))
    tests = side_by_side(workers, *fields)
    correlations = [test.correlation for test in tests]
    b = np.abs(np.asarray(b0_dir, np.float64)) / np.linalg.norm(b0_dir)
    others = np.flatnonzero(np.degrees(np.arccos(np.minimum(b, 1))) >= FAR)
    full = [abs(test.coefficient) >= FULL_SIZE for test in tests]
    best = int(max(others, key=lambda axis: (full[axis], abs(correlations[axis]))))
    left = max(1 - correlations[best] ** 2, 1e-6)
    factor = (1 - header.correlation**2) / left
    better = bool(tests[best].decisive and full[best] and factor >= BETTER)
    certain = better and abs(correlations[best]) >= CERTAIN[0] and factor >= CERTAIN[1]
    x, y, z = correlations
    return AxisTest((x, y, z), best, factor, better, certain)


def vendor_sign(manufacturer: str | None) -> int | None:
    """Usual sign of a vendor's phase (`VENDOR_SIGNS`), None if it is not known.

    >>> vendor_sign('GE MEDICAL SYSTEMS'), vendor_sign('SIEMENS'), vendor_sign('Canon')
    (-1, 1, None)
    """
    words = (manufacturer or '').lower().replace('general electric', 'ge').split()
    return next((VENDOR_SIGNS[word] for word in words if word in VENDOR_SIGNS), None)


def decide_sign(
    test: PhaseSign | None, stated: int | None = None, manufacturer: str | None = None
) -> SignDecision:
    """Sign of the phase: stated, by the field of the shape, by the vendor, or by convention.

    Raises
    ------
    ValueError
        The field of the shape contradicts the stated sign.

    Examples
    --------
    >>> decide_sign(None, manufacturer='GE').sign, decide_sign(None).source
    (-1, 'convention')
    """
    if stated:
        if test is None or not test.decisive or test.sign == stated:
            return SignDecision(stated, 'given', ())
        words = (
            f'the sign of the phase was given as {stated:+d}, but the field of the shape says '
            f'{test.sign:+d} ({_numbers(test)})'
        )
        if abs(test.correlation) >= CONTRADICTION:
            raise ValueError(
                f'{words}: leave phase_sign out, or state b0_dir if the direction of B0 is wrong'
            )
        return SignDecision(stated, 'given', (words,))
    if test is not None and test.decisive:
        return SignDecision(test.sign, 'field of the shape', ())
    why = (
        'there is no field of a shape to tell it'
        if test is None
        else f'the field of the shape does not tell it ({_numbers(test)}; {LEAST_CORRELATION:g} '
        'in size decides)'
    )
    usual = vendor_sign(manufacturer)
    source = 'vendor' if usual else 'convention'
    by = f'usual of {manufacturer}' if usual else 'usual convention'
    sign = usual or 1
    warning = (
        f'the sign of the phase is ASSUMED to be {sign:+d}, the {by}: {why}. If it is wrong, '
        'every susceptibility has the wrong sign: state phase_sign, +1 if the phase grows with '
        'time where the field is stronger, -1 if it falls'
    )
    return SignDecision(sign, source, (warning,))


def _numbers(test: PhaseSign) -> str:
    shells = ' '.join(f'{shell:.2f}' for shell in test.shells)
    return (
        f'partial correlation {test.correlation:.2f}, by depth {shells}; coefficient '
        f'{test.coefficient:.2f}'
    )


class Stored(Protocol):
    """What is asked of a scan, or of a given field."""

    @property
    def voxel_size(self) -> npt.ArrayLike: ...
    @property
    def b0_dir(self) -> npt.ArrayLike: ...
    @property
    def b0_stated(self) -> bool: ...
    @property
    def stored_axes(self) -> tuple[int, int, int]: ...


def check_b0(axes: AxisTest | None, header: PhaseSign | None, scan: Stored) -> str:
    """Warning of an axis of B0 that fits better than the direction in use.

    Raises
    ------
    ValueError
        The header's direction is certainly wrong, and none is stated.
    """
    if axes is None or header is None or not axes.better:
        return ''
    places = [scan.stored_axes.index(axis) for axis in range(3)]
    b0 = np.abs(np.asarray(scan.b0_dir, np.float64))[places]
    along = ' '.join(f'{v:.3g}' for v in b0)
    others = ', '.join(f'{axes.correlations[place]:.2f}' for place in places)
    best = scan.stored_axes[axes.best]
    stated = ' '.join(str(int(axis == best)) for axis in range(3))
    words = (
        f'B0 is along ({along}) of the stored axes '
        f'{"as stated" if scan.b0_stated else "by the header"} (signs left out), but the field of '
        f"the object's shape fits the {('first', 'second', 'third')[best]} axis better: partial "
        f'correlation {header.correlation:.2f}, and {others} along the three axes'
    )
    if axes.certain and not scan.b0_stated:
        raise ValueError(f'{words}; state the direction of B0 (b0_dir): {stated}')
    if scan.b0_stated:
        return words
    return f'{words}; if the header is wrong, state b0_dir: {stated}'


class ShapeComparison(NamedTuple):
    """Result of :func:`compare_with_shape`."""

    sign: PhaseSign | None
    axes: AxisTest | None
    doubts: tuple[str, ...]
    """Of the direction of B0, in sentences."""


NOT_COMPARED = ShapeComparison(None, None, ())
"""Where no object is known."""


def compare_with_shape(
    field: npt.NDArray, sd: npt.NDArray, masks: tuple[Bools, Bools], scan: Stored, workers: int = 1
) -> ShapeComparison:
    """Sign and direction of B0 of a field (ppm) by that of the object's shape.

    ``masks``: where the field is known, and the object in air. Raises ValueError as
    :func:`check_b0` does.
    """
    mask, shape_mask = masks
    # The edge of the field of view is no border of the object.
    inner = ndimage.binary_erosion(mask, border_value=1)
    inner = inner if inner.any() else mask
    coarse = coarse_field(field, sd, inner, shape_mask, scan.voxel_size)
    test = shape_evidence(coarse, scan.b0_dir, workers)
    axes = compare_axes(coarse, scan.b0_dir, test, workers)
    words = check_b0(axes, test, scan)
    return ShapeComparison(test, axes, (words,) if words else ())
