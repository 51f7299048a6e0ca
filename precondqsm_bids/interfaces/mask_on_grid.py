"""Mask on the grid of a run: taken there by the affines of both."""

from pathlib import Path

import numpy as np
from nipype.interfaces.base import File, SimpleInterface, TraitedSpec

from precondqsm_bids.interfaces.hashed import InputSpec
from precondqsm_bids.interfaces.tissue_maps import on_grid
from precondqsm_bids.interfaces.volumes import canonical, load_stored, open_image, save


class MaskOnGridInputSpec(InputSpec):
    mask = File(exists=True, mandatory=True, desc='mask in the same scanner coordinates')
    grid = File(exists=True, mandatory=True, desc='image on the grid of the run')


class MaskOnGridOutputSpec(TraitedSpec):
    mask = File(exists=True, desc='the mask on the grid, under the name it had')


class MaskOnGrid(SimpleInterface):
    """A mask on the grid of a run, resampled to the nearest neighbour."""

    input_spec = MaskOnGridInputSpec
    output_spec = MaskOnGridOutputSpec

    def _run_interface(self, runtime):
        path = self.inputs.mask
        data, image = load_stored(path)
        grid = open_image(self.inputs.grid)
        resampled = on_grid(data.astype(np.float32), image, grid, 0)
        stem = Path(path).name.partition('.')[0]
        self._results['mask'] = save(
            canonical(resampled, grid.affine), self.inputs.grid, runtime.cwd, stem
        )
        return runtime
