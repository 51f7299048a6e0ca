"""What sidecars say, against what vendors and converters write."""

import pytest

from precondqsm_bids.inputs.sidecars import FILTERED, image_kinds, named, read_sidecar, strength_of
from precondqsm_bids.numerics.constants import hz_per_ppm


@pytest.mark.parametrize('frequency', [63.87, 123.2, 127.74, 297.2])
def test_one_ppm_of_the_field_is_one_ppm_of_the_frequency(frequency):
    assert hz_per_ppm(strength_of(frequency)) == pytest.approx(frequency, rel=1e-12)


@pytest.mark.parametrize(
    'words, kinds',
    [
        (['ORIGINAL', 'PRIMARY', 'M', 'ND', 'NORM'], {'mag'}),
        (['ORIGINAL', 'PRIMARY', 'P', 'ND'], {'phase'}),
        (['ORIGINAL', 'PRIMARY', 'M_FFE', 'M', 'FFE'], {'mag'}),
        (['ORIGINAL', 'PRIMARY', 'PHASE MAP', 'P', 'FFE'], {'phase'}),
        (['ORIGINAL', 'PRIMARY', 'R_FFE', 'R', 'FFE'], {'real'}),
        (['DERIVED', 'PRIMARY', 'OTHER', 'IMAGINARY'], {'imag'}),
        (['ORIGINAL', 'PRIMARY', 'OTHER'], set()),
        ('ORIGINAL\\PRIMARY\\P\\ND', {'phase'}),
        (None, set()),
        (['ORIGINAL', 3], set()),
    ],
)
def test_kinds_of_image_types(words, kinds):
    assert image_kinds(words) == kinds
    assert not named(words, FILTERED)


def test_latin_1_is_read_and_told(tmp_path):
    path = tmp_path / 'x.json'
    path.write_bytes('{"Name": "Müller"}'.encode('latin-1'))
    content, note = read_sidecar(path)
    assert content == {'Name': 'Müller'}
    assert 'latin-1' in note
    path.write_bytes('{"Name": "Müller"}'.encode('utf-8-sig'))
    assert read_sidecar(path) == (content, '')
