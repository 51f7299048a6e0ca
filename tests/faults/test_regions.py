"""Region of interest of objects that are not one bright body in clean air: right, or said."""

import numpy as np
import pytest

from benchmarks.regions import ball, grid, leg, near_coil, noisy, torso
from precondqsm_bids.method import Method
from precondqsm_bids.numerics import Scan, reconstruct
from precondqsm_bids.numerics.shape_mask import region_of_interest

TE = np.array([4e-3, 8e-3, 12e-3])
STEP = -9.41  # water against air, ppm


def ball_field(x, radius, *centre):
    """Field of a ball of unit susceptibility for B0 along the last axis: a dipole outside."""
    x = [i - c for i, c in zip(x, centre, strict=True)]
    r2 = np.maximum(sum(i**2 for i in x), 1e-9)
    dipole = (radius**2 / r2) ** 1.5 * (3 * x[2] ** 2 / r2 - 1) / 3
    return np.where(r2 < radius**2, 0, dipole)


BOTTLES = grid(64, 40, 40)
LARGE, VIAL = (14, -12, 0, 0), (6, 20, 0, 0)


def bottles(level=1.0):
    return ball(BOTTLES, *LARGE) + level * ball(BOTTLES, *VIAL)


@pytest.mark.parametrize('level', [1.0, 0.4, 0.15])
def test_vial_of_a_twelfth_of_the_volume_is_kept(level):
    region = region_of_interest(noisy(bottles(level), 50), (2, 2, 2))
    truth = ball(BOTTLES, *VIAL)
    assert np.mean(region.roi_mask[truth]) > 0.9
    assert np.mean(region.shape_mask[truth]) > 0.99
    large, vial = region.record['volumes']
    assert large == pytest.approx(4 / 3 * np.pi * 28**3 / 1000, rel=0.03)
    assert vial == pytest.approx(4 / 3 * np.pi * 12**3 / 1000, rel=0.1)
    assert not region.record['warnings']


def test_vial_of_half_a_percent_is_kept():
    magnitude = noisy(ball(BOTTLES, *LARGE) + 0.5 * ball(BOTTLES, 2.5, 20, 0, 0), 50)
    assert region_of_interest(magnitude, (2, 2, 2)).record['volumes'][1:] == [0.448]


def test_what_is_no_brighter_than_a_ghost_is_left_out_and_said():
    region = region_of_interest(noisy(bottles(0.05), 100), (2, 2, 2))
    assert not region.roi_mask[ball(BOTTLES, *VIAL)].any()
    (volume,) = region.record['left_out']
    assert f'pieces with signal of {volume:.3g} ml were left out' in region.record['warnings'][0]


def test_noise_is_no_body():
    # Prescan normalisation: noise that grows outwards, four times that inside at the corners
    x = grid(48, 48, 48)
    n = np.random.default_rng(0).normal(0, 1 / 40, (2, 48, 48, 48)) * (0.2 + np.hypot(*x[:2]) / 12)
    region = region_of_interest(np.hypot(ball(x, 18, 0, 0, 0) + n[0], n[1]), (1, 1, 1))
    assert not region.roi_mask[~ball(x, 19, 0, 0, 0)].any()
    assert len(region.record['volumes']) == 1


def test_amplified_noise_far_away_hides_nothing():
    # Dark around the object and noisy beyond, as prescan normalisation leaves it
    x = grid(48, 48, 48)
    body, far = ball(x, 10, 0, 0, 0), np.sqrt(sum(i**2 for i in x)) > 14
    magnitude = noisy(1.0 * body, np.where(far, 5, 60))
    region = region_of_interest(magnitude, (3, 3, 3))
    np.testing.assert_array_equal(region.roi_mask, body)
    assert not region.inner
    assert not region.record['warnings']


