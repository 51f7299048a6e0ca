"""Reconstruct phantoms as scanned and write their page: ``python benchmarks/scanner.py``.

Each switch of ``precondqsm_phantom --scanner`` alone and all of them, on a head and on tubes;
alternating readouts with echoes missing; slabs, long voxels and second bodies. Every phantom is
written as a BIDS dataset with its truth and reconstructed by the workflow that the app runs for
it. The record of each case is kept as JSON in the cache, so that an interrupted run goes on where
it stopped; a phantom stays there too until the code that makes it changes.
"""

import argparse
import hashlib
import os
import re
import shutil
import sys
import time
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path

os.environ.setdefault('NIPYPE_NO_ET', '1')
# Before numpy: on a busy machine OpenBLAS's threads wait for each other in every inner product.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')

import heads
import numpy as np
import scanner_page
from reconstruction import WORKERS
from scanner_score import assess
from validation import PACKAGE, ROOT, SEED, digest, load, save, scaled, versions

from precondqsm_bids.config import Settings
from precondqsm_bids.inputs.discovery import find_runs
from precondqsm_bids.inputs.selection import Selection
from precondqsm_bids.method import Method
from precondqsm_bids.phantom.head_spec import HeadSpec
from precondqsm_bids.phantom.scanner_spec import SWITCHES, scanner
from precondqsm_bids.phantom.spec import TubesSpec

HEAD = HeadSpec(voxel_size=(2.0, 2.0, 2.0))
FINE = TubesSpec()
TUBES = scaled(FINE, 0.5)
SPACINGS = (2.8, 2.9)
"""Spacings of the echoes that take turns, ms."""


@dataclass(frozen=True)
class Case:
    """One phantom, how it is reconstructed and what it is compared with."""

    title: str
    spec: HeadSpec | TubesSpec
    reference: str
    """Name of the case whose error is the measure of this one's."""
    brain: bool = False
    """Whether the true brain mask is given, and with it the sign of the phase."""
    echoes: tuple[int, ...] | None = None
    """The echoes that the dataset keeps, from 1; all of them for None."""

    @property
    def kept(self):
        """The echoes that the dataset keeps, from 0."""
        numbers = self.echoes or range(1, len(self.spec.echo_times) + 1)
        return tuple(number - 1 for number in numbers)


def scanned(spec, *names, **changes):
    """The spec with these switches on."""
    return replace(spec, scanner=scanner(*names, **changes))


def alternating_times(spec):
    """As many echo times, s, whose spacings take turns."""
    times = [spec.echo_times[0]]
    for i in range(len(spec.echo_times) - 1):
        times.append(round(times[-1] + 1e-3 * SPACINGS[i % 2], 6))
    return tuple(times)


def head_cases():
    """The head with the brain mask given; every switch beside the cropping of k-space."""
    cases = {'head-ideal': Case('ideal scanner', HEAD, 'head-crop', True)}
    for name in (*SWITCHES, 'all'):
        cases[f'head-{name}'] = Case(name, scanned(HEAD, 'crop', name), 'head-crop', True)
    return cases


def tubes_cases():
    """The tubes; every switch alone. The cropping of k-space is the reference of all."""
    cases = {'tubes-ideal': Case('ideal scanner', TUBES, 'tubes-ideal')}
    for name in (*SWITCHES, 'all'):
        reference = 'tubes-crop' if name in ('crop', 'all') else 'tubes-ideal'
        cases[f'tubes-{name}'] = Case(name, scanned(TUBES, name), reference)
    return cases


def coil_cases():
    """The published tubes at their own voxel size with 1, 8 and 32 coils."""
    return {
        f'coils-{n}': Case(f'{n} coil{"s" * (n > 1)}, 1 mm', scanned(FINE, coils=n), 'coils-1')
        for n in (1, 8, 32)
    }


