"""Names of files, the sidecars that apply to them, and what these say."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precondqsm_bids.inputs.run import Note, RunError

ENTITIES = {
    'sub': 'subject', 'ses': 'session', 'sample': 'sample', 'task': 'task', 'acq': 'acquisition',
    'ce': 'ceagent', 'rec': 'reconstruction', 'dir': 'direction', 'run': 'run', 'echo': 'echo',
    'flip': 'flip', 'inv': 'inv', 'mt': 'mt', 'part': 'part', 'chunk': 'chunk', 'space': 'space',
    'res': 'resolution', 'label': 'label', 'seg': 'segmentation', 'atlas': 'atlas',
    'desc': 'description',
}  # fmt: skip
"""Names of files spell entities short, filter files (as in pybids) spell them long."""
INDICES = ('run', 'echo', 'flip', 'inv', 'chunk')
"""Entities whose labels are numbers."""
IMAGE_SUFFIXES = ('MEGRE', 'T2starw')
EXTENSIONS = ('.nii', '.nii.gz')
ANNEX, LFS = b'annex/objects/', b'version https://git-lfs'
"""What is at the start of a file whose content was not fetched."""
ACQUISITION = ('task', 'acq', 'ce', 'rec', 'dir', 'run', 'flip', 'inv', 'mt', 'chunk', 'sample')
"""Entities that tell one acquisition of a session from another; ``space``, ``desc``, ``label`` and
the like may be anything."""


@dataclass(frozen=True, eq=False)
class File:
    """A file of the dataset and what its name says."""

    path: Path
    entities: dict[str, str]
    suffix: str
    extension: str
    folder: tuple[str, ...]
    """Folders between the root of the dataset and the file."""

    @property
    def owner(self) -> str:
        """Participant in whose folder it is; empty if it is in none."""
        top = self.folder[0] if self.folder else ''
        return top.removeprefix('sub-') if top.startswith('sub-') else ''

    @property
    def is_image(self) -> bool:
        """Whether it is an image, by its extension."""
        return self.extension in EXTENSIONS

    @property
    def run(self) -> str:
        """Name of the run that an echo or a field is of: ``sub-01_ses-a_run-1``."""
        without = ('echo', 'part', 'desc', 'space')
        return '_'.join(f'{k}-{v}' for k, v in self.entities.items() if k not in without)

    @property
    def group(self) -> tuple[tuple[str, str], ...]:
        """What the echoes and parts of a run have in common."""
        return tuple((k, v) for k, v in self.numbered.items() if k not in ('echo', 'part'))

    @property
    def numbered(self) -> dict[str, str]:
        """Entities by :func:`numbered`."""
        return numbered(self.entities)


def numbered(entities: Mapping[str, Any]) -> dict[str, Any]:
    """Entities, numbers without leading zeros: echo-02 is echo 2.

    >>> numbered({'sub': '01', 'run': '02', 'echo': 'a'})
    {'sub': '01', 'run': '2', 'echo': 'a'}
    """
    return {
        key: str(int(label)) if label and key in INDICES and label.isdecimal() else label
        for key, label in entities.items()
    }


def files_below(folder: Path) -> Iterator[Path]:
    """All files in a folder, at any depth, through links to folders too, as pybids does it."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(parent) in map(os.path.realpath, Path(parent).parents):
            folders.clear()  # a link to a folder that it is in
            continue
        yield from (Path(parent, name) for name in names)


def parse(path: Path, root: Path) -> File | None:
    """A path as entities, suffix and extension; None if the name is not that of a BIDS file."""
    stem, dot, extension = path.name.partition('.')
    *pairs, suffix = stem.split('_')
    entities = dict(pair.split('-', 1) for pair in pairs if '-' in pair)
    if not dot or len(entities) != len(pairs):
        return None
    return File(path, entities, suffix, dot + extension, path.relative_to(root).parts[:-1])


def inherited(file: File, candidates: Iterable[File], extension: str) -> list[File]:
    """Those of the candidates that apply to a file by BIDS inheritance, the most general first."""
    applicable = [
        other
        for other in candidates
        if (other.suffix, other.extension) == (file.suffix, extension)
        and other.folder == file.folder[: len(other.folder)]
        and other.numbered.items() <= file.numbered.items()
    ]
    return sorted(applicable, key=lambda other: (len(other.folder), len(other.entities)))


class Metadata(dict[str, Any]):
    """The merged sidecars of a file."""

    def __init__(self) -> None:
        super().__init__()
        self.stated_by: dict[str, Path] = {}
        """The sidecar that each value is from."""
        self.notes: list[Note] = []


def without_content(path: Path) -> str:
    """What is to be reported of a file whose content was not fetched; an empty string of others.

    git-annex, which DataLad uses, and git-lfs leave a link to nowhere, or a line of text.
    """
    if not path.exists():
        return 'is a link to nowhere: fetch the content' if path.is_symlink() else ''
    try:
        with path.open('rb') as stream:
            start = stream.read(200)
    except OSError:
        return ''
    if not (start.startswith(LFS) or ANNEX in start):
        return ''
    return (
        'holds a pointer of git-annex or git-lfs instead of its content: fetch that (datalad get, '
        'git annex get or git lfs pull)'
    )


def read_metadata(file: File, candidates: Iterable[File]) -> Metadata:
    """The merged sidecars of a file; the most specific sidecar takes precedence."""
    merged = Metadata()
    for sidecar in inherited(file, candidates, '.json'):
        content, notes = read_sidecar(sidecar.path)
        merged.notes += notes
        merged.update(content)
        merged.stated_by.update(dict.fromkeys(content, sidecar.path))
    return merged


def read_sidecar(path: Path) -> tuple[dict[str, Any], list[Note]]:
    """Content of a sidecar, and what is to be reported of it."""
    notes = []
    try:
        raw = path.read_bytes()
        try:
            text = raw.decode('utf-8-sig')
        except UnicodeDecodeError as error:
            text = raw.decode('latin-1')
            byte = f'byte {raw[error.start]:#04x} at {error.start}'
            message = (
                f'is not UTF-8, as JSON is ({byte}); it was read as latin-1: save it as UTF-8'
            )
            notes.append(Note(path, message))
        content = json.loads(text)
    except (OSError, ValueError) as error:
        wrong = without_content(path) or f'is not a readable JSON file: {error}'
        raise RunError(path, wrong) from error
    if not isinstance(content, dict):
        raise RunError(path, 'a sidecar is a JSON object, {"EchoTime": 0.004, ...}')
    return content, notes
