"""Dipole inversion: lambda by a rule, and a map by the closed form or total variation."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from precondqsm_bids.method import INVERSIONS, Arm
from precondqsm_bids.numerics.arguments import check_reg_weight, checked
from precondqsm_bids.numerics.closed_form import closed_form
from precondqsm_bids.numerics.dipole import Geometry, bounding_box
from precondqsm_bids.numerics.expected_risk import least_risk
from precondqsm_bids.numerics.l_curve import NO_CURVE, REG_WEIGHTS, LCurve, l_curve
from precondqsm_bids.numerics.morphology import gaussian_of_lines, median_of_27
from precondqsm_bids.numerics.residual_inversion import Residual, residual_inversion
from precondqsm_bids.numerics.total_variation import tv_inversion

F32 = npt.NDArray[np.float32]

RULES = ('l-curve', 'risk', 'risk-or-corner')
"""How lambda may be chosen: by the corner of the L-curve, by :func:`least_risk`, or the smaller of
both."""
OUTLIER = 4.0
"""Standard deviations from its neighbours beyond which a voxel's residual is not believed."""
MEAN_TO_SD = 1.2533
"""Standard deviation over mean absolute deviation of a normal distribution."""
NEIGHBOURS = 1.5
"""Width of the Gaussian over the neighbours of a voxel whose field is uncertain, voxels."""
LESS_CERTAIN = 4.0
"""Weight (1 / variance) of the neighbours over that of a voxel from which it takes after them."""
LEAST_SMOOTH = 1 / 8
"""Lambda, in voxels, up to which the corner holds none back: more than half of the highest
frequency along an axis is left, and of a smooth susceptibility the corner is far below."""
NOTHING = 1e-9
"""Largest field, ppm, that counts as zero: far below what float32 resolves of a field of 1 ppm."""


class DipoleInversion(NamedTuple):
    """Result of :func:`invert` and :func:`l2_inversion`."""

    chi: F32
    """Susceptibility, ppm, (X, Y, Z), zero outside the mask."""
    reg_weight: float
    """Lambda, mm; not a number where the field is zero and none was given."""
    curve: LCurve
    """The whole L-curve, also when lambda was given; :data:`NO_CURVE` where the field is zero."""
    further: Mapping[str, float] = {}
    """What else this inversion has chosen, as its record names it."""

    def record(self, arm: Arm) -> dict[str, Any]:
        """Choices as plain numbers."""
        rule = arm.rule if arm.reg_weight is None else 'given'
        shown = self.curve is NO_CURVE or self.reg_weight == self.curve.reg_weight
        record = {
            'inversion': arm.inversion,
            'reg_weight': _finite(self.reg_weight),
            'rule': rule,
            'corner': _finite(self.curve.reg_weight),
            'outliers_clipped': arm.clip_outliers,
            'warnings': list(self.curve.warnings) if shown else [],
        }
        return record | dict(self.further)

    def l_curve(self) -> dict[str, Any]:
        """The L-curve in plain lists, its corner and the lambda that was used."""
        curve = self.curve._asdict()
        lists = {name: curve[name].tolist() for name in LCurve._fields[:4]}
        corner = {'reg_weight': _finite(self.reg_weight), 'corner': _finite(curve['reg_weight'])}
        return lists | corner | {'warnings': list(curve['warnings'])}


def _finite(value: float) -> float | None:
    """A number, or None where it is not one."""
    return value if np.isfinite(value) else None


@checked
def without_outliers(
    local_field: npt.NDArray,
    mask: npt.NDArray[np.bool_],
    weights: npt.NDArray | None = None,
    workers: int = 1,
) -> F32:
    """Field whose single outliers are limited to four robust deviations of their neighbours.

    Each voxel is held to the median of the 27 voxels around it, up or down to four times the
    standard deviation that the mean departure from that median in the 125 voxels around lets
    expect. Beyond lie wraps, partly filled voxels, signal that decayed before the second echo. A
    source that a prior does not know has a residual in many voxels together and stays, and so
    does noise of the usual size: it is the inversion's to weigh, not the data's to lose.

    With ``weights``, a voxel whose field has more than twice the standard deviation of those
    around it takes after them before, each by its certainty,

        ``f' = (f + v F) / (1 + v)``
        ``v = max(g * W^2 / (W^2 g * M) - 4, 0),  F = g * W^2 f / g * W^2``

    with ``g`` a Gaussian of 1.5 voxels and ``M`` the mask: the closed form weighs all voxels
    alike, and in a void of the signal, at a pole of the receive phase, the field that was measured
    is none. Where all are as uncertain together, the residual stays.

    Parameters
    ----------
    local_field : (X, Y, Z) ndarray
        Local field, ppm.
    mask : (X, Y, Z) ndarray of bool
        Region of interest.
    weights : (X, Y, Z) ndarray, optional
        ``W``, see :func:`noise_weights`: their model error tells how much of a field's error is
        no more than what lies between neighbours anyway.
    workers : int
        Threads.

    References
    ----------
    Knutsson H, Westin CF, Normalized and differential convolution, Proc CVPR 1993:515.

    Examples
    --------
    >>> field = np.full((9, 9, 9), 0.01); mask = np.ones(field.shape, bool)
    >>> field[4, 4, 4] = 1.0  # an outlier
    >>> print(without_outliers(field, mask)[4, 4, 4].round(2))
    0.05
    """
    out = np.where(mask, local_field, 0).astype(np.float32)
    box = bounding_box(mask, 4)  # beyond the reach of the filters all is zero
    field = out[box]
    if weights is not None:
        certainty = np.where(mask[box], weights[box], 0).astype(np.float32)
        certainty *= certainty
        field = _by_neighbours(field, certainty, workers)
    middle = median_of_27(field, workers)
    # A mean absolute deviation over 125 voxels: an outlier among them hardly moves it.
    limit = OUTLIER * MEAN_TO_SD * ndimage.uniform_filter(np.abs(field - middle), 5)
    out[box] = np.where(mask[box], np.clip(field, middle - limit, middle + limit), 0)
    return out


