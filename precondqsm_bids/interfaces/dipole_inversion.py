"""Dipole inversion: closed-form l2, lambda from the L-curve."""

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from precondqsm_bids.interfaces.volumes import b0_along, geometry, load, save
from precondqsm_bids.numerics.dipole_inversion import NO_CURVE, RULES, l2_inversion


class DipoleInversionInputSpec(BaseInterfaceInputSpec):
    local_field = File(exists=True, mandatory=True, desc='field of the inner sources, ppm')
    mask = File(exists=True, mandatory=True, desc='region of interest')
    reg_weight = traits.Float(desc='lambda, mm; by the rule if undefined')
    rule = traits.Enum(*RULES, usedefault=True, desc='how lambda is chosen if it is undefined')
    field_sd = File(exists=True, desc='standard deviation of the field, ppm')
    suppress_noise = traits.Bool(
        False, usedefault=True, desc='hold down what of the field is no more than noise'
    )
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='threads of the transforms')


class DipoleInversionOutputSpec(TraitedSpec):
    chi = File(exists=True, desc='susceptibility, ppm')
    reg_weight = traits.Float(desc='lambda that was used, mm; undefined where the field is zero')
    l_curve = traits.Dict(desc='the whole L-curve, its corner and its warnings')
    record = traits.Dict(desc='what the stage measured and chose')


class DipoleInversion(SimpleInterface):
    """Closed-form l2 inversion: :func:`precondqsm_bids.numerics.l2_inversion`."""

    input_spec = DipoleInversionInputSpec
    output_spec = DipoleInversionOutputSpec

    def _run_interface(self, runtime):
        _, voxel_size = geometry(self.inputs.local_field)
        given = self.inputs.reg_weight if isdefined(self.inputs.reg_weight) else None
        result = l2_inversion(
            load(self.inputs.local_field),
            load(self.inputs.mask, bool),
            voxel_size,
            b0_along(self.inputs.local_field),
            given,
            load(self.inputs.field_sd) if self.inputs.field_sd else None,
            self.inputs.num_threads,
            rule=self.inputs.rule,
            suppress_noise=self.inputs.suppress_noise,
        )
        self._results['chi'] = save(result.chi, self.inputs.local_field, runtime.cwd, 'chi')
        curve = result.curve
        weight, corner = (
            value if np.isfinite(value) else None
            for value in (result.reg_weight, curve.reg_weight)
        )
        if weight is not None:
            self._results['reg_weight'] = weight
        self._results['l_curve'] = {
            'reg_weights': curve.reg_weights.tolist(),
            'consistency': curve.consistency.tolist(),
            'regularization': curve.regularization.tolist(),
            'curvature': curve.curvature.tolist(),
            'reg_weight': weight,
            'corner': corner,
            'warnings': list(curve.warnings),
        }
        self._results['record'] = {
            'reg_weight': weight,
            'rule': self.inputs.rule if given is None else 'given',
            'corner': corner,
            'noise_suppressed': bool(self.inputs.field_sd) and self.inputs.suppress_noise,
            'warnings': list(curve.warnings)
            if curve is NO_CURVE or (given is None and self.inputs.rule == 'l-curve')
            else [],
        }
        return runtime
