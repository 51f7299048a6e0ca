"""The prior by hand, and by the theory it comes from."""

import numpy as np
import pytest

from precondqsm_bids.numerics.prior.r2prime import doubts_of_r2, r2prime_prior, relaxivity

BOX = np.ones((5, 6, 7), bool)


def test_relaxivity_of_the_theory():
    # Yablonskiy & Haacke 1994: R2' = 2 pi gamma B0 dchi / (9 sqrt(3)), 323.5 per s and ppm at 3 T
    assert relaxivity(3.0) == pytest.approx(323.5, abs=0.05)
    assert relaxivity(7.0) == pytest.approx(323.5 * 7 / 3, rel=2e-4)


@pytest.mark.parametrize('field_strength', [1.5, 3.0, 7.0])
@pytest.mark.parametrize('chi', [0.0, 0.02, 1.5])
def test_prior_undoes_the_theory(field_strength, chi):
    r2star = np.full(BOX.shape, 12.0)
    r2star[2, 3, 4] += 323.5 * field_strength / 3 * chi
    prior = r2prime_prior(r2star, BOX, field_strength, 12.0)
    assert prior.prior_chi[2, 3, 4] == pytest.approx(chi, rel=2e-4, abs=1e-6)
    assert prior.r2prime[2, 3, 4] == pytest.approx(323.5 * field_strength / 3 * chi, rel=2e-4)
    assert np.count_nonzero(prior.prior_chi) == (chi > 0)


def test_never_negative_and_zero_outside():
    r2star = np.random.default_rng(0).normal(20, 5, BOX.shape)
    mask = BOX.copy()
    mask[0] = False
    prior = r2prime_prior(r2star, mask, 3.0, 20.0)
    np.testing.assert_allclose(prior.r2prime, np.where(mask, np.clip(r2star - 20, 0, None), 0))
    assert prior.prior_chi.min() == 0
    assert prior.prior_chi.dtype == prior.r2prime.dtype == np.float32
    # the formula kept as it is, no scale in between
    np.testing.assert_allclose(prior.prior_chi, prior.r2prime / 323.5, rtol=2e-4)


def test_r2_from_the_median_of_the_trusted_voxels():
    r2star = np.full((10, 6, 7), 10.0)
    r2star[:4] = 400.0
    r2star[9] = 0.0
    mask = np.ones(r2star.shape, bool)
    mask[9] = False
    assert r2prime_prior(r2star, mask, 3.0).r2 == 10  # 4 planes against 5
    r2star[4] = 400.0  # 5 against 4, of which two are not trusted: 3 against 4
    reliable = mask.copy()
    reliable[:2] = False
    prior = r2prime_prior(r2star, mask, 3.0, reliable=reliable)
    assert prior.r2 == 10
    assert np.all(prior.prior_chi[:2] == 0)
    assert np.all(prior.r2prime[:2] == 0)
    assert prior.prior_chi[2, 0, 0] == pytest.approx(390 / 323.5, rel=1e-3)


def test_map_of_r2():
    r2 = np.random.default_rng(1).uniform(5, 15, BOX.shape)
    prior = r2prime_prior(r2 + 323.5 * 0.25, BOX, 3.0, r2)
    np.testing.assert_allclose(prior.prior_chi, 0.25, rtol=1e-3)
    assert prior.r2 == pytest.approx(np.median(r2))


@pytest.mark.parametrize('r2', [-1.0, np.nan, np.inf])
def test_impossible_r2(r2):
    with pytest.raises(ValueError, match='R2 must be finite and not negative'):
        r2prime_prior(np.full(BOX.shape, 10.0), BOX, 3.0, r2)


def test_empty_mask():
    with pytest.raises(ValueError, match='mask is empty'):
        r2prime_prior(np.full(BOX.shape, 10.0), ~BOX, 3.0)


@pytest.mark.parametrize('kind', ['number', 'map'])
def test_r2_above_r2star_is_doubted(kind):
    rng = np.random.default_rng(0)
    r2star = rng.normal(20, 2, BOX.shape)
    r2star[:1] = 200.0  # a source

    def doubts(rate):
        return doubts_of_r2(r2star, BOX, rate if kind == 'number' else np.full(BOX.shape, rate))

    assert doubts(20.0) == doubts(22.0) == doubts(0.0) == []  # the medium's, and a biased one
    (said,) = doubts(80.0)  # a T2 of 80 ms
    assert said.startswith('R2 exceeds R2* in 80% of the region')
    assert doubts_of_r2(r2star, BOX, None) == []
