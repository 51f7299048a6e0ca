"""Stored phase against the phase that was meant: its scale, sign, readouts and slices."""

import functools

import numpy as np
import pytest
from radians import in_radians
from scipy import ndimage

from precondqsm_bids.numerics.constants import hz_per_ppm
from precondqsm_bids.numerics.dipole import b0_direction, forward_field
from precondqsm_bids.numerics.echo_fit import fit_echoes
from precondqsm_bids.numerics.echoes import Echoes, in_place
from precondqsm_bids.numerics.phase.outline import coarse_field
from precondqsm_bids.numerics.phase.readout import alternating_axes
from precondqsm_bids.numerics.phase.repair import first_field, repair_phase
from precondqsm_bids.numerics.phase.scale import phase_scale
from precondqsm_bids.numerics.phase.shape_field import shape_field, shim_terms
from precondqsm_bids.numerics.phase.sign import (
    PhaseSign,
    compare_axes,
    decide_sign,
    phase_sign,
    shape_evidence,
    vendor_sign,
)
from precondqsm_bids.numerics.scan import Scan
from precondqsm_bids.numerics.shape_mask import shape_mask
from precondqsm_bids.phantom import tubes
from precondqsm_bids.phantom.fields import cylinder_field, sphere_field
from precondqsm_bids.phantom.spec import TubesSpec

SMALL = {'object_scale': 0.5, 'matrix': (32, 32, 28), 'voxel_size': (2.0, 2.0, 2.0)}
ONE_ECHO = {'echo_times': (0.006,), 'tubes_dchi': (-0.1, 0.1, 0.2, 0.3)}
WHOLE = np.s_[:, :, :]


@functools.cache
def simulated(shim=True, **changes):
    """A phantom at half size in voxels of 2 mm; without the shim nothing hides its shape."""
    with pytest.MonkeyPatch.context() as patch:
        if not shim:
            patch.setattr(tubes, 'shim', lambda spec: np.zeros(9))
        return tubes.simulate_tubes(TubesSpec(**(SMALL | changes)))


class Data:
    """Echoes of a phantom or of a part of it, its masks and the field of its shape."""

    def __init__(self, phantom, part=WHOLE):
        self.magnitude, self.phase = phantom.magnitude[part], phantom.phase[part]
        self.te = phantom.echo_times
        self.field = phantom.field[part]
        self.shape = shape_mask(self.magnitude[..., 0])
        self.mask = self.shape.roi_mask
        voxel_size = np.sqrt((phantom.affine[:3, :3] ** 2).sum(axis=0))
        b0_dir = b0_direction(phantom.affine)
        self.scan = Scan(self.magnitude, self.phase, self.te, 3.0, voxel_size, b0_dir)
        self.outline = shape_field(self.shape.shape_mask, voxel_size, b0_dir, self.mask)

    def repaired(self, **changes):
        return repair_phase(self.scan._replace(**changes), self.mask, self.shape.shape_mask)

    def fitted(self, phase):
        return fit_echoes(
            self.magnitude, phase, self.te, 3.0, self.mask, predicted_field=self.outline.field
        )

    def readout_phase(self, constant, gradient, axis=0):
        """A phase of every second echo: a constant, and a gradient in rad per voxel."""
        position = np.indices(self.mask.shape)[axis] - (self.mask.shape[axis] - 1) / 2
        return constant + gradient * position


@functools.cache
def scan():
    return Data(simulated())


def angle(values):
    return np.angle(np.exp(1j * np.asarray(values, float)))


def stored_in(truth, codes, first, step=1.0, slope=1.0):
    """Phase (rad) in codes that run from ``first`` by ``step``, as a slope then scales them."""
    index = np.floor((truth / (2 * np.pi) % 1.0) * codes)
    return slope * (first + step * index)


# --- scale --------------------------------------------------------------------------------------


NOISE = np.random.default_rng(3).uniform(-np.pi, np.pi, (16, 16, 12, 4))
CONVENTIONS = {
    '0 to 4095': (4096, 0, 1),
    '-2048 to 2047': (4096, -2048, 1),
    '-4096 to 4094': (4096, -4096, 2),
    '-4096 to 4095': (8192, -4096, 1),
    '0 to 8190': (4096, 0, 2),
    '0 to 65535': (65536, 0, 1),
    '-32768 to 32767': (65536, -32768, 1),
    '0 to 255': (256, 0, 1),
    '1000 to 5095': (4096, 1000, 1),
}


