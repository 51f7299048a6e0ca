"""The echoes of a region: their model turned back leaves what it does not hold."""

from dataclasses import replace

import numpy as np
import pytest

from precondqsm_bids.numerics.air import Air
from precondqsm_bids.numerics.constants import hz_per_ppm
from precondqsm_bids.numerics.echoes import Echoes, fit_phase, phase_line

SHAPE = (6, 5, 4)
MASK = np.random.default_rng(0).random(SHAPE) < 0.6
TE = np.array([0.002, 0.005, 0.009])
RNG = np.random.default_rng(1)
FIELD, OFFSET = (RNG.normal(0, sd, np.count_nonzero(MASK)).astype(np.float32) for sd in (0.1, 1))
TURN = 2 * np.pi * hz_per_ppm(3.0) * TE


def echoes(scale=1.0):
    """Echoes of 300 exp(-20 TE) in the mask, NaN outside."""
    magnitude = np.where(MASK[..., None], 300 * scale * np.exp(-20 * TE), np.nan)
    phase = np.full(magnitude.shape, np.nan)
    phase[MASK] = OFFSET[:, None] + FIELD[:, None] * TURN
    return Echoes.of((magnitude, phase), TE, MASK, 3.0)


def test_the_model_taken_off_leaves_the_decay():
    found = echoes()
    left = found.demodulated(FIELD, OFFSET) * found.unit
    np.testing.assert_allclose(left, 300 * np.exp(-20 * TE) + 0 * left, rtol=2e-5)
    part = np.array([1, 3])
    np.testing.assert_array_equal(
        found.demodulated(FIELD, OFFSET, part), found.demodulated(FIELD, OFFSET)[part]
    )
    np.testing.assert_array_equal(
        found.first(2).demodulated(FIELD, OFFSET), found.demodulated(FIELD, OFFSET)[:, :2]
    )


def test_unit_is_a_power_of_two_that_cancels_to_the_last_bit():
    one, other = echoes(), echoes(scale=4.0)
    assert (one.unit, other.unit) == (256, 1024)
    np.testing.assert_array_equal(one.signal, other.signal)


def test_places():
    volume = echoes().volume(FIELD)
    np.testing.assert_array_equal(volume[MASK], FIELD)
    assert not volume[~MASK].any()


def test_floor_of_the_air_is_taken_off():
    magnitude = np.full((*SHAPE, 1), 5.0)
    found = Echoes.of((magnitude, 0 * magnitude), [0.01], MASK, air=Air(1.0, 9.0))
    np.testing.assert_allclose(found.signal * found.unit, 3)


def test_values_that_are_not_finite_are_counted():
    magnitude = np.ones((*SHAPE, 3))
    magnitude[np.nonzero(MASK)[0][0], np.nonzero(MASK)[1][0], np.nonzero(MASK)[2][0]] = np.nan
    with pytest.raises(ValueError, match='not finite in 1 voxels'):
        Echoes.of((magnitude, np.zeros_like(magnitude)), TE, MASK)


@pytest.mark.parametrize('workers', [1, 2])
def test_fit_of_the_phase(workers):
    found = replace(echoes(), workers=workers)
    field, offset = FIELD + np.float32(0.01), np.zeros_like(OFFSET)
    fit_phase(found, field, offset, True)
    np.testing.assert_allclose(field, FIELD, atol=1e-5)
    np.testing.assert_allclose(np.exp(1j * offset), np.exp(1j * OFFSET), atol=1e-4)


def test_line_through_a_phase_is_that_of_the_normal_equations():
    weight = RNG.uniform(1, 2, (4, 3)).astype(np.float32)
    angle = RNG.normal(size=(4, 3)).astype(np.float32)
    to_rad = TURN.astype(np.float32)
    free = np.array([True, False, True, False])
    intercept, slope, *_ = phase_line(weight, weight * angle, to_rad, free)
    for v in range(4):
        design = np.column_stack([np.ones(3), to_rad])[:, 0 if free[v] else 1 :]
        root = np.sqrt(weight[v])[:, None]
        expected = np.linalg.lstsq(design * root, angle[v] * root[:, 0], rcond=None)[0]
        found = [intercept[v], slope[v]] if free[v] else [slope[v]]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
        assert free[v] or intercept[v] == 0
