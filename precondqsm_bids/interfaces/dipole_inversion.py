"""Dipole inversion: lambda by a rule, closed-form l2 or total variation."""

from nipype.interfaces.base import File, TraitedSpec, traits

from precondqsm_bids.interfaces.stage import Stage, WeightedInputSpec
from precondqsm_bids.method import INVERSIONS, Arm
from precondqsm_bids.numerics.dipole_inversion import RULES, invert
from precondqsm_bids.numerics.residual_inversion import Residual


class DipoleInversionInputSpec(WeightedInputSpec):
    local_field = File(exists=True, mandatory=True, desc='field of the inner sources, ppm')
    mask = File(exists=True, mandatory=True, desc='region of interest')
    inversion = traits.Enum(*INVERSIONS, usedefault=True, desc='how the field is inverted')
    reg_weight = traits.Float(desc='lambda, mm; by the rule if undefined')
    rule = traits.Enum(*RULES, usedefault=True, desc='how lambda is chosen if it is undefined')
    clip_outliers = traits.Bool(
        False,
        usedefault=True,
        desc='hold single outliers and uncertain voxels to their neighbours',
    )
    trust = traits.Range(
        0.0, 1.0, value=1.0, usedefault=True, desc='how far lambda by risk may exceed the corner'
    )
    prior_chi = File(
        exists=True,
        requires=['field_sd'],
        desc='fitted prior that left the field, ppm: the map of l2 is weighted, by the noise of '
        'the field and the steps of the prior',
    )


class DipoleInversionOutputSpec(TraitedSpec):
    chi = File(exists=True, desc='susceptibility, ppm')
    reg_weight = traits.Float(desc='lambda that was used, mm; undefined where the field is zero')
    l_curve = traits.Dict(desc='the whole L-curve, its corner and its warnings')
    record = traits.Dict(desc='what the stage measured and chose')


class DipoleInversion(Stage):
    """Susceptibility of a local field: :func:`precondqsm_bids.numerics.invert`."""

    input_spec = DipoleInversionInputSpec
    output_spec = DipoleInversionOutputSpec
    like = 'local_field'

    def _compute(self):
        names = ('rule', 'reg_weight', 'clip_outliers', 'inversion')
        arm = Arm(**{name: self._given(name) for name in names})
        geometry = self._geometry()
        weights = self._weights(geometry.mask)
        local_field, residual = self._load('local_field'), None
        if self._given('prior_chi'):
            residual = Residual(self._load('field_sd'), self._load('prior_chi'))
        result = invert(local_field, geometry, arm, weights, self.inputs.trust, residual)
        record = result.record(arm)
        return {
            'chi': result.chi,
            'reg_weight': record['reg_weight'],
            'l_curve': result.l_curve(),
            'record': record,
        }