@pytest.mark.parametrize('units', [None, 'arbitrary'])
@pytest.mark.parametrize('slope', [1.0, 0.0371, 1.5348, 17.0])
@pytest.mark.parametrize('name', CONVENTIONS)
def test_codes(name, slope, units):
    codes, first, step = CONVENTIONS[name]
    stored = stored_in(NOISE, codes, first, step, slope).astype(np.float32)
    scale = phase_scale(stored, units)
    assert scale.turn == pytest.approx(codes * step * slope, rel=2e-3)
    error = angle(in_radians(stored, units) - NOISE)
    # the zero of the codes is free, one code is the rounding
    assert np.ptp(angle(error - error.flat[0])) < 2 * np.pi / codes * 1.1 + 0.002 * 2 * np.pi


@pytest.mark.parametrize('name', list(CONVENTIONS)[:-1])
def test_codes_keep_their_middle(name):
    codes, first, step = CONVENTIONS[name]
    found = in_radians(first + step * np.arange(codes).reshape(4, -1), 'arbitrary')
    assert found.flat[0] == pytest.approx(-np.pi)
    assert found.flat[-1] == pytest.approx(np.pi - 2 * np.pi / codes)


@pytest.mark.parametrize('low, high', [(-np.pi, np.pi), (0, 2 * np.pi), (-2, 1), (-3.1416, 3.142)])
@pytest.mark.parametrize('units', [None, 'rad'])
def test_radians_stay(low, high, units):
    values = np.linspace(low, high, 4096).astype(np.float32).reshape(16, 16, 4, 4)
    assert in_radians(values, units) is values


@pytest.mark.parametrize(
    'turn, low, convention',
    [
        (2000 * np.pi, -1000 * np.pi, 'milliradians'),
        (2000 * np.pi, 0, 'milliradians'),
        (360, -180, 'degrees'),
        (360, 0, 'degrees'),
        (1, 0, 'range'),
        (2, -1, 'range'),
        (777.7, -100, 'range'),
    ],
)
@pytest.mark.parametrize('whole', [False, True])
def test_other_turns(turn, low, convention, whole):
    stored = low + turn * (NOISE / (2 * np.pi) % 1.0)
    if whole:
        stored = np.trunc(stored) if turn > 300 else stored.astype(np.float32)
    scale = phase_scale(stored)
    assert scale.convention == convention
    assert scale.turn == pytest.approx(turn, rel=3e-3)
    error = angle(in_radians(stored) - NOISE)
    assert np.ptp(angle(error - error.flat[0])) < 0.02 + whole * 4 * np.pi / max(turn, 300)


def test_scaled_codes_of_milliradians():
    # 4096 codes by a slope of 1.5348 from -3142: to 3143, as one vendor's rescaling has it
    stored = stored_in(NOISE, 4096, -2047.2, 1, 1.5348).astype(np.float32)
    assert phase_scale(stored).convention == 'milliradians'
    error = angle(in_radians(stored) - NOISE)
    assert np.ptp(angle(error - error.flat[0])) < 2 * np.pi / 4096 + 6e-4 * 2 * np.pi


def test_one_scale_for_echoes_that_do_not_reach_the_extremes():
    # Air is blanked; only the last echo wraps, the first stays within a radian.
    rng = np.random.default_rng(0)
    field = rng.uniform(-1, 1, (20, 20, 20, 1)) * np.array([0.2, 0.5, 1.0, 3.5])
    stored = stored_in(field + np.pi, 4096, 0).astype(np.int16)
    stored[:3] = 2048
    assert stored[..., 0].max() < 2300
    found = in_radians(stored)
    np.testing.assert_allclose(angle(found - field)[3:], 0, atol=2 * np.pi / 4096 + 1e-6)


def test_blanked_air_of_normalised_phase():
    stored = (NOISE / (2 * np.pi) % 1.0).astype(np.float32)
    stored[:6] = 0
    assert phase_scale(stored).convention == 'range'
    assert phase_scale(stored).turn == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize('name', ['0 to 4095', '0 to 65535', '-4096 to 4094'])
