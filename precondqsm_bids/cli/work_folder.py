"""The work folder: where it is, whose intermediate results it has, and its room."""

import errno
import fcntl
import math
import os
import shutil
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from precondqsm_bids.cli.call import Found
from precondqsm_bids.config import Settings
from precondqsm_bids.cost import cost_of
from precondqsm_bids.revision import full_version


def default_work_dir() -> Path:
    """``./work``; a container may start in a folder that nobody can write to."""
    here = Path.cwd() / 'work'
    if os.access(here if here.is_dir() else here.parent, os.W_OK):
        return here
    return Path(tempfile.gettempdir()) / f'precondqsm_bids-{os.getuid()}'


class Room(NamedTuple):
    """A disk that will be written to."""

    folders: str
    """What is written there: ``the work folder /w`` and the like."""
    needed: float
    """Bytes, about."""
    free: int
    """Bytes."""

    @property
    def shortage(self) -> str:
        """What is wrong if there is too little, else an empty string."""
        if self.free >= self.needed:
            return ''
        return (
            f'{self.folders} has room for {self.free / 1e6:.0f} MB, and about '
            f'{math.ceil(self.needed / 1e6)} MB will be written there: make room, or give another '
            'with -w'
        )


def rooms(settings: Settings, found: Found) -> list[Room]:
    """What the work folder and the output folder need and have; together if on one disk.

    Where nothing else is mounted, a container may have 64 MB for the work folder.
    """
    cost = cost_of(found.runs, settings.method)
    wanted = [('the output folder', settings.output_dir, cost.output_bytes)]
    if settings.work_dir:
        wanted.insert(0, ('the work folder', settings.work_dir, cost.work_bytes))
    disks: dict[int, list[tuple[str, Path, float]]] = defaultdict(list)
    for name, folder, needed in wanted:
        there = next(path for path in (folder, *folder.parents) if path.is_dir())
        disks[there.stat().st_dev].append((f'{name} {folder}', there, needed))
    return [
        Room(
            ' with '.join(name for name, *_ in of_disk),
            sum(needed for *_, needed in of_disk),
            shutil.disk_usage(of_disk[0][1]).free,
        )
        for of_disk in disks.values()
    ]


@contextmanager
def in_use(work_dir: Path, subjects: Sequence[str], cleaned: bool) -> Iterator[None]:
    """Keep other calls from these participants' results; first remove all, if nobody is at any.

    Two calls at one folder would take each other's files for their own. The locks are of bytes of
    one file, a participant each, and end with the main process, however that ends; where the file
    system has none there are none.

    Raises InputError if another call is at them.
    """
    from precondqsm_bids.inputs.run import InputError

    path = work_dir / f'{_results(work_dir)[0].name}.lock'
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        file = path.open('a+b')
    except OSError as error:
        raise InputError(f'cannot write to {error.filename}: {error.strerror}') from error
    with file:
        everyone = fcntl.LOCK_EX if cleaned else fcntl.LOCK_SH
        places = {'': (everyone, 0)} | {
            subject: (fcntl.LOCK_EX, 1 + zlib.crc32(subject.encode())) for subject in subjects
        }
        for subject, (kind, place) in places.items():
            try:
                fcntl.lockf(file, kind | fcntl.LOCK_NB, 1, place)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    break
                what = f'sub-{subject} in ' if subject else ''
                raise InputError(
                    f'another call is at {what}the work folder {work_dir}: wait for it, or give a '
                    'folder of its own with -w'
                ) from error
        if cleaned:
            try:
                clean(work_dir)
            except OSError as error:
                raise InputError(f'cannot clean {work_dir}: {error.strerror}') from error
            with suppress(OSError):
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 0)  # others may come in
        yield


def clean(work_dir: Path) -> None:
    """Remove our own intermediate results; a work folder may be shared with other programs."""
    folder, stamp = _results(work_dir)
    if folder.exists():
        shutil.rmtree(folder)
    stamp.unlink(missing_ok=True)


def check_version(work_dir: Path) -> None:
    """Refuse intermediate results of another version, which may mean something else.

    Nipype compares the inputs of a node, not the program that computed it.

    Raises InputError if the work folder has results that this version did not make.
    """
    from precondqsm_bids.inputs.run import InputError

    folder, stamp = _results(work_dir)
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    made_by = stamp.read_text(encoding='utf-8').strip() if stamp.exists() else ''
    if made_by != (version := full_version()):
        raise InputError(
            f'{folder} has intermediate results of '
            f'{f"version {made_by}" if made_by else "an unknown version"}, and this is '
            f'{version}: remove them with --clean-workdir, or give another folder with -w'
        )


def stamp_version(work_dir: Path) -> None:
    """Note down which version the results are of."""
    from precondqsm_bids.outputs.files import write_atomic

    write_atomic(_results(work_dir)[1], f'{full_version()}\n')


def _results(work_dir: Path) -> tuple[Path, Path]:
    """Folder of our own results, and the file beside it that names their version."""
    from precondqsm_bids.workflows.base import NAME

    return work_dir / NAME, work_dir / f'{NAME}.version'
