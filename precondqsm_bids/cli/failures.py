"""Failures: crash files, what is said about them, and the exit status."""

import errno
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from precondqsm_bids.cli.call import Call, Found
from precondqsm_bids.cli.progress import new_log_name, say

if TYPE_CHECKING:
    from precondqsm_bids.inputs.run import Problem, Run

DONE, FAILED, USAGE, NOTHING_TO_DO, INTERRUPTED = 0, 1, 2, 70, 130

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a disk or a quota without room."""

_NO_RESULT_FILE = re.compile(r'FileNotFoundError: .*/result_\w+\.pklz$')
"""Nipype's last word on a node that could not write what it had computed."""


@dataclass(frozen=True)
class Failure:
    """Reason why a participant failed, and the file that says more."""

    subject: str
    what: str
    crash_file: Path
    run: str = ''
    """Run that failed; empty where the reason is about no particular one."""

    def __str__(self) -> str:
        return f'sub-{self.subject} failed: {self.what}; crash file: {self.crash_file}'


def status_of(error: BaseException, call: Call, again: str) -> int:
    """Exit status after an error that ends the app, said in one line; a defect is raised again.

    ``again`` is the way to go on.
    """
    from precondqsm_bids.cli.submit import SubmitError
    from precondqsm_bids.inputs.run import InputError

    if isinstance(error, InputError):
        line = re.sub(r'\s*\n\s*', ' ', str(error))
        print(f'precondqsm_bids: error: {line}', file=sys.stderr)
        return USAGE
    if isinstance(error, KeyboardInterrupt):
        say(f'interrupted; {again}', sys.stderr)
        return INTERRUPTED
    if isinstance(error, OSError) and error.errno in FULL:
        where = error.filename or call.settings.output_dir
        say(f'failed: {where}: {error.strerror}; make room, and {again}', sys.stderr)
    elif isinstance(error, SubmitError):
        say(f'failed: {error}', sys.stderr)
    else:
        raise error
    return FAILED


def nothing_to_do(reason: str) -> int:
    """Exit status of a call that has nothing to do; says why."""
    print(f'precondqsm_bids: nothing to do: {reason}', file=sys.stderr)
    return NOTHING_TO_DO


def conclude(failures: Sequence[Failure]) -> int:
    """Exit status after these failures; the last lines name them."""
    for failure in failures:
        say(str(failure), sys.stderr)
    return FAILED if failures else DONE


def of_input(call: Call, problem: 'Problem') -> Failure:
    """Failure of a participant whose files cannot be used, with a crash file as any other has."""
    text = f'{problem.file}\n{problem.message}\n'
    what = f'{problem.file}: {problem.message}'
    return of_participant(call, problem.subject, 'input', what, text, problem.run)


def of_participant(
    call: Call, subject: str, kind: str, what: str, text: str, run: str = ''
) -> Failure:
    """Failure outside the workflow: the reason in a line, and the content of its crash file."""
    from precondqsm_bids.workflows.base import crash_folder

    folder = crash_folder(call.settings.output_dir, subject, call.log_name)
    return Failure(subject, what, write_crash(folder, kind, text), run)


def of_nodes(call: Call, found: Found) -> list[Failure]:
    """Failures of the nodes of these participants, one for each crash file that they left."""
    from precondqsm_bids.workflows.base import crash_folder

    return [
        _of_crash(call, found.runs, subject, crash)
        for subject in found.subjects
        for crash in sorted(
            crash_folder(call.settings.output_dir, subject, call.log_name).glob('crash-*.txt')
        )
        if not crash.stem.endswith('-input')  # reported already
    ]


def _of_crash(call: Call, runs: Sequence['Run'], subject: str, crash: Path) -> Failure:
    from precondqsm_bids.workflows.base import node_name

    labels = {node_name(run.label): run.label for run in runs}
    what = describe_crash(crash, labels)
    name = what.partition(' ')[0]
    what = in_words(what, runs, call.settings.work_dir)
    return Failure(subject, what, crash, name if name in labels.values() else '')


def of_workflow(call: Call, found: Found, error: str) -> list[Failure]:
    """Failures of all participants where Nipype itself failed, or a node without a word."""
    crash = write_crash(call.log_dir, 'workflow', error)
    what = error.strip().splitlines()[-1]
    return [Failure(subject, what, crash) for subject in found.subjects]


def describe_crash(crash: Path, labels: Mapping[str, str]) -> str:
    """Run, node and error of a crash file that Nipype wrote.

    ``labels`` are those of the runs, by the names of their workflows.
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
        if any(os.strerror(number) in what for number in FULL):
            folder = re.search('^Working directory: (.*)', text, re.MULTILINE)
            what += f' in the work folder{f" ({folder[1]})" if folder else ""}: make room, or '
            what += 'give another with -w'
    return ' '.join(filter(None, (run, f'{names[-1]}: {what}')))


def in_words(what: str, runs: Sequence['Run'], work_dir: Path | None) -> str:
    """A message with files and options as they were given.

    In place of the files of single echoes, which a node wrote of 4D files or of real and imaginary
    parts, and of names of settings.
    """
    from precondqsm_bids.outputs.wording import as_options

    sources = {Path(path).name.partition('.')[0]: path for run in runs for path in run.sources}

    def source(found: re.Match[str]) -> str:
        stem = found['stem']
        names = (stem, re.sub('part-(mag|phase)', 'part-real', stem))
        path = next((sources[name] for name in names if name in sources), found[0])
        volume = f' (volume {found["volume"]})' if found['volume'] else ''
        return f'{path}{volume}' if path != found[0] else path

    of_echo = r'/\S*/standard_echoes/(?P<stem>[^/\s]+?)(_volume-(?P<volume>\d+))?\.nii\b'
    return as_options(re.sub(re.escape(str(work_dir or '')) + of_echo, source, what))


def write_crash(folder: Path, kind: str, text: str) -> Path:
    """Write a crash file, under a name of its own that has the kind of failure."""
    crash = folder / f'crash-{new_log_name().replace("_", "-")}-{kind}.txt'
    try:
        folder.mkdir(parents=True, exist_ok=True)
        crash.write_text(text, encoding='utf-8')
    except OSError as error:  # a full disk: the failure itself must still be reported
        say(f'warning: cannot write {crash}: {error.strerror}', sys.stderr)
    return crash
