"""Prior fit: the field chooses the coefficients of the prior."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from precondqsm_bids.numerics.arguments import checked
from precondqsm_bids.numerics.arrays import check_shapes, from_box
from precondqsm_bids.numerics.closed_form import closed_form
from precondqsm_bids.numerics.dipole import Geometry
from precondqsm_bids.numerics.dipole_inversion import NOTHING, without_outliers
from precondqsm_bids.numerics.expected_risk import least_risk
from precondqsm_bids.numerics.prior.basis import Basis
from precondqsm_bids.numerics.prior.columns import Columns
from precondqsm_bids.numerics.prior.shift import TissueShift, shifted
from precondqsm_bids.numerics.solver import MARGIN, DipoleSystem, Further, noise_weights

F32 = npt.NDArray[np.float32]

OUTER_SIZE = 4.0
"""Expected size of what the first PDF leaves of the sources outside, ppm: against air it was 9."""
SIZE = 0.75
"""Expected size of a constant, relative to the size of the local field."""
MODEL_ERROR = 0.35
"""Part of the field that no prior can describe, relative to the expected size."""
FREE_LEAST = 4.0
"""Standard deviations beyond which the voxels of a source become unknowns: free voxels."""
FREE_GAIN = 3.0
"""Expected size of such a source, relative to what the inversion shows of it."""
PDF_ITERATIONS = 30
"""Iterations of the PDF that the fit starts from."""
FREE_ROUNDS = 1
"""Rounds of the fit with free voxels, the last ones."""


class PriorFit(NamedTuple):
    """Result of :func:`fit_prior`."""

    prior_chi: F32
    """Fitted prior, ppm, (X, Y, Z), zero outside the mask; of constants alone, its median is 0."""
    coefficients: tuple[npt.NDArray[np.float64], ...]
    """One array per basis."""
    free_chi: F32
    """Part of the prior that is in free voxels, which no basis describes, ppm, (X, Y, Z)."""
    surface_chi: F32
    """Correction of the shape's susceptibility at its surface, ppm, (X, Y, Z)."""
    inner_size: float
    """Expected size of the fitted susceptibility, ppm: that of the local field."""
    explained: float
    """Fraction of the local field's energy that the fitted prior explains, at most 1."""
    fractions: tuple[float, ...]
    """Parts of ``explained`` due to each basis, and last to the free voxels, if they were asked
    for; their sum is the whole."""
    part_sd: tuple[float, ...]
    """Standard deviation in space of the part that each basis has, ppm."""
    down_weighted: float
    """Fraction of the voxels that the robust weights hold at less than half."""
    model_error: float
    """Model error in the weights, ppm."""
    tissue_shift: F32 | None
    """Part of the field that is a constant of the cells and no dipole's, ppm, (X, Y, Z); None if
    it was not asked for, or there are no cells of the whole region."""
    outer_chi: F32
    """Sources outside, which make the field of the background, ppm, on the grid of
    :class:`~precondqsm_bids.numerics.solver.DipoleSystem`; zero inside."""


class Start(NamedTuple):
    """Where a fit starts: result of :func:`outer_start`."""

    system: DipoleSystem
    """The solver of the region."""
    sources: F32
    """Sources outside, ppm, on the solver's grid."""
    residual: F32
    """The field without theirs, ppm, on the mask's box."""
    inner_size: float
    """Expected size of the susceptibility inside, ppm."""
    outer_size: float = OUTER_SIZE
    """Expected size of what the fit adds to the sources outside, ppm."""


class FitOptions(NamedTuple):
    """How :func:`fit_prior` fits."""

    iterations: int = 66
    """Conjugate-gradient iterations, of all rounds together."""
    rounds: int = 3
    """Rounds of reweighting."""
    free_voxels: bool = False
    """Whether voxels where the fit leaves a source become unknowns. Only for a prior that
    describes most of what is inside: what a prior of few coefficients leaves is its error."""
    tissue_shift: bool = False
    """Whether cells of the whole region may have a frequency of their own, too, which is no field
    of a dipole (:class:`~precondqsm_bids.numerics.prior.shift.TissueShift`)."""
    inner_size: float | None = None
    """Expected size of the susceptibility inside, ppm, with which the fit starts from nothing;
    None takes that of the start."""
    model_error: float = MODEL_ERROR
    """What the prior cannot describe of the field, relative to the expected size."""


