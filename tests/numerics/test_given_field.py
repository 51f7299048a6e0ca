"""A field that is given: its noise, its sign, and its map beside that of the echoes."""

import numpy as np
import pytest

from precondqsm_bids.method import Method
from precondqsm_bids.numerics import (
    GivenField,
    Scan,
    b0_direction,
    reconstruct,
    take_field,
)
from precondqsm_bids.numerics.given_field import field_scale, known_region
from precondqsm_bids.phantom.head import simulate_head
from precondqsm_bids.phantom.head_spec import HeadSpec
from precondqsm_bids.phantom.spec import TubesSpec
from precondqsm_bids.phantom.tubes import simulate_tubes


def ball():
    """A ball in air with a ball of 0.2 ppm inside, by the closed form, in voxels of 3 mm.

    The field inside a ball is even, whatever is around; that of the inner one is a dipole outside.
    """
    x, y, z = 3 * (np.indices((32, 32, 32)) - 15.5)
    inside = x**2 + y**2 + z**2 < 36**2
    r = np.maximum(np.sqrt((x - 12) ** 2 + y**2 + z**2), 1e-9)
    field = np.where(r < 9, 0, 0.2 / 3 * (9 / r) ** 3 * (3 * (z / r) ** 2 - 1)) + 0.3
    return field, inside * (1 + 0.3 * x / 48), inside, (3.0, 3.0, 3.0), (0, 0, 1)


def tubes():
    phantom = simulate_tubes(TubesSpec(matrix=(40, 40, 33), voxel_size=(3.2, 3.2, 3.2)), seed=1)
    return _of(phantom, phantom.labels > 0)


def head():
    phantom = simulate_head(HeadSpec(voxel_size=(5.0, 5.0, 5.0)), seed=1)
    return _of(phantom, phantom.magnitude[..., 0] > 0.2 * phantom.magnitude.max())


def _of(phantom, inside):
    size = tuple(np.linalg.norm(phantom.affine[:3, :3], axis=0))
    return phantom.field, phantom.magnitude[..., 0], inside, size, b0_direction(phantom.affine)


OBJECTS = {'ball': ball, 'tubes': tubes, 'head': head}


@pytest.fixture(scope='module', params=OBJECTS)
def scene(request):
    """Name, true field, magnitude, region, voxel size and direction of B0."""
    return request.param, *OBJECTS[request.param]()


def test_deviation_is_that_of_the_noise(scene):
    """Against noise that was added here, inverse to the signal."""
    _, field, magnitude, inside, *_ = scene
    k = 0.01 * float(np.median(magnitude[inside]))  # 0.01 ppm in the median voxel
    rng = np.random.default_rng(3)
    noisy = field + k * rng.normal(size=field.shape) / np.maximum(magnitude, 1e-6)
    assert k / 1.1 < field_scale(noisy, magnitude, inside) < 1.3 * k


def test_a_reversed_field_is_warned_of(scene):
    name, field, magnitude, inside, size, b0 = scene
    said = {}
    for sign in (1, -1):
        given = GivenField(sign * field, magnitude, 3.0, size, b0)
        found = take_field(given, inside, inside)
        said[sign] = [text for text in found.record['warnings'] if 'opposite sign' in text]
        assert found.record['phase_sign'] == 1
    assert not said[1]
    # A ball in air has one field inside, which tells no sign.
    assert bool(said[-1]) == (name != 'ball')


def test_a_field_in_another_unit_has_another_field_of_the_shape(scene):
    name, field, magnitude, inside, size, b0 = scene
    if name == 'ball':  # has one field inside, whatever its unit
        return
    given = GivenField(field, magnitude, 3.0, size, b0)
    assert not [
        text for text in take_field(given, inside, inside).record['warnings'] if 'unit' in text
    ]
    for factor in (2 * np.pi, 42.6 * 0.5):  # rad/s taken for Hz; Hz for ppm at 0.5 T
        with pytest.raises(
            ValueError, match=r'times the field that the object.s shape has in air'
        ):
            take_field(given._replace(total_field=factor * field), inside, inside)
    small = take_field(given._replace(total_field=field / (2 * np.pi)), inside, inside)
    assert [text for text in small.record['warnings'] if 'is it in another unit' in text]