def test_pair_of_legs():
    x = grid(72, 40, 24)
    region = region_of_interest(noisy(leg(x, -17) + leg(x, 17), 40), (3, 3, 3))
    for centre in (-17, 17):
        r, bone = np.hypot(x[0] - centre, x[1]), np.hypot(x[0] - centre - 3, x[1] + 2)
        assert region.roi_mask[(r < 13) & (bone > 5)].all()
        assert region.roi_mask[bone < 1.5].all()
        assert not region.roi_mask[(bone > 2.5) & (bone < 4)].any()
        assert region.shape_mask[r < 13].all()
    one, other, *marrow = region.record['volumes']
    assert one == pytest.approx(other, rel=0.01)
    assert len(marrow) == 2


def test_field_of_view_without_air():
    x = grid(40, 40, 40)
    tissue = 1 + 0.2 * np.sin(x[0] / 3) * np.cos(x[1] / 4)
    region = region_of_interest(noisy(tissue, 40), (1, 1, 1))
    assert region.roi_mask.all()
    assert region.inner
    assert not region.shape_chi.any()
    assert 'no air in the field of view' in region.record['warnings'][0]
    # part of it may be restricted by a mask, whose border is no surface
    mask = ball(x, 12, 0, 0, 0)
    region = region_of_interest(noisy(tissue, 40), (1, 1, 1), mask)
    np.testing.assert_array_equal(region.roi_mask, mask)
    assert region.inner


@pytest.mark.parametrize('depth, snr, fading', [(14, 1000, False), (8, 300, True)])
def test_surface_coil(depth, snr, fading):
    # From 0.7 to 0.03 or less of the greatest signal over the object
    x = grid(48, 48, 48)
    body, coil = ball(x, 18, 0, 0, 0), near_coil(x, depth)
    region = region_of_interest(noisy(body * coil, snr), (2, 2, 2))
    seen = body & (coil > 8 / snr)
    assert np.mean(region.shape_mask[seen]) > 0.999
    assert np.mean(region.roi_mask[seen]) > 0.9
    assert not region.shape_mask[~ball(x, 19, 0, 0, 0)].any()
    said = [words for words in region.record['warnings'] if 'fades into the noise' in words]
    assert bool(said) == fading


def test_surface_coil_that_sees_little_of_the_object():
    x = grid(48, 48, 48)
    body, coil = ball(x, 18, 0, 0, 0), near_coil(x, 6)
    region = region_of_interest(noisy(body * coil, 100), (2, 2, 2))
    assert region.inner
    assert not region.shape_chi.any()
    assert 'the shape is left out of the first estimate' in region.record['warnings'][-1]


def test_slab_of_a_torso():
    # Cut at both sides and at both ends; lungs without signal
    x = grid(80, 56, 32)
    region = region_of_interest(noisy(1.0 * torso(x), 40), (4, 4, 5))
    np.testing.assert_array_equal(region.shape_mask, torso(x))
    assert 'touches 4 of the 6 faces' in region.record['warnings'][0]


