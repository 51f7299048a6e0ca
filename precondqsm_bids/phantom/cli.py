"""The command ``precondqsm_phantom``: a digital phantom as a BIDS dataset."""

import argparse
from dataclasses import fields
from pathlib import Path

from precondqsm_bids import __version__
from precondqsm_bids.phantom.spec import SAMPLINGS, TubesSpec


def build_parser():
    """Return the parser; its defaults are those of `TubesSpec`."""
    default = TubesSpec()
    parser = argparse.ArgumentParser(
        prog='precondqsm_phantom',
        description='Write a digital phantom of known susceptibility as a raw BIDS dataset, with '
        'its truth under derivatives/truth.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('out_dir', type=Path, metavar='OUT_BIDS_DIR', help='a new or empty directory')
    add('--version', action='version', version=f'precondqsm_phantom {__version__}')
    add(
        '--kind',
        choices=['tubes'],
        default='tubes',
        help='tubes: agar-filled cylinder in air with parallel tubes',
    )

    scan = parser.add_argument_group('protocol')
    add = scan.add_argument
    add(
        '--matrix',
        nargs=3,
        type=int,
        metavar=('NX', 'NY', 'NZ'),
        default=default.matrix,
        help='voxels along each axis',
    )
    add(
        '--voxel-size',
        nargs=3,
        type=float,
        metavar=('DX', 'DY', 'DZ'),
        default=default.voxel_size,
        help='mm; the object keeps its physical size',
    )
    add('--field-strength', type=float, metavar='T', default=default.field_strength, help='B0')
    add(
        '--b0-tilt',
        type=float,
        metavar='DEG',
        default=default.b0_tilt,
        help='angle between B0 and the container; the stored axes become oblique',
    )
    add(
        '--echo-times',
        nargs='+',
        type=float,
        metavar='S',
        default=default.echo_times,
        help='in seconds',
    )
    add(
        '--snr',
        type=float,
        default=default.snr,
        help='signal of the agar at TE -> 0 over the noise of the real or imaginary part; '
        'inf for no noise',
    )
    add(
        '--coil-shading',
        type=float,
        metavar='FRACTION',
        default=default.coil_shading,
        help='strength of the smooth receive shading; 0 for none',
    )
    add('--participants', type=int, metavar='N', default=1, help='measurements of the phantom')
    add('--seed', type=int, default=0, help='of the noise')

    body = parser.add_argument_group('object')
    add = body.add_argument
    add(
        '--tubes-dchi',
        nargs='+',
        type=float,
        metavar='PPM',
        default=default.tubes_dchi,
        help='susceptibility of 1 to 8 tubes relative to the agar; negative values are allowed',
    )
    add('--r2', type=float, metavar='PER_S', default=default.r2, help='R2 of agar and tubes, 1/s')
    add(
        '--relaxivity-scale',
        type=float,
        metavar='FACTOR',
        default=default.relaxivity_scale,
        help="R2' of the tubes relative to the theory of static dephasing",
    )
    add(
        '--air-bubble',
        type=float,
        metavar='MM',
        default=default.air_bubble,
        help='radius of a sphere of air under the lid; 0 for none',
    )
    add(
        '--object-scale',
        type=float,
        metavar='FACTOR',
        default=default.object_scale,
        help='on every length of the container and the tubes',
    )

    grid = parser.add_argument_group('simulation')
    add = grid.add_argument
    add(
        '--supersampling',
        type=int,
        metavar='N',
        default=default.supersampling,
        help='points per voxel and axis',
    )
    add(
        '--sampling',
        choices=SAMPLINGS,
        default=default.sampling,
        help='box: mean over each voxel; kspace: cut off in k-space, as a scanner does',
    )
    return parser


def main(argv=None):
    """Run the command; exit status 0, or 2 if it was asked for what cannot be done."""
    parser = build_parser()
    options = vars(parser.parse_args(argv))
    values = {field.name: options[field.name] for field in fields(TubesSpec)}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        spec = TubesSpec(**values)
    except ValueError as error:
        parser.error(str(error))

    from precondqsm_bids.phantom.dataset import write_dataset

    out_dir = options['out_dir']
    try:
        written = write_dataset(
            out_dir, spec, participants=options['participants'], seed=options['seed']
        )
    except (FileExistsError, ValueError) as error:
        parser.error(str(error))
    print(f'{out_dir}: {len(written)} files, truth in {out_dir / "derivatives" / "truth"}')
    return 0
