"""The participant's page in a browser without a network: whole, legible, nothing over another."""

import re

import nibabel as nb
import numpy as np
import pytest
from browser import A4_WIDTH, BROWSER, NO_BROWSER, inspect, start

from precondqsm_bids.interfaces.derivatives import Derivatives
from precondqsm_bids.outputs.maps import MAPS
from precondqsm_bids.outputs.report import Account, write_report

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not BROWSER, reason=NO_BROWSER)]

SHAPE = (24, 28, 20)
LONG = 'name_of_a_label_that_is_as_long_as_those_of_an_atlas_may_be'
TIMES = [0.004, 0.008, 0.012]
RECORD = {
    'echo_fit': {
        'echo_times': TIMES, 'field_strength': 3.0, 'phase_sign': 1, 'noise_sd': 0.02,
        'phase_sign_source': 'vendor', 'median_field_sd': 0.4, 'phase_turn': 4096.0,
        'noise_source': 'phase', 'misfit_fraction': 0.1, 'unusable_fraction': 0.0,
        'warnings': ['the sign is assumed, <b>by vendor</b>: state --phase-sign'],
        'echo_phase': {
            'constant': [0.25, -0.5, 0.25], 'gradient': [[0.001, 0.0, 0.01]] * 3,
            'size': [0.26, 0.52, 0.27],
        },
    },
    'shape_mask': {
        'mask': 'object', 'erosion': 0.0, 'roi_voxels': 900, 'shape_voxels': 950,
        'volumes': [80.0, 7.25], 'left_out': [2.0], 'fading_fraction': 0.0,
    },
    'prior_fit': {
        'trust': 1.0, 'beyond_null': 0.5, 'fit': 'global',
        'priors': {'contrast': {'parcels': 9, 'explained': 0.8}},
    },
    'dipole_inversion': {'reg_weight': 0.1, 'rule': 'risk'},
    'recombination': {
        'reference': 'roi-mean', 'reference_value': 0.05, 'reference_sd': 0.2, 'roi_mean': 0.05,
        'roi_sd': 0.2,
        'bodies': [
            {
                'voxels': voxels, 'volume': 8e-3 * voxels, 'reference': 'roi-mean',
                'reference_value': 0.03, 'reference_sd': 0.1, 'mean': 0.0,
            }
            for voxels in (4000, 700)
        ],
    },
    'comparison': {'explained': 0.8, 'explained_by_scale': []},
}  # fmt: skip
COLUMNS = [
    f'{arm}_chi_{value}'
    for arm in ('conventional', 'prior', 'precond')
    for value in ('mean', 'sd', 'n')
]


def table(path):
    """Values of eight labels, the last outside of the region."""
    lines = ['\t'.join(['index', 'name', 'n_voxels', *COLUMNS])]
    for i in range(1, 9):
        values = ['0.0123', '0.0456', '90'] * 3 if i < 8 else ['n/a', 'n/a', '0'] * 3
        lines.append('\t'.join([str(i), f'{LONG}_{i}', '90', *values]))
    path.write_text('\n'.join(lines) + '\n')
    return str(path)


