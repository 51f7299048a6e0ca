"""Around an inversion of somebody else's: the field it is given, and the map that it leaves."""

from nipype.interfaces.base import File, TraitedSpec, traits

from precondqsm_bids.interfaces.hashed import InputSpec
from precondqsm_bids.interfaces.stage import Stage
from precondqsm_bids.interfaces.volumes import is_image
from precondqsm_bids.numerics.given_field import UNITS, from_ppm
from precondqsm_bids.numerics.precondition import check_residual


class FieldInUnitsInputSpec(InputSpec):
    field = File(exists=True, mandatory=True, desc='field, ppm')
    units = traits.Enum(*UNITS, usedefault=True, desc='units of the output')
    field_strength = traits.Float(mandatory=True, desc='B0, T')


class FieldInUnitsOutputSpec(TraitedSpec):
    field = File(exists=True, desc='field in these units')


class FieldInUnits(Stage):
    """A field in the units of another program."""

    input_spec = FieldInUnitsInputSpec
    output_spec = FieldInUnitsOutputSpec
    like = 'field'

    def _compute(self):
        inputs = self.inputs
        return {'field': from_ppm(self._load('field'), inputs.units, inputs.field_strength)}


class TakeMapInputSpec(InputSpec):
    residual_chi = File(
        exists=True, mandatory=True, desc='susceptibility by another program, ppm, NIfTI'
    )
    field = File(exists=True, mandatory=True, desc='the field that it was made of, ppm')
    mask = File(exists=True, mandatory=True, desc='where it is known')
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='threads of the transforms')


class TakeMapOutputSpec(TraitedSpec):
    residual_chi = File(exists=True, desc='the same map, ppm')
    record = traits.Dict(desc='what the stage measured')


class TakeMap(Stage):
    """Check a map: :func:`precondqsm_bids.numerics.precondition.check_residual`."""

    input_spec = TakeMapInputSpec
    output_spec = TakeMapOutputSpec
    like = 'field'

    def _compute(self):
        path = self.inputs.residual_chi
        if not is_image(path):
            raise ValueError(f'{path} is no NIfTI file (.nii or .nii.gz): convert it')
        chi = self._load('residual_chi')
        record = check_residual(chi, self._load('field'), self._geometry())
        return {'residual_chi': chi, 'record': record}
