"""The judgement of a field: every limit, by fits that are made for it, and an ordinary phantom."""

import numpy as np
import pytest

from precondqsm_bids.numerics.air import Air
from precondqsm_bids.numerics.constants import hz_per_ppm
from precondqsm_bids.numerics.echo_fit import EchoFit, fit_echoes
from precondqsm_bids.numerics.echo_phase import EchoPhase
from precondqsm_bids.numerics.field_quality import judge_field
from precondqsm_bids.numerics.one_echo import OneEcho

SHAPE = (10, 10, 10)
MASK = np.ones(SHAPE, bool)


def share(fraction, inside, outside):
    """A map that is ``inside`` in this fraction of the voxels."""
    out = np.full(MASK.size, outside, np.float32)
    out[: round(fraction * MASK.size)] = inside
    return out.reshape(SHAPE)


def phases(size, echoes=4):
    sizes = np.zeros(echoes)
    sizes[2] = size
    return EchoPhase(np.zeros((echoes, 4)), np.zeros(3), sizes, np.zeros(4))


def ordinary(**changes):
    """What the fit of an ordinary scan is."""
    values = {
        'total_field': np.zeros(SHAPE, np.float32),
        'field_sd': np.full(SHAPE, 0.003, np.float32),
        'r2star': np.full(SHAPE, 20, np.float32),
        'r2star_sd': np.full(SHAPE, 0.5, np.float32),
        'magnitude_sd': np.full(SHAPE, 1.0, np.float32),
        's0': np.full(SHAPE, 100, np.float32),
        'phase_offset': np.zeros(SHAPE, np.float32),
        'usable_echoes': np.full(SHAPE, 4, np.uint8),
        'reliable': MASK,
        'misfit': np.ones(SHAPE, np.float32),
        'noise_sd': 1.0,
        'noise_source': 'phase',
        'air': Air(1.1, 1.0),
        'offset_model': 'quartic',
        'offset_misfit': 0.002,
        'own_offset': np.zeros(SHAPE, bool),
        'echo_phase': phases(0.1),
        'body_turns': (),
        'fat': np.zeros(SHAPE, bool),
        'magnitude': np.ones(SHAPE, np.float32),
        'ringing': None,
    }
    return EchoFit(**values | changes)


def of_one(**changes):
    values = {
        'total_field': np.zeros(SHAPE, np.float32),
        'field_sd': np.full(SHAPE, 0.003, np.float32),
        'usable_echoes': np.ones(SHAPE, np.uint8),
        'noise_sd': 1.0,
        'noise_source': 'air',
    }
    return OneEcho(**values | changes)


@pytest.mark.parametrize('fit', [ordinary(), of_one()], ids=['echoes', 'one echo'])
def test_an_ordinary_fit_is_not_doubted(fit):
    quality = judge_field(fit, MASK)
    assert quality.warnings == ()
    assert quality.unusable_fraction == 0
    assert quality.bodies == 1


@pytest.mark.parametrize('make', [ordinary, of_one])
@pytest.mark.parametrize('sd, said', [(0.049, False), (0.06, True)])
def test_uncertain_field(make, sd, said):
    warnings = judge_field(make(field_sd=np.full(SHAPE, sd, np.float32)), MASK).warnings
    assert any('uncertain by 0.06 ppm in the median voxel' in w for w in warnings) == said
    assert len(warnings) == said


@pytest.mark.parametrize('make, least', [(ordinary, 2), (of_one, 1)])
def test_echoes_below_the_noise(make, least):
    few = make(usable_echoes=share(0.3, least - 1, least).astype(np.uint8))
    quality = judge_field(few, MASK)
    assert quality.unusable_fraction == pytest.approx(0.3)
    (words,) = quality.warnings
    assert 'above the noise in 30% of the region' in words
    assert ('fewer than two' in words) == (least == 2)
    assert not judge_field(make(usable_echoes=share(0.2, 0, 4).astype(np.uint8)), MASK).warnings


def test_misfit():
    quality = judge_field(ordinary(misfit=share(0.4, 2.0, 1.0)), MASK)
    assert quality.misfit_fraction == pytest.approx(0.4)
    assert quality.warnings == (
        'one field and one R2* do not describe the echoes in 40% of the region',
    )
    assert not judge_field(ordinary(misfit=share(0.3, 2.0, 1.0)), MASK).warnings


@pytest.mark.parametrize(
    'fit, words',
    [
        (ordinary(field_sd=np.full(SHAPE, 0.6)), '0.6 ppm in the median voxel'),
        (of_one(field_sd=np.full(SHAPE, 0.6)), '0.6 ppm in the median voxel'),
        (ordinary(usable_echoes=share(0.95, 1, 4)), 'fewer than two echoes .* 95% of the region'),
        (of_one(usable_echoes=share(0.95, 0, 1)), 'fewer than one echo .* 95% of the region'),
        (ordinary(misfit=share(0.95, 2, 1)), r'one field and one R2\* .* 95% of the region'),
        (ordinary(r2star=share(0.8, 0, 20)), r'R2\* is zero in 80% of the region'),
    ],
    ids=['sd', 'sd of one', 'unusable', 'unusable of one', 'misfit', 'no decay'],
)
def test_what_is_no_field_is_refused(fit, words):
    with pytest.raises(ValueError, match=f'{words}.*look at the phase images'):
        judge_field(fit, MASK)


