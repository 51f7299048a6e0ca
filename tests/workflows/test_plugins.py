"""A killed worker is a named failure of its node, and the rest of the graph goes on."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from nipype.interfaces.utility import Function
from nipype.pipeline import engine as pe
from nipype.utils.filemanip import loadpkl

from precondqsm_bids.workflows.plugins import SupervisedMultiProcPlugin


def _double(x):
    return 2 * x


def _killed(x):
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def _exits(x):
    import os

    os._exit(3)


def _raises(x):
    raise ValueError('no good')


def _lambda(x):
    return lambda: x


def _sleeps(x):
    import time

    time.sleep(60)


@pytest.fixture
def build(tmp_path):
    """A graph: bad -> after_bad beside good -> after_good."""

    def make(bad):
        workflow = pe.Workflow('wf', base_dir=str(tmp_path))
        workflow.config['execution'] = {
            'crashdump_dir': str(tmp_path / 'crash'),
            'crashfile_format': 'txt',
            'poll_sleep_duration': '0.02',
            'create_report': 'false',
        }
        for name, function in (('bad', bad), ('good', _double)):
            first = pe.Node(Function(function=function), name=name)
            first.inputs.x = 1
            second = pe.Node(Function(function=_double), name=f'after_{name}')
            workflow.connect(first, 'out', second, 'x')
        return workflow

    return make


def run(workflow, **plugin_args):
    statuses = []
    plugin = SupervisedMultiProcPlugin(
        {
            'n_procs': 2,
            'memory_gb': 2,
            'status_callback': lambda node, status: statuses.append((node.name, status)),
            **plugin_args,
        }
    )
    try:
        workflow.run(plugin=plugin)
    finally:
        assert multiprocessing.active_children() == []
    return statuses


@pytest.mark.parametrize(
    'bad, message',
    [
        (_killed, 'wf.bad: the worker was killed by signal 9 (SIGKILL)'),
        (_exits, 'wf.bad: the worker ended with exit status 3'),
        (_raises, 'ValueError: no good'),
        (_lambda, "Can't pickle local object '_lambda.<locals>.<lambda>'"),
    ],
)
def test_only_the_node_fails(build, tmp_path, bad, message):
    workflow = build(bad)
    with pytest.raises(RuntimeError) as error:
        run(workflow)
    assert message in str(error.value)
    (crash,) = (tmp_path / 'crash').glob('crash-*.txt')
    text = crash.read_text()
    assert text.startswith('Node: wf.bad\n')
    assert message in text
    assert (tmp_path / 'wf' / 'after_good' / 'result_after_good.pklz').exists()
    assert not (tmp_path / 'wf' / 'after_bad').exists()


@pytest.mark.parametrize('at_once, most', [(1, 1), (2, 2)])
def test_a_participant_is_through_before_the_next_begins(tmp_path, at_once, most):
    """Four chains in a graph, one of which fails; each is reported once, when nothing is left."""
    workflow = pe.Workflow('wf', base_dir=str(tmp_path))
    workflow.config['execution'] = {'crashdump_dir': str(tmp_path), 'poll_sleep_duration': '0.02'}
    for label in 'abcd':
        participant = pe.Workflow(f'participant_{label}')
        first = pe.Node(Function(function=_raises if label == 'b' else _double), name='first')
        first.inputs.x = 1
        second = pe.Node(Function(function=_double), name='second')
        participant.connect(first, 'out', second, 'x')
        workflow.add_nodes([participant])
    events, ticks = [], []
    plugin = SupervisedMultiProcPlugin(
        {
            'n_procs': 4,
            'memory_gb': 2,
            'at_once': at_once,
            'finished': lambda name: events.append((name, 'through')),
            'tick': lambda: ticks.append(1),
            'status_callback': lambda node, status: events.append(
                (node.fullname.split('.')[1], status)
            ),
        }
    )
    with pytest.raises(RuntimeError, match='no good'):
        workflow.run(plugin=plugin)
    running, largest = set(), 0
    for name, status in events:
        if status == 'start':
            running.add(name)
        elif status == 'through':
            running.remove(name)
        largest = max(largest, len(running))
    assert largest == most
    through = [name for name, status in events if status == 'through']
    assert sorted(through) == [f'participant_{label}' for label in 'abcd']
    assert at_once > 1 or through == sorted(through)
    assert ticks


def test_a_node_that_takes_too_long(build, tmp_path):
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=r'wf\.bad: ended after 0\.01 minutes \(--node-timeout'):
        run(build(_sleeps), node_timeout=0.6)
    assert time.monotonic() - started < 20
    (crash,) = (tmp_path / 'crash').glob('crash-*.txt')
    assert crash.read_text().startswith('Node: wf.bad\n')
    assert (tmp_path / 'wf' / 'after_good' / 'result_after_good.pklz').exists()


def test_a_graph_that_succeeds(build, tmp_path):
    workflow = build(_double)
    statuses = run(workflow)
    assert sorted(name for name, status in statuses if status == 'end') == [
        'after_bad',
        'after_good',
        'bad',
        'good',
    ]
    assert not (tmp_path / 'crash').exists()


def _frozen(x):
    import gc

    return gc.get_freeze_count()


def test_what_is_there_before_the_workers_is_frozen_for_their_time(build, tmp_path):
    """Else each round of the main process goes through all of it, and so does each worker."""
    workflow = build(_frozen)
    run(workflow)
    result = loadpkl(tmp_path / 'wf' / 'bad' / 'result_bad.pklz')
    assert result.outputs.out > 0.5 * len(gc.get_objects())
    assert gc.get_freeze_count() == 0


def test_no_worker_outlives_an_interrupt(build):
    """Without the clean-up the node would go on for a minute; `run` sees that nothing is left."""
    # A shell's background job ignores interrupts, and so would a test run in one.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    started = time.monotonic()
    # Hypothesis listens to the garbage collector, and an interrupt within its callback is lost.
    callbacks, gc.callbacks[:] = gc.callbacks[:], []
    try:
        with pytest.raises(KeyboardInterrupt):
            run(build(_sleeps))
    finally:
        gc.callbacks[:] = callbacks
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 15


ORPHAN = """
import os, sys, time
from nipype.interfaces.utility import Function
from nipype.pipeline import engine as pe
from precondqsm_bids.workflows.plugins import SupervisedMultiProcPlugin

def sleeps(path):
    import os, time
    with open(path, 'w') as file:
        file.write(str(os.getpid()))
    time.sleep(60)

workflow = pe.Workflow('orphan', base_dir=sys.argv[1])
node = pe.Node(Function(function=sleeps), 'sleeps')
node.inputs.path = os.path.join(sys.argv[1], 'pid')
workflow.add_nodes([node])
workflow.run(SupervisedMultiProcPlugin(plugin_args={'n_procs': 1, 'memory_gb': 1}))
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux ends a child with its parent')
def test_no_worker_outlives_a_killed_main_process(tmp_path):
    script = tmp_path / 'orphan.py'
    script.write_text(ORPHAN)
    main = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    pid = tmp_path / 'pid'
    wait_for(lambda: pid.exists() and pid.read_text(), 60)
    worker = int(pid.read_text())
    main.kill()
    main.wait()
    wait_for(lambda: not alive(worker), 5)


def alive(pid):
    """Whether a process runs; one that nobody has collected yet does not."""
    try:
        with open(f'/proc/{pid}/stat') as file:
            return file.read().rpartition(')')[2].split()[0] != 'Z'
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
