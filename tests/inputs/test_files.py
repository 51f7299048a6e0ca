"""Sidecars, against what converters write."""

from precondqsm_bids.inputs.files import read_sidecar


def test_latin_1_is_read_and_reported(tmp_path):
    path = tmp_path / 'x.json'
    path.write_bytes('{"Name": "Müller"}'.encode('latin-1'))
    content, (note,) = read_sidecar(path)
    assert content == {'Name': 'Müller'}
    assert 'latin-1' in note.message
    path.write_bytes('{"Name": "Müller"}'.encode('utf-8-sig'))
    assert read_sidecar(path) == (content, [])
