"""Uncertainty: how far each value of the map may be off, and whether the field decided it."""

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import fft

from precondqsm_bids.numerics.arguments import check_labels, checked
from precondqsm_bids.numerics.arrays import from_box, side_by_side
from precondqsm_bids.numerics.bodies import bodies
from precondqsm_bids.numerics.closed_form import closed_form
from precondqsm_bids.numerics.dipole import Geometry, bounding_box
from precondqsm_bids.numerics.dipole_inversion import NOTHING, without_outliers
from precondqsm_bids.numerics.expected_risk import field_powers
from precondqsm_bids.numerics.morphology import deeper, gaussian_of_lines
from precondqsm_bids.numerics.recombination import holding
from precondqsm_bids.numerics.solver import MODEL_ERROR, noise_weights

F32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Spectrum = npt.NDArray[np.complex64]

WINDOW = 1.5
"""Width (standard deviation) of the window in which power is measured, voxels: 150 of them."""
NEAR = 0.7
"""Width of the window in which field and contrast are compared, voxels: 15 of them."""
LAYERS = (1.01, 2.1)
"""Ends of the layers beneath the border of the region, depth in voxels."""
BELOW = 4.5
"""End of the layer below, which they are held against."""
LEAST_LEFT = 0.02
"""Part of a layer's power that the background removal leaves at least."""
LEAST_POWER = 0.1
"""Part of the power in a window that is that of sources at least."""
LEAST_RESOLUTION = 0.1
"""Resolution of a region below which it is no longer divided by."""
MOST_NOISE = 100.0
"""Largest variance of the noise in a voxel, over that of the mean voxel."""
WALL = 3.0
"""Standard deviation over the median one from which voxels are walls of strong sources, whose
errors have one sign."""
PATCHES = 130
"""Independent pieces, in the whole region, of what two fits of a prior differ in."""
HALF = 0.5
"""Support below which a value, or a pattern, is the prior's rather than the field's."""


class MapInputs(NamedTuple):
    """What the preconditioned map was made of, (X, Y, Z) each."""

    local_field: npt.NDArray
    """Flattened field without its background, ppm."""
    field_sd: npt.NDArray
    """Standard deviation of the measured field, ppm."""
    prior_chi: npt.NDArray
    """Prior susceptibility, ppm."""
    residual_chi: npt.NDArray
    """Susceptibility of the local field, ppm."""
    reg_weight: float | None
    """Lambda of it, mm; None where the field is zero and nothing was inverted."""
    clip_outliers: bool = False
    """Whether the inversion took the field through :func:`without_outliers`."""
    model_error: float = MODEL_ERROR
    """Of the weights that it had in that, ppm."""
    prior_sd: npt.NDArray | None = None
    """Standard deviation of the prior by its fit, ppm, (X, Y, Z); None: it has none."""


class RegionUncertainty(NamedTuple):
    """What is known of the mean of one region, relative to the reference."""

    error: float
    """Standard deviation of the mean, ppm."""
    resolution: float
    """Part of a susceptibility of the region's shape that the inversion shows."""
    support: float
    """Part of the mean that the field decided, 0 to 1."""
    pattern_support: float
    """Part of the pattern within the region that the field decided, 0 to 1."""
    pattern: bool
    """Whether the pattern exceeds half the standard deviation of the voxels."""

    @property
    def words(self) -> str:
        """What of the region is the prior's: '', 'value', 'pattern' or 'value and pattern'."""
        found = ['value'] * (self.support < HALF)
        found += ['pattern'] * (self.pattern and self.pattern_support < HALF)
        return ' and '.join(found)


