"""Shape mask: the object against air."""

from pathlib import Path

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)
from scipy import ndimage

from precondqsm_bids.interfaces.volumes import (
    check_finite,
    geometry,
    load,
    load_magnitude,
    save,
)
from precondqsm_bids.numerics.constants import AIR_CHI, WATER_CHI
from precondqsm_bids.numerics.shape_mask import (
    LEAST_REGION,
    LEAST_SURFACE,
    WHOLE,
    shape_mask,
    surface_fraction,
)

NO_AIR_WORDS = (
    'there is no air in the field of view: all of it was taken for the object, and its shape is '
    'not known'
)


class ShapeMaskInputSpec(BaseInterfaceInputSpec):
    magnitude = File(exists=True, mandatory=True, desc='magnitude of the first echo, any unit')
    mask = File(exists=True, desc='region of interest; the object if undefined')
    erosion = traits.Range(
        0.0, 100.0, value=0.0, usedefault=True, desc='depth taken off the region of interest, mm'
    )
    step = traits.Float(
        WATER_CHI - AIR_CHI, usedefault=True, desc='susceptibility of the object in air, ppm'
    )


class ShapeMaskOutputSpec(TraitedSpec):
    shape_mask = File(exists=True, desc='object (1) against air (0)')
    roi_mask = File(
        exists=True, desc='object without border voxels that are partly air, inside the mask'
    )
    shape_chi = File(
        exists=True,
        desc='susceptibility of the shape relative to air, ppm; zero if the mask lies inside it',
    )
    shape_sd = File(exists=True, desc='expected error of shape_chi at the surface, ppm')
    inner = traits.Bool(desc='whether the mask lies inside the object, its border off the surface')
    record = traits.Dict(desc='what the stage measured and chose')


class ShapeMask(SimpleInterface):
    """The object from the magnitude: :func:`precondqsm_bids.numerics.shape_mask`."""

    input_spec = ShapeMaskInputSpec
    output_spec = ShapeMaskOutputSpec

    def _run_interface(self, runtime):
        source, given = self.inputs.magnitude, isdefined(self.inputs.mask)
        magnitude = load_magnitude(source)
        try:
            shape = shape_mask(magnitude, self.inputs.step, voxel_size=geometry(source)[1])
        except ValueError as error:
            raise ValueError(f'{source}: {error}') from error
        roi = shape.roi_mask
        if given:
            roi = roi & self._given_mask(roi.shape)
        whole = np.count_nonzero(roi)
        if given and not whole:
            raise ValueError(
                f'{self.inputs.mask} has no voxel in common with the object of {source} '
                f'({np.count_nonzero(shape.roi_mask)} voxels): give a mask of this image'
            )
        if whole < LEAST_REGION:
            raise ValueError(
                f'{self.inputs.mask if given else source}: the region of interest has {whole} '
                f'voxels, fewer than {LEAST_REGION}: the object is too small for these voxels, or '
                'not in the image'
            )
        if self.inputs.erosion > 0:
            roi = erode(roi, geometry(source)[1], self.inputs.erosion)
            if (left := np.count_nonzero(roi)) < LEAST_REGION:
                raise ValueError(
                    f'{self.inputs.mask if given else source}: an erosion of '
                    f'{self.inputs.erosion:g} mm leaves {left} of the {whole} voxels of the '
                    f'region of interest, fewer than {LEAST_REGION}: give a smaller --mask-erosion'
                )
        whole_view = bool(shape.shape_mask.all())
        share = surface_fraction(roi, shape.shape_mask) if given or whole_view else 1.0
        used = np.float32(share >= LEAST_SURFACE)
        for name, data in (
            ('shape_mask', shape.shape_mask),
            ('roi_mask', roi),
            ('shape_chi', used * shape.shape_chi),
            ('shape_sd', used * shape.shape_sd),
        ):
            self._results[name] = save(data, source, runtime.cwd, name)
        self._results['inner'] = not used
        self._results['record'] = {
            'threshold': shape.threshold,
            'step': self.inputs.step,
            'shape_voxels': int(np.count_nonzero(shape.shape_mask)),
            'roi_voxels': int(np.count_nonzero(roi)),
            'least_filled_fraction': WHOLE,
            'mask': Path(self.inputs.mask).name if given else 'auto',
            'erosion': self.inputs.erosion,
            'eroded_voxels': int(whole - np.count_nonzero(roi)),
            'surface_fraction': share,
            'shape_used': bool(used),
            'warnings': [NO_AIR_WORDS] if whole_view else [],
        }
        return runtime

    def _given_mask(self, shape):
        """The mask that was given, as booleans."""
        path = self.inputs.mask
        data = load(path)
        check_finite(data, path)
        if data.shape != shape:
            raise ValueError(
                f'{path} {data.shape} and {self.inputs.magnitude} {shape} differ in matrix size: '
                'resample the mask'
            )
        values = np.unique(data)
        if not values.any():
            raise ValueError(f'{path} is an empty mask (0 in every voxel): give another')
        if len(values[values != 0]) > 1:
            raise ValueError(
                f'{path} is no mask: it has {len(values)} different values, from {values[0]:g} to '
                f'{values[-1]:g}; a mask is 0 outside and 1 inside'
            )
        return data != 0


def erode(mask, voxel_size, depth):
    """The voxels of a mask that are deeper than ``depth`` (mm), counted from voxel centres.

    The edge of the field of view is no border: a slab is cut there, and does not end.

    >>> int(erode(np.ones((3, 3, 3), bool), (1, 1, 1), 1).sum())
    27
    >>> mask = np.zeros((1, 1, 9), bool); mask[..., 1:8] = True
    >>> int(erode(mask, (1, 1, 2), 2).sum())
    5
    """
    if mask.all():
        return mask
    return ndimage.distance_transform_edt(mask, sampling=voxel_size) > depth