def test_a_stated_sign_is_that_of_the_stored_field():
    field, magnitude, inside, size, b0 = tubes()
    given = GivenField(-field, magnitude, 3.0, size, b0, sign=-1)
    found = take_field(given, inside, inside)
    np.testing.assert_allclose(found.total_field[inside], field[inside], rtol=1e-5)
    assert found.record['phase_sign_source'] == 'given'
    assert not found.record['warnings']
    with pytest.raises(ValueError, match='was given as -1, but the field of the shape says'):
        take_field(given._replace(total_field=field), inside, inside)


def wrapped(field, turn):
    return (field + turn / 2) % turn - turn / 2


@pytest.mark.parametrize('turn', [0.4, 0.8])
def test_a_wrapped_field_is_refused(turn):
    field, magnitude, inside, size, b0 = tubes()
    field = field + np.random.default_rng(0).normal(0, 0.005, field.shape)
    given = GivenField(wrapped(field, turn), magnitude, 3.0, size, b0)
    with pytest.raises(ValueError, match=f'nearly its whole range, {turn:.3g}') as error:
        take_field(given, inside)
    assert 'unwrap the phase' in str(error.value)


def test_a_field_of_few_wraps_is_warned_of():
    field, magnitude, inside, size, b0 = head()
    given = GivenField(wrapped(field, 4.0), magnitude, 3.0, size, b0)
    said = take_field(given, inside).record['warnings']
    assert [text for text in said if text.endswith('is it unwrapped?')]


def test_walls_are_no_wraps(scene):
    _, field, magnitude, inside, size, b0 = scene
    for true in (field, np.where(np.hypot(*np.indices(field.shape)[:2] - 16) < 5, 1.0, 0.01)):
        noisy = true + np.random.default_rng(0).normal(0, 0.01, field.shape)
        found = take_field(GivenField(noisy, magnitude, 3.0, size, b0), inside)
        assert not [text for text in found.record['warnings'] if 'unwrapped' in text]


@pytest.mark.parametrize('rate', [0.02, 5000.0])
def test_r2star_in_another_unit_is_refused(rate):
    """20 / s in 1/ms is 0.02, and a T2* of 0.05 s is taken for hardly more."""
    given = GivenField(
        np.random.default_rng(0).normal(0, 0.01, (8, 8, 8)), np.ones((8, 8, 8)), 3.0
    )
    mask = np.ones((8, 8, 8), bool)
    with pytest.raises(ValueError, match='r2star has a median of'):
        take_field(given._replace(r2star=np.full((8, 8, 8), rate)), mask)


def test_r2star_is_taken_and_reliable_where_it_is_known():
    field, magnitude, inside, size, b0 = ball()
    r2star = np.where(inside, 20.0, np.nan)
    r2star[16, 16, 16] = 0  # a fit that ended there
    r2star[14, 14, 14] = np.nan
    known = np.indices(field.shape)[2] < 20  # a masked map
    r2star = np.where(known, r2star, 0)
    given = GivenField(field, magnitude, 3.0, size, b0, r2star=r2star)
    found = take_field(given, inside)
    assert found.reliable[16, 16, 16]
    assert not found.reliable[14, 14, 14]
    assert not found.reliable[..., 21:].any()
    assert found.reliable[..., :20].sum() == inside[..., :20].sum() - 1
    assert np.unique(found.t2star[found.r2star > 0]).tolist() == [np.float32(0.05)]
    assert found.s0 is None
    assert found.misfit is None
    given_sd = take_field(given._replace(field_sd=np.full(field.shape, 0.02)), inside)
    assert given_sd.record['median_field_sd'] == pytest.approx(0.02)
    assert given_sd.record['field_sd_source'] == 'given'


