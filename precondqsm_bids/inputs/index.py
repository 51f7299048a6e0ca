"""The index of a dataset, its participants and their images.

pybids indexes the dataset; names and sidecars are then read here. pybids reads names from the
whole path, so that a parent folder called ``sub-x`` would rename every participant, and it stops
at the first broken sidecar of the dataset, where only that sidecar's participant should stop.
"""

import json
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from precondqsm_bids.inputs.files import EXTENSIONS, IMAGE_SUFFIXES, File, files_below, parse
from precondqsm_bids.inputs.lookalikes import first_of, is_named, look_alikes
from precondqsm_bids.inputs.run import InputError, Problem
from precondqsm_bids.inputs.selection import Selection

OTHER_DATATYPES = 'beh|dwi|eeg|fmap|func|ieeg|meg|micr|motion|mrs|nirs|perf|pet'
INDEX_FILE = 'layout_index.sqlite'
"""What pybids calls its index within the folder of --bids-database-dir."""


def participants(bids_dir: Path) -> list[str]:
    """Labels of the participants' folders below the root of a dataset, sorted."""
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
    known = description if isinstance(description, dict) else {}
    missing = [key for key in ('Name', 'BIDSVersion') if not isinstance(known.get(key), str)]
    if missing:
        raise InputError(f'{path} lacks {" and ".join(missing)}: {way_out}')


def check_derivative(folder: Path) -> None:
    """Raise :class:`InputError` if a folder of derivatives has no participants, but holds some.

    Nothing would be found in the parent of datasets, and nobody told.
    """
    if any(folder.glob('sub-*')):
        return
    if datasets := sorted({path.parent for path in folder.glob('*/sub-*') if path.is_dir()}):
        raise InputError(
            f'-d/--derivatives: {folder} has no participants (sub-*), but is the folder of '
            f'{", ".join(path.name for path in datasets)}: give -d {datasets[0]}'
        )


def chosen_participants(bids_dir: Path, wanted: Sequence[str]) -> list[str]:
    """The wanted participants, or all of them, sorted; an InputError if one is not there."""
    known = participants(bids_dir)
    if unknown := sorted(set(wanted) - set(known)):
        raise InputError(
            f'no participant {", ".join(unknown)} in {bids_dir}; '
            f'its participants are: {", ".join(known) or "none"}'
        )
    return sorted(set(wanted)) or known


def index_dataset(
    root: Path, subjects: Sequence[str], suffixes: Collection[str], select: Selection
) -> list[File]:
    """Echoes, and the images of other suffixes, with what describes them."""
    from bids.layout import BIDSLayout, BIDSLayoutIndexer
    from sqlalchemy.exc import SQLAlchemyError

    root, database_dir = root.absolute(), select.database_dir
    inside = [path.absolute() for path in select.ignore if root in path.absolute().parents]
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
    except SQLAlchemyError as error:
        reason = str(error).partition('\n')[0]
        if database_dir is None:
            raise InputError(f'cannot index {root}: {reason}') from error
        raise InputError(
            f'the index in {database_dir} cannot be read ({reason}): it is damaged, or of another '
            'version of pybids; remove it'
        ) from error
    if Path(layout.root).resolve() != root.resolve():
        raise InputError(
            f'the index in {database_dir} is that of {layout.root}, not of {root}: '
            'give another --bids-database-dir, or remove it'
        )
    found = layout.get(
        suffix=[*IMAGE_SUFFIXES, *suffixes],
        extension=[*EXTENSIONS, '.json', '.tsv'],
        return_type='filename',
    )
    return sorted(
        (file for path in found if (file := parse(Path(path), Path(layout.root)))),
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


def index_derivative(root: Path, subjects: Sequence[str], suffixes: Collection[str]) -> list[File]:
    """Files of some suffixes in a derivative dataset, which need not be perfect BIDS."""
    root = root.absolute()
    paths = {path for suffix in suffixes for path in root.glob(f'*{suffix}.*')}
    endings = tuple(f'{suffix}.' for suffix in suffixes)
    for subject in subjects:
        paths |= {
            path
            for path in files_below(root / f'sub-{subject}')
            if any(ending in path.name for ending in endings)
        }
    files = (parse(path, root) for path in sorted(paths))
    return [file for file in files if file and file.suffix in suffixes]


def echo_images(
    files: Sequence[File], subjects: Sequence[str], select: Selection, root: Path
) -> tuple[list[File], list[Problem]]:
    """The participants' multi-echo images, and what is left out and why.

    An image in another participant's folder is an error, an unknown session an InputError.
    """
    files = [file for file in files if file.suffix in IMAGE_SUFFIXES and file.is_image]
    indexed = {(*file.folder, file.path.name) for file in files}
    files = [file for file in files if is_named(file)]
    sessions = {file.entities['ses'] for file in files if 'ses' in file.entities}
    if unknown := sorted(set(select.session_label) - sessions):
        raise InputError(
            f'no session {", ".join(unknown)} with multi-echo images in {root}; '
            f'its sessions are: {", ".join(sorted(sessions)) or "none"}'
        )
    # A single echo needs no echo entity: its magnitude may be called as a plain image is.
    with_phase = {
        (file.folder, file.group)
        for file in files
        if file.entities.get('part') == 'phase' and 'echo' not in file.entities
    }
    images, problems = [], []
    skipped: dict[tuple[str, str], list[File]] = defaultdict(list)
    for file in files:
        if (subject := file.owner) not in subjects:
            continue
        folders = [f'{key}-{file.entities[key]}' for key in ('sub', 'ses') if key in file.entities]
        place = (*folders, file.folder[-1])
        if reason := _why_skipped(file, select, (file.folder, file.group) in with_phase):
            skipped[subject, reason].append(file)
        elif place != file.folder:
            wrong = f'the name belongs into the folder {"/".join(place)}: rename or move the file'
            problems.append(Problem(subject, str(file.path), wrong, run=file.run))
        else:
            images.append(file)
    for (subject, reason), group in skipped.items():
        problems.append(Problem(subject, *first_of([f.path for f in group], reason), 'skipped'))
    with_images = {file.owner for file in images}
    for subject in subjects:
        problems += look_alikes(root, subject, indexed, select, subject in with_images)
    reported = with_images | {problem.subject for problem in problems}
    problems += [
        Problem(subject, str(root / f'sub-{subject}'), 'no multi-echo images', 'skipped')
        for subject in subjects
        if subject not in reported
    ]
    return images, problems


def _why_skipped(file: File, select: Selection, has_phase: bool) -> str:
    """Why an image is no echo of a run, or an empty string."""
    plain = file.suffix == 'T2starw' and not {'echo', 'part'} & set(file.entities)
    if plain and not has_phase:
        return 'plain T2*-weighted images, without echo and part, hold no field'
    if select.session_label and file.entities.get('ses') not in select.session_label:
        return 'not among the sessions of --session-label'
    if not select.admits(file, 'megre'):
        return 'left out by --bids-filter-file'
    return ''