@pytest.mark.parametrize('slope', [1.0, 0.0371])
def test_single_precision_loses_nothing(name, slope):
    codes, first, step = CONVENTIONS[name]
    stored = stored_in(NOISE, codes, first, step, slope)
    exact = (stored / slope - first - codes * step / 2) * 2 * np.pi / (codes * step)
    found = in_radians(stored.astype(np.float32), 'arbitrary')
    error = found.astype(float) - exact
    # single precision of pi is 2.4e-7; the stored floats themselves are as coarse
    assert np.abs(error - np.median(error)).max() < (3e-7 if slope == 1.0 else 1.2e-6)
    assert abs(np.median(error)) < 1e-3


UNDECIDABLE = {
    'narrow codes': np.round(np.random.default_rng(1).normal(2048, 200, NOISE.shape)),
    'whole 0 to 100': np.floor((NOISE / (2 * np.pi) % 1.0) * 101),
    'bell': np.random.default_rng(0).normal(0, 10, NOISE.shape),
    'normalised and smooth': np.linspace(0, 1, NOISE.size).reshape(NOISE.shape),
    'smooth codes': np.round(200 * np.linspace(-1, 1, NOISE.size).reshape(NOISE.shape) ** 3),
    'degrees of a part of a turn': 100 * np.sin(np.indices(NOISE.shape)[0] * 0.4),
}


@pytest.mark.parametrize('name', UNDECIDABLE)
def test_undecidable_phase_is_refused_with_its_range(name):
    stored = UNDECIDABLE[name]
    with pytest.raises(ValueError, match='store it in radians') as error:
        in_radians(stored)
    for limit in (stored.min(), stored.max()):
        assert f'{limit:g}' in str(error.value)


def test_units_of_radians_decide_and_are_checked():
    unwrapped = 9 * np.linspace(-1, 1, NOISE.size).reshape(NOISE.shape) ** 3
    assert phase_scale(unwrapped, 'rad').convention == 'radians'
    for wrong in (stored_in(NOISE, 4096, 0), 360 * NOISE, np.round(NOISE)):
        with pytest.raises(ValueError, match='are no radians') as error:
            phase_scale(wrong, 'rad')
        assert f'{wrong.min():g} to {wrong.max():g}' in str(error.value)
        assert '"arbitrary"' in str(error.value)
    degrees = 180 * np.sin(0.08 * np.indices((80, 9, 9, 1))[0])  # smooth, of a known range
    with pytest.raises(ValueError, match='are no radians'):
        phase_scale(degrees, 'rad')
    with pytest.raises(ValueError, match="not 'degrees'"):
        phase_scale(NOISE, 'degrees')


@pytest.mark.parametrize('low, high', [(0, 1), (-1, 1), (-0.5, 0.5), (-1.5, 1.5), (-7, 7)])
def test_units_of_radians_where_noise_fills_another_range(low, high):
    stored = (low + (high - low) * (NOISE / (2 * np.pi) % 1.0)).astype(np.float32)
    with pytest.raises(ValueError, match='whole turn, and no radians') as error:
        phase_scale(stored, 'rad')
    assert '"arbitrary"' in str(error.value)
    error = angle(in_radians(stored, 'arbitrary') - NOISE)  # the way out
    assert np.ptp(angle(error - error.flat[0])) < 1e-2


@pytest.mark.parametrize('units', [None, 'rad'])
@pytest.mark.parametrize('air', ['blank', 'unwrapped noise'])
@pytest.mark.parametrize('size', [2, 30, 120])
def test_unwrapped_radians(units, air, size):
    """An ellipsoid with up to 38 turns of phase; noise is unwrapped along lines."""
    rng = np.random.default_rng(1)
    x = np.moveaxis(np.indices((96, 12, 12)), 0, -1) / (47.5, 5.5, 5.5) - 1
    ball = (x**2).sum(axis=-1) < 0.8
    phase = (size * x[..., 0] + 0.3 * x[..., 1])[..., None] * np.array([0.5, 1.0])
    noise = rng.uniform(-np.pi, np.pi, phase.shape)
    stored = np.where(ball[..., None], phase, np.unwrap(noise, axis=0) if air != 'blank' else 0)
    if (size == 2 and not units) or (air != 'blank' and (size > 100 or not units)):
        pytest.skip('within a turn, or air that is not smooth')
    scale = phase_scale(stored, units)
    assert scale.convention in ('unwrapped', 'radians')
    np.testing.assert_allclose(
        np.exp(1j * in_radians(stored, units)[ball]), np.exp(1j * phase[ball]), atol=1e-4
    )


