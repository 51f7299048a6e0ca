"""Sign of stored phase, from the field of the object's shape in air."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
LEAST_CORRELATION = 0.3
"""Partial correlation of the measured field with that of the shape that decides its sign."""
COEFFICIENTS = (0.4, 2.5)
"""Range of the absolute coefficient of the shape's field that decides its sign; 1 by theory."""


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
