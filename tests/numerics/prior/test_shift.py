"""A frequency of the tissue beside its susceptibility."""

import numpy as np
import pytest
from scipy import fft, ndimage

from precondqsm_bids.numerics import solver
from precondqsm_bids.numerics.dipole import Geometry
from precondqsm_bids.numerics.prior.basis import constant_parcels
from precondqsm_bids.numerics.prior.contrast import Scale, contrast_cells
from precondqsm_bids.numerics.prior.estimate import PriorInputs, estimate_prior
from precondqsm_bids.numerics.prior.fit import FitOptions, fit_prior
from precondqsm_bids.numerics.prior.shift import TissueShift, shifted
from precondqsm_bids.numerics.solver import DipoleSystem, Further

VOXEL_SIZE, B0_DIR = (
    (1.0, 1.0, 1.2),
    np.array([0.1, -0.2, 0.97]) / np.linalg.norm([0.1, 0.2, 0.97]),
)
SHAPE = (40, 42, 36)
POINTS = np.stack(np.indices(SHAPE), axis=-1) - (np.array(SHAPE) - 1) / 2
MASK = np.sum((POINTS / [17, 18, 15]) ** 2, axis=-1) < 1


def continuous_field(chi, b0_dir=B0_DIR):
    """Field of the continuous dipole, another kernel than the fit's, on a grid twice as long."""
    shape = [2 * n for n in chi.shape]
    k = np.meshgrid(*map(fft.fftfreq, shape, VOXEL_SIZE), indexing='ij')
    squared = sum(axis**2 for axis in k)
    squared[0, 0, 0] = 1
    kernel = 1 / 3 - sum(a * b for a, b in zip(k, b0_dir, strict=True)) ** 2 / squared
    field = fft.ifftn(fft.fftn(chi, shape) * kernel).real
    return field[tuple(slice(n) for n in chi.shape)]


def tissue():
    """Classes of a smooth random pattern: 0, 1, 2."""
    image = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=SHAPE), 2.5)
    return np.digitize(image, np.quantile(image[MASK], [0.4, 0.8]))


def spread(values):
    """Standard deviation over the region."""
    return float(np.std(values[MASK]))


def test_transposed_is_the_adjoint(monkeypatch):
    monkeypatch.setattr(solver, 'PART_VOXELS', 10_000)
    rng = np.random.default_rng(0)
    cells = contrast_cells([rng.normal(size=SHAPE)], MASK, VOXEL_SIZE, [Scale(np.inf, (6,))])
    system = DipoleSystem(MASK, VOXEL_SIZE, B0_DIR)
    assert len(system.parts) > 5
    inside = MASK[system.grid.box]
    shift = TissueShift(cells, MASK, system, 0.02)
    z, other = rng.normal(size=shift.values.size), rng.normal(size=inside.shape)
    field, other = np.zeros(inside.shape, np.float32), other.astype(np.float32)
    shift.set(z)
    for i, planes in enumerate(system.planes):
        shift.add(i, field[planes])
        shift.collect(i, other[planes])
    assert not field[~inside].any()
    np.testing.assert_array_equal(field[inside], shift.field(z))
    there, back = np.sum(field * other, dtype=float), z @ shift.transposed()
    assert there == pytest.approx(back, rel=1e-4)


def test_descent_is_the_least_squares_solution():
    """Some voxels' sources and two frequencies, against the matrix written out."""
    mask = np.zeros((12, 12, 12), bool)
    mask[2:-2, 2:-2, 2:-2] = True
    rng = np.random.default_rng(1)
    system = DipoleSystem(mask, VOXEL_SIZE, B0_DIR)
    grid = system.grid
    inside = np.zeros(grid.shape, bool)
    inside[grid.inner] = mask[grid.box]
    cells = [constant_parcels(np.indices(mask.shape)[0] % 2 + 1, mask)]
    shift = TissueShift(cells, mask, system, 1)
    field, w = rng.normal(size=(2, *mask[grid.box].shape)).astype(np.float32)
    expected = np.zeros(grid.shape, np.float32)
    places = rng.choice(np.flatnonzero(inside), 5, replace=False)
    expected.reshape(-1)[places] = 1
    columns = []
    for place in places:
        one = np.zeros(grid.shape, np.float32)
        one.reshape(-1)[place] = 1
        columns.append(system.convolve(one)[inside])
    odd = (np.indices(mask.shape)[0] % 2)[mask]
    columns += [odd == 0, odd == 1]
    matrix = np.stack(columns, axis=1).astype(float)
    scale = w.reshape(-1, 1)
    wanted = np.linalg.lstsq(scale * matrix, (w * field).reshape(-1), rcond=None)[0]
    sources = np.zeros(grid.shape, np.float32)
    system.descend(sources, field, w**2, expected, 200, Further(field=shift))
    np.testing.assert_allclose(sources.reshape(-1)[places], wanted[:5], atol=2e-3)
    np.testing.assert_allclose(shift.size * shift.values, wanted[5:], atol=2e-3)


