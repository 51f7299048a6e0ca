"""Which files of a dataset make a run, and what is wrong with them before anything is computed.

pybids indexes the dataset; names and sidecars are then read here. pybids reads names from the
whole path, so that a parent folder called ``sub-x`` would rename every participant, and it stops
at the first broken sidecar of the dataset, where only that sidecar's participant should stop.
"""

import csv
import json
import math
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np

from precondqsm_bids.sidecars import (
    DIFFERENCE,
    FILTERED,
    SAME_TIME,
    STRENGTH_TOLERANCE,
    image_kinds,
    named,
    read_sidecar,
    strength_of,
)

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

QUERIES = ('megre', 'dseg', 'mask', 'tissue', 'r2', 'contrast')
"""What a filter file may filter: echoes (``_MEGRE``, ``_T2starw``), labels (``_dseg``), regions of
interest (``_mask``), tissue classes (``_dseg``, ``_probseg``), R2 (``_R2map``, ``_T2map``) and
further contrasts."""

IMAGE_SUFFIXES = ('MEGRE', 'T2starw')
R2_SUFFIXES = ('R2map', 'T2map')
R2_UNITS = {'R2map': ('1/s', 's^-1', 'Hz'), 'T2map': ('s',)}
EXTENSIONS = ('.nii', '.nii.gz')
FOLDERS = ('anat', 'swi')
"""Where images are looked for: ``anat`` in BIDS, ``swi`` in its draft for susceptibility."""
OTHER_DATATYPES = 'beh|dwi|eeg|fmap|func|ieeg|meg|micr|motion|mrs|nirs|perf|pet'
INDEX_FILE = 'layout_index.sqlite'
"""What pybids calls its index within the folder of --bids-database-dir."""
GRID_TOLERANCE = 1e-3
"""Largest difference (mm) between elements of two affines that are called equal."""
SAME_RATIO = 0.01
"""Relative difference between ratios of voxel sizes that are called equal."""
SAME_DIRECTION = 1.0
"""Degrees; directions of B0 that differ by less give the same maps."""
SCANNER_SPACES = ('orig', 'scanner', 'anat', 'T1w', 'T2w')
"""Labels of ``space`` that mean the scanner's coordinates of an image of the session."""
FIELD_STRENGTHS = (0.1, 25.0)
"""T; scanners for people and animals lie within."""
TOLD_DIFFERENCE = 0.005
"""Share by which field strengths differ from which it is told: all maps scale with it."""
VOXEL_SIZES = (0.005, 50.0)
"""mm; a voxel outside of it is a header in another unit."""
LEAST_MATRIX = 4
"""Voxels along each axis: a thinner slab has no voxel without a border on either side."""
ONE_ECHO = (
    'is the only echo (EchoTime {:g} s): the field is its unwrapped phase over the echo time, '
    "with the phase offset of the coil in it; R2*, R2', T2* and S0 are not known, and maps of "
    'them are not written'
)
"""What is told of a run of one echo."""
ONE_DIFFERENCE = (
    'is the magnitude of a difference of two phases, taken as one echo of EchoTime2 - EchoTime1 = '
    "{:g} s; a difference has no phase offset; R2*, R2', T2* and S0 are not known, and maps of "
    'them are not written'
)
"""What is told of a run whose phase is the difference of two echoes."""


class InputError(ValueError):
    """The request cannot be met by anybody's data: a usage error, told in one line."""


@dataclass(frozen=True)
class Tissue:
    """The tissue classes of a run.

    Attributes
    ----------
    files : tuple of str
        One label image, or one map of shares for each class.
    classes : tuple of str
        Names.
    label_classes : dict or None
        Label to class, of a label image.
    resampled : bool
        Whether the files are on another grid, in the same scanner coordinates.
    """

    files: tuple[str, ...]
    classes: tuple[str, ...]
    label_classes: dict[int, str] | None = None
    resampled: bool = False


@dataclass(frozen=True)
class Run:
    """The files and numbers of one reconstruction.

    Attributes
    ----------
    entities : dict
        Short name to label, as in the file names, without sub, ses, echo and part.
    magnitude, phase : tuple of str
        Paths, one per echo, ordered by echo time; or one path each if ``echoes_in_one_file``.
        Empty where the run has ``real`` and ``imaginary`` instead.
    echo_times : tuple of float
        s
    field_strength : float
        T
    field_strength_source : str
        ``ImagingFrequency``, ``MagneticFieldStrength`` or ``--field-strength``.
    metadata : dict
        Merged sidecars of the first magnitude echo.
    phase_difference : bool
        Whether the phase is the difference of two echoes, and the echo time that of their times.
    phase_units : str or None
        ``Units`` of the phase images.
    real, imaginary : tuple of str
        As magnitude and phase.
    echoes_in_one_file : bool
        Whether the files have the echoes along a fourth axis.
    matrix : tuple of int
        Voxels along each axis.
    b0_dir : tuple of float or None
        Direction of B0 along the voxel axes, where it is stated; else that of the affine holds.
    labels : str or None
        Label image on the grid of the echoes.
    label_names : dict
        Index to name.
    mask : str or None
        Region of interest on the grid of the echoes; None is the object itself.
    tissue : Tissue or None
        Tissue classes, where the method reads them.
    r2_map, r2_map_kind : str or None
        R2map (1/s) or T2map (s) on the grid of the echoes, and which it is.
    contrasts : tuple of str
        Further images on the grid of the echoes, where the method reads them.
    missing : tuple of str
        What the dataset does not say, and what stands in for it.
    """

    subject: str
    session: str | None
    entities: dict[str, str]
    magnitude: tuple[str, ...]
    phase: tuple[str, ...]
    echo_times: tuple[float, ...]
    field_strength: float
    metadata: dict[str, Any]
    real: tuple[str, ...] = ()
    imaginary: tuple[str, ...] = ()
    echoes_in_one_file: bool = False
    matrix: tuple[int, int, int] = (0, 0, 0)
    b0_dir: tuple[float, float, float] | None = None
    labels: str | None = None
    label_names: dict[int, str] | None = None
    phase_units: str | None = None
    mask: str | None = None
    tissue: Tissue | None = None
    r2_map: str | None = None
    r2_map_kind: str | None = None
    contrasts: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    field_strength_source: str = 'MagneticFieldStrength'
    phase_difference: bool = False

    @property
    def sources(self) -> tuple[str, ...]:
        """Every image of the run, that of the first echo first."""
        return (*self.magnitude, *self.phase, *self.real, *self.imaginary)

    @property
    def one_echo(self) -> bool:
        """Whether there is one echo, so that R2*, S0 and the phase offset are not known."""
        return len(self.echo_times) == 1

    @property
    def series_gb(self) -> float:
        """Size of all magnitude and phase images as float32, GiB."""
        return math.prod(self.matrix) * 4 * 2 * len(self.echo_times) / 1024**3

    @property
    def as_needed(self) -> bool:
        """Whether the files are what the stages read: 3D magnitude and phase with an affine."""
        return not (self.real or self.echoes_in_one_file or self.b0_dir)

    @property
    def label(self) -> str:
        """Name of the run for logs and nodes: ``sub-01_ses-a_run-1``."""
        pairs = {'sub': self.subject, 'ses': self.session, **self.entities}
        return '_'.join(f'{key}-{value}' for key, value in pairs.items() if value is not None)


