"""Inputs of the interfaces: which files a node was computed of, so that it is done only once."""

import hashlib
import os
from functools import cache
from pathlib import Path
from typing import Any

from nipype.interfaces.base import BaseInterfaceInputSpec


class InputSpec(BaseInterfaceInputSpec):
    """Inputs whose files are compared by content, those of other nodes by size and time.

    A node that finds the inputs of an earlier call unchanged is not run again. Nipype would read
    every file of every node for that, twice. The size and time of a file of the dataset can stay
    while its content changes (rsync, archives, clamped times), so it is read, once in a process.
    A file that another node has written is in a work folder that no other program writes to.
    """

    def _get_sorteddict(
        self,
        objekt: Any,
        dictwithhash: bool = False,
        hash_method: str | None = None,
        hash_files: bool = True,
    ) -> Any:
        if hash_files and isinstance(objekt, str) and os.path.isfile(objekt):
            digest = file_digest(objekt)
            return (objekt, digest) if dictwithhash else digest
        return super()._get_sorteddict(objekt, dictwithhash, hash_method, hash_files)


def file_digest(path: str) -> str:
    """Digest of the content of a file; of a node's own file that of its name, size and time."""
    status = os.stat(path)
    stamp = (status.st_size, status.st_mtime_ns)
    if Path(path).with_name('_node.pklz').exists():
        return hashlib.md5(f'{os.path.basename(path)} {stamp}'.encode()).hexdigest()
    return content_digest(path, (*stamp, status.st_ctime_ns, status.st_ino))


@cache
def content_digest(path: str, state: tuple[int, ...]) -> str:
    """Digest of the content of a file, read again only when its ``state`` is another."""
    with open(path, 'rb') as stream:
        return hashlib.file_digest(stream, 'md5').hexdigest()
