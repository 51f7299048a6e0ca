"""Lines that say which run is at which stage, and for how long; plain, so that logs have them."""

import logging
import os
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TextIO

LOGGER = logging.getLogger('precondqsm_bids')


class Stage(NamedTuple):
    """Stage that a node counts as; several nodes may be one, such as all that write."""

    run: str
    name: str


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line with the time of day, at once, and log it.

    A reader that went away (``| head``, a closed connection) is no reason to end a reconstruction.
    """
    LOGGER.info(text)
    stream = stream or sys.stdout
    try:
        sys.stdout.flush()  # so that both streams come in order where they meet in one file
        print(time.strftime('[%H:%M:%S]'), text, file=stream, flush=True)
    except BrokenPipeError:
        # Python would fail again when it flushes at its end.
        for broken in {sys.stdout, stream}:
            os.dup2(os.open(os.devnull, os.O_WRONLY), broken.fileno())


def new_log_name() -> str:
    """A name for the logs of this call: the time, and what keeps two of one second apart."""
    return f'{time.strftime("%Y%m%d-%H%M%S")}_{uuid.uuid4().hex[:8]}'


def follow(
    stages: Mapping[str, Stage],
    write: Callable[[str], None] = say,
    clock: Callable[[], float] = time.monotonic,
) -> Callable[[Any, str], None]:
    """A status callback for Nipype's plugins: a closure, since Nipype copies their arguments.

    It takes a node and ``start``, ``end`` or ``exception``. ``stages`` has the full names of the
    nodes, ``write`` takes each line, ``clock`` gives seconds.
    """
    left = Counter(stages.values())
    single = {stage for stage, count in left.items() if count == 1}
    totals = Counter(stage.run for stage in left)
    done: Counter[str] = Counter()
    started: dict[Stage, float] = {}
    latest: dict[str, float] = {}
    finished, failed = set(), set()

    def report(node: Any, status: str) -> None:
        name = node.fullname
        if name not in stages or name in finished:  # Nipype says "end" after "exception", too
            return
        stage, now = stages[name], clock()
        if status == 'start':
            started.setdefault(stage, now)
            if stage in single:
                write(f'{stage.run} | {stage.name} ... started')
            return
        finished.add(name)
        left[stage] -= 1
        if status == 'end' and left[stage]:
            return
        done[stage.run] += not left[stage]
        count = f'({done[stage.run]}/{totals[stage.run]})'
        # Nodes of a shared stage start as soon as they can: it takes what it takes after the rest.
        since = started.get(stage) if stage in single else latest.get(stage.run)
        latest[stage.run] = now
        seconds = f' {now - since:.1f} s' if since is not None else ''
        if status == 'exception':
            failed.add(stage.run)
            what = name.rpartition('.')[2]
            write(f'{stage.run} | {what} ... FAILED{" after" * bool(seconds)}{seconds} {count}')
        elif seconds or node.run_without_submitting or stage not in single:
            write(f'{stage.run} | {stage.name} ... done{" in" * bool(seconds)}{seconds} {count}')
        else:  # Nipype's serial plugin says "end" of what a failure keeps from running
            how = 'not run' if stage.run in failed else 'taken from the work folder'
            write(f'{stage.run} | {stage.name} ... {how} {count}')

    return report
