"""From the field maps of derivatives to runs, for ``--field derivatives``."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from precondqsm_bids.inputs.field_strength import find_field_strength, given_by_options
from precondqsm_bids.inputs.files import File, read_metadata
from precondqsm_bids.inputs.grid import check_grids, load_grid
from precondqsm_bids.inputs.run import Note, Problem, Run, RunError
from precondqsm_bids.inputs.segmentations import SCANNER_SPACES
from precondqsm_bids.inputs.selection import Selection
from precondqsm_bids.method import Method
from precondqsm_bids.numerics.given_field import UNITS

SUFFIX = 'fieldmap'
TOTAL = (None, 'total')
"""Labels of ``desc`` of a total field: none, or that of this program's own."""
DEVIATION = 'sd'
"""Label of ``desc`` of the field's standard deviation, in the units of the field."""

Groups = dict[tuple[tuple[str, str], ...], list[File]]


def field_images(
    sources: Sequence[Sequence[File]], subjects: Sequence[str], select: Selection
) -> tuple[Groups, list[Problem]]:
    """The participants' field maps by what the maps of a run have in common, and what is left out.

    Of several datasets with the same the first counts.
    """
    groups: Groups = {}
    problems = []
    for source in sources:
        own: Groups = defaultdict(list)
        for file in source:
            if file.suffix != SUFFIX or not file.is_image or file.owner not in subjects:
                continue
            if file.entities.get('sub') != file.owner:
                reason = f'is in the folder of sub-{file.owner}'
            else:
                reason = _why_skipped(file, select)
            if reason:
                problems.append(Problem(file.owner, str(file.path), reason, 'skipped'))
                continue
            own[tuple(pair for pair in file.group if pair[0] != 'desc')].append(file)
        for key, files in own.items():
            if key not in groups:
                groups[key] = files
                continue
            reason = f'field not used: {groups[key][0].path} comes first, by the order of -d'
            problems.append(Problem(files[0].owner, str(files[0].path), reason, 'skipped'))
    reported = {dict(key)['sub'] for key in groups} | {problem.subject for problem in problems}
    problems += [
        Problem(subject, f'sub-{subject}', 'no _fieldmap in the folders of -d', 'skipped')
        for subject in subjects
        if subject not in reported
    ]
    return groups, problems


def _why_skipped(file: File, select: Selection) -> str:
    """Why a field map is not the field of a run, or an empty string."""
    desc, space = file.entities.get('desc'), file.entities.get('space', 'orig')
    if select.session_label and file.entities.get('ses') not in select.session_label:
        return 'not among the sessions of --session-label'
    if desc == DEVIATION:
        return ''
    if not select.admits(file, SUFFIX):
        return 'left out by --bids-filter-file'
    if space not in SCANNER_SPACES:
        return f'is in the space {space}: the field is needed as it was scanned'
    if desc not in TOTAL and 'description' not in select.filters.get(SUFFIX, {}):
        return (
            f'is not a total field by its name (desc-{desc}): that has no desc, or desc-total; '
            f'choose with --bids-filter-file {{"{SUFFIX}": {{"description": ...}}}}'
        )
    return ''


def make_field_run(
    files: Sequence[File], source: Sequence[File], method: Method
) -> tuple[Run, list[Note]]:
    """The run of the field maps that differ in ``desc`` only, checked, and what is to be reported.

    The sidecars are among the files of the source. The magnitude is a companion.
    """
    fields = [file for file in files if file.entities.get('desc') != DEVIATION]
    deviations = [file for file in files if file.entities.get('desc') == DEVIATION]
    if not fields:
        raise RunError(files[0].path, 'has no total field beside it')
    fields.sort(key=lambda file: (file.entities.get('desc') is None, str(file.path)))
    first = fields[0]
    notes = [
        Note(f.path, f'field not used: {first.path} comes first', 'skipped') for f in fields[1:]
    ]
    metadata = {file: read_metadata(file, source) for file in (first, *deviations[:1])}
    notes += [note for content in metadata.values() for note in content.notes]
    shape = load_grid(first.path).shape
    if len(shape) != 3:
        raise RunError(first.path, f'has the shape {shape}: a field is one 3D image')
    units = _units({file: content.get('Units') for file, content in metadata.items()})
    grid, grid_notes = check_grids([file.path for file in metadata], method.b0_dir)
    strength, strength_notes = find_field_strength({first: metadata[first]}, method.field_strength)
    stated = [metadata[first].get('MagneticFieldStrength')]
    missing = given_by_options(grid.oriented, strength, stated)
    run = Run(
        subject=first.entities['sub'],
        session=first.entities.get('ses'),
        entities={
            key: label
            for key, label in first.entities.items()
            if key not in ('sub', 'ses', 'desc', 'space')
        },
        magnitude=(),
        phase=(),
        echo_times=(),
        field=str(first.path),
        field_units=units,
        field_sd=str(deviations[0].path) if deviations else None,
        field_strength=strength.value,
        field_strength_source=strength.source,
        metadata=dict(metadata[first]),
        matrix=grid.shape[:3],
        b0_dir=tuple(map(float, method.b0_dir)) if method.b0_dir else None,
        missing=tuple(missing),
    )
    return run, [*notes, *grid_notes, *strength_notes]


def _units(units: Mapping[File, Any]) -> str:
    """The one unit of the field and of its deviation."""
    (first, stated), *_ = units.items()
    for file, unit in units.items():
        if unit not in UNITS:
            raise RunError(
                file.path,
                f'Units {unit!r} are not one of {", ".join(UNITS)}: write them into its sidecar',
            )
        if unit != stated:
            raise RunError(file.path, f'Units {unit!r} differ from {stated!r} of {first.path}')
    return str(stated)
