"""Dipole inversion: closed-form l2, lambda by a rule."""

from nipype.interfaces.base import (
    File,
    TraitedSpec,
    traits,
)

from precondqsm_bids.interfaces.hashed import InputSpec
from precondqsm_bids.interfaces.stage import Stage
from precondqsm_bids.numerics.dipole_inversion import RULES, l2_inversion


class DipoleInversionInputSpec(InputSpec):
    local_field = File(exists=True, mandatory=True, desc='field of the inner sources, ppm')
    mask = File(exists=True, mandatory=True, desc='region of interest')
    reg_weight = traits.Float(desc='lambda, mm; by the rule if undefined')
    rule = traits.Enum(*RULES, usedefault=True, desc='how lambda is chosen if it is undefined')
    clip_outliers = traits.Bool(
        False, usedefault=True, desc='limit single outliers of the field to their neighbours'
    )
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='threads of the transforms')


class DipoleInversionOutputSpec(TraitedSpec):
    chi = File(exists=True, desc='susceptibility, ppm')
    reg_weight = traits.Float(desc='lambda that was used, mm; undefined where the field is zero')
    l_curve = traits.Dict(desc='the whole L-curve, its corner and its warnings')
    record = traits.Dict(desc='what the stage measured and chose')


class DipoleInversion(Stage):
    """Closed-form l2 inversion: :func:`precondqsm_bids.numerics.l2_inversion`."""

    input_spec = DipoleInversionInputSpec
    output_spec = DipoleInversionOutputSpec
    like = 'local_field'

    def _compute(self):
        mask, voxel_size, b0_dir, workers = self._geometry()
        rule, given = self.inputs.rule, self._given('reg_weight')
        clip = self.inputs.clip_outliers
        result = l2_inversion(
            self._load('local_field'), mask, voxel_size, b0_dir, given, workers,
            rule=rule, clip_outliers=clip,
        )  # fmt: skip
        record = result.record(rule if given is None else None, clip)
        return {
            'chi': result.chi,
            'reg_weight': record['reg_weight'],
            'l_curve': result.l_curve(),
            'record': record,
        }
