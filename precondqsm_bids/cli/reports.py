"""The reports of the participants and of the group."""

import errno
import platform
import sys
import time
import traceback
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from precondqsm_bids.cli.call import Call, Found
from precondqsm_bids.cli.failures import DONE, Failure, conclude, nothing_to_do, of_participant
from precondqsm_bids.cli.progress import say

if TYPE_CHECKING:
    from precondqsm_bids.outputs.report import Account

MOST_LINES = 20
"""Incomplete runs that the group level names on the terminal unless ``-v`` is given."""


def write_reports(
    call: Call, found: Found, failures: Sequence[Failure], citation: str
) -> list[Failure]:
    """Assemble the participants' reports, those of the failed ones too; the failures in this."""
    from precondqsm_bids.outputs.report import Account

    failed = []
    finished = time.time()
    for subject in found.subjects:
        own = found.of(subject)
        done = computed(call, subject)
        said = _of_runs(own, [f for f in failures if f.subject == subject], done)
        account = Account(
            **said.pop(''),
            runs=said,
            command=call.command,
            log=f'logs/{call.log_name}/precondqsm_bids.log',
            boilerplate=citation,
            finished=time.strftime('%Y-%m-%d %H:%M:%S %z', time.localtime(finished)),
            seconds=round(finished - call.started, 1),
            versions=versions(),
        )
        # What is there of a run that failed may be of an earlier call.
        good = [label for label in said if label in done and not said[label]['crash_files']]
        failed += write_report_of(call, subject, account, good)
    return failed


def _of_runs(
    found: Found, failures: Sequence[Failure], done: Collection[str]
) -> dict[str, dict[str, Any]]:
    """Crash files and remarks of each run of a participant; those of none under an empty name.

    A failure of no particular run is one of those that are not ``done``.
    """
    labels = [run.label for run in found.runs]
    names = ['', *labels, *(problem.run for problem in found.problems)]
    said: dict[str, dict[str, Any]] = {n: {'crash_files': {}, 'notes': []} for n in names}
    unfinished = [label for label in labels if label not in done] or labels or ['']
    for failure in failures:
        for name in [failure.run] if failure.run else unfinished:
            said[name]['crash_files'][str(failure.crash_file)] = failure.what
    for problem in found.problems:
        if not problem.fatal:
            note = f'{problem.kind}: {problem.file}: {problem.message}'
            said[problem.run]['notes'].append(note)
    return said


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the maps depend on."""
    from importlib.metadata import version

    packages = ('nipype', 'nibabel', 'numpy', 'scipy', 'scikit-image')
    return {'Python': platform.python_version(), **{name: version(name) for name in packages}}


def write_report_of(
    call: Call, subject: str, account: 'Account | None' = None, warn_of: Sequence[str] = ()
) -> list[Failure]:
    """Assemble one report and repeat the warnings of these runs; the failure, if it fails."""
    from precondqsm_bids.outputs.report import Account, run_warnings, write_report

    settings = call.settings
    folder = settings.output_dir
    of_some = bool(settings.session_label or settings.bids_filters or settings.resume_with)
    try:
        account = account or Account()
        path = write_report(folder, subject, account, settings.report_self_contained, of_some)
        say(f'sub-{subject} | report {path}')
        for label in warn_of:
            for text in run_warnings(folder, subject, label):
                say(f'{label} | warning: {text}')
    except Exception as error:
        what = f'report: {error!r}'
        return [of_participant(call, subject, 'report', what, traceback.format_exc())]
    return []


def reports_only(call: Call) -> int:
    """Assemble the reports of the participants that have outputs; the exit status."""
    from precondqsm_bids.inputs.index import participants
    from precondqsm_bids.inputs.run import InputError
    from precondqsm_bids.outputs.strip import refresh_strips

    wanted, folder = call.settings.participant_label, call.settings.output_dir
    known = [name for name in participants(folder) if (folder / f'sub-{name}/figures').is_dir()]
    if unknown := sorted(set(wanted) - set(known)):
        raise InputError(
            f'no outputs of participant {", ".join(unknown)} in {folder}; '
            f'there are: {", ".join(known) or "none"}'
        )
    if not known:
        return nothing_to_do(f'no outputs in {folder}')
    for subject in wanted or known:
        refresh_strips(folder, subject)
    return conclude([f for subject in wanted or known for f in write_report_of(call, subject)])


def group(call: Call) -> int:
    """Gather what the participant level left in the output folder; the exit status.

    Participants that failed or are incomplete are listed, and are not failures of this level.
    """
    from precondqsm_bids.inputs.index import participants
    from precondqsm_bids.inputs.run import InputError
    from precondqsm_bids.outputs.group import write_group

    settings = call.settings
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
            command=call.command,
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
        return nothing_to_do(
            f'{settings.output_dir} has no outputs that can be used of these participants and '
            'sessions; run the participant level first'
        )
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


def computed(call: Call, subject: str) -> dict[str, dict[str, Any]]:
    """Runs of a participant that this call has computed, and their numbers."""
    from precondqsm_bids.outputs.report import completed

    started = (call.log_dir / 'config.toml').stat().st_mtime
    return completed(call.settings.output_dir, subject, started)


def cite_what_was_done(call: Call, subjects: Iterable[str]) -> None:
    """Put the methods text of the runs that left their numbers in place of the planned one."""
    from precondqsm_bids.outputs.sentences import text_of_runs

    done: dict[str, Any] = {}
    for subject in subjects:
        done |= computed(call, subject)
    write_citation(call, text_of_runs(done))


def write_citation(call: Call, text: str) -> None:
    """Write the methods text and the BibTeX of what it cites beside the log; nothing for none."""
    from precondqsm_bids.outputs.citations import bibliography

    for name, content in (('CITATION.md', text), ('CITATION.bib', bibliography(text))):
        path = call.log_dir / name
        if content:
            path.write_text(content, encoding='utf-8')
        else:
            path.unlink(missing_ok=True)
