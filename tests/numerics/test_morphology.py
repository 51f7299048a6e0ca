"""Erosion, dilation, balls, Gaussian means and medians against exact distances and SciPy."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from precondqsm_bids.numerics.morphology import (
    deeper,
    dilated,
    eroded,
    gaussian,
    gaussian_of_lines,
    interpolated,
    median_of_27,
    within,
)

SIZES = [(1.0, 1.0, 1.0), (1.0, 2.0, 0.7), (0.9, 1.3, 3.0)]
RADII = [0.5, 1.0, 2.0, 3.3, 6.0, 40.0]


def random_mask(shape=(21, 18, 13)):
    noise = np.random.default_rng(0).normal(size=shape)
    return ndimage.gaussian_filter(noise, 1.5) > 0.1


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('radius', RADII)
def test_balls_are_those_of_the_exact_distance(size, radius):
    mask = random_mask()
    outside = ndimage.distance_transform_edt(~mask, sampling=size)
    inside = ndimage.distance_transform_edt(mask, sampling=size)
    np.testing.assert_array_equal(within(mask, radius, size), outside <= radius)
    np.testing.assert_array_equal(deeper(mask, radius, size), inside > radius)


def test_ball_around_nothing_and_within_everything():
    nothing = np.zeros((5, 6, 7), bool)
    assert not within(nothing, 2.0, (1, 1, 1)).any()
    assert deeper(~nothing, 2.0, (1, 1, 1)).all()


@pytest.mark.parametrize('layers', [1, 2, 5])
@pytest.mark.parametrize('shape', [(21, 18, 13), (1, 9, 2)])
def test_layers_are_those_of_scipy(layers, shape):
    mask = random_mask(shape)
    grown = ndimage.binary_dilation(mask, iterations=layers)
    shrunk = ndimage.binary_erosion(mask, iterations=layers, border_value=1)
    np.testing.assert_array_equal(dilated(mask, layers), grown)
    np.testing.assert_array_equal(eroded(mask, layers), shrunk)


@pytest.mark.parametrize('sigma', [0.5, (3.0, 1.0, 2.0), 30.0])
def test_gaussian_is_that_of_scipy(sigma):
    volume = np.random.default_rng(0).random((21, 18, 13), np.float32)
    expected = ndimage.gaussian_filter(volume.astype(float), sigma, truncate=3)
    np.testing.assert_allclose(gaussian(volume, sigma, truncate=3), expected, atol=1e-6)


@pytest.mark.parametrize('workers', [1, 3])
@pytest.mark.parametrize('mode', ['reflect', 'constant'])
def test_gaussian_of_lines_is_that_of_scipy_to_the_last_bit(mode, workers):
    volume = np.random.default_rng(0).random((2, 18, 13), np.float32)
    expected = ndimage.gaussian_filter(volume, (1.5, 0.4, 2.0), mode=mode, truncate=3)
    found = gaussian_of_lines(volume, (1.5, 0.4, 2.0), workers, mode=mode, truncate=3)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('shape', [(21, 18, 13), (1, 9, 2), (4, 1, 1)])
def test_median_is_that_of_scipy(shape):
    rng = np.random.default_rng(0)
    for volume in (rng.normal(size=shape), rng.integers(0, 3, shape)):
        volume = volume.astype(np.float32)
        for workers in (1, 2):
            expected = ndimage.median_filter(volume, 3)
            np.testing.assert_array_equal(median_of_27(volume, workers), expected)


def test_median_of_every_sorted_cube_of_zeros_and_ones():
    heights = [
        h
        for h in itertools.product(range(4), repeat=9)
        if all(h[i] <= h[j] for i, j in zip(range(6), range(3, 9), strict=True))
        and all(h[i] <= h[i + 1] for i in (0, 1, 3, 4, 6, 7))
    ]
    assert len(heights) == 980
    ones = np.array([[k >= 3 - n for n in h for k in range(3)] for h in heights], np.float32)
    # Three voxels in a row have a cube as their neighbours: the one in the middle has all of it.
    for cube in ones:
        assert median_of_27(cube.reshape(3, 3, 3))[1, 1, 1] == np.median(cube)


def test_interpolation_is_that_of_scipy():
    volume = np.random.default_rng(0).random((5, 4, 3), np.float32)
    places = [np.linspace(-1, 5, 11), np.linspace(0.3, 2.9, 4), np.array([1.5])]
    points = np.stack(np.meshgrid(*places, indexing='ij'))
    expected = ndimage.map_coordinates(volume.astype(float), points, order=1, mode='nearest')
    np.testing.assert_allclose(interpolated(volume, places), expected, atol=1e-6)
