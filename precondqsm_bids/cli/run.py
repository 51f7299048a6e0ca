"""The app: find the runs, run the workflow, assemble the reports, say what failed and where.

At the group level: gather what the participant level left.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from precondqsm_bids.cli import environment, failures, work_folder
from precondqsm_bids.cli.call import Call, Found
from precondqsm_bids.cli.dry_run import describe_runs, echo_time_words
from precondqsm_bids.cli.execution import Plugin, execute, read_plugin, write_graph
from precondqsm_bids.cli.parser import parse_args, stated_settings
from precondqsm_bids.cli.progress import put, say
from precondqsm_bids.cli.reports import (
    cite_what_was_done,
    computed,
    group,
    reports_only,
    write_citation,
    write_reports,
)
from precondqsm_bids.cli.resources import cpu_limit, memory_limit
from precondqsm_bids.config import Settings
from precondqsm_bids.cost import cost_of
from precondqsm_bids.revision import full_version


def main(argv: Sequence[str] | None = None) -> int:
    """Run the app; 0 done, 1 a participant or its report failed, 2 usage, 70 nothing to do."""
    try:
        settings = parse_args(argv)
    except SystemExit as end:
        return int(end.code or 0)
    command = shlex.join(['precondqsm_bids', *(sys.argv[1:] if argv is None else argv)])
    call = Call(settings, command, environment=dict(os.environ))
    environment.repair_environment()
    at_group = settings.analysis_level == 'group'
    again = f'the same command {"does it" if at_group else "goes on from the work folder"}'
    try:
        with environment.ending_on_sigterm(f'terminated; {again}'):
            return run_app(call)
    except (Exception, KeyboardInterrupt) as error:
        return failures.status_of(error, call, again)


def run_app(call: Call) -> int:
    """Do what was asked for; the exit status.

    Raises InputError if the request cannot be met.
    """
    from precondqsm_bids.cli.resume import resume
    from precondqsm_bids.cli.submit import submit
    from precondqsm_bids.inputs.index import check_derivative, check_description
    from precondqsm_bids.inputs.run import InputError
    from precondqsm_bids.inputs.selection import check_filters

    settings = call.settings
    if not settings.skip_bids_validation:
        check_description(settings.bids_dir)
    if settings.analysis_level == 'group':
        return group(call)
    if settings.bids_filters is not None:
        check_filters(settings.bids_filters, 'bids_filters')
    for name, folder in settings.derivatives.items():
        if not folder.is_dir():
            raise InputError(f'no such folder: {folder} (derivatives {name})')
        check_derivative(folder)
    plugin = read_plugin(settings.use_plugin)
    if settings.reports_only:
        return reports_only(call)
    if settings.resume_with:
        return resume(call)

    found = find(settings, here=plugin.is_local and not settings.submit)
    if settings.dry_run and not settings.submit:
        put(describe_runs(settings, found))
    if not found.subjects:
        status = failures.nothing_to_do(
            f'{settings.bids_dir} has no multi-echo gradient-echo images (_MEGRE, or _T2starw '
            'with echo-) for these participants, sessions and filters'
            if not settings.method.field_given
            else 'the derivatives have no total field (_fieldmap) of these participants'
        )
        for problem in found.problems if not settings.dry_run or settings.submit else ():
            print(f'skipped: {problem}', file=sys.stderr)
        return status
    if settings.submit:
        for problem in found.problems:
            say(f'{problem.kind}: {problem}', sys.stderr if problem.fatal else sys.stdout)
        submit(call, found)
        return failures.DONE
    if settings.dry_run:
        return failures.FAILED if found.fatal else failures.DONE
    if plugin.is_local and 'omp_nthreads' not in stated_settings(call.argv):
        threads = threads_of_each(settings, found)
        call = replace(call, settings=replace(settings, omp_nthreads=threads))
    return process(call, found, plugin)


def threads_of_each(settings: Settings, found: Found) -> int:
    """Threads of a node where they were not stated: of several participants, fewer.

    Beside each other, with nodes of one thread, they take less time than one after the other with
    all threads, as far as the memory of their largest stages goes.
    """
    memory = max((cost_of([run], settings.method).memory_gb for run in found.runs), default=1.0)
    subjects = {run.subject for run in found.runs}
    together = min(len(subjects), settings.nprocs, int(settings.mem_gb // memory))
    return min(settings.omp_nthreads, settings.nprocs // max(1, together))


def find(settings: Settings, here: bool) -> Found:
    """The runs of the dataset, and the problems with its files.

    To be computed ``here``, a run has to fit into memory: the echo fit holds all echoes at a time,
    as float32. One that may fit is tried, with a warning (:func:`execute`).
    """
    from precondqsm_bids.inputs.discovery import find_runs
    from precondqsm_bids.inputs.duplicates import find_duplicates
    from precondqsm_bids.inputs.run import Problem
    from precondqsm_bids.inputs.selection import Selection

    select = Selection(
        participant_label=settings.participant_label,
        session_label=settings.session_label,
        filters=settings.bids_filters or {},
        derivatives=settings.derivatives,
        database_dir=settings.bids_database_dir,
        ignore=[settings.output_dir],
    )
    runs, problems = find_runs(settings.bids_dir, select=select, method=settings.method)
    found = Found([], [*problems, *find_duplicates(runs)])
    limit = memory_limit()
    room = max(settings.mem_gb, limit.value)
    for run in runs:
        if not here or run.series_gb <= room:
            found.runs.append(run)
            continue
        message = (
            f'the matrix {" x ".join(map(str, run.matrix))} with {len(run.echo_times)} echoes '
            f'takes {run.series_gb:.4g} GB of memory for the images alone, and there are '
            f'{room:.4g} GB ({limit.source}): take a machine with several times that, or larger '
            'voxels'
        )
        found.problems.append(Problem(run.subject, run.sources[0], message, run=run.label))
    return found


def process(call: Call, found: Found, plugin: Plugin) -> int:
    """Reconstruct the runs and assemble the reports; the exit status."""
    settings, log_dir = call.settings, call.log_dir
    computing = bool(found.runs) and not settings.boilerplate_only
    with ExitStack() as stack:
        if settings.work_dir and (computing or settings.clean_workdir):
            cleaned = settings.clean_workdir
            stack.enter_context(work_folder.in_use(settings.work_dir, found.subjects, cleaned))
        make_folders(call, computing)
        log = environment.logging_to(log_dir / 'precondqsm_bids.log', settings.verbose)
        stack.enter_context(log)
        introduce(call, found)
        with nullcontext() if settings.skip_bids_validation else validation(call):
            failed, left = reconstruct(call, found, plugin)
        everyone = f'{len(found.subjects)} participants'
        if failed:
            some = str(len({failure.subject for failure in failed}))
            more = f', {len(left)} not computed' if left else ''
            say(f'finished: {some} of {everyone} failed{more}; log {log_dir}', sys.stderr)
        else:
            say(f'finished: {len(found.subjects)} of {everyone}')
        return failures.conclude(failed)


def make_folders(call: Call, computing: bool) -> None:
    """Make the folders of outputs, log and intermediate results, with what comes before all else.

    Raises InputError if they cannot be written to, or the intermediate results are those of
    another version.
    """
    from precondqsm_bids.inputs.run import InputError
    from precondqsm_bids.outputs.dataset import write_dataset_description

    settings = call.settings
    work_dir = settings.work_dir
    if work_dir and computing and not settings.clean_workdir:
        work_folder.check_version(work_dir)
    try:
        call.log_dir.mkdir(parents=True)
        write_dataset_description(settings.output_dir, settings.bids_dir, settings.derivatives)
        (call.log_dir / 'config.toml').write_text(settings.to_toml(), encoding='utf-8')
        if work_dir and computing:
            work_folder.stamp_version(work_dir)  # before anything else is there
    except OSError as error:
        raise InputError(f'cannot write to {error.filename}: {error.strerror}') from error


def introduce(call: Call, found: Found) -> None:
    """Say what is about to happen, with which resources, and what is left out."""
    settings = call.settings
    cpus, memory = cpu_limit(), memory_limit()
    say(f'precondqsm_bids {full_version()}: {settings.bids_dir} -> {settings.output_dir}')
    say(
        f'{settings.nprocs} processes (of {cpus.value:g} CPUs: {cpus.source}), '
        f'{settings.omp_nthreads} threads each node, {settings.mem_gb:g} GB '
        f'(of {memory.value:.4g}: {memory.source})'
    )
    say(f'work folder {settings.work_dir}; log {call.log_dir}')
    for run in found.runs:
        echoes = '1 echo' if run.one_echo else f'{len(run.echo_times)} echoes'
        echoes = 'field given' if run.field else f'{echoes}, {echo_time_words(run)} ms'
        prior = settings.method.summary(run.without_r2star)
        mask = run.mask or settings.method.mask
        say(f'{run.label}: {echoes}, {run.field_strength:g} T, prior {prior}, mask {mask}')
    for subject in sorted(set(settings.participant_label) - {run.subject for run in found.runs}):
        say(f'warning: sub-{subject}: no run to reconstruct')
    if not settings.boilerplate_only:
        for room in work_folder.rooms(settings, found):
            if room.shortage:
                say(f'warning: {room.shortage}')
    for problem in found.problems:
        if not problem.fatal:
            say(f'{problem.kind}: {problem}')


def reconstruct(
    call: Call, found: Found, plugin: Plugin
) -> tuple[list[failures.Failure], list[str]]:
    """Run the workflow and report on each participant as soon as it is through.

    Returns all failures, and the participants that were not computed since one failed.
    """
    settings = call.settings
    citation, workflow = build(call, found) if found.runs else ('', None)
    if settings.boilerplate_only:
        say(f'methods text: {call.log_dir / "CITATION.md"}')
        return [failures.of_input(call, problem) for problem in found.fatal], []
    failed: dict[str, list[failures.Failure]] = {}

    def finish(subject: str, more: Sequence[failures.Failure] = ()) -> None:
        own = found.of(subject)
        known = [failures.of_input(call, problem) for problem in own.fatal]
        known += [*failures.of_nodes(call, own), *more]
        failed[subject] = known + write_reports(call, own, known, citation)

    for subject in sorted({problem.subject for problem in found.fatal}):
        if not found.of(subject).runs:
            finish(subject)
    error = execute(call, workflow, found, plugin, finish) if found.runs else ''
    without_crash = error and not failures.of_nodes(call, found)
    going = {*found.subjects} - {*failed} or found.subjects
    for failure in failures.of_workflow(call, found, error) if without_crash else ():
        if failure.subject in going:
            finish(failure.subject, [failure])
    stopped = error and settings.stop_on_first_crash
    for subject in found.subjects:
        if subject not in failed and not (stopped and _is_left(call, found.of(subject))):
            finish(subject)
    if found.runs:
        cite_what_was_done(call, found.subjects)
    everything = [failure for own in failed.values() for failure in own]
    return everything, [subject for subject in found.subjects if subject not in failed]


def _is_left(call: Call, found: Found) -> bool:
    """Whether a participant has not failed, and has a run that was not computed."""
    done = {label for subject in found.subjects for label in computed(call, subject)}
    without_failure = not found.fatal and not failures.of_nodes(call, found)
    return without_failure and not {run.label for run in found.runs} <= done


def build(call: Call, found: Found) -> tuple[str, Any]:
    """The workflow, and its methods text, which goes beside the log."""
    settings = call.settings
    environment.configure_nipype(
        call.log_dir,
        stop_on_first_crash=settings.stop_on_first_crash,
        resource_monitor=settings.resource_monitor,
        debug=settings.verbose >= 3,
    )
    from precondqsm_bids.workflows.base import init_base_wf

    workflow = init_base_wf(settings, found.runs, call.log_name)
    citation = workflow.visit_desc()
    write_citation(call, citation)
    if settings.write_graph:
        write_graph(workflow, call.log_dir)
    return citation, workflow


@contextmanager
def validation(call: Call) -> Iterator[None]:
    """Run the validator beside the block, where it is installed; what it finds stops nobody.

    The files of each participant are checked one by one before; what else is wrong with a dataset
    is no reason to leave out a participant whose images are right.
    """
    program = shutil.which('bids-validator-deno')
    if program is None:
        yield
        return
    log = call.log_dir / 'bids-validator.json'
    command = [program, '--format', 'json', str(call.settings.bids_dir)]
    with log.open('wb') as out:
        validator = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)
    try:
        yield
    except BaseException:
        validator.kill()
        raise
    try:
        validator.wait(timeout=600)
        issues = json.loads(log.read_text(encoding='utf-8'))['issues']['issues']
    except (OSError, ValueError, KeyError, TypeError, subprocess.TimeoutExpired) as error:
        validator.kill()
        say(f'warning: bids-validator-deno gave no result: {error!r}')
        return
    errors = [issue for issue in issues if issue.get('severity') == 'error']
    if errors:
        codes = ', '.join(sorted({str(issue.get('code')) for issue in errors}))
        say(f'warning: bids-validator-deno finds {len(errors)} errors ({codes}): {log}')
