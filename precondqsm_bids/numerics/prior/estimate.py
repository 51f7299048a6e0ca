"""Estimate: the first estimate of the susceptibility, the sum of the terms of the method."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from precondqsm_bids.numerics.arguments import checked
from precondqsm_bids.numerics.arrays import check_map, from_box, in_box, side_by_side
from precondqsm_bids.numerics.dipole import Geometry, bounding_box, forward_field
from precondqsm_bids.numerics.prior.basis import Basis, whole_map
from precondqsm_bids.numerics.prior.bias_field import bias_field
from precondqsm_bids.numerics.prior.contrast import contrast_cells
from precondqsm_bids.numerics.prior.errors import coefficient_errors
from precondqsm_bids.numerics.prior.fit import (
    FitOptions,
    PriorFit,
    Start,
    fit_prior,
    outer_start,
)
from precondqsm_bids.numerics.prior.maps import map_by_tissue, map_scale, susceptibility_map
from precondqsm_bids.numerics.prior.r2prime import relaxivity
from precondqsm_bids.numerics.prior.shift import spread_of_shift
from precondqsm_bids.numerics.prior.smoothing import without_noise
from precondqsm_bids.numerics.prior.spread import prior_spread
from precondqsm_bids.numerics.prior.tissue import class_means, doubts_of_names, tissue_parcels
from precondqsm_bids.numerics.prior.verdict import Verdict, judge_prior
from precondqsm_bids.terms import MAP, row, term

LEAST_SUPPORT = 0.01
"""Fraction of the local field's energy below which the field does not support a term."""
LEAST_GAIN = 0.01
"""Factor on the expected size of a basis that explains no more than chance does."""
MOST_PPM = 30.0
"""99th percentile of a susceptibility map in ppm: larger ones are in another unit."""


class PriorInputs(NamedTuple):
    """Images that a first estimate may be made of; each term takes what it needs."""

    total_field: npt.NDArray
    """Measured relative field, ppm, (X, Y, Z) as all."""
    field_sd: npt.NDArray
    """Standard deviation of the field, ppm."""
    shape_chi: npt.NDArray | None = None
    """Susceptibility of the shape relative to air, ppm."""
    shape_sd: npt.NDArray | None = None
    """Expected error of ``shape_chi``, which the fit may correct, ppm."""
    inner: bool = False
    """True if the region lies inside the object, its border off the surface."""
    r2star: npt.NDArray | None = None
    """R2*, 1/s; None of a single echo."""
    r2star_sd: npt.NDArray | None = None
    """Standard deviation of R2* by the noise, 1/s: the cells are made of what is not noise."""
    reliable: npt.NDArray[np.bool_] | None = None
    """Voxels whose R2* is known; the others have cells of their own."""
    magnitude: npt.NDArray | None = None
    """Magnitude of the first echo, any unit."""
    combined_magnitude: npt.NDArray | None = None
    """Root sum of squares over the echoes, which has less noise. It takes the place of the first
    magnitude in an inner region: beside air the field's gradient takes the late echoes
    away, and the cells would describe what is wrong with the field there."""
    magnitude_sd: npt.NDArray | None = None
    """Standard deviation of either magnitude by the noise, in its unit."""
    contrasts: Mapping[str, npt.NDArray] | None = None
    """Further images by name, any unit; a name in ``map`` is of one without shading."""
    prior_chi: npt.NDArray | None = None
    """Susceptibility from R2' (:func:`~precondqsm_bids.numerics.r2prime_prior`), ppm."""
    tissue: npt.NDArray | None = None
    """Class of each voxel, (X, Y, Z), or fractions of the classes, (X, Y, Z, C)."""
    tissue_names: Sequence[str] = ()
    """Names of the C classes."""
    maps: Mapping[str, npt.NDArray] | None = None
    """Susceptibility maps, ppm, by what follows ``map:`` in their terms."""
    field_strength: float | None = None
    """B0, T, for the relaxivity that the coefficients of R2' imply."""


