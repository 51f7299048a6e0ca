"""Dipole inversion: closed-form l2 with gradient regularisation, lambda from the L-curve."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

from precondqsm_bids.numerics.dipole import dipole_kernel, frequencies
from precondqsm_bids.numerics.solver import solver_grid

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

RULES = ('l-curve', 'risk')
"""How lambda may be chosen: the corner of the L-curve, or :func:`least_risk`."""
SHELLS = 16
"""Shells of equal ``|k|`` up to the edge of the spectrum."""
CONE_EDGES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.45)
"""Edges of the classes of equal ``|D|``: the first is the cone that the field tells nothing of."""
OUTLIER = 4.0
"""Standard deviations from its neighbours beyond which a voxel's residual is not believed."""
MEAN_TO_SD = 1.2533
"""Standard deviation over mean absolute deviation of a normal distribution."""
NOTHING = 1e-9
"""Largest field, ppm, that counts as zero: far below what float32 resolves of a field of 1 ppm."""
REG_WEIGHTS = np.logspace(-3, 1, 81)
"""Grid of the L-curve: lambda (mm) from 1e-3 to 10, twenty to a decade."""


class LCurve(NamedTuple):
    """The L-curve, one value per lambda, and its corner."""

    reg_weights: F64
    """Lambda, mm."""
    consistency: F64
    """``|| D chi - f ||``, ppm times the square root of the voxel count."""
    regularization: F64
    """``|| grad chi ||``, ppm/mm times the square root of the voxel count."""
    curvature: F64
    """Curvature in log-log axes; positive where the curve is convex towards the origin."""
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
        'the field is zero everywhere, or no more than noise: nothing was inverted, and the map '
        'is the prior (zero without one)',
    ),
)
"""Of a field that is zero: no curve, no corner."""


class DipoleInversion(NamedTuple):
    """Result of :func:`l2_inversion`."""

    chi: F32
    """Susceptibility, ppm, (X, Y, Z), zero outside the mask."""
    reg_weight: float
    """Lambda, mm; not a number where the field is zero and none was given."""
    curve: LCurve
    """The whole L-curve, also when lambda was given; :data:`NO_CURVE` where the field is zero."""

    def record(self, rule: str | None, suppress_noise: bool) -> dict[str, Any]:
        """Choices as plain numbers; ``rule`` is None if lambda was given."""
        shown = self.curve is NO_CURVE or rule == 'l-curve'
        record = {
            'reg_weight': _finite(self.reg_weight),
            'rule': rule or 'given',
            'corner': _finite(self.curve.reg_weight),
            'noise_suppressed': suppress_noise,
            'warnings': list(self.curve.warnings) if shown else [],
        }
        return record

    def l_curve(self) -> dict[str, Any]:
        """The L-curve in plain lists, its corner and the lambda that was used."""
        curve = self.curve._asdict()
        lists = {name: curve[name].tolist() for name in LCurve._fields[:4]}
        corner = {'reg_weight': _finite(self.reg_weight), 'corner': _finite(curve['reg_weight'])}
        return lists | corner | {'warnings': list(curve['warnings'])}


def _finite(value: float) -> float | None:
    """A number, or None where it is not one."""
    return value if np.isfinite(value) else None


def gradient_power(shape: tuple[int, int, int], voxel_size: npt.ArrayLike) -> F32:
    """``|G|^2`` of the forward difference, ``sum_i (2 - 2 cos(2 pi k_i h_i)) / h_i^2``, 1/mm^2.

    On the half spectrum of ``shape``.

    >>> gradient_power((2, 2, 2), (1, 1, 1))[1, 1, 1].item()
    12.0
    """
    h = np.asarray(voxel_size, float)
    k = frequencies(shape, h)
    return sum(
        ((2 - 2 * np.cos(2 * np.pi * ki * hi)) / hi**2).astype(np.float32)
        for ki, hi in zip(k, h, strict=True)
    )


