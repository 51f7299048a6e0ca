"""The fitted prior against the long way round, and what must not matter to it."""

import itertools

import numpy as np
import pytest
from scipy import fft, ndimage

from precondqsm_bids.numerics.background_removal import pdf
from precondqsm_bids.numerics.dipole import Geometry, cyclic_prism_kernel, forward_field
from precondqsm_bids.numerics.prior.basis import Basis, clusters, constant_parcels, whole_map
from precondqsm_bids.numerics.prior.contrast import Scale, bin_edges, contrast_cells
from precondqsm_bids.numerics.prior.errors import coefficient_errors
from precondqsm_bids.numerics.prior.fit import MODEL_ERROR, FitOptions, fit_prior
from precondqsm_bids.numerics.solver import noise_weights, solver_grid

B0_DIR = np.array([0.2, -0.3, 0.93]) / np.linalg.norm([0.2, -0.3, 0.93])
N, VOXEL_SIZE = 21, (1.0, 1.0, 1.2)
POINTS = np.stack(np.indices((N, N, N)), axis=-1) - (N - 1) / 2
MASK = np.sum((POINTS / [10, 9.5, 9]) ** 2, axis=-1) < 1
CENTRES = 5.0 * np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
TRUE = np.array([0.9, 1.2, -1.0, 1.5, 1.1, 0.6])
NOWHERE = np.full(MASK.shape, -1, np.int32)
REGION = np.cbrt(MASK.sum() * np.prod(VOXEL_SIZE))


def blobs():
    """Six blobs: their parcels and a prior of 0.5 ppm with some structure."""
    labels = NOWHERE.copy()
    for i, centre in enumerate(CENTRES):
        labels[np.linalg.norm(POINTS - centre, axis=-1) < 2.6] = i
    weight = np.where(labels >= 0, 0.5 + 0.03 * POINTS[..., 0], 0).astype(np.float32)
    return labels, weight


LABELS, WEIGHT = blobs()


def solver_field(chi, outside=None):
    """Field in the mask of sources on the solver's grid, by the kernel of its voxels."""
    grid = solver_grid(MASK)
    volume = grid.embed(chi * MASK).astype(float)
    if outside is not None:
        volume += np.where(grid.embed(MASK) > 0, 0, outside(grid.shape))
    kernel = cyclic_prism_kernel(grid.shape, VOXEL_SIZE, B0_DIR)
    field = fft.irfftn(fft.rfftn(volume) * kernel, s=grid.shape)
    return np.where(MASK, grid.extract(field, MASK.shape), 0)


def background(shape):
    """Strong sources around the region."""
    volume = np.zeros(shape)
    rng = np.random.default_rng(1)
    for _ in range(30):
        i, j, k = (rng.integers(3, n - 6) for n in shape)
        volume[i : i + 3, j : j + 3, k : k + 3] += rng.normal(0, 3)
    return volume


def measured(coefficients=TRUE, noise=0.002, seed=0):
    used = LABELS >= 0
    chi = np.zeros(MASK.shape)
    chi[used] = np.asarray(coefficients)[LABELS[used]] * WEIGHT[used]
    field = solver_field(chi, background)
    return field + noise * np.random.default_rng(seed).normal(size=field.shape) * MASK


GEOMETRY = Geometry(MASK, VOXEL_SIZE, B0_DIR)


def fit(field, bases, field_sd=None, shape_sd=None, **options):
    return fit_prior(field, bases, GEOMETRY, field_sd, shape_sd, FitOptions(**options))


@pytest.mark.slow
def test_coefficients_equal_the_long_way():
    # One projection of every basis map's field, then ordinary least squares
    field = measured(noise=0.01)
    sd = np.full(MASK.shape, 0.01)
    result = fit(
        field,
        [Basis(LABELS, WEIGHT, 1.0)],
        field_sd=sd,
        iterations=250,
        rounds=1,
        inner_size=0.1,
    )
    weights = noise_weights(sd, MASK)

    def project(f):
        local = pdf(f, MASK, VOXEL_SIZE, B0_DIR, weights, 250).local_field
        return local[MASK].astype(float)

    columns = [project(solver_field(np.where(j == LABELS, WEIGHT, 0))) for j in range(6)]
    longhand = np.linalg.lstsq(np.stack(columns, axis=1), project(field), rcond=None)[0]
    np.testing.assert_allclose(result.coefficients[0], longhand, rtol=0.01)
    np.testing.assert_allclose(longhand, TRUE, atol=0.1)


