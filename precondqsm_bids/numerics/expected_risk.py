"""Lambda of least expected error: a parametric bootstrap of the inversion."""

import numpy as np
import numpy.typing as npt
from scipy import fft

from precondqsm_bids.numerics.closed_form import ClosedForm
from precondqsm_bids.numerics.dipole import frequencies
from precondqsm_bids.numerics.l_curve import peak

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Spectrum = npt.NDArray[np.complex64]

SHELLS = 16
"""Shells of equal ``|k|`` up to the edge of the spectrum."""
CONE_EDGES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.45)
"""Edges of the classes of equal ``|D|``: the first is the cone that the field tells nothing of."""
STEPS = 2.0 ** np.arange(-7, 3)
"""Lambdas that are tried first, in units of the voxel size (cube root of its volume)."""
GREATEST_GAIN = 20.0
"""Largest factor on a class of the map that is given its expected power."""
GREATEST_RATIO = 10.0
"""Largest factor by which the power of the sources may depend on the direction of ``k``."""
LEAST_NOISE = 0.3
"""Part of the power in the cone that is noise at least, whatever the sources leak into it."""


class Classes:
    """Classes of equal ``|k|`` and ``|D|`` on the half spectrum: shells times cones.

    Parameters
    ----------
    form : ClosedForm
        Kernel and grid of the region.
    """

    def __init__(self, form: ClosedForm):
        voxel_size = np.asarray(form.geometry.voxel_size, float)
        k = frequencies(form.grid.shape, voxel_size)
        radius = np.sqrt(k[0] ** 2 + k[1] ** 2 + k[2] ** 2)
        radius *= 2 * voxel_size.max()  # one on the largest sphere within the spectrum
        # No frequency of a regular grid lies on the edge of a shell: rounding would decide.
        shell = np.minimum(radius * SHELLS * 0.9987, 1.8 * SHELLS).astype(np.int32)
        power = form.kernel**2
        self.place = shell * (len(CONE_EDGES) + 1)
        for edge in np.square(CONE_EDGES):
            self.place += power >= edge
        self.shape = (int(shell.max()) + 1, len(CONE_EDGES) + 1)
        self.multiplicity = form.multiplicity
        self.count = self._sum(form.multiplicity)
        self.gain = np.maximum(self.mean(form.multiplicity * power), 1e-12)
        """Mean of ``D^2``."""

    def _sum(self, values: npt.NDArray) -> F64:
        total = np.bincount(self.place.ravel(), values.ravel(), int(np.prod(self.shape)))
        return total.reshape(self.shape).astype(np.float64)

    def mean(self, power: npt.NDArray) -> F64:
        """Mean over each class of a power that counts each frequency, (shells, cones)."""
        return self._sum(power) / np.maximum(self.count, 1)

    def each(self, table: npt.NDArray) -> F32:
        """The value of its class for each element of the half spectrum."""
        return np.broadcast_to(table, self.shape).astype(np.float32).ravel()[self.place]

    def separated(self, found: F64) -> tuple[F64, F64]:
        """Power of the sources per class and of the noise per shell, from that of a field.

        ``found = gain S + N``, solved in turns since the cone is not quite empty of sources; the
        class beside the cone speaks for it.
        """
        noise, sources = found[:, :1], np.zeros_like(found)
        for _ in range(4):
            sources[:, 1:] = np.maximum(found - noise, 0)[:, 1:] / self.gain[:, 1:]
            sources[:, 0] = sources[:, 1]
            noise = np.maximum(found - sources * self.gain, 0)[:, :1]
        return sources, noise


