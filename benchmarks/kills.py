"""Kill the app at random times and start it again: ``python benchmarks/kills.py --count 200``.

Each time the main process, or one of its workers, is killed (SIGKILL) at a random moment of a run
on the smallest phantom; the same command then runs again from what the work folder holds. It must
end, and the files of the participant must have the bytes of an undisturbed run. Exits with 1 at
the first difference, and keeps its folder.
"""

import argparse
import hashlib
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

SIZE = ('--matrix', '16', '16', '14', '--voxel-size', '8', '8', '8')
LIMIT = 300
"""Seconds after which a run counts as hanging."""


def start(raw, out, work):
    """The app on the phantom, in a process of its own."""
    words = [sys.executable, '-m', 'precondqsm_bids', raw, out, 'participant', '-w', work]
    words += ['--skip-bids-validation', '--nprocs', '2']
    return subprocess.Popen(
        [str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def checksums(out):
    """Of every file of the participant that is not a log."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.glob('sub-*/**/*'))
        if path.is_file()
        and not path.name.startswith('.')
        and 'log' not in path.parts
        and 'desc-about' not in path.name
    }


def children(pid):
    """Processes whose parent is this one."""
    with open(f'/proc/{pid}/task/{pid}/children') as file:
        return [int(word) for word in file.read().split()]


def kill(process, moment, worker):
    """Kill it, or a worker of it if there is one, after ``moment`` seconds; what was killed."""
    try:
        process.wait(moment)
        return 'nothing: it had ended'
    except subprocess.TimeoutExpired:
        pass
    try:
        victims = children(process.pid) if worker else []
        victim = victims[-1] if victims else process.pid
        os.kill(victim, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        return 'nothing: it had ended'
    return 'a worker' if victims else 'the main process'


def main(argv=None):
    """Command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--count', type=int, default=200, help='kills (default: 200)')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args(argv)
    chance = random.Random(args.seed)
    folder = Path(tempfile.mkdtemp(prefix='kills-'))
    raw = folder / 'raw'
    write_phantom([str(raw), *SIZE])
    began = time.monotonic()
    process = start(raw, folder / 'reference', folder / 'work')
    said, _ = process.communicate(timeout=LIMIT)
    if process.returncode:
        print(said)
        return 1
    seconds = time.monotonic() - began
    expected = checksums(folder / 'reference')
    print(f'an undisturbed run takes {seconds:.1f} s and writes {len(expected)} files', flush=True)
    killed = {}
    for number in range(1, args.count + 1):
        out, work = folder / 'out', folder / 'kept'
        for path in (out, work):
            shutil.rmtree(path, ignore_errors=True)
        moment, worker = chance.uniform(0.05, 1.0) * seconds, chance.random() < 0.5
        process = start(raw, out, work)
        what = kill(process, moment, worker)
        said = [process.communicate(timeout=LIMIT)[0]]
        for name, checksum in checksums(out).items():
            if name.endswith('.nii.gz') and expected.get(name) != checksum:
                print(f'{number}: {name} is not whole after the kill of {what}; see {folder}')
                return 1
        process = start(raw, out, work)
        said.append(process.communicate(timeout=LIMIT)[0])
        if process.returncode or checksums(out) != expected:
            print(*said, f'{number}: {what} killed after {moment:.2f} s; see {folder}', sep='\n')
            return 1
        killed[what] = killed.get(what, 0) + 1
    counts = ', '.join(f'{count} times {what}' for what, count in sorted(killed.items()))
    print(f'{args.count} kills ({counts}): always the bytes of the undisturbed run')
    shutil.rmtree(folder)
    return 0


if __name__ == '__main__':
    sys.exit(main())
