"""Noise from air, object and the residual of the phase fit, against noise that is known."""

import numpy as np
import pytest

from precondqsm_bids.numerics.air import Air, air_around, without_floor
from precondqsm_bids.numerics.constants import hz_per_ppm
from precondqsm_bids.numerics.echo_fit import fit_echoes
from precondqsm_bids.numerics.echoes import Echoes, fit_phase
from precondqsm_bids.numerics.noise import (
    local_level,
    noise_from_residual,
    noise_inside,
)

SHAPE = (32, 30, 28)
X, Y, Z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing='ij')
WHOLE = X**2 + Y**2 + Z**2 < 1
BODY = X**2 + Y**2 + Z**2 < 0.3
TE = 1e-3 * (2 + 3 * np.arange(8))
TO_RAD = (2 * np.pi * hz_per_ppm(3.0) * TE).astype(np.float32)
SD = 1.7


# --- air --------------------------------------------------------------------------------------


def sum_of_squares(channels, seed=0, outside=0.0, ghost=0.0):
    """Two echoes of a body in air, (X, Y, Z, 2): root sum of squares of noisy channels."""
    rng = np.random.default_rng(seed)
    echoes = []
    for decay in (1.0, 0.6):
        clean = decay * (80 * BODY + outside * ~BODY + ghost * np.roll(BODY, 10, 1))
        real, imaginary = rng.normal(0, SD, (2, channels, *SHAPE))
        real = real + clean / np.sqrt(channels)
        echoes.append(np.sqrt(np.sum(real**2 + imaginary**2, axis=0)))
    return np.stack(echoes, axis=-1)


@pytest.mark.parametrize('channels', [1, 2, 4, 8, 32])
def test_channels_and_noise_of_air(channels):
    air = air_around(sum_of_squares(channels), BODY)
    assert air.noise_sd == pytest.approx(SD, rel=0.03)
    assert air.channels == pytest.approx(channels, rel=0.05)


def test_air_of_integers_is_the_same():
    plain = air_around(100 * sum_of_squares(4), BODY)
    stored = air_around((100 * sum_of_squares(4)).astype(np.uint16), BODY)
    assert stored.noise_sd == pytest.approx(plain.noise_sd, rel=0.01)


@pytest.mark.parametrize('channels', [1, 8, 32])
@pytest.mark.parametrize(
    'background',
    [
        0 * X,  # set to zero
        0.1 + 0.3 * np.abs(X),  # damped
        1 + 0.5 * (X + 1),  # amplified
    ],
    ids=['zero', 'damped', 'amplified'],
)
def test_a_background_that_was_changed_is_no_air(channels, background):
    changed = sum_of_squares(channels) * np.where(BODY, 1, background)[..., None]
    assert air_around(changed, BODY) is None


@pytest.mark.parametrize('outside', [20.0, 40.0, 80.0])
def test_an_even_medium_is_no_air(outside):
    # Noise on an even signal has the quantiles of many channels, but it is bright, or decays
    assert air_around(sum_of_squares(1, outside=outside), BODY) is None


def test_scalp_is_no_air():
    scalp = 60 * (0.5 + np.abs(np.sin(4 * X) * np.cos(3 * Y)))
    assert air_around(sum_of_squares(1, outside=scalp), BODY) is None


def test_ghosts_are_no_air():
    assert air_around(sum_of_squares(1, ghost=20.0), BODY) is None


def test_too_little_of_it_is_no_air():
    assert air_around(sum_of_squares(1), np.ones(SHAPE, bool)) is None


def test_floor_in_the_mean_square():
    # E|m|^2 of N channels is s^2 + 2 N sd^2, and s^2 + 2 sd^2 without the floor
    rng, channels, clean = np.random.default_rng(1), 16, 30.0
    real, imaginary = rng.normal(0, SD, (2, channels, 200_000))
    magnitude = np.sqrt(np.sum((real + clean / 4) ** 2 + imaginary**2, axis=0))
    freed = without_floor(magnitude, Air(SD, channels))
    assert np.mean(freed**2) == pytest.approx(clean**2 + 2 * SD**2, rel=2e-3)
    assert without_floor(magnitude, None) is magnitude
    assert without_floor(magnitude, Air(SD, 1.0)) is magnitude


