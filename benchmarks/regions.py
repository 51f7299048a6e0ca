"""Region of interest of every kind of object, in pictures.

Usage: ``python benchmarks/regions.py [--real FOLDER]`` writes ``docs/regions.md`` and a picture
of each object, ``docs/figures/region_*.png``: outline of the object (blue) and of the region of
interest (red) on three planes of the first echo. FOLDER has the public scans that the tests read
(PRECONDQSM_REAL); without it their pictures stay as they are. Five minutes on two cores.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np

from precondqsm_bids.interfaces.volumes import geometry, load
from precondqsm_bids.numerics import region_of_interest
from precondqsm_bids.phantom.head import simulate_head
from precondqsm_bids.phantom.head_spec import HeadSpec, hard_head
from precondqsm_bids.phantom.scanner_spec import scanner
from precondqsm_bids.phantom.spec import TubesSpec
from precondqsm_bids.phantom.tubes import simulate_tubes

DOCS = Path(__file__).parents[1] / 'docs'
REAL = {
    'head_siemens_3t': 'Head, one echo, 3 T, cropped',
    'crop_brain_7t': 'Crop of a brain at 7 T, without air',
    'round_phantom_3t': 'Round phantom, 3 T',
}
"""Public scans by folder."""
PAGE = """# Regions

