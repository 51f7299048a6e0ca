"""Each effect of scanner and body against closed forms, naive sums and statistics."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from math import lgamma
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from precondqsm_bids.numerics.constants import WATER_IN_AIR, hz_per_ppm
from precondqsm_bids.phantom import coils
from precondqsm_bids.phantom import scanner as effects
from precondqsm_bids.phantom.acquisition import Readout, Spins, echo_planes, fit_shim, measure
from precondqsm_bids.phantom.cli import build_parser, main, spec_of
from precondqsm_bids.phantom.fields import cylinder_field
from precondqsm_bids.phantom.head import simulate_head
from precondqsm_bids.phantom.head_spec import FIELD_CENTRE, HeadSpec
from precondqsm_bids.phantom.scanner_spec import ALL, SWITCHES, Scanner, scanner
from precondqsm_bids.phantom.spec import TubesSpec
from precondqsm_bids.phantom.tissues import INDEX
from precondqsm_bids.phantom.tubes import _Object, shim, simulate_tubes, total_field

TUBES = TubesSpec(
    matrix=(24, 22, 14),
    voxel_size=(6.0, 6.0, 9.0),
    echo_times=(0.003, 0.006, 0.010, 0.015),
    tubes_dchi=(0.0, 0.4, -0.3),
    snr=float('inf'),
)
HEAD = HeadSpec(voxel_size=(5.0, 5.0, 5.0), echo_times=(0.004, 0.012), snr=float('inf'))


@cache
def tubes(*names, spec=TUBES, **changes):
    return simulate_tubes(replace(spec, scanner=scanner(*names, **changes)))


@cache
def head(*names, **changes):
    return simulate_head(replace(HEAD, scanner=scanner(*names, **changes)))


def spec_with(*names, spec=TUBES, **changes):
    return replace(spec, scanner=scanner(*names, **changes))


def coordinates(spec):
    return np.meshgrid(*effects.voxel_axes(spec), indexing='ij')


# -- switches ----------------------------------------------------------------------------------


def test_ideal_scanner_changes_no_bit():
    # the path without any scanner, put together from its parts
    spec = replace(TUBES, snr=80.0, b0_tilt=10.0)
    body = _Object(spec)
    readout = Readout(spec.matrix, spec.supersampling, len(spec.echo_times), spec.sampling)
    for k in range(len(body.z)):
        material, _, field, r2star = body.plane(k)
        on = (material >= 0) & (material <= 3)
        u, v = body.x[:, None] / 52, body.y[None] / 52
        offset = 0.4 + 0.3 * u + 0.25 * v**2 - 0.15 * (2 * body.z[k] / 95)
        spins = Spins(body._coil[on], offset[on], field[on], r2star[on])
        readout.add(k, echo_planes(on, spins, spec.echo_times, 3.0))
    signal = readout.voxels()
    phantom = simulate_tubes(spec, seed=3)
    assert phantom.signal.tobytes() == signal.tobytes()
    for found, expected in zip(
        (phantom.magnitude, phantom.phase), measure(signal, 80.0, 3), strict=True
    ):
        assert found.tobytes() == expected.tobytes()


def test_every_switch_does_something_alone():
    clean = simulate_tubes(replace(TUBES, snr=80.0))
    assert scanner() == Scanner()
    assert Scanner().ideal
    for name in SWITCHES:
        settings = scanner(name)
        assert settings.switched_on() == [name]
        phantom = simulate_tubes(replace(TUBES, snr=80.0, scanner=settings))
        differs = not np.array_equal(phantom.magnitude, clean.magnitude)
        assert differs or not np.array_equal(phantom.phase, clean.phase), name


def test_all_takes_one_of_each_kind():
    settings = scanner('all')
    assert settings.switched_on() == list(ALL)
    default = Scanner()
    for field in Scanner.__dataclass_fields__:
        assert getattr(settings, field) != getattr(default, field)
    assert scanner('all', 'coils-32', 'background-zero', bipolar=0.8) == replace(
        settings, coils=32, background='zero', bipolar=0.8
    )


@pytest.mark.parametrize(
    'names',
    [
        ('receive-smooth', 'receive-lobed'),
        ('receive-poles', 'ghost', 'receive-smooth'),
        ('coils-8', 'coils-32'),
        ('background-zero', 'background-normalised'),
    ],
)
def test_those_that_exclude_each_other_are_refused(names):
    with pytest.raises(ValueError, match=rf'{names[0]} and {names[-1]} exclude each other'):
        scanner(*names)


@pytest.mark.parametrize(
    'changes, words',
    [
        ({'coils': 4}, r'coils .*1, 8, 32.* not 4'),
        ({'receive': 'x'}, 'receive'),
        ({'partial_fourier': 0.5}, 'partial_fourier'),
        ({'relaxivity': 1.5}, 'relaxivity'),
        ({'ghost': float('nan')}, 'ghost'),
        ({'eddy_currents': -1.0}, 'eddy_currents'),
    ],
)
def test_values_out_of_range(changes, words):
    with pytest.raises(ValueError, match=words):
        Scanner(**changes)


def test_unknown_name():
    with pytest.raises(ValueError, match=r'gibbs.*ghost'):
        scanner('gibbs')


def test_remeasure_has_the_same_statistics_and_other_noise():
    spec = replace(TUBES, snr=50.0, scanner=scanner('all'))
    first = simulate_tubes(spec, seed=1)
    again = first.remeasure(1)
    assert np.array_equal(first.magnitude, again.magnitude)
    assert np.array_equal(first.phase, again.phase)
    assert not np.array_equal(first.phase, first.remeasure(2).phase)


# -- phase of each echo ------------------------------------------------------------------------


def ratio(one, other):
    """Phase of one signal relative to another, where there is signal in both."""
    strong = np.abs(other) > 0.05
    return np.where(strong, np.angle(one * other.conj()), np.nan)


@pytest.mark.parametrize('slices', [None, 5])
def test_constants_and_gradients_of_each_echo(slices):
    spec = replace(TUBES, slices=slices)
    found = tubes('eddy-currents', spec=spec, bipolar=0.2)
    constant, gradient = effects.echo_phase(found.spec)
    where = np.stack(coordinates(found.spec))
    for e in range(4):
        expected = constant[e] + np.tensordot(gradient[e], where, 1)
        error = ratio(found.signal[..., e], tubes(spec=spec).signal[..., e]) - expected
        assert np.nanmax(np.abs(error)) < 1e-5
    # without the readouts, constants and gradients have the size that was asked for
    constant, gradient = effects.echo_phase(spec_with(eddy_currents=0.12))
    assert np.sqrt(np.mean(constant**2)) == pytest.approx(0.12)
    np.testing.assert_allclose(np.sqrt(np.mean(gradient**2, axis=0)) * 52, 0.12)


def test_even_and_odd_echoes_of_eddy_currents_differ():
    spec = replace(TUBES, echo_times=tuple(0.003 * np.arange(1, 9)))
    constant, gradient = effects.echo_phase(spec_with('eddy-currents', spec=spec))
    every = np.column_stack([constant, gradient * 52])
    # the difference of the means is the twofold of the alternating half of the power, roughly
    assert np.abs(every[::2].mean(0) - every[1::2].mean(0)).mean() > 0.15


@pytest.mark.parametrize('size', [0.2, 0.3, 0.8])
def test_alternating_readouts(size):
    spec = spec_with('bipolar', bipolar=size)
    constant, gradient = effects.echo_phase(spec)
    np.testing.assert_allclose(constant, [0, size, 0, size])
    np.testing.assert_allclose(gradient[:, 0] * 52, [0, size, 0, size])
    assert not gradient[:, 1:].any()


def test_first_echo_alone():
    found = tubes('first-echo', first_echo=0.3)
    x, y, z = coordinates(TUBES)
    expected = 0.3 * 0.5 ** ((x**2 + y**2 + z**2) / 52**2)
    error = ratio(found.signal[..., 0], tubes().signal[..., 0]) - expected
    assert np.nanmax(np.abs(error)) < 1e-5
    assert np.array_equal(found.signal[..., 1:], tubes().signal[..., 1:])


# -- lines of k-space --------------------------------------------------------------------------


def naive_lines(image, weights):
    """Weighted sum over the lines, with the Fourier transform as a matrix."""
    n = image.shape[1]
    k = np.arange(n) - n // 2
    to_k = np.exp(-2j * np.pi * np.outer(k, np.arange(n)) / n)
    back = np.exp(2j * np.pi * np.outer(np.arange(n), k) / n) / n
    return np.einsum('jk,k,kl,xlz->xjz', back, weights, to_k, image)


def test_partial_fourier_against_a_naive_transform():
    found, plain = tubes('partial-fourier'), tubes()
    k = np.arange(22) - 11
    weights = np.where(k < -5, 0.0, 1.0)
    weights[k == -5] = 0.5  # the flank of one line; 16 or 17 of 22 are measured
    expected = naive_lines(plain.signal[..., 2], weights)
    np.testing.assert_allclose(found.signal[..., 2], expected, atol=1e-5)


def test_share_of_the_lines_that_partial_fourier_takes():
    for number in (64, 96, 116, 128):
        weights = effects.partial_fourier(number, 0.75)
        assert np.sum(weights > 0) == 0.75 * number
        assert (weights[number // 2 - 3 :] == 1).all()
    assert (effects.partial_fourier(64, 1.0) == 1).all()


def test_ghost_is_a_naive_sum_and_grows_with_the_echo_time():
    found, plain = tubes('ghost', ghost=0.01), tubes()
    sizes = []
    for e, time in enumerate(TUBES.echo_times):
        line = np.arange(22)
        peak = 0.01 * hz_per_ppm(3.0)
        turn = 2 * np.pi * peak * time * np.sin(2 * np.pi * 0.3 * line + 1)
        expected = naive_lines(plain.signal[..., e], np.exp(1j * turn))
        np.testing.assert_allclose(found.signal[..., e], expected, atol=1e-5)
        sizes.append(np.linalg.norm(found.signal[..., e] - plain.signal[..., e]))
    assert (np.diff(sizes) > 0).all()


def test_ghost_of_a_point_lies_where_it_should():
    spec = replace(TUBES, matrix=(24, 40, 14), scanner=scanner('ghost', ghost=0.006))
    point = np.zeros((1, 40, 1), np.complex64)
    point[0, 20] = 1
    image = np.abs(effects.line_weights(point, effects.breathing(spec, 0.02)))[0, :, 0]
    first, left, right = np.argsort(image)[::-1][:3]
    assert first == 20
    assert {left, right} == {8, 32}
    # the first sidebands of a modulation by a are a / 2
    assert image[8] == pytest.approx(np.pi * 0.006 * hz_per_ppm(3.0) * 0.02, rel=0.02)


def test_crop_is_kspace_sampling():
    other = simulate_tubes(replace(TUBES, sampling='kspace'))
    assert np.array_equal(tubes('crop').signal, other.signal)


# -- coils -------------------------------------------------------------------------------------


def test_loop_against_biot_and_savart():
    turn = np.linspace(0, 2 * np.pi, 2001)[:-1]
    wire = 3 * np.stack([np.cos(turn), np.sin(turn), 0 * turn], axis=-1)
    piece = 2 * np.pi / 2000 * 3 * np.stack([-np.sin(turn), np.cos(turn), 0 * turn], axis=-1)
    for point in ([0.5, 0.2, 1.0], [4.0, -1.0, 2.0], [0.0, 0.0, -2.0], [-1.0, 2.0, 0.0]):
        away = np.array(point) - wire
        field = (np.cross(piece, away) / np.linalg.norm(away, axis=1)[:, None] ** 3).sum(0)
        across, along = coils.loop_field(*point, 3.0)
        # the closed form is that of a current of one half
        assert along == pytest.approx(field[2] / 2, rel=1e-6)
        rho = np.hypot(*point[:2])
        outwards = field[:2] @ np.array(point[:2]) / rho if rho else 0
        assert across == pytest.approx(outwards / 2, rel=1e-6, abs=1e-5)


def test_sensitivity_is_that_of_a_loop_facing_inwards():
    # turning loop and point together turns the transverse field: its phase falls by the angle
    first = coils.loop_sensitivity(20.0, 5.0, 12.0, 0.0, 0.3, 50.0)
    x, y = (
        20 * np.cos(0.7) - 5 * np.sin(0.7),
        20 * np.sin(0.7) + 5 * np.cos(0.7),
    )
    turned = coils.loop_sensitivity(x, y, 12.0, 0.7, 0.3, 50.0)
    assert turned == pytest.approx(first * np.exp(-0.7j), rel=1e-5)
    # at the centre it points from the loop inwards: along -x
    centre = coils.loop_sensitivity(0.0, 0.0, 0.0, 0.0, 0.0, 50.0)
    assert centre.real < 0
    assert abs(centre.imag) < 1e-6


@cache
def array(n_coils, receive):
    axes = np.arange(-48, 49, 4.0), np.arange(-48, 49, 4.0), np.arange(-40, 41, 20.0)
    return coils.Array(axes, 50.0, n_coils, receive), axes


@pytest.mark.parametrize('n_coils', [8, 32])
@pytest.mark.parametrize('receive', ['none', 'smooth', 'lobed', 'poles'])
def test_coils_and_weights_are_normalised(n_coils, receive):
    found, _ = array(n_coils, receive)
    every = list(found.coils())
    assert len(every) == n_coils
    for values in zip(*every, strict=True):
        np.testing.assert_allclose(sum(np.abs(v) ** 2 for v in values), 1, rtol=1e-4)
    expected = sum(s * w for s, w in every)
    np.testing.assert_allclose(found.combination(), expected, atol=1e-6)
    if receive == 'none':
        np.testing.assert_allclose(expected, 1, atol=1e-5)


def windings(turn):
    """Whole turns of a phase around each square of four points of a plane."""
    corners = turn[:-1, :-1], turn[1:, :-1], turn[1:, 1:], turn[:-1, 1:]
    steps = (
        np.angle(b * a.conj()) for a, b in zip(corners, corners[1:] + corners[:1], strict=True)
    )
    return np.rint(sum(steps) / (2 * np.pi)).astype(int)


@pytest.mark.parametrize('n_coils', [8, 32])
def test_poles_and_none(n_coils):
    for receive in ('poles', 'lobed', 'smooth'):
        found, (x, y, _) = array(n_coils, receive)
        inside = np.hypot(x[:-1, None] + 2, y[:-1] + 2) < 44
        turns = windings(coils.unit(found.combination()[:, :, 2]))
        if receive == 'poles':
            # one way round, once: the phase of a loop falls with its angle
            assert np.sum(turns[inside]) == -1
            assert np.sum(np.abs(turns[inside])) == 1
        else:
            assert not turns[inside].any()


def test_poles_are_in_the_signal_of_tubes_and_head():
    for phantom, ideal in ((tubes('receive-poles'), tubes()), (head('receive-poles'), head())):
        spec = phantom.spec
        k = spec.matrix[2] // 2
        turn = coils.unit(phantom.signal[:, :, k, 0] * ideal.signal[:, :, k, 0].conj())
        x, y, _ = effects.voxel_axes(spec)
        near = np.hypot(x[:-1, None], y[:-1]) < 0.5 * spec.object_radius
        assert np.abs(windings(turn)[near]).sum() == 1
        np.testing.assert_allclose(np.abs(phantom.signal), np.abs(ideal.signal), rtol=1e-5)


def test_lobes_are_no_quartic_and_the_smooth_one_is():
    residual = {}
    for receive in ('smooth', 'lobed'):
        found, axes = array(8, receive)
        x, y, z = (a / 50 for a in np.meshgrid(*axes, indexing='ij'))
        phase = np.unwrap(np.unwrap(np.angle(found.combination()), axis=0), axis=1)
        inside = (np.hypot(x, y) < 0.95) & (np.abs(z) < 0.5)
        powers = [
            x**i * y**j * z**k
            for i in range(5)
            for j in range(5 - i)
            for k in range(3)
            if i + j + k <= 4
        ]
        basis = np.stack(powers, -1)[inside]
        fit = basis @ np.linalg.lstsq(basis, phase[inside], rcond=None)[0]
        residual[receive] = np.std(phase[inside] - fit)
    assert residual['smooth'] < 0.03 < 0.06 < residual['lobed']


@pytest.mark.parametrize('n_coils', [8, 32])
def test_background_of_a_sum_of_squares_is_a_chi_distribution(n_coils):
    spec = replace(TUBES, matrix=(40, 40, 14), snr=50.0, scanner=scanner(f'coils-{n_coils}'))
    phantom = simulate_tubes(spec, seed=1)
    air = ndimage.binary_erosion(phantom.density == 0, iterations=2)
    noise = phantom.magnitude[air].astype(float).ravel()
    # chi distribution of 2 N degrees of freedom
    mean = np.sqrt(2) / 50 * np.exp(lgamma(n_coils + 0.5) - lgamma(n_coils))
    sd = np.sqrt(2 * n_coils / 50**2 - mean**2)
    error = sd / np.sqrt(noise.size)
    assert abs(noise.mean() - mean) < 4 * error
    assert noise.std() == pytest.approx(sd, rel=4 / np.sqrt(2 * noise.size))


@pytest.mark.parametrize('names', [('coils-8',), ('coils-8', 'receive-lobed'), ('coils-32',)])
def test_noise_in_the_object(names):
    spec = replace(TUBES, matrix=(40, 40, 14), snr=100.0, scanner=scanner(*names))
    phantom = simulate_tubes(spec, seed=1)
    inside = (phantom.labels == 4) & (np.abs(phantom.signal[..., 0]) > 0.5)
    signal = phantom.signal[inside, 0]
    # the sum of squares is biased by (2 N - 1) sigma^2 / (2 S), its deviation is sigma
    n_coils = spec.scanner.coils
    excess = phantom.magnitude[inside, 0] - np.abs(signal)
    bias = (2 * n_coils - 1) / 100**2 / 2 / np.abs(signal)
    assert np.mean(excess - bias) == pytest.approx(0, abs=5 * 0.01 / np.sqrt(signal.size))
    assert np.std(excess - bias) == pytest.approx(0.01, rel=0.05)
    size = np.abs(effects.receive_array(spec).combination())[inside]
    turned = np.angle(np.exp(1j * phantom.phase[inside, 0]) * signal.conj())
    assert np.std(turned * np.abs(signal) * size) == pytest.approx(0.01, rel=0.05)


def test_phase_is_noisier_near_a_pole():
    spec = replace(TUBES, snr=30.0, scanner=scanner('receive-poles'))
    phantom = simulate_tubes(spec, seed=1)
    size = np.abs(effects.receive_array(spec).combination())
    inside = phantom.labels == 4
    error = np.angle(np.exp(1j * phantom.phase[..., 0]) * phantom.signal[..., 0].conj())
    near, far = inside & (size < 0.15), inside & (size > 0.6)
    assert np.std(error[near]) > 3 * np.std(error[far])
    plain = simulate_tubes(replace(TUBES, snr=30.0), seed=1)
    # the magnitude has the noise of one channel
    for one in (phantom, plain):
        excess = one.magnitude[..., 0] - np.abs(one.signal[..., 0])
        assert np.std(excess[inside]) == pytest.approx(1 / 30, rel=0.1)


# -- background and storage --------------------------------------------------------------------


def test_background_of_zero_and_damped():
    spec = replace(TUBES, snr=50.0)
    plain = simulate_tubes(spec, seed=1)
    zero = simulate_tubes(replace(spec, scanner=scanner('background-zero')), seed=1)
    damped = simulate_tubes(replace(spec, scanner=scanner('background-damped')), seed=1)
    air = plain.density == 0
    inside = plain.labels == 4
    assert not zero.magnitude[air].any()
    assert not zero.phase[air].any()
    np.testing.assert_allclose(damped.magnitude[air], 0.1 * plain.magnitude[air], rtol=1e-6)
    assert np.array_equal(damped.phase, plain.phase)
    for one in (zero, damped):
        assert np.array_equal(one.magnitude[inside], plain.magnitude[inside])


def test_prescan_normalisation():
    spec = replace(TUBES, matrix=(36, 36, 20), snr=80.0, coil_shading=0.4)
    plain = simulate_tubes(spec, seed=1)
    found = simulate_tubes(replace(spec, scanner=scanner('background-normalised')), seed=1)
    x, y, z = coordinates(spec)
    inside = plain.labels == 4
    # the shading is gone: all agar has one magnitude but for noise and decay
    decay = np.exp(-10 * 0.003)
    assert found.magnitude[inside, 0].std() < 0.3 * plain.magnitude[inside, 0].std()
    assert found.magnitude[inside, 0].mean() == pytest.approx(decay, rel=0.02)
    # noise: less at the rim than in the centre; most in the air above the array
    excess = np.abs(found.magnitude[..., 0] - decay)
    middle = inside & (np.abs(z) < 25)
    rim = middle & (np.hypot(x, y) > 40)
    centre = middle & (np.hypot(x, y) < 20)
    assert np.mean(excess[rim]) < 0.75 * np.mean(excess[centre])
    above = (np.abs(z) > 75) & (np.hypot(x, y) < 40)
    assert np.mean(found.magnitude[above]) > 2 * np.mean(plain.magnitude[above])
    np.testing.assert_allclose(
        ratio(np.exp(1j * found.phase[..., 0]), plain.signal[..., 0])[inside], 0, atol=0.1
    )


def test_integers():
    spec = replace(TUBES, snr=50.0)
    plain = simulate_tubes(spec, seed=1)
    found = simulate_tubes(replace(spec, scanner=scanner('integers')), seed=1)
    assert np.abs(found.magnitude - plain.magnitude).max() <= 0.00501
    np.testing.assert_allclose(found.magnitude * 100, np.rint(found.magnitude * 100), atol=1e-3)
    turned = np.angle(np.exp(1j * (found.phase - plain.phase)))
    assert np.abs(turned).max() <= np.pi / 4096 * 1.01
    assert found.phase.min() >= -np.pi
    assert found.phase.max() < np.pi


# -- fat, white matter, flow, relaxivity -------------------------------------------------------


def test_oil_beats_against_water():
    spec = replace(TUBES, voxel_size=(6.0, 6.0, 6.0), matrix=(24, 24, 20), b0_tilt=30.0)
    plain, found = tubes(spec=spec), tubes('fat', spec=spec)
    names = {name: label for label, name in found.label_names.items()}
    assert names['oil'] == 7
    oil = ndimage.binary_erosion(found.labels == 7, np.ones((3, 3, 1)), iterations=2)
    assert oil.sum() > 20
    hz = -3.4 * hz_per_ppm(3.0)
    for e, time in enumerate(spec.echo_times):
        turn = found.signal[..., e] * plain.signal[..., e].conj()
        error = np.angle(turn * np.exp(-2j * np.pi * hz * time))[oil]
        # neighbours come in: the layer is displaced by 0.4 voxels
        assert np.abs(np.median(error)) < 0.1
    # the truth of water is that without oil
    for name in ('chi', 'field', 'density'):
        assert np.array_equal(getattr(plain, name), getattr(found, name))


@pytest.mark.parametrize('bipolar', [0.0, 1e-6])
def test_fat_is_displaced_along_the_readout(bipolar):
    spec = spec_with('fat', spec=replace(TUBES, echo_times=(0.003, 0.006)), bipolar=bipolar)
    shape = 48, 44
    on = np.zeros(shape, bool)
    on[20:26, 10:20] = True
    ones, zeros = np.ones(shape), np.zeros(shape)
    extras = effects.Extras(fat=on)
    spins = Spins(ones, zeros, zeros, zeros)
    planes = list(effects.plane_signal(spec, on, spins, extras))
    shift = -3.4 * hz_per_ppm(3.0) / 1102 * 2  # points
    for plane, direction in zip(planes, (1, -1 if bipolar else 1), strict=True):
        size = np.abs(plane)
        centre = (size.sum(1) @ np.arange(48)) / size.sum()
        assert centre == pytest.approx(22.5 + direction * shift, abs=1e-4)


def test_fat_of_the_head_lies_under_the_skin():
    found, plain = head('fat'), head()
    fat = found.labels == INDEX['fat']
    assert 'fat' in found.label_names.values()
    assert 'fat' not in plain.label_names.values()
    assert fat.sum() > 1000
    assert np.isin(plain.labels[fat], [INDEX[n] for n in ('soft-tissue', 'bone', 'air')]).all()
    from_air = ndimage.distance_transform_edt(plain.labels > 0, sampling=5.0)
    assert from_air[fat].max() < 12
    brain = plain.brain_mask
    assert np.array_equal(found.signal[brain], plain.signal[brain])
    assert np.array_equal(found.chi, plain.chi)
    assert np.array_equal(found.field, plain.field)


def test_shift_of_white_matter_and_of_one_tube():
    for found, plain, where in (
        (tubes('white-matter-shift'), tubes(), tubes().labels == 1),
        (head('white-matter-shift'), head(), head().probsegs['WM'] == 1),
    ):
        rate = -0.02 * hz_per_ppm(3.0)
        for e, time in enumerate(found.echo_times):
            turn = np.angle(found.signal[..., e] * plain.signal[..., e].conj())
            np.testing.assert_allclose(turn[where], 2 * np.pi * rate * time, atol=2e-5)
        assert np.array_equal(found.field, plain.field)
    grey = head().probsegs['WM'] == 0
    assert np.array_equal(head('white-matter-shift').signal[grey], head().signal[grey])


def test_flow_in_a_tube():
    fine = replace(TUBES, voxel_size=(2.0, 2.0, 6.0), matrix=(56, 56, 18))
    found, plain = tubes('flow', spec=fine), tubes(spec=fine)
    tube = found.labels == 6
    assert found.label_names[6] == 'flow'
    for e, time in enumerate(fine.echo_times):
        turn = np.angle(found.signal[..., e] * plain.signal[..., e].conj())
        moment = 2 * np.pi * 150 / (4 * 6 * 1102)
        gradient = np.pi * 0.02 * hz_per_ppm(3.0) * 150 * time**2
        np.testing.assert_allclose(turn[tube], moment - gradient, atol=1e-4)
    assert np.array_equal(found.field, plain.field)


def test_even_echoes_rephase_the_readouts_part_of_flow():
    velocity = np.array([[100.0], [0], [0]])
    one_way = effects.flow_phase(TUBES, velocity)[:, 0]
    both_ways = effects.flow_phase(spec_with('bipolar'), velocity)[:, 0]
    moment = 2 * np.pi * 100 / (4 * 6 * 1102)
    np.testing.assert_allclose(one_way - both_ways, [0, moment, 0, moment], atol=1e-12)


def test_blood_flows_along_the_veins_of_the_head():
    found, plain = head('flow'), head()
    vein = found.labels == INDEX['vein']
    assert vein.sum() > 10
    assert not (plain.labels == INDEX['vein']).any()
    # the sagittal sinus lies in the middle, outside the brain
    x, _, _ = coordinates(HEAD)
    assert np.sum(vein & (np.abs(x) < 6)) > 10
    assert found.chi[vein].mean() > 0.1


def test_relaxivity_varies():
    found, plain = tubes('relaxivity'), tubes()
    tube = np.isin(plain.labels, (2, 3))
    factor = (found.r2star - 10)[tube] / (plain.r2star - 10)[tube]
    assert 0.6 <= factor.min() < 0.8
    assert 1.2 < factor.max() <= 1.4
    assert np.array_equal(found.r2star[plain.labels == 4], plain.r2star[plain.labels == 4])
    # the signal decays by it, and turns as before
    for e, time in enumerate(TUBES.echo_times):
        expected = np.exp(-(found.r2star - plain.r2star)[tube] * time)
        change = (found.signal[..., e] / np.where(tube, plain.signal[..., e], 1))[tube]
        # R2* is not one number within a voxel
        np.testing.assert_allclose(np.abs(change), expected, rtol=0.02)
    brain = head().probsegs['WM'] == 1
    white = (head('relaxivity').r2star - 13)[brain] / (head().r2star - 13)[brain]
    assert 0.6 <= white.min() < 0.8
    assert 1.2 < white.max() <= 1.4


# -- two bodies --------------------------------------------------------------------------------


def test_bottle_beside_the_tubes():
    spec = replace(TUBES, supersampling=1, b0_tilt=25.0)
    found, plain = tubes('two-bodies', spec=spec), tubes(spec=spec)
    points = np.stack(coordinates(found.spec), axis=-1)
    new = found.spec
    # closed form: the field of a cylinder, and what the shim makes of it
    bottle = cylinder_field(points - new.bottle_centre, 12.0, 70.0, new.b0_dir)
    terms = shim(new) - shim(plain.spec)
    x, y, z = np.moveaxis(points / 52, -1, 0)
    one = np.ones_like(x)
    harmonics = (one, x, y, z, x * y, y * z, x * z, x**2 - y**2, 2 * z**2 - x**2 - y**2)
    expected = (0.1 + WATER_IN_AIR) * bottle
    expected -= sum(c * h for c, h in zip(terms, harmonics, strict=True))
    np.testing.assert_allclose(found.field - plain.field, expected, atol=3e-4)
    np.testing.assert_allclose(
        total_field(points, new) - total_field(points, plain.spec),
        (0.1 + WATER_IN_AIR) * bottle,
        atol=1e-9,
    )
    inside = found.labels == 5
    assert found.label_names[5] == 'bottle'
    assert found.label_dchi[5] == 0.1
    assert inside.sum() > 10
    np.testing.assert_allclose(found.chi[inside], 0.1)
    np.testing.assert_allclose(found.r2star[inside], 5.0)
    assert (plain.density[inside] == 0).all()
    # two bodies, with air in between
    assert ndimage.label(found.density > 0)[1] == 2


def test_bottle_needs_room():
    with pytest.raises(ValueError, match='bottle'):
        spec_with('two-bodies', spec=replace(TUBES, matrix=(18, 18, 14)))


def test_bottle_beside_the_head():
    found, plain = head('two-bodies'), head()
    bottle = found.labels == INDEX['bottle']
    assert 'bottle' in found.label_names.values()
    assert found.chi[bottle].max() == pytest.approx(0.1)
    assert not plain.density[bottle].any()
    gap = ndimage.distance_transform_edt(plain.labels == 0, sampling=5.0)[bottle]
    assert gap.min() > 7
    assert ndimage.label(found.density > 0)[1] == 2
    # its field in the brain is that of a cylinder, less what a shim takes
    brain = plain.brain_mask
    points = np.stack(coordinates(HEAD), axis=-1)[brain]
    centre = np.array([72.0, 84.0, 15.0]) - FIELD_CENTRE
    expected = (0.1 + WATER_IN_AIR) * cylinder_field(points - centre, 14.0, 80.0, (0, 0, 1))
    difference = (found.field - plain.field)[brain].astype(float)
    left = [values - harmonic_part(points, values) for values in (expected, difference)]
    assert np.corrcoef(*left)[0, 1] > 0.99
    assert np.std(left[1]) == pytest.approx(np.std(left[0]), rel=0.1)


def harmonic_part(points, field):
    x, y, z = points.T / 90
    one = np.ones_like(x)
    harmonics = (one, x, y, z, x * y, y * z, x * z, x**2 - y**2, 2 * z**2 - x**2 - y**2)
    coefficients = fit_shim(points, field, 90.0)
    return sum(c * h for c, h in zip(coefficients, harmonics, strict=True))


# -- slabs -------------------------------------------------------------------------------------


@pytest.mark.parametrize('kept', [8, 5])
def test_slab_is_a_cut_of_the_whole(kept):
    for simulate, spec in ((simulate_tubes, TUBES), (simulate_head, HEAD)):
        whole, slab = simulate(spec), simulate(replace(spec, slices=kept))
        first = (spec.matrix[2] - kept) // 2
        cut = slice(first, first + kept)
        assert slab.magnitude.shape[2] == kept
        for name in ('signal', 'chi', 'field', 'r2star', 'density', 'labels'):
            assert np.array_equal(getattr(slab, name), getattr(whole, name)[:, :, cut])
        # the same place in the scanner
        voxel = np.array([3, 4, 2, 1])
        moved = voxel + np.array([0, 0, first, 0])
        np.testing.assert_allclose(slab.affine @ voxel, whole.affine @ moved)


def test_slab_of_a_scanner_is_a_cut_too():
    names = [name for name in ALL if name != 'coils-8']
    whole = tubes(*names)
    slab = simulate_tubes(replace(TUBES, slices=6, scanner=scanner(*names)))
    # transforms of another length round differently
    np.testing.assert_allclose(slab.signal, whole.signal[:, :, 4:10], atol=1e-4)


@pytest.mark.parametrize('slices', [0, 15])
def test_slices_that_are_not_there(slices):
    with pytest.raises(ValueError, match=r'slices.*14'):
        replace(TUBES, slices=slices)


# -- command line and dataset ------------------------------------------------------------------


def spec_from(*arguments):
    return spec_of(vars(build_parser().parse_args(['out', *arguments])))


def test_options():
    assert spec_from('--scanner', 'all').scanner == scanner('all')
    assert spec_from('--bipolar', '0.8').scanner == Scanner(bipolar=0.8)
    found = spec_from('--kind', 'head', '--hard', '--scanner', 'fat', '--first-echo', '0.15')
    assert found.scanner == scanner('fat', first_echo=0.15)
    assert found.hard
    assert spec_from('--eddy-currents', '0.1', '--slices', '8').slices == 8


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['--scanner', 'coils-8', 'coils-32'], ['coils-8 and coils-32 exclude each other']),
        (['--scanner', 'gibbs'], ['gibbs', 'ghost']),
        (['--slices', '200'], ['106', '200']),
    ],
)
def test_impossible_requests_exit_2(tmp_path, capsys, arguments, words):
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / 'raw'), *arguments])
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message


SMALL = {
    'tubes': ['--matrix', '24', '24', '36', '--voxel-size', '6', '6', '3'],
    'head': ['--kind', 'head', '--voxel-size', '5', '5', '6'],
}


@pytest.fixture(scope='module', params=list(SMALL))
def dataset(request, tmp_path_factory):
    out_dir = tmp_path_factory.mktemp(request.param) / 'raw'
    arguments = [*SMALL[request.param], '--echo-times', '0.003', '0.008', '0.015']
    assert main([str(out_dir), *arguments, '--scanner', 'all', '--slices', '16']) == 0
    return out_dir


@pytest.mark.parametrize('part', ['.', 'derivatives/truth'])
def test_validator_finds_nothing(dataset, part):
    beside = Path(sys.executable).with_name('bids-validator-deno')
    validator = str(beside) if beside.exists() else shutil.which('bids-validator-deno')
    assert validator, 'bids-validator-deno is not installed: pip install .[test]'
    result = subprocess.run(
        [validator, str(dataset / part), '--format', 'json'], capture_output=True, text=True
    )
    issues = json.loads(result.stdout)['issues']['issues']
    found = {(i['severity'], i['code'], i.get('subCode'), i.get('location')) for i in issues}
    assert found == set()
    assert result.returncode == 0


def test_files(dataset):
    phase = nib.load(dataset / 'sub-01/anat/sub-01_echo-2_part-phase_MEGRE.nii.gz')
    magnitude = nib.load(dataset / 'sub-01/anat/sub-01_echo-2_part-mag_MEGRE.nii.gz')
    assert phase.shape[2] == 16
    codes = np.asarray(phase.dataobj)
    assert codes.dtype == np.int16
    assert 0 <= codes.min() < 5
    assert 4090 < codes.max() <= 4095
    assert np.asarray(magnitude.dataobj).max() < 1000
    sidecar = json.loads((dataset / 'sub-01/anat/sub-01_echo-2_part-phase_MEGRE.json').read_text())
    assert sidecar['Units'] == 'arbitrary'
    assert sidecar['PhaseEncodingDirection'] == 'j'
    assert sidecar['PartialFourier'] == 0.75
    assert 'sum of squares' in sidecar['CoilCombinationMethod']
    assert 'bipolar' in sidecar['PulseSequenceDetails']
    readme = (dataset / 'README').read_text()
    assert '16 central slices' in readme
    assert 'made into voxels by: kspace' in readme
    for words in ('receive', 'gradient of phase', 'polarity', 'breathing', 'coils', 'bottle'):
        assert words in readme
    truth = dataset / 'derivatives/truth/sub-01'
    field = json.loads((truth / 'fmap/sub-01_desc-truth_fieldmap.json').read_text())
    assert 'Not in it: chemical shift of fat' in field['Description']
    record = json.loads((truth / 'anat/sub-01_desc-truth_scanner.json').read_text())
    assert record['Switches'] == list(ALL)
    assert len(record['Done']) == len(ALL)
    assert len(record['EchoPhase']['Constant']['Value']) == 3
    assert np.shape(record['EchoPhase']['Gradient']['Value']) == (3, 3)
    # the centre of the whole volume in voxels of the slab
    whole = (24, 24, 36) if phase.shape[0] == 24 else (37, 47, 33)
    first = (whole[2] - 16) // 2
    assert record['Centre'] == [(whole[0] - 1) / 2, (whole[1] - 1) / 2, (whole[2] - 1) / 2 - first]


def test_dataset_of_an_ideal_scanner_has_no_record(tmp_path):
    assert main([str(tmp_path / 'raw'), *SMALL['tubes'], '--echo-times', '0.003']) == 0
    assert not list((tmp_path / 'raw').rglob('*scanner*'))
    assert not (tmp_path / 'raw/derivatives/truth/.bidsignore').exists()
    assert 'Scanner' not in (tmp_path / 'raw/README').read_text()
