"""How often the map's standard deviation holds the truth, and what support says, on phantoms.

Usage: ``python benchmarks/trust.py [--only NAME ...]`` simulates every phantom, reconstructs it
(`reconstruct`, of heads with the true brain mask), and writes ``docs/trust.md`` and the pictures
``docs/figures/trust_*.png``. Each case is kept as JSON in the cache, so that an interrupted run
goes on where it stopped.
"""

import argparse
import json
import os
import time
from dataclasses import replace
from math import ceil
from pathlib import Path

os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from page import STYLE, percent, reflow, save_figure, save_text, table, yes
from reconstruction import scan_of
from scipy import ndimage

from precondqsm_bids.numerics import Companions, bodies, reconstruct
from precondqsm_bids.phantom.head import simulate_head
from precondqsm_bids.phantom.head_spec import HeadSpec
from precondqsm_bids.phantom.scanner_spec import SWITCHES, scanner
from precondqsm_bids.phantom.spec import TubesSpec
from precondqsm_bids.phantom.tubes import simulate_tubes

ROOT = Path(__file__).parents[1]
CACHE = ROOT / 'build' / 'trust'
HELD = (0.85, 0.98)
"""Share of voxels that two standard deviations should hold."""
REGIONS_HELD = 0.9
LEAST = 8
"""Voxels of a region that counts."""
DRAWN = ('tubes', 'head-2mm', 'head-2mm-all')
"""Cases whose maps are shown."""


def tubes(size=1.0, *switches):
    """Tubes of the abstract, of voxels of ``size`` mm."""
    spec = TubesSpec(scanner=scanner(*switches)) if switches else TubesSpec()
    matrix = tuple(ceil(n / size) for n in spec.matrix)
    return replace(spec, matrix=matrix, voxel_size=(size,) * 3)


def head(size, *switches):
    """The head, of voxels of ``size`` mm."""
    more = {'scanner': scanner(*switches)} if switches else {}
    return HeadSpec(voxel_size=(float(size),) * 3, **more)


CASES = {
    'tubes': ('tubes, 1 mm', tubes()),
    'tubes-2mm': ('tubes, 2 mm', tubes(2.0)),
    'tubes-2mm-all': ('tubes as scanned, 2 mm', tubes(2.0, 'all')),
    'head-1mm': ('head, 1 mm', head(1)),
    'head-2mm': ('head, 2 mm', head(2)),
    'head-2mm-all': ('head as scanned, 2 mm', head(2, 'all')),
    'head-3mm': ('head, 3 mm', head(3)),
    'head-3mm-all': ('head as scanned, 3 mm', head(3, 'all')),
    **{f'head-3mm-{name}': (f'head, 3 mm, {name}', head(3, name)) for name in SWITCHES},
}
"""Name: title and phantom."""


def run(name):
    """Reconstruct a phantom and compare its error with its standard deviation."""
    title, spec = CASES[name]
    phantom = simulate_tubes(spec) if isinstance(spec, TubesSpec) else simulate_head(spec)
    scan = scan_of(phantom, phase_sign=1)
    mask = getattr(phantom, 'brain_mask', None)
    began = time.process_time()
    found = reconstruct(scan, companions=Companions(mask=mask, labels=phantom.labels))
    seconds = time.process_time() - began
    roi, uncertainty = found.region.roi_mask, found.maps.uncertainty
    error = np.where(roi, found.chi - phantom.chi, 0)
    of_body = bodies(roi)
    for number in range(1, of_body.max() + 1):
        error[of_body == number] -= error[of_body == number].mean()
    depth = ndimage.distance_transform_edt(np.pad(roi, 1))[1:-1, 1:-1, 1:-1]
    held = np.abs(error) < 2 * uncertainty.chi_sd
    regions = [
        {'name': phantom.label_names[i], 'voxels': int(here.sum()),
         **region._asdict(), 'deviation': region.error, 'error': float(error[here].mean()),
         'words': region.words,
         'voxel_support': float(uncertainty.support[here].mean()),
         'voxels_held': float(held[here].mean())}
        for i, region in uncertainty.regions.items()
        if (here := roi & (phantom.labels == i)).sum() >= LEAST
    ]  # fmt: skip
    record = {
        'title': title,
        'held': float(held[roi].mean()),
        'border_held': float(held[roi & (depth <= 1.01)].mean()),
        'error_rms': float(error[roi].std()),
        'sd_rms': float(np.sqrt(np.mean(uncertainty.chi_sd[roi] ** 2))),
        'median_support': float(np.median(uncertainty.support[roi])),
        'resolution': uncertainty.resolution,
        'seconds': seconds,
        'regions': regions,
    }
    if name in DRAWN:
        at = [int(np.median(i)) for i in np.nonzero(phantom.labels == _shown(phantom))]
        maps = (found.chi, uncertainty.chi_sd, np.abs(error), uncertainty.support)
        planes = {
            f'{n}-{k}': np.where(roi, volume, np.nan)[plane]
            for k, plane in enumerate(((slice(None), at[1]), (slice(None), slice(None), at[2])))
            for n, volume in zip('abcd', maps, strict=True)
        }
        np.savez_compressed(CACHE / f'{name}.npz', **planes)
    (CACHE / f'{name}.json').write_text(json.dumps(record, indent=1))


