"""Uncertainty: against errors that are known, and sources that are known to be or not to be."""

import numpy as np
import pytest
from scipy import ndimage

from precondqsm_bids.numerics import (
    Geometry,
    MapInputs,
    bodies,
    forward_field,
    map_uncertainty,
)
from precondqsm_bids.numerics.dipole_inversion import l2_inversion

SHAPE = (36, 40, 32)
NOISE = 1e-3
"""ppm"""


def ball():
    """An ellipsoid that fills most of the grid."""
    axes = [(np.arange(n) - (n - 1) / 2) / (n / 2 - 2) for n in SHAPE]
    return sum(a**2 for a in np.ix_(*axes)) < 1


def lacking(rng, mask, size=0.02, width=1.0):
    """What a prior may lack: smoothed noise, ppm."""
    values = ndimage.gaussian_filter(rng.normal(size=mask.shape), width)
    return (size * values / values.std() * mask).astype(np.float32)


def mapped(prior, chi, rng, mask=None, voxel_size=(1, 1, 1), b0_dir=(0, 0, 1), sd=NOISE):
    """A map by prior and inversion of a field that has no background, and what it is made of."""
    mask = ball() if mask is None else mask
    field_sd = np.broadcast_to(np.float32(sd), mask.shape)
    field = forward_field(chi - prior, voxel_size, b0_dir) + rng.normal(size=mask.shape) * field_sd
    field = (field * mask).astype(np.float32)
    found = l2_inversion(field, mask, voxel_size, b0_dir, rule='risk')
    given = MapInputs(field, field_sd, prior, found.chi, found.reg_weight)
    error = np.where(mask, prior + found.chi - chi, 0)
    error[mask] -= error[mask].mean()
    return given, Geometry(mask, voxel_size, b0_dir), error


@pytest.mark.parametrize(
    ('width', 'voxel_size', 'b0_dir'),
    [
        (0.6, (1, 1, 1), (0, 0, 1)),
        (1.2, (1, 1, 1), (0, 0, 1)),
        (1.0, (1, 1, 2), (0, 0, 1)),
        (1.0, (1, 1, 1), (0, 0.5, 0.866)),
    ],
)
def test_two_standard_deviations_hold_the_truth(width, voxel_size, b0_dir):
    """The prior's error is drawn here; the function sees its field alone."""
    rng = np.random.default_rng(int(10 * width))
    mask = ball()
    prior = lacking(rng, mask, 0.1, 3)
    chi = prior + lacking(rng, mask, 0.02, width)
    given, geometry, error = mapped(prior, chi, rng, mask, voxel_size, b0_dir)
    sd = map_uncertainty(given, geometry).chi_sd
    held = np.mean(np.abs(error[mask]) < 2 * sd[mask])
    assert 0.85 < held < 0.985
    assert not sd[~mask].any()


def test_means_of_regions_have_an_error_that_holds_the_truth():
    """Sixteen regions of eight sizes and six draws: nine of ten within two of their errors."""
    held = []
    mask, labels = ball(), np.zeros(SHAPE, int)
    places = np.random.default_rng(5).permutation(
        np.argwhere(ndimage.binary_erosion(mask, iterations=6))
    )
    distance = [np.sqrt(((np.indices(SHAPE).T - place) ** 2).sum(-1)).T for place in places[:16]]
    for i, (far, radius) in enumerate(
        zip(distance, np.tile(np.arange(1.5, 5.5, 0.5), 2), strict=True)
    ):
        labels[(far < radius) & (labels == 0)] = i + 1
    for seed in range(6):
        rng = np.random.default_rng(seed)
        prior = lacking(rng, mask, 0.1, 3)
        chi = prior + lacking(rng, mask, 0.02, 1.0)
        given, geometry, error = mapped(prior, chi, rng, mask)
        regions = map_uncertainty(given, geometry, labels, mask).regions
        for i, region in regions.items():
            held.append(abs(error[(labels == i) & mask].mean()) < 2 * region.error)
    assert len(held) > 80
    assert np.mean(held) >= 0.9