def test_arbitrary_units_are_no_radians_unless_they_fill_a_turn():
    assert phase_scale(NOISE, 'arbitrary').convention == 'radians'
    with pytest.raises(ValueError, match='store it in radians'):
        phase_scale(np.linspace(-2, 1, NOISE.size).reshape(NOISE.shape), 'arbitrary')


def test_echoes_of_different_scales_are_refused():
    stored = stored_in(NOISE, 4096, -2048)
    stored[..., 2] = NOISE[..., 2]
    with pytest.raises(ValueError, match=r'echo 3 runs from -3\.14'):
        in_radians(stored)


def test_phase_that_is_none():
    with pytest.raises(ValueError, match='is 5 in every voxel'):
        in_radians(np.full((4, 4, 4, 2), 5.0))
    bad = NOISE.copy()
    bad[0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=f'not finite: 1 of {bad.size}'):
        in_radians(bad)


# --- sign ---------------------------------------------------------------------------------------


DECISIVE = {
    'upright': ({}, WHOLE),
    'upright, no shim': ({'shim': False}, WHOLE),
    'tilted': ({'b0_tilt': 25.0}, WHOLE),
    'tilted, no shim': ({'b0_tilt': 25.0, 'shim': False}, WHOLE),
    'sagittal slab': ({}, np.s_[10:22]),
    'coronal slab': ({}, np.s_[:, 10:22]),
    'tilted slab': ({'b0_tilt': 25.0}, np.s_[:, 10:22]),
    'half': ({}, np.s_[:16]),
    'slab with an end': ({}, np.s_[:, :, :12]),
    'air bubble': ({'air_bubble': 2.0}, WHOLE),
    'diamagnetic tubes': ({'tubes_dchi': (-1.5, -1.0, -0.5, -0.3)}, WHOLE),
    'noisy': ({'snr': 15.0}, WHOLE),
    'one echo': (ONE_ECHO, WHOLE),
    'coarse': ({'matrix': (22, 22, 20), 'voxel_size': (3.0, 3.0, 3.0), 'b0_tilt': 25.0}, WHOLE),
}


@pytest.mark.parametrize('name', DECISIVE)
@pytest.mark.parametrize('sign', [1, -1])
def test_sign_of_the_phantom(name, sign):
    changes, part = DECISIVE[name]
    data = Data(simulated(**changes), part)
    result = data.repaired(phase=sign * data.phase)
    assert result.sign == result.sign_test.sign == sign
    assert result.sign_test.decisive
    # The phase offset is part of the field of a single echo.
    most = 1.25 if len(data.te) > 1 else 2
    assert 0.8 < sign * result.sign_test.coefficient < most
    assert sign * result.sign_test.correlation > 0.75
    np.testing.assert_array_equal(result.phase, data.phase)
    assert any('negated' in note for note in result.notes) == (sign < 0)


def test_shim_hides_the_sign_from_the_plain_correlation():
    # what the polynomials are for
    data = scan()
    field, sd = first_field(Echoes.of(data.scan[:2], data.te, data.mask, 3.0), 0.01)
    plain = np.corrcoef(field[data.mask], data.outline.field[data.mask])[0, 1]
    assert plain < 0.5
    assert phase_sign(field, data.outline.field, data.mask, sd).correlation > 0.9


@pytest.mark.parametrize('part', [np.s_[:, :, 9:19], np.s_[:, :, 11:17]])
def test_slab_across_a_cylinder_has_the_usual_sign(part):
    # Inside a long cylinder along B0 the field of the shape is a constant: nothing tells the sign.
    data = Data(simulated(), part)
    result = data.repaired()
    assert (result.sign, result.sign_source) == (1, 'convention')
    (warning,) = result.notes
    assert 'ASSUMED to be +1' in warning
    assert 'partial correlation' in warning
    assert 'state phase_sign, +1 if' in warning
    usual = data.repaired(phase=-data.phase, manufacturer='GE MEDICAL SYSTEMS')
    assert (usual.sign, usual.sign_source) == (-1, 'vendor')
    assert 'the usual of GE MEDICAL SYSTEMS' in usual.notes[0]
    np.testing.assert_array_equal(usual.phase, data.phase)
    given = data.repaired(phase_sign=1)
    assert (given.sign, given.sign_source, given.notes) == (1, 'given', ())
    np.testing.assert_array_equal(
        data.repaired(phase=-data.phase, phase_sign=-1).phase, data.phase
    )


