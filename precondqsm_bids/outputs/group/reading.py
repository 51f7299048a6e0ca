"""Which runs there should be, and what the derivatives of each say; one participant at a time."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from precondqsm_bids.outputs.files import natural
from precondqsm_bids.outputs.group.measures import (
    light_levels,
    scanner_of,
    take,
    take_coefficients,
)
from precondqsm_bids.outputs.maps import VALUES, WRITTEN
from precondqsm_bids.outputs.record import COLUMNS, warnings_of
from precondqsm_bids.outputs.sentences import done

STATUS = {
    'complete': 'maps, sidecars and tables are there',
    'incomplete': 'some of it is missing or cannot be read, or its last call failed and the map '
    'is of an earlier one; the note says what',
    'failed': 'no map, and the last call of the run left a crash file',
    'missing': 'the dataset has images, and the derivatives have nothing of them',
}
"""What may have become of a run."""

IDENTITY = {
    'participant_id': {'Description': 'Participant'},
    'session_id': {'Description': 'Session; n/a where the run has none'},
    'run': {'Description': 'Entities of the run: its files begin with them'},
}
"""First columns of every table of the group, and what they are."""

MESSAGE = 300
"""Letters of the message of a failure that are shown."""

_IMAGE = re.compile(r'_(MEGRE|T2starw)\.nii(\.gz)?$')
_OUTPUT = re.compile(
    r'^(?P<run>sub-[0-9a-zA-Z+]+(_[a-z]+-[0-9a-zA-Z+]+)*?)'
    rf'_({"|".join(row.ending for row in WRITTEN.values() if row.datatype == "anat")}'
    r'|desc-rois_values)\.(nii\.gz|json|tsv)$'
)


class RunValues(NamedTuple):
    """What the derivatives say about one run."""

    subject: str
    session: str
    name: str
    """Its entities without echo and part, or those that are known."""
    status: str
    note: str
    """What is missing or cannot be read."""
    quality: Mapping[str, Any] = {}
    """Column -> value; empty if the sidecar is of no use."""
    warnings: Sequence[str] = ()
    coefficients: Sequence[dict[str, Any]] = ()
    columns: Sequence[str] = ()
    """Header of the table of values per region."""
    regions: Sequence[Sequence[str]] = ()
    folder: Path | None = None
    """Of its maps."""
    methods: str = ''
    """Its methods text; empty where the sidecar does not tell it."""
    version: str = ''
    """Of the program that wrote it."""

    @property
    def usable(self) -> bool:
        """Whether anything of it goes into the tables."""
        return bool(self.quality or self.regions)


def find_participants(*roots: Path) -> list[str]:
    """Labels of the participants' folders of several datasets, each once, in natural order."""
    found = {
        entry.name.removeprefix('sub-')
        for root in roots
        for entry in _scan(root)
        if entry.name.startswith('sub-') and entry.is_dir()
    }
    return sorted(found, key=natural)


def find_tables(output_dir: Path, subject: str, sessions: Collection[str]) -> Iterator[Path]:
    """Tables of values per region of one participant (all sessions if none is named), by run."""
    runs = _derived_runs(output_dir, subject, sessions)
    for name, folder in sorted(runs.items(), key=lambda item: natural(item[0])):
        path = folder / f'{name}_{VALUES}'
        if path.is_file():
            yield path


def read_participant(
    bids_dir: Path, output_dir: Path, subject: str, sessions: Collection[str] = ()
) -> Iterator[RunValues]:
    """What the derivatives say about each run of a participant, sorted by session and run.

    A run is told from its outputs, from what the participant level keeps beside the figures, or
    from the images of the dataset; not from these in a session with outputs of other names, whose
    fields were given. No session stands for all.
    """
    try:
        yield from list(_read_runs(bids_dir, output_dir, subject, sessions))
    except OSError as error:  # a folder that cannot be listed
        wrong = f'{error.filename}: {error.strerror}'
        values = _without_outputs(subject, f'sub-{subject}', {}, '')
        yield values._replace(status='incomplete', note=wrong)


def _read_runs(
    bids_dir: Path, output_dir: Path, subject: str, sessions: Collection[str]
) -> Iterator[RunValues]:
    derived = _derived_runs(output_dir, subject, sessions)
    about, problem = _read_about(output_dir, subject)
    raw = _raw_runs(bids_dir, subject, sessions)
    given = {_entity(name, 'ses') for name in derived if name not in raw}
    names = {*derived, *(name for name in raw if _entity(name, 'ses') not in given)}
    names |= {name for name in about if name and _chosen(name, sessions)}
    if not names and (about.get('') or problem) and not sessions:  # no file could be used
        names = {f'sub-{subject}'}
    for name in sorted(names, key=lambda name: (natural(_entity(name, 'ses')), natural(name))):
        folder = derived.get(name)
        files = about.get('', {}) | about.get(name, {})
        crashes = {_relative(Path(path), output_dir): said for path, said in files.items()}
        if folder is None:
            yield _without_outputs(subject, name, crashes, problem)
        else:
            yield _read_run(folder, subject, name, crashes, problem)