def _by_neighbours(field: F32, certainty: F32, workers: int) -> F32:
    """Field in which uncertain voxels take after their neighbours; certainty is zero outside."""
    inside = certainty > 0
    count, total, smooth = (
        gaussian_of_lines(image, NEIGHBOURS, workers, mode='constant')[inside]
        for image in (inside.astype(np.float32), certainty, certainty * field)
    )
    lacking = np.maximum(total / (count * certainty[inside]) - LESS_CERTAIN, 0)
    out = np.zeros_like(field)
    out[inside] = (field[inside] + lacking * smooth / total) / (1 + lacking)
    return out


@checked
def l2_inversion(
    local_field: npt.NDArray,
    mask: npt.NDArray[np.bool_],
    voxel_size: npt.ArrayLike,
    b0_dir: npt.ArrayLike,
    reg_weight: float | None = None,
    workers: int = 1,
    *,
    rule: str = 'l-curve',
    clip_outliers: bool = False,
) -> DipoleInversion:
    """Susceptibility by closed-form regularised division in k-space: ``l2`` of :func:`invert`.

    Parameters
    ----------
    local_field : (X, Y, Z) ndarray
        Field of the sources inside the mask, ppm.
    mask : (X, Y, Z) ndarray of bool
        Region of interest.
    voxel_size : (3,) array_like
        Voxel size, mm.
    b0_dir : (3,) array_like
        Direction of B0 along the voxel axes.
    reg_weight : float, optional
        Lambda, mm; by ``rule`` if omitted.
    workers : int
        Threads of the Fourier transforms.
    rule : {'l-curve', 'risk'}
        The corner of the L-curve, or :func:`least_risk`.
    clip_outliers : bool
        Whether the field goes through :func:`without_outliers` first. For the residual of a fitted
        prior; after a fixed prior the residual is the correction and must stay as it is.

    Returns
    -------
    DipoleInversion

    Raises
    ------
    ValueError
        Shapes differ, the mask is empty, or lambda is not positive.

    References
    ----------
    Bilgic et al., J Magn Reson Imaging 2014;40:181 and Magn Reson Med 2014;72:1444.

    Examples
    --------
    >>> from precondqsm_bids.numerics.dipole import forward_field
    >>> chi = np.zeros((16, 16, 16)); chi[6:10, 6:10, 6:10] = 1
    >>> field = forward_field(chi, (1, 1, 1), (0, 0, 1))
    >>> result = l2_inversion(field, np.ones(chi.shape, bool), (1, 1, 1), (0, 0, 1), 0.01)
    >>> print(0.8 < result.chi[7:9, 7:9, 7:9].mean() - result.chi[0].mean() < 1.1)
    True
    """
    arm = Arm(rule=rule, reg_weight=reg_weight, clip_outliers=clip_outliers)
    return invert(local_field, Geometry(mask, voxel_size, b0_dir, workers), arm)


