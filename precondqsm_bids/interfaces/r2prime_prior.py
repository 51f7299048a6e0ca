"""R2' prior: a first estimate of the susceptibility from static-dephasing theory."""

from pathlib import Path

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from precondqsm_bids.interfaces.volumes import check_finite, load, save
from precondqsm_bids.numerics.prior.r2prime import r2prime_prior, relaxivity
from precondqsm_bids.numerics.prior.tissue import R2_CITATION, literature_r2

R2_RANGE = (0.2, 2000.0)
"""1/s: the median R2 of a map lies within, or its unit is another."""


class R2PrimePriorInputSpec(BaseInterfaceInputSpec):
    r2star = File(exists=True, mandatory=True, desc='effective transverse relaxation rate, 1/s')
    mask = File(exists=True, mandatory=True, desc='region of interest')
    reliable = File(exists=True, desc='voxels whose R2* is to be trusted')
    field_strength = traits.Float(mandatory=True, desc='B0, T')
    r2_source = traits.Enum(
        'median',
        'number',
        'map',
        'literature',
        usedefault=True,
        desc='median of R2*, the number r2, the map r2_map, or by the class of the tissue',
    )
    r2 = traits.Float(desc='transverse relaxation rate, 1/s')
    r2_map = File(exists=True, desc='R2 (1/s) or T2 (s) on the grid of R2*')
    r2_map_kind = traits.Enum('R2map', 'T2map', desc='which of the two r2_map is')
    tissue = File(exists=True, desc='class of each voxel (3D) or shares of the classes (4D)')
    tissue_names = traits.List(traits.Str, desc='names of the tissue classes')


class R2PrimePriorOutputSpec(TraitedSpec):
    prior_chi = File(exists=True, desc='prior susceptibility, ppm')
    r2prime = File(exists=True, desc='reversible relaxation rate, 1/s')
    record = traits.Dict(desc='what the stage measured and chose')


class R2PrimePrior(SimpleInterface):
    """Susceptibility from R2': :func:`precondqsm_bids.numerics.r2prime_prior`."""

    input_spec = R2PrimePriorInputSpec
    output_spec = R2PrimePriorOutputSpec

    def _run_interface(self, runtime):
        mask = load(self.inputs.mask, bool)
        reliable = load(self.inputs.reliable, bool) if self.inputs.reliable else None
        r2, source = self._r2(mask)
        prior = r2prime_prior(
            load(self.inputs.r2star), mask, self.inputs.field_strength, r2, reliable
        )
        for name in ('prior_chi', 'r2prime'):
            self._results[name] = save(getattr(prior, name), self.inputs.r2star, runtime.cwd, name)
        self._results['record'] = {
            'r2': prior.r2,
            'r2_source': source,
            'relaxivity': relaxivity(self.inputs.field_strength),
        }
        return runtime

    def _r2(self, mask):
        """R2 (1/s; None for the median of R2*), and where it comes from."""
        inputs = self.inputs
        if inputs.r2_source == 'median':
            return None, 'median of R2* in the region of interest'
        if inputs.r2_source == 'number':
            if inputs.r2 == 0:
                return 0.0, "R2* used as R2' (R2 taken as 0)"
            return inputs.r2, 'given'
        if inputs.r2_source == 'map':
            if not isdefined(inputs.r2_map):
                raise ValueError('R2 is to come from a map, and there is none: give r2_map')
            return self._mapped(mask), f'{inputs.r2_map_kind}: {Path(inputs.r2_map).name}'
        if not isdefined(inputs.tissue):
            raise ValueError('the R2 of the literature needs tissue classes: give tissue')
        tissue = load(inputs.tissue, None)
        try:
            r2 = literature_r2(tissue, inputs.tissue_names, mask, inputs.field_strength)
        except ValueError as error:
            raise ValueError(
                f'{error} (segmentation {inputs.tissue}); give --r2 NUMBER, median or map'
            ) from error
        return r2, f'literature, by tissue class: {R2_CITATION}'

    def _mapped(self, mask):
        """R2 (1/s) of the map; where it has no positive value, the median of those it has."""
        path, kind = self.inputs.r2_map, self.inputs.r2_map_kind
        data = load(path)
        check_finite(data, path)
        if data.shape != mask.shape:
            raise ValueError(
                f'{path} {data.shape} and {self.inputs.r2star} {mask.shape} differ in matrix '
                'size: resample the map'
            )
        known = mask & (data > 0)
        if not known.any():
            raise ValueError(f'{path} has no positive value in the region of interest')
        r2 = np.zeros(mask.shape, np.float32)
        r2[known] = data[known] if kind == 'R2map' else 1 / data[known]
        median = float(np.median(r2[known]))
        low, high = R2_RANGE
        if not low <= median <= high:
            raise ValueError(
                f'{path}: the median R2 would be {median:.3g}/s, not between {low} and {high:g}; '
                'an R2map is in 1/s and a T2map in s: convert it, or give --r2 NUMBER'
            )
        r2[mask & ~known] = median
        return r2
