"""Images beside the echoes: mask, labels, tissue, R2, contrasts and prior maps."""

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from precondqsm_bids.inputs.files import EXTENSIONS, File, inherited, read_metadata
from precondqsm_bids.inputs.filters import passes
from precondqsm_bids.inputs.grid import Grid, load_grid, off_grid
from precondqsm_bids.inputs.run import Problem, Run, RunError, Tissue

R2_UNITS = {'R2map': ('1/s', 's^-1', 'Hz'), 'T2map': ('s',)}
SCANNER_SPACES = ('orig', 'scanner', 'anat', 'T1w', 'T2w')
"""Labels of ``space`` that mean the scanner's coordinates of an image of the session."""
_ACQUISITION = ('task', 'acq', 'ce', 'rec', 'dir', 'run', 'flip', 'inv', 'mt', 'chunk', 'sample')


def label_files(
    sources: Sequence[Sequence[File]], wanted: Mapping[str, Any]
) -> list[tuple[File, list[File]]]:
    """Label images with the TSV files of their dataset, in the order of the datasets."""
    pairs = []
    for source in sources:
        tables = [file for file in source if file.suffix == 'dseg' and file.extension == '.tsv']
        pairs += [
            (file, tables)
            for file in source
            if file.suffix == 'dseg' and file.extension in EXTENSIONS and passes(file, wanted)
        ]
    return pairs


def _is_of(file: File, run: Run) -> bool:
    """Whether a derivative is of this run: space, desc, label and the like may be anything."""
    own = {'sub': run.subject, 'ses': run.session, **run.entities}
    said = {k: v for k, v in file.entities.items() if k in ('sub', 'ses', *_ACQUISITION)}
    return all(own.get(key) == value for key, value in said.items())


