"""The files that are written: names, bytes, numbers."""

import gzip
import os

import nibabel as nb
import numpy as np
import pytest

from precondqsm_bids.interfaces.derivatives import write_compressed
from precondqsm_bids.outputs import files


@pytest.fixture
def volume(tmp_path):
    path = tmp_path / 'chi.nii'
    nb.Nifti1Image(np.arange(24, dtype=np.float32).reshape(2, 3, 4), np.eye(4)).to_filename(path)
    return path


@pytest.mark.parametrize('affine', [np.eye(4), np.diag([-2.0, 1.0, 3.0, 1.0])[[1, 0, 2, 3]]])
@pytest.mark.parametrize('dtype', [np.float32, np.uint8])
def test_every_reader_finds_the_voxels_where_they_were(tmp_path, affine, dtype):
    data = (np.arange(3 * 4 * 5) % 200).reshape(3, 4, 5).astype(dtype)
    source, target = tmp_path / 'x.nii', tmp_path / 'out' / 'x.nii.gz'
    nb.Nifti1Image(data, affine).to_filename(source)
    write_compressed(source, target)
    # zlib's inflate, to the checksum, and the layout of the standard: 352 bytes, then the voxels
    content = gzip.decompress(target.read_bytes())
    assert content[352:] == data.tobytes(order='F')
    written = nb.load(target)
    assert np.array_equal(written.dataobj, data)
    assert np.array_equal(written.affine, affine)
    assert [int(written.header[f'{form}_code']) for form in ('qform', 'sform')] == [1, 1]
    assert np.allclose(written.get_qform(), affine, atol=1e-6)
    assert written.header.get_xyzt_units()[0] == 'mm'


def test_a_map_is_replaced_at_once_and_nothing_is_left_beside_it(volume, tmp_path, monkeypatch):
    target = tmp_path / 'out' / 'map.nii.gz'
    write_compressed(volume, target)
    before = open(target, 'rb')  # noqa: SIM115 - a reader in the middle of the old map
    old = volume.read_bytes()
    nb.Nifti1Image(np.ones((2, 3, 4), np.float32), np.eye(4)).to_filename(volume)
    renamed = []
    replace = os.replace
    monkeypatch.setattr(
        files.os, 'replace', lambda a, b: (renamed.append(os.path.basename(b)), replace(a, b))
    )
    write_compressed(volume, target)
    with before:
        image = nb.Nifti1Image.from_bytes(gzip.decompress(before.read()))
    assert np.array_equal(image.dataobj, nb.Nifti1Image.from_bytes(old).dataobj)
    assert renamed == ['map.nii.gz']
    assert nb.load(target).get_fdata().max() == 1
    assert [path.name for path in target.parent.iterdir()] == ['map.nii.gz']


@pytest.mark.parametrize('most, dtype', [(32767, np.int16), (32768, np.int32)])
def test_labels_keep_their_numbers(tmp_path, most, dtype):
    data = np.array([0, 1, most], np.int32).reshape(3, 1, 1)
    nb.Nifti1Image(data, np.eye(4)).to_filename(tmp_path / 'labels.nii')
    write_compressed(tmp_path / 'labels.nii', tmp_path / 'labels.nii.gz')
    written = nb.load(tmp_path / 'labels.nii.gz')
    assert written.get_data_dtype() == dtype
    assert np.asanyarray(written.dataobj).ravel().tolist() == [0, 1, most]


def test_field_in_hz(volume, tmp_path):
    target = tmp_path / 'field.nii.gz'
    write_compressed(volume, target, 298.034698)  # 1 ppm of 42.57638543 MHz/T x 7 T
    written = nb.load(target)
    assert np.allclose(written.get_fdata(), nb.load(volume).get_fdata() * 298.034698, rtol=1e-6)
    assert written.get_data_dtype() == np.float32
