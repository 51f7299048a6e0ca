"""The phantom on disk: valid, complete, reproducible, and equal to what was simulated."""

import csv
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from precondqsm_bids.phantom.dataset import write_dataset
from precondqsm_bids.phantom.head import simulate_head
from precondqsm_bids.phantom.head_spec import hard_head
from precondqsm_bids.phantom.spec import TubesSpec
from precondqsm_bids.phantom.tubes import simulate_tubes

SPEC = TubesSpec(
    matrix=(32, 30, 28),
    voxel_size=(2.0, 2.0, 2.0),
    object_scale=0.5,
    b0_tilt=20.0,
    echo_times=(0.002, 0.005, 0.011),
    tubes_dchi=(0.25, -0.5),
)


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    out_dir = tmp_path_factory.mktemp('phantom') / 'raw'
    written = write_dataset(out_dir, SPEC, participants=2, seed=7)
    assert sorted(written) == sorted(p for p in out_dir.rglob('*') if p.is_file())
    return out_dir


HEAD = hard_head(voxel_size=(5.0, 5.0, 5.0), echo_times=(0.004, 0.012))


@pytest.fixture(scope='module')
def head_dataset(tmp_path_factory):
    out_dir = tmp_path_factory.mktemp('head') / 'raw'
    written = write_dataset(out_dir, HEAD, seed=7)
    assert sorted(written) == sorted(p for p in out_dir.rglob('*') if p.is_file())
    return out_dir


@pytest.fixture(scope='module')
def phantom():
    return simulate_tubes(SPEC, seed=(7, 1))


def digests(folder):
    return {
        p.relative_to(folder): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob('*')
        if p.is_file()
    }


@pytest.mark.parametrize('kind', ['dataset', 'head_dataset'])
@pytest.mark.parametrize('part', ['.', 'derivatives/truth'])
def test_validator_finds_nothing(kind, part, request):
    dataset = request.getfixturevalue(kind)
    beside = Path(sys.executable).with_name('bids-validator-deno')
    validator = str(beside) if beside.exists() else shutil.which('bids-validator-deno')
    assert validator, 'bids-validator-deno is not installed: pip install .[test]'
    result = subprocess.run(
        [validator, str(dataset / part), '--format', 'json'], capture_output=True, text=True
    )
    issues = json.loads(result.stdout)['issues']['issues']
    found = {(i['severity'], i['code'], i.get('subCode'), i.get('location')) for i in issues}
    assert found == set()
    assert result.returncode == 0


def test_echoes(dataset, phantom):
    for echo, time in enumerate(SPEC.echo_times):
        stem = f'sub-01/anat/sub-01_echo-{echo + 1}'
        magnitude = nib.load(dataset / f'{stem}_part-mag_MEGRE.nii.gz')
        phase = nib.load(dataset / f'{stem}_part-phase_MEGRE.nii.gz')
        assert magnitude.get_data_dtype() == phase.get_data_dtype() == np.int16
        np.testing.assert_allclose(
            magnitude.get_fdata(), phantom.magnitude[..., echo] * 10000, atol=0.51
        )
        turn = np.exp(1j * (phase.get_fdata() - phantom.phase[..., echo]))
        np.testing.assert_allclose(turn, 1, atol=1e-4)
        assert -np.pi <= phase.get_fdata().min() < -3.14
        assert 3.14 < phase.get_fdata().max() < np.pi
        for image, units in ((magnitude, 'arbitrary'), (phase, 'rad')):
            assert image.header['qform_code'] == image.header['sform_code'] == 1
            np.testing.assert_allclose(image.get_qform(), phantom.affine, atol=1e-4)
            np.testing.assert_allclose(image.get_sform(), phantom.affine, atol=1e-4)
            assert image.header.get_xyzt_units()[0] == 'mm'
            sidecar = json.loads(Path(str(image.get_filename())[:-7] + '.json').read_text())
            assert sidecar['EchoTime'] == time
            assert sidecar['MagneticFieldStrength'] == 3.0
            assert sidecar['FlipAngle'] == 20
            assert sidecar['Units'] == units


def test_affine_on_disk_points_along_b0(dataset):
    affine = nib.load(dataset / 'sub-01/anat/sub-01_echo-1_part-mag_MEGRE.nii.gz').affine
    scanner_z = affine[2, :3] / 2.0
    tilt = np.radians(20)
    np.testing.assert_allclose(scanner_z, [0, np.sin(tilt), np.cos(tilt)], atol=1e-6)


