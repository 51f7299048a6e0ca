"""Images beside the echoes: mask, labels, tissue, R2, contrasts and prior maps. One rule for all.

A candidate is an image of the participant and of the session (or of none), with a suffix of the
kind, that passes the kind's filter. One that cannot be used is reported with the reason, as a
warning. Of the others the first by :func:`_order` is used, each of the rest reported as skipped.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from precondqsm_bids.inputs.files import ACQUISITION, File, numbered, read_metadata
from precondqsm_bids.inputs.grid import Grid, load_grid
from precondqsm_bids.inputs.run import Note, Run, RunError
from precondqsm_bids.inputs.segmentations import (
    SCANNER_SPACES,
    check_scanner_space,
    label_names,
    read_tissue,
)
from precondqsm_bids.inputs.selection import Selection
from precondqsm_bids.method import MASK_WORDS, REFERENCE_WORDS, Method
from precondqsm_bids.numerics.prior.tissue import BRAIN_CLASSES

_RATES = ('1/s', 's^-1', 'Hz')
R2_UNITS = {'R2map': _RATES, 'T2map': ('s',), 'R2starmap': _RATES}
"""What ``Units`` of the maps may be; messages name the first one."""
Source = Sequence[File]
"""Files of one dataset."""


class Candidate(NamedTuple):
    """One image, or one map of shares for each class; its dataset, and the rank of that."""

    files: tuple[File, ...]
    source: Source
    rank: int

    @property
    def path(self) -> Path:
        return self.files[0].path


class Kind(NamedTuple):
    """One kind of companion."""

    name: str
    query: str
    """Its filter, of :data:`~precondqsm_bids.inputs.selection.QUERIES`."""
    suffixes: tuple[str, ...]
    read: Callable[[Candidate, Run, Grid], dict[str, Any]]
    """Fields of the run from a candidate, the run and its grid."""
    missing: str = ''
    """What is wrong if there is none, with a place for the candidates; empty if nothing is."""
    of_the_run: bool = False
    """Whether a name that speaks of another acquisition rules a candidate out. Else it comes last:
    what an anatomical image is called is nothing that a run's name has to say."""
    of_the_dataset: bool = True
    """Whether the dataset itself is searched, after the derivatives."""


def _read_labels(candidate: Candidate, run: Run, grid: Grid) -> dict[str, Any]:
    names = label_names(candidate.files[0], candidate.source)
    return {'labels': check_on_grid(candidate.path, grid), 'label_names': names}


def _read_r2(candidate: Candidate, run: Run, grid: Grid) -> dict[str, Any]:
    file = candidate.files[0]
    units, wanted = read_metadata(file, candidate.source).get('Units'), R2_UNITS[file.suffix]
    if units is not None and units not in wanted:
        raise RunError(file.path, f'Units {units!r} are not {wanted[0]}: convert the map')
    path = check_on_grid(file.path, grid)
    if file.suffix == 'R2starmap':
        return {'r2star_map': path}
    return {'r2_map': path, 'r2_map_kind': file.suffix}


def _read_mask(candidate: Candidate, run: Run, grid: Grid) -> dict[str, Any]:
    file, own = candidate.files[0], load_grid(candidate.path)
    space, task = (file.entities.get(key) for key in ('space', 'task'))
    if space not in (None, *SCANNER_SPACES):
        message = f'space-{space} is not the coordinates of the scanner'
        raise RunError(file.path, message, 'skipped')
    wrong = own.differs_from(grid)
    # Any anatomical image will do; masks of other runs have this grid, or are distorted.
    if task not in (None, run.entities.get('task')) or not (wrong or _agreement(file, run)[0]):
        raise RunError(file.path, 'is of another acquisition, by its name', 'skipped')
    if wrong:
        check_scanner_space(file, own, run, grid, wrong)
    return {'mask': str(file.path), 'mask_resampled': bool(wrong)}


def _read_brain(candidate: Candidate, run: Run, grid: Grid) -> dict[str, Any]:
    file = candidate.files[0]
    for key in ('desc', 'label'):
        if (word := file.entities.get(key, 'brain')).lower() != 'brain':
            message = (
                f'{key}-{word} is not that of a brain; give --mask derivatives or --mask FILE'
            )
            raise RunError(file.path, message, 'skipped')
    return _read_mask(candidate, run, grid)


