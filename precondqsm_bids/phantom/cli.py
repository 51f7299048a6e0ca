"""The command ``precondqsm_phantom``: a digital phantom as a BIDS dataset."""

import argparse
from dataclasses import fields
from pathlib import Path

from precondqsm_bids import __version__
from precondqsm_bids.phantom.head_spec import HeadSpec, hard_head
from precondqsm_bids.phantom.scanner_spec import ALL, FIELDS, SWITCHES, scanner
from precondqsm_bids.phantom.spec import SAMPLINGS, TubesSpec
from precondqsm_bids.usage import OneLineParser

KINDS = {'tubes': TubesSpec, 'head': HeadSpec}
"""Kind of phantom -> the class of its spec."""


class _Lines(argparse.HelpFormatter):
    """Keeps the lines of a text that has some."""

    def _fill_text(self, text, width, indent):
        if '\n' not in text:
            return super()._fill_text(text, width, indent)
        return '\n'.join(indent + line for line in text.splitlines())


def _defaults(name):
    """What the help says of the default of an option in each kind that has it."""
    values = {}
    for kind, spec in KINDS.items():
        if name in spec.__dataclass_fields__:
            value = spec.__dataclass_fields__[name].default
            values[kind] = ' '.join(map(str, value)) if isinstance(value, tuple) else str(value)
    if len(set(values.values())) == 1:
        return f'(default: {next(iter(values.values()))})'
    return f'(default: {"; ".join(f"{kind} {value}" for kind, value in values.items())})'


def _row(name, help, *, default=True, **keywords):
    """Name and arguments of an option; the help ends with the defaults of the spec."""
    return name, {'help': f'{help} {_defaults(name)}' if default else help, **keywords}


def _number(name, help, metavar=None):
    """Row of a number."""
    return _row(name, help, type=float, metavar=metavar)


def _switches_on(name, help):
    """Row of the size of what the scanner does, which switches it on."""
    switch = name.replace('_', '-')
    help += f'; switches it on (default: {SWITCHES[switch].value:g} if {switch} is on)'
    return _row(name, help, default=False, type=float, metavar='RAD')


HARD = hard_head()
_NAMES = ''.join(f'  {name:24}{switch.help}\n' for name, switch in SWITCHES.items())
SCANNER = (
    f'Names of --scanner:\n{_NAMES}  {"all":24}{", ".join(ALL)}\n'
    'Readout along the first axis, phase encoding along the second.'
)

# fmt: off
OPTIONS = {
    'protocol': [
        _row('matrix', 'voxels along each axis, tubes only; that of the head follows from its '
             'voxel size', nargs=3, type=int, metavar=('NX', 'NY', 'NZ')),
        _row('voxel_size', 'mm; the object keeps its physical size', nargs=3, type=float,
             metavar=('DX', 'DY', 'DZ')),
        _number('field_strength', 'B0', 'T'),
        _number('b0_tilt', 'angle between B0 and the third axis of the object; the stored axes '
                'become oblique', 'DEG'),
        _row('echo_times', 'in seconds', nargs='+', type=float, metavar='S'),
        _number('snr', 'signal of the agar or white matter at TE -> 0 over the noise of the real '
                'or imaginary part; inf for no noise'),
        _number('coil_shading', 'strength of the smooth receive shading; 0 for none', 'FRACTION'),
        _row('participants', 'measurements of the phantom (default: 1)', default=False, type=int,
             metavar='N'),
        _row('seed', 'of the noise (default: 0)', default=False, type=int),
        _row('slices', 'keep the N central slices of the field of view; the object and its field '
             'stay whole (default: all)', default=False, type=int, metavar='N'),
    ],
    'scanner': [
        _row('scanner', 'what scanner and body do to the ideal signal; each alone or several '
             'together (default: nothing)', default=False, nargs='+',
             choices=[*SWITCHES, 'all'], metavar='NAME'),
        _switches_on('eddy_currents', 'size of the constants and gradients of phase of the '
                     'echoes'),
        _switches_on('bipolar', 'phase between odd and even echoes of alternating readouts'),
        _switches_on('first_echo', 'phase error of the first echo at the centre'),
    ],
    'tubes': [
        _row('tubes_dchi', 'susceptibility of 1 to 8 tubes relative to the agar; negative values '
             'are allowed', nargs='+', type=float, metavar='PPM'),
        _number('r2', 'R2 of agar and tubes, 1/s', 'PER_S'),
        _number('relaxivity_scale', "R2' of the tubes relative to the theory of static dephasing",
                'FACTOR'),
        _number('air_bubble', 'radius of a sphere of air under the lid; 0 for none', 'MM'),
        _number('object_scale', 'on every length of the container and the tubes', 'FACTOR'),
    ],
    'head': [
        _number('relaxivity', "R2' of a ppm of para- or diamagnetic susceptibility at 3 T; it "
                'grows with B0', 'HZ_PER_PPM'),
        _row('hard', 'add what no magnitude shows: a texture of the susceptibility, veins, '
             'microbleeds, calcifications, R2* without susceptibility and the reverse; --b0-tilt '
             f'is {HARD.b0_tilt:g} and --snr {HARD.snr:g} unless given', default=False,
             action='store_true'),
        _number('lesion_relaxivity', "R2' of the microbleeds and calcifications of --hard "
                'relative to --relaxivity', 'FACTOR'),
    ],
    'simulation': [
        _row('supersampling', 'points per voxel and axis', type=int, metavar='N'),
        _row('sampling', 'box: mean over each voxel; kspace: cut off in k-space, as a scanner '
             'does', choices=SAMPLINGS),
    ],
}
"""Rows of each group: the field of the spec, and arguments of ``add_argument``."""
# fmt: on