class PriorEstimate(NamedTuple):
    """Result of :func:`estimate_prior`."""

    prior_chi: npt.NDArray[np.float32]
    """Prior susceptibility, ppm, (X, Y, Z)."""
    shape_chi: npt.NDArray[np.float32] | None
    """Susceptibility of the shape, its surface corrected, ppm; None if none was given."""
    prior_labels: npt.NDArray[np.int32] | None
    """Finest parcels of the prior, from 1, 0 where there is none; None of a map without a fit."""
    expected_size: float | None
    """Expected size of the fitted susceptibility, ppm; None without a fit."""
    record: dict[str, Any]
    """Measured and chosen values."""
    tissue_shift: npt.NDArray[np.float32] | None = None
    """Frequency of the tissue that is no field of a dipole, ppm, (X, Y, Z); None without
    cells of the whole region."""
    outer_chi: npt.NDArray[np.float32] | None = None
    """Sources outside the region that the fit has found, ppm, on the grid of
    :class:`~precondqsm_bids.numerics.solver.DipoleSystem`; None without a fit."""
    trust: float = 1.0
    """How far the prior counts, 0 to 1: that of the verdict on it."""
    prior_sd: npt.NDArray[np.float32] | None = None
    """Standard deviation of the prior by its fit, ppm, (X, Y, Z); None without a fit."""


@checked
def estimate_prior(
    inputs: PriorInputs,
    geometry: Geometry,
    terms: Sequence[str] = ('contrast',),
    fit: str | None = 'global',
    free_voxels: bool = False,
    iterations: int = 66,
) -> PriorEstimate:
    """First estimate of the susceptibility, by the terms of the method.

    Each term gives basis maps (:class:`~precondqsm_bids.numerics.Basis`), and the field chooses
    their coefficients (:func:`~precondqsm_bids.numerics.fit_prior`). Of a single map alone the
    estimate may be that map as it is.

    Parameters
    ----------
    inputs : PriorInputs
        The field, the shape, and what the terms are made of.
    geometry : Geometry
        Region of interest, voxel size (mm), direction of B0, threads.
    terms : sequence of str
        Words of :data:`precondqsm_bids.terms.TERMS`.
    fit : {'global', 'clusters', None}
        How whole maps are fitted; None takes the only one as it is.
    free_voxels : bool
        Whether voxels where the fit leaves a source become unknowns, and tissue may have a
        frequency of its own. Only for terms that describe what is inside.
    iterations : int
        Conjugate-gradient iterations of the fit.

    Returns
    -------
    PriorEstimate

    Raises
    ------
    ValueError
        An input of a term is missing, or is not what it should be.

    Examples
    --------
    >>> mask = np.ones((24, 24, 24), bool); chi = np.zeros(mask.shape)
    >>> chi[8:16, 8:16, 8:16] = 0.5
    >>> geometry = Geometry(mask, (1, 1, 1), (0, 0, 1))
    >>> field = forward_field(-chi, (1, 1, 1), (0, 0, 1))
    >>> inputs = PriorInputs(field, 0 * field, maps={'chi.nii': chi})
    >>> found = estimate_prior(inputs, geometry, ['map:chi.nii'])
    >>> round(found.record['coefficients']['map:chi.nii'][0], 1)
    -1.0
    """
    if fit is None and len(terms) != 1:
        raise ValueError(f'prior {" ".join(terms)}: only one term can be taken without a fit')
    if fit is None:
        return _as_it_is(inputs, geometry, terms[0])
    # Beyond the box of the region no term looks: empty slices change nothing, and cost nothing.
    mask, shape_chi, box = geometry.mask, inputs.shape_chi, bounding_box(geometry.mask)
    inputs = _without_shape(inputs, geometry)
    inputs = PriorInputs(**in_box(inputs._asdict(), 'images', mask, box))
    on_grid = partial(from_box, box=box, shape=mask.shape)
    mask = mask[box]
    geometry = geometry._replace(mask=mask)
    builder = _Builder(inputs, geometry, terms, fit)
    field, sd, shape_sd = inputs.total_field, inputs.field_sd, inputs.shape_sd

    def judged() -> tuple[dict[str, list[Basis]], list[Basis], Verdict]:
        bases = {word: builder.bases(word) for word in terms}
        flat = [basis for group in bases.values() for basis in group]
        return bases, flat, judge_prior(field, flat, geometry, sd, shape_sd)

    (bases, flat, verdict), start = side_by_side(
        geometry.workers, judged, lambda: [outer_start(field, sd, geometry)]
    )  # the start in a list, which gives it away
    flat = [_resized(basis, gain) for basis, gain in zip(flat, verdict.gains, strict=True)]
    options = FitOptions(iterations, free_voxels=free_voxels, tissue_shift=free_voxels)
    fitted = _fit_used(inputs, flat, verdict.gains, geometry, options, start)
    record = builder.record(bases, fitted)
    record['fit'], record['iterations'] = fit, iterations
    record |= verdict.record
    record['warnings'] += verdict.warnings
    if free_voxels:
        free = int(np.count_nonzero(fitted.free_chi))
        record['free_voxels'] = {'voxels': free, 'explained': fitted.fractions[-1]}
    if len(flat) == 1 and flat[0].expected != 0:
        errors = coefficient_errors(field, flat[0], fitted, geometry, sd)
        record['coefficient_errors'] = errors.tolist()
    trust, shift = np.float32(verdict.trust), fitted.tissue_shift
    if shift is not None:
        shift = on_grid(trust * shift)
        shift_sd, large = spread_of_shift(shift[box][mask])
        record['tissue_shift_sd'], record['warnings'] = shift_sd, record['warnings'] + large
    spread = prior_spread(verdict.coarse_chi, fitted.prior_chi, geometry)
    record['prior_sd'] = float(np.sqrt(np.mean(spread[mask] ** 2, dtype=np.float64)))
    return PriorEstimate(
        on_grid(trust * fitted.prior_chi),
        None if shape_chi is None else shape_chi + on_grid(fitted.surface_chi),
        on_grid((max(flat, key=lambda basis: basis.parcels).labels + 1).astype(np.int32)),
        fitted.inner_size,
        record,
        shift,
        fitted.outer_chi,
        verdict.trust,
        on_grid(trust * spread),
    )


