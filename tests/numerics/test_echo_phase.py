"""Phase of each echo against what was added to it."""

import itertools

import numpy as np
import pytest

from precondqsm_bids.numerics.constants import hz_per_ppm
from precondqsm_bids.numerics.echo_fit import fit_echoes
from precondqsm_bids.numerics.echo_phase import echo_phase, positions, take_off
from precondqsm_bids.numerics.echoes import Echoes

SHAPE = (24, 22, 20)
SIZE = (1.5, 1.0, 2.0)
X, Y, Z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing='ij')
MASK = X**2 + Y**2 + Z**2 < 1
EVEN = 1e-3 * np.array([1.4, 4.2, 7.0, 9.8, 12.6, 15.4, 18.2, 21.0])
FIELD = 0.05 * X * Y + 0.1 * np.exp(-((X - 0.3) ** 2 + Y**2 + Z**2) / 0.05)
RATE = 20 + 10 * X


def echoes(te, added=None, noise=0.005, seed=0, rate=RATE):
    """Signal of ellipsoid: a source, a smooth offset, and ``added`` (E, 4), rad and rad/mm."""
    angle = 0.3 + 0.2 * X[..., None] + 2 * np.pi * hz_per_ppm(3.0) * FIELD[..., None] * te
    if added is not None:
        volume = np.zeros((*SHAPE, len(te)))
        volume[MASK] = positions(MASK, SIZE)[1] @ np.asarray(added).T
        angle = angle + volume
    rng = np.random.default_rng(seed)
    noise = noise * (rng.normal(size=angle.shape) + 1j * rng.normal(size=angle.shape))
    return np.exp(-rate[..., None] * te + 1j * angle) + noise


def found_in(signal, te, field=FIELD):
    masked = Echoes(signal[MASK].astype(np.complex64), te, MASK, 3.0)
    return echo_phase(masked, field[MASK].astype(np.float32), SIZE)


def without_line(phases, te, weight):
    """What of phases over echoes is no line in TE, (E, ...)."""
    root = np.sqrt(weight)[:, None]
    design = np.column_stack([np.ones_like(te), te])
    line = np.linalg.lstsq(design * root, phases * root, rcond=None)[0]
    return phases - design @ line


@pytest.mark.parametrize(
    'te', [EVEN, EVEN[:3], EVEN[[0, 1, 3, 4, 6]], np.cumsum([2.8, 2.9] * 3) * 1e-3]
)
def test_phases_are_found_up_to_a_line_in_time(te):
    rng = np.random.default_rng(1)
    added = rng.normal(0, [0.2, 0.01, 0.01, 0.01], (len(te), 4))
    found = found_in(echoes(te, added), te)
    # The coherent amplitude of each echo is the weight by which the line is taken off.
    weight = np.exp(-2 * 20 * te)
    expected = without_line(added, te, weight)
    got = without_line(found.coefficients, te, weight)
    np.testing.assert_allclose(got[:, 0], expected[:, 0], atol=0.01)
    np.testing.assert_allclose(got[:, 1:], expected[:, 1:], atol=0.0015)


def test_what_is_taken_off_and_the_field_that_is_given_add_up():
    # A phase of every second echo moves the field by no more than a constant and a gradient
    te = EVEN
    added = np.zeros((8, 4))
    added[1::2] = [0.8, 0.02, 0, 0]
    masked = Echoes(echoes(te, added, noise=0.001)[MASK].astype(np.complex64), te, MASK, 3.0)
    found = echo_phase(masked, FIELD[MASK].astype(np.float32), SIZE)
    field = FIELD[MASK] + take_off(masked, found, SIZE)
    left = np.angle(masked.signal * np.exp(-1j * field[:, None] * masked.to_rad))
    # the offset alone is left, the same in all echoes
    np.testing.assert_allclose(left - left[:, :1], 0, atol=0.05)
    assert found.size.max() < 0.6


def test_nothing_is_taken_off_an_ordinary_signal():
    for te, noise in itertools.product((EVEN, EVEN[:3]), (0.002, 0.05)):
        found = found_in(echoes(te, noise=noise), te)
        assert not found.coefficients.any()
        assert not found.field.any()


def test_echoes_of_noise_have_no_say():
    # T2* of 2 ms: the late echoes hold nothing, and nothing is made of them
    fast = np.full(SHAPE, 500.0)
    found = found_in(echoes(EVEN, noise=0.01, rate=fast), EVEN)
    assert not found.coefficients[4:].any()
    assert found.size.max() < 0.05


@pytest.mark.parametrize('size', [0.2, 0.8])
@pytest.mark.parametrize('missing', [None, 0, 1, 4, 7])
def test_fit_of_alternating_readouts_whatever_is_missing(size, missing):
    added = np.zeros((8, 4))
    added[1::2] = [size, size / 20, 0, 0]
    kept = [e for e in range(8) if e != missing]
    te = EVEN[kept]
    signal = echoes(EVEN, added)[..., kept] * MASK[..., None]
    plain = echoes(EVEN)[..., kept] * MASK[..., None]
    fits = [
        fit_echoes(np.abs(s), np.angle(s), te, 3.0, MASK, voxel_size=SIZE, noise_sd=0.005)
        for s in (plain, signal)
    ]
    difference = (fits[1].total_field - fits[0].total_field)[MASK]
    design = positions(MASK, SIZE)[1].astype(float)
    smooth = design @ np.linalg.lstsq(design, difference, rcond=None)[0]
    left = np.abs(difference - smooth) / np.hypot(*(fit.field_sd[MASK] for fit in fits))
    assert np.quantile(left, 0.999) < 3