def fitted(field, classes, tissue_shift, b0_dir=B0_DIR):
    """Fit of constants of some classes to a noisy field."""
    noise = np.random.default_rng(5).normal(0, 0.002, SHAPE)
    return fit_prior(
        (field + noise) * MASK, [constant_parcels(classes + 1, MASK)],
        Geometry(MASK, VOXEL_SIZE, b0_dir), np.full(SHAPE, 0.002, np.float32),
        options=FitOptions(tissue_shift=tissue_shift),
    )  # fmt: skip


def test_shift_is_found_and_susceptibility_kept():
    classes = tissue()
    chi, shift = 0.06 * (classes == 2) * MASK, -0.02 * (classes == 0) * MASK
    field = continuous_field(chi) + shift
    without, found = (fitted(field, classes, asked) for asked in (False, True))
    assert without.tissue_shift is None
    error = spread(found.prior_chi - chi) / spread(chi)
    assert error < 0.05
    assert error < 0.3 * spread(without.prior_chi - chi) / spread(chi)
    assert spread(found.tissue_shift - shift) < 0.1 * spread(shift)


def test_shift_that_is_not_there_vanishes():
    classes = tissue()
    chi = 0.06 * (classes == 2) * MASK
    found = fitted(continuous_field(chi), classes, True)
    assert spread(found.tissue_shift) < 0.01 * spread(chi)


@pytest.mark.parametrize('size', [0, -0.02])
def test_a_shift_that_is_there_is_warned_of(size):
    classes = tissue()
    chi, shift = 0.06 * (classes == 2) * MASK, size * (classes == 0) * MASK
    field = continuous_field(chi) + shift + np.random.default_rng(5).normal(0, 0.002, SHAPE)
    inputs = PriorInputs(
        field * MASK, np.full(SHAPE, 0.002, np.float32),
        tissue=(classes + 1) * MASK, tissue_names=('white', 'grey', 'nucleus'),
    )  # fmt: skip
    geometry = Geometry(MASK, VOXEL_SIZE, B0_DIR)
    record = estimate_prior(inputs, geometry, ['tissue'], free_voxels=True).record
    warned = [text for text in record['warnings'] if 'no field of a dipole' in text]
    assert len(warned) == (size != 0)
    if warned:
        assert record['tissue_shift_sd'] == pytest.approx(np.std(shift[MASK]), rel=0.2)


def test_cylinder_along_b0_stays_susceptibility():
    """Its susceptibility is a constant inside and next to nothing outside."""
    radius = np.linalg.norm(POINTS[..., :2], axis=-1)
    classes = (radius < 5).astype(int)
    chi = 0.1 * classes * MASK
    # The cylinder goes on beyond the region.
    field = continuous_field(0.1 * classes, (0, 0, 1))
    without, found = (fitted(field, classes, asked, (0, 0, 1)) for asked in (False, True))

    def contrast(fit):
        inner, outer = MASK & (radius < 4), MASK & (radius > 7)
        return fit.prior_chi[inner].mean() - fit.prior_chi[outer].mean()

    print(contrast(without), contrast(found), spread(found.tissue_shift) / spread(chi))
    assert contrast(found) == pytest.approx(contrast(without), rel=0.05)
    assert spread(found.tissue_shift) < 0.05 * spread(chi)


def test_only_constants_of_the_whole_region_have_one():
    classes = tissue()
    local = contrast_cells([classes.astype(float)], MASK, VOXEL_SIZE, [Scale(0.3, (3,))])
    whole = contrast_cells([classes.astype(float)], MASK, VOXEL_SIZE, [Scale(np.inf, (3,))])
    assert shifted([*local, *whole]) == whole
