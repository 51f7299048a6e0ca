"""Single precision loses nothing: each stage against the same arithmetic in double precision.

The references are written out here with numpy's complex128 transforms on the full spectrum and
textbook conjugate gradients; only the size of the grid and the kernel are the solver's.
"""

import numpy as np
import pytest
from kernels import full_kernel
from operators import assert_adjoint

from precondqsm_bids.numerics.background_removal import pdf
from precondqsm_bids.numerics.constants import hz_per_ppm
from precondqsm_bids.numerics.dipole import Geometry, cyclic_prism_kernel
from precondqsm_bids.numerics.dipole_inversion import l2_inversion
from precondqsm_bids.numerics.echo_fit import fit_echoes
from precondqsm_bids.numerics.prior.basis import constant_parcels
from precondqsm_bids.numerics.prior.fit import MODEL_ERROR, OUTER_SIZE, SIZE, FitOptions, fit_prior
from precondqsm_bids.numerics.solver import noise_weights, solver_grid

B0_DIR = np.array([0.3, -0.4, 0.87]) / np.linalg.norm([0.3, -0.4, 0.87])
VOXEL_SIZE = np.array([1.0, 1.0, 1.5])
N = (44, 40, 30)
POINTS = np.stack(np.indices(N), axis=-1) - (np.array(N) - 1) / 2
MASK = np.sum((POINTS / [19, 17, 12]) ** 2, axis=-1) < 1
GRID = solver_grid(MASK)
CONTINUOUS = full_kernel(GRID.shape, VOXEL_SIZE, B0_DIR)
HALF = cyclic_prism_kernel(GRID.shape, VOXEL_SIZE, B0_DIR).astype(np.float64)
KERNEL = np.fft.fftn(np.fft.irfftn(HALF, s=GRID.shape, axes=(0, 1, 2))).real
SD = np.where(MASK, 0.002 + 0.01 * (POINTS[..., 0] > 8), 0).astype(np.float32)


def embed(volume):
    """On the solver's grid, in double precision."""
    out = np.zeros(GRID.shape)
    out[GRID.inner] = np.asarray(volume, float)[GRID.box]
    return out


INSIDE = embed(MASK) > 0


def field_of(chi):
    return np.fft.ifftn(np.fft.fftn(chi) * KERNEL).real


def measured():
    """Sources inside and, a thousand times as strong, outside; noise."""
    rng = np.random.default_rng(0)
    chi = np.where(INSIDE, 0.1 * (rng.random(GRID.shape) < 0.05), 0)
    chi += np.where(INSIDE, 0, 100.0 * (rng.random(GRID.shape) < 0.01))
    field = field_of(chi) + 0.002 * rng.normal(size=GRID.shape)
    out = np.zeros(MASK.shape)
    out[GRID.box] = (field * INSIDE)[GRID.inner]
    return out


FIELD = measured()


def descend(apply, adjoint, data, weights, iterations):
    """Conjugate gradients of ``min_y || W (data - apply(y)) ||^2`` from zero."""
    residual = data.copy()
    gradient = adjoint(weights**2 * residual)
    solution, direction = np.zeros_like(gradient), gradient.copy()
    energy = gradient @ gradient
    for _ in range(iterations):
        image = apply(direction)
        step = energy / np.sum((weights * image) ** 2)
        solution += step * direction
        residual -= step * image
        gradient = adjoint(weights**2 * residual)
        energy, previous = gradient @ gradient, energy
        direction = gradient + energy / previous * direction
    return solution, residual


def volume_of(values, where):
    out = np.zeros(GRID.shape)
    out[where] = values
    return out


def assert_close(found, expected, tolerance):
    """Norm of the difference relative to that of what is expected."""
    expected = expected[GRID.inner]
    difference = np.where(MASK, found, 0)[GRID.box] - expected * INSIDE[GRID.inner]
    assert np.linalg.norm(difference) < tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize('iterations, tolerance', [(10, 1e-3), (30, 0.3)])
