"""What the program takes: its stages over the transforms in them, whole runs, memory, growth.

``python benchmarks/speed.py`` (``make bench``) simulates an object of each size, reconstructs it
``--repeat`` times, and writes ``docs/performance.md``. The floor of a stage is what its Fourier
transforms alone take: they are counted with their sizes while it runs, and one of each is measured
afterwards. Give the machine nothing else to do. Nothing that is timed is a test.
"""

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

# As the nodes have it: one thread of BLAS, the transforms have their own.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')

import nibabel as nib
import numpy as np
import scipy

from precondqsm_bids import __version__

TRANSFORMS = ('rfft', 'irfft', 'fftn', 'ifftn', 'rfftn', 'irfftn')
SIX = ['0.004', '0.008', '0.012', '0.016', '0.020']
OBJECTS = {
    'small': '--kind tubes --matrix 64 64 64 --voxel-size 2 2 2',
    'tubes': '--kind tubes',
    'head': '--kind head',
    'large': '--kind tubes --matrix 384 384 256 --voxel-size 0.5 0.5 0.5 '
    '--echo-times 0.004 0.008 0.012 0.016 0.020',
}
"""Name of an object -> options of precondqsm_phantom."""
PAGE = Path(__file__).resolve().parents[1] / 'docs' / 'performance.md'
QUIET = 0.5
"""Load of a machine that does nothing else."""


def main(argv=None):
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    add = parser.add_argument
    add('--only', nargs='+', choices=list(OBJECTS), default=['small', 'tubes', 'head'])
    add(
        '--repeat',
        type=int,
        default=3,
        metavar='N',
        help='runs, of which the median counts; of large one',
    )
    add('--folder', type=Path, help='where to work, and keep the objects (default: temporary)')
    add('--out', type=Path, default=PAGE, metavar='FILE', help='the page')
    add('--run', nargs=3, type=Path, help=argparse.SUPPRESS)  # of itself: RAW FOLDER NODES
    options = parser.parse_args(argv)
    if options.run:
        return run(*options.run)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        results = [
            measure(name, folder, 1 if name == 'large' else options.repeat)
            for name in options.only
        ]
    options.out.write_text(page(results, machine(load)), encoding='utf-8')
    return print(options.out.read_text(encoding='utf-8'))


# -- one run, in a process of its own -----------------------------------------------------------


def run(raw, folder, log):
    """Reconstruct; what each node took goes to the log, a line each."""
    from precondqsm_bids.cli.run import main as app
    from precondqsm_bids.numerics.solver import DipoleSystem
    from precondqsm_bids.workflows import plugins

    counts, lock, worker = Counter(), threading.Lock(), plugins._work
    for name in TRANSFORMS:
        setattr(scipy.fft, name, counted(name, counts, lock))
    DipoleSystem.multiply = convolutions(DipoleSystem.multiply, counts, lock)

    def measured(parent, sender, node, *arguments):
        """Each node has a process of its own: what the process took is what it took."""
        # What the main process has is not counted again.
        before, start = peak_reset(), time.time()
        worker(parent, sender, node, *arguments)
        took = {
            'node': node.name,
            'start': start,
            'end': time.time(),
            'cpu': sum(os.times()[:2]),
            'bytes': peak() - before,
            'transforms': [[*key, number] for key, number in counts.items()],
        }
        with log.open('a') as file:
            file.write(json.dumps(took) + '\n')

    plugins._work = measured
    words = [*(str(raw), str(folder / 'out'), 'participant', '-w', str(folder / 'work'))]
    truth = raw / 'derivatives' / 'truth'
    return app([*words, *(['--derivatives', f'truth={truth}'] if truth.is_dir() else [])])


def counted(name, counts, lock):
    """The transform of that name, which counts its calls by size."""
    transform = getattr(scipy.fft, name)

    def call(x, *arguments, **given):
        size = {key: value for key, value in given.items() if key != 'overwrite_x'}
        # Those of the solver are parts of convolutions, which are counted as such.
        if sys._getframe(1).f_globals['__name__'] != 'precondqsm_bids.numerics.solver':
            with lock:
                counts[name, x.shape, x.dtype.str, json.dumps([arguments, size])] += 1
        return transform(x, *arguments, **given)

    return call


