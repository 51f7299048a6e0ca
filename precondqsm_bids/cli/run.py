"""The app: find the runs, run the workflow, assemble the reports, say what failed and where.

At the group level: gather what the participant level left.
"""

import errno
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precondqsm_bids import __version__
from precondqsm_bids.cli.environment import (
    before_sigterm_ends,
    configure_nipype,
    ending_on_sigterm,
    logging_to,
    python_command,
    repair_environment,
)
from precondqsm_bids.cli.parser import graph_renderer, parse_args
from precondqsm_bids.cli.progress import Stage, follow, new_log_name, say
from precondqsm_bids.cli.resources import cpu_limit, memory_limit
from precondqsm_bids.config import Settings

if TYPE_CHECKING:
    from precondqsm_bids.bids import Problem, Run

DONE, FAILED, USAGE, NOTHING_TO_DO = 0, 1, 2, 70

MOST_LINES = 20
"""Incomplete runs that the group level names on the terminal unless ``-v`` is given."""

NODE_JOB = 'precondqsm_bids.cli.node_job'
"""What a job of a batch system runs for one node."""

WORK_BYTES = 80
"""In the work folder for each voxel of a run: some 25 compressed maps of float32, as measured."""

_NO_RESULT_FILE = re.compile(r'FileNotFoundError: .*/result_\w+\.pklz$')
"""Nipype's last word on a node that could not write what it had computed."""

GRAPH_PLUGINS = ('CondorDAGMan', 'PBSGraph', 'SGEGraph', 'SLURMGraph')
"""These submit all jobs and return at once with success, whatever fails later."""


@dataclass(frozen=True)
class Failure:
    """What failed for one participant, and the file that says more."""

    subject: str
    what: str
    crash_file: Path

    def __str__(self) -> str:
        return f'sub-{self.subject} failed: {self.what}; crash file: {self.crash_file}'


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
    inherited = dict(os.environ)
    repair_environment(settings.omp_nthreads)
    from precondqsm_bids.bids import InputError
    from precondqsm_bids.cli.submit import SubmitError

    group_level = settings.analysis_level == 'group'
    again = 'the same command ' + ('does it' if group_level else 'goes on from the work folder')
    command = shlex.join(['precondqsm_bids', *(sys.argv[1:] if argv is None else argv)])
    try:
        with ending_on_sigterm(f'terminated; {again}'):
            return run_app(settings, command, inherited)
    except SubmitError as error:
        say(f'failed: {error}', sys.stderr)
        return FAILED
    except InputError as error:
        print(f'precondqsm_bids: error: {error}', file=sys.stderr)
        return USAGE
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        say(
            f'failed: {error.filename or settings.output_dir}: {error.strerror}; make room, and '
            f'{again}',
            sys.stderr,
        )
        return FAILED
    except KeyboardInterrupt:
        say(f'interrupted; {again}', sys.stderr)
        return 130


