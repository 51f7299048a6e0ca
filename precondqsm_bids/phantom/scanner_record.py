"""What the files of a phantom say of its scanner: sidecars, README and the record of its truth."""

from dataclasses import asdict
from textwrap import fill

from precondqsm_bids.phantom import coils
from precondqsm_bids.phantom import scanner as effects
from precondqsm_bids.phantom.head_spec import HeadSpec
from precondqsm_bids.phantom.scanner_spec import PIXEL_BANDWIDTH
from precondqsm_bids.phantom.spec import BOTTLE_DCHI, FLOW_RADIUS, OIL_THICKNESS
from precondqsm_bids.phantom.tissues import INDEX, TISSUES


def protocol(spec):
    """Metadata that a scanner with these settings would write into the sidecars, dict.

    Empty for an ideal scanner.
    """
    settings = spec.scanner
    if settings.ideal:
        return {}
    found = {'PhaseEncodingDirection': 'j'}
    if settings.partial_fourier < 1:
        found['PartialFourier'] = settings.partial_fourier
        found['PartialFourierDirection'] = 'PHASE'
    if settings.coils > 1:
        found['ReceiveCoilName'] = f'simulated array of {settings.coils} loops'
        found['ReceiveCoilActiveElements'] = f'{settings.coils} loops'
        found['MatrixCoilMode'] = f'{settings.coils} channels'
        found['CoilCombinationMethod'] = f'Magnitude: sum of squares. Phase: {_phase_sum(spec)}'
    elif settings.receive != 'none':
        found['CoilCombinationMethod'] = (
            f'Phase: {_phase_sum(spec)}; noise of one simulated channel'
        )
    return found


def _phase_sum(spec):
    return {
        'none': 'sum weighted by the conjugate sensitivities',
        'smooth': 'complex sum of one side of the array, aligned at its centre',
        'lobed': 'complex sum weighted by magnitude, aligned imperfectly at the centre',
        'poles': 'complex sum weighted by magnitude, not aligned',
    }[spec.scanner.receive]


def _tubes(spec):
    return not isinstance(spec, HeadSpec)


def lines(spec):
    """One sentence for each thing that is not ideal, with its numbers, list of str."""
    settings, tubes = spec.scanner, _tubes(spec)
    shift = abs(effects.fat_displacement(spec))
    white = 'the tube of least susceptibility' if tubes else 'white matter'
    fat = f'oil, {OIL_THICKNESS * spec.object_scale:g} mm under the lid' if tubes else 'fat'
    fat += '' if tubes else ' under the skin of head and neck'
    where = (
        f'in a tube of {2 * FLOW_RADIUS * spec.object_scale:g} mm along the axis'
        if tubes
        else 'in the sagittal sinus, in narrower veins in proportion to their radius'
    )
    background = {
        'zero': 'set to zero',
        'damped': f'multiplied by {coils.DAMPING:g}',
        'normalised': 'amplified with the whole magnitude, which is divided by the sensitivity',
    }.get(settings.background)
    step = BOTTLE_DCHI if tubes else TISSUES[INDEX['bottle']].chi
    bottle = f'{step:g} ppm above {"agar" if tubes else "water"}'
    sentences = {
        'receive': f'phase of the receive array on all echoes: {_phase_sum(spec)}',
        'eddy_currents': 'a constant and a gradient of phase of each echo, '
        f'{settings.eddy_currents:g} rad (root mean square over the echoes; gradients at '
        f'{spec.object_radius:g} mm)',
        'bipolar': 'readouts of alternating polarity: the even echoes have a phase of '
        f'{settings.bipolar:g} rad and as much at {spec.object_radius:g} mm along the readout',
        'first_echo': f'a phase error of the first echo, {settings.first_echo:g} rad at the '
        f'centre and half of it at {spec.object_radius:g} mm',
        'ghost': f'breathing: {settings.ghost:g} ppm (peak) at the phase-encoding lines in turn',
        'partial_fourier': f'{settings.partial_fourier:g} of the phase-encoding lines, the '
        'others zero',
        'crop': 'voxels by truncation in k-space',
        'coils': f'{settings.coils} coils, each with noise; the magnitude is their sum of squares',
        'background': f'background {background}',
        'fat': f'{fat}: {settings.fat:g} ppm and {shift:.2f} voxels along the readout off water',
        'white_matter_shift': f'frequency of {white}: {settings.white_matter_shift:g} ppm '
        'beside its field',
        'flow': f'flow of {settings.flow:g} mm/s {where}',
        'relaxivity': f"R2' of a ppm varies smoothly in space, by {100 * settings.relaxivity:g} "
        '% at most',
        'integers': f'stored magnitude: {effects.MAGNITUDE_LEVELS} for the medium; stored phase: '
        'codes from 0 to 4095',
        'two_bodies': f'a bottle of doped water beside the object, in air, {bottle}',
    }
    default = type(settings)()
    return [
        sentence
        for name, sentence in sentences.items()
        if getattr(settings, name) != getattr(default, name)
    ]