@checked
def invert(
    local_field: npt.NDArray,
    geometry: Geometry,
    arm: Arm = Arm(),  # noqa: B008 (never changed)
    weights: npt.NDArray | None = None,
    trust: float = 1.0,
    residual: Residual | None = None,
) -> DipoleInversion:
    """Susceptibility of a local field, as an arm of the method has it.

    ``l2``: ``argmin_chi || D chi - f ||^2 + lambda^2 || G chi ||^2``, ``G`` the forward difference
    in 1/mm, which regularised division in k-space solves: ``chi = F^-1 [ D F f / (D^2 + lambda^2
    |G|^2) ]``. The norm that lambda multiplies is squared and so is lambda; its unit is mm. A
    larger lambda gives a smoother and weaker map. The mean over the grid is not determined and set
    to zero. Of a field that is zero (up to 1e-9 ppm) so is the susceptibility, whatever lambda.

    Lambda is given, or chosen by the rule of the arm for this closed form; ``l2`` takes its map,
    ``tv`` that of :func:`tv_inversion`. With ``residual`` the map of ``l2`` is that of
    :func:`residual_inversion`, at the same lambda.

    What a good prior leaves is mostly noise, and lambda by :func:`least_risk` is then larger than
    the corner. What a dropped one leaves is the whole field: lambda is at most the corner, or an
    eighth of a voxel if that is more, and between them it is
    ``risk^trust min(risk, max(corner, h / 8))^(1 - trust)``.

    Memory of ``l2``: 30 bytes per voxel of the mask's box with its margin (more with the rule
    ``risk`` or a ``residual``); one pair of transforms, 70 more with ``residual``.

    Parameters
    ----------
    local_field : (X, Y, Z) ndarray
        Field of the sources inside the region, ppm.
    geometry : Geometry
        Region of interest, voxel size (mm), direction of B0, threads.
    arm : Arm
        Its ``inversion``, ``rule``, ``reg_weight`` (mm) and ``clip_outliers`` count.
    weights : (X, Y, Z) ndarray, optional
        ``W``, see :func:`noise_weights`: of the data term of ``tv``, and of
        :func:`without_outliers`; the closed form itself has none.
    trust : float
        How far the prior counts that left this field, 0 to 1; for the rule ``risk``.
    residual : Residual, optional
        What is known of a field that a fitted prior left: its standard deviation, and the prior.

    Raises
    ------
    ValueError
        Shapes differ, the mask is empty, lambda is not positive, or a word is not known.

    References
    ----------
    Bilgic et al., J Magn Reson Imaging 2014;40:181 and Magn Reson Med 2014;72:1444 (``l2``).

    Examples
    --------
    >>> from precondqsm_bids.numerics.dipole import forward_field
    >>> chi = np.zeros((16, 16, 16)); chi[6:10, 6:10, 6:10] = 1
    >>> geometry = Geometry(np.ones(chi.shape, bool), (1, 1, 1), (0, 0, 1))
    >>> found = invert(forward_field(chi, *geometry[1:3]), geometry, Arm(reg_weight=0.01)).chi
    >>> print(0.8 < found[7:9, 7:9, 7:9].mean() - found[0].mean() < 1.1)
    True
    >>> field = np.random.default_rng(0).normal(size=(12, 12, 12)); mask = field < 9
    >>> found = invert(field, Geometry(mask, (1, 1, 1), (0, 0, 1)), Arm(inversion='tv'))
    >>> sorted(found.further)
    ['iterations', 'last_change', 'tv_weight']
    """
    mask, reg_weight, rule = geometry.mask, arm.reg_weight, arm.rule
    if not mask.any():
        raise ValueError('the mask is empty: there is no field to invert')
    if reg_weight is not None:
        check_reg_weight(reg_weight)
    if rule not in RULES:
        raise ValueError(f'the rule for lambda is one of {", ".join(RULES)}, not {rule!r}')
    if arm.inversion not in INVERSIONS:
        raise ValueError(f'the inversion is one of {", ".join(INVERSIONS)}, not {arm.inversion!r}')
    if arm.clip_outliers:
        local_field = without_outliers(local_field, mask, weights, geometry.workers)
    if np.abs(local_field[mask]).max() <= NOTHING:
        weight = np.nan if reg_weight is None else float(reg_weight)
        return DipoleInversion(np.zeros(mask.shape, np.float32), weight, NO_CURVE)
    form = closed_form(geometry)
    spectrum = form.spectrum(local_field)
    tried = REG_WEIGHTS * form.geometry.voxel_length
    power, workers = form.power(spectrum), geometry.workers
    curve = l_curve(power, form.kernel**2, form.gradient, tried, workers)
    del power
    if reg_weight is not None:
        weight = float(reg_weight)
    elif rule == 'l-curve':
        weight = curve.reg_weight
    else:
        weight = least_risk(form, spectrum)
        most = max(curve.reg_weight, LEAST_SMOOTH * form.geometry.voxel_length)
        weight *= min(most / weight, 1) ** (1 - trust if rule == 'risk' else 1)
    if arm.inversion == 'tv':
        found = tv_inversion(form, local_field, weight, weights)
        record = {
            'tv_weight': found.tv_weight,
            'iterations': found.iterations,
            'last_change': found.change,
        }
        return DipoleInversion(found.chi, weight, curve, record)
    if residual is not None and trust > 0:
        del spectrum
        chi = residual_inversion(form, local_field, residual, weight, trust)
        record = {'weighted': True}
        return DipoleInversion(chi, weight, curve, record)
    return DipoleInversion(form.volume(form.divided(spectrum, weight)), weight, curve)
