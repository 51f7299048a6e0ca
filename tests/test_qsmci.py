"""The adapter for the open benchmark, by its contract and a phantom of known susceptibility."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nb
import numpy as np
import pytest
import yaml

from precondqsm_bids.phantom.spec import TubesSpec
from precondqsm_bids.phantom.tubes import simulate_tubes
from precondqsm_bids.qsmci import main, read_params

SUBMISSION = Path(__file__).parents[1] / 'docs' / 'qsmci'
PARAMS = {'TE': [0.004, 0.008], 'B0': 3.0, 'B0_dir': [0, 0, 2.0], 'voxel_size': [1, 1, 1]}


def write(folder, phantom, **changes):
    """The files of the contract from a phantom."""
    folder.mkdir()
    spec = phantom.spec
    images = {
        'phase': phantom.phase,
        'magnitude': phantom.magnitude,
        'mask': (phantom.magnitude[..., 0] > 0.3 * phantom.magnitude.max()).astype(np.uint8),
    }
    for name, data in (images | changes).items():
        nb.Nifti1Image(data, np.diag([*spec.voxel_size, 1])).to_filename(folder / f'{name}.nii.gz')
    params = {
        'TE': list(phantom.echo_times),
        'B0': spec.field_strength,
        'B0_dir': [0, 0, 1],
        'voxel_size': list(spec.voxel_size),
    }
    (folder / 'params.json').write_text(json.dumps(params))
    return images['mask'] > 0


@pytest.fixture(scope='module')
def tubes():
    spec = TubesSpec(matrix=(32, 32, 28), voxel_size=(4.0, 4.0, 4.0))
    return simulate_tubes(spec)


@pytest.mark.slow
@pytest.mark.parametrize('span', ['end-to-end', 'bfr+dipole'])
def test_submission_maps_the_phantom(tubes, tmp_path, span):
    """The script of the submission writes a map in ppm, on the grid, near the truth."""
    if span == 'end-to-end':
        mask = write(tmp_path / 'input', tubes)
    else:
        field = tubes.field + 1e-5 * (tubes.density > 0)
        mask = write(tmp_path / 'input', tubes, totalfield=field.astype(np.float32))
        (tmp_path / 'input' / 'phase.nii.gz').unlink()
    command = ['bash', str(SUBMISSION / 'run.sh'), str(tmp_path / 'input'), str(tmp_path / 'out')]
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    subprocess.run(command, check=True, env={**os.environ, 'PATH': path})
    image = nb.load(tmp_path / 'out' / 'chimap.nii.gz')
    chi = image.get_fdata(dtype=np.float32)
    assert chi.shape == mask.shape
    assert np.allclose(image.affine, np.diag([4, 4, 4, 1]))
    assert not chi[~mask].any()
    inside = mask & (chi != 0)
    error = (chi - chi[inside].mean()) - (tubes.chi - tubes.chi[inside].mean())
    spread = np.std(tubes.chi[inside])
    assert np.sqrt(np.mean(error[inside] ** 2)) < 0.5 * spread


def test_shapes_that_differ_are_named(tubes, tmp_path, capsys):
    write(tmp_path / 'input', tubes, phase=tubes.phase[..., :-1])
    assert main([str(tmp_path / 'input'), str(tmp_path / 'out')]) == 1
    assert 'phase.nii.gz has the shape' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_missing_file_is_named(tubes, tmp_path, capsys):
    write(tmp_path / 'input', tubes)
    (tmp_path / 'input' / 'magnitude.nii.gz').unlink()
    assert main([str(tmp_path / 'input'), str(tmp_path / 'out')]) == 1
    assert 'magnitude.nii.gz' in capsys.readouterr().err


def test_parameters(tmp_path):
    path = tmp_path / 'params.json'
    path.write_text(json.dumps(PARAMS))
    assert read_params(path)['B0_dir'].tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'TE': None}, 'TE'),
        ({'B0_dir': [0, 0, 0]}, 'no direction'),
        ({'voxel_size': [1, 1]}, 'should hold 3 numbers'),
        ({'B0': 'three'}, 'B0'),
    ],
)
def test_wrong_parameters_are_named(tmp_path, change, words):
    path = tmp_path / 'params.json'
    path.write_text(json.dumps(PARAMS | change))
    with pytest.raises(ValueError, match=words):
        read_params(path)


def test_image_that_moved_is_named(tubes, tmp_path, capsys):
    write(tmp_path / 'input', tubes)
    moved = np.diag([4.0, 4, 4, 1])
    moved[0, 3] = 1
    path = tmp_path / 'input' / 'magnitude.nii.gz'
    nb.Nifti1Image(tubes.magnitude, moved).to_filename(path)
    assert main([str(tmp_path / 'input'), str(tmp_path / 'out')]) == 1
    assert 'magnitude.nii.gz and the mask differ in their affines' in capsys.readouterr().err


ARTIFACTS = {
    'end-to-end': ['phase', 'magnitude', 'mask', 'params'],
    'bfr+dipole': ['totalfield', 'mask', 'params', 'magnitude'],
}
"""What the stages of the benchmark's contract consume."""


@pytest.mark.parametrize('name', ['algorithm.yml', 'field/algorithm.yml'])
def test_submission_folder_is_by_the_contract(name):
    manifest = yaml.safe_load((SUBMISSION / name).read_text(encoding='utf-8'))
    assert manifest['inputs'] == ARTIFACTS[manifest['stage']]
    assert re.fullmatch('[a-z0-9-]+', manifest['slug'])
    assert manifest['run'] == 'bash run.sh'
    assert {'name', 'language', 'family', 'learning', 'description', 'license'} <= set(manifest)
    assert (SUBMISSION / 'run.sh').is_file()
    environment = (SUBMISSION / 'Dockerfile').read_text(encoding='utf-8')
    assert 'COPY' not in environment  # the code is mounted, not copied
