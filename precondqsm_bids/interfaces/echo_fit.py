"""Echo fitting: total field, its standard deviation, R2* and S0."""

from functools import partial

from nipype.interfaces.base import (
    File,
    InputMultiPath,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from precondqsm_bids.interfaces.hashed import InputSpec
from precondqsm_bids.interfaces.volumes import (
    b0_along,
    check_grid,
    check_once,
    geometry,
    load_mask,
    load_signal,
    open_image,
    save,
    stated_b0,
    stored_axes,
)
from precondqsm_bids.numerics.arrays import side_by_side
from precondqsm_bids.numerics.dipole import b0_direction
from precondqsm_bids.numerics.measure_field import measure_field
from precondqsm_bids.numerics.scan import Scan

ECHOES = ('magnitude', 'phase', 'echo_times')


class EchoFitInputSpec(InputSpec):
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
        False, usedefault=True, desc='the phase of the one echo is a difference of two'
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
    manufacturer = traits.Str(desc='of the scanner: its usual sign, where the field does not tell')
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
    r2star_sd = File(
        exists=True, desc='standard deviation of R2* by the noise, 1/s; not of a single echo'
    )
    magnitude_sd = File(
        exists=True, desc='standard deviation of the magnitude by the noise; not of a single echo'
    )
    magnitude = File(exists=True, desc='root sum of squares over the echoes, every voxel')
    roi_mask = File(exists=True, desc='the mask without what was recognised as fat')
    record = traits.Dict(desc='what the stage measured and chose')


class EchoFit(SimpleInterface):
    """Fit the complex multi-echo model: :func:`precondqsm_bids.numerics.measure_field`."""

    input_spec = EchoFitInputSpec
    output_spec = EchoFitOutputSpec

    def _run_interface(self, runtime):
        inputs = self.inputs
        masks = [path for path in (inputs.mask, inputs.shape_mask) if path]
        check_grid([*inputs.magnitude, *inputs.phase, *masks])
        shape_mask = load_mask(inputs.shape_mask) if inputs.shape_mask else None
        found = measure_field(
            self._scan(),
            load_mask(inputs.mask),
            shape_mask,
            workers=inputs.num_threads,
            overwrite=True,
        )
        maps = {name: data for name, data in found._asdict().items() if data is not None}
        del maps['record']
        like, folder = inputs.magnitude[0], runtime.cwd
        saving = [partial(save, data, like, folder, name) for name, data in maps.items()]
        files = side_by_side(inputs.num_threads, *saving)
        self._results.update(zip(maps, files, strict=True))
        self._results['record'] = found.record | {
            'field_strength_source': inputs.field_strength_source or 'given',
            'b0_dir': stored_b0(inputs.magnitude[0]),
        }
        return runtime

    def _scan(self):
        """The echoes, and what is known of them."""
        inputs = self.inputs
        numbers = {name: len(getattr(inputs, name)) for name in ECHOES}
        if len(set(numbers.values())) > 1:
            given = ', '.join(f'{name} {number}' for name, number in numbers.items())
            raise ValueError(f'one magnitude, phase and echo time for each echo, not {given}')
        check_once([*inputs.magnitude, *inputs.phase])
        image = open_image(inputs.magnitude[0])
        magnitude, phase = load_signal(inputs.magnitude, inputs.phase, inputs.num_threads)
        return Scan(
            magnitude,
            phase,
            inputs.echo_times,
            inputs.field_strength,
            geometry(inputs.mask)[1],
            b0_along(inputs.mask),
            b0_stated=stated_b0(image.header) is not None,
            stored_axes=tuple(stored_axes(image.affine, range(3))),
            phase_units=inputs.phase_units or None,
            phase_sign=None if inputs.phase_sign == 'auto' else inputs.phase_sign,
            phase_difference=inputs.phase_difference,
            manufacturer=inputs.manufacturer or None,
            magnitude_files=tuple(inputs.magnitude),
            phase_files=tuple(inputs.phase),
        )


def stored_b0(path):
    """Direction of B0 along the stored axes of a file."""
    image = open_image(path)
    stated = stated_b0(image.header)
    direction = b0_direction(image.affine) if stated is None else stated
    return [round(float(v), 6) for v in direction]
