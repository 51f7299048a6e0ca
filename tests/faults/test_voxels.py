"""Bad and odd inputs that only the voxels tell of.

Each is a participant of one dataset, so that one call shows that each fails by itself, with its
file, its numbers and the way out, and leaves no map. ``docs/inputs.md`` names every case.
"""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest

import precondqsm_bids
from precondqsm_bids.interfaces import Uncertainty
from precondqsm_bids.phantom.spec import TubesSpec
from precondqsm_bids.phantom.tubes import simulate_tubes

SHAPE = (16, 16, 16)
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])
TIMES = (0.002, 0.005, 0.008)


class Case(NamedTuple):
    name: str
    change: Callable
    said: tuple[str, ...]


def case(name, change, *said):
    """A name for the page, what spoils the files, and what must be said."""
    return pytest.param(Case(name, change, said), id=name)


def label(name):
    return name.replace('-', '')


def ball(radius, centre=7.5):
    return sum((x - centre) ** 2 for x in np.indices(SHAPE)) < radius**2


def save(path, data, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def write_participant(root, name):
    """A ball in air, with a smooth field; its folder."""
    rng = np.random.default_rng(1)
    x = (np.indices(SHAPE)[0] - 7.5) / 8
    folder = root / f'sub-{label(name)}' / 'anat'
    for echo, time in enumerate(TIMES, 1):
        signal = 1000 * ball(6) * np.exp(-20 * time + 1j * (0.2 + 2 * np.pi * 15 * x * time))
        signal = signal + 5 * (rng.normal(size=SHAPE) + 1j * rng.normal(size=SHAPE))
        stem = f'sub-{label(name)}_echo-{echo}'
        save(folder / f'{stem}_part-mag_MEGRE.nii.gz', np.abs(signal).astype(np.float32))
        save(folder / f'{stem}_part-phase_MEGRE.nii.gz', np.angle(signal).astype(np.float32))
        metadata = {'EchoTime': time, 'MagneticFieldStrength': 3}
        (folder / f'{stem}_MEGRE.json').write_text(json.dumps(metadata))
    return folder


def voxels(which, change):
    """Change the voxels of the one image that matches."""

    def spoil(folder):
        (path,) = folder.glob(f'*{which}_MEGRE.nii.gz')
        data = nib.load(path).get_fdata(dtype=np.float32)
        save(path, change(data).astype(np.float32))

    return spoil


def corner(value):
    def change(data):
        data[0, 0, 0] = value
        return data

    return change


def middle(value):
    def change(data):
        data[7:9, 8, 8] = value
        return data

    return change


def constant(value):
    return lambda data: np.full_like(data, value)


def as_signed(folder):
    """Unsigned numbers, the brightest above 32767, stored as signed ones."""
    (path,) = folder.glob('*echo-1_part-mag_MEGRE.nii.gz')
    data = nib.load(path).get_fdata() * 40
    save(path, data.astype(np.uint16).view(np.int16))


def cut(folder):
    (path,) = folder.glob('*echo-2_part-phase_MEGRE.nii.gz')
    path.write_bytes(path.read_bytes()[:-2000])


def damaged(folder):
    """Right length, wrong checksum."""
    (path,) = folder.glob('*echo-2_part-mag_MEGRE.nii.gz')
    content = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), 0))
    content[2000] ^= 255
    path.write_bytes(bytes(content))


def speckle(data):
    """One bright voxel in nothing."""
    return corner(1000)(np.zeros_like(data))


def swapped(folder):
    for path in folder.glob('*part-mag*.nii.gz'):
        other = path.with_name(path.name.replace('part-mag', 'part-phase'))
        path.rename(folder / 'spare')
        other.rename(path)
        (folder / 'spare').rename(other)


def magnitude_as_phase(folder):
    """Echo 2 as another reconstruction scaled it, to 12 bits."""
    (path,) = folder.glob('*echo-2_part-mag_MEGRE.nii.gz')
    data = nib.load(path).get_fdata()
    other = path.with_name(path.name.replace('part-mag', 'part-phase'))
    save(other, np.round(3.7 * data).astype(np.int16))


def complex_parts(change):
    """Real and imaginary parts, changed, instead of magnitude and phase."""

    def spoil(folder):
        for path in sorted(folder.glob('*part-mag*.nii.gz')):
            other = path.with_name(path.name.replace('part-mag', 'part-phase'))
            phase = nib.load(other).get_fdata()
            magnitude = nib.load(path).get_fdata()
            for part, data in (('real', np.cos(phase)), ('imag', np.sin(phase))):
                name = path.name.replace('part-mag', f'part-{part}')
                save(folder / name, change(magnitude * data).astype(np.float32))
            path.unlink()
            other.unlink()

    return spoil


