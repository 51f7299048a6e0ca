"""Parallel execution that survives the death of a worker, here or on a cluster.

Nipype's pool of workers breaks as a whole when the system kills one of them (out of memory), and
the main process then waits for ever. Here each node has a process of its own: what dies is one
node, by name, with a crash file; the others go on; and its memory goes back to the system.
"""

import ctypes
import math
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from traceback import format_exception
from typing import Any

from nipype.pipeline.plugins.multiproc import MultiProcPlugin, run_node
from nipype.pipeline.plugins.slurm import SLURMPlugin

GRACE = 3.0
"""Seconds that a worker has between a polite request to end and its end."""

PROCESS_GB = 1.0
"""GiB that a job of SLURM has beside its node's estimate: the interpreter and its libraries."""


class SupervisedMultiProcPlugin(MultiProcPlugin):
    """Nipype's MultiProc with one forked process per node instead of a pool.

    Takes the same ``plugin_args``, and ``node_timeout``: the seconds that a worker may take.
    The main process has no threads, so that forking is safe.
    """

    def __init__(self, plugin_args: dict[str, Any] | None = None) -> None:
        super().__init__(plugin_args=plugin_args)
        self._context = multiprocessing.get_context('fork')
        self._workers: dict[int, tuple[BaseProcess, Connection]] = {}
        self._timeout = self.plugin_args.get('node_timeout') or math.inf
        self._started: dict[int, float] = {}

    def run(self, graph: Any, config: Any, updatehash: bool = False) -> None:
        """Run the graph; however it ends, no worker outlives it."""
        try:
            super().run(graph, config, updatehash=updatehash)
        finally:
            self._end_workers()

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


class SupervisedSLURMPlugin(SLURMPlugin):
    """Nipype's SLURM, with resources by the nodes' estimates and a word on jobs that are killed.

    Takes the same ``plugin_args``. Nipype's own dies of a TypeError when a job leaves no result,
    wants ``LOGNAME``, and does not quote the paths that it submits.
    """

    def __init__(self, plugin_args: dict[str, Any] | None = None) -> None:
        super().__init__(plugin_args=plugin_args or {})
        self._names: dict[int, str] = {}
        self._logs: dict[int, Path] = {}

    def run(self, graph: Any, config: Any, updatehash: bool = False) -> None:
        """Run the graph; however it ends, no job is left in the queue."""
        try:
            super().run(graph, config, updatehash=updatehash)
        finally:
            if self._pending:
                _output('scancel', *map(str, self._pending))

    def _submit_batchtask(self, scriptfile: str, node: Any) -> int:
        own = node.plugin_args.get('sbatch_args', '')
        given = '' if node.plugin_args.get('overwrite') else self._sbatch_args or ''
        words = shlex.split(f'{given} {own}')
        log = Path(scriptfile).with_name('slurm-%j.out')
        # Logs of our own are read when a job leaves no result, so these options come last.
        words = [*sbatch_resources(node, words), *words, f'--output={log}', f'--error={log}']
        command = ['sbatch', f'--job-name={node.fullname}', *words, scriptfile]
        for attempt in range(self._max_tries + 1):
            if attempt:
                time.sleep(self._retry_timeout)
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0 and (found := re.search(self._jobid_re, done.stdout)):
                job = int(found[1])
                self._pending[job] = node.output_dir()
                self._names[job] = node.fullname
                self._logs[job] = log.with_name(f'slurm-{job}.out')
                return job
        said = ' '.join((done.stderr or done.stdout).split()) or 'no message'
        raise RuntimeError(f'{node.fullname}: sbatch ended with status {done.returncode}: {said}')

    def _get_result(self, taskid: int) -> dict[str, Any] | None:
        result = super()._get_result(taskid)
        # A node that failed has a list; a job that left no result file has a text on that.
        if result and isinstance(result['traceback'], str):
            with suppress(OSError):
                said = self._logs[taskid].read_text(errors='replace')
                result['traceback'] = said.splitlines(keepends=True)[-20:]
            if isinstance(result['traceback'], str):
                result['traceback'] = []
            result['traceback'].append(f'\n{_job_epitaph(taskid, self._names[taskid])}\n')
        return result

    def _report_crash(self, node: Any, result: dict[str, Any] | None = None) -> str:
        if result and isinstance(result['traceback'], str):
            result = {**result, 'traceback': result['traceback'].splitlines(keepends=True)}
        return super()._report_crash(node, result)


def sbatch_resources(node: Any, words: list[str]) -> list[str]:
    """Options of ``sbatch`` for the memory and CPUs of a node, unless they are given.

    Parameters
    ----------
    node : Node
        With estimates ``mem_gb`` and ``n_procs``.
    words : list of str
        Options that are given.
    """
    names = {word.partition('=')[0] for word in words}
    options = []
    if not names & {'--mem', '--mem-per-cpu', '--mem-per-gpu'}:
        options.append(f'--mem={math.ceil((node.mem_gb + PROCESS_GB) * 1024)}M')
    if '--cpus-per-task' not in names and not any(re.match('-c', word) for word in words):
        options.append(f'--cpus-per-task={node.n_procs or 1}')
    return options


def _job_epitaph(job: int, name: str) -> str:
    """Why a job of SLURM ended without a result, as far as SLURM still knows."""
    told = _output('scontrol', '--oneliner', 'show', 'job', str(job))
    found = dict(re.findall(r'\b(JobState|Reason|ExitCode)=(\S+)', told))
    state = found.get('JobState') or next(
        iter(_output('sacct', '-n', '-X', '-P', '-o', 'State', '-j', str(job)).split('\n')), ''
    )
    text = f'{name}: SLURM job {job} ended without a result: {state or "state unknown"}'
    if found.get('Reason', 'None') != 'None':
        text += f' ({found["Reason"]})'
    if found.get('ExitCode', '0:0') != '0:0':
        text += f', exit status and signal {found["ExitCode"]}'
    if 'OUT_OF_ME' in told + state or found.get('ExitCode', '').endswith(':9'):
        text += '; it may have had too little memory: give more with --mem in sbatch_args'
    return text


def _output(*command: str) -> str:
    """What a command prints, nothing where it cannot run."""
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


def _work(parent: int, sender: Connection, node: Any, updatehash: bool, taskid: int) -> None:
    """Run a node and send its result to the main process."""
    _end_with(parent)
    # The handlers are the main process's: here a signal simply ends the worker.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ['NIPYPE_NO_ET'] = '1'
    try:
        sender.send(run_node(node, updatehash, taskid))
    except Exception as error:  # an output that cannot be pickled, a full disk
        sender.send({'result': None, 'traceback': format_exception(error), 'taskid': taskid})


def _epitaph(process: BaseProcess) -> str:
    """Why a worker ended without a result."""
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
