"""Items of the consensus: from sidecars to the report and the page of the documentation."""

import re
from pathlib import Path

import numpy as np
import pytest

from precondqsm_bids.outputs.maps import WRITTEN
from precondqsm_bids.outputs.reporting import (
    ITEMS,
    alternates,
    consensus_deviations,
    readout_polarity,
    reporting_rows,
)
from precondqsm_bids.outputs.sidecars import ACQUISITION_KEYS, Facts, compose_sidecar

RECORD = {
    'echo_fit': {
        'b0_dir': [0, 0, 1], 'echo_times': [0.01, 0.02], 'echo_phase': None,
        'field_strength_source': 'ImagingFrequency',
    },
    'shape_mask': {'mask': 'brain', 'roi_voxels': 493600, 'shape_used': False},
    'recombination': {
        'reference': 'CSF', 'reference_value': 0.25, 'reference_sd': 0.05, 'roi_mean': 0.1,
        'roi_sd': 0.04,
    },
    'dipole_inversion': {'reg_weight': 0.1},
    'prior_fit': {'priors': {'contrast': {'parcels': 9, 'explained': 0.5}}, 'fit': 'global'},
}  # fmt: skip
FACTS = Facts(
    ['bids:raw:x'], [0.01, 0.02], 2.89, dict.fromkeys(ACQUISITION_KEYS, 'x'), {'prior': 'x'},
    [200, 160, 90], [1.0, 1.25, 2.0],
)  # fmt: skip


def sidecar(record=RECORD, facts=FACTS):
    return compose_sidecar(WRITTEN['precond_chi'], record, facts)


@pytest.mark.parametrize(
    ('more', 'of_maps', 'of_consensus'),
    [
        ({}, 1234, 1234),
        ({'echo_fit': RECORD['echo_fit'] | {'fat_voxels': 93600}}, 1000, 1000),
        ({'background_removal': {'method': 'vsharp', 'known_voxels': 100000}}, 250, 1234),
        ({'consensus_background_removal': {'known_voxels': 200000}}, 1234, 500),
    ],
)
def test_volume_is_that_of_the_voxels_of_the_map(more, of_maps, of_consensus):
    """Voxels of 2.5 mm^3; fat and the rim of spheres are not in the map."""
    volumes = {'roi_mask': of_maps, 'precond_chi': of_maps, 'consensus_chi': of_consensus,
               'consensus_mask': of_consensus}  # fmt: skip
    for name, volume in volumes.items():
        found = compose_sidecar(WRITTEN[name], RECORD | more, FACTS)
        assert found['RegionOfInterest'] == {'Region': 'brain', 'Volume': volume, 'Units': 'mL'}
    assert 'RegionOfInterest' not in compose_sidecar(WRITTEN['shape_mask'], RECORD, FACTS)


def test_values_of_the_items():
    found = sidecar()
    # 42.577 MHz per tesla (CODATA: 42.577478)
    assert found['CenterFrequency'] == {
        'Value': pytest.approx(123.0489, abs=0.01), 'Units': 'MHz', 'Source': 'ImagingFrequency',
    }  # fmt: skip
    assert found['FieldOfView'] == [200, 200, 180]
    assert found['RegionOfInterest'] == {'Region': 'brain', 'Volume': 1234, 'Units': 'mL'}
    reference = found['Reference']
    assert reference['WholeRegion'] == 'brain'
    assert reference['WholeRegionReferencedMean'] == pytest.approx(0.15)
    assert found['ConsensusDeviations'] == []
    rows = {name: text for _, name, text, _ in reporting_rows(found)}
    assert rows['Orientation: direction of B0'] == '(0; 0; 1) along the stored axes'
    assert rows['Deviates from the consensus in'] == 'nothing that is known'
    assert rows['Region of interest'] == 'brain, 1234 ml'
    assert rows['Reference'] == 'CSF, 0.25 ppm subtracted, standard deviation 0.05 ppm'


def test_every_key_of_the_items_is_in_a_sidecar():
    found = sidecar()
    for item in ITEMS:
        for key in item.keys:
            value = found
            for name in key.split('.'):
                assert name in value, key
                value = value[name]


