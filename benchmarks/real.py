"""Real scans side by side: conventional map, that of the consensus, the default, and its trust.

Usage: ``python benchmarks/real.py FOLDER`` reconstructs the sets below in FOLDER with the app, as
a user would, and draws ``docs/figures/real_SET.png``. FOLDER has the public scans that the tests
read (PRECONDQSM_REAL).
"""

import json
import sys
import tempfile
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use('Agg')
import matplotlib.pyplot as plt

from precondqsm_bids.cli.run import main as run_app
from precondqsm_bids.interfaces.volumes import load

FIGURES = Path(__file__).parents[1] / 'docs' / 'figures'
SETS = {
    'head_siemens_3t': ('raw', 'brain.nii.gz'),
    'crop_brain_7t': ('raw', None),
}
"""Folder of the dataset and region of interest of each set."""
MAPS = {
    'conventional': 'desc-conventional_Chimap',
    'consensus': 'desc-consensus_Chimap',
    'preconditioned (default)': 'desc-precond_Chimap',
    'its prior': 'desc-prior_Chimap',
}
TRUST = {
    'standard deviation': ('desc-precondstd_Chimap', 0.1),
    'decided by the field': ('desc-support_Chimap', 1.0),
}
"""Title -> image, and the value that is brightest; black is 0."""
LIMIT = 0.1
"""ppm, black to white."""


def reconstruct(folder, name):
    """Maps of a set by title, those of trust, region of interest, and the record of all arms."""
    raw, mask = SETS[name]
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / 'out'
        options = ['--preset', 'consensus']
        options += ['--mask', str(folder / name / mask)] if mask else []
        status = run_app([
            str(folder / name / raw), str(out), 'participant', '-w', f'{work}/work', *options,
        ])  # fmt: skip
        if status:
            raise SystemExit(f'{name}: the app ended with status {status}')
        anat = out / 'sub-01' / 'anat'
        maps = {title: load(str(anat / f'sub-01_{map_}.nii.gz')) for title, map_ in MAPS.items()}
        inside = load(str(anat / 'sub-01_desc-roi_mask.nii.gz'), bool)
        trust = {
            title: load(str(anat / f'sub-01_{name}.nii.gz')) for title, (name, _) in TRUST.items()
        }
        known = load(str(anat / 'sub-01_desc-consensus_mask.nii.gz'), bool)
        maps['consensus'] = np.where(known, maps['consensus'], np.nan)
        record = {}
        for map_ in MAPS.values():
            record |= json.loads((anat / f'sub-01_{map_}.json').read_text())['Parameters']
    return maps, trust, inside, record


def draw(maps, trust, inside, path):
    """Three planes of each map through the middle of the region; those of trust in colour."""
    shown = {
        title: (np.nan_to_num(chi - np.nanmean(chi[inside]), nan=-LIMIT), -LIMIT, LIMIT, 'gray')
        for title, chi in maps.items()
    }
    shown |= {title: (image, 0, TRUST[title][1], 'inferno') for title, image in trust.items()}
    middle = [int(np.median(axis)) for axis in np.nonzero(inside)]
    box = [slice(int(axis.min()), int(axis.max()) + 1) for axis in np.nonzero(inside)]
    figure, axes = plt.subplots(
        3, len(shown), figsize=(3 * len(shown), 8.5), facecolor='black', layout='constrained'
    )
    for column, (title, (image, least, most, colours)) in zip(axes.T, shown.items(), strict=True):
        image = np.where(inside, image, 0)
        for plane, axis in zip(column, (2, 1, 0), strict=True):
            across = tuple(np.delete(np.array(box, object), axis))
            of_plane = np.take(image, middle[axis], axis)[across]
            plane.imshow(of_plane.T, origin='lower', cmap=colours, vmin=least, vmax=most)
            plane.set_axis_off()
        column[0].set_title(title, color='white')
    figure.savefig(path, dpi=60, facecolor='black')
    plt.close(figure)


def main(argv):
    """Reconstruct and draw; the exit status."""
    if len(argv) != 1 or not Path(argv[0]).is_dir():
        print(__doc__.split('\n\n')[1], file=sys.stderr)
        return 2
    for name in SETS:
        maps, trust, inside, record = reconstruct(Path(argv[0]), name)
        draw(maps, trust, inside, FIGURES / f'real_{name}.png')
        arms = ('conventional_', 'consensus_', '')
        weights = [record[f'{arm}dipole_inversion']['reg_weight'] for arm in arms]
        print(
            f'{name}: prior counts for {record["prior_fit"]["trust"]:.0%}, lambda '
            f'{weights[0]:.2f} mm conventional, {weights[1]:.2f} mm consensus, '
            f'{weights[2]:.2f} mm preconditioned'
        )
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