def least_risk(form: ClosedForm, spectrum: Spectrum) -> float:
    """Lambda of least expected error of the map within the region, by a simulation of it.

    Where ``|D| < 0.05`` the field holds next to nothing of the sources: what stands there is
    noise of whatever kind, a background that was not removed, wraps. With ``N`` that power, per
    shell of equal ``|k|``, and ``S`` the power of the susceptibility, from
    ``E |F f|^2 = D^2 S + N`` in the classes outside the cone:

    1. A map ``x`` of the spectrum ``S`` within the region ``M``: the Wiener estimate
       ``F^-1 [D S F f / (D^2 S + N)]``, twice scaled to ``S`` in each class of ``|k|`` and
       ``|D|``, the cone included, and masked.
    2. Its field within the region, ``M D x``. What that has in the cone, because the region cuts
       it, is not noise and is taken off ``N``, down to 0.3 of it. Where the field found has more
       or less power at some ``|D|`` than this one (tubes lie in one direction), ``S`` is made
       to depend on ``|D|`` by that ratio, and both steps are done again.
    3. With ``x_lambda`` the closed form of that field, ``lambda`` minimises
       ``var_M (x_lambda - x) + sum_r h_lambda(r)^2 R_M(r) / |M|``,
       the expected error in the region: what regularisation and the cut take away, and what
       noise of the spectrum ``N`` within the region leaves in it. ``h_lambda`` is the inverse
       transform of ``sqrt(N) D / (D^2 + lambda^2 |G|^2)``, ``R_M`` the autocorrelation of the
       region, and ``N`` is divided by the part of the grid that the region fills.

    In an infinite region that is ``sum (lambda^2 e / (d + lambda^2 e))^2 S + d / (d +
    lambda^2 e)^2 N`` with ``d = D^2`` and ``e = |G|^2``, the expected error of a linear estimate.
    That sum takes the cut at the region's edge for a loss that regularisation could mend and
    counts the error outside too, which made maps of heads, slabs and balls too smooth. Neither
    a level nor a spectrum of the noise is assumed, which is where the discrepancy principle and
    generalised cross-validation go wrong. Nothing is drawn: how the axes are stored does not
    matter.

    Lambda is tried at ten values, a factor of two apart from 1/128 to 4 voxel sizes, then half
    a step to either side of the best, with a parabola through the least three. 38 Fourier
    transforms: two per lambda and 14 before. Memory: 40 bytes per voxel of the solver's grid.

    Parameters
    ----------
    form : ClosedForm
        Region of interest, kernel and gradient.
    spectrum : (n0, n1, n2 // 2 + 1) ndarray of complex64
        Of the local field, ppm, on the solver's grid.

    Returns
    -------
    float
        Lambda, mm.

    References
    ----------
    Efron & Tibshirani, An Introduction to the Bootstrap, 1993 (a simulation by what was
    estimated); Mallows, Technometrics 1973;15:661 (expected error of a linear estimate, from the
    data).

    Examples
    --------
    Noise asks for a larger lambda:

    >>> from precondqsm_bids.numerics import Geometry, closed_form, forward_field
    >>> mask = np.ones((24, 24, 24), bool); rng = np.random.default_rng(0)
    >>> form = closed_form(Geometry(mask, (1, 1, 1), (0, 0, 1)))
    >>> field = forward_field(rng.normal(size=mask.shape), (1, 1, 1), (0, 0, 1))
    >>> noise = rng.normal(size=mask.shape)
    >>> print(*(round(least_risk(form, form.spectrum(field + s * noise)), 1) for s in (0, 1)))
    0.0 0.6
    """
    mask = form.geometry.mask
    truth, field, noise = _simulation(form, spectrum)
    overlap = _transformed_back(form, np.abs(form.spectrum(mask)) ** 2) / np.float32(mask.sum())

    def risk(reg_weight: float) -> float:
        missed = form.divided(field, reg_weight)
        missed -= truth
        error = form.inside(missed)
        filtered = _transformed_back(form, form.divided(noise, reg_weight))
        filtered *= filtered
        variance = np.vdot(filtered, overlap)
        return float(np.var(error, dtype=np.float64) + variance)

    tried = {weight: risk(weight) for weight in STEPS * form.geometry.voxel_length}
    best = min(tried, key=tried.__getitem__)
    for weight in (best / np.sqrt(2), best * np.sqrt(2)):
        tried[weight] = risk(weight)
    near = [weight for weight in sorted(tried) if 0.4 < weight / best < 2.5]
    tiny = np.finfo(np.float64).tiny
    return peak(np.array(near), -np.log([max(tried[weight], tiny) for weight in near]))