def free_sizes(residual_chi: npt.NDArray, mask: npt.NDArray[np.bool_]) -> F32:
    """Expected size of the sources that a prior lacks, from what the inversion shows of them.

    ``3 sqrt(chi^2 - (4 sd)^2)`` with ``chi`` the susceptibility of the residual field, relative to
    its median, and ``sd`` its robust standard deviation; zero below four of them. Regularised
    inversion shows about half of a small source, but shows where it is.

    Parameters
    ----------
    residual_chi : (X, Y, Z) ndarray
        Susceptibility from the field that a fitted prior leaves, ppm.
    mask : (X, Y, Z) ndarray of bool
        Region of interest.

    Examples
    --------
    >>> chi = np.random.default_rng(0).normal(0, 0.01, (20, 20, 20)); chi[5, 5, 5] = 0.1
    >>> sizes = free_sizes(chi, np.ones(chi.shape, bool))
    >>> print(np.count_nonzero(sizes), sizes[5, 5, 5].round(1))
    1 0.3
    """
    values = residual_chi[mask] - np.median(residual_chi[mask])
    least = FREE_LEAST * 1.4826 * np.median(np.abs(values))
    sizes = np.zeros(mask.shape, np.float32)
    sizes[mask] = FREE_GAIN * np.sqrt(np.maximum(values**2 - least**2, 0))
    return sizes


@checked
def fit_prior(
    field: npt.NDArray,
    bases: Sequence[Basis],
    geometry: Geometry,
    field_sd: npt.NDArray | None = None,
    shape_sd: npt.NDArray | None = None,
    options: FitOptions = FitOptions(),  # noqa: B008 (never changed)
    start: Start | None = None,
) -> PriorFit:
    """Fit the coefficients of a prior to the field, together with the sources outside.

    Solves ``min_(x, c) || W (f - D (x + sum_j c_j b_j)) ||^2`` by conjugate gradients on the
    normal equations, ``x`` outside the mask and ``c`` inside, from where a PDF of 30 iterations
    ends (:func:`outer_start`). Every unknown is expressed in units of its expected size and starts
    at its expectation, so that an early stop leaves it there where the field does not tell. The
    iterations are split into ``rounds``; before each but the first, voxels whose residual exceeds
    four robust standard deviations lose weight (Huber), which keeps wrapped voxels out of the fit.

    With ``free_voxels``, what the fit leaves is inverted before the last round in closed form
    (lambda by :func:`~precondqsm_bids.numerics.least_risk`), and where that shows a source
    (:func:`free_sizes`) each voxel becomes an unknown: lesions that no contrast shows,
    parts of a nucleus that its cells do not follow.

    Memory: 52 bytes per voxel of the mask's box with its margin, and 8 per voxel of the mask and
    parcel that it belongs to (a contrast cell of two contrasts: up to four at each scale; 16 if
    that is one), twice that in a basis with a lattice (all four scales of contrast cells: 160
    bytes per voxel of the mask on heads, where blocks took 80); transforms: two pairs an
    iteration, however many parcels there are, and a PDF of 30 iterations before (two if something
    is expected inside), unless ``inner_size`` or ``start`` is given. Free voxels take one
    inversion, whose memory comes on top.

    Parameters
    ----------
    field : (X, Y, Z) ndarray
        Measured field, ppm; the shape's field may be off it already.
    bases : sequence of Basis
        The prior.
    geometry : Geometry
        Region of interest, voxel size (mm), direction of B0, threads.
    field_sd : (X, Y, Z) ndarray, optional
        Standard deviation of the field, ppm. The weights are
        ``1 / sqrt(field_sd^2 + (model_error inner_size)^2)``: with noise alone, a
        strong source, whose signal decays fast, would have no say in its own coefficient.
    shape_sd : (X, Y, Z) ndarray, optional
        Expected error of the shape's susceptibility, ppm: where it is not zero, the fit has a
        source of that size too (``surface_chi``), so that an error of the object's surface does
        not become susceptibility inside. Only for a prior that can describe what is inside.
    options : FitOptions
        How it is fitted.
    start : Start, optional
        Result of :func:`outer_start` for this field and geometry, for several fits of one field;
        its ``inner_size`` counts.

    Returns
    -------
    PriorFit

    Raises
    ------
    ValueError
        No basis, an empty mask, or shapes that differ.

    Examples
    --------
    A diamagnetic block that R2' took for a paramagnetic one:

    >>> from precondqsm_bids.numerics import forward_field, whole_map
    >>> mask = np.ones((24, 24, 24), bool); chi = np.zeros(mask.shape)
    >>> chi[8:16, 8:16, 8:16] = 0.5
    >>> field = forward_field(-chi, (1, 1, 1), (0, 0, 1))
    >>> fit = fit_prior(field, [whole_map(chi, mask)], Geometry(mask, (1, 1, 1), (0, 0, 1)))
    >>> print(round(float(fit.coefficients[0][0]), 1))
    -1.0

    References
    ----------
    The extended projection: Liu T et al., NMR Biomed 2011;24:1129, with unknowns inside.
    """
    if not bases:
        raise ValueError('a prior to fit takes at least one basis')
    mask = geometry.mask
    if not mask.any():
        raise ValueError('the mask is empty: there is no field to fit a prior to')
    for basis in bases:
        check_shapes('field', field.shape, labels=basis.labels, weight=basis.weight)
    if start is None:
        start = outer_start(field, field_sd, geometry, options.inner_size)
    inner_size, rounds = start.inner_size, options.rounds
    model_error = options.model_error * inner_size
    sd = np.zeros(mask.shape, np.float32) if field_sd is None else field_sd
    weights = noise_weights(sd, mask, model_error)
    state = _Fit(start, bases, geometry, weights, shape_sd)
    del start  # its arrays are needed no more
    if options.tissue_shift and (own := shifted(bases)):
        state.shift = TissueShift(own, mask, state.system, inner_size)
    for i in range(rounds):
        if i:
            state.reweigh()
            if state.shift:
                state.shift.resize(state.residual)
        if options.free_voxels and i == max(rounds - FREE_ROUNDS, 1):
            state.free_voxels()
        share, rest = divmod(options.iterations, rounds)
        state.descend(share + (rest if i == 0 else 0))
    return state.result(options.free_voxels, model_error)


