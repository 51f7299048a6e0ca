"""Shape mask: the object against air."""

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from precondqsm_bids.interfaces.volumes import load, save
from precondqsm_bids.numerics.constants import AIR_CHI, WATER_CHI
from precondqsm_bids.numerics.shape_mask import WHOLE, shape_mask


class ShapeMaskInputSpec(BaseInterfaceInputSpec):
    magnitude = File(exists=True, mandatory=True, desc='magnitude of the first echo, any unit')
    step = traits.Float(
        WATER_CHI - AIR_CHI, usedefault=True, desc='susceptibility of the object in air, ppm'
    )


class ShapeMaskOutputSpec(TraitedSpec):
    shape_mask = File(exists=True, desc='object (1) against air (0)')
    roi_mask = File(exists=True, desc='object without border voxels that are partly air')
    shape_chi = File(exists=True, desc='susceptibility of the shape relative to air, ppm')
    shape_sd = File(exists=True, desc='expected error of shape_chi at the surface, ppm')
    record = traits.Dict(desc='what the stage measured and chose')


class ShapeMask(SimpleInterface):
    """The object from the magnitude: :func:`precondqsm_bids.numerics.shape_mask`."""

    input_spec = ShapeMaskInputSpec
    output_spec = ShapeMaskOutputSpec

    def _run_interface(self, runtime):
        source = self.inputs.magnitude
        try:
            shape = shape_mask(load(source), self.inputs.step)
        except ValueError as error:
            raise ValueError(f'{source}: {error}') from error
        for name in ('shape_mask', 'roi_mask', 'shape_chi', 'shape_sd'):
            self._results[name] = save(getattr(shape, name), source, runtime.cwd, name)
        self._results['record'] = {
            'threshold': shape.threshold,
            'step': self.inputs.step,
            'shape_voxels': int(np.count_nonzero(shape.shape_mask)),
            'roi_voxels': int(np.count_nonzero(shape.roi_mask)),
            'least_filled_fraction': WHOLE,
        }
        return runtime