def bipolar_cases():
    """Tubes with alternating readouts, whose echoes may be missing or unevenly spaced."""
    bipolar = scanned(TUBES, 'bipolar')
    numbers = range(1, len(TUBES.echo_times) + 1)
    uneven = replace(bipolar, echo_times=alternating_times(TUBES))
    between = ' and '.join(f'{spacing:g}' for spacing in SPACINGS)

    def case(title, spec=bipolar, echoes=None, reference='tubes-ideal'):
        return Case(title, spec, reference, echoes=echoes)

    def few(name, title, echoes):
        plain = f'bipolar-{name}-unipolar'
        return {
            f'bipolar-{name}': case(title, echoes=echoes, reference=plain),
            plain: case(f'{title}, one polarity', TUBES, echoes, plain),
        }

    return {
        **{
            f'bipolar-{size:g}': case(f'{size:g} rad', scanned(TUBES, bipolar=size))
            for size in (0.2, 0.3, 0.8)
        },
        **{
            name: one
            for i in numbers
            for name, one in few(
                f'without-{i}', f'echo {i} missing', tuple(n for n in numbers if n != i)
            ).items()
        },
        'bipolar-spacing': case(f'spacings of {between} ms in turn', uneven),
        **few('1256', 'echoes 1, 2, 5 and 6 alone', (1, 2, 5, 6)),
        **few('two', 'echoes 1 and 2 alone', (1, 2)),
    }


def geometry_cases():
    """Long voxels, slabs, and heads without a brain mask."""
    cropped = scanned(HEAD, 'crop')
    whole = 'geometry-head-whole'
    long_tubes = replace(FINE, matrix=(128, 128, ceil(106 / 3)), voxel_size=(1.0, 1.0, 3.0))
    return {
        'geometry-tubes-long': Case('tubes, voxels of 1 x 1 x 3 mm', long_tubes, 'tubes-ideal'),
        'geometry-head-long': Case(
            'head, voxels of 1 x 1 x 3 mm',
            replace(cropped, voxel_size=(1.0, 1.0, 3.0)),
            'head-crop',
            True,
        ),
        **{
            f'geometry-tubes-{n}': Case(
                f'tubes, slab of {n} slices', replace(TUBES, slices=n), 'tubes-ideal'
            )
            for n in (8, 16)
        },
        **{
            f'geometry-head-{n}': Case(
                f'head, slab of {n} slices', replace(cropped, slices=n), 'head-crop', True
            )
            for n in (8, 16)
        },
        whole: Case('head, all of it', cropped, whole),
        **{
            f'geometry-head-{name}': Case(
                f'head, all of it, {name}', scanned(HEAD, 'crop', name), whole
            )
            for name in ('two-bodies', 'fat')
        },
    }


PARTS = {
    'head': head_cases(),
    'tubes': tubes_cases(),
    'coils': coil_cases(),
    'bipolar': bipolar_cases(),
    'geometry': geometry_cases(),
}
"""Parts of the page and their cases."""


def sized(case, factor):
    """The same case with voxels that are so many times larger."""
    spec = case.spec
    if isinstance(spec, HeadSpec):
        spec = replace(spec, voxel_size=tuple(factor * size for size in spec.voxel_size))
    else:
        spec = scaled(spec, 1 / factor)
    return replace(case, spec=spec)


# --- one run ---------------------------------------------------------------------------------


def run_of(root, case, sign):
    """Settings and files of the run of a dataset, found as the app finds them."""
    head = isinstance(case.spec, HeadSpec)
    settings = Settings(
        bids_dir=root,
        output_dir=root / 'out',
        derivatives={'truth': root / 'derivatives' / 'truth'},
        method=Method(mask='derivatives' if case.brain else 'object', phase_sign=sign),
        omp_nthreads=WORKERS,
    )
    select = Selection(
        filters={'dseg': {'description': 'tissues' if head else 'tubes'}},
        derivatives=settings.derivatives,
    )
    runs, problems = find_runs(root, select=select, method=settings.method)
    if not runs:
        raise ValueError('; '.join(map(str, problems)).replace(f'{root}', 'DATASET'))
    return settings, runs[0]


def of_echoes(root, case, work):
    """The dataset with the echoes that the case keeps."""
    if case.echoes is None:
        return root
    part = work / 'dataset'
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(root, part)
    for number in set(range(1, len(case.spec.echo_times) + 1)) - set(case.echoes):
        for path in part.glob(f'sub-*/anat/*_echo-{number}_*'):
            path.unlink()
    return part


def refusal(error):
    """What a user reads where a run is refused: the last error of a traceback, without folders."""
    found = re.findall(r'^\s*\w*(?:Error|Exception): (.+)$', str(error), re.MULTILINE)
    return re.sub(r'(?:/[^/\s]+)+/', '', found[-1] if found else str(error))


