"""Which files of a dataset make a run, and what is wrong with them before anything is computed."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from precondqsm_bids.inputs.companions import (
    check_prior_maps,
    find_segmentations,
    label_files,
    with_contrasts,
    with_labels,
    with_mask,
    with_r2_map,
    with_tissue,
)
from precondqsm_bids.inputs.echoes import check_one_echo, make_run, one_suffix
from precondqsm_bids.inputs.files import EXTENSIONS, File
from precondqsm_bids.inputs.filters import passes
from precondqsm_bids.inputs.index import (
    R2_SUFFIXES,
    index_dataset,
    is_image,
    multi_echo_images,
    participants,
    walk_derivative,
)
from precondqsm_bids.inputs.run import InputError, Problem, Run, RunError


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
    files = index_dataset(bids_dir, subjects, database_dir, ignore, contrasts)
    filters = filters or {}
    images, problems = multi_echo_images(
        files, subjects, filters.get('megre', {}), session_label, bids_dir
    )
    sessions = {
        file.entities['ses'] for file in files if is_image(file) and 'ses' in file.entities
    }
    if unknown := sorted(set(session_label) - sessions):
        raise InputError(
            f'no session {", ".join(unknown)} with multi-echo images in {bids_dir}; '
            f'its sessions are: {", ".join(sorted(sessions)) or "none"}'
        )
    sidecars = [file for file in files if file.extension == '.json']
    sources = [
        list(walk_derivative(path, subjects, contrasts)) for path in (derivatives or {}).values()
    ]
    labels = label_files([*sources, files], filters.get('dseg', {}))
    segmentations = find_segmentations([*sources, files], filters.get('tissue', {}))
    relaxation = [
        (file, [other for other in source if other.extension == '.json'])
        for source in [*sources, files]
        for file in source
        if file.suffix in R2_SUFFIXES
        and file.extension in EXTENSIONS
        and passes(file, filters.get('r2', {}))
    ]
    further = [
        file
        for source in [*sources, files]
        for file in source
        if file.suffix in contrasts
        and file.extension in EXTENSIONS
        and passes(file, filters.get('contrast', {}))
    ]
    masks = [
        file
        for source in sources
        for file in source
        if file.suffix == 'mask' and passes(file, filters.get('mask', {}))
    ]
    groups: dict[tuple[tuple[str, str], ...], list[File]] = defaultdict(list)
    for image in images:
        groups[image.group].append(image)
    runs = []
    for key, members in sorted(groups.items()):
        subject = dict(key)['sub']
        try:
            members, suffix_notes = one_suffix(subject, members)
            run, notes = make_run(members, sidecars, field_strength, b0_dir)
            if run.one_echo:
                check_one_echo(run, r2star_priors)
            run, mask_notes = with_mask(run, masks, mask)
            run, label_notes = with_labels(run, labels, reference)
            more_notes: list[Problem] = []
            if tissue:
                run, told = with_tissue(run, segmentations)
                more_notes += told
            if r2_map and not run.one_echo:
                run, told = with_r2_map(run, relaxation)
                more_notes += told
            if contrasts:
                run, told = with_contrasts(run, further, contrasts)
                more_notes += told
            check_prior_maps(run, prior_maps)
            runs.append(run)
            problems += suffix_notes + notes + mask_notes + label_notes + more_notes
        except RunError as error:
            problems.append(Problem(subject, error.path, str(error)))
    return runs, sorted(problems, key=lambda problem: (problem.subject, problem.file))
