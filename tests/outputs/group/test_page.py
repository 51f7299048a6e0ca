"""The page of the group in a browser without a network: whole, legible, sortable."""

import json
import re
from html import unescape

import nibabel as nb
import numpy as np
import pytest
from browser import A4_WIDTH, BROWSER, NO_BROWSER, inspect, start

from precondqsm_bids.outputs.group import write_group
from precondqsm_bids.outputs.lights import LEVELS, LIGHTS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not BROWSER, reason=NO_BROWSER)]

SORTS = """
<script>
addEventListener('load', () => {
  const table = document.querySelector('table.sortable');
  const names = () => [...table.tBodies].map(b => b.rows[0].cells[0].textContent.trim());
  const strips = () => [...table.tBodies].map(
    b => (b.rows[1].querySelector('img')?.alt ?? 'none').replace(/Slices of (.*),.*/, '$1'));
  const seen = [names()];
  for (const column of [1, 1, 0, 0]) {
    const button = table.tHead.rows[0].cells[column].querySelector('button');
    button.focus();
    if (document.activeElement !== button) seen.push('no focus');
    button.click();
    seen.push(names(), strips());
  }
  const pre = document.createElement('pre');
  pre.id = 'sorted';
  pre.textContent = JSON.stringify(seen);
  document.body.append(pre);
});
</script>
"""


@pytest.fixture
def page(derivatives):
    rng = np.random.default_rng(0)
    levels = list(LEVELS)
    for i, subject in enumerate(('1', '2', '10')):
        name = f'sub-{subject}'
        derivatives.add(
            name, echo_fit={'noise_sd': 1.0 + i}, comparison={'warnings': ['<b>w</b>'] * i}
        )
        path = derivatives.folder(derivatives.out, name) / f'{name}_desc-precond_Chimap.json'
        lights = {row.name: {'level': levels[(i * 2) % 4]} for row in LIGHTS}
        path.write_text(json.dumps(json.loads(path.read_text()) | {'Lights': lights}))
        for file, data in (
            ('desc-precond_Chimap', rng.normal(size=(16, 16, 10))),
            ('desc-roi_mask', np.ones((16, 16, 10))),
        ):
            image = nb.Nifti1Image(data.astype(np.float32), np.diag([2.0, 2, 2, 1]))
            image.to_filename(derivatives.folder(derivatives.out, name) / f'{name}_{file}.nii.gz')
    derivatives.about('4', ['sub-4'], [derivatives.crash('4')])
    write_group(derivatives.raw, derivatives.out, command='precondqsm_bids raw out group')
    return derivatives.out / 'group_report.html'


@pytest.mark.parametrize('width', [1200, 600])
def test_nothing_is_missing_too_wide_or_over_another(page, width):
    assert inspect(page, width)['found'] == []


def test_on_paper_no_column_is_cut(page):
    found = inspect(page, A4_WIDTH, printed=True)
    assert (found['found'], found['cut']) == ([], [])


def test_page_is_dark_where_that_is_preferred(page):
    ground = inspect(page, 1200, '--blink-settings=preferredColorScheme=0')['ground']
    assert max(map(int, re.findall(r'\d+', ground)[:3])) < 60


def test_a_heading_sorts_runs_with_their_slices_by_the_keyboard_too(page):
    """Levels are good, doubtful and good; sub-4, which failed, has none: it has no slices."""
    text = page.read_text(encoding='utf-8')
    copy = page.with_name('sorted.html')
    copy.write_text(text.replace('</body>', SORTS + '</body>'), encoding='utf-8')
    out, log = start('--virtual-time-budget=2000', '--dump-dom', copy.as_uri())
    assert 'CONSOLE' not in log
    found = json.loads(unescape(re.search('<pre id="sorted">(.*?)</pre>', out, re.DOTALL)[1]))
    natural = ['sub-1', 'sub-2', 'sub-4', 'sub-10']
    worst = ['sub-4', 'sub-2', 'sub-1', 'sub-10']
    best = ['sub-1', 'sub-10', 'sub-2', 'sub-4']
    orders = [worst, best, natural, natural[::-1]]
    slices = [['none' if name == 'sub-4' else name for name in order] for order in orders]
    shown = [item for pair in zip(orders, slices, strict=True) for item in pair]
    assert found == [natural, *shown]
