"""Recombination: residual plus prior, against a stated reference."""

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from precondqsm_bids.interfaces.volumes import geometry, load, save
from precondqsm_bids.numerics.recombination import recombine


class RecombinationInputSpec(BaseInterfaceInputSpec):
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


class Recombination(SimpleInterface):
    """Add the prior and reference the map: :func:`precondqsm_bids.numerics.recombine`."""

    input_spec = RecombinationInputSpec
    output_spec = RecombinationOutputSpec

    def _run_interface(self, runtime):
        mask = load(self.inputs.mask, bool)
        result = recombine(
            load(self.inputs.residual_chi),
            load(self.inputs.prior_chi) if self.inputs.prior_chi else None,
            mask,
            self._reference(mask),
        )
        self._results['chi'] = save(result.chi, self.inputs.residual_chi, runtime.cwd, 'chi')
        record = {
            'reference': self.inputs.reference,
            'reference_value': result.reference_value,
            'reference_sd': result.reference_sd,
            'roi_mean': result.roi_mean,
            'roi_sd': result.roi_sd,
        }
        if len(result.bodies) > 1:
            record['bodies'] = self._of_bodies(result.bodies)
            record['warnings'] = self._without_label(result.bodies)
        self._results['record'] = record
        return runtime

    def _of_bodies(self, found):
        """What each of several bodies that are not connected is relative to."""
        name = self.inputs.reference
        voxel = float(np.prod(geometry(self.inputs.mask)[1])) / 1000  # mL
        other = 'none' if name == 'none' else 'roi-mean'
        return [
            {
                'voxels': body.voxels,
                'volume': round(body.voxels * voxel, 3),
                'reference': name if body.held else other,
                'reference_value': body.value,
                'reference_sd': body.sd,
                'mean': body.mean,
            }
            for body in found
        ]

    def _without_label(self, found):
        """A warning if some bodies do not hold the label that is the reference."""
        name = self.inputs.reference
        alone = [str(number) for number, body in enumerate(found, start=1) if not body.held]
        if not alone or name == 'none':
            return []
        return [
            f'the region has {len(found)} bodies that are not connected (numbered by size): body '
            f'{", ".join(alone)} does not hold the reference {name!r} and is relative to its own '
            'mean'
        ]

    def _reference(self, mask):
        name = self.inputs.reference
        if name == 'none':
            return None
        if name == 'roi-mean':
            return mask
        names = self.inputs.label_names or {}
        indices = [index for index, label in names.items() if label == name]
        if not indices or not self.inputs.labels:
            known = ', '.join(sorted(names.values())) or 'there is no segmentation'
            raise ValueError(
                f'no label is named {name!r} to reference the map to (labels: {known}); '
                'use --reference none, roi-mean or one of the labels'
            )
        return np.isin(load(self.inputs.labels, None), indices)
