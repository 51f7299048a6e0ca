"""Echo fitting: total field, its standard deviation, R2* and S0."""

import nibabel as nb
import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiPath,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from precondqsm_bids.interfaces.recognition import check_phase, check_stored
from precondqsm_bids.interfaces.volumes import (
    geometry,
    load,
    load_signal,
    save,
    stored_axes,
)
from precondqsm_bids.numerics.dipole import b0_direction
from precondqsm_bids.numerics.echo_fit import field_of_one_echo, fit_echoes
from precondqsm_bids.numerics.phase import apply_scale, phase_scale, repair_phase, shape_field
from precondqsm_bids.numerics.unwrapping import ambiguous_fraction

MOST_AMBIGUOUS = 1e-3
"""Share of neighbours half a turn apart above which unwrapping is not to be trusted: 0 in tubes of
ordinary spacing, 0.002 to 0.02 where turns are lost."""

ONE_ECHO = (
    'one echo: the field is its unwrapped phase over the echo time, and the phase offset of the '
    'coil, which one echo cannot tell from it, is part of it; R2* and S0 are not known'
)
ONE_DIFFERENCE = (
    'one echo: the phase is the difference of two echoes, and the field is that over the time '
    'between them; a difference has no phase offset; R2* and S0 are not known'
)
UNWRAPPED = (
    'the phase has no Units and spans more than a turn without a jump: it was taken for radians '
    'that are already unwrapped; write "Units": "rad" into its sidecar if it is so'
)


class EchoFitInputSpec(BaseInterfaceInputSpec):
    magnitude = InputMultiPath(
        File(exists=True), mandatory=True, desc='magnitude, one file an echo, any unit'
    )
    phase = InputMultiPath(
        File(exists=True), mandatory=True, desc='phase, one file an echo, rad or codes'
    )
    echo_times = traits.List(traits.Float, mandatory=True, desc='echo times, s, increasing')
    field_strength = traits.Float(mandatory=True, desc='B0, T')
    field_strength_source = traits.Str(desc='key of the metadata or option that B0 is from')
    phase_difference = traits.Bool(
        False, usedefault=True, desc='whether the phase of the one echo is a difference of two'
    )
    mask = File(exists=True, mandatory=True, desc='voxels to fit')
    shape_mask = File(
        exists=True, desc='object in air; its field helps unwrapping and tells the sign'
    )
    phase_units = traits.Str(desc='"rad" or "arbitrary" (Units of the metadata), if known')
    phase_sign = traits.Enum(
        'auto',
        1,
        -1,
        usedefault=True,
        desc='sign of the stored phase, 1 if it grows with time where the field is positive; '
        '"auto" compares the field with that of the shape',
    )
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='threads of the transforms')


class EchoFitOutputSpec(TraitedSpec):
    total_field = File(exists=True, desc='relative field, ppm')
    field_sd = File(exists=True, desc='standard deviation of the field, ppm')
    r2star = File(
        exists=True, desc='effective transverse relaxation rate, 1/s; not of a single echo'
    )
    t2star = File(
        exists=True, desc='effective transverse relaxation time, s; not of a single echo'
    )
    s0 = File(exists=True, desc='signal at TE = 0, unit of the magnitude; not of a single echo')
    reliable = File(exists=True, desc='voxels whose fit is to be trusted; not of a single echo')
    usable_echoes = File(exists=True, desc='echoes whose fitted signal exceeds twice the noise')
    misfit = File(
        exists=True, desc='root mean square of the residual over the noise; not of a single echo'
    )
    magnitude = File(exists=True, desc='root sum of squares over the echoes, every voxel')
    record = traits.Dict(desc='what the stage measured and chose')


