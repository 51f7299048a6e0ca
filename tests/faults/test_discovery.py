"""Bad and odd inputs that names, sidecars and headers tell of: message and exit status.

Each case writes its files and calls the app as its user does. What is refused is refused before
anything is computed, and leaves no map. ``docs/inputs.md`` names every case.
"""

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest

from precondqsm_bids.cli.run import main

ANAT = 'sub-01/anat'
SHAPE = (4, 5, 6)
MADE_UP = nib.Nifti1Image(np.ones(SHAPE, np.float32), None).header.get_base_affine()
"""What nibabel takes where a header has no orientation."""
STRAIGHT = np.diag([2.0, 2.0, 2.0, 1.0])
SHIFTED = STRAIGHT + np.outer([1, 0, 0, 0], [0, 0, 0, 5.0])


class Case(NamedTuple):
    name: str
    make: Callable
    options: tuple[str, ...]
    said: tuple[str, ...]


def case(name, make, *said, options=()):
    """A name for the page, what writes the files, what must be said; ``{root}`` is replaced."""
    return pytest.param(Case(name, make, tuple(options), said), id=name)


@pytest.fixture
def app(dataset, tmp_path, monkeypatch, capsys):
    """Call the app on the dataset; exit status and everything it said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, 'which', lambda name: None)  # no validator

    def call(case, *more):
        case.make(dataset)
        options = [option.replace('{root}', str(dataset.root)) for option in case.options]
        status = main([str(dataset.root), 'out', 'participant', '-w', 'work', *options, *more])
        captured = capsys.readouterr()
        text = captured.out + captured.err
        assert 'Traceback' not in text
        assert not list(Path.cwd().glob('out/**/*.nii*'))
        return status, text

    return call


def check(said, text, root):
    for words in said:
        assert words.replace('{root}', str(root)) in text


# -- makers of files ----------------------------------------------------------------------------


def run(stem='sub-01', **keywords):
    return lambda dataset: dataset.add_run(stem, **keywords)


def both(*makers):
    return lambda dataset: [make(dataset) for make in makers]


def sidecars(which='*', folder=ANAT, **changes):
    """Change the sidecars whose name matches; None removes a key."""

    def make(dataset):
        paths = sorted((dataset.root / folder).glob(f'{which}.json'))
        assert paths
        for path in paths:
            content = json.loads(path.read_text()) | changes
            path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return make


def images(which='*', **keywords):
    """Write the images whose name matches again."""

    def make(dataset):
        paths = sorted((dataset.root / ANAT).glob(f'{which}.nii*'))
        assert paths
        for path in paths:
            dataset.write_image(path, **keywords)

    return make


def content(which, data):
    """Replace the content of the files that match; a function makes it of the old."""

    def make(dataset):
        paths = sorted((dataset.root / ANAT).glob(which))
        assert paths
        for path in paths:
            path.write_bytes(data(path.read_bytes()) if callable(data) else data)

    return make


def remove(which):
    def make(dataset):
        paths = sorted((dataset.root / ANAT).glob(which))
        assert paths
        for path in paths:
            path.unlink()

    return make


def rename(**parts):
    """Parts by other names: ``mag='real'``."""

    def make(dataset):
        for path in sorted((dataset.root / ANAT).iterdir()):
            for old, new in parts.items():
                if f'part-{old}' in path.name:
                    path.rename(path.with_name(path.name.replace(f'part-{old}', f'part-{new}')))

    return make


def without(part):
    """Names without a part of them."""

    def make(dataset):
        for path in sorted((dataset.root / ANAT).iterdir()):
            path.rename(path.with_name(path.name.replace(part, '')))

    return make


def pad(old, new, part):
    """An image and its sidecar by another echo label."""

    def make(dataset):
        for path in sorted((dataset.root / ANAT).glob(f'*{old}*{part}*')):
            path.rename(path.with_name(path.name.replace(old, new)))

    return make


def header(which='*', **values):
    """Change header fields of uncompressed images; the data may be any."""

    def make(dataset):
        paths = sorted((dataset.root / ANAT).glob(f'{which}.nii'))
        assert paths
        for path in paths:
            old = path.read_bytes()
            changed = nib.Nifti1Header(old[:348])
            for key, value in values.items():
                changed[key] = value
            path.write_bytes(changed.binaryblock + old[348:] + bytes(4096))

    return make


def forms(qform, sform, which='*'):
    """Transforms and their codes: ``(affine, code)``, or None for a code of 0."""
    values = {'qform_code': 0, 'sform_code': 0}
    if qform:
        with_q = nib.Nifti1Header()
        with_q.set_qform(*qform)
        values |= {f'quatern_{axis}': with_q[f'quatern_{axis}'] for axis in 'bcd'}
        values |= {'qform_code': qform[1], 'pixdim': with_q['pixdim']}
    if sform:
        values |= dict(zip(('srow_x', 'srow_y', 'srow_z'), sform[0][:3], strict=True))
        values['sform_code'] = sform[1]
    return header(which, **values)


SHEARED = np.array([[2, 0.5, 0, 0], [0, 1.936492, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
"""Voxels of 2 mm whose first two axes are no right angle."""


def turned(axis, degrees):
    """An affine of 2 mm voxels, turned about one of the scanner's axes."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    rotation = np.roll(np.array([[1, 0, 0], [0, c, -s], [0, s, c]]), axis, (0, 1))
    affine = np.eye(4)
    affine[:3, :3] = 2 * rotation
    return affine


def text(path, words):
    def make(dataset):
        target = dataset.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(words)

    return make


def image(path, **keywords):
    return lambda dataset: dataset.write_image(dataset.root / path, **keywords)


def four_dimensional(echo_times, shape=(*SHAPE, 3), stem='sub-01'):
    def make(dataset):
        for part in ('mag', 'phase'):
            name = f'{stem}_part-{part}_MEGRE'
            dataset.write_image(dataset.root / ANAT / f'{name}.nii.gz', shape=shape)
            metadata = {'MagneticFieldStrength': 3, 'EchoTime': echo_times}
            dataset.write_json(dataset.root / ANAT / f'{name}.json', metadata)

    return make


SEG = 'derivatives/seg/sub-01/anat/sub-01'
TISSUE = ('--prior', 'contrast', 'tissue', '-d', '{root}/derivatives/seg')
CLASSES = {1: 'Left-Cerebral-White-Matter', 2: 'Left-Cerebral-Cortex', 3: 'Left-Pallidum'}


def tissue(name, classes=None, **keywords):
    """A segmentation with its table, in the derivatives."""
    return lambda dataset: dataset.add_labels(f'{SEG}_{name}.nii.gz', classes, **keywords)


def coordinates(path, code):
    """Write the codes of a compressed image's transforms again."""

    def make(dataset):
        for target in dataset.root.glob(path):
            image = nib.load(target)
            image.set_sform(image.affine, code)
            image.set_qform(image.affine, code)
            data = np.asarray(image.dataobj)
            nib.save(nib.Nifti1Image(data, image.affine, image.header), target)

    return make


def given(metadata, *others, magnitude=True):
    """A total field in derivatives, with the magnitude and other images beside it."""
    root = 'derivatives/mine/sub-01/fmap/sub-01'

    def make(dataset):
        (dataset.root / 'sub-01').mkdir(exist_ok=True)
        for name in ('fieldmap', *(['magnitude'] if magnitude else []), *others):
            dataset.write_image(dataset.root / f'{root}_{name}.nii.gz')
        dataset.write_json(dataset.root / f'{root}_fieldmap.json', metadata)

    return make


HERTZ = {'Units': 'Hz', 'MagneticFieldStrength': 3}
GIVEN = ('--field', 'derivatives', '-d', '{root}/derivatives/mine')
FINER = np.diag([1.0, 1.0, 1.0, 1.0])


def plain(dataset):
    dataset.add_run()


def uncompressed(dataset):
    dataset.add_run(extension='.nii')