def _without_outputs(
    subject: str, name: str, crashes: Mapping[str, str], problem: str
) -> RunValues:
    note = (
        'no outputs: not run, left out by a filter or skipped, or stopped before the first output'
    )
    if crashes:
        note = f'no outputs; {_told(crashes)}'
    return RunValues(
        subject=subject,
        session=_entity(name, 'ses'),
        name=name,
        status='failed' if crashes else 'missing',
        note='; '.join(filter(None, (note, problem))),
    )


def _told(crashes: Mapping[str, str]) -> str:
    """Messages of failures, each once, and their crash files.

    >>> _told({'a.txt': 'no space', 'b.txt': 'no space'})
    'no space; crash file: a.txt, b.txt'
    """
    messages = [said[:MESSAGE] for said in dict.fromkeys(crashes.values()) if said]
    return '; '.join([*messages, f'crash file: {", ".join(crashes)}'])


def _read_run(
    folder: Path, subject: str, name: str, crashes: Mapping[str, str], problem: str
) -> RunValues:
    """What the files of one run say; whatever is wrong with them goes into the note."""
    notes = [problem] if problem else []
    sidecar, missing = _read_json(folder / f'{name}_desc-precond_Chimap.json')
    parameters = sidecar.get('Parameters')
    if missing:
        notes.append(missing)
    elif not isinstance(parameters, Mapping) or not parameters:
        notes.append(f'{name}_desc-precond_Chimap.json has no Parameters')
    parameters = parameters if isinstance(parameters, Mapping) else {}
    path = folder / f'{name}_desc-precond_Chimap.nii.gz'
    has_map = path.is_file()
    if parameters and not has_map:
        notes.append(f'no {name}_desc-precond_Chimap.nii.gz')
    if parameters:
        resumed = 'take_map' in parameters  # by another program, which has no further arms
        asked = {} if resumed else sidecar.get('Settings')
        more, wrong_files = _of_further_arms(folder, name, asked)
        parameters, notes = {**more, **parameters}, [*notes, *wrong_files]
    quality = {}
    for measure in COLUMNS if parameters else ():
        quality[measure.name], wrong = take(parameters, measure)
        notes += [wrong] if wrong else []
    if parameters:
        quality['scanner'] = scanner_of(sidecar)
        quality |= light_levels(sidecar)
    coefficients, wrong = take_coefficients(parameters)
    notes += [wrong] if wrong else []
    columns, regions, wrong = _read_regions(folder, name)
    notes += [wrong] if wrong else []
    if crashes:
        left = 'what is there may be of an earlier one; ' if has_map else ''
        notes.append(f'its last call failed; {left}{_told(crashes)}')
    status = 'failed' if crashes and not has_map else 'incomplete' if notes else 'complete'
    return RunValues(
        subject=subject,
        session=_entity(name, 'ses'),
        name=name,
        status=status,
        note='; '.join(notes),
        quality=quality,
        warnings=[f'{stage}: {" ".join(text.split())}' for stage, text in warnings_of(parameters)],
        coefficients=coefficients,
        columns=columns,
        regions=regions,
        folder=folder,
        methods=_methods(sidecar, parameters) if has_map else '',
        version=str(sidecar.get('Toolbox', '')).rpartition(' ')[2],
    )


def _methods(sidecar: Mapping[str, Any], parameters: Mapping[str, Any]) -> str:
    """Methods text of a run by the sidecar of its map; empty for one that tells something else."""
    try:
        text = done({'record': parameters, 'settings': sidecar.get('Settings')})
    except (AttributeError, KeyError, TypeError, ValueError):  # values of another kind
        text = None
    return text or ''


def _of_further_arms(folder: Path, name: str, settings: Any) -> tuple[dict[str, Any], list[str]]:
    """Parameters of the arms beside the preconditioned one, and what is wrong with their files."""
    asked = settings if isinstance(settings, Mapping) else {}
    parameters: dict[str, Any] = {}
    notes = []
    for desc in ('conventional', 'conventionalrisk', 'consensus'):
        file = folder / f'{name}_desc-{desc}_Chimap.json'
        if not file.exists() and asked.get(desc) is not True:
            continue
        arm, missing = _read_json(file)
        found = arm.get('Parameters')
        if missing:
            notes.append(missing)
        elif isinstance(found, Mapping):
            parameters |= found
    return parameters, notes


def _read_regions(folder: Path, name: str) -> tuple[list[str], list[list[str]], str]:
    """Header and rows of the table of values, and what is wrong with it."""
    path = folder / f'{name}_{VALUES}'
    try:
        with path.open(newline='', encoding='utf-8') as stream:
            columns, *rows = csv.reader(stream, delimiter='\t', strict=True)
    except FileNotFoundError:
        # Its dictionary is written before it; a run without labels has neither.
        begun = path.with_suffix('.json').exists()
        return [], [], f'no {path.name}' if begun else ''
    except OSError as error:
        return [], [], f'{path.name}: {error.strerror}'
    except (ValueError, csv.Error) as error:  # an empty file cannot be unpacked
        what = 'it is empty' if path.stat().st_size == 0 else str(error)
        return [], [], f'{path.name} is no table: {what}'
    if wrong := check_header(columns):
        return [], [], f'{path.name} {wrong}'
    for number, row in enumerate(rows, 2):
        if len(row) != len(columns):
            cells = f'{len(row)} cells, the header has {len(columns)}'
            return [], [], f'{path.name}, line {number}: {cells}'
    return columns, rows, ''