Written by `benchmarks/regions.py`. Outline of the [object](methods.md#shape_mask) (blue) and of
the region of interest (red) on three planes of the first echo's magnitude, with nothing given but
the images. What is between the two is filled by less than 90 %, bone, or another layer without
signal.
"""


# --- objects in closed form ------------------------------------------------------------------


def grid(*matrix):
    """Voxel indices from the centre of the field of view, one array for each axis."""
    return [i - (n - 1) / 2 for i, n in zip(np.indices(matrix), matrix, strict=True)]


def ball(x, radius, *centre):
    """Voxels of a ball; radius and centre in voxels."""
    return sum((i - c) ** 2 for i, c in zip(x, centre, strict=True)) < radius**2


def noisy(signal, snr, seed=0):
    """Magnitude of a signal with noise of one channel, of 1 / snr (a number or of each voxel)."""
    noise = np.random.default_rng(seed).standard_normal((2, *signal.shape)) / snr
    return np.hypot(signal + noise[0], noise[1])


def leg(x, centre):
    """Signal of muscle, of fat that is brighter, of a bone without signal and its marrow."""
    r, bone = np.hypot(x[0] - centre, x[1]), np.hypot(x[0] - centre - 3, x[1] + 2)
    soft = np.where(r < 14, np.where(r < 10, 0.6, 1.0), 0)
    return np.where(bone < 4, np.where(bone < 2.5, 1.0, 0), soft)


def torso(x):
    """Torso that both sides of the field of view cut, with two lungs without signal."""
    lungs = [((x[0] - s * 20) / 13) ** 2 + (x[1] / 13) ** 2 < 1 for s in (-1, 1)]
    return ((x[0] / 48) ** 2 + (x[1] / 22) ** 2 < 1) & ~lungs[0] & ~lungs[1]


def near_coil(x, depth):
    """Sensitivity of a surface coil at the lower end of the first axis; depth in voxels."""
    return 1 / (1 + ((x[0] - x[0].min() + 0.5) / depth) ** 3)


def simple_objects():
    """Title, magnitude and voxel size (mm) of each object by its name."""
    x, long, wide, flat = grid(48, 48, 48), grid(64, 40, 40), grid(72, 40, 24), grid(80, 56, 32)
    bottle, vial = ball(long, 14, -12, 0, 0), ball(long, 6, 20, 0, 0)
    body = ball(x, 18, 0, 0, 0)
    tissue = 1 + 0.2 * np.sin(x[0] / 3) * np.cos(x[1] / 4)
    made = {
        'bottles': ('Two bottles, one of 8 % of the other and two fifths of its signal',
                    noisy(bottle + 0.4 * vial, 50), 2),
        'ghost': ('A bottle, and a piece of 5 % of its signal: left out, with a warning',
                  noisy(bottle + 0.05 * vial, 100), 2),
        'legs': ('Two legs: muscle, fat, bone, marrow', noisy(leg(wide, -17) + leg(wide, 17), 40),
                 3),
        'coil': ('Ball under a surface coil', noisy(body * near_coil(x, 14), 1000), 2),
        'far_coil': ('Ball of which a surface coil sees the nearest part',
                     noisy(body * near_coil(x, 6), 100), 2),
        'crop': ('Tissue without air around it', noisy(tissue, 40), 1),
        'torso': ('Slab of a torso, cut at both sides', noisy(1.0 * torso(flat), 40), 4),
        'mouse': ('Ball with voxels of 0.02 mm', noisy(1.0 * body, 40), 0.02),
    }  # fmt: skip
    return {name: (*found[:2], (found[2],) * 3) for name, found in made.items()}


# --- phantoms and scans ----------------------------------------------------------------------


def phantoms():
    """Title, magnitude and voxel size of each phantom by its name, one after the other."""
    size = (3.0, 3.0, 3.0)
    everything = scanner('all')
    specs = {
        'head': ('Head, 3 mm', HeadSpec(voxel_size=size)),
        'hard_head': ('Hard head, 3 mm', hard_head(voxel_size=size)),
        'head_scanned': ('Head, 3 mm, as scanned', HeadSpec(voxel_size=size, scanner=everything)),
        'tubes': ('Tubes, 2 mm', TubesSpec(voxel_size=(2.0, 2.0, 2.0))),
        'tubes_scanned': ('Tubes, 3 mm, as scanned',
                          TubesSpec(voxel_size=size, scanner=everything)),
    }  # fmt: skip
    for name, (title, spec) in specs.items():
        made = simulate_head(spec) if isinstance(spec, HeadSpec) else simulate_tubes(spec)
        yield name, (title, made.magnitude[..., 0], spec.voxel_size)


def scans(folder):
    """Title, magnitude and voxel size of each real scan that is there, by its name."""
    for name, title in REAL.items():
        found = sorted((folder / name / 'raw/sub-01/anat').glob('*echo-1_part-mag*.nii.gz'))
        if found:
            yield name, (title, load(str(found[0])), geometry(str(found[0]))[1])


# --- page ------------------------------------------------------------------------------------


def draw(magnitude, size, region, path):
    """Three planes with the outlines of object and region."""
    import matplotlib as mpl

    mpl.use('Agg')
    import matplotlib.pyplot as plt

    middle = [
        int(np.argmax(region.shape_mask.sum(axis=tuple({0, 1, 2} - {axis})))) for axis in range(3)
    ]
    bright = np.percentile(magnitude[region.shape_mask], 99)
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), facecolor='black', layout='constrained')
    for plane, axis in zip(axes, (2, 1, 0), strict=True):
        first, second = (i for i in range(3) if i != axis)
        image, *outlines = (
            np.pad(np.take(v, middle[axis], axis), 1).T
            for v in (magnitude, region.shape_mask, region.roi_mask)
        )
        plane.imshow(image, cmap='gray', origin='lower', vmin=0, vmax=bright,
                     aspect=size[second] / size[first])  # fmt: skip
        for outline, colour in zip(outlines, ('deepskyblue', 'red'), strict=True):
            if outline.any():
                plane.contour(outline, [0.5], colors=colour, linewidths=0.7)
        plane.set_axis_off()
    figure.savefig(path, dpi=70, facecolor='black')
    plt.close(figure)


def section(name, title, magnitude, size):
    """Part of the page on one object, whose picture is drawn."""
    region = region_of_interest(magnitude, size, 'auto')
    draw(magnitude, size, region, DOCS / 'figures' / f'region_{name}.png')
    record = region.record
    volumes = ', '.join(f'{v:.3g}' for v in record['volumes'][:4])
    more = f' and {len(record["volumes"]) - 4} more' * (len(record['volumes']) > 4)
    lines = [
        f'\n## {title}\n',
        f'![Three planes with outlines](figures/region_{name}.png)\n',
        f'{record["roi_voxels"]} of {record["shape_voxels"]} voxels of the object; bodies of '
        f'{volumes}{more} ml.',
        *(f'\n- Warning: {words}.' for words in record['warnings']),
    ]
    return '\n'.join(lines) + '\n'


def main(argv=None):
    """Write page and pictures; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--real', type=Path, default=os.environ.get('PRECONDQSM_REAL'))
    options = parser.parse_args(argv)
    page = DOCS / 'regions.md'
    old = page.read_text(encoding='utf-8') if page.exists() else ''
    real = dict(scans(Path(options.real))) if options.real else {}
    parts = [PAGE]
    for name, found in [*simple_objects().items(), *phantoms(), *real.items()]:
        parts.append(section(name, *found))
    for name, title in REAL.items():
        kept = [part for part in old.split('\n## ')[1:] if part.startswith(f'{title}\n')]
        parts += [f'\n## {part.rstrip()}\n' for part in kept if name not in real]
    page.write_text(''.join(parts), encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
