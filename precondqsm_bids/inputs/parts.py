"""Images of a run by part and echo: which belong together, and what contradicts their names."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from precondqsm_bids.inputs.files import File, Metadata, read_metadata
from precondqsm_bids.inputs.grid import load_grid
from precondqsm_bids.inputs.run import Note, RunError

WORDS = {
    'mag': ('magnitude', 'part-mag (or without part)'),
    'phase': ('phase', 'part-phase'),
    'real': ('real part', 'part-real'),
    'imag': ('imaginary part', 'part-imag'),
}
"""Labels of ``part`` in words, and how names have them."""
KINDS = {
    'mag': ('M', 'MAGNITUDE'),
    'phase': ('P', 'PHASE', 'PHASEMAP'),
    'real': ('R', 'REAL'),
    'imag': ('I', 'IMAGINARY'),
}
"""Words of ``ImageType`` for each label of ``part``."""
FILTERED = ('SWI', 'MNIP', 'MINIP', 'FILTERED', 'HIGHPASS', 'HOMODYNE')
"""Words of ``ImageType`` for a phase whose slow variations were removed."""
DIFFERENCE = ('PHASEDIFF', 'PHASEDIFFERENCE', 'DIFFERENCE')
"""Words of ``ImageType`` for the difference of two echoes' phases."""


@dataclass(frozen=True)
class Parts:
    """Magnitude and phase, or real and imaginary part, of all echoes."""

    names: tuple[str, str]
    """Labels of ``part``."""
    one: dict[str, File]
    other: dict[str, File]
    """Images of the two by label of ``echo``, which is empty if there is none."""
    metadata: dict[File, Metadata]

    @property
    def polar(self) -> bool:
        """Whether the parts are magnitude and phase."""
        return self.names == ('mag', 'phase')

    @property
    def first(self) -> File:
        """The first image by name."""
        return next(iter(self.one.values()))

    @cached_property
    def in_one_file(self) -> bool:
        """Whether each part is one file with an axis of echoes, and so without an echo entity."""
        return list(self.one) == [''] and len(load_grid(self.first.path).shape) == 4

    def own(self, file: File, key: str) -> Any:
        """A value of a file's metadata, unless its sidecar is one of the other part, too."""
        others = self.one if file in self.other.values() else self.other
        by = self.metadata[file].stated_by.get(key)
        if any(self.metadata[other].stated_by.get(key) == by for other in others.values()):
            return None
        return self.metadata[file].get(key)


def pair_parts(files: Sequence[File], source: Sequence[File]) -> tuple[Parts, list[Note]]:
    """Magnitude and phase by echo, or real and imaginary part, and what is to be reported.

    The files differ in echo and part only; the source has their sidecars, too.
    """
    files, notes = _one_suffix(files)
    by_part = _by_part(files)
    names, rest, read = ('mag', 'phase'), ('real', 'imag'), 'magnitude and phase'
    if any(by_part[name] for name in rest) and not all(by_part[name] for name in names):
        names, rest, read = rest, names, 'real and imaginary parts'
    message = f'left out: the run is read from its {read}'
    unused = [file for name in rest for file in by_part[name].values()]
    notes += [Note(file.path, message, 'skipped') for file in unused[:1]]
    for name, absent in (names, names[::-1]):
        if lacking := sorted(set(by_part[name]) - set(by_part[absent])):
            word, entity = WORDS[absent]
            raise RunError(
                by_part[name][lacking[0]].path,
                f'has no {word} beside it: add the image of the same name with {entity}, '
                'or leave the run out with --bids-filter-file',
            )
    one, other = (by_part[name] for name in names)
    metadata = {file: read_metadata(file, source) for file in (*one.values(), *other.values())}
    notes += dict.fromkeys(note for content in metadata.values() for note in content.notes)
    parts = Parts(names, one, other, metadata)
    _check_image_types(parts)
    return parts, notes


def _one_suffix(files: Sequence[File]) -> tuple[list[File], list[Note]]:
    """The files of one suffix: the maps of MEGRE and T2starw would have the same names."""
    suffix = files[0].suffix if len({file.suffix for file in files}) == 1 else 'MEGRE'
    message = (
        'left out: the _MEGRE images of the same entities would give maps of the same names; '
        'choose with --bids-filter-file {"megre": {"suffix": "T2starw"}}'
    )
    notes = [Note(file.path, message, 'skipped') for file in files if file.suffix != suffix]
    return [file for file in files if file.suffix == suffix], notes[:1]