def phase_of_another_echo(folder):
    (first,) = folder.glob('*echo-1_part-phase_MEGRE.nii.gz')
    (last,) = folder.glob('*echo-3_part-phase_MEGRE.nii.gz')
    save(last, nib.load(first).get_fdata(dtype=np.float32))


def times_reversed(folder):
    for echo, time in enumerate(reversed(TIMES), 1):
        (path,) = folder.glob(f'*echo-{echo}_MEGRE.json')
        path.write_text(json.dumps({'EchoTime': time, 'MagneticFieldStrength': 3}))


def tubes(change):
    """Tubes in agar, whose shape has a field inside, with their phases changed."""

    def spoil(folder):
        spec = TubesSpec(matrix=(32, 32, 28), voxel_size=(4.0, 4.0, 4.0), echo_times=TIMES)
        phantom = simulate_tubes(spec, seed=3)
        phase = change(phantom.magnitude, phantom.phase)
        for part, echoes in (('mag', phantom.magnitude), ('phase', phase)):
            for echo in range(len(TIMES)):
                (path,) = folder.glob(f'*echo-{echo + 1}_part-{part}_MEGRE.nii.gz')
                save(path, echoes[..., echo].astype(np.float32), phantom.affine)

    return spoil


def homodyne(magnitude, phase):
    """The phase over that of the low frequencies in each slice, as for SWI."""
    signal = magnitude * np.exp(1j * phase)
    frequencies = (np.abs(np.fft.fftfreq(n))[:, None] for n in signal.shape[:2])
    window = [np.where(f < 0.12, np.cos(np.pi * f / 0.24) ** 2, 0) for f in frequencies]
    window = (window[0] * window[1].T)[..., None, None]
    low = np.fft.ifft2(np.fft.fft2(signal, axes=(0, 1)) * window, axes=(0, 1))
    return np.angle(signal * low.conj())


def differences(magnitude, phase):
    """From echo to echo; the first has that of the others, with noise of its own."""
    step = np.angle(np.exp(1j * np.diff(phase, axis=-1)))[..., [0, 0, 1]]
    step[..., 0] += np.random.default_rng(0).normal(0, 0.01, step.shape[:3])
    return step


REFUSED = [
    case(
        'parts-swapped',
        swapped,
        'echo-1_part-mag_MEGRE.nii.gz, a magnitude by its name, has the values of a phase',
        'magnitude and phase are swapped; rename part-mag and part-phase',
    ),
    case(
        'magnitude-stored-as-phase',
        magnitude_as_phase,
        'echo-2_part-phase_MEGRE.nii.gz, a phase by its name, is a magnitude: it correlates with ',
        'echo-2_part-mag_MEGRE.nii.gz by 1.00 in the object',
        'export the phase',
    ),
    case(
        'real-and-imaginary-parts-without-sign',
        complex_parts(np.abs),
        'echo-1_part-real_MEGRE.nii.gz and ',
        'real and imaginary parts, are never negative (',
        'export them with their sign',
    ),
    case(
        'real-and-imaginary-parts-as-unsigned-codes',
        complex_parts(lambda part: part + 2048),
        'echo-1_part-imag_MEGRE.nii.gz, real and imaginary parts, are never negative (',
    ),
    case(
        'echo-times-reversed',
        times_reversed,
        'the magnitude grows from ',
        'echo-3_part-mag_MEGRE.nii.gz (2 ms) to ',
        'echo-1_part-mag_MEGRE.nii.gz (8 ms) in ',
        'echo times in reverse order (correct EchoTime)',
    ),
    case(
        'phase-filtered',
        tubes(homodyne),
        'echo-3_part-phase_MEGRE.nii.gz is a filtered phase (high-pass, homodyne or SWI): what '
        'varies slowly is 0.',
        'export the phase before it',
    ),
    case(
        'phase-differences-stored-as-echoes',
        tubes(differences),
        'echo-2_part-phase_MEGRE.nii.gz are phase differences: the phase does not grow with echo '
        'time',
        'one echo with EchoTime1 and EchoTime2',
    ),
    case(
        'magnitude-negative-in-a-late-echo',
        voxels('echo-3_part-mag', middle(-300)),
        'echo-3_part-mag_MEGRE.nii.gz, a magnitude, has 2 negative voxels (least -300)',
    ),
    case(
        'phase-of-another-echo',
        phase_of_another_echo,
        'echo-3_part-phase_MEGRE.nii.gz (8 ms) is the same image as ',
        'echo-1_part-phase_MEGRE.nii.gz (2 ms): each echo has a phase of its own',
    ),
    case(
        'nan-in-the-first-magnitude',
        voxels('echo-1_part-mag', middle(np.nan)),
        'echo-1_part-mag_MEGRE.nii.gz has 2 voxels that are not finite (NaN) inside the object',
        'of 2 in all: export the image again',
    ),
    case(
        'nan-in-a-late-phase',
        voxels('echo-3_part-phase', middle(np.nan)),
        'echo-3_part-phase_MEGRE.nii.gz has 2 voxels that are not finite (NaN) inside the object',
    ),
    case(
        'infinity-in-a-magnitude',
        voxels('echo-2_part-mag', corner(-np.inf)),
        'echo-2_part-mag_MEGRE.nii.gz has 1 voxels that are not finite (NaN 0, infinite 1)',
    ),
    case(
        'infinity-in-the-phase',
        voxels('echo-1_part-phase', corner(np.inf)),
        'echo-1_part-phase_MEGRE.nii.gz has 1 voxels that are not finite (NaN 0, infinite 1)',
    ),
    case(
        'first-echo-all-zero',
        voxels('echo-1_part-mag', constant(0)),
        'echo-1_part-mag_MEGRE.nii.gz is 0 in every voxel',
        'or leave this echo out',
    ),
    case(
        'late-echo-all-zero',
        voxels('echo-3_part-mag', constant(0)),
        'echo-3_part-mag_MEGRE.nii.gz is 0 in every voxel',
    ),
    case(
        'phase-constant',
        voxels('echo-2_part-phase', constant(0.5)),
        'echo-2_part-phase_MEGRE.nii.gz is 0.5 in every voxel',
    ),
    case(
        'unsigned-stored-as-signed',
        as_signed,
        'echo-1_part-mag_MEGRE.nii.gz, a magnitude, has ',
        'unsigned numbers stored as signed',
    ),
    case(
        'compressed-image-truncated',
        cut,
        'echo-2_part-phase_MEGRE.nii.gz cannot be read (truncated or damaged?)',
    ),
    case(
        'compressed-image-damaged',
        damaged,
        'echo-2_part-mag_MEGRE.nii.gz cannot be read (truncated or damaged?)',
    ),
    case(
        'object-of-one-voxel',
        voxels('echo-1_part-mag', speckle),
        'echo-1_part-mag_MEGRE.nii.gz: the region of interest has 1 voxels, fewer than 27',
    ),
]


