"""The tables of the group, written row by row as the derivatives are read.

Two passes keep the memory small. The first reads the derivatives of one run after the other,
writes their rows to a temporary file and keeps of every measure a list of floats. The second goes
over the temporary file and adds the column that names the outliers. Only then do the files take
their names.
"""

from __future__ import annotations

import csv
import heapq
import json
import re
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

from precondqsm_bids.outputs.group.measures import is_number
from precondqsm_bids.outputs.group.outliers import (
    LEAST_VALUES,
    LIMIT,
    LIMITS,
    Distribution,
    distribution,
)
from precondqsm_bids.outputs.group.reading import (
    IDENTITY,
    STATUS,
    RunValues,
    check_header,
    find_tables,
)
from precondqsm_bids.outputs.lights import LEVELS, LIGHTS
from precondqsm_bids.outputs.record import COEFFICIENTS, COLUMNS
from precondqsm_bids.outputs.tables import cell

LIMIT_WORDS = ', '.join(f'{limit:g} of {n} values' for n, limit in LIMITS.items())
_OUTLIERS = {
    'Description': (
        'Columns whose robust z over all rows (of the same name and term, where the row has '
        f'one) is beyond {LIMIT} ({LIMIT_WORDS}), the farthest first. Robust z: distance from '
        'the median over 1.4826 times the median absolute deviation, of the logarithm for some '
        f'measures; not tested with fewer than {LEAST_VALUES} values'
    )
}


def _described(meaning: str, unit: str = '') -> dict[str, Any]:
    return {'Description': meaning} | ({'Units': unit} if unit else {})


QUALITY = {
    **IDENTITY,
    'status': {'Description': 'What became of the run', 'Levels': STATUS},
    **{
        f'light_{row.name}': {
            'Description': f'Light of the report: {row.heading}',
            'Levels': LEVELS,
        }
        for row in LIGHTS
    },
    **{measure.name: _described(measure.meaning, measure.unit) for measure in COLUMNS},
    'scanner': _described('Manufacturer, model, serial number and station'),
    'sign_differs': _described(
        'yes: runs of this scanner have phase of either sign, of which one must be wrong unless '
        'the phase was exported in two ways; n/a otherwise'
    ),
    'equal_to': _described(
        'Other runs whose region, noise and map have the same numbers to six digits: one scan '
        'under two names'
    ),
    'n_warnings': _described('Number of warnings that the stages left'),
    'warnings': _described('Those warnings, each after the name of its stage'),
    'note': _described('What is missing of the run or cannot be read'),
    'outliers': _OUTLIERS,
}
"""Columns of ``group_quality.tsv`` and what they are."""

COEFFICIENT = {
    **IDENTITY,
    'term': _described('Term of the prior: a word of --prior'),
    'name': _described(
        'Tissue class, or the number of the cluster within its run, from 1 (1: the whole)'
    ),
    'units': {
        'Description': 'Unit of the coefficient and its error',
        'Levels': {
            'ppm': 'Susceptibility of the class relative to the mean over the region',
            '1': 'Factor on what theory gives, or on the given map',
        },
    },
    **{name: _described(*text) for name, (_, *text) in COEFFICIENTS.items()},
    'outliers': _OUTLIERS,
}
"""Columns of ``group_coefficients.tsv`` and what they are."""

COMPARED = ('precond_chi_mean', 'conventional_chi_mean', 'consensus_chi_mean', 'r2star_mean')
"""Columns of the values per region that are compared over the runs."""

ALIKE = ('roi_voxels', 'median_field_sd', 'roi_mean', 'roi_sd')
"""Columns that say together whether two runs are one."""

Key = tuple[str, ...]
"""What is compared: a column, for a region or coefficient after its name."""

LISTED = 500
"""Runs and outliers that the page names at most; the tables name all."""


