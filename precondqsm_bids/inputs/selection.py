"""Which files of a dataset are read: participants, sessions, filters, folders."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from precondqsm_bids.inputs.files import ENTITIES, File
from precondqsm_bids.inputs.run import InputError

QUERIES = ('megre', 'dseg', 'mask', 'tissue', 'r2', 'contrast', 'fieldmap', 'magnitude', 'r2star')
"""What a filter file may filter: echoes (``_MEGRE``, ``_T2starw``), labels (``_dseg``), regions of
interest (``_mask``), tissue classes (``_dseg``, ``_probseg``), R2 (``_R2map``, ``_T2map``),
further contrasts, and given fields with their magnitude and R2*."""


@dataclass(frozen=True)
class Selection:
    """Which files of a dataset, and of others that were derived from it, are read."""

    participant_label: Sequence[str] = ()
    session_label: Sequence[str] = ()
    """Labels without ``sub-`` and ``ses-``, matched exactly; empty means all."""
    filters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """As from :func:`read_filters`."""
    derivatives: Mapping[str, Path] = field(default_factory=dict)
    """Name to folder of the datasets where the images beside the echoes are looked for, before the
    dataset itself."""
    database_dir: Path | None = None
    """Where pybids keeps its index, written if it is not there."""
    ignore: Iterable[Path] = ()
    """Folders inside the dataset that are no part of it, such as the outputs."""

    def admits(self, file: File, query: str) -> bool:
        """Whether a file passes the filter of a query (:data:`QUERIES`)."""
        named = {ENTITIES.get(key, key): label for key, label in file.entities.items()}
        named |= {'suffix': file.suffix, 'extension': file.extension}
        wanted = self.filters.get(query, {})
        return all(_matches(named.get(entity), value) for entity, value in wanted.items())


def read_filters(path: Path) -> dict[str, dict[str, Any]]:
    """The filters of a JSON file: ``{"megre": {"acquisition": "highres", "run": null}}``.

    ``null`` asks that the entity is absent, ``"*"`` that it is there, a list for one of several.

    Raises InputError if the file cannot be read, or names a query or an entity that does not
    exist: a filter that is ignored in silence gives the wrong files.
    """
    try:
        filters = json.loads(path.read_text(encoding='utf-8-sig'))
    except OSError as error:
        raise InputError(f'cannot read the filter file {path}: {error.strerror}') from error
    except ValueError as error:
        raise InputError(f'the filter file {path} is not valid JSON: {error}') from error
    check_filters(filters, str(path))
    return filters


def check_filters(filters: Any, source: str) -> None:
    """Raise :class:`InputError` if ``filters`` are not what :func:`read_filters` describes."""
    if not isinstance(filters, dict) or not all(isinstance(v, dict) for v in filters.values()):
        raise InputError(f'{source}: filters look like {{"megre": {{"acquisition": "highres"}}}}')
    if unknown := [query for query in filters if query not in QUERIES]:
        known = ', '.join(QUERIES)
        raise InputError(f'{source}: unknown query "{unknown[0]}"; known: {known}')
    entities = {*ENTITIES.values(), 'suffix', 'extension'}
    items = [(query, *item) for query, wanted in filters.items() for item in wanted.items()]
    for query, entity, value in items:
        if entity not in entities:
            known = ', '.join(sorted(entities))
            raise InputError(f'{source}: unknown entity "{entity}" in "{query}"; known: {known}')
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(v, str | int | None) and not isinstance(v, bool) for v in values):
            raise InputError(
                f'{source}: "{query}", "{entity}": {value!r} should be a label, a list of labels, '
                'null (absent) or "*" (any)'
            )


def _matches(label: str | None, wanted: Any) -> bool:
    """Whether a label is what a filter wants: exactly, but run-01 is run 1.

    >>> [_matches('01', 1), _matches('01', '1'), _matches('010', 1), _matches(None, None)]
    [True, True, False, True]
    >>> [_matches('a', '*'), _matches(None, '*'), _matches('ab', 'a'), _matches('b', ['a', 'b'])]
    [True, False, False, True]
    """
    if isinstance(wanted, list):
        return any(_matches(label, item) for item in wanted)
    if wanted is None or label is None:
        return wanted is label
    if label.isdecimal() and str(wanted).isdecimal():
        return int(label) == int(wanted)
    return wanted == '*' or label == str(wanted)