def test_page_has_the_items_and_no_others():
    text = Path(__file__).parents[2].joinpath('docs/reporting.md').read_text(encoding='utf-8')
    rows = re.findall(r'^\| (\w+) \| (\*\*)?(.+?)(?:\*\*)? \| (.*) \|$', text, re.MULTILINE)[1:]
    assert [
        (group, name, tuple(re.findall(r'`([\w.]+)`', keys)), bool(bold))
        for group, bold, name, keys in rows
    ] == [tuple(item) for item in ITEMS]


def test_missing_items_are_said_to_be():
    assert dict(row[1:3] for row in reporting_rows({'Reference': 'none'}))['Reference'] == 'none'
    rows = reporting_rows({})
    assert {text for *_, text, _ in rows} == {'not known'}
    assert len(rows) == len(ITEMS)


@pytest.mark.parametrize(
    ('stated', 'lines', 'said'),
    [
        ({}, [1.0, 0.718, 1.0], '72% of the lines of k-space along j, by the images'),
        ({'PartialFourier': 0.75}, [1.0, 0.718, 1.0], '0.75'),
        ({}, [1.0, 1.0, 1.0], 'not known'),  # lines may have been filled in
        ({}, None, 'not known'),
    ],
)
def test_partial_fourier_is_stated_or_seen(stated, lines, said):
    found = {**stated, 'Parameters': {'echo_fit': {'measured_lines': lines}}}
    assert dict(row[1:3] for row in reporting_rows(found))['Partial Fourier'] == said


# -- polarity of the readouts -------------------------------------------------------------------


def gradients(n, bipolar, eddy, seed):
    """Gradients of phase of each echo: alternating along one direction, and noise in all."""
    found = eddy * np.random.default_rng(seed).normal(size=(n, 3))
    found[:, 0] += bipolar * (-1.0) ** np.arange(n)
    return found


@pytest.mark.parametrize('n', [6, 8, 12])
def test_alternating_readouts_are_told_from_eddy_currents(n):
    assert all(alternates(gradients(n, 0.01, 0.001, seed)) for seed in range(100))
    wrong = sum(alternates(gradients(n, 0.0, 0.005, seed)) for seed in range(500))
    assert wrong <= 0.03 * 500
    assert not alternates(np.zeros((n, 3)))
    assert not alternates(gradients(5, 0.01, 0.0, 0))


def test_words_of_the_sidecar_come_first():
    fit = {'echo_phase': {'gradient': gradients(8, 0.01, 0, 0).tolist()}, 'echo_times': [1] * 8}
    assert readout_polarity({}, fit)['Polarity'] == 'bipolar'
    said = {'PulseSequenceDetails': 'ASPIRE, Monopolar readout'}
    assert readout_polarity(said, fit)['Polarity'] == 'monopolar'
    said = {'PulseSequenceDetails': 'unipolar readouts'}
    assert readout_polarity(said, {})['Polarity'] == 'monopolar'
    assert readout_polarity({}, {})['Polarity'] == 'not known'
    assert readout_polarity({}, {'echo_times': [0.02]})['Polarity'] == 'one readout'


def test_deviations():
    record = {
        'echo_fit': {
            'echo_times': [1] * 8, 'echo_phase': {'gradient': gradients(8, 0.01, 0, 0).tolist()},
        },
        'recombination': {'reference': 'none'},
    }  # fmt: skip
    found = consensus_deviations(record, {'MRAcquisitionType': '2D'})
    assert [text.split()[0] for text in found] == ['2D', 'bipolar', 'no']
    assert consensus_deviations({}, {}) == []


@pytest.mark.parametrize(
    ('region', 'said'),
    [('brain', 'the brain'), ('sub-01_fieldmap.nii.gz', 'the region of sub-01_fieldmap.nii.gz')],
)
def test_region_of_the_reference_is_a_word_or_that_of_a_file(region, said):
    reference = {'WholeRegion': region, 'WholeRegionReferencedMean': 0.1}
    rows = {name: text for _, name, text, _ in reporting_rows({'Reference': reference})}
    (text,) = (text for text in rows.values() if 'against' in text)
    assert f'against the mean of {said}' in text