@dataclass(frozen=True)
class Problem:
    """What is wrong with one participant's files, and the way out.

    A problem that is not ``fatal`` leaves the run in, without what the problem is about. What is
    ``skipped`` was left out on purpose.
    """

    subject: str
    file: str
    message: str
    fatal: bool = True
    skipped: bool = False

    @property
    def kind(self) -> str:
        """``error``, ``warning`` or ``skipped``."""
        return 'error' if self.fatal else 'skipped' if self.skipped else 'warning'

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
    b0_dir: Sequence[float] | None = None,
    mask: str = 'auto',
    reference: str = 'roi-mean',
    tissue: bool = False,
    r2_map: bool = False,
    r2star_priors: Sequence[str] = (),
    prior_maps: Sequence[Path] = (),
    contrasts: Sequence[str] = (),
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
        Name to folder of the datasets where labels are looked for, before the dataset itself,
        and masks with ``mask='derivatives'``.
    database_dir : Path, optional
        Where pybids keeps its index, written if it is not there.
    field_strength : float, optional
        T, for runs whose metadata lack ``MagneticFieldStrength`` or have an absurd one.
    b0_dir : sequence of float, optional
        Direction of B0 along the voxel axes; comes before that of the affine.
    mask : str
        ``auto`` (the object), ``derivatives`` or a file: the region of interest.
    reference : str
        ``none``, ``roi-mean`` or the name of a label, which every run must then have.
    tissue, r2_map : bool
        Whether every run must have tissue classes, or a map of R2 or T2 if it has R2*.
    r2star_priors : sequence of str
        Priors that are made of R2*, so that every run must have two echoes or more.
    prior_maps : sequence of Path
        Susceptibility maps, which must be on the grid of every run.
    contrasts : sequence of str
        Suffixes of further images that every run must have on its grid.
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
    files = _index(bids_dir, subjects, database_dir, ignore, contrasts)
    filters = filters or {}
    images, problems = _images(files, subjects, filters.get('megre', {}), session_label, bids_dir)
    sessions = {
        file.entities['ses'] for file in files if _is_image(file) and 'ses' in file.entities
    }
    if unknown := sorted(set(session_label) - sessions):
        raise InputError(
            f'no session {", ".join(unknown)} with multi-echo images in {bids_dir}; '
            f'its sessions are: {", ".join(sorted(sessions)) or "none"}'
        )
    sidecars = [file for file in files if file.extension == '.json']
    sources = [
        list(_walk_derivative(path, subjects, contrasts)) for path in (derivatives or {}).values()
    ]
    labels = _label_files([*sources, files], filters.get('dseg', {}))
    segmentations = _segmentations([*sources, files], filters.get('tissue', {}))
    relaxation = [
        (file, [other for other in source if other.extension == '.json'])
        for source in [*sources, files]
        for file in source
        if file.suffix in R2_SUFFIXES
        and file.extension in EXTENSIONS
        and _passes(file, filters.get('r2', {}))
    ]
    further = [
        file
        for source in [*sources, files]
        for file in source
        if file.suffix in contrasts
        and file.extension in EXTENSIONS
        and _passes(file, filters.get('contrast', {}))
    ]
    masks = [
        file
        for source in sources
        for file in source
        if file.suffix == 'mask' and _passes(file, filters.get('mask', {}))
    ]
    groups: dict[tuple[tuple[str, str], ...], list[_File]] = defaultdict(list)
    for image in images:
        groups[image.group].append(image)
    runs = []
    for key, members in sorted(groups.items()):
        subject = dict(key)['sub']
        try:
            members, suffix_notes = _one_suffix(subject, members)
            run, notes = _make_run(members, sidecars, field_strength, b0_dir)
            if run.one_echo:
                _check_one_echo(run, r2star_priors)
            run, mask_notes = _with_mask(run, masks, mask)
            run, label_notes = _with_labels(run, labels, reference)
            more_notes: list[Problem] = []
            if tissue:
                run, told = _with_tissue(run, segmentations)
                more_notes += told
            if r2_map and not run.one_echo:
                run, told = _with_r2_map(run, relaxation)
                more_notes += told
            if contrasts:
                run, told = _with_contrasts(run, further, contrasts)
                more_notes += told
            _check_prior_maps(run, prior_maps)
            runs.append(run)
            problems += suffix_notes + notes + mask_notes + label_notes + more_notes
        except _RunError as error:
            problems.append(Problem(subject, error.path, str(error)))
    return runs, sorted(problems, key=lambda problem: (problem.subject, problem.file))


# -- the index ------------------------------------------------------------------------------


def _index(
    root: Path,
    subjects: Sequence[str],
    database_dir: Path | None,
    ignore: Iterable[Path],
    contrasts: Sequence[str] = (),
) -> list[_File]:
    """Images, labels, further contrasts and sidecars of the dataset."""
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
        if database_dir is not None and not (database_dir / INDEX_FILE).exists():
            _write_index(root, database_dir, indexer)
        layout = BIDSLayout(root, validate=False, database_path=database_dir, indexer=indexer)
    except OSError as error:
        raise InputError(f'cannot index {root}: {error}') from error
    if Path(layout.root).resolve() != root.resolve():
        raise InputError(
            f'the index in {database_dir} is that of {layout.root}, not of {root}: '
            'give another --bids-database-dir, or remove it'
        )
    found = layout.get(
        suffix=[*IMAGE_SUFFIXES, *R2_SUFFIXES, 'dseg', 'probseg', *contrasts],
        extension=[*EXTENSIONS, '.json', '.tsv'],
        return_type='filename',
    )
    return sorted(
        (file for path in found if (file := _parse(Path(path), Path(layout.root)))),
        key=lambda file: str(file.path),
    )


def _write_index(root: Path, database_dir: Path, indexer: Any) -> None:
    """Index the dataset whole or not at all: a part of an index would be trusted ever after."""
    from bids.layout import BIDSLayout

    database_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='part-', dir=database_dir) as part:
        BIDSLayout(root, validate=False, database_path=part, indexer=indexer).session.close()
        # The index itself comes last; two processes that make it at once make the same one.
        for path in sorted(Path(part).iterdir(), key=lambda path: path.name == INDEX_FILE):
            os.replace(path, database_dir / path.name)


def _parse(path: Path, root: Path) -> _File | None:
    """A path as entities, suffix and extension; None if the name is not that of a BIDS file."""
    stem, dot, extension = path.name.partition('.')
    *pairs, suffix = stem.split('_')
    entities = dict(pair.split('-', 1) for pair in pairs if '-' in pair)
    if not dot or len(entities) != len(pairs):
        return None
    return _File(path, entities, suffix, dot + extension, path.relative_to(root).parts[:-1])


def _is_image(file: _File) -> bool:
    """Whether a file may be an echo of a run."""
    return file.suffix in IMAGE_SUFFIXES and file.extension in EXTENSIONS


