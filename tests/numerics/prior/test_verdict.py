"""A prior counts as far as it explains more than the same prior turned."""

import itertools

import numpy as np
import pytest
from kernels import full_kernel
from scipy import fft, ndimage, sparse

from precondqsm_bids.numerics import constant_parcels, contrast_cells, whole_map
from precondqsm_bids.numerics.dipole import Geometry
from precondqsm_bids.numerics.prior import verdict
from precondqsm_bids.numerics.prior.estimate import PriorInputs, estimate_prior
from precondqsm_bids.numerics.prior.verdict import (
    COUNTED,
    DROPPED,
    _least_alike,
    _turns,
    judge_prior,
)

SHAPE, VOXEL_SIZE, B0_DIR = (32, 36, 30), (2.0, 2.0, 2.5), np.array([0.0, 0.3, 0.954])
X = np.stack(np.indices(SHAPE)) - (np.array(SHAPE)[:, None, None, None] - 1) / 2
MASK = (X[0] / 14) ** 2 + (X[1] / 16) ** 2 + (X[2] / 13) ** 2 < 1
GEOMETRY = Geometry(MASK, VOXEL_SIZE, B0_DIR)
SD = np.full(SHAPE, 0.001, np.float32)


def smooth(seed, width=2.0):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(SHAPE), width)
    return (noise / noise[MASK].std()).astype(np.float32)


def field_of(chi, seed=9):
    """Field by the continuous kernel on a grid twice as long, with noise."""
    double = tuple(2 * n for n in SHAPE)
    spectrum = fft.fftn(np.where(MASK, chi, 0), double) * full_kernel(double, VOXEL_SIZE, B0_DIR)
    field = fft.ifftn(spectrum).real[tuple(slice(n) for n in SHAPE)]
    noise = np.random.default_rng(seed).normal(0, 0.001, SHAPE)
    return (MASK * (field + noise)).astype(np.float32)


def judged(field, contrast):
    return judge_prior(field, contrast_cells([contrast], MASK, VOXEL_SIZE), GEOMETRY, SD)


def test_contrast_that_knows_counts_and_contrast_that_does_not_is_dropped():
    structure = smooth(1)
    field = field_of(0.05 * np.tanh(structure))
    knows = judged(field, structure)
    assert knows.trust == 1
    assert knows.gains[0] > 0.9
    assert knows.warnings == ()
    # By chance one of many, on so few voxels, is like the truth and counts for a part.
    verdicts = [judged(field, smooth(seed)) for seed in range(2, 10)]
    assert max(verdict.trust for verdict in verdicts) < 0.5
    dropped = [verdict for verdict in verdicts if verdict.trust == 0]
    assert len(dropped) >= 7
    for nothing in dropped:
        assert nothing.explained - nothing.null < DROPPED
        (warning,) = nothing.warnings
        assert 'is dropped' in warning
        assert nothing.turns[0] in warning


def test_trust_is_continuous_in_what_contrast_knows():
    structure, other = smooth(1), smooth(3)
    beyond, trust = [], []
    for part in (0.0, 0.3, 0.5, 1.0):
        chi = 0.05 * (part * structure + np.sqrt(1 - part**2) * other)
        verdict = judged(field_of(chi), structure)
        beyond.append(verdict.explained - verdict.null)
        trust.append(verdict.trust)
    assert beyond == sorted(beyond)
    slope = np.clip((np.array(beyond) - DROPPED) / (COUNTED - DROPPED), 0, 1)
    np.testing.assert_allclose(trust, slope)
    assert trust[0] < 0.1
    assert trust[-1] == 1


def test_cells_in_windows_grow_where_contrast_means_another_thing_elsewhere(monkeypatch):
    """The relaxivity even turns its sign along x; without, the sizes stay as they are."""
    structure = np.tanh(smooth(1))

    def found(change):
        chi = 0.05 * structure * (1 + change * np.sin(2 * np.pi * X[0] / SHAPE[0]))
        inputs = PriorInputs(field_of(chi), SD, magnitude=np.exp(structure))
        estimate = estimate_prior(inputs, GEOMETRY, ['contrast'])
        error = np.std((estimate.prior_chi - chi)[MASK]) / np.std(chi[MASK])
        return np.array(estimate.record['gains'][1:]), error

    same, _ = found(0.0)
    assert same.max() < 1
    grown, error = found(1.5)
    monkeypatch.setattr(verdict, 'GROWN', np.inf)
    kept, before = found(1.5)
    factor = grown[kept > 0] / kept[kept > 0]
    assert 1.3 < factor[0] <= verdict.LARGER
    np.testing.assert_allclose(factor, factor[0])
    assert error < 0.96 * before