class EchoFit(SimpleInterface):
    """Fit the complex multi-echo model: :func:`precondqsm_bids.numerics.fit_echoes`.

    Of a single echo, its field: :func:`precondqsm_bids.numerics.field_of_one_echo`.
    """

    input_spec = EchoFitInputSpec
    output_spec = EchoFitOutputSpec

    def _run_interface(self, runtime):
        files = self.inputs
        magnitude, phase = load_signal(files.magnitude, files.phase)
        mask = load(files.mask, bool)
        shape = self._shape_field(mask) if files.shape_mask else None
        check_stored(magnitude, phase, mask, files)
        try:
            scale = phase_scale(phase, files.phase_units or None)
            phase = apply_scale(phase, scale)
        except ValueError as error:
            raise ValueError(f'{files.phase[0]} and its other echoes: {error}') from error
        check_phase(magnitude, phase, mask, shape, files)
        try:
            repair = repair_phase(
                magnitude,
                phase,
                files.echo_times,
                files.field_strength,
                mask,
                shape=shape,
                sign=None if files.phase_sign == 'auto' else files.phase_sign,
            )
        except ValueError as error:
            raise ValueError(f'{files.phase[0]} and its other echoes: {error}') from error
        predicted = shape.field if shape else None
        one_echo = len(files.echo_times) == 1
        if one_echo:
            fit = self._one_echo(magnitude, repair.phase, mask, predicted)
            names = ('total_field', 'field_sd', 'usable_echoes')
            offset_model = 'none (phase difference)' if files.phase_difference else 'in the field'
            offset_misfit, reliable = None, None
        else:
            fit = fit_echoes(
                magnitude,
                repair.phase,
                files.echo_times,
                files.field_strength,
                mask,
                predicted_field=predicted,
                workers=files.num_threads,
            )
            names = (
                'total_field', 'field_sd', 'r2star', 's0', 'reliable', 'usable_echoes', 'misfit',
            )  # fmt: skip
            offset_model, offset_misfit = fit.offset_model, fit.offset_misfit
            reliable = float(fit.reliable[mask].mean())
        maps = {name: getattr(fit, name) for name in names}
        if not one_echo:
            maps['t2star'] = np.divide(
                1, fit.r2star, out=np.zeros_like(fit.r2star), where=fit.r2star > 0
            )
        times = [0.0, *files.echo_times] if one_echo else files.echo_times
        ambiguous = ambiguous_fraction(
            maps['total_field'], maps['field_sd'], times, files.field_strength, mask
        )
        warnings = list(repair.notes)
        if scale.convention == 'unwrapped' and not files.phase_units:
            warnings.append(UNWRAPPED)
        if one_echo:
            warnings.append(ONE_DIFFERENCE if files.phase_difference else ONE_ECHO)
        if ambiguous > MOST_AMBIGUOUS:
            spacing = 1e3 * float(np.diff(times).min())
            what = 'echo time' if one_echo else 'shortest echo spacing'
            warnings.append(
                f'the field may be wrong by whole turns: the {what} of '
                f'{spacing:g} ms is too long to unwrap it, {ambiguous:.2%} of neighbours are more '
                'than half a turn apart'
            )
        maps['magnitude'] = np.sqrt(np.sum(magnitude**2, axis=-1))
        for name, data in maps.items():
            self._results[name] = save(data, files.magnitude[0], runtime.cwd, name)
        self._results['record'] = {
            'echo_times': list(files.echo_times),
            'field_strength': files.field_strength,
            'field_strength_source': files.field_strength_source or 'given',
            'noise_sd': fit.noise_sd,
            'offset_model': offset_model,
            'offset_misfit': offset_misfit,
            'reliable_fraction': reliable,
            'median_field_sd': float(np.median(maps['field_sd'][mask])),
            'phase_scale': scale.convention,
            'phase_turn': scale.turn,
            'alternating_axes': stored_axes(
                nb.load(files.magnitude[0]).affine, repair.alternating_axes
            ),
            'readout_difference': repair.readout.size if repair.readout else None,
            'readout_corrected': repair.readout is not None and repair.readout.bipolar,
            'phase_sign': repair.sign,
            'phase_sign_source': self._sign_source(repair),
            'phase_sign_coefficient': repair.sign_test.coefficient if repair.sign_test else None,
            'phase_sign_correlation': repair.sign_test.correlation if repair.sign_test else None,
            'ambiguous_fraction': ambiguous,
            'warnings': warnings,
        }
        return runtime

    def _one_echo(self, magnitude, phase, mask, predicted):
        return field_of_one_echo(
            magnitude[..., 0],
            phase[..., 0],
            self.inputs.echo_times[0],
            self.inputs.field_strength,
            mask,
            predicted_field=predicted,
        )

    def _sign_source(self, repair):
        if self.inputs.phase_sign != 'auto':
            return 'given'
        return 'field of the shape' if repair.sign_test else 'not tested'

    def _shape_field(self, mask):
        affine, voxel_size = geometry(self.inputs.shape_mask)
        shape = load(self.inputs.shape_mask, bool)
        return shape_field(shape, voxel_size, b0_direction(affine), mask, self.inputs.num_threads)
