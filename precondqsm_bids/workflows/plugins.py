"""Parallel execution that survives the death of a worker, here or on a cluster.

Nipype's pool of workers breaks as a whole when the system kills one of them (out of memory), and
the main process then waits for ever. Here each node has a process of its own: one node fails, by
name, with a crash file; the others go on; and its memory goes back to the system.
"""

import ctypes
import gc
import logging
import math
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from traceback import format_exception
from typing import Any

from nipype.pipeline.plugins.base import SGELikeBatchManagerBase
from nipype.pipeline.plugins.lsf import LSFPlugin
from nipype.pipeline.plugins.multiproc import MultiProcPlugin, run_node
from nipype.pipeline.plugins.pbs import PBSPlugin
from nipype.pipeline.plugins.sge import SGEPlugin
from nipype.pipeline.plugins.slurm import SLURMPlugin
from nipype.pipeline.plugins.tools import create_pyscript

from precondqsm_bids.workflows.order import DepthFirst

LOGGER = logging.getLogger('precondqsm_bids')

ROUND = 1.0
"""Seconds that the main process waits at most for a worker to end."""

GRACE = 3.0
"""Seconds that a worker has between a polite request to end and its end."""

PROCESS_GB = 1.0
"""GiB that a job of SLURM has beside its node's estimate: the interpreter and its libraries."""

POLL_INTERVAL = 5.0
"""Seconds between two looks at SLURM's queue: its controller serves the whole cluster."""

ALIVE = frozenset(
    {
        *('PENDING', 'CONFIGURING', 'RUNNING', 'SUSPENDED', 'STOPPED', 'COMPLETING', 'REQUEUED'),
        *('REQUEUE_FED', 'REQUEUE_HOLD', 'RESIZING', 'SIGNALING', 'SPECIAL_EXIT', 'STAGE_OUT'),
    }
)
"""States of a job of SLURM that has not ended."""

STUCK = re.compile('held|PartitionTimeLimit|PartitionNodeLimit|BadConstraints|Invalid', re.I)
"""Reasons for which a job of SLURM waits until somebody does something about it."""


class SupervisedMultiProcPlugin(DepthFirst, MultiProcPlugin):
    """Nipype's MultiProc with one forked process per node instead of a pool.

    Takes the same ``plugin_args``, those of `DepthFirst`, and ``node_timeout``: the seconds that a
    worker may take. The main process has no threads, so that forking is safe.
    """

    def __init__(self, plugin_args: dict[str, Any] | None = None) -> None:
        super().__init__(plugin_args=plugin_args)
        self._context = multiprocessing.get_context('fork')
        self._workers: dict[int, tuple[BaseProcess, Connection]] = {}
        self._timeout = self.plugin_args.get('node_timeout') or math.inf
        self._started: dict[int, float] = {}

    def run(self, graph: Any, config: Any, updatehash: bool = False) -> None:
        """Run the graph; however it ends, no worker outlives it."""
        # Nipype collects garbage in each of its rounds. The objects of now will stay, and are
        # neither gone through again nor, in the workers, copied for it.
        gc.collect()
        gc.freeze()
        try:
            super().run(graph, config, updatehash=updatehash)
        finally:
            gc.unfreeze()
            self._end_workers()

    def _send_procs_to_workers(self, updatehash: bool = False, graph: Any = None) -> None:
        super()._send_procs_to_workers(updatehash=updatehash, graph=graph)
        # Nipype sleeps between its rounds; here the end of a worker ends the wait.
        if self._workers:
            wait([receiver for _, receiver in self._workers.values()], ROUND)

    def _submit_job(self, node: Any, updatehash: bool = False) -> int:
        self._taskid += 1
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=_work,
            args=(os.getpid(), sender, node, updatehash, self._taskid),
            name=node.fullname,
        )
        process.start()
        sender.close()  # so that the end of the worker is the end of the pipe
        self._workers[self._taskid] = (process, receiver)
        self._started[self._taskid] = time.monotonic()
        return self._taskid

    def _get_result(self, taskid: int) -> dict[str, Any] | None:
        process, receiver = self._workers[taskid]
        if not receiver.poll():
            if time.monotonic() - self._started[taskid] < self._timeout:
                return None
            process.kill()
            text = (
                f'{process.name}: ended after {self._timeout / 60:g} minutes (--node-timeout): '
                'allow more, or leave the option out'
            )
            return {'result': None, 'traceback': [text], 'taskid': taskid}
        try:
            return receiver.recv()
        except EOFError:
            process.join()
            return {'result': None, 'traceback': [_epitaph(process)], 'taskid': taskid}

    def _clear_task(self, taskid: int) -> None:
        process, receiver = self._workers.pop(taskid)
        receiver.close()
        process.join()

    def _end_workers(self) -> None:
        for process, _ in self._workers.values():
            process.terminate()
        for taskid, (process, _) in list(self._workers.items()):
            process.join(GRACE)
            process.kill()
            self._clear_task(taskid)


