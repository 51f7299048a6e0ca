"""The participants as an array job of SLURM, and the group level as a job that waits for it."""

import errno
import math
import os
import re
import shlex
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from precondqsm_bids import __version__
from precondqsm_bids.cli.call import Call, Found
from precondqsm_bids.cli.environment import python_command
from precondqsm_bids.cli.options import GROUP_SETTINGS, SUBMIT_SETTINGS
from precondqsm_bids.cli.parser import option_words, stated_settings
from precondqsm_bids.cli.progress import say
from precondqsm_bids.cli.resources import MEMORY_SHARE
from precondqsm_bids.config import Settings
from precondqsm_bids.cost import cost_of

if TYPE_CHECKING:
    from precondqsm_bids.inputs.run import Run

CPUS = 4
"""CPUs of a participant's job unless ``--nprocs`` says otherwise."""

MAIN_GB = 1.0
"""GiB of a job beside what the largest node takes: the main process and its libraries."""

GROUP_GB = 2.0
"""GiB of the job of the group level, which reads no image."""

TIME_FACTOR = 10
"""Room in the time limit: slower CPUs, fewer of them, slow disks, options that take longer."""

LEAST_MINUTES = 30
"""Time of any job beside that: libraries over a slow file system, the index, reports."""

MAX_ARRAY_SIZE = 1001
"""SLURM's own default, where it does not say."""

# Settings that each job has of its own, or must not have at all.
_OWN = SUBMIT_SETTINGS | {'participant_label', 'work_dir', 'dry_run'}
_GROUP = GROUP_SETTINGS - {'nprocs', 'omp_nthreads', 'mem_gb'}


class SubmitError(Exception):
    """SLURM did not take a job."""


class Job(NamedTuple):
    """Resources of a participant's job."""

    cpus: int
    memory_gb: float
    minutes: str
    """Time limit as SLURM takes it."""


def submit(call: Call, found: Found) -> None:
    """Write the scripts and, unless it is a dry run, submit them.

    A participant whose files cannot be used has a job, too, which says why it fails as any other
    run would.

    Raises InputError if the scripts cannot be written, or there is no SLURM; SubmitError if SLURM
    refuses a job.
    """
    folder, subjects = call.log_dir, found.subjects
    job = job_of(call, found)
    size = max_array_size(call.environment)
    parts = [subjects[first : first + size] for first in range(0, len(subjects), size)]
    names = [f'participants-{i}.sh' for i in range(1, len(parts) + 1)]
    names = names if len(parts) > 1 else ['participants.sh']
    scripts = {
        name: participants_script(call, part, job) for name, part in zip(names, parts, strict=True)
    }
    write_scripts(call, {**scripts, 'group.sh': group_script(call)})
    if len(parts) > 1:
        say(f'{len(subjects)} participants: {len(parts)} arrays of at most {size} (MaxArraySize)')
    for name, part in zip(names, parts, strict=True):
        say(f'{len(part)} participants: {folder / name}')
    say(f'group level: {folder / "group.sh"}')
    if not call.settings.dry_run:
        submit_scripts(call, [*names, 'group.sh'])


def job_of(call: Call, found: Found) -> Job:
    """Resources of each job: those that are stated, and else what the largest run needs."""
    settings, runs, stated = call.settings, found.runs, stated_settings(call.argv)
    if 'mem_gb' in stated:
        memory = settings.mem_gb / MEMORY_SHARE
    else:
        memory = largest_node_gb(settings, runs) / MEMORY_SHARE + MAIN_GB
    return Job(
        cpus=settings.nprocs if 'nprocs' in stated else CPUS,
        memory_gb=memory,
        minutes=settings.submit_time or str(estimated_minutes(settings, runs)),
    )


def write_scripts(call: Call, scripts: Mapping[str, str]) -> None:
    """Write the scripts, by their names, into the folder of the log.

    Raises InputError if that is impossible, or SLURM could not write its logs there.
    """
    from precondqsm_bids.inputs.run import InputError
    from precondqsm_bids.outputs.dataset import write_dataset_description

    settings, folder = call.settings, call.log_dir
    if any(char in str(folder) for char in '"\\%\n'):
        raise InputError(
            f'{folder}: SLURM cannot write its log to a path with a quote, backslash, percent '
            'sign or line break; give another output folder'
        )
    try:
        folder.mkdir(parents=True)
        write_dataset_description(settings.output_dir, settings.bids_dir, settings.derivatives)
        for name, text in scripts.items():
            (folder / name).write_text(text, encoding='utf-8')
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(f'cannot write to {error.filename}: {error.strerror}') from error


def submit_scripts(call: Call, names: Sequence[str]) -> None:
    """Submit the arrays, and the last script, the group level, which waits for all of them."""
    from precondqsm_bids.inputs.run import InputError

    folder, group = call.log_dir, names[-1]
    # A limit of jobs at once is that of an array, so that each waits for the one before it.
    in_turn = bool(call.settings.submit_limit)
    jobs: list[str] = []
    for name in names:
        # A participant that failed is a row of the group's tables, no reason to have none.
        after = jobs if name == group else jobs[-1:] if in_turn else []
        words = [f'--dependency=afterany:{":".join(after)}'] if after else []
        try:
            job = sbatch(call.environment, *words, str(folder / name))
        except (SubmitError, InputError) as error:
            if not jobs:
                raise
            rest = ' and then '.join(str(folder / n) for n in names[len(jobs) :])
            raise SubmitError(
                f'{error}; array job {", ".join(jobs)} is submitted and goes on: submit {rest} '
                f'when it is done, or stop it with scancel {" ".join(jobs)}'
            ) from error
        if name == group:
            say(f'submitted job {job} of the group level, which waits for it; logs {folder}')
        else:
            jobs.append(job)
            say(f'submitted array job {job}')