def run_app(settings: Settings, command: str, inherited: Mapping[str, str]) -> int:
    """Do what the settings ask for; its exit status.

    Parameters
    ----------
    settings : Settings
        What the command line says.
    command : str
        The command line itself, for the reports.
    inherited : mapping
        The environment before it was made fit for this process; that of jobs.

    Raises
    ------
    InputError
        If the request cannot be met.
    """
    from precondqsm_bids.bids import InputError, check_description, check_filters, find_runs
    from precondqsm_bids.cli.submit import submit

    if not settings.skip_bids_validation:
        check_description(settings.bids_dir)
    if settings.analysis_level == 'group':
        return group(settings, command)
    if settings.bids_filters is not None:
        check_filters(settings.bids_filters, 'bids_filters')
    for name, folder in settings.derivatives.items():
        if not folder.is_dir():
            raise InputError(f'no such folder: {folder} (derivatives {name})')
    plugin_file = read_plugin(settings.use_plugin) if settings.use_plugin else {}
    if settings.reports_only:
        return reports_only(settings)

    runs, problems = find_runs(
        settings.bids_dir,
        participant_label=settings.participant_label,
        session_label=settings.session_label,
        filters=settings.bids_filters,
        derivatives=settings.derivatives,
        database_dir=settings.bids_database_dir,
        field_strength=settings.method.field_strength,
        b0_dir=settings.method.b0_dir,
        mask=settings.method.mask,
        reference=settings.method.reference,
        tissue=settings.method.needs_tissue,
        r2_map=settings.method.needs_r2_map,
        r2star_priors=settings.method.r2star_terms,
        prior_maps=settings.method.prior_maps,
        contrasts=settings.method.contrasts,
        ignore=[settings.output_dir],
    )
    if not settings.submit and plugin_file.get('plugin', 'MultiProc') == 'MultiProc':
        runs, too_large = without_too_large(settings, runs)
        problems = [*problems, *too_large]
    fatal = [problem for problem in problems if problem.fatal]
    if settings.dry_run and not settings.submit:
        print(describe_runs(settings, runs, problems))
    if not runs and not fatal:
        print(
            f'precondqsm_bids: nothing to do: {settings.bids_dir} has no multi-echo '
            'gradient-echo images (_MEGRE, or _T2starw with echo-) for these participants, '
            'sessions and filters',
            file=sys.stderr,
        )
        for problem in problems:
            print(f'skipped: {problem}', file=sys.stderr)
        return NOTHING_TO_DO
    if settings.submit:
        for problem in problems:
            say(f'{problem.kind}: {problem}', sys.stderr if problem.fatal else sys.stdout)
        submit(settings, runs, problems, command, inherited)
        return DONE
    if settings.dry_run:
        return FAILED if fatal else DONE
    return process(settings, runs, problems, plugin_file, command, inherited)


def without_too_large(
    settings: Settings, runs: Sequence['Run']
) -> tuple[list['Run'], list['Problem']]:
    """The runs whose echoes fit into the memory, and what is wrong with the others.

    The echo fit holds them all at a time, as float32, so that the others cannot end well. What may
    fit is tried, with a warning (:func:`execute`).

    Parameters
    ----------
    settings : Settings
        What the command line says.
    runs : sequence of Run
        What was found in the dataset.
    """
    from precondqsm_bids.bids import Problem

    limit = memory_limit()
    room = max(settings.mem_gb, limit.value)
    kept, problems = [], []
    for run in runs:
        if run.series_gb <= room:
            kept.append(run)
            continue
        matrix = ' x '.join(map(str, run.matrix))
        message = (
            f'the matrix {matrix} with {len(run.echo_times)} echoes takes '
            f'{run.series_gb:.4g} GB of memory for the images alone, and there are {room:.4g} GB '
            f'({limit.source}): take a machine with several times that, or larger voxels'
        )
        problems.append(Problem(run.subject, run.sources[0], message))
    return kept, problems


def process(
    settings: Settings,
    runs: Sequence['Run'],
    problems: Sequence['Problem'],
    plugin_file: Mapping[str, Any],
    command: str,
    inherited: Mapping[str, str],
) -> int:
    """Reconstruct the runs and assemble the reports; the exit status.

    Parameters
    ----------
    settings, command, inherited
        As for :func:`run_app`.
    runs, problems : sequence
        What was found in the dataset.
    plugin_file : mapping
        Content of ``--use-plugin``.
    """
    from precondqsm_bids.bids import InputError
    from precondqsm_bids.outputs.dataset import write_dataset_description
    from precondqsm_bids.outputs.files import write_atomic

    work_dir = settings.work_dir if runs and not settings.boilerplate_only else None
    if work_dir and not settings.clean_workdir:
        check_work_dir(work_dir)
    log_name = new_log_name()
    log_dir = settings.output_dir / 'logs' / log_name
    try:
        log_dir.mkdir(parents=True)
        write_dataset_description(settings.output_dir, settings.bids_dir, settings.derivatives)
        (log_dir / 'config.toml').write_text(settings.to_toml(), encoding='utf-8')
        if settings.work_dir and settings.clean_workdir:
            clean(settings.work_dir)
        if work_dir:
            write_atomic(_stamp(work_dir), f'{__version__}\n')  # before anything else is there
    except OSError as error:
        raise InputError(f'cannot write to {error.filename}: {error.strerror}') from error
    with logging_to(log_dir / 'precondqsm_bids.log', settings.verbose):
        introduce(settings, runs, log_dir)
        for problem in problems:
            if not problem.fatal:
                say(f'{problem.kind}: {problem}')
        if not settings.skip_bids_validation:
            validate(settings.bids_dir, log_dir / 'bids-validator.json')
        failures = [fail_input(settings, p, log_name) for p in problems if p.fatal]
        citation = ''
        if runs:
            configure_nipype(
                log_dir,
                stop_on_first_crash=settings.stop_on_first_crash,
                resource_monitor=settings.resource_monitor,
                debug=settings.verbose >= 3,
            )
            from precondqsm_bids.workflows.base import init_base_wf

            workflow = init_base_wf(settings, runs, log_name)
            citation = workflow.visit_desc()
            (log_dir / 'CITATION.md').write_text(citation, encoding='utf-8')
            if settings.write_graph:
                write_graph(workflow, log_dir)
            if not settings.boilerplate_only:
                failures += execute(settings, workflow, runs, plugin_file, log_name, inherited)
        if settings.boilerplate_only:
            say(f'methods text: {log_dir / "CITATION.md"}')
        else:
            failures += report(settings, runs, failures, command, citation, log_name)
        return conclude(runs, failures, log_dir)


