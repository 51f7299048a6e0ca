"""The smooth phase offset against offsets that are known."""

import numpy as np
import pytest

from precondqsm_bids.numerics.echoes import sample
from precondqsm_bids.numerics.phase_offset import smooth_offset

SHAPE = (36, 32, 30)
X, Y, Z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing='ij')
MASK = X**2 + Y**2 + Z**2 < 1
QUARTIC = 0.4 + 0.8 * X - 0.5 * Y**2 + 0.4 * X * Z + 0.3 * X**2 * Y - 0.35 * Z**4
LOBED = 0.3 + 0.5 * np.cos(4 * X) * np.cos(3 * Y + 1)
DISTANCE = np.hypot(X + 0.03, Y - 0.05)
POLE = np.arctan2(Y - 0.05, X + 0.03)


def wrapped(angle):
    return np.angle(np.exp(1j * np.asarray(angle)))


def smooth(offset, sd=0.02, mask=MASK, size=(1, 1, 1), seed=0):
    """What is found in offsets with noise of ``sd``, and its error, rad, (V,)."""
    sd = np.broadcast_to(np.asarray(sd, np.float32), mask.shape)[mask].copy()
    noise = np.random.default_rng(seed).normal(0, 1, sd.size) * sd
    found = smooth_offset(wrapped(offset[mask] + noise).astype(np.float32), sd, mask, size)
    return found, wrapped(found.offset - offset[mask])


@pytest.mark.parametrize('scale', [1, 3])  # three: several turns over the object
def test_quartic_is_exact(scale):
    found, error = smooth(scale * QUARTIC, 1e-5)
    assert found.model == 'quartic'
    assert np.abs(error).max() < 2e-5
    assert found.misfit < 1e-5
    assert not found.own.any()


def test_quartic_of_a_slice():
    x, y = np.linspace(-1, 1, 40)[:, None, None], np.linspace(-1, 1, 36)[:, None]
    offset = 0.4 + 0.8 * x - 0.5 * y**2
    found, error = smooth(offset, 1e-5, np.ones(offset.shape, bool))
    assert found.model == 'quartic'
    assert np.abs(error).max() < 1e-4


def test_a_slice_that_no_quartic_describes_is_told():
    # A slice has no blocks of 8 x 8 x 8 voxels
    shape = (60, 56, 1)
    x = np.linspace(-1, 1, 60)[:, None, None]
    found, error = smooth(0.5 * np.cos(9 * x) + np.zeros(shape), mask=np.ones(shape, bool))
    assert found.model == 'spline'
    assert np.sqrt(np.mean(error**2)) < 0.03


def test_lobed_offset_is_a_spline():
    found, error = smooth(LOBED)
    assert found.model == 'spline'
    assert not found.own.any()
    assert np.sqrt(np.mean(error**2)) < 0.02
    assert np.abs(error).max() < 0.1
    # and better than the voxel's own where that is worse
    _, error = smooth(LOBED, 0.15)
    assert np.sqrt(np.mean(error**2)) < 0.05


def test_spline_is_right_away_from_a_pole_and_the_offset_its_own_at_it():
    found, error = smooth(POLE)
    away, core = DISTANCE[MASK] > 0.4, DISTANCE[MASK] < 0.08
    assert found.model == 'spline'
    assert not found.own[away].any()
    assert np.abs(error[away]).max() < 0.05
    assert found.own[core].mean() > 0.7
    assert np.abs(error[core]).max() < 0.15
    # An own offset is right but for its noise; elsewhere the stated error covers what is left
    assert np.std(error[found.own]) == pytest.approx(0.02, rel=0.2)
    assert np.mean(np.abs(error) < 3 * np.hypot(found.error, 0.02)) > 0.98
    assert not found.error[found.own].any()


