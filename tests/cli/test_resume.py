"""``--stop-after flattening`` and ``--resume-with``: two participants and a program between.

The program is background removal of this package, and truncated k-space division written here;
the field is that of the simulation.
"""

import json
import subprocess
import sys

import nibabel as nb
import numpy as np
import pytest

from precondqsm_bids.numerics import pdf
from precondqsm_bids.outputs.figures import BEFORE_MAP
from precondqsm_bids.phantom.spec import TubesSpec
from precondqsm_bids.phantom.tubes import simulate_tubes

SPEC = TubesSpec(matrix=(30, 30, 26), voxel_size=(4.0, 4.0, 4.0))
HZ = 42.5775 * 3
RUNS = {'a': 'sub-a_rec-x', 'b': 'sub-b'}


def app(root, *words):
    """Status and all that was said."""
    done = subprocess.run(
        [sys.executable, '-m', 'precondqsm_bids', 'raw', 'out', 'participant', '-w', 'work',
         *words],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def write(path, volume, like, **sidecar):
    path.parent.mkdir(parents=True, exist_ok=True)
    nb.save(nb.Nifti1Image(np.asarray(volume, np.float32), like), path)
    if sidecar:
        path.with_name(path.name.replace('.nii.gz', '.json')).write_text(json.dumps(sidecar))


def divided(field, mask, voxel_size):
    """Truncated k-space division of the local part of a field, ppm."""
    local = pdf(field, mask, voxel_size, (0, 0, 1)).local_field
    k = np.meshgrid(*map(np.fft.fftfreq, field.shape, voxel_size), indexing='ij')
    square = sum(axis**2 for axis in k)
    kernel = 1 / 3 - k[2] ** 2 / np.where(square, square, 1)
    kernel = np.where(abs(kernel) < 0.2, np.copysign(0.2, kernel), kernel)
    return np.fft.ifftn(np.fft.fftn(local) / kernel).real * mask


@pytest.fixture(scope='module')
def phantom():
    return simulate_tubes(SPEC, seed=4)


@pytest.fixture(scope='module')
def flattened(tmp_path_factory, phantom):
    """The folder after ``--stop-after flattening``, and what was said."""
    root = tmp_path_factory.mktemp('resume')
    (root / 'raw').mkdir()
    description = {'Name': 'given', 'BIDSVersion': '1.10.0'}
    (root / 'raw/dataset_description.json').write_text(json.dumps(description))
    for subject in RUNS:
        (root / f'raw/sub-{subject}').mkdir()
        stem = root / f'mine/sub-{subject}/fmap' / RUNS[subject]
        field = HZ * phantom.field + 1e-3
        write(stem.with_name(f'{stem.name}_fieldmap.nii.gz'), field, phantom.affine,
              Units='Hz', MagneticFieldStrength=3)  # fmt: skip
        magnitude = phantom.magnitude[..., 0]
        write(stem.with_name(f'{stem.name}_magnitude.nii.gz'), magnitude, phantom.affine)
    status, said = app(root, '--stop-after', 'flattening', '--field', 'derivatives', '-d', 'mine')
    assert status == 0, said
    return root, said


def folder(root, subject):
    return root / f'out/sub-{subject}'


def flat_of(root, subject):
    """Flattened field (ppm) and region of a participant, as files say."""
    stem = {'a': 'sub-a_acq-recx', 'b': 'sub-b'}[subject]
    path = folder(root, subject) / f'fmap/{stem}_desc-flattened_fieldmap.nii.gz'
    beside = path.with_name(path.name.replace('.nii.gz', '.json'))
    assert json.loads(beside.read_text())['Units'] == 'Hz'
    mask = folder(root, subject) / f'anat/{RUNS[subject]}_desc-roi_mask.nii.gz'
    return nb.load(path).get_fdata() / HZ, nb.load(mask).get_fdata() > 0


@pytest.mark.slow
def test_flattened_field_and_prior_are_written_and_no_map(flattened):
    root, said = flattened
    for subject, stem in RUNS.items():
        names = {path.name for path in folder(root, subject).glob('anat/*')}
        assert {f'{stem}_desc-prior_Chimap.nii.gz', f'{stem}_desc-roi_mask.json'} <= names
        assert not [name for name in names if 'precond' in name or 'residual' in name]
        page = (root / f'out/sub-{subject}.html').read_text()
        assert 'stopped after the flattening of the field, as asked' in page
        assert f'{stem}_Chimap.nii.gz' in page
        assert 'Are field and prior to be trusted?' in page
        assert not [
            words for words in ('box error', 'not finish', 'was inverted') if words in page
        ]
        figures = {path.name for path in folder(root, subject).glob('figures/*')}
        for name in (f'{stem}_{figure.name}' for figure in BEFORE_MAP if not figure.optional):
            assert name in figures
            assert f'figures/{name}' in page
        assert f'{stem}_desc-precond_Chimap' not in page
    flat, mask = flat_of(root, 'a')
    assert flat[mask].std() > 0
    assert 'conventional' not in said
    (citation,) = root.glob('out/logs/*/CITATION.md')
    assert 'was subtracted from the total field' in citation.read_text()
    assert ': in ' in citation.read_text()  # how far the prior counts: it is that of what was done
    assert 'inverted' not in citation.read_text()


@pytest.mark.slow
def test_folder_of_maps_is_recombined(flattened, phantom):
    root, _ = flattened
    for subject, stem in RUNS.items():
        chi = divided(*flat_of(root, subject), SPEC.voxel_size)
        write(root / f'theirs/sub-{subject}/{stem}_desc-theirs_Chimap.nii.gz', chi,
              phantom.affine, Units='ppm')  # fmt: skip
    status, said = app(root, '--resume-with', 'theirs')
    assert status == 0, said
    assert 'finished: 2 of 2 maps' in said
    for subject, stem in RUNS.items():
        anat = folder(root, subject) / 'anat'
        maps = {
            desc: nb.load(anat / f'{stem}_desc-{desc}_Chimap.nii.gz').get_fdata()
            for desc in ('precond', 'residual', 'prior')
        }
        _, mask = flat_of(root, subject)
        whole = (maps['residual'] + maps['prior'])[mask]
        np.testing.assert_allclose(maps['precond'][mask], whole - whole.mean(), atol=1e-5)
        true = phantom.chi[mask] - phantom.chi[mask].mean()
        assert np.linalg.norm(maps['precond'][mask] - true) < 0.4 * np.linalg.norm(true)
        sidecar = json.loads((anat / f'{stem}_desc-precond_Chimap.json').read_text())
        assert sidecar['Sources'][-1].endswith('theirs_Chimap.nii.gz')
        assert sidecar['EstimationAlgorithm'].startswith(
            "Field of the prior and of the object's shape subtracted from the measured field; "
            'inversion by another program'
        )
        assert sidecar['Units'] == 'ppm'
        assert sidecar['Parameters']['take_map']['field_slope'] > 0.3
        assert sidecar['Reference']['Region'] == 'roi-mean'
        page = (root / f'out/sub-{subject}.html').read_text()
        assert 'Its map is that of another program' in page
        assert 'there is no susceptibility map yet' not in page
        assert f'{stem}_desc-precond_Chimap.nii.gz' in page
        assert 'was inverted by another program' in page
    newest = max(root.glob('out/logs/*/CITATION.md'), key=lambda path: path.stat().st_mtime)
    assert 'was inverted by another program' in newest.read_text()


@pytest.mark.slow
def test_map_of_one_run_in_another_unit_is_told_and_the_other_is_written(flattened, phantom):
    root, _ = flattened
    for subject, factor in (('a', 1000), ('b', 1)):
        chi = factor * divided(*flat_of(root, subject), SPEC.voxel_size)
        write(root / f'ppb/{RUNS[subject]}_Chimap.nii.gz', chi, phantom.affine)
    for earlier in folder(root, 'a').glob('anat/*_desc-precond_Chimap.*'):
        earlier.unlink()
    status, said = app(root, '--resume-with', 'ppb')
    assert status == 1
    assert 'sub-a failed: ' in said
    assert 'sub-a_rec-x_Chimap.nii.gz has ' in said
    assert 'another unit than ppm' in said
    assert 'finished: 1 of 2 maps' in said
    errors = {subject: (root / f'out/sub-{subject}.html').read_text() for subject in RUNS}
    assert '<h3>sub-a_rec-x: ' in errors['a']
    assert 'No step failed' in errors['b']
    done = subprocess.run(
        [sys.executable, '-m', 'precondqsm_bids', 'raw', 'out', 'group'],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ' 1 complete, 1 failed runs' in done.stdout
    assert 'sub-a_rec-x | failed: ' in done.stdout
    assert 'its last call failed; sub-a_rec-x: ' in done.stdout
    assert 'another unit than ppm' in done.stdout
    assert '; crash file: sub-a/log/' in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    'words, status, message',
    [
        (('theirs.nii.gz',), 2, 'is one map, and there are 2 runs (sub-a_rec-x, sub-b)'),
        (('theirs.nii.gz', '--participant-label', 'b'), 1, 'differ in the affines'),
        (('theirs.nii.gz', '--participant-label', 'b', '--reference', 'csf'), 2, 'is a label'),
        (('theirs.nii.gz', '--participant-label', 'c'), 2, 'has no flattened field'),
        (('nowhere',), 2, 'no such file or folder'),
        (('bad.nii.gz', '--participant-label', 'b'), 1, 'is not a readable NIfTI file'),
        (
            ('small.nii.gz', '--participant-label', 'b'),
            1,
            'differ in matrix size: resample',
        ),
        (('complex.nii.gz', '--participant-label', 'b'), 1, 'holds complex numbers'),
        (('raw',), 2, 'has no map of the runs sub-a_rec-x, sub-b'),
        (('theirs.nii.gz', '--dry-run'), 2, 'does not go with --dry-run'),
        (('hz_Chimap.nii.gz', '--participant-label', 'b'), 1, "Units 'Hz' are not ppm"),
    ],
)
def test_what_does_not_go_together_is_told(flattened, phantom, words, status, message):
    root, _ = flattened
    moved = phantom.affine.copy()
    moved[0, 3] += 2
    write(root / 'theirs.nii.gz', phantom.chi, moved)
    write(root / 'hz_Chimap.nii.gz', phantom.chi, phantom.affine, Units='Hz')
    (root / 'bad.nii.gz').write_text('bad')
    write(root / 'small.nii.gz', phantom.chi[..., :9], phantom.affine)
    nb.save(nb.Nifti1Image(phantom.chi + 0j, phantom.affine), root / 'complex.nii.gz')
    found, said = app(root, '--resume-with', *words)
    assert found == status, said
    assert message in said


@pytest.mark.slow
def test_a_map_that_this_program_inverted_is_not_replaced(flattened, phantom):
    root, _ = flattened
    beside = folder(root, 'b') / f'anat/{RUNS["b"]}_desc-precond_Chimap.json'
    before = beside.read_text() if beside.is_file() else None
    beside.write_text(json.dumps({'Parameters': {'recombination': {}}}))
    write(root / 'theirs.nii.gz', phantom.chi, phantom.affine)
    found, said = app(root, '--resume-with', 'theirs.nii.gz', '--participant-label', 'b')
    assert (found, 'run --stop-after flattening first' in said) == (2, True)
    found, said = app(root, '--resume-with', 'theirs.nii.gz')
    assert (found, 'is one map, and there are 2 runs' in said) == (2, True)
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = phantom.chi.shape[0] - 1
    write(root / f'turned/{RUNS["a"]}_Chimap.nii.gz', phantom.chi[::-1], phantom.affine @ flip)
    found, said = app(root, '--resume-with', 'turned')
    assert 'sub-b | skipped: its map is of this program' in said
    assert 'finished: 1 of 1 maps' in said  # one grid, stored the other way round
    if before is None:
        beside.unlink()
    else:
        beside.write_text(before)