def test_error_is_larger_where_the_prior_lacks_more():
    rng = np.random.default_rng(0)
    mask = ball()
    half = np.arange(SHAPE[0])[:, None, None] < SHAPE[0] / 2
    chi = lacking(rng, mask) * np.where(half, 1, 0.1).astype(np.float32)
    given, geometry, error = mapped(0 * chi, chi, rng, mask)
    sd = map_uncertainty(given, geometry).chi_sd
    x = np.indices(SHAPE)[0]
    for here in (mask & (x < 14), mask & (x > 22)):
        found, true = np.sqrt(np.mean(sd[here] ** 2)), error[here].std()
        assert 0.6 < found / true < 1.6


def test_what_the_fit_of_the_prior_leaves_open_adds_to_every_value_and_to_the_means():
    rng = np.random.default_rng(0)
    mask = ball()
    given, geometry, _ = mapped(lacking(rng, mask, 0.1, 3), lacking(rng, mask), rng)
    labels = np.where(np.indices(SHAPE)[0] < 18, 1, 2) * mask
    labels[16:19, 18:21, 14:17] = 3
    without = map_uncertainty(given, geometry, labels, mask)
    spread = np.full(SHAPE, 0.02, np.float32)
    found = map_uncertainty(given._replace(prior_sd=spread), geometry, labels, mask)
    np.testing.assert_allclose(
        found.chi_sd[mask] ** 2, without.chi_sd[mask] ** 2 + 0.02**2, rtol=1e-4
    )
    added = {
        i: np.sqrt(found.regions[i].error ** 2 - without.regions[i].error ** 2) for i in (1, 3)
    }
    assert added[1] < 0.01  # many independent pieces
    assert added[3] == pytest.approx(0.02, rel=0.3)  # less than one


def blocks():
    """Three blocks: in prior and field, in the prior alone, in the field alone."""
    blocks = np.zeros((3, 40, 40, 40), np.float32)
    for block, start in zip(blocks, (4, 17, 30), strict=True):
        block[start : start + 6, start : start + 6, start : start + 6] = 0.1
    return blocks


def test_support_of_a_source_is_one_without_contrast_and_of_contrast_nothing_without_a_field():
    both, contrast, source = blocks()
    mask = np.ones(both.shape, bool)
    given, geometry, _ = mapped(both + contrast, both + source, np.random.default_rng(0), mask)
    labels = np.round(10 * both + 20 * contrast + 30 * source).astype(int)
    found = map_uncertainty(given, geometry, labels, mask)
    confirmed, denied, alone = (
        found.support[block > 0].mean() for block in (both, contrast, source)
    )
    assert denied < 0.3
    assert 0.6 < confirmed < 0.95
    assert alone > 0.95
    regions = found.regions
    assert regions[2].support < 0.3
    assert regions[2].words.startswith('value')
    assert regions[1].words == ''
    assert regions[3].support > 0.95


@pytest.mark.parametrize('prior_is_kept', [False, True])
def test_random_contrast_and_no_field_have_no_support(prior_is_kept):
    """The field is noise, whatever the contrast says, and whether the prior is dropped or not."""
    rng = np.random.default_rng(3)
    mask = ball()
    contrast = lacking(rng, mask, 0.05, 1.0)
    given, geometry, _ = mapped(contrast * prior_is_kept, 0 * contrast, rng, mask, sd=3e-3)
    found = map_uncertainty(given, geometry)
    assert np.median(found.support[mask]) < 0.2
    true = np.where(mask, given.prior_chi + given.residual_chi, 0)
    true[mask] -= true[mask].mean()
    assert np.mean(np.abs(true[mask]) < 2 * found.chi_sd[mask]) > 0.85


def test_pattern_that_the_field_does_not_have_is_the_priors():
    """A block of 0.1 ppm, right as a whole, printed with speckle that no field has."""
    rng = np.random.default_rng(0)
    chi = np.zeros((40, 40, 40), np.float32)
    chi[12:28, 12:28, 12:28] = 0.1
    speckle = (0.05 * rng.normal(size=chi.shape) * (chi > 0)).astype(np.float32)
    mask = np.ones(chi.shape, bool)
    smooth = lacking(rng, mask, 0.02, 3)
    labels = (chi > 0).astype(int)
    # High noise, which leaves the speckle to the prior, but not the block.
    given, geometry, _ = mapped(chi + speckle, chi + smooth, rng, mask, sd=1e-2)
    region = map_uncertainty(given, geometry, labels, mask).regions[1]
    assert region.support > 0.5
    assert region.pattern_support < 0.5
    assert region.words == 'pattern'