def ellipsoid(semi_axes=(8.0, 8.0, 8.0), b0_dir=(0, 0, 1)):
    """An ellipsoid in a gradient: inside it the field of its shape is a constant, by theory."""
    x = np.indices((24, 24, 24)) - 11.5
    mask = sum((x[i] / semi_axes[i]) ** 2 for i in range(3)) < 1
    te = np.array([0.004, 0.008])
    phase = 2 * np.pi * hz_per_ppm(3.0) * te * 0.02 * x[0][..., None]
    return Scan(np.ones(phase.shape), phase, te, 3.0, b0_dir=b0_dir), mask


@pytest.mark.parametrize('semi_axes', [(8.0, 8.0, 8.0), (10.0, 7.0, 8.0)])
@pytest.mark.parametrize('sign', [1, -1])
def test_ellipsoid_gives_no_evidence(semi_axes, sign):
    scan, mask = ellipsoid(semi_axes)
    result = repair_phase(scan._replace(phase=sign * scan.phase), mask, mask)
    assert (result.sign, result.sign_source) == (1, 'convention')
    assert 'ASSUMED' in result.notes[-1]


BOTTLE = np.stack(np.indices((26, 26, 44)), -1) * 2.0 - np.array([25, 25, 43])
"""Positions about the middle of a field of view, mm."""


def coarse(field, mask, sign=1):
    """A field of a body of water in air that a shim has been fitted to, as it is compared."""
    voxels = np.flatnonzero(mask)
    terms = shim_terms(mask.shape, voxels)
    left = sign * field[mask]
    left -= terms @ np.linalg.lstsq(terms, left, rcond=None)[0]
    left += np.random.default_rng(0).normal(0, 0.003, left.shape)
    sd = np.full(mask.shape, 0.003)
    return coarse_field(in_place(left, mask), sd, mask, mask, (2, 2, 2))


@pytest.mark.parametrize('radius, length', [(22, 76), (17.3, 70), (20.5, 75.3)])
@pytest.mark.parametrize('sign', [1, -1])
def test_bottle_across_b0_is_no_bottle_along_it(radius, length, sign):
    # Its field is minus half of what it would have along B0, but for its ends.
    across = (1, 0, 0)
    mask = (np.hypot(BOTTLE[..., 0], BOTTLE[..., 1]) < radius) & (abs(BOTTLE[..., 2]) < length / 2)
    field = coarse(-9.41 * cylinder_field(BOTTLE, radius, length, across), mask, sign)
    test = shape_evidence(field, across)
    assert test.decisive
    assert test.sign == sign
    axes = compare_axes(field, across, test)
    assert not axes.better
    # with the header's mistake of a bottle along B0 the axis is still found
    along = coarse(-9.41 * cylinder_field(BOTTLE, radius, length, (0, 0, 1)), mask, sign)
    found = compare_axes(along, across, shape_evidence(along, across))
    assert found.certain
    assert found.best == 2


@pytest.mark.parametrize('step', [-2.0, -0.5, 0.5, 9.41])
@pytest.mark.parametrize('sign', [1, -1])
def test_what_a_ball_encloses_does_not_tell_its_sign(step, sign):
    # Inside a ball its own field is nothing: without signal, a calcification was taken for air.
    x = np.stack(np.indices((40, 40, 40)), -1) * 2.0 - 39
    void = np.linalg.norm(x - [14, -10, 6], axis=-1) < 9
    mask = (np.linalg.norm(x, axis=-1) < 36) & ~void
    field = coarse(step * sphere_field(x - np.array([14, -10, 6]), 9, (0, 0, 1)), mask, sign)
    test = shape_evidence(field, (0, 0, 1))
    assert not test.decisive
    assert decide_sign(test).source == 'convention'
    assert decide_sign(test, stated=-sign).source == 'given'


