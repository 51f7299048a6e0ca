"""The page says what is and what is not."""

import base64
import json
import re
from dataclasses import asdict
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
from written import write, zeros

from precondqsm_bids.method import Method
from precondqsm_bids.outputs import report, wording
from precondqsm_bids.outputs.figures import FIGURES
from precondqsm_bids.outputs.lights import LEVELS, lights
from precondqsm_bids.outputs.record import report_rows
from precondqsm_bids.outputs.report import Account, write_report

RUNS = ('sub-01_ses-a_run-2', 'sub-01_ses-a_run-10')
ACCOUNTS = {name: {} for name in RUNS}
SUMMARY = {
    'run': RUNS[0],
    'version': '1',
    'echo_times': [0.002, 0.005, 0.008],
    'echo_spacing': '2:3:8 ms',
    'field_strength': 3.0,
    'matrix': [64, 64, 53],
    'voxel_size': [2.0, 2.0, 2.0],
    'orientation': 'RAS',
    'b0_tilt': 12.5,
    'sources': ['bids:raw:sub-01/anat/x.nii.gz'],
    'scanner': {'Manufacturer': 'Philips'},
    'settings': {},
    'record': {
        'dipole_inversion': {
            'reg_weight': 0.1234,
            'rule': 'l-curve',
            'warnings': ['flat <curve>'],
        },
        'recombination': {
            'reference': 'roi-mean',
            'reference_value': 0.0567,
            'reference_sd': 0.2,
            'roi_mean': 0.0567,
            'roi_sd': 0.2,
        },
        'conventional_recombination': {
            'reference': 'none',
            'reference_value': 0.0,
            'reference_sd': 0.0,
            'roi_mean': 0.1,
            'roi_sd': 0.2,
        },
    },
    'l_curve': {'reg_weight': 0.1234, 'warnings': ['flat <curve>']},
    'conventional_l_curve': {},
}
TABLE = (
    'index\tname\tn_voxels\tprecond_chi_mean\tprecond_chi_sd\tprecond_chi_minus_medium\t'
    'cylinder_reference\tcylinder_reference_sd\tcylinder_reference_note\n'
    '1\ttube\t120\t0.7123\t0.01\t0.7501\t0.7494\t0.02\tn/a\n'
    '2\ttilted\t80\t0.2\t0.01\t0.25\tn/a\tn/a\taxis near the magic angle\n'
    '6\tagar\t999\t-0.0378\t0.01\t0\tn/a\tn/a\tn/a\n'
)


VOID = {'meta', 'img', 'br', 'hr', 'link', 'input'}


