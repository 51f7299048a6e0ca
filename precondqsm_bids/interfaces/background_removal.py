"""Background removal: projection onto dipole fields (PDF) or means over spheres (V-SHARP)."""

import numpy as np
from nipype.interfaces.base import File, TraitedSpec, traits

from precondqsm_bids.interfaces.stage import Stage, WeightedInputSpec
from precondqsm_bids.method import BACKGROUNDS, Arm
from precondqsm_bids.numerics.background_removal import remove_background


class BackgroundRemovalInputSpec(WeightedInputSpec):
    field = File(exists=True, mandatory=True, desc='measured or flattened field, ppm')
    mask = File(exists=True, mandatory=True, desc='region of interest')
    background = traits.Enum(*BACKGROUNDS, usedefault=True, desc='how the field is split')
    iterations = traits.Range(1, value=30, usedefault=True, desc='gradient iterations of pdf')
    start = File(
        exists=True, desc='sources outside that pdf begins with, ppm, as NumPy writes them'
    )


class BackgroundRemovalOutputSpec(TraitedSpec):
    local_field = File(exists=True, desc='field of the sources inside the mask, ppm')
    background_field = File(exists=True, desc='field of the sources outside, ppm')
    roi_mask = File(
        exists=True, desc='region without the rim that vsharp does not know; undefined with pdf'
    )
    record = traits.Dict(desc='what the stage measured and chose')


class BackgroundRemoval(Stage):
    """Local field: :func:`precondqsm_bids.numerics.remove_background`."""

    input_spec = BackgroundRemovalInputSpec
    output_spec = BackgroundRemovalOutputSpec
    like = 'field'

    def _compute(self):
        arm = Arm(iterations=self.inputs.iterations, background=self.inputs.background)
        geometry = self._geometry()
        weights = self._weights(geometry.mask)
        path = self._given('start')
        start = None if path is None else np.load(path)
        result = remove_background(self._load('field'), geometry, arm, weights, start)
        model_error = None if weights is None else self.inputs.model_error
        return {
            'local_field': result.local_field,
            'background_field': result.background_field,
            'roi_mask': None if arm.background == 'pdf' else result.known,
            'record': result.record(arm, model_error),
        }