class Outlier(NamedTuple):
    """A value that lies outside."""

    size: float
    """Size of its robust z; first, so that the largest sort last."""
    order: int
    """Minus its place, so that of two of one size the first is kept."""
    subject: str
    run: str
    key: Key
    value: float
    z: float


class Listed(NamedTuple):
    """A run that something must be said about."""

    subject: str
    run: str
    status: str
    note: str


class Shown(NamedTuple):
    """A run in the table of the page."""

    subject: str
    run: str
    status: str
    levels: Sequence[str | None]
    """Of its lights, in their order."""
    n_warnings: int
    folder: Path | None
    """Of its maps."""

    @property
    def attention(self) -> tuple[int, ...]:
        """How much it should be looked at: its lights from the worst on."""
        ranks = [list(LEVELS).index(level) if level else -1 for level in self.levels]
        return (self.status != 'complete', *sorted(ranks, reverse=True))


class Gathered(NamedTuple):
    """What a table's values look like over the runs."""

    distributions: dict[Key, Distribution]
    values: dict[Key, array[float]]
    outliers: list[Outlier]
    """The largest first, at most ``LISTED``."""
    counts: Counter[Key]
    """Outliers per measure, all of them."""
    by_run: Counter[str]
    """Outliers per run, all of them."""


class GroupResult(NamedTuple):
    """What the group level did."""

    participants: int
    runs: Counter[str]
    """Runs by status."""
    usable: int
    """Runs that the tables have values of."""
    listed: list[Listed]
    """Runs that are not complete or have a note, at most ``LISTED``."""
    to_list: int
    """The number of those runs."""
    outliers: int
    files: tuple[Path, ...]
    """What was written: nothing if no run is usable."""
    signs: Mapping[str, Counter[int]] = {}
    """Scanner -> runs by the sign of their stored phase."""
    shown: Sequence[Shown] = ()
    """Every run."""
    equal: Mapping[str, Sequence[str]] = {}
    """Run -> the runs that have the same numbers, itself among them."""
    methods: Mapping[str, str] = {}
    """Run -> its methods text."""
    versions: Collection[str] = ()
    """Of the program that wrote the maps."""

    @property
    def mixed(self) -> list[str]:
        """Scanners whose runs have phase of either sign, in words."""
        return [
            f'{scanner}: {signs[1]} runs with the phase sign +1 and {signs[-1]} with -1'
            for scanner, signs in sorted(self.signs.items())
            if signs[1] and signs[-1]
        ]


def region_columns(
    output_dir: Path, subjects: Sequence[str], sessions: Collection[str]
) -> tuple[list[str], dict[str, Any]]:
    """Columns of all tables of values together, and what the first sidecar says of each.

    A column that only some tables have comes after the one that it follows there.
    """
    columns = ['index', 'name']
    described: dict[str, Any] = {}
    for subject in subjects:
        try:
            tables = list(find_tables(output_dir, subject, sessions))
        except OSError:  # told when its runs are read
            continue
        for path in tables:
            try:
                with path.open(newline='', encoding='utf-8') as stream:
                    header = next(csv.reader(stream, delimiter='\t', strict=True), [])
            except (OSError, ValueError, csv.Error):
                continue
            if check_header(header) or set(header) <= set(columns):
                continue
            try:
                sidecar = json.loads(path.with_suffix('.json').read_bytes())
            except (OSError, ValueError):
                sidecar = {}
            place = 0
            for column in header:
                if column not in columns:
                    columns.insert(place, column)
                place = columns.index(column) + 1
                if isinstance(sidecar, dict) and isinstance(sidecar.get(column), dict):
                    described.setdefault(column, sidecar[column])
    return columns, described


