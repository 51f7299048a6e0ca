"""The index of a dataset, its participants and their images.

pybids indexes the dataset; names and sidecars are then read here. pybids reads names from the
whole path, so that a parent folder called ``sub-x`` would rename every participant, and it stops
at the first broken sidecar of the dataset, where only that sidecar's participant should stop."""

import json
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from precondqsm_bids.inputs.files import EXTENSIONS, IMAGE_SUFFIXES, File, parse
from precondqsm_bids.inputs.filters import passes
from precondqsm_bids.inputs.run import InputError, Problem

R2_SUFFIXES = ('R2map', 'T2map')
FOLDERS = ('anat', 'swi')
"""Where images are looked for: ``anat`` in BIDS, ``swi`` in its draft for susceptibility."""
OTHER_DATATYPES = 'beh|dwi|eeg|fmap|func|ieeg|meg|micr|motion|mrs|nirs|perf|pet'
INDEX_FILE = 'layout_index.sqlite'
"""What pybids calls its index within the folder of --bids-database-dir."""


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


def index_dataset(
    root: Path,
    subjects: Sequence[str],
    database_dir: Path | None,
    ignore: Iterable[Path],
    contrasts: Sequence[str] = (),
) -> list[File]:
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


def is_image(file: File) -> bool:
    """Whether a file may be an echo of a run."""
    return file.suffix in IMAGE_SUFFIXES and file.extension in EXTENSIONS


def multi_echo_images(
    files: Sequence[File],
    subjects: Sequence[str],
    wanted: Mapping[str, Any],
    sessions: Sequence[str],
    root: Path,
) -> tuple[list[File], list[Problem]]:
    """The participants' multi-echo images, and what is left out and why.

    An image in another participant's folder is a problem.
    """
    images, problems = [], []
    skipped: dict[tuple[str, str], list[File]] = defaultdict(list)
    # A single echo needs no echo entity: its magnitude may be called as a plain image is.
    with_phase = {
        (file.folder, file.group)
        for file in filter(is_image, files)
        if file.entities.get('part') == 'phase' and 'echo' not in file.entities
    }
    for file in filter(is_image, files):
        subject = file.folder[0].removeprefix('sub-') if file.folder else ''
        if subject not in subjects:
            continue
        folders = [f'{key}-{file.entities[key]}' for key in ('sub', 'ses') if key in file.entities]
        plain = file.suffix == 'T2starw' and not {'echo', 'part'} & set(file.entities)
        if plain and (file.folder, file.group) not in with_phase:
            reason = 'plain T2*-weighted images, without echo and part, hold no field'
        elif sessions and file.entities.get('ses') not in sessions:
            reason = 'not among the sessions of --session-label'
        elif not passes(file, wanted):
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


def walk_derivative(
    root: Path, subjects: Sequence[str], contrasts: Sequence[str] = ()
) -> Iterator[File]:
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
        if file := parse(path, root):
            yield file