def _images(
    files: Sequence[_File],
    subjects: Sequence[str],
    wanted: Mapping[str, Any],
    sessions: Sequence[str],
    root: Path,
) -> tuple[list[_File], list[Problem]]:
    """The participants' multi-echo images, and what is left out and why.

    An image in another participant's folder is a problem.
    """
    images, problems = [], []
    skipped: dict[tuple[str, str], list[_File]] = defaultdict(list)
    # A single echo needs no echo entity: its magnitude may be called as a plain image is.
    with_phase = {
        (file.folder, file.group)
        for file in filter(_is_image, files)
        if file.entities.get('part') == 'phase' and 'echo' not in file.entities
    }
    for file in filter(_is_image, files):
        subject = file.folder[0].removeprefix('sub-') if file.folder else ''
        if subject not in subjects:
            continue
        folders = [f'{key}-{file.entities[key]}' for key in ('sub', 'ses') if key in file.entities]
        plain = file.suffix == 'T2starw' and not {'echo', 'part'} & set(file.entities)
        if plain and (file.folder, file.group) not in with_phase:
            reason = 'plain T2*-weighted images, without echo and part, hold no field'
        elif sessions and file.entities.get('ses') not in sessions:
            reason = 'not among the sessions of --session-label'
        elif not _passes(file, wanted):
            reason = 'left out by --bids-filter-file'
        elif file.folder[-1] not in FOLDERS:
            reason = f'not in a folder {" or ".join(FOLDERS)}, where BIDS has such images'
        elif [*folders, file.folder[-1]] != list(file.folder):
            problems.append(
                Problem(
                    subject,
                    str(file.path),
                    'the name belongs into the folder '
                    f'{"/".join([*folders, file.folder[-1]])}: rename or move the file',
                )
            )
            continue
        else:
            images.append(file)
            continue
        skipped[subject, reason].append(file)
    told = {file.folder[0] for file in images} | {f'sub-{who}' for who, _ in skipped}
    told |= {f'sub-{problem.subject}' for problem in problems}
    for (subject, reason), group in skipped.items():
        more = f'{len(group)} images, this is the first: ' if len(group) > 1 else ''
        problems.append(
            Problem(subject, str(group[0].path), more + reason, fatal=False, skipped=True)
        )
    problems += [
        Problem(
            subject,
            str(root / f'sub-{subject}'),
            'no multi-echo images',
            fatal=False,
            skipped=True,
        )
        for subject in subjects
        if f'sub-{subject}' not in told
    ]
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


def _with_echo(entities: dict[str, str]) -> dict[str, str]:
    """Entities whose echo is a number without leading zeros: echo-02 is echo 2.

    >>> _with_echo({'sub': '01', 'echo': '02'})
    {'sub': '01', 'echo': '2'}
    """
    echo = entities.get('echo', '')
    return {**entities, 'echo': str(int(echo))} if echo.isdecimal() else entities


def _inherited(file: _File, candidates: Iterable[_File], suffix: str) -> list[_File]:
    """Those of the candidates that apply to a file by BIDS inheritance, the most general first."""
    applicable = [
        other
        for other in candidates
        if other.suffix == suffix
        and other.folder == file.folder[: len(other.folder)]
        and _with_echo(other.entities).items() <= _with_echo(file.entities).items()
    ]
    return sorted(applicable, key=lambda other: (len(other.folder), len(other.entities)))


class _Metadata(dict[str, Any]):
    """The merged sidecars of a file."""

    def __init__(self) -> None:
        super().__init__()
        self.stated_by: dict[str, Path] = {}
        """The sidecar that each value is from."""
        self.notes: dict[Path, str] = {}
        """What is to be told of the sidecars."""


def _metadata(file: _File, sidecars: Iterable[_File]) -> _Metadata:
    """The merged sidecars of a file; the most specific sidecar takes precedence."""
    merged = _Metadata()
    for sidecar in _inherited(file, sidecars, file.suffix):
        try:
            content, note = read_sidecar(sidecar.path)
        except OSError as error:
            raise _RunError(sidecar.path, f'is not a readable JSON file: {error}') from error
        except ValueError as error:
            raise _RunError(sidecar.path, str(error)) from error
        if note:
            merged.notes[sidecar.path] = note
        merged.update(content)
        merged.stated_by.update(dict.fromkeys(content, sidecar.path))
    return merged


def _own(
    file: _File, others: Iterable[_File], metadata: Mapping[_File, _Metadata], key: str
) -> Any:
    """A value of a file's metadata, unless a sidecar states it that other images share."""
    by = metadata[file].stated_by.get(key)
    if any(metadata[other].stated_by.get(key) == by for other in others):
        return None
    return metadata[file].get(key)


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
            skipped=True,
        )
        for _ in others[:1]
    ]
    return [file for file in files if file.suffix == first], notes


def _make_run(
    files: Sequence[_File],
    sidecars: Sequence[_File],
    field_strength: float | None,
    b0_dir: Sequence[float] | None,
) -> tuple[Run, list[Problem]]:
    """A run of files that differ in echo and part only, checked, and what is to be told."""
    (one, other), kind, left_out = _pairs(files)
    metadata = {path: _metadata(path, sidecars) for part in (one, other) for path in part.values()}
    first = next(iter(one.values()))
    notes = [
        Problem(first.entities['sub'], str(file.path), message, fatal=False, skipped=True)
        for file, message in left_out
    ]
    notes += [
        Problem(first.entities['sub'], str(path), message, fatal=False)
        for path, message in {
            path: message
            for content in metadata.values()
            for path, message in content.notes.items()
        }.items()
    ]
    _check_image_types(one, other, kind, metadata)
    in_one_file = len(one) == 1 and len(_load_grid(first.path).shape) == 4
    difference = _difference(one, other, metadata, in_one_file) if kind == 'polar' else None
    if in_one_file:
        if 'echo' in first.entities:
            raise _RunError(
                first.path,
                f'has the shape {_load_grid(first.path).shape} and an echo entity; an echo is one '
                '3D image, and a 4D file with an axis of echoes has no echo entity',
            )
        order = list(one)
        times = _listed_echo_times(first, next(iter(other.values())), metadata)
    else:
        by_echo = {
            echo: difference or _echo_time(one[echo], other[echo], metadata)
            for echo in sorted(one)
        }
        for this, that in combinations(by_echo, 2):
            if abs(by_echo[this] - by_echo[that]) <= SAME_TIME:
                raise _RunError(
                    one[this].path,
                    f'EchoTime {by_echo[this]} s is that of {one[that].path} too: '
                    'correct the sidecars',
                )
        order = sorted(by_echo, key=by_echo.__getitem__)
        times = [by_echo[echo] for echo in order]
        first = one[order[0]]
    paths = [part[echo].path for echo in order for part in (one, other)]
    grid, grid_notes = _check_grids(paths, len(times) if in_one_file else None, b0_dir)
    strength, source, strength_notes = _field_strength(metadata, field_strength)
    told = ONE_DIFFERENCE if difference else ONE_ECHO
    one_echo_notes = [(first.path, told.format(times[0]))] if len(times) == 1 else []
    notes += [
        Problem(first.entities['sub'], str(path), message, fatal=False)
        for path, message in (*one_echo_notes, *grid_notes, *strength_notes)
    ]
    missing = ['R2* (one echo)'] if len(times) == 1 else []
    if source == '--field-strength' and all(
        content.get('MagneticFieldStrength') is None for content in metadata.values()
    ):
        missing.append('MagneticFieldStrength (--field-strength given)')
    if not grid.oriented:
        missing.append('affine (--b0-dir given)')
    pair = tuple(tuple(str(part[echo].path) for echo in order) for part in (one, other))
    run = Run(
        subject=first.entities['sub'],
        session=first.entities.get('ses'),
        entities={
            k: v for k, v in first.entities.items() if k not in ('sub', 'ses', 'echo', 'part')
        },
        magnitude=pair[0] if kind == 'polar' else (),
        phase=pair[1] if kind == 'polar' else (),
        real=pair[0] if kind == 'cartesian' else (),
        imaginary=pair[1] if kind == 'cartesian' else (),
        echo_times=tuple(times),
        echoes_in_one_file=in_one_file,
        field_strength=strength,
        field_strength_source=source,
        phase_difference=difference is not None,
        metadata=dict(metadata[first]),
        phase_units=(
            _phase_units([other[echo] for echo in order], metadata) if kind == 'polar' else 'rad'
        ),
        matrix=(grid.shape[0], grid.shape[1], grid.shape[2]),
        b0_dir=(float(b0_dir[0]), float(b0_dir[1]), float(b0_dir[2])) if b0_dir else None,
        missing=tuple(missing),
    )
    return run, notes


