"""Background removal: projection onto dipole fields (PDF)."""

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from precondqsm_bids.interfaces.volumes import b0_along, geometry, load, save
from precondqsm_bids.numerics.background_removal import pdf
from precondqsm_bids.numerics.solver import MODEL_ERROR, noise_weights


class BackgroundRemovalInputSpec(BaseInterfaceInputSpec):
    field = File(exists=True, mandatory=True, desc='measured or flattened field, ppm')
    field_sd = File(exists=True, desc='standard deviation of the field, ppm, for the weights')
    mask = File(exists=True, mandatory=True, desc='region of interest')
    model_error = traits.Range(
        0.0,
        value=MODEL_ERROR,
        exclude_low=True,
        usedefault=True,
        desc='what the model does not know of the field, ppm, for the weights',
    )
    iterations = traits.Range(1, 10000, value=30, usedefault=True, desc='gradient iterations')
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='threads of the transforms')


class BackgroundRemovalOutputSpec(TraitedSpec):
    local_field = File(exists=True, desc='field of the sources inside the mask, ppm')
    background_field = File(exists=True, desc='field of the sources outside, ppm')
    record = traits.Dict(desc='what the stage measured and chose')


class BackgroundRemoval(SimpleInterface):
    """Projection onto dipole fields: :func:`precondqsm_bids.numerics.pdf`."""

    input_spec = BackgroundRemovalInputSpec
    output_spec = BackgroundRemovalOutputSpec

    def _run_interface(self, runtime):
        _, voxel_size = geometry(self.inputs.field)
        mask = load(self.inputs.mask, bool)
        weights = None
        if self.inputs.field_sd:
            weights = noise_weights(load(self.inputs.field_sd), mask, self.inputs.model_error)
        result = pdf(
            load(self.inputs.field),
            mask,
            voxel_size,
            b0_along(self.inputs.field),
            weights,
            self.inputs.iterations,
            self.inputs.num_threads,
        )
        for name in ('local_field', 'background_field'):
            self._results[name] = save(getattr(result, name), self.inputs.field, runtime.cwd, name)
        self._results['record'] = {
            'iterations': self.inputs.iterations,
            'relative_residual': result.relative_residual,
            'noise_weights': weights is not None,
            'model_error': self.inputs.model_error if weights is not None else None,
        }
        return runtime
