"""R2' prior: a first estimate of the susceptibility from static-dephasing theory."""

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from precondqsm_bids.interfaces.volumes import load, save
from precondqsm_bids.numerics.r2prime_prior import r2prime_prior, relaxivity


class R2PrimePriorInputSpec(BaseInterfaceInputSpec):
    r2star = File(exists=True, mandatory=True, desc='effective transverse relaxation rate, 1/s')
    mask = File(exists=True, mandatory=True, desc='region of interest')
    reliable = File(exists=True, desc='voxels whose R2* is to be trusted')
    field_strength = traits.Float(mandatory=True, desc='B0, T')
    r2 = traits.Float(desc='transverse relaxation rate, 1/s; the median of R2* if undefined')


class R2PrimePriorOutputSpec(TraitedSpec):
    prior_chi = File(exists=True, desc='prior susceptibility, ppm')
    r2prime = File(exists=True, desc='reversible relaxation rate, 1/s')
    record = traits.Dict(desc='what the stage measured and chose')


class R2PrimePrior(SimpleInterface):
    """Susceptibility from R2': :func:`precondqsm_bids.numerics.r2prime_prior`."""

    input_spec = R2PrimePriorInputSpec
    output_spec = R2PrimePriorOutputSpec

    def _run_interface(self, runtime):
        r2 = self.inputs.r2 if isdefined(self.inputs.r2) else None
        mask = load(self.inputs.mask, bool)
        reliable = load(self.inputs.reliable, bool) if self.inputs.reliable else None
        prior = r2prime_prior(
            load(self.inputs.r2star), mask, self.inputs.field_strength, r2, reliable
        )
        for name in ('prior_chi', 'r2prime'):
            self._results[name] = save(getattr(prior, name), self.inputs.r2star, runtime.cwd, name)
        self._results['record'] = {
            'r2': prior.r2,
            'r2_source': 'median of R2* in the region of interest' if r2 is None else 'given',
            'relaxivity': relaxivity(self.inputs.field_strength),
        }
        return runtime