def field_powers(form: ClosedForm, spectrum: Spectrum) -> tuple[F32, F32]:
    """Power of the sources and of the noise that a local field has, for each frequency.

    ``E |F f|^2 = D^2 S + N`` as in :func:`least_risk`: ``N`` by ``|k|`` from the cone where
    ``|D| < 0.05``, less what a map of the spectrum ``S`` brings there because the region cuts its
    field, and ``S`` by ``|k|`` from the other classes, each by its weight ``D^2``.

    Parameters
    ----------
    form : ClosedForm
        Region of interest, kernel and gradient.
    spectrum : (n0, n1, n2 // 2 + 1) ndarray of complex64
        Of the local field, ppm, on the solver's grid.

    Returns
    -------
    sources, noise : (n0, n1, n2 // 2 + 1) ndarray of float32
        ppm^2; the sum over the grid is that of squares over voxels.
    """
    classes, found, noise, expected, wiener = _first_powers(form, spectrum)
    truth = _of_power(form, classes, wiener, np.broadcast_to(expected, found.shape))
    power = classes.mean(form.power(form.spectrum(form.volume(truth * form.kernel))))
    left = np.maximum(noise - power[:, :1], LEAST_NOISE * noise)
    sources = np.maximum(found - left, 0) / classes.gain
    return classes.each(_by_shell(classes, sources)), classes.each(left)


def _transformed_back(form: ClosedForm, spectrum: npt.NDArray) -> F32:
    """``F^-1`` on the whole of the solver's grid."""
    return fft.irfftn(spectrum, s=form.grid.shape, workers=form.geometry.workers)


def _simulation(form: ClosedForm, spectrum: Spectrum) -> tuple[Spectrum, Spectrum, F32]:
    """Spectra of a map like the one sought and of its field, and ``sqrt(N)`` of the noise."""
    mask = form.geometry.mask
    classes, found, noise, expected, wiener = _first_powers(form, spectrum)
    direction = np.ones(classes.shape[1])
    for _ in range(2):
        truth = _of_power(form, classes, wiener, expected * direction)
        field = form.spectrum(form.volume(truth * form.kernel))
        power = classes.mean(form.power(field))
        left = np.maximum(noise - power[:, :1], LEAST_NOISE * noise)
        direction *= _by_direction(classes, found - left, power, expected[:, 0])
    left *= np.prod(form.grid.shape) / mask.sum()
    return truth, field, classes.each(np.sqrt(left))


def _first_powers(form: ClosedForm, spectrum: Spectrum) -> tuple[Classes, F64, F64, F64, Spectrum]:
    """Classes of frequencies, the power and noise of a field in each, the power of its sources in
    each shell, (shells, 1), and their Wiener estimate."""
    classes = Classes(form)
    found = classes.mean(form.power(spectrum))
    sources, noise = classes.separated(found)
    wiener = spectrum * _wiener(form.kernel, classes.each(sources), classes.each(noise))
    return classes, found, noise, _by_shell(classes, sources), wiener


def _by_shell(classes: Classes, sources: F64) -> F64:
    """Mean of the sources' power over the classes of a shell but the cone, by ``D^2``."""
    weight = classes.count * classes.gain
    weight[:, 0] = 0
    total = np.maximum(weight.sum(1, keepdims=True), 1e-30)
    return (sources * weight).sum(1, keepdims=True) / total


def _of_power(form: ClosedForm, classes: Classes, start: Spectrum, expected: F64) -> Spectrum:
    """Spectrum of a map of the region with the expected power in each class, nearly."""
    mask = form.geometry.mask
    truth = start
    for _ in range(2):
        power = np.maximum(classes.mean(form.power(truth)), np.finfo(np.float32).tiny)
        gain = np.minimum(np.sqrt(expected / power), GREATEST_GAIN)
        volume = form.volume(truth * classes.each(gain))
        truth = form.spectrum(volume - volume[mask].mean())
    return truth


def _by_direction(classes: Classes, found: F64, simulated: F64, expected: F64) -> F64:
    """Power found over that simulated per class of ``|D|``, each shell counting by its number."""
    known = expected > 1e-3 * expected.max(initial=0)
    count = classes.count[known] / np.maximum(expected[known, None], np.finfo(np.float64).tiny)
    total = np.sum(np.maximum(found[known], 0) * count, axis=0)
    ratio = total / np.maximum(np.sum(simulated[known] * count, axis=0), 1e-30)
    ratio[0] = ratio[1]
    return np.clip(ratio, 1 / GREATEST_RATIO, GREATEST_RATIO)


def _wiener(kernel: F32, sources: F32, noise: F32) -> F32:
    """``D S / (D^2 S + N)``, zero where there is neither."""
    divisor = kernel**2 * sources + noise
    divisor[divisor == 0] = np.inf
    return kernel * sources / divisor