def test_floor_of_integers_does_not_wrap():
    freed = without_floor(np.array([3000, 5], np.uint16), Air(10.0, 9.0))
    assert freed.tolist() == pytest.approx([np.sqrt(3000**2 - 1600), 0])


# --- the phase fit ----------------------------------------------------------------------------


def left_by_fit(clean, noise, mask=BODY, te=TE, seed=0):
    """Noise that the free phase fit of a noisy signal leaves, and its map."""
    rng = np.random.default_rng(seed)
    echoes = clean + noise * (rng.normal(size=clean.shape) + 1j * rng.normal(size=clean.shape))
    return noise_of(echoes, mask, te)


def noise_of(echoes, mask=BODY, te=TE):
    masked = Echoes(echoes[mask].astype(np.complex64), te, mask, 3.0)
    field, offset = (np.zeros(len(masked.signal), np.float32) for _ in range(2))
    fit_phase(masked, field, offset, True)
    return noise_from_residual(masked, field, offset)


def tissue(te=TE, rate=25.0):
    return 100 * np.exp(-rate * te + 1j * (0.3 + 0.002 * X[..., None] * TO_RAD[: len(te)]))


@pytest.mark.parametrize('echoes', [3, 4, 8])
def test_noise_of_the_residual(echoes):
    te = TE[:echoes]
    noise_sd, level = left_by_fit(tissue(te), SD, te=te)
    assert noise_sd == pytest.approx(SD, rel=0.05)
    assert np.median(level) == pytest.approx(SD, rel=0.02)
    assert np.std(level) < 0.15 * SD


@pytest.mark.parametrize('echoes', [3, 8])
def test_noise_of_a_sum_of_squares(echoes):
    # Each channel aligned in phase: the noise of the sum is that of one channel
    rng, channels, te = np.random.default_rng(2), 8, TE[:echoes]
    noise = rng.normal(0, SD, (2, channels, *SHAPE, echoes))
    channel = tissue(te) / np.sqrt(channels) + noise[0] + 1j * noise[1]
    phase = np.angle(channel.sum(axis=0))
    magnitude = np.sqrt(np.sum(np.abs(channel) ** 2, axis=0))
    assert noise_of(magnitude * np.exp(1j * phase), te=te)[0] == pytest.approx(SD, rel=0.05)


@pytest.mark.parametrize('echoes', [3, 4, 8])
def test_map_of_noise_that_varies(echoes):
    amplified = SD * (1 + 0.8 * X)
    te = TE[:echoes]
    _, level = left_by_fit(tissue(te), amplified[..., None], WHOLE, te)
    ratio = level / amplified[WHOLE]
    assert np.median(ratio) == pytest.approx(1, abs=0.02)
    assert np.mean(np.abs(ratio - 1) < 0.1) > 0.85  # all but the border, where cubes are one-sided
    assert np.corrcoef(level, amplified[WHOLE])[0, 1] > 0.95


def test_wall_of_a_source_is_no_noise():
    # Two fields and rates in each voxel of a wall that is two voxels thick
    fast = 100 * np.exp(-250 * TE + 1j * 0.5 * TO_RAD)
    wall = (np.abs(X) < 0.07)[..., None]
    noise_sd, level = left_by_fit(np.where(wall, 0.5 * (tissue() + fast), tissue()), SD, WHOLE)
    away = np.abs(X[WHOLE]) > 0.1
    assert noise_sd == pytest.approx(SD, rel=0.07)  # the wall is a tenth of the region
    assert np.median(level[away]) == pytest.approx(SD, rel=0.05)
    assert level[away].max() < 1.4 * SD