@pytest.mark.parametrize('offset', [LOBED, POLE], ids=['lobed', 'pole'])
@pytest.mark.parametrize('scale', [0.04, 10])
def test_size_of_the_voxels_does_not_matter(offset, scale):
    size = np.array([1.0, 1.2, 1.5])
    plain, other = smooth(offset, size=size)[0], smooth(offset, size=scale * size)[0]
    np.testing.assert_allclose(wrapped(other.offset - plain.offset), 0, atol=1e-5)
    np.testing.assert_array_equal(other.own, plain.own)


@pytest.mark.parametrize('offset', [QUARTIC, LOBED], ids=['quartic', 'spline'])
def test_outliers_and_wraps_do_not_move_it(offset):
    plain = smooth(offset)[0]
    # A tube of wrong turns, and a twentieth of the voxels anywhere
    rng = np.random.default_rng(3)
    wrong = np.where(np.hypot(X - 0.3, Y) < 0.12, 2.5, 0)
    wrong = np.where(rng.random(SHAPE) < 0.05, rng.uniform(-3, 3, SHAPE), wrong)
    found, _ = smooth(offset + wrong)
    fine = (wrong[MASK] == 0) & ~found.own
    moved = np.abs(wrapped(found.offset - plain.offset))[fine]
    assert found.model == plain.model
    assert np.quantile(moved, 0.99) < 0.03


def test_voxels_that_are_noise_have_no_say():
    sd = np.where(Z > 0.2, 2.0, 0.02)
    found, error = smooth(QUARTIC, sd)
    assert np.abs(error[Z[MASK] < 0.2]).max() < 0.01
    found, error = smooth(LOBED, sd)
    assert np.all(np.isfinite(found.offset))
    assert np.abs(error[Z[MASK] < 0]).max() < 0.1


def test_few_voxels_are_left_alone():
    small = np.zeros(SHAPE, bool)
    small[10:19, 10:19, 10:22] = True
    found, _ = smooth(QUARTIC, mask=small)
    assert small.sum() < 1000
    assert found.model == 'voxelwise'
    assert found.own.all()
    assert found.misfit == 0


def test_an_offset_that_is_noise_is_left_free():
    rng = np.random.default_rng(5)
    found, _ = smooth(rng.uniform(-np.pi, np.pi, SHAPE))
    assert found.model == 'voxelwise'
    assert found.own.all()


@pytest.mark.parametrize('axes', [(2, 0, 1), (1, 0, 2)])
def test_storage_does_not_matter(axes):
    noisy = LOBED + np.random.default_rng(6).normal(0, 0.02, SHAPE)
    volumes = []
    for turn in (lambda v: v, lambda v: np.flip(v.transpose(axes), 1)):
        mask = turn(MASK)
        sd = np.full(mask.sum(), 0.02, np.float32)
        found = smooth_offset(wrapped(turn(noisy)[mask]).astype(np.float32), sd, mask)
        volumes.append(np.zeros(mask.shape))
        volumes[-1][mask] = found.offset
    back = np.flip(volumes[1], 1).transpose(np.argsort(axes))
    np.testing.assert_allclose(wrapped(back - volumes[0]), 0, atol=1e-5)


def test_sample_is_even_and_does_not_depend_on_storage():
    chosen = np.zeros(SHAPE, bool)
    chosen[MASK] = np.isin(np.arange(MASK.sum()), sample(MASK, 4000))
    assert chosen.sum() == pytest.approx(4000, rel=0.1)
    for part in (X > 0, Y > 0.3, Z < -0.2, X**2 + Y**2 + Z**2 < 0.5):
        assert chosen[part].sum() / chosen.sum() == pytest.approx(
            MASK[part].sum() / MASK.sum(), abs=0.03
        )
    mask = np.flip(MASK.transpose(2, 0, 1), (0, 1))
    again = np.zeros(mask.shape, bool)
    again[mask] = np.isin(np.arange(mask.sum()), sample(mask, 4000))
    np.testing.assert_array_equal(np.flip(again, (0, 1)).transpose(1, 2, 0), chosen)
    assert sample(MASK, 10**6).size == MASK.sum()