def _check_one_echo(run: Run, r2star_priors: Sequence[str]) -> None:
    """Raise if the prior is made of R2*, which a run of one echo does not have."""
    if r2star_priors:
        raise _RunError(
            run.sources[0],
            f'is the only echo (EchoTime {run.echo_times[0]:g} s), and --prior '
            f'{" ".join(r2star_priors)} is made of R2*, which takes two echoes or more: add the '
            'others, give --prior contrast, tissue, map:FILE or shape, or leave the run out with '
            '--bids-filter-file',
        )


_Parts = dict[str, _File]


def _pairs(
    files: Sequence[_File],
) -> tuple[tuple[_Parts, _Parts], str, list[tuple[_File, str]]]:
    """Magnitude and phase by echo, or real and imaginary part; a magnitude may have no part.

    Returns
    -------
    pair : tuple of two dicts
        Echo to file.
    kind : str
        ``polar`` or ``cartesian``.
    left_out : list of (file, reason)
        Parts that are not needed.
    """
    parts: dict[str, _Parts] = {'mag': {}, 'phase': {}, 'real': {}, 'imag': {}}
    for file in files:
        part = file.entities.get('part', 'mag')
        if part not in parts:
            raise _RunError(
                file.path, f'part-{part} is not one of {", ".join(parts)}: rename the file'
            )
        echo = file.entities.get('echo', '')
        if not echo.isdecimal() and 'echo' in file.entities:
            raise _RunError(file.path, f'echo-{echo} should be echo-1, echo-2, ...: rename it')
        echo = _with_echo(file.entities).get('echo', '')
        if echo in parts[part]:
            raise _RunError(
                file.path,
                f'is the same echo and part as {parts[part][echo].path}: keep one of them, '
                'or choose with --bids-filter-file',
            )
        parts[part][echo] = file
    complex_parts = [*parts['real'].values(), *parts['imag'].values()]
    left_out: list[tuple[_File, str]] = []
    if complex_parts and not (parts['mag'] and parts['phase']):
        kind, names = 'cartesian', ('real', 'imag')
        left_out = [
            (file, 'left out: the run is read from its real and imaginary parts')
            for file in [*parts['mag'].values(), *parts['phase'].values()][:1]
        ]
    else:
        kind, names = 'polar', ('mag', 'phase')
        left_out = [
            (file, 'left out: the run is read from its magnitude and phase')
            for file in complex_parts[:1]
        ]
    words = {
        'mag': ('magnitude', 'part-mag (or without part)'),
        'phase': ('phase', 'part-phase'),
        'real': ('real part', 'part-real'),
        'imag': ('imaginary part', 'part-imag'),
    }
    one, other = parts[names[0]], parts[names[1]]
    for there, absent, name in ((one, other, names[1]), (other, one, names[0])):
        if lacking := sorted(set(there) - set(absent)):
            word, entity = words[name]
            raise _RunError(
                there[lacking[0]].path,
                f'has no {word} beside it: add the image of the same name with {entity}, '
                'or leave the run out with --bids-filter-file',
            )
    return (one, other), kind, left_out


def _listed_echo_times(
    one: _File, other: _File, metadata: Mapping[_File, Mapping[str, Any]]
) -> list[float]:
    """The echo times (s) of two 4D files, one number per volume."""
    lists = {}
    for file in (one, other):
        volumes = _load_grid(file.path).shape[-1]
        value = metadata[file].get('EchoTime')
        if value is None:
            continue
        if not isinstance(value, list):
            raise _RunError(
                file.path,
                f'has {volumes} volumes and EchoTime {value!r}: write the list of the echo times '
                '(s), one per volume, or store each echo as a 3D image with echo-1, echo-2, ...',
            )
        if len(value) != volumes:
            raise _RunError(
                file.path,
                f'has {volumes} volumes and {len(value)} echo times {value}: correct the sidecar',
            )
        for item in value:
            _check_echo_time(file, item)
        if any(late - early <= SAME_TIME for early, late in pairwise(value)):
            raise _RunError(
                file.path, f'EchoTime {value} does not increase: sort the volumes, or correct it'
            )
        lists[file] = [float(item) for item in value]
    if not lists:
        raise _RunError(
            one.path,
            f'has no EchoTime: write the list of the {_load_grid(one.path).shape[-1]} echo times '
            '(in seconds) into the JSON sidecar',
        )
    if len(lists) == 2 and any(
        abs(this - that) > SAME_TIME for this, that in zip(lists[one], lists[other], strict=True)
    ):
        raise _RunError(
            one.path,
            f'EchoTime {lists[one]} s differs from {lists[other]} s of {other.path}: '
            'correct the sidecars',
        )
    return next(iter(lists.values()))


def _echo_time(
    magnitude: _File, phase: _File, metadata: Mapping[_File, Mapping[str, Any]]
) -> float:
    """The echo time of a pair, s."""
    values = {
        file: value[0] if isinstance(value, list) and len(value) == 1 else value
        for file in (magnitude, phase)
        if (value := metadata[file].get('EchoTime')) is not None
    }
    if not values:
        raise _RunError(
            magnitude.path, 'has no EchoTime: write it (in seconds) into the JSON sidecar'
        )
    for file, value in values.items():
        _check_echo_time(file, value)
    if len(values) > 1 and abs(values[magnitude] - values[phase]) > SAME_TIME:
        raise _RunError(
            magnitude.path,
            f'EchoTime {values[magnitude]} s differs from {values[phase]} s of {phase.path}: '
            'correct the sidecars',
        )
    return float(next(iter(values.values())))


def _difference(
    one: _Parts, other: _Parts, metadata: Mapping[_File, _Metadata], in_one_file: bool
) -> float | None:
    """The time (s) between two echoes whose phase difference a run has; None of plain phases.

    Differences are told by ``EchoTime1`` and ``EchoTime2``, or by ``ImageType``, which alone does
    not say over which time.
    """
    single = len(one) == 1 and not in_one_file
    for phase in other.values():
        # What magnitude and phase have from one sidecar speaks of the phase of a single echo.
        others = () if single else tuple(one.values())
        times = {
            key: value
            for key in ('EchoTime1', 'EchoTime2')
            if (value := _own(phase, others, metadata, key)) is not None
        }
        word = named(_own(phase, others, metadata, 'ImageType'), DIFFERENCE)
        if not times and not word:
            continue
        said = ', '.join(f'{key} {value}' for key, value in times.items()) or f'ImageType {word}'
        if not single:
            raise _RunError(
                phase.path,
                f'is a difference of two echoes ({said}), and the run has several: the field is '
                'fitted to the phase of each echo, so give those, or one difference alone, as one '
                'echo with EchoTime1 and EchoTime2',
            )
        if len(times) < 2:
            raise _RunError(
                phase.path,
                f'is a difference of two echoes ({said}) without the times of both: write '
                'EchoTime1 and EchoTime2 (in seconds) into its JSON sidecar',
            )
        for key, value in times.items():
            _check_echo_time(phase, value, key)
        if times['EchoTime2'] - times['EchoTime1'] <= SAME_TIME:
            raise _RunError(
                phase.path, f'is a difference of two echoes, and {said}: the second is the later'
            )
        # Times in microseconds: what is left of the rounding of binary fractions would be told.
        return round(float(times['EchoTime2'] - times['EchoTime1']), 9)
    return None


