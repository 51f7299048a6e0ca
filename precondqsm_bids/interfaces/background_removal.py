"""Background removal: projection onto dipole fields (PDF)."""

from nipype.interfaces.base import File, TraitedSpec, traits

from precondqsm_bids.interfaces.stage import Stage, WeightedInputSpec
from precondqsm_bids.numerics.background_removal import pdf


class BackgroundRemovalInputSpec(WeightedInputSpec):
    field = File(exists=True, mandatory=True, desc='measured or flattened field, ppm')
    mask = File(exists=True, mandatory=True, desc='region of interest')
    iterations = traits.Range(1, value=30, usedefault=True, desc='gradient iterations')


class BackgroundRemovalOutputSpec(TraitedSpec):
    local_field = File(exists=True, desc='field of the sources inside the mask, ppm')
    background_field = File(exists=True, desc='field of the sources outside, ppm')
    record = traits.Dict(desc='what the stage measured and chose')


class BackgroundRemoval(Stage):
    """Projection onto dipole fields: :func:`precondqsm_bids.numerics.pdf`."""

    input_spec = BackgroundRemovalInputSpec
    output_spec = BackgroundRemovalOutputSpec
    like = 'field'

    def _compute(self):
        inputs = self.inputs
        mask, voxel_size, b0_dir, workers = self._geometry()
        weights = self._weights(mask)
        result = pdf(
            self._load('field'), mask, voxel_size, b0_dir, weights, inputs.iterations, workers
        )
        record = {
            'iterations': inputs.iterations,
            'relative_residual': result.relative_residual,
            'noise_weights': weights is not None,
            'model_error': inputs.model_error if weights is not None else None,
        }
        return {
            'local_field': result.local_field,
            'background_field': result.background_field,
            'record': record,
        }
