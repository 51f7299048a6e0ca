"""Lights of runs that are prepared good and bad.

Usage: ``python benchmarks/lights.py [--folder FOLDER]`` makes the runs of `prepared.RUNS` in
FOLDER (those that are there are kept), compares their lights with what they must be, and writes
the table of ``docs/reading.md``, the slices of each map, ``docs/figures/lights_*.jpg``, and the
phase that is left of the echoes of two of them, ``docs/figures/echoes_*.jpg``.
Its status is 1 if a light is wrong. A quarter of an hour on two cores.
"""

import argparse
import re
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from prepared import RUNS, differences, lights_of, prepare

from precondqsm_bids.outputs.lights import LIGHTS
from precondqsm_bids.outputs.strip import current_strip, read_limit
from precondqsm_bids.outputs.wording import number

ECHOES = ('head-scanned', 'motion')
"""Runs whose phase of the echoes is shown."""

DOCS = Path(__file__).parents[1] / 'docs'
BEGIN, END = '<!-- lights.py writes from here -->', '<!-- to here -->'


def row(name, out):
    """Row of the table of one run, whose slices go beside the pages."""
    run, found = RUNS[name], lights_of(out)
    if found is None:
        return f'| {run.words} | | none: the run fails, and its page says why |'
    strip = current_strip(out, '01', 'sub-01', out / 'sub-01' / 'anat')
    target = DOCS / 'figures' / f'lights_{name}.jpg'
    shutil.copyfile(strip, target)
    picture = f'![Slices: {run.words}](figures/{target.name}) ±{number(read_limit(strip))} ppm'
    return f'| {run.words} | {picture} | {"; ".join(said(found)) or "all six good"} |'


def show_echoes(name, out):
    """Write the phase that is left of the echoes of a run, as a small picture."""
    (figure,) = (out / 'sub-01' / 'figures').glob('*_desc-echoslices_MEGRE.png')
    with Image.open(figure) as image:
        image.save(DOCS / 'figures' / f'echoes_{name}.jpg', quality=70, optimize=True)


def said(found):
    """The lights that are not good, with the number where that is beyond its limit."""
    headings = {light.name: light.heading for light in LIGHTS}
    for name, light in found.items():
        if light['level'] == 'good':
            continue
        text = f'{headings[name]}: **{light["level"]}**'
        value, limit = light['number'], light['limit']
        if value is not None and (value < limit if light['at_least'] else value > limit):
            text += f' ({number(value)}, limit {number(limit)})'
        yield text


def main():
    """Make the runs, say what is wrong, write the table; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--folder', type=Path, help='for the runs (default: a temporary one)')
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix='prepared_'))
    rows, wrong = [], []
    for name, run in RUNS.items():
        out = prepare(name, folder.absolute())
        found = differences(run, lights_of(out))
        print(f'{name}: {"; ".join(found) or "as it must be"}', flush=True)
        wrong += found
        rows.append(row(name, out))
        if name in ECHOES:
            show_echoes(name, out)
    table = ['| run | slices of the map | lights that are not good |', '|---|---|---|', *rows]
    page = DOCS / 'reading.md'
    text = page.read_text(encoding='utf-8')
    inside = re.compile(f'{re.escape(BEGIN)}.*{re.escape(END)}', re.DOTALL)
    assert inside.search(text), f'{page} has no place for the table'
    new = '\n'.join([BEGIN, '', *table, '', END])
    page.write_text(inside.sub(lambda _: new, text), encoding='utf-8')
    if options.folder is None:
        shutil.rmtree(folder)
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main())
