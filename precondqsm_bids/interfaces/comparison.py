"""Comparison of the two arms without a truth."""

from nipype.interfaces.base import (
    File,
    TraitedSpec,
    traits,
)

from precondqsm_bids.interfaces.hashed import InputSpec
from precondqsm_bids.interfaces.stage import Stage
from precondqsm_bids.numerics.comparison import compare, r2star_agreement


class ComparisonInputSpec(InputSpec):
    local_field = File(exists=True, mandatory=True, desc='preconditioned local field, ppm')
    conventional_local_field = File(exists=True, mandatory=True, desc='the same without, ppm')
    residual_chi = File(
        exists=True, mandatory=True, desc='susceptibility of the preconditioned local field, ppm'
    )
    reg_weight = traits.Float(desc='lambda of residual_chi, mm; undefined where it is zero')
    conventional_chi = File(exists=True, mandatory=True, desc='conventional susceptibility, ppm')
    field_sd = File(exists=True, mandatory=True, desc='standard deviation of the field, ppm')
    mask = File(exists=True, mandatory=True, desc='region of interest')
    r2star = File(exists=True, desc='effective transverse relaxation rate, 1/s, if it is known')
    echo_fit = traits.Dict(desc='record of the echo fit, which says how the sign was found')
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='threads of the transforms')


class ComparisonOutputSpec(TraitedSpec):
    record = traits.Dict(desc='what the stage measured')


class Comparison(Stage):
    """Did the prior help? :func:`precondqsm_bids.numerics.compare`."""

    input_spec = ComparisonInputSpec
    output_spec = ComparisonOutputSpec
    like = 'local_field'

    def _compute(self):
        geometry = self._geometry()
        result = compare(
            self._load('local_field'),
            self._load('residual_chi'),
            self._load('conventional_local_field'),
            geometry,
            self._load('field_sd'),
            self._given('reg_weight'),
        )
        agreement, r2star = None, self._load('r2star')
        if r2star is not None:
            chi = self._load('conventional_chi')
            agreement = r2star_agreement(chi, r2star, *geometry[:2])
        fit = self._given('echo_fit', {})
        assumed = fit.get('phase_sign_source') in ('vendor', 'convention')
        sign = fit.get('phase_sign') if assumed else None
        return {'record': result.record(agreement, sign)}
