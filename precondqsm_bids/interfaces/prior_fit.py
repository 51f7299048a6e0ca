"""Prior fit: the field chooses the coefficients of the prior."""

from pathlib import Path

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiPath,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from precondqsm_bids.interfaces.volumes import b0_along, check_finite, geometry, load, save
from precondqsm_bids.numerics.dipole import forward_field
from precondqsm_bids.numerics.prior.basis import whole_map
from precondqsm_bids.numerics.prior.bias_field import bias_field
from precondqsm_bids.numerics.prior.contrast import contrast_cells, further_cells
from precondqsm_bids.numerics.prior.errors import coefficient_errors
from precondqsm_bids.numerics.prior.fit import fit_prior
from precondqsm_bids.numerics.prior.maps import map_by_tissue, map_scale, susceptibility_map
from precondqsm_bids.numerics.prior.r2prime import relaxivity
from precondqsm_bids.numerics.prior.tissue import class_means, contradictions, tissue_parcels

LEAST_SUPPORT = 0.01
"""Share of the local field's energy below which a prior is called not supported by the field."""
MOST_PPM = 30.0
"""99th percentile of a susceptibility map in ppm: larger ones are in another unit."""


class PriorFitInputSpec(BaseInterfaceInputSpec):
    total_field = File(exists=True, mandatory=True, desc='measured relative field, ppm')
    field_sd = File(exists=True, mandatory=True, desc='standard deviation of the field, ppm')
    mask = File(exists=True, mandatory=True, desc='region of interest')
    shape_chi = File(exists=True, desc='susceptibility of the shape relative to air, ppm')
    shape_sd = File(
        exists=True, desc='expected error of shape_chi, ppm, which the fit may correct'
    )
    priors = traits.List(
        traits.Str,
        ['contrast'],
        usedefault=True,
        desc='terms of the prior: contrast, tissue, r2prime-by-tissue, r2prime, map:FILE; or '
        'shape alone, which is nothing inside',
    )
    fit = traits.Enum(
        'global',
        'clusters',
        'none',
        usedefault=True,
        desc='coefficients of r2prime and map:FILE: one, one for each cluster, or not fitted',
    )
    prior_chi = File(exists=True, desc="susceptibility from R2', ppm, for r2prime and by tissue")
    tissue = File(exists=True, desc='class of each voxel (3D) or shares of the classes (4D)')
    tissue_names = traits.List(traits.Str, desc='names of the tissue classes')
    contrasts = InputMultiPath(File(exists=True), desc='maps whose joint histogram makes cells')
    reliable = File(
        exists=True,
        desc='voxels whose first contrast (R2*) is known; the others are a cell',
    )
    combined_magnitude = File(
        exists=True,
        desc='root sum of squares over the echoes: the second contrast of an inner region',
    )
    inner = traits.Bool(
        False, usedefault=True, desc='whether the border of the region is no surface of the object'
    )
    further_contrasts = InputMultiPath(
        File(exists=True), desc='maps whose joint histogram with the first contrast makes cells'
    )
    free_voxels = traits.Bool(
        False, usedefault=True, desc='whether what the fit leaves gives the prior own sources'
    )
    field_strength = traits.Float(mandatory=True, desc='B0, T, for the implied relaxivity')
    iterations = traits.Range(1, 10000, value=150, usedefault=True, desc='gradient iterations')
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='threads of the transforms')


class PriorFitOutputSpec(TraitedSpec):
    prior_chi = File(exists=True, desc='fitted prior susceptibility, ppm')
    shape_chi = File(desc='susceptibility of the shape, its surface corrected, ppm')
    prior_labels = File(desc='finest parcels of the prior, from 1; 0 where there is none')
    expected_size = traits.Float(desc='expected size of the fitted susceptibility, ppm')
    record = traits.Dict(desc='what the stage measured and chose')


