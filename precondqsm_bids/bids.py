"""Which files of a dataset make a run, and what is wrong with them before anything is computed.

pybids indexes the dataset; names and sidecars are then read here. pybids reads names from the
whole path, so that a parent folder called ``sub-x`` would rename every participant, and it stops
at the first broken sidecar of the dataset, where only that sidecar's participant should stop.
"""

import csv
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

ENTITIES = {
    'sub': 'subject',
    'ses': 'session',
    'sample': 'sample',
    'task': 'task',
    'acq': 'acquisition',
    'ce': 'ceagent',
    'rec': 'reconstruction',
    'dir': 'direction',
    'run': 'run',
    'echo': 'echo',
    'flip': 'flip',
    'inv': 'inv',
    'mt': 'mt',
    'part': 'part',
    'chunk': 'chunk',
    'space': 'space',
    'res': 'resolution',
    'label': 'label',
    'seg': 'segmentation',
    'atlas': 'atlas',
    'desc': 'description',
}
"""Names of files spell entities short, filter files (as in pybids) spell them long."""

QUERIES = ('megre', 'dseg')
"""What a filter file may filter: echoes (``_MEGRE``, ``_T2starw``) and labels (``_dseg``)."""

IMAGE_SUFFIXES = ('MEGRE', 'T2starw')
EXTENSIONS = ('.nii', '.nii.gz')
OTHER_DATATYPES = 'beh|dwi|eeg|fmap|func|ieeg|meg|micr|motion|mrs|nirs|perf|pet'
GRID_TOLERANCE = 1e-3
"""Largest difference (mm) between elements of two affines that are called equal."""
FIELD_STRENGTHS = (0.1, 25.0)
"""T; scanners for people and animals lie within."""


class InputError(ValueError):
    """The request cannot be met by anybody's data: a usage error, told in one line."""


@dataclass(frozen=True)
class Run:
    """The files and numbers of one reconstruction.

    Attributes
    ----------
    entities : dict
        Short name to label, as in the file names, without sub, ses, echo and part.
    magnitude, phase : tuple of str
        Paths, one per echo, ordered by echo time.
    echo_times : tuple of float
        s
    field_strength : float
        T
    metadata : dict
        Merged sidecars of the first magnitude echo.
    phase_units : str or None
        ``Units`` of the phase images.
    labels : str or None
        Label image on the grid of the echoes.
    label_names : dict
        Index to name.
    """

    subject: str
    session: str | None
    entities: dict[str, str]
    magnitude: tuple[str, ...]
    phase: tuple[str, ...]
    echo_times: tuple[float, ...]
    field_strength: float
    metadata: dict[str, Any]
    labels: str | None = None
    label_names: dict[int, str] | None = None
    phase_units: str | None = None

    @property
    def label(self) -> str:
        """Name of the run for logs and nodes: ``sub-01_ses-a_run-1``."""
        pairs = {'sub': self.subject, 'ses': self.session, **self.entities}
        return '_'.join(f'{key}-{value}' for key, value in pairs.items() if value is not None)


@dataclass(frozen=True)
class Problem:
    """What is wrong with one participant's files, and the way out.

    A problem that is not ``fatal`` leaves the run in, without what the problem is about.
    """

    subject: str
    file: str
    message: str
    fatal: bool = True

    def __str__(self) -> str:
        return f'sub-{self.subject}: {self.file}: {self.message}'


@dataclass(frozen=True, eq=False)
class _File:
    """A file of the dataset and what its name says."""

    path: Path
    entities: dict[str, str]
    suffix: str
    extension: str
    folder: tuple[str, ...]
    """Folders between the root of the dataset and the file."""

    @property
    def group(self) -> tuple[tuple[str, str], ...]:
        """What the echoes and parts of a run have in common."""
        return tuple((k, v) for k, v in self.entities.items() if k not in ('echo', 'part'))


class _RunError(Exception):
    """One run's files cannot be used: the file and what is wrong."""

    def __init__(self, path: Any, message: str) -> None:
        super().__init__(message)
        self.path = str(path)


