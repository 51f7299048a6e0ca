"""Echo fitting: total field, its standard deviation, R2* and S0."""

from contextlib import contextmanager

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
    b0_along,
    geometry,
    load,
    load_signal,
    save,
    stated_b0,
    stored_axes,
)
from precondqsm_bids.numerics.dipole import b0_direction
from precondqsm_bids.numerics.echo_fit import fit_echoes
from precondqsm_bids.numerics.field_quality import judge_field
from precondqsm_bids.numerics.one_echo import field_of_one_echo
from precondqsm_bids.numerics.phase import (
    ObjectInAir,
    apply_scale,
    phase_scale,
    repair_phase,
    shape_field,
)
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


@contextmanager
def named(path):
    """Name the file, and that there are others, in what a function on arrays raises."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f'{path} and its other echoes: {error}') from error


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
    manufacturer = traits.Str(desc='of the scanner: its usual sign, where the field tells none')
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
        body = self._object_in_air() if files.shape_mask else None
        shape = body and shape_field(
            body.mask, body.voxel_size, body.b0_dir, mask, files.num_threads
        )
        check_stored(magnitude, phase, mask, files)
        with named(files.phase[0]):
            scale = phase_scale(phase, files.phase_units or None)
            phase = apply_scale(phase, scale)
        check_phase(magnitude, phase, mask, shape, files)
        with named(files.phase[0]):
            repair = repair_phase(
                magnitude,
                phase,
                files.echo_times,
                files.field_strength,
                mask,
                body=body,
                sign=None if files.phase_sign == 'auto' else files.phase_sign,
                manufacturer=files.manufacturer or None,
                workers=files.num_threads,
            )
        fit = self._fit(magnitude, repair.phase, mask, body, shape)
        with named(files.phase[0]):
            quality = judge_field(fit, mask)
        names = ('total_field', 'field_sd', 'usable_echoes')
        if not self._one_echo:
            names += ('r2star', 's0', 'reliable', 'misfit')
        maps = {name: getattr(fit, name) for name in names}
        if not self._one_echo:
            maps['t2star'] = np.divide(
                1, fit.r2star, out=np.zeros_like(fit.r2star), where=fit.r2star > 0
            )
        times = [0.0, *files.echo_times] if self._one_echo else files.echo_times
        ambiguous = ambiguous_fraction(
            fit.total_field, fit.field_sd, times, files.field_strength, mask
        )
        warnings = [*repair.notes, *quality.warnings]
        if scale.convention == 'unwrapped' and not files.phase_units:
            warnings.append(UNWRAPPED)
        if self._one_echo:
            warnings.append(ONE_DIFFERENCE if files.phase_difference else ONE_ECHO)
        if ambiguous > MOST_AMBIGUOUS:
            spacing = 1e3 * float(np.diff(times).min())
            what = 'echo time' if self._one_echo else 'shortest echo spacing'
            warnings.append(
                f'the field may be wrong by whole turns: the {what} of '
                f'{spacing:g} ms is too long to unwrap it, {ambiguous:.2%} of neighbours are more '
                'than half a turn apart'
            )
        maps['magnitude'] = np.sqrt(np.einsum('...e,...e->...', magnitude, magnitude))
        for name, data in maps.items():
            self._results[name] = save(data, files.magnitude[0], runtime.cwd, name)
        test = repair.sign_test
        record = {
            'echo_times': list(files.echo_times),
            'field_strength': files.field_strength,
            'field_strength_source': files.field_strength_source or 'given',
            'median_field_sd': float(np.median(fit.field_sd[mask])),
            'misfit_fraction': quality.misfit_fraction,
            'unusable_fraction': quality.unusable_fraction,
            'zero_r2star_fraction': quality.zero_rate_fraction,
            'noise_ratio': quality.noise_ratio,
            'own_offset_fraction': quality.own_offset_fraction,
            'bodies': quality.bodies,
            'phase_scale': scale.convention,
            'phase_turn': scale.turn,
            'alternating_axes': stored_axes(
                nb.load(files.magnitude[0]).affine, repair.alternating_axes
            ),
            'phase_sign': repair.sign,
            'phase_sign_source': repair.sign_source,
            'phase_sign_coefficient': test.coefficient if test else None,
            'phase_sign_correlation': test.correlation if test else None,
            'phase_sign_by_depth': list(test.shells) if test else None,
            'phase_sign_outline': test.radius if test else None,
            'b0_dir': stored_b0(files.magnitude[0]),
            'b0_dir_source': 'given' if self._stated_b0() else 'header',
            'ambiguous_fraction': ambiguous,
            'warnings': warnings,
        }
        self._results['record'] = record | self._of_fit(fit, mask)
        return runtime

    @property
    def _one_echo(self):
        return len(self.inputs.echo_times) == 1

    def _fit(self, magnitude, phase, mask, body, shape):
        """The fit of all echoes, or the field of the one."""
        files = self.inputs
        of_shape = {
            'object_mask': body.mask if body else None,
            'predicted_field': shape.field if shape else None,
        }
        if self._one_echo:
            return field_of_one_echo(
                magnitude[..., 0],
                phase[..., 0],
                files.echo_times[0],
                files.field_strength,
                mask,
                **of_shape,
            )
        return fit_echoes(
            magnitude,
            phase,
            files.echo_times,
            files.field_strength,
            mask,
            voxel_size=geometry(files.mask)[1],
            **of_shape,
            workers=files.num_threads,
        )

    def _of_fit(self, fit, mask):
        """What the record says of the fit."""
        of_difference = self.inputs.phase_difference
        record = {
            'noise_sd': fit.noise_sd,
            'noise_source': fit.noise_source,
            'channels': None,
            'offset_model': 'none (phase difference)' if of_difference else 'in the field',
            'offset_misfit': None,
            'reliable_fraction': None,
            'echo_phase': None,
            'echo_phase_size': None,
            'body_turns': [],
        }
        if self._one_echo:
            return record
        record['offset_model'], record['offset_misfit'] = fit.offset_model, fit.offset_misfit
        record['reliable_fraction'] = float(fit.reliable[mask].mean())
        record['body_turns'] = list(fit.body_turns)
        if fit.air is not None:
            record['channels'] = fit.air.channels
        if fit.echo_phase is not None:
            record['echo_phase'] = {
                'constant': fit.echo_phase.coefficients[:, 0].tolist(),
                'gradient': fit.echo_phase.coefficients[:, 1:].tolist(),
                'size': fit.echo_phase.size.tolist(),
            }
            record['echo_phase_size'] = float(fit.echo_phase.size.max())
        return record

    def _object_in_air(self):
        path = self.inputs.shape_mask
        return ObjectInAir(
            load(path, bool),
            geometry(path)[1],
            b0_along(path),
            self._stated_b0(),
            tuple(stored_axes(nb.load(path).affine, range(3))),
        )

    def _stated_b0(self):
        return stated_b0(nb.load(self.inputs.magnitude[0]).header) is not None


def stored_b0(path):
    """Direction of B0 along the stored axes of a file."""
    image = nb.load(path)
    stated = stated_b0(image.header)
    direction = b0_direction(image.affine) if stated is None else stated
    return [round(float(v), 6) for v in direction]
