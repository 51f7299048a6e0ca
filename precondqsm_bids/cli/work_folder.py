"""The work folder: where it is, whose intermediate results it has, and its room."""

import math
import os
import shutil
import tempfile
from pathlib import Path

from precondqsm_bids import __version__
from precondqsm_bids.cli.call import Found
from precondqsm_bids.cli.progress import say

BYTES_PER_VOXEL = 110
"""Size of a run's intermediate results: 28 maps of float32 that are not compressed, as measured."""


def default_work_dir() -> Path:
    """``./work``; a container may start in a folder that nobody can write to."""
    here = Path.cwd() / 'work'
    if os.access(here if here.is_dir() else here.parent, os.W_OK):
        return here
    return Path(tempfile.gettempdir()) / f'precondqsm_bids-{os.getuid()}'


def warn_of_room(work_dir: Path, found: Found) -> None:
    """Warn at the start if the work folder will be full before the end.

    Where nothing else is mounted, a container may have 64 MB for it.
    """
    needed = BYTES_PER_VOXEL * sum(math.prod(run.matrix) for run in found.runs)
    free = shutil.disk_usage(work_dir).free
    if free < needed:
        say(
            f'warning: the work folder {work_dir} has room for {free / 1e6:.0f} MB, and about '
            f'{math.ceil(needed / 1e6)} MB will be written there: make room, or give another with '
            '-w'
        )


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
    if made_by != __version__:
        raise InputError(
            f'{folder} has intermediate results of '
            f'{f"version {made_by}" if made_by else "an unknown version"}, and this is '
            f'{__version__}: remove them with --clean-workdir, or give another folder with -w'
        )


def stamp_version(work_dir: Path) -> None:
    """Note down which version the results are of."""
    from precondqsm_bids.outputs.files import write_atomic

    write_atomic(_results(work_dir)[1], f'{__version__}\n')


def _results(work_dir: Path) -> tuple[Path, Path]:
    """Folder of our own results, and the file beside it that names their version."""
    from precondqsm_bids.workflows.base import NAME

    return work_dir / NAME, work_dir / f'{NAME}.version'
