"""Print the demo's table: each tube's true susceptibility beside what the app made of it.

Usage: ``python scripts/demo_table.py DEMO_DIR``, where DEMO_DIR has ``raw`` and ``derivatives``.
The numbers are those of the app's own ROI table; nothing is measured here.
"""

import csv
import json
import sys
from pathlib import Path

SUBJECT = 'sub-01'
MEDIUM = 'agar'
MAPS = {
    'conventional': 'conventional_chi',
    'prior': 'prior_chi',
    'preconditioned': 'precond_chi',
}
RUNS = {
    'derivatives': 'Prior fitted to the field: the default',
    'derivatives-r2prime': "Prior from R2' by theory, not fitted: the published form",
}
"""Folder of a run -> its title, in the order of the tables."""


def main(argv):
    """Print the table of the demo in the folder ``argv[0]``; the exit status."""
    if len(argv) != 1:
        print('usage: demo_table.py DEMO_DIR', file=sys.stderr)
        return 2
    demo = Path(argv[0])
    try:
        for folder in [run for run in RUNS if (demo / run).is_dir()] or RUNS:
            show(demo, folder, RUNS[folder])
    except FileNotFoundError as error:
        print(f'no {error.filename}: run make demo first', file=sys.stderr)
        return 1
    return 0


def show(demo, folder, title):
    """Read the tables and sidecars in ``demo/folder`` and print the table under ``title``."""
    anat = demo / folder / SUBJECT / 'anat'
    truth_anat = demo / 'raw' / 'derivatives' / 'truth' / SUBJECT / 'anat'
    truth = {
        row['name']: float(row['dchi'])
        for row in read_tsv(truth_anat / f'{SUBJECT}_desc-tubes_dseg.tsv')
    }
    rois = {row['name']: row for row in read_tsv(anat / f'{SUBJECT}_desc-rois_values.tsv')}
    lambdas = {
        arm: reg_weight(anat / f'{SUBJECT}_desc-{desc}_Chimap.json', stage)
        for arm, desc, stage in (
            ('conventional', 'conventional', 'conventional_dipole_inversion'),
            ('preconditioned', 'precond', 'dipole_inversion'),
        )
    }
    print(f'\n{title}')
    print('\n'.join(table(truth, rois, lambdas)))
    print(f'\nReport: {demo / folder / SUBJECT}.html')


def read_tsv(path):
    """Rows of a BIDS table as dictionaries of text."""
    with path.open(newline='', encoding='utf-8') as stream:
        return list(csv.DictReader(stream, delimiter='\t'))


def reg_weight(sidecar, stage):
    """The regularisation weight (mm) that the sidecar of a map records for one stage."""
    return json.loads(sidecar.read_text(encoding='utf-8'))['Parameters'][stage]['reg_weight']


def table(truth, rois, lambdas):
    """Lines of the table.

    Parameters
    ----------
    truth : dict
        Name of a label to its true susceptibility relative to the agar, ppm.
    rois : dict
        Name of a label to its row of the ROI table.
    lambdas : dict
        Name of an arm to its regularisation weight, mm.

    Returns
    -------
    list of str
    """
    columns = ('bulk phase', *MAPS)
    lines = [
        f'Susceptibility relative to the {MEDIUM} in ppm, and as a share of the truth',
        '',
        f'{"tube":<10}{"true":>7}' + ''.join(f'{title:>18}' for title in columns),
    ]
    for name, true in truth.items():
        if name == MEDIUM:
            continue
        row = rois[name]
        values = [row['cylinder_reference'], *(row[f'{m}_minus_medium'] for m in MAPS.values())]
        lines.append(f'{name:<10}{true:>7.3f}' + ''.join(cell(v, true) for v in values))
    noise = [f'{float(rois[MEDIUM][f"{column}_sd"]):.3f}' for column in MAPS.values()]
    chosen = [f'{lambdas[arm]:.3g}' if arm in lambdas else '' for arm in MAPS]
    for label, values in (
        (f'sd in the {MEDIUM} (ppm)', noise),
        ('lambda of the inversion (mm)', chosen),
    ):
        lines.append(f'{label:<35}' + ''.join(f'{value:>9}{"":9}' for value in values))
    return [line.rstrip() for line in lines]


def cell(text, true):
    """One value with its share of the truth, where there is a truth to share."""
    if text == 'n/a':
        return f'{text:>9}{"":9}'
    value = float(text)
    share = f'({value / true:.1%})' if true else ''
    return f'{value:>9.3f}{share:>9}'


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
