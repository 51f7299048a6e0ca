"""Flattening: the field of the first estimate, taken off the measured field."""

from nipype.interfaces.base import (
    File,
    TraitedSpec,
    traits,
)

from precondqsm_bids.interfaces.hashed import InputSpec
from precondqsm_bids.interfaces.stage import Stage
from precondqsm_bids.numerics.flattening import flatten_field


class FlattenFieldInputSpec(InputSpec):
    total_field = File(exists=True, mandatory=True, desc='measured relative field, ppm')
    prior_chi = File(exists=True, mandatory=True, desc='prior susceptibility, ppm')
    shape_chi = File(exists=True, desc='susceptibility of the shape relative to air, ppm')
    tissue_shift = File(
        exists=True, desc='frequency of the tissue that is no field of a dipole, ppm'
    )
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
        geometry = self._geometry()
        flat = flatten_field(
            total_field, self._load('prior_chi'), *geometry[:3], shape_chi, geometry.workers,
            self._load('tissue_shift'),
        )  # fmt: skip
        record = flat.record(total_field, geometry, shape_chi)
        return flat._asdict() | {'record': record}