def readme(spec):
    """The paragraph of the README, '' for an ideal scanner with all slices."""
    found = lines(spec)
    if spec.slices is not None:
        found.append(
            f'{spec.slices} central slices of {spec.matrix[2]}; the object and its field are whole'
        )
    if not found:
        return ''
    heading = '\nScanner (readout along i, phase encoding along j)\n'
    wrapped = (
        fill(line, 99, initial_indent=': ', subsequent_indent='  ', break_on_hyphens=False)
        for line in found
    )
    return heading + ''.join(f'{line}\n' for line in wrapped)


def not_in_the_field(spec):
    """End of the description of the true field: what the phase holds beside it."""
    settings = spec.scanner
    names = [
        name
        for name, here in (
            ('chemical shift of fat', settings.fat),
            ('frequency of white matter that is no dipole field', settings.white_matter_shift),
            ('phase of flow', settings.flow),
            ('phase of each echo', settings.eddy_currents or settings.bipolar),
            ('phase error of the first echo', settings.first_echo),
            ('breathing', settings.ghost),
            ('receive phase', settings.receive != 'none'),
        )
        if here
    ]
    return f' Not in it: {", ".join(names)}.' if names else ''


def truth(spec):
    """The record of the scanner, to be written as JSON, dict."""
    constant, gradient = effects.echo_phase(spec)
    return {
        'Description': 'What the simulated scanner and body did to the ideal signal',
        'Done': lines(spec),
        'Settings': asdict(spec.scanner),
        'Switches': spec.scanner.switched_on(),
        'EchoTime': list(spec.echo_times),
        'EchoPhase': {
            'Description': 'phase of echo e at r: Constant[e] + Gradient[e] . r, with r in mm '
            'along the axes of the voxels from the centre of the whole field of view; eddy '
            'currents and alternating readouts together',
            'Constant': {'Value': [round(float(c), 9) for c in constant], 'Units': 'rad'},
            'Gradient': {
                'Value': [[round(float(g), 9) for g in row] for row in gradient],
                'Units': 'rad/mm',
            },
        },
        'FirstEchoPhase': {
            'Description': 'phase of the first echo at r: Size 2^(-|r|^2 / Radius^2)',
            'Size': spec.scanner.first_echo,
            'Radius': spec.object_radius,
        },
        'FatDisplacement': {
            'Description': 'along the readout, opposite in the even echoes of alternating '
            'readouts',
            'Value': round(effects.fat_displacement(spec), 9),
            'Units': 'voxels',
        },
        'PixelBandwidth': PIXEL_BANDWIDTH,
        'Centre': [(n - 1) / 2 for n in spec.matrix[:2]]
        + [(spec.matrix[2] - 1) / 2 - spec.slab.start],
    }
