"""The nodes that write: names and bytes of the files."""

import gzip
import os

import nibabel as nb
import numpy as np
import pytest

from precondqsm_bids.interfaces.derivatives import DerivativesDataSink, PpmToHz
from precondqsm_bids.outputs import files

SOURCES = [
    f'/raw/sub-01/ses-b/anat/sub-01_ses-b_run-1_echo-{echo}_part-{part}_MEGRE.nii.gz'
    for echo in (1, 2, 10)
    for part in ('mag', 'phase')
]


@pytest.fixture
def volume(tmp_path):
    path = tmp_path / 'chi.nii'
    nb.Nifti1Image(np.arange(24, dtype=np.float32).reshape(2, 3, 4), np.eye(4)).to_filename(path)
    return path


def sink(volume, out, cwd, **entities):
    node = DerivativesDataSink(
        base_directory=str(out), source_file=SOURCES, in_file=str(volume), **entities
    )
    return node.run(cwd=cwd).outputs


def test_name_has_neither_echo_nor_part_and_is_compressed(volume, tmp_path):
    out = tmp_path / 'out'
    result = sink(volume, out, tmp_path, datatype='anat', desc='precond', suffix='Chimap')
    expected = out / 'sub-01/ses-b/anat/sub-01_ses-b_run-1_desc-precond_Chimap.nii.gz'
    assert result.out_file == str(expected)
    assert expected.read_bytes()[:2] == b'\x1f\x8b'
    assert np.array_equal(nb.load(expected).dataobj, nb.load(volume).dataobj)


def test_only_our_names_are_written(volume, tmp_path):
    with pytest.raises(ValueError, match='unwrapped'):
        sink(volume, tmp_path / 'out', tmp_path, datatype='anat', suffix='unwrapped')
    assert not list((tmp_path / 'out').rglob('*.nii*'))


def test_file_is_replaced_at_once_and_nothing_is_left_beside_it(volume, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    first = sink(volume, out, tmp_path, datatype='anat', suffix='S0map', meta_dict={'Units': '1'})
    before = open(first.out_file, 'rb')  # noqa: SIM115 - a reader in the middle of the old map
    old = volume.read_bytes()
    nb.Nifti1Image(np.ones((2, 3, 4), np.float32), np.eye(4)).to_filename(volume)
    renamed = []
    replace = os.replace
    monkeypatch.setattr(
        files.os, 'replace', lambda a, b: (renamed.append(os.path.basename(b)), replace(a, b))
    )
    second = sink(volume, out, tmp_path, datatype='anat', suffix='S0map', meta_dict={'Units': '2'})
    with before:
        image = nb.Nifti1Image.from_bytes(gzip.decompress(before.read()))
    assert np.array_equal(image.dataobj, nb.Nifti1Image.from_bytes(old).dataobj)
    assert renamed == ['sub-01_ses-b_run-1_S0map.json', 'sub-01_ses-b_run-1_S0map.nii.gz']
    assert nb.load(second.out_file).get_fdata().max() == 1
    assert len([p for p in out.rglob('*') if p.is_file()]) == 2


def test_a_table_is_not_compressed(tmp_path):
    table = tmp_path / 'table.tsv'
    table.write_text('index\n1\n')
    result = sink(table, tmp_path / 'out', tmp_path, datatype='anat', desc='rois', suffix='values')
    assert result.out_file.endswith('sub-01_ses-b_run-1_desc-rois_values.tsv')
    with open(result.out_file) as stream:
        assert stream.read() == 'index\n1\n'


def test_ppm_to_hz(volume, tmp_path):
    result = PpmToHz(in_file=str(volume), field_strength=7.0).run(cwd=tmp_path).outputs
    written = nb.load(result.out_file)
    # 1 ppm of 42.57638543 MHz/T x 7 T
    assert np.allclose(written.get_fdata(), nb.load(volume).get_fdata() * 298.034698, rtol=1e-6)
    assert written.get_data_dtype() == np.float32