class _Tally:
    """What is said of all runs together, run by run."""

    def __init__(self) -> None:
        self.subjects: set[str] = set()
        self.statuses: Counter[str] = Counter()
        self.usable = self.to_list = 0
        self.listed: list[Listed] = []
        self.signs: dict[str, Counter[int]] = {}
        self.shown: list[Shown] = []
        self.alike: dict[tuple[str, ...], list[str]] = {}
        self.methods: dict[str, str] = {}
        self.versions: set[str] = set()

    def add(self, run: RunValues) -> None:
        """Count a run, and keep what is listed of it."""
        self.subjects.add(run.subject)
        self.statuses[run.status] += 1
        self.usable += run.usable
        if (scanner := run.quality.get('scanner')) and run.quality.get('phase_sign'):
            self.signs.setdefault(cell(scanner), Counter())[run.quality['phase_sign']] += 1
        levels = [run.quality.get(f'light_{row.name}') for row in LIGHTS]
        self.shown.append(
            Shown(run.subject, run.name, run.status, levels, len(run.warnings), run.folder)
        )
        if run.methods:
            self.methods[run.name] = sys.intern(run.methods)
            self.versions.add(run.version)
        if same := _fingerprint(run):
            self.alike.setdefault(same, []).append(run.name)
        if run.note:
            self.to_list += 1
            if len(self.listed) < LISTED:
                self.listed.append(Listed(run.subject, run.name, run.status, run.note))

    def result(self) -> GroupResult:
        """All of it; no outlier is known yet."""
        several = [names for names in self.alike.values() if len(names) > 1]
        equal = {name: names for names in several for name in names}
        return GroupResult(
            len(self.subjects), self.statuses, self.usable, self.listed, self.to_list, 0, (),
            self.signs, self.shown, equal, self.methods, self.versions,
        )  # fmt: skip


def write_rows(
    runs: Iterable[RunValues], paths: Mapping[str, Path], headers: Mapping[str, Collection[str]]
) -> tuple[GroupResult, dict[str, dict[Key, array[float]]]]:
    """First pass: the rows without outliers, what happened, and the floats to compare.

    Runs are sorted, and each is forgotten once its rows are written; ``paths`` and ``headers``
    have the file and the columns of each table (``rois``, ``quality``, ``coefficients``).
    """
    values: dict[str, dict[Key, array[float]]] = {name: {} for name in paths}
    tally = _Tally()
    with ExitStack() as stack:
        writers = {}
        for name, path in paths.items():
            stream = stack.enter_context(_table(path))
            writers[name] = csv.writer(stream, delimiter='\t', lineterminator='\n')
            writers[name].writerow(headers[name])
        for run in runs:
            if unknown := set(run.columns) - set(headers['rois']):
                # A participant level wrote it after the headers were read.
                wrong = f'its table of values has new columns ({", ".join(sorted(unknown))})'
                run = run._replace(
                    status='incomplete', regions=(), note=f'{wrong}: run the group level again'
                )
            tally.add(run)
            for name, rows in _rows(run).items():
                for row in rows:
                    cells = {column: cell(row.get(column)) for column in headers[name]}
                    writers[name].writerow(cells.values())
                    for key, value in _compared(name, cells):
                        values[name].setdefault(key, array('d')).append(value)
    return tally.result(), values


def _fingerprint(run: RunValues) -> tuple[str, ...] | None:
    """Numbers that two scans do not have in common, as they stand in the table."""
    if not run.quality.get('roi_sd'):
        return None
    same = tuple(cell(run.quality.get(name)) for name in ALIKE)
    return None if cell(None) in same else same


def _rows(run: RunValues) -> dict[str, Iterator[dict[str, Any]]]:
    """Rows of each table that one run gives."""
    identity = {
        'participant_id': f'sub-{run.subject}',
        'session_id': f'ses-{run.session}' if run.session else None,
        'run': run.name,
    }
    quality = {**run.quality, 'status': run.status, 'note': run.note or None}
    if run.quality:
        quality['n_warnings'] = len(run.warnings)
        quality['warnings'] = '; '.join(run.warnings) or None
    return {
        'rois': (identity | dict(zip(run.columns, row, strict=True)) for row in run.regions),
        'quality': iter([identity | quality]),
        'coefficients': (identity | row for row in run.coefficients),
    }


