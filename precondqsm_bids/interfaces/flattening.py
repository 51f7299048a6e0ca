"""Flattening: the field of the first estimate, taken off the measured field."""

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    TraitedSpec,
    traits,
)

from precondqsm_bids.interfaces.stage import Stage
from precondqsm_bids.numerics.dipole import forward_field
from precondqsm_bids.numerics.flattening import flatten_field

WIDER = 1.05
"""Spread of the flattened field over that of the measured one that is warned of."""


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


class FlattenField(Stage):
    """Subtract the prior's field: :func:`precondqsm_bids.numerics.flatten_field`."""

    input_spec = FlattenFieldInputSpec
    output_spec = FlattenFieldOutputSpec
    like = 'total_field'

    def _compute(self):
        total_field, shape_chi = self._load('total_field'), self._load('shape_chi')
        mask, voxel_size, b0_dir, workers = self._geometry()
        flat = flatten_field(
            total_field, self._load('prior_chi'), mask, voxel_size, b0_dir, shape_chi, workers
        )
        spread, before = (
            float(np.std(field[mask], dtype=np.float64))
            for field in (flat.flattened_field, total_field)
        )
        record = {
            'shape': shape_chi is not None and bool(shape_chi.any()),
            'total_field_sd': before,
            'flattened_field_sd': spread,
            'warnings': [],
        }
        if record['shape'] and spread > WIDER * before:  # a shim, which the shape does not know
            field = forward_field(shape_chi, voxel_size, b0_dir, mask, workers)
            before = float(np.std((total_field - field)[mask], dtype=np.float64))
        if spread > WIDER * before:
            record['warnings'] = [
                f'the flattened field spreads more than the field does without the estimate '
                f'({spread:.3g} against {before:.3g} ppm): the estimate has a field that is not '
                'there'
            ]
        return flat._asdict() | {'record': record}
