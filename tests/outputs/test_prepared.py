"""Runs that are prepared good and bad, from raw data to lights: a few of those of the docs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.prepared import RUNS, TUBES, differences, lights_of, prepare
from precondqsm_bids.outputs.lights import LIGHTS

ROOT = Path(__file__).parents[2]
SMALL = ('--kind', 'tubes', '--voxel-size', '4', '4', '4', '--matrix', '32', '32', '27')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('prepared')


@pytest.mark.slow
@pytest.mark.parametrize('name', ['demo', 'wraps', 'two-echoes', 'no-reference', 'failed'])
def test_lights_of_a_prepared_run_are_right(name, folder):
    run = RUNS[name]
    more = run.phantom[len(TUBES) :]
    out = prepare(name, folder, run._replace(phantom=(*SMALL, *more)))
    assert differences(run, lights_of(out)) == []
    page = (out / 'sub-01.html').read_text()
    levels = set(re.findall(r'<span class="light (\w+)">', page))
    assert {*(run.lights or {}).values()} <= levels
    if run.lights is None:
        assert 'there is nothing to describe' in page
        (log,) = (out / 'logs').iterdir()
        assert not (log / 'CITATION.md').exists()


@pytest.mark.slow
def test_pages_are_made_again_from_outputs(folder):
    """Methods, reporting items and strip by --reports-only, after all of it is gone."""
    run = RUNS['demo']
    out = prepare('demo', folder, run._replace(phantom=SMALL))
    before = (out / 'sub-01.html').read_text()
    strip = out / 'sub-01/figures/sub-01_desc-strip_Chimap.jpg'
    pixels = strip.read_bytes()
    for path in (out / 'sub-01.html', strip):
        path.unlink()
    command = [sys.executable, '-m', 'precondqsm_bids', out.with_name('raw'), out, 'participant']
    subprocess.run([*map(str, command), '--reports-only', '--skip-bids-validation'], check=True)
    assert (out / 'sub-01.html').read_text() == before
    assert strip.read_bytes() == pixels


def test_every_level_of_every_light_but_unknown_ones_is_prepared():
    """Each light is not good in some run, so that it can be seen to be right."""
    lights = {name for run in RUNS.values() for name in run.lights or {}}
    assert lights == {'sign', 'echoes', 'region', 'prior', 'consistency', 'consensus'}
    assert len(RUNS) >= 10


def test_page_has_every_prepared_run():
    text = (ROOT / 'docs/reading.md').read_text(encoding='utf-8')
    table = text[text.index('## Prepared runs') : text.index('## Prepared records')]
    rows = re.findall(r'^\| ([^|]+) \|([^|]*)\| ([^|]+) \|$', table, re.MULTILINE)[1:]
    assert [words for words, *_ in rows] == [run.words for run in RUNS.values()]
    headings = {light.heading: light.name for light in LIGHTS}
    for (_, picture, said), run in zip(rows, RUNS.values(), strict=True):
        if run.lights is None:
            assert said.startswith('none')
            continue
        levels = re.findall(r'([A-Z][\w ]+): \*\*(\w+)\*\*', said)
        assert {headings[name]: level for name, level in levels} == run.lights
        (file,) = re.findall(r'\((figures/lights_[\w-]+\.jpg)\)', picture)
        assert (ROOT / 'docs' / file).is_file()
