"""The same measurement stored in other ways gives the same maps; slabs and extreme numbers of
echoes run to the end.

Each way is a participant of one dataset, reconstructed by one call.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import precondqsm_bids
from precondqsm_bids.phantom.cli import main as write_phantom
from precondqsm_bids.phantom.spec import TubesSpec
from precondqsm_bids.phantom.tubes import simulate_tubes

pytestmark = pytest.mark.slow

SIZE = ('--matrix', '16', '16', '16', '--voxel-size', '8', '8', '8')

STORAGES = {
    'reversed': [[0, -1], [1, -1], [2, -1]],
    'permuted': [[1, 1], [2, -1], [0, 1]],
}
"""Storages of the same object: for each axis of the plain one, which axis it is, and its sign."""


def read(path):
    return nib.load(path).get_fdata(dtype=np.float32)


def save(path, data, affine):
    image = nib.Nifti1Image(data.astype(np.float32), affine)
    if affine is None:
        image.header.set_zooms((8, 8, 8))
    nib.save(image, path)


class Echo:
    """One echo of the plain participant."""

    def __init__(self, folder, number):
        stem = f'{folder}/sub-plain_echo-{number}_part-'
        self.magnitude, self.phase = (read(f'{stem}{p}_MEGRE.nii.gz') for p in ('mag', 'phase'))
        self.affine = nib.load(f'{stem}mag_MEGRE.nii.gz').affine
        self.time = json.loads(Path(f'{stem}mag_MEGRE.json').read_text())['EchoTime']
        self.number = number


def write(root, label, echoes, parts=None, change=lambda data: data, affine='own'):
    """The echoes as a participant; ``parts`` makes the images of an echo by their names."""
    folder = root / f'sub-{label}' / 'anat'
    folder.mkdir(parents=True)
    parts = parts or {'part-mag': lambda e: e.magnitude, 'part-phase': lambda e: e.phase}
    for echo in echoes:
        stem = f'{folder}/sub-{label}_echo-{echo.number}'
        for part, make in parts.items():
            own = echo.affine if affine == 'own' else affine
            save(f'{stem}_{part}_MEGRE.nii.gz', change(make(echo)), own)
        metadata = {'EchoTime': echo.time, 'MagneticFieldStrength': 3.0}
        Path(f'{stem}_MEGRE.json').write_text(json.dumps(metadata))


def cartesian(root, echoes):
    write(
        root,
        'cartesian',
        echoes,
        {
            'part-real': lambda e: e.magnitude * np.cos(e.phase),
            'part-imag': lambda e: e.magnitude * np.sin(e.phase),
        },
    )


def echo_axis(root, echoes):
    folder = root / 'sub-axis' / 'anat'
    folder.mkdir(parents=True)
    for part, name in (('mag', 'magnitude'), ('phase', 'phase')):
        data = np.stack([getattr(echo, name) for echo in echoes], axis=-1)
        save(folder / f'sub-axis_part-{part}_MEGRE.nii.gz', data, echoes[0].affine)
    metadata = {'EchoTime': [echo.time for echo in echoes], 'MagneticFieldStrength': 3.0}
    (folder / 'sub-axis_MEGRE.json').write_text(json.dumps(metadata))


def reoriented(root, label, storage):
    """The plain participant with axes permuted and reversed, the affine with them."""
    folder = root / f'sub-{label}' / 'anat'
    folder.mkdir(parents=True)
    for path in sorted((root / 'sub-plain' / 'anat').iterdir()):
        target = folder / path.name.replace('sub-plain', f'sub-{label}')
        if path.name.endswith('.nii.gz'):
            image = nib.load(path)  # the numbers as they are: phase would be quantized anew
            codes = nib.Nifti1Image(image.dataobj.get_unscaled(), image.affine, image.header)
            codes = codes.as_reoriented(storage)
            codes.header.set_slope_inter(image.dataobj.slope, image.dataobj.inter)
            nib.save(codes, target)
        else:
            shutil.copy(path, target)


def app(root, out, *options):
    package = Path(precondqsm_bids.__file__).parents[1]
    # The sign of an axial slab across tubes along B0 cannot be told from its field.
    options = ('--phase-sign', '+1', *options)
    options += ('--nprocs', '2', '--omp-nthreads', '1')  # participants side by side
    words = [sys.executable, '-m', 'precondqsm_bids', root, out, 'participant', *options]
    done = subprocess.run(
        [*map(str, words), '--skip-bids-validation', '-w', str(out.with_suffix('.work'))],
        env={**os.environ, 'PYTHONPATH': str(package)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope='module')
def maps(tmp_path_factory):
    """Map of a participant by its label, and the sidecar."""
    root = tmp_path_factory.mktemp('storage') / 'raw'
    write_phantom([str(root), *SIZE])
    shutil.rmtree(root / 'derivatives')
    (root / 'sub-01').rename(root / 'sub-plain')
    for path in (root / 'sub-plain' / 'anat').iterdir():
        path.rename(path.with_name(path.name.replace('sub-01', 'sub-plain')))
    numbers = range(1, 1 + len(list((root / 'sub-plain/anat').glob('*part-mag*.nii.gz'))))
    echoes = [Echo(root / 'sub-plain' / 'anat', number) for number in numbers]
    for label, storage in STORAGES.items():
        reoriented(root, label, storage)
    cartesian(root, echoes)
    echo_axis(root, echoes)
    write(root, 'two', echoes[:2])
    write(root, 'apart', echoes[::5])
    write(root, 'slab', echoes, change=lambda data: data[:, :, 5:11])
    write(root, 'coronal', echoes, change=lambda data: data[:, 6:11])
    out = app(root, root.parent / 'out', '--no-conventional')

    bare = root.parent / 'bare'
    bare.mkdir()
    shutil.copy(root / 'dataset_description.json', bare)
    write(bare, 'bare', echoes, affine=None)
    affine = echoes[0].affine
    b0 = [str(round(float(b), 6)) for b in affine[2, :3] / np.linalg.norm(affine[2, :3])]
    app(bare, root.parent / 'bare_out', '--no-conventional', '--b0-dir', *b0)

    def find(label, desc='precond'):
        folder = (root.parent / 'bare_out') if label == 'bare' else out
        path = folder / f'sub-{label}/anat/sub-{label}_desc-{desc}_Chimap.nii.gz'
        sidecar = json.loads(Path(str(path).replace('.nii.gz', '.json')).read_text())
        return nib.load(path), sidecar

    return find


def data(image):
    return image.get_fdata(dtype=np.float32)


@pytest.mark.parametrize('label', STORAGES)
@pytest.mark.parametrize('desc', ['precond', 'prior', 'residual'])
def test_permuted_and_reversed_axes_give_the_same_map(maps, label, desc):
    plain, other = maps('plain', desc)[0], maps(label, desc)[0]
    np.testing.assert_allclose(
        other.affine, plain.as_reoriented(STORAGES[label]).affine, atol=1e-4
    )
    back = nib.as_closest_canonical(other), nib.as_closest_canonical(plain)
    np.testing.assert_array_equal(*map(data, back))


def test_echo_axis_gives_the_same_map(maps):
    plain, other = (data(maps(label)[0]) for label in ('plain', 'axis'))
    np.testing.assert_array_equal(other, plain)
    assert plain.std() > 0.05


def test_real_and_imaginary_parts_give_the_same_map(maps):
    """But for the rounding of the magnitude, which moves voxels between cells of the prior."""
    plain, other = (data(maps(label)[0]) for label in ('plain', 'cartesian'))
    assert np.sqrt(np.mean((other - plain)[plain != 0] ** 2)) < 0.03 * plain[plain != 0].std()
    _, sidecar = maps('cartesian')
    parts = {source.partition('_part-')[2].partition('_')[0] for source in sidecar['Sources']}
    assert parts == {'real', 'imag'}


def test_given_direction_of_b0_gives_the_same_map(maps):
    plain, (image, sidecar) = data(maps('plain')[0]), maps('bare')
    np.testing.assert_array_equal(data(image), plain)
    assert image.header['sform_code'] == 1
    assert len(sidecar['Settings']['b0_dir']) == 3


def test_two_echoes_run(maps):
    image, sidecar = maps('two')
    assert sidecar['NumberOfEchoes'] == 2
    assert np.isfinite(data(image)).all()
    assert data(image).any()


def test_echoes_too_far_apart_are_warned_of(maps):
    """Half a turn of 14 ms is 0.28 ppm at 3 T: less than the tubes differ by from the agar."""
    told, plain = (
        ' '.join(maps(label)[1]['Parameters']['echo_fit']['warnings'])
        for label in ('apart', 'plain')
    )
    assert 'the shortest echo spacing of 14 ms is too long to unwrap it' in told
    assert 'too long' not in plain


@pytest.mark.parametrize('label, cut', [('slab', np.s_[:, :, 5:11]), ('coronal', np.s_[:, 6:11])])
def test_slabs_run(maps, label, cut):
    """The object is cut by the edge of the field of view: no rim is lost there, nothing blows up.

    These voxels are too large for the values of a slab to mean more than that.
    """
    whole, part = data(maps('plain')[0])[cut], data(maps(label)[0])
    assert part.shape == whole.shape
    assert np.isfinite(part).all()
    inside = (part != 0) & (whole != 0)
    axis = 2 if label == 'slab' else 1
    kept, there = (np.take(region, [0, -1], axis).sum() for region in (inside, whole != 0))
    # Voxels of the outermost slices count as the object's border, and those of less signal as
    # partly filled, so that some are lost.
    assert kept > 0.85 * there
    assert 0 < part[inside].std() < 1.2 * whole[inside].std()
    assert np.corrcoef(part[inside], whole[inside])[0, 1] > 0.3


def test_all_oddities_together_give_the_values_of_the_plain_twin(tmp_path):
    """Codes of 12 bits, sign and first axis reversed, B0 known at the root only, oblique."""
    spec = TubesSpec(
        object_scale=0.5, matrix=(63, 61, 39), voxel_size=(1.0, 1.0, 1.5), b0_tilt=25.0
    )
    phantom = simulate_tubes(spec, seed=2)
    codes = np.floor((-phantom.phase.astype(float) / (2 * np.pi) + 0.5) % 1 * 4096)
    flipped = phantom.affine @ np.diag([-1.0, 1, 1, 1])
    flipped[:3, 3] += 62 * phantom.affine[:3, 0]
    stored = {
        'plain': (phantom.magnitude, phantom.phase, phantom.affine),
        'odd': (phantom.magnitude[::-1], codes.astype(np.int16)[::-1], flipped),
    }
    root = tmp_path / 'raw'
    for label, (magnitude, phase, affine) in stored.items():
        folder = root / f'sub-{label}' / 'anat'
        folder.mkdir(parents=True)
        for i, time in enumerate(spec.echo_times):
            stem = f'{folder}/sub-{label}_echo-{i + 1}'
            for part, echoes in (('mag', magnitude), ('phase', phase)):
                image = nib.Nifti1Image(np.ascontiguousarray(echoes[..., i]), affine)
                nib.save(image, f'{stem}_part-{part}_MEGRE.nii.gz')
            own = {} if label == 'odd' else {'MagneticFieldStrength': spec.field_strength}
            Path(f'{stem}_MEGRE.json').write_text(json.dumps({'EchoTime': time, **own}))
    (root / 'MEGRE.json').write_text(json.dumps({'MagneticFieldStrength': spec.field_strength}))
    (root / 'dataset_description.json').write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    out = app(root, tmp_path / 'out', '--no-conventional', '--phase-sign', 'auto')

    def tubes(label, sign):
        path = out / f'sub-{label}/anat/sub-{label}_desc-precond_Chimap.nii.gz'
        sidecar = json.loads(Path(str(path).replace('.nii.gz', '.json')).read_text())
        record = sidecar['Parameters']['echo_fit']
        assert record['phase_sign'] == sign
        assert record['phase_turn'] == pytest.approx(4096 if label == 'odd' else 2 * np.pi)
        assert record['echo_phase_size'] <= 0.1
        assert record['alternating_axes'] == []
        chi = read(path)[::sign]
        count = len(spec.tubes_dchi)
        means = [chi[(chi != 0) & (phantom.labels == i)].mean() for i in range(1, count + 2)]
        return np.array(means[:-1]) - means[-1]

    plain, odd = tubes('plain', 1), tubes('odd', -1)
    np.testing.assert_allclose(odd[1:], plain[1:], rtol=0.01)
    assert odd[0] == pytest.approx(plain[0], abs=0.01)  # a tube that is none