def max_array_size(environment: Mapping[str, str]) -> int:
    """Tasks that the cluster takes in one array, SLURM's default where it does not say."""
    try:
        said = _run(environment, 'scontrol', 'show', 'config').stdout
    except OSError:
        said = ''
    found = re.search(r'^MaxArraySize\s*=\s*(\d+)', said, re.MULTILINE)
    # Indices begin at 0 and are less than this; 0 is a cluster without arrays.
    return max(1, int(found[1])) if found else MAX_ARRAY_SIZE


def estimated_minutes(settings: Settings, runs: Sequence['Run']) -> int:
    """Time limit of a participant's job: as measured, for the largest one, with ample room."""
    participants: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        participants[run.subject].append(run)
    costs = (cost_of(own, settings.method).cpu_seconds for own in participants.values())
    seconds = max(costs, default=0.0)
    return LEAST_MINUTES + math.ceil(TIME_FACTOR * seconds / 60)


def sbatch(environment: Mapping[str, str], *words: str) -> str:
    """Submit a job; its number.

    Raises InputError if there is no SLURM here; SubmitError if SLURM does not take the job.
    """
    from precondqsm_bids.inputs.run import InputError

    try:
        done = _run(environment, 'sbatch', '--parsable', *words)
    except OSError as error:
        raise InputError(
            f'sbatch: {error.strerror}; --submit slurm needs the commands of SLURM, and with '
            '--dry-run only writes the scripts'
        ) from error
    job = done.stdout.strip().partition(';')[0]  # "12;cluster" where there are several
    if done.returncode or not job.isdecimal():
        said = ' '.join((done.stderr or done.stdout).split()) or 'no message'
        raise SubmitError(f'sbatch {words[-1]} ended with status {done.returncode}: {said}')
    return job


def _run(environment: Mapping[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    env = dict(environment)
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def largest_node_gb(settings: Settings, runs: Sequence['Run']) -> float:
    """GiB of the node that may take most, of the largest run: all nodes grow with its size."""
    from precondqsm_bids.workflows.base import init_run_wf

    if not runs:
        return 0.0
    workflow = init_run_wf(settings, max(runs, key=lambda run: run.series_gb))
    return max(node.mem_gb for node in workflow._get_all_nodes())


def participants_script(call: Call, subjects: Sequence[str], job: Job) -> str:
    """The script of an array: one task a participant, in this order."""
    settings, folder = call.settings, call.log_dir
    limit = f'%{settings.submit_limit}' if settings.submit_limit else ''
    head = {
        'job-name': 'precondqsm_bids',
        'array': f'0-{len(subjects) - 1}{limit}',
        'cpus-per-task': str(job.cpus),
        'mem': f'{math.ceil(job.memory_gb * 1024)}M',
        'time': job.minutes,
        'output': f'"{folder}/slurm-%A_%a.out"',
    }
    words = option_words(call.argv, without=_OWN)
    work_dir = shlex.quote(f'{settings.work_dir}/sub-')
    return _script(
        head,
        f'participants=({" ".join(subjects)})',
        'participant=${participants[$SLURM_ARRAY_TASK_ID]}',
        f'exec >>{shlex.quote(f"{folder}/sub-")}"$participant.log" 2>&1',
        f'exec {_program(settings, "participant", words)} '
        f'--participant-label "$participant" --work-dir={work_dir}"$participant"',
    )


def group_script(call: Call) -> str:
    """The script of the group level, which has no option of the method."""
    head = {
        'job-name': 'precondqsm_bids_group',
        'cpus-per-task': '1',
        'mem': f'{math.ceil(GROUP_GB * 1024)}M',
        'output': f'"{call.log_dir}/slurm-group-%j.out"',
    }
    words = option_words(call.argv, only=_GROUP)
    return _script(head, f'exec {_program(call.settings, "group", words)}')


def _program(settings: Settings, level: str, words: Sequence[str]) -> str:
    folders = (str(settings.bids_dir), str(settings.output_dir))
    return shlex.join([*python_command(), '-m', 'precondqsm_bids', *folders, level, *words])


def _script(head: Mapping[str, str], *lines: str) -> str:
    # A job whose host is lost begins again and goes on from its work folder, as does its log.
    head = {**head, 'requeue': '', 'open-mode': 'append'}
    return '\n'.join(
        [
            '#!/bin/bash',
            *(f'#SBATCH --{name}{"=" * bool(value)}{value}' for name, value in head.items()),
            f'# Written by precondqsm_bids {__version__}.',
            f'cd {shlex.quote(os.getcwd())} || exit 1',
            *lines,
            '',
        ]
    )