def name_outliers(
    name: str,
    source: Path,
    target: Path,
    values: dict[Key, array[float]],
    summary: GroupResult | None = None,
) -> Gathered:
    """Second pass: the same rows, with the columns whose value lies outside in the last one.

    ``values`` are all values of each measure of the table; ``summary`` has the runs of each
    scanner by the sign of their phase, and those that are equal.
    """
    scales = {measure.name: measure.kind == 'log' for measure in COLUMNS}
    known = {key: distribution(v, scales.get(key[-1], False)) for key, v in values.items()}
    counts: Counter[Key] = Counter()
    by_run: Counter[str] = Counter()
    signs, equal = (summary.signs, summary.equal) if summary else ({}, {})
    largest: list[Outlier] = []
    order = 0
    with source.open(newline='', encoding='utf-8') as stream, _table(target) as out:
        reader = csv.DictReader(stream, delimiter='\t')
        writer = csv.DictWriter(
            out, list(reader.fieldnames or ()), delimiter='\t', lineterminator='\n'
        )
        writer.writeheader()
        for row in reader:
            found = []
            for key, value in _compared(name, row):
                z = known[key].z(value)
                if abs(z) <= known[key].limit:
                    continue
                order += 1
                counts[key] += 1
                by_run[row['run']] += 1
                outlier = Outlier(
                    abs(z), -order, row['participant_id'].removeprefix('sub-'), row['run'],
                    key, value, z,
                )  # fmt: skip
                found.append(outlier)
                push = heapq.heappush if len(largest) < LISTED else heapq.heappushpop
                push(largest, outlier)
            found.sort(reverse=True)
            if 'sign_differs' in row and len(signs.get(row['scanner'], ())) > 1:
                row['sign_differs'] = 'yes'
            if 'equal_to' in row and row['run'] in equal:
                others = [other for other in equal[row['run']] if other != row['run']]
                row['equal_to'] = cell(' '.join(others))
            writer.writerow(row | {'outliers': ', '.join(o.key[-1] for o in found) or 'n/a'})
    return Gathered(known, values, sorted(largest, reverse=True), counts, by_run)


def _table(path: Path) -> IO[str]:
    return path.open('w', newline='', encoding='utf-8')


_QUALITY_KEYS = [*(measure.name for measure in COLUMNS if measure.compared), 'n_warnings']
KEYS: dict[str, Callable[[Mapping[str, str]], Iterator[tuple[Key, str]]]] = {
    'rois': lambda row: (((row['name'], name), row.get(name, '')) for name in COMPARED),
    'quality': lambda row: (((name,), row[name]) for name in _QUALITY_KEYS),
    'coefficients': lambda row: iter(
        [((row['term'], row['name'], 'coefficient'), row['coefficient'])]
    ),
}
"""Table -> what is compared of a row: pairs of key and cell."""


def _compared(name: str, row: Mapping[str, str]) -> Iterator[tuple[Key, float]]:
    """What is compared of a row of a table: pairs of key and number."""
    for key, cell_text in KEYS[name](row):
        if (value := _number(cell_text)) is not None:
            yield key, value


def region_dictionary(columns: Sequence[str], described: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of ``group_rois.tsv`` and what they are, from the sidecars of the runs."""
    texts = {}
    for column in columns:
        text = dict(described.get(column, {'Description': 'Not described by the sidecars'}))
        # Which label surrounds the others is a matter of the run.
        text['Description'] = re.sub(
            r' in label .*, which surrounds the others$',
            ' in the label that surrounds the others',
            str(text.get('Description', '')),
        )
        texts[column] = text
    return IDENTITY | texts | {'outliers': _OUTLIERS}


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:  # n/a
        return None
    return value if is_number(value) else None