def _without_shape(inputs: PriorInputs, geometry: Geometry) -> PriorInputs:
    """The inputs with the field less that of the shape."""
    if inputs.shape_chi is None:
        return inputs
    mask, voxel_size, b0_dir, workers = geometry
    of_shape = forward_field(inputs.shape_chi, voxel_size, b0_dir, mask, workers)
    return inputs._replace(total_field=inputs.total_field - of_shape)


def _as_it_is(inputs: PriorInputs, geometry: Geometry, word: str) -> PriorEstimate:
    """The map of a term, not fitted."""
    basis, *_ = _Builder(inputs, geometry, [word], 'global').bases(word)
    unknown: dict[str, Any] = {'parcels': 0, 'explained': None, 'supported': None}
    record: dict[str, Any] = {'priors': {word: unknown}, 'fit': 'none'}
    return PriorEstimate(basis.weight, inputs.shape_chi, None, None, record)


def _resized(basis: Basis, gain: float) -> Basis:
    """A basis of constants whose expected sizes are multiplied; others have theirs by the map."""
    if basis.expected:
        return basis
    own = np.ones(basis.parcels) if basis.gain is None else basis.gain
    return basis._replace(gain=max(gain, LEAST_GAIN) * own)


def _used(bases: Sequence[Basis], gains: Sequence[float]) -> list[int]:
    """Bases that the fit needs: a scale of cells that chance explains whole adds nothing."""
    return [
        i
        for i, (basis, gain) in enumerate(zip(bases, gains, strict=True))
        if basis.lattice is None or gain > LEAST_GAIN
    ] or list(range(len(bases)))


def _fit_used(
    inputs: PriorInputs,
    bases: Sequence[Basis],
    gains: Sequence[float],
    geometry: Geometry,
    options: FitOptions,
    start: list[Start],
) -> PriorFit:
    """The fit of the bases that it needs; what the others have is nothing.

    The start is in a list, from which it is taken: its arrays are needed no more in the fit.
    """
    used = _used(bases, gains)
    fitted = fit_prior(
        inputs.total_field, [bases[i] for i in used], geometry, inputs.field_sd, inputs.shape_sd,
        options, start.pop(),
    )  # fmt: skip
    coefficients = [np.zeros(basis.parcels) for basis in bases]
    fractions, part_sd = [0.0] * len(bases), [0.0] * len(bases)
    for place, i in enumerate(used):
        coefficients[i] = fitted.coefficients[place]
        fractions[i], part_sd[i] = fitted.fractions[place], fitted.part_sd[place]
    return fitted._replace(
        coefficients=tuple(coefficients),
        fractions=(*fractions, *fitted.fractions[len(used) :]),
        part_sd=tuple(part_sd),
    )


