"""The command ``precondqsm_phantom``: a digital phantom as a BIDS dataset."""

import argparse
from dataclasses import fields
from pathlib import Path

from precondqsm_bids import __version__
from precondqsm_bids.phantom.head_spec import HeadSpec, hard_head
from precondqsm_bids.phantom.scanner_spec import ALL, FIELDS, SWITCHES, scanner
from precondqsm_bids.phantom.spec import SAMPLINGS, TubesSpec

KINDS = {'tubes': TubesSpec, 'head': HeadSpec}
"""Kind of phantom -> the class of its spec."""


class _Lines(argparse.HelpFormatter):
    """Keeps the lines of a text that has some."""

    def _fill_text(self, text, width, indent):
        if '\n' not in text:
            return super()._fill_text(text, width, indent)
        return '\n'.join(indent + line for line in text.splitlines())


def build_parser():
    """Return the parser; options of the spec that are not given are absent from its result."""
    parser = argparse.ArgumentParser(
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

    scan = parser.add_argument_group('protocol')
    add = scan.add_argument
    add(
        '--matrix',
        nargs=3,
        type=int,
        metavar=('NX', 'NY', 'NZ'),
        help=f'voxels along each axis, tubes only {_defaults("matrix")}; that of the head follows '
        'from its voxel size',
    )
    add(
        '--voxel-size',
        nargs=3,
        type=float,
        metavar=('DX', 'DY', 'DZ'),
        help=f'mm; the object keeps its physical size {_defaults("voxel_size")}',
    )
    add(
        '--field-strength',
        type=float,
        metavar='T',
        help=f'B0 {_defaults("field_strength")}',
    )
    add(
        '--b0-tilt',
        type=float,
        metavar='DEG',
        help='angle between B0 and the third axis of the object; the stored axes become oblique '
        f'{_defaults("b0_tilt")}',
    )
    add(
        '--echo-times',
        nargs='+',
        type=float,
        metavar='S',
        help=f'in seconds {_defaults("echo_times")}',
    )
    add(
        '--snr',
        type=float,
        help='signal of the agar or white matter at TE -> 0 over the noise of the real or '
        f'imaginary part; inf for no noise {_defaults("snr")}',
    )
    add(
        '--coil-shading',
        type=float,
        metavar='FRACTION',
        help=f'strength of the smooth receive shading; 0 for none {_defaults("coil_shading")}',
    )
    add(
        '--participants',
        type=int,
        metavar='N',
        default=1,
        help='measurements of the phantom (default: 1)',
    )
    add('--seed', type=int, default=0, help='of the noise (default: 0)')

    add(
        '--slices',
        type=int,
        metavar='N',
        help='keep the N central slices of the field of view; the object and its field stay whole '
        '(default: all)',
    )
    _add_scanner(parser)

    body = parser.add_argument_group('tubes')
    add = body.add_argument
    add(
        '--tubes-dchi',
        nargs='+',
        type=float,
        metavar='PPM',
        help='susceptibility of 1 to 8 tubes relative to the agar; negative values are allowed '
        f'{_defaults("tubes_dchi")}',
    )
    add(
        '--r2',
        type=float,
        metavar='PER_S',
        help=f'R2 of agar and tubes, 1/s {_defaults("r2")}',
    )
    add(
        '--relaxivity-scale',
        type=float,
        metavar='FACTOR',
        help="R2' of the tubes relative to the theory of static dephasing "
        f'{_defaults("relaxivity_scale")}',
    )
    add(
        '--air-bubble',
        type=float,
        metavar='MM',
        help=f'radius of a sphere of air under the lid; 0 for none {_defaults("air_bubble")}',
    )
    add(
        '--object-scale',
        type=float,
        metavar='FACTOR',
        help=f'on every length of the container and the tubes {_defaults("object_scale")}',
    )

    body = parser.add_argument_group('head')
    add = body.add_argument
    add(
        '--relaxivity',
        type=float,
        metavar='HZ_PER_PPM',
        help="R2' of a ppm of para- or diamagnetic susceptibility at 3 T; it grows with B0 "
        f'{_defaults("relaxivity")}',
    )
    hard = hard_head()
    add(
        '--hard',
        action='store_true',
        help='add what no magnitude shows: a texture of the susceptibility, veins, microbleeds, '
        'calcifications, R2* without susceptibility and the reverse; '
        f'--b0-tilt is {hard.b0_tilt:g} and --snr {hard.snr:g} unless given',
    )
    add(
        '--lesion-relaxivity',
        type=float,
        metavar='FACTOR',
        help="R2' of the microbleeds and calcifications of --hard relative to --relaxivity "
        f'{_defaults("lesion_relaxivity")}',
    )

    grid = parser.add_argument_group('simulation')
    add = grid.add_argument
    add(
        '--supersampling',
        type=int,
        metavar='N',
        help=f'points per voxel and axis {_defaults("supersampling")}',
    )
    add(
        '--sampling',
        choices=SAMPLINGS,
        help='box: mean over each voxel; kspace: cut off in k-space, as a scanner does '
        f'{_defaults("sampling")}',
    )
    return parser


def _add_scanner(parser):
    """Add the options of what is not ideal."""
    names = ''.join(f'  {name:24}{switch.help}\n' for name, switch in SWITCHES.items())
    group = parser.add_argument_group(
        'scanner',
        f'Names of --scanner:\n{names}  {"all":24}{", ".join(ALL)}\n'
        'Readout along the first axis, phase encoding along the second.',
    )
    add = group.add_argument
    add(
        '--scanner',
        nargs='+',
        choices=[*SWITCHES, 'all'],
        metavar='NAME',
        help='what scanner and body do to the ideal signal; each alone or several together '
        '(default: nothing)',
    )
    for name, what in (
        ('eddy-currents', 'size of the constants and gradients of phase of the echoes'),
        ('bipolar', 'phase between odd and even echoes of alternating readouts'),
        ('first-echo', 'phase error of the first echo at the centre'),
    ):
        add(
            f'--{name}',
            type=float,
            metavar='RAD',
            help=f'{what}; switches it on (default: {SWITCHES[name].value:g} if {name} is on)',
        )


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
    """Run the command; exit status 0, or 2 if it was asked for what cannot be done."""
    parser = build_parser()
    options = vars(parser.parse_args(argv))
    try:
        spec = spec_of(options)
    except ValueError as error:
        parser.error(str(error))

    from precondqsm_bids.phantom.dataset import write_dataset

    out_dir = options['out_dir']
    try:
        written = write_dataset(
            out_dir, spec, participants=options['participants'], seed=options['seed']
        )
    except (FileExistsError, FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    if not spec.scanner.ideal:
        print(f'scanner: {", ".join(spec.scanner.switched_on())}')
    print(f'{out_dir}: {len(written)} files, truth in {out_dir / "derivatives" / "truth"}')
    return 0