def introduce(settings: Settings, runs: Sequence['Run'], log_dir: Path) -> None:
    """Say what is about to happen, with which resources."""
    cpus, memory = cpu_limit(), memory_limit()
    say(f'precondqsm_bids {__version__}: {settings.bids_dir} -> {settings.output_dir}')
    say(
        f'{settings.nprocs} processes (of {cpus.value:g} CPUs: {cpus.source}), '
        f'{settings.omp_nthreads} threads each node, {settings.mem_gb:g} GB '
        f'(of {memory.value:.4g}: {memory.source})'
    )
    say(f'work folder {settings.work_dir}; log {log_dir}')
    missing = sorted(set(settings.participant_label) - {run.subject for run in runs})
    for run in runs:
        echoes = '1 echo' if run.one_echo else f'{len(run.echo_times)} echoes'
        say(
            f'{run.label}: {echoes}, {_times_words(run)} ms, '
            f'{run.field_strength:g} T, prior {settings.method.summary(run.one_echo)}'
        )
    for subject in missing:
        say(f'warning: sub-{subject}: no run to reconstruct')
    if settings.work_dir and settings.work_dir.is_dir() and not settings.boilerplate_only:
        warn_of_room(settings.work_dir, runs)


def warn_of_room(work_dir: Path, runs: Sequence['Run']) -> None:
    """Say at the start if the work folder will be full before the end.

    Where nothing else is mounted, a container may have 64 MB for it.

    Parameters
    ----------
    work_dir : Path
        The work folder.
    runs : sequence of Run
        All that will be reconstructed.
    """
    needed = WORK_BYTES * sum(math.prod(run.matrix) for run in runs)
    free = shutil.disk_usage(work_dir).free
    if free < needed:
        say(
            f'warning: the work folder {work_dir} has room for {free / 1e6:.0f} MB, and about '
            f'{math.ceil(needed / 1e6)} MB will be written there: make room, or give another with '
            '-w'
        )


