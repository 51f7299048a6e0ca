"""What a person reads while it runs."""

import io
import os
import pty
import subprocess
import sys
from copy import deepcopy
from types import SimpleNamespace

import pytest

from precondqsm_bids.cli.progress import Progress, Stage, say, show_live


def run_events(stages, events):
    """Lines of a sequence of (seconds, node, status); a tick has no node."""
    lines, now = [], [0.0]
    progress = Progress(stages, lines.append, lambda text: None, lambda: now[0])
    follow, tick = deepcopy([progress.follow, progress.tick])  # as Nipype does
    for seconds, name, status in events:
        now[0] = seconds
        if status == 'tick':
            tick()
        else:
            follow(SimpleNamespace(fullname=name, run_without_submitting='sink' in name), status)
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


def test_a_line_a_minute_and_the_time_left():
    """Three equal runs of 170 s: one and its next two thirds done."""
    stages = {
        f'wf.{run}.{name}': Stage(f'sub-{run}', name, size=1e6)
        for run in 'abc'
        for name in ('echo_fit', 'prior_fit')
    }
    events = [
        (0, 'wf.a.echo_fit', 'start'),
        (59, '', 'tick'),
        (60, '', 'tick'),
        (61, '', 'tick'),
        (80, 'wf.a.echo_fit', 'end'),
        (80, 'wf.a.prior_fit', 'start'),
        (170, 'wf.a.prior_fit', 'end'),
        (170, 'wf.b.echo_fit', 'start'),
        (250, 'wf.b.echo_fit', 'end'),
        (250, 'wf.b.prior_fit', 'start'),
        (310, '', 'tick'),
    ]
    waits = [line for line in run_events(stages, events) if 'started' not in line]
    # weights 40 and 45: 2 s a unit; left are 45 - 30 of b and the 85 of c
    assert [line for line in waits if 'done in' not in line] == [
        'sub-a | echo_fit ... 1 min 0 s, 0 of 3 runs done',
        'sub-b | prior_fit ... 1 min 0 s, 1 of 3 runs done, about 3 min 20 s left',
    ]


def test_live_line_on_a_terminal_alone(monkeypatch):
    master, slave = pty.openpty()
    with os.fdopen(slave, 'w') as terminal:
        monkeypatch.setattr(sys, 'stdout', terminal)
        show_live('fit ... 3 s')
        say('done')
        show_live('')
    with os.fdopen(master, 'rb') as screen:
        shown = os.read(screen.fileno(), 1000).decode()
    assert shown.startswith('\rfit ... 3 s\x1b[K\r\x1b[K[')
    assert shown.endswith('] done\r\n')
    monkeypatch.setattr(sys, 'stdout', pipe := io.StringIO())
    show_live('fit ... 3 s')
    assert pipe.getvalue() == ''


def test_say_gives_the_time_of_day():
    stream = io.StringIO()
    say('hello', stream)
    text = stream.getvalue()
    assert (text[0], text[3], text[9:]) == ('[', ':', '] hello\n')


@pytest.mark.parametrize('function', ['say', 'put'])
def test_a_reader_that_goes_away_stops_nothing(function):
    code = (
        f'from precondqsm_bids.cli.progress import {function}\n'
        f'for _ in range(3):\n    {function}("x" * 9)\n'
        'raise SystemExit(7)\n'
    )
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, 'wb') as closed:
        done = subprocess.run([sys.executable, '-c', code], stdout=closed, check=False)
    assert done.returncode == 7
