"""What one participant costs, and what finding it in a large dataset costs.

``python benchmarks/scaling.py cost`` reconstructs a phantom and prints CPU time and memory of
each node, and the disk that the participant takes. ``python benchmarks/scaling.py index`` makes a
tree of empty files with one phantom among them and prints how long it takes to index it and to
find that one participant in it. ``--phantom '--matrix 64 64 53 --voxel-size 2 2 2'`` is the one of
``docs/scaling.md``.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# As the nodes have it: one thread of BLAS, the transforms have their own.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')

from precondqsm_bids.phantom.cli import main as write_phantom

PHANTOM = ('--matrix', '16', '16', '14', '--voxel-size', '8', '8', '8')
"""The smallest phantom: only its headers are read."""
ECHOES = 5


def main(argv=None):
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('what', choices=('cost', 'index'))
    parser.add_argument('--participants', type=int, default=1000, metavar='N')
    parser.add_argument('--nprocs', type=int, default=1, metavar='N', help='of cost')
    parser.add_argument('--phantom', default='', metavar='TEXT', help='of cost: its options')
    parser.add_argument('--folder', type=Path, help='where to work (default: a temporary folder)')
    options = parser.parse_args(argv)
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        if options.what == 'cost':
            cost(folder, shlex.split(options.phantom), options.nprocs)
        else:
            index(folder, options.participants)


# -- one participant ----------------------------------------------------------------------------


def cost(folder, phantom, nprocs):
    """Print what each node and the whole participant take."""
    from precondqsm_bids.cli.run import main as app
    from precondqsm_bids.workflows import plugins

    raw, out, work = folder / 'raw', folder / 'out', folder / 'work'
    if not raw.exists():
        quietly(write_phantom, [str(raw), *phantom])
    log = folder / 'nodes.jsonl'
    log.unlink(missing_ok=True)
    worker = plugins._work

    def measured(parent, sender, node, *arguments):
        """Each node has a process of its own, so that what the process took is what it took."""
        started = time.monotonic()
        before = resource.getrusage(resource.RUSAGE_SELF)
        worker(parent, sender, node, *arguments)
        after = resource.getrusage(resource.RUSAGE_SELF)
        told = {
            'node': node.name,
            'estimate_gb': node.mem_gb,
            'cpu': after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            'wall': time.monotonic() - started,
            'rss': after.ru_maxrss / 1024**2,
        }
        with log.open('a') as file:
            file.write(json.dumps(told) + '\n')

    plugins._work = measured
    started = time.monotonic()
    status = app(
        [
            *(str(raw), str(out), 'participant', '--skip-bids-validation'),
            *('-w', str(work), '--nprocs', str(nprocs)),
        ]
    )
    assert status == 0
    wall = time.monotonic() - started
    own, children = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print('node                          CPU s   wall s   peak GB   estimate GB')
    for line in log.read_text().splitlines():
        told = json.loads(line)
        print(
            f'{told["node"]:26} {told["cpu"]:8.2f} {told["wall"]:8.2f} {told["rss"]:9.2f} '
            f'{told["estimate_gb"]:13.3f}'
        )
    cpu = sum(usage.ru_utime + usage.ru_stime for usage in (own, children))
    print(
        f'whole: {cpu:.0f} s of CPU in {wall:.0f} s, main process {own.ru_maxrss / 1024**2:.2f} GB'
    )
    print(f'largest process {children.ru_maxrss / 1024**2:.2f} GB')
    for name, path in (('input', raw / 'sub-01'), ('output', out), ('work', work)):
        files = [file for file in path.rglob('*') if file.is_file()]
        size = sum(file.stat().st_blocks * 512 for file in files)
        print(f'{name}: {size / 1e6:.1f} MB in {len(files)} files')


def quietly(function, *arguments):
    """Call it, and do not print what it prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        function(*arguments)


# -- one among many -----------------------------------------------------------------------------


def index(folder, participants):
    """Print how long a dataset is indexed, and how long one participant is looked for."""
    raw = folder / 'raw'
    if not raw.exists():
        started = time.monotonic()
        files = make_tree(raw, participants)
        print(f'{participants} participants, {files} files made in {seconds(started)}')
    database = folder / 'database'
    shutil.rmtree(database, ignore_errors=True)
    first = dry_run(raw, database)
    print(
        f'dry run that writes the index: {first:.1f} s, {first / participants:.4f} s a participant'
    )
    size = sum(file.stat().st_size for file in database.rglob('*')) / 1e6
    print(f'dry run with the index ({size:.0f} MB): {dry_run(raw, database):.1f} s')
    print(f'dry run without an index: {dry_run(raw):.1f} s')


def dry_run(raw, database=None):
    """Seconds that the app takes to say what it would do for one participant."""
    words = [sys.executable, '-m', 'precondqsm_bids', str(raw), str(raw.parent / 'out')]
    words += ['participant', '--dry-run', '--participant-label', '0001']
    words += ['--bids-database-dir', str(database)] if database else []
    started = time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith('sub-0001 '), done.stdout
    return time.monotonic() - started


def make_tree(root, participants):
    """A dataset of one phantom and otherwise empty files; the number of its files."""
    quietly(write_phantom, [str(root), *PHANTOM])
    shutil.rmtree(root / 'derivatives', ignore_errors=True)
    first = root / 'sub-0001'
    (root / 'sub-01').rename(first)
    for path in list(first.rglob('*sub-01_*')):
        path.rename(path.with_name(path.name.replace('sub-01_', 'sub-0001_')))
    stems = [f'echo-{e}_part-{p}_MEGRE' for e in range(1, ECHOES + 1) for p in ('mag', 'phase')]
    for number in range(2, participants + 1):
        label = f'sub-{number:04d}'
        anat, func = root / label / 'anat', root / label / 'func'
        anat.mkdir(parents=True)
        func.mkdir()
        for stem in [*stems, 'T1w']:
            for end in ('nii.gz', 'json'):
                (anat / f'{label}_{stem}.{end}').touch()
        for end in ('nii.gz', 'json'):
            (func / f'{label}_task-rest_bold.{end}').touch()
    return sum(path.is_file() for path in root.rglob('*'))


def seconds(started):
    """Time that passed, as text."""
    return f'{time.monotonic() - started:.1f} s'


if __name__ == '__main__':
    multiprocessing.set_start_method('fork')
    main()