def execute(
    settings: Settings,
    workflow: Any,
    runs: Sequence['Run'],
    plugin_file: Mapping[str, Any],
    log_name: str,
    inherited: Mapping[str, str],
) -> list[Failure]:
    """Run the workflow; the failures of its nodes."""
    from nipype.interfaces.utility import IdentityInterface

    from precondqsm_bids.workflows.base import crash_folder, node_name
    from precondqsm_bids.workflows.plugins import SUPERVISED, SupervisedBatch

    labels = {node_name(run.label): run.label for run in runs}
    stages = {}
    for name in workflow.list_node_names():
        node = workflow.get_node(name)
        if isinstance(node.interface, IdentityInterface):
            continue
        writes = '.outputs_wf.' in name or node.run_without_submitting
        stages[f'{workflow.name}.{name}'] = Stage(
            labels[name.split('.')[1]],
            'outputs' if writes and not settings.verbose else name.rpartition('.')[2],
        )
        if node.mem_gb > settings.mem_gb:
            say(
                f'warning: {name} may need {node.mem_gb:.3g} GB of memory, and '
                f'{settings.mem_gb:.3g} GB are allowed (--mem)'
            )
    plugin_args = {
        'n_procs': settings.nprocs,
        'memory_gb': settings.mem_gb,
        'raise_insufficient': False,
        'node_timeout': 60 * settings.node_timeout if settings.node_timeout else None,
        'status_callback': follow(stages),
        **plugin_file.get('plugin_args', {}),
    }
    plugin = plugin_file.get('plugin', 'MultiProc')
    cancelling: AbstractContextManager[None] = nullcontext()
    if supervised := SUPERVISED.get(plugin):
        more: dict[str, Any] = {}
        if issubclass(supervised, SupervisedBatch):
            # Nipype's own names the jobs by the user.
            more['environment'] = {**inherited, 'LOGNAME': os.environ['LOGNAME']}
            threads = str(settings.omp_nthreads)
            more['launcher'] = [*python_command(), '-m', NODE_JOB, threads]
            more['tell'] = say
        plugin = supervised(plugin_args, **more)
        if isinstance(plugin, SupervisedBatch):
            cancelling = before_sigterm_ends(plugin.cancel)
    error = ''
    try:
        with cancelling:
            workflow.run(plugin=plugin, plugin_args=plugin_args)
    except Exception:
        error = traceback.format_exc()
    log_dir = settings.output_dir / 'logs' / log_name
    monitored = Path(workflow.base_dir) / workflow.name / 'resource_monitor.json'
    if settings.resource_monitor and monitored.exists():
        shutil.copy(monitored, log_dir)
    failures = []
    subjects = list(dict.fromkeys(run.subject for run in runs))
    for subject in subjects:
        folder = crash_folder(settings.output_dir, subject, log_name)
        for crash in sorted(folder.glob('crash-*.txt')):
            if not crash.stem.endswith('-input'):  # already told
                failures.append(Failure(subject, describe_crash(crash, labels), crash))
    if error and not failures:  # Nipype itself failed, or a node without a word
        crash = write_crash(log_dir, 'workflow', error)
        what = error.strip().splitlines()[-1]
        failures = [Failure(subject, what, crash) for subject in subjects]
    return failures


def describe_crash(crash: Path, labels: Mapping[str, str]) -> str:
    """Run, node and error of a crash file that Nipype wrote.

    Parameters
    ----------
    crash : Path
        The crash file.
    labels : mapping
        Name of a run's workflow to the run's label.
    """
    text = crash.read_text(encoding='utf-8', errors='replace')
    names = text.partition('\n')[0].removeprefix('Node: ').split('.')
    run = next((labels[name] for name in names if name in labels), '')
    # The worker's own traceback comes last, but a note on the crash itself may follow it.
    text = text.partition('\n\nWhen creating this crashfile')[0]
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:  # Nipype could make the file and not fill it
        node = crash.stem.rpartition('-')[0]
        return f'{node}: the crash file is empty ({os.strerror(errno.ENOSPC)}?)'
    what = lines[-1].strip()
    if _NO_RESULT_FILE.match(what):  # what kept it from being written comes before
        cause = text.rpartition('\n\nDuring handling of the above exception')[0].strip()
        what = cause.splitlines()[-1].strip() if cause else what
        if os.strerror(errno.ENOSPC) in what or os.strerror(errno.EDQUOT) in what:
            folder = re.search('^Working directory: (.*)', text, re.MULTILINE)
            what += f' in the work folder{f" ({folder[1]})" if folder else ""}: make room, or '
            what += 'give another with -w'
    return ' '.join(filter(None, (run, f'{names[-1]}: {what}')))


def fail_input(settings: Settings, problem: 'Problem', log_name: str) -> Failure:
    """A participant whose files cannot be used, with a crash file as any other failure has."""
    folder = settings.output_dir / f'sub-{problem.subject}' / 'log' / log_name
    crash = write_crash(folder, 'input', f'{problem.file}\n{problem.message}\n')
    return Failure(problem.subject, f'{problem.file}: {problem.message}', crash)


