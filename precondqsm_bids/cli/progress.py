"""Lines that say which run is at which stage, and for how long; plain, so that logs have them.

On a terminal a last line shows what runs now; elsewhere a line a minute does.
"""

import logging
import os
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TextIO

LOGGER = logging.getLogger('precondqsm_bids')

WEIGHTS = {
    'shape_mask': 10, 'echo_fit': 40, 'prior_fit': 45, 'conventional_background_removal': 6,
    'background_removal': 14, 'dipole_inversion': 5, 'conventional_dipole_inversion': 3,
    'consensus_dipole_inversion': 10, 'outputs': 8,
}  # fmt: skip
"""What the stages take of a run, as on the head phantom (s); the others 2. For the time left."""

MINUTE = 60.0

KNOWN = 0.3
"""Part of a run that must be done before the time left is estimated from it."""

_live = ''
"""What the last line of the terminal shows."""


class Stage(NamedTuple):
    """Stage that a node counts as; several nodes may be one, such as all that write."""

    run: str
    name: str
    size: float = 1.0
    """Voxels of the run, in any unit."""

    @property
    def weight(self) -> float:
        """Part of the work of all runs, in any unit."""
        return WEIGHTS.get(self.name, 2) * self.size


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line with the time of day, at once, and log it."""
    LOGGER.info(text)
    put(f'{time.strftime("[%H:%M:%S]")} {text}', stream)


def put(text: str, stream: TextIO | None = None) -> None:
    """Print a text at once.

    A reader that went away (``| head``, a closed connection) is no reason to end a reconstruction.
    """
    stream = stream or sys.stdout
    try:
        show_live('')
        sys.stdout.flush()  # so that both streams come in order where they meet in one file
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        # Python would fail again when it flushes at its end.
        for broken in {sys.stdout, stream}:
            os.dup2(os.open(os.devnull, os.O_WRONLY), broken.fileno())


def show_live(text: str) -> None:
    """Show a text in the last line of a terminal until the next line is printed."""
    global _live
    if text != _live and sys.stdout.isatty():
        width = os.get_terminal_size(sys.stdout.fileno()).columns or 80
        # To the start of the line, the text, and nothing behind it.
        print(f'\r{text[: width - 1]}\x1b[K', end='', flush=True)
        _live = text


def new_log_name() -> str:
    """A name for the logs of this call: the time, and what keeps two of one second apart."""
    return f'{time.strftime("%Y%m%d-%H%M%S")}_{uuid.uuid4().hex[:8]}'


class Progress:
    """What is said while the nodes run: a line for each stage, and for what takes long.

    Parameters
    ----------
    stages : mapping
        Full names of the nodes and what they count as; nodes that are not in it are not reported.
    write, show : callable
        Take a line; ``show`` one that the next takes the place of.
    clock : callable
        Seconds.
    """

    def __init__(
        self,
        stages: Mapping[str, Stage],
        write: Callable[[str], None] = say,
        show: Callable[[str], None] = show_live,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stages, self._write, self._show, self._clock = stages, write, show, clock
        self._left = Counter(stages.values())
        self._single = {stage for stage, count in self._left.items() if count == 1}
        self._totals = Counter(stage.run for stage in self._left)
        self._done: Counter[str] = Counter()
        self._started: dict[Stage, float] = {}
        self._latest: dict[str, float] = {}
        self._finished: set[str] = set()
        self._failed: set[str] = set()
        self._computed: list[Stage] = []
        self._began = self._said = clock()

    def __deepcopy__(self, memo: Any) -> 'Progress':
        """Itself: Nipype copies the arguments of its plugins."""
        return self

    def follow(self, node: Any, status: str) -> None:
        """Status callback for Nipype's plugins: a node, and start, end or exception."""
        name = node.fullname
        # Nipype says "end" after "exception", too
        if name not in self._stages or name in self._finished:
            return
        stage, now = self._stages[name], self._clock()
        if status == 'start':
            self._started.setdefault(stage, now)
            if stage in self._single:
                self._say(f'{stage.run} | {stage.name} ... started')
            return
        self._finished.add(name)
        self._left[stage] -= 1
        if status == 'end' and self._left[stage]:
            return
        self._done[stage.run] += not self._left[stage]
        # Nodes of a shared stage start as soon as they can: it takes what it takes after the rest.
        since = self._started.get(stage)
        if stage not in self._single:
            since = self._latest.get(stage.run)
        self._latest[stage.run] = now
        if stage in self._started:
            self._computed.append(stage)
        self._say(self._end_of(stage, node, status, None if since is None else now - since))

    def _end_of(self, stage: Stage, node: Any, status: str, seconds: float | None) -> str:
        """Line on the end of a stage."""
        count = f'({self._done[stage.run]}/{self._totals[stage.run]})'
        took = '' if seconds is None else f' {seconds:.1f} s'
        if status == 'exception':
            self._failed.add(stage.run)
            what = node.fullname.rpartition('.')[2]
            return f'{stage.run} | {what} ... FAILED{" after" * bool(took)}{took} {count}'
        if took or node.run_without_submitting or stage not in self._single:
            return f'{stage.run} | {stage.name} ... done{" in" * bool(took)}{took} {count}'
        # Nipype's serial plugin says "end" of what a failure keeps from running
        how = 'not run' if stage.run in self._failed else 'taken from the work folder'
        return f'{stage.run} | {stage.name} ... {how} {count}'

    def tick(self) -> None:
        """Show what runs now; say it where nothing else was said for a minute."""
        now = self._clock()
        running = {
            stage: now - start for stage, start in self._started.items() if self._left[stage]
        }
        if not running:
            return
        what = '; '.join(
            f'{stage.run} | {stage.name} ... {duration(seconds)}'
            for stage, seconds in running.items()
        )
        line = f'{what}{self._outlook(running)}'
        self._show(line)
        if now - self._said >= MINUTE:
            self._say(line)

    def _say(self, line: str) -> None:
        self._said = self._clock()
        self._write(line)

    def _outlook(self, running: Mapping[Stage, float]) -> str:
        """Runs that are through, of several, and the time left once enough is done to tell."""
        runs = len(self._totals)
        through = sum(self._done[run] == total for run, total in self._totals.items())
        words = f', {through} of {runs} runs done' * (runs > 1)
        done = sum(stage.weight for stage in self._computed)
        known = max((stage.size for stage in self._computed), default=0)
        if not done or done < KNOWN * known * sum(WEIGHTS.values()):
            return words
        pace = (max(self._latest.values()) - self._began) / done
        # A stage that runs has done its part as far as the pace tells, and never all of it.
        ahead = sum(
            stage.weight - min(running.get(stage, 0) / pace, 0.9 * stage.weight)
            for stage, count in self._left.items()
            if count
        )
        return f'{words}, about {duration(max(pace * ahead, 1))} left'


def duration(seconds: float) -> str:
    """A time in words: of the two largest units at most.

    >>> duration(4.4), duration(80), duration(754), duration(7500)
    ('4 s', '1 min 20 s', '13 min', '2 h 5 min')
    """
    if seconds < 59.5:
        return f'{seconds:.0f} s'
    if seconds < 300:
        return f'{seconds // 60:.0f} min {seconds % 60:.0f} s'
    minutes = round(seconds / 60)
    return f'{minutes} min' if minutes < 60 else f'{minutes // 60} h {minutes % 60} min'