def _shown(phantom):
    """Label through which the pictures go: the thalamus, or the strongest tube but one."""
    names = {name: i for i, name in phantom.label_names.items()}
    return names.get('thalamus', names.get('tube4'))


# --- page ------------------------------------------------------------------------------------


def draw(name):
    """Map, standard deviation, error without its sign, and support, on two planes."""
    maps = np.load(CACHE / f'{name}.npz')
    titles = ('map', 'standard deviation', 'error', 'support')
    limit = 2 * np.nanpercentile(maps['b-1'], 95)
    size = np.nanpercentile(np.abs(maps['a-1']), 98)
    limits = ((-size, size), (0, limit), (0, limit), (0, 1))
    figure = Figure(figsize=(10, 5.4), layout='constrained')
    for row, axes in enumerate(figure.subplots(2, 4)):
        for ax, letter, title, (low, high) in zip(axes, 'abcd', titles, limits, strict=True):
            shown = ax.imshow(
                maps[f'{letter}-{row}'].T, cmap='gray', origin='lower', vmin=low, vmax=high
            )
            ax.set_axis_off()
            if row:
                figure.colorbar(shown, ax=ax, orientation='horizontal', shrink=0.8)
            else:
                ax.set_title(title)
    return figure


def regions_held(records):
    """How many means of regions lie within two of their errors of the truth, and of how many."""
    inside = [abs(r['error']) < 2 * r['deviation'] for c in records for r in c['regions']]
    return sum(inside), len(inside)


def write(records):
    """``docs/trust.md``, from the records."""
    rows = [
        (c['title'], percent(c['held']), percent(c['border_held']), f'{1e3 * c["error_rms"]:.1f}',
         f'{1e3 * c["sd_rms"]:.1f}', '{} of {}'.format(*regions_held([c])),
         f'{c["median_support"]:.2f}', yes(HELD[0] <= c['held'] <= HELD[1]))
        for c in records.values()
    ]  # fmt: skip
    heading = (
        'phantom', 'voxels held, %', 'border, %', 'error, ppb', 'sd, ppb', 'means held',
        'support, median', f'{HELD[0]:.0%} to {HELD[1]:.0%}',
    )  # fmt: skip
    inside, of = regions_held(records.values())
    parts = [
        """# What to believe

Written by `benchmarks/trust.py`. How often two [standard deviations](methods.md#uncertainty) of
the map hold the truth, and what of it the field decided. Maps are relative to the mean of the
region; errors are root mean squares over all its voxels, border included. The phantoms share
nothing with the estimate.""",
        table(heading, rows),
        f'Means of labelled regions (of {LEAST} voxels or more) within two of their errors: '
        f'{inside} of {of}, {percent(inside / of)} % (asked: {percent(REGIONS_HELD)} %): '
        f'{yes(inside >= REGIONS_HELD * of)}.',
    ]
    for name, case in records.items():
        if name not in DRAWN:
            continue
        rows = [
            (r['name'], r['voxels'], f'{r["error"]:+.4f}', f'{r["deviation"]:.4f}',
             f'{r["support"]:.2f}', f'{r["pattern_support"]:.2f}', f'{r["voxel_support"]:.2f}',
             r['words'] or '-')
            for r in case['regions']
        ]  # fmt: skip
        heading = (
            'region', 'voxels', 'error of the mean, ppm', 'its sd, ppm', 'support of the mean',
            'of the pattern', 'of the voxels', "the prior's",
        )  # fmt: skip
        parts += [
            f'## {case["title"][0].upper()}{case["title"][1:]}',
            f'![Map, standard deviation, error, support](figures/trust_{name}.png)',
            table(heading, rows),
        ]
        with mpl.rc_context(STYLE):
            save_figure(draw(name), ROOT / 'docs', f'trust_{name}')
    save_text(reflow('\n\n'.join(parts)), ROOT / 'docs' / 'trust.md')


def main():
    """Run what is not in the cache, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--only', nargs='+', choices=CASES, default=list(CASES))
    parser.add_argument('--again', action='store_true', help='run what is in the cache too')
    arguments = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        if arguments.again or not (CACHE / f'{name}.json').exists():
            run(name)
    done = {name: CACHE / f'{name}.json' for name in CASES}
    write({name: json.loads(path.read_text()) for name, path in done.items() if path.exists()})


if __name__ == '__main__':
    main()