class WellFormed(HTMLParser):
    """Every id of a page, and its elements, each closed in its place."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.opened, self.tags = [], [], set()
        self.feed(text)
        assert self.opened == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.ids += [value for name, value in attrs if name == 'id']
        if tag not in VOID:
            self.opened.append(tag)

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag


class Loads(HTMLParser):
    """Everything that a page loads or links to."""

    def __init__(self, text):
        super().__init__()
        self.targets = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.targets += [v for k, v in attrs if k in ('src', 'href', 'data', 'srcset')]


@pytest.fixture
def output_dir(tmp_path):
    """One run with everything, in an output folder."""
    folder = tmp_path / 'sub-01' / 'figures'
    folder.mkdir(parents=True)
    anat = tmp_path / 'sub-01' / 'ses-a' / 'anat'
    anat.mkdir(parents=True)
    for figure in FIGURES:
        (folder / f'{RUNS[0]}_{figure.name}').write_bytes(b'x')
    (folder / f'{RUNS[0]}_desc-summary_report.json').write_text(json.dumps(SUMMARY))
    (anat / f'{RUNS[0]}_desc-rois_values.tsv').write_text(TABLE)
    return tmp_path


def test_report_shows_every_figure_and_loads_nothing_from_elsewhere(output_dir):
    page = write_report(output_dir, 'sub-01', Account(boilerplate='Fitted [@liu2013].'))
    assert page == output_dir / 'sub-01.html'
    text = page.read_text()
    targets = Loads(text).targets
    assert not [t for t in targets if re.match(r'(\w+:)?//', t)]
    assert 'url(' not in text
    assert '@import' not in text
    for figure in FIGURES:
        assert f'./sub-01/figures/{RUNS[0]}_{figure.name}' in targets
        assert figure.caption[:40].replace("'", '&#39;') in text
        assert f'alt="{figure.alt}; {RUNS[0]}"'.replace("'", '&#39;') in text
    for target in targets:
        assert target.startswith('#') or (output_dir / target).is_file()


def test_report_says_the_numbers(output_dir):
    text = write_report(
        output_dir, '01', Account(boilerplate='Fitted [@liu2013; @liu2011].')
    ).read_text()
    for number in (
        '3 T Philips',
        '3 (2:3:8 ms)',
        '64 × 64 × 53',
        '0.1234 mm (corner of the L-curve)',
        '12.5°',
    ):
        assert number in text
    assert 'roi-mean: 0.0567 ppm subtracted' in text
    assert 'none: nothing was subtracted' in text
    assert '0.749 ± 0.020' in text
    assert '(0.750)' in text
    assert 'none: axis near the magic angle' in text
    assert text.count('flat &lt;curve&gt;') == 2  # once as a warning, once in the raw record
    assert 'Fitted (Liu 2013; Liu 2011).' in text
    assert 'NMR Biomed 2011;24:1129' in text
    assert 'No step failed.' in text


def test_a_missing_figure_and_a_missing_run_are_said_in_words(output_dir):
    (output_dir / 'sub-01/figures' / f'{RUNS[0]}_{FIGURES[0].name}').unlink()
    text = write_report(output_dir, '01', Account(ACCOUNTS)).read_text()
    assert f'This figure (<code>{RUNS[0]}_{FIGURES[0].name}</code>) is missing' in text
    missing = text[text.index(f'<section id="{RUNS[1]}">') :]
    assert 'its reconstruction did' in missing
    # run-2 before run-10
    assert text.index(f'<section id="{RUNS[0]}">') < text.index(f'<section id="{RUNS[1]}">')


def test_crash_files_are_shown_escaped(output_dir, tmp_path):
    crash = tmp_path / 'crash-echo_fit.txt'
    crash.write_text('Node: echo_fit\nOSError: <truncated> file')
    crashes = {str(crash): 'echo_fit: <truncated>'}
    text = write_report(output_dir, '01', Account(crash_files=crashes)).read_text()
    assert '1 step\n  failed' in text
    assert text.index('<li>echo_fit: &lt;truncated&gt;</li>') < text.index('<h2>')
    errors = text[text.index('<section id="errors">') :]
    heading, _, folded = errors.partition('<details>')
    assert '<h3>echo_fit: &lt;truncated&gt;</h3>' in heading
    assert 'crash-echo_fit.txt' not in heading
    assert 'crash-echo_fit.txt' in folded
    assert 'OSError: &lt;truncated&gt; file' in folded


def test_fieldmaps_of_a_reconstruction_are_found_under_their_folded_names(tmp_path):
    name = 'sub-01_acq-x_rec-y'
    for folder, file in (
        ('anat', f'{name}_desc-precond_Chimap'),
        ('fmap', 'sub-01_acq-xrecy_desc-total_fieldmap'),
    ):
        path = tmp_path / 'sub-01' / folder / f'{file}.nii.gz'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = [Path(path).parent.name for path, _ in report._maps(tmp_path, '01', name, early=False)]
    assert sorted(found) == ['anat', 'fmap']


def test_remarks_on_the_input_are_kept(output_dir):
    first = write_report(output_dir, '01', Account(notes=['skipped: a_GRE.nii: <suffix>']))
    assert '<li>skipped: a_GRE.nii: &lt;suffix&gt;</li>' in first.read_text()
    assert '<li>skipped: a_GRE.nii' in write_report(output_dir, '01').read_text()
    gone = write_report(output_dir, '01', Account(notes=[]))
    assert 'on the input' not in gone.read_text()


def test_warnings_of_a_map_of_another_program_are_shown(output_dir):
    path = output_dir / 'sub-01/figures' / f'{RUNS[0]}_desc-summary_report.json'
    record = {'flattening': {'warnings': ['large field']}}
    path.write_text(json.dumps(SUMMARY | {'record': record}))
    sidecar = output_dir / f'sub-01/ses-a/anat/{RUNS[0]}_desc-precond_Chimap.json'
    record |= {'take_map': {'warnings': ['zero in the rim']}, 'recombination': {}}
    sidecar.write_text(json.dumps({'Parameters': record}))
    text = write_report(output_dir, '01').read_text()
    for words in ('take map: zero in the rim', 'flattening: large field'):
        assert f'<div class="box warning">{words}</div>' in text


def test_a_call_at_some_runs_keeps_what_was_said_of_the_others(output_dir):
    first, second = RUNS
    failed = {'crash_files': {'/crash': 'echo_fit: truncated'}, 'notes': ['warning: one echo']}
    write_report(output_dir, '01', Account({second: failed}, notes=['skipped: x']))

    def again(name, of_some):
        said = {name: {'crash_files': {}, 'notes': []}}
        return write_report(output_dir, '01', Account(said, notes=[]), of_some=of_some).read_text()

    page = again(first, of_some=True)
    assert f'<section id="{second}">' in page
    assert '<h3>echo_fit: truncated</h3>' in page
    assert 'warning: one echo' in page
    assert 'skipped: x' not in page
    assert '<h3>echo_fit: truncated</h3>' in write_report(output_dir, '01').read_text()
    assert 'No step failed' in again(second, of_some=True)
    write_report(output_dir, '01', Account({second: failed}))
    assert 'No step failed' in again(first, of_some=False)  # the second is not there any more


@pytest.fixture
def page_of_lights(output_dir):
    """The report of a run with all levels of lights, markup in the words of a stage."""
    record = SUMMARY['record'] | {
        'echo_fit': {'phase_sign_source': 'vendor', 'median_field_sd': 0.4},
        'shape_mask': {'fading_fraction': 0.0, 'warnings': ['<script>alert(1)</script> & "x"']},
        'prior_fit': {'trust': 1.0, 'beyond_null': 0.5, 'priors': {'shape': {}}},
    }
    found = {name: light._asdict() for name, light in lights(record, {}).items()}
    path = output_dir / 'sub-01/figures' / f'{RUNS[0]}_desc-summary_report.json'
    path.write_text(json.dumps(SUMMARY | {'record': record, 'lights': found}))
    (output_dir / 'sub-01/ses-a/anat' / f'{RUNS[0]}_desc-precond_Chimap.nii.gz').touch()
    log = output_dir / 'logs/now_<1>/precondqsm_bids.log'
    log.parent.mkdir(parents=True)
    log.touch()
    account = Account(ACCOUNTS, log='logs/now_<1>/precondqsm_bids.log')
    return write_report(output_dir, '01', account).read_text()


def test_lights_of_a_run_stand_before_its_numbers_and_lead_to_what_explains_them(
    page_of_lights, output_dir
):
    page = WellFormed(page_of_lights)
    assert len(set(page.ids)) == len(page.ids)
    run = page_of_lights[page_of_lights.index(f'<section id="{RUNS[0]}">') :]
    assert run.index('class="lights"') < run.index('class="box warning"') < run.index('<figure')
    shown = re.findall(r'<span class="light (\w+)">(\w+)</span>', run)
    assert shown == [(level, level) for level in (
        'doubtful', 'bad', 'doubtful', 'good', 'unknown', 'good',
    )]  # fmt: skip
    assert '0.4 (at most 0.05), standard deviation of the field in the median voxel, ppm' in run
    targets = Loads(page_of_lights).targets
    for target in targets:
        if target.startswith('#'):
            assert target[1:] in page.ids
        else:
            assert (output_dir / target).is_file()
    assert './logs/now_<1>/precondqsm_bids.log' in targets
    assert f'./sub-01/ses-a/anat/{RUNS[0]}_desc-precond_Chimap.nii.gz' in targets


def test_participant_has_the_lights_of_all_runs_at_the_top(page_of_lights):
    top = page_of_lights[: page_of_lights.index(f'<section id="{RUNS[0]}">')]
    rows = top[top.index('<table ') : top.index('</table>')].split('<tr>')[2:]
    assert [re.findall(r'href="#([^"]*)"', row) for row in rows] == [[name] for name in RUNS]
    assert [len(re.findall('class="light ', row)) for row in rows] == [6, 0]


def test_markup_in_the_words_of_a_light_is_inert(page_of_lights):
    assert 'script' not in WellFormed(page_of_lights).tags  # nothing to copy either
    assert '&lt;script&gt;alert(1)&lt;/script&gt; &amp; &#34;x&#34;' in page_of_lights


def test_levels_differ_in_shape_and_not_in_colour_alone():
    style = resources.files('precondqsm_bids.data').joinpath('report.css').read_text('utf-8')
    marks = dict(re.findall(r'^\.(\w+)::before { content: "(\S+)"', style, re.MULTILINE))
    assert set(marks) == set(LEVELS)
    assert len(set(marks.values())) == len(LEVELS)


def test_report_can_be_rebuilt_from_disk(output_dir):
    account = Account(ACCOUNTS, 'precondqsm_bids a b participant', 'How.')
    first = write_report(output_dir, '01', account).read_text()
    (output_dir / 'sub-01.html').unlink()
    assert write_report(output_dir, '01').read_text() == first
    assert 'precondqsm_bids a b participant' in first


def test_methods_are_those_of_the_runs_with_maps_and_can_be_copied(output_dir):
    settings = asdict(Method(prior='r2prime', r2=12.5))
    region = {'mask': 'object', 'erosion': 0.0, 'roi_voxels': 90}
    record = SUMMARY['record'] | {'shape_mask': region, 'r2prime_prior': {}}
    path = output_dir / 'sub-01/figures' / f'{RUNS[0]}_desc-summary_report.json'
    path.write_text(json.dumps(SUMMARY | {'record': record, 'settings': settings}))
    text = write_report(output_dir, '01', Account(ACCOUNTS, boilerplate='Planned.')).read_text()
    methods = text[text.index('id="methods"') :]
    assert 'R2 being 12.5/s' in methods
    assert 'Planned.' not in methods
    assert '@article{yablonskiy1994,' in methods
    for name in ('methods-text', 'methods-bibtex'):
        assert f'data-copies="{name}"' in methods
        assert f'id="{name}"' in methods


def test_a_participant_without_a_map_has_no_methods(output_dir):
    for path in (output_dir / 'sub-01/figures').glob('*_desc-summary_report.json'):
        path.unlink()
    text = write_report(output_dir, '01', Account(ACCOUNTS, boilerplate='Planned.')).read_text()
    assert 'Planned.' not in text
    assert 'there is nothing to describe' in text


def test_page_says_when_how_long_and_with_what_the_run_was_made(output_dir):
    account = Account(
        finished='2026-01-31 12:00:00 +0100',
        seconds=3725.4,
        versions={'numpy': '2.1', 'Python': '3'},
    )
    write_report(output_dir, '01', account)
    text = write_report(output_dir, '01').read_text()
    assert text.count('2026-01-31 12:00:00 +0100') == 2
    assert '1 h 2 min' in text
    assert 'numpy 2.1, Python 3' in text


def test_page_has_the_acquisition_the_volume_and_the_signal_over_noise(output_dir):
    path = output_dir / 'sub-01/figures' / f'{RUNS[0]}_desc-summary_report.json'
    more = {'shape_mask': {'roi_voxels': 11000}, 'echo_fit': {'fat_voxels': 95}}
    record = SUMMARY['record'] | more
    path.write_text(json.dumps(SUMMARY | {'record': record, 'snr': 81.234}))
    text = write_report(output_dir, '01').read_text()
    assert '3 T; 3 echoes, 2:3:8 ms; voxels of 2 × 2 × 2 mm; region of 87.24 ml' in text
    assert 'signal over noise 81.2' in text
    assert '81.23 in the median voxel of the region: S0' in text


@pytest.mark.parametrize(
    'changes, words',
    [
        ({}, 'All 6 lights are good'),
        ({'sign': 'bad', 'prior': 'unknown', 'region': 'bad'},
         'Bad: Sign, Region (the map is not to be used without mending it). '
         'Unknown: Support of the prior (nothing tested it). Good: 3 of 6.'),
    ],
)  # fmt: skip
def test_verdict_says_the_worst_first(changes, words):
    good = dict.fromkeys(('sign', 'echoes', 'region', 'prior', 'consistency', 'consensus'), 'good')
    found = {name: {'level': level} for name, level in (good | changes).items()}
    assert report._verdict(found).startswith(words)


def test_labels_outside_and_columns_without_values_are_left_out(output_dir):
    table = next(output_dir.rglob('*_values.tsv'))
    table.write_text(
        'index\tname\tn_voxels\tprecond_chi_mean\tprecond_chi_sd\tconventional_chi_mean\t'
        'precond_chi_minus_medium\tcylinder_reference\n'
        '1\ttube\t120\t0.7123\t0.01\tn/a\tn/a\tn/a\n'
        '2\t<air>\t120\tn/a\tn/a\tn/a\tn/a\tn/a\n'
    )
    text = write_report(output_dir, '01').read_text()
    shown = text[text.index('<table class="values">') :]
    shown = shown[: shown.index('</table>')]
    assert re.findall(r'<th[^>]*>([^<]*)', shown) == ['label', 'name', 'voxels', 'preconditioned']
    assert '0.712 ± 0.010' in shown
    assert 'air' not in shown
    assert 'Outside the region of interest: &lt;air&gt;.' in text
    assert 'in\n  brackets' not in text


def test_one_file_has_the_figures_in_it_and_no_link_to_another(page_of_lights, output_dir):
    text = write_report(output_dir, '01', self_contained=True).read_text()
    targets = Loads(text).targets
    data = [target for target in targets if target.startswith('data:')]
    assert len(data) == len(FIGURES)
    assert {base64.b64decode(target.partition(',')[2]) for target in data} == {b'x'}
    assert all(target.startswith(('#', 'data:')) for target in targets)
    assert 'logs/now_&lt;1&gt;/precondqsm_bids.log' in text
    ids = WellFormed(text).ids
    assert len(ids) == len(set(ids))
    assert write_report(output_dir, '01').read_text() == page_of_lights


def test_optional_figures_that_a_run_does_not_have_are_not_missed(output_dir):
    for figure in FIGURES:
        if figure.optional and figure.desc != 'rois':
            (output_dir / 'sub-01/figures' / f'{RUNS[0]}_{figure.name}').unlink()
    text = write_report(output_dir, '01').read_text()
    assert 'is missing' not in text
    assert 'fieldset' not in text
    (output_dir / 'sub-01/figures' / f'{RUNS[0]}_desc-rois_values.svg').unlink()
    assert 'desc-rois_values.svg</code>) is missing' in write_report(output_dir, '01').read_text()


def test_nothing_at_all_is_said_in_words(tmp_path):
    text = write_report(tmp_path, '07').read_text()
    assert 'Nothing of this participant was found' in text


@pytest.mark.parametrize(
    'region, text',
    [
        ({'mask': 'object', 'erosion': 0.0}, 'the object: 90 voxels'),
        (
            {'mask': 'm.nii', 'erosion': 1.5},
            'the object inside m.nii, less 1.5 mm of its border (10 voxels): 90 voxels',
        ),
        (
            {'mask': 'object', 'erosion': 0.0, 'volumes': [80.0, 7.25], 'left_out': [2.0]},
            'the object: 90 voxels in 2 bodies, 80, 7.25 ml; pieces of 2 ml were left out',
        ),
    ],
)
def test_page_says_what_the_region_of_interest_is(region, text):
    summary = {
        'record': {'shape_mask': {**region, 'eroded_voxels': 10, 'roi_voxels': 90}},
        'matrix': [1, 1, 1],
        'voxel_size': [1.0, 1.0, 1.0],
        'field_strength': 3.0,
        'echo_times': [0.004],
        'echo_spacing': '4 ms',
        'orientation': 'RAS',
        'b0_tilt': 0.0,
    }
    assert ('Region of interest', text) in report._summary_rows(summary)


def test_b0_of_the_report_is_that_of_the_maps_in_a_sheared_grid(tmp_path):
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[0, 2], affine[2, 1] = 0.9, -0.6  # as a gantry tilt leaves it
    folder = write(zeros(tmp_path, affine), tmp_path)
    summary = json.loads((folder / f'sub-01_{report.SUMMARY}').read_text())
    # the angle by which the nearest rotation of this affine turns the third axis: its polar factor
    linear = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    stretch = scipy.linalg.sqrtm(linear.T @ linear)
    rotation = linear @ np.linalg.inv(stretch)
    assert summary['b0_tilt'] == pytest.approx(np.degrees(np.arccos(rotation[2, 2])), abs=0.01)
    assert 3 < summary['b0_tilt'] < 15


def test_page_says_what_the_coefficient_of_the_prior_implies():
    fit = {
        'coefficients': {'r2prime': [0.9]},
        'coefficient_errors': [0.012],
        'implied_relaxivity': [359.4],
    }
    text = wording.coefficient(fit, {'echo_fit': {'field_strength': 3.0}})
    assert text.startswith('0.900 ± 0.012; implies')
    # static dephasing at 3 T: 2 pi gamma B0 / (9 sqrt 3) = 323.5 1/s per ppm
    for number in ('359', '323', '110', '274'):
        assert number in text
    assert '220 to 548' in wording.coefficient(fit, {'echo_fit': {'field_strength': 6.0}})


@pytest.mark.parametrize(('mean', 'shown'), [(0.5, 0.25), (0.0, 0.75), (None, None)])
def test_prior_in_the_table_of_the_page_is_relative_to_the_reference(mean, shown):
    row = {'name': 'a', 'precond_chi_mean': 0.1, 'prior_chi_mean': 0.75}
    found = report._table([row], {'prior_mean': mean})
    assert found['table'][0]['prior_chi_mean'] == shown
    assert ('prior' in dict(found['arms'])) is (shown is not None)


def test_every_term_with_one_coefficient_is_on_the_page():
    fit = {
        'coefficients': {'map:/a/chi.nii': [0.829], 'tissue': {'GM': 1.0}, 'r2prime': [0.24]},
        'implied_relaxivity': [1353.4],
    }
    text = wording.coefficient(fit, {'echo_fit': {'field_strength': 3.0}})
    assert text.startswith("map:chi.nii: 0.829 | r2prime: 0.240; implies R2' of 1353")
    alone = {'coefficients': {'map:/a/chi.nii': [0.829]}, 'coefficient_errors': [0.01]}
    assert wording.coefficient(alone, {}) == 'map:chi.nii: 0.829 ± 0.010'
    assert wording.coefficient({'coefficients': {'r2prime': [1.0, 2.0]}}, {}) is None


def test_warnings_on_the_page_name_options():
    record = {'echo_fit': {'warnings': ['it is assumed: state phase_sign, +1 or -1']}}
    (text,) = report._warnings({'record': record})
    assert text == 'echo fit: it is assumed: state --phase-sign, +1 or -1'


# -- quality of the field -----------------------------------------------------------------------

FIT = {
    'echo_times': [0.002, 0.005, 0.008],
    'noise_sd': 12.25,
    'noise_source': 'phase',
    'noise_ratio': 1.0312,
    'channels': 7.96,
    'median_field_sd': 0.00217,
    'misfit_fraction': 0.123,
    'unusable_fraction': 0.011,
    'offset_model': 'spline',
    'offset_misfit': 0.0125,
    'own_offset_fraction': 0.004,
    'bodies': 2,
    'body_turns': [-3],
    'echo_phase': {
        'constant': [0.25, -0.5, 0.25],
        'gradient': [[0.001, 0.0, 0.0], [-0.002, 0.0, -1e-9], [0.001, 0.0, 0.0123]],
        'size': [0.26, 0.52, 0.27],
    },
}


def test_page_has_the_quality_of_the_field_the_bodies_and_the_phase_of_each_echo(output_dir):
    body = {
        'voxels': 4000, 'volume': 32.04, 'reference': 'agar', 'reference_value': 0.03,
        'reference_sd': 0.1, 'mean': 0.0,
    }  # fmt: skip
    other = body | {'voxels': 700, 'volume': 5.6, 'reference': 'roi-mean', 'reference_value': -7.0}
    record = SUMMARY['record'] | {
        'echo_fit': FIT,
        'recombination': SUMMARY['record']['recombination'] | {'bodies': [body, other]},
        'comparison': {
            'explained': 0.5,
            'explained_by_body': [0.6, -0.25],
        },
    }  # fmt: skip
    path = output_dir / 'sub-01/figures' / f'{RUNS[0]}_desc-summary_report.json'
    path.write_text(json.dumps(SUMMARY | {'record': record}))
    text = write_report(output_dir, '01').read_text()
    for words in (
        '12.25 (unit of the magnitude), from what the phase fit leaves; 1.03 times that of the',
        '<td>8.0</td>',
        '0.00217 ppm in the median voxel',
        '12.3% of the region (warned of above 35%)',
        '1.1% of the region (warned of above 25%)',
        'spline, leaves 0.0125 rad; free in 0.4% of the voxels',
        '2 that are not connected, moved against the largest by −3 turns',
        'roi-mean: −7 ppm subtracted',
        '<td>−25.0%</td>',
        '<td>32.0</td>',
        '<tr><td>2</td><td>5.00</td><td>−0.500</td><td>−0.0020</td><td>0.0000</td>'
        '<td>0.0000</td><td>0.520</td></tr>',
    ):
        assert words in text, words


def test_echoes_from_which_nothing_was_taken_off_have_no_table():
    nothing = {'constant': [0.0] * 3, 'gradient': [[0.0] * 3] * 3, 'size': [0.0] * 3}
    summary = SUMMARY | {'record': {'echo_fit': {'echo_phase': nothing}}}
    assert report._echo_phase_rows(summary) == []
    nothing['size'][1] = 0.02
    assert len(report._echo_phase_rows(summary)) == 3


def test_page_without_such_numbers_has_no_such_tables(output_dir):
    text = write_report(output_dir, '01').read_text()
    for heading in ('The field', 'Bodies', 'Phase that was taken off each echo'):
        assert f'<h4>{heading}</h4>' not in text
    rows = dict(
        report_rows(
            {
                'echo_fit': {
                    'echo_times': [0.02],
                    'noise_sd': 1.0,
                    'noise_source': 'air',
                    'median_field_sd': 0.01,
                    'unusable_fraction': 0.2,
                    'misfit_fraction': None,
                    'offset_model': 'in the field',
                    'bodies': 1,
                }
            },
            of_field=True,
        )
    )
    assert 'No echo above the noise' in rows
    assert not [name for name in rows if name.startswith('Misfit')]
    assert rows['Phase offset'] == 'in the field'
    assert rows['Bodies of the region'] == 'one'


def test_stopped_run_shows_what_there_is_and_nothing_of_an_earlier_call(output_dir):
    record = {'echo_fit': {'phase_sign_source': 'given'}, 'flattening': {'shape': True}}
    figures = output_dir / 'sub-01/figures'
    path = figures / f'{RUNS[0]}_desc-summary_report.json'
    judged = {name: light._asdict() for name, light in lights(record, {}).items()}
    kept = {name: judged[name] for name in report.LIGHTS_BEFORE_MAP}
    path.write_text(json.dumps(SUMMARY | {'record': record, 'lights': kept}))
    anat = output_dir / 'sub-01/ses-a/anat'
    for desc in ('prior', 'precond', 'residual'):
        (anat / f'{RUNS[0]}_desc-{desc}_Chimap.nii.gz').write_text('')
    sidecar = anat / f'{RUNS[0]}_desc-precond_Chimap.json'
    sidecar.write_text(json.dumps({'Parameters': {}, 'MagneticFieldStrength': 3}))
    text = write_report(output_dir, '01').read_text()
    assert 'there is no susceptibility map yet' in text
    assert f'{RUNS[0]}_Chimap.nii.gz' in text
    assert 'No run of this participant has a map.' in text
    for figure in FIGURES:
        early = figure.section != 'map' and figure.desc != 'lcurve'
        assert (f'{RUNS[0]}_{figure.name}' in text) == early
    assert f'{RUNS[0]}_desc-prior_Chimap.nii.gz' in text
    assert f'{RUNS[0]}_desc-precond_Chimap.nii.gz' not in text
    assert 'residual' not in text
    WellFormed(text)

    sidecar.write_text(json.dumps({'Parameters': {'take_map': {}}, 'MagneticFieldStrength': 3}))
    text = write_report(output_dir, '01').read_text()
    assert 'Its map is that of another program' in text
    assert 'there is no susceptibility map yet' not in text
    assert f'{RUNS[0]}_desc-precond_Chimap.nii.gz' in text
    assert 'No run of this participant has a map.' not in text


def test_numbers_of_a_stopped_run_have_the_lights_that_can_be_told():
    facts = report.Facts([], [0.01, 0.02], 3.0, {}, {}, [4, 4, 4], [1.0, 1.0, 1.0])
    record = {'flattening': {'shape': True}, 'prior_fit': {'trust': 1.0, 'beyond_null': 0.5}}
    assert [*report.summarise(facts, record, {})['lights']] == [*report.LIGHTS_BEFORE_MAP]
    whole = report.summarise(facts, record | {'recombination': {}}, {})
    assert len(whole['lights']) == 6


@pytest.mark.parametrize(
    ('trust', 'clipped', 'words'),
    [
        (1.0, True, '0.5 mm (least expected error)'),
        (0.4, False, '0.5 mm (least expected error)'),  # the residual is the correction
        (
            0.4,
            True,
            '0.5 mm (least expected error, moved towards the corner of the L-curve, where this is '
            'smaller, as the prior counts for 40%)',
        ),
        (
            0.0,
            True,
            '0.5 mm (least expected error, at most the corner of the L-curve or an eighth of a '
            'voxel, as the prior does '
            'not count)',
        ),
    ],
)
def test_row_of_the_weight_says_how_far_the_prior_moved_it(trust, clipped, words):
    chosen = {'reg_weight': 0.5, 'rule': 'risk', 'outliers_clipped': clipped}
    record = {
        'dipole_inversion': chosen,
        'conventional_dipole_inversion': chosen | {'rule': 'l-curve', 'outliers_clipped': False},
        'prior_fit': {'trust': trust, 'beyond_null': 0.1, 'priors': {}},
    }
    rows = dict(report._summary_rows(SUMMARY | {'record': record}))
    assert rows['Preconditioned: λ'] == words
    assert rows['Conventional: λ'] == '0.5 mm (corner of the L-curve)'


def test_a_field_of_zero_has_no_weight_and_the_page_says_so(tmp_path):
    curve = {'reg_weight': None, 'reg_weights': [], 'warnings': ['zero']}
    folder = write(zeros(tmp_path, np.eye(4)), tmp_path, l_curve=curve)
    assert (folder / 'sub-01_desc-lcurve_Chimap.svg').is_file()
    record = {'dipole_inversion': {'reg_weight': None, 'rule': 'risk', 'corner': None}}
    rows = dict(report._summary_rows(SUMMARY | {'record': record}))
    assert rows['Preconditioned: λ'] == 'none: the field is zero, and nothing was inverted'
    fit = {
        'coefficients': {'r2prime': [0.0]},
        'coefficient_errors': [None],
        'implied_relaxivity': [None],
    }
    assert (
        wording.coefficient(fit, {'echo_fit': {'field_strength': 3.0}})
        == "0.000 ± unknown; implies no R2'"
    )


def test_regions_of_the_prior_are_named():
    numbers = {'median_support': 0.66, 'supported_fraction': 0.9, 'of_prior': {}}
    text = '66% of the value in the median voxel, half or more in 90% of the region'
    assert wording.support(numbers, {}) == text
    numbers['of_prior'] = {'thalamus': 'pattern', 'red nucleus': 'value and pattern'}
    assert wording.support(numbers, {}) == (
        f"{text}; the prior's rather than the field's: thalamus (pattern), "
        'red nucleus (value and pattern)'
    )
    assert wording.support({}, {}) is None


def test_ringing_names_its_axes():
    assert wording.ringing({'ringing': None}, {}) is None
    text = wording.ringing({'ringing': [1.0, 0.0, 0.25]}, {})
    assert 'along i (100%), k (25%)' in text