class _Builder:
    """Basis maps of each term, and the record of their coefficients."""

    def __init__(self, inputs: PriorInputs, geometry: Geometry, terms: Sequence[str], fit: str):
        for word in terms:
            _check_term(word, inputs)
        self.inputs: Any = inputs  # of which none is None that a term needs
        self.mask, self.voxel_size = geometry.mask, geometry.voxel_size
        self.fit, self.among = fit, sum(term(word).whole_map for word in terms)
        self.combined = inputs.inner and inputs.combined_magnitude is not None
        self.shading: dict[str, list[float]] = {}

    def bases(self, word: str) -> list[Basis]:
        """Basis maps of one term."""
        return BASES[row(word)].make(self, word)

    @cached_property
    def tissue(self) -> Basis:
        """Parcels of the tissue classes."""
        return tissue_parcels(self.inputs.tissue, len(self.inputs.tissue_names), self.mask)

    def whole(self, chi: npt.NDArray) -> Basis:
        """A susceptibility map (ppm) as the method fits it."""
        return susceptibility_map(chi, self.mask, self.fit, self.among)

    def given_map(self, word: str) -> npt.NDArray:
        """A susceptibility map that was given, ppm."""
        name = word.removeprefix(MAP)
        chi = self.inputs.maps[name]
        check_map(chi, name, self.mask)
        inside = np.abs(chi[self.mask])
        largest = float(inside.max())
        if largest == 0:
            raise ValueError(f'{name} is 0 in the whole region of interest: give another map')
        if np.percentile(inside, 99) > MOST_PPM:
            raise ValueError(
                f'{name} goes up to {largest:g}; a susceptibility map is in ppm (parts per '
                'billion are a thousand times that): convert it'
            )
        return chi

    def cells(self) -> list[Basis]:
        """Cells of the contrasts, images freed of their shading, for which R2* must be known.

        R2* and each image have a joint histogram: one of all together would have cells of few
        voxels, or few bins for each image; the sum of functions of two keeps the bins.
        """
        inputs, mask, voxel_size = self.inputs, self.mask, self.voxel_size
        magnitude = inputs.combined_magnitude if self.combined else inputs.magnitude
        magnitude = np.nan_to_num(magnitude)  # NaN is no signal
        if inputs.magnitude_sd is not None:
            magnitude = without_noise(magnitude, inputs.magnitude_sd, mask)
        images = {'magnitude': magnitude}
        for name, image in (inputs.contrasts or {}).items():
            check_map(image, name, mask)
            if np.ptp(image[mask]) == 0:
                raise ValueError(
                    f'{name} is {image[mask][0]:g} in the whole region of interest and tells '
                    'nothing: leave it out'
                )
            images[name] = image
        r2star, known = None, mask
        if inputs.r2star is not None:
            r2star = np.nan_to_num(inputs.r2star)
            known = mask if inputs.reliable is None else mask & inputs.reliable
            if inputs.r2star_sd is not None:
                r2star = without_noise(r2star, inputs.r2star_sd, known)
        for name, image in images.items():
            if PurePath(name).name.split('.')[0].endswith('map'):  # in a unit, without shading
                continue
            try:
                bias = bias_field(image, r2star, mask)
            except ValueError as error:
                raise ValueError(f'{name}: {error}') from error
            images[name] = image / bias
            self.shading[PurePath(name).name] = np.percentile(bias[mask], (1, 99)).tolist()
        first, *further = images.values()
        pairs = [[first], *([first, image] for image in further)]
        if r2star is not None:
            r2star = np.where(known, r2star, np.float32(np.nan))
            pairs = [[r2star, image] for image in images.values()]
        return [cells for pair in pairs for cells in contrast_cells(pair, mask, voxel_size)]

    def record(self, bases: Mapping[str, Sequence[Basis]], fitted: PriorFit) -> dict[str, Any]:
        """Result of the fit for each term."""
        inputs = self.inputs
        priors, coefficients, number = {}, {}, 0
        for word, group in bases.items():
            here = slice(number, number + len(group))
            number += len(group)
            explained = sum(fitted.fractions[here])
            priors[word] = {
                'parcels': sum(basis.parcels for basis in group),
                'explained': explained,
                'supported': explained >= LEAST_SUPPORT,
            }
            if word != 'contrast':
                coefficients[word] = self._named(word, fitted.coefficients[here][0], group[0])
        record: dict[str, Any] = {
            'priors': priors,
            'expected_size': fitted.inner_size,
            'explained': fitted.explained,
            'down_weighted_fraction': fitted.down_weighted,
            'warnings': [
                f'the field does not support the prior {word}: it explains '
                f'{prior["explained"]:.2%} of the local field'
                for word, prior in priors.items()
                if not prior['supported']
            ],
        }
        if 'contrast' in priors:
            record['combined_magnitude'] = self.combined
            record['bias_field'] = self.shading
        if inputs.contrasts:
            record['further_contrasts'] = [PurePath(name).name for name in inputs.contrasts]
        if coefficients:
            record['coefficients'] = coefficients
        if inputs.tissue is not None:
            means = class_means(fitted.prior_chi, self.tissue, inputs.tissue_names)
            record['tissue_means'] = means
            record['warnings'] += doubts_of_names(means)
        if 'r2prime' in coefficients and inputs.field_strength is not None:
            values = np.asarray(coefficients['r2prime'])
            implied = relaxivity(inputs.field_strength) / np.where(values == 0, np.nan, values)
            record['implied_relaxivity'] = implied.tolist()
        return record

    def _named(
        self, word: str, coefficients: npt.NDArray, basis: Basis
    ) -> list[float] | dict[str, float]:
        """Coefficients for the record: by class where there are classes, else a list.

        Constants are relative to their mean over the region, since the field does not tell it.
        """
        if word == 'tissue':
            part = coefficients[basis.labels[self.mask]] * basis.weight[self.mask]
            total = part.sum() + sum(
                np.sum(coefficients[o.labels] * o.weight) for o in basis.overlaps
            )
            coefficients = coefficients - total / part.size
        if word == 'r2prime-by-tissue':
            coefficients = coefficients / map_scale(self.inputs.prior_chi, self.mask)
        if not term(word).needs_tissue:
            return coefficients.tolist()
        names = [*self.inputs.tissue_names, 'rest']
        return dict(zip(names, coefficients.tolist(), strict=False))


