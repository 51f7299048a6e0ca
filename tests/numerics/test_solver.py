"""Conjugate gradients on the solver's grid, against matrices and a loop written out."""

import numpy as np
import pytest
from scipy import fft
from scipy.fft import _pocketfft as pocketfft

from precondqsm_bids.numerics import Geometry, pdf, solver
from precondqsm_bids.numerics.prior.basis import constant_parcels
from precondqsm_bids.numerics.prior.fit import FitOptions, fit_prior
from precondqsm_bids.numerics.solver import DipoleSystem

VOXEL_SIZE, B0_DIR = (
    (1.0, 1.2, 1.5),
    np.array([0.2, -0.1, 0.97]) / np.linalg.norm([0.2, 0.1, 0.97]),
)
MASK = np.zeros((20, 17, 14), bool)
MASK[3:16, 2:15, 1:12] = np.random.default_rng(0).uniform(size=(13, 13, 11)) > 0.2


def small_parts(monkeypatch):
    """Many parts of a small grid."""
    monkeypatch.setattr(solver, 'PART_VOXELS', 3_000)
    monkeypatch.setattr(solver, 'LINE_VOXELS', 1_000)


@pytest.mark.parametrize('workers', [1, 3])
def test_convolution_is_that_of_the_whole_grid(monkeypatch, workers):
    small_parts(monkeypatch)
    system = DipoleSystem(MASK, VOXEL_SIZE, B0_DIR, workers, margin=5)
    assert len(system.parts) > 2
    assert len(system.lines) > 2
    chi = np.random.default_rng(1).normal(size=system.grid.shape).astype(np.float32)
    whole = fft.irfftn(fft.rfftn(chi.astype(float)) * system.kernel, system.grid.shape)
    np.testing.assert_allclose(system.convolve(chi), whole, atol=2e-6)


@pytest.mark.parametrize('workers', [1, 3])
def test_descent_is_textbook_conjugate_gradients(monkeypatch, workers):
    """In double precision, on the whole grid, with the gradient's own recurrence."""
    small_parts(monkeypatch)
    rng = np.random.default_rng(2)
    system = DipoleSystem(MASK, VOXEL_SIZE, B0_DIR, workers, margin=6)
    grid = system.grid
    field = rng.normal(size=MASK.shape) * MASK
    w = grid.embed(rng.uniform(0.5, 2, MASK.shape) * MASK).astype(float)
    size = np.where(grid.embed(MASK) > 0, 0, rng.uniform(1, 3, grid.shape))
    size[grid.inner][5, 5, 5] = 1  # a voxel inside that is free

    def dipole(chi):
        return fft.irfftn(fft.rfftn(chi) * system.kernel, grid.shape)

    x, r = np.zeros(grid.shape), grid.embed(field).astype(float)
    g = dipole(w**2 * r)
    d, gamma = size**2 * g, np.sum((size * g) ** 2)
    for _ in range(8):
        image = dipole(d)
        alpha = gamma / np.sum((w * image) ** 2)
        x, r, g = x + alpha * d, r - alpha * image, g - alpha * dipole(w**2 * image)
        before, gamma = gamma, np.sum((size * g) ** 2)
        d = size**2 * g + gamma / before * d

    sources, residual = np.zeros(grid.shape, np.float32), grid.in_box(field)
    w_squared = (w[grid.inner] ** 2).astype(np.float32)
    system.descend(sources, residual, w_squared, (size**2).astype(np.float32), 8)
    np.testing.assert_allclose(sources, x, atol=1e-4 * np.abs(x).max())
    np.testing.assert_allclose(residual, r[grid.inner], atol=1e-4 * np.abs(r).max())


def test_parts_and_threads_change_nothing_but_the_last_bits(monkeypatch):
    rng = np.random.default_rng(3)
    field = rng.normal(size=MASK.shape)
    cells = [constant_parcels(rng.integers(1, 4, MASK.shape), MASK)]

    def fitted(workers):
        options = FitOptions(tissue_shift=True)
        return fit_prior(
            field, cells, Geometry(MASK, VOXEL_SIZE, B0_DIR, workers), None, None, options
        )

    one = fitted(1)
    small_parts(monkeypatch)
    two, three = fitted(1), fitted(3)
    np.testing.assert_array_equal(two.prior_chi, three.prior_chi)
    np.testing.assert_array_equal(two.outer_chi, three.outer_chi)
    np.testing.assert_allclose(one.prior_chi, two.prior_chi, atol=1e-3 * np.ptp(one.prior_chi))
    np.testing.assert_allclose(one.tissue_shift, two.tissue_shift, atol=1e-4)


class Counted:
    """A backend of scipy.fft that counts its calls and leaves the work to scipy's own."""

    __ua_domain__ = 'numpy.scipy.fft'
    calls = 0

    @classmethod
    def __ua_function__(cls, method, args, kwargs):
        cls.calls += 1
        return getattr(pocketfft, method.__name__)(*args, **kwargs)


def test_another_library_may_do_the_transforms():
    """One that is set as scipy's backend is used, on all threads."""
    field = np.random.default_rng(4).normal(size=MASK.shape)
    own = pdf(field, MASK, VOXEL_SIZE, B0_DIR, workers=2).local_field
    fft.set_global_backend(Counted)
    try:
        other = pdf(field, MASK, VOXEL_SIZE, B0_DIR, workers=2).local_field
    finally:
        fft.set_global_backend('scipy')
    assert Counted.calls > 100
    np.testing.assert_array_equal(own, other)
