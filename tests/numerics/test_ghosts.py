"""Ghosts of a field that fluctuates, simulated line by line with coils, and what is no ghost."""

import os
from pathlib import Path

import nibabel as nb
import numpy as np
import pytest

from precondqsm_bids.numerics import Scan, measure_field
from precondqsm_bids.numerics.ghosts import find_ghosts, without_ghosts

ROOT = Path(__file__).parents[2]
REAL = Path(os.environ.get('PRECONDQSM_REAL', ROOT.parent / 'shared' / 'real'))
SHAPE = (48, 56, 32)
X, Y, Z = np.meshgrid(*(np.arange(n) - n / 2 + 0.5 for n in SHAPE), indexing='ij')
OBJECT = (X / 15) ** 2 + (Y / 19) ** 2 + (Z / 11) ** 2 < 1
INNER = (X / 13) ** 2 + (Y / 17) ** 2 + (Z / 9) ** 2 < 1
DENSITY = OBJECT * (1 + 0.3 * np.sin(X / 3) * np.sin(Y / 4))
FIELD = 0.05 * np.sin(X / 6) * np.cos(Z / 5) + 0.1 * np.cos(Y / 9)
TE = np.array([4e-3, 10e-3, 16e-3, 22e-3])
HZ = 3 * 42.57638543


def coils(number):
    """Sensitivities of a ring of coils: smooth magnitudes and phases of their own."""
    if number == 1:
        return [np.ones(SHAPE)]
    angles = 2 * np.pi * np.arange(number) / number
    return [
        np.exp(-((X - 26 * np.cos(a)) ** 2 + (Y - 30 * np.sin(a)) ** 2) / 1500)
        * np.exp(1j * (a + 0.03 * X * np.cos(a) + 0.02 * Y * np.sin(a)))
        for a in angles
    ]


def breathing(number, ppm):
    """Field that each line sees, ppm, in the order of k-space: sped up and slowed down."""
    n = np.fft.fftfreq(number, 1 / number)
    return ppm * np.sin(1.9 * n + 1) * (1 + 0.3 * np.sin(0.13 * n))


def scan(ppm, axis=1, n_coils=1, along=0.0, te=TE, noise=0.01):
    """Echoes whose lines along an axis see a field of their own, which varies along z too.

    Each coil receives the object, the scanner encodes, and the coils are combined by their
    sensitivities.
    """
    rng, sensitivities = np.random.default_rng(0), coils(n_coils)
    lines = np.expand_dims(breathing(SHAPE[axis], ppm), [a for a in range(3) if a != axis])
    where = 1 + along * Z / 16
    if axis == 2:
        where = np.ones(SHAPE)  # along its own axis the field is not one of lines
    images = []
    for time in te:
        still = DENSITY * np.exp((2j * np.pi * HZ * FIELD - 30) * time)
        turn = np.exp(2j * np.pi * HZ * time * lines * where)
        total, weight = 0, 0
        for sensitivity in sensitivities:
            seen = np.fft.ifft(np.fft.fft(still * sensitivity, axis=axis) * turn, axis=axis)
            seen = seen + noise * (rng.normal(size=SHAPE) + 1j * rng.normal(size=SHAPE))
            total = total + sensitivity.conj() * seen
            weight = weight + np.abs(sensitivity) ** 2
        images.append(total / np.sqrt(weight))
    signal = np.stack(images, -1)
    return np.abs(signal), np.angle(signal)


def error(magnitude, phase):
    """Standard deviation of the error of the field by the advance of the phase, ppm."""
    signal = magnitude * np.exp(1j * phase) * np.exp(-2j * np.pi * HZ * FIELD[..., None] * TE)
    pairs = signal[..., 1:] * signal[..., :-1].conj()
    found = np.angle(pairs.sum(-1)) / (2 * np.pi * HZ * np.diff(TE)[0])
    return float(np.std(found[INNER]))


@pytest.mark.parametrize(
    'axis, n_coils, along', [(0, 1, 0.0), (1, 1, 0.6), (2, 1, 0.0), (1, 8, 0.0), (1, 8, 0.6)]
)
def test_a_fluctuating_field_is_found_and_most_of_its_error_gone(axis, n_coils, along):
    measured = scan(0.01, axis, n_coils, along)
    found = find_ghosts(*measured, TE, OBJECT)
    assert found.axis == axis
    expected = breathing(SHAPE[axis], 0.01) * HZ
    inner = np.abs(np.fft.fftfreq(SHAPE[axis])) < 0.2  # the outer lines hold next to no signal
    assert np.corrcoef(found.frequency[inner], expected[inner])[0, 1] > 0.85
    np.testing.assert_allclose(found.size, 2 * np.pi * expected.std() * TE[-1], rtol=0.4)
    still = error(*scan(0.0, axis, n_coils))
    before, after = (
        np.sqrt(error(*images) ** 2 - still**2)
        for images in (measured, without_ghosts(*measured, TE, found))
    )
    assert after < 0.5 * before


