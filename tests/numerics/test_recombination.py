"""Recombination is a sum and a difference."""

import numpy as np
import pytest

from precondqsm_bids.numerics.recombination import recombine, reference_region

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


# -- bodies that are not connected ---------------------------------------------------------------


def two_bodies():
    """Two blocks of which the smaller has a constant that nothing determines."""
    mask = np.zeros((24, 12, 12), bool)
    mask[1:13, 1:11, 1:11] = mask[15:23, 2:10, 2:10] = True
    chi = np.random.default_rng(5).normal(0, 0.1, mask.shape)
    number = np.zeros(mask.shape, int)
    number[1:13], number[15:23] = 1, 2
    return mask, chi, number * mask


def test_each_body_is_relative_to_its_own_mean():
    mask, chi, number = two_bodies()
    plain = recombine(chi, None, mask, mask)
    shifted = recombine(chi + 7.0 * (number == 2), None, mask, mask)
    np.testing.assert_allclose(shifted.chi, plain.chi, atol=3e-6)
    for i in (1, 2):
        assert shifted.chi[number == i].mean(dtype=float) == pytest.approx(0, abs=1e-6)
    first, second = shifted.bodies
    assert (first.voxels, second.voxels) == (1200, 512)
    assert (first.held, second.held) == (True, True)
    assert second.value == pytest.approx(7 + chi[number == 2].mean(), abs=1e-5)
    assert second.mean == second.value
    assert shifted.reference_value == first.value == pytest.approx(chi[number == 1].mean())


@pytest.mark.parametrize('holder', [1, 2])
def test_the_body_that_holds_the_label_gets_it(holder):
    mask, chi, number = two_bodies()
    label = np.zeros_like(mask)
    label[3:6, 3:9, 3:9] = holder == 1
    label[16:19, 3:9, 3:9] = holder == 2
    result = recombine(chi, None, mask, label)
    other = 3 - holder
    assert result.chi[label].mean(dtype=float) == pytest.approx(0, abs=1e-6)
    assert result.chi[number == other].mean(dtype=float) == pytest.approx(0, abs=1e-6)
    assert result.bodies[holder - 1].held
    assert not result.bodies[other - 1].held
    assert result.bodies[other - 1].sd == pytest.approx(chi[number == other].std(), rel=1e-5)
    assert result.reference_value == pytest.approx(chi[label].mean(), abs=1e-6)
    assert result.reference_sd == pytest.approx(chi[label].std(), rel=1e-5)


def test_a_voxel_that_a_segmentation_left_elsewhere_is_no_reference():
    mask, chi, number = two_bodies()
    label = np.zeros_like(mask)
    label[3:9, 3:9, 3:9] = label[18, 5, 5] = True
    chi[18, 5, 5] = 3
    second = recombine(chi, None, mask, label).bodies[1]
    assert not second.held
    assert second.value == pytest.approx(chi[number == 2].mean(), abs=1e-6)


def test_no_reference_subtracts_nothing_from_any_body():
    mask, chi, number = two_bodies()
    result = recombine(chi, None, mask)
    np.testing.assert_array_equal(result.chi, np.where(mask, chi, 0).astype(np.float32))
    assert [body.value for body in result.bodies] == [0, 0]
    assert result.bodies[1].mean == pytest.approx(chi[number == 2].mean(), abs=1e-6)


def test_one_body_has_the_bits_of_before():
    """As it was computed while bodies were not told apart."""
    chi = RESIDUAL.astype(np.float32) + PRIOR.astype(np.float32)
    for reference in (MASK, REGION):
        value = chi[reference & MASK].mean(dtype=np.float64)
        expected = np.where(MASK, chi - np.float32(value), 0).astype(np.float32)
        result = recombine(RESIDUAL, PRIOR, MASK, reference)
        np.testing.assert_array_equal(result.chi, expected)
        assert result.reference_value == float(value)
        assert result.reference_sd == float(chi[reference & MASK].std(dtype=np.float64))
        assert len(result.bodies) == 1


@pytest.mark.parametrize('which', ['residual_chi', 'prior_chi'])
def test_map_that_is_not_finite_or_of_another_shape_is_named(which):
    maps = {'residual_chi': RESIDUAL.copy(), 'prior_chi': PRIOR.copy()}
    maps[which][~MASK] = np.nan
    assert np.isfinite(recombine(**maps, mask=MASK).chi).all()
    maps[which][tuple(np.argwhere(MASK)[0])] = np.nan
    with pytest.raises(ValueError, match=f'{which} is not finite in 1 voxels'):
        recombine(**maps, mask=MASK)
    maps[which] = maps[which][..., None]  # numpy would spread it
    with pytest.raises(ValueError, match='differ in shape'):
        recombine(**maps, mask=MASK)


def test_a_label_outside_the_region_is_no_reference():
    labels = np.zeros((4, 4, 4), int)
    labels[0] = 7
    mask = np.arange(4)[:, None, None] > np.zeros((4, 4, 4))
    with pytest.raises(ValueError, match=r"label 'csf', .* no voxel .* \(16 in the image\)"):
        reference_region('csf', mask, labels, {7: 'csf'})