def _by_part(files: Sequence[File]) -> dict[str, dict[str, File]]:
    """Label of ``part`` to echo to file."""
    by_part: dict[str, dict[str, File]] = {name: {} for name in WORDS}
    for file in files:
        part = file.entities.get('part', 'mag')
        if part not in by_part:
            raise RunError(
                file.path, f'part-{part} is not one of {", ".join(by_part)}: rename the file'
            )
        echo = file.numbered.get('echo', '')
        if not echo.isdecimal() and 'echo' in file.entities:
            raise RunError(file.path, f'echo-{echo} should be echo-1, echo-2, ...: rename it')
        if echo in by_part[part]:
            raise RunError(
                file.path,
                f'is the same echo and part as {by_part[part][echo].path}: keep one of them, '
                'or choose with --bids-filter-file',
            )
        by_part[part][echo] = file
    return by_part


def _check_image_types(parts: Parts) -> None:
    """Raise if an image is another part by its ``ImageType`` than by its name, or is filtered.

    Words of a sidecar that magnitude and phase share say nothing of either.
    """
    for part, files in zip(parts.names, (parts.one, parts.other), strict=True):
        for file in files.values():
            said = parts.own(file, 'ImageType')
            kinds = image_kinds(said)
            if kinds and part not in kinds:
                sidecar = parts.metadata[file].stated_by['ImageType']
                raise RunError(
                    file.path,
                    f'is part-{part} by its name and part-{" or part-".join(sorted(kinds))} by '
                    f'ImageType {said} of {sidecar.name}: rename the images (are they swapped?), '
                    'or correct the sidecar',
                )
            if part == 'phase' and (word := named(said, FILTERED)):
                raise RunError(
                    file.path,
                    f'is a filtered phase by {word} of ImageType {said}: what varies slowly was '
                    'removed, and with it most of the field; export the phase before the filter, '
                    'or correct the sidecar',
                )


def phase_units(parts: Parts, order: Sequence[str]) -> str | None:
    """The one unit of all phase images, None if no sidecar has it."""
    if not parts.polar:
        return 'rad'
    files = [parts.other[echo] for echo in order]
    stated = {f: unit for f in files if (unit := parts.metadata[f].get('Units')) is not None}
    first = next(iter(stated), files[0])
    for file, unit in stated.items():
        if unit not in ('rad', 'arbitrary'):
            raise RunError(
                file.path, f'Units of a phase are "rad" or "arbitrary", not {unit!r}: correct them'
            )
        if unit != stated[first]:
            raise RunError(
                file.path,
                f'Units {unit!r} differ from {stated[first]!r} of {first.path}: '
                'correct the sidecars',
            )
    return stated.get(first)


def image_words(image_type: Any) -> list[str]:
    """Words of an ``ImageType``, capital letters alone.

    >>> image_words(['ORIGINAL', 'Phase Map', 'P'])
    ['ORIGINAL', 'PHASEMAP', 'P']
    >>> image_words('ORIGINAL\\\\PRIMARY\\\\M')
    ['ORIGINAL', 'PRIMARY', 'M']
    """
    if isinstance(image_type, str):
        image_type = re.split(r'[\\/,]', image_type)
    if not isinstance(image_type, list):
        return []
    return [re.sub('[^A-Z]', '', str(word).upper()) for word in image_type]


def image_kinds(image_type: Any) -> set[str]:
    """Labels of ``part`` that an ``ImageType`` names; more than one decides nothing.

    >>> sorted(image_kinds(['ORIGINAL', 'PRIMARY', 'P', 'ND']))
    ['phase']
    >>> sorted(image_kinds(['ORIGINAL', 'PRIMARY', 'M_FFE', 'M', 'FFE', 'PHASE']))
    ['mag', 'phase']
    >>> image_kinds(['ORIGINAL', 'PRIMARY', 'OTHER'])
    set()
    """
    words = image_words(image_type)
    return {kind for kind, names in KINDS.items() if any(name in words for name in names)}


def named(image_type: Any, words: Collection[str]) -> str:
    """The first word of an ``ImageType`` that is among some others, or an empty string.

    >>> named(['DERIVED', 'PRIMARY', 'P', 'SWI'], FILTERED)
    'SWI'
    """
    return next((word for word in image_words(image_type) if word in words), '')
