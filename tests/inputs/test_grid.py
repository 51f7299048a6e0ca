"""Headers: what is read of them, and what is refused."""

import gzip

import nibabel as nib
import numpy as np
import pytest
from inputs import find, only_problem


def test_shapes_differ(dataset):
    folder = dataset.add_run()
    dataset.write_image(folder / 'sub-01_echo-2_part-phase_MEGRE.nii.gz', shape=(4, 5, 7))
    problem = only_problem(dataset)
    assert problem.file.endswith('sub-01_echo-2_part-phase_MEGRE.nii.gz')
    assert '(4, 5, 7) differs from (4, 5, 6) of ' in problem.message
    assert 'sub-01_echo-1_part-mag_MEGRE.nii.gz' in problem.message


@pytest.mark.parametrize('shift, accepted', [(0.0005, True), (0.002, False)])
def test_affines_differ(dataset, shift, accepted):
    folder = dataset.add_run()
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[0, 3] += shift
    dataset.write_image(folder / 'sub-01_echo-2_part-phase_MEGRE.nii.gz', affine=affine)
    runs, problems = find(dataset.root)
    assert bool(runs) == accepted
    assert all('affine' in p.message and '0.002' in p.message for p in problems)
    assert bool(problems) != accepted


def test_not_three_dimensional(dataset):
    folder = dataset.add_run()
    for path in folder.glob('*.nii.gz'):
        dataset.write_image(path, shape=(4, 5, 6, 2))
    assert '(4, 5, 6, 2)' in only_problem(dataset).message


def broken(kind, path):
    if kind == 'empty':
        path.write_bytes(b'')
    elif kind == 'text':
        path.write_bytes(b'not an image at all')
    elif kind == 'gzip of nothing':
        path.write_bytes(gzip.compress(b''))
    elif kind == 'cut in its header':
        path.write_bytes(path.read_bytes()[:40])
    elif kind == 'link to nowhere':
        path.unlink()
        path.symlink_to('annex/object')
    elif kind == 'no affine':
        image = nib.Nifti1Image(np.ones((4, 5, 6), np.float32), None)
        image.header['sform_code'] = 1
        nib.save(image, path)


@pytest.mark.parametrize(
    'kind',
    ['empty', 'text', 'gzip of nothing', 'cut in its header', 'link to nowhere', 'no affine'],
)
def test_a_broken_image_stops_its_participant_only(dataset, kind):
    dataset.add_run('sub-01')
    folder = dataset.add_run('sub-02')
    path = folder / 'sub-02_echo-3_part-phase_MEGRE.nii.gz'
    broken(kind, path)
    runs, (problem,) = find(dataset.root)
    assert [run.subject for run in runs] == ['01']
    assert problem.file == str(path)


def test_truncated_without_compression(dataset):
    folder = dataset.add_run(extension='.nii')
    path = folder / 'sub-01_echo-3_part-phase_MEGRE.nii'
    path.write_bytes(path.read_bytes()[:-1])
    # 352 bytes of header, 4 * 5 * 6 voxels of 4 bytes
    assert 'truncated: 831 bytes of 832' in only_problem(dataset).message


def write_forms(path, qform=None, sform=None, codes=(0, 0), shape=(4, 5, 6)):
    """An image whose header has these two transforms."""
    image = nib.Nifti1Image(np.ones(shape, np.float32), None)
    image.header.set_zooms((2, 2, 2))
    for setter, affine, code in (
        (image.header.set_qform, qform, codes[0]),
        (image.header.set_sform, sform, codes[1]),
    ):
        if affine is not None:
            setter(affine, code)
    # Written by hand: nibabel's image would fill in the codes.
    with path.open('wb') as stream:
        data = np.ones(shape, np.float32)
        header = image.header
        header['vox_offset'], header['magic'] = 352, b'n+1'
        header.write_to(stream)
        stream.write(b'\0' * 4 + data.tobytes(order='F'))
    return path


def add_forms(dataset, **forms):
    folder = dataset.add_run(extension='.nii')
    for path in folder.glob('*.nii'):
        write_forms(path, **forms)
    return folder


