"""Bottles without contrast, fields of zero, spikes: nothing may end in an error."""

import numpy as np
import pytest

from precondqsm_bids.numerics.background_removal import pdf
from precondqsm_bids.numerics.comparison import compare
from precondqsm_bids.numerics.dipole import Geometry, forward_field
from precondqsm_bids.numerics.dipole_inversion import l2_inversion
from precondqsm_bids.numerics.echo_fit import fit_echoes
from precondqsm_bids.numerics.field_quality import judge_field
from precondqsm_bids.numerics.flattening import flatten_field
from precondqsm_bids.numerics.object_search import without_spikes
from precondqsm_bids.numerics.prior.bias_field import bias_field
from precondqsm_bids.numerics.prior.contrast import contrast_cells
from precondqsm_bids.numerics.prior.errors import coefficient_errors
from precondqsm_bids.numerics.prior.fit import FitOptions, fit_prior
from precondqsm_bids.numerics.prior.maps import map_by_tissue, susceptibility_map
from precondqsm_bids.numerics.prior.tissue import tissue_parcels
from precondqsm_bids.numerics.recombination import recombine
from precondqsm_bids.numerics.shape_mask import shape_mask
from precondqsm_bids.numerics.solver import noise_weights

X = np.stack(np.indices((22, 22, 22))) - 10.5
BALL = (X**2).sum(0) < 8**2
ZERO, ONE = np.zeros(BALL.shape, np.float32), BALL.astype(np.float32)
SPIKE = ONE.copy()
SPIKE[11, 11, 11] = 1e6
VIEW = ((1.0, 1.0, 1.0), (0.0, 0.0, 1.0))


def bases(prior):
    tissue = tissue_parcels(BALL.astype(np.int32), 1, BALL)
    made = {
        'contrast': lambda: contrast_cells([20 * ONE, ONE], BALL, VIEW[0]),
        'contrast of zero': lambda: contrast_cells([ZERO, ZERO], BALL, VIEW[0]),
        'contrast with a spike': lambda: contrast_cells([20 * ONE, SPIKE], BALL, VIEW[0]),
        'map of zero': lambda: [susceptibility_map(ZERO, BALL, 'global')],
        'clusters of zero': lambda: [susceptibility_map(ZERO, BALL, 'clusters')],
        'uniform map': lambda: [susceptibility_map(ONE, BALL, 'global')],
        'map of zero by tissue': lambda: [map_by_tissue(tissue, ZERO, BALL)],
        'tissue': lambda: [tissue],
    }
    return made[prior]()


PRIORS = [
    'contrast', 'contrast of zero', 'contrast with a spike', 'map of zero', 'clusters of zero',
    'uniform map', 'map of zero by tissue', 'tissue',
]  # fmt: skip


@pytest.mark.parametrize('prior', PRIORS)
@pytest.mark.parametrize('sd', [0.0, 0.01])
def test_the_chain_of_a_field_that_is_zero(prior, sd):
    """Sources of zero have a field of zero: map, prior and residual are uniform."""
    noise = np.full(BALL.shape, sd, np.float32)
    found = bases(prior)
    fit = fit_prior(
        ZERO, found, Geometry(BALL, *VIEW), noise, options=FitOptions(free_voxels=True)
    )
    assert all(np.isfinite(values).all() for values in fit.coefficients)
    flat = flatten_field(ZERO, fit.prior_chi, BALL, *VIEW)
    weights = noise_weights(noise, BALL)
    arms = []
    for field in (flat.flattened_field, ZERO):
        local = pdf(field, BALL, *VIEW, weights).local_field
        keywords = {'rule': 'risk', 'clip_outliers': True}
        arms.append((local, l2_inversion(local, BALL, *VIEW, **keywords)))
    (local, residual), (plain, conventional) = arms
    assert not conventional.chi.any()
    chi = recombine(residual.chi, fit.prior_chi, BALL, BALL).chi
    assert np.isfinite(chi).all()
    if prior != 'uniform map':  # whose edge has a field, as that of the surroundings
        assert fit.explained == 0
        assert not residual.chi.any()
        np.testing.assert_allclose(chi, fit.prior_chi - fit.prior_chi[BALL].mean() * BALL)
        result = compare(local, residual.chi, plain, Geometry(BALL, *VIEW), noise)
        assert (result.explained, result.by_scale, result.warnings) == (0, (), ())


def test_a_map_that_is_zero_has_no_coefficient_that_the_field_could_tell():
    (basis,) = bases('map of zero')
    field = forward_field(0.1 * (np.abs(X).max(0) < 3), *VIEW)
    geometry = Geometry(BALL, *VIEW)
    fit = fit_prior(field, [basis], geometry)
    assert not fit.prior_chi.any()
    assert fit.explained == pytest.approx(0, abs=1e-6)
    assert np.isinf(coefficient_errors(field, basis, fit, geometry)).all()


def test_bias_field_of_what_has_no_contrast_is_one():
    for r2star in (ZERO, ONE):
        np.testing.assert_allclose(bias_field(ONE, r2star, BALL), 1, atol=1e-5)


@pytest.mark.parametrize('place', [(11, 11, 11), (1, 2, 2)])
@pytest.mark.parametrize('spikes', [1, 8])
def test_a_spike_does_not_hide_the_object(place, spikes):
    """A few voxels far above all others are no object."""
    noise = np.abs(np.random.default_rng(0).normal(0, 0.01, BALL.shape))
    plain = shape_mask(ONE + noise)
    bright = ONE + noise
    i, j, k = place
    bright[i : i + spikes, j, k] = 1e5
    shape = shape_mask(bright)
    changed = shape.shape_mask != plain.shape_mask
    assert not changed[BALL].any()
    assert changed.sum() <= spikes
    assert shape.threshold == pytest.approx(plain.threshold, rel=0.1)


def test_what_has_no_spike_keeps_its_bits():
    head = (ONE * (1 + (X[0] > 0)) + 8.5 * (np.abs(X).max(0) < 2)).astype(np.float32)
    assert without_spikes(head) is head


def test_hardly_any_noise_is_no_reason_to_refuse_a_field():
    """Every voxel departs from the model by 0.2 % of the signal, beyond next to no noise."""
    te = np.array([0.004, 0.010, 0.016, 0.022])
    rng = np.random.default_rng(1)
    field = 0.02 * X[2] / 10
    wave = 1 + 0.002 * np.cos(np.pi * np.arange(4))
    signal = BALL[..., None] * 1000 * np.exp(-20 * te) * wave
    signal = signal * np.exp(2j * np.pi * 127.729 * field[..., None] * te)
    signal += 0.01 * (rng.normal(size=signal.shape) + 1j * rng.normal(size=signal.shape))
    fit = fit_echoes(np.abs(signal), np.angle(signal), te, 3.0, BALL, noise_sd=0.01)
    quality = judge_field(fit, BALL)
    assert quality.misfit_fraction > 0.95
    assert any('do not describe' in words for words in quality.warnings)
    np.testing.assert_allclose(fit.total_field[BALL], field[BALL], atol=1e-4)


def test_a_signal_of_two_fields_is_still_refused():
    te = np.array([0.004, 0.010, 0.016, 0.022])
    two = 1 + 0.8 * np.exp(2j * np.pi * 127.729 * -3.4 * te)
    signal = BALL[..., None] * 1000 * np.exp(-20 * te) * two
    with pytest.raises(ValueError, match='do not describe'):
        judge_field(
            fit_echoes(np.abs(signal), np.angle(signal), te, 3.0, BALL, noise_sd=1.0), BALL
        )
