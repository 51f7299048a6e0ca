"""Pieces of real scans, as a person would run them: with no option but the folders."""

import json
import os
from pathlib import Path

import nibabel as nib
import pytest

from benchmarks.walls import walls
from precondqsm_bids.cli.run import main

REAL = Path(os.environ.get('PRECONDQSM_REAL', Path(__file__).parents[2].parent / 'shared/real'))


def reconstructed(name, folder, monkeypatch, *options):
    """Map, region and record of a set, by default."""
    if not (REAL / name).is_dir():
        pytest.skip(f'{REAL / name} is not there')
    monkeypatch.chdir(folder)
    command = [str(REAL / name / 'raw'), 'out', 'participant', '-w', 'work', *options]
    assert main([*command, '--skip-bids-validation']) == 0
    anat = folder / 'out/sub-01/anat'
    chi, roi = (
        nib.load(anat / f'sub-01_desc-{name}.nii.gz').get_fdata()
        for name in ('precond_Chimap', 'roi_mask')
    )
    sidecar = json.loads((anat / 'sub-01_desc-precond_Chimap.json').read_text(encoding='utf-8'))
    return chi, roi > 0, sidecar['Parameters']


@pytest.mark.slow
def test_water_in_a_ball_is_uniform(tmp_path, monkeypatch, capsys):
    chi, roi, record = reconstructed('round_phantom_3t', tmp_path, monkeypatch)
    assert chi[roi].std() < 0.01
    # a ball has a field of its shape that is constant inside: its sign is assumed, and said to be
    assert record['echo_fit']['phase_sign_source'] in ('convention', 'vendor')
    assert 'ASSUMED' in ''.join(capsys.readouterr())


@pytest.mark.slow
def test_crop_of_a_brain_without_air(tmp_path, monkeypatch, capsys):
    chi, roi, record = reconstructed('crop_brain_7t', tmp_path, monkeypatch)
    assert roi.mean() > 0.95
    assert not record['shape_mask']['shape_used']
    assert 0.001 < chi[roi].std() < 0.1
    said = ''.join(capsys.readouterr())
    assert 'no air in the field of view' in said
    assert 'ASSUMED' in said


@pytest.mark.slow
def test_prior_of_a_head_with_one_echo_has_no_walls(tmp_path, monkeypatch):
    brain = REAL / 'head_siemens_3t' / 'brain.nii.gz'
    _, roi, _ = reconstructed('head_siemens_3t', tmp_path, monkeypatch, '--mask', str(brain))
    image = nib.load(tmp_path / 'out/sub-01/anat/sub-01_desc-prior_Chimap.nii.gz')
    found = walls(image.get_fdata(), roi, image.header.get_zooms()[:3])
    assert max(found.values()) < 1.1