def test_one_echo_is_enough():
    te = np.array([0.02])
    measured = scan(0.01, te=te)
    found = find_ghosts(*measured, te, OBJECT)
    still = scan(0.0, te=te)[0]
    after, _ = without_ghosts(*measured, te, found)
    air = ~OBJECT
    assert np.mean(measured[0][air] ** 2) > 2 * np.mean(still[air] ** 2)
    assert np.mean(after[air] ** 2) < 1.2 * np.mean(still[air] ** 2)


def cropped(image):
    """The inner half of k-space, as a scanner crops it: it rings."""
    lines = np.fft.fftshift(np.fft.fftn(image))
    inner = tuple(slice(n // 4, n // 4 + n // 2) for n in image.shape)
    return np.fft.ifftn(np.fft.ifftshift(lines[inner])) / 8


@pytest.mark.parametrize('ringing', [False, True])
def test_noise_and_ringing_are_no_ghosts(ringing):
    measured, inside = scan(0.0), OBJECT
    if ringing:
        signal = scan(0.0, noise=0)[0] * np.exp(1j * scan(0.0, noise=0)[1])
        signal = np.stack([cropped(echo) for echo in np.moveaxis(signal, -1, 0)], -1)
        rng = np.random.default_rng(1)
        signal = signal + 1e-3 * (
            rng.normal(size=signal.shape) + 1j * rng.normal(size=signal.shape)
        )
        measured = np.abs(signal), np.angle(signal)
        inside = OBJECT.reshape(24, 2, 28, 2, 16, 2).any((1, 3, 5))
    assert find_ghosts(*measured, TE, inside) is None


def test_without_air_nothing_is_looked_for():
    magnitude, phase = scan(0.01)
    zeroed = np.where(OBJECT[..., None], magnitude, 0)
    assert find_ghosts(zeroed, phase, TE, OBJECT) is None
    assert find_ghosts(magnitude, phase, TE, np.ones(SHAPE, bool)) is None


@pytest.mark.skipif(not (REAL / 'round_phantom_3t').is_dir(), reason='real scans not found')
def test_a_bottle_that_rings_far_has_no_ghosts():
    """Its edges ring along the phase encoding, and the scanner set some of the air to zero."""
    folder = REAL / 'round_phantom_3t' / 'raw' / 'sub-01' / 'anat'
    magnitude, phase = (
        np.stack(
            [
                np.asarray(
                    nb.load(folder / f'sub-01_echo-{e}_part-{part}_MEGRE.nii.gz').dataobj,
                    np.float32,
                )
                for e in (1, 2)
            ],
            -1,
        )
        for part in ('mag', 'phase')
    )
    bottle = magnitude[..., 0] > 0.15 * np.percentile(magnitude[..., 0], 95)
    te = [2.5e-3, 5.5e-3]
    assert find_ghosts(magnitude + 1, 2 * np.pi * phase / 4096, te, bottle) is None


def test_images_in_single_precision_may_be_overwritten():
    measured = tuple(image.astype(np.float32) for image in scan(0.01))
    found = find_ghosts(*measured, TE, OBJECT)
    plain = without_ghosts(*measured, TE, found)
    assert plain[0] is not measured[0]
    after = without_ghosts(*measured, TE, found, workers=2, overwrite=True)
    for before, image, expected in zip(measured, after, plain, strict=True):
        assert image is before
        np.testing.assert_array_equal(image, expected)


def test_the_field_of_a_scan_is_freed_of_them_and_the_record_says_so():
    def record_of(images, shape_mask=OBJECT, **changes):
        found = measure_field(
            Scan(*images, TE, 3.0, phase_units='rad', phase_sign=1)._replace(**changes),
            INNER, shape_mask,
        )  # fmt: skip
        left = (found.total_field - FIELD)[INNER]
        return found, float(np.std(left))

    measured = scan(0.01)
    still, least = record_of(scan(0.0))
    found, after = record_of(measured, stored_axes=(0, 2, 1))
    _, before = record_of(measured, None)
    assert before > 1.5 * least
    assert after - least < 0.3 * (before - least)
    assert found.record['ghost_axis'] == 'k'
    assert found.record['ghost_size'] == pytest.approx(0.12, abs=0.05)
    assert any('breathing' in text and 'axis k' in text for text in found.record['warnings'])
    assert (still.record['ghost_axis'], still.record['ghost_size']) == (None, 0)
    assert not any('breathing' in text for text in still.record['warnings'])
    air = ~OBJECT
    assert np.mean(found.magnitude[air] ** 2) < 1.1 * np.mean(still.magnitude[air] ** 2)


def test_a_phase_difference_has_no_lines():
    magnitude, phase = scan(0.01)
    difference = Scan(
        magnitude[..., 3:], np.angle(np.exp(1j * (phase[..., 3:] - phase[..., :1]))), [18e-3], 3.0,
        phase_units='rad', phase_sign=1, phase_difference=True,
    )  # fmt: skip
    assert measure_field(difference, INNER, OBJECT).record['ghost_axis'] is None