class Uncertainty(NamedTuple):
    """Result of :func:`map_uncertainty`, (X, Y, Z), zero outside the region."""

    chi_sd: F32
    """Standard deviation of the preconditioned susceptibility, ppm."""
    support: F32
    """Part of the value that the field decided rather than the contrast, 0 to 1."""
    resolution: float
    """Part of a change of susceptibility, anywhere, that the inversion shows."""
    regions: Mapping[int, RegionUncertainty]
    """By label."""

    def record(self, mask: Bools, names: Mapping[int, str] | None = None) -> dict[str, Any]:
        """Measured values as plain numbers; ``names`` are those of the labels."""
        inside, supported = self.chi_sd[mask], self.support[mask]
        named = {i: (names or {}).get(i, f'label-{i}') for i in self.regions}
        record: dict[str, Any] = {
            'median_sd': float(np.median(inside)),
            'median_support': float(np.median(supported)),
            'supported_fraction': float(np.mean(supported >= HALF)),
            'resolution': self.resolution,
            'regions': {
                str(i): {'name': named[i], **region._asdict()}
                for i, region in self.regions.items()
            },
            'of_prior': {
                named[i]: region.words for i, region in self.regions.items() if region.words
            },
        }
        return record


@checked
def map_uncertainty(
    given: MapInputs,
    geometry: Geometry,
    labels: npt.NDArray | None = None,
    reference: Bools | None = None,
) -> Uncertainty:
    """Standard deviation of the preconditioned map, and the part of it that the field decided.

    The map is ``prior + W f`` with ``f = D q + n`` the local field, ``q`` what the prior lacks of
    the susceptibility and ``n`` noise and misfit, and ``W = D / (D^2 + lambda^2 |G|^2)``. So its
    error is

        e = -(1 - W D) q + W n

    and what is unknown of it are the variances of ``q`` and ``n``, which the local field has:
    where ``|D| < 0.05`` it holds noise alone (power ``N`` by ``|k|``, less what the cut at the
    border of the region brings there), elsewhere ``D^2 S + N``. The prior's error ``S`` does not
    depend on the direction of ``k``: what of it the field does not reach, in the cone, is like
    what it reaches. In space ``q`` is noise of the spectrum ``S`` times a local size, ``n``
    white noise of the size of ``field_sd`` and the rest of ``N`` with the local size too:

        sd^2 = tau^2 * F^-1[(1 - W D) sqrt(S)]^2 + nu^2 * F^-1[W sqrt(N_white)]^2
               + tau^2 * F^-1[W sqrt(N - N_white)]^2

    ``tau^2`` is the power of the Wiener estimate of ``q`` in a window of 150 voxels over what the
    formula lets expect of it with ``tau = 1``. In the two layers of voxels beneath the border it
    is divided by the part of the field's power that the background removal leaves there. To this
    comes ``prior_sd^2``, what the fit of the prior leaves open without a residual that shows it
    (:func:`~precondqsm_bids.numerics.prior.spread.prior_spread`). Nothing
    is drawn, and all else is a convolution: an estimate by resampling would need hundreds of maps
    for what this takes in about 40 transforms.

    The **support** comes from a split of the map itself: ``F = W D prior + W f`` is what passes
    through the field, ``C = (1 - W D) prior`` what the contrast adds where the field tells
    nothing. Support is ``|F| / (|F| + |C|)`` with the root mean squares over 15 voxels, twice
    the noise's power taken off ``F``; a value within the noise ``s`` has that of an unknown
    source instead, the resolution, which counts for ``s^2 / (s + |C|)``. A source that no
    contrast shows has support one, a contrast that the field denies zero: there ``W f`` is
    ``-W D prior``.

    Of a **region** with weights ``x`` (one over its voxels, less one over those of the
    reference) the mean's variance is ``sum |F x|^2`` times the same transfer functions, which
    counts how errors go together over voxels, and ``prior_sd^2`` over its independent pieces;
    and two parts that are one error in the whole region: ``(1 - R) / R`` times the larger of the
    residual's mean there and what its spectrum
    lets expect of a region of this shape, ``R = <x, W D x> / <x, x>`` being the part that
    regularisation shows; and the border, and in the reference the walls of strong sources (voxels
    of three times the median standard deviation), whose errors have one sign.

    Memory: 60 bytes per voxel of the solver's grid; one transform for each label.

    Parameters
    ----------
    given : MapInputs
        What the map was made of.
    geometry : Geometry
        Region of the map, voxel size (mm), direction of B0, threads.
    labels : (X, Y, Z) ndarray of int, optional
        Regions, from 1.
    reference : (X, Y, Z) ndarray of bool, optional
        Where the map has mean 0.

    Raises
    ------
    ValueError
        Shapes differ, or the mask is empty.

    References
    ----------
    Inference from the spectrum of the data: Efron & Tibshirani, An Introduction to the Bootstrap,
    1993. The split by what the operator passes: Backus & Gilbert, Geophys J R astr Soc
    1968;16:169.

    Examples
    --------
    A source that the prior has and the field has not, and one that the field alone has:

    >>> from precondqsm_bids.method import Arm
    >>> from precondqsm_bids.numerics import forward_field, invert
    >>> mask = np.ones((32, 32, 32), bool); box = (1, 1, 1), (0, 0, 1)
    >>> chi = np.zeros((2, 32, 32, 32), np.float32)
    >>> chi[0, 6:12, 6:12, 6:12] = chi[1, 20:26, 20:26, 20:26] = 0.1
    >>> sd = np.full(mask.shape, 1e-3, np.float32)
    >>> field = forward_field(chi[1] - chi[0], *box)
    >>> field += np.random.default_rng(0).normal(0, 1e-3, mask.shape).astype(np.float32)
    >>> found = invert(field, Geometry(mask, *box), Arm(rule='risk'))
    >>> given = MapInputs(field, sd, chi[0], found.chi, found.reg_weight)
    >>> support = map_uncertainty(given, Geometry(mask, *box)).support
    >>> print(support[6:12, 6:12, 6:12].mean() < 0.3, support[20:26, 20:26, 20:26].mean() > 0.9)
    True True
    """
    mask = geometry.mask
    names = MapInputs._fields[:4]
    if not mask.any():
        raise ValueError('the mask is empty: there is no map to be uncertain of')
    if labels is not None:
        check_labels(labels, 'labels')
    box = bounding_box(mask)
    images: Any = {name: np.asarray(getattr(given, name)[box], np.float32) for name in names}
    if given.prior_sd is not None:
        images['prior_sd'] = np.asarray(given.prior_sd[box], np.float32)
    made = given._replace(**images)
    model = _Model(made, geometry._replace(mask=mask[box]))

    def in_volume(of_box: npt.NDArray) -> F32:
        return from_box(np.where(model.mask, of_box, 0), box, mask.shape)

    regions: dict[int, RegionUncertainty] = {}
    if labels is not None:
        in_box = np.where(model.mask, labels[box], 0)
        references = None if reference is None else _References(model.mask, reference[box])
        numbers = np.unique(in_box[in_box > 0]).astype(int).tolist()
        regions = dict(zip(numbers, model.regions(in_box, numbers, references), strict=True))
    return Uncertainty(in_volume(model.sd), in_volume(model.support()), model.resolution, regions)