class SupervisedBatch(DepthFirst, SGELikeBatchManagerBase):
    """Supervision for Nipype's plugin of any batch system; a base class before that plugin.

    Takes the same ``plugin_args``, and those of `DepthFirst`; all participants begin at once.
    Nipype's own raise a TypeError when a job leaves no result, take the result of an earlier run
    for that of a job which never began, leave their jobs in the queue when the run ends early, and
    give them whatever environment the main process has made for itself.

    Parameters
    ----------
    plugin_args : dict, optional
        As for Nipype's plugin.
    environment : mapping, optional
        That of the jobs; the environment of this process if omitted.
    launcher : sequence of str
        Command that takes the path of a node's Python script and runs it, in a job.
    warn : callable, optional
        Takes a line that the user should see.
    """

    system = ''
    cancel_command = ''

    def __init__(
        self,
        plugin_args: dict[str, Any] | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        launcher: Sequence[str] = (sys.executable,),
        warn: Callable[[str], None] = LOGGER.warning,
    ) -> None:
        super().__init__(plugin_args=plugin_args or {})
        self._environment = environment
        self._launcher = list(launcher)
        self._warn = warn
        self._names: dict[Any, str] = {}
        self._scripts: dict[Any, Path] = {}

    def run(self, graph: Any, config: Any, updatehash: bool = False) -> None:
        """Run the graph; however it ends, no job is left in the queue."""
        try:
            super().run(graph, config, updatehash=updatehash)
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Take all jobs that wait or run out of the queue."""
        if self._pending:
            _output(self.cancel_command, *map(str, self._pending))

    def _submit_job(self, node: Any, updatehash: bool = False) -> Any:
        if not updatehash:
            # A job that is killed before it begins would seem to have made them.
            for stale in Path(node.output_dir()).glob('result_*.pklz'):
                stale.unlink()
        program = Path(create_pyscript(node, updatehash=updatehash))
        script = program.with_name(f'batchscript_{program.stem}.sh')
        command = shlex.join([*self._launcher, str(program)])
        script.write_text(f'{self._template.rstrip()}\n{command}\n', encoding='utf-8')
        # A job that is submitted and not noted down would be left in the queue.
        with _signals_held(), _environment_of(self._environment):
            job = self._submit_batchtask(str(script), node)
            self._names[job], self._scripts[job] = node.fullname, script
        return job

    def _get_result(self, taskid: Any) -> dict[str, Any] | None:
        result = super()._get_result(taskid)
        # A node that failed has a list; a job that left no result file has a text on that.
        if result and isinstance(result['traceback'], str):
            return self._without_result(taskid)
        return result

    def _without_result(self, taskid: Any) -> dict[str, Any]:
        lines = [*self._last_words(taskid), f'\n{self._epitaph(taskid)}\n']
        return {'result': None, 'traceback': lines, 'hostname': 'unknown'}

    def _last_words(self, taskid: Any) -> list[str]:
        """The end of what a job printed, where that is known."""
        return []

    def _epitaph(self, taskid: Any) -> str:
        """One line on a job that left no result."""
        return (
            f'{self._names[taskid]}: {self.system} job {taskid} ended without a result: '
            'ended for its memory or time, or by hand? What it printed is beside '
            f'{self._scripts[taskid]}'
        )

    def _report_crash(self, node: Any, result: dict[str, Any] | None = None) -> str:
        if result and isinstance(result['traceback'], str):
            result = {**result, 'traceback': result['traceback'].splitlines(keepends=True)}
        return super()._report_crash(node, result)


class SupervisedPBSPlugin(SupervisedBatch, PBSPlugin):
    """Nipype's PBS, supervised."""

    system, cancel_command = 'PBS', 'qdel'


class SupervisedSGEPlugin(SupervisedBatch, SGEPlugin):
    """Nipype's SGE, supervised."""

    system, cancel_command = 'SGE', 'qdel'


class SupervisedLSFPlugin(SupervisedBatch, LSFPlugin):
    """Nipype's LSF, supervised."""

    system, cancel_command = 'LSF', 'bkill'


