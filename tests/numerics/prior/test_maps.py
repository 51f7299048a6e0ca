"""Priors of tissue, of given maps and of several at once: truth from another kernel."""

import numpy as np
import pytest
from scipy import fft, ndimage

from precondqsm_bids.numerics.dipole import Geometry
from precondqsm_bids.numerics.prior.basis import constant_parcels
from precondqsm_bids.numerics.prior.contrast import Scale, contrast_cells
from precondqsm_bids.numerics.prior.fit import FitOptions, fit_prior
from precondqsm_bids.numerics.prior.maps import map_by_tissue, map_scale, susceptibility_map
from precondqsm_bids.numerics.prior.tissue import tissue_parcels

SHAPE, VOXEL_SIZE, B0_DIR = (32, 32, 28), (1.0, 1.0, 1.2), np.array([0.0, 0.28, 0.96])
POINTS = np.stack(np.indices(SHAPE), axis=-1) - (np.array(SHAPE) - 1) / 2
RADIUS = np.linalg.norm(POINTS / [14, 13.5, 12], axis=-1)
MASK = RADIUS < 1
NAMES = ('GM', 'WM', 'CSF')
CHI = np.array([0.02, -0.03, 0.05, 0.0])
"""ppm of the classes, and of what has none."""


def classes():
    """A ventricle in white matter in grey matter, and a rim of none."""
    labels = np.zeros(SHAPE, np.int16)
    labels[RADIUS < 0.93] = 1
    labels[(RADIUS + 0.12 * np.sin(POINTS[..., 0] / 3)) < 0.7] = 2
    labels[np.linalg.norm((POINTS - [2, 0, 1]) / [4, 6, 5], axis=-1) < 1] = 3
    return labels


LABELS = classes()


