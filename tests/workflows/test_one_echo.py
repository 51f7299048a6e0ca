"""A phantom of one echo from raw data to maps: what is known, and what is said of the rest."""

import json

import nibabel as nb
import numpy as np
import pytest

from precondqsm_bids.cli.run import main
from precondqsm_bids.phantom.cli import main as make_phantom

pytestmark = pytest.mark.slow
TUBES = (-0.1, 0.1, 0.2, 0.3)


@pytest.fixture(scope='module')
def phantom(tmp_path_factory):
    """Tubes with some signal left at 10 ms, in voxels of 2.5 mm."""
    root = tmp_path_factory.mktemp('one') / 'raw'
    size = ('--matrix', '48', '48', '42', '--voxel-size', '2.5', '2.5', '2.5')
    tubes = ('--tubes-dchi', *map(str, TUBES))
    assert not make_phantom([str(root), *size, *tubes, '--echo-times', '0.010'])
    return root


@pytest.fixture
def reconstruct(phantom, tmp_path, monkeypatch, capsys):
    """Folder of the outputs and what was said; the echo is fitted once for all runs."""
    monkeypatch.chdir(tmp_path)
    truth, work = phantom / 'derivatives' / 'truth', phantom.parent / 'work'

    def call(*options):
        command = [str(phantom), 'out', 'participant', '-w', str(work), '-d', f'truth={truth}']
        assert main([*command, '--nprocs', '2', '--skip-bids-validation', *options]) == 0
        return tmp_path / 'out', capsys.readouterr().out

    return call


def values(out, arm):
    """Means in the tubes relative to the agar, ppm."""
    header, *rows = (
        line.split('\t')
        for line in (out / 'sub-01/anat/sub-01_desc-rois_values.tsv').read_text().splitlines()
    )
    column = header.index(f'{arm}_chi_minus_medium')
    return np.array([float(row[column]) for row in rows[: len(TUBES)]])


def error(phantom, out, arm):
    """Voxelwise error over the region of interest, relative to the truth's deviation."""
    anat = out / 'sub-01' / 'anat'
    roi = nb.load(anat / 'sub-01_desc-roi_mask.nii.gz').get_fdata() > 0
    file = phantom / 'derivatives/truth/sub-01/anat/sub-01_desc-truth_Chimap.nii.gz'
    found = nb.load(anat / f'sub-01_desc-{arm}_Chimap.nii.gz').get_fdata()[roi]
    true = nb.load(file).get_fdata()[roi]
    return np.linalg.norm(found - found.mean() - true + true.mean()) / np.linalg.norm(
        true - true.mean()
    )


def test_default_prior_of_one_echo(phantom, reconstruct):
    """Cells of the magnitude alone: values of the right sign and size, and better than without."""
    out, said = reconstruct()
    np.testing.assert_allclose(values(out, 'precond'), TUBES, atol=0.03)
    assert np.all(np.abs(values(out, 'conventional')) < 0.7 * np.abs(TUBES))
    assert error(phantom, out, 'precond') < 0.5 * error(phantom, out, 'conventional')
    # What one echo does not tell is not there
    names = {path.name.removeprefix('sub-01_') for path in out.glob('sub-01/*/*.nii.gz')}
    assert not names & {f'{name}map.nii.gz' for name in ('R2star', 'T2star', 'S0', 'R2prime')}
    assert {'desc-precond_Chimap.nii.gz', 'desc-total_fieldmap.nii.gz'} <= names
    assert 'r2star' not in (out / 'sub-01/anat/sub-01_desc-rois_values.tsv').read_text()
    # It is said in the log, the sidecars, the methods and the report
    assert '1 echo, 10 ms, 3 T, prior contrast(magnitude)+shape' in said
    assert 'is the only echo (EchoTime 0.01 s)' in said
    field = json.loads((out / 'sub-01/fmap/sub-01_desc-total_fieldmap.json').read_text())
    assert field['EstimationAlgorithm'].startswith('Phase of the one echo')
    assert field['Parameters']['echo_fit']['offset_model'] == 'in the field'
    chi = json.loads((out / 'sub-01/anat/sub-01_desc-precond_Chimap.json').read_text())
    assert (chi['NumberOfEchoes'], chi['EchoSpacing']) == (1, '10 ms')
    assert 'r2prime_prior' not in chi['Parameters']
    (methods,) = out.glob('logs/*/CITATION.md')
    report = (out / 'sub-01.html').read_text()
    for text in (methods.read_text(), report):
        assert 'phase of the single echo' in text
        assert 'histogram of the magnitude' in text
    assert 'echo fit: one echo: the field is its unwrapped phase' in report
    # The group level takes it as any other run
    assert main([str(phantom), 'out', 'group', '--skip-bids-validation']) == 0
    header, row = (
        line.split('\t') for line in (out / 'group_quality.tsv').read_text().splitlines()
    )
    quality = dict(zip(header, row, strict=True))
    assert (quality['status'], quality['n_echoes'], quality['r2']) == ('complete', '1', 'n/a')


def test_shape_alone_is_a_prior(phantom, reconstruct):
    out, said = reconstruct('--prior', 'shape')
    assert 'prior shape' in said
    assert not nb.load(out / 'sub-01/anat/sub-01_desc-prior_Chimap.nii.gz').get_fdata().any()
    found, conventional = values(out, 'precond'), values(out, 'conventional')
    assert np.all(np.sign(found) == np.sign(TUBES))
    # 0.77 of the truth where the conventional map has 0.5
    assert np.all(np.abs(found - TUBES) < 0.6 * np.abs(conventional - TUBES))
    report = (out / 'sub-01.html').read_text()
    assert 'the shape of the object alone, nothing inside' in report


def test_given_map_is_a_prior(phantom, reconstruct):
    """A map that is a fifth too low: the field gives it the right coefficient."""
    truth = nb.load(phantom / 'derivatives/truth/sub-01/anat/sub-01_desc-truth_Chimap.nii.gz')
    given = nb.Nifti1Image((0.8 * truth.get_fdata()).astype(np.float32), truth.affine)
    nb.save(given, 'low.nii.gz')
    out, _ = reconstruct('--prior', 'map:low.nii.gz')
    np.testing.assert_allclose(values(out, 'precond'), TUBES, atol=0.02)
    # The phase offset is in the residual, which the prior does not change
    assert error(phantom, out, 'precond') < error(phantom, out, 'conventional')
    assert error(phantom, out, 'prior') < 0.1