def outer_start(
    field: npt.NDArray,
    field_sd: npt.NDArray | None,
    geometry: Geometry,
    inner_size: float | None = None,
    margin: int = MARGIN,
) -> Start:
    """The sources outside that a PDF of 30 iterations finds, where the fit starts.

    Its local field has the expected size of what is inside. With that given, the fit starts from
    no sources. ``margin`` is that of the solver's grid, voxels.
    """
    mask = geometry.mask
    system = DipoleSystem(*geometry, margin=margin)
    grid = system.grid
    sources, residual = np.zeros(grid.shape, np.float32), grid.in_box(field * mask)
    if inner_size is not None:
        return Start(system, sources, residual, inner_size)
    weights = mask.astype(np.float32) if field_sd is None else noise_weights(field_sd, mask)
    outside = grid.outside(mask)
    system.descend(sources, residual, grid.in_box(weights) ** 2, outside, PDF_ITERATIONS)
    inside = mask[grid.box]
    inner_size = _robust_rms(residual[inside], weights[grid.box][inside])
    return Start(system, sources, residual, inner_size)


class _Fit:
    """The unknowns, and on the mask's box what they leave of the field, and the weights."""

    def __init__(
        self,
        start: Start,
        bases: Sequence[Basis],
        geometry: Geometry,
        weights: F32,
        shape_sd: npt.NDArray | None,
    ):
        mask, inner_size = geometry.mask, start.inner_size
        self.geometry, self.bases, self.inner_size = geometry, bases, inner_size
        self.system = start.system
        self.grid = grid = self.system.grid
        self.inside = mask[grid.box]
        self.size = np.concatenate([_expected_size(basis, inner_size) for basis in bases])
        expected = np.concatenate([np.full(basis.parcels, basis.expected) for basis in bases])
        self.unknowns = Columns(bases, mask, self.system, self.size, expected)
        self.expected_squared = np.full(grid.shape, start.outer_size**2, np.float32)
        self.expected_squared[grid.inner][self.inside] = 0
        if shape_sd is not None:
            self.expected_squared[grid.inner] += grid.in_box(shape_sd * mask) ** 2
        self.w_squared = grid.in_box(weights) ** 2
        self.sources, self.residual = start.sources.copy(), start.residual.copy()
        self._expect(self.prior())
        self.robust = np.ones(np.count_nonzero(mask), np.float32)
        self.w_robust = self.w_squared.copy()
        self.free_squared = np.zeros_like(self.w_squared)
        self.shift: TissueShift | None = None

    def _expect(self, prior: F32) -> None:
        """Start from what is expected inside, ppm, and the sources outside that go with it.

        Those of the field as it is have a part of the prior's field, which they would give back
        only slowly.
        """
        if not prior.any():
            return
        projected = self.sources.any()
        self.residual += self.system.convolve(self.sources - prior)[self.grid.inner]
        self.sources[...] = 0
        if projected:
            outside = self.grid.outside(self.geometry.mask)
            self.system.descend(
                self.sources, self.residual, self.w_squared, outside, PDF_ITERATIONS
            )
        self.sources += prior

    def prior(self) -> F32:
        """``sum_j c_j b_j``, ppm, on the solver's grid."""
        chi = np.zeros(self.grid.shape, np.float32)
        box = chi[self.grid.inner]
        box[:] = self.unknowns.chi(self.unknowns.values).reshape(box.shape)
        return chi

    def reweigh(self) -> None:
        """Take weight from the voxels that the fit leaves far off."""
        w_squared = self.w_squared[self.inside]
        self.robust = _huber(self.residual[self.inside], w_squared)
        self.w_robust[self.inside] = w_squared * self.robust

    def free_voxels(self) -> None:
        """Make unknowns of the voxels in which the inversion of the residual shows a source."""
        mask = self.geometry.mask
        residual = without_outliers(from_box(self.residual, self.grid.box, mask.shape), mask)
        if np.abs(residual).max() <= NOTHING:
            return
        form = closed_form(self.geometry)
        spectrum = form.spectrum(residual)
        shown = form.volume(form.divided(spectrum, least_risk(form, spectrum)))
        self.free_squared = self.grid.in_box(free_sizes(shown, mask)) ** 2
        self.expected_squared[self.grid.inner] += self.free_squared

    def descend(self, iterations: int) -> None:
        """Conjugate-gradient iterations with the weights that there are."""
        self.system.descend(
            self.sources, self.residual, self.w_robust, self.expected_squared, iterations,
            Further(self.unknowns, self.shift),
        )  # fmt: skip

    def result(self, free_voxels: bool, model_error: float) -> PriorFit:
        """The fit, and what of the local field it explains."""
        mask, grid, box = self.geometry.mask, self.grid, self.grid.inner
        prior, inside = self.prior(), self.inside
        free, surface = self._free_and_surface(prior)
        prior[box] += free
        constant = np.float32(0)
        if all(basis.expected == 0 for basis in self.bases):
            # A constant over the region is the field of its surroundings: the fit cannot tell it.
            constant = np.median(prior[box][inside])
            prior[box][inside] -= constant
        last = np.cumsum([basis.parcels for basis in self.bases])
        number = np.searchsorted(last, np.arange(self.size.size), side='right')
        values = self.unknowns.values
        field_of_prior = self.system.convolve(prior)[box]
        alone = [np.where(number == i, values, 0) for i in range(last.size)]
        parts = _centred([self.unknowns.chi(v)[inside.reshape(-1)] for v in alone], constant)
        if free_voxels:
            parts.append(free[inside])
        explained, fractions = self._explained(parts, field_of_prior)
        shift = None
        if self.shift:
            shift = np.zeros(mask.shape, np.float32)
            frequency = self.shift.field(self.shift.values)
            shift[mask] = frequency - np.median(frequency)  # the field does not tell a constant

        return PriorFit(
            grid.extract(prior, mask.shape),
            tuple(np.split(self.size * values, last[:-1])),
            from_box(free, grid.box, mask.shape),
            from_box(surface, grid.box, mask.shape),
            self.inner_size,
            explained,
            fractions,
            tuple(float(np.std(part)) for part in parts[: len(self.bases)]),
            float(np.mean(self.robust < 0.5)),
            model_error,
            shift,
            self._outer_chi(),
        )

    def _outer_chi(self) -> F32:
        """Sources outside, ppm, on the solver's grid."""
        sources = self.sources.copy()
        sources[self.grid.inner][self.inside] = 0
        return sources

    def _free_and_surface(self, prior: F32) -> tuple[F32, F32]:
        """Sources inside beyond the bases: of free voxels, and of the object's surface, ppm."""
        box = self.grid.inner
        expected_squared, free_squared = self.expected_squared[box], self.free_squared
        surface = np.zeros_like(free_squared)
        where = self.inside & (expected_squared > 0)
        np.subtract(self.sources[box], prior[box], out=surface, where=where)
        # Where a voxel of the surface is free too, each has its part by its variance.
        free = np.zeros_like(surface)
        np.divide(surface * free_squared, expected_squared, out=free, where=free_squared > 0)
        surface -= free
        return free, surface

    def _explained(self, parts: list[F32], field_of_prior: F32) -> tuple[float, tuple[float, ...]]:
        """Fraction of the local field's energy that the prior explains, and that of each part.

        With ``g`` the local field, ``r`` what is left of it and ``p_j`` the field of each part of
        the prior, the energy explained is ``<g, W^2 g> - <r, W^2 r> = sum_j <p_j, W^2 (g + r)>``:
        each part's gain, averaged over the orders in which the parts can be added. It is negative
        for a part that the field speaks against.

        References
        ----------
        Shapley LS, Contributions to the Theory of Games II, 1953;307 (the value of a player).
        """
        box, residual, w_squared = self.grid.inner, self.residual, self.w_robust
        total = float(np.sum((w_squared * (residual + field_of_prior) ** 2), dtype=float))
        left = float(np.sum(w_squared * residual**2, dtype=float))
        both = w_squared * (field_of_prior + 2 * residual)
        source = np.zeros(self.grid.shape, np.float32)

        def gain(part: F32) -> float:
            field = field_of_prior
            if len(parts) > 1:
                source[box][self.inside] = part
                field = self.system.convolve(source)[box]
            return float(np.sum(field * both, dtype=float))

        explained = 1 - left / total if total > 0 else 0.0
        return explained, tuple(gain(part) / total if total > 0 else 0.0 for part in parts)