def with_mask(run: Run, candidates: Sequence[File], mask: str) -> tuple[Run, list[Problem]]:
    """The run with its region of interest.

    Of a derivative's masks ``desc-brain`` comes first, then the order of the datasets and names.
    """
    if mask == 'auto':
        return run, []
    first = load_grid(Path(run.sources[0]))
    if mask != 'derivatives':
        path = Path(mask).absolute()
        if wrong := off_grid(load_grid(path), run, first):
            raise RunError(path, f'--mask: {wrong}; resample it (nearest neighbour)')
        return replace(run, mask=str(path)), []
    notes, found = [], []
    for file in candidates:
        if not _is_of(file, run):
            continue
        try:
            wrong = off_grid(load_grid(file.path), run, first)
        except RunError as error:
            wrong = str(error)
        if wrong:
            notes.append(Problem(run.subject, str(file.path), f'mask not used: {wrong}', False))
        else:
            found.append(file)
    if not found:
        told = ''.join(f'; {note.file}: {note.message}' for note in notes)
        raise RunError(
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


def with_labels(
    run: Run, candidates: Sequence[tuple[File, list[File]]], reference: str
) -> tuple[Run, list[Problem]]:
    """The run with the first label image that is its own and on its grid."""
    notes: list[Problem] = []
    found: list[tuple[File, dict[int, str]]] = []
    first = load_grid(Path(run.sources[0]))

    def note(path: Path, message: str) -> None:
        notes.append(Problem(run.subject, str(path), message, fatal=False))

    for file, tables in candidates:
        if not _is_of(file, run):
            continue
        try:
            wrong = off_grid(load_grid(file.path), run, first)
            names = _label_names(file, tables)
        except RunError as error:
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
        raise RunError(
            found[0][0].path if found else run.sources[0],
            f'--reference {reference} is not one of its labels ({there})'
            + ''.join(f'; {problem.file}: {problem.message}' for problem in notes),
        )
    if not found:
        return run, notes
    return replace(run, labels=str(found[0][0].path), label_names=names), notes


class _Segmentation(NamedTuple):
    """Files that together say which tissue is where."""

    files: tuple[File, ...]
    tables: tuple[File, ...]
    """TSV files of the dataset, for a label image."""


def find_segmentations(
    sources: Sequence[Sequence[File]], wanted: Mapping[str, Any]
) -> list[_Segmentation]:
    """Label images, and the shares that differ in ``label`` only, in the order of the datasets."""
    found = []
    for source in sources:
        images = [f for f in source if f.extension in EXTENSIONS and passes(f, wanted)]
        tables = tuple(f for f in source if f.suffix == 'dseg' and f.extension == '.tsv')
        found += [_Segmentation((f,), tables) for f in images if f.suffix == 'dseg']
        groups: dict[Any, list[File]] = defaultdict(list)
        for file in images:
            if file.suffix == 'probseg' and 'label' in file.entities:
                rest = tuple((k, v) for k, v in file.entities.items() if k != 'label')
                groups[file.folder, rest].append(file)
        found += [_Segmentation(tuple(files), ()) for files in groups.values()]
    return found


def with_tissue(run: Run, segmentations: Sequence[_Segmentation]) -> tuple[Run, list[Problem]]:
    """The run with the segmentation that tells most classes of brain tissue.

    Of those that tell as many, one on the run's grid comes first, then shares before labels, then
    the order of the datasets.
    """
    from precondqsm_bids.numerics.tissue import BRAIN_CLASSES

    first = load_grid(Path(run.sources[0]))
    found: list[tuple[Tissue, tuple[bool, int, bool, bool]]] = []
    notes: list[Problem] = []
    for segmentation in segmentations:
        entities = segmentation.files[0].entities
        if entities.get('sub') != run.subject or entities.get('ses') not in (None, run.session):
            continue
        own = _is_of(segmentation.files[0], run)
        try:
            tissue = _tissue(segmentation, run, first)
        except RunError as error:
            notes.append(Problem(run.subject, error.path, f'tissue not used: {error}', False))
            continue
        known = len(set(tissue.classes) & set(BRAIN_CLASSES))
        rank = (own or tissue.resampled, known, not tissue.resampled, not tissue.label_classes)
        found.append((tissue, rank))
    if not found:
        told = ''.join(f'; {note.file}: {note.message}' for note in notes)
        raise RunError(
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


def _tissue(segmentation: _Segmentation, run: Run, first: Grid) -> Tissue:
    """What a segmentation says, if its files can be taken to the grid of the run."""
    from precondqsm_bids.numerics.tissue import tissue_class

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
            raise RunError(
                files[0].path,
                f'and the others of its name have a tissue twice ({", ".join(classes)}): choose '
                'with --bids-filter-file {"tissue": {"label": [...]}}',
            )
    if len(classes) < 2:
        raise RunError(
            segmentation.files[0].path,
            f'tells {len(classes)} class of tissue ({", ".join(classes) or "none"}), two or more '
            'are needed',
        )
    resampled = False
    for file in files:
        grid = load_grid(file.path)
        if wrong := off_grid(grid, run, first):
            _check_scanner_space(file, grid, run, first, wrong)
            resampled = True
    return Tissue(tuple(str(f.path) for f in files), classes, label_classes, resampled)


def _check_scanner_space(file: File, grid: Grid, run: Run, first: Grid, wrong: str) -> None:
    """Raise unless an image on another grid is in the scanner coordinates of the run."""
    way_out = f'{wrong}; resample it to the grid of the run by a known transform'
    space = file.entities.get('space')
    if space is not None and space not in SCANNER_SPACES:
        raise RunError(
            file.path, f'space-{space} is not the coordinates of the scanner, and {way_out}'
        )
    if run.session is not None and 'ses' not in file.entities:
        raise RunError(
            file.path,
            f'is not of session {run.session} alone, and the coordinates of the scanner hold '
            f'within one session; {way_out}',
        )
    for path, code in ((file.path, grid.code), (Path(run.sources[0]), first.code)):
        if code != 1:
            raise RunError(
                file.path,
                f'the affine of {path.name} has the code {code}, not 1 (coordinates of the '
                f'scanner), which does not tell how the two lie to each other, and {way_out}',
            )
    centre = first.affine @ [*((np.array(run.matrix) - 1) / 2), 1]
    voxel = (np.linalg.inv(grid.affine) @ centre)[:3]
    if len(grid.shape) != 3 or np.any(voxel < 0) or np.any(voxel > np.array(grid.shape) - 1):
        raise RunError(
            file.path,
            f'{grid.shape} does not hold the centre of {run.sources[0]} '
            f'({centre[:3].round(1).tolist()} mm): it is of another part, or of other coordinates',
        )


def with_r2_map(
    run: Run, candidates: Sequence[tuple[File, list[File]]]
) -> tuple[Run, list[Problem]]:
    """The run with the first map of R2 or T2 that is on its grid."""
    first = load_grid(Path(run.sources[0]))
    found: list[File] = []
    notes: list[Problem] = []
    for file, sidecars in candidates:
        if file.entities.get('sub') != run.subject:
            continue
        if file.entities.get('ses') not in (None, run.session):
            continue
        try:
            units = read_metadata(file, sidecars).get('Units')
            wanted = R2_UNITS[file.suffix]
            wrong = ''
            if units is not None and units not in wanted:
                wrong = f'Units {units!r} are not {wanted[0]}: convert the map'
            wrong = wrong or off_grid(load_grid(file.path), run, first)
        except RunError as error:
            wrong = str(error)
        if wrong:
            notes.append(Problem(run.subject, str(file.path), f'R2 not used: {wrong}', False))
        else:
            found.append(file)
    if not found:
        told = ''.join(f'; {note.file}: {note.message}' for note in notes)
        raise RunError(
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


def with_contrasts(
    run: Run, candidates: Sequence[File], suffixes: Sequence[str]
) -> tuple[Run, list[Problem]]:
    """The run with the first image of each suffix that is on its grid."""
    first = load_grid(Path(run.sources[0]))
    taken, notes = [], []
    for suffix in suffixes:
        found, told = [], ''
        for file in candidates:
            if file.suffix != suffix or file.entities.get('sub') != run.subject:
                continue
            if file.entities.get('ses') not in (None, run.session):
                continue
            try:
                wrong = off_grid(load_grid(file.path), run, first)
            except RunError as error:
                wrong = str(error)
            if wrong:
                told += f'; {file.path}: {wrong}'
            else:
                found.append(file)
        if not found:
            raise RunError(
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


def check_prior_maps(run: Run, paths: Sequence[Path]) -> None:
    """Raise unless the susceptibility maps are on the grid of the run."""
    for path in paths:
        if wrong := off_grid(load_grid(path), run, load_grid(Path(run.sources[0]))):
            raise RunError(path, f'--prior map:FILE: {wrong}; resample it (linearly)')


def _label_names(file: File, tables: Iterable[File]) -> dict[int, str]:
    """Index to name, from the nearest TSV that applies to a label image."""
    applicable = inherited(file, tables, 'dseg')
    if not applicable:
        raise RunError(
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
                raise RunError(path, f'index {index}, name "{name}" is empty or there twice')
            names[index] = name
    except (OSError, ValueError, KeyError, AttributeError, TypeError, csv.Error) as error:
        raise RunError(
            path, f'is no TSV with an integer column index and a column name ({error!r})'
        ) from error
    if not names:
        raise RunError(path, 'has no rows')
    return names
