"""The app: find the runs, run the workflow, assemble the reports, say what failed and where.

At the group level: gather what the participant level left.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from precondqsm_bids import __version__
from precondqsm_bids.cli import work_folder
from precondqsm_bids.cli.call import Call
from precondqsm_bids.cli.dry_run import describe_runs, echo_time_words
from precondqsm_bids.cli.environment import (
    configure_nipype,
    ending_on_sigterm,
    logging_to,
    repair_environment,
)
from precondqsm_bids.cli.execution import Plugin, execute, read_plugin, write_graph
from precondqsm_bids.cli.failures import (
    DONE,
    FAILED,
    Failure,
    conclude,
    nothing_to_do,
    of_input,
    status_of,
)
from precondqsm_bids.cli.parser import parse_args
from precondqsm_bids.cli.progress import say
from precondqsm_bids.cli.reports import group, reports_only, write_reports
from precondqsm_bids.cli.resources import cpu_limit, memory_limit
from precondqsm_bids.config import Settings

if TYPE_CHECKING:
    from precondqsm_bids.bids import Problem, Run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the app.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name.

    Returns
    -------
    int
        0 done, 1 a participant or its report failed, 2 usage, 70 nothing to do.
    """
    try:
        settings = parse_args(argv)
    except SystemExit as end:
        return int(end.code or 0)
    command = shlex.join(['precondqsm_bids', *(sys.argv[1:] if argv is None else argv)])
    call = Call(settings, command, environment=dict(os.environ))
    repair_environment(settings.omp_nthreads)
    at_group = settings.analysis_level == 'group'
    again = f'the same command {"does it" if at_group else "goes on from the work folder"}'
    try:
        with ending_on_sigterm(f'terminated; {again}'):
            return run_app(call)
    except (Exception, KeyboardInterrupt) as error:
        return status_of(error, call, again)


def run_app(call: Call) -> int:
    """Do what was asked for; the exit status.

    Raises
    ------
    InputError
        If the request cannot be met.
    """
    from precondqsm_bids.bids import InputError, check_description, check_filters
    from precondqsm_bids.cli.submit import submit

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
    plugin = read_plugin(settings.use_plugin)
    if settings.reports_only:
        return reports_only(call)

    runs, problems = find(settings, here=plugin.is_local and not settings.submit)
    fatal = any(problem.fatal for problem in problems)
    if settings.dry_run and not settings.submit:
        print(describe_runs(settings, runs, problems))
    if not runs and not fatal:
        status = nothing_to_do(
            f'{settings.bids_dir} has no multi-echo gradient-echo images (_MEGRE, or _T2starw '
            'with echo-) for these participants, sessions and filters'
        )
        for problem in problems:
            print(f'skipped: {problem}', file=sys.stderr)
        return status
    if settings.submit:
        for problem in problems:
            say(f'{problem.kind}: {problem}', sys.stderr if problem.fatal else sys.stdout)
        submit(call, runs, problems)
        return DONE
    if settings.dry_run:
        return FAILED if fatal else DONE
    return process(call, runs, problems, plugin)


def find(settings: Settings, here: bool) -> tuple[list['Run'], list['Problem']]:
    """The runs of the dataset and what is wrong with others.

    Parameters
    ----------
    settings : Settings
        The command line, parsed.
    here : bool
        If true, a run that cannot fit into the memory of this process is a problem: the echo fit
        holds all echoes at a time, as float32. What may fit is tried, with a warning
        (:func:`~precondqsm_bids.cli.execution.execute`).
    """
    from precondqsm_bids.bids import Problem, find_runs

    method = settings.method
    runs, problems = find_runs(
        settings.bids_dir,
        participant_label=settings.participant_label,
        session_label=settings.session_label,
        filters=settings.bids_filters,
        derivatives=settings.derivatives,
        database_dir=settings.bids_database_dir,
        field_strength=method.field_strength,
        b0_dir=method.b0_dir,
        mask=method.mask,
        reference=method.reference,
        tissue=method.needs_tissue,
        r2_map=method.needs_r2_map,
        r2star_priors=method.r2star_terms,
        prior_maps=method.prior_maps,
        contrasts=method.contrasts,
        ignore=[settings.output_dir],
    )
    limit = memory_limit()
    room = max(settings.mem_gb, limit.value)
    fitting = [run for run in runs if not here or run.series_gb <= room]
    for run in (run for run in runs if here and run.series_gb > room):
        message = (
            f'the matrix {" x ".join(map(str, run.matrix))} with {len(run.echo_times)} echoes '
            f'takes {run.series_gb:.4g} GB of memory for the images alone, and there are '
            f'{room:.4g} GB ({limit.source}): take a machine with several times that, or larger '
            'voxels'
        )
        problems = [*problems, Problem(run.subject, run.sources[0], message)]
    return fitting, list(problems)