def write_mask(name, data):
    def spoil(folder):
        root = folder.parents[1] / 'derivatives' / 'seg'
        stem = f'sub-{label(name)}'
        save(root / stem / 'anat' / f'{stem}_desc-brain_mask.nii.gz', data.astype(np.float32))

    return spoil


def masked(name, data, *said):
    return case(name, write_mask(name, data), f'{label(name)}_desc-brain_mask.nii.gz', *said)


MASKS = [
    masked('mask-empty', np.zeros(SHAPE), 'is an empty mask (0 in every voxel)'),
    masked('mask-is-labels', ball(6) + 1.0 * ball(3), 'is not a valid mask: it has 3 different'),
    masked('mask-elsewhere', ball(1, 1), 'has no voxel in common with the object ('),
    masked('mask-not-finite', np.where(ball(6), np.nan, 0), 'voxels that are not finite'),
    masked(
        'mask-eroded-to-nothing',
        ball(3),
        'an erosion of 12 mm leaves 0 of the',
        'give a smaller erosion',
    ),
]


def run_app(root, *options):
    package = Path(precondqsm_bids.__file__).parents[1]
    command = [sys.executable, '-m', 'precondqsm_bids', root, 'out', 'participant', *options]
    command += ['--nprocs', '2', '--omp-nthreads', '1']  # participants side by side
    return subprocess.run(
        list(map(str, command)),
        cwd=root.parent,
        env={**os.environ, 'PYTHONPATH': str(package)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def spoiled(root, cases):
    root.mkdir()
    description = {'Name': 'faults', 'BIDSVersion': '1.10.0'}
    (root / 'dataset_description.json').write_text(json.dumps(description))
    for param in cases:
        (item,) = param.values
        item.change(write_participant(root, item.name))
    return root


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    root = spoiled(tmp_path_factory.mktemp('images') / 'raw', REFUSED)
    return run_app(root, '--skip-bids-validation', '--no-conventional'), root.parent / 'out'


@pytest.fixture(scope='module')
def masks(tmp_path_factory):
    root = spoiled(tmp_path_factory.mktemp('masks') / 'raw', MASKS)
    options = ('--mask', 'derivatives', '-d', root / 'derivatives/seg', '--mask-erosion', '12')
    done = run_app(root, '--skip-bids-validation', '--no-conventional', *options)
    return done, root.parent / 'out'


def check(case, done, out):
    assert done.returncode == 1
    assert 'Traceback' not in done.stdout + done.stderr
    start = f'sub-{label(case.name)} failed: '
    (line,) = (line for line in done.stderr.splitlines() if start in line)
    for words in case.said:
        assert words in line
    assert Path(line.rpartition('crash file: ')[2]).is_file()
    assert (out / f'sub-{label(case.name)}.html').is_file()


@pytest.mark.parametrize('case', REFUSED)
def test_image_refused(case, images):
    check(case, *images)


def test_unwrapped_phase_gives_the_map_of_the_wrapped(tmp_path):
    """Three turns over the object, with and without Units; the air is 0."""
    root = spoiled(tmp_path / 'raw', [])
    steep = 2 * np.pi * 200 * (np.indices(SHAPE)[0] - 7.5) / 8
    for name in ('wrapped', 'plain', 'stated'):
        folder = write_participant(root, name)
        for echo, time in enumerate(TIMES, 1):
            (path,) = folder.glob(f'*echo-{echo}_part-phase_MEGRE.nii.gz')
            phase = nib.load(path).get_fdata() + steep * time
            if name == 'wrapped':
                phase = np.angle(np.exp(1j * phase))
            save(path, (phase * ball(6)).astype('f4'))
            if name == 'stated':
                sidecar = path.with_name(path.name.replace('.nii.gz', '.json'))
                sidecar.write_text('{"Units": "rad"}')
    done = run_app(root, '--skip-bids-validation', '--no-conventional', '--phase-sign', '+1')
    assert done.returncode == 0, done.stderr
    wrapped, plain, stated = (
        next((tmp_path / 'out').glob(f'sub-{name}/fmap/*total_fieldmap.nii.gz'))
        for name in ('wrapped', 'plain', 'stated')
    )
    field = nib.load(wrapped).get_fdata()
    assert np.ptp(field) > 250
    for path, told in ((plain, True), (stated, False)):
        np.testing.assert_allclose(nib.load(path).get_fdata(), field, atol=1e-3)
        record = json.loads(Path(str(path).replace('.nii.gz', '.json')).read_text())
        record = record['Parameters']['echo_fit']
        assert ('already unwrapped' in ' '.join(record['warnings'])) == told


def test_nan_outside_the_object_is_no_signal(tmp_path):
    """A participant whose air is 0 gives the map of those whose air is NaN, in either part."""
    root = spoiled(tmp_path / 'raw', [])
    parts_of = {'zero': (), 'both': ('mag', 'phase'), 'phase': ('phase',), 'mag': ('mag',)}
    for name, parts in parts_of.items():
        folder = write_participant(root, name)
        for part in ('mag', 'phase'):
            blank = np.nan if part in parts else 0
            for path in folder.glob(f'*part-{part}_MEGRE.nii.gz'):
                save(path, np.where(ball(7), nib.load(path).get_fdata(), blank).astype('f4'))
    done = run_app(root, '--skip-bids-validation', '--no-conventional', '--phase-sign', '+1')
    assert done.returncode == 0, done.stderr
    for name in ('precond_Chimap', 'total_fieldmap'):
        zero, *others = (
            nib.load(next((tmp_path / 'out').glob(f'sub-{label}/*/*_desc-{name}.nii.gz')))
            for label in parts_of
        )
        for nan in others:
            np.testing.assert_array_equal(nan.get_fdata(), zero.get_fdata())
        assert zero.get_fdata().any()


@pytest.mark.parametrize('case', MASKS)
def test_mask_refused(case, masks):
    check(case, *masks)


def test_no_map_is_left(images, masks):
    """What does not need the bad file may be there, whole: a mask; but no map and no remains."""
    for _, out in (images, masks):
        written = {path.name.partition('_')[2] for path in out.glob('sub-*/**/*.nii*')}
        assert written <= {'desc-shape_mask.nii.gz', 'desc-roi_mask.nii.gz'}
        assert not list(out.glob('sub-*/anat/.*'))


@pytest.mark.parametrize(
    'value, dtype, words',
    [
        (-5, np.int16, r'has negative labels, such as -5 \(in 8 voxels\)'),
        (-5, np.float32, 'has negative labels, such as -5'),
        (np.nan, np.float32, r'is not a number \(NaN\) in 8 voxels: set it to 0'),
        (0.5, np.float32, r'has labels that are no whole numbers, such as 0\.5'),
    ],
)
def test_labels_that_no_table_has_are_refused(tmp_path, value, dtype, words):
    """Negative ones had no row in the table of values, and nothing said so."""
    labels = ball(6).astype(dtype)
    labels[:2, :2, :2] = value
    images = {name: np.ones(SHAPE, np.float32) for name in ('local_field', 'field_sd', 'mask')}
    images |= dict.fromkeys(('prior_chi', 'residual_chi'), np.zeros(SHAPE, np.float32))
    inputs = {name: save(tmp_path / f'{name}.nii', data) for name, data in images.items()}
    path = save(tmp_path / 'labels.nii', labels)
    with pytest.raises(ValueError, match=rf'labels\.nii {words}'):
        Uncertainty(**inputs, labels=path).run(cwd=str(tmp_path))
