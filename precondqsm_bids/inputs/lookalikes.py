"""Images that look like echoes and are not named as such: why they are left out, and what they
should be called.

One reading of a name serves all: :func:`read_name` takes it apart as leniently as people write,
puts it together as BIDS has it, and lists what differs between the two.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from precondqsm_bids.inputs.files import (
    ENTITIES,
    EXTENSIONS,
    IMAGE_SUFFIXES,
    File,
    files_below,
)
from precondqsm_bids.inputs.run import Problem
from precondqsm_bids.inputs.selection import Selection

FOLDERS = ('anat', 'swi')
"""Where images are looked for: ``anat`` in BIDS, ``swi`` in its draft for susceptibility."""
OF_ECHOES = ('sub', 'ses', 'task', 'acq', 'ce', 'rec', 'run', 'echo', 'part', 'chunk')
"""Entities of gradient echoes in their order, and of the maps that are made of them: any other
would be missing in the names of the maps, and those of two runs would be the same."""
COMBINE = (
    'combine the channels first, magnitude and phase together, for example with mcpc3ds of '
    'mritools (MCPC-3D-S, beside ROMEO) or with ASPIRE, or export combined images'
)
"""The way out of uncombined coils."""
NOT_INDEXED = 'not in the index of --bids-database-dir, which is older: remove the index'
"""Why an image with the name of an echo is not read."""

_IMAGE = re.compile(r'\.(nii(\.\w+)?|img(\.gz)?|mg[hz]|nrrd|nhdr|mnc)$', re.IGNORECASE)
_ECHO_WORD = re.compile(r'(?:e|echo|te)(\d+)', re.IGNORECASE)
_PART_WORDS = {
    'mag': re.compile(r'(?:mag|magn|magnitude|mod|modulus|abs)(\d*)', re.IGNORECASE),
    'phase': re.compile(r'(?:ph|pha|phs|phase|phasemap|phasediff|angle)(\d*)', re.IGNORECASE),
    'real': re.compile(r'real(\d*)', re.IGNORECASE),
    'imag': re.compile(r'(?:imag|imaginary)(\d*)', re.IGNORECASE),
}
_WRITTEN = {
    'echo': 'echo-<number>',
    'part': 'part-mag, part-phase, part-real or part-imag',
}
_ECHOES_WORD = re.compile(r'(m|me-?)?gre|t2star|t2starw', re.IGNORECASE)
"""Suffixes that people give to echoes, in any case."""
_COIL = re.compile(r'(coil|channel|chan|ch|rx)-?\d*|\w*-?\w*(uncomb|percoil)\w*', re.IGNORECASE)
_DERIVED = re.compile(r'(seg|mask|map)$')
_FIELD_MAP = ('magnitude', 'fieldmap')
"""Suffixes of ``fmap`` that are a field and its magnitude, not echoes."""
_SERIES = ('bold', 'cbv', 'sbref', 'epi', 'dwi', 'asl')
"""Suffixes of images over time or directions: of the echoes one volume each could be taken."""


class Reading(NamedTuple):
    """Result of :func:`read_name`."""

    target: str
    """The path below the root that an echo of this name should have."""
    wrong: tuple[str, ...]
    """What keeps the image from being an echo; empty if nothing does."""
    echo_like: bool
    """Whether the name is like that of an echo."""
    coil: bool
    """Whether it is that of one channel of a coil."""


def look_alikes(
    root: Path,
    subject: str,
    indexed: Collection[tuple[str, ...]],
    select: Selection,
    with_echoes: bool,
) -> list[Problem]:
    """A participant's images that look like echoes and are not read, with the reason.

    ``indexed`` has the parts of the paths below the root of all images that the index knows as
    echoes by suffix. Channels of a coil are an error, unless the participant has other images
    ``with_echoes``: then they are left out as the others are.
    """
    root = root.absolute()
    groups: dict[tuple[str, bool], list[tuple[Path, str]]] = defaultdict(list)
    for path in _images_of(root, subject, [folder.absolute() for folder in select.ignore]):
        relative = path.relative_to(root)
        found = read_name(relative, subject)
        if not found.echo_like:
            continue
        sessions = {f'ses-{label}' for label in select.session_label}
        if sessions and sessions.isdisjoint(relative.parts):
            continue  # not asked for, and of no session that was
        if found.coil:
            groups[f'is one channel of a coil, by its name: {COMBINE}', True].append((path, ''))
        elif found.wrong:
            target = f'. As a gradient echo it should be {found.target}, and its sidecar alike'
            groups['; '.join(found.wrong), False].append((path, target))
        elif relative.parts not in indexed:
            groups[NOT_INDEXED, False].append((path, ''))
    return [
        Problem(
            subject,
            *first_of([path for path, _ in group], reason + group[0][1]),
            'error' if coil and not with_echoes else 'skipped',
        )
        for (reason, coil), group in groups.items()
    ]


def first_of(paths: Sequence[Path], message: str) -> tuple[str, str]:
    """The first of some files and a message on all of them."""
    more = f'{len(paths)} images, this is the first: ' if len(paths) > 1 else ''
    return str(paths[0]), more + message


def is_named(file: File) -> bool:
    """Whether an image is named and placed as an echo is, and is not one channel of a coil."""
    found = read_name(PurePath(*file.folder, file.path.name), file.owner)
    return not found.wrong and not found.coil


def _images_of(root: Path, subject: str, ignore: Collection[Path]) -> Iterator[Path]:
    """All files in a participant's folder that are images, NIfTI or not, sorted."""
    for path in sorted(files_below(root / f'sub-{subject}')):
        hidden = any(part.startswith('.') for part in path.relative_to(root).parts)
        if _IMAGE.search(path.name) and not hidden and not set(path.parents) & set(ignore):
            yield path