def participants(bids_dir: Path) -> list[str]:
    """Labels of the participants' folders, sorted.

    Parameters
    ----------
    bids_dir : Path
        Root of a dataset.
    """
    return sorted(path.name[4:] for path in bids_dir.glob('sub-*') if path.is_dir())


def check_description(bids_dir: Path) -> None:
    """Raise :class:`InputError` unless ``bids_dir`` is described as a BIDS dataset."""
    path = bids_dir / 'dataset_description.json'
    way_out = 'give the root of a BIDS dataset, or --skip-bids-validation'
    try:
        description = json.loads(path.read_text(encoding='utf-8-sig'))
    except OSError as error:
        raise InputError(f'cannot read {path} ({error.strerror}): {way_out}') from error
    except ValueError as error:
        raise InputError(f'{path} is not valid JSON ({error}): {way_out}') from error
    missing = [
        key
        for key in ('Name', 'BIDSVersion')
        if not isinstance(description, dict) or not isinstance(description.get(key), str)
    ]
    if missing:
        raise InputError(f'{path} lacks {" and ".join(missing)}: {way_out}')


def read_filters(path: Path) -> dict[str, dict[str, Any]]:
    """The filters of a JSON file: ``{"megre": {"acquisition": "highres", "run": null}}``.

    ``null`` asks that the entity is absent, ``"*"`` that it is there, a list for one of several.

    Raises
    ------
    InputError
        If the file cannot be read, or names a query or an entity that does not exist: a filter
        that is ignored in silence gives the wrong files.
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
    entities = {*ENTITIES.values(), 'suffix', 'extension'}
    for query, wanted in filters.items():
        if query not in QUERIES:
            raise InputError(f'{source}: unknown query "{query}"; known: {", ".join(QUERIES)}')
        for entity, value in wanted.items():
            if entity not in entities:
                known = ', '.join(sorted(entities))
                raise InputError(
                    f'{source}: unknown entity "{entity}" in "{query}"; known: {known}'
                )
            values = value if isinstance(value, list) else [value]
            if not all(
                isinstance(v, str | int | None) and not isinstance(v, bool) for v in values
            ):
                raise InputError(
                    f'{source}: "{query}", "{entity}": {value!r} should be a label, a list of '
                    'labels, null (absent) or "*" (any)'
                )


def find_runs(
    bids_dir: Path,
    *,
    participant_label: Sequence[str] = (),
    session_label: Sequence[str] = (),
    filters: Mapping[str, Mapping[str, Any]] | None = None,
    derivatives: Mapping[str, Path] | None = None,
    database_dir: Path | None = None,
    field_strength: float | None = None,
    reference: str = 'roi-mean',
    ignore: Iterable[Path] = (),
) -> tuple[list[Run], list[Problem]]:
    """The runs of a dataset that can be reconstructed, and what is wrong with the others.

    Parameters
    ----------
    bids_dir : Path
        Root of the dataset.
    participant_label, session_label : sequence of str
        Labels without ``sub-`` and ``ses-``, matched exactly; empty means all.
    filters : mapping, optional
        As from :func:`read_filters`.
    derivatives : mapping, optional
        Name to folder of the datasets where labels are looked for, before the dataset itself.
    database_dir : Path, optional
        Where pybids keeps its index, written if it is not there.
    field_strength : float, optional
        T, for runs whose metadata lack ``MagneticFieldStrength``.
    reference : str
        ``none``, ``roi-mean`` or the name of a label, which every run must then have.
    ignore : iterable of Path
        Folders inside the dataset that are no part of it, such as the outputs.

    Returns
    -------
    runs : list of Run
        Sorted by label.
    problems : list of Problem
        Sorted by participant. One participant's problem never stops another participant.

    Raises
    ------
    InputError
        If a participant or session is not in the dataset, or the index is another dataset's.
    """
    known = participants(bids_dir)
    if unknown := sorted(set(participant_label) - set(known)):
        raise InputError(
            f'no participant {", ".join(unknown)} in {bids_dir}; '
            f'its participants are: {", ".join(known) or "none"}'
        )
    subjects = sorted(set(participant_label)) or known
    files = _index(bids_dir, subjects, database_dir, ignore)
    filters = filters or {}
    images, problems = _images(files, subjects, filters.get('megre', {}))
    sessions = {file.entities['ses'] for file in images if 'ses' in file.entities}
    if unknown := sorted(set(session_label) - sessions):
        raise InputError(
            f'no session {", ".join(unknown)} with multi-echo images in {bids_dir}; '
            f'its sessions are: {", ".join(sorted(sessions)) or "none"}'
        )
    sidecars = [file for file in files if file.extension == '.json']
    labels = _label_files(files, subjects, derivatives or {}, filters.get('dseg', {}))
    groups: dict[tuple[tuple[str, str], ...], list[_File]] = defaultdict(list)
    for image in images:
        if not session_label or image.entities.get('ses') in session_label:
            groups[image.group].append(image)
    runs = []
    for key, members in sorted(groups.items()):
        subject = dict(key)['sub']
        try:
            members, notes = _one_suffix(subject, members)
            run = _make_run(members, sidecars, field_strength)
            run, label_notes = _with_labels(run, labels, reference)
            runs.append(run)
            problems += notes + label_notes
        except _RunError as error:
            problems.append(Problem(subject, error.path, str(error)))
    return runs, sorted(problems, key=lambda problem: (problem.subject, problem.file))


# -- the index ------------------------------------------------------------------------------


def _index(
    root: Path, subjects: Sequence[str], database_dir: Path | None, ignore: Iterable[Path]
) -> list[_File]:
    """Images, labels and sidecars of the dataset."""
    from bids.layout import BIDSLayout, BIDSLayoutIndexer

    root = root.absolute()
    inside = [path.absolute() for path in ignore if root in path.absolute().parents]
    skip = [r'^/(derivatives|code|sourcedata|stimuli|models)(/|$)', r'/\.']
    skip += [f'^/{re.escape(path.relative_to(root).as_posix())}(/|$)' for path in inside]
    if database_dir is None:
        # A kept index may serve other programs and participants, so only this one is partial.
        labels = '|'.join(re.escape(subject) for subject in subjects)
        skip += [
            rf'^/sub-(?!({labels})(/|$))',
            rf'^/sub-[^/]+/(ses-[^/]+/)?({OTHER_DATATYPES})(/|$)',
        ]
    indexer = BIDSLayoutIndexer(
        validate=False, index_metadata=False, ignore=[re.compile(pattern) for pattern in skip]
    )
    try:
        layout = BIDSLayout(root, validate=False, database_path=database_dir, indexer=indexer)
    except OSError as error:
        raise InputError(f'cannot index {root}: {error}') from error
    if Path(layout.root).resolve() != root.resolve():
        raise InputError(
            f'the index in {database_dir} is that of {layout.root}, not of {root}: '
            'give another --bids-database-dir, or remove it'
        )
    found = layout.get(
        suffix=[*IMAGE_SUFFIXES, 'dseg'],
        extension=[*EXTENSIONS, '.json', '.tsv'],
        return_type='filename',
    )
    return sorted(
        (file for path in found if (file := _parse(Path(path), Path(layout.root)))),
        key=lambda file: str(file.path),
    )


def _parse(path: Path, root: Path) -> _File | None:
    """A path as entities, suffix and extension; None if the name is not that of a BIDS file."""
    stem, dot, extension = path.name.partition('.')
    *pairs, suffix = stem.split('_')
    entities = dict(pair.split('-', 1) for pair in pairs if '-' in pair)
    if not dot or len(entities) != len(pairs):
        return None
    return _File(path, entities, suffix, dot + extension, path.relative_to(root).parts[:-1])


def _images(
    files: Sequence[_File], subjects: Sequence[str], wanted: Mapping[str, Any]
) -> tuple[list[_File], list[Problem]]:
    """The participants' multi-echo images; one in another participant's folder is a problem."""
    images, problems = [], []
    for file in files:
        if file.suffix not in IMAGE_SUFFIXES or file.extension not in EXTENSIONS:
            continue
        if file.folder[-1:] != ('anat',) or not _passes(file, wanted):
            continue
        if file.suffix == 'T2starw' and not {'echo', 'part'} & set(file.entities):
            continue  # a plain weighted image, no attempt at a field map
        subject = file.folder[0].removeprefix('sub-')
        if subject not in subjects:
            continue
        folders = [f'{key}-{file.entities[key]}' for key in ('sub', 'ses') if key in file.entities]
        if [*folders, 'anat'] != list(file.folder):
            problems.append(
                Problem(
                    subject,
                    str(file.path),
                    f'the name belongs into the folder {"/".join([*folders, "anat"])}: '
                    'rename or move the file',
                )
            )
        else:
            images.append(file)
    return images, problems


def _passes(file: _File, wanted: Mapping[str, Any]) -> bool:
    """Whether a file has the entities of a filter."""
    present: dict[str, str] = {ENTITIES.get(key, key): val for key, val in file.entities.items()}
    present |= {'suffix': file.suffix, 'extension': file.extension}
    return all(_matches(present.get(entity), value) for entity, value in wanted.items())


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


def _inherited(file: _File, candidates: Iterable[_File], suffix: str) -> list[_File]:
    """Those of the candidates that apply to a file by BIDS inheritance, the most general first."""
    applicable = [
        other
        for other in candidates
        if other.suffix == suffix
        and other.folder == file.folder[: len(other.folder)]
        and other.entities.items() <= file.entities.items()
    ]
    return sorted(applicable, key=lambda other: (len(other.folder), len(other.entities)))


def _metadata(file: _File, sidecars: Iterable[_File]) -> dict[str, Any]:
    """The merged sidecars of a file; the nearest word counts."""
    merged: dict[str, Any] = {}
    for sidecar in _inherited(file, sidecars, file.suffix):
        try:
            content = json.loads(sidecar.path.read_text(encoding='utf-8-sig'))
        except (OSError, ValueError) as error:
            raise _RunError(sidecar.path, f'is not a readable JSON file: {error}') from error
        if not isinstance(content, dict):
            raise _RunError(sidecar.path, 'a sidecar is a JSON object, {"EchoTime": 0.004, ...}')
        merged |= content
    return merged


# -- a run and its checks ----------------------------------------------------------------------


def _one_suffix(subject: str, files: Sequence[_File]) -> tuple[list[_File], list[Problem]]:
    """The files of one suffix: the maps of MEGRE and T2starw would have the same names."""
    first = files[0].suffix if len({file.suffix for file in files}) == 1 else 'MEGRE'
    others = [str(file.path) for file in files if file.suffix != first]
    notes = [
        Problem(
            subject,
            others[0],
            'left out: the _MEGRE images of the same entities would give maps of the same names; '
            'choose with --bids-filter-file {"megre": {"suffix": "T2starw"}}',
            fatal=False,
        )
        for _ in others[:1]
    ]
    return [file for file in files if file.suffix == first], notes


def _make_run(
    files: Sequence[_File], sidecars: Sequence[_File], field_strength: float | None
) -> Run:
    """A run of files that differ in echo and part only, checked."""
    magnitude, phase = _pairs(files)
    metadata = {
        path: _metadata(path, sidecars) for part in (magnitude, phase) for path in part.values()
    }
    times = {
        echo: _echo_time(magnitude[echo], phase[echo], metadata) for echo in sorted(magnitude)
    }
    for one, two in combinations(times, 2):
        if times[one] == times[two]:
            raise _RunError(
                magnitude[one].path,
                f'EchoTime {times[one]} s is that of {magnitude[two].path} too: '
                'correct the sidecars',
            )
    order = sorted(times, key=times.__getitem__)
    first = magnitude[order[0]]
    if len(order) < 2:
        raise _RunError(
            first.path, 'is the only echo; the fit of field and R2* needs two echoes or more'
        )
    _check_grids([part[echo].path for echo in order for part in (magnitude, phase)])
    entities = {k: v for k, v in first.entities.items() if k not in ('sub', 'ses', 'echo', 'part')}
    return Run(
        subject=first.entities['sub'],
        session=first.entities.get('ses'),
        entities=entities,
        magnitude=tuple(str(magnitude[echo].path) for echo in order),
        phase=tuple(str(phase[echo].path) for echo in order),
        echo_times=tuple(times[echo] for echo in order),
        field_strength=_field_strength(metadata, field_strength),
        metadata=metadata[first],
        phase_units=_phase_units([phase[echo] for echo in order], metadata),
    )


def _pairs(files: Sequence[_File]) -> tuple[dict[str, _File], dict[str, _File]]:
    """Magnitude and phase by echo; a magnitude may have no part entity."""
    parts: dict[str, dict[str, _File]] = {'mag': {}, 'phase': {}, 'real': {}, 'imag': {}}
    for file in files:
        part = file.entities.get('part', 'mag')
        if part not in parts:
            raise _RunError(file.path, f'part-{part} is not one of {", ".join(parts)}')
        echo = file.entities.get('echo', '')
        if echo in parts[part]:
            raise _RunError(
                file.path,
                f'is the same echo and part as {parts[part][echo].path}: keep one of them, '
                'or choose with --bids-filter-file',
            )
        parts[part][echo] = file
    magnitude, phase = parts['mag'], parts['phase']
    if not magnitude and not phase:
        raise _RunError(
            files[0].path, 'real and imaginary parts are not read: convert to magnitude and phase'
        )
    for there, absent, name in ((magnitude, phase, 'phase'), (phase, magnitude, 'magnitude')):
        if lacking := sorted(set(there) - set(absent)):
            file = there[lacking[0]]
            part = 'part-phase' if name == 'phase' else 'part-mag (or without part)'
            raise _RunError(
                file.path,
                f'has no {name} beside it: add the image of the same name with {part}, '
                'or leave the run out with --bids-filter-file',
            )
    return magnitude, phase


def _echo_time(
    magnitude: _File, phase: _File, metadata: Mapping[_File, Mapping[str, Any]]
) -> float:
    """The echo time of a pair, s."""
    values = {
        file: metadata[file]['EchoTime']
        for file in (magnitude, phase)
        if metadata[file].get('EchoTime') is not None
    }
    if not values:
        raise _RunError(
            magnitude.path, 'has no EchoTime: write it (in seconds) into the JSON sidecar'
        )
    for file, value in values.items():
        if not _is_positive(value):
            raise _RunError(file.path, f'EchoTime {value!r} is not a positive number of seconds')
        if value > 1:
            raise _RunError(
                file.path,
                f'EchoTime {value} looks like milliseconds; BIDS has seconds: '
                f'write {value / 1000:g}',
            )
    if len(set(values.values())) > 1:
        raise _RunError(
            magnitude.path,
            f'EchoTime {values[magnitude]} s differs from {values[phase]} s of {phase.path}: '
            'correct the sidecars',
        )
    return float(next(iter(values.values())))


def _phase_units(
    phase: Sequence[_File], metadata: Mapping[_File, Mapping[str, Any]]
) -> str | None:
    """The one unit of all phase images, None if no sidecar has it."""
    stated = {file: unit for file in phase if (unit := metadata[file].get('Units')) is not None}
    first = next(iter(stated), phase[0])
    for file, unit in stated.items():
        if unit not in ('rad', 'arbitrary'):
            raise _RunError(
                file.path, f'Units of a phase are "rad" or "arbitrary", not {unit!r}: correct them'
            )
        if unit != stated[first]:
            raise _RunError(
                file.path,
                f'Units {unit!r} differ from {stated[first]!r} of {first.path}: '
                'correct the sidecars',
            )
    return stated.get(first)


def _is_positive(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0


def _field_strength(metadata: Mapping[_File, Mapping[str, Any]], fallback: float | None) -> float:
    """The one field strength of all images, T."""
    low, high = FIELD_STRENGTHS
    seen: dict[float, _File] = {}
    for file, content in metadata.items():
        value = content.get('MagneticFieldStrength')
        if value is None:
            continue
        if not _is_positive(value) or not low <= value <= high:
            raise _RunError(
                file.path,
                f'MagneticFieldStrength {value!r} is not between {low} and {high} T: '
                'correct the sidecar',
            )
        seen.setdefault(float(value), file)
    if len(seen) > 1:
        (one, first), (two, second), *_ = seen.items()
        raise _RunError(
            first.path,
            f'MagneticFieldStrength {one} T differs from {two} T of {second.path}: '
            'correct the sidecars',
        )
    if not seen and fallback is None:
        raise _RunError(
            next(iter(metadata)).path,
            'has no MagneticFieldStrength: add it to a sidecar, or give --field-strength TESLA',
        )
    return next(iter(seen), fallback)  # type: ignore[return-value]


def _load_grid(path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine of an image, from its header.

    Raises
    ------
    _RunError
        If it is no NIfTI file, or an uncompressed one that is shorter than its header says. What
        is missing from a compressed file is only seen by the node that reads it all.
    """
    try:
        image: Any = nib.load(path)
        shape, affine = image.shape, np.asarray(image.affine, dtype=np.float64)
        if len(shape) == 4 and shape[3] == 1:
            shape = shape[:3]
        if path.suffix == '.nii':
            # The header in memory has lost the offset; the data's proxy has kept it.
            size = math.prod(image.shape) * image.header.get_data_dtype().itemsize
            needed = image.dataobj.offset + size
            if path.stat().st_size < needed:
                raise _RunError(
                    path,
                    f'is truncated: {path.stat().st_size} bytes of {needed}; copy the file again',
                )
    except FileNotFoundError as error:
        hint = ' (a link to nowhere: fetch the content)' if path.is_symlink() else ''
        raise _RunError(path, f'cannot be found{hint}') from error
    except (OSError, EOFError, ValueError, KeyError, nib.filebasedimages.ImageFileError) as error:
        raise _RunError(
            path, f'is not a readable NIfTI file ({error}); copy or convert it again'
        ) from error
    except Exception as error:  # zlib.error and nibabel's header errors have no common base
        raise _RunError(
            path, f'has a broken header ({error}); copy or convert it again'
        ) from error
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise _RunError(path, f'has no usable affine: {affine[:3].tolist()}; convert it again')
    return shape, affine


