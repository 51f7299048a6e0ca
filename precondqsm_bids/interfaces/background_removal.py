"""Background removal: projection onto dipole fields (PDF)."""

from nipype.interfaces.base import (
    File,
    TraitedSpec,
    traits,
)

from precondqsm_bids.interfaces.hashed import InputSpec
from precondqsm_bids.interfaces.stage import Stage
from precondqsm_bids.numerics.background_removal import pdf
from precondqsm_bids.numerics.solver import MODEL_ERROR, noise_weights


class BackgroundRemovalInputSpec(InputSpec):
    field = File(exists=True, mandatory=True, desc='measured or flattened field, ppm')
    field_sd = File(exists=True, desc='standard deviation of the field, ppm, for the weights')
    mask = File(exists=True, mandatory=True, desc='region of interest')
    model_error = traits.Range(
        0.0,
        value=MODEL_ERROR,
        exclude_low=True,
        usedefault=True,
        desc='model error of the field, ppm, for the weights',
    )
    iterations = traits.Range(1, value=30, usedefault=True, desc='gradient iterations')
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='threads of the transforms')


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
        inputs, field_sd = self.inputs, self._load('field_sd')
        mask, voxel_size, b0_dir, workers = self._geometry()
        weights = None
        if field_sd is not None:
            weights = noise_weights(field_sd, mask, inputs.model_error)
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
