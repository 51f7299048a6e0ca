"""R2' prior: a first estimate of the susceptibility from static-dephasing theory."""

from pathlib import Path

from nipype.interfaces.base import File, TraitedSpec, isdefined, traits

from precondqsm_bids.interfaces.hashed import InputSpec
from precondqsm_bids.interfaces.stage import Stage
from precondqsm_bids.numerics.prior.r2prime import (
    R2Inputs,
    doubts_of_r2,
    r2prime_prior,
    relaxivity,
    transverse_rate,
)


class R2PrimePriorInputSpec(InputSpec):
    r2star = File(exists=True, mandatory=True, desc='effective transverse relaxation rate, 1/s')
    mask = File(exists=True, mandatory=True, desc='region of interest')
    reliable = File(exists=True, desc='voxels whose R2* is to be trusted')
    field_strength = traits.Float(mandatory=True, desc='B0, T')
    r2_source = traits.Enum(
        'median',
        'number',
        'map',
        'literature',
        usedefault=True,
        desc='median of R2*, the number r2, the map r2_map, or by the class of the tissue',
    )
    r2 = traits.Float(desc='transverse relaxation rate, 1/s')
    r2_map = File(exists=True, desc='R2 (1/s) or T2 (s) on the grid of R2*')
    r2_map_kind = traits.Enum('R2map', 'T2map', desc='which of the two r2_map is')
    tissue = File(exists=True, desc='class of each voxel (3D) or fractions of the classes (4D)')
    tissue_names = traits.List(traits.Str, desc='names of the tissue classes')


class R2PrimePriorOutputSpec(TraitedSpec):
    prior_chi = File(exists=True, desc='prior susceptibility, ppm')
    r2prime = File(exists=True, desc='reversible relaxation rate, 1/s')
    record = traits.Dict(desc='what the stage measured and chose')


class R2PrimePrior(Stage):
    """Susceptibility from R2': :func:`precondqsm_bids.numerics.r2prime_prior`."""

    input_spec = R2PrimePriorInputSpec
    output_spec = R2PrimePriorOutputSpec
    like = 'r2star'

    def _compute(self):
        inputs, source = self.inputs, self.inputs.r2_source
        if source == 'number' and not isdefined(inputs.r2):
            raise ValueError('R2 is to be a number, and there is none: give r2')
        given = R2Inputs(
            r2_map=self._load('r2_map') if source == 'map' else None,
            r2_map_kind=self._given('r2_map_kind'),
            tissue=self._load('tissue', None) if source == 'literature' else None,
            tissue_names=self._given('tissue_names', ()),
        )
        mask, field_strength = self._load('mask', bool), inputs.field_strength
        rate, words = transverse_rate(
            inputs.r2 if source == 'number' else source, mask, field_strength, given
        )
        if source == 'map':
            words += f': {Path(inputs.r2_map).name}'
        r2star, reliable = self._load('r2star'), self._load('reliable', bool)
        prior = r2prime_prior(r2star, mask, field_strength, rate, reliable)
        trusted = mask if reliable is None else mask & reliable
        record = {
            'r2': prior.r2,
            'r2_source': words,
            'relaxivity': relaxivity(field_strength),
            'warnings': doubts_of_r2(r2star, trusted, rate),
        }
        return {'prior_chi': prior.prior_chi, 'r2prime': prior.r2prime, 'record': record}