MASK = Kind(
    'mask',
    'mask',
    ('mask',),
    _read_mask,
    '--mask derivatives: no _mask of this run, on its grid or in the coordinates of the scanner, '
    'in the folders of -d/--derivatives{}. Make one, or give --mask auto or --mask FILE',
    of_the_dataset=False,
)
BRAIN = MASK._replace(read=_read_brain, missing='')
"""The mask that is used without being asked for."""
LABELS = Kind('labels', 'dseg', ('dseg',), _read_labels, of_the_run=True)
TISSUE = Kind(
    'tissue',
    'tissue',
    ('dseg', 'probseg'),
    lambda candidate, run, grid: {'tissue': read_tissue(*candidate[:2], run, grid)},
    'has no tissue classes, which --prior tissue, --prior r2prime-by-tissue and --r2 literature '
    'need: no _dseg with a TSV and no _probseg of GM, WM and CSF in the folders of '
    '-d/--derivatives or in the dataset{}',
)
R2 = Kind(
    'R2',
    'r2',
    ('R2map', 'T2map'),
    _read_r2,
    '--r2 map: no _R2map (1/s) or _T2map (s) on its grid{}. Resample one to the grid, or give '
    '--r2 NUMBER, median or literature',
)


MAGNITUDE = Kind(
    'magnitude',
    'magnitude',
    ('magnitude', 'magnitude1'),
    lambda candidate, run, grid: {'magnitude': (check_on_grid(candidate.path, grid),)},
    '--field derivatives: no _magnitude of this run, on its grid, beside it in the folders of '
    '-d/--derivatives{}. The object, the contrast and the weights are from it',
    of_the_run=True,
    of_the_dataset=False,
)
R2STAR = Kind('R2*', 'r2star', ('R2starmap',), _read_r2, of_the_run=True, of_the_dataset=False)


def contrast(suffix: str) -> Kind:
    """The kind of a further contrast, by its suffix."""
    return Kind(
        'contrast',
        'contrast',
        (suffix,),
        lambda candidate, run, grid: {
            'contrasts': (*run.contrasts, check_on_grid(candidate.path, grid))
        },
        f'--contrasts {suffix}: no _{suffix} image on its grid, neither in the folders of '
        '-d/--derivatives nor in the dataset{}. Resample one to the grid of the run',
    )


def kinds_of(method: Method) -> list[Kind]:
    """The kinds that a method reads."""
    read = {
        MAGNITUDE: method.field_given,
        R2STAR: method.field_given,
        MASK: method.mask == 'derivatives',
        BRAIN: method.mask == 'auto',
        LABELS: True,
        TISSUE: method.needs_tissue,
        R2: method.needs_r2_map,
    }
    return [*(kind for kind in read if read[kind]), *map(contrast, method.contrasts)]


def with_companions(
    run: Run, sources: Sequence[Source], select: Selection, method: Method
) -> tuple[Run, list[Note]]:
    """The run with all that the method reads besides its echoes, and what is to be reported.

    The last of the sources is the dataset itself, those before it are derivatives.
    """
    grid = load_grid(Path(run.sources[0]))._replace(shape=run.matrix)
    if method.mask not in MASK_WORDS:
        path = Path(method.mask).absolute()
        run = replace(run, mask=check_on_grid(path, grid, '--mask: ', ' (nearest neighbour)'))
    notes: list[Note] = []
    for kind in kinds_of(method):
        if kind is R2 and run.without_r2star:  # no R2*, so that R2 has no use
            continue
        run, more = _with_best(kind, _candidates(kind, run, sources, select), run, grid)
        notes += more
        if kind is LABELS:
            _check_reference(run, method.reference, more)
    for path in method.prior_maps:
        check_on_grid(path, grid, '--prior map:FILE: ', ' (linearly)')
    return run, notes


