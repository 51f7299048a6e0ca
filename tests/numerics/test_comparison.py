"""Comparison of the arms: the second witness of the sign, and the verdict of each body."""

import nibabel as nb
import numpy as np
import pytest

from precondqsm_bids.interfaces.comparison import Comparison
from precondqsm_bids.numerics.comparison import compare, r2star_agreement
from precondqsm_bids.numerics.dipole import Geometry, forward_field
from precondqsm_bids.numerics.dipole_inversion import l2_inversion


@pytest.fixture
def tissue():
    """Rates and susceptibilities of a medium with few iron-rich and many myelin-rich voxels."""
    rng = np.random.default_rng(4)
    shape = (32, 32, 32)
    rate = 15 + rng.normal(0, 1, shape)
    chi = rng.normal(0, 0.005, shape)
    myelin = rng.random(shape) < 0.4
    rate[myelin] += 6
    chi[myelin] -= 0.04
    rate[13:19, 13:19, 13:19] = 45
    chi[13:19, 13:19, 13:19] = 0.15
    mask = np.zeros(shape, bool)
    mask[1:-1, 1:-1, 1:-1] = True
    rate[:3] = 200  # beside air
    return chi, rate, mask


def test_sign_of_the_strongest_not_of_the_many(tissue):
    chi, rate, mask = tissue
    assert np.corrcoef(chi[mask], rate[mask])[0, 1] < 0
    agreement = r2star_agreement(chi, rate, mask, (3, 3, 3))
    assert agreement > 0.4
    assert r2star_agreement(-chi, rate, mask, (3, 3, 3)) == pytest.approx(-agreement)
    assert r2star_agreement(5 * chi + 2, rate, mask, (3, 3, 3)) == pytest.approx(agreement)


def test_pairs_counted_one_by_one(tissue):
    chi, rate, mask = tissue
    everything = np.ones(mask.shape, bool)
    strong = rate >= np.quantile(rate, 0.99)
    pairs = np.sign(chi[strong][:, None] - chi[~strong])
    assert r2star_agreement(chi, rate, everything, (1, 1, 1)) == pytest.approx(pairs.mean())


def test_too_few_voxels_or_no_contrast(tissue):
    chi, rate, mask = tissue
    small = np.zeros_like(mask)
    small[8:17, 8:17, 8:17] = True
    assert r2star_agreement(chi, rate, small, (1, 1, 1)) is None  # of 729 voxels
    assert r2star_agreement(chi, np.ones_like(rate), np.ones_like(mask), (1, 1, 1)) is None


@pytest.mark.parametrize(
    'source, factor, warned',
    [
        ('convention', -1, True),
        ('vendor', -1, True),
        ('convention', 1, False),
        ('field of the shape', -1, False),
        ('given', -1, False),
    ],
)
def test_only_an_assumed_sign_is_doubted(tissue, tmp_path, source, factor, warned):
    chi, rate, mask = tissue

    def file(name, data):
        path = tmp_path / f'{name}.nii'
        nb.save(nb.Nifti1Image(data.astype(np.float32), np.diag([3.0, 3, 3, 1])), path)
        return str(path)

    field = np.random.default_rng(0).normal(size=chi.shape) * mask
    inputs = {
        'local_field': file('local', field / 2),
        'conventional_local_field': file('plain', field),
        'residual_chi': file('chi', factor * chi),
        'conventional_chi': file('conventional', factor * chi),
        'field_sd': file('sd', np.ones_like(field)),
        'mask': file('mask', mask),
    }
    fit = {'phase_sign_source': source, 'phase_sign': 1}
    result = Comparison(**inputs, r2star=file('rate', rate), echo_fit=fit).run(cwd=tmp_path)
    record = result.outputs.record
    assert factor * record['r2star_agreement'] > 0.4
    words = ' '.join(record['warnings'])
    assert ('state phase_sign -1' in words) == warned
    one_echo = Comparison(**inputs, echo_fit=fit).run(cwd=tmp_path).outputs.record
    assert (one_echo['r2star_agreement'], one_echo['warnings']) == (None, [])