class TermBases(NamedTuple):
    """How the basis maps of a term are made."""

    needs: tuple[str, ...]
    """Fields of :class:`PriorInputs` that it takes."""
    make: Callable[[_Builder, str], list[Basis]]


BASES: dict[str, TermBases] = {}
"""Row of :data:`precondqsm_bids.terms.TERMS` -> how it is made; filled by :func:`bases_of`."""


def bases_of(word: str, *needs: str) -> Callable[[Any], Any]:
    """Make the decorated function that of a term, which takes these fields of the inputs.

    It returns the basis maps. Its first parameter has ``inputs`` (:class:`PriorInputs`), ``mask``,
    ``voxel_size`` (mm) and ``tissue`` (parcels of the classes); the second is the word itself.
    """

    def register(make: Any) -> Any:
        BASES[word] = TermBases(needs, make)
        return make

    return register


@bases_of('contrast', 'magnitude')
def _contrast(given: _Builder, word: str) -> list[Basis]:
    return given.cells()


@bases_of('tissue', 'tissue', 'tissue_names')
def _tissue(given: _Builder, word: str) -> list[Basis]:
    return [given.tissue]


@bases_of('r2prime-by-tissue', 'tissue', 'tissue_names', 'prior_chi')
def _r2prime_by_tissue(given: _Builder, word: str) -> list[Basis]:
    return [map_by_tissue(given.tissue, given.inputs.prior_chi, given.mask)]


@bases_of('r2prime', 'prior_chi')
def _r2prime(given: _Builder, word: str) -> list[Basis]:
    return [given.whole(given.inputs.prior_chi)]


@bases_of(f'{MAP}FILE', 'maps')
def _given_map(given: _Builder, word: str) -> list[Basis]:
    return [given.whole(given.given_map(word))]


@bases_of('shape')
def _nothing(given: _Builder, word: str) -> list[Basis]:
    return [whole_map(np.zeros(given.mask.shape, np.float32), given.mask)]


def _check_term(word: str, inputs: PriorInputs) -> None:
    """Raise ValueError if a term is not known, or what it needs is not there."""
    if row(word) not in BASES:
        raise ValueError(f'prior {word} is not one of {", ".join(BASES)}')
    needed = {name: getattr(inputs, name) for name in BASES[row(word)].needs}
    missing = [name for name, value in needed.items() if value is None or not len(value)]
    if word.startswith(MAP) and word.removeprefix(MAP) not in (inputs.maps or {}):
        missing = ['maps']
    if missing:
        raise ValueError(f'prior {word} needs {" and ".join(missing)}, which is not given')
