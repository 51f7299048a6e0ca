"""The lights of prepared runs, good and bad, and of small scans with a known fault."""

import re
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest

from precondqsm_bids.numerics import Scan, forward_field, measure_field, region_of_interest
from precondqsm_bids.outputs.group.measures import light_levels
from precondqsm_bids.outputs.lights import LEVELS, LIGHTS, lights
from precondqsm_bids.outputs.maps import WRITTEN
from precondqsm_bids.outputs.sidecars import Facts, compose_sidecar

GOOD = {  # of the tubes at 4 mm
    'echo_fit': {
        'echo_times': [0.002, 0.005, 0.008], 'phase_sign': 1,
        'phase_sign_source': 'field of the shape', 'phase_sign_correlation': 0.972,
        'b0_contradicted': False, 'ambiguous_fraction': 0.0, 'median_field_sd': 0.00055,
        'unusable_fraction': 0.0, 'misfit_fraction': 0.102, 'noise_ratio': 1.06,
        'offset_model': 'quartic', 'offset_misfit': 0.002,
    },
    'shape_mask': {
        'mask': 'object', 'shape_voxels': 1600, 'roi_voxels': 1480, 'fading_fraction': 0.0,
        'volumes': [95.7], 'left_out': [], 'warnings': [],
    },
    'prior_fit': {'trust': 1.0, 'beyond_null': 0.615},
    'flattening': {'warnings': []},
    'dipole_inversion': {'reg_weight': 0.2},
    'recombination': {'reference': 'roi-mean'},
    'comparison': {
        'explained': 0.989, 'r2star_agreement': 0.99,
        'explained_by_scale': [
            {'conventional': 0.661, 'preconditioned': 0.999},
            {'conventional': 0.932, 'preconditioned': 1.0},
        ],
    },
}  # fmt: skip


def scales(*pairs):
    return [dict(zip(('conventional', 'preconditioned'), pair, strict=True)) for pair in pairs]


ASSUMED = {'phase_sign_source': 'vendor', 'phase_sign_correlation': 0.1}
STATED = {'phase_sign_source': 'given', 'phase_sign_correlation': 0.1}
AGAINST = {'comparison': {'r2star_agreement': -0.7}}
CASES = (  # what it is, stage -> changes, the one light that is not good
    ('sign assumed by vendor', {'echo_fit': ASSUMED}, 'sign', 'doubtful'),
    ('sign assumed, and susceptibility falls where R2\\* rises',
     {'echo_fit': ASSUMED, **AGAINST}, 'sign', 'bad'),
    ('stated sign that the shape contradicts',
     {'echo_fit': {'phase_sign_source': 'given', 'phase_sign_correlation': -0.5}}, 'sign', 'bad'),
    ('stated sign, and susceptibility falls where R2\\* rises',
     {'echo_fit': STATED, **AGAINST}, 'sign', 'doubtful'),
    ('sign by a weak field of the shape, and susceptibility falls where R2\\* rises',
     {'echo_fit': {'phase_sign_correlation': 0.43}, **AGAINST}, 'sign', 'bad'),
    ('B0 along another axis', {'echo_fit': {'b0_contradicted': True}}, 'sign', 'doubtful'),
    ('turns lost in unwrapping', {'echo_fit': {'ambiguous_fraction': 0.004}}, 'echoes', 'bad'),
    ('field of 0.08 ppm noise', {'echo_fit': {'median_field_sd': 0.08}}, 'echoes', 'doubtful'),
    ('field of 0.3 ppm noise', {'echo_fit': {'median_field_sd': 0.3}}, 'echoes', 'bad'),
    ('echoes of two fields, as after motion', {'echo_fit': {'misfit_fraction': 0.7}},
     'echoes', 'bad'),
    ('phase smoothed after the scan', {'echo_fit': {'noise_ratio': 0.2}}, 'echoes', 'doubtful'),
    ('two echoes', {'echo_fit': {'echo_times': [0.002, 0.005]}}, 'echoes', 'doubtful'),
    ('surface coil, signal fades at a fifth of the border',
     {'shape_mask': {'fading_fraction': 0.2}}, 'region', 'doubtful'),
    ('region of a third of the object', {'shape_mask': {'roi_voxels': 500}}, 'region', 'bad'),
    ('piece of 9 ml left out', {'shape_mask': {'left_out': [9.0]}}, 'region', 'doubtful'),
    ('no air in the field of view', {'shape_mask': {'warnings': ['there is no air']}},
     'region', 'doubtful'),
    ('two legs', {'shape_mask': {'volumes': [60.0, 35.7]}}, 'region', 'doubtful'),
    ('prior half supported', {'prior_fit': {'trust': 0.5, 'beyond_null': 0.075}},
     'prior', 'doubtful'),
    ('prior of a contrast that knows nothing', {'prior_fit': {'trust': 0.0, 'beyond_null': 0.01}},
     'prior', 'doubtful'),
    ('prior that no turn changes', {'prior_fit': {'trust': 1.0, 'beyond_null': None}},
     'prior', 'unknown'),
    ('prior that adds field', {'comparison': {'explained': -0.4}}, 'prior', 'bad'),
    ('shape that explains nothing', {'comparison': {'explained': -0.01}}, 'prior', 'doubtful'),
    ('prior that harms one of two bodies', {'comparison': {'explained_by_body': [0.9, -0.2]}},
     'prior', 'doubtful'),
    ('map that explains 0.15 less at one scale',
     {'comparison': {'explained_by_scale': scales((0.8, 0.9), (0.85, 0.7))}},
     'consistency', 'doubtful'),
    ('residual silenced', {'comparison': {'explained_by_scale': scales((0.8, 0.3))}},
     'consistency', 'bad'),
    ('flattened field wider than the measured one', {'flattening': {'warnings': ['wider']}},
     'consistency', 'doubtful'),
    ('field of zero', {'dipole_inversion': {'reg_weight': None}}, 'consistency', 'bad'),
    ('no conventional map', {'comparison': None}, 'consistency', 'unknown'),
    ('no reference', {'recombination': {'reference': 'none'}}, 'consensus', 'doubtful'),
)  # fmt: skip


