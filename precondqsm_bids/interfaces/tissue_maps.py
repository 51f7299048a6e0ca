"""Tissue maps: the classes of a segmentation on the grid of a run."""

import nibabel as nb
import numpy as np
from nibabel.processing import resample_from_to
from nipype.interfaces.base import (
    File,
    InputMultiPath,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from precondqsm_bids.interfaces.hashed import InputSpec
from precondqsm_bids.interfaces.volumes import (
    canonical,
    load_stored,
    open_image,
    save,
    whole_numbers,
)
from precondqsm_bids.numerics.arrays import check_finite


class TissueMapsInputSpec(InputSpec):
    segmentation = InputMultiPath(
        File(exists=True),
        mandatory=True,
        desc='one label image, or one map of fractions (0 to 1) for each of `classes`',
    )
    classes = traits.List(traits.Str, mandatory=True, desc='names of the tissue classes')
    label_classes = traits.Dict(
        traits.Int,
        traits.Str,
        desc='label -> class, if the segmentation is a label image; other labels are no tissue',
    )
    grid = File(exists=True, mandatory=True, desc='image on the grid of the run')


class TissueMapsOutputSpec(TraitedSpec):
    tissue = File(
        exists=True,
        desc='class of each voxel, 1 to the number of classes (3D), or their fractions (4D)',
    )


class TissueMaps(SimpleInterface):
    """A segmentation as classes, taken to the grid of a run by the affines where it is on another.

    Labels are resampled to the nearest neighbour, fractions linearly.
    """

    input_spec = TissueMapsInputSpec
    output_spec = TissueMapsOutputSpec

    def _run_interface(self, runtime):
        paths, classes = self.inputs.segmentation, self.inputs.classes
        grid = open_image(self.inputs.grid)
        labelled = isdefined(self.inputs.label_classes)
        named = set(self.inputs.label_classes.values()) if labelled else set()
        if unknown := sorted(named.difference(classes)):
            raise ValueError(f'label_classes has {", ".join(unknown)}, not among the classes')
        if not labelled and len(paths) != len(classes):
            raise ValueError(
                f'{len(paths)} images of segmentation for {len(classes)} classes: give one each, '
                'or a label image with label_classes'
            )
        if labelled:
            numbers = {
                label: classes.index(name) + 1 for label, name in self.inputs.label_classes.items()
            }
            data, image = self._load(paths[0])
            labels, inverse = np.unique(whole_numbers(data, paths[0]), return_inverse=True)
            found = np.array([numbers.get(int(label), 0) for label in labels], np.int16)
            tissue = on_grid(found[inverse].reshape(data.shape), image, grid, 0).astype(np.int16)
            empty = not tissue.any()
        else:
            tissue = np.empty((*grid.shape[:3], len(classes)), np.float32)
            for i, path in enumerate(paths):
                data, image = self._load(path)
                if not (data.min() >= -0.01 and data.max() <= 1.01):
                    raise ValueError(
                        f'{path} has values from {data.min():g} to {data.max():g}; the fractions '
                        'of a tissue (_probseg) are 0 to 1: divide them by the largest'
                    )
                tissue[..., i] = on_grid(data.astype(np.float32), image, grid, 1)
            empty = not np.any(tissue > 0.01)
        if empty:
            raise ValueError(
                f'{paths[0]} has no tissue ({", ".join(classes)}) within {self.inputs.grid}: give '
                'a segmentation of this head'
            )
        self._results['tissue'] = save(
            canonical(tissue, grid.affine), self.inputs.grid, runtime.cwd, 'tissue'
        )
        return runtime

    def _load(self, path):
        data, image = load_stored(path)
        check_finite(data, path)
        return data, image


def on_grid(data, image, grid, order):
    """The data of an image on another's grid; as they are where the two are the same."""
    shape = grid.shape[:3]
    if data.shape == shape and np.allclose(image.affine, grid.affine, rtol=0, atol=1e-3):
        return data
    source = nb.Nifti1Image(data, image.affine)
    return np.asanyarray(
        resample_from_to(source, (shape, grid.affine), order, mode='constant', cval=0.0).dataobj
    )