def test_where_nothing_was_inverted_sources_may_hide_in_the_noise():
    """Of white sources the field has the mean of D^2 over the cube of frequencies."""
    k = np.stack(np.meshgrid(*[(np.arange(48) + 0.5) / 48 - 0.5] * 3))
    passed = np.sqrt(np.mean((1 / 3 - k[2] ** 2 / (k**2).sum(0)) ** 2))
    mask = np.ones((24, 24, 24), bool)
    zero = np.zeros(mask.shape, np.float32)
    found = map_uncertainty(
        MapInputs(zero, zero + NOISE, zero, zero, None), Geometry(mask, (1, 1, 1), (0, 0, 1))
    )
    np.testing.assert_allclose(found.chi_sd.mean(), NOISE / passed, rtol=0.05)
    assert not found.support.any()


def test_unit_and_storage_do_not_matter():
    rng = np.random.default_rng(0)
    mask = ball()
    prior = lacking(rng, mask, 0.1, 2)
    given, geometry, _ = mapped(prior, prior + lacking(rng, mask), rng, mask)
    found = map_uncertainty(given, geometry)
    larger = given._replace(**{name: 10 * getattr(given, name) for name in MapInputs._fields[:4]})
    again = map_uncertainty(larger, geometry)
    np.testing.assert_allclose(again.chi_sd, 10 * found.chi_sd, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(again.support, found.support, atol=1e-3)
    flipped = given._replace(
        **{name: getattr(given, name)[::-1, :, ::-1] for name in MapInputs._fields[:4]}
    )
    turned = map_uncertainty(flipped, geometry._replace(mask=mask[::-1, :, ::-1]))
    np.testing.assert_allclose(turned.chi_sd[::-1, :, ::-1], found.chi_sd, rtol=0.02, atol=1e-5)
    assert not bodies(mask).max() > 1


def test_record_names_the_regions_of_the_prior():
    both, contrast, source = blocks()
    mask = np.ones(both.shape, bool)
    given, geometry, _ = mapped(both + contrast, both + source, np.random.default_rng(0), mask)
    labels = np.round(10 * both + 20 * contrast).astype(int)
    record = map_uncertainty(given, geometry, labels, mask).record(mask, {1: 'nucleus'})
    assert set(record['regions']) == {'1', '2'}
    assert record['regions']['1']['name'] == 'nucleus'
    assert list(record['of_prior']) == ['label-2']
    assert 0 < record['median_sd'] < 0.05
    assert 0 <= record['supported_fraction'] <= 1


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'prior_chi': np.zeros((2, 2, 2))}, r'prior_chi \(2, 2, 2\) and mask \(8, 8, 8\)'),
        ({'prior_sd': np.zeros((8, 8, 9))}, r'prior_sd \(8, 8, 9\) and mask'),
        ({}, 'the mask is empty'),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    image = np.zeros((8, 8, 8), np.float32)
    given = MapInputs(image, image, image, image, 0.1)._replace(**change)
    geometry = Geometry(np.full(image.shape, bool(change)), (1, 1, 1), (0, 0, 1))
    with pytest.raises(ValueError, match=message):
        map_uncertainty(given, geometry)


def test_negative_labels_are_refused():
    image, mask = np.zeros((8, 8, 8), np.float32), np.ones((8, 8, 8), bool)
    given, geometry = (
        MapInputs(image, image, image, image, 0.1),
        Geometry(mask, (1, 1, 1), (0, 0, 1)),
    )
    with pytest.raises(ValueError, match=r'labels has negative labels, such as -1 \(in 512'):
        map_uncertainty(given, geometry, -mask.astype(int))


def test_labels_of_another_shape_are_refused():
    image, mask = np.zeros((8, 8, 8), np.float32), np.ones((8, 8, 8), bool)
    geometry = Geometry(mask, (1, 1, 1), (0, 0, 1))
    with pytest.raises(ValueError, match=r'labels \(8, 8, 1\) and mask \(8, 8, 8\)'):
        map_uncertainty(MapInputs(*[image] * 4, 0.1), geometry, np.ones((8, 8, 1), int))