STRAIGHT = np.diag([2.0, 2.0, 2.0, 1.0])
TILTED = STRAIGHT.copy()
TILTED[1:3, 1:3] = 2 * np.array([[0.8, -0.6], [0.6, 0.8]])
FLIPPED = np.diag([-2.0, 2.0, 2.0, 1.0])


def test_neither_qform_nor_sform(dataset):
    add_forms(dataset)
    problem = only_problem(dataset)
    assert problem.file.endswith('sub-01_echo-1_part-mag_MEGRE.nii')
    assert 'neither qform nor sform' in problem.message
    assert 'give --b0-dir X Y Z' in problem.message
    (run,), problems = find(dataset.root, b0_dir=(0, 1, 0))
    assert (run.b0_dir, run.as_needed, problems) == ((0.0, 1.0, 0.0), False, [])
    assert run.missing == ('affine (--b0-dir given)',)


def test_b0_dir_comes_before_the_header(dataset):
    dataset.add_run()
    (run,), (note,) = find(dataset.root, b0_dir=(0, 2, 0))
    assert (run.b0_dir, run.as_needed) == ((0.0, 2.0, 0.0), False)
    assert not note.fatal
    assert 'along [0.0, 1.0, 0.0] of the voxel axes by --b0-dir, which is used' in note.message
    assert 'along [0.0, 0.0, 1.0] by the affine, 90.0 degrees apart' in note.message
    _, notes = find(dataset.root, b0_dir=(0, 0, -1))  # the same field
    assert notes == []


@pytest.mark.parametrize(
    'forms, message',
    [
        ({'qform': TILTED, 'sform': STRAIGHT, 'codes': (1, 1)}, '36.9 degrees apart; the sform'),
        ({'qform': FLIPPED, 'sform': STRAIGHT, 'codes': (1, 1)}, 'up to 4 mm, with the same dir'),
        ({'qform': STRAIGHT, 'sform': STRAIGHT, 'codes': (1, 1)}, None),
        ({'qform': TILTED, 'codes': (1, 0)}, None),
    ],
    ids=['tilted', 'flipped', 'equal', 'qform only'],
)
def test_qform_and_sform(dataset, forms, message):
    add_forms(dataset, **forms)
    (run,), problems = find(dataset.root)
    assert run.as_needed
    assert [message in problem.message for problem in problems] == ([True] if message else [])


def test_sform_of_a_template(dataset):
    add_forms(dataset, qform=TILTED, sform=STRAIGHT, codes=(1, 4))
    assert 'copy the qform into the sform' in only_problem(dataset).message


@pytest.mark.parametrize(
    'change, message',
    [
        ({'xyzt_units': 1}, 'lengths are in meters'),
        ({'xyzt_units': 3}, 'lengths are in microns'),
        ({'pixdim': [1, 2000, 2000, 2000, 0, 0, 0, 0]}, '2000 x 2000 x 2000 mm is not between'),
        ({'scl_slope': 1e35, 'scl_inter': 0, 'datatype': 4, 'bitpix': 16}, 'beyond what single'),
        ({'datatype': 32, 'bitpix': 64}, 'complex numbers (complex64)'),
        ({'datatype': 128, 'bitpix': 24}, 'colours?'),
    ],
)
def test_headers_that_cannot_be_right(dataset, change, message):
    folder = add_forms(dataset, qform=STRAIGHT, codes=(1, 0), shape=(8, 8, 8))
    for path in folder.glob('*.nii'):
        content = path.read_bytes()
        header = nib.Nifti1Header(content[:348])
        for key, value in change.items():
            header[key] = value
        path.write_bytes(header.binaryblock + content[348:] + b'\0' * 4096)
    assert message in only_problem(dataset).message


def test_a_slice_is_no_volume(dataset):
    folder = dataset.add_run()
    for path in folder.glob('*.nii.gz'):
        dataset.write_image(path, shape=(64, 64, 1))
    assert 'has the matrix 64 x 64 x 1; 4 voxels are the least' in only_problem(dataset).message
