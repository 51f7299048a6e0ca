"""L-curve of the closed form, and its corner."""

from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from precondqsm_bids.numerics.arrays import side_by_side

F64 = npt.NDArray[np.float64]

PART = 1 << 15
"""Frequencies handled at a time: they stay in the processor's cache for all lambdas."""
REG_WEIGHTS = np.logspace(-3, 1, 81)
"""Grid of the L-curve: lambda from 1e-3 to 10 voxel sizes, twenty to a decade."""


class LCurve(NamedTuple):
    """The L-curve, one value per lambda, and its corner."""

    reg_weights: F64
    """Lambda, mm."""
    consistency: F64
    """``|| D chi - f ||``, ppm times the square root of the voxel count."""
    regularization: F64
    """``|| grad chi ||``, ppm/mm times the square root of the voxel count."""
    curvature: F64
    """Curvature in log-log axes with growing lambda: positive where the curve bends upwards, as
    the foot of an L does, negative where it bends downwards, as a shoulder does."""
    reg_weight: float
    """Lambda at the corner."""
    warnings: tuple[str, ...]
    """Reasons to doubt the corner."""


NO_CURVE = LCurve(
    np.zeros(0),
    np.zeros(0),
    np.zeros(0),
    np.zeros(0),
    np.nan,
    (
        'the field is zero everywhere: nothing was inverted, and the map is the prior (zero '
        'without one)',
    ),
)
"""Of a field that is zero: no curve, no corner."""


def l_curve(
    power: npt.NDArray,
    kernel_power: npt.NDArray,
    gradient: npt.NDArray,
    reg_weights: npt.ArrayLike = REG_WEIGHTS,
    workers: int = 1,
) -> LCurve:
    """L-curve of the closed-form l2 inversion, from spectra alone.

    With ``p = |F f|^2`` (counted twice where the half spectrum stands for two frequencies),
    ``d = |D|^2`` and ``e = |G|^2``, by Parseval

        consistency^2    = sum p (lambda^2 e / (d + lambda^2 e))^2
        regularization^2 = sum p d e / (d + lambda^2 e)^2

    and the derivative of the second with respect to ln lambda is as explicit, so that the
    curvature is exact: it depends neither on the grid nor on whether it is taken against lambda
    or its logarithm. No Fourier transform per lambda.

    Parameters
    ----------
    power, kernel_power, gradient : ndarray
        ``p`` (scaled to norms over voxels), ``d``, ``e`` (1/mm^2), of one shape.
    reg_weights : (L,) array_like
        Lambda, mm, increasing.
    workers : int
        Threads.

    Returns
    -------
    LCurve
        The corner is where the curvature is most negative.

    Notes
    -----
    With growing lambda the curve (ln regularization against ln consistency) runs to the right
    and down, and it may have two bends. At small lambda, noise leaves the map while the
    consistency hardly changes; where that ends, the curve turns from steep to flat, upwards: the
    foot of the L, of *positive* curvature, which is the corner of the textbooks. At larger lambda
    the map itself is taken away while the consistency can grow no more; where that begins, the
    curve turns from flat to steep, downwards: a shoulder, of *negative* curvature. The corner
    here is the shoulder, as in the published closed form: there is always one (a single
    frequency has nothing else: curvature -1/sqrt(2) where half of it is left), while the foot
    needs a noise that stands apart from the signal in k-space. The dipole's small values mix the
    two, so that the foot is at times sharper, at times absent, and maps at it had several times
    the error on coarse voxels. The shoulder errs on the smooth side.

    Raises
    ------
    ValueError
        The field is zero.

    Examples
    --------
    >>> d, e = np.array([0.4, 0.1, 0.01, 1e-4]), np.array([0.1, 1.0, 4.0, 10.0])
    >>> curve = l_curve(np.array([10.0, 1.0, 0.1, 0.01]), d, e)
    >>> print(curve.consistency[0] < curve.consistency[-1], 0.001 < curve.reg_weight < 10)
    True True

    References
    ----------
    Hansen & O'Leary, SIAM J Sci Comput 1993;14:1487 (curvature); Bilgic et al., Magn Reson Med
    2014;72:1444 (closed form, L-curve in QSM).
    """
    weights = np.asarray(reg_weights, np.float64)
    keep = (power > 0) & (gradient > 0)
    if not keep.any():
        raise ValueError('the field is zero everywhere: there is no L-curve')
    p, d, e = power[keep], kernel_power[keep], gradient[keep]
    parts = [slice(first, first + PART) for first in range(0, len(p), PART)]
    found = side_by_side(
        workers, *(partial(_sums, p[part], d[part], e[part], weights) for part in parts)
    )
    sums = np.zeros((3, len(weights)))
    for of_part in found:  # in an order that the number of threads does not change
        sums += of_part
    (rho, eta, slope), l2 = sums, weights**2
    # Against t = ln lambda: rho' = -lambda^2 eta', so that eta'' cancels from the numerator.
    down, right = slope / (2 * eta), -l2 * slope / (2 * rho)
    curvature = -2 * down * right * (1 + down - right) / (down**2 + right**2) ** 1.5
    corner, warnings = _corner(weights, curvature)
    return LCurve(weights, np.sqrt(rho), np.sqrt(eta), curvature, corner, warnings)


def _sums(p: npt.NDArray, d: npt.NDArray, e: npt.NDArray, weights: F64) -> F64:
    """Squares of both norms, and the slope of the second, at each lambda, (3, L)."""
    out = np.empty((3, len(weights)))
    pde = p * d * e
    q, g, product = np.empty_like(pde), np.empty_like(pde), np.empty_like(pde)
    for column, weight in zip(out.T, weights, strict=True):
        np.multiply(e, np.float32(weight**2), out=q)
        np.add(d, q, out=g)
        np.divide(1, g, out=g)
        q *= g  # lambda^2 e / (d + lambda^2 e)
        g *= g
        g *= pde
        np.multiply(p, q, out=product)
        product *= q
        column[0] = np.sum(product, dtype=np.float64)
        column[1] = np.sum(g, dtype=np.float64)
        column[2] = -4 * np.sum(np.multiply(g, q, out=product), dtype=np.float64)
    return out


def _corner(weights: F64, curvature: F64) -> tuple[float, tuple[str, ...]]:
    """Lambda where the curve bends most, refined between grid points, and what is doubtful."""
    bend = -curvature
    best = int(np.argmax(bend))
    if best in (0, len(weights) - 1):
        return float(weights[best]), (
            f'the L-curve bends most at the end of the grid, lambda {weights[best]:g}: it has no '
            'corner inside; consider a given reg_weight',
        )
    warnings: tuple[str, ...] = ()
    if bend[best] < 0.1:
        warnings = (f'the L-curve is flat: its greatest curvature is {curvature[best]:.2g}',)
    return peak(weights, bend), warnings


def peak(weights: F64, height: F64) -> float:
    """Lambda of the greatest height, by a parabola in ln lambda through it and its neighbours."""
    best = int(np.argmax(height))
    if best in (0, len(weights) - 1):
        return float(weights[best])
    left, middle, right = height[best - 1 : best + 2]
    shift = 0.5 * (left - right) / min(left - 2 * middle + right, -1e-12)
    step = np.log(weights[best + 1] / weights[best])
    return float(weights[best] * np.exp(np.clip(shift, -0.5, 0.5) * step))
