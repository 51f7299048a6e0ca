"""One echo, however it is stored and whatever the prior, reaches its map.

Each way of storing it is a participant of one dataset, reconstructed by one call. Where a stage
hands on a list of one file, the next must not take the first letter of its name.
"""

import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from precondqsm_bids.cli.run import main
from precondqsm_bids.phantom.cli import main as write_phantom

pytestmark = pytest.mark.slow
SIZE = ('--matrix', '24', '24', '24', '--voxel-size', '5.3', '5.3', '5.3', '--echo-times', '0.010')
REAL = Path(os.environ.get('PRECONDQSM_REAL', Path(__file__).parents[3] / 'shared' / 'real'))
WAYS = ('plain', 'cartesian', 'axis', 'difference')


def read(path):
    return nib.load(path).get_fdata(dtype=np.float32)


def save(path, data, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data.astype(np.float32), affine), path)


def sidecar(path, **content):
    path.write_text(json.dumps({'MagneticFieldStrength': 3.0, **content}))


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    """The dataset, and the folder with the truth, labels included, of participant plain."""
    root = tmp_path_factory.mktemp('paths') / 'raw'
    assert not write_phantom([str(root), *SIZE])
    folder = root / 'sub-01' / 'anat'
    magnitude, phase = (read(f'{folder}/sub-01_echo-1_part-{p}_MEGRE.nii.gz')
                        for p in ('mag', 'phase'))  # fmt: skip
    affine = nib.load(folder / 'sub-01_echo-1_part-mag_MEGRE.nii.gz').affine
    shutil.move(root / 'derivatives' / 'truth', root.parent / 'truth')
    shutil.rmtree(root / 'sub-01')
    parts = {
        'plain': {'part-mag': magnitude, 'part-phase': phase},
        'cartesian': {
            'part-real': magnitude * np.cos(phase),
            'part-imag': magnitude * np.sin(phase),
        },
        'axis': {'part-mag': magnitude[..., None], 'part-phase': phase[..., None]},
        'difference': {'part-mag': magnitude, 'part-phase': phase},
    }
    for label, images in parts.items():
        stem = f'sub-{label}' + ('' if label == 'axis' else '_echo-1')
        own = root / f'sub-{label}' / 'anat'
        for part, data in images.items():
            save(own / f'{stem}_{part}_MEGRE.nii.gz', data, affine)
        times = {'EchoTime': [0.010] if label == 'axis' else 0.010}
        sidecar(own / f'{stem}_MEGRE.json', **times)
    times = {'EchoTime': 0.015, 'EchoTime1': 0.005, 'EchoTime2': 0.015}
    sidecar(root / 'sub-difference/anat/sub-difference_echo-1_part-phase_MEGRE.json', **times)
    for label in WAYS:
        source = root.parent / 'truth' / 'sub-01' / 'anat'
        for path in source.iterdir():
            target = root.parent / 'truth' / f'sub-{label}' / 'anat'
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / path.name.replace('sub-01', f'sub-{label}'))
    return root


@pytest.fixture
def reconstruct(dataset, tmp_path, monkeypatch):
    """Map and sidecar of each participant; what the runs have in common is computed once."""
    monkeypatch.chdir(tmp_path)
    work = dataset.parent / 'work'

    def call(*options, labels=WAYS):
        command = [str(dataset), 'out', 'participant', '-w', str(work), '--phase-sign', '+1']
        command += ['--participant-label', *labels, '--no-conventional']
        command += ['--nprocs', '2', '--omp-nthreads', '1']  # participants side by side
        assert main([*command, '--skip-bids-validation', *options]) == 0
        found = {}
        for label in labels:
            path = tmp_path / f'out/sub-{label}/anat/sub-{label}_desc-precond_Chimap.nii.gz'
            record = json.loads(Path(str(path).replace('.nii.gz', '.json')).read_text())
            found[label] = read(path), record['Parameters']['echo_fit']
        return found

    return call


def test_every_storage_gives_the_same_map(reconstruct):
    """But for rounding, which moves voxels between cells of the prior."""
    found = reconstruct()
    plain = found['plain'][0]
    assert plain.std() > 0.02
    np.testing.assert_array_equal(found['axis'][0], plain)
    np.testing.assert_array_equal(found['difference'][0], plain)
    off = (found['cartesian'][0] - plain)[plain != 0]
    assert np.sqrt(np.mean(off**2)) < 0.01 * plain[plain != 0].std()
    assert found['difference'][1]['offset_model'] == 'none (phase difference)'
    assert found['plain'][1]['offset_model'] == 'in the field'
    told = ' '.join(found['difference'][1]['warnings'])
    assert 'difference of two echoes' in told
    assert 'phase offset of the coil' not in told