def test_half_of_the_rates_may_be_zero():
    # Noise alone makes half of them zero, where nothing decays
    quality = judge_field(ordinary(r2star=share(0.6, 0, 20)), MASK)
    assert quality.warnings == ()
    assert quality.zero_rate_fraction == pytest.approx(0.6)


@pytest.mark.parametrize('size, said', [(0.29, False), (0.45, True)])
def test_phase_of_echoes(size, said):
    warnings = judge_field(ordinary(echo_phase=phases(size)), MASK).warnings
    assert any('0.45 rad (echo 3;' in w for w in warnings) == said
    assert len(warnings) == said


def test_two_echoes_do_not_tell_it():
    (words,) = judge_field(ordinary(echo_phase=None), MASK).warnings
    assert words.startswith('two echoes:')


@pytest.mark.parametrize('fraction, said', [(0.005, False), (0.02, True)])
def test_poles(fraction, said):
    fit = ordinary(offset_model='spline', own_offset=share(fraction, 1, 0) > 0)
    quality = judge_field(fit, MASK)
    assert quality.own_offset_fraction == pytest.approx(fraction)
    assert any('around them (2.0% of the region)' in w for w in quality.warnings) == said
    assert len(quality.warnings) == said


def test_free_offset():
    fit = ordinary(offset_model='voxelwise', own_offset=MASK, offset_misfit=0.2)
    (words,) = judge_field(fit, MASK).warnings
    assert 'not a smooth function of position' in words
    small = ordinary(offset_model='voxelwise', own_offset=MASK, offset_misfit=0.0)
    assert not judge_field(small, MASK).warnings


@pytest.mark.parametrize('air, said', [(0.5, False), (0.2, True), (2.0, False), (3.0, True)])
def test_noise_against_the_air(air, said):
    quality = judge_field(ordinary(air=Air(air, 1.0)), MASK)
    assert quality.noise_ratio == pytest.approx(1 / air)
    assert len(quality.warnings) == said
    if said:
        assert f'is {1 / air:.1f} times that of the air' in quality.warnings[0]
    assert judge_field(ordinary(air=None), MASK).noise_ratio is None
    assert judge_field(ordinary(air=Air(9, 1), noise_source='magnitude'), MASK).warnings == ()


def test_bodies():
    mask = np.ones((30, 10, 10), bool)
    mask[14] = False
    fit = of_one(
        **{n: np.ones(mask.shape, np.uint8) for n in ('total_field', 'usable_echoes')},
        field_sd=np.full(mask.shape, 0.001),
    )
    quality = judge_field(fit, mask)
    assert quality.bodies == 2
    assert '2 bodies that are not connected' in quality.warnings[0]


# --- fits ---------------------------------------------------------------------------------------

TE = 1e-3 * (2 + 3 * np.arange(5))
X, Y, Z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (28, 26, 24)), indexing='ij')
BODY = X**2 + Y**2 + Z**2 < 0.5
FIELD = 0.1 * X - 0.05 * Y * Z


def echoes(noise=0.01, rate=25.0, field=FIELD):
    rng = np.random.default_rng(0)
    angle = 0.3 * X[..., None] + 2 * np.pi * hz_per_ppm(3.0) * field[..., None] * TE
    signal = BODY[..., None] * np.exp(-rate * TE + 1j * angle)
    return signal + noise * (rng.normal(size=signal.shape) + 1j * rng.normal(size=signal.shape))


def judged(signal):
    fit = fit_echoes(np.abs(signal), np.angle(signal), TE, 3.0, BODY)
    return judge_field(fit, BODY)


@pytest.mark.parametrize('noise', [0, 0.003, 0.03])
def test_an_ordinary_phantom(noise):
    assert judged(echoes(noise)).warnings == ()


def test_noise_is_refused():
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(*BODY.shape, 5)) + 1j * rng.normal(size=(*BODY.shape, 5))
    with pytest.raises(ValueError, match='uncertain by'):
        judged(noise)
    with pytest.raises(ValueError, match='uncertain by'):
        judged(0 * noise)


def test_two_fields_in_every_voxel_are_refused():
    with pytest.raises(ValueError, match='one field and one'):
        judged(echoes() + echoes(field=FIELD + 0.6))


def test_a_magnitude_that_does_not_decay_is_refused():
    with pytest.raises(ValueError, match=r'R2\* is zero'):
        judged(echoes(rate=-1.0))