def _check_grids(paths: Sequence[Path]) -> None:
    """All images are 3D and on the grid of the first."""
    shape, affine = _load_grid(paths[0])
    if len(shape) != 3:
        raise _RunError(paths[0], f'has the shape {shape}; each echo is one 3D image')
    for path in paths[1:]:
        other_shape, other_affine = _load_grid(path)
        if other_shape != shape:
            raise _RunError(
                path,
                f'shape {other_shape} differs from {shape} of {paths[0]}; export or resample '
                'them on one grid',
            )
        if not np.allclose(other_affine, affine, rtol=0, atol=GRID_TOLERANCE):
            raise _RunError(
                path,
                f'affine {other_affine[:3].round(4).tolist()} differs from '
                f'{affine[:3].round(4).tolist()} of {paths[0]}; export or resample '
                'them on one grid',
            )


# -- labels -------------------------------------------------------------------------------------


def _label_files(
    files: Sequence[_File],
    subjects: Sequence[str],
    derivatives: Mapping[str, Path],
    wanted: Mapping[str, Any],
) -> list[tuple[_File, list[_File]]]:
    """Label images with the TSV files of their dataset; the derivatives first, in their order."""
    sources = [list(_walk_derivative(path, subjects)) for path in derivatives.values()]
    pairs = []
    for source in [*sources, list(files)]:
        tables = [file for file in source if file.suffix == 'dseg' and file.extension == '.tsv']
        pairs += [
            (file, tables)
            for file in source
            if file.suffix == 'dseg' and file.extension in EXTENSIONS and _passes(file, wanted)
        ]
    return pairs


