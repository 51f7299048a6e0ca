"""Recombination is a sum and a difference."""

import numpy as np
import pytest

from precondqsm_bids.numerics.recombination import recombine

RNG = np.random.default_rng(0)
RESIDUAL, PRIOR = RNG.normal(0, 1, (2, 6, 7, 8))
MASK = RNG.random((6, 7, 8)) > 0.3
REGION = RNG.random((6, 7, 8)) > 0.7


def test_referenced_to_a_region():
    result = recombine(RESIDUAL, PRIOR, MASK, REGION)
    total = RESIDUAL + PRIOR
    value = total[REGION & MASK].mean()
    np.testing.assert_allclose(result.chi, np.where(MASK, total - value, 0), atol=1e-6)
    assert result.reference_value == pytest.approx(value, abs=1e-6)
    assert result.reference_sd == pytest.approx(total[REGION & MASK].std(), rel=1e-5)
    assert result.roi_mean == pytest.approx(total[MASK].mean(), abs=1e-6)
    assert result.roi_sd == pytest.approx(total[MASK].std(), rel=1e-5)
    assert result.chi[REGION & MASK].mean() == pytest.approx(0, abs=1e-6)
    assert result.chi.dtype == np.float32


def test_no_reference():
    result = recombine(RESIDUAL, PRIOR, MASK)
    np.testing.assert_allclose(result.chi[MASK], (RESIDUAL + PRIOR)[MASK], atol=1e-6)
    assert (result.reference_value, result.reference_sd) == (0, 0)


def test_conventional_arm_has_no_prior():
    np.testing.assert_allclose(
        recombine(RESIDUAL, None, MASK, MASK).chi,
        recombine(RESIDUAL, np.zeros_like(RESIDUAL), MASK, MASK).chi,
    )


def test_referencing_twice_is_referencing_once():
    once = recombine(RESIDUAL, PRIOR, MASK, REGION).chi
    np.testing.assert_allclose(recombine(once, None, MASK, REGION).chi, once, atol=1e-6)


def test_constant_of_the_inversion_does_not_matter():
    shifted = recombine(RESIDUAL + 5, PRIOR, MASK, MASK).chi
    np.testing.assert_allclose(shifted, recombine(RESIDUAL, PRIOR, MASK, MASK).chi, atol=3e-6)


def test_mean_of_many_voxels_is_not_lost_in_float32():
    residual = np.full((200, 200, 60), 0.1, np.float32)  # 2.4 million: a naive sum is 1e-3 off
    mask = np.ones(residual.shape, bool)
    assert recombine(residual, None, mask, mask).reference_value == pytest.approx(0.1, rel=1e-6)


def test_errors():
    with pytest.raises(ValueError, match='mask is empty'):
        recombine(RESIDUAL, PRIOR, np.zeros_like(MASK), MASK)
    with pytest.raises(ValueError, match='no voxel inside the region of interest'):
        recombine(RESIDUAL, PRIOR, MASK, ~MASK)