@pytest.mark.parametrize('axis', [0, 2])
@pytest.mark.parametrize('slices, thin', [(40, False), (24, False), (16, False), (12, True)])
def test_thin_slabs_are_said(axis, slices, thin):
    # A cube of 40 voxels, in a field of view that cuts it at both ends of an axis; or whole
    body = np.zeros((48, 48, 48))
    body[4:-4, 4:-4, 4:-4] = 1
    size = np.where(np.arange(3) == axis, 3.0, 3.5)
    cut = np.take(body, np.arange(slices) + (48 - slices) // 2 if slices < 40 else range(48), axis)
    region = region_of_interest(noisy(cut, 60), size)
    said = [words for words in region.record['warnings'] if 'slab of 36 mm' in words]
    assert bool(said) == thin
    # A whole object that is as thin is no slab
    flat = np.pad(cut, [(3, 3)] * 3)
    said = region_of_interest(noisy(flat, 60), size).record['warnings']
    assert not any('slab' in words for words in said)


def test_most_of_the_signal_outside_the_region():
    # Beads of eight voxels, of which none is a body, around a ball
    x = grid(56, 56, 56)
    beads = np.all([np.indices((56, 56, 56))[k] % 4 < 2 for k in range(3)], axis=0)
    object_ = ball(x, 6, 0, 0, 0) | (beads & ball(x, 24, 0, 0, 0) & ~ball(x, 9, 0, 0, 0))
    region = region_of_interest(noisy(1.0 * object_, 60), (1, 1, 1))
    assert np.count_nonzero(region.roi_mask) < 0.2 * np.count_nonzero(object_)
    assert '% of its signal: look at it' in region.record['warnings'][0]


# --- mask without a shape --------------------------------------------------------------------


def test_mask_without_a_shape_is_the_region_as_it_is():
    x = grid(24, 24, 24)
    mask = ball(x, 8, 0, 0, 0)
    for magnitude in (np.ones(mask.shape), noisy(0.0 * mask, 20), noisy(ball(x, 6, 0, 0, 0), 20)):
        region = region_of_interest(magnitude, (1, 1, 1), mask, shape=False)
        np.testing.assert_array_equal(region.roi_mask, mask)
    with pytest.raises(ValueError, match='1 everywhere'):
        region_of_interest(np.ones(mask.shape), (1, 1, 1), mask)
    said = region_of_interest(np.ones(mask.shape), (1, 1, 1), mask, shape=False).record
    assert 'the region of interest is the mask as it is' in said['warnings'][0]
    with pytest.raises(ValueError, match='fewer than 27'):
        region_of_interest(np.ones(mask.shape), (1, 1, 1), ball(x, 1.5, 0, 0, 0), shape=False)


# --- maps ------------------------------------------------------------------------------------


def scan_of(body, field, size=(2.0, 2.0, 2.0), snr=100):
    signal = body[..., None] * np.exp(-20 * TE + 2j * np.pi * 127.729 * field[..., None] * TE)
    noise = np.random.default_rng(1).normal(0, 1 / snr, (2, *signal.shape))
    signal = signal + noise[0] + 1j * noise[1]
    return Scan(np.abs(signal), np.angle(signal), TE, 3.0, size, phase_units='rad', phase_sign=1)


def two_bottles():
    """Two balls of water in air, in each a smaller one of 0.3 ppm more."""
    inner = ((5, -14, 3, 0), (2.5, 20, 0, 0))
    field = sum(STEP * ball_field(BOTTLES, *b) for b in (LARGE, VIAL))
    field = field + sum(0.3 * ball_field(BOTTLES, *b) for b in inner)
    body = ball(BOTTLES, *LARGE) | ball(BOTTLES, *VIAL)
    return body, field, [ball(BOTTLES, *b) for b in inner]


def test_both_of_two_bottles_have_their_map():
    body, field, inner = two_bottles()
    # R2* shows the inner balls as well: 20 1/s more
    signal = np.where(inner[0] | inner[1], 0.9, 1.0) * body
    found = reconstruct(scan_of(signal, field), Method(conventional=False))
    assert found.measured.record['bodies'] == 2
    for ball_of_it, whole in zip(inner, (LARGE, VIAL), strict=True):
        around = found.region.roi_mask & ball(BOTTLES, *whole) & ~ball_of_it
        contrast = found.chi[ball_of_it].mean() - found.chi[around].mean()
        assert contrast == pytest.approx(0.3, abs=0.06)
        assert found.chi[around].std() < 0.06


@pytest.mark.parametrize('scale', [0.04, 10.0])
def test_size_in_the_header_does_not_change_the_map(scale):
    # The field of a scaled object is the same: of a mouse, and of ten times the size
    body, field, inner = two_bottles()
    signal = np.where(inner[0] | inner[1], 0.9, 1.0) * body
    method = Method(conventional=False)
    plain, scaled = (
        reconstruct(scan_of(signal, field, (2 * k, 2 * k, 2 * k)), method) for k in (1, scale)
    )
    assert plain.maps.prior.record['trust'] > 0
    np.testing.assert_array_equal(scaled.region.roi_mask, plain.region.roi_mask)
    inside = plain.region.roi_mask
    assert scaled.maps.prior.record['gains'] == plain.maps.prior.record['gains']
    # what rounding comes to in the fit
    assert np.std((scaled.chi - plain.chi)[inside]) < 0.01 * np.std(plain.chi[inside])
