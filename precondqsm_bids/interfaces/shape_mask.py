"""Shape mask: the object against air."""

from pathlib import Path

from nipype.interfaces.base import File, TraitedSpec, traits

from precondqsm_bids.interfaces.hashed import InputSpec
from precondqsm_bids.interfaces.stage import Stage
from precondqsm_bids.interfaces.volumes import geometry, load_magnitude
from precondqsm_bids.numerics.given_field import region_asked
from precondqsm_bids.numerics.shape_mask import region_of_interest


class ShapeMaskInputSpec(InputSpec):
    magnitude = File(exists=True, mandatory=True, desc='magnitude of the first echo, any unit')
    mask = File(exists=True, desc='region of interest; found in the magnitude if undefined')
    field = File(exists=True, desc='a given field, any unit: the region ends where it is 0 or NaN')
    erosion = traits.Range(
        0.0, 100.0, value=0.0, usedefault=True, desc='depth taken off the region of interest, mm'
    )
    inside = traits.Enum(
        'object',
        'auto',
        'brain',
        usedefault=True,
        desc='region without a mask: the object, the brain, or (auto) the brain of a head',
    )
    shape = traits.Bool(
        True, usedefault=True, desc='whether the shape is part of the first estimate'
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


class ShapeMask(Stage):
    """Object and region of interest: :func:`precondqsm_bids.numerics.region_of_interest`."""

    input_spec = ShapeMaskInputSpec
    output_spec = ShapeMaskOutputSpec
    like = 'magnitude'

    def _compute(self):
        inputs = self.inputs
        mask = region_asked(self._load('field'), self._load('mask'), inputs.inside)
        region = region_of_interest(
            load_magnitude(inputs.magnitude),
            geometry(inputs.magnitude)[1],
            mask,
            inputs.erosion,
            inputs.shape,
        )
        if not isinstance(mask, str):
            region.record['mask'] = Path(self._given('mask') or inputs.field).name
        return region._asdict()