@pytest.mark.parametrize('iterations', [60, 120])
def test_coefficients_and_signs_at_the_iterations_that_are_used(iterations):
    result = fit(measured(), [Basis(LABELS, WEIGHT, 1.0)], iterations=iterations)
    np.testing.assert_allclose(result.coefficients[0], TRUE, atol=0.05)
    assert result.coefficients[0][2] < 0  # the diamagnetic one gets its sign from the field
    used = LABELS >= 0
    np.testing.assert_allclose(
        result.prior_chi[used], result.coefficients[0][LABELS[used]] * WEIGHT[used], rtol=1e-5
    )
    assert not result.prior_chi[~used].any()
    assert result.prior_chi.dtype == np.float32
    assert 0.9 < result.explained <= 1


def test_one_coefficient_for_all():
    used = LABELS >= 0
    chi = np.where(used, 0.8 * WEIGHT, 0)
    field = solver_field(chi, background)
    result = fit(field, [whole_map(WEIGHT, MASK)])
    assert result.coefficients[0][0] == pytest.approx(0.8, abs=0.02)
    # and the same number whatever the unit of the map
    scaled = fit(field, [whole_map(1e-3 * WEIGHT, MASK)])
    assert scaled.coefficients[0][0] == pytest.approx(1000 * result.coefficients[0][0], rel=0.05)


def test_background_alone_makes_no_prior():
    field = solver_field(np.zeros(MASK.shape), background)
    constants = constant_parcels(LABELS, MASK)
    result = fit(field, [constants], inner_size=0.1)
    assert np.sqrt(np.mean(result.prior_chi[MASK] ** 2)) < 0.1 * np.std(field[MASK])


def test_constants_of_the_blobs_relative_to_the_rest():
    chi = np.zeros(MASK.shape)
    values = np.array([0.3, -0.3, 0.1, 0.5, -0.1, 0.2])
    used = LABELS >= 0
    chi[used] = values[LABELS[used]]
    result = fit(solver_field(chi, background), [constant_parcels(LABELS, MASK)], iterations=120)
    found = result.coefficients[0]
    np.testing.assert_allclose(found[1:] - found[0], values, atol=0.05)


def test_parcel_without_a_map_stays_at_its_expectation():
    weight = WEIGHT.copy()
    weight[LABELS == 3] = 0
    field = measured(np.where(np.arange(6) == 3, 0, TRUE))
    result = fit(field, [Basis(LABELS, weight, 1.0)])
    assert result.coefficients[0][3] == 1
    np.testing.assert_allclose(np.delete(result.coefficients[0], 3), np.delete(TRUE, 3), atol=0.05)


def test_parcel_too_weak_for_the_noise_stays_near_its_expectation():
    # 1 ppb in eight voxels under 20 ppb of noise: least squares alone would give it +-10
    weight, labels = WEIGHT.copy(), LABELS.copy()
    labels[10:12, 10:12, 10:12] = 6
    weight[10:12, 10:12, 10:12] = 1e-3
    found = [
        fit(measured(noise=0.02, seed=seed), [Basis(labels, weight, 1.0)]).coefficients[0][6]
        for seed in range(3)
    ]
    np.testing.assert_allclose(found, 1, atol=0.5)


def test_wrapped_voxels_do_not_matter():
    field = measured()
    rng = np.random.default_rng(3)
    strongest = np.flatnonzero(LABELS == 3)
    field.ravel()[rng.choice(strongest, 5, replace=False)] += 2.5
    field.ravel()[rng.choice(np.flatnonzero(MASK), 5, replace=False)] -= 2.5
    robust = fit(field, [Basis(LABELS, WEIGHT, 1.0)])
    np.testing.assert_allclose(robust.coefficients[0], TRUE, atol=0.05)
    assert robust.down_weighted >= 8 / np.count_nonzero(MASK)
    plain = fit(field, [Basis(LABELS, WEIGHT, 1.0)], rounds=1)
    assert np.abs(plain.coefficients[0] - TRUE).max() > 0.06  # what they would do


