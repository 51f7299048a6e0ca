"""Run the validation set and write its page: ``python benchmarks/validation.py``.

Every phantom is simulated by a model that shares nothing with the solver but the constants,
reconstructed in all arms and scored against its truth. Results are kept as JSON in the cache
folder under the name of the phantom and a digest of the code, so that an interrupted run goes on
where it stopped, and the page alone is written again in seconds.
"""

import argparse
import ast
import functools
import hashlib
import json
import os
import platform
import sys
import time
from dataclasses import asdict, replace
from importlib import metadata
from math import ceil
from pathlib import Path
from typing import NamedTuple

# Before numpy: on a busy machine OpenBLAS's threads wait for each other in every inner product.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')

import checks
import numpy as np
import opponents
import page
import reconstruction
from checks import SEED
from reconstruction import (
    METHODS,
    Score,
    Variant,
    assess,
    first_stages,
    r2star_table,
    reconstruct,
    strongest_for,
    tube_labels,
)

import precondqsm_bids
from precondqsm_bids.numerics.roi_values import cylinder_reference, find_cylinder
from precondqsm_bids.phantom.spec import TubesSpec
from precondqsm_bids.phantom.tubes import simulate_tubes

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(precondqsm_bids.__file__).resolve().parent
DEFAULT = TubesSpec()


class Case(NamedTuple):
    """One phantom of the set and how it is reconstructed."""

    name: str
    title: str
    spec: TubesSpec
    shape: bool = True
    """Whether the shape in air is part of the first estimate."""
    true_field: bool = False
    """Whether the true field, with noise, takes the place of the fitted one."""


HARD = replace(DEFAULT, sampling='kspace', tubes_dchi=(-0.4, 0.3, 0.6, 0.9, 1.3), air_bubble=5.0)
SPACING = replace(
    DEFAULT,
    echo_times=tuple(round(0.00138 + 0.0031 * i, 5) for i in range(8)),
    tubes_dchi=(*DEFAULT.tubes_dchi[:-1], round(strongest_for(2e-3, DEFAULT), 3)),
)
SIX_TUBES = replace(DEFAULT, tubes_dchi=(-0.6, 0.375, 0.75, -1.0, 1.5, 0.5))
CASES = (
    Case('default', "the abstract's phantom", DEFAULT),
    Case('no-shape', 'the shape in air not used', DEFAULT, shape=False),
    Case(
        'tilted',
        'tilted 25 degrees, voxels of 1 x 1 x 1.5 mm',
        replace(DEFAULT, b0_tilt=25.0, voxel_size=(1.0, 1.0, 1.5), matrix=(128, 128, 72)),
    ),
    *(Case(f'snr-{n}', f'SNR {n}', replace(DEFAULT, snr=float(n))) for n in (20, 40, 160)),
    *(
        Case(f'relaxivity-{x:g}', f"R2' {x:g} of theory", replace(DEFAULT, relaxivity_scale=x))
        for x in (0.8, 1.0, 1.3)
    ),
    Case(
        'negative',
        'two diamagnetic tubes',
        replace(DEFAULT, tubes_dchi=(-0.6, 0.375, 0.75, -1.0, 1.5)),
    ),
    Case('bubble', 'air bubble of 5 mm radius', replace(DEFAULT, air_bubble=5.0)),
    Case('hard', 'k-space cropping, a diamagnetic tube, air bubble of 5 mm radius', HARD),
    Case(
        'hard-true-field',
        'the same phantom with its true field and noise in place of the fitted field',
        HARD,
        true_field=True,
    ),
    Case('spacing', 'echo spacing 3.1 ms, strongest tube with T2* of 2 ms', SPACING),
    *(Case(f'{b0:g}T', f'{b0:g} T', replace(DEFAULT, field_strength=b0)) for b0 in (1.5, 7.0)),
    Case('no-r2prime', "R2' of zero: R2* shows nothing", replace(DEFAULT, relaxivity_scale=0.0)),
)
VARIANTS = {
    'fit-no-floor': ('contrast', Variant(pdf_model_error=0.0, fit={'model_error': 0.0})),
    'shaded': ('contrast', Variant(fit={'bias': False})),
    'no-own-sources': ('contrast', Variant(fit={'free_voxels': False})),
    'hold-nothing': ('contrast', Variant(clip_outliers=False)),
    'pdf-no-floor': ('none', Variant(pdf_model_error=0.0)),
    'hold-theory': ('none', Variant(clip_outliers=True)),
    'size-tenth': ('contrast', Variant(fit={'size_factor': 0.1})),
    'size-tenfold': ('contrast', Variant(fit={'size_factor': 10.0})),
}
"""Departures from the workflow that were tried, and the arm that they belong to."""
VARIED = {
    'default': tuple(VARIANTS),
    'hard': ('fit-no-floor', 'shaded', 'no-own-sources', 'hold-nothing', 'hold-theory'),
}
"""On which phantoms."""


