"""Pictures of the pages as a browser shows them.

Usage: ``python benchmarks/screenshots.py [--folder FOLDER] [PAGE ...]`` makes the runs that the
pictures show in FOLDER (those that are there are kept; see `prepared`) and writes
``docs/figures/page_<page>_<look>.jpg``: light, dark, narrow (600 pixels) and print (the width of
A4's text). Needs Chromium; the network is off. Five minutes on two cores.
"""

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from prepared import GROUP, prepare

FIGURES = Path(__file__).parents[1] / 'docs' / 'figures'
PAGES = {
    'demo': 'demo',
    'head': 'head',
    'head-scanned': 'head-scanned',
    'failed': 'failed',
    'wrong-sign': 'wrong-sign',
    'group': 'group',
}
"""Page -> prepared run."""

LOOKS = {'light': 1180, 'dark': 1180, 'narrow': 600, 'print': 688}
"""Look -> width of the window, pixels."""

LONGEST = {'light': 1900, 'dark': 1300, 'narrow': 1300, 'print': 1300}
"""Height that is shown, pixels."""

WIDTH = 760
"""Of a picture of a wide window, pixels; a narrow one is kept."""


def browser():
    """Chromium, or an error that says what is missing."""
    for name in ('chromium', 'chromium-browser', 'google-chrome'):
        if found := shutil.which(name):
            return found
    sys.exit('screenshots.py needs chromium (or google-chrome) on the PATH')


def shoot(page, look):
    """A page in one look, as an image without the empty foot."""
    text = page.read_text(encoding='utf-8')
    if look == 'print':
        text = text.replace('@media print', '@media all')
    copy = page.with_name(f'.shot-{page.name}')
    copy.write_text(text, encoding='utf-8')
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / 'shot.png'
        command = [
            *(browser(), '--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars'),
            *('--disable-dev-shm-usage', '--proxy-server=127.0.0.1:9', f'--screenshot={shot}'),
            f'--window-size={LOOKS[look]},{LONGEST[look]}',
            *(['--blink-settings=preferredColorScheme=0'] if look == 'dark' else []),
            copy.as_uri(),
        ]  # fmt: skip
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=180)
            image = Image.open(io.BytesIO(shot.read_bytes())).convert('RGB')
        finally:
            copy.unlink()
    rows = np.asarray(image, np.int16)
    used = np.flatnonzero((abs(rows - rows[-1, :1]) > 8).any(axis=(1, 2)))
    return image.crop((0, 0, image.width, min(image.height, int(used[-1]) + 24)))


def page_of(name, folder):
    """The page of a prepared run or of the group."""
    if name != 'group':
        return prepare(PAGES[name], folder) / 'sub-01.html'
    out = prepare('group', folder, GROUP)
    command = [sys.executable, '-m', 'precondqsm_bids', out.with_name('raw'), out, 'group']
    done = subprocess.run([*map(str, command), '--skip-bids-validation'], capture_output=True)
    if done.returncode:
        sys.exit(done.stderr.decode())
    return out / 'group_report.html'


def main():
    """Make the runs and the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('pages', nargs='*', help=f'of {", ".join(PAGES)} (default: all)')
    parser.add_argument('--folder', type=Path, help='for the runs (default: a temporary one)')
    options = parser.parse_args()
    if unknown := sorted(set(options.pages) - set(PAGES)):
        parser.error(f'no such page: {", ".join(unknown)}; there are {", ".join(PAGES)}')
    browser()
    folder = (options.folder or Path(tempfile.mkdtemp(prefix='prepared_'))).absolute()
    for name in options.pages or PAGES:
        page = page_of(name, folder)
        for look in LOOKS:
            image = shoot(page, look)
            if image.width > WIDTH:
                height = round(image.height * WIDTH / image.width)
                image = image.resize((WIDTH, height), Image.Resampling.LANCZOS)
            target = FIGURES / f'page_{name}_{look}.jpg'
            image.save(target, quality=40, optimize=True)
            print(f'{target.name}: {target.stat().st_size / 1000:.0f} kB', flush=True)
    if options.folder is None:
        shutil.rmtree(folder)


if __name__ == '__main__':
    main()
