"""A map against the field that it was made of, with the field of a sphere in closed form."""

import numpy as np
import pytest

from precondqsm_bids.method import Method
from precondqsm_bids.numerics import Companions, Geometry, GivenField, forward_field, precondition
from precondqsm_bids.numerics.precondition import check_residual
from precondqsm_bids.phantom.fields import sphere_field

N, SIZE, B0 = (28, 28, 24), (1.0, 1.0, 1.2), np.array([0, 0.6, 0.8])
AXES = [(np.arange(n) - (n - 1) / 2) * d for n, d in zip(N, SIZE, strict=True)]
POINTS = np.stack(np.meshgrid(*AXES, indexing='ij'), axis=-1)
R = np.linalg.norm(POINTS, axis=-1)
MASK = R < 12
CHI = np.where(R < 5, 0.2, 1e-4)
FIELD = 0.2 * sphere_field(POINTS, 5.0, B0) * MASK
# A source outside, a shim and an offset: of no map of the inside.
BACKGROUND = FIELD + MASK * (
    3 * sphere_field(POINTS - [25.0, 0, 0], 6.0, B0)
    + 0.05 * POINTS[..., 2] + 0.01 * (POINTS[..., 0] ** 2 - POINTS[..., 1] ** 2) + 1
)  # fmt: skip
GEOMETRY = Geometry(MASK, SIZE, B0)


@pytest.mark.parametrize('field', [FIELD, BACKGROUND], ids=['local', 'total'])
def test_true_map_has_the_field(field):
    record = check_residual(CHI, field, GEOMETRY)
    assert record['field_slope'] == pytest.approx(1, abs=0.15)
    assert record['field_correlation'] > 0.8
    assert record['left_out_fraction'] == 0
    assert not record['warnings']


@pytest.mark.parametrize('field', [FIELD, BACKGROUND], ids=['local', 'total'])
@pytest.mark.parametrize(
    'factor, words',
    [(1e3, 'another unit than ppm'), (1e-3, 'another unit than ppm'), (-1, 'opposite field')],
)
def test_other_units_and_signs_are_refused(field, factor, words):
    with pytest.raises(ValueError, match=words):
        check_residual(factor * CHI, field, GEOMETRY)


def test_a_tenth_of_the_truth_is_regularisation_and_no_unit():
    record = check_residual(0.1 * CHI, FIELD, GEOMETRY)
    assert record['field_slope'] == pytest.approx(10, rel=0.15)
    assert not record['warnings']


@pytest.mark.parametrize(
    'chi, words',
    [
        (np.where(R < 9, CHI, 0), 'of the region at 0'),
        (np.roll(CHI, 9, axis=0) * MASK, 'is it a map of this field'),
        (np.zeros(N), 'a map that is constant'),
    ],
    ids=['rim', 'of another field', 'nothing'],
)
def test_what_is_doubtful_is_warned_of(chi, words):
    found = check_residual(chi, FIELD, GEOMETRY)['warnings']
    assert [text for text in found if words in text]


def test_functions_on_arrays_warn_and_refuse():
    given = GivenField(BACKGROUND, 1 + (R < 5), 3.0, SIZE, B0)
    method = Method(prior='map:mine', prior_fit='none', shape=False)
    companions = Companions(mask=MASK, maps={'mine': np.where(R < 5, 0.15, 0)})
    found = precondition(given, method, companions)
    rest = np.where(R < 5, 0.05, 1e-5)
    chi = found.around(lambda field, mask, size, b0: rest).chi
    assert chi[R < 5].mean() - chi[(R > 5) & MASK].mean() == pytest.approx(0.2, abs=1e-3)
    with pytest.warns(UserWarning, match='of the region at 0'):
        found.around(lambda field, mask, size, b0: np.where(R < 9, rest, 0))
    with pytest.raises(ValueError, match='differ in shape'):
        found.around(lambda field, mask, size, b0: rest[..., 0])


def test_inversion_is_given_what_it_is_told():
    """Units of the voxel size and B0, and arrays of its own."""
    given = GivenField(BACKGROUND, 1 + (R < 5), 3.0, SIZE, 2 * B0)
    method = Method(prior='map:mine', prior_fit='none', shape=False)
    found = precondition(given, method, Companions(mask=MASK, maps={'mine': 0.5 * CHI}))
    kept = found.flattened_field.copy()

    def inner(field, mask, voxel_size, b0_dir):
        assert voxel_size == SIZE
        np.testing.assert_allclose(b0_dir, B0)
        assert mask.dtype == bool
        assert not field[~mask].any()
        field[:] = 0  # as some do
        mask[:] = False
        return 0.5 * CHI

    found.around(inner)
    found.around(inner, 'local')
    np.testing.assert_array_equal(found.flattened_field, kept)
    assert found.mask.any()


def test_recombination_takes_a_mask_as_it_is_stored():
    x = np.indices((16, 16, 16)) - 7.5
    ball = (x**2).sum(axis=0) < 50
    field = forward_field(0.2 * (x[0] > 2) * ball, (2, 2, 2), (0, 0, 1)) * ball
    found = precondition(GivenField(field, 1.0 * ball, 3.0, (2, 2, 2)), Method(shape=False))
    chi = 0.5 * found.flattened_field
    expected = found.recombine(chi, mask=found.mask).chi
    np.testing.assert_array_equal(found.recombine(chi, mask=found.mask.astype(int)).chi, expected)
    with pytest.raises(ValueError, match='residual_chi is missing'):
        found.around(lambda *given: None)