def prepared(changes):
    record = deepcopy(GOOD)
    for stage, numbers in changes.items():
        if numbers is None:
            del record[stage]
        else:
            record[stage] |= numbers
    return record


def levels(record, metadata=None):
    return {name: light.level for name, light in lights(record, metadata or {}).items()}


def test_a_good_run_has_six_good_lights():
    found = lights(GOOD, {})
    assert {light.level for light in found.values()} == {'good'}
    assert len(found) == 6
    for light in found.values():
        assert light.sentence
        assert light.measure
        assert light.number is not None
        assert light.limit is not None
        kept = light.number >= light.limit if light.at_least else light.number <= light.limit
        assert kept


def test_inversion_of_another_program_is_not_called_l2():
    assert 'not counted: the l2 inversion' in lights(GOOD, {})['consensus'].sentence
    record = {stage: value for stage, value in GOOD.items() if stage != 'dipole_inversion'}
    assert 'l2' not in lights(record | {'take_map': {}}, {})['consensus'].sentence


@pytest.mark.parametrize('what, changes, name, level', CASES, ids=[case[0] for case in CASES])
def test_one_fault_lights_one_lamp(what, changes, name, level):
    assert levels(prepared(changes)) == dict.fromkeys(levels(GOOD), 'good') | {name: level}


def test_sign_is_judged_by_the_phase_in_use_and_not_by_that_which_is_stored():
    """The correlation of the record is that of the stored phase, which was negated."""
    negated = {'phase_sign': -1, 'phase_sign_correlation': -0.9}
    found = lights(prepared({'echo_fit': negated}), {})['sign']
    assert (found.level, found.number) == ('good', 0.9)
    stated = negated | {'phase_sign_source': 'given', 'phase_sign_correlation': 0.5}
    assert levels(prepared({'echo_fit': stated}))['sign'] == 'bad'


def test_calcium_with_the_sign_of_its_shape_is_good():
    assert levels(prepared(AGAINST))['sign'] == 'good'


def test_given_fields_have_no_echoes_to_test():
    fit = {
        'field_source': 'given', 'echo_times': [], 'phase_sign': -1, 'phase_sign_correlation': 0.9,
        'phase_sign_source': 'given', 'median_field_sd': 0.002, 'no_signal_fraction': 0.01,
    }  # fmt: skip
    assert levels(GOOD | {'echo_fit': fit}) == levels(GOOD)
    unknown = fit | {'phase_sign': 1, 'phase_sign_source': 'convention'}
    weak = unknown | {'phase_sign_correlation': 0.2}
    assert levels(GOOD | {'echo_fit': weak})['sign'] == 'unknown'
    opposite = unknown | {'phase_sign_correlation': -0.8}
    assert levels(GOOD | {'echo_fit': opposite})['sign'] == 'bad'
    assert levels(GOOD | {'echo_fit': fit | {'no_signal_fraction': 0.6}})['echoes'] == 'bad'


def test_single_echo_and_2d_acquisition_deviate_from_the_consensus():
    one = prepared({'echo_fit': {'echo_times': [0.02], 'misfit_fraction': None}})
    assert levels(one)['echoes'] == levels(one)['consensus'] == 'doubtful'
    found = lights(one, {'MRAcquisitionType': '2D'})['consensus']
    assert found.number == 2
    assert levels(GOOD, {'MRAcquisitionType': '3D'})['consensus'] == 'good'
    sparse = prepared({'dipole_inversion': {'inversion': 'tv'}})
    assert lights(sparse, {})['consensus'].sentence == 'none'
    assert 'l2' in lights(GOOD, {})['consensus'].sentence


def test_an_empty_record_is_unknown():
    assert set(levels({}).values()) == {'unknown'}


