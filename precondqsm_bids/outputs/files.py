"""Files of the derivatives that several processes may write: always whole, whoever comes first.

Apart from the sink, since that one imports niworkflows.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOGGER = logging.getLogger('nipype.interface')

BIDSIGNORE = ('figures', 'log', 'logs', '*.html', '*_R2primemap.*', '*_values.*', 'group_*')
"""What BIDS has no name for. Bare names: the validator does not understand a trailing slash."""


def write_bidsignore(output_dir: Path) -> Path:
    """Add what BIDS has no name for to ``.bidsignore``, and keep what others wrote there."""
    ignored = output_dir / '.bidsignore'
    lines = ignored.read_text().splitlines() if ignored.exists() else []
    lines += [line for line in BIDSIGNORE if line not in lines]
    return write_shared(ignored, '\n'.join(lines) + '\n')


def write_shared(path: Path, text: str) -> Path:
    """Write a file that other processes may write too: whole, or left as another user has it."""
    if path.exists() and path.read_text() == text:
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
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_name(path) as temporary:
        temporary.write_text(text, encoding='utf-8')
        os.replace(temporary, path)
    return path


@contextmanager
def temporary_name(path: Path) -> Iterator[Path]:
    """A hidden name beside a file, gone when the block ends."""
    writer = f'{os.uname().nodename}.{os.getpid()}.{threading.get_ident()}'
    temporary = path.with_name(f'.{path.name}.{writer}')
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
