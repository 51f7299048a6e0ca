"""The figures show the right thing the right way round; the page says what is and what is not."""

import json
import re
from html.parser import HTMLParser
from importlib import resources

import matplotlib as mpl
import nibabel as nb
import numpy as np
import pytest
import scipy.linalg
from matplotlib.figure import Figure

from precondqsm_bids.interfaces import derivatives
from precondqsm_bids.outputs import figures, report, slices, wording
from precondqsm_bids.outputs.figures import FIGURES, STYLE, draw_l_curves, draw_roi_values
from precondqsm_bids.outputs.lights import LEVELS, lights
from precondqsm_bids.outputs.record import report_rows
from precondqsm_bids.outputs.report import Account, write_report
from precondqsm_bids.outputs.slices import choose_slices
from precondqsm_bids.outputs.tables import read_table

SHAPE = (20, 24, 28)
RUNS = ('sub-01_ses-a_run-2', 'sub-01_ses-a_run-10')
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


def save(folder, name, data, affine):
    path = folder / f'{name}.nii.gz'
    nb.Nifti1Image(np.asarray(data), affine).to_filename(path)
    return str(path)


def write(maps, tmp_path, **inputs):
    """Write the derivatives of maps; their folder of figures."""
    given = {'record': {}, 'stems': {'anat': 'sub-01'}, 'folder': 'sub-01'} | inputs
    facts = {'sources': [], 'echo_times': [0.004], 'field_strength': 3.0}
    derivatives.Derivatives(base_directory=str(tmp_path), facts=facts, **maps, **given).run(
        cwd=tmp_path
    )
    return tmp_path / 'sub-01' / 'figures'


def figures_of(maps, tmp_path, monkeypatch):
    """Figures by their desc."""
    drawn = {}

    def keep(figure, path):
        drawn[path.name.split('desc-')[1].split('_')[0]] = figure

    monkeypatch.setattr(derivatives, 'save', keep)
    write(maps, tmp_path)
    return drawn


def zeros(tmp_path, affine):
    """Files of the maps that a run has, in a grid: nothing inside, all of it object."""
    nothing = save(tmp_path, 'zero', np.zeros(SHAPE, np.float32), affine)
    mask = save(tmp_path, 'mask', np.ones(SHAPE, np.uint8), affine)
    return dict.fromkeys(slices.DRAWN, nothing) | {'shape_mask': mask, 'roi_mask': mask}


def test_slices_go_through_the_label_that_differs_most():
    labels = np.ones(SHAPE, int)
    labels[5:8, 10:13, 4:9] = 2
    labels[12:15, 3:6, 18:23] = 3
    chi = np.select([labels == 2, labels == 3], [0.3, -0.9], 0.0)
    assert choose_slices(chi, np.ones(SHAPE, bool), labels) == (4, 20)


def test_slices_without_labels_are_the_strongest_of_the_middle():
    chi = np.zeros(SHAPE)
    chi[8:12, 9:12, 16:19] = 1
    chi[:, 0] = 5  # an edge artefact, outside the middle half
    coronal, axial = choose_slices(chi, np.ones(SHAPE, bool))
    assert 9 <= coronal <= 11
    assert 16 <= axial <= 18


@pytest.mark.parametrize('flips', [(1, 1, 1), (-1, 1, 1), (-1, -1, 1), (1, 1, -1)])
def test_object_on_the_right_is_drawn_on_the_right_however_it_is_stored(
    flips, tmp_path, monkeypatch
):
    """In scanner space the bright block is right, front and top."""
    affine = np.diag([*(2.0 * np.array(flips)), 1.0])
    chi = np.zeros(SHAPE, np.float32)
    block = np.ix_(
        *(
            range(3, 6) if flip < 0 else range(n - 6, n - 3)
            for flip, n in zip(flips, SHAPE, strict=True)
        )
    )
    chi[block] = 1
    maps = zeros(tmp_path, affine)
    maps['precond_chi'] = maps['magnitude'] = save(tmp_path, 'chi', chi, affine)
    maps['labels'] = save(tmp_path, 'labels', (1 + (chi > 0)).astype(np.uint8), affine)
    drawn = figures_of(maps, tmp_path, monkeypatch)
    coronal, axial = (axes.images[0] for axes in drawn['comparison'].axes[:2])
    for image, height in ((coronal, SHAPE[2]), (axial, SHAPE[1])):
        assert image.origin == 'lower'
        assert tuple(image.get_extent()) == (0, 40, 0, 2 * height)
        row, column = (values.mean() for values in np.nonzero(image.get_array() == 1))
        assert column == SHAPE[0] - 5
        assert row == height - 5
    texts = [t.get_text() for t in drawn['comparison'].axes[0].texts]
    left = drawn['comparison'].axes[0].texts[texts.index('L')]
    assert left.get_position()[0] < 0.1


