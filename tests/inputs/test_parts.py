"""Words of ``ImageType``, against what vendors write."""

import pytest

from precondqsm_bids.inputs.parts import FILTERED, image_kinds, named


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