def test_phase_that_is_noise_around_a_pole():
    # Coils cancel: the magnitude is as bright as ever, the phase is noise along a line
    rng = np.random.default_rng(3)
    distance = np.hypot(X - 0.03, Y)
    noise = SD * (1 + 10 * np.exp(-((distance / 0.08) ** 2)))[..., None]
    angle = rng.normal(size=tissue().shape) * noise / np.abs(tissue())
    _, level = noise_of(tissue() * np.exp(1j * angle))
    core, away = distance[BODY] < 0.05, distance[BODY] > 0.3
    assert np.median(level[away]) == pytest.approx(SD, rel=0.1)
    assert np.median(level[core]) > 2 * SD  # a mean over a cube that is wider than the core


def test_noise_free_echoes_have_none():
    noise_sd, level = left_by_fit(tissue(), 0.0)
    assert noise_sd < 1e-4
    assert np.all(np.isfinite(level))


def test_voxels_that_the_scanner_set_to_zero_have_no_say():
    rng = np.random.default_rng(0)
    echoes = tissue() + SD * (rng.normal(size=(*SHAPE, 8)) + 1j * rng.normal(size=(*SHAPE, 8)))
    noise_sd, _ = noise_of(np.where((X > -0.1)[..., None], echoes, 0))
    assert noise_sd == pytest.approx(SD, rel=0.05)


# --- the object -------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', [float, np.uint16])
def test_noise_inside(kind):
    rng = np.random.default_rng(4)
    magnitude = 300 + 100 * X + 200 * (Y > 0) + rng.normal(0, 17, SHAPE)
    assert noise_inside(magnitude.astype(kind), WHOLE) == pytest.approx(17, rel=0.05)


def test_deviations_of_two_echoes_without_noise_given():
    rng, te = np.random.default_rng(5), TE[:2]
    noise = rng.normal(size=(*SHAPE, 2)) + 1j * rng.normal(size=(*SHAPE, 2))
    echoes = BODY[..., None] * tissue(te) + SD * noise
    fit = fit_echoes(np.abs(echoes), np.angle(echoes), te, 3.0, BODY)
    assert fit.noise_source == 'magnitude'
    assert fit.noise_sd == pytest.approx(SD, rel=0.05)
    score = (fit.total_field - 0.002 * X)[BODY] / fit.field_sd[BODY]
    assert np.std(score) == pytest.approx(1, abs=0.1)


# --- the local level --------------------------------------------------------------------------


def test_level_is_the_mean_but_for_outliers():
    rng = np.random.default_rng(6)
    values = (2 + X[BODY] + rng.normal(0, 0.1, BODY.sum())).astype(np.float32)
    outliers = rng.random(values.size) < 0.1
    level = local_level(
        values + 5 * outliers.astype(np.float32), np.full(values.size, 0.1, np.float32), BODY
    )
    # A tenth of outliers beyond what is cut off; at the border the cube is one-sided
    inner = (X**2 + Y**2 + Z**2)[BODY] < 0.15
    assert np.abs(level - 2 - X[BODY])[inner].max() < 0.06


def test_level_where_nothing_is_known_is_finite():
    # Deviations over 18 decades: sums over a cube must not lose the small weights
    rng = np.random.default_rng(7)
    sd = np.where(X[BODY] > 0, 1e9, 1).astype(np.float32)
    level = local_level(rng.normal(0, 1, sd.size).astype(np.float32), sd, BODY)
    assert np.abs(level).max() < 5


def test_level_of_two_that_disagree_lies_between():
    mask = np.zeros((9, 9, 9), bool)
    mask[4, 4, 4:6] = True
    level = local_level(np.array([0, 50], np.float32), np.ones(2, np.float32), mask)
    assert np.all((level >= 0) & (level <= 50))
    np.testing.assert_allclose(level, 25, atol=1e-3)
