"""The bias field against coils that are not polynomials, on objects of known contrast."""

import sys

import numpy as np
import pytest

from precondqsm_bids.numerics import bias_field

SHAPE = (40, 36, 30)
SIGNAL = np.array([1.0, 0.7, 0.85, 0.4])
R2STAR = np.array([15.0, 22.0, 18.0, 40.0])
RNG = np.random.default_rng(3)


def blobs():
    """A ball of four tissues in patches of a few voxels, no two alike, and its mask."""
    position = [index - (n - 1) / 2 for index, n in zip(np.indices(SHAPE), SHAPE, strict=True)]
    mask = sum((x / (n / 2)) ** 2 for x, n in zip(position, SHAPE, strict=True)) < 1
    patches = np.random.default_rng(1).integers(0, 4, (10, 9, 6))
    tissue = patches.repeat(4, axis=0).repeat(4, axis=1).repeat(5, axis=2)
    return tissue, mask


TISSUE, MASK = blobs()


def loop_coil(radius=45.0):
    """Sensitivity on the axis of a loop above one corner, ``(1 + d^2 / R^2)^(-3/2)``."""
    distance = sum((index + 10.0) ** 2 for index in np.indices(SHAPE)) ** 0.5
    return (1 + (distance / radius) ** 2) ** -1.5


def measured(coil, snr=50.0):
    """Image and R2* of the object seen by a coil, with noise."""
    image = coil * SIGNAL[TISSUE] + RNG.normal(0, coil[MASK].mean() / snr, SHAPE)
    return image, R2STAR[TISSUE] + RNG.normal(0, 1.0, SHAPE)


def relative(field):
    """A field over its geometric mean in the mask."""
    return field[MASK] / np.exp(np.log(field[MASK]).mean())


def test_shading_of_a_loop_is_found():
    coil = loop_coil()
    truth = relative(coil)
    found = bias_field(*measured(coil), MASK)
    assert np.ptp(np.log(truth)) > 1.1
    assert np.std(np.log(found[MASK]) - np.log(truth)) < 0.01
    assert np.all(found[~MASK] == 1)
    assert np.log(found[MASK]).mean() == pytest.approx(0, abs=1e-4)


def test_tissues_keep_their_contrast():
    """Without a coil nothing is taken off, although the tissues' signals differ by half."""
    image, r2star = measured(np.ones(SHAPE), snr=1e3)
    assert np.abs(bias_field(image, r2star, MASK) - 1).max() < 0.02
    half = np.where(np.indices(SHAPE)[0] < SHAPE[0] / 2, 0, 3)  # all of one tissue on one side
    assert np.abs(bias_field(SIGNAL[half], R2STAR[half], MASK) - 1).max() < 1e-3


def test_without_r2star_what_is_smooth_is_taken_off_and_patches_stay():
    """A dome over the object: tissues of all places keep their contrast, in patches or not."""
    x = [(index - n / 2) / (n / 2) for index, n in zip(np.indices(SHAPE), SHAPE, strict=True)]
    dome = np.exp(0.4 * (x[0] ** 2 + x[1] ** 2) - 0.2 * x[2])
    image, _ = measured(dome, snr=1e3)
    found = bias_field(image, None, MASK)
    # Four tissues in 500 patches, whose logarithms vary by 0.35, are noise of nine coefficients.
    assert np.std(np.log(found[MASK]) - np.log(relative(dome))) < 0.12
    contrast = [np.median((image / found)[MASK & (i == TISSUE)]) for i in range(4)]
    np.testing.assert_allclose(contrast / contrast[0], SIGNAL, rtol=0.1)


def test_contrast_in_two_values_stays_in_two_values():
    """What lies in the middle is a polynomial of position too, by a little."""
    rod = np.where(np.hypot(*(np.indices(SHAPE)[:2] - 18)) < 4, 2.0, 1.0)
    np.testing.assert_array_equal(bias_field(rod, None, MASK), 1)


def test_what_r2star_does_not_show_has_little_weight():
    """A lesion of half the signal and of its surroundings' R2*."""
    coil = loop_coil()
    image, r2star = measured(coil)
    image[6:14, 14:22, 10:18] *= 0.5
    found = bias_field(image, r2star, MASK)
    assert np.std(np.log(found[MASK]) - np.log(relative(coil))) < 0.02


@pytest.mark.parametrize('turn', [np.flipud, lambda volume: volume.transpose(2, 0, 1)])
def test_storage_does_not_matter(turn):
    image, r2star = measured(loop_coil())
    there = bias_field(turn(image), turn(r2star), turn(MASK))
    np.testing.assert_allclose(there, turn(bias_field(image, r2star, MASK)), rtol=1e-4)


def test_a_large_region_is_thinned(monkeypatch):
    """A tenth of the voxels finds the coil that all of them find."""
    coil = loop_coil()
    echoes = measured(coil)
    module = sys.modules['precondqsm_bids.numerics.prior.bias_field']
    monkeypatch.setattr(module, 'MOST_VOXELS', np.count_nonzero(MASK) // 10)
    thinned = bias_field(*echoes, MASK)
    assert np.std(np.log(thinned[MASK]) - np.log(relative(coil))) < 0.015
    monkeypatch.undo()
    assert not np.array_equal(thinned, bias_field(*echoes, MASK))


def test_a_factor_is_no_shading():
    image, r2star = measured(loop_coil())
    found = bias_field(1e4 * image, r2star, MASK)
    np.testing.assert_allclose(found, bias_field(image, r2star, MASK), rtol=1e-5)


@pytest.mark.parametrize('shape', [(24, 24, 1), (1, 1, 1), (2, 1, 30)])
def test_thin_regions(shape):
    image = np.ones(shape) * np.linspace(1, 2, shape[2])
    found = bias_field(image, np.ones(shape), np.ones(shape, bool))
    assert np.all(np.isfinite(found))
    np.testing.assert_allclose(image / found, np.exp(np.log(image).mean()), rtol=0.01)


@pytest.mark.parametrize(
    ('image', 'r2star', 'mask', 'message'),
    [
        (np.ones((2, 2, 2)), np.ones((2, 2, 3)), np.ones((2, 2, 2), bool), 'differ'),
        (np.ones((2, 2, 2)), None, np.ones((2, 2, 3), bool), 'differ'),
        (np.ones((2, 2, 2)), np.ones((2, 2, 2)), np.zeros((2, 2, 2), bool), 'mask is empty'),
        (
            np.zeros((2, 2, 2)),
            np.ones((2, 2, 2)),
            np.ones((2, 2, 2), bool),
            'no positive value in the mask, where it is 0 to 0',
        ),
    ],
)
def test_errors(image, r2star, mask, message):
    with pytest.raises(ValueError, match=message):
        bias_field(image, r2star, mask)