def test_no_air_gives_no_evidence():
    scan, mask = ellipsoid()
    everything = np.ones_like(mask)
    result = repair_phase(scan, everything, everything)
    assert (result.sign, result.sign_source, result.sign_test) == (1, 'convention', None)
    assert 'no field of a shape' in result.notes[-1]


def test_given_sign_that_the_field_contradicts_is_refused():
    with pytest.raises(ValueError, match='given as -1, but the field of the shape says') as error:
        scan().repaired(phase_sign=-1)
    assert 'leave phase_sign out' in str(error.value)
    assert not scan().repaired(phase_sign=1).notes


def test_weak_contradiction_warns():
    weak = PhaseSign(1, 0.5, 0.5, (0.5,) * 4, True, 10.0)
    decided = decide_sign(weak, stated=-1)
    assert (decided.sign, decided.source) == (-1, 'given')
    assert 'the field of the shape says +1' in decided.warnings[0]


@pytest.mark.parametrize(
    'manufacturer, sign',
    [
        ('Siemens Healthineers', 1),
        ('Philips Medical Systems', 1),
        ('GE MEDICAL SYSTEMS', -1),
        ('General Electric', -1),
        ('Gerät', None),
        ('', None),
        (None, None),
    ],
)
def test_usual_sign_of_a_vendor(manufacturer, sign):
    assert vendor_sign(manufacturer) == sign
    decided = decide_sign(None, manufacturer=manufacturer)
    assert (decided.sign, decided.source) == ((sign, 'vendor') if sign else (1, 'convention'))
    # the field of the shape comes first
    found = PhaseSign(-1, -0.9, -0.9, (-0.9,) * 4, True, 10.0)
    assert decide_sign(found, manufacturer=manufacturer) == (-1, 'field of the shape', ())


def test_correlation_of_one_layer_does_not_decide():
    # The shape's field in the outer half, its negative at depth: no stable sign
    rng = np.random.default_rng(5)
    s = ndimage.gaussian_filter(rng.normal(size=(28, 28, 28)), 1.5)
    mask = np.ones(s.shape, bool)
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1, 1:-1]
    f = np.where(depth > np.median(depth), -s, 2 * s)
    found = phase_sign(f, s, mask, depth=depth)
    assert found.correlation > 0.4
    assert found.shells[0] > 0 > found.shells[-1]
    assert not found.decisive
    assert phase_sign(f, s, mask).decisive


def test_wrong_direction_of_b0_is_refused_with_the_axis_that_fits():
    data = scan()
    right = data.repaired()
    assert not right.axes.better
    for wrong in ((1, 0, 0), (0, 1, 0)):
        # the file has its axes in another order: x, y, z of the array are stored second to first
        turned = {'b0_dir': wrong, 'stored_axes': (1, 2, 0)}
        with pytest.raises(ValueError, match='fits the first axis better') as error:
            data.repaired(**turned)
        assert 'state the direction of B0 (b0_dir): 1 0 0' in str(error.value)
        stated = data.repaired(**turned, b0_stated=True)
        assert stated.axes.certain
        assert 'stored axes as stated' in stated.notes[0]
        assert stated.axes.correlations[2] > 0.95
    assert np.argmax(np.abs(data.scan.b0_dir)) == 2


def test_coefficients_of_a_closed_form():
    # f = c s + a quadratic + noise: weighted least squares gives c, noise the correlation
    rng = np.random.default_rng(1)
    x, y, z = np.indices((24, 20, 22)) / 10 - 1
    s = np.sin(4 * x) * np.cos(3 * y) * np.exp(z)
    mask = x**2 + y**2 + z**2 < 1.2
    noise = 0.2 * rng.normal(size=s.shape)
    result = phase_sign(
        -1.2 * s + 3 * x * y - 2 * z**2 + 1 + noise, s, mask, np.full(s.shape, 0.2)
    )
    assert result.sign == -1
    assert result.coefficient == pytest.approx(-1.2, abs=0.02)
    assert result.decisive
    nothing = phase_sign(noise, s, mask)
    assert abs(nothing.correlation) < 0.05
    assert not nothing.decisive
    assert phase_sign(0.1 * s, s, mask).decisive  # the size of the coefficient decides nothing
    assert not phase_sign(noise, 0 * s, mask).decisive
    with pytest.raises(ValueError, match='differ in shape'):
        phase_sign(s, s[1:], mask)
    with pytest.raises(ValueError, match='mask is empty'):
        phase_sign(s, s, mask & False)