def test_a_prior_that_is_doubted_gets_no_larger_cells(monkeypatch):
    monkeypatch.setattr(verdict, 'LEAST_MORE', -1.0)
    monkeypatch.setattr(verdict, 'GROWN', 1e-9)
    structure, other = smooth(1), smooth(3)
    found = judged(field_of(0.05 * (0.2 * structure + other)), structure)
    assert found.beyond_null < COUNTED
    assert max(found.gains) <= 1


def test_a_dropped_prior_leaves_no_susceptibility():
    field = field_of(0.05 * smooth(1))
    noise = np.random.default_rng(2).uniform(1, 2, SHAPE)
    inputs = PriorInputs(field, SD, magnitude=noise, inner=True)
    found = estimate_prior(inputs, GEOMETRY)
    assert found.record['trust'] == 0
    assert not found.prior_chi.any()
    assert 'is dropped' in ' '.join(found.record['warnings'])


def test_maps_and_parcels_are_judged_too():
    chi = 0.05 * smooth(1)
    field = field_of(chi)
    assert judge_prior(field, [whole_map(chi, MASK)], GEOMETRY, SD).trust == 1
    assert judge_prior(field, [constant_parcels(chi > 0.02, MASK)], GEOMETRY, SD).trust == 1
    assert judge_prior(field, [whole_map(0.05 * smooth(4), MASK)], GEOMETRY, SD).trust == 0


