"""What the node of the outputs writes of maps in files: for tests of figures and pages."""

import nibabel as nb
import numpy as np

from precondqsm_bids.interfaces import derivatives
from precondqsm_bids.outputs import slices

SHAPE = (20, 24, 28)


def save(folder, name, data, affine):
    path = folder / f'{name}.nii.gz'
    nb.Nifti1Image(np.asarray(data), affine).to_filename(path)
    return str(path)


def write(maps, tmp_path, **inputs):
    """Write the derivatives of maps; their folder of figures."""
    tmp_path.mkdir(exist_ok=True)
    facts = {'sources': [], 'echo_times': [0.004], 'field_strength': 3.0}
    given = {'record': {}, 'stems': {'anat': 'sub-01'}, 'folder': 'sub-01', 'facts': facts}
    node = derivatives.Derivatives(base_directory=str(tmp_path), **maps, **given | inputs)
    node.run(cwd=tmp_path)
    return tmp_path / 'sub-01' / 'figures'


def zeros(tmp_path, affine):
    """Files of the maps that a run has, in a grid: nothing inside, all of it object."""
    nothing = save(tmp_path, 'zero', np.zeros(SHAPE, np.float32), affine)
    mask = save(tmp_path, 'mask', np.ones(SHAPE, np.uint8), affine)
    return dict.fromkeys(slices.DRAWN, nothing) | {'shape_mask': mask, 'roi_mask': mask}
