"""Fat of all its lines, simulated from the literature, and what is no fat."""

import numpy as np
import pytest

from precondqsm_bids.method import Method
from precondqsm_bids.numerics import Scan, measure_field, reconstruct
from precondqsm_bids.numerics.echo_fit import fit_echoes
from precondqsm_bids.numerics.fat import step_of_fat

LINES = np.array([
    (-3.80, 0.087), (-3.40, 0.693), (-2.60, 0.128), (-1.94, 0.004), (-0.39, 0.039), (0.60, 0.048)
])  # fmt: skip
"""Ren J et al., J Lipid Res 2008;49:2055: ppm relative to water, and share of the signal."""
EIGHT = 1e-3 * (1.38 + 2.8 * np.arange(8))
SIX = 1e-3 * (3.0 + 4.5 * np.arange(6))
SEVEN_TESLA = 1e-3 * (1.32 + 2.2 * np.arange(7))
UNEVEN = 1e-3 * np.array([1.4, 4.2, 7.1, 9.9, 12.8])
SHAPE = (26, 24, 22)
X, Y, Z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing='ij')
MASK = X**2 + Y**2 + Z**2 < 0.9
GAMMA = 42.57638543  # Hz/T/ppm


def lines_of_fat(te, b0):
    """Signal of fat over that of as much water."""
    shift, share = LINES.T
    return np.exp(2j * np.pi * GAMMA * b0 * np.multiply.outer(te, shift)) @ share


def echoes(te, fat, b0=3.0, field=None, noise=0.01):
    """Magnitude and phase of a ball whose voxels hold this fraction of fat."""
    field = 0.1 * X * Y + 0.05 * Z if field is None else field
    angle = 0.4 + 0.3 * X - 0.2 * Y[...] * Z
    signal = np.exp(1j * angle[..., None] + (2j * np.pi * GAMMA * b0 * field[..., None] - 30) * te)
    signal = signal * (1 + fat[..., None] * (lines_of_fat(te, b0) - 1)) * MASK[..., None]
    rng = np.random.default_rng(0)
    signal += noise * (rng.normal(size=signal.shape) + 1j * rng.normal(size=signal.shape))
    return np.abs(signal), np.angle(signal)


def layer(level):
    """Fat above a level, a third of the voxels of its border fat in part."""
    return np.clip((X - level) / (X[1, 0, 0] - X[0, 0, 0]) + 0.5, 0, 1)


@pytest.mark.parametrize(
    'te, b0', [(EIGHT, 3.0), (SIX, 3.0), (UNEVEN, 3.0), (EIGHT * 2, 1.5), (SEVEN_TESLA, 7.0)]
)
def test_fat_of_all_lines_is_found_to_the_voxel(te, b0):
    fat = layer(0.5)
    fit = fit_echoes(*echoes(te, fat, b0), te, b0, MASK)
    assert fit.fat[MASK & (fat == 1)].mean() > 0.99
    assert not fit.fat[fat == 0].any()
    assert not fit.fat[~MASK].any()
    water = MASK & (fat == 0)
    alone = fit_echoes(*echoes(te, 0 * fat, b0), te, b0, water)
    moved = np.abs(fit.total_field - alone.total_field)[water]
    assert np.all(moved <= 0.003 + 0.1 * alone.field_sd[water])
    assert not fit.total_field[fit.fat].any()
    assert not fit.r2star[fit.fat].any()


def test_more_fat_than_water_is_fat_all_the_same():
    for te in (EIGHT, SIX):
        fat = layer(-0.2)
        found = fit_echoes(*echoes(te, fat), te, 3.0, MASK).fat
        assert found[MASK & (fat == 1)].mean() > 0.99
        assert not found[fat == 0].any()


@pytest.mark.parametrize('te', [1e-3 * np.array([4.0, 8, 12, 16]), EIGHT[:2]])
def test_echoes_that_do_not_tell_find_nothing(te):
    assert not fit_echoes(*echoes(te, layer(0.5)), te, 3.0, MASK).fat.any()


@pytest.mark.parametrize('te', [EIGHT, SIX])
@pytest.mark.parametrize('step', [-0.8, -0.6, 0.6, 0.8])
def test_steps_of_the_field_are_no_fat(te, step):
    field = np.where(X > 0.3, step, 0.0)
    assert not fit_echoes(*echoes(te, 0 * X, field=field), te, 3.0, MASK).fat.any()


def test_steps_of_the_phase_offset_are_no_fat():
    magnitude, phase = echoes(SIX, 0 * X)
    for step in (1.0, np.pi, step_of_fat(SIX, 3.0).offset + 0.8):
        turned = phase + np.where(X > 0.3, step, 0)[..., None]
        assert not fit_echoes(magnitude, turned, SIX, 3.0, MASK).fat.any()


@pytest.mark.parametrize('step', [-0.7, -0.5, 0.5, 0.7, 0.9])
def test_fields_that_are_unwrapped_a_turn_off_are_no_fat(step):
    # At 7 T a turn is 0.84 ppm: with TE1 a third of the spacing one turn off looks like four
    te = 1e-3 * (4 / 3 + 4 * np.arange(6))
    field = np.where(X > 0.3, step, 0.0)
    assert not fit_echoes(*echoes(te, 0 * X, b0=7.0, field=field), te, 7.0, MASK).fat.any()


def test_a_few_voxels_of_fat_are_left():
    fat = (abs(X) < 0.1) & (abs(Y) < 0.1) & (abs(Z) < 0.1)
    assert 8 <= fat.sum() < 50
    assert not fit_echoes(*echoes(EIGHT, 1.0 * fat), EIGHT, 3.0, MASK).fat.any()


def test_fat_leaves_the_region_the_reference_and_a_warning():
    fat = layer(0.5)
    scan = Scan(*echoes(EIGHT, fat), EIGHT, 3.0, phase_units='rad', phase_sign=1)
    found = measure_field(scan, MASK)
    assert not found.roi_mask[MASK & (fat == 1)].any()
    assert found.roi_mask[MASK & (fat == 0)].all()
    assert found.record['fat_voxels'] == np.count_nonzero(MASK & ~found.roi_mask)
    (warning,) = [text for text in found.record['warnings'] if 'fat' in text]
    share = found.record['fat_voxels'] / MASK.sum()
    assert f'in {share:.1%} of the region and left out of it' in warning
    maps = reconstruct(scan, Method(prior='r2prime', mask='object'))
    assert not maps.region.roi_mask[MASK & (fat == 1)].any()
    assert not maps.chi[~maps.region.roi_mask].any()
    assert abs(maps.chi[maps.region.roi_mask].mean(dtype=float)) < 1e-6