def test_shape_goes_on_beyond_the_field_of_view():
    # On the axis, at the middle of a cylinder of length L and diameter D along B0, the
    # demagnetising factor is 1 - L / sqrt(L^2 + D^2); across, half of what is left.
    x, y = np.indices((40, 40)) - 19.5
    slab = np.repeat((np.hypot(x, y) < 10)[..., None], 6, axis=2)
    inside = np.repeat((np.hypot(x, y) < 5)[..., None], 6, axis=2)
    dchi = -9.41
    along = shape_field(slab, (1, 1, 1), (0, 0, 1), slab).field[inside]
    factor = 1 - 46 / np.hypot(46, 20)  # 6 voxels, 20 more at either end
    assert along.mean() == pytest.approx(dchi * (1 / 3 - factor), rel=0.05)
    across = shape_field(slab, (1, 1, 1), (1, 0, 0), slab).field[inside]
    assert across.mean() == pytest.approx(dchi * (1 / 3 - (1 - factor) / 2), rel=0.05)
    whole = np.zeros((40, 40, 26), bool)
    whole[..., 10:16] = slab  # ends in air: the demagnetised disc, of the other sign
    assert shape_field(whole, (1, 1, 1), (0, 0, 1), whole).field[..., 10:16][inside].mean() > 0
    assert not shape_field(slab, (1, 1, 1), (0, 0, 1), inside).field[~inside].any()


@pytest.mark.parametrize('b0_dir', [(0, 0, 1), (0.3, -0.5, 0.8)])
@pytest.mark.parametrize('edges', [(False, True), (True, True)])
def test_coarse_continuation_is_that_of_the_fine_grid(b0_dir, edges):
    # A bar of 150 voxels across the slab: the continuation is computed on voxels 2.3 times larger.
    voxel_size = (1.0, 1.2, 2.0)
    shape = np.zeros((160, 14, 9), bool)
    shape[5:155, 3:11] = True
    shape[5:60, 8:11] = False
    shape[:, :, 0] &= edges[0]
    mask = shape.copy()
    mask[..., 0] = False
    found = shape_field(shape, voxel_size, b0_dir, mask)
    pad = [75 if end else 0 for end in edges]  # 150 mm
    longer = np.pad(shape, [(0, 0), (0, 0), pad], 'edge').astype(np.float32)
    whole = forward_field(-9.41 * longer, voxel_size, b0_dir)[..., pad[0] : pad[0] + 9]
    alone = forward_field(-9.41 * shape.astype(np.float32), voxel_size, b0_dir)
    assert len(found.beyond) == 3 * sum(edges)
    np.testing.assert_allclose(found.field[mask], (alone + sum(found.beyond))[mask], atol=1e-4)
    error = np.abs(found.field - whole)
    assert np.abs(whole - alone)[mask].max() > 3  # what the continuation is worth
    assert np.median(error[mask]) < 0.05
    assert np.quantile(error[..., 2:-2][mask[..., 2:-2]], 0.99) < 0.1
    assert np.quantile(error[mask], 0.99) < 0.8  # the slice at the edge, half a coarse voxel off


# --- storage as a whole -------------------------------------------------------------------------


@pytest.mark.parametrize('echoes', [2, 3, 8])
@pytest.mark.parametrize('changes', [{}, {'air_bubble': 2.0}, {'snr': 15.0}, {'b0_tilt': 25.0}])
def test_ordinary_phase_is_untouched(echoes, changes):
    data = Data(simulated(**changes))
    magnitude, phase, te = data.magnitude[..., :echoes], data.phase[..., :echoes], data.te[:echoes]
    result = data.repaired(magnitude=magnitude, phase=phase, echo_times=te, phase_sign=1)
    assert result.phase is phase
    assert result.notes == ()


