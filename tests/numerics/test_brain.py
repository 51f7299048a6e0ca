"""Brain against those of a simulated and of a real head, and objects that have none."""

import os
from functools import cache
from pathlib import Path

import nibabel as nb
import numpy as np
import pytest

from precondqsm_bids.numerics.brain import find_brain
from precondqsm_bids.numerics.shape_mask import region_of_interest, shape_mask
from precondqsm_bids.phantom.head import simulate_head
from precondqsm_bids.phantom.head_spec import HeadSpec, hard_head
from precondqsm_bids.phantom.scanner_spec import ALL, scanner

REAL = Path(os.environ.get('PRECONDQSM_REAL', Path(__file__).parents[2].parent / 'shared/real'))
X = np.indices((56, 56, 56)) - 27.5
RADIUS = np.linalg.norm(X, axis=0)
HEADS = {
    'ideal, 4 mm': HeadSpec(voxel_size=(4.0, 4.0, 4.0), echo_times=(0.004,)),
    'as scanned, 4 mm': HeadSpec(
        voxel_size=(4.0, 4.0, 4.0), echo_times=(0.004,), scanner=scanner(*ALL)
    ),
    'hard, 4 x 4 x 5 mm': hard_head(voxel_size=(4.0, 4.0, 5.0), echo_times=(0.004,)),
}


@cache
def head(name):
    """Magnitude, brain and voxel size of a simulated head."""
    phantom = simulate_head(HEADS[name])
    return phantom.magnitude[..., 0], phantom.brain_mask, phantom.spec.voxel_size


def real(name, file='raw/sub-01/anat/sub-01_echo-1_part-mag_MEGRE.nii.gz'):
    """An image of a real scan, and its voxel size."""
    if not (REAL / name).is_dir():
        pytest.skip(f'{REAL / name} is not there')
    image = nb.load(REAL / name / file)
    return image.get_fdata(dtype=np.float32), image.header.get_zooms()[:3]


def found(magnitude, voxel_size):
    return find_brain(
        magnitude, shape_mask(magnitude, voxel_size=voxel_size).shape_mask, voxel_size
    )


def dice(one, other):
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


def noisy(signal, noise_sd=0.03):
    noise = np.random.default_rng(0).normal(0, noise_sd, (2, *signal.shape))
    return np.hypot(signal + noise[0], noise[1])


@pytest.mark.slow
@pytest.mark.parametrize('name', HEADS)
def test_brain_of_the_simulated_head(name):
    magnitude, truth, size = head(name)
    brain = found(magnitude, size)
    assert dice(brain.mask, truth) > 0.93
    assert brain.certain
    assert brain.enclosed > 0.75


def test_brain_of_a_real_head():
    magnitude, size = real('head_siemens_3t')
    truth, _ = real('head_siemens_3t', 'brain.nii.gz')
    brain = found(magnitude, size)
    assert dice(brain.mask, truth > 0) > 0.9
    assert brain.certain


@pytest.mark.slow
def test_part_of_a_head():
    """Slabs, little signal, a coil on one side: its brain is found, or it stays whole."""
    magnitude, truth, size = head('ideal, 4 mm')
    for slab in (slice(15, 23), slice(22, 45)):
        assert dice(found(magnitude[..., slab], size).mask, truth[..., slab]) > 0.93
    for changed in (
        noisy(magnitude, 0.1),
        magnitude * np.exp(-2 * np.linspace(0, 1, magnitude.shape[1]))[:, None],
    ):
        brain = found(changed, size)
        assert not brain.certain or dice(brain.mask, truth) > 0.93


@pytest.mark.slow
def test_size_and_orientation_do_not_count():
    magnitude, _, size = head('ideal, 4 mm')
    mask = found(magnitude, size).mask
    shape = shape_mask(magnitude, voxel_size=size).shape_mask
    for factor in (0.04, 10):
        np.testing.assert_array_equal(
            find_brain(magnitude, shape, np.multiply(size, factor)).mask, mask
        )
    turned = find_brain(magnitude[::-1, ::-1].T, shape[::-1, ::-1].T, size[::-1]).mask
    np.testing.assert_array_equal(turned.T[::-1, ::-1], mask)


def bottle(x, y, radius):
    return (np.hypot(X[0] - x, X[1] - y) < radius) & (np.abs(X[2]) < 24)


def leg(x):
    """Muscle around a bone with marrow, fat around it."""
    radius = np.hypot(X[0] - x, X[1])
    layers = np.select([radius < 2.5, radius < 4.5, radius < 10, radius < 12], [1, 0, 0.7, 1])
    return layers * (np.abs(X[2]) < 27)


