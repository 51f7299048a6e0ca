"""Comparison of the two arms without a truth."""

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from precondqsm_bids.interfaces.volumes import b0_along, geometry, load
from precondqsm_bids.numerics.background_removal import noise_weights
from precondqsm_bids.numerics.comparison import compare

_FIELDS = ('local_field', 'conventional_local_field', 'chi', 'conventional_chi')


class ComparisonInputSpec(BaseInterfaceInputSpec):
    local_field = File(exists=True, mandatory=True, desc='preconditioned local field, ppm')
    conventional_local_field = File(exists=True, mandatory=True, desc='the same without, ppm')
    chi = File(exists=True, mandatory=True, desc='preconditioned susceptibility, ppm')
    conventional_chi = File(exists=True, mandatory=True, desc='conventional susceptibility, ppm')
    field_sd = File(exists=True, mandatory=True, desc='standard deviation of the field, ppm')
    mask = File(exists=True, mandatory=True, desc='region of interest')
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='threads of the transforms')


class ComparisonOutputSpec(TraitedSpec):
    record = traits.Dict(desc='what the stage measured')


class Comparison(SimpleInterface):
    """Did the prior help? :func:`precondqsm_bids.numerics.compare`."""

    input_spec = ComparisonInputSpec
    output_spec = ComparisonOutputSpec

    def _run_interface(self, runtime):
        _, voxel_size = geometry(self.inputs.chi)
        mask = load(self.inputs.mask, bool)
        result = compare(
            *(load(getattr(self.inputs, name)) for name in _FIELDS),
            mask,
            voxel_size,
            b0_along(self.inputs.chi),
            noise_weights(load(self.inputs.field_sd), mask),
            self.inputs.num_threads,
        )
        self._results['record'] = {
            'explained': result.explained,
            'streaking': result.streaking,
            'conventional_streaking': result.conventional_streaking,
            'warnings': list(result.warnings),
        }
        return runtime
