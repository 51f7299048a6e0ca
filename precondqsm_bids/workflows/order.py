"""Participants one after the other in one graph: depth first."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np


class DepthFirst:
    """Order of the jobs for Nipype's plugins; a base class before that plugin.

    A participant begins when fewer than ``at_once`` are in progress, and its nodes come before
    those of the participants after it. Nipype's own plugins begin with all participants at once
    and finish none before the last.

    ``plugin_args`` may have, beside those of the plugin, ``at_once`` (a number), ``finished``
    (takes the name of a participant's workflow, the second part of the full names of its nodes,
    when all its nodes are done or cannot be run) and ``tick`` (takes nothing; called in each
    round).
    """

    def __init__(self, plugin_args: dict[str, Any] | None = None, **more: Any) -> None:
        super().__init__(plugin_args=plugin_args, **more)
        given = self.plugin_args
        self._at_once = given.get('at_once', math.inf)
        self._finished = given.get('finished', lambda name: None)
        self._tick = given.get('tick', lambda: None)
        self._jobs: dict[str, list[int]] = {}
        self._begun: set[str] = set()

    def _generate_dependency_list(self, graph: Any) -> None:
        super()._generate_dependency_list(graph)
        self._jobs = {}
        for job, node in enumerate(self.procs):
            self._jobs.setdefault(participant_of(node), []).append(job)

    def _send_procs_to_workers(self, updatehash: bool = False, graph: Any = None) -> None:
        self._report_through()
        super()._send_procs_to_workers(updatehash=updatehash, graph=graph)
        self._tick()

    def _postrun_check(self) -> None:
        self._report_through()
        super()._postrun_check()

    def _sort_jobs(self, jobids: Iterable[int], scheduler: str = 'tsort') -> list[int]:
        """Jobs that may begin now, those of the first participant first."""
        jobids = super()._sort_jobs(jobids, scheduler=scheduler)
        rank = {name: i for i, name in enumerate(self._jobs)}
        names = {job: participant_of(self.procs[job]) for job in jobids}
        admitted = []
        for job in sorted(names, key=lambda job: rank[names[job]]):
            if names[job] not in self._begun and len(self._begun) >= self._at_once:
                continue
            self._begun.add(names[job])
            admitted.append(job)
        return admitted

    def _report_through(self) -> None:
        """Report the participants that are through."""
        through = np.asarray(self.proc_done) & ~np.asarray(self.proc_pending)
        for name in [name for name, jobs in self._jobs.items() if through[jobs].all()]:
            del self._jobs[name]
            self._begun.discard(name)
            self._finished(name)


def participant_of(node: Any) -> str:
    """Name of the workflow of a node's participant."""
    return node.fullname.split('.')[1]