def scaled(spec, scale):
    """The same object on ``scale`` times the matrix, of voxels as much larger."""
    return replace(
        spec,
        matrix=tuple(ceil(n * scale) for n in spec.matrix),
        voxel_size=tuple(size / scale for size in spec.voxel_size),
    )


@functools.lru_cache(maxsize=1)
def simulate(spec):
    """The phantom, kept for the next case if only its noise differs."""
    start = time.perf_counter()
    phantom = simulate_tubes(spec, seed=SEED)
    return phantom, time.perf_counter() - start


@functools.lru_cache(maxsize=1)
def stages_of(spec, true_field):
    """Phantom and first stages, kept for the next case if it has the same echoes."""
    phantom, seconds = simulate(replace(spec, snr=DEFAULT.snr))
    if spec.snr != DEFAULT.snr:
        phantom = replace(phantom, spec=spec).remeasure(SEED)
    stages = first_stages(phantom, true_field)
    stages.seconds['simulation'] = seconds
    return phantom, stages


def run_case(case, scale):
    """Reconstruct one phantom in all arms; its record and the sections of its maps."""
    spec = scaled(case.spec, scale)
    phantom, stages = stages_of(spec, case.true_field)
    score = Score(phantom, stages.roi)
    record = {
        'title': case.title,
        'spec': asdict(spec),
        'shape': case.shape,
        'roi_voxels': int(stages.roi.sum()),
        'true': [phantom.label_dchi[i] for i in tube_labels(phantom)],
        'noise_sd': stages.measured.record['noise_sd'],
        'offset_model': stages.measured.record['offset_model'],
        'field': field_error(phantom, stages),
        'r2star': r2star_table(phantom, stages.roi, stages.measured.r2star),
        'reference': bulk_reference(phantom, stages),
        'seconds': dict(stages.seconds),
        'arms': {},
        'variants': {},
    }
    size, maps, conventional = None, {}, None
    for name in METHODS:
        arm = reconstruct(stages, name, shape=case.shape)
        record['arms'][name] = assess(arm, score, conventional)
        conventional = conventional or arm
        if name == 'contrast':
            measured, geometry = stages.measured, stages.geometry
            record['opponents'] = opponents.assess(
                measured.total_field, conventional.local_field, measured.field_sd, geometry,
                phantom.chi,
            )  # fmt: skip
            chi = reconstruction.Division(arm).chi(arm.inversion.reg_weight)
            record['opponents_ours'] = opponents.of_default(chi, geometry, phantom.chi)
        if arm.fit is not None:
            size = arm.fit['inner_size']
        if case.name == 'default':
            maps[name] = reconstruction.Division(arm).chi(arm.inversion.reg_weight)
    for name in VARIED.get(case.name, ()):
        arm_name, variant = VARIANTS[name]
        arm = reconstruct(stages, arm_name, variant=variant, inner_size=size)
        record['variants'][name] = {'arm': arm_name, **assess(arm, score)}
    return record, sections(maps, phantom, stages.roi) if maps else {}


def field_error(phantom, stages):
    """How far the fitted field lies from the true one, ppm."""
    error = np.abs(stages.measured.total_field - phantom.field)[stages.roi]
    return {
        'median': float(np.median(error)),
        'percentile_99': float(np.percentile(error, 99)),
        'above_0.02': float(np.mean(error > 0.02)),
    }


def bulk_reference(phantom, stages):
    """Susceptibility of the tubes from their bulk phase, ppm, as the abstract's reference."""
    found = {}
    for label in tube_labels(phantom):
        cylinder = find_cylinder(phantom.labels == label, phantom.affine)
        if cylinder is not None:
            found[label] = cylinder
    field = stages.measured.total_field
    return [
        cylinder_reference(field, label, found, phantom.affine, stages.roi).chi
        if label in found
        else None
        for label in tube_labels(phantom)
    ]


def sections(maps, phantom, roi):
    """Coronal and axial section of each map through the strongest tube; NaN outside."""
    strongest = int(np.argmax(np.abs(phantom.spec.tubes_dchi)))
    _, y, z = (
        round((n - 1) / 2 + centre / size)
        for n, centre, size in zip(
            phantom.spec.matrix,
            phantom.spec.tube_centres[strongest],
            phantom.spec.voxel_size,
            strict=True,
        )
    )
    out = {'planes': np.array([y, z]), 'voxel_size': np.array(phantom.spec.voxel_size)}
    for name, chi in maps.items():
        shown = np.where(roi, chi, np.nan)
        out[f'{name}-coronal'], out[f'{name}-axial'] = shown[:, y], shown[..., z]
    return out


