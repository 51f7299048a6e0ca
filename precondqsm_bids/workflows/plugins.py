"""Parallel execution that survives the death of a worker.

Nipype's pool of workers breaks as a whole when the system kills one of them (out of memory), and
the main process then waits for ever. Here each node has a process of its own: what dies is one
node, by name, with a crash file; the others go on; and its memory goes back to the system.
"""

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from traceback import format_exception
from typing import Any

from nipype.pipeline.plugins.multiproc import MultiProcPlugin, run_node

GRACE = 3.0
"""Seconds that a worker has between a polite request to end and its end."""


class SupervisedMultiProcPlugin(MultiProcPlugin):
    """Nipype's MultiProc with one forked process per node instead of a pool.

    Takes the same ``plugin_args``. The main process has no threads, so that forking is safe.
    """

    def __init__(self, plugin_args: dict[str, Any] | None = None) -> None:
        super().__init__(plugin_args=plugin_args)
        self._context = multiprocessing.get_context('fork')
        self._workers: dict[int, tuple[BaseProcess, Connection]] = {}

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
            target=_work, args=(sender, node, updatehash, self._taskid), name=node.fullname
        )
        process.start()
        sender.close()  # so that the end of the worker is the end of the pipe
        self._workers[self._taskid] = (process, receiver)
        return self._taskid

    def _get_result(self, taskid: int) -> dict[str, Any] | None:
        process, receiver = self._workers[taskid]
        if not receiver.poll():
            return None
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


def _work(sender: Connection, node: Any, updatehash: bool, taskid: int) -> None:
    """Run a node and send its result to the main process."""
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