def convolutions(multiply, counts, lock):
    """The solver's product with the kernel, which counts a pair of whole transforms."""

    def call(system, spectrum, i, **given):
        if i == 0:
            shape, workers = system.grid.shape, system.workers
            there = json.dumps([[], {'workers': workers}])
            back = json.dumps([[], {'s': shape, 'workers': workers}])
            with lock:
                counts['rfftn', shape, '<f4', there] += 1
                counts['irfftn', system.kernel.shape, '<c8', back] += 1
        return multiply(system, spectrum, i, **given)

    return call


def peak_reset():
    """Memory of this process now, bytes; its peak is counted from here on."""
    with open('/proc/self/clear_refs', 'w') as file:
        file.write('5')
    return peak()


def peak():
    """Largest memory of its own that this process has had, bytes."""
    status = Path('/proc/self/status').read_text()
    return 1024 * int(status.partition('VmHWM:')[2].split()[0])


# -- all runs of an object ----------------------------------------------------------------------


def measure(name, folder, repeat):
    """Wall, CPU and memory of the runs of an object, and what their nodes took."""
    raw = folder / name / 'raw'
    if not raw.exists():
        # In a process of its own: what runs later would inherit the memory of this one.
        program = Path(sys.executable).with_name('precondqsm_phantom')
        subprocess.run([program, str(raw), *OBJECTS[name].split()], check=True)
    wholes, nodes = [], []
    for number in range(repeat):
        for old in ('out', 'work'):
            shutil.rmtree(folder / name / old, ignore_errors=True)
        log = folder / name / f'nodes-{number}.jsonl'
        log.unlink(missing_ok=True)
        words = [sys.executable, __file__, '--run', str(raw), str(folder / name), str(log)]
        start = time.monotonic()
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0, f'{words} ended with status {status}'
        nodes.append([json.loads(line) for line in log.read_text().splitlines()])
        wholes.append(
            {
                'wall': time.monotonic() - start,
                'cpu': usage.ru_utime + usage.ru_stime,
                'peak': 1024 * usage.ru_maxrss,
                'gaps': time.monotonic() - start - covered(nodes[-1]),
            }
        )
    images = sorted(raw.glob('sub-*/**/*part-mag_MEGRE.nii.gz'))
    return {
        'name': name,
        'matrix': nib.load(images[0]).shape,
        'echoes': len(images),
        'whole': {key: statistics.median(w[key] for w in wholes) for key in wholes[0]},
        'nodes': summarise(nodes),
        'disk': {
            part: sum(file.stat().st_size for file in (folder / name / part).rglob('*.nii*'))
            for part in ('out', 'work')
        },
    }


def covered(nodes):
    """Seconds in which one of the nodes of a run worked, several of them counted once.

    >>> covered([{'start': 0, 'end': 2}, {'start': 1, 'end': 3}, {'start': 5, 'end': 6}])
    4
    """
    total, last = 0, -math.inf
    for node in sorted(nodes, key=lambda node: node['start']):
        total += max(0, node['end'] - max(node['start'], last))
        last = max(last, node['end'])
    return total


def summarise(nodes):
    """Medians over the runs by node, in the order of the first run, with the floor of each."""
    floors = {}
    summary = {}
    for first in nodes[0]:
        same = [node for run in nodes for node in run if node['node'] == first['node']]
        for *key, _ in first['transforms']:
            key = (key[0], tuple(key[1]), *key[2:])
            floors.setdefault(key, one_transform(*key))
        summary[first['node']] = {
            'wall': statistics.median(n['end'] - n['start'] for n in same),
            'cpu': statistics.median(n['cpu'] for n in same),
            'bytes': statistics.median(n['bytes'] for n in same),
            'transforms': sum(number for *_, number in first['transforms']),
            'floor': sum(
                number * floors[name, tuple(shape), dtype, size]
                for name, shape, dtype, size, number in first['transforms']
            ),
        }
    return summary


