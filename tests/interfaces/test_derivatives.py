"""The files that are written: names, bytes, numbers."""

import gzip
import os

import nibabel as nb
import numpy as np
import pytest
from written import write, zeros

from precondqsm_bids.interfaces.derivatives import write_compressed
from precondqsm_bids.outputs import files, maps


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


def test_what_an_earlier_call_wrote_and_this_one_does_not_is_gone(tmp_path):
    """Of this run alone: maps, sidecars, figures and values of another one stay."""
    given, out = zeros(tmp_path, np.eye(4)), tmp_path / 'out'
    given['conventional_chi'] = given['prior_chi']
    write(given, out)
    of_run = {path for path in out.glob('**/sub-01_*') if path.is_file()}
    for name in ('sub-01_desc-rois_values.tsv', 'sub-01_desc-rois_values.json'):
        of_run.add(out / 'sub-01/anat' / name)
    other = out / 'sub-01/anat/sub-01_run-2_desc-conventional_Chimap.nii.gz'
    for path in (*of_run, other, out / 'sub-01/anat/sub-01_desc-mine_Chimap.nii.gz'):
        path.touch()
    fewer = {name: file for name, file in given.items() if not name.startswith('conventional')}
    write(fewer, out)
    left = {path for path in out.glob('**/sub-01_*') if path.is_file()}
    assert other in left
    assert out / 'sub-01/anat/sub-01_desc-mine_Chimap.nii.gz' in left
    gone = {path.name for path in of_run - left}
    conventional = maps.WRITTEN['conventional_chi'].ending
    assert {f'sub-01_{conventional}.nii.gz', f'sub-01_{conventional}.json'} <= gone
    assert {'sub-01_desc-rois_values.tsv', 'sub-01_desc-rois_values.json'} <= gone
    assert 'sub-01_desc-conventionalmosaic_Chimap.png' in gone
    assert not [name for name in gone if 'precond' in name]
