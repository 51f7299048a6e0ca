"""Prior fit: the field chooses the coefficients of the prior."""

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiPath,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from precondqsm_bids.interfaces.volumes import geometry, load, save
from precondqsm_bids.numerics.dipole import b0_direction, forward_field
from precondqsm_bids.numerics.prior_fit import (
    clusters,
    coefficient_errors,
    contrast_cells,
    fit_prior,
    whole_map,
)
from precondqsm_bids.numerics.r2prime_prior import relaxivity


class PriorFitInputSpec(BaseInterfaceInputSpec):
    total_field = File(exists=True, mandatory=True, desc='measured relative field, ppm')
    field_sd = File(exists=True, mandatory=True, desc='standard deviation of the field, ppm')
    mask = File(exists=True, mandatory=True, desc='region of interest')
    shape_chi = File(exists=True, desc='susceptibility of the shape relative to air, ppm')
    shape_sd = File(
        exists=True, desc='expected error of shape_chi, ppm, which the fit may correct'
    )
    basis = traits.Enum(
        'contrast',
        'clusters',
        'global',
        usedefault=True,
        desc='cells of the contrasts, clusters of the prior, or the prior as a whole',
    )
    prior_chi = File(exists=True, desc='prior susceptibility, ppm, for clusters and global')
    contrasts = InputMultiPath(File(exists=True), desc='maps whose joint histogram makes cells')
    field_strength = traits.Float(mandatory=True, desc='B0, T, for the implied relaxivity')
    iterations = traits.Range(1, 10000, value=90, usedefault=True, desc='gradient iterations')
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='threads of the transforms')


class PriorFitOutputSpec(TraitedSpec):
    prior_chi = File(exists=True, desc='fitted prior susceptibility, ppm')
    shape_chi = File(desc='susceptibility of the shape, its surface corrected, ppm')
    record = traits.Dict(desc='what the stage measured and chose')


class PriorFit(SimpleInterface):
    """Fit the prior to the field: :func:`precondqsm_bids.numerics.fit_prior`."""

    input_spec = PriorFitInputSpec
    output_spec = PriorFitOutputSpec

    def _run_interface(self, runtime):
        source, threads = self.inputs.total_field, self.inputs.num_threads
        affine, voxel_size = geometry(source)
        b0_dir = b0_direction(affine)
        mask = load(self.inputs.mask, bool)
        field = load(source)
        if self.inputs.shape_chi:
            shape_chi = load(self.inputs.shape_chi)
            field -= forward_field(shape_chi, voxel_size, b0_dir, mask, threads)
        bases = self._bases(mask, voxel_size)
        fit = fit_prior(
            field,
            bases,
            mask,
            voxel_size,
            b0_dir,
            field_sd := load(self.inputs.field_sd),
            load(self.inputs.shape_sd) if self.inputs.shape_sd else None,
            self.inputs.iterations,
            workers=threads,
        )
        self._results['prior_chi'] = save(fit.prior_chi, source, runtime.cwd, 'prior_chi')
        if self.inputs.shape_chi:
            shape_chi += fit.surface_chi
            self._results['shape_chi'] = save(shape_chi, source, runtime.cwd, 'shape_chi')
        record = {
            'basis': self.inputs.basis,
            'parcels': [basis.parcels for basis in bases],
            'iterations': self.inputs.iterations,
            'expected_size': fit.inner_size,
            'explained': fit.explained,
            'down_weighted_fraction': fit.down_weighted,
        }
        if self.inputs.basis != 'contrast':
            coefficients = fit.coefficients[0]
            implied = relaxivity(self.inputs.field_strength) / np.where(
                coefficients == 0, np.nan, coefficients
            )
            record['coefficients'] = coefficients.tolist()
            record['coefficient_errors'] = coefficient_errors(
                field, bases[0], fit, mask, voxel_size, b0_dir, field_sd, workers=threads
            ).tolist()
            record['implied_relaxivity'] = implied.tolist()
        self._results['record'] = record
        return runtime

    def _bases(self, mask, voxel_size):
        if self.inputs.basis == 'contrast':
            contrasts = [load(path) for path in self.inputs.contrasts]
            return contrast_cells(contrasts, mask, voxel_size)
        prior_chi = load(self.inputs.prior_chi)
        if self.inputs.basis == 'global':
            return [whole_map(prior_chi, mask)]
        return [clusters(prior_chi, mask)]