def one_transform(name, shape, dtype, size):
    """Seconds of a transform of random numbers, the median of five."""
    rng = np.random.default_rng(0)
    values = rng.random(shape, np.float32).astype(dtype)
    arguments, given = json.loads(size)
    times = []
    for _ in range(5):
        copy = values.copy()
        start = time.perf_counter()
        getattr(scipy.fft, name)(copy, *arguments, **given)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


# -- the page -----------------------------------------------------------------------------------


def page(results, where):
    """The page, in Markdown; ``where`` says what machine it is of."""
    lines = [
        '# Performance',
        '',
        f'Version {__version__}. {where}',
        '`make bench` (`benchmarks/speed.py`) measures it again and writes this page.',
        '',
        '## Whole runs',
        '',
        'One participant with both arms, table and report, as a process from start to end. The',
        'memory is that of the largest process. Growth: wall time over n log n of the voxels,',
        'that of the first object being 1. Medians of several runs, of the object `large` one.',
        '',
        '| object | matrix | echoes | wall (s) | CPU (s) | memory (GB) | bytes a voxel '
        '| outputs (MB) | work (MB) | between the nodes (s) | growth |',
        '|---|---|---|---|---|---|---|---|---|---|---|',
        *whole_rows(results),
        '',
        '## Stages',
        '',
        "The floor is what the stage's Fourier transforms alone take: as many and as large, with",
        'as many threads; convolutions of the solver, which leave out what is zero or not needed,',
        'count as pairs of whole ones. The memory is what the stage adds to that of the main',
        'process.',
    ]
    for result in results:
        lines += ['', f'### {title(result)}', '', *stage_rows(result)]
    return '\n'.join(lines) + '\n'


def title(result):
    """Name and size of an object."""
    return f'{result["name"]}, {" x ".join(map(str, result["matrix"]))}, {result["echoes"]} echoes'


def whole_rows(results):
    """Rows of the whole runs."""
    scale = None
    for result in results:
        whole, n = result['whole'], math.prod(result['matrix'])
        scale = scale or whole['wall'] / (n * math.log(n))
        cells = [
            result['name'], ' x '.join(map(str, result['matrix'])), result['echoes'],
            f'{whole["wall"]:.1f}', f'{whole["cpu"]:.1f}', f'{whole["peak"] / 1e9:.2f}',
            f'{whole["peak"] / n:.0f}', f'{result["disk"]["out"] / 1e6:.1f}',
            f'{result["disk"]["work"] / 1e6:.1f}', f'{whole["gaps"]:.1f}',
            f'{whole["wall"] / (n * math.log(n)) / scale:.2f}',
        ]  # fmt: skip
        yield f'| {" | ".join(map(str, cells))} |'


def stage_rows(result):
    """Table of the stages of an object."""
    n = math.prod(result['matrix'])
    yield (
        '| stage | wall (s) | CPU (s) | transforms | floor (s) | wall over floor | bytes a voxel |'
    )
    yield '|---|---|---|---|---|---|---|'
    for name, node in result['nodes'].items():
        ratio = f'{node["wall"] / node["floor"]:.2f}' if node['floor'] > 0.01 else ''
        yield (
            f'| {name} | {node["wall"]:.2f} | {node["cpu"]:.2f} | {node["transforms"] or ""} | '
            f'{node["floor"]:.2f} | {ratio} | {node["bytes"] / n:.0f} |'
        )


def machine(load):
    """Processor, cores, memory and libraries, and whether other work used them at the start."""
    info = Path('/proc/cpuinfo').read_text()
    model = info.partition('model name')[2].partition('\n')[0].strip('\t :') or platform.machine()
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1024**3
    busy = f'**Other work used the machine (load {load:.1f}): wall times are too long.** '
    return (
        f'{len(os.sched_getaffinity(0))} cores of {model}, {memory:.0f} GB of memory; '
        f'Python {platform.python_version()}, NumPy {np.__version__}, SciPy {scipy.__version__}. '
        f'{busy if load > QUIET else ""}'
    )


if __name__ == '__main__':
    sys.exit(main())