def test_cells_that_are_turned_onto_each_other_are_no_null():
    # Eight vials that every mirror maps onto each other: the values are unlike, the cells alike.
    sides = [(slice(n // 2 - 6, n // 2 - 2), slice(n // 2 + 2, n // 2 + 6)) for n in SHAPE]
    cells = np.zeros(SHAPE, int)
    for number, place in enumerate(itertools.product(*sides), 1):
        cells[place] = number
    values = np.array([0, 0.2, 0.3, 0.25, 0.35, 0.3, 0.2, -0.25, -0.3])
    verdict = judge_prior(field_of(values[cells]), [constant_parcels(cells, MASK)], GEOMETRY, SD)
    assert verdict.trust == 1
    assert verdict.explained > 0.95
    assert not any(name.startswith('mirror') for name in verdict.turns)


def test_each_turn_is_what_it_says():
    cube = np.zeros((7, 6, 5), bool)
    cube[1:7, 1:5, 1:4] = True
    places = np.stack(np.nonzero(cube), axis=1)
    turned = dict(_turns(cube))
    np.testing.assert_array_equal(places[turned['mirror x']][:, 0], 7 - places[:, 0])
    np.testing.assert_array_equal(places[turned['mirror yz']][:, 1:], [5, 4] - places[:, 1:])
    np.testing.assert_array_equal(places[turned['shift y']][:, 1], 1 + (places[:, 1] + 1) % 4)
    for source in turned.values():
        assert sorted(source) == list(range(len(places)))


@pytest.mark.parametrize('name', ['mirror z', 'shift x'])
def test_a_voxel_that_is_turned_out_of_the_region_takes_the_nearest(name):
    mask = MASK & (X[0] + X[2] < 8)
    source = dict(_turns(mask))[name]
    assert source.size == np.count_nonzero(mask)
    assert source.min() >= 0


def test_empty_slices_change_nothing():
    """Blocks of the verdict and windows of the cells stand in the region, not in the image."""
    structure = smooth(1)
    inputs = PriorInputs(field_of(0.05 * np.tanh(structure)), SD, magnitude=np.exp(structure))
    alone = estimate_prior(inputs, GEOMETRY, ['contrast'])
    more = ((1, 4), (2, 0), (3, 5))
    images = {
        name: np.pad(image, more)
        for name, image in inputs._asdict().items()
        if isinstance(image, np.ndarray)
    }
    geometry = GEOMETRY._replace(mask=np.pad(MASK, more))
    found = estimate_prior(PriorInputs(**images), geometry, ['contrast'])
    assert found.record['gains'] == pytest.approx(alone.record['gains'], abs=1e-5)
    for name in ('prior_chi', 'prior_sd', 'prior_labels'):
        there, here = getattr(found, name), np.pad(getattr(alone, name), more)
        np.testing.assert_allclose(there, here, atol=1e-5)


def test_a_region_of_which_no_block_is_half_full_is_judged():
    # Rods of one voxel, every second one along two axes: two of the eight voxels of each block.
    x = np.indices((68, 66, 64))
    mask = (x[0] % 2 == 0) & (x[1] % 2 == 0)
    noise = np.random.default_rng(1).normal(0, 0.001, mask.shape)
    geometry = Geometry(mask, (1, 1, 1), (0, 0, 1))
    basis = constant_parcels(x[0] > 40, mask)
    verdict = judge_prior(noise, [basis], geometry, np.full(mask.shape, 0.001))
    assert verdict.trust < 0.5
    assert verdict.coarse_chi.shape == (34, 33, 32)


def test_images_of_another_matrix_are_refused():
    larger = np.zeros([n + 2 for n in SHAPE])
    inputs = PriorInputs(0 * SD, SD, magnitude=larger)
    with pytest.raises(ValueError, match='differ in shape'):
        estimate_prior(inputs, GEOMETRY, ['contrast'])


@pytest.mark.parametrize('seed', range(6))
def test_rounding_does_not_choose_among_turns_that_are_equally_unlike(seed):
    # The same along all three axes: each of the shifts is as unlike it as the others.
    x = np.stack(np.indices((24, 24, 24))) - 11.5
    ball = (x**2).sum(axis=0) < 100
    prior = np.cos(x / 3).sum(axis=0)[ball]
    rounding = 1e-7 * np.random.default_rng(seed).standard_normal(prior.size)
    cells = [sparse.csr_array(prior[:, None])]
    names = [[turn[0] for turn in _least_alike(p, cells, ball)] for p in (prior, prior + rounding)]
    assert names[0] == names[1] != []


def test_strain_of_a_turned_prior_does_not_mute_a_core_along_b0():
    # Few cells with strong fields: turned, their parts are as large as the prior's own.
    x = np.stack(np.indices((46, 46, 60))) - np.array([22.5, 22.5, 29.5])[:, None, None, None]
    cylinder = (x[0] ** 2 + x[1] ** 2 < 19**2) & (abs(x[2]) < 26)
    core = cylinder & (x[0] ** 2 + x[1] ** 2 < 100)
    double = tuple(2 * n for n in core.shape)
    spectrum = fft.fftn(0.3 * core, double) * full_kernel(double, (2, 2, 2), (0, 0, 1))
    field = fft.ifftn(spectrum).real[tuple(slice(n) for n in core.shape)]
    rng = np.random.default_rng(0)
    field = (field + rng.normal(0, 1e-3, core.shape)) * cylinder
    r2star = 10 + 97 * core + rng.normal(0, 1, core.shape)
    sd = np.full(core.shape, 1e-3, np.float32)
    inputs = PriorInputs(field, sd, r2star=r2star, magnitude=np.exp(-4e-3 * r2star))
    geometry = Geometry(cylinder, (2, 2, 2), (0, 0, 1))
    found = estimate_prior(inputs, geometry, free_voxels=True)
    medium = cylinder & ~core
    step = found.prior_chi[core].mean() - found.prior_chi[medium].mean()
    assert found.record['trust'] == 1
    assert 0.25 < step < 0.33
    shift = found.tissue_shift[core].mean() - found.tissue_shift[medium].mean()
    assert abs(shift) < 0.02


def test_a_prior_that_no_turn_changes_is_not_judged():
    layers = (X[2] > 0) * 0.1
    found = judge_prior(field_of(layers), [whole_map(layers, MASK)], GEOMETRY, SD)
    assert (found.trust, found.gains, found.turns) == (1.0, (1.0,), ())
    (warning,) = found.warnings
    assert 'could not be judged' in warning
    inputs = PriorInputs(field_of(layers), SD, maps={'layers.nii': layers})
    record = estimate_prior(inputs, GEOMETRY, ['map:layers.nii']).record
    assert (record['judged'], record['beyond_null'], record['turns']) == (None, None, [])
    assert warning in record['warnings']
