"""Echo fitting: total field, its standard deviation, R2* and S0."""

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiPath,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from precondqsm_bids.interfaces.volumes import geometry, load, load_echoes, save
from precondqsm_bids.numerics.constants import AIR_CHI, WATER_CHI
from precondqsm_bids.numerics.dipole import b0_direction, forward_field
from precondqsm_bids.numerics.echo_fit import fit_echoes, phase_to_radians


class EchoFitInputSpec(BaseInterfaceInputSpec):
    magnitude = InputMultiPath(
        File(exists=True), mandatory=True, desc='magnitude, one file an echo, any unit'
    )
    phase = InputMultiPath(
        File(exists=True), mandatory=True, desc='phase, one file an echo, rad or integer codes'
    )
    echo_times = traits.List(traits.Float, mandatory=True, desc='echo times, s, increasing')
    field_strength = traits.Float(mandatory=True, desc='B0, T')
    mask = File(exists=True, mandatory=True, desc='voxels to fit')
    shape_mask = File(exists=True, desc='object in air, whose predicted field helps unwrapping')
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='threads of the transforms')


class EchoFitOutputSpec(TraitedSpec):
    total_field = File(exists=True, desc='relative field, ppm')
    field_sd = File(exists=True, desc='standard deviation of the field, ppm')
    r2star = File(exists=True, desc='effective transverse relaxation rate, 1/s')
    t2star = File(exists=True, desc='effective transverse relaxation time, s')
    s0 = File(exists=True, desc='signal at TE = 0, unit of the magnitude')
    reliable = File(exists=True, desc='voxels whose fit is to be trusted')
    usable_echoes = File(exists=True, desc='echoes whose fitted signal exceeds twice the noise')
    misfit = File(exists=True, desc='root mean square of the residual over the noise')
    magnitude = File(exists=True, desc='root sum of squares over the echoes, every voxel')
    record = traits.Dict(desc='what the stage measured and chose')


class EchoFit(SimpleInterface):
    """Fit the complex multi-echo model: :func:`precondqsm_bids.numerics.fit_echoes`."""

    input_spec = EchoFitInputSpec
    output_spec = EchoFitOutputSpec

    def _run_interface(self, runtime):
        files = self.inputs
        magnitude = load_echoes(files.magnitude)
        phase = load_echoes(files.phase)
        for i, path in enumerate(files.phase):
            try:
                phase[..., i] = phase_to_radians(phase[..., i])
            except ValueError as error:
                raise ValueError(f'{path}: {error}') from error
        mask = load(files.mask, bool)
        fit = fit_echoes(
            magnitude,
            phase,
            files.echo_times,
            files.field_strength,
            mask,
            predicted_field=self._predicted_field(mask) if files.shape_mask else None,
            workers=files.num_threads,
        )
        t2star = np.divide(1, fit.r2star, out=np.zeros_like(fit.r2star), where=fit.r2star > 0)

        maps = {name: getattr(fit, name) for name in ('total_field', 'field_sd', 'r2star', 's0')}
        maps |= {n: getattr(fit, n) for n in ('reliable', 'usable_echoes', 'misfit')}
        maps['t2star'] = t2star
        maps['magnitude'] = np.sqrt(np.sum(magnitude**2, axis=-1))
        for name, data in maps.items():
            self._results[name] = save(data, files.magnitude[0], runtime.cwd, name)
        self._results['record'] = {
            'echo_times': list(files.echo_times),
            'field_strength': files.field_strength,
            'noise_sd': fit.noise_sd,
            'offset_model': fit.offset_model,
            'offset_misfit': fit.offset_misfit,
            'median_field_sd': float(np.median(fit.field_sd[mask])),
            'reliable_fraction': float(fit.reliable[mask].mean()),
        }
        return runtime

    def _predicted_field(self, mask):
        """Field of the object in air, ppm: as though every voxel of its border were filled."""
        affine, voxel_size = geometry(self.inputs.shape_mask)
        shape_chi = (WATER_CHI - AIR_CHI) * load(self.inputs.shape_mask)
        return forward_field(
            shape_chi, voxel_size, b0_direction(affine), mask, self.inputs.num_threads
        )
