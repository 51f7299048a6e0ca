"""Sign of the phase and direction of B0 from raw data to maps, found without an option."""

import json
import shutil

import nibabel as nb
import numpy as np
import pytest

from precondqsm_bids.cli.run import main
from precondqsm_bids.phantom.cli import main as make_phantom

pytestmark = pytest.mark.slow
HEAD = ('--kind', 'head', '--voxel-size', '5', '5', '5', '--echo-times', '.004', '.010', '.016')
TUBES = ('--matrix', '22', '22', '18', '--voxel-size', '6', '6', '6')


def outputs(out, label):
    stem = out / f'sub-{label}/anat/sub-{label}_desc-precond_Chimap'
    image = nb.load(f'{stem}.nii.gz')
    sidecar = json.loads(stem.with_name(f'{stem.name}.json').read_text())
    return image, sidecar['Parameters']['echo_fit']


def rewrite(source, folder, label, change):
    """A participant of the images of another; ``change`` takes part, data and affine."""
    folder.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        target = folder / path.name.replace('sub-01', f'sub-{label}')
        if path.suffix == '.json':
            shutil.copy(path, target)
            continue
        image = nb.load(path)
        part = 'phase' if 'part-phase' in path.name else 'mag'
        data, affine = change(part, image.get_fdata(dtype=np.float32), image.affine)
        nb.save(nb.Nifti1Image(np.ascontiguousarray(data), affine), target)


def test_head_of_either_sign_by_default(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert not make_phantom(['raw', *HEAD])
    anat = tmp_path / 'raw/sub-01/anat'
    negated = {'phase': -1, 'mag': 1}
    rewrite(
        anat,
        tmp_path / 'raw/sub-02/anat',
        '02',
        lambda part, data, affine: (negated[part] * data, affine),
    )
    command = ['raw', 'out', 'participant', '-w', 'work', '--skip-bids-validation']
    # the two participants side by side
    command += ['--no-conventional', '--nprocs', '2', '--omp-nthreads', '1']
    assert main(command) == 0
    (one, stored), (other, reversed_) = (outputs(tmp_path / 'out', s) for s in ('01', '02'))
    assert (stored['phase_sign'], reversed_['phase_sign']) == (1, -1)
    for record in (stored, reversed_):
        assert record['phase_sign_source'] == 'field of the shape'
        assert abs(record['phase_sign_correlation']) > 0.7
    np.testing.assert_allclose(other.get_fdata(), one.get_fdata(), atol=0.02)
    assert one.get_fdata().std() > 0.005
    said = capsys.readouterr().out
    assert 'sub-02 | warning: echo fit: the sign of the phase is reversed' in said
    assert 'ASSUMED' not in said


def test_stated_b0_comes_before_a_wrong_header(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert not make_phantom(['tubes', *TUBES])
    source = tmp_path / 'tubes/sub-01/anat'
    wrong = np.diag([-6.0, 6.0, 6.0, 1.0])  # B0 is along the first stored axis, not the third

    def permuted(part, data, affine):
        return data.transpose(2, 0, 1), affine[:, [2, 0, 1, 3]]

    for label, change in (
        ('right', permuted),
        ('wrong', lambda *image: (permuted(*image)[0], wrong)),
    ):
        rewrite(source, tmp_path / label / f'sub-{label}/anat', label, change)
        shutil.copy(tmp_path / 'tubes/dataset_description.json', tmp_path / label)
    options = ('--skip-bids-validation', '--no-conventional', '--prior', 'r2prime')

    def run(name, *more):
        command = [name, f'out_{name}', 'participant', '-w', f'work_{name}', '--nprocs', '2']
        return main([*command, *options, *more]), ''.join(capsys.readouterr())

    assert run('right')[0] == 0
    status, said = run('wrong')
    assert status == 1
    assert 'fits the first axis better' in said
    assert 'state the direction of B0 (--b0-dir): 1 0 0' in said
    status, said = run('wrong', '--b0-dir', '-2', '0', '0')
    assert status == 0
    assert 'by --b0-dir, which is used' in said
    right, _ = outputs(tmp_path / 'out_right', 'right')
    found, record = outputs(tmp_path / 'out_wrong', 'wrong')
    np.testing.assert_allclose(found.get_fdata(), right.get_fdata(), atol=4e-3)
    assert right.get_fdata().std() > 0.1
    np.testing.assert_array_equal(found.affine, wrong)
    assert (record['b0_dir'], record['b0_dir_source']) == ([-1, 0, 0], 'given')
    assert record['phase_sign'] == 1
