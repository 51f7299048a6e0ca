"""NaN as no signal, and NaN as a fault, on balls whose inside is known."""

import numpy as np
import pytest

from precondqsm_bids.interfaces.volumes import clear_nan, clear_pair, object_in

SHAPE = (17, 17, 17)
RADIUS = np.sqrt(sum((x - 8) ** 2 for x in np.indices(SHAPE)))
BALL = RADIUS < 6
PATHS = ('mag.nii', 'phase.nii')


def echo(snr=50, seed=0):
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(2, *SHAPE))
    return np.hypot(snr * BALL + noise[0], noise[1]).astype(np.float32)


@pytest.mark.parametrize('snr', [20, 50, 500])
def test_object_is_the_ball(snr):
    np.testing.assert_array_equal(object_in(echo(snr)), BALL)


def test_holes_belong_to_the_object_and_air_does_not():
    magnitude = echo()
    magnitude[RADIUS < 2] = np.nan
    magnitude[~BALL] = np.nan
    np.testing.assert_array_equal(object_in(magnitude), BALL)


@pytest.mark.parametrize('plane', [0, -1])
def test_hole_at_the_edge_of_the_field_of_view(plane):
    """A slab through the ball: a hole in its outermost slice is surrounded within the slice."""
    magnitude = echo()[:, :, 5:12]
    magnitude[8, 8, plane] = np.nan
    assert object_in(magnitude)[8, 8, plane]
    magnitude[0, 0, plane] = np.nan
    assert not object_in(magnitude)[0, 0, plane]


@pytest.mark.parametrize('part', [0, 1])
def test_one_voxel_inside_is_refused_by_its_file(part):
    pair = [echo(), echo()]
    pair[part][8, 8, 9] = np.nan
    pair[part][0, 0, 0] = np.nan
    inside = object_in(pair[0])
    with pytest.raises(ValueError, match=f'{PATHS[part]} has 1 voxels .* of 2 in all'):
        clear_pair(*pair, PATHS, inside)


def test_phase_is_not_known_where_the_magnitude_is_zero():
    """As of 0 / 0 in a combination of coils."""
    magnitude, phase = echo(), echo()
    inside = object_in(magnitude)
    magnitude[8, 8, 9], phase[8, 8, 9], phase[~BALL] = 0, np.nan, np.nan
    clear_pair(magnitude, phase, PATHS, inside)
    assert np.isfinite(phase).all()
    assert not magnitude[~BALL].any()
    assert np.count_nonzero(magnitude[BALL] == 0) == 1


def test_whole_data_stay_as_they_are():
    data = echo()
    assert not clear_nan(data, PATHS[0], BALL).any()
    np.testing.assert_array_equal(data, echo())