def _check_image_types(
    one: _Parts, other: _Parts, kind: str, metadata: Mapping[_File, _Metadata]
) -> None:
    """Raise if an image is another part by its ``ImageType`` than by its name, or is filtered.

    Words of a sidecar that magnitude and phase share say nothing of either.
    """
    names = ('mag', 'phase') if kind == 'polar' else ('real', 'imag')
    for part, files, others in ((names[0], one, other), (names[1], other, one)):
        for file in files.values():
            said = _own(file, others.values(), metadata, 'ImageType')
            kinds = image_kinds(said)
            if kinds and part not in kinds:
                sidecar = metadata[file].stated_by['ImageType']
                raise _RunError(
                    file.path,
                    f'is part-{part} by its name and part-{" or part-".join(sorted(kinds))} by '
                    f'ImageType {said} of {sidecar.name}: rename the images (are they swapped?), '
                    'or correct the sidecar',
                )
            if part == 'phase' and (word := named(said, FILTERED)):
                raise _RunError(
                    file.path,
                    f'is a filtered phase by {word} of ImageType {said}: what varies slowly was '
                    'removed, and with it most of the field; export the phase before the filter, '
                    'or correct the sidecar',
                )


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


def _check_echo_time(file: _File, value: Any, key: str = 'EchoTime') -> None:
    """Raise unless an echo time is a number of seconds."""
    if not _is_positive(value):
        raise _RunError(
            file.path,
            f'{key} {value!r} is not a positive number of seconds: correct the sidecar',
        )
    if value > 1:
        raise _RunError(
            file.path,
            f'{key} {value} looks like milliseconds; BIDS has seconds: write {value / 1000:g}',
        )