class SupervisedSLURMPlugin(SupervisedBatch, SLURMPlugin):
    """Nipype's SLURM, supervised, with resources by the nodes' estimates.

    Takes the same ``plugin_args``, and ``poll_interval``: the seconds between two looks at the
    queue, which is asked for all jobs at once. Nipype's own asks for each job in each of its
    rounds, takes a controller that does not answer as the failure of a node, and does not quote
    the paths that it submits.
    """

    system, cancel_command = 'SLURM', 'scancel'

    def __init__(self, plugin_args: dict[str, Any] | None = None, **more: Any) -> None:
        super().__init__(plugin_args, **more)
        self._interval = float(self.plugin_args.get('poll_interval', POLL_INTERVAL))
        self._looked = -math.inf
        self._queue: set[int] = set()
        self._warned: set[tuple[int, str]] = set()

    def _submit_batchtask(self, scriptfile: str, node: Any) -> int:
        own = node.plugin_args.get('sbatch_args', '')
        given = '' if node.plugin_args.get('overwrite') else self._sbatch_args or ''
        words = shlex.split(f'{given} {own}')
        log = Path(scriptfile).with_name('slurm-%j.out')
        # Logs of our own are read when a job leaves no result, so these options come last.
        words = [*sbatch_resources(node, words), *words, f'--output={log}', f'--error={log}']
        # A node starts again if its host was lost; the options that are given may say otherwise.
        words = ['--requeue', '--open-mode=append', *words]
        command = ['sbatch', f'--job-name={node.fullname}', *words, scriptfile]
        for attempt in range(self._max_tries + 1):
            if attempt:
                time.sleep(self._retry_timeout)
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0 and (found := re.search(self._jobid_re, done.stdout)):
                job = int(found[1])
                self._pending[job] = node.output_dir()
                self._queue.add(job)
                return job
        said = ' '.join((done.stderr or done.stdout).split()) or 'no message'
        raise RuntimeError(f'{node.fullname}: sbatch ended with status {done.returncode}: {said}')

    def _is_pending(self, taskid: int) -> bool:
        if time.monotonic() - self._looked >= self._interval:
            self._look()
        return taskid in self._queue

    def _look(self) -> None:
        """Ask for all jobs at once; without an answer nothing changes."""
        jobs = ','.join(map(str, self._pending))
        command = ['squeue', '--noheader', '--format=%i %r', f'--jobs={jobs}']
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        self._looked = time.monotonic()
        if done.returncode and 'Invalid job id' not in done.stderr:
            LOGGER.warning('%s: %s', command[0], ' '.join(done.stderr.split()))
            return
        found = dict(re.findall(r'^ *(\d+) (.*?) *$', done.stdout, re.MULTILINE))
        self._queue = {int(job) for job in found}
        for job, reason in ((int(job), reason) for job, reason in found.items()):
            if STUCK.search(reason) and (job, reason) not in self._warned:
                self._warned.add((job, reason))
                name = self._names.get(job, 'a node')
                self._warn(f'warning: {name}: SLURM job {job} waits, perhaps for ever: {reason}')

    def _get_result(self, taskid: int) -> dict[str, Any] | None:
        if self._is_pending(taskid):
            return None
        if not list(Path(self._pending[taskid]).glob('result_*.pklz')):
            state = _job_record(taskid).get('JobState', '')
            if state in ALIVE:
                self._queue.add(taskid)
                return None
            if state not in ('', 'COMPLETED'):
                return self._without_result(taskid)
        # It may be there and not be seen yet: network file systems take their time.
        return super()._get_result(taskid)

    def _last_words(self, taskid: int) -> list[str]:
        log = self._scripts[taskid].with_name(f'slurm-{taskid}.out')
        try:
            return log.read_text(errors='replace').splitlines(keepends=True)[-20:]
        except OSError:
            return []

    def _epitaph(self, taskid: int) -> str:
        return _job_epitaph(taskid, self._names[taskid], ''.join(self._last_words(taskid)))


BATCH_PLUGINS = {
    'PBS': SupervisedPBSPlugin,
    'SGE': SupervisedSGEPlugin,
    'LSF': SupervisedLSFPlugin,
    'SLURM': SupervisedSLURMPlugin,
}
"""The plugins of batch systems here, by the name of Nipype's."""