def run_case(case, cache, work):
    """Simulate and reconstruct one case; its record and the sections of its maps.

    A run that is refused for the sign of its phase is made once more with the sign given.
    """
    start = time.perf_counter()
    written = heads.dataset(case.spec, cache, further=False)
    root = of_echoes(written, case, work)
    seconds = {'simulation': time.perf_counter() - start}
    record, sections = {'refused': None, 'sign_given': case.brain}, {}
    for sign in (1,) if case.brain else (None, 1):
        start = time.perf_counter()
        try:
            settings, run = run_of(root, case, sign)
            outputs, nodes = heads.run_workflow(settings, run, work / f'sign-{sign}')
        except Exception as error:
            record['refused'] = record['refused'] or refusal(error)
            if 'sign' in record['refused']:
                continue
            break
        seconds['workflow'] = time.perf_counter() - start
        start = time.perf_counter()
        found, sections = assess(root, case.spec, case.kept, outputs, run)
        record |= found | {'sign_given': sign is not None, 'node_seconds': nodes}
        seconds['scores'] = time.perf_counter() - start
        break
    return record | {'seconds': seconds, 'spec': asdict(case.spec)}, sections


# --- cache -----------------------------------------------------------------------------------


def code_digest():
    """Digest of everything that a result depends on but the case itself."""
    folders = ('inputs', 'numerics', 'interfaces', 'workflows', 'phantom')
    return digest(
        *(PACKAGE / name for name in ('config.py', 'method.py')),
        *(path for folder in folders for path in PACKAGE.glob(f'{folder}/**/*.py')),
        *(
            ROOT / 'benchmarks' / f'{name}.py'
            for name in ('reconstruction', 'scanner_score', 'opponents')
        ),
    )


def key_of(case, code):
    """What a cached result must have been made from to be used again."""
    parts = repr((case.spec, case.brain, case.echoes, SEED, code))
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def fill(cache, cases, reuse, code):
    """Compute what the cache lacks."""
    for name, case in cases.items():
        path, key = cache / f'{name}.json', key_of(case, code)
        known = load(path)
        if known is not None and (reuse or known['key'] == key):
            continue
        work = cache / 'work' / name
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        start = time.perf_counter()
        record, sections = run_case(case, cache, work)
        record |= {'key': key, 'elapsed': time.perf_counter() - start}
        if sections:
            np.savez_compressed(cache / f'{name}.npz', **sections)
        save(path, record)
        shutil.rmtree(work, ignore_errors=True)
        print(f'{name:28s} {record["elapsed"]:4.0f} s  {told(record)}', flush=True)


def told(record):
    """One line on a case, for the terminal."""
    if 'maps' not in record:
        return f'refused: {record["refused"]}'
    errors = ', '.join(
        f'{arm} {100 * found["nrmse"]:.1f} %' for arm, found in record['maps'].items()
    )
    return f'NRMSE {errors}' + (', sign given' if record['refused'] else '')


def chosen(names):
    """Cases by their own names and those of parts."""
    return {
        name: case
        for part, cases in PARTS.items()
        for name, case in cases.items()
        if part in names or name in names
    }


def main(argv=None):
    """Command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    names = [*PARTS, *chosen(PARTS)]
    parser.add_argument('--only', nargs='+', metavar='NAME', choices=names, default=list(PARTS))
    parser.add_argument('--size', type=float, default=1.0, metavar='FACTOR', help='of the voxels')
    parser.add_argument('--cache', type=Path, default=ROOT / 'build' / 'scanner')
    parser.add_argument('--output', type=Path, help='folder of the page (docs)')
    parser.add_argument('--reuse', action='store_true', help='take results of other code too')
    parser.add_argument('--no-page', action='store_true', help='fill the cache only')
    args = parser.parse_args(argv)
    cache = args.cache if args.size == 1 else args.cache / f'size-{args.size:g}'
    cache = cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    output = args.output or (ROOT / 'docs' if args.size == 1 else cache / 'page')
    heads.quiet(cache, level=60)  # a refusal is a result
    code = code_digest()
    parts = {
        part: {name: sized(case, args.size) for name, case in cases.items()}
        for part, cases in PARTS.items()
    }
    every = {name: case for cases in parts.values() for name, case in cases.items()}
    fill(cache, {name: every[name] for name in chosen(args.only)}, args.reuse, code)
    if not args.no_page:
        records = {name: load(cache / f'{name}.json') for name in every}
        records = {name: record for name, record in records.items() if record}
        stale = [n for n, record in records.items() if record['key'] != key_of(every[n], code)]
        scanner_page.write(output, cache, parts, records, versions(), stale, args.size)
        print(f'wrote {output / "scanner.md"}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
