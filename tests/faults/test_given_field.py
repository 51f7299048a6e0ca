"""Fields that are given, right and wrong, as the app meets them: three participants, one call.

The field is that of the simulation, which owes nothing to the program's own fit.
"""

import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from precondqsm_bids.phantom.spec import TubesSpec
from precondqsm_bids.phantom.tubes import simulate_tubes

SPEC = TubesSpec(matrix=(32, 32, 28), voxel_size=(4.0, 4.0, 4.0))
HZ = 127.729
"""Hz per ppm at 3 T."""
FACTORS = {'right': 1, 'reversed': -1, 'unit': 1e4}


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    """Status, what was said, the outputs and the simulation."""
    root = tmp_path_factory.mktemp('given')
    phantom = simulate_tubes(SPEC, seed=4)
    (root / 'raw').mkdir()
    description = {'Name': 'given', 'BIDSVersion': '1.10.0'}
    (root / 'raw/dataset_description.json').write_text(json.dumps(description))
    for label, factor in FACTORS.items():
        (root / f'raw/sub-{label}').mkdir()
        folder = root / f'mine/sub-{label}/fmap'
        folder.mkdir(parents=True)
        for name, volume in (
            ('fieldmap', factor * HZ * phantom.field),
            ('magnitude', phantom.magnitude[..., 0]),
        ):
            image = nib.Nifti1Image(volume.astype(np.float32), phantom.affine)
            nib.save(image, folder / f'sub-{label}_{name}.nii.gz')
        metadata = {'Units': 'Hz', 'MagneticFieldStrength': 3}
        (folder / f'sub-{label}_fieldmap.json').write_text(json.dumps(metadata))
    words = ('raw', 'out', 'participant', '--field', 'derivatives', '-d', 'mine', '-w', 'work')
    process = subprocess.run(
        [sys.executable, '-m', 'precondqsm_bids', *words, '--no-conventional'],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return process.returncode, process.stdout + process.stderr, root / 'out', phantom


def chi_of(done, label):
    """Values of the map in the tubes' labels, less their mean, and the true ones."""
    *_, out, phantom = done
    chi = nib.load(out / f'sub-{label}/anat/sub-{label}_desc-precond_Chimap.nii.gz').get_fdata()
    inside = phantom.labels > 0
    return chi[inside] - chi[inside].mean(), phantom.chi[inside] - phantom.chi[inside].mean()


@pytest.mark.slow
def test_a_given_field_gives_the_map(done):
    _, said, out, _ = done
    chi, true = chi_of(done, 'right')
    assert np.linalg.norm(chi - true) < 0.2 * np.linalg.norm(true)
    assert 'sub-right: field given, 3 T, prior contrast(magnitude)+shape' in said
    assert 'sub-right | warning' not in said
    total = json.loads((out / 'sub-right/fmap/sub-right_desc-total_fieldmap.json').read_text())
    assert total['EstimationAlgorithm'].startswith('None here: the map was given')
    assert total['Units'] == 'Hz'
    chimap = json.loads((out / 'sub-right/anat/sub-right_desc-precond_Chimap.json').read_text())
    assert chimap['Parameters']['echo_fit']['field_source'] == 'given'
    assert chimap['Parameters']['echo_fit']['phase_sign_source'] == 'field of the shape'
    assert 'EchoTime' not in chimap
    page = (out / 'sub-right.html').read_text()
    assert 'none: the field was given' in page
    assert 'a given map of it was taken' in page
    assert not list(out.glob('sub-right/anat/*S0map*'))


@pytest.mark.slow
def test_a_reversed_given_field_is_warned_of(done):
    _, said, *_ = done
    (line,) = [line for line in said.splitlines() if 'sub-reversed | warning' in line]
    assert "has the opposite sign of that of the object's shape" in line


@pytest.mark.slow
def test_a_given_field_in_another_unit(done):
    status, said, out, _ = done
    assert status == 1
    last = said.splitlines()[-1]
    assert 'sub-unit failed: ' in last
    assert 'sub-unit_fieldmap.nii.gz: total_field has values of ' in last
    assert 'it is in another unit than its metadata say' in last
    assert not list(out.glob('sub-unit/anat/*Chimap*'))