def _walk_derivative(root: Path, subjects: Sequence[str]) -> Iterator[_File]:
    """The dseg files of a derivative dataset, which need not be perfect BIDS."""
    root = root.absolute()
    folders = [root / f'sub-{subject}' for subject in subjects]
    paths = [*root.glob('*dseg.tsv'), *(p for f in folders for p in f.rglob('*dseg.*'))]
    for path in sorted(paths):
        if file := _parse(path, root):
            yield file


def _with_labels(
    run: Run, candidates: Sequence[tuple[_File, list[_File]]], reference: str
) -> tuple[Run, list[Problem]]:
    """The run with the first label image that is its own and on its grid."""
    own = {'sub': run.subject, 'ses': run.session, **run.entities}
    notes: list[Problem] = []
    found: list[tuple[_File, dict[int, str]]] = []
    shape, affine = _load_grid(Path(run.magnitude[0]))

    def note(path: Path, message: str) -> None:
        notes.append(Problem(run.subject, str(path), message, fatal=False))

    for file, tables in candidates:
        # Entities that say which acquisition; space, desc, label and the like may be anything.
        said = {k: v for k, v in file.entities.items() if k in ('sub', 'ses', *_ACQUISITION)}
        if any(own.get(key) != value for key, value in said.items()):
            continue
        try:
            label_shape, label_affine = _load_grid(file.path)
            names = _label_names(file, tables)
        except _RunError as error:
            note(Path(error.path), f'labels not used: {error}')
            continue
        if label_shape != shape:
            note(
                file.path,
                f'labels not used: shape {label_shape} differs from {shape} of '
                f'{run.magnitude[0]}; resample them on its grid',
            )
        elif not np.allclose(label_affine, affine, rtol=0, atol=GRID_TOLERANCE):
            note(
                file.path,
                f'labels not used: affine differs by '
                f'{np.abs(label_affine - affine).max():.4g} mm from {run.magnitude[0]}; '
                'resample them on its grid',
            )
        else:
            found.append((file, names))
    for file, _ in found[1:]:
        note(
            file.path,
            f'labels not used: {found[0][0].path} comes first; choose with --bids-filter-file '
            '{"dseg": {...}}',
        )
    names = found[0][1] if found else {}
    if reference not in ('none', 'roi-mean') and reference not in names.values():
        there = ', '.join(names.values()) or 'none at all'
        raise _RunError(
            found[0][0].path if found else run.magnitude[0],
            f'--reference {reference} is not one of its labels ({there})'
            + ''.join(f'; {problem.file}: {problem.message}' for problem in notes),
        )
    if not found:
        return run, notes
    values = {**vars(run), 'labels': str(found[0][0].path), 'label_names': names}
    return Run(**values), notes


_ACQUISITION = ('task', 'acq', 'ce', 'rec', 'dir', 'run', 'flip', 'inv', 'mt', 'chunk', 'sample')


def _label_names(file: _File, tables: Iterable[_File]) -> dict[int, str]:
    """Index to name, from the nearest TSV that applies to a label image."""
    applicable = _inherited(file, tables, 'dseg')
    if not applicable:
        raise _RunError(
            file.path,
            'no TSV with the columns index and name beside it: add '
            f'{file.path.name.partition(".")[0]}.tsv',
        )
    path = applicable[-1].path
    names: dict[int, str] = {}
    try:
        with path.open(encoding='utf-8-sig', newline='') as stream:
            rows = list(csv.DictReader(stream, delimiter='\t'))
        for row in rows:
            index, name = int(row['index']), row['name'].strip()
            if index in names or name in names.values() or not name:
                raise _RunError(path, f'index {index}, name "{name}" is empty or there twice')
            names[index] = name
    except (OSError, ValueError, KeyError, AttributeError, TypeError, csv.Error) as error:
        raise _RunError(
            path, f'is no TSV with an integer column index and a column name ({error!r})'
        ) from error
    if not names:
        raise _RunError(path, 'has no rows')
    return names