CHECKS = {
    'r2star-short': lambda scale: checks.short_t2star(scaled(DEFAULT, scale)),
    'sphere': lambda scale: checks.sphere(DEFAULT),
    'long-way': lambda scale: checks.long_way(scaled(SIX_TUBES, scale)),
    'cost': lambda scale: checks.cost(scaled(case_named('negative').spec, scale)),
}


def case_named(name):
    """The case of the set with this name."""
    return next(case for case in CASES if case.name == name)


# --- cache -----------------------------------------------------------------------------------


def digest(*files):
    """Digest of what the files compute: their syntax trees without docstrings."""
    total = hashlib.sha256()
    for path in sorted(files):
        tree = ast.parse(path.read_text(encoding='utf-8'))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                node.body = [
                    part
                    for part in node.body
                    if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
                ]
        total.update(ast.dump(tree).encode())
    return total.hexdigest()[:16]


@functools.cache
def code_digest(name):
    """Digest of everything that a result depends on but the set itself."""
    own = ['reconstruction', 'checks' if name in CHECKS else 'opponents']
    return digest(
        PACKAGE / 'method.py',
        *PACKAGE.glob('numerics/**/*.py'),
        *(PACKAGE / 'phantom' / f'{module}.py' for module in ('fields', 'spec', 'tubes')),
        *(ROOT / 'benchmarks' / f'{module}.py' for module in own),
    )


def key_of(name, scale):
    """What a cached result must have been made from to be used again."""
    parts = [name, code_digest(name), scale, SEED]
    parts += [repr(case) for case in CASES if case.name == name]
    parts += [repr(VARIANTS[variant]) for variant in VARIED.get(name, ())]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def load(path):
    """Cached result, or None."""
    return json.loads(path.read_text(encoding='utf-8')) if path.exists() else None


def save(path, record):
    """Write JSON whole or not at all."""
    part = path.with_suffix('.part')
    part.write_text(json.dumps(record), encoding='utf-8')
    os.replace(part, path)


def fill(cache, names, scale, reuse):
    """Compute what the cache lacks."""
    keys = {name: key_of(name, scale) for name in names}  # before anybody edits the code
    for name, key in keys.items():
        path = cache / f'{name}.json'
        known = load(path)
        if known is not None and (reuse or known['key'] == key):
            continue
        start = time.perf_counter()
        arrays = {}
        if name in CHECKS:
            record = {'result': CHECKS[name](scale)}
        else:
            record, arrays = run_case(case_named(name), scale)
        record |= {'key': key, 'elapsed': time.perf_counter() - start, 'scale': scale}
        if arrays:
            np.savez_compressed(cache / f'{name}.npz', **arrays)
        save(path, record)
        print(f'{name:18s} {record["elapsed"]:6.0f} s', flush=True)


def versions():
    """What the numbers were made with."""
    names = ('precondqsm_bids', 'numpy', 'scipy', 'scikit-image')
    return {'Python': platform.python_version()} | {n: metadata.version(n) for n in names}


def main(argv=None):
    """Command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    names = [case.name for case in CASES] + list(CHECKS)
    parser.add_argument('--only', nargs='+', metavar='NAME', choices=names, default=names)
    parser.add_argument('--scale', type=float, default=1.0, help='size of the matrix, 1 is full')
    parser.add_argument('--quick', action='store_true', help='--scale 0.5, page to the cache')
    parser.add_argument('--cache', type=Path, default=ROOT / 'build' / 'validation')
    parser.add_argument('--output', type=Path, help='folder of the page (docs)')
    parser.add_argument('--reuse', action='store_true', help='take results of other code too')
    parser.add_argument('--no-page', action='store_true', help='fill the cache only')
    args = parser.parse_args(argv)
    scale = 0.5 if args.quick else args.scale
    cache = args.cache if scale == 1 else args.cache / f'scale-{scale:g}'
    output = args.output or (ROOT / 'docs' if scale == 1 else cache / 'page')
    cache.mkdir(parents=True, exist_ok=True)
    fill(cache, args.only, scale, args.reuse)
    if not args.no_page and not (cache / 'default.npz').exists():
        print('no page: it takes the phantom "default", which has not been run')
    elif not args.no_page:
        records = {name: load(cache / f'{name}.json') for name in names}
        records = {name: record for name, record in records.items() if record}
        stale = [n for n, r in records.items() if r['key'] != key_of(n, scale)]
        missing = [n for n in names if n not in records]
        with np.load(cache / 'default.npz') as arrays:
            maps = dict(arrays)
        page.write(output, records, maps, versions(), stale, missing)
        print(f'wrote {output / "validation.md"}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