def _centred(parts: list[F32], constant: np.float32) -> list[F32]:
    """The parts of a sum that ``constant`` was taken off: each its median, and the rest evenly."""
    if not constant:
        return parts
    medians = [np.median(part) for part in parts]
    rest = (constant - sum(medians)) / len(parts)
    return [part - (median + rest) for part, median in zip(parts, medians, strict=True)]


def _robust_rms(values: npt.NDArray, weights: npt.NDArray | None) -> float:
    """Root mean square, unreliable voxels counted by their weight, clipped at its 99.9th."""
    values = np.minimum(np.abs(values), np.percentile(np.abs(values), 99.9))
    return max(float(np.sqrt(np.average(values.astype(float) ** 2, weights=weights))), 1e-6)


def _huber(residual: npt.NDArray, w_squared: npt.NDArray) -> F32:
    """Weights that turn squares into absolute values beyond four robust standard deviations."""
    scaled = np.abs(residual) * np.sqrt(w_squared)
    limit = 4 * 1.4826 * float(np.median(scaled)) + np.finfo(np.float32).tiny
    return np.minimum(limit / np.maximum(scaled, limit * 1e-6), 1).astype(np.float32)


def _expected_size(basis: Basis, inner_size: float) -> npt.NDArray[np.float64]:
    """Expected size of the coefficients: ppm of a constant, else relative to the map."""
    if basis.expected == 0:
        gain = np.ones(basis.parcels) if basis.gain is None else basis.gain
        return SIZE * inner_size * gain
    values = basis.weight[basis.weight != 0].astype(float)
    rms = float(np.sqrt(np.mean(values**2))) if values.size else 0.0  # of a map that is zero
    return np.full(basis.parcels, max(inner_size / max(rms, 1e-6), 0.5))
