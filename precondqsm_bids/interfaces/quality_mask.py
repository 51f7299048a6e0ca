"""Mask of the quality of the field: the region without a border whose field is uncertain."""

from nipype.interfaces.base import File, TraitedSpec, traits

from precondqsm_bids.interfaces.hashed import InputSpec
from precondqsm_bids.interfaces.stage import Stage
from precondqsm_bids.numerics.quality_mask import quality_mask


class QualityMaskInputSpec(InputSpec):
    field_sd = File(exists=True, mandatory=True, desc='standard deviation of the field, ppm')
    mask = File(exists=True, mandatory=True, desc='region of interest')


class QualityMaskOutputSpec(TraitedSpec):
    roi_mask = File(exists=True, desc='region without a border whose field is uncertain')
    record = traits.Dict(desc='what the stage measured and chose')


class QualityMask(Stage):
    """Region whose field is certain: :func:`precondqsm_bids.numerics.quality_mask`."""

    input_spec = QualityMaskInputSpec
    output_spec = QualityMaskOutputSpec
    like = 'field_sd'

    def _compute(self):
        found = quality_mask(self._load('field_sd'), self._load('mask', bool))
        return {'roi_mask': found.mask, 'record': found.record()}