@pytest.mark.parametrize(
    'change, message',
    [
        ({'total_field': lambda f: 1e4 * f}, 'is in another unit than its metadata say'),
        ({'total_field': lambda f: 0 * f + 1}, 'has one value in the whole region'),
        ({'total_field': lambda f: np.where(f > f.mean(), np.nan, f)}, 'is not finite in'),
        ({'magnitude': lambda f: f[1:]}, r'magnitude \(31, 32, 32\) and total_field'),
        ({'field_sd': lambda f: -np.ones(f.shape)}, 'field_sd is negative'),
    ],
)
def test_what_is_no_field_is_refused(change, message):
    field, magnitude, inside, size, b0 = ball()
    field = field + 0.01 * np.indices(field.shape)[0]
    given = GivenField(field, magnitude, 3.0, size, b0)
    ((name, function),) = change.items()
    with pytest.raises(ValueError, match=message):
        take_field(given._replace(**{name: function(field)}), inside)


def test_holes_are_out_of_the_region_and_reported():
    field, magnitude, inside, size, b0 = tubes()
    i, j, k = np.argwhere(inside).mean(axis=0).round().astype(int)
    field[i - 3 : i + 4, j - 3 : j + 4, k - 3 : k + 4] = 0
    given = GivenField(field, magnitude, 3.0, size, b0)
    found = reconstruct(given, Method(prior='shape', conventional=False, field='derivatives'))
    assert not found.region.roi_mask[i, j, k]
    assert any('0 or not a number in' in text for text in found.measured.record['warnings'])
    assert known_region(field, inside)[i, j, k] == 0


@pytest.mark.slow
def test_given_back_the_map_is_that_of_the_echoes():
    """With the field's deviation and a prior by theory to the last digits; else as good.

    Of a given R2* the deviation is not known, so that the contrast is not smoothed by it.
    """
    spec = TubesSpec(matrix=(32, 32, 28), voxel_size=(4.0, 4.0, 4.0))
    phantom = simulate_tubes(spec, seed=2)
    scan = Scan(phantom.magnitude, phantom.phase, phantom.echo_times, 3.0, (4.0, 4.0, 4.0))
    scan = scan._replace(b0_dir=b0_direction(phantom.affine), phase_units='rad')
    method = Method(conventional=False)
    echoes = reconstruct(scan, method)
    found = echoes.measured
    first = phantom.magnitude[..., 0]
    given = GivenField(found.total_field, first, 3.0, scan.voxel_size, scan.b0_dir)
    with_r2star = given._replace(r2star=found.r2star)
    theory = Method(prior='r2prime', conventional=False)
    same = reconstruct(with_r2star._replace(field_sd=found.field_sd), theory)
    inside = echoes.region.roi_mask
    np.testing.assert_array_equal(same.region.roi_mask, inside)
    np.testing.assert_allclose(same.chi, reconstruct(scan, theory).chi, atol=1e-3)

    def error(chi):
        true = phantom.chi[inside] - phantom.chi[inside].mean()
        left = chi[inside] - chi[inside].mean() - true
        return float(np.linalg.norm(left) / np.linalg.norm(true))

    assert error(reconstruct(with_r2star, method).chi) < 1.15 * error(echoes.chi)
    assert error(reconstruct(given, method).chi) < 1.15 * error(echoes.chi)


@pytest.mark.filterwarnings('error')
def test_voxels_without_magnitude_do_not_lower_the_noise_of_the_others():
    rng = np.random.default_rng(0)
    magnitude = rng.uniform(1, 2, (24, 24, 24))
    field = rng.normal(size=magnitude.shape) / magnitude
    alone = field_scale(field, magnitude, magnitude > 0)
    magnitude[::3, ::2, 5:9] = 0
    assert field_scale(field, magnitude, np.ones(field.shape, bool)) == pytest.approx(
        alone, rel=0.1
    )
