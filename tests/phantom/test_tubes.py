"""The simulated phantom against its own specification."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from precondqsm_bids.numerics.constants import GAMMA_BAR
from precondqsm_bids.phantom.acquisition import (
    box_samples,
    kspace_samples,
    measure,
    scanner_affine,
)
from precondqsm_bids.phantom.spec import TubesSpec
from precondqsm_bids.phantom.tubes import simulate_tubes, total_field

SMALL = TubesSpec(
    matrix=(36, 38, 32), voxel_size=(1.6, 1.6, 1.6), object_scale=0.5, coil_shading=0.0
)


@cache
def simulated(**changes):
    return simulate_tubes(replace(SMALL, **changes))


def centre_of(phantom, label):
    """Voxel of a label that is nearest to the label's centre in the middle slices."""
    voxels = np.argwhere(phantom.labels == label)
    return tuple(voxels[np.argmin(np.sum((voxels - voxels.mean(0)) ** 2, axis=1))])


def test_labels_and_truth():
    phantom = simulated()
    assert phantom.label_names == {**{i: f'tube{i}' for i in range(1, 6)}, 6: 'agar'}
    for label, dchi in phantom.label_dchi.items():
        inside = phantom.labels == label
        np.testing.assert_allclose(phantom.chi[inside], dchi, atol=1e-6)
        # 9 sqrt(3) R2' / (2 pi gamma B0) is dchi in theory, 12 % more of it here
        prior = 9 * np.sqrt(3) * (phantom.r2star[inside] - 10) / (4e-6 * np.pi**2 * GAMMA_BAR * 3)
        np.testing.assert_allclose(prior, 1.12 * dchi, atol=1e-5)
    assert not phantom.chi[phantom.density == 0].any()
    assert not phantom.r2star[phantom.density == 0].any()


def test_volumes():
    phantom = simulated(supersampling=4, echo_times=(0.002,))
    voxel = 1.6**3
    container = np.pi * 26**2 * 47.5
    assert phantom.density.sum() * voxel == pytest.approx(container, rel=0.01)
    tube = np.pi * 4**2 * 30
    total = phantom.chi.sum() * voxel
    assert total == pytest.approx(tube * 3.75, rel=0.03)  # 0 + 0.375 + ... + 1.5 ppm


@pytest.mark.parametrize('tilt', [0.0, 25.0])
def test_field_is_the_closed_form_less_low_order_harmonics(tilt):
    phantom = simulated(b0_tilt=tilt)
    voxel = np.indices(phantom.labels.shape).reshape(3, -1).T
    points = (voxel - (np.array(SMALL.matrix) - 1) / 2) * 1.6
    shim = total_field(points, phantom.spec) - phantom.field.ravel()
    x, y, z = points.T
    squares = (x * y, y * z, x * z, x**2 - y**2, 2 * z**2 - x**2 - y**2)
    harmonics = np.stack([np.ones_like(x), x, y, z, *squares], axis=1)
    agar = phantom.labels.ravel() == 6
    fit = np.linalg.lstsq(harmonics[agar], shim[agar], rcond=None)[0]
    # what is left of a harmonic after averaging over voxels is the curvature of the field
    assert np.percentile(np.abs(shim - harmonics @ fit)[agar], 95) < 0.02
    left = np.linalg.lstsq(harmonics[agar], phantom.field.ravel()[agar], rcond=None)[0]
    assert np.abs(harmonics[agar] @ left).max() < 0.3
    assert np.abs(harmonics[agar] @ fit).max() > 1


@pytest.mark.parametrize('sampling', ['box', 'kspace'])
def test_signal_of_pure_voxels(sampling):
    phantom = simulated(sampling=sampling, tubes_dchi=(0.0, -0.4, 0.2))
    for label in (1, 3, 4):
        centre = centre_of(phantom, label)
        signal = phantom.signal[centre]
        expected = phantom.r2star[centre]
        times = np.array(phantom.echo_times)
        rate = np.log(np.abs(signal[0]) / np.abs(signal[3])) / (times[3] - times[0])
        assert rate == pytest.approx(expected, rel=0.1 if sampling == 'kspace' else 0.02)
        turn = np.angle(signal[1] / signal[0]) / (2 * np.pi * (times[1] - times[0]))
        tolerance = 0.02 if sampling == 'kspace' else 0.003
        assert turn / (GAMMA_BAR * 3e-6) == pytest.approx(phantom.field[centre], abs=tolerance)
    assert phantom.r2star[phantom.labels == 2].mean() == pytest.approx(
        10 + 1.12 * 323.5 * 0.4, rel=1e-3
    )


def test_snr():
    phantom = simulated(snr=50.0)
    air = phantom.density == 0
    # Rayleigh: <m^2> = 2 sigma^2, with sigma = agar at TE -> 0 / SNR
    assert np.sqrt(np.mean(phantom.magnitude[air] ** 2) / 2) == pytest.approx(1 / 50, rel=0.01)
    agar = phantom.labels == 6
    at_zero = phantom.magnitude[agar, 0].mean() * np.exp(10 * 0.00138)
    assert at_zero == pytest.approx(1, rel=0.01)
    noise = phantom.magnitude * np.exp(1j * phantom.phase) - phantom.signal
    assert noise.real.std() == pytest.approx(0.02, rel=0.01)
    assert noise.imag.std() == pytest.approx(0.02, rel=0.01)