def test_lights_stand_in_the_sidecar_of_the_map_and_in_the_table_of_the_group():
    record = prepared({'prior_fit': {'trust': 0.0, 'beyond_null': 0.01}})
    facts = Facts([], [0.004, 0.008], 3.0)
    del record['recombination'], record['prior_fit']['beyond_null']
    record['prior_fit'] |= {'priors': {'shape': {}}, 'fit': 'none'}
    sidecars = {
        name: compose_sidecar(output, record | {'recombination': {'reference': 'none'}}, facts)
        for name, output in WRITTEN.items()
        if output.suffix == 'Chimap' and not output.arm
    }
    assert [name for name, sidecar in sidecars.items() if 'Lights' in sidecar] == ['precond_chi']
    found = light_levels(sidecars['precond_chi'])
    assert list(found) == [f'light_{row.name}' for row in LIGHTS]
    assert (found['light_prior'], found['light_sign']) == ('doubtful', 'good')
    assert set(light_levels({'Lights': {'sign': 3}}).values()) == {None}


def test_page_has_every_case_and_level():
    text = Path(__file__).parents[2].joinpath('docs/reading.md').read_text(encoding='utf-8')
    table = text[text.index('## Prepared records') :]
    headings = {row.name: row.heading for row in LIGHTS}
    rows = re.findall(r'^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$', table, re.MULTILINE)[1:]
    assert rows == [(what, headings[name], level) for what, _, name, level in CASES]
    assert all(f'| {level} |' in text for level in LEVELS)
    assert all(f'## {heading}' in text for heading in headings.values())


# -- scans with a known fault -------------------------------------------------------------------

SIZE, TIMES = (2.0, 2.0, 2.0), np.array([4e-3, 8e-3, 12e-3, 16e-3])


def scan(times=TIMES, noise=0.01, b0=(0, 0, 1), source=0.1, **known):
    """A cut block of water in air with a bar inside, at 1.5 T."""
    x = np.indices((24, 24, 24)) - 11.5
    body = (np.abs(x) < [[[[8.6]]], [[[7.2]]], [[[9.6]]]]).all(axis=0) & ((x**2).sum(0) < 117)
    chi = source * ((x[0] > 2) & (abs(x[1]) < 4) & body) - 9.41 * body
    field = forward_field(chi, SIZE, b0)[..., None]
    signal = body[..., None] * np.exp(-20 * times + 2j * np.pi * 63.864 * field * times)
    rng = np.random.default_rng(0)
    signal = signal + noise * (rng.normal(size=signal.shape) + 1j * rng.normal(size=signal.shape))
    known = {'phase_units': 'rad'} | known
    return Scan(np.abs(signal), np.angle(signal), times, 1.5, SIZE, **known)


def moved():
    """The object two voxels farther on in the last two echoes."""
    still = scan()
    magnitude, phase = still.magnitude.copy(), still.phase.copy()
    for data in (magnitude, phase):
        data[..., 2:] = np.roll(data[..., 2:], 2, axis=1)
    return still._replace(magnitude=magnitude, phase=phase)


@pytest.mark.parametrize(('ratio', 'number'), [(3.8, 3.8), (0.2, 5.0)])
def test_noise_beyond_its_limit_is_the_number_of_the_light(ratio, number):
    light = lights(prepared({'echo_fit': {'noise_ratio': ratio}}), {})['echoes']
    assert (light.level, light.number, light.limit) == ('doubtful', pytest.approx(number), 2.5)
    assert 'motion' in light.sentence
    usual = lights(prepared({'echo_fit': {'noise_ratio': 1.8}}), {})['echoes']
    assert usual.level == 'good'
    assert 'noise' not in usual.measure


@pytest.mark.parametrize(('trust', 'level'), [(1.0, 'doubtful'), (0.85, 'bad')])
def test_b0_that_shape_and_prior_contradict_is_a_bad_light(trust, level):
    record = {
        **GOOD,
        'echo_fit': {**GOOD['echo_fit'], 'b0_contradicted': True},
        'prior_fit': {'trust': trust, 'beyond_null': 0.1},
    }
    assert levels(record)['sign'] == level


@pytest.mark.parametrize(
    'make, name, level',
    [
        (scan, None, None),
        (lambda: scan(b0=(1, 0, 0), b0_stated=True), 'sign', 'doubtful'),
        (lambda: scan(np.array([4e-3, 44e-3, 84e-3]), source=1.5), 'echoes', 'bad'),
        (moved, 'echoes', 'doubtful'),
        (lambda: scan(TIMES / 4, noise=0.15), 'echoes', 'doubtful'),
        (lambda: scan(TIMES / 16, noise=0.15), 'echoes', 'bad'),
    ],
    ids=[
        'right',
        'B0 along another axis',
        'echoes too far apart',
        'motion',
        'noise',
        'more noise',
    ],
)
def test_scan_with_a_fault_lights_its_lamp(make, name, level):
    echoes = make()
    region = region_of_interest(echoes.magnitude[..., 0], SIZE)
    measured = measure_field(echoes, region.roi_mask, region.shape_mask)
    found = levels({'echo_fit': measured.record, 'shape_mask': region.record})
    if name is None:
        assert [found[lamp] for lamp in ('sign', 'echoes', 'region')] == ['good'] * 3
    else:
        assert found[name] == level, measured.record
