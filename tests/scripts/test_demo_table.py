"""The demo's table shows the numbers of the ROI table under the right headings."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / 'scripts' / 'demo_table.py'

ROIS = {
    'tube1': ('0.01', '-0.11', '0.02', '0.03'),
    'tube2': ('0.51', '0.40', '0.55', '0.49'),
    'tube3': ('n/a', '0.80', '1.10', '1.00'),
    'agar': ('n/a', '0', '0', '0'),
}
TRUTH = {'tube1': 0, 'tube2': 0.5, 'tube3': 1, 'agar': 0}


def write_demo(demo, run='derivatives'):
    """A demo folder with the files that the table of a run is made from."""
    truth = demo / 'raw' / 'derivatives' / 'truth' / 'sub-01' / 'anat'
    anat = demo / run / 'sub-01' / 'anat'
    truth.mkdir(parents=True, exist_ok=True)
    anat.mkdir(parents=True)
    (truth / 'sub-01_desc-tubes_dseg.tsv').write_text(
        'index\tname\tdchi\n'
        + ''.join(f'{i}\t{name}\t{dchi}\n' for i, (name, dchi) in enumerate(TRUTH.items(), 1))
    )
    columns = [
        'name', 'cylinder_reference', 'conventional_chi_minus_medium', 'prior_chi_minus_medium',
        'precond_chi_minus_medium', 'conventional_chi_sd', 'prior_chi_sd', 'precond_chi_sd',
    ]  # fmt: skip
    rows = [[name, *values, '0.2', '0.001', '0.05'] for name, values in ROIS.items()]
    (anat / 'sub-01_desc-rois_values.tsv').write_text(
        ''.join('\t'.join(row) + '\n' for row in [columns, *rows])
    )
    for desc, stage, weight in (
        ('conventional', 'conventional_dipole_inversion', 0.0512),
        ('precond', 'dipole_inversion', 0.0256),
    ):
        (anat / f'sub-01_desc-{desc}_Chimap.json').write_text(
            json.dumps({'Parameters': {stage: {'reg_weight': weight}}})
        )


def test_values_stand_under_their_headings(tmp_path):
    write_demo(tmp_path)
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path], capture_output=True, text=True, check=True
    )
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line}
    assert rows['tube'] == [
        'true', 'bulk', 'phase', 'conventional', 'prior', 'preconditioned'
    ]  # fmt: skip
    assert rows['tube1'] == ['0.000', '0.010', '-0.110', '0.020', '0.030']
    assert rows['tube2'] == [
        '0.500', '0.510', '(102.0%)', '0.400', '(80.0%)', '0.550', '(110.0%)', '0.490', '(98.0%)'
    ]  # fmt: skip
    assert rows['tube3'][:2] == ['1.000', 'n/a']
    assert 'agar' not in rows
    assert rows['sd'][-3:] == ['0.200', '0.001', '0.050']
    assert rows['lambda'][-2:] == ['0.0512', '0.0256']
    assert rows['Report:'] == [str(tmp_path / 'derivatives' / 'sub-01.html')]


def test_default_comes_first(tmp_path):
    for run in ('derivatives-r2prime', 'derivatives'):
        write_demo(tmp_path, run)
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path], capture_output=True, text=True, check=True
    )
    titles = [line for line in done.stdout.splitlines() if line.startswith('Prior')]
    assert [title.rpartition(': ')[2] for title in titles] == ['the default', 'the published form']


def test_missing_demo_is_named(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True)
    assert done.returncode == 1
    assert 'make demo' in done.stderr
    assert str(tmp_path) in done.stderr