def _is_positive(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0


def _field_strength(
    metadata: Mapping[_File, Mapping[str, Any]], given: float | None
) -> tuple[float, str, list[tuple[Path, str]]]:
    """The one field strength of all images (T), where it is from, and what is to be told of it.

    The imaging frequency says it to the last digit, where a nominal one is up to 4 % off. It is
    used if it agrees with the nominal one, of the metadata or else ``given``, within
    :data:`STRENGTH_TOLERANCE`; where they contradict each other, ``given`` decides.
    """
    nominal, notes = _nominal_strength(metadata, given)
    found, frequency_notes = _imaging_frequency(metadata, given)
    notes += frequency_notes
    stated = nominal[0] if nominal else given
    name = 'MagneticFieldStrength' if nominal else '--field-strength'
    if nominal and given not in (None, stated):
        not_given = (
            f', not {given:g} T of --field-strength, which is for images that lack it or '
            'contradict themselves'
        )
    else:
        not_given = ''
    if found is None:
        if stated is None:
            raise _RunError(
                next(iter(metadata)).path,
                'has no MagneticFieldStrength: add it to a sidecar, or give --field-strength '
                'TESLA',
            )
        if nominal and not_given:
            notes.append((nominal[1].path, f'{name} {stated:g} T is used{not_given}'))
        return stated, name, notes
    frequency, file = found
    measured = strength_of(frequency)
    words = f'ImagingFrequency {frequency:g} MHz is {measured:.4g} T'
    if stated is None:
        low, high = FIELD_STRENGTHS
        if not low <= measured <= high:
            raise _RunError(
                file.path,
                f'{words}, not between {low} and {high} T (MHz?), and there is no '
                'MagneticFieldStrength: correct the sidecar, or give --field-strength TESLA',
            )
        notes.append((file.path, f'has no MagneticFieldStrength; {words}, which is used'))
        return measured, 'ImagingFrequency', notes
    off = abs(measured / stated - 1)
    if off <= STRENGTH_TOLERANCE:
        if off > TOLD_DIFFERENCE or not_given:
            notes.append(
                (file.path, f'{words}, which is used, not {stated:g} T of {name}{not_given}')
            )
        return measured, 'ImagingFrequency', notes
    if given is not None:
        notes.append(
            (
                file.path,
                f'{words}'
                + (f', MagneticFieldStrength {stated:g} T' if nominal else '')
                + f'; {given:g} T of --field-strength is used',
            )
        )
        return given, '--field-strength', notes
    raise _RunError(
        file.path,
        f'{words}, and MagneticFieldStrength is {stated:g} T: more than '
        f'{STRENGTH_TOLERANCE:.0%} apart (another unit than MHz, or another nucleus?); correct '
        'the sidecar, or give --field-strength TESLA',
    )


def _imaging_frequency(
    metadata: Mapping[_File, Mapping[str, Any]], given: float | None
) -> tuple[tuple[float, _File] | None, list[tuple[Path, str]]]:
    """The one imaging frequency of all images (MHz) and who says it, and what is to be told."""
    found: tuple[float, _File] | None = None
    notes: list[tuple[Path, str]] = []
    for file, content in metadata.items():
        value = content.get('ImagingFrequency')
        if value is None:
            continue
        if not _is_positive(value):
            if not notes:
                notes.append((file.path, f'ImagingFrequency {value!r} is not used: no number'))
            continue
        found = found or (float(value), file)
        # The frequency is adjusted by parts in a million from scan to scan.
        if abs(value / found[0] - 1) > 1e-3:
            words = (
                f'ImagingFrequency {value:g} MHz differs from {found[0]:g} MHz of {found[1].path}'
            )
            if given is None:
                raise _RunError(file.path, f'{words}: correct the sidecars')
            return None, [(file.path, f'{words}: neither is used')]
    return found, notes


def _nominal_strength(
    metadata: Mapping[_File, Mapping[str, Any]], given: float | None
) -> tuple[tuple[float, _File] | None, list[tuple[Path, str]]]:
    """The one ``MagneticFieldStrength`` of all images (T) and who says it, and what is to be told.

    ``given`` stands in for an absurd one.
    """
    low, high = FIELD_STRENGTHS
    seen: dict[float, _File] = {}
    notes: list[tuple[Path, str]] = []
    for file, content in metadata.items():
        value = content.get('MagneticFieldStrength')
        if value is None:
            continue
        if _is_positive(value) and low <= value <= high:
            seen.setdefault(float(value), file)
            continue
        wrong = f'MagneticFieldStrength {value!r} is not between {low} and {high} T'
        if given is None:
            gauss = _is_positive(value) and low <= value / 1e4 <= high
            raise _RunError(
                file.path,
                wrong
                + (f' ({value / 1e4:g} T in gauss?)' if gauss else '')
                + ': correct the sidecar, or give --field-strength TESLA',
            )
        if not notes:
            notes.append((file.path, f'{wrong}: {given:g} T of --field-strength is used'))
    if len(seen) > 1:
        (one, first), (two, second), *_ = seen.items()
        raise _RunError(
            first.path,
            f'MagneticFieldStrength {one} T differs from {two} T of {second.path}: '
            'correct the sidecars',
        )
    if not seen:
        return None, notes
    (value, file), *_ = seen.items()
    return (value, file), notes


class _Grid(NamedTuple):
    """What the header of an image says about its grid."""

    shape: tuple[int, ...]
    affine: np.ndarray
    oriented: bool
    """Whether the header has a qform or an sform; the affine is made up otherwise."""
    note: str
    """What is to be told of it."""
    code: int = 0
    """NIfTI code of the transform that is used: 1 is the coordinates of the scanner."""


def _load_grid(path: Path) -> _Grid:
    """Grid of an image, from its header.

    Raises
    ------
    _RunError
        If it is no NIfTI file, or an uncompressed one that is shorter than its header says (what
        is missing from a compressed file is only seen by the node that reads it all), or if its
        numbers or its geometry cannot be used.
    """
    try:
        if path.stat().st_size == 0:
            raise _RunError(path, 'is empty (0 bytes): fetch its content, or copy it again')
        image: Any = nib.load(path)
        header = image.header
        shape, affine = image.shape, np.asarray(image.affine, dtype=np.float64)
        if len(shape) == 4 and shape[3] == 1:
            shape = shape[:3]
        dtype = header.get_data_dtype()
        if path.suffix == '.nii':
            # The header in memory has lost the offset; the data's proxy has kept it.
            size = math.prod(image.shape) * dtype.itemsize
            needed = image.dataobj.offset + size
            if path.stat().st_size < needed:
                raise _RunError(
                    path,
                    f'is truncated: {path.stat().st_size} bytes of {needed}; copy the file again',
                )
        scaling = (image.dataobj.slope, image.dataobj.inter)
        oriented, note = _orientation(path, header)
    except FileNotFoundError as error:
        hint = ' (a link to nowhere: fetch the content)' if path.is_symlink() else ''
        raise _RunError(path, f'cannot be found{hint}: restore it') from error
    except (OSError, EOFError, ValueError, KeyError, nib.filebasedimages.ImageFileError) as error:
        raise _RunError(
            path, f'is not a readable NIfTI file ({error}); copy or convert it again'
        ) from error
    except _RunError:
        raise
    except Exception as error:  # zlib.error and nibabel's header errors have no common base
        raise _RunError(
            path, f'has a broken header ({error}); copy or convert it again'
        ) from error
    _check_numbers(path, dtype, *scaling)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise _RunError(path, f'has no usable affine: {affine[:3].tolist()}; convert it again')
    code = int(header['sform_code']) or int(header['qform_code'])
    return _Grid(shape, affine, oriented, note, code)


def _check_numbers(path: Path, dtype: np.dtype, slope: float, intercept: float) -> None:
    """Raise unless the stored numbers are real and stay finite in single precision."""
    if dtype.kind == 'c':
        raise _RunError(
            path,
            f'holds complex numbers ({dtype}): store part-real and part-imag, or part-mag and '
            'part-phase, as images of their own',
        )
    if dtype.kind not in 'iuf':
        raise _RunError(path, f'holds {dtype} (colours?), not numbers: convert the image again')
    if dtype.kind in 'iu':
        limits = np.iinfo(dtype)
        edges = (float(limits.min), float(limits.max))
        largest = max(abs(float(slope) * edge + float(intercept)) for edge in edges)
        if not largest <= float(np.finfo(np.float32).max):
            raise _RunError(
                path,
                f'scl_slope {slope:g} and scl_inter {intercept:g} take {dtype} beyond what single '
                'precision holds: correct the header',
            )


def _orientation(path: Path, header: Any) -> tuple[bool, str]:
    """Whether a header has an orientation, and what is to be told about it."""
    unit = header.get_xyzt_units()[0]
    if unit in ('meter', 'micron'):
        raise _RunError(path, f'says that its lengths are in {unit}s: convert the header to mm')
    (qform, qcode), (sform, scode) = header.get_qform(coded=True), header.get_sform(coded=True)
    size = header.get_zooms()[:3] if scode == 0 else nib.affines.voxel_sizes(sform)
    low, high = VOXEL_SIZES
    # All zero is a header without any geometry, which is told elsewhere.
    if np.any(size) and not all(low <= edge <= high for edge in size):
        numbers = ' x '.join(f'{edge:.4g}' for edge in size)
        raise _RunError(
            path,
            f'voxel size {numbers} mm is not between {low} and {high} mm: correct the header '
            '(another unit?)',
        )
    _check_ratios(path, header)
    if qcode == 0 or scode == 0:
        return bool(qcode or scode), ''
    try:
        one, other = _b0_along(qform), _b0_along(sform)
    except np.linalg.LinAlgError:
        return True, ''
    angle = math.degrees(math.acos(min(1.0, abs(float(one @ other)))))
    shift = float(np.abs(qform - sform).max())
    if angle > SAME_DIRECTION:
        words = (
            f'qform (code {int(qcode)}) and sform (code {int(scode)}) differ: B0 is along '
            f'{one.round(3).tolist()} of the voxel axes by the one and '
            f'{other.round(3).tolist()} by the other, {angle:.1f} degrees apart'
        )
        if int(qcode) == 1 and int(scode) != 1:
            raise _RunError(
                path,
                f'{words}; the scanner is what the qform says, but the sform comes first: copy '
                'the qform into the sform',
            )
        return True, f'{words}; the sform is used. If it is wrong, copy the qform into the sform'
    if shift > max(GRID_TOLERANCE, 1e-3 * float(max(size))):
        return True, (
            f'qform and sform differ by up to {shift:.4g} mm, with the same direction of B0; '
            'the sform is used'
        )
    return True, ''


def _check_ratios(path: Path, header: Any) -> None:
    """Raise if sform and pixdim, which is the qform's too, disagree in the ratio of voxel sizes.

    A common factor is another unit or a rescaled atlas and changes no map; a ratio is a voxel of
    another shape, whose field is another one.
    """
    pixdim = np.asarray(header.get_zooms()[:3], dtype=np.float64)
    if int(header['sform_code']) == 0 or not np.all(pixdim > 0):
        return
    sizes = nib.affines.voxel_sizes(header.get_sform())
    if not np.all(np.isfinite(sizes)) or not np.all(sizes > 0):
        return
    ratio = sizes / pixdim
    if ratio.max() > (1 + SAME_RATIO) * ratio.min():
        raise _RunError(
            path,
            f'voxels are {" x ".join(f"{v:.4g}" for v in sizes)} mm by the sform and '
            f'{" x ".join(f"{v:.4g}" for v in pixdim)} mm by pixdim'
            f'{" and the qform" if int(header["qform_code"]) else ""}, of other ratios: which '
            'shape they have is not known; correct the header, or convert the image again',
        )


def _b0_along(affine: np.ndarray) -> np.ndarray:
    """Direction of the scanner's z along the voxel axes.

    As `numerics.dipole.b0_direction` has it, of which this module knows nothing.
    """
    linear = affine[:3, :3]
    u, _, vt = np.linalg.svd(linear / np.sqrt((linear**2).sum(axis=0)))
    return (u @ vt)[2]


def _check_grids(
    paths: Sequence[Path], volumes: int | None, b0_dir: Sequence[float] | None
) -> tuple[_Grid, list[tuple[Path, str]]]:
    """The one grid of all images, and what is to be told of it.

    Each is 3D, or has ``volumes`` along a fourth axis.
    """
    first = _load_grid(paths[0])
    wanted = 3 if volumes is None else 4
    if len(first.shape) != wanted:
        raise _RunError(
            paths[0],
            f'has the shape {first.shape}; each echo is one 3D image, or all echoes are one 4D '
            'image without an echo entity',
        )
    if min(first.shape[:3]) < LEAST_MATRIX:
        raise _RunError(
            paths[0],
            f'has the matrix {" x ".join(map(str, first.shape[:3]))}; {LEAST_MATRIX} voxels are '
            'the least along each axis: acquire or export the whole volume',
        )
    notes = [(paths[0], first.note)] if first.note else []
    for path in paths[1:]:
        other = _load_grid(path)
        if other.shape != first.shape:
            raise _RunError(
                path,
                f'shape {other.shape} differs from {first.shape} of {paths[0]}; export or '
                'resample them on one grid',
            )
        if not np.allclose(other.affine, first.affine, rtol=0, atol=GRID_TOLERANCE):
            raise _RunError(
                path,
                f'affine {other.affine[:3].round(4).tolist()} differs from '
                f'{first.affine[:3].round(4).tolist()} of {paths[0]}; export or resample '
                'them on one grid',
            )
        if other.oriented != first.oriented:
            unoriented = paths[0] if other.oriented else path
            raise _RunError(
                unoriented,
                'has neither qform nor sform, unlike '
                f'{path if other.oriented else paths[0]}: convert it again',
            )
    if not first.oriented and b0_dir is None:
        raise _RunError(
            paths[0],
            'has neither qform nor sform (both codes are 0), so that the direction of B0 is not '
            'known: convert it again, or give --b0-dir X Y Z along the voxel axes',
        )
    if first.oriented and b0_dir is not None:
        along, stated = _b0_along(first.affine), np.asarray(b0_dir, dtype=np.float64)
        stated = stated / np.linalg.norm(stated)
        angle = math.degrees(math.acos(min(1.0, abs(float(along @ stated)))))
        if angle > SAME_DIRECTION:
            notes.append(
                (
                    paths[0],
                    f'B0 is along {stated.round(3).tolist()} of the voxel axes by --b0-dir, which '
                    f'is used, and along {along.round(3).tolist()} by the affine, {angle:.1f} '
                    'degrees apart; the maps keep the affine',
                )
            )
    return first, notes


# -- labels -------------------------------------------------------------------------------------


def _label_files(
    sources: Sequence[Sequence[_File]], wanted: Mapping[str, Any]
) -> list[tuple[_File, list[_File]]]:
    """Label images with the TSV files of their dataset, in the order of the datasets."""
    pairs = []
    for source in sources:
        tables = [file for file in source if file.suffix == 'dseg' and file.extension == '.tsv']
        pairs += [
            (file, tables)
            for file in source
            if file.suffix == 'dseg' and file.extension in EXTENSIONS and _passes(file, wanted)
        ]
    return pairs


def _walk_derivative(
    root: Path, subjects: Sequence[str], contrasts: Sequence[str] = ()
) -> Iterator[_File]:
    """What is read of a derivative dataset, which need not be perfect BIDS.

    Labels, masks, tissue, maps of R2 and T2, and further contrasts.
    """
    root = root.absolute()
    folders = [root / f'sub-{subject}' for subject in subjects]
    paths = [*root.glob('*dseg.tsv'), *(p for f in folders for p in f.rglob('*dseg.*'))]
    suffixes = ('mask', 'probseg', *contrasts)
    names = [f'*_{suffix}{end}' for suffix in suffixes for end in EXTENSIONS]
    names += [f'*_{suffix}.*' for suffix in R2_SUFFIXES]
    paths += [p for f in folders for name in names for p in f.rglob(name)]
    for path in sorted(paths):
        if file := _parse(path, root):
            yield file


def _is_of(file: _File, run: Run) -> bool:
    """Whether a derivative is of this run: space, desc, label and the like may be anything."""
    own = {'sub': run.subject, 'ses': run.session, **run.entities}
    said = {k: v for k, v in file.entities.items() if k in ('sub', 'ses', *_ACQUISITION)}
    return all(own.get(key) == value for key, value in said.items())


def _off_grid(grid: _Grid, run: Run, first: _Grid) -> str:
    """How a grid differs from that of a run, or an empty string."""
    if grid.shape != run.matrix:
        return f'shape {grid.shape} differs from {run.matrix} of {run.sources[0]}'
    if not np.allclose(grid.affine, first.affine, rtol=0, atol=GRID_TOLERANCE):
        return (
            f'affine differs by {np.abs(grid.affine - first.affine).max():.4g} mm from '
            f'{run.sources[0]}'
        )
    return ''


def _with_mask(run: Run, candidates: Sequence[_File], mask: str) -> tuple[Run, list[Problem]]:
    """The run with its region of interest.

    Of a derivative's masks ``desc-brain`` comes first, then the order of the datasets and names.
    """
    if mask == 'auto':
        return run, []
    first = _load_grid(Path(run.sources[0]))
    if mask != 'derivatives':
        path = Path(mask).absolute()
        if wrong := _off_grid(_load_grid(path), run, first):
            raise _RunError(path, f'--mask: {wrong}; resample it (nearest neighbour)')
        return replace(run, mask=str(path)), []
    notes, found = [], []
    for file in candidates:
        if not _is_of(file, run):
            continue
        try:
            wrong = _off_grid(_load_grid(file.path), run, first)
        except _RunError as error:
            wrong = str(error)
        if wrong:
            notes.append(Problem(run.subject, str(file.path), f'mask not used: {wrong}', False))
        else:
            found.append(file)
    if not found:
        told = ''.join(f'; {note.file}: {note.message}' for note in notes)
        raise _RunError(
            run.sources[0],
            '--mask derivatives: no _mask of this run, on its grid, in the folders of '
            f'-d/--derivatives{told}. Make one, or give --mask auto or --mask FILE',
        )
    found.sort(key=lambda file: file.entities.get('desc') != 'brain')
    notes += [
        Problem(
            run.subject,
            str(file.path),
            f'mask not used: {found[0].path} comes first; choose with --bids-filter-file '
            '{"mask": {"description": ...}}',
            fatal=False,
            skipped=True,
        )
        for file in found[1:]
    ]
    return replace(run, mask=str(found[0].path)), notes


def _with_labels(
    run: Run, candidates: Sequence[tuple[_File, list[_File]]], reference: str
) -> tuple[Run, list[Problem]]:
    """The run with the first label image that is its own and on its grid."""
    notes: list[Problem] = []
    found: list[tuple[_File, dict[int, str]]] = []
    first = _load_grid(Path(run.sources[0]))

    def note(path: Path, message: str) -> None:
        notes.append(Problem(run.subject, str(path), message, fatal=False))

    for file, tables in candidates:
        if not _is_of(file, run):
            continue
        try:
            wrong = _off_grid(_load_grid(file.path), run, first)
            names = _label_names(file, tables)
        except _RunError as error:
            note(Path(error.path), f'labels not used: {error}')
            continue
        if wrong:
            note(file.path, f'labels not used: {wrong}; resample them on its grid')
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
            found[0][0].path if found else run.sources[0],
            f'--reference {reference} is not one of its labels ({there})'
            + ''.join(f'; {problem.file}: {problem.message}' for problem in notes),
        )
    if not found:
        return run, notes
    return replace(run, labels=str(found[0][0].path), label_names=names), notes