def dipole_field(chi, factor=2):
    """Field by the k-space kernel of points on a grid twice as fine and three times as wide.

    Averaged over the voxels: neither the solver's kernel (voxel-integrated) nor its grid.
    """
    fine = chi.repeat(factor, 0).repeat(factor, 1).repeat(factor, 2)
    shape = tuple(fft.next_fast_len(3 * n, True) for n in fine.shape)
    k = [fft.fftfreq(n, size / factor) for n, size in zip(shape, VOXEL_SIZE, strict=True)]
    k[2] = np.abs(k[2][: shape[2] // 2 + 1])
    kx, ky, kz = np.meshgrid(*k, indexing='ij', sparse=True)
    # The component along B0 of the half spectrum needs the sign of kz, which is positive here.
    along = kx * B0_DIR[0] + ky * B0_DIR[1] + kz * B0_DIR[2]
    norm = kx**2 + ky**2 + kz**2
    norm[0, 0, 0] = 1
    kernel = 1 / 3 - along**2 / norm
    kernel[0, 0, 0] = 0
    field = fft.irfftn(fft.rfftn(fine, shape) * kernel, shape)[tuple(map(slice, fine.shape))]
    n0, n1, n2 = chi.shape
    return field.reshape(n0, factor, n1, factor, n2, factor).mean(axis=(1, 3, 5))


def measured(chi, noise=0.0005):
    """Its field, that of strong sources outside, and noise."""
    around = np.where((RADIUS > 1.2) & (POINTS[..., 1] > 9), 3.0, 0)
    field = dipole_field(chi * MASK + around)
    return field + noise * np.random.default_rng(0).normal(size=SHAPE)


def fit(field, bases, iterations=300):
    """To the end, where the classes' values are those of least squares."""
    return fit_prior(
        field, bases, Geometry(MASK, VOXEL_SIZE, B0_DIR), options=FitOptions(iterations)
    )


def relative(coefficients):
    """The fit does not tell a constant over the whole region: relative to the first class."""
    return np.asarray(coefficients) - coefficients[0]


@pytest.fixture(scope='module')
def tissue_fit():
    chi = CHI[LABELS - 1]
    return chi, fit(measured(chi), [tissue_parcels(LABELS, 3, MASK)])


def test_class_values_come_back_from_the_field(tissue_fit):
    _, result = tissue_fit
    np.testing.assert_allclose(relative(result.coefficients[0][:3]), relative(CHI[:3]), atol=0.006)
    assert result.fractions == pytest.approx((result.explained,), rel=1e-4)
    assert result.explained > 0.9


def test_a_class_of_few_voxels_has_its_value_when_the_iteration_stops():
    """Without its gain, a nucleus of 33 voxels in 7,000 stays near zero."""
    nucleus = np.linalg.norm(POINTS - [-6, 2, 0], axis=-1) < 2.1
    labels = np.where(nucleus, 4, LABELS)
    chi = np.where(labels == 4, 0.1, CHI[np.minimum(labels, 3) - 1])
    basis = tissue_parcels(labels, 4, MASK)
    assert basis.gain[3] == pytest.approx(np.sqrt(np.bincount(labels[MASK]).max() / nucleus.sum()))
    field = measured(chi)
    balanced = relative(fit(field, [basis], 90).coefficients[0])
    plain = relative(fit(field, [basis._replace(gain=None)], 90).coefficients[0])
    assert balanced[3] == pytest.approx(0.08, abs=0.015)
    assert abs(plain[3] - 0.08) > 2 * abs(balanced[3] - 0.08)


def test_shares_of_one_class_each_are_labels(tissue_fit):
    _, expected = tissue_fit
    one_hot = np.stack([c == LABELS for c in (1, 2, 3)], axis=-1).astype(np.float32)
    basis = tissue_parcels(one_hot, 3, MASK)
    assert basis.overlaps == ()
    result = fit(measured(CHI[LABELS - 1]), [basis])
    np.testing.assert_allclose(result.coefficients[0], expected.coefficients[0], atol=1e-6)


def test_partial_volumes_are_sums_over_the_classes():
    """``sum_c c_c p_c`` by a loop over the classes, for voxels that three share and that lack."""
    rng = np.random.default_rng(3)
    shares = rng.random((4, 5, 6, 3)).astype(np.float32) * 0.5
    mask = rng.random((4, 5, 6)) < 0.8
    basis = tissue_parcels(shares, 3, mask)
    coefficients = np.array([0.1, -0.2, 0.3, 0.7])
    result = np.where(mask, coefficients[basis.labels] * basis.weight, 0)
    for voxels, labels, weight in basis.overlaps:
        result.reshape(-1)[voxels] += coefficients[labels] * weight
    total = shares.sum(-1, keepdims=True)
    scaled = shares / np.maximum(total, 1)
    expected = scaled @ coefficients[:3] + 0.7 * np.clip(1 - total[..., 0], 0, None)
    np.testing.assert_allclose(result[mask], expected[mask], atol=0.02)
    assert not result[~mask].any()


def test_partial_volumes_give_class_values():
    shares = np.stack(
        [ndimage.gaussian_filter((c == LABELS).astype(np.float32), 0.8) for c in (1, 2, 3)], -1
    )
    chi = shares @ CHI[:3]
    result = fit(measured(chi), [tissue_parcels(shares, 3, MASK)])
    np.testing.assert_allclose(relative(result.coefficients[0][:3]), relative(CHI[:3]), atol=0.01)


def test_r2prime_gets_a_sign_in_each_class():
    """Myelin: R2' positive, susceptibility negative."""
    rng = np.random.default_rng(1)
    texture = 1 + 0.4 * ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.5) * 5
    size = np.where(LABELS > 0, 0.06 * texture, 0).astype(np.float32)
    factors = np.array([0.8, -0.7, 1.0])
    chi = np.where(LABELS > 0, factors[LABELS - 1], 0) * size
    tissue = tissue_parcels(LABELS, 3, MASK)
    result = fit(measured(chi), [map_by_tissue(tissue, size, MASK)])
    found = result.coefficients[0][:3] / map_scale(size, MASK)
    np.testing.assert_allclose(found - found[0], factors - factors[0], atol=0.15)
    assert found[1] < 0 < found[2]


def test_a_map_of_either_sign():
    chi = np.zeros(SHAPE)
    chi[9:14, 12:17, 12:17], chi[19:24, 12:17, 12:17] = 0.3, -0.4
    field = measured(chi)
    (scale,) = fit(field, [susceptibility_map(0.5 * chi, MASK)]).coefficients[0]
    assert scale == pytest.approx(2.0, abs=0.06)
    basis = susceptibility_map(np.abs(chi), MASK, 'clusters')  # as R2' has it, without a sign
    found = fit(field, [basis]).coefficients[0]
    np.testing.assert_allclose(found[1:], [1.0, -1.0], atol=0.05)
    with pytest.raises(ValueError, match="global or clusters, not 'none'"):
        susceptibility_map(chi, MASK, 'none')


def test_a_prior_that_the_field_does_not_support_goes_to_zero_and_has_no_share():
    chi = CHI[LABELS - 1]
    false = np.zeros(SHAPE)
    false[20:25, 8:13, 10:15] = 0.4
    result = fit(measured(chi), [tissue_parcels(LABELS, 3, MASK), susceptibility_map(false, MASK)])
    assert abs(result.coefficients[1][0]) < 0.05
    assert abs(result.fractions[1]) < 0.01 < 0.9 < result.fractions[0]
    np.testing.assert_allclose(relative(result.coefficients[0][:3]), relative(CHI[:3]), atol=0.01)


@pytest.mark.parametrize('centred', [True, False])
def test_shares_add_up_to_what_is_explained(centred):
    """As the definition has it: a basis's gain, over all orders, by the energies themselves."""
    chi = CHI[LABELS - 1] + np.where(RADIUS < 0.4, 0.02, 0)
    contrast = 20 + 100 * chi + np.random.default_rng(2).normal(size=SHAPE)
    bases = [
        *contrast_cells([contrast], MASK, VOXEL_SIZE)[:2],
        tissue_parcels(LABELS, 3, MASK),
    ]
    if not centred:
        bases.append(susceptibility_map(np.where(RADIUS < 0.4, 0.03, 0), MASK))
    result = fit(measured(chi), bases, iterations=30)
    assert sum(result.fractions) == pytest.approx(result.explained, abs=1e-4)
    assert min(result.fractions) > -0.05


def test_contrast_and_tissue_together_are_better_than_tissue_alone():
    """What differs within a class: tissue has one constant for it, the contrast shows it."""
    nucleus = np.linalg.norm((POINTS - [-6, 2, 0]) / [3, 3, 3], axis=-1) < 1
    chi = CHI[LABELS - 1] + 0.1 * nucleus
    rng = np.random.default_rng(4)
    r2star = 20 + 30 * nucleus + rng.normal(size=SHAPE)
    first = 100 + 10 * LABELS + rng.normal(size=SHAPE)
    tissue = tissue_parcels(LABELS, 3, MASK)
    cells = contrast_cells([r2star, first], MASK, VOXEL_SIZE)
    field = measured(chi)

    def error(bases):
        difference = (fit(field, bases).prior_chi - chi)[MASK]
        return difference.std() / chi[MASK].std()

    assert error([*cells, tissue]) < 0.8 * error([tissue])


@pytest.mark.parametrize(
    'tissue, count, message',
    [
        (np.ones((2, 2, 3), int), 1, r'tissue \(2, 2, 3\) and mask \(2, 2, 2\) differ'),
        (np.full((2, 2, 2), 4), 3, 'classes 4 to 4 are not among the 3'),
        (np.zeros((2, 2, 2), int), 3, 'tissue: no class has a voxel'),
        (np.zeros((2, 2, 2, 3)), 3, 'tissue: no class has a voxel'),
        (np.ones((2, 2, 2, 2)), 3, '2 maps of fractions for 3 classes'),
        (np.full((2, 2, 2, 3), np.nan), 3, 'tissue has 24 voxels that are not finite'),
        (np.full((2, 2, 2), 1.6), 3, 'classes that are no whole numbers'),
    ],
)
def test_tissue_that_cannot_be(tissue, count, message):
    with pytest.raises(ValueError, match=message):
        tissue_parcels(tissue, count, np.ones((2, 2, 2), bool))


def test_rest_is_a_class_of_its_own():
    basis = tissue_parcels(LABELS, 3, MASK)
    rest = MASK & (LABELS == 0)
    assert rest.any()
    assert set(basis.labels[rest]) == {3}
    assert basis.parcels == 4
    assert (basis.labels[~MASK] == -1).all()
    same = constant_parcels(np.where(LABELS > 0, LABELS - 1, 3), MASK)
    np.testing.assert_array_equal(basis.labels, same.labels)


def test_what_is_not_known_is_a_cell_of_its_own():
    values = np.linspace(1, 10, 1000).reshape(10, 10, 10)
    mask = np.ones(values.shape, bool)
    unknown = values > 8
    scale = [Scale(np.inf, (6,))]
    (whole,) = contrast_cells([np.where(unknown, np.nan, values)], mask, (1, 1, 1), scale)
    (without,) = contrast_cells([values], ~unknown, (1, 1, 1), scale)
    own = np.unique(whole.labels[unknown])
    assert own.size == 1
    assert not np.any(whole.labels[~unknown] == own)
    assert np.all(whole.weight[unknown] == 1)
    # the others have the cells that they would have alone
    np.testing.assert_array_equal(whole.labels[~unknown], without.labels[~unknown])
    assert whole.parcels == without.parcels + 1
