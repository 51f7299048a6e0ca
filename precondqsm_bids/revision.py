"""The version with the revision of the source, as records have it."""

import os
import re
import subprocess
from functools import cache
from pathlib import Path

from precondqsm_bids import __version__

ENVIRONMENT = 'PRECONDQSM_BIDS_REVISION'
"""Variable that the container images set, where there is no repository."""


@cache
def full_version() -> str:
    """The version, and the revision of the source where it is known.

    Of a checkout it is Git's, of an image the one it was built from (:data:`ENVIRONMENT`), as a
    local version by PEP 440: ``0.1.0+g200b3e8``, with ``.dirty`` where tracked files were changed.
    Elsewhere the version alone.
    """
    root = Path(__file__).resolve().parents[1]
    described = _describe(root) if (root / '.git').exists() else os.environ.get(ENVIRONMENT, '')
    return __version__ + local_version(described)


def local_version(described: str) -> str:
    """Local part of a version, of what ``git describe --always --dirty`` prints.

    Examples
    --------
    >>> local_version('v0.2.0-3-g200b3e8d5c-dirty')
    '+g200b3e8.dirty'
    >>> local_version('200b3e8d5c'), local_version('unknown')
    ('+g200b3e8', '')
    """
    clean = described.removesuffix('-dirty')
    found = re.search(r'(?:^|-g)([0-9a-f]{7,40})$', clean)
    if not found:
        return ''
    return f'+g{found[1][:7]}' + ('' if clean == described else '.dirty')


def _describe(root: Path) -> str:
    """What Git says of a checkout; nothing if it cannot."""
    command = ['git', '-C', str(root), 'describe', '--always', '--long', '--dirty', '--abbrev=40']
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=10,
            env=os.environ | {'GIT_OPTIONAL_LOCKS': '0'},  # the checkout may be read-only
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ''
    return done.stdout.strip() if done.returncode == 0 else ''