def l_curve(
    power: npt.NDArray,
    kernel_power: npt.NDArray,
    gradient: npt.NDArray,
    reg_weights: npt.ArrayLike = REG_WEIGHTS,
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

    Returns
    -------
    LCurve
        The corner is where the curve bends downwards most (negative curvature): from there on
        a larger lambda costs more signal than it saves in roughness. The bend upwards that
        noise makes at small lambda is no rival: it is at times sharper, at times absent.

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
    consistency, regularization, slope = (np.empty(len(weights)) for _ in range(3))
    for i, weight in enumerate(weights):
        q = np.float32(weight**2) * e
        g = 1 / (d + q)
        q *= g  # lambda^2 e / (d + lambda^2 e)
        consistency[i] = np.sum(p * q * q, dtype=np.float64)
        g *= g * p * d * e
        regularization[i] = np.sum(g, dtype=np.float64)
        slope[i] = -4 * np.sum(g * q, dtype=np.float64)
    rho, eta, l2 = consistency, regularization, weights**2
    # Against t = ln lambda: rho' = -lambda^2 eta', so that eta'' cancels from the numerator.
    down, right = slope / (2 * eta), -l2 * slope / (2 * rho)
    curvature = -2 * down * right * (1 + down - right) / (down**2 + right**2) ** 1.5
    corner, warnings = _corner(weights, curvature)
    return LCurve(weights, np.sqrt(rho), np.sqrt(eta), curvature, corner, warnings)


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
    return _between(weights, bend), warnings


def _between(weights: F64, height: F64) -> float:
    """Lambda of the greatest height, by a parabola in ln lambda through it and its neighbours."""
    best = int(np.argmax(height))
    if best in (0, len(weights) - 1):
        return float(weights[best])
    left, middle, right = height[best - 1 : best + 2]
    shift = 0.5 * (left - right) / min(left - 2 * middle + right, -1e-12)
    step = np.log(weights[best + 1] / weights[best])
    return float(weights[best] * np.exp(np.clip(shift, -0.5, 0.5) * step))


def least_risk(
    power: npt.NDArray,
    kernel_power: npt.NDArray,
    gradient: npt.NDArray,
    radius: npt.NDArray,
    multiplicity: npt.NDArray,
    reg_weights: npt.ArrayLike = REG_WEIGHTS,
) -> float:
    """Lambda of least expected error of the map, the noise being read in the dipole's cone.

    Where ``|D| < 0.05`` the field holds next to nothing of the sources: what stands there is
    noise of whatever kind, a background that was not removed, wraps, the cut at the border of the
    region. With ``N`` that power, per shell of equal ``|k|``, and ``S`` the power of the
    susceptibility, from ``E |F f|^2 = d S + N`` in classes of equal ``|k|`` and ``|D|`` (the class
    beside the cone speaks for the cone), the closed form's expected error is

        sum (lambda^2 e / (d + lambda^2 e))^2 S + d / (d + lambda^2 e)^2 N

    of which the first term is what regularisation takes away and the second what it lets through.
    Neither a level nor a spectrum of the noise is assumed, which is where the discrepancy
    principle and generalised cross-validation go wrong.

    Parameters
    ----------
    power, kernel_power, gradient : ndarray
        As in :func:`l_curve`: ``|F f|^2`` (ppm^2, twice where a frequency stands for two),
        ``d = |D|^2`` and ``e = |G|^2`` (1/mm^2).
    radius : ndarray
        ``|k|`` over that of the largest sphere within the spectrum.
    multiplicity : ndarray
        How many frequencies each element stands for, 1 or 2 (and 0 for the mean).
    reg_weights : (L,) array_like
        Lambda, mm.

    Returns
    -------
    float
        Lambda, mm; refined between the values of the grid.

    References
    ----------
    The expected error of a linear estimate, there for the data: Mallows, Technometrics
    1973;15:661.

    Examples
    --------
    Sources without noise ask for the least lambda:

    >>> kernel = dipole_kernel((24, 24, 24), (1, 1, 1), (0, 0, 1))
    >>> k = frequencies((24, 24, 24), (1, 1, 1))
    >>> radius = 2 * np.sqrt(k[0] ** 2 + k[1] ** 2 + k[2] ** 2)
    >>> gradient = gradient_power((24, 24, 24), (1, 1, 1))
    >>> once = np.ones(kernel.shape)
    >>> least_risk(kernel**2, kernel**2, gradient, radius, once, [0.01, 0.1, 1])
    0.01
    """
    p, d, e, m = power.ravel(), kernel_power.ravel(), gradient.ravel(), multiplicity.ravel()
    classes = len(CONE_EDGES) + 1
    # No frequency of a regular grid lies on the edge of a shell: rounding would decide.
    shell = np.minimum(radius * SHELLS * 0.9987, 1.8 * SHELLS).astype(np.int32).ravel()
    shells = int(shell.max()) + 1
    place = shell * classes + np.digitize(d, np.square(CONE_EDGES)).astype(np.int32)

    def mean(values: npt.NDArray) -> F64:
        total = np.bincount(place, values, shells * classes).reshape(shells, classes)
        return total / np.maximum(count, 1)

    count = np.bincount(place, m, shells * classes).reshape(shells, classes)
    found, gain = mean(p), np.maximum(mean(m * d), 1e-12)
    noise, sources = found[:, :1], np.zeros_like(found)
    for _ in range(4):  # the cone is not quite empty of sources
        sources[:, 1:] = np.maximum(found - noise, 0)[:, 1:] / gain[:, 1:]
        sources[:, 0] = sources[:, 1]
        noise = np.maximum(found - sources * gain, 0)[:, :1]
    s = sources.astype(np.float32).ravel()[place]
    n = noise.astype(np.float32).ravel()[shell]
    weights = np.asarray(reg_weights, np.float64)
    risk = []
    for weight in weights:
        q = np.float32(weight**2) * e
        g = d + q
        g[g == 0] = np.inf
        q /= g
        q *= q
        q *= s
        q += d / g**2 * n
        risk.append(np.sum(m * q, dtype=np.float64))
    return _between(weights, -np.log(risk))


def trusted_field(
    local_field: npt.NDArray, field_sd: npt.NDArray, mask: npt.NDArray[np.bool_]
) -> F32:
    """Residual field, reduced voxel by voxel as far as it is noise, without single outliers.

    The local Wiener filter ``f P / (P + field_sd^2)``: ``P`` is the power of the residual itself
    in the 27 voxels around, each weighted by ``1 / field_sd^2`` and less the noise that these
    weights let expect. Then values are limited to four robust deviations of their neighbours'
    median: beyond lie wraps, partly filled voxels, signal that decayed before the second echo.
    After a fitted prior this is what lets the prior speak where the field is not to be trusted. A
    source that the prior does not know has a residual in many voxels together and stays. After a
    fixed prior the residual is the correction and must stay as it is.

    Parameters
    ----------
    local_field : (X, Y, Z) ndarray
        Residual local field, ppm.
    field_sd : (X, Y, Z) ndarray
        Standard deviation of the field, ppm.
    mask : (X, Y, Z) ndarray of bool
        Region of interest.

    References
    ----------
    Lee, IEEE Trans Pattern Anal Mach Intell 1980;2:165.

    Examples
    --------
    >>> field = np.full((9, 9, 9), 0.01); mask = np.ones(field.shape, bool)
    >>> print(abs(trusted_field(field, field, mask)).max().round(6))
    0.0
    >>> print(trusted_field(field, field / 10, mask)[4, 4, 4].round(4))
    0.0099
    >>> field[4, 4, 4] = 1.0  # an outlier
    >>> print(trusted_field(field, 0 * field, mask)[4, 4, 4].round(2))
    0.05
    """
    variance = np.maximum(field_sd, 1e-6).astype(np.float32) ** 2
    weight = np.where(mask, 1 / variance, 0).astype(np.float32)
    around = np.maximum(ndimage.uniform_filter(weight, 3), np.finfo(np.float32).tiny)
    energy = ndimage.uniform_filter(weight * np.where(mask, local_field, 0) ** 2, 3)
    expected = ndimage.uniform_filter(mask.astype(np.float32), 3)
    power = np.maximum(energy - expected, 0) / around
    field = np.where(mask, local_field * (power / (power + variance)), 0).astype(np.float32)
    middle = ndimage.median_filter(field, 3)
    departure = np.abs(field - middle)
    # A mean absolute deviation over 125 voxels: an outlier among them hardly moves it.
    limit = OUTLIER * MEAN_TO_SD * ndimage.uniform_filter(departure, 5)
    return np.where(mask, np.clip(field, middle - limit, middle + limit), 0).astype(np.float32)


def l2_inversion(
    local_field: npt.NDArray,
    mask: npt.NDArray[np.bool_],
    voxel_size: npt.ArrayLike,
    b0_dir: npt.ArrayLike,
    reg_weight: float | None = None,
    field_sd: npt.NDArray | None = None,
    workers: int = 1,
    *,
    rule: str = 'l-curve',
    suppress_noise: bool = False,
) -> DipoleInversion:
    """Susceptibility by closed-form regularised division in k-space.

    Problem: ``argmin_chi || D chi - f ||^2 + lambda^2 || G chi ||^2``, ``G`` the forward
    difference in 1/mm. Solution: ``chi = F^-1 [ D F f / (D^2 + lambda^2 |G|^2) ]``. The norm
    that lambda multiplies is squared and so is lambda; its unit is mm. A larger lambda gives a
    smoother and weaker map. The mean over the grid is not determined and set to zero. Of a field
    that is zero (up to 1e-9 ppm) so is the susceptibility, whatever lambda.

    Memory: 30 bytes per voxel of the mask's box with its margin (50 with the rule ``risk``); one
    pair of transforms.

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
    field_sd : (X, Y, Z) ndarray, optional
        Standard deviation of the field, ppm.
    workers : int
        Threads of the Fourier transforms.
    rule : {'l-curve', 'risk'}
        The corner of the L-curve, or :func:`least_risk`.
    suppress_noise : bool
        Whether the field goes through :func:`trusted_field` first, which takes ``field_sd``. For
        the residual of a fitted prior only; the plain closed form without.

    Returns
    -------
    DipoleInversion

    Raises
    ------
    ValueError
        Shapes differ, the mask is empty, lambda is not positive, or noise is to be suppressed
        without ``field_sd``.

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
    if local_field.shape != mask.shape:
        raise ValueError(f'local_field {local_field.shape} and mask {mask.shape} differ in shape')
    if not mask.any():
        raise ValueError('the mask is empty: there is no field to invert')
    if reg_weight is not None and not (np.isfinite(reg_weight) and reg_weight > 0):
        raise ValueError(f'the regularisation weight lambda must be positive: {reg_weight}')
    if rule not in RULES:
        raise ValueError(f'the rule for lambda is l-curve or risk, not {rule!r}')
    if suppress_noise:
        if field_sd is None:
            raise ValueError('suppress_noise needs the standard deviation of the field: field_sd')
        local_field = trusted_field(local_field, field_sd, mask)
    if np.abs(local_field[mask]).max() <= NOTHING:
        weight = np.nan if reg_weight is None else float(reg_weight)
        return DipoleInversion(np.zeros(mask.shape, np.float32), weight, NO_CURVE)
    grid = solver_grid(mask)
    spectrum = fft.rfftn(grid.embed(local_field * mask), workers=workers)
    kernel = dipole_kernel(grid.shape, voxel_size, b0_dir)
    gradient = gradient_power(grid.shape, voxel_size)
    power, multiplicity = _power(spectrum, grid.shape)
    curve = l_curve(power, kernel**2, gradient)
    if reg_weight is not None:
        weight = float(reg_weight)
    elif rule == 'risk':
        k = frequencies(grid.shape, voxel_size)
        radius = np.sqrt(k[0] ** 2 + k[1] ** 2 + k[2] ** 2)
        radius *= 2 * float(np.max(np.asarray(voxel_size, float)))
        weight = least_risk(power, kernel**2, gradient, radius, multiplicity)
    else:
        weight = curve.reg_weight
    gradient *= np.float32(weight**2)
    gradient += kernel**2
    gradient[0, 0, 0] = 1
    spectrum *= kernel / gradient
    spectrum[0, 0, 0] = 0
    chi = grid.extract(fft.irfftn(spectrum, s=grid.shape, workers=workers), mask.shape)
    chi[~mask] = 0
    return DipoleInversion(chi, weight, curve)


def _power(spectrum: npt.NDArray, shape: tuple[int, int, int]) -> tuple[F32, F32]:
    """``|F f|^2``, scaled to norms over voxels, and the number of frequencies per element."""
    power = spectrum.real**2 + spectrum.imag**2
    power /= np.float32(np.prod(shape))
    multiplicity = np.ones(power.shape, np.float32)
    # Frequencies that stand for their negatives too
    multiplicity[..., 1 : (shape[2] + 1) // 2] = 2
    multiplicity[0, 0, 0] = 0
    power *= multiplicity
    return power, multiplicity
