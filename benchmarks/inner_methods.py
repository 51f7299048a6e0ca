"""Inversions with and without preconditioning: ``python benchmarks/inner_methods.py``.

Writes the table of ``docs/embedding.md``: the error of each inversion of the field as it was
measured, and of the same inversion of the flattened field with the prior added again. Programs
of others are run by ``--program NAME:TAKES=COMMAND``, TAKES being ``local`` or ``total``; the
words ``{field}`` (ppm), ``{mask}`` and ``{out}`` of the command become files, ``{b0}`` three
numbers.
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')

import nibabel as nib
import numpy as np
from reconstruction import scan_of
from scipy import ndimage
from validation import ROOT, SEED, scaled

from precondqsm_bids.method import Arm, Method
from precondqsm_bids.numerics import Geometry, noise_weights, precondition
from precondqsm_bids.numerics.dipole_inversion import invert
from precondqsm_bids.numerics.reconstruct import invert_field
from precondqsm_bids.phantom.head import simulate_head
from precondqsm_bids.phantom.head_spec import HeadSpec
from precondqsm_bids.phantom.spec import TubesSpec
from precondqsm_bids.phantom.tubes import simulate_tubes

PAGE = ROOT / 'docs' / 'embedding.md'
BEGIN, END = '<!-- inner methods -->\n', '<!-- end of inner methods -->\n'
THRESHOLD = 0.2
RIM = 2
"""Voxels at the border of the region that do not count: part of them may be air, bone or vein."""
OBJECTS = {
    'tubes': lambda scale: simulate_tubes(scaled(TubesSpec(), scale / 3), seed=SEED),
    'head': lambda scale: simulate_head(HeadSpec(voxel_size=(3.0 / scale,) * 3), seed=SEED),
}


def truncated_division(field, mask, voxel_size, b0_dir):
    """Truncated k-space division (Shmueli et al., Magn Reson Med 2009;62:1510)."""
    k = np.stack(np.meshgrid(*map(np.fft.fftfreq, field.shape, voxel_size), indexing='ij'))
    square = (k**2).sum(axis=0)
    along = np.tensordot(np.asarray(b0_dir), k, axes=1)
    kernel = 1 / 3 - along**2 / np.where(square, square, 1)
    kernel = np.where(abs(kernel) < THRESHOLD, np.copysign(THRESHOLD, kernel), kernel)
    return np.fft.ifftn(np.fft.fftn(field) / kernel).real * mask


def own(arm, field_sd):
    """An inversion of this package, by its usual rule."""

    def inner(field, mask, voxel_size, b0_dir):
        geometry = Geometry(mask, voxel_size, b0_dir)
        return invert(field, geometry, arm, noise_weights(field_sd, mask)).chi

    return inner


def program(command, affine):
    """A program of others, by its command line."""

    def inner(field, mask, voxel_size, b0_dir):
        with tempfile.TemporaryDirectory() as folder:
            files = {name: f'{folder}/{name}.nii' for name in ('field', 'mask', 'out')}
            for name, data in (('field', field), ('mask', mask.astype(np.uint8))):
                nib.save(nib.Nifti1Image(data, affine), files[name])
            b0 = ' '.join(f'{v:.6f}' for v in b0_dir)
            subprocess.run(shlex.split(command.format(b0=b0, **files)), check=True)
            return np.asarray(nib.load(files['out']).get_fdata(), np.float32)

    return inner


def methods(field_sd, affine, programs):
    """Name -> inversion, and whether it takes a local or a total field."""
    found = {
        f'truncated k-space division, threshold {THRESHOLD}': (truncated_division, 'local'),
        'l2 in closed form, L-curve': (own(Arm(), field_sd), 'local'),
        'total variation': (own(Arm(inversion='tv', rule='risk'), field_sd), 'local'),
    }
    for words in programs:
        name, _, command = words.partition('=')
        name, _, takes = name.rpartition(':')
        found[name] = program(command, affine), takes
    return found


def errors_of(phantom, programs):
    """Name -> errors (%) without and with preconditioning."""
    scan = scan_of(phantom)
    method = Method()
    found = precondition(scan, method)
    total, field_sd = found.found.images.total_field, found.found.images.field_sd
    conventional = method.arms[1]
    local, _ = invert_field(total, field_sd, found.found.geometry, conventional)
    voxel_size, b0_dir = scan.voxel_size, np.asarray(scan.b0_dir, float)
    errors = {}
    for name, (inner, takes) in methods(field_sd, phantom.affine, programs).items():
        field, mask = (local.local_field, local.known) if takes == 'local' else (total, found.mask)
        alone = inner(field.copy(), mask.copy(), voxel_size, b0_dir)
        with_prior = found.around(inner, takes).chi
        # A program may take off more of the rim.
        where = ndimage.binary_erosion(mask, iterations=RIM) & (alone != 0)
        errors[name] = [error(chi, phantom.chi, where) for chi in (alone, with_prior)]
        print(name, *(f'{value:.1f}' for value in errors[name]), flush=True)
    return errors


def error(chi, true, where):
    """Root mean square error over that of the truth, both less their means, %."""
    chi, true = (v[where] - v[where].mean() for v in (chi, true))
    return 100 * float(np.linalg.norm(chi - true) / np.linalg.norm(true))


def table(results):
    """Rows of Markdown: inversion, and for each object both errors."""
    names = list(next(iter(results.values())))
    head = ' | '.join(f'{name}, alone | {name}, preconditioned' for name in results)
    rows = [f'| inversion | {head} |', '|---' * (1 + 2 * len(results)) + '|']
    for name in names:
        cells = ' | '.join(f'{value:.1f} %' for found in results.values() for value in found[name])
        rows.append(f'| {name} | {cells} |')
    return '\n'.join(rows) + '\n'


def main(argv=None):
    """Simulate, invert, write the table into the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--program', action='append', default=[], metavar='NAME:TAKES=COMMAND')
    parser.add_argument('--scale', type=float, default=1.0, help='of the matrix (1: 3 mm)')
    parser.add_argument('--out', type=Path, default=PAGE, help='page with the marks of the table')
    options = parser.parse_args(argv)
    results = {}
    for name, simulate in OBJECTS.items():
        print(name, flush=True)
        results[name] = errors_of(simulate(options.scale), options.program)
    text = table(results)
    page = options.out.read_text(encoding='utf-8')
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not after:
        raise SystemExit(f'{options.out} has no marks of the table:\n{text}')
    options.out.write_text(before + BEGIN + text + END + after, encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