def write_crash(folder: Path, kind: str, text: str) -> Path:
    """Write a crash file, under a name of its own.

    Parameters
    ----------
    folder : Path
        Where; made if needed.
    kind : str
        What crashed.
    text : str
        The whole story.
    """
    crash = folder / f'crash-{new_log_name().replace("_", "-")}-{kind}.txt'
    try:
        folder.mkdir(parents=True, exist_ok=True)
        crash.write_text(text, encoding='utf-8')
    except OSError as error:  # a full disk: the failure itself must still be told
        say(f'warning: cannot write {crash}: {error.strerror}', sys.stderr)
    return crash


def report(
    settings: Settings,
    runs: Sequence['Run'],
    failures: Sequence[Failure],
    command: str,
    citation: str,
    log_name: str,
) -> list[Failure]:
    """Assemble the participants' reports, those of the failed ones too; what failed in this."""
    from precondqsm_bids.outputs.report import run_warnings, write_report

    failed = []
    subjects = {run.subject for run in runs} | {failure.subject for failure in failures}
    for subject in sorted(subjects):
        try:
            page = write_report(
                settings.output_dir,
                subject,
                runs=[run.label for run in runs if run.subject == subject],
                command=command,
                boilerplate=citation,
                crash_files=[f.crash_file for f in failures if f.subject == subject],
            )
            say(f'sub-{subject} | report {page}')
            if any(failure.subject == subject for failure in failures):
                continue  # what is there may be of an earlier call
            for run in runs:
                if run.subject == subject:
                    for text in run_warnings(settings.output_dir, subject, run.label):
                        say(f'{run.label} | warning: {text}')
        except Exception as error:
            folder = settings.output_dir / f'sub-{subject}' / 'log' / log_name
            crash = write_crash(folder, 'report', traceback.format_exc())
            failed.append(Failure(subject, f'report: {error!r}', crash))
    return failed


def reports_only(settings: Settings) -> int:
    """Assemble the reports of the participants that have outputs; the exit status."""
    from precondqsm_bids.bids import InputError, participants
    from precondqsm_bids.outputs.report import write_report

    known = [
        subject
        for subject in participants(settings.output_dir)
        if (settings.output_dir / f'sub-{subject}' / 'figures').is_dir()
    ]
    if unknown := sorted(set(settings.participant_label) - set(known)):
        raise InputError(
            f'no outputs of participant {", ".join(unknown)} in {settings.output_dir}; '
            f'there are: {", ".join(known) or "none"}'
        )
    if not known:
        print(
            f'precondqsm_bids: nothing to do: no outputs in {settings.output_dir}', file=sys.stderr
        )
        return NOTHING_TO_DO
    failures = []
    log_name = new_log_name()
    for subject in settings.participant_label or known:
        try:
            say(f'sub-{subject} | report {write_report(settings.output_dir, subject)}')
        except Exception as error:
            folder = settings.output_dir / f'sub-{subject}' / 'log' / log_name
            crash = write_crash(folder, 'report', traceback.format_exc())
            failures.append(Failure(subject, f'report: {error!r}', crash))
    for failure in failures:
        say(str(failure), sys.stderr)
    return FAILED if failures else DONE


def group(settings: Settings, command: str) -> int:
    """Gather what the participant level left in the output folder; the exit status.

    Participants that failed or are incomplete are listed, and are no failure of this level.

    Parameters
    ----------
    settings, command
        As for :func:`run_app`.
    """
    from precondqsm_bids.bids import InputError, participants
    from precondqsm_bids.outputs.group import write_group

    known = {*participants(settings.bids_dir), *participants(settings.output_dir)}
    if unknown := sorted(set(settings.participant_label) - known):
        raise InputError(
            f'no participant {", ".join(unknown)} in {settings.bids_dir} or '
            f'{settings.output_dir}; there are: {", ".join(sorted(known)) or "none"}'
        )
    try:
        result = write_group(
            settings.bids_dir,
            settings.output_dir,
            participants=settings.participant_label,
            sessions=settings.session_label,
            command=command,
        )
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise InputError(f'cannot read or write {error.filename}: {error.strerror}') from error
    most = len(result.listed) if settings.verbose else MOST_LINES
    stream = sys.stdout if result.files else sys.stderr
    for run in result.listed[:most]:
        say(f'{run.run} | {run.status}: {run.note}', stream)
    if result.to_list > most:
        where = f': {settings.output_dir / "group_quality.tsv"}' if result.files else ''
        say(f'... and {result.to_list - most} more{where}', stream)
    if not result.files:
        print(
            f'precondqsm_bids: nothing to do: {settings.output_dir} has no outputs that can be '
            'used of these participants and sessions; run the participant level first',
            file=sys.stderr,
        )
        return NOTHING_TO_DO
    for words in result.mixed:
        say(f'warning: {words}: look at their maps, and state --phase-sign')
    for path in result.files:
        say(str(path))
    counts = ', '.join(f'{n} {status}' for status, n in sorted(result.runs.items()))
    say(
        f'finished: {result.participants} participants, {counts} runs, '
        f'{result.outliers} outlying values'
    )
    return DONE


