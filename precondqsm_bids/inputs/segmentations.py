"""Label images with their tables, and the tissue classes of a segmentation."""

import csv
from collections.abc import Iterable, Sequence

import numpy as np

from precondqsm_bids.inputs.files import File, inherited
from precondqsm_bids.inputs.grid import Grid, load_grid
from precondqsm_bids.inputs.run import Run, RunError, Tissue
from precondqsm_bids.numerics.prior.tissue import tissue_class

SCANNER_SPACES = ('orig', 'scanner', 'anat', 'T1w', 'T2w')
"""Labels of ``space`` that mean the scanner's coordinates of an image of the session."""


def label_names(file: File, source: Iterable[File]) -> dict[int, str]:
    """Index to name, from the most specific TSV that applies to a label image."""
    applicable = inherited(file, source, '.tsv')
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
            rows = list(reader := csv.DictReader(stream, delimiter='\t'))
        columns = list(reader.fieldnames or ())
        if lacking := {'index', 'name'} - set(columns):
            raise RunError(
                path,
                f'has no column {" and ".join(sorted(lacking))}, separated by tabs: its columns '
                f'are {columns}',
            )
        for row in rows:
            index, name = int(row['index']), row['name'].strip()
            if index in names or name in names.values() or not name:
                raise RunError(path, f'index {index}, name "{name}" is empty or there twice')
            names[index] = name
    except (OSError, ValueError, AttributeError, TypeError, csv.Error) as error:
        raise RunError(
            path, f'is not a TSV with an integer column index and a column name ({error})'
        ) from error
    if not names:
        raise RunError(path, 'has no rows')
    return names


def read_tissue(files: Sequence[File], source: Iterable[File], run: Run, first: Grid) -> Tissue:
    """The classes of a segmentation, if its files can be taken to the grid of the run.

    These are a label image, whose table is in the source, or the maps of shares of all classes.
    """
    path, label_classes = files[0].path, None
    if files[0].suffix == 'dseg':
        names = label_names(files[0], source)
        by_label = {index: tissue_class(name) for index, name in names.items() if index != 0}
        label_classes = {index: name for index, name in by_label.items() if name}
        classes = tuple(dict.fromkeys(label_classes.values()))
    elif 'label' not in files[0].entities:
        raise RunError(path, 'has no class in its name: store each as an image with label-<class>')
    else:
        by_file = {file: tissue_class(file.entities['label']) for file in files}
        files = tuple(file for file in files if by_file[file])
        classes = tuple(name for name in by_file.values() if name)
        if len(set(classes)) < len(classes):
            raise RunError(
                path,
                f'and the others of its name have a tissue twice ({", ".join(classes)}): choose '
                'with --bids-filter-file {"tissue": {"label": [...]}}',
            )
    if len(classes) < 2:
        raise RunError(
            path,
            f'has {len(classes)} class of tissue ({", ".join(classes) or "none"}), two or more '
            'are needed',
        )
    resampled = False
    for file in files:
        grid = load_grid(file.path)
        if wrong := grid.differs_from(first):
            check_scanner_space(file, grid, run, first, wrong)
            resampled = True
    return Tissue(tuple(str(file.path) for file in files), classes, label_classes, resampled)


def check_scanner_space(file: File, grid: Grid, run: Run, first: Grid, wrong: str) -> None:
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
    for image in (grid, first):
        if image.code != 1:
            raise RunError(
                file.path,
                f'the affine of {image.path.name} has the code {image.code}, not 1 (coordinates '
                'of the scanner), which does not say how the two lie to each other, and '
                f'{way_out}',
            )
    centre = first.affine @ [*((np.array(run.matrix) - 1) / 2), 1]
    voxel = (np.linalg.inv(grid.affine) @ centre)[:3]
    if len(grid.shape) != 3 or np.any(voxel < 0) or np.any(voxel > np.array(grid.shape) - 1):
        raise RunError(
            file.path,
            f'{grid.shape} does not hold the centre of {run.sources[0]} '
            f'({centre[:3].round(1).tolist()} mm): it is of another part, or of other coordinates',
        )
