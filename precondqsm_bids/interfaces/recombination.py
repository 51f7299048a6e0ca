"""Recombination: residual plus prior, against a stated reference."""

from nipype.interfaces.base import File, TraitedSpec, traits

from precondqsm_bids.interfaces.hashed import InputSpec
from precondqsm_bids.interfaces.stage import Stage
from precondqsm_bids.interfaces.volumes import geometry
from precondqsm_bids.numerics.recombination import recombine, reference_region


class RecombinationInputSpec(InputSpec):
    residual_chi = File(exists=True, mandatory=True, desc='inverted susceptibility, ppm')
    prior_chi = File(exists=True, desc='prior susceptibility, ppm; none in a conventional arm')
    mask = File(exists=True, mandatory=True, desc='region of interest')
    reference = traits.Str(
        'roi-mean', usedefault=True, desc='none, roi-mean, or a name among label_names'
    )
    labels = File(exists=True, desc='segmentation on the same grid')
    label_names = traits.Dict(traits.Int, traits.Str, desc='names of the labels')


class RecombinationOutputSpec(TraitedSpec):
    chi = File(exists=True, desc='susceptibility relative to the reference, ppm')
    record = traits.Dict(desc='what the stage measured and chose')


class Recombination(Stage):
    """Add the prior and reference the map: :func:`precondqsm_bids.numerics.recombine`."""

    input_spec = RecombinationInputSpec
    output_spec = RecombinationOutputSpec
    like = 'residual_chi'

    def _compute(self):
        name, mask = self.inputs.reference, self._load('mask', bool)
        labels, names = self._load('labels', None), self._given('label_names')
        result = recombine(
            self._load('residual_chi'),
            self._load('prior_chi'),
            mask,
            reference_region(name, mask, labels, names),
        )
        voxel_size = geometry(self.inputs.residual_chi)[1]
        return {'chi': result.chi, 'record': result.record(name, voxel_size)}
