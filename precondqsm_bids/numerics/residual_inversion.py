"""Residual inversion: susceptibility of what a fitted prior leaves, by what is known of both."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import fft

from precondqsm_bids.numerics.arguments import checked
from precondqsm_bids.numerics.arrays import check_shapes
from precondqsm_bids.numerics.closed_form import ClosedForm
from precondqsm_bids.numerics.expected_risk import field_powers

F32 = npt.NDArray[np.float32]
Spectrum = npt.NDArray[np.complex64]

ITERATIONS = 10
"""Conjugate-gradient iterations from zero: heads of 2 and 3 mm are within 2 % of where they end
with 8 to 16, and more of them follow the noise at a pole."""
MOST_SD = 4.0
"""Standard deviation of the field, over its median, up to which it counts for the mean one."""
LEAST_SD = 0.5
"""The same that a voxel has at least: none outweighs all others."""
LEAST_WEIGHT = 0.1
"""``W^2`` of a voxel at least: single ones whose field is not known are held to their neighbours
before, and at walls of strong sources the rest has something to tell (tubes: 4.3 %, 4.7 without).
"""
LEAST_STEP = 0.3
"""Step of the prior to its neighbours, over the root mean square in the region, that is as good as
none."""


class Residual(NamedTuple):
    """What is known of a residual field, (X, Y, Z) each."""

    field_sd: npt.NDArray
    """Standard deviation of the measured field, ppm."""
    prior_chi: npt.NDArray
    """Prior whose field was subtracted, ppm."""


@checked
def residual_inversion(
    form: ClosedForm,
    local_field: npt.NDArray,
    residual: Residual,
    reg_weight: float,
    trust: float = 1.0,
    iterations: int = ITERATIONS,
) -> F32:
    """Susceptibility of a residual field, by its noise and by where the prior has its steps.

    The closed form weighs all voxels alike and takes the field beyond the region for zero. Here

        ``chi = S y,  min_y || W (D S y - f) ||^2 + lambda^2 || G y ||^2``

    with ``W`` zero outside the region, where no field was measured, and within

        ``W^2 = (<sd^2> + m^2) / (sd^2 + m^2)``

    ``sd`` being the field's standard deviation (half of the median at least), ``<sd^2>`` its mean
    square (of no more than four medians), and ``m^2`` the noise of the field by
    :func:`~precondqsm_bids.numerics.expected_risk.field_powers` beyond ``<sd^2>``: what is no
    field of a dipole has noise that no standard deviation of the echoes knows. A mean voxel has
    weight one, so that lambda is that of the closed form, and none has less than a tenth: the
    field has been through :func:`~precondqsm_bids.numerics.dipole_inversion.without_outliers`.

    What a prior of cells lacks it lacks where its voxels differ: partly filled ones, ringing,
    noise of the contrast, contrast that another tissue has too. Its expected size is

        ``S = (t^2 + (0.3 t_rms)^2)^(1/4)``

    with ``t`` the mean step of the prior to the six neighbours within the region, per mm, and
    ``t_rms`` its root mean square; of root mean square one in the region, and one outside. A
    prior that is flat has ``S = 1``.

    What a prior that is doubted leaves is the map itself, in which weak signal has structure too:
    the weights are ``W^trust`` within the region and ``W^2 = 1 - trust`` outside, and the sizes
    ``S^trust``. So a prior that is dropped leaves the closed form.

    Conjugate gradients from zero in k-space, where ``lambda^2 |G|^2 + <S^2 W^2> D^2``
    preconditions them: six transforms an iteration, and ten besides. Memory: 36 bytes per voxel
    of the grid.

    Parameters
    ----------
    form : ClosedForm
        Region, kernel and gradient.
    local_field : (X, Y, Z) ndarray
        Residual field of the sources inside the region, ppm.
    residual : Residual
        Standard deviation of the field, and the prior.
    reg_weight : float
        Lambda, mm.
    trust : float
        How far the prior counts, 0 to 1.
    iterations : int
        Conjugate-gradient iterations.

    Returns
    -------
    (X, Y, Z) ndarray of float32
        ppm, zero outside the region.

    Raises
    ------
    ValueError
        Shapes differ.

    References
    ----------
    Liu T et al., Magn Reson Med 2013;69:467 (weights by the noise). Liu J et al., NeuroImage
    2012;59:2560 (penalties that know where edges are). Here the prior has these, and the map is
    not made smooth between them but expected to be small.

    Examples
    --------
    A source in noise that is thirty times larger in one half:

    >>> from precondqsm_bids.numerics import Geometry, closed_form, forward_field
    >>> geometry = Geometry(np.ones((24, 24, 24), bool), (1, 1, 1), (0, 0, 1))
    >>> chi = np.zeros(geometry.mask.shape, np.float32); chi[9:15, 9:15, 3:9] = 0.1
    >>> sd = np.full(chi.shape, 1e-3); sd[..., 12:] = 0.03
    >>> field = forward_field(chi, (1, 1, 1), (0, 0, 1))
    >>> field += sd * np.random.default_rng(0).normal(size=chi.shape)
    >>> form, known = closed_form(geometry), Residual(sd, np.zeros(chi.shape))
    >>> plain = form.volume(form.divided(form.spectrum(field), 0.3))
    >>> found = residual_inversion(form, field, known, 0.3)
    >>> print(np.std(found - chi) < 0.7 * np.std(plain - chi))
    True
    """
    mask, grid = form.geometry.mask, form.grid
    check_shapes('mask', mask.shape, local_field=local_field)
    inside = grid.embed(mask) > 0

    def on_grid(values: F32, outside: float) -> F32:
        volume = np.full(grid.shape, outside, np.float32)
        volume[inside] = values
        return volume

    # Beyond the region the field is not known or, as the closed form has it, zero.
    weights = _weights(form, local_field, residual.field_sd) ** np.float32(trust)
    sizes = _sizes(form, residual.prior_chi, trust)
    system = _System(form, on_grid(weights, 1 - trust), on_grid(sizes, 1), reg_weight)
    y = system.solved(on_grid(weights * local_field[mask], 0), iterations)
    chi = np.zeros(mask.shape, np.float32)
    chi[mask] = sizes * form.inside(y)
    return chi


class _System:
    """``(S D W^2 D S + lambda^2 G' G) y = S D W^2 f``, of the spectrum of ``y``."""

    def __init__(self, form: ClosedForm, w_squared: F32, size: F32, reg_weight: float):
        self.form, self.w_squared, self.size = form, w_squared, size
        self.penalty = form.gradient * np.float32(reg_weight**2)
        mean = np.mean(size**2 * w_squared, dtype=np.float64)
        divisor = form.kernel**2 * np.float32(mean)
        divisor += self.penalty + np.float32(1e-5)
        self.preconditioner = (form.multiplicity > 0) / divisor  # y has no mean

    def solved(self, weighted: F32, iterations: int) -> Spectrum:
        """Conjugate gradients from zero, of the field times ``W^2``."""
        left = self.gradient(weighted)
        y, direction, step = np.zeros_like(left), np.zeros_like(left), np.empty_like(left)
        energy = first = 0.0
        for _ in range(iterations):
            np.multiply(self.preconditioner, left, out=step)
            previous, energy = energy, self.inner(left, step)
            first = first or energy
            if energy <= 1e-10 * first:
                break
            direction *= np.float32(energy / previous if previous else 0)
            direction += step
            image = self.normal(direction)
            alpha = np.float32(energy / self.inner(direction, image))
            image *= alpha
            left -= image
            np.multiply(alpha, direction, out=step)
            y += step
        return y

    def normal(self, y: Spectrum) -> Spectrum:
        """What the system makes of ``y``."""
        values = self.back(y.copy())
        values *= self.size
        values = self.dipole(values)
        values *= self.w_squared
        found = self.gradient(values)
        found += self.penalty * y
        return found

    def gradient(self, weighted: F32) -> Spectrum:
        """``S D`` of a weighted field."""
        values = self.dipole(weighted)
        values *= self.size
        return self.transformed(values)

    def dipole(self, values: F32) -> F32:
        """``D`` of a volume."""
        spectrum = self.transformed(values)
        spectrum *= self.form.kernel
        return self.back(spectrum)

    def transformed(self, values: F32) -> Spectrum:
        """The half spectrum of a volume of the grid."""
        return fft.rfftn(values, workers=self.form.geometry.workers)

    def back(self, spectrum: Spectrum) -> F32:
        """The volume of a spectrum, which it may take for its work."""
        grid, workers = self.form.grid, self.form.geometry.workers
        return fft.irfftn(spectrum, s=grid.shape, workers=workers, overwrite_x=True)

    def inner(self, one: Spectrum, other: Spectrum) -> float:
        """Inner product over the whole spectrum, of which two planes are in the half once."""
        total = 2 * np.vdot(one, other).real
        for plane in (0, -1)[: 2 - self.form.grid.shape[2] % 2]:
            total -= np.vdot(one[..., plane], other[..., plane]).real
        return float(total)


def _weights(form: ClosedForm, local_field: npt.NDArray, field_sd: npt.NDArray) -> F32:
    """``W^2`` within the region, (V,)."""
    mask = form.geometry.mask
    sd = np.asarray(field_sd)[mask].astype(np.float64)
    middle = float(np.median(sd))
    mean = float(np.mean(np.minimum(sd, MOST_SD * middle) ** 2))
    _, noise = field_powers(form, form.spectrum(local_field))
    found = float(np.sum(form.multiplicity * noise, dtype=np.float64)) / sd.size
    beyond = max(found - mean, 0.0)
    variance = np.maximum(sd, LEAST_SD * middle) ** 2 + beyond
    if not variance.all():
        return np.ones(sd.size, np.float32)
    return np.maximum((mean + beyond) / variance, LEAST_WEIGHT).astype(np.float32)


def _sizes(form: ClosedForm, prior_chi: npt.NDArray, trust: float) -> F32:
    """``S^trust`` within the region, of root mean square 1, (V,)."""
    mask, voxel_size = form.geometry.mask, np.asarray(form.geometry.voxel_size, float)
    total, count = np.zeros(mask.shape, np.float32), np.zeros(mask.shape, np.float32)
    for axis, length in enumerate(voxel_size):
        first, second = [slice(None)] * 3, [slice(None)] * 3
        first[axis], second[axis] = slice(None, -1), slice(1, None)
        one, other = tuple(first), tuple(second)
        both = mask[one] & mask[other]
        step = np.abs(np.diff(prior_chi, axis=axis)) / np.float32(length)
        step[~both] = 0
        for place in (one, other):
            total[place] += step
            count[place] += both
    squares = np.square(total[mask] / np.maximum(count[mask], 1)).astype(np.float32)
    mean = float(np.mean(squares, dtype=np.float64))
    if mean == 0:
        return np.ones_like(squares)
    size = (squares / np.float32(mean) + np.float32(LEAST_STEP**2)) ** np.float32(trust / 4)
    return size / np.float32(np.sqrt(np.mean(np.square(size), dtype=np.float64)))