def larger_than_memory(dataset):
    """Files as large as their headers say, without a byte on the disk."""
    for path in dataset.add_run(extension='.nii').glob('*.nii'):
        head = nib.Nifti1Header(path.read_bytes()[:348])
        head.set_data_shape((9000, 9000, 9000))
        path.write_bytes(head.binaryblock + bytes(4))
        os.truncate(path, 352 + 9000**3 * head['bitpix'].item() // 8)


def link_to_nowhere(dataset):
    path = dataset.add_run() / 'sub-01_echo-2_part-phase_MEGRE.nii.gz'
    path.unlink()
    path.symlink_to('annex/object')


def sidecar_to_nowhere(dataset):
    path = dataset.add_run() / 'sub-01_echo-2_part-phase_MEGRE.json'
    path.unlink()
    path.symlink_to('annex/object')


def dataset_of_another_program(dataset):
    Path('out').mkdir()
    made_by = {'Name': 'theirs', 'BIDSVersion': '1.9.0', 'GeneratedBy': [{'Name': 'fMRIPrep'}]}
    Path('out', 'dataset_description.json').write_text(json.dumps(made_by))


def folder_called(name):
    return lambda dataset: dataset.add_run().rename(dataset.root / 'sub-01' / name)


def metadata_at_the_root(dataset):
    """As in bids-examples: eight echoes, echo-01 to echo-08, the field strength once."""
    folder = dataset.add_run(echo_times=[0.003 * i for i in range(1, 9)], field_strength=None)
    for path in sorted(folder.iterdir()):
        path.rename(path.with_name(path.name.replace('_echo-', '_echo-0')))
    dataset.write_json(dataset.root / 'MEGRE.json', {'MagneticFieldStrength': 3})


def many_runs(dataset):
    for session in ('a', 'b'):
        for rest in ('_run-1', '_run-2', '_acq-x_rec-n'):
            dataset.add_run(f'sub-01_ses-{session}{rest}')


FIRST = f'{ANAT}/sub-01_echo-1_part-mag_MEGRE'


def channels(name, word):
    """A case of the channels of a coil, by a word in the names of the images."""
    return case(
        name,
        run(f'sub-01_{word}'),
        f'{ANAT}/sub-01_{word}_echo-1_part-mag_MEGRE.nii.gz: 6 images, this is the first: is one '
        'channel of a coil, by its name: combine the channels first',
    )


REFUSED = [
    # Discovery
    case('magnitude-only', both(plain, remove('*phase*.nii.gz')), FIRST, 'has no phase beside it'),
    case(
        'phase-only',
        both(plain, remove('*mag*.nii.gz')),
        'sub-01_echo-1_part-phase',
        'no magnitude beside it',
    ),
    case(
        'phase-of-one-echo-missing',
        both(plain, remove('*echo-2*phase*.nii.gz')),
        'sub-01_echo-2_part-mag',
        'no phase beside it: add the image of the same name with part-phase',
    ),
    case(
        'imaginary-part-missing',
        both(plain, rename(mag='real', phase='imag'), remove('*echo-3*imag*.nii.gz')),
        'sub-01_echo-3_part-real',
        'no imaginary part beside it',
    ),
    case('part-unknown', both(plain, rename(mag='abs')), 'part-abs is not one of mag, phase'),
    case(
        'echo-label-not-a-number',
        image('sub-01/anat/sub-01_echo-a_part-mag_MEGRE.nii.gz'),
        'echo-a should be echo-1, echo-2',
    ),
    case(
        'same-image-twice',
        both(plain, image(f'{FIRST}.nii')),
        f'{FIRST}.nii',
        'is the same echo and part as',
        'keep one of them',
    ),
    case(
        'file-of-another-participant',
        image('sub-01/anat/sub-02_echo-1_part-mag_MEGRE.nii.gz'),
        'the name belongs into the folder sub-02/anat',
    ),
    # Echo times
    case(
        'prior-of-r2star-with-one-echo',
        run(echo_times=(0.004,)),
        FIRST,
        'is the only echo (EchoTime 0.004 s), and --prior r2prime-by-tissue r2prime is made of '
        'R2*',
        'give --prior contrast, tissue, map:FILE or shape',
        options=('--prior', 'r2prime-by-tissue', 'r2prime', '-d', '{root}'),
    ),
    case(
        'echo-time-missing',
        both(plain, sidecars('*echo-1*', EchoTime=None)),
        FIRST,
        'has no EchoTime',
        'in seconds',
    ),
    case(
        'echo-time-in-milliseconds',
        both(plain, sidecars('*echo-1*', EchoTime=4.0)),
        FIRST,
        'EchoTime 4.0 looks like milliseconds; BIDS has seconds: write 0.004',
    ),
    case(
        'echo-time-negative',
        both(plain, sidecars('*echo-1*', EchoTime=-0.004)),
        FIRST,
        'EchoTime -0.004 is not a positive number',
    ),
    case(
        'echo-time-zero',
        both(plain, sidecars('*echo-1*', EchoTime=0)),
        FIRST,
        'EchoTime 0 is not a positive number',
    ),
    case(
        'echo-time-as-text',
        both(plain, sidecars('*echo-1*', EchoTime='4 ms')),
        FIRST,
        "EchoTime '4 ms' is not a positive number of seconds",
    ),
    case(
        'echo-time-not-finite',
        both(plain, sidecars('*echo-1*', EchoTime=float('nan'))),
        FIRST,
        'EchoTime nan is not a positive number',
    ),
    case(
        'echo-time-as-list-of-one-echo',
        both(plain, sidecars('*echo-1*', EchoTime=[0.004, 0.008, 0.012])),
        FIRST,
        'EchoTime [0.004, 0.008, 0.012] is not a positive number',
    ),
    case(
        'echo-times-twice',
        both(plain, sidecars('*echo-1*', EchoTime=0.008)),
        FIRST,
        'EchoTime 0.008 s is that of',
        'sub-01_echo-2_part-mag_MEGRE.nii.gz too',
    ),
    case(
        'echo-times-of-the-parts-differ',
        both(plain, sidecars('*echo-2*phase*', EchoTime=0.009)),
        '0.008 s differs from 0.009 s',
        'sub-01_echo-2_part-phase',
    ),
    case(
        'echo-axis-without-times',
        four_dimensional(None),
        'has no EchoTime: write the list of the 3 echo times',
    ),
    case(
        'echo-axis-with-one-time',
        four_dimensional(0.004),
        'has 3 volumes and EchoTime 0.004: write the list',
    ),
    case(
        'echo-axis-with-too-few-times',
        four_dimensional([0.004, 0.008]),
        'has 3 volumes and 2 echo times [0.004, 0.008]',
    ),
    case(
        'echo-axis-not-in-order',
        four_dimensional([0.004, 0.012, 0.008]),
        'EchoTime [0.004, 0.012, 0.008] does not increase',
    ),
    case(
        'echo-axis-of-magnitude-longer-than-of-phase',
        both(
            four_dimensional([0.004, 0.008, 0.012]),
            image(f'{ANAT}/sub-01_part-phase_MEGRE.nii.gz', shape=(*SHAPE, 2)),
            sidecars('*part-phase*', EchoTime=[0.004, 0.008]),
        ),
        'has 3 volumes and',
        'has 2: every echo has a magnitude and a phase',
    ),
    case(
        'echo-axis-in-milliseconds',
        four_dimensional([4, 8, 12]),
        'EchoTime 4 looks like milliseconds',
    ),
    case(
        'echo-axis-and-echo-entity',
        four_dimensional(0.004, stem='sub-01_echo-1'),
        'has the shape (4, 5, 6, 3); each echo is one 3D image, or all echoes are one 4D image '
        'without an echo entity',
    ),
    case(
        'channels-of-a-coil-along-the-fourth-axis',
        both(plain, images(shape=(*SHAPE, 32))),
        'has the shape (4, 5, 6, 32); each echo is one 3D image',
        'If volumes are the channels of a coil, combine the channels first, magnitude and phase '
        'together, for example with mcpc3ds of mritools (MCPC-3D-S, beside ROMEO)',
    ),
    case(
        'channels-and-echoes-along-the-fourth-axis',
        four_dimensional([0.004, 0.008, 0.012], shape=(*SHAPE, 96)),
        'has 96 volumes and 3 echo times',
        'If volumes are the channels of a coil, combine the channels first',
    ),
    channels('channels-of-a-coil-by-coil', 'coil-01'),
    channels('channels-of-a-coil-by-ch', 'ch-1'),
    channels('channels-of-a-coil-by-rec', 'rec-uncombined'),
    channels('channels-of-a-coil-by-a-word', 'coil'),
    case(
        'five-dimensions',
        both(plain, images(shape=(*SHAPE, 1, 2))),
        'has the shape (4, 5, 6, 1, 2)',
        'each echo is one 3D image',
    ),
    # Phase differences, ImageType
    case(
        'phase-difference-without-both-times',
        both(run(echo_times=(0.005,)), sidecars('*phase*', EchoTime2=0.007)),
        'part-phase_MEGRE.nii.gz: is a difference of two echoes (EchoTime2 0.007) without the '
        'times of both: write EchoTime1 and EchoTime2',
    ),
    case(
        'phase-difference-by-image-type-alone',
        both(
            run(echo_times=(0.005,)),
            sidecars('*phase*', ImageType=['DERIVED', 'PRIMARY', 'P', 'PHASE_DIFFERENCE']),
        ),
        'is a difference of two echoes (ImageType PHASEDIFFERENCE) without the times of both',
    ),
    case(
        'phase-difference-of-reversed-times',
        both(run(echo_times=(0.005,)), sidecars('*phase*', EchoTime1=0.007, EchoTime2=0.005)),
        'EchoTime1 0.007, EchoTime2 0.005): the second is the later',
    ),
    case(
        'phase-difference-in-milliseconds',
        both(run(echo_times=(0.005,)), sidecars('*phase*', EchoTime1=4.9, EchoTime2=7.4)),
        'EchoTime1 4.9 looks like milliseconds; BIDS has seconds: write 0.0049',
    ),
    case(
        'phase-differences-of-several-echoes',
        both(plain, sidecars('*phase*', EchoTime1=0.004, EchoTime2=0.008)),
        'is a difference of two echoes (EchoTime1 0.004, EchoTime2 0.008), and the run has '
        'several',
        'give those, or one difference alone',
    ),
    case(
        'image-type-contradicts-part',
        both(plain, sidecars('*echo-1*mag*', ImageType=['ORIGINAL', 'PRIMARY', 'P', 'ND'])),
        FIRST,
        "is part-mag by its name and part-phase by ImageType ['ORIGINAL', 'PRIMARY', 'P', 'ND'] "
        'of sub-01_echo-1_part-mag_MEGRE.json',
        'rename the images (are they swapped?), or correct the sidecar',
    ),
    case(
        'image-type-contradicts-imaginary',
        both(
            plain,
            rename(mag='real', phase='imag'),
            sidecars('*imag*', ImageType=['ORIGINAL', 'PRIMARY', 'R']),
        ),
        'is part-imag by its name and part-real by ImageType',
    ),
    case(
        'image-type-of-a-filtered-phase',
        both(plain, sidecars('*phase*', ImageType=['DERIVED', 'PRIMARY', 'P', 'SWI'])),
        'part-phase_MEGRE.nii.gz: is a filtered phase by SWI of ImageType',
        'export the phase before the filter',
    ),
    # Field strength
    case(
        'imaging-frequency-contradicts-field-strength',
        both(plain, sidecars(ImagingFrequency=63.87)),
        'part-mag_MEGRE.nii.gz: ImagingFrequency 63.87 MHz is 1.5 T, and MagneticFieldStrength is '
        '3 T: more than 10% apart',
        'give --field-strength TESLA',
    ),
    case(
        'imaging-frequency-in-hertz',
        both(plain, sidecars(ImagingFrequency=127.7e6)),
        'ImagingFrequency 1.277e+08 MHz is 2.999e+06 T',
        'another unit than MHz',
    ),
    case(
        'imaging-frequencies-differ',
        both(
            plain, sidecars(ImagingFrequency=123.2), sidecars('*echo-2*', ImagingFrequency=127.7)
        ),
        'ImagingFrequency 127.7 MHz differs from 123.2 MHz of ',
    ),
    case(
        'field-strength-missing',
        run(field_strength=None),
        FIRST,
        'has no MagneticFieldStrength',
        '--field-strength TESLA',
    ),
    case(
        'field-strength-in-gauss',
        run(field_strength=30000),
        'MagneticFieldStrength 30000 is not between 0.1 and 25 T (3 T in gauss?)',
        '--field-strength TESLA',
    ),
    case(
        'field-strength-zero',
        both(plain, sidecars(MagneticFieldStrength=0)),
        'MagneticFieldStrength 0 is not between',
        '--field-strength TESLA',
    ),
    case('field-strength-as-text', run(field_strength='3T'), "MagneticFieldStrength '3T' is not"),
    case(
        'field-strengths-differ',
        both(plain, sidecars('*echo-2*phase*', MagneticFieldStrength=1.5)),
        '3.0 T differs from 1.5 T of',
        'correct the sidecars',
    ),
    # Geometry
    case(
        'matrices-differ',
        both(plain, images('*echo-2*phase*', shape=(4, 5, 7))),
        'sub-01_echo-2_part-phase',
        'shape (4, 5, 7) differs from (4, 5, 6) of',
        FIRST,
    ),
    case(
        'grids-differ',
        both(plain, images('*phase*', affine=np.diag([2.0, 2.0, 2.5, 1.0]))),
        'sub-01_echo-1_part-phase',
        'affine differs by 0.5 mm from that of',
        FIRST,
        'on one grid',
    ),
    case(
        'orientation-missing',
        both(uncompressed, forms(None, None)),
        FIRST,
        'has neither qform nor sform',
        '--b0-dir X Y Z',
    ),
    case(
        'voxel-ratios-differ',
        both(uncompressed, forms(None, (np.diag([2.0, 2.0, 5.0, 1.0]), 1))),
        FIRST,
        'voxels are 2 x 2 x 5 mm by the sform and 2 x 2 x 2 mm by pixdim, of other ratios',
        'correct the header',
    ),
    case(
        'voxel-ratios-of-the-qform-differ',
        both(uncompressed, forms((STRAIGHT, 1), (np.diag([2.0, 3.0, 2.0, 1.0]), 1))),
        FIRST,
        'voxels are 2 x 3 x 2 mm by the sform and 2 x 2 x 2 mm by pixdim and the qform',
    ),
    case(
        'orientation-of-the-phase-missing',
        both(
            run(extension='.nii'),
            images(affine=MADE_UP),
            forms(None, None, '*phase*'),
        ),
        'sub-01_echo-1_part-phase',
        'has neither qform nor sform, unlike',
        FIRST,
    ),
    case(
        'sform-of-a-template',
        both(uncompressed, forms((turned(0, 30), 1), (STRAIGHT, 4))),
        'qform (code 1) and sform (code 4) differ',
        '30.0 degrees apart',
        'copy the qform into the sform',
    ),
    case(
        'affine-sheared',
        both(uncompressed, forms(None, (SHEARED, 2))),
        f'{FIRST}.nii: is sheared: its voxel axes are 75.5 degrees apart by the affine, not 90',
    ),
    case(
        'affine-singular',
        both(uncompressed, forms(None, (np.zeros((4, 4)), 1))),
        'has no usable affine',
    ),
    case(
        'affine-not-finite',
        both(uncompressed, forms(None, (np.full((4, 4), np.nan), 1))),
        FIRST,
        'correct the header',
    ),
    case('lengths-in-metres', both(uncompressed, header(xyzt_units=1)), 'lengths are in meters'),
    case(
        'lengths-in-micrometres',
        both(uncompressed, header(xyzt_units=3)),
        'lengths are in microns',
    ),
    case(
        'voxel-size-absurd',
        both(plain, images(affine=np.diag([200.0, 200.0, 2.0, 1.0]))),
        'voxel size 200 x 200 x 2 mm is not between 0.005 and 50.0 mm',
    ),
    case(
        'single-slice',
        both(plain, images(shape=(64, 64, 1))),
        'has the matrix 64 x 64 x 1; 4 voxels are the least',
    ),
    case(
        'slice-of-two-axes',
        both(plain, images(shape=(64, 64))),
        'has the shape (64, 64), one slice: store the whole volume',
    ),
    case(
        'matrix-larger-than-memory',
        larger_than_memory,
        'the matrix 9000 x 9000 x 9000 with 3 echoes takes 1.629e+04 GB of memory',
        'take a machine with several times that, or larger voxels',
    ),
    # Numbers and files
    case(
        'scaling-overflows',
        both(uncompressed, header(datatype=4, bitpix=16, scl_slope=1e36, scl_inter=0)),
        'scl_slope 1e+36 and scl_inter 0 take int16 beyond what single precision holds',
    ),
    case(
        'complex-image',
        both(uncompressed, header(datatype=32, bitpix=64)),
        'holds complex numbers (complex64): store part-real and part-imag',
    ),
    case('colour-image', both(uncompressed, header(datatype=128, bitpix=24)), '(colours?)'),
    case(
        'image-empty',
        both(plain, content('*.nii.gz', b'')),
        FIRST,
        'is empty (0 bytes): fetch its content',
    ),
    case('image-is-text', both(plain, content('*.nii.gz', b'no image')), 'not a readable NIfTI'),
    case(
        'image-is-gzip-of-nothing',
        both(plain, content('*.nii.gz', gzip.compress(b''))),
        'not a readable NIfTI',
    ),
    case(
        'image-cut-in-its-header',
        both(uncompressed, content('*.nii', lambda old: old[:100])),
        FIRST,
        'copy or convert it again',
    ),
    case(
        'image-truncated',
        both(uncompressed, content('*echo-3*phase*.nii', lambda old: old[:-1])),
        'is truncated: 831 bytes of 832; copy the file again',
    ),
    case('image-is-a-link-to-nowhere', link_to_nowhere, 'a link to nowhere: fetch the content'),
    case(
        'image-is-a-pointer-of-git-annex',
        both(plain, content('*echo-2*mag*.nii.gz', b'/annex/objects/MD5E-s31--0f3c.nii.gz\n')),
        'holds a pointer of git-annex or git-lfs instead of its content: fetch that',
    ),
    case(
        'sidecar-is-a-pointer-of-git-lfs',
        both(plain, content('*echo-2*mag*.json', b'version https://git-lfs.github.com/spec/v1\n')),
        'echo-2_part-mag_MEGRE.json: holds a pointer of git-annex or git-lfs',
    ),
    case(
        'sidecar-is-a-link-to-nowhere',
        sidecar_to_nowhere,
        'echo-2_part-phase_MEGRE.json: is a link to nowhere: fetch the content',
    ),
    case(
        'sidecar-broken',
        both(plain, content('*echo-1*mag*.json', b'{"EchoTime": 0.004')),
        f'{FIRST}.json',
        'is not a readable JSON file',
    ),
    case(
        'sidecar-not-an-object',
        both(plain, content('*echo-1*mag*.json', b'[0.004]')),
        f'{FIRST}.json',
        'a sidecar is a JSON object',
    ),
    case(
        'sidecar-at-the-root-broken',
        both(plain, text('MEGRE.json', '{')),
        '{root}/MEGRE.json',
        'is not a readable JSON file',
    ),
    # A field that is given
    case(
        'field-without-units',
        given({'MagneticFieldStrength': 3}),
        'sub-01_fieldmap.nii.gz: Units None are not one of ppm, Hz, rad/s, T: write them',
        options=GIVEN,
    ),
    case(
        'field-without-field-strength',
        given({'Units': 'Hz'}),
        'sub-01_fieldmap.nii.gz: has no MagneticFieldStrength: add it to a sidecar, or give '
        '--field-strength TESLA',
        options=GIVEN,
    ),
    case(
        'field-without-magnitude',
        given(HERTZ, magnitude=False),
        'sub-01_fieldmap.nii.gz: --field derivatives: no _magnitude of this run, on its grid',
        options=GIVEN,
    ),
    case(
        'field-with-a-prior-of-r2star',
        given(HERTZ),
        'has no R2starmap beside it, and --prior r2prime is made of R2*: add it',
        options=(*GIVEN, '--prior', 'r2prime'),
    ),
    # Masks and labels
    case(
        'tissue-missing',
        plain,
        FIRST,
        'has no tissue classes',
        'no _dseg with a TSV and no _probseg of GM, WM and CSF',
        options=('--prior', 'tissue'),
    ),
    case(
        'tissue-without-table',
        both(plain, tissue('dseg')),
        'sub-01_dseg.nii.gz: tissue not used: no TSV with the columns index and name',
        options=TISSUE,
    ),
    case(
        'tissue-of-one-class',
        both(plain, tissue('label-GM_probseg')),
        'label-GM_probseg.nii.gz: tissue not used: has 1 class of tissue (GM), two or more',
        options=TISSUE,
    ),
    case(
        'tissue-in-the-space-of-a-template',
        both(plain, tissue('space-MNI152NLin6Asym_dseg', CLASSES, shape=(8, 8, 8))),
        'space-MNI152NLin6Asym is not the coordinates of the scanner',
        'resample it to the grid of the run',
        options=TISSUE,
    ),
    case(
        'tissue-without-scanner-coordinates',
        both(
            plain,
            tissue('dseg', CLASSES, shape=(9, 10, 12), affine=FINER),
            coordinates('derivatives/seg/**/*.nii.gz', 2),
        ),
        'the affine of sub-01_dseg.nii.gz has the code 2, not 1 (coordinates of the scanner)',
        options=TISSUE,
    ),
    case(
        'tissue-elsewhere',
        both(
            plain,
            tissue('dseg', CLASSES, shape=(3, 3, 3), affine=FINER),
            coordinates('**/*.nii.gz', 1),
        ),
        'does not hold the centre of',
        options=TISSUE,
    ),
    case(
        'tissue-over-sessions',
        both(run('sub-01_ses-a'), tissue('dseg', CLASSES, shape=(9, 10, 12), affine=FINER)),
        'is not of session a alone',
        options=TISSUE,
    ),
    case(
        'r2-map-missing',
        plain,
        '--r2 map: no _R2map (1/s) or _T2map (s) on its grid',
        'or give --r2 NUMBER, median or literature',
        options=('--r2', 'map'),
    ),
    case(
        'r2-map-on-another-grid',
        both(plain, image(f'{ANAT}/sub-01_R2map.nii.gz', shape=(5, 5, 5))),
        'sub-01_R2map.nii.gz: R2 not used: shape (5, 5, 5) differs from (4, 5, 6)',
        options=('--r2', 'map'),
    ),
    case(
        'r2-map-in-milliseconds',
        both(
            plain,
            image(f'{ANAT}/sub-01_T2map.nii.gz'),
            text(f'{ANAT}/sub-01_T2map.json', '{"Units": "ms"}'),
        ),
        "sub-01_T2map.nii.gz: R2 not used: Units 'ms' are not s: convert the map",
        options=('--r2', 'map'),
    ),
    case(
        'contrast-missing',
        plain,
        '--contrasts T1w: no _T1w image on its grid',
        options=('--contrasts', 'T1w'),
    ),
    case(
        'r2-of-the-literature-at-7-tesla',
        both(run(field_strength=7.0), tissue('dseg', CLASSES)),
        FIRST,
        'MagneticFieldStrength is 7 T, and --r2 literature holds for 3 T (2.7 to 3.3 T)',
        'give --r2 NUMBER, median or map',
        options=('--r2', 'literature', '-d', '{root}/derivatives/seg'),
    ),
    case(
        'contrast-on-another-grid',
        both(plain, image(f'{ANAT}/sub-01_T1w.nii.gz', shape=(5, 5, 5))),
        'sub-01_T1w.nii.gz: contrast not used: shape (5, 5, 5) differs from (4, 5, 6)',
        'Resample one to the grid of the run',
        options=('--contrasts', 'T1w'),
    ),
    case(
        'prior-map-on-another-grid',
        both(plain, image('code/chi.nii.gz', shape=(5, 5, 5))),
        'code/chi.nii.gz: --prior map:FILE: shape (5, 5, 5) differs from (4, 5, 6)',
        'resample it to the grid of the run (linearly)',
        options=('--prior', 'map:{root}/code/chi.nii.gz'),
    ),
    case(
        'mask-missing-in-derivatives',
        both(plain, image('derivatives/seg/sub-02/anat/sub-02_desc-brain_mask.nii.gz')),
        '--mask derivatives: no _mask of this run',
        '--mask FILE',
        options=('--mask', 'derivatives', '-d', '{root}/derivatives/seg'),
    ),
    case(
        'mask-of-derivatives-on-another-grid',
        both(
            plain,
            image('derivatives/seg/sub-01/anat/sub-01_desc-brain_mask.nii.gz', shape=(5, 5, 5)),
        ),
        'sub-01_desc-brain_mask.nii.gz has the code 2, not 1',
        'shape (5, 5, 5) differs from (4, 5, 6)',
        options=('--mask', 'derivatives', '-d', '{root}/derivatives/seg'),
    ),
    case(
        'mask-file-on-another-grid',
        both(plain, image('code/mask.nii.gz', affine=np.diag([2.0, 2.0, 2.5, 1.0]))),
        'code/mask.nii.gz: --mask: affine differs by 0.5 mm from',
        'resample it',
        options=('--mask', '{root}/code/mask.nii.gz'),
    ),
    case(
        'mask-file-is-no-image',
        both(plain, text('code/mask.nii.gz', 'mask')),
        'code/mask.nii.gz',
        'not a readable NIfTI',
        options=('--mask', '{root}/code/mask.nii.gz'),
    ),
    case(
        'reference-is-no-label',
        plain,
        '--reference water is not one of its labels (none at all)',
        options=('--reference', 'water'),
    ),
]


@pytest.mark.parametrize('case', REFUSED)
def test_refused(case, app, dataset):
    status, said = app(case)
    assert status == 1
    last = said.splitlines()[-1]
    check(case.said, last, dataset.root)
    crash = Path(last.rpartition('crash file: ')[2])
    assert crash.is_file()
    assert 'sub-01 failed: ' in last


USAGE = [
    case(
        'participant-unknown',
        plain,
        'no participant 1 in {root}; its participants are: 01',
        options=('--participant-label', '1'),
    ),
    case(
        'session-unknown',
        run('sub-01_ses-a'),
        'no session b with multi-echo images in {root}; its sessions are: a',
        options=('--session-label', 'b'),
    ),
    case(
        'filter-file-broken',
        both(plain, text('code/filter.json', '{"megre": ')),
        'code/filter.json is not valid JSON',
        options=('--bids-filter-file', '{root}/code/filter.json'),
    ),
    case(
        'filter-of-an-unknown-entity',
        both(plain, text('code/filter.json', '{"megre": {"acq": "x"}}')),
        'unknown entity "acq" in "megre"; known: acquisition',
        options=('--bids-filter-file', '{root}/code/filter.json'),
    ),
    case(
        'filter-of-an-unknown-query',
        both(plain, text('code/filter.json', '{"bold": {}}')),
        'unknown query "bold"; known: megre, dseg, mask, tissue, r2',
        options=('--bids-filter-file', '{root}/code/filter.json'),
    ),
    case(
        'description-missing',
        both(plain, lambda dataset: (dataset.root / 'dataset_description.json').unlink()),
        'cannot read {root}/dataset_description.json',
        '--skip-bids-validation',
    ),
    case(
        'description-broken',
        both(plain, text('dataset_description.json', '{')),
        'dataset_description.json is not valid JSON',
        '--skip-bids-validation',
    ),
    case(
        'derivatives-folder-of-datasets',
        both(plain, lambda dataset: (dataset.root / 'derivatives/seg/sub-01').mkdir(parents=True)),
        '{root}/derivatives has no participants (sub-*), but is the folder of seg: give -d '
        '{root}/derivatives/seg',
        options=('-d', '{root}/derivatives'),
    ),
    case(
        'derivatives-folder-missing',
        plain,
        'no such folder: {root}/seg',
        options=('-d', '{root}/seg'),
    ),
    case(
        'prior-unknown',
        plain,
        '--prior atlas is not one of contrast, tissue, r2prime-by-tissue, r2prime, map:FILE '
        'and shape',
        options=('--prior', 'atlas'),
    ),
    case(
        'prior-shape-beside-others',
        plain,
        '--prior tissue shape: shape is the shape alone; with other terms it is in the prior by '
        'default: leave out shape',
        options=('--prior', 'tissue', 'shape'),
    ),
    case(
        'prior-shape-without-the-shape',
        plain,
        '--prior shape without the shape leaves no first estimate',
        options=('--prior', 'shape', '--no-shape'),
    ),
    case(
        'prior-twice',
        plain,
        '--prior has tissue twice: once is enough',
        options=('--prior', 'tissue', 'tissue'),
    ),
    case(
        'prior-map-missing',
        plain,
        '--prior map:FILE: no such file: {root}/chi.nii.gz',
        options=('--prior', 'contrast', 'map:{root}/chi.nii.gz'),
    ),
    case(
        'prior-without-a-fit-beside-others',
        plain,
        'only r2prime or one map:FILE, alone, can be taken as it is, without a fit',
        options=('--prior', 'r2prime', 'tissue', '--prior-fit', 'none'),
    ),
    case(
        'prior-clusters-of-cells',
        plain,
        '--prior contrast does not go with --prior-fit clusters: that is for r2prime and map:FILE',
        options=('--prior', 'contrast', '--prior-fit', 'clusters'),
    ),
    case(
        'prior-labels-without-a-fit',
        plain,
        '--write-prior-labels: r2prime without a fit has no parcels',
        options=('--prior', 'r2prime', '--write-prior-labels'),
    ),
    case(
        'r2-unknown',
        plain,
        '"mean" is not a number between 0 and 10000 (1/s)',
        options=('--r2', 'mean'),
    ),
    case(
        'mask-file-missing',
        plain,
        '--mask: no such file: {root}/mask.nii.gz; give a file or one of auto, derivatives',
        options=('--mask', '{root}/mask.nii.gz'),
    ),
    case(
        'field-of-derivatives-without-folders',
        plain,
        '--field derivatives needs folders to look in: give them with -d/--derivatives',
        options=('--field', 'derivatives'),
    ),
    case(
        'output-folder-of-another-program',
        both(plain, dataset_of_another_program),
        'the output folder ',
        'is the dataset "theirs" of fMRIPrep, whose description would be written over',
    ),
    case(
        'field-of-the-output-folder',
        both(plain, lambda dataset: Path('out').mkdir()),
        'is one of -d/--derivatives, and its fields would be written over while they are read',
        options=('--field', 'derivatives', '-d', 'out'),
    ),
    case(
        'mask-of-derivatives-without-folders',
        plain,
        '--mask derivatives needs folders to look in: give them with -d/--derivatives',
        options=('--mask', 'derivatives'),
    ),
    case(
        'mask-erosion-negative',
        plain,
        '"-1" is not a number between 0 and 20 (mm)',
        options=('--mask-erosion', '-1'),
    ),
    case(
        'mask-erosion-too-deep',
        plain,
        '"25" is not a number between 0 and 20 (mm)',
        options=('--mask-erosion', '25'),
    ),
    case(
        'field-strength-option-absurd',
        plain,
        '"30000" is not a number between 0.1 and 25 (T)',
        options=('--field-strength', '30000'),
    ),
    case(
        'b0-dir-zero',
        plain,
        '--b0-dir = (0.0, 0.0, 0.0) should be three finite numbers, not all 0',
        options=('--b0-dir', '0', '0', '0'),
    ),
    case(
        'b0-dir-of-two-numbers',
        plain,
        '--b0-dir: expected 3 arguments',
        options=('--b0-dir', '0', '1'),
    ),
    case(
        'work-folder-inside-the-dataset',
        plain,
        'is inside the dataset',
        'give another with -w',
        options=('-w', '{root}/work'),
    ),
]


@pytest.mark.parametrize('case', USAGE)
def test_usage(case, app, dataset):
    status, said = app(case)
    assert status == 2
    (line,) = said.splitlines()
    check(case.said, line, dataset.root)
    for path in Path().glob('out/*'):  # what the case has put there itself
        assert '"theirs"' in path.read_text()


def called(name, suffixes=('.nii.gz', '.json')):
    """An image and its sidecar of this name, in the first participant's folder."""

    def make(dataset):
        path = dataset.root / 'sub-01' / name
        dataset.write_image(path.parent / 'x.nii.gz').rename(f'{path}{suffixes[0]}')
        dataset.write_json(path.parent / f'{path.name}.json', {'EchoTime': 0.004})

    return make


def look_alike(name, path, reason, target, images=('.nii.gz',)):
    """A case of one image that looks like an echo: why it is left out, and its right name."""
    return case(
        name,
        called(path, images),
        'nothing to do',
        f'sub-01/{path}{images[0]}: {reason}. As a gradient echo it should be '
        f'sub-01/anat/{target}.nii.gz, and its sidecar alike',
    )


SUFFIX = 'is not _MEGRE or _T2starw'
FOLDER = 'not in a folder anat or swi, where BIDS has such images'
PART = 'the part is not written part-mag, part-phase, part-real or part-imag'
LOOK_ALIKES = [
    look_alike(
        'look-alike-dot-in-a-label',
        'anat/sub-01_acq-0.8mm_echo-1_part-mag_MEGRE',
        'label "0.8mm" of acq is not letters and digits',
        'sub-01_acq-0p8mm_echo-1_part-mag_MEGRE',
    ),
    look_alike(
        'look-alike-hyphen-in-a-label',
        'anat/sub-01_acq-hi-res_echo-1_MEGRE',
        'label "hi-res" of acq is not letters and digits',
        'sub-01_acq-hires_echo-1_MEGRE',
    ),
    look_alike(
        'look-alike-underscore-in-a-label',
        'anat/sub-01_acq-hi_res_echo-1_part-phase_MEGRE',
        '"res" is not an entity of BIDS (an underscore in a label?)',
        'sub-01_acq-hires_echo-1_part-phase_MEGRE',
    ),
    look_alike(
        'look-alike-entity-twice',
        'anat/sub-01_acq-a_acq-b_echo-1_MEGRE',
        'acq is there twice',
        'sub-01_acq-ab_echo-1_MEGRE',
    ),
    look_alike(
        'look-alike-entity-unknown',
        'anat/sub-01_tech-a_echo-1_MEGRE',
        '"tech-a" is not an entity of BIDS (an underscore in a label?)',
        'sub-01_acq-techa_echo-1_MEGRE',
    ),
    look_alike(
        'look-alike-entity-of-other-images',
        'anat/sub-01_flip-2_mt-on_echo-1_MEGRE',
        'echoes have no flip and no mt in their names',
        'sub-01_acq-flip2mton_echo-1_MEGRE',
    ),
    look_alike(
        'look-alike-mpm',
        'anat/sub-01_acq-T1w_echo-1_flip-20_mt-off_part-phase_MPM',
        f'echoes have no flip and no mt in their names; suffix _MPM {SUFFIX}',
        'sub-01_acq-T1wflip20mtoff_echo-1_part-phase_MEGRE',
    ),
    look_alike(
        'look-alike-gre', 'anat/sub-01_echo-1_GRE', f'suffix _GRE {SUFFIX}', 'sub-01_echo-1_MEGRE'
    ),
    look_alike('look-alike-case', 'anat/sub-01_megre', f'suffix _megre {SUFFIX}', 'sub-01_MEGRE'),
    look_alike(
        'look-alike-t1w-phase',
        'anat/sub-01_part-phase_T1w',
        f'suffix _T1w {SUFFIX}',
        'sub-01_part-phase_T2starw',
    ),
    look_alike(
        'look-alike-part-as-suffix', 'anat/sub-01_MEGRE_ph', PART, 'sub-01_part-phase_MEGRE'
    ),
    look_alike(
        'look-alike-words-of-converters',
        'anat/sub-01_run-1_e2_ph',
        f'the echo is not written echo-<number>; {PART}; suffix {SUFFIX}',
        'sub-01_run-1_echo-2_part-phase_MEGRE',
    ),
    look_alike(
        'look-alike-without-participant',
        'anat/echo-1_part-mag_MEGRE',
        'the name does not begin with sub-01',
        'sub-01_echo-1_part-mag_MEGRE',
    ),
    look_alike(
        'look-alike-series',
        'func/sub-01_task-rest_echo-1_part-phase_bold',
        f'suffix _bold {SUFFIX}; of a series one volume an echo would do; {FOLDER}',
        'sub-01_task-rest_echo-1_part-phase_MEGRE',
    ),
    look_alike(
        'look-alike-field-map',
        'fmap/sub-01_phase2',
        f'the echo is not written echo-<number>; {PART}; suffix {SUFFIX}; {FOLDER}',
        'sub-01_echo-2_part-phase_MEGRE',
    ),
    look_alike('look-alike-folder', 'func/sub-01_echo-1_MEGRE', FOLDER, 'sub-01_echo-1_MEGRE'),
    look_alike('look-alike-no-folder', 'sub-01_echo-1_MEGRE', FOLDER, 'sub-01_echo-1_MEGRE'),
    look_alike(
        'look-alike-format',
        'anat/sub-01_echo-1_part-mag_MEGRE',
        '.mgz is not .nii or .nii.gz: convert it',
        'sub-01_echo-1_part-mag_MEGRE',
        ('.mgz',),
    ),
]

NOTHING = [
    case(
        'field-missing',
        both(plain, lambda dataset: (dataset.root / 'derivatives/mine').mkdir(parents=True)),
        'nothing to do: the derivatives have no total field (_fieldmap)',
        'skipped: sub-01: sub-01: no _fieldmap in the folders of -d',
        options=GIVEN,
    ),
    *LOOK_ALIKES,
    case(
        'no-multi-echo-images',
        image(f'{ANAT}/sub-01_T1w.nii.gz'),
        'nothing to do',
        'skipped: sub-01: {root}/sub-01: no multi-echo images',
    ),
    case(
        'weighted-images-only',
        image(f'{ANAT}/sub-01_T2starw.nii.gz'),
        'nothing to do',
        'sub-01_T2starw.nii.gz: plain T2*-weighted images, without echo and part, hold no field',
    ),
    case(
        'folder-of-another-name',
        folder_called('qsm'),
        'nothing to do',
        '6 images, this is the first: not in a folder anat or swi',
    ),
    case(
        'filter-leaves-nothing',
        both(plain, text('code/filter.json', '{"megre": {"acquisition": "x"}}')),
        'nothing to do',
        '6 images, this is the first: left out by --bids-filter-file',
        options=('--bids-filter-file', '{root}/code/filter.json'),
    ),
]


@pytest.mark.parametrize('case', NOTHING)
def test_nothing_to_do(case, app, dataset):
    status, said = app(case)
    assert status == 70
    check(case.said, said, dataset.root)
    assert not Path('out').exists()


ROW = 'sub-01 3 4x5x6 4 to 12 3 auto contrast+shape none median none labels'

ACCEPTED = [
    case(
        'field-given',
        given(HERTZ),
        'sub-01 field 4x5x6 none 3 auto contrast(magnitude)+shape none none none labels',
        'derivatives/mine/sub-01/fmap/sub-01_magnitude.nii.gz',
        options=GIVEN,
    ),
    case(
        'field-given-with-two-magnitudes',
        given(HERTZ, 'magnitude1'),
        'sub-01 field 4x5x6 none 3 auto contrast(magnitude)+shape',
        'sub-01_magnitude1.nii.gz: magnitude not used: {root}/derivatives/mine/sub-01/fmap/',
        options=GIVEN,
    ),
    case(
        'field-given-with-r2star',
        given(HERTZ, 'R2starmap', 'desc-local_fieldmap'),
        'sub-01 field 4x5x6 none 3 auto contrast+shape none median none labels',
        'is not a total field by its name (desc-local): that has no desc, or desc-total',
        options=GIVEN,
    ),
    case(
        'tissue-on-the-grid',
        both(plain, tissue('desc-aseg_dseg', CLASSES)),
        '4 to 12 3 auto contrast+tissue+shape 3 of dseg median 3 nothing',
        options=TISSUE,
    ),
    case(
        'tissue-on-another-grid',
        both(
            plain,
            tissue('space-T1w_desc-aseg_dseg', CLASSES, shape=(9, 10, 12), affine=FINER),
            coordinates('**/*.nii.gz', 1),
        ),
        'contrast+tissue+shape 3 of dseg, resampled median none labels',
        'warning: sub-01: {root}/derivatives/seg/sub-01/anat/',
        'a head that moved between the two images is not put right',
        options=TISSUE,
    ),
    case(
        'mask-of-derivatives-without-asking',
        both(plain, image(f'{SEG}_desc-brain_mask.nii.gz'), image(f'{SEG}_desc-x_mask.nii.gz')),
        '4 to 12 3 sub-01_desc-brain_mask.nii.gz contrast+shape',
        'desc-x is not that of a brain; give --mask derivatives or --mask FILE',
        options=('-d', '{root}/derivatives/seg'),
    ),
    case(
        'mask-in-the-space-of-the-t1w-image',
        both(
            plain,
            image(f'{SEG}_desc-brain_mask.nii.gz', shape=(9, 10, 12), affine=FINER),
            image(f'{SEG}_space-MNI152NLin6Asym_desc-brain_mask.nii.gz', shape=(9, 10, 12)),
            coordinates('**/*.nii.gz', 1),
        ),
        '4 to 12 3 sub-01_desc-brain_mask.nii.gz, resampled contrast+shape',
        'a head that moved between the two images is not put right',
        'skipped: sub-01: {root}/derivatives/seg/sub-01/anat/sub-01_space-MNI152NLin6Asym',
        options=('-d', '{root}/derivatives/seg'),
    ),
    case(
        'tissue-of-shares',
        both(plain, *(tissue(f'label-{name}_probseg') for name in ('GM', 'WM', 'CSF'))),
        '3 of probseg median none labels',
        options=TISSUE,
    ),
    case(
        'tissue-of-two-kinds',
        both(
            plain,
            tissue('dseg', {1: 'GM', 2: 'WM'}),
            tissue('desc-aseg_dseg', CLASSES),
            tissue('label-GM_probseg'),
            tissue('label-WM_probseg'),
        ),
        '3 of dseg median',
        'sub-01_dseg.nii.gz: tissue not used: {root}/derivatives/seg/sub-01/anat/',
        'label-GM_probseg.nii.gz: tissue not used',
        options=TISSUE,
    ),
    case(
        'r2-map-in-the-dataset',
        both(plain, image(f'{ANAT}/sub-01_T2map.nii.gz')),
        'auto r2prime+shape none sub-01_T2map.nii.gz none labels',
        options=('--prior', 'r2prime', '--r2', 'map'),
    ),
    case(
        'prior-map',
        both(plain, image('code/chi.nii.gz')),
        'auto map:chi.nii.gz+contrast+shape none median none labels',
        options=('--prior', 'map:{root}/code/chi.nii.gz', 'contrast'),
    ),
    case('magnitude-without-part', run(magnitude_part=''), ROW),
    case('real-and-imaginary-parts', both(plain, rename(mag='real', phase='imag')), ROW),
    case(
        'real-and-imaginary-parts-beside-magnitude-and-phase',
        both(plain, image(f'{ANAT}/sub-01_echo-1_part-real_MEGRE.nii.gz')),
        ROW,
        'part-real_MEGRE.nii.gz: left out: the run is read from its magnitude and phase',
    ),
    case('echo-axis', four_dimensional([0.004, 0.008, 0.012]), ROW),
    case('echo-axis-of-length-one', both(plain, images(shape=(*SHAPE, 1))), ROW),
    case('multi-echo-t2starw', run(suffix='T2starw'), ROW),
    case(
        'megre-beside-t2starw',
        both(plain, run(suffix='T2starw')),
        ROW,
        'left out: the _MEGRE images of the same entities',
    ),
    case('folder-swi', folder_called('swi'), ROW),
    case('uncompressed', uncompressed, ROW),
    case(
        'echoes-by-time-not-by-name',
        run(echo_times=[0.05, *(0.004 * i for i in range(1, 11))]),
        'sub-01 11 4x5x6 4 to 50 3',
        'sub-01_echo-10_part-mag_MEGRE.nii.gz',
    ),
    case(
        'one-echo',
        both(run(echo_times=(0.004,)), run('sub-02')),
        'sub-01 1 4x5x6 4 3 auto contrast(magnitude)+shape none none none R2* (one echo), labels',
        ROW.replace('sub-01', 'sub-02'),
        'is the only echo (EchoTime 0.004 s): the field is its unwrapped phase over the echo '
        "time, with the phase offset of the coil in it; R2*, R2', T2* and S0 are not known",
    ),
    case(
        'one-echo-with-the-prior-shape',
        run(echo_times=(0.004,)),
        'sub-01 1 4x5x6 4 3 auto shape none none none R2* (one echo), labels',
        options=('--prior', 'shape'),
    ),
    case(
        'one-echo-without-echo-entity',
        both(run(echo_times=(0.004,), suffix='T2starw'), without('_echo-1')),
        'sub-01 1 4x5x6 4 3 auto contrast(magnitude)+shape',
        'anat/sub-01_part-mag_T2starw.nii.gz',
    ),
    case(
        'one-echo-whose-magnitude-has-no-part',
        both(run(echo_times=(0.004,), suffix='T2starw', magnitude_part=''), without('_echo-1')),
        'sub-01 1 4x5x6 4 3 auto contrast(magnitude)+shape',
        'anat/sub-01_T2starw.nii.gz',
    ),
    case('two-echoes', run(echo_times=(0.004, 0.02)), 'sub-01 2 4x5x6 4 to 20 3'),
    case(
        'thirty-echoes',
        run(echo_times=[0.002 * i for i in range(1, 31)]),
        'sub-01 30 4x5x6 2 to 60 3',
    ),
    case('echoes-unevenly-spaced', run(echo_times=(0.004, 0.0075, 0.031)), '3 4x5x6 4 to 31 3'),
    case('metadata-at-the-root', metadata_at_the_root, 'sub-01 8 4x5x6 3 to 24 3 auto'),
    case(
        'sidecar-with-byte-order-mark',
        both(plain, content('*.json', lambda old: b'\xef\xbb\xbf' + old)),
        ROW,
    ),
    case(
        'sidecar-in-latin-1',
        both(plain, content('*.json', lambda old: old[:-1] + b', "Name": "M\xfcller"}')),
        ROW,
        'warning: sub-01: ',
        'part-mag_MEGRE.json: is not UTF-8, as JSON is (byte 0xfc at ',
        'it was read as latin-1: save it as UTF-8',
    ),
    case(
        'run-padded-unevenly',
        both(
            run('sub-01_run-1'),
            pad('run-1', 'run-01', 'phase'),
            image(f'{ANAT}/sub-01_run-001_R2map.nii.gz'),
        ),
        'sub-01_run-1 3 4x5x6 4 to 12 3 auto contrast+shape none sub-01_run-001_R2map.nii.gz',
        options=('--r2', 'map'),
    ),
    case(
        'channels-of-a-coil-beside-their-combination',
        both(plain, run('sub-01_coil-1'), run('sub-01_coil-2')),
        ROW,
        'skipped: sub-01: {root}/sub-01/anat/sub-01_coil-1_echo-1_part-mag_MEGRE.nii.gz: 12 '
        'images, this is the first: is one channel of a coil, by its name',
    ),
    case(
        'look-alikes-beside-a-run',
        both(plain, *(called(f'anat/sub-01_acq-0.8mm_echo-{i}_MEGRE') for i in (1, 2))),
        ROW,
        'skipped: sub-01: {root}/sub-01/anat/sub-01_acq-0.8mm_echo-1_MEGRE.nii.gz: 2 images, this '
        'is the first: label "0.8mm" of acq is not letters and digits',
    ),
    case('echoes-padded-unevenly', both(plain, pad('echo-2', 'echo-02', 'mag')), ROW),
    case(
        'echo-times-equal-within-a-microsecond',
        both(plain, sidecars('*echo-2*phase*', EchoTime=0.0080009)),
        ROW,
    ),
    case(
        'phase-difference',
        both(
            run(echo_times=(0.00738,)), sidecars('*phase*', EchoTime1=0.00492, EchoTime2=0.00738)
        ),
        'sub-01 1 4x5x6 2.46 3 auto contrast(magnitude)+shape',
        'is the magnitude of a difference of two phases, taken as one echo of EchoTime2 - '
        'EchoTime1 = 0.00246 s; a difference has no phase offset',
    ),
    case(
        'image-types-of-the-parts',
        both(
            plain,
            sidecars('*mag*', ImageType=['ORIGINAL', 'PRIMARY', 'M_FFE', 'M', 'FFE']),
            sidecars('*phase*', ImageType=['ORIGINAL', 'PRIMARY', 'M_FFE', 'M', 'FFE', 'PHASE']),
        ),
        ROW,
    ),
    case(
        'image-type-that-the-parts-share',
        both(plain, sidecars(ImageType=None), text('MEGRE.json', '{"ImageType": ["M"]}')),
        ROW,
    ),
    case(
        'imaging-frequency',
        both(plain, sidecars(ImagingFrequency=123.2)),
        'sub-01 3 4x5x6 4 to 12 2.89362 auto',
        'ImagingFrequency 123.2 MHz is 2.894 T, which is used, not 3 T of MagneticFieldStrength',
    ),
    case(
        'imaging-frequency-alone',
        both(run(field_strength=None), sidecars(ImagingFrequency=297.2)),
        'sub-01 3 4x5x6 4 to 12 6.9804 auto',
        'has no MagneticFieldStrength; ImagingFrequency 297.2 MHz is 6.98 T, which is used',
    ),
    case(
        'imaging-frequency-against-the-option',
        both(plain, sidecars(ImagingFrequency=63.87)),
        ROW,
        'ImagingFrequency 63.87 MHz is 1.5 T, MagneticFieldStrength 3 T; 3 T of --field-strength '
        'is used',
        options=('--field-strength', '3'),
    ),
    case(
        'sessions-runs-acquisitions',
        many_runs,
        *(
            f'sub-01_ses-{session}{rest} 3 4x5x6'
            for session in 'ab'
            for rest in ('_run-1', '_run-2', '_acq-x_rec-n')
        ),
    ),
    case(
        'label-01-is-not-010',
        both(run('sub-01'), run('sub-010', echo_times=(0.004, 0.008))),
        'sub-010 2 4x5x6 4 to 8 3 auto contrast+shape none median none labels\n\nsub-010\n',
        options=('--participant-label', '010'),
    ),
    case(
        'session-a-is-not-ab',
        both(run('sub-01_ses-a'), run('sub-01_ses-ab')),
        'sub-01_ses-a 3 4x5x6 4 to 12 3 auto contrast+shape none median none labels\n\n'
        'sub-01_ses-a\n',
        'skipped: sub-01: {root}/sub-01/ses-ab/anat/',
        options=('--session-label', 'a'),
    ),
    case(
        'filter-by-run',
        both(run('sub-01_run-01'), run('sub-01_run-02')),
        'sub-01_run-02 3 4x5x6',
        '6 images, this is the first: left out by --bids-filter-file',
        options=('--bids-filter-file', '{root}/code/filter.json'),
    ),
    case('field-strength-as-measured', run(field_strength=2.89), 'sub-01 3 4x5x6 4 to 12 2.89'),
    case(
        'field-strength-given-for-missing',
        run(field_strength=None),
        'sub-01 3 4x5x6 4 to 12 7 auto contrast+shape none median none '
        'MagneticFieldStrength (--field-strength given), labels',
        options=('--field-strength', '7'),
    ),
    case(
        'field-strength-given-for-absurd',
        run(field_strength=30000),
        'sub-01 3 4x5x6 4 to 12 3 auto',
        'warning: sub-01: ',
        'MagneticFieldStrength 30000 is not between 0.1 and 25 T: 3 T of --field-strength',
        options=('--field-strength', '3'),
    ),
    case(
        'field-strength-given-and-known',
        plain,
        ROW,
        'MagneticFieldStrength 3 T is used, not 7 T of --field-strength',
        options=('--field-strength', '7'),
    ),
    case('qform-only', both(uncompressed, forms((turned(0, 30), 1), None)), ROW),
    case(
        'qform-and-sform-disagree',
        both(uncompressed, forms((turned(0, 30), 1), (STRAIGHT, 1))),
        ROW,
        'warning: sub-01: ',
        'by the other, 30.0 degrees apart; the sform is used',
    ),
    case(
        'qform-and-sform-shifted',
        both(uncompressed, forms((STRAIGHT, 1), (SHIFTED, 1))),
        ROW,
        'qform and sform differ by up to 5 mm, with the same direction of B0; the sform is used',
    ),
    case(
        'orientation-given',
        both(uncompressed, forms(None, None)),
        '4 to 12 3 auto contrast+shape none median none affine (--b0-dir given), labels',
        options=('--b0-dir', '0', '-1', '0.5'),
    ),
    case(
        'orientation-given-and-known',
        plain,
        ROW,
        'B0 is along [0.0, 1.0, 0.0] of the voxel axes by --b0-dir, which is used, and along '
        '[0.0, 0.0, 1.0] by the affine, 90.0 degrees apart; the maps keep the affine',
        options=('--b0-dir', '0', '1', '0'),
    ),
    case('oblique', both(plain, images(affine=turned(1, 25))), ROW),
    case('sagittal', both(plain, images(affine=turned(1, 90))), ROW),
    case('first-axis-reversed', both(plain, images(affine=np.diag([-2.0, 2.0, 2.0, 1.0]))), ROW),
    case('voxels-not-cubes', both(plain, images(affine=np.diag([0.5, 0.5, 3.0, 1.0]))), ROW),
    case(
        'matrix-16',
        both(plain, images(shape=(16, 16, 16))),
        'sub-01 3 16x16x16 4 to 12 3 auto',
    ),
    case('matrix-odd', both(plain, images(shape=(17, 13, 11))), 'sub-01 3 17x13x11 4 to 12 3'),
    case(
        'mask-of-derivatives',
        both(
            plain,
            image('derivatives/seg/sub-01/anat/sub-01_desc-body_mask.nii.gz'),
            image('derivatives/seg/sub-01/anat/sub-01_desc-brain_mask.nii.gz'),
        ),
        '4 to 12 3 sub-01_desc-brain_mask.nii.gz contrast+shape none median none labels',
        'sub-01_desc-body_mask.nii.gz: mask not used: {root}/derivatives/seg/sub-01/anat/',
        options=('--mask', 'derivatives', '-d', '{root}/derivatives/seg'),
    ),
    case(
        'mask-file',
        both(plain, image('code/mask.nii.gz')),
        'sub-01 3 4x5x6 4 to 12 3 mask.nii.gz contrast+shape none median none labels',
        options=('--mask', '{root}/code/mask.nii.gz'),
    ),
    case(
        'labels-twice',
        both(plain, *(tissue(f'desc-{name}_dseg', {1: 'agar'}) for name in 'ab')),
        '4 to 12 3 auto contrast+shape none median 1 nothing',
        'skipped: sub-01: {root}/derivatives/seg/sub-01/anat/sub-01_desc-b_dseg.nii.gz: labels '
        'not used: {root}/derivatives/seg/sub-01/anat/sub-01_desc-a_dseg.nii.gz comes first',
        options=('-d', '{root}/derivatives/seg'),
    ),
    case(
        'contrast-twice',
        both(
            plain,
            image(f'{ANAT}/sub-01_rec-a_T1w.nii.gz', shape=(5, 5, 5)),
            image(f'{ANAT}/sub-01_rec-b_T1w.nii.gz'),
            image(f'{ANAT}/sub-01_T1w.nii.gz'),
        ),
        ROW,
        'warning: sub-01: {root}/sub-01/anat/sub-01_rec-a_T1w.nii.gz: contrast not used: shape ',
        'skipped: sub-01: {root}/sub-01/anat/sub-01_rec-b_T1w.nii.gz: contrast not used: '
        '{root}/sub-01/anat/sub-01_T1w.nii.gz comes first',
        options=('--contrasts', 'T1w'),
    ),
    case(
        'labels-on-another-grid',
        both(
            plain,
            lambda dataset: dataset.add_labels(
                f'{ANAT}/sub-01_dseg.nii.gz', {1: 'agar'}, shape=(4, 5, 7)
            ),
        ),
        ROW,
        'warning: sub-01: ',
        'labels not used: shape (4, 5, 7) differs from (4, 5, 6)',
    ),
    case(
        'same-images-in-two-runs',
        lambda dataset: [dataset.add_run(f'sub-01_run-{i}') for i in (1, 2)],
        'sub-01_run-2 3 4x5x6 4 to 12 3 auto contrast+shape none median none labels',
        f'warning: sub-01: {{root}}/{ANAT}/sub-01_run-1_echo-1_part-mag_MEGRE.nii.gz: ',
        'are also those of sub-01_run-2',
    ),
]


@pytest.mark.parametrize('case', ACCEPTED)
def test_accepted(case, app, dataset):
    """Seen by ``--dry-run``; the table's columns are two spaces or more apart."""
    dataset.write_json(dataset.root / 'code/filter.json', {'megre': {'run': 2}})
    status, said = app(case, '--dry-run')
    assert status == 0, said
    table, rest, *others = said.split('\n\n')
    table = '\n'.join(' '.join(row.split()) for row in table.splitlines())
    said = '\n\n'.join([table, rest, *others])
    check(case.said, said, dataset.root)
    assert not Path('out').exists()


@pytest.mark.parametrize('bad', ['matrices-differ', 'sidecar-broken', 'image-empty'])
def test_the_other_participants_are_not_stopped(bad, app, dataset):
    (found,) = (param.values[0] for param in REFUSED if param.id == bad)
    dataset.add_run('sub-02')
    status, said = app(found, '--dry-run')
    assert status == 1
    assert said.splitlines()[1].split()[0] == 'sub-02'
    assert 'error: sub-01: ' in said
