"""Uncertainty of the preconditioned map, and what of it the field decided."""

import numpy as np
from nipype.interfaces.base import File, TraitedSpec, traits

from precondqsm_bids.interfaces.stage import Stage, WeightedInputSpec
from precondqsm_bids.interfaces.volumes import whole_numbers
from precondqsm_bids.numerics.recombination import reference_region
from precondqsm_bids.numerics.uncertainty import MapInputs, map_uncertainty


class UncertaintyInputSpec(WeightedInputSpec):
    local_field = File(exists=True, mandatory=True, desc='preconditioned local field, ppm')
    field_sd = File(exists=True, mandatory=True, desc='standard deviation of the field, ppm')
    prior_chi = File(exists=True, mandatory=True, desc='prior susceptibility, ppm')
    residual_chi = File(
        exists=True, mandatory=True, desc='susceptibility of the preconditioned local field, ppm'
    )
    prior_sd = File(exists=True, desc='standard deviation of the prior by its fit, ppm')
    reg_weight = traits.Float(desc='lambda of residual_chi, mm; undefined where it is zero')
    clip_outliers = traits.Bool(
        False, usedefault=True, desc='whether outliers of the field were held to their neighbours'
    )
    mask = File(exists=True, mandatory=True, desc='region of the map')
    reference = traits.Str(
        'roi-mean', usedefault=True, desc='none, roi-mean, or a name among label_names'
    )
    labels = File(exists=True, desc='segmentation on the same grid')
    label_names = traits.Dict(traits.Int, traits.Str, desc='names of the labels')


class UncertaintyOutputSpec(TraitedSpec):
    chi_sd = File(exists=True, desc='standard deviation of the susceptibility, ppm')
    support = File(exists=True, desc='part of the value that the field decided, 0 to 1')
    record = traits.Dict(desc='what the stage measured')


class Uncertainty(Stage):
    """What to believe of the map: :func:`precondqsm_bids.numerics.map_uncertainty`."""

    input_spec = UncertaintyInputSpec
    output_spec = UncertaintyOutputSpec
    like = 'residual_chi'

    def _compute(self):
        geometry, names = self._geometry(), self._given('label_names')
        images = (self._load(name) for name in MapInputs._fields[:4])
        choices = (self._given(name) for name in MapInputs._fields[4:-1])
        given = MapInputs(*images, *choices, self._load('prior_sd', np.float32))
        labels = self._load('labels', None)
        if labels is not None:
            labels = whole_numbers(labels, self.inputs.labels)
        reference = reference_region(self.inputs.reference, geometry.mask, labels, names)
        found = map_uncertainty(given, geometry, labels, reference)
        return {
            'chi_sd': found.chi_sd,
            'support': found.support,
            'record': found.record(geometry.mask, names),
        }
