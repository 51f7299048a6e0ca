"""Ringing against images whose k-space was cut off, and such whose was not."""

import numpy as np
import pytest

from precondqsm_bids.numerics import Scan, measure_field
from precondqsm_bids.numerics.ringing import MARGIN, SHIFTS, find_ringing, without_ringing

FINE, SIZE = 4, 48
NOISE = 0.005
TE = np.array([4e-3, 8e-3, 12e-3, 16e-3])


@pytest.fixture(scope='module')
def fine():
    """A ball in a ball, (rate in 1/s, signal), on a grid four times finer than the voxels."""
    x = np.indices((FINE * SIZE,) * 3, dtype=np.float32) - (FINE * SIZE / 2 + 1.3)
    radius = np.sqrt((x**2).sum(axis=0))
    signal = np.where(radius < 75, 1.0, 0.0) * np.where(radius < 40, 1.5, 1.0)
    return np.where(radius < 40, 40.0, 20.0).astype(np.float32), signal.astype(np.float32)


def cut_off(image, axes=(0, 1, 2)):
    """Magnitude of voxels of an image whose k-space was measured up to theirs."""
    return np.abs(cut_complex(image, axes))


def cut_complex(image, axes=(0, 1, 2)):
    """Voxels of an image whose k-space was measured up to theirs, their centres as of means."""
    frequency = np.arange(-SIZE // 2, SIZE // 2)
    for axis in axes:
        lines = np.fft.fftshift(np.fft.fft(np.moveaxis(image, axis, -1)), axes=-1)
        lines = lines[..., (FINE - 1) * SIZE // 2 : (FINE + 1) * SIZE // 2]
        lines = lines * np.exp(1j * np.pi * frequency * (FINE - 1) / (FINE * SIZE))
        image = np.moveaxis(np.fft.ifft(np.fft.ifftshift(lines, axes=-1)), -1, axis) / FINE
    return image


def means(image):
    """Means of an image over the voxels."""
    return image.reshape((SIZE, FINE) * 3).mean(axis=(1, 3, 5))


def echoes(fine, voxels, noise=NOISE):
    """Magnitudes of the object with the noise of one channel."""
    rate, signal = fine
    images = np.stack([voxels(signal * np.exp(-te * rate)) for te in TE], axis=-1)
    other = np.random.default_rng(0).normal(0, noise, (2, *images.shape))
    return np.hypot(images + other[0], other[1]).astype(np.float32)


@pytest.fixture(scope='module')
def cut(fine):
    return echoes(fine, cut_off)


@pytest.fixture(scope='module')
def inside(fine):
    """Voxels that the object fills."""
    return means(fine[1]) > 0.9


def test_images_whose_kspace_ends_ring(cut, inside):
    assert min(find_ringing(cut, inside).share) > 0.7


def test_means_over_voxels_do_not(fine, inside):
    assert find_ringing(echoes(fine, means), inside) is None


def test_smoothed_images_are_changed_little(cut, inside):
    smooth = np.fft.fftn(cut, axes=(0, 1, 2))
    for axis in range(3):
        k = np.fft.fftfreq(SIZE).reshape([-1 if i == axis else 1 for i in range(4)])
        smooth *= np.cos(np.pi * k) ** 2
    image = np.abs(np.fft.ifftn(smooth, axes=(0, 1, 2)))
    if found := find_ringing(image, inside):
        change = without_ringing(image[..., 0], found) - image[..., 0]
        assert np.std(change[inside]) < 0.01 < 0.5 * np.std(cut[..., 0] - image[..., 0])


def test_one_axis_alone(fine, inside):
    """An axis whose voxels are means, as those of slices nearly are, is left alone."""

    def along_two(image):
        thick = image.reshape(*image.shape[:2], SIZE, FINE).mean(axis=-1)
        return cut_off(thick, (0, 1))

    share = find_ringing(echoes(fine, along_two), inside).share
    assert min(share[:2]) > 0.7
    assert share[2] == 0


def test_less_of_it_is_left(fine, cut, inside):
    """Against the means over voxels, away from the edges, where there is nothing but ringing."""
    found = find_ringing(cut, inside)
    truth = means(fine[1] * np.exp(-TE[0] * fine[0]))
    levels = means(fine[1] ** 2) - means(fine[1]) ** 2
    flat = (levels < 1e-6) & inside
    before = cut[..., 0] - truth
    after = without_ringing(cut[..., 0], found) - truth[found.box]
    assert np.std(after[flat[found.box]]) < 0.6 * np.std(before[flat])


def test_ends_of_a_box_make_none(cut):
    """A region whose box is cut out of the image has what it has in the whole of it."""
    wide = np.pad(cut, ((20, 20), (0, 0), (0, 0), (0, 0)), mode='edge')
    mask = np.zeros(wide.shape[:3], bool)
    mask[SIZE // 2 + 12 : SIZE // 2 + 28] = True
    found = find_ringing(wide, mask)
    assert found.box[0] == slice(SIZE // 2 + 12 - MARGIN, SIZE // 2 + 28 + MARGIN)
    whole = find_ringing(wide, np.ones(mask.shape, bool))
    one, other = (without_ringing(wide[..., 0], each) for each in (found, whole))
    at = mask[found.box]
    assert np.std(one[at] - other[found.box][at]) < 0.6 * NOISE


def test_axes_may_be_stored_in_any_way(cut, inside):
    found = find_ringing(cut, inside)
    turned = np.transpose(cut, (2, 0, 1, 3))[::-1]
    other = find_ringing(turned, np.transpose(inside, (2, 0, 1))[::-1])
    image = without_ringing(turned[..., 0], other)
    back = np.transpose(image[::-1], (1, 2, 0))
    assert np.mean(np.abs(back - without_ringing(cut[..., 0], found)) > 1e-4) < 1e-3


def test_threads_change_nothing(cut, inside):
    one, two = (find_ringing(cut, inside, workers) for workers in (1, 2))
    for a, b in zip(one.places, two.places, strict=True):
        assert np.array_equal(a, b)
    assert np.array_equal(without_ringing(cut[..., 1], one), without_ringing(cut[..., 1], two, 2))


def test_few_planes_are_left_alone(cut, inside):
    thin = find_ringing(cut[:, :, 20:28], inside[:, :, 20:28])
    assert thin.share[2] == 0
    assert thin.places[2] is None


def test_voxels_stay_where_no_place_is_better():
    """A smooth image varies no less elsewhere: its own grid is kept in most of it."""
    x = np.indices((32, 32, 32))
    image = 2 + np.cos(2 * np.pi * x[0] / 32) * np.cos(2 * np.pi * x[1] / 32)
    assert find_ringing(image[..., None], np.ones(image.shape, bool)) is None
    assert max(abs(shift) for shift in SHIFTS) < 0.5


def test_rates_of_ringing_images_are_better(fine, cut, inside):
    """R2* and magnitude without it; the field is that of the measured signal."""
    phase = np.broadcast_to((0.3 + 2 * np.pi * 5 * TE).astype(np.float32), cut.shape)
    scan = Scan(cut, phase, TE, 3.0, phase_units='rad', phase_sign=1)
    found = measure_field(scan, inside)
    assert min(found.record['ringing']) > 0.7
    assert np.allclose(found.total_field[inside], 5 / 127.729, atol=1e-3)
    rate = means(fine[0])
    flat = inside & (means(fine[0] ** 2) - rate**2 < 1e-3)
    slope = -np.polyfit(TE, np.log(cut[flat]).T, 1, w=cut[flat].mean(0))[0]
    error = found.r2star[flat] - rate[flat]
    assert np.std(error) < 0.85 * np.std(slope - rate[flat])
    squares = np.sqrt((cut**2).sum(axis=-1))
    assert not np.allclose(found.magnitude[inside], squares[inside], rtol=1e-3)


def test_what_does_not_ring_is_not_touched(fine, inside):
    images = echoes(fine, means)
    phase = np.broadcast_to((2 * np.pi * 5 * TE).astype(np.float32), images.shape)
    found = measure_field(Scan(images, phase, TE, 3.0, phase_units='rad', phase_sign=1), inside)
    assert found.record['ringing'] is None
    assert np.array_equal(found.magnitude, np.sqrt(np.einsum('...e,...e', images, images)))


def test_deviation_of_the_field_holds_it(fine, inside):
    """Of an object whose phase varies, as by the coil and the field of its surroundings."""
    rate, signal = fine
    x = np.linspace(-1, 1, FINE * SIZE)[:, None, None]
    field = np.where(rate > 30, 0.05, 0.0) + 0.4 * x + 0.4 * x**2  # ppm
    signal = signal * np.exp(2j * x)
    images = np.stack(
        [cut_complex(signal * np.exp(te * (2j * np.pi * 127.729 * field - rate))) for te in TE],
        axis=-1,
    )
    noise = np.random.default_rng(0).normal(0, NOISE / 5, (2, *images.shape))
    images += noise[0] + 1j * noise[1]
    phase = np.angle(images).astype(np.float32)
    scan = Scan(np.abs(images), phase, TE, 3.0, phase_units='rad', phase_sign=1)
    found = measure_field(scan, inside)
    assert found.record['ringing'] is not None
    near = inside & (means(rate**2) - means(rate) ** 2 < 1e-3)
    error = (found.total_field - means(field))[near]
    z = np.abs(error - np.median(error)) / found.field_sd[near]
    assert 0.7 < 1.4826 * np.median(z) < 1.3