def sbatch_resources(node: Any, words: list[str]) -> list[str]:
    """Options of ``sbatch`` for the estimates ``mem_gb`` and ``n_procs`` unless they are given."""
    names = {word.partition('=')[0] for word in words}
    options = []
    if not names & {'--mem', '--mem-per-cpu', '--mem-per-gpu'}:
        options.append(f'--mem={math.ceil((node.mem_gb + PROCESS_GB) * 1024)}M')
    if '--cpus-per-task' not in names and not any(re.match('-c', word) for word in words):
        options.append(f'--cpus-per-task={node.n_procs or 1}')
    return options


def _job_record(job: int) -> dict[str, str]:
    """The controller's record of a job; SLURM forgets those that ended minutes ago."""
    printed = _output('scontrol', '--oneliner', 'show', 'job', str(job))
    return dict(re.findall(r'(?:^|\s)(JobState|Reason|ExitCode|BatchHost)=(\S+)', printed))


def _job_epitaph(job: int, name: str, printed: str = '') -> str:
    """One line on why a job of SLURM ended without a result, as far as SLURM still knows."""
    found = _job_record(job)
    state = found.get('JobState') or next(
        iter(_output('sacct', '-n', '-X', '-P', '-o', 'State', '-j', str(job)).split('\n')), ''
    )
    text = f'{name}: SLURM job {job} ended without a result: {state or "state unknown"}'
    if found.get('Reason', 'None') != 'None':
        text += f' ({found["Reason"]})'
    if found.get('BatchHost'):
        text += f' on {found["BatchHost"]}'
    if found.get('ExitCode', '0:0') != '0:0':
        text += f', exit status and signal {found["ExitCode"]}'
    killed = state.startswith('OUT_OF_ME') or found.get('ExitCode', '').endswith(':9')
    if killed or re.search(r'oom.kill|memory limit', printed, re.IGNORECASE):
        text += '; it may have had too little memory: give more with --mem in sbatch_args'
    return text


@contextmanager
def _environment_of(variables: Mapping[str, str] | None) -> Iterator[None]:
    """Have these variables and no others for a while."""
    before = dict(os.environ)
    if variables is not None:
        os.environ.clear()
        os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Let SIGTERM, SIGHUP and SIGINT wait for the end of the block."""
    before = signal.pthread_sigmask(
        signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP, signal.SIGINT}
    )
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _output(*command: str) -> str:
    """Output of a command, nothing where it cannot run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ''


def _end_with(parent: int) -> None:
    """Have the system kill this process when the main one is gone, however that ended.

    A worker that outlives a killed main process would write into the same folder as that of the
    run which is started again. Linux alone can do it.
    """
    if sys.platform != 'linux':
        return
    pr_set_pdeathsig = 1  # of <sys/prctl.h>
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # gone before it was asked for
        os._exit(1)


def _keep_memory() -> None:
    """Have all threads of this process take from one heap what any of them has given back.

    Else each keeps a heap of its own: a fit with two threads held a third more. The heap does not
    shrink, and arrays of less than 32 MiB are on it: the system clears each page that it hands
    out, which was a quarter of its time where arrays come and go. Larger ones are not, since holes
    of their sizes would be left. The process ends with its node. The C library of GNU alone can do
    it.
    """
    m_trim_threshold, m_mmap_threshold, m_arena_max = -1, -3, -8  # of <malloc.h>
    if mallopt := getattr(ctypes.CDLL(None), 'mallopt', None):
        mallopt(m_arena_max, 1)
        mallopt(m_mmap_threshold, 32 << 20)
        mallopt(m_trim_threshold, 2**31 - 1)


def _work(parent: int, sender: Connection, node: Any, updatehash: bool, taskid: int) -> None:
    """Run a node and send its result to the main process."""
    _end_with(parent)
    _keep_memory()
    # The handlers are the main process's: here a signal simply ends the worker.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ['NIPYPE_NO_ET'] = '1'
    try:
        sender.send(run_node(node, updatehash, taskid))
    except Exception as error:  # an output that cannot be pickled, a full disk
        sender.send({'result': None, 'traceback': format_exception(error), 'taskid': taskid})


def _epitaph(process: BaseProcess) -> str:
    """One line on why a worker ended without a result."""
    code = process.exitcode or 0
    if code >= 0:
        return f'{process.name}: the worker ended with exit status {code} and no result\n'
    name = signal.Signals(-code).name
    text = f'{process.name}: the worker was killed by signal {-code} ({name})'
    if -code == signal.SIGKILL:
        text += (
            '. This is what the system does when memory runs out: allow more, '
            'or use fewer processes (--nprocs) or less at once (--mem)'
        )
    return text + '\n'
