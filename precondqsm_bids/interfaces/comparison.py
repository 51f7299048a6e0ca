"""Comparison of the two arms without a truth."""

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from precondqsm_bids.interfaces.volumes import b0_along, geometry, load
from precondqsm_bids.numerics.background_removal import noise_weights
from precondqsm_bids.numerics.comparison import REVERSED, compare, r2star_agreement

_FIELDS = ('local_field', 'conventional_local_field', 'chi', 'conventional_chi')


class ComparisonInputSpec(BaseInterfaceInputSpec):
    local_field = File(exists=True, mandatory=True, desc='preconditioned local field, ppm')
    conventional_local_field = File(exists=True, mandatory=True, desc='the same without, ppm')
    chi = File(exists=True, mandatory=True, desc='preconditioned susceptibility, ppm')
    conventional_chi = File(exists=True, mandatory=True, desc='conventional susceptibility, ppm')
    field_sd = File(exists=True, mandatory=True, desc='standard deviation of the field, ppm')
    mask = File(exists=True, mandatory=True, desc='region of interest')
    r2star = File(exists=True, desc='effective transverse relaxation rate, 1/s, if it is known')
    echo_fit = traits.Dict(desc='record of the echo fit, which says how the sign was found')
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='threads of the transforms')


class ComparisonOutputSpec(TraitedSpec):
    record = traits.Dict(desc='what the stage measured')


class Comparison(SimpleInterface):
    """Did the prior help? :func:`precondqsm_bids.numerics.compare`."""

    input_spec = ComparisonInputSpec
    output_spec = ComparisonOutputSpec

    def _run_interface(self, runtime):
        _, voxel_size = geometry(self.inputs.chi)
        mask = load(self.inputs.mask, bool)
        result = compare(
            *(load(getattr(self.inputs, name)) for name in _FIELDS),
            mask,
            voxel_size,
            b0_along(self.inputs.chi),
            noise_weights(load(self.inputs.field_sd), mask),
            self.inputs.num_threads,
        )
        agreement, warnings = self._witness(mask, voxel_size)
        record = {
            'explained': result.explained,
            'streaking': result.streaking,
            'conventional_streaking': result.conventional_streaking,
            'r2star_agreement': agreement,
            'warnings': [*result.warnings, *warnings],
        }
        if len(result.by_body) > 1:
            record['explained_by_body'] = list(result.by_body)
        self._results['record'] = record
        return runtime

    def _witness(self, mask, voxel_size):
        """Agreement of the conventional map with R2*, and what it says of an assumed sign."""
        if not isdefined(self.inputs.r2star):
            return None, []
        chi, r2star = load(self.inputs.conventional_chi), load(self.inputs.r2star)
        agreement = r2star_agreement(chi, r2star, mask, voxel_size)
        fit = self.inputs.echo_fit if isdefined(self.inputs.echo_fit) else {}
        assumed = fit.get('phase_sign_source') in ('vendor', 'convention')
        if agreement is None or agreement > REVERSED or not assumed:
            return agreement, []
        return agreement, [
            'the susceptibility falls where R2* rises (rank correlation '
            f'{agreement:.2f}): the sign of the phase, which was assumed to be '
            f'{fit["phase_sign"]:+d}, may be wrong; state --phase-sign {-fit["phase_sign"]:+d} if '
            'the strongest R2* is that of iron or blood'
        ]