def build_parser():
    """Return the parser; options of the spec that are not given are absent from its result."""
    parser = OneLineParser(
        prog='precondqsm_phantom',
        description='Write a digital phantom of known susceptibility as a raw BIDS dataset, with '
        'its truth under derivatives/truth.',
        formatter_class=_Lines,
        epilog='Options that only one kind has are refused for the other.',
        # only what was given: the default depends on the kind, and on --hard
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add('out_dir', type=Path, metavar='OUT_BIDS_DIR', help='a new or empty directory')
    add('--version', action='version', version=f'precondqsm_phantom {__version__}')
    add(
        '--kind',
        choices=list(KINDS),
        default='tubes',
        help='tubes: agar-filled cylinder in air with parallel tubes; head: brain, skull and air '
        'spaces (default: tubes)',
    )
    for title, rows in OPTIONS.items():
        group = parser.add_argument_group(title, SCANNER if title == 'scanner' else None)
        for name, keywords in rows:
            group.add_argument(f'--{name.replace("_", "-")}', **keywords)
    parser.set_defaults(participants=1, seed=0)
    return parser


def spec_of(options):
    """The spec that the command line asks for.

    Parameters
    ----------
    options : dict
        What the parser found.

    Returns
    -------
    TubesSpec or HeadSpec

    Raises
    ------
    ValueError
        An option belongs to another kind, or a value is out of range.
    """
    kind = options['kind']
    own = {field.name for field in fields(KINDS[kind])}
    every = {field.name for spec in KINDS.values() for field in fields(spec)}
    given = {name: options[name] for name in every if name in options}
    for name in sorted(set(given) - own):
        other = next(k for k, spec in KINDS.items() if name in spec.__dataclass_fields__)
        option = '--' + name.replace('_', '-')
        raise ValueError(f'{option} is an option of --kind {other}, not of --kind {kind}')
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    changes = {name: options[name] for name in FIELDS if name in options and name not in every}
    values['scanner'] = scanner(*values.get('scanner', ()), **changes)
    if values.get('hard'):
        return hard_head(**values)
    if 'lesion_relaxivity' in values:
        raise ValueError('--lesion-relaxivity is read with --hard only: there are no lesions else')
    return KINDS[kind](**values)


def main(argv=None):
    """Run the command; exit status 0, or 2 with one line that says what cannot be done."""
    parser = build_parser()
    options = vars(parser.parse_args(argv))
    out_dir = options['out_dir']
    try:
        spec = spec_of(options)

        from precondqsm_bids.phantom.dataset import write_dataset

        written = write_dataset(
            out_dir, spec, participants=options['participants'], seed=options['seed']
        )
    except ValueError as error:
        parser.error(parser.in_options(str(error)))
    except OSError as error:
        where = error.filename or out_dir
        parser.error(f'{where}: {error.strerror}' if error.errno else str(error))
    if not spec.scanner.ideal:
        print(f'scanner: {", ".join(spec.scanner.switched_on())}')
    print(f'{out_dir}: {len(written)} files, truth in {out_dir / "derivatives" / "truth"}')
    return 0
