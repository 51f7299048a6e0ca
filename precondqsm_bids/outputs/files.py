"""Files of the derivatives that several processes may write: always whole, whoever comes first."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

LOGGER = logging.getLogger('nipype.interface')

BIDSIGNORE = ('figures', 'log', 'logs', '*.html', '*_R2primemap.*', '*_values.*', 'group_*')
"""What BIDS has no name for. Bare names: the validator does not understand a trailing slash."""


def write_bidsignore(output_dir: Path) -> Path:
    """Add what BIDS has no name for to ``.bidsignore``, and keep what others wrote there."""
    ignored = output_dir / '.bidsignore'
    lines = ignored.read_text(encoding='utf-8').splitlines() if ignored.exists() else []
    lines += [line for line in BIDSIGNORE if line not in lines]
    return write_shared(ignored, '\n'.join(lines) + '\n')


def write_shared(path: Path, text: str) -> Path:
    """Write a file that other processes may write too: whole, or left as another user has it."""
    if path.exists() and path.read_text(encoding='utf-8') == text:
        return path
    try:
        return write_atomic(path, text)
    except PermissionError:
        if not path.exists():
            raise
        LOGGER.warning('%s belongs to somebody else and is left as it is', path)
        return path


def write_atomic(path: Path, text: str) -> Path:
    """Write under a temporary name in the same folder, then rename."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding='utf-8')
    return path


def sidecar_of(path: Path) -> Path:
    """The JSON beside a file.

    >>> sidecar_of(Path('anat/sub-01_R2starmap.nii.gz')).name
    'sub-01_R2starmap.json'
    """
    return path.with_name(f'{path.name.partition(".")[0]}.json')


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A hidden name beside a file, for what gets the file's name if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_name(path) as temporary:
        yield temporary
        os.replace(temporary, path)


@contextmanager
def temporary_name(path: Path) -> Iterator[Path]:
    """A hidden name beside a file, gone when the block ends."""
    writer = f'{os.uname().nodename}.{os.getpid()}.{threading.get_ident()}'
    temporary = path.with_name(f'.{path.name}.{writer}')
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def json_ready(value: Any) -> Any:
    """Python numbers, lists and strings all the way down; NaN and infinity, unknown to JSON, null.

    >>> json_ready({'a': np.float32(0.5), 'b': (np.nan, np.int64(2)), 'c': Path('x')})
    {'a': 0.5, 'b': [None, 2], 'c': 'x'}
    """
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_ready(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return json_ready(value.tolist())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)


def natural(name: str) -> tuple[tuple[Any, ...], str]:
    """Key that sorts run-2 before run-10, and an absent label first.

    >>> sorted(['run-10', 'run-2', 'run-02', ''], key=natural)
    ['', 'run-02', 'run-2', 'run-10']
    """
    parts = [
        (0, int(p), '') if p.isdecimal() else (1, 0, p) for p in re.split(r'(\d+)', name) if p
    ]
    return tuple(parts), name