def check_header(columns: Sequence[str]) -> str:
    """What is wrong with the header of a table of values, or an empty string.

    >>> check_header(['index', 'name', 'n_voxels'])
    ''
    >>> check_header(['index', 'index'])
    'lacks name or has a column twice: index, index'
    """
    if not {'index', 'name'} <= set(columns) or len(set(columns)) < len(columns):
        lacking = [name for name in ('index', 'name') if name not in columns]
        return f'lacks {", ".join(lacking) or "nothing"} or has a column twice: ' + ', '.join(
            columns[:10]
        )
    if taken := sorted({*IDENTITY, 'outliers'} & set(columns)):
        return f'has columns that the group level adds: {", ".join(taken)}'
    return ''


def _derived_runs(output_dir: Path, subject: str, sessions: Collection[str]) -> dict[str, Path]:
    """Runs that have any output, and the folder of their maps."""
    runs: dict[str, Path] = {}
    for folder in _folders(output_dir, subject, sessions, ('anat',)):
        for entry in _scan(folder):
            if found := _OUTPUT.match(entry.name):
                runs[found['run']] = folder
    return {name: folder for name, folder in runs.items() if _chosen(name, sessions)}


def _raw_runs(bids_dir: Path, subject: str, sessions: Collection[str]) -> set[str]:
    """Runs that the names of the dataset's images tell; the rules of discovery are stricter."""
    runs = set()
    for folder in _folders(bids_dir, subject, sessions, ('anat', 'swi')):
        for entry in _scan(folder):
            if found := _IMAGE.search(entry.name):
                stem = entry.name[: found.start()]
                several = '_echo-' in stem or '_part-' in stem
                if found[1] == 'MEGRE' or several:
                    runs.add(re.sub(r'_(echo|part)-[^_]*', '', stem))
    return {name for name in runs if _chosen(name, sessions)}


def _folders(
    root: Path, subject: str, sessions: Collection[str], datatypes: Sequence[str]
) -> Iterator[Path]:
    """Folders of a participant's images; those without a session where no session is asked for."""
    participant = root / f'sub-{subject}'
    parents = [] if sessions else [participant]
    parents += [
        Path(entry.path)
        for entry in _scan(participant)
        if entry.name.startswith('ses-')
        and (not sessions or entry.name.removeprefix('ses-') in sessions)
    ]
    for parent in parents:
        for datatype in datatypes:
            yield parent / datatype


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, by name; nothing where it is not there (any more)."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read_about(output_dir: Path, subject: str) -> tuple[dict[str, dict[str, str]], str]:
    """Crash files of each run that the participant level was at, their messages, and a problem.

    Those of no particular run have an empty name.
    """
    prefix = f'sub-{subject}'
    path = output_dir / prefix / 'figures' / f'{prefix}_desc-about_report.json'
    if not path.exists():
        return {}, ''
    content, problem = _read_json(path)
    runs = content.get('runs')
    if isinstance(runs, list):  # of an earlier version
        runs = {str(name): {} for name in runs}
    said = {'': content, **(runs if isinstance(runs, dict) else {})}
    return {
        name: {
            str(file): str(crashes[file]) if isinstance(crashes, dict) else '' for file in crashes
        }
        for name, of_run in said.items()
        if not name or f'{name}_'.startswith(f'{prefix}_')
        if isinstance(of_run, dict)
        and isinstance(crashes := of_run.get('crash_files', []), list | dict)
    }, problem


def _read_json(path: Path) -> tuple[dict[str, Any], str]:
    """Content of a JSON file, empty if it is of no use, and what is wrong with it."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}, f'no {path.name}'
    except OSError as error:
        return {}, f'{path.name}: {error.strerror}'
    except (ValueError, RecursionError) as error:
        return {}, f'{path.name} is not valid JSON ({error})'
    if not isinstance(content, dict):
        return {}, f'{path.name} is no JSON object'
    return content, ''


def _relative(path: Path, output_dir: Path) -> str:
    """As it can be found from the output folder, which may have been moved."""
    parts = path.parts
    for i, part in enumerate(parts):
        if part.startswith('sub-') and (output_dir / Path(*parts[i:])).exists():
            return Path(*parts[i:]).as_posix()
    return str(path)


def _chosen(name: str, sessions: Collection[str]) -> bool:
    return not sessions or _entity(name, 'ses') in sessions


def _entity(name: str, key: str) -> str:
    """Value of an entity in a run's name, or an empty string.

    >>> _entity('sub-01_ses-a_run-2', 'ses'), _entity('sub-01', 'ses')
    ('a', '')
    """
    found = re.search(rf'_{key}-([^_]+)', name)
    return found[1] if found else ''