class _References:
    """The reference of each body of a region: a body has one of its own, see `recombine`."""

    def __init__(self, mask: Bools, reference: Bools):
        self._of_body, self._reference = bodies(mask), reference & mask
        self._held = holding(
            np.bincount(self._of_body[self._reference], minlength=self._of_body.max() + 1)
        )
        self._found: dict[int, F32] = {}

    def of(self, region: Bools) -> F32:
        """Weights, of sum one, of the voxels that the body of most of a region is relative to."""
        number = int(np.bincount(self._of_body[region]).argmax())
        if number not in self._found:
            body = self._of_body == number
            held = body & self._reference if self._held[number] else body
            self._found[number] = held / np.float32(held.sum())
        return self._found[number]


class _Model:
    """Variances of the prior's error and of the noise, and how they become those of the map."""

    def __init__(self, given: MapInputs, geometry: Geometry):
        self.given, self.mask = given, geometry.mask
        self.form = form = closed_form(geometry)
        self._shares: dict[float, F32] = {}  # of the mask in each window
        self.width = form.geometry.voxel_length / np.asarray(geometry.voxel_size, float)
        field = np.where(self.mask, given.local_field, 0).astype(np.float32)
        if given.clip_outliers:
            weights = noise_weights(given.field_sd, self.mask, given.model_error)
            field = without_outliers(field, self.mask, weights, geometry.workers)
        sd = given.field_sd[self.mask].astype(float)
        white = float(np.mean(np.minimum(sd, 5 * np.median(sd)) ** 2))
        self.relative = np.zeros(self.mask.shape, np.float32)
        self.relative[self.mask] = np.minimum(sd**2 / max(white, 1e-30), MOST_NOISE)
        self.noise = form.spectrum(self.relative)
        nothing = given.reg_weight is None or np.abs(field[self.mask]).max() <= NOTHING
        weight = np.float32(0 if nothing or given.reg_weight is None else given.reg_weight)
        divisor = form.kernel**2 + form.gradient * weight**2
        divisor[0, 0, 0] = 1
        self.inverse = 0 * form.kernel if nothing else form.kernel / divisor
        self.passed = form.kernel * self.inverse
        self.left, spectrum = self._left(field), form.spectrum(field)
        sources, noise = self._hidden(white) if nothing else self._powers(spectrum, white)
        of_noise = np.minimum(noise, np.float32(white))
        powers = sources, of_noise, noise - of_noise
        self.roots = tuple(np.sqrt(power).astype(np.float32) for power in powers)
        seen = form.kernel * sources / np.maximum(form.kernel**2 * sources + noise, 1e-30)
        counted = form.multiplicity * sources
        shown = float(np.sum(counted * self.passed * form.kernel * seen, dtype=float))
        self.resolution = shown / max(float(np.sum(counted, dtype=float)), 1e-30)
        ones = self.mask.astype(np.float32)
        self.size = (ones if nothing else self._size(spectrum, seen)) / self.left
        self.spread = (
            np.square(given.prior_sd) if given.prior_sd is not None else 0 * self.relative
        )
        self.of_noise, self.variance = self._variances()
        del self.noise
        self._shares.clear()

    def _powers(self, spectrum: Spectrum, white: float) -> tuple[F32, F32]:
        """Powers of the prior's error and of the noise within the region, ppm^2."""
        fill = np.float32(np.count_nonzero(self.mask) / np.prod(self.form.grid.shape))
        sources, noise = (power / fill for power in field_powers(self.form, spectrum))
        # Few frequencies of a shell lie in the cone, at long wavelengths perhaps none.
        middle = float(np.median(noise))
        least = min(white, middle) if white and middle else max(white, middle)
        energy = float(np.sum(self.form.power(spectrum), dtype=float))
        least += 1e-6 * energy / np.count_nonzero(self.mask)
        return sources, np.maximum(noise, np.float32(least))

    def _hidden(self, white: float) -> tuple[F32, F32]:
        """The same where the field is zero: sources that could hide in white noise."""
        form = self.form
        gain = np.sum(form.multiplicity * form.kernel**2, dtype=float) / form.multiplicity.sum()
        sources = np.full_like(form.kernel, white / float(gain))
        return sources, np.full_like(form.kernel, white)

    def _variances(self) -> tuple[F32, F32]:
        """Variance of the map by the noise alone, and by noise and prior, ppm^2."""
        sources, of_noise, rest = self.roots
        size = self.form.spectrum(self.size)
        noise = self._spread(self.noise, self._power(self.inverse * of_noise))
        noise += self._spread(size, self._power(self.inverse * rest))
        prior = self._spread(size, self._power((1 - self.passed) * sources))
        return noise, (noise + prior + self._cut(size) + self.spread).astype(np.float32)

    def _cut(self, size: Spectrum) -> npt.NDArray:
        """Variance of the map by the field beyond the region, which is not measured, ppm^2.

        That field has the spectrum ``D^2 S`` and the power of the sources near the border.
        """
        form, (sources, _, _) = self.form, self.roots
        grid, workers = form.grid, form.geometry.workers
        power = self._power(form.kernel * sources)
        beyond = fft.irfftn(size * power, s=grid.shape, workers=workers)
        beyond /= max(float(power[0, 0, 0].real), 1e-30)
        beyond[grid.embed(self.mask) > 0] = 0
        beyond = fft.rfftn(np.maximum(beyond, 0), workers=workers)
        return self._spread(beyond, self._power(self.passed * sources))

    def _size(self, spectrum: Spectrum, seen: F32) -> F32:
        """``tau^2``: power of the Wiener estimate in a window, over what is to be expected."""
        sources, of_noise, rest = self.roots
        found = self.form.volume(spectrum * seen)
        found[self.mask] -= found[self.mask].mean()
        power = self._window(found**2, WINDOW)
        filters = self._power(seen * self.form.kernel * sources, seen * rest)
        expected = self._window(self._spread(self.form.spectrum(self.mask), filters), WINDOW)
        noise = self._spread(self.noise, self._power(seen * of_noise))
        power = np.maximum(power - self._window(noise, WINDOW), LEAST_POWER * power)
        return np.divide(power, expected, out=np.zeros_like(power), where=expected > 0)

    def _left(self, field: F32) -> F32:
        """Part of the field's power that the background removal leaves, by the layer."""
        padded, power = np.pad(self.mask, 1), field**2
        # Whether a voxel is deeper than each of these; the edge of the volume is a border, too.
        inner = [deeper(padded, depth, (1, 1, 1))[1:-1, 1:-1, 1:-1] for depth in (*LAYERS, BELOW)]
        *layers, below = (wider & ~narrower for wider, narrower in pairwise((self.mask, *inner)))
        middle = float(np.median(power[below])) if below.any() else 0.0
        self.border, left = layers[0], np.ones(field.shape, np.float32)
        for layer in layers:
            if middle > 0 and layer.any():
                left[layer] = np.clip(np.median(power[layer]) / middle, LEAST_LEFT, 1)
        return left

    def support(self) -> F32:
        """Part of the value that the field decided."""
        field, contrast = self.parts
        found = self._window(field**2, NEAR) - 2 * self.of_noise
        found, other = np.sqrt(np.maximum(found, 0)), np.sqrt(self._window(contrast**2, NEAR))
        noise = np.sqrt(self.of_noise)
        unknown = np.divide(noise**2, noise + other, out=np.zeros_like(noise), where=noise > 0)
        total = found + other + unknown
        value = found + np.float32(self.resolution) * self.left * unknown
        return np.divide(value, total, out=np.zeros_like(total), where=total > 0)

    @cached_property
    def parts(self) -> tuple[F32, F32]:
        """The map as what passes through the field and what does not, ppm, about their means."""
        form, mask = self.form, self.mask
        prior = np.where(mask, self.given.prior_chi - self.given.prior_chi[mask].mean(), 0)
        of_prior = form.spectrum(form.volume(form.spectrum(prior) * form.kernel))
        field = form.volume(of_prior * self.inverse) + self.given.residual_chi
        contrast = np.where(mask, prior + self.given.residual_chi - field, 0)
        for part in (field, contrast):
            part[mask] -= part[mask].mean()
        return field, contrast

    @cached_property
    def transfers(self) -> tuple[npt.NDArray, npt.NDArray, npt.NDArray]:
        """Powers by which the variance of a weighted sum of voxels is to be expected, ppm^2: of
        the prior's error and misfit, of the noise, and of the residual."""
        sources, of_noise, rest = self.roots
        local = ((1 - self.passed) * sources) ** 2 + (self.inverse * rest) ** 2
        residual = np.abs(self.form.spectrum(self.given.residual_chi)) ** 2
        residual /= np.float32(np.count_nonzero(self.mask))
        return local, (self.inverse * of_noise) ** 2, residual

    @cached_property
    def sd(self) -> F32:
        """Standard deviation of the map, ppm."""
        return np.sqrt(self.variance)

    @cached_property
    def walls(self) -> Bools:
        """Voxels beside strong sources, whose errors have one sign."""
        return self.mask & ~self.border & (self.sd > WALL * np.median(self.sd[self.mask]))

    def regions(
        self, labels: npt.NDArray, numbers: Sequence[int], references: _References | None
    ) -> list[RegionUncertainty]:
        """What is known of the means of regions by their labels, which are 0 outside the mask."""
        # What they share is made before threads ask for it.
        _ = self.parts, self.transfers, self.walls

        def one(number: int) -> RegionUncertainty:
            region = labels == number
            return self.region(region, None if references is None else references.of(region))

        return side_by_side(self.form.geometry.workers, *(partial(one, i) for i in numbers))

    def region(self, region: Bools, share: F32 | None) -> RegionUncertainty:
        """What is known of the mean of a region, relative to that of voxels with these weights."""
        form, mask, given = self.form, self.mask, self.given
        x = region.astype(np.float32) / np.float32(np.count_nonzero(region))
        if share is not None:
            x -= share
        power = form.power(form.spectrum(x))
        energy = max(float(np.sum(power, dtype=float)), 1e-30)

        def through(transfer: npt.NDArray) -> float:
            return float(np.sum(power * transfer, dtype=float))

        size, noise = (float(np.mean(v[region], dtype=float)) for v in (self.size, self.relative))
        local, of_noise, usual = self.transfers
        variance = size * through(local) + noise * through(of_noise)
        resolution = through(self.passed) / energy
        missed = (1 - resolution) / max(resolution, LEAST_RESOLUTION)
        shown = float(np.sum(x * given.residual_chi, where=mask, dtype=float))
        variance += missed**2 * max(float(shown**2), through(usual))
        patches = PATCHES * np.count_nonzero(region) / np.count_nonzero(mask)
        variance += float(np.mean(self.spread[region], dtype=float)) / max(patches, 1)
        edge = float(np.sum(x * self.sd, where=self.border, dtype=float))
        if share is not None:
            edge -= float(np.sum(share * self.sd, where=self.walls, dtype=float))
        return RegionUncertainty(
            float(np.sqrt(variance + edge**2)), resolution, *self._of_region(region, x)
        )

    def _of_region(self, region: Bools, x: npt.NDArray) -> tuple[float, float, bool]:
        """Support of a region's mean, that of the pattern in it, and whether it has one."""
        field, contrast = self.parts
        mean, other = (abs(float(np.sum(x * part, dtype=float))) for part in (field, contrast))
        unknown = float(np.sqrt(np.mean(self.variance[region], dtype=float)))
        field, chi = field[region], field[region] + contrast[region]
        field, chi = field.astype(float), chi.astype(float)
        field, chi = field - field.mean(), chi - chi.mean()
        energy = float(chi @ chi)
        share = float(np.clip(field @ chi / energy, 0, 1)) if energy > 0 else 0.0
        support = mean / (mean + other) if mean + other > 0 else 0.0
        return support, share, bool(np.sqrt(energy / chi.size) > unknown / 2)

    def _window(self, values: F32, width: float) -> F32:
        """Mean over a window of the region, its width in voxels of cubes."""
        if width not in self._shares:
            self._shares[width] = np.maximum(self._smooth(self.mask, width), 1e-6)
        total = self._smooth(np.where(self.mask, values, 0), width)
        return np.where(self.mask, total / self._shares[width], 0).astype(np.float32)

    def _smooth(self, values: npt.NDArray, width: float) -> F32:
        sigma, workers = width * self.width, self.form.geometry.workers
        return gaussian_of_lines(values.astype(np.float32), sigma, workers, truncate=3)

    def _power(self, *transfers: npt.NDArray) -> Spectrum:
        """Spectrum of the sum of squares of filters, given by their transfer functions."""
        grid, workers = self.form.grid, self.form.geometry.workers
        total = np.zeros(grid.shape, np.float32)
        for transfer in transfers:
            spectrum = transfer.astype(np.complex64)
            total += fft.irfftn(spectrum, s=grid.shape, workers=workers, overwrite_x=True) ** 2
        return fft.rfftn(total, workers=workers)

    def _spread(self, variance: Spectrum, power: Spectrum) -> npt.NDArray:
        """Variance of filtered noise, by the spectra of its own and of the filter's square."""
        return np.maximum(self.form.volume(variance * power), 0)