OBJECTS = {
    'ball': RADIUS < 20,
    'shaded ball': (RADIUS < 20) / (1 + (X[0] - 20) ** 2 / 900),
    'two bottles': bottle(-13, 0, 11) | bottle(13, 0, 11),
    'bottles that touch': bottle(-11, 0, 11.5) | bottle(11, 0, 11.5),
    'hollow bottle': bottle(0, 0, 24) & ~bottle(0, 0, 16),
    'seven bottles': np.logical_or.reduce(
        [bottle(17 * np.cos(a), 17 * np.sin(a), 7.5) for a in np.arange(6) * np.pi / 3]
        + [bottle(0, 0, 7.5)]
    ),
    'ball with a bubble': (RADIUS < 22) & (np.linalg.norm(X.T - (0, 0, 19), axis=-1).T > 7),
    'ball in a shell': (RADIUS < 19) | ((RADIUS > 22) & (RADIUS < 25)),
    'legs': leg(-13) + leg(13),
}


@pytest.mark.parametrize('name', OBJECTS)
def test_object_without_a_brain_stays_whole(name):
    magnitude = noisy(1.0 * OBJECTS[name])
    region = region_of_interest(magnitude, (3, 3, 3), 'auto')
    assert (region.record['mask'], region.record['brain']) == ('object', None)
    asked = region_of_interest(magnitude, (3, 3, 3), 'object')
    assert not [said for said in asked.record['warnings'] if 'whole head' in said]


def test_brain_whose_scalp_is_partly_seen_is_no_whole_head():
    """The brain is more than 0.7 of the object then."""
    gyri = 0.8 + 0.4 * np.sin(X / 3).prod(axis=0)
    brain = RADIUS < 22
    scalp = (RADIUS > 24.5) & (RADIUS < 26) & (X[2] > -8)
    magnitude = noisy(np.where(brain, gyri, 0.8 * scalp))
    whole = region_of_interest(magnitude, (3, 3, 3), 'object')
    assert any('whole head' in said for said in whole.record['warnings'])
    given = region_of_interest(magnitude, (3, 3, 3), brain)
    assert given.roi_mask.sum() > 0.7 * whole.shape_mask.sum()
    assert given.record['warnings'] == []


@pytest.mark.parametrize('name', ['round_phantom_3t', 'crop_brain_7t'])
def test_real_scan_without_a_head_stays_whole(name):
    magnitude, size = real(name)
    assert region_of_interest(magnitude, size, 'auto').record['mask'] == 'object'


@pytest.mark.slow
def test_region_of_a_head():
    magnitude, truth, size = head('ideal, 4 mm')
    region = region_of_interest(magnitude, size, 'auto')
    assert dice(region.roi_mask, truth) > 0.93
    assert region.record['mask'] == 'brain'
    assert region.record['brain']['enclosed'] > 0.75
    assert region.record['warnings'] == []
    assert region.inner
    whole = region_of_interest(magnitude, size)
    assert whole.roi_mask.sum() > 1.3 * truth.sum()
    # The fat of scalp and marrow is in it, and that is said; not of a brain that was given.
    (said,) = whole.record['warnings']
    assert said.startswith('the region of interest holds a whole head: the fat of scalp')
    everything = region_of_interest(magnitude, size, np.ones(truth.shape))
    assert said in everything.record['warnings']
    assert region_of_interest(magnitude, size, truth).record['warnings'] == []


def test_brain_that_was_asked_for():
    """Of what does not look like a head it is warned; where there is nothing it is refused."""
    region = region_of_interest(noisy(1.0 * (RADIUS < 20)), (3, 3, 3), 'brain')
    assert region.record['mask'] == 'brain'
    (said,) = region.record['warnings']
    assert said.startswith('the object does not look like a head: 0% of its border')
    sheets = 1.0 * ((RADIUS < 20) & (X[0] % 4 < 1))
    with pytest.raises(ValueError, match='no body of tissue'):
        find_brain(sheets, RADIUS < 20, (3, 3, 3))


def test_what_may_be_a_head_is_said():
    """A body that is enclosed on about half of its border."""
    shell = (RADIUS > 22) & (RADIUS < 25) & (X[2] > -1)
    core = (RADIUS < 19) * (1 + 0.15 * np.sin(X[0]) * np.sin(X[1]))
    region = region_of_interest(noisy(core + shell), (3, 3, 3), 'auto')
    (said,) = region.record['warnings']
    assert 'may be a head, and was not taken for one' in said
    assert 'ask for the brain if it is one' in said
    assert region.record['mask'] == 'object'