def test_background_removal(iterations, tolerance):
    """What is left is less than a hundredth of what is taken off: there digits could be lost.

    They are in the later directions, whose end depends on rounding: of heads as simulated the
    local field moves by a hundredth of its size there, 7e-5 ppm.
    """
    weights = embed(noise_weights(SD, MASK))
    _, local = descend(
        lambda y: field_of(volume_of(y, ~INSIDE)),
        lambda volume: field_of(volume)[~INSIDE],
        embed(FIELD * MASK),
        weights,
        iterations,
    )
    weights = noise_weights(SD, MASK)
    found = pdf(FIELD, MASK, VOXEL_SIZE, B0_DIR, weights, iterations).local_field
    assert_close(found, local * INSIDE, tolerance)


@pytest.mark.parametrize('iterations, tolerance', [(10, 1e-5), (40, 0.05)])
def test_prior_fit(iterations, tolerance):
    """The unknowns differ in size by hundreds, so that rounding turns the later directions."""
    cells = constant_parcels(np.floor(POINTS / 6).astype(int) @ [1, 100, 10000], MASK)
    labels = np.full(GRID.shape, -1)
    labels[GRID.inner] = cells.labels[GRID.box]
    labels, outside, size = labels[INSIDE], np.count_nonzero(~INSIDE), 0.05

    def apply(y):
        chi = volume_of(OUTER_SIZE * y[:outside], ~INSIDE)
        chi[INSIDE] = SIZE * size * y[outside:][labels]
        return field_of(chi)

    def adjoint(volume):
        pulled = field_of(volume)
        parcels = SIZE * size * np.bincount(labels, pulled[INSIDE], cells.parcels)
        return np.concatenate([OUTER_SIZE * pulled[~INSIDE], parcels])

    assert_adjoint(apply, adjoint, (outside + cells.parcels,), GRID.shape)
    weights = embed(noise_weights(SD, MASK, MODEL_ERROR * size))
    found, _ = descend(apply, adjoint, embed(FIELD * MASK), weights, iterations)
    prior = volume_of((SIZE * size * found[outside:])[labels], INSIDE)
    prior[INSIDE] -= np.median(prior[INSIDE])
    options = FitOptions(iterations, rounds=1, inner_size=size)
    fit = fit_prior(FIELD, [cells], Geometry(MASK, VOXEL_SIZE, B0_DIR), SD, options=options)
    assert_close(fit.prior_chi, prior, tolerance)


@pytest.mark.parametrize('reg_weight', [0.01, 0.3])
def test_dipole_inversion(reg_weight):
    steps = [
        (2 - 2 * np.cos(2 * np.pi * np.fft.fftfreq(n))) / d**2
        for n, d in zip(GRID.shape, VOXEL_SIZE, strict=True)
    ]
    gradient = steps[0][:, None, None] + steps[1][:, None] + steps[2]
    denominator = CONTINUOUS**2 + reg_weight**2 * gradient
    denominator[0, 0, 0] = 1
    chi = np.fft.ifftn(np.fft.fftn(embed(FIELD * MASK)) * CONTINUOUS / denominator).real
    found = l2_inversion(FIELD, MASK, VOXEL_SIZE, B0_DIR, reg_weight).chi
    assert_close(found, chi * INSIDE, 1e-5)


@pytest.mark.parametrize('slope', [0.0, 0.03])
def test_echo_fit(slope):
    """Echoes without noise, made in double precision, give back what they were made of."""
    te = np.arange(1, 7) * 3e-3
    field = np.where(MASK, 0.3 + slope * POINTS[..., 0], 0)
    r2star, s0 = 30.0 + 2.0 * np.abs(POINTS[..., 2]), 4000.0 + 10.0 * POINTS[..., 1]
    angle = 2 * np.pi * hz_per_ppm(3.0) * field[..., None] * te + 0.3
    magnitude = np.where(MASK[..., None], s0[..., None] * np.exp(-r2star[..., None] * te), 0)
    fit = fit_echoes(
        magnitude.astype(np.float32),
        np.angle(np.exp(1j * angle)).astype(np.float32),
        te,
        3.0,
        MASK,
        noise_sd=1.0,
    )
    inner = MASK & (np.sum((POINTS / [16, 14, 9]) ** 2, axis=-1) < 1)
    assert np.abs(fit.total_field - field)[inner].max() < 1e-5
    if not slope:  # a slope within the voxel is R2* as well, and is taken off
        assert np.abs(fit.r2star / r2star - 1)[inner].max() < 1e-4
        assert np.abs(fit.s0 / s0 - 1)[inner].max() < 1e-4