# -- tissue, R2, susceptibility maps -----------------------------------------------------------


class _Segmentation(NamedTuple):
    """Files that together say which tissue is where."""

    files: tuple[_File, ...]
    tables: tuple[_File, ...]
    """TSV files of the dataset, for a label image."""


def _segmentations(
    sources: Sequence[Sequence[_File]], wanted: Mapping[str, Any]
) -> list[_Segmentation]:
    """Label images, and the shares that differ in ``label`` only, in the order of the datasets."""
    found = []
    for source in sources:
        images = [f for f in source if f.extension in EXTENSIONS and _passes(f, wanted)]
        tables = tuple(f for f in source if f.suffix == 'dseg' and f.extension == '.tsv')
        found += [_Segmentation((f,), tables) for f in images if f.suffix == 'dseg']
        groups: dict[Any, list[_File]] = defaultdict(list)
        for file in images:
            if file.suffix == 'probseg' and 'label' in file.entities:
                rest = tuple((k, v) for k, v in file.entities.items() if k != 'label')
                groups[file.folder, rest].append(file)
        found += [_Segmentation(tuple(files), ()) for files in groups.values()]
    return found


def _with_tissue(run: Run, segmentations: Sequence[_Segmentation]) -> tuple[Run, list[Problem]]:
    """The run with the segmentation that tells most classes of brain tissue.

    Of those that tell as many, one on the run's grid comes first, then shares before labels, then
    the order of the datasets.
    """
    from precondqsm_bids.numerics.prior.tissue import BRAIN_CLASSES

    first = _load_grid(Path(run.sources[0]))
    found: list[tuple[Tissue, tuple[bool, int, bool, bool]]] = []
    notes: list[Problem] = []
    for segmentation in segmentations:
        entities = segmentation.files[0].entities
        if entities.get('sub') != run.subject or entities.get('ses') not in (None, run.session):
            continue
        own = _is_of(segmentation.files[0], run)
        try:
            tissue = _tissue(segmentation, run, first)
        except _RunError as error:
            notes.append(Problem(run.subject, error.path, f'tissue not used: {error}', False))
            continue
        known = len(set(tissue.classes) & set(BRAIN_CLASSES))
        rank = (own or tissue.resampled, known, not tissue.resampled, not tissue.label_classes)
        found.append((tissue, rank))
    if not found:
        told = ''.join(f'; {note.file}: {note.message}' for note in notes)
        raise _RunError(
            run.sources[0],
            'has no tissue classes, which --prior tissue, --prior r2prime-by-tissue and --r2 '
            'literature need: no _dseg with a TSV and no _probseg of GM, WM and CSF in the '
            f'folders of -d/--derivatives{told}',
        )
    tissue = max(found, key=lambda pair: pair[1])[0]
    if tissue.resampled:
        notes.append(
            Problem(
                run.subject,
                tissue.files[0],
                'tissue is resampled to the run by the affines of both; a head that moved between '
                'the two images is not put right: look at the outlines',
                fatal=False,
            )
        )
    notes += [
        Problem(
            run.subject,
            other.files[0],
            f'tissue not used: {tissue.files[0]} comes first; choose with --bids-filter-file '
            '{"tissue": {...}}',
            fatal=False,
            skipped=True,
        )
        for other, _ in found
        if other is not tissue
    ]
    return replace(run, tissue=tissue), notes