@pytest.fixture(scope='module')
def output_dir(tmp_path_factory):
    """Outputs of one run with all there can be, and of one that failed."""
    work, out = tmp_path_factory.mktemp('work'), tmp_path_factory.mktemp('out')
    rng = np.random.default_rng(0)
    x, y, z = np.indices(SHAPE) - np.reshape(SHAPE, (3, 1, 1, 1)) // 2
    mask = (x / 11) ** 2 + (y / 13) ** 2 + (z / 9) ** 2 < 1

    def save(name, data):
        path = work / f'{name}.nii'
        nb.Nifti1Image(data.astype(np.float32), np.diag([3, 2, 4, 1])).to_filename(path)
        return str(path)

    maps = {
        name: save(name, mask if name.endswith('mask') else rng.normal(size=SHAPE) * mask)
        for name in MAPS
        if name != 'prior_labels'
    }
    weights = np.logspace(-2, 1, 30)
    curve = {
        'reg_weights': weights.tolist(), 'consistency': (1 + weights).tolist(),
        'regularization': (1 / (1 + weights)).tolist(), 'curvature': (-weights).tolist(),
        'reg_weight': 0.1, 'corner': 0.3,
    }  # fmt: skip
    echoes = [save(f'echo{i}', rng.normal(size=SHAPE)) for i in range(3)]
    facts = {'sources': ['bids:raw:x.nii.gz'], 'echo_times': TIMES, 'field_strength': 3.0}
    Derivatives(
        **maps, record=RECORD, l_curve=curve, conventional_l_curve=curve, facts=facts,
        echo_magnitude=echoes, echo_phase=echoes, table=table(work / 'values.tsv'),
        columns={}, labels=save('labels', mask + mask * (x > 3)), base_directory=str(out),
        folder='sub-01', stems={'anat': 'sub-01'},
    ).run(cwd=work)  # fmt: skip
    (out / 'logs').mkdir()
    (out / 'logs/a.log').touch()
    account = Account(
        runs={'sub-01': {}, 'sub-01_run-2': {}},
        command=f'precondqsm_bids {"a" * 90} out participant',
        boilerplate='How [@liu2013].', notes=['skipped: <script>document.title = 1</script>'],
        crash_files={'/crash': 'sub-01_run-2: echo_fit: ' + 'long' * 60}, log='logs/a.log',
        finished='2026-01-31 12:00:00 +0100', seconds=75.0, versions={'numpy': '2.0'},
    )  # fmt: skip
    write_report(out, '01', account)
    return out


@pytest.fixture(scope='module')
def page(output_dir):
    return output_dir / 'sub-01.html'


@pytest.mark.parametrize('width', [1200, 600])
def test_nothing_is_missing_too_wide_or_over_another(page, width):
    assert inspect(page, width)['found'] == []


def test_every_map_is_shown_in_the_one_place_and_two_in_turn(page):
    (stack,) = inspect(page, 1200)['stacks']
    words = ['conventional', 'preconditioned', 'prior', 'residual', 'consensus']
    words.append('conventional, least expected error')
    assert [*stack] == [*words, 'conventional and preconditioned in turn']
    for word in words:
        (alt,) = stack[word]
        assert f', {word} susceptibility' in alt
    in_turn = stack['conventional and preconditioned in turn']
    assert in_turn[0] == stack['conventional'][0]  # under the other, which comes and goes
    assert set(in_turn) <= {*stack['conventional'], *stack['preconditioned']}


def test_on_paper_no_column_is_cut(page, tmp_path):
    found = inspect(page, A4_WIDTH, printed=True)
    assert (found['found'], found['cut']) == ([], [])
    assert found['controls'] == []
    assert 'BUTTON Copy' in inspect(page, A4_WIDTH)['controls']
    start('--no-pdf-header-footer', f'--print-to-pdf={tmp_path}/page.pdf', page.as_uri())
    sizes = re.findall(
        rb'/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]', (tmp_path / 'page.pdf').read_bytes()
    )
    assert sizes
    for width, height in sizes:  # points
        assert float(width) * 25.4 / 72 == pytest.approx(210, abs=0.5)
        assert float(height) * 25.4 / 72 == pytest.approx(297, abs=0.5)


def test_page_is_dark_where_that_is_preferred(page):
    def ground(*options):
        return sum(map(int, re.findall(r'\d+', inspect(page, 1200, *options)['ground'])[:3])) / 3

    assert ground() == 255
    assert ground('--blink-settings=preferredColorScheme=0') < 60


def test_one_file_needs_nothing_beside_it(output_dir, tmp_path):
    alone = tmp_path / 'page.html'
    write_report(output_dir, '01', self_contained=True).rename(alone)
    try:
        assert inspect(alone, 1200)['found'] == []
    finally:
        write_report(output_dir, '01')


def test_what_is_wrong_is_found(page, tmp_path):
    """The test above can fail: a page with each fault."""
    text = page.read_text()
    figure = re.search('<img src="([^"]*comparison[^"]*)"', text)[1]
    broken = page.with_name('broken.html')
    text = text.replace(figure, 'gone.png').replace('<h1>', '<h1 style="margin-bottom: -40px">')
    text = text.replace('<h3>', '<h3 style="width: 3000px">', 1)
    broken.write_text(text.replace('</main>', '</main><script>console.error("oh")</script>'))
    try:
        found = '\n'.join(inspect(broken, 1200)['found'])
    finally:
        broken.unlink()
    for words in ('missing: IMG Three planes', 'wider than the window: 3', 'overlap: H1', '"oh"'):
        assert words in found
