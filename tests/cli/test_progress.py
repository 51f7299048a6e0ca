"""What a person reads while it runs."""

import io
import os
import subprocess
import sys
from copy import deepcopy
from types import SimpleNamespace

from precondqsm_bids.cli.progress import Stage, follow, say


def run_events(stages, events):
    """Lines of a sequence of (seconds, node, status)."""
    lines, now = [], [0.0]
    report = deepcopy(follow(stages, write=lines.append, clock=lambda: now[0]))
    for seconds, name, status in events:
        now[0] = seconds
        report(SimpleNamespace(fullname=name, run_without_submitting='sink' in name), status)
    return lines


STAGES = {
    'wf.a.fit': Stage('sub-01', 'fit'),
    'wf.a.invert': Stage('sub-01', 'invert'),
    'wf.a.sink1': Stage('sub-01', 'outputs'),
    'wf.a.sink2': Stage('sub-01', 'outputs'),
    'wf.b.fit': Stage('sub-02', 'fit'),
}


def test_stages_and_times():
    events = [
        (0, 'wf.a.fit', 'start'),
        (1, 'wf.b.fit', 'start'),
        (4.2, 'wf.a.fit', 'end'),
        (4.3, 'wf.a.sink1', 'end'),
        (5, 'wf.a.invert', 'start'),
        (6, 'wf.a.invert', 'end'),
        (6.5, 'wf.a.sink2', 'end'),
        (9, 'wf.b.fit', 'end'),
    ]
    assert run_events(STAGES, events) == [
        'sub-01 | fit ... started',
        'sub-02 | fit ... started',
        'sub-01 | fit ... done in 4.2 s (1/3)',
        'sub-01 | invert ... started',
        'sub-01 | invert ... done in 1.0 s (2/3)',
        'sub-01 | outputs ... done in 0.5 s (3/3)',
        'sub-02 | fit ... done in 8.0 s (1/1)',
    ]


def test_cached():
    assert run_events(STAGES, [(3, 'wf.b.fit', 'end')]) == [
        'sub-02 | fit ... taken from the work folder (1/1)'
    ]


def test_a_failure_is_told_once_and_named():
    events = [
        (0, 'wf.a.fit', 'start'),
        (2, 'wf.a.fit', 'exception'),
        (2, 'wf.a.fit', 'end'),
        (3, 'wf.a.sink1', 'exception'),
        (3, 'wf.a.invert', 'end'),
    ]
    assert run_events(STAGES, events) == [
        'sub-01 | fit ... started',
        'sub-01 | fit ... FAILED after 2.0 s (1/3)',
        'sub-01 | sink1 ... FAILED after 1.0 s (1/3)',
        'sub-01 | invert ... not run (2/3)',
    ]


def test_say_gives_the_time_of_day():
    stream = io.StringIO()
    say('hello', stream)
    text = stream.getvalue()
    assert (text[0], text[3], text[9:]) == ('[', ':', '] hello\n')


def test_a_reader_that_goes_away_stops_nothing():
    code = (
        'from precondqsm_bids.cli.progress import say\n'
        'for _ in range(3):\n    say("x" * 9)\n'
        'raise SystemExit(7)\n'
    )
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, 'wb') as closed:
        done = subprocess.run([sys.executable, '-c', code], stdout=closed, check=False)
    assert done.returncode == 7
