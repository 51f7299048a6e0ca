"""Lines of k-space that were left out, by an object whose lines are set to zero."""

import numpy as np
import pytest

from precondqsm_bids.numerics import Scan, measure_field
from precondqsm_bids.numerics.partial_fourier import measured_lines

SHAPE = (40, 36, 33)
X, Y, Z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing='ij')
BALL = X**2 + Y**2 + Z**2 < 0.6
TE = np.array([4e-3, 8e-3, 12e-3])
FIELD = 0.1 * X * Y + 0.05 * Z
TURNS = 2 * np.pi * 3 * 42.57638543


def echo(time, noise=0.01):
    """A ball with texture in a field, with a phase of the coil."""
    rng = np.random.default_rng(0)
    density = BALL * (1 + 0.2 * rng.normal(size=SHAPE))
    signal = density * np.exp((1j * TURNS * FIELD - 30) * time + 0.5j * X)
    return signal + noise * (rng.normal(size=SHAPE) + 1j * rng.normal(size=SHAPE))


def without(signal, axis, share, side):
    """The signal without the outermost lines on one side."""
    number = signal.shape[axis]
    frequency = side * np.fft.fftfreq(number, 1 / number)
    missing = round((1 - share) * number)
    keep = frequency < (number + 1) // 2 - missing
    keep = keep.reshape([-1 if a == axis else 1 for a in range(3)])
    return np.fft.ifft(np.fft.fft(signal, axis=axis) * keep, axis=axis)


@pytest.mark.parametrize('side', [1, -1])
@pytest.mark.parametrize('share', [0.875, 0.75, 0.625])
@pytest.mark.parametrize('axis', [0, 1, 2])
def test_the_share_of_the_lines_is_found(axis, share, side):
    signal = without(echo(TE[0]), axis, share, side)
    found = measured_lines(np.abs(signal), np.angle(signal), BALL)
    assert found[axis] == pytest.approx(share, abs=0.05)
    assert [found[a] for a in range(3) if a != axis] == [1, 1]


@pytest.mark.parametrize('noise', [1e-6, 0.01, 0.3])
def test_all_lines_are_found(noise):
    signal = echo(TE[2], noise)
    assert measured_lines(np.abs(signal), np.angle(signal), BALL) == (1, 1, 1)
    for number in (1, 3, 8):
        thin = signal[:, :, :number]
        found = measured_lines(np.abs(thin), np.angle(thin), BALL[:, :, :number] | True)
        assert found == (1, 1, 1)


@pytest.mark.parametrize('share', [1, 0.75])
@pytest.mark.parametrize('ramp', [1.2, 2.2, 2.9, np.pi])
def test_a_ramp_of_phase_is_no_missing_line(ramp, share):
    """As of scanners that do not centre k-space."""
    signal = without(echo(TE[0], 0.001), 1, share, 1)
    signal = signal * np.exp(1j * ramp * np.arange(SHAPE[1]))[:, None]
    found = measured_lines(np.abs(signal), np.angle(signal), BALL)
    assert found == (1, pytest.approx(share, abs=0.05), 1)


def test_nothing_and_a_constant_have_all_lines():
    everywhere = np.ones(SHAPE, bool)
    for value in (0.0, 1.0):
        assert measured_lines(np.full(SHAPE, value), np.zeros(SHAPE), everywhere) == (1, 1, 1)


@pytest.mark.parametrize('share', [1, 0.75])
def test_a_scan_warns_of_the_axis_of_its_file(share):
    signal = np.stack([without(echo(time), 1, share, -1) for time in TE], -1)
    scan = Scan(
        np.abs(signal), np.angle(signal), TE, 3.0,
        phase_units='rad', phase_sign=1, stored_axes=(1, 2, 0),
    )  # fmt: skip
    record = measure_field(scan, BALL).record
    assert record['measured_lines'] == pytest.approx([1, 1, share], abs=0.05)
    warned = [text for text in record['warnings'] if 'partial Fourier' in text]
    assert len(warned) == (share < 1)
    assert all('axis k' in text for text in warned)
    difference = scan._replace(
        magnitude=scan.magnitude[..., :1], phase=scan.phase[..., :1], echo_times=TE[:1],
        phase_difference=True,
    )  # fmt: skip
    assert measure_field(difference, BALL).record['measured_lines'] is None