def test_uncertain_voxels_get_little_say():
    field, sd = measured(), np.full(MASK.shape, 0.002)
    bad = (slice(9, 12), slice(9, 12), slice(9, 12))
    sd[bad] = 3
    clean = fit(field, [Basis(LABELS, WEIGHT, 1.0)], field_sd=sd, rounds=1)
    field[bad] += 3
    spoilt = fit(
        field, [Basis(LABELS, WEIGHT, 1.0)], field_sd=sd, rounds=1, inner_size=clean.inner_size
    )
    np.testing.assert_allclose(spoilt.coefficients[0], clean.coefficients[0], atol=0.02)


@pytest.mark.parametrize('order', list(itertools.permutations(range(3)))[::2])
def test_names_of_the_parcels_do_not_matter(order):
    new = np.array([*order, 3, 4, 5])
    labels = np.where(LABELS >= 0, new[np.clip(LABELS, 0, 5)], -1).astype(np.int32)
    plain = fit(measured(), [Basis(LABELS, WEIGHT, 1.0)])
    moved = fit(measured(), [Basis(labels, WEIGHT, 1.0)])
    np.testing.assert_allclose(moved.coefficients[0][new], plain.coefficients[0], atol=1e-4)
    np.testing.assert_allclose(moved.prior_chi, plain.prior_chi, atol=1e-4)


def test_any_integers_name_constants():
    plain = constant_parcels(LABELS, MASK)
    named = constant_parcels(1000 - 7 * LABELS.astype(np.int64), MASK)
    assert plain.parcels == named.parcels == 7
    a, b = (fit(measured(), [basis], inner_size=0.2).prior_chi for basis in (plain, named))
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_splitting_a_basis_in_two_changes_nothing():
    both = fit(measured(), [Basis(LABELS, WEIGHT, 1.0)], inner_size=0.2, iterations=200)
    low = np.where(LABELS < 3, LABELS, -1).astype(np.int32)
    high = np.where(LABELS >= 3, LABELS - 3, -1).astype(np.int32)
    parts = [Basis(part, np.where(part >= 0, WEIGHT, 0), 1.0) for part in (low, high)]
    split = fit(measured(), parts, inner_size=0.2, iterations=200)
    np.testing.assert_allclose(np.concatenate(split.coefficients), both.coefficients[0], rtol=0.01)


