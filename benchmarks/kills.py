"""Kill the app at random times and start it again: ``python benchmarks/kills.py --count 200``.

Each time the main process, or one of its workers, is killed (SIGKILL) at a random moment between
the first node and the last of a run on the smallest phantom; the same command then runs again from
what the work folder holds. It must end, and the files of the participant must have the bytes of an
undisturbed run. Exits with 1 at the first difference, and keeps its folder.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from precondqsm_bids.phantom.cli import main as write_phantom

sys.path.insert(0, str(Path(__file__).parents[1] / 'tests' / 'shared'))
from outputs import checksums

SIZE = ('--matrix', '16', '16', '14', '--voxel-size', '8', '8', '8')
LIMIT = 300
"""Seconds after which a run counts as hanging."""
WORKERS = 0.6
"""The share of kills that are meant for a worker."""


def start(raw, out, work):
    """The app on the phantom, in a process of its own; what it says goes to a file."""
    words = [sys.executable, '-m', 'precondqsm_bids', raw, out, 'participant', '-w', work]
    words += ['--skip-bids-validation', '--nprocs', '2']
    with open(out.with_suffix('.txt'), 'w') as file:
        return subprocess.Popen([str(word) for word in words], stdout=file, stderr=file)


def finish(process, out):
    """Wait for its end; what it said."""
    process.wait(LIMIT)
    return out.with_suffix('.txt').read_text()


def children(pid):
    """Processes whose parent is this one."""
    try:
        with open(f'/proc/{pid}/task/{pid}/children') as file:
            return [int(word) for word in file.read().split()]
    except OSError:  # it has ended
        return []


def watch_workers(process):
    """Yield the workers that live, every millisecond, until the process ends."""
    deadline = time.monotonic() + LIMIT
    while process.poll() is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f'{process.pid} hangs')
        yield children(process.pid)
        time.sleep(0.001)


def observe(process):
    """Seconds that each worker of an undisturbed run lives, in the order of their starts.

    And the seconds from the first worker's start to the last one's end.
    """
    first, last = {}, {}
    for workers in watch_workers(process):
        now = time.monotonic()
        for worker in workers:
            first.setdefault(worker, now)
            last[worker] = now
    lives = [last[worker] - first[worker] for worker in first]
    return lives, max(last.values()) - min(first.values())


def kill(process, chance, lives, computing):
    """Kill it or a worker of it at a random moment of the computing; what was killed.

    A worker is drawn by its number, and its moment by how long that one lived undisturbed; the
    moment of the main process from the time between the first worker and the end of the last.
    """
    worker = chance.random() < WORKERS
    number = chance.randrange(len(lives)) if worker else 0
    delay = chance.random() * (lives[number] if worker else computing)
    seen, due = [], None
    for workers in watch_workers(process):
        seen += [pid for pid in workers if pid not in seen]
        if due is None and len(seen) > number:
            due = time.monotonic() + delay
        if due is None or time.monotonic() < due:
            continue
        victim = chance.choice(workers) if worker and workers else None
        if worker and victim is None:  # that one was quicker this time: the next
            continue
        try:
            os.kill(victim or process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        return 'a worker' if worker else 'the main process'
    return 'nothing: it had ended'


def main(argv=None):
    """Command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--count', type=int, default=200, help='kills (default: 200)')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args(argv)
    chance = random.Random(args.seed)
    folder = Path(tempfile.mkdtemp(prefix='kills-'))
    raw, reference = folder / 'raw', folder / 'reference'
    write_phantom([str(raw), *SIZE])
    process = start(raw, reference, folder / 'work')
    lives, computing = observe(process)
    said = finish(process, reference)
    if process.returncode:
        print(said)
        return 1
    expected = checksums(reference)
    print(
        f'an undisturbed run has {len(lives)} workers in {computing:.1f} s and writes '
        f'{len(expected)} files',
        flush=True,
    )
    killed = {}
    for number in range(1, args.count + 1):
        out, work = folder / 'out', folder / 'kept'
        for path in (out, work):
            shutil.rmtree(path, ignore_errors=True)
        process = start(raw, out, work)
        what = kill(process, chance, lives, computing)
        said = [finish(process, out)]
        for name, checksum in checksums(out, hidden=False).items():
            if name.endswith('.nii.gz') and expected.get(name) != checksum:
                print(f'{number}: {name} is not whole after the kill of {what}; see {folder}')
                return 1
        if what == 'a worker' and 'killed by signal 9' not in said[0]:
            # It had sent its result already, or the run did not notice: the next run tells.
            what = 'a worker that had done its work'
        process = start(raw, out, work)
        said.append(finish(process, out))
        if process.returncode or checksums(out, hidden=False) != expected:
            print(*said, f'{number}: after the kill of {what}; see {folder}', sep='\n')
            return 1
        killed[what] = killed.get(what, 0) + 1
        if number % 10 == 0:
            print(f'{number}: {killed}', flush=True)
    counts = ', '.join(f'{count} times {what}' for what, count in sorted(killed.items()))
    print(f'{args.count} kills ({counts}): always the bytes of the undisturbed run')
    shutil.rmtree(folder)
    return 0


if __name__ == '__main__':
    sys.exit(main())