def _candidates(
    kind: Kind, run: Run, sources: Sequence[Source], select: Selection
) -> Iterator[Candidate]:
    """The images that may be of a kind; maps of shares that differ in ``label`` are one."""
    for rank, source in enumerate(sources if kind.of_the_dataset else sources[:-1]):
        groups: dict[Any, list[File]] = {}
        for file in source:
            if (
                file.suffix in kind.suffixes
                and file.is_image
                and select.admits(file, kind.query)
                and file.entities.get('sub') == run.subject
                and file.entities.get('ses') in (None, run.session)
                and (_agreement(file, run)[0] or not kind.of_the_run)
            ):
                rest = tuple(item for item in file.entities.items() if item[0] != 'label')
                shares = file.suffix == 'probseg' and 'label' in file.entities
                groups.setdefault((file.folder, rest) if shares else file, []).append(file)
        for files in groups.values():
            yield Candidate(tuple(files), source, rank)


def _with_best(
    kind: Kind, candidates: Iterable[Candidate], run: Run, grid: Grid
) -> tuple[Run, list[Note]]:
    """The run with the best candidate of a kind, and what is to be reported of all."""
    notes: list[Note] = []
    usable: list[tuple[Candidate, dict[str, Any]]] = []
    for candidate in candidates:
        try:
            usable.append((candidate, kind.read(candidate, run, grid)))
        except RunError as error:
            notes.append(Note(error.path, f'{kind.name} not used: {error}', error.kind))
    if not usable:
        if kind.missing:
            raise RunError(run.sources[0], kind.missing.format(_listed(notes)))
        return run, notes
    usable.sort(key=lambda pair: _order(pair[0], pair[1], run))
    (best, fields), *others = usable
    if _resampled(fields):
        message = (
            f'{kind.name} is resampled to the run by the affines of both; a head that moved '
            'between the two images is not put right: look at the outlines'
        )
        notes.append(Note(best.path, message))
    message = f'{kind.name} not used: {best.path} comes first; choose with --bids-filter-file '
    message += f'{{"{kind.query}": {{...}}}}'
    notes += [Note(other.path, message, 'skipped') for other, _ in others]
    return replace(run, **fields), notes


def _order(candidate: Candidate, fields: dict[str, Any], run: Run) -> tuple[Any, ...]:
    """What sorts the usable candidates of a kind, the best one first.

    1. Names that speak of no other acquisition; tissue or a mask on another grid is that of an
       anatomical image, which may have any.
    2. Masks: ``desc-brain``, then on the grid. Tissue: most classes of the brain, then on the
       grid, then shares.
    3. Derivatives in their order, then the dataset.
    4. The most specific name: most entities of session and acquisition in common with the run.
    """
    agrees, common = _agreement(candidate.files[0], run)
    agrees = agrees or _resampled(fields)
    preferred: tuple[Any, ...] = ()
    if tissue := fields.get('tissue'):
        known = len(set(tissue.classes) & set(BRAIN_CLASSES))
        preferred = (-known, tissue.resampled, tissue.label_classes is not None)
    elif 'mask' in fields:
        preferred = (candidate.files[0].entities.get('desc') != 'brain', _resampled(fields))
    return (not agrees, *preferred, candidate.rank, -common, str(candidate.path))


def _resampled(fields: dict[str, Any]) -> bool:
    """Whether what was read is on another grid than the run."""
    tissue = fields.get('tissue')
    return tissue.resampled if tissue else fields.get('mask_resampled', False)


def _agreement(file: File, run: Run) -> tuple[bool, int]:
    """Whether no entity of session and acquisition contradicts the run, and how many agree."""
    own = numbered({'ses': run.session, **run.entities}).items()
    said = {key: file.numbered[key] for key in ('ses', *ACQUISITION) if key in file.entities}
    return said.items() <= own, len(said.items() & own)


def check_on_grid(path: Path, grid: Grid, before: str = '', how: str = '') -> str:
    """The path of an image, if it is on the grid of the run."""
    if wrong := load_grid(path).differs_from(grid):
        raise RunError(path, f'{before}{wrong}; resample it to the grid of the run{how}')
    return str(path)


def _check_reference(run: Run, reference: str, notes: Iterable[Note]) -> None:
    """Raise if the reference is a label that the run does not have."""
    names = (run.label_names or {}).values()
    if reference not in REFERENCE_WORDS and reference not in names:
        there = ', '.join(names) or 'none at all'
        message = f'--reference {reference} is not one of its labels ({there}){_listed(notes)}'
        raise RunError(run.labels or run.sources[0], message)


def _listed(notes: Iterable[Note]) -> str:
    """What was reported, at the end of a message."""
    return ''.join(f'; {note.path}: {note.message}' for note in notes)