@pytest.mark.parametrize('prior', ['tissue', 'map', 'shape', 'contrast', 'mask'])
def test_every_prior_of_parts_that_are_computed(prior, reconstruct, dataset, tmp_path):
    """Real and imaginary parts, whose magnitude and phase are files of a stage."""
    truth = dataset.parent / 'truth' / 'sub-cartesian' / 'anat'
    options = {
        'tissue': ('--prior', 'tissue', '-d', str(tmp_path / 'seg')),
        'map': ('--prior', f'map:{truth / "sub-cartesian_desc-truth_Chimap.nii.gz"}'),
        'shape': ('--prior', 'shape'),
        'contrast': ('--prior', 'contrast', '--contrasts', 'T1w', '-d', str(tmp_path / 'seg')),
        'mask': ('--mask', str(tmp_path / 'mask.nii.gz')),
    }[prior]
    image = nib.load(truth / 'sub-cartesian_desc-truth_Chimap.nii.gz')
    inside = np.sum([(x - 11.5) ** 2 for x in np.indices(image.shape)], axis=0) < 36
    save(tmp_path / 'mask.nii.gz', inside, image.affine)
    folder = tmp_path / 'seg/sub-cartesian/anat'
    save(folder / 'sub-cartesian_dseg.nii.gz', 1 + inside, image.affine)
    (folder / 'sub-cartesian_dseg.tsv').write_text('index\tname\n1\tGM\n2\tWM\n')
    save(folder / 'sub-cartesian_T1w.nii.gz', 5.0 + image.get_fdata(), image.affine)
    (chi, _), *_ = reconstruct(*options, labels=('cartesian',)).values()
    assert np.isfinite(chi).all()
    assert chi.any()


@pytest.mark.parametrize('way', ['cartesian', 'difference'])
def test_head_of_one_echo(way, tmp_path, monkeypatch):
    """A real head, whose one phase is the difference of two echoes: whole, or its brain."""
    source = REAL / 'head_siemens_3t'
    if not source.is_dir():
        pytest.skip(f'{source} is not there')
    root = tmp_path / 'raw'
    shutil.copytree(source / 'raw', root)
    folder = root / 'sub-01' / 'anat'
    stem = folder / 'sub-01_echo-1_part-'
    if way == 'difference':
        sidecar(Path(f'{stem}phase_MEGRE.json'), EchoTime1=0.00492, EchoTime2=0.00738)
    if way == 'cartesian':
        image = nib.load(f'{stem}mag_MEGRE.nii.gz')
        magnitude, phase = (read(f'{stem}{part}_MEGRE.nii.gz') for part in ('mag', 'phase'))
        phase = phase * np.pi / 4096
        for part, data in (('real', np.cos(phase)), ('imag', np.sin(phase))):
            save(Path(f'{stem}{part}_MEGRE.nii.gz'), magnitude * data, image.affine)
            sidecar(Path(f'{stem}{part}_MEGRE.json'), EchoTime=0.00246)
        for part in ('mag', 'phase'):
            Path(f'{stem}{part}_MEGRE.nii.gz').unlink()
            Path(f'{stem}{part}_MEGRE.json').unlink()
    monkeypatch.chdir(tmp_path)
    brain = ('--mask', str(source / 'brain.nii.gz'))
    command = [str(root), 'out', 'participant', '-w', 'work']
    command += ['--no-conventional', '--skip-bids-validation']
    command += brain if way == 'cartesian' else ()
    assert main(command) == 0
    path = tmp_path / 'out/sub-01/anat/sub-01_desc-precond_Chimap.nii.gz'
    assert 0.005 < read(path).std() < 0.3
    record = json.loads(Path(str(path).replace('.nii.gz', '.json')).read_text())
    assert record['EchoTime'] == [0.00246]
    fit = record['Parameters']['echo_fit']
    assert (fit['phase_sign'], fit['phase_sign_source']) == (1, 'field of the shape')
    model = fit['offset_model']
    assert model == ('none (phase difference)' if way == 'difference' else 'in the field')