def _tissue(segmentation: _Segmentation, run: Run, first: _Grid) -> Tissue:
    """What a segmentation says, if its files can be taken to the grid of the run."""
    from precondqsm_bids.numerics.prior.tissue import tissue_class

    files = segmentation.files
    label_classes = None
    if files[0].suffix == 'dseg':
        names = _label_names(files[0], segmentation.tables)
        by_label = {index: tissue_class(name) for index, name in names.items() if index != 0}
        label_classes = {index: name for index, name in by_label.items() if name}
        classes = tuple(dict.fromkeys(label_classes.values()))
    else:
        by_file = {f: tissue_class(f.entities['label']) for f in files}
        files = tuple(f for f in files if by_file[f])
        classes = tuple(name for f in files if (name := by_file[f]))
        if len(set(classes)) < len(classes):
            raise _RunError(
                files[0].path,
                f'and the others of its name have a tissue twice ({", ".join(classes)}): choose '
                'with --bids-filter-file {"tissue": {"label": [...]}}',
            )
    if len(classes) < 2:
        raise _RunError(
            segmentation.files[0].path,
            f'tells {len(classes)} class of tissue ({", ".join(classes) or "none"}), two or more '
            'are needed',
        )
    resampled = False
    for file in files:
        grid = _load_grid(file.path)
        if wrong := _off_grid(grid, run, first):
            _check_scanner_space(file, grid, run, first, wrong)
            resampled = True
    return Tissue(tuple(str(f.path) for f in files), classes, label_classes, resampled)


def _check_scanner_space(file: _File, grid: _Grid, run: Run, first: _Grid, wrong: str) -> None:
    """Raise unless an image on another grid is in the scanner coordinates of the run."""
    way_out = f'{wrong}; resample it to the grid of the run by a known transform'
    space = file.entities.get('space')
    if space is not None and space not in SCANNER_SPACES:
        raise _RunError(
            file.path, f'space-{space} is not the coordinates of the scanner, and {way_out}'
        )
    if run.session is not None and 'ses' not in file.entities:
        raise _RunError(
            file.path,
            f'is not of session {run.session} alone, and the coordinates of the scanner hold '
            f'within one session; {way_out}',
        )
    for path, code in ((file.path, grid.code), (Path(run.sources[0]), first.code)):
        if code != 1:
            raise _RunError(
                file.path,
                f'the affine of {path.name} has the code {code}, not 1 (coordinates of the '
                f'scanner), which does not tell how the two lie to each other, and {way_out}',
            )
    centre = first.affine @ [*((np.array(run.matrix) - 1) / 2), 1]
    voxel = (np.linalg.inv(grid.affine) @ centre)[:3]
    if len(grid.shape) != 3 or np.any(voxel < 0) or np.any(voxel > np.array(grid.shape) - 1):
        raise _RunError(
            file.path,
            f'{grid.shape} does not hold the centre of {run.sources[0]} '
            f'({centre[:3].round(1).tolist()} mm): it is of another part, or of other coordinates',
        )


def _with_r2_map(
    run: Run, candidates: Sequence[tuple[_File, list[_File]]]
) -> tuple[Run, list[Problem]]:
    """The run with the first map of R2 or T2 that is on its grid."""
    first = _load_grid(Path(run.sources[0]))
    found: list[_File] = []
    notes: list[Problem] = []
    for file, sidecars in candidates:
        if file.entities.get('sub') != run.subject:
            continue
        if file.entities.get('ses') not in (None, run.session):
            continue
        try:
            units = _metadata(file, sidecars).get('Units')
            wanted = R2_UNITS[file.suffix]
            wrong = ''
            if units is not None and units not in wanted:
                wrong = f'Units {units!r} are not {wanted[0]}: convert the map'
            wrong = wrong or _off_grid(_load_grid(file.path), run, first)
        except _RunError as error:
            wrong = str(error)
        if wrong:
            notes.append(Problem(run.subject, str(file.path), f'R2 not used: {wrong}', False))
        else:
            found.append(file)
    if not found:
        told = ''.join(f'; {note.file}: {note.message}' for note in notes)
        raise _RunError(
            run.sources[0],
            f'--r2 map: no _R2map (1/s) or _T2map (s) on its grid{told}. Resample one to the '
            'grid, or give --r2 NUMBER, median or literature',
        )
    found.sort(key=lambda file: not _is_of(file, run))
    notes += [
        Problem(
            run.subject,
            str(file.path),
            f'R2 not used: {found[0].path} comes first; choose with --bids-filter-file '
            '{"r2": {...}}',
            fatal=False,
            skipped=True,
        )
        for file in found[1:]
    ]
    return replace(run, r2_map=str(found[0].path), r2_map_kind=found[0].suffix), notes


def _with_contrasts(
    run: Run, candidates: Sequence[_File], suffixes: Sequence[str]
) -> tuple[Run, list[Problem]]:
    """The run with the first image of each suffix that is on its grid."""
    first = _load_grid(Path(run.sources[0]))
    taken, notes = [], []
    for suffix in suffixes:
        found, told = [], ''
        for file in candidates:
            if file.suffix != suffix or file.entities.get('sub') != run.subject:
                continue
            if file.entities.get('ses') not in (None, run.session):
                continue
            try:
                wrong = _off_grid(_load_grid(file.path), run, first)
            except _RunError as error:
                wrong = str(error)
            if wrong:
                told += f'; {file.path}: {wrong}'
            else:
                found.append(file)
        if not found:
            raise _RunError(
                run.sources[0],
                f'--contrasts {suffix}: no _{suffix} image on its grid, neither in the folders of '
                f'-d/--derivatives nor in the dataset{told}. Resample one to the grid of the run',
            )
        found.sort(key=lambda file: not _is_of(file, run))
        taken.append(str(found[0].path))
        notes += [
            Problem(
                run.subject,
                str(file.path),
                f'contrast not used: {found[0].path} comes first; choose with --bids-filter-file '
                '{"contrast": {...}}',
                fatal=False,
                skipped=True,
            )
            for file in found[1:]
        ]
    return replace(run, contrasts=tuple(taken)), notes


def _check_prior_maps(run: Run, paths: Sequence[Path]) -> None:
    """Raise unless the susceptibility maps are on the grid of the run."""
    for path in paths:
        if wrong := _off_grid(_load_grid(path), run, _load_grid(Path(run.sources[0]))):
            raise _RunError(path, f'--prior map:FILE: {wrong}; resample it (linearly)')


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