def test_a_large_body_does_not_hide_that_the_prior_harms_a_small_one():
    rng = np.random.default_rng(2)
    mask = np.zeros((30, 14, 14), bool)
    mask[1:19, 1:13, 1:13] = mask[21:29, 3:11, 3:11] = True
    conventional, chi = rng.normal(size=(2, *mask.shape))
    local = 0.5 * conventional  # a quarter of the energy is left
    local[20:] = 1.5 * conventional[20:]
    sd = np.zeros(mask.shape)
    result = compare(local, chi, conventional, Geometry(mask, (1, 1, 1), (0, 0, 1)), sd)
    np.testing.assert_allclose(result.by_body, [0.75, -1.25], atol=1e-6)
    (warning,) = result.warnings
    assert 'body 2 of 2' in warning
    assert '2.25 times' in warning
    large, small = (np.sum(conventional[part][mask[part]] ** 2) for part in np.s_[:20, 20:])
    assert result.explained == pytest.approx((0.75 * large - 1.25 * small) / (large + small))
    only = mask & (np.arange(30)[:, None, None] < 20)
    alone = compare(local, chi, conventional, Geometry(only, (1, 1, 1), (0, 0, 1)), sd)
    assert alone.by_body == (alone.explained,)
    assert alone.warnings == ()


def test_scales_of_a_prior_that_is_right_and_of_a_residual_that_is_silenced():
    rng = np.random.default_rng(3)
    shape, view = (40, 40, 40), ((2.0, 2.0, 2.0), (0, 0, 1))
    index = np.indices(shape) - 19.5
    mask = (index**2).sum(0) < 15**2
    chi = 0.1 * ((index**2).sum(0) < 5**2) + 0.02 * np.sin(index[0])
    noise = 0.001 * rng.normal(size=shape)
    field = mask * (forward_field(chi, *view) + noise)
    sd, geometry = np.full(shape, 0.001), Geometry(mask, *view)
    found = l2_inversion(field, mask, *view, 0.1)
    same = compare(field, found.chi, field, geometry, sd, 0.1)
    assert len(same.by_scale) >= 4
    for scale in same.by_scale:  # no prior: the same map
        assert scale.preconditioned == pytest.approx(scale.conventional, abs=1e-4)
        assert 0.3 < scale.preconditioned <= 1
    assert [a.shortest / b.shortest for a, b in zip(same.by_scale, same.by_scale[1:], strict=False)
            ] == pytest.approx([2] * (len(same.by_scale) - 1))  # fmt: skip
    right = compare(mask * noise, 0 * chi, field, geometry, sd, 0.1)
    assert min(scale.preconditioned for scale in right.by_scale) > 0.9
    assert right.warnings == ()
    silenced = compare(field, 0 * chi, field, geometry, sd, 0.1)
    assert max(abs(scale.preconditioned) for scale in silenced.by_scale) < 0.01
    assert 'explains less of the local field' in ' '.join(silenced.warnings)


def test_background_that_is_left_where_the_field_has_next_to_nothing_is_no_silence():
    rng = np.random.default_rng(4)
    shape, view = (40, 40, 40), ((2.0, 2.0, 2.0), (0, 0, 1))
    index = np.indices(shape) - 19.5
    mask = (index**2).sum(0) < 15**2
    chi = 0.1 * np.sin(1.5 * index[0]) * np.sin(1.3 * index[1]) * mask
    noise = 1e-5 * rng.normal(size=shape)
    field = mask * (forward_field(chi, *view) + noise)
    sd, geometry = np.full(shape, 1e-5), Geometry(mask, *view)
    background = 5e-4 * index[2] / 15 * mask  # ppm
    assert np.std(background[mask]) < 0.03 * np.std(field[mask])
    found = compare(mask * noise + background, 0 * chi, field, geometry, sd, 0.01)
    assert found.explained > 0.99
    assert found.warnings == ()
    assert 2 <= len(found.by_scale) < 5


def test_voxels_whose_field_is_uncertain_do_not_hide_the_rest():
    """As beside air: some of the surface is wrong by more than its standard deviation."""
    rng = np.random.default_rng(5)
    shape, view = (40, 40, 40), ((2.0, 2.0, 2.0), (0, 0, 1))
    index = np.indices(shape) - 19.5
    mask = (index**2).sum(0) < 15**2
    chi = 0.2 * np.sin(index[0] / 2) * np.sin(index[1] / 3) * mask
    uncertain = mask & ((index**2).sum(0) >= 14**2) & (rng.random(shape) < 0.05)
    sd = np.where(uncertain, 0.5, 0.001)
    wrong = 1.2 * sd * uncertain * rng.choice([-1, 1], shape)
    noise = 0.001 * rng.normal(size=shape)
    field = mask * (forward_field(chi, *view) + noise) + wrong
    left = mask * noise + 1.5 * wrong  # the prior explains all but what is wrong, and adds to that
    found = compare(left, 0 * chi, field, Geometry(mask, *view), sd, 0.1)
    assert found.explained > 0.8
    assert found.warnings == ()
    assert len(found.by_scale) >= 3