def read_name(path: PurePath, subject: str) -> Reading:
    """How an image in a participant's folder should be called as an echo, and what is wrong.

    ``path`` is relative to the root of the dataset.

    >>> found = read_name(PurePath('sub-01/anat/sub-01_acq-0.8mm_e2_ph.nii.gz'), '01')
    >>> found.target
    'sub-01/anat/sub-01_acq-0p8mm_echo-2_part-phase_MEGRE.nii.gz'
    >>> for words in found.wrong: print(words)
    label "0.8mm" of acq is not letters and digits
    the echo is not written echo-<number>
    the part is not written part-mag, part-phase, part-real or part-imag
    suffix is not _MEGRE or _T2starw
    >>> read_name(PurePath('sub-01/anat/sub-01_echo-01_MEGRE.nii'), '01').wrong
    ()
    """
    extension = _IMAGE.search(path.name)
    ending = extension[0] if extension else path.suffix
    name = _Name(path.name.removesuffix(ending))
    wrong = name.wrong
    if name.entities.get('sub') is None:
        wrong.insert(0, f'the name does not begin with sub-{subject}')
        name.entities['sub'] = subject
    if strange := [key for key in name.entities if key not in OF_ECHOES]:
        wrong.append(f'echoes have no {" and no ".join(strange)} in their names')
    if name.suffix not in IMAGE_SUFFIXES:
        said = f'suffix _{name.suffix}' if name.suffix else 'suffix'
        wrong.append(f'{said} is not _{" or _".join(IMAGE_SUFFIXES)}')
        if name.suffix in _SERIES:
            wrong.append('of a series one volume an echo would do')
    if path.parent.name not in FOLDERS:
        wrong.append(f'not in a folder {" or ".join(FOLDERS)}, where BIDS has such images')
    if ending not in EXTENSIONS:
        wrong.append(f'{ending} is not {" or ".join(EXTENSIONS)}: convert it')
    like = name.echo_words or bool({'echo', 'part'} & set(name.entities))
    if _DERIVED.search(name.suffix) or (path.parent.name, name.last) in (
        ('fmap', suffix) for suffix in _FIELD_MAP
    ):
        like = False
    return Reading(name.target(), tuple(wrong), like or name.coil, name.coil)


class _Name:
    """A name without its extension, taken apart."""

    def __init__(self, stem: str) -> None:
        self.entities: dict[str, str] = {}
        self.wrong: list[str] = []
        self.suffix = ''
        self.echo_words = False
        self.coil = False
        *first, self.last = stem.split('_')
        for word in first:
            _ = self._take_word(word) or self._take_entity(word) or self._take_stray(word)
        if not self._take_word(self.last) and not self._take_entity(self.last):
            if '-' in self.last:
                self._take_stray(self.last)
            else:
                self.suffix = self.last

    def _take_word(self, word: str) -> bool:
        """Take a word that means an echo, a part, echoes or a coil; False of any other."""
        if _COIL.fullmatch(word):
            self.coil = True
        elif _ECHOES_WORD.fullmatch(word):
            self.suffix, self.echo_words = word, True
        elif found := _ECHO_WORD.fullmatch(word):
            self._mean('echo', str(int(found[1])))
        else:
            parts = ((part, p.fullmatch(word)) for part, p in _PART_WORDS.items())
            part, number = next(((part, m[1]) for part, m in parts if m), ('', ''))
            if number:
                self._mean('echo', str(int(number)))
            if part:
                self._mean('part', part)
            return bool(part)
        return True

    def _take_entity(self, word: str) -> bool:
        """Take a pair of an entity of BIDS and a label; False of any other."""
        key, _, label = word.partition('-')
        if key not in ENTITIES or not label:
            return False
        if key in self.entities:
            self.wrong.append(f'{key} is there twice')
        if _plain(label) != label:
            self.wrong.append(f'label "{label}" of {key} is not letters and digits')
        self.entities[key] = self.entities.get(key, '') + _plain(label)
        return True

    def _take_stray(self, word: str) -> bool:
        """Take what follows an underscore inside a label: it belongs to the label before."""
        key = next(reversed(self.entities), 'acq')
        key = 'acq' if key in ('echo', 'part', 'run') or '-' in word else key
        if word:
            self.entities[key] = self.entities.get(key, '') + _plain(word)
        self.wrong.append(f'"{word}" is not an entity of BIDS (an underscore in a label?)')
        return True

    def _mean(self, key: str, label: str) -> None:
        self.entities[key] = label
        self.wrong.append(f'the {key} is not written {_WRITTEN[key]}')

    def target(self) -> str:
        """The path as BIDS has it, with what echoes do not have in ``acq``."""
        own = dict(self.entities)
        folded = ''.join(f'{key}{own.pop(key)}' for key in list(own) if key not in OF_ECHOES)
        if folded:
            own['acq'] = own.get('acq', '') + folded
        folders = [f'{key}-{own[key]}' for key in ('sub', 'ses') if key in own]
        # MEGRE has several echoes by its definition.
        suffix = 'MEGRE' if 'echo' in own or self.echo_words else 'T2starw'
        suffix = self.suffix if self.suffix in IMAGE_SUFFIXES else suffix
        pairs = [f'{key}-{own[key]}' for key in OF_ECHOES if key in own]
        return '/'.join([*folders, FOLDERS[0], '_'.join([*pairs, suffix]) + EXTENSIONS[1]])


def _plain(label: str) -> str:
    """A label of letters, digits and + alone; a point between digits becomes a p."""
    return re.sub(r'[^0-9a-zA-Z+]', '', re.sub(r'(?<=\d)\.(?=\d)', 'p', label))