def test_grey_scale_is_shared_and_symmetric(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    affine = np.eye(4)
    names = ('precond_chi', 'conventional_chi')
    maps = zeros(tmp_path, affine)
    maps |= {n: save(tmp_path, n, rng.normal(size=SHAPE).astype('f4'), affine) for n in names}
    drawn = figures_of(maps, tmp_path, monkeypatch)
    axes = drawn['comparison'].axes
    titles = [a.get_title() for a in axes[:3]]
    assert titles == ['conventional', 'preconditioned', 'difference']
    conventional, precond, difference = (a.images[0].get_clim() for a in axes[:3])
    assert conventional == precond
    assert difference[0] == -difference[1]
    assert difference != precond


def test_map_of_the_consensus_stands_between_the_others_and_is_black_where_it_is_not_known(
    tmp_path, monkeypatch
):
    rng = np.random.default_rng(0)
    affine = np.eye(4)
    names = ('precond_chi', 'conventional_chi', 'consensus_chi')
    known = np.zeros(SHAPE, 'u1')
    known[4:12] = 1
    maps = zeros(tmp_path, affine)
    for name in ('shape_mask', 'roi_mask'):
        maps[name] = save(tmp_path, name, np.ones(SHAPE, 'u1'), affine)
    maps |= {n: save(tmp_path, n, rng.normal(size=SHAPE).astype('f4'), affine) for n in names}
    maps['consensus_mask'] = save(tmp_path, 'consensus_mask', known, affine)
    axes = figures_of(maps, tmp_path, monkeypatch)['comparison'].axes[:8]
    titles = ['conventional', 'consensus', 'preconditioned', 'difference']
    assert [a.get_title() for a in axes[:4]] == titles
    for row in (axes[:4], axes[4:]):
        shown = [np.ma.getmaskarray(a.images[0].get_array()) for a in row]
        np.testing.assert_array_equal(
            shown[1], np.broadcast_to(known[:, 0, 0] == 0, shown[1].shape)
        )
        assert not shown[2].any()
        assert row[1].images[0].get_clim() == row[2].images[0].get_clim()


def test_l_curve_marks_the_weight_that_was_used_on_the_curve():
    weights = np.logspace(-2, 1, 61)
    curve = {
        'reg_weights': weights,
        'consistency': weights**0.5,
        'regularization': weights**-2,
        'curvature': -(np.log(weights) ** 2),
        'reg_weight': 0.5,
    }
    figure = draw_l_curves({'precond': curve})
    marker = next(line for line in figure.axes[0].lines if line.get_marker() == 'o')
    assert marker.get_xdata()[0] == pytest.approx(0.5**0.5)
    assert marker.get_ydata()[0] == pytest.approx(0.5**-2)
    assert 'λ = 0.5' in figure.axes[0].get_legend().texts[0].get_text()


def test_no_l_curve_is_said_in_words(tmp_path):
    assert 'No L-curve' in draw_l_curves({}).get_suptitle()
    curve = {'reg_weight': 0.2, 'reg_weights': []}
    folder = write(zeros(tmp_path, np.eye(4)), tmp_path, l_curve=curve)
    assert '<svg' in (folder / 'sub-01_desc-lcurve_Chimap.svg').read_text()


def test_roi_figure_shows_each_map_against_the_reference(tmp_path):
    path = tmp_path / 'table.tsv'
    path.write_text(TABLE)
    figure = draw_roi_values(read_table(path))
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == ['tube', 'tilted']
    bars = [round(bar.get_height(), 4) for bar in axes.patches]
    assert bars == [0.7501, 0.25]
    reference = next(c for c in axes.collections if 'reference' in c.get_label())
    assert reference.get_segments()[0][0][1] == 0.7494


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
    for target in targets:
        assert target.startswith('#') or (output_dir / target).is_file()


def test_report_says_the_numbers(output_dir):
    text = write_report(
        output_dir, '01', Account(boilerplate='Fitted [@liu2013; @liu2011].')
    ).read_text()
    for number in ('3 T Philips', '3 (2:3:8 ms)', '64 × 64 × 53', '0.1234 (l-curve)', '12.5°'):
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
    text = write_report(output_dir, '01', Account(runs=RUNS)).read_text()
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
    errors = text[text.index('<section id="errors">') :]
    heading, _, folded = errors.partition('<details>')
    assert '<h3>echo_fit: &lt;truncated&gt;</h3>' in heading
    assert 'crash-echo_fit.txt' not in heading
    assert 'crash-echo_fit.txt' in folded
    assert 'OSError: &lt;truncated&gt; file' in folded


def test_remarks_on_the_input_are_kept(output_dir):
    first = write_report(output_dir, '01', Account(notes=['skipped: a_GRE.nii: <suffix>']))
    assert '<li>skipped: a_GRE.nii: &lt;suffix&gt;</li>' in first.read_text()
    assert '<li>skipped: a_GRE.nii' in write_report(output_dir, '01').read_text()
    gone = write_report(output_dir, '01', Account(notes=[]))
    assert 'on the input' not in gone.read_text()


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
    account = Account(RUNS, log='logs/now_<1>/precondqsm_bids.log')
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
    rows = top[top.index('<table>') : top.index('</table>')].split('<tr>')[2:]
    assert [re.findall(r'href="#([^"]*)"', row) for row in rows] == [[name] for name in RUNS]
    assert [len(re.findall('class="light ', row)) for row in rows] == [6, 0]


def test_markup_in_the_words_of_a_light_is_inert(page_of_lights):
    assert 'script' not in WellFormed(page_of_lights).tags
    assert '&lt;script&gt;alert(1)&lt;/script&gt; &amp; &#34;x&#34;' in page_of_lights


def test_levels_differ_in_shape_and_not_in_colour_alone():
    style = resources.files('precondqsm_bids.data').joinpath('report.css').read_text('utf-8')
    marks = dict(re.findall(r'^\.(\w+)::before { content: "(\S+)"', style, re.MULTILINE))
    assert set(marks) == set(LEVELS)
    assert len(set(marks.values())) == len(LEVELS)


def test_report_can_be_rebuilt_from_disk(output_dir):
    account = Account(RUNS, 'precondqsm_bids a b participant', 'How.')
    first = write_report(output_dir, '01', account).read_text()
    (output_dir / 'sub-01.html').unlink()
    assert write_report(output_dir, '01').read_text() == first
    assert 'precondqsm_bids a b participant' in first


def test_nothing_at_all_is_said_in_words(tmp_path):
    text = write_report(tmp_path, '07').read_text()
    assert 'Nothing of this participant was found' in text


def test_figures_have_the_same_bytes_each_time(tmp_path):
    for suffix in ('svg', 'png'):
        files = []
        for i in range(2):
            figure = Figure()
            with mpl.rc_context(STYLE):
                figure.subplots().plot([0, 1], [1, 0])
                figures.save(figure, tmp_path / f'{i}.{suffix}')
                files.append(tmp_path / f'{i}.{suffix}')
        first, second = (f.read_bytes() for f in files)
        assert first == second


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


def test_page_without_such_numbers_has_no_such_tables(output_dir):
    text = write_report(output_dir, '01').read_text()
    for heading in ('The field', 'Bodies', 'Phase of each echo'):
        assert f'<h3>{heading}</h3>' not in text
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


def test_maps_of_the_quality_of_the_field():
    sd = np.full(SHAPE, 0.01, np.float32)
    sd[:2] = 3
    maps = {'field_sd': sd, 'misfit': sd * 100, 'usable_echoes': np.full(SHAPE, 4, np.uint8)}
    ones = np.ones(SHAPE, np.float32)
    maps |= dict.fromkeys(slices.DRAWN, ones)
    figure = dict(slices.draw_maps(maps, np.ones(3)))['quality']
    assert [axes.get_title() for axes in figure.axes[1:3]] == ['misfit', 'usable echoes']
    limits = [axes.images[0].get_clim() for axes in figure.axes[:3]]
    assert limits[0] == pytest.approx((0, 0.05))  # five times the median
    assert limits[1:] == [(0, 3), (0, 4)]
    names = [name for name, _ in slices.draw_maps(dict.fromkeys(slices.DRAWN, ones), np.ones(3))]
    assert names == ['comparison', 'prior', 'trust', 'fields', 'masks', 'echofit']