def process(
    call: Call, runs: Sequence['Run'], problems: Sequence['Problem'], plugin: Plugin
) -> int:
    """Reconstruct the runs and assemble the reports; the exit status.

    Parameters
    ----------
    call : Call
        What was asked for.
    runs, problems : sequence
        Those of the dataset.
    plugin : Plugin
        What runs the nodes.
    """
    settings, log_dir = call.settings, call.log_dir
    make_folders(call, computing=bool(runs) and not settings.boilerplate_only)
    with logging_to(log_dir / 'precondqsm_bids.log', settings.verbose):
        introduce(call, runs)
        for problem in problems:
            if not problem.fatal:
                say(f'{problem.kind}: {problem}')
        if not settings.skip_bids_validation:
            validate(settings.bids_dir, log_dir / 'bids-validator.json')
        failures = [of_input(call, problem) for problem in problems if problem.fatal]
        citation = ''
        if runs:
            citation, more = reconstruct(call, runs, plugin)
            failures += more
        if settings.boilerplate_only:
            say(f'methods text: {log_dir / "CITATION.md"}')
        else:
            failures += write_reports(call, runs, failures, citation)
        failed = {failure.subject for failure in failures}
        everyone = {run.subject for run in runs} | failed
        if failures:
            counts = f'{len(failed)} of {len(everyone)} participants failed; log {log_dir}'
            say(f'finished: {counts}', sys.stderr)
        else:
            say(f'finished: {len(everyone)} of {len(everyone)} participants')
        return conclude(failures)


def make_folders(call: Call, computing: bool) -> None:
    """The folders of outputs, log and intermediate results, with what comes before all else.

    Parameters
    ----------
    call : Call
        What was asked for.
    computing : bool
        If true, there will be intermediate results.

    Raises
    ------
    InputError
        If they cannot be written to, or the intermediate results are those of another version.
    """
    from precondqsm_bids.bids import InputError
    from precondqsm_bids.interfaces.bids import write_dataset_description

    settings = call.settings
    work_dir = settings.work_dir
    if work_dir and computing and not settings.clean_workdir:
        work_folder.check_version(work_dir)
    try:
        call.log_dir.mkdir(parents=True)
        write_dataset_description(settings.output_dir, settings.bids_dir, settings.derivatives)
        (call.log_dir / 'config.toml').write_text(settings.to_toml(), encoding='utf-8')
        if work_dir and settings.clean_workdir:
            work_folder.clean(work_dir)
        if work_dir and computing:
            work_folder.stamp_version(work_dir)  # before anything else is there
    except OSError as error:
        raise InputError(f'cannot write to {error.filename}: {error.strerror}') from error


def introduce(call: Call, runs: Sequence['Run']) -> None:
    """Say what is about to happen, with which resources."""
    settings = call.settings
    cpus, memory = cpu_limit(), memory_limit()
    say(f'precondqsm_bids {__version__}: {settings.bids_dir} -> {settings.output_dir}')
    say(
        f'{settings.nprocs} processes (of {cpus.value:g} CPUs: {cpus.source}), '
        f'{settings.omp_nthreads} threads each node, {settings.mem_gb:g} GB '
        f'(of {memory.value:.4g}: {memory.source})'
    )
    say(f'work folder {settings.work_dir}; log {call.log_dir}')
    for run in runs:
        echoes = '1 echo' if run.one_echo else f'{len(run.echo_times)} echoes'
        say(
            f'{run.label}: {echoes}, {echo_time_words(run)} ms, '
            f'{run.field_strength:g} T, prior {settings.method.summary(run.one_echo)}'
        )
    for subject in sorted(set(settings.participant_label) - {run.subject for run in runs}):
        say(f'warning: sub-{subject}: no run to reconstruct')
    if settings.work_dir and settings.work_dir.is_dir() and not settings.boilerplate_only:
        work_folder.warn_of_room(settings.work_dir, runs)


def reconstruct(call: Call, runs: Sequence['Run'], plugin: Plugin) -> tuple[str, list[Failure]]:
    """Build the workflow, write its methods text and graph, and run it.

    Parameters
    ----------
    call : Call
        What was asked for.
    runs : sequence of Run
        All that will be reconstructed.
    plugin : Plugin
        What runs the nodes.

    Returns
    -------
    citation : str
        Methods text.
    failures : list of Failure
        Those of the nodes.
    """
    settings = call.settings
    configure_nipype(
        call.log_dir,
        stop_on_first_crash=settings.stop_on_first_crash,
        resource_monitor=settings.resource_monitor,
        debug=settings.verbose >= 3,
    )
    from precondqsm_bids.workflows.base import init_base_wf

    workflow = init_base_wf(settings, runs, call.log_name)
    citation = workflow.visit_desc()
    (call.log_dir / 'CITATION.md').write_text(citation, encoding='utf-8')
    if settings.write_graph:
        write_graph(workflow, call.log_dir)
    return citation, [] if settings.boilerplate_only else execute(call, workflow, runs, plugin)


def validate(bids_dir: Path, log: Path) -> None:
    """Run the validator where it is installed; what it finds is reported, and stops nobody.

    The files of each participant are checked one by one before; what else is wrong with a dataset
    is no reason to leave out a participant whose images are right.
    """
    program = shutil.which('bids-validator-deno')
    if program is None:
        return
    try:
        done = subprocess.run(
            [program, '--format', 'json', str(bids_dir)],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        issues = json.loads(done.stdout)['issues']['issues']
    except (OSError, ValueError, KeyError, TypeError, subprocess.TimeoutExpired) as error:
        say(f'warning: bids-validator-deno gave no result: {error!r}')
        return
    log.write_text(done.stdout, encoding='utf-8')
    errors = [issue for issue in issues if issue.get('severity') == 'error']
    if errors:
        codes = ', '.join(sorted({str(issue.get('code')) for issue in errors}))
        say(f'warning: bids-validator-deno finds {len(errors)} errors ({codes}): {log}')