def conclude(runs: Sequence['Run'], failures: Sequence[Failure], log_dir: Path) -> int:
    """The last lines, and the exit status."""
    failed = {failure.subject for failure in failures}
    everyone = {run.subject for run in runs} | failed
    if not failures:
        say(f'finished: {len(everyone)} of {len(everyone)} participants')
        return DONE
    say(
        f'finished: {len(failed)} of {len(everyone)} participants failed; log {log_dir}',
        sys.stderr,
    )
    for failure in failures:
        say(str(failure), sys.stderr)
    return FAILED


def describe_runs(settings: Settings, runs: Sequence['Run'], problems: Sequence['Problem']) -> str:
    """What ``--dry-run`` prints: a table of the runs, their files and what is wrong or left out.

    Parameters
    ----------
    settings : Settings
        What the command line says.
    runs, problems : sequence
        What was found in the dataset.
    """
    head = (
        'run', 'echoes', 'matrix', 'TE (ms)', 'B0 (T)', 'mask', 'prior', 'tissue', 'R2', 'labels',
        'missing',
    )  # fmt: skip
    rows = [head]
    for run in runs:
        missing = [*run.missing, *([] if run.labels else ['labels'])]
        rows.append(
            (
                run.label,
                str(len(run.echo_times)),
                'x'.join(map(str, run.matrix)),
                _times_words(run),
                f'{run.field_strength:g}',
                Path(run.mask).name if run.mask else 'auto',
                settings.method.summary(run.one_echo),
                _tissue_words(run),
                'none' if run.one_echo else Path(run.r2_map or str(settings.method.r2)).name,
                str(len(run.label_names)) if run.label_names else 'none',
                ', '.join(missing) or 'nothing',
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ['  '.join(f'{cell:{w}}' for cell, w in zip(row, widths, strict=True)) for row in rows]
    for run in runs:
        lines += ['', run.label, f'  sign of the phase: {_sign_words(settings, run)}']
        more = [
            *(run.tissue.files if run.tissue else ()),
            run.r2_map,
            *run.contrasts,
            *settings.method.prior_maps,
        ]
        paths = [path for path in (*run.sources, run.mask, run.labels, *more) if path]
        lines += [f'  {path}' for path in dict.fromkeys(map(str, paths))]
    for title, kinds in (('problems', ('error', 'warning')), ('skipped', ('skipped',))):
        told = [f'  {p.kind}: {p}' for p in problems if p.kind in kinds]
        if told:
            lines += ['', title, *told]
    return '\n'.join(line.rstrip() for line in lines)


def _sign_words(settings: Settings, run: 'Run') -> str:
    """How the sign of the phase will be found."""
    from precondqsm_bids.numerics.phase import vendor_sign

    if settings.method.phase_sign:
        return f'{settings.method.phase_sign:+d}, stated; refused if the field contradicts it'
    manufacturer = run.metadata.get('Manufacturer')
    usual = vendor_sign(str(manufacturer)) if manufacturer else None
    by = f'usual of {manufacturer}' if usual else 'usual convention'
    return (
        "by the field of the object's shape; where that does not tell (an ellipsoid, a thin slab, "
        f'no air), {usual or 1:+d} is assumed, the {by}'
    )


def _times_words(run: 'Run') -> str:
    """First and last echo time, ms."""
    times = [f'{1000 * t:.4g}' for t in (run.echo_times[0], run.echo_times[-1])]
    return ' to '.join(dict.fromkeys(times))


def _tissue_words(run: 'Run') -> str:
    """Where the tissue classes come from: number, kind, and whether they are resampled."""
    if not run.tissue:
        return 'none'
    kind = 'probseg' if run.tissue.label_classes is None else 'dseg'
    return f'{len(run.tissue.classes)} of {kind}' + (', resampled' * run.tissue.resampled)


def read_plugin(path: Path) -> dict[str, Any]:
    """Plugin and plugin_args of a YAML file.

    Parameters
    ----------
    path : Path
        ``{plugin: SLURM, plugin_args: {sbatch_args: ...}}``.

    Raises
    ------
    InputError
        If it is no such file, or the plugin does not wait for its jobs.
    """
    import yaml
    from nipype.pipeline import plugins

    from precondqsm_bids.bids import InputError

    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f'{path} is not a readable YAML file: {error}') from error
    if not isinstance(content, dict) or not isinstance(content.get('plugin'), str):
        raise InputError(f'{path} should name a plugin: "plugin: SLURM"')
    if unknown := sorted(set(content) - {'plugin', 'plugin_args'}):
        raise InputError(f'{path}: unknown key {", ".join(unknown)}; known: plugin, plugin_args')
    if not isinstance(content.setdefault('plugin_args', {}), dict):
        raise InputError(f'{path}: plugin_args should be a mapping')
    name = content['plugin']
    if name in GRAPH_PLUGINS:
        raise InputError(
            f'{path}: {name} submits the jobs and returns at once with success, whatever fails '
            f'later; use {name.removesuffix("Graph").replace("DAGMan", "")} or MultiProc'
        )
    if not hasattr(plugins, f'{name}Plugin'):
        known = sorted(
            plugin.removesuffix('Plugin')
            for plugin in dir(plugins)
            if plugin.endswith('Plugin') and plugin.removesuffix('Plugin') not in GRAPH_PLUGINS
        )
        raise InputError(f'{path}: unknown plugin {name}; known: {", ".join(known)}')
    return content


def validate(bids_dir: Path, log: Path) -> None:
    """Run the validator where it is installed; what it finds is told, and stops nobody.

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


def write_graph(workflow: Any, log_dir: Path) -> None:
    """Draw the workflow, or write what Graphviz would draw."""
    kind = 'svg' if graph_renderer() else 'dot'
    workflow.write_graph(
        dotfilename=str(log_dir / 'graph.dot'), graph2use='colored', format=kind, simple_form=True
    )
    if kind == 'dot':
        say(
            f'graph {log_dir / "graph.dot"}; dot (Graphviz) is not installed here: '
            'draw it elsewhere with dot -Tsvg -O graph.dot'
        )
    else:
        say(f'graph {log_dir / "graph.svg"}')


def clean(work_dir: Path) -> None:
    """Remove our own intermediate results; a work folder may be shared with other programs."""
    from precondqsm_bids.workflows.base import NAME

    if (work_dir / NAME).exists():
        shutil.rmtree(work_dir / NAME)
    _stamp(work_dir).unlink(missing_ok=True)


def check_work_dir(work_dir: Path) -> None:
    """Refuse intermediate results of another version, which may mean something else.

    Nipype compares the inputs of a node, not the program that computed it.

    Raises
    ------
    InputError
        If the work folder has results that this version did not make.
    """
    from precondqsm_bids.bids import InputError
    from precondqsm_bids.workflows.base import NAME

    folder, stamp = work_dir / NAME, _stamp(work_dir)
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    made_by = stamp.read_text(encoding='utf-8').strip() if stamp.exists() else ''
    if made_by != __version__:
        raise InputError(
            f'{folder} has intermediate results of '
            f'{f"version {made_by}" if made_by else "an unknown version"}, and this is '
            f'{__version__}: remove them with --clean-workdir, or give another folder with -w'
        )


def _stamp(work_dir: Path) -> Path:
    """The file that names the version whose results a work folder has."""
    from precondqsm_bids.workflows.base import NAME

    return work_dir / f'{NAME}.version'
