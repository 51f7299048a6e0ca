"""The plot: from the files of a dataset to its runs, and to what is wrong with the others."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from precondqsm_bids.inputs.companions import Source, kinds_of, with_companions
from precondqsm_bids.inputs.echoes import make_run
from precondqsm_bids.inputs.fields import SUFFIX, Groups, field_images, make_field_run
from precondqsm_bids.inputs.files import File
from precondqsm_bids.inputs.index import (
    chosen_participants,
    echo_images,
    index_dataset,
    index_derivative,
)
from precondqsm_bids.inputs.run import Note, Problem, Run, RunError
from precondqsm_bids.inputs.selection import Selection
from precondqsm_bids.method import Method
from precondqsm_bids.numerics.prior.tissue import R2_FIELD_STRENGTH


def find_runs(
    bids_dir: Path, *, select: Selection | None = None, method: Method | None = None
) -> tuple[list[Run], list[Problem]]:
    """The runs of a dataset that can be reconstructed, and what is wrong with the others.

    Parameters
    ----------
    bids_dir : Path
        Root of the dataset.
    select : Selection, optional
        Which of its files are read, and which derivatives; by default all, and none.
    method : Method, optional
        What is read besides the echoes, and what every run must have for it.

    Returns
    -------
    runs : list of Run
        Sorted by label.
    problems : list of Problem
        Sorted by participant. One participant's problem never stops another participant.

    Raises InputError if a participant or session is not in the dataset, or the index is another
    dataset's.
    """
    select, method = select or Selection(), method or Method()
    subjects = chosen_participants(bids_dir, select.participant_label)
    suffixes = {suffix for kind in kinds_of(method) for suffix in kind.suffixes}
    if method.field_given:
        suffixes.add(SUFFIX)
    sources = [
        *(index_derivative(path, subjects, suffixes) for path in select.derivatives.values()),
        index_dataset(bids_dir, subjects, suffixes, select),
    ]
    groups: Groups = defaultdict(list)
    if method.field_given:
        groups, problems = field_images(sources[:-1], subjects, select)
    else:
        images, problems = echo_images(sources[-1], subjects, select, bids_dir)
        for image in images:
            groups[image.group].append(image)
    runs = []
    for key, files in sorted(groups.items()):
        subject = dict(key)['sub']
        try:
            run, notes = _assemble(files, _of_participant(subject, sources), select, method)
        except RunError as error:
            notes = [Note(error.path, str(error), 'error')]
        else:
            runs.append(run)
        problems += [Problem(subject, str(n.path), n.message, n.kind, files[0].run) for n in notes]
    return runs, sorted(problems, key=lambda problem: (problem.subject, problem.file))


def _assemble(
    files: Sequence[File], sources: Sequence[Source], select: Selection, method: Method
) -> tuple[Run, list[Note]]:
    """The run of some images, with all that the method reads, and what is to be reported."""
    if method.field_given:
        (source,) = (source for source in sources if files[0] in source)
        run, notes = make_field_run(files, source, method)
        run, more = with_companions(run, sources, select, method)
        _check_method(run, method)  # R2* is a companion
        return run, notes + more
    run, notes = make_run(files, sources[-1], method)
    _check_method(run, method)
    run, more = with_companions(run, sources, select, method)
    return run, notes + more


def _check_method(run: Run, method: Method) -> None:
    """Raise if the method does not go with the echoes or the field strength of a run."""
    if run.without_r2star and method.r2star_terms:
        why, way_out = 'has no R2starmap beside it', 'add it'
        if run.one_echo:
            why, way_out = f'is the only echo (EchoTime {run.echo_times[0]:g} s)', 'add the others'
        more = ', which takes two echoes or more' * run.one_echo
        raise RunError(
            run.sources[0],
            f'{why}, and --prior {" ".join(method.r2star_terms)} is made of R2*{more}: {way_out}, '
            'give --prior contrast, tissue, map:FILE or shape, or leave the run out with '
            '--bids-filter-file',
        )
    low, high = R2_FIELD_STRENGTH
    if (
        method.r2 == 'literature'
        and not run.without_r2star
        and not low <= run.field_strength <= high
    ):
        raise RunError(
            run.sources[0],
            f'{run.field_strength_source} is {run.field_strength:g} T, and --r2 literature holds '
            f'for 3 T ({low:g} to {high:g} T): give --r2 NUMBER, median or map, or leave the run '
            'out with --bids-filter-file',
        )


def _of_participant(subject: str, sources: Iterable[Source]) -> list[Source]:
    """Files of the datasets without those of other participants."""
    return [[file for file in source if file.owner in ('', subject)] for source in sources]