class PriorFit(SimpleInterface):
    """Fit the prior to the field: :func:`precondqsm_bids.numerics.fit_prior`."""

    input_spec = PriorFitInputSpec
    output_spec = PriorFitOutputSpec

    def _run_interface(self, runtime):
        source, threads = self.inputs.total_field, self.inputs.num_threads
        _, voxel_size = geometry(source)
        b0_dir = b0_along(source)
        mask = load(self.inputs.mask, bool)
        bases, shading = self._bases(mask, voxel_size)
        if self.inputs.fit == 'none':
            return self._as_it_is(bases, runtime)
        field = load(source)
        if self.inputs.shape_chi:
            shape_chi = load(self.inputs.shape_chi)
            field -= forward_field(shape_chi, voxel_size, b0_dir, mask, threads)
        flat = [basis for group in bases.values() for basis in group]
        fit = fit_prior(
            field,
            flat,
            mask,
            voxel_size,
            b0_dir,
            field_sd := load(self.inputs.field_sd),
            load(self.inputs.shape_sd) if self.inputs.shape_sd else None,
            self.inputs.iterations,
            free_voxels=self.inputs.free_voxels,
            workers=threads,
        )
        self._results['prior_chi'] = save(fit.prior_chi, source, runtime.cwd, 'prior_chi')
        if self.inputs.shape_chi:
            shape_chi += fit.surface_chi
            self._results['shape_chi'] = save(shape_chi, source, runtime.cwd, 'shape_chi')
        self._results['expected_size'] = fit.inner_size
        finest = max(flat, key=lambda basis: basis.parcels)
        labels = (finest.labels + 1).astype(np.int32)
        self._results['prior_labels'] = save(labels, source, runtime.cwd, 'prior_labels')
        priors, coefficients, number = {}, {}, 0
        for name, group in bases.items():
            here = slice(number, number + len(group))
            number += len(group)
            share = sum(fit.fractions[here])
            priors[name] = {
                'parcels': sum(basis.parcels for basis in group),
                'explained': share,
                'supported': share >= LEAST_SUPPORT,
            }
            if name != 'contrast':
                coefficients[name] = self._named(name, fit.coefficients[here][0], group[0], mask)
        record = {
            'priors': priors,
            'fit': self.inputs.fit,
            'iterations': self.inputs.iterations,
            'expected_size': fit.inner_size,
            'explained': fit.explained,
            'down_weighted_fraction': fit.down_weighted,
            'warnings': [
                f'the field does not support the prior {name}: it explains '
                f'{prior["explained"]:.2%} of the local field'
                for name, prior in priors.items()
                if not prior['supported']
            ],
        }
        if 'contrast' in priors:
            record['combined_magnitude'] = self._combined()
            record['bias_field'] = shading
        if self.inputs.free_voxels:
            record['free_voxels'] = {
                'voxels': int(np.count_nonzero(fit.free_chi)),
                'explained': fit.fractions[-1],
            }
        if isdefined(self.inputs.further_contrasts):
            record['further_contrasts'] = [
                Path(path).name for path in self.inputs.further_contrasts
            ]
        if coefficients:
            record['coefficients'] = coefficients
        if isdefined(self.inputs.tissue):
            means = class_means(fit.prior_chi, self._tissue(mask), self.inputs.tissue_names)
            record['tissue_means'] = means
            record['warnings'] += self._order(means)
        if 'r2prime' in coefficients:
            values = np.asarray(coefficients['r2prime'])
            implied = relaxivity(self.inputs.field_strength) / np.where(
                values == 0, np.nan, values
            )
            record['implied_relaxivity'] = implied.tolist()
        if len(flat) == 1 and flat[0].expected != 0:
            record['coefficient_errors'] = coefficient_errors(
                field, flat[0], fit, mask, voxel_size, b0_dir, field_sd, workers=threads
            ).tolist()
        self._results['record'] = record
        return runtime

    @staticmethod
    def _order(means):
        """A warning if the classes have another order of susceptibility than the literature."""
        if not (wrong := contradictions(means)):
            return []
        return [
            'the tissue classes have another order of susceptibility than the literature: '
            f'{"; ".join(wrong)}. Are names swapped, or is the segmentation that of another '
            'image? Look at the outlines'
        ]

    def _as_it_is(self, bases, runtime):
        """The one map of the prior, without a fit."""
        ((name, (basis,)),) = bases.items()
        source = self.inputs.total_field
        self._results['prior_chi'] = save(basis.weight, source, runtime.cwd, 'prior_chi')
        if self.inputs.shape_chi:
            shape_chi = load(self.inputs.shape_chi)
            self._results['shape_chi'] = save(shape_chi, source, runtime.cwd, 'shape_chi')
        self._results['record'] = {
            'priors': {name: {'parcels': 0, 'explained': None, 'supported': None}},
            'fit': 'none',
        }
        return runtime

    def _bases(self, mask, voxel_size):
        """The bases of each prior, by the prior's name, and the shading of their images."""
        inputs, bases, shading = self.inputs, {}, {}
        whole = sum(name == 'r2prime' or name.startswith('map:') for name in inputs.priors)
        fit = 'global' if inputs.fit == 'none' else inputs.fit
        for name in inputs.priors:
            if name == 'contrast':
                bases[name], shading = self._cells(mask, voxel_size)
            elif name == 'tissue':
                bases[name] = [self._tissue(mask)]
            elif name == 'r2prime-by-tissue':
                bases[name] = [map_by_tissue(self._tissue(mask), load(inputs.prior_chi), mask)]
            elif name == 'shape':
                bases[name] = [whole_map(np.zeros(mask.shape, np.float32), mask)]
            elif name == 'r2prime':
                bases[name] = [susceptibility_map(load(inputs.prior_chi), mask, fit, whole)]
            else:
                chi = self._map(name.removeprefix('map:'), mask)
                bases[name] = [susceptibility_map(chi, mask, fit, whole)]
        return bases, shading

    def _cells(self, mask, voxel_size):
        """Contrast cells, and the range of the shading that each image is freed of.

        For that R2* must be known.
        """
        shading = {}
        paths = list(self.inputs.contrasts)
        if self._combined():
            paths[1] = self.inputs.combined_magnitude
        first, *others = [np.nan_to_num(load(path)) for path in paths]  # NaN is no signal
        further = []
        if isdefined(self.inputs.further_contrasts):
            further = [self._contrast(path, mask) for path in self.inputs.further_contrasts]
            paths += self.inputs.further_contrasts
        if others:
            for path, image in zip(paths[1:], others + further, strict=True):
                if Path(path).name.split('.')[0].endswith('map'):  # in a unit, without shading
                    continue
                bias = bias_field(image, first, mask)
                image /= bias
                shading[Path(path).name] = np.percentile(bias[mask], (1, 99)).tolist()
        if isdefined(self.inputs.reliable):
            first = np.where(load(self.inputs.reliable, bool), first, np.float32(np.nan))
        cells = contrast_cells([first, *others], mask, voxel_size)
        cells += further_cells(first, further, mask, voxel_size)
        return cells, shading

    def _combined(self):
        """Whether the magnitude of all echoes is the second contrast.

        It has less noise than that of the first, but beside air the field's gradient takes the
        late echoes away, and the cells would describe what is wrong with the field there.
        """
        return self.inputs.inner and isdefined(self.inputs.combined_magnitude)

    def _tissue(self, mask):
        """Parcels of the tissue classes."""
        if not isdefined(self.inputs.tissue):
            raise ValueError(
                f'the prior {" ".join(self.inputs.priors)} needs tissue classes: give tissue'
            )
        data = load(self.inputs.tissue, None)
        try:
            return tissue_parcels(data, len(self.inputs.tissue_names), mask)
        except ValueError as error:
            raise ValueError(f'{self.inputs.tissue}: {error}') from error

    def _contrast(self, path, mask):
        """A further contrast: finite, on the grid, and not the same everywhere."""
        data = load(path)
        check_finite(data, path)
        if data.shape != mask.shape:
            raise ValueError(
                f'{path} {data.shape} and {self.inputs.total_field} {mask.shape} differ in matrix '
                'size: resample the image'
            )
        if np.ptp(data[mask]) == 0:
            raise ValueError(
                f'{path} is {data[mask][0]:g} in the whole region of interest and tells nothing: '
                'leave it out'
            )
        return data

    def _map(self, path, mask):
        """A susceptibility map that was given, ppm."""
        chi = load(path)
        check_finite(chi, path)
        if chi.shape != mask.shape:
            raise ValueError(
                f'{path} {chi.shape} and {self.inputs.total_field} {mask.shape} differ in matrix '
                'size: resample the map'
            )
        largest = float(np.abs(chi[mask]).max())
        if largest == 0:
            raise ValueError(f'{path} is 0 in the whole region of interest: give another map')
        if np.percentile(np.abs(chi[mask]), 99) > MOST_PPM:
            raise ValueError(
                f'{path} goes up to {largest:g}; a susceptibility map is in ppm (parts per '
                'billion are a thousand times that): convert it'
            )
        return chi

    def _named(self, name, coefficients, basis, mask):
        """Coefficients for the record: by class where there are classes, else a list.

        Constants are relative to their mean over the region, since the field does not tell it.
        """
        if name == 'tissue':
            part = coefficients[basis.labels[mask]] * basis.weight[mask]
            total = part.sum() + sum(
                np.sum(coefficients[o.labels] * o.weight) for o in basis.overlaps
            )
            coefficients = coefficients - total / part.size
        if name == 'r2prime-by-tissue':
            coefficients = coefficients / map_scale(load(self.inputs.prior_chi), mask)
        if 'tissue' not in name:
            return coefficients.tolist()
        return dict(zip([*self.inputs.tissue_names, 'rest'], coefficients.tolist(), strict=False))