def test_noise_follows_the_seed():
    signal = simulated().signal
    first, again, other = (measure(signal, 80, seed)[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.corrcoef((first - other).ravel(), (first - np.abs(signal)).ravel())[0, 1] < 0.8
    magnitude, phase = measure(signal, np.inf, 0)
    np.testing.assert_allclose(magnitude * np.exp(1j * phase), signal, atol=1e-6)


def test_air_bubble():
    phantom = simulated(air_bubble=1.8, tubes_dchi=(0.5,))
    full = simulated(tubes_dchi=(0.5,))
    missing = (full.density.sum() - phantom.density.sum()) * 1.6**3
    assert missing == pytest.approx(4 / 3 * np.pi * 1.8**3, rel=0.15)
    # the field of a sphere of +9.41 ppm relative to its medium, at its equator and pole
    centre = np.array(phantom.spec.bubble_centre)
    pole, equator = centre - np.array([0, 0, 4.0]), centre + np.array([4.0, 0, 0])
    both = np.array([pole, equator])
    change = total_field(both, phantom.spec) - total_field(both, full.spec)
    np.testing.assert_allclose(change, 9.41 * (1.8 / 4) ** 3 * np.array([2, -1]) / 3, rtol=1e-6)


def test_tilt_is_in_the_affine():
    spec = TubesSpec(b0_tilt=30.0, voxel_size=(1.0, 1.0, 1.2))
    affine = scanner_affine(spec)
    rotation = affine[:3, :3] / np.array(spec.voxel_size)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    np.testing.assert_allclose(rotation.T @ [0, 0, 1], [0, 0.5, np.sqrt(0.75)], atol=1e-12)
    np.testing.assert_allclose(rotation.T @ [0, 0, 1], spec.b0_dir, atol=1e-12)
    isocentre = affine @ [63.5, 63.5, 52.5, 1]
    np.testing.assert_allclose(isocentre[:3], 0, atol=1e-12)


@pytest.mark.parametrize('factor', [1, 2, 3])
@pytest.mark.parametrize('n', [15, 16])
def test_kspace_samples_a_low_frequency_exactly(n, factor):
    fine = (np.arange(n * factor) - (factor - 1) / 2) / factor
    wave = np.exp(2j * np.pi * 3 * fine / n)[:, None] * [1, 2j]
    expected = np.exp(2j * np.pi * 3 * np.arange(n) / n)[:, None] * [1, 2j]
    np.testing.assert_allclose(kspace_samples(wave, factor, 0), expected, atol=1e-6)
    too_fast = np.exp(2j * np.pi * (n // 2 + 1) * fine / n)
    if factor > 1:
        np.testing.assert_allclose(kspace_samples(too_fast, factor, 0), 0, atol=1e-6)


def test_box_samples_are_means():
    fine = np.arange(24.0).reshape(2, 12)
    np.testing.assert_allclose(box_samples(fine, 3, 1), [[1, 4, 7, 10], [13, 16, 19, 22]])


@pytest.mark.parametrize(
    'changes, words',
    [
        ({'matrix': (90, 128, 106)}, '104 x 104 x 95 mm'),
        ({'echo_times': (1.38, 4.18)}, 'milliseconds'),
        ({'echo_times': (0.004, 0.002)}, 'ascending'),
        ({'tubes_dchi': (0.1,) * 9}, '1 to 8'),
        ({'tubes_dchi': (float('nan'),)}, 'nan'),
        ({'air_bubble': 9.0}, '6.75 mm at most'),
        ({'snr': 0.0}, 'snr'),
        ({'voxel_size': (1.0, 0.0, 1.0)}, 'voxel_size'),
        ({'supersampling': 0}, 'supersampling'),
        ({'sampling': 'sinc'}, "'sinc'"),
        ({'field_strength': -3.0}, 'field_strength'),
    ],
)
def test_impossible_phantoms_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        TubesSpec(**changes)


@pytest.mark.slow
def test_default_is_the_published_phantom():
    phantom = simulate_tubes()
    assert phantom.magnitude.shape == (128, 128, 106, 8)
    assert phantom.echo_times == pytest.approx(1.38e-3 + 2.8e-3 * np.arange(8))
    # bulk phase of a tube parallel to B0 against the agar beside it: about dchi / 3, less the
    # demagnetisation of a tube 3.75 times as long as wide, from the on-axis solenoid
    demagnetisation = 1 - 30 / np.hypot(30, 8)
    for centre, dchi in zip(phantom.spec.tube_centres, phantom.spec.tubes_dchi, strict=True):
        x, y = np.rint(np.array(centre[:2]) + 63.5).astype(int)
        ring = [
            phantom.field[x + dx, y + dy, 53] for dx, dy in ((10, 0), (-10, 0), (0, 10), (0, -10))
        ]
        step = phantom.field[x, y, 53] - np.mean(ring)
        # what is left is the tube's own field 10 mm off its axis and the shim's second order
        assert step == pytest.approx(dchi * (1 / 3 - demagnetisation), abs=0.03 * dchi + 0.02)