@pytest.mark.parametrize('sign', [1, -1])
def test_odd_storage_gives_the_field_of_the_plain_twin(sign):
    # int16 codes 0..4095 of a reversed, bipolar phase
    data = scan()
    plain = data.fitted(data.phase)
    phase = data.phase.astype(float).copy()
    phase[..., 1::2] += data.readout_phase(0.7, 0.06)[..., None]
    stored = stored_in(sign * phase + np.pi, 4096, 0).astype(np.int16)
    result = data.repaired(phase=in_radians(stored, 'arbitrary'))
    assert result.sign == sign
    twin = data.fitted(result.phase)
    # which part of the readouts' phase is field is a matter of convention: a constant, a gradient
    difference = (twin.total_field - plain.total_field)[data.mask]
    design = np.column_stack([np.ones(len(difference)), *np.nonzero(data.mask)]).astype(float)
    agar = simulated().labels[data.mask] == 6
    line = np.linalg.lstsq(design[agar], difference[agar], rcond=None)[0]
    difference = np.abs(difference - design @ line)
    assert np.median(difference) < 1e-3
    assert np.quantile(difference, 0.99) < 5e-3
    assert np.quantile(np.abs(twin.r2star - plain.r2star)[data.mask], 0.99) < 1


@pytest.mark.parametrize('unit', [1e-9, 1e6])
def test_unit_of_the_magnitude_does_not_matter(unit):
    data = scan()
    phase = -data.phase
    phase[..., 1::2] += np.float32(0.7)
    results = [data.repaired(magnitude=u * data.magnitude, phase=phase) for u in (1, unit)]
    for result in results:
        assert (result.sign, result.alternating_axes) == (-1, ())
    np.testing.assert_allclose(results[1].phase, results[0].phase, atol=1e-4)


# --- slices of alternating sign -----------------------------------------------------------------


@pytest.mark.parametrize('axes', [(), (2,), (0,), (0, 1, 2)])
@pytest.mark.parametrize('sign', [1, -1])
@pytest.mark.parametrize('changes', [{}, ONE_ECHO], ids=['echoes', 'one'])
def test_alternating_slices_are_repaired(axes, sign, changes):
    data = Data(simulated(**changes))
    phase = sign * data.phase.astype(float)
    for axis in axes:
        phase += np.pi * (np.indices(data.mask.shape)[axis] % 2)[..., None]
    phase = angle(phase).astype(np.float32)
    assert alternating_axes(Echoes.of((data.magnitude, phase), data.te, data.mask)) == axes
    result = data.repaired(phase=phase)
    assert result.alternating_axes == axes
    assert sum('alternates' in note for note in result.notes) == len(axes)
    # of each axis one parity is right: all of them together are right but for half a turn
    error = angle(result.phase - data.phase)[data.mask]
    assert np.abs(angle(error - error[0, 0])).max() < 1e-4


def test_steep_field_is_no_alternating_sign():
    # half a turn a slice at the first echo: alike in one echo, not in the growth with time
    x, _, z = np.indices((16, 16, 12))
    te = np.array([0.002, 0.003, 0.004])
    phase = (np.pi / te[0]) * 0.95 * z[..., None] * te + 0.01 * x[..., None]
    everywhere = np.ones(x.shape, bool)
    assert abs(np.angle(np.exp(1j * np.diff(phase[..., 0], axis=2))).mean()) > 2.9
    assert alternating_axes(Echoes.of((np.ones(phase.shape), phase), te, everywhere)) == ()


def test_noise_is_no_alternating_sign():
    rng = np.random.default_rng(0)
    phase = rng.uniform(-3, 3, (12, 12, 12, 3))
    everywhere = np.ones(phase.shape[:3], bool)
    te = [0.002, 0.004, 0.006]
    assert alternating_axes(Echoes.of((np.ones(phase.shape), phase), te, everywhere)) == ()


# --- errors -------------------------------------------------------------------------------------


def test_errors():
    data = scan()
    with pytest.raises(ValueError, match='mask is empty'):
        repair_phase(data.scan, data.mask & False)
    with pytest.raises(ValueError, match='1 or -1, not 2'):
        data.repaired(phase_sign=2)
    with pytest.raises(ValueError, match='differ in shape'):
        data.repaired(magnitude=data.magnitude[..., :3])


def test_without_a_shape_the_sign_stays():
    data = scan()
    result = repair_phase(data.scan._replace(phase=-data.phase), data.mask)
    assert result.sign == 1
    assert result.sign_test is None