@pytest.mark.parametrize('axes', [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize('flips', [(0,), (1, 2)])
def test_storage_does_not_matter(axes, flips):
    field = measured()

    def move(volume):
        return np.ascontiguousarray(np.flip(volume.transpose(axes), flips))

    plain = fit(field, [Basis(LABELS, WEIGHT, 1.0)])
    b0_dir = B0_DIR[list(axes)].copy()
    b0_dir[list(flips)] *= -1
    moved = fit_prior(
        move(field),
        [Basis(move(LABELS), move(WEIGHT), 1.0)],
        Geometry(move(MASK), np.array(VOXEL_SIZE)[list(axes)], b0_dir),
    )
    np.testing.assert_allclose(moved.coefficients[0], plain.coefficients[0], atol=1e-3)


def test_far_too_many_iterations_do_not_diverge():
    result = fit(measured(), [Basis(LABELS, WEIGHT, 1.0)], iterations=600, inner_size=0.2)
    np.testing.assert_allclose(result.coefficients[0], TRUE, atol=0.2)


# --- bases ------------------------------------------------------------------------------------


def test_clusters_of_a_map():
    chi = np.where(LABELS >= 0, WEIGHT, 0)
    basis = clusters(chi, MASK)
    assert basis.parcels == 7
    assert basis.expected == 1
    for j in range(6):
        assert len(np.unique(basis.labels[j == LABELS])) == 1
    assert len({int(basis.labels[j == LABELS][0]) for j in range(6)}) == 6
    np.testing.assert_array_equal(basis.weight, np.where(MASK, chi, 0))
    assert np.all(basis.labels[~MASK] == -1)
    assert np.all(basis.labels[MASK] >= 0)


def test_clusters_survive_noise():
    rng = np.random.default_rng(0)
    chi = np.abs(np.where(LABELS >= 0, WEIGHT, 0) + rng.normal(0, 0.02, MASK.shape))
    assert clusters(chi, MASK).parcels == 7


def test_specks_are_no_clusters():
    chi = np.zeros(MASK.shape)
    chi[9:11, 9:11, 9:11] = 1
    assert clusters(chi, MASK).parcels == 1


def test_cells_share_their_bins():
    rng = np.random.default_rng(0)
    first, second = rng.gamma(2, 10, MASK.shape), rng.normal(size=MASK.shape)
    scales = [Scale(np.inf, (6, 3)), Scale(0.3, (2, 2)), Scale(0.22, (2, 2))]
    for scale, basis in zip(
        scales, contrast_cells([first, second], MASK, VOXEL_SIZE, scales), strict=True
    ):
        assert np.all(basis.labels[MASK] >= 0)
        assert np.all(basis.labels[~MASK] == -1)
        assert basis.expected == 0
        cells = {*basis.labels[MASK], *(i for o in basis.overlaps for i in o.labels)}
        assert cells == set(range(basis.lattice.cells if basis.lattice else basis.parcels))
        bins = [
            np.digitize(value, bin_edges(value[MASK], n))
            for value, n in zip((first, second), scale.bins, strict=True)
        ]
        assert max(b[MASK].max() for b in bins) < 6
        for label in range(0, len(cells), 3):
            cell = basis.labels == label
            if not cell.any():  # a corner that voxels only lean into
                continue
            assert all(np.ptp(b[cell]) == 0 for b in bins)
        own = len(set(basis.labels[MASK]))
        assert own == len(set(zip(*(b[MASK] for b in bins), strict=True)))


def partition(labels, mask):
    """The labelling without its names: for each voxel the first voxel of its cell."""
    _, first, inverse = np.unique(labels[mask], return_index=True, return_inverse=True)
    return first[inverse]


def test_unit_of_a_contrast_does_not_matter():
    value = np.random.default_rng(1).gamma(2, 10, MASK.shape)
    scales = [Scale(0.3, (4,))]
    plain = contrast_cells([value], MASK, VOXEL_SIZE, scales)[0].labels
    scaled = contrast_cells([4096 * value], MASK, VOXEL_SIZE, scales)[0].labels
    np.testing.assert_array_equal(partition(plain, MASK), partition(scaled, MASK))


@pytest.mark.parametrize('flips', [(0,), (1, 2)])
@pytest.mark.parametrize('axes', [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize('spacing', [4.0, 6.5])
def test_cells_do_not_depend_on_the_storage(flips, axes, spacing):
    # A symmetric object of odd size has voxels on the nodes themselves.
    value = np.random.default_rng(1).gamma(2, 10, MASK.shape)
    field, scales = measured(), [Scale(np.inf, (3,)), Scale(spacing / REGION, (2,))]

    def move(volume):
        return np.ascontiguousarray(np.flip(volume.transpose(axes), flips))

    def prior(moved):
        size, b0_dir = np.array(VOXEL_SIZE), B0_DIR.copy()
        if moved:
            size, b0_dir = size[list(axes)], b0_dir[list(axes)]
            b0_dir[list(flips)] *= -1
        f, m, c = (move(v) if moved else v for v in (field, MASK, value))
        cells = contrast_cells([c], m, size, scales)
        options = FitOptions(iterations=20, inner_size=0.1)
        return fit_prior(f, cells, Geometry(m, size, b0_dir), options=options).prior_chi

    np.testing.assert_allclose(prior(True), move(prior(False)), atol=1e-5)


def test_bins_hold_half_by_volume_and_half_by_value():
    # 99 % of the values in 0..1, a small strong object at 50: it must get bins of its own
    values = np.concatenate([np.linspace(0, 1, 9900), np.full(100, 50.0)])
    edges = bin_edges(values, 12)
    assert np.all(np.diff(edges) > 0)
    assert np.count_nonzero((edges > 1) & (edges < 50)) >= 3
    assert np.count_nonzero(edges < 1) >= 5


def test_constant_contrast_makes_one_bin():
    cells = contrast_cells([np.ones(MASK.shape)], MASK, VOXEL_SIZE, [Scale(np.inf, (8,))])
    assert cells[0].parcels == 1


# --- errors -----------------------------------------------------------------------------------


def test_errors():
    field = np.zeros(MASK.shape)
    with pytest.raises(ValueError, match='at least one basis'):
        fit(field, [])
    with pytest.raises(ValueError, match='mask is empty'):
        fit_prior(field, [whole_map(WEIGHT, MASK)], GEOMETRY._replace(mask=~MASK & MASK))
    with pytest.raises(ValueError, match='differ'):
        fit(field[1:], [whole_map(WEIGHT, MASK)])


# --- soft edges between cells -------------------------------------------------------------------


def spread(basis, coefficients, mask=MASK):
    """Map of a basis with these coefficients, entry by entry."""
    out = np.zeros(mask.shape)
    entries = [(v, basis.labels.flat[v], basis.weight.flat[v]) for v in np.flatnonzero(mask)]
    entries += [entry for overlap in basis.overlaps for entry in zip(*overlap, strict=True)]
    if basis.lattice is not None:
        nodes = np.zeros(basis.lattice.shape)
        nodes.flat[basis.lattice.used] = coefficients
    for voxel, label, share in entries:
        at = np.unravel_index(voxel, mask.shape)
        if label < 0:
            continue
        if basis.lattice is None:
            out[at] += coefficients[label] * share
            continue
        for corner in np.ndindex(2, 2, 2):
            hat, node = share, []
            for up, axis, i in zip(corner, basis.lattice.axes, at, strict=True):
                node.append(axis.lower[i] + up)
                hat *= axis.fraction[i] if up else 1 - axis.fraction[i]
            out[at] += nodes[(*node, label)] * hat
    return out


def random_cells(contrasts):
    scales = [Scale(np.inf, (6, 3)), Scale(0.3, (2, 2))]
    return contrast_cells(contrasts, MASK, VOXEL_SIZE, scales)


@pytest.fixture(scope='module')
def contrasts():
    rng = np.random.default_rng(3)
    return [rng.gamma(2, 10, MASK.shape), rng.normal(size=MASK.shape)]


def test_shares_of_a_voxel_sum_to_one(contrasts):
    for basis in random_cells(contrasts):
        total = spread(basis, np.ones(basis.parcels))
        np.testing.assert_allclose(total[MASK], 1, atol=1e-6)
        assert not total[~MASK].any()
        assert basis.labels.max() < 18
        # a voxel in the middle of a bin has that bin alone
        assert 0.3 < np.mean(basis.weight[MASK] < 1) < 0.95


def test_prior_is_continuous_in_the_contrasts():
    # Along a ramp of the contrast the prior goes from cell to cell without a jump
    ramp = np.broadcast_to(np.linspace(0, 1, N)[:, None, None], MASK.shape)
    everywhere = np.ones(MASK.shape, bool)
    fine = np.sort(np.random.default_rng(0).uniform(0, 1, MASK.size)).reshape(MASK.shape)
    basis = contrast_cells([fine], everywhere, VOXEL_SIZE, [Scale(np.inf, (4,))])[0]
    along = spread(basis, np.array([0.0, 1.0, 0.0, 1.0]), everywhere).ravel()
    assert np.abs(np.diff(along)).max() < 0.1
    assert (along.min(), along.max()) == (0, 1)
    hard = contrast_cells([ramp], everywhere, VOXEL_SIZE, [Scale(np.inf, (4,))])[0]
    assert hard.parcels == 4


def test_fitted_prior_is_what_its_coefficients_say(contrasts):
    bases = random_cells(contrasts)
    result = fit(measured(), bases, iterations=30)
    expected = sum(spread(b, c) for b, c in zip(bases, result.coefficients, strict=True))
    expected = np.where(MASK, expected - np.median(expected[MASK]), 0)
    np.testing.assert_allclose(result.prior_chi, expected, atol=1e-5)


def test_fit_minimises_what_it_says_it_does(contrasts):
    # Few unknowns, no background: against dense least squares over the columns of all cells
    basis = contrast_cells(contrasts, MASK, VOXEL_SIZE, [Scale(np.inf, (3, 2))])[0]
    true = np.array([0.2, -0.1, 0.4, 0.0, -0.3, 0.1])
    field = solver_field(spread(basis, true))
    result = fit(field, [basis], iterations=300, rounds=1, inner_size=10.0)
    left = result.coefficients[0] - true
    # a constant over the region is its surroundings' field: only differences are determined
    np.testing.assert_allclose(left, left.mean(), atol=0.02)


# --- sources of their own -------------------------------------------------------------------


def hidden_lesions():
    """Two lesions that no cell shows, the field with a background and noise, and the cells."""
    chi = np.zeros(MASK.shape)
    chi[12:14, 8:10, 9:11], chi[5:7, 10:12, 12:14] = 0.4, -0.3
    noise = 0.002 * np.random.default_rng(2).normal(size=chi.shape) * MASK
    field = solver_field(chi, background) + noise
    return chi, field, constant_parcels(np.floor(POINTS / 5).astype(int) @ [1, 100, 10000], MASK)


def test_what_no_parcel_describes_becomes_a_source_of_its_own():
    chi, field, cells = hidden_lesions()
    keywords = {'field_sd': np.full(MASK.shape, 0.002, np.float32), 'inner_size': 0.05}
    without = fit(field, [cells], **keywords)
    result = fit(field, [cells], free_voxels=True, **keywords)
    assert not without.free_chi.any()
    assert len(without.fractions) == 1
    for lesion in (chi > 0, chi < 0):
        true = chi[lesion].mean()
        assert without.prior_chi[lesion].mean() / true < 0.5
        assert result.prior_chi[lesion].mean() == pytest.approx(true, rel=0.15)
    assert np.mean(result.free_chi[MASK] != 0) < 0.05
    assert result.explained > without.explained
    assert sum(result.fractions) == pytest.approx(result.explained, rel=1e-4)
    assert result.fractions[1] > 0.5


def test_noise_alone_has_no_source_of_its_own():
    noise = 0.002 * np.random.default_rng(3).normal(size=MASK.shape) * MASK
    cells = hidden_lesions()[2]
    result = fit(noise, [cells], free_voxels=True, inner_size=0.05)
    assert np.abs(result.free_chi).max() < 1e-3


def test_a_field_that_is_explained_whole_leaves_no_source():
    result = fit(np.zeros(MASK.shape), [hidden_lesions()[2]], free_voxels=True, inner_size=0.05)
    assert not result.free_chi.any()


# --- the surface ----------------------------------------------------------------------------


def test_error_of_the_surface_is_found_and_kept_out_of_the_prior():
    # A patch of the outermost layer has 0.8 ppm too little: the shape's surface was misjudged
    inner = np.sum((POINTS / [8.5, 8, 7.5]) ** 2, axis=-1) < 1
    border = MASK & ~inner
    wrong = border & (POINTS[..., 0] > 4)
    field = solver_field(-0.8 * wrong)
    cells = constant_parcels(np.floor(POINTS / 5).astype(int) @ [1, 100, 10000], MASK)
    keywords = {'inner_size': 0.05, 'iterations': 120}
    without = fit(field, [cells], **keywords)
    result = fit(field, [cells], shape_sd=np.where(border, 0.9, 0), **keywords)
    assert not without.surface_chi.any()
    assert not result.surface_chi[~border].any()
    found = result.surface_chi[wrong].mean() - result.surface_chi[border & ~wrong].mean()
    assert found < -0.2  # sources just outside take up the rest, whose field is the same
    assert np.std(result.prior_chi[inner]) < 0.5 * np.std(without.prior_chi[inner])


# --- standard errors ------------------------------------------------------------------------


@pytest.mark.slow
def test_standard_errors_cover_the_truth():
    # 95 of 100 are due; the noise is all that varies
    sd = np.full(MASK.shape, 0.02)
    basis = whole_map(WEIGHT, MASK)
    clean = solver_field(0.8 * WEIGHT)
    scores = []
    for seed in range(40):
        field = clean + 0.02 * np.random.default_rng(seed).normal(size=MASK.shape) * MASK
        result = fit(field, [basis], field_sd=sd, inner_size=0.05, iterations=60)
        error = coefficient_errors(field, basis, result, GEOMETRY, sd, 4)
        scores.append((result.coefficients[0][0] - 0.8) / error[0])
    assert np.mean(np.abs(scores) < 1.96) >= 0.9
    assert np.std(scores) > 0.5  # and are no larger than they must be


def test_parcel_without_a_field_has_no_finite_error():
    basis = Basis(np.where(LABELS == 0, 0, NOWHERE), WEIGHT, 1.0)
    empty = basis._replace(labels=np.where(LABELS == 1, 1, basis.labels), weight=WEIGHT.copy())
    empty.weight[LABELS == 1] = 0
    field = measured()
    result = fit(field, [empty], iterations=30)
    errors = coefficient_errors(field, empty, result, GEOMETRY)
    assert np.isfinite(errors[0])
    assert np.isinf(errors[1])


def test_the_model_error_is_relative_to_the_expected_size():
    # A large one makes all voxels count alike, as they do without noise.
    field, keywords = measured(noise=0.02), {'field_sd': np.full(MASK.shape, 0.02), 'rounds': 2}
    keywords |= {'iterations': 6, 'inner_size': 0.1}
    basis = Basis(LABELS, WEIGHT, 1.0)
    results = [fit(field, [basis], **keywords, model_error=error) for error in (0.0, 0.5)]
    assert [result.model_error for result in results] == [0.0, 0.05]
    assert fit(field, [basis], **keywords).model_error == MODEL_ERROR * 0.1
    keywords['field_sd'] = np.where(LABELS == 0, 0.2, 0.02)
    plain, held = (fit(field, [basis], **keywords, model_error=error) for error in (0.0, 50.0))
    assert not np.allclose(plain.prior_chi, held.prior_chi)
    keywords['field_sd'] = None
    uniform = fit(field, [basis], **keywords)
    np.testing.assert_allclose(held.prior_chi, uniform.prior_chi, rtol=1e-3, atol=1e-4)


def test_standard_errors_are_those_of_the_jackknife_over_blocks():
    # Least squares again without each block, the fields being projected as a whole
    field, sd, edge = measured(noise=0.02), np.full(MASK.shape, 0.02), 4.0
    basis = Basis(LABELS, WEIGHT, 1.0)
    result = fit(field, [basis], field_sd=sd, iterations=10, rounds=1, inner_size=0.1)
    weights = noise_weights(sd, MASK, MODEL_ERROR * 0.1)

    def project(f):
        local = pdf(f, MASK, VOXEL_SIZE, B0_DIR, weights).local_field
        return (local * weights)[MASK].astype(float)

    columns = [project(solver_field(np.where(j == LABELS, WEIGHT, 0))) for j in range(6)]
    u, y = np.stack(columns, axis=1), project(field)
    best = np.linalg.lstsq(u, y, rcond=None)[0]
    index = np.stack(np.nonzero(MASK), axis=1) * VOXEL_SIZE // edge
    variance = np.zeros(6)
    for block in np.unique(index, axis=0):
        left = np.any(index != block, axis=1)
        variance += (np.linalg.lstsq(u[left], y[left], rcond=None)[0] - best) ** 2

    def errors(coefficients):
        found = result._replace(coefficients=(coefficients,))
        return coefficient_errors(field, basis, found, GEOMETRY, sd, edge)

    # PDF amplifies rounding: fields in double and in single precision differ by 6 % in this.
    np.testing.assert_allclose(errors(best), np.sqrt(variance), rtol=0.1)
    # a fit that stopped before it was there is at least as far off as that
    off = np.add(best, [0.3, 0, 0, 0, 0, 0])
    assert errors(off)[0] > 0.3


# --- voxels that are no cubes -----------------------------------------------------------------


@pytest.mark.parametrize('width', [0, 1, 2])
def test_coefficient_in_voxels_of_3_to_1(width):
    """The field of susceptibility on a grid of 1 mm, measured at the centres of 1 x 1 x 3 mm.

    The kernel of the continuous spectrum gave 0.75 to 0.87.
    """
    chi = np.random.default_rng(0).normal(size=(20, 20, 10))
    chi = ndimage.gaussian_filter(chi, (width, width, width / 3)) if width else chi
    field = forward_field(np.repeat(chi, 3, axis=2), (1, 1, 1), B0_DIR)[:, :, 1::3]
    mask = np.ones(chi.shape, bool)
    found = fit_prior(field, [whole_map(chi, mask)], Geometry(mask, (1, 1, 3), B0_DIR))
    assert found.coefficients[0] == pytest.approx(1, abs=1e-3)
    assert found.explained > 0.999
