"""Flattening: the field of the first estimate, taken off the measured field."""

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from precondqsm_bids.interfaces.volumes import b0_along, geometry, load, save
from precondqsm_bids.numerics.flattening import flatten_field


class FlattenFieldInputSpec(BaseInterfaceInputSpec):
    total_field = File(exists=True, mandatory=True, desc='measured relative field, ppm')
    prior_chi = File(exists=True, mandatory=True, desc='prior susceptibility, ppm')
    shape_chi = File(exists=True, desc='susceptibility of the shape relative to air, ppm')
    mask = File(exists=True, mandatory=True, desc='where the field was measured')
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='threads of the transforms')


class FlattenFieldOutputSpec(TraitedSpec):
    flattened_field = File(exists=True, desc='field that the estimate does not explain, ppm')
    prior_field = File(exists=True, desc='field of the estimate, ppm')
    record = traits.Dict(desc='what the stage measured and chose')


class FlattenField(SimpleInterface):
    """Subtract the prior's field: :func:`precondqsm_bids.numerics.flatten_field`."""

    input_spec = FlattenFieldInputSpec
    output_spec = FlattenFieldOutputSpec

    def _run_interface(self, runtime):
        _, voxel_size = geometry(self.inputs.total_field)
        total_field = load(self.inputs.total_field)
        mask = load(self.inputs.mask, bool)
        shape_chi = load(self.inputs.shape_chi) if self.inputs.shape_chi else None
        flat = flatten_field(
            total_field,
            load(self.inputs.prior_chi),
            mask,
            voxel_size,
            b0_along(self.inputs.total_field),
            shape_chi,
            self.inputs.num_threads,
        )
        for name in ('flattened_field', 'prior_field'):
            self._results[name] = save(
                getattr(flat, name), self.inputs.total_field, runtime.cwd, name
            )
        self._results['record'] = {
            'shape': shape_chi is not None and bool(shape_chi.any()),
            'total_field_sd': float(np.std(total_field[mask], dtype=np.float64)),
            'flattened_field_sd': float(np.std(flat.flattened_field[mask], dtype=np.float64)),
        }
        return runtime