def test_truth(dataset, phantom):
    truth = dataset / 'derivatives/truth/sub-01'
    for name, expected, units in (
        ('anat/sub-01_desc-truth_Chimap', phantom.chi, 'ppm'),
        ('anat/sub-01_desc-truth_R2starmap', phantom.r2star, '1/s'),
        ('fmap/sub-01_desc-truth_fieldmap', phantom.field * 42.57638543 * 3, 'Hz'),
        ('anat/sub-01_desc-tubes_dseg', phantom.labels, None),
    ):
        image = nib.load(truth / f'{name}.nii.gz')
        np.testing.assert_allclose(image.get_fdata(), expected, rtol=1e-5, atol=1e-5)
        sidecar = json.loads((truth / f'{name}.json').read_text())
        assert sidecar.get('Units') == units
        for source in sidecar['Sources']:
            assert (dataset / source.removeprefix('bids:raw:')).exists()
    with open(truth / 'anat/sub-01_desc-tubes_dseg.tsv') as table:
        rows = list(csv.DictReader(table, delimiter='\t'))
    assert [(int(r['index']), r['name'], float(r['dchi'])) for r in rows] == [
        (1, 'tube1', 0.25),
        (2, 'tube2', -0.5),
        (3, 'agar', 0.0),
    ]
    assert (truth / 'fmap/sub-01_desc-truth_magnitude.nii.gz').exists()
    description = json.loads((dataset / 'derivatives/truth/dataset_description.json').read_text())
    assert description['DatasetType'] == 'derivative'
    assert description['GeneratedBy'][0]['Name'] == 'precondqsm_phantom'


def test_participants_differ_in_noise_alone(dataset):
    name = 'anat/sub-{0}_echo-1_part-mag_MEGRE.nii.gz'
    first, second = (
        nib.load(dataset / f'sub-{i}' / name.format(i)).get_fdata() for i in ('01', '02')
    )
    inside = first > 5000
    assert (first - second)[inside].std() == pytest.approx(np.sqrt(2) * 10000 / SPEC.snr, rel=0.03)
    truth = dataset / 'derivatives/truth'
    name = 'anat/sub-{0}_desc-truth_Chimap.nii.gz'
    one, other = ((truth / f'sub-{i}' / name.format(i)).read_bytes() for i in ('01', '02'))
    assert one == other


def test_same_seed_same_bytes(dataset, tmp_path):
    write_dataset(tmp_path / 'again', SPEC, participants=2, seed=7)
    assert digests(tmp_path / 'again') == digests(dataset)
    write_dataset(tmp_path / 'other', SPEC, participants=1, seed=8)
    name = 'sub-01/anat/sub-01_echo-1_part-mag_MEGRE.nii.gz'
    assert digests(tmp_path / 'other')[Path(name)] != digests(dataset)[Path(name)]


def test_nothing_is_overwritten(dataset, tmp_path):
    before = digests(dataset)
    with pytest.raises(FileExistsError, match=str(dataset)):
        write_dataset(dataset, SPEC)
    assert digests(dataset) == before
    (tmp_path / 'file').write_text('')
    with pytest.raises(FileExistsError, match='file'):
        write_dataset(tmp_path / 'file', SPEC)


def test_head(head_dataset):
    head = simulate_head(HEAD, seed=(7, 1))
    truth = head_dataset / 'derivatives/truth/sub-01'
    for name, expected, units in (
        ('anat/sub-01_desc-truth_Chimap', head.chi, 'ppm'),
        ('anat/sub-01_desc-truth_R2starmap', head.r2star, '1/s'),
        ('fmap/sub-01_desc-truth_fieldmap', head.field * 42.57638543 * 3, 'Hz'),
        ('anat/sub-01_desc-tissues_dseg', head.labels, None),
        ('anat/sub-01_desc-brain_mask', head.brain_mask, None),
        ('anat/sub-01_label-GM_probseg', head.probsegs['GM'], None),
        ('anat/sub-01_label-WM_probseg', head.probsegs['WM'], None),
        ('anat/sub-01_label-CSF_probseg', head.probsegs['CSF'], None),
    ):
        image = nib.load(truth / f'{name}.nii.gz')
        np.testing.assert_allclose(image.get_fdata(), expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(image.affine, head.affine, atol=1e-4)
        sidecar = json.loads((truth / f'{name}.json').read_text())
        assert sidecar.get('Units') == units
        for source in sidecar['Sources']:
            assert (head_dataset / source.removeprefix('bids:raw:')).exists()
    with open(truth / 'anat/sub-01_desc-tissues_dseg.tsv') as table:
        rows = {row['name']: row for row in csv.DictReader(table, delimiter='\t')}
    assert rows['WM'] == {'index': '2', 'name': 'WM', 'dchi': '-0.03'}
    assert {'pallidum', 'microbleed', 'calcification', 'vein'} <= set(rows)
    echo = nib.load(head_dataset / 'sub-01/anat/sub-01_echo-2_part-mag_MEGRE.nii.gz')
    np.testing.assert_allclose(echo.get_fdata(), head.magnitude[..., 1] * 10000, atol=0.51)
    readme = (head_dataset / 'README').read_text()
    for words in ('head', 'microbleeds', '137', '15 degrees', 'Copyright'):
        assert words in readme
    description = json.loads((head_dataset / 'dataset_description.json').read_text())
    assert 'head' in description['Name']
