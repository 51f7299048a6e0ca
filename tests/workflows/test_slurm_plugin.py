"""A batch job that is killed is a named failure of its node; stand-ins for the commands."""

import logging
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
from nipype.interfaces.utility import Function
from nipype.pipeline import engine as pe

from precondqsm_bids.workflows.plugins import (
    SupervisedLSFPlugin,
    SupervisedPBSPlugin,
    SupervisedSLURMPlugin,
    sbatch_resources,
)

PROGRAMS = {
    # Runs the job at once, but that of the node named "bad".
    'sbatch': """
printf '%s\\n' "$*" >>"$FAKE/calls"
[ -z "$REFUSED" ] || { echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1; }
number=$(wc -l <"$FAKE/calls")
script=${!#}
log=$(dirname "$script")/slurm-$number.out
case "$*" in
*wf.bad*) echo 'slurmstepd: error: *** JOB CANCELLED ***' >"$log" ;;
*) bash "$script" >"$log" 2>&1 ;;
esac
echo "Submitted batch job $number"
""",
    'squeue': """
echo "$*" >>"$FAKE/looks"
[ -z "$SILENT" ] || { SILENT=$(cat "$FAKE/silent" 2>/dev/null) || { echo 1 >"$FAKE/silent"
    echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1; }; }
[ -z "$WAITING" ] || [ -e "$FAKE/waited" ] || { touch "$FAKE/waited"; echo "1 $WAITING"; }
""",
    # PBS and LSF: their bad jobs are those of the node named "bad", too.
    'qsub': """
printf '%s\\n' "$*" >>"$FAKE/calls"
case "$*" in *_wf_bad.sh) ;; *) bash "${!#}" >/dev/null 2>&1 ;; esac
echo "$(wc -l <"$FAKE/calls").server"
""",
    'qstat': 'echo "qstat: $2 Job has finished" >&2; exit 35\n',
    'qdel': 'echo "$*" >>"$FAKE/cancelled"\n',
    'bsub': """
printf '%s\\n' "$*" >>"$FAKE/calls"
case "$*" in *_wf_bad.sh) ;; *) bash "${!#}" >/dev/null 2>&1 ;; esac
echo "Job <$(wc -l <"$FAKE/calls")> is submitted"
""",
    'bjobs': 'echo EXIT\n',
    'scontrol': 'echo "JobId=$4 JobState=${STATE} Reason=None ExitCode=0:9"\n',
    'scancel': 'echo "$*" >>"$FAKE/cancelled"\n',
}


def _double(x):
    return 2 * x


def _raises(x):
    raise ValueError('no good')


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """The folder of the stand-ins, and of what they write."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    for name, text in PROGRAMS.items():
        (folder / name).write_text(f'#!/bin/bash\n{text}')
        (folder / name).chmod(0o755)
    monkeypatch.setenv('PATH', f'{folder}:{os.environ["PATH"]}')
    monkeypatch.setenv('FAKE', str(folder))
    monkeypatch.setenv('STATE', 'CANCELLED')
    for name in ('REFUSED', 'SILENT', 'WAITING'):
        monkeypatch.setenv(name, '')
    monkeypatch.delenv('LOGNAME', raising=False)
    return folder


@pytest.fixture
def build(tmp_path):
    """Two nodes beside each other, in a folder whose path has to be quoted."""

    def make(**functions):
        workflow = pe.Workflow('wf', base_dir=str(tmp_path / 'my work'))
        workflow.config['execution'] = {
            'crashdump_dir': str(tmp_path / 'crash'),
            'crashfile_format': 'txt',
            'poll_sleep_duration': '0.02',
            'job_finished_timeout': '0.5',
            'create_report': 'false',
        }
        for name, function in functions.items():
            node = pe.Node(Function(function=function), name=name, mem_gb=2.5, n_procs=3)
            node.inputs.x = 1
            workflow.add_nodes([node])
        return workflow

    return make


def run(workflow, plugin=SupervisedSLURMPlugin, more=None, **plugin_args):
    plugin_args = {'retry_timeout': 0, 'poll_interval': 0.1, **plugin_args}
    workflow.run(plugin=plugin(plugin_args, **(more or {})))


def crash(tmp_path):
    (file,) = (tmp_path / 'crash').glob('crash-*.txt')
    return file.read_text()


def test_killed_job_is_a_named_failure(slurm, build, tmp_path):
    with pytest.raises(RuntimeError, match=r'wf\.bad: SLURM job \d+ ended without a result'):
        run(build(bad=_double, good=_double))
    text = crash(tmp_path)
    assert text.startswith('Node: wf.bad\n')
    assert 'JOB CANCELLED' in text
    assert 'without a result: CANCELLED, exit status and signal 0:9; it may have had' in text
    assert (tmp_path / 'my work/wf/good/result_good.pklz').exists()


def test_killed_job_that_slurm_has_forgotten(slurm, build, tmp_path):
    (slurm / 'scontrol').unlink()
    with pytest.raises(RuntimeError, match='ended without a result: state unknown'):
        run(build(bad=_double))
    assert 'Node: wf.bad' in crash(tmp_path)


def test_failed_node(slurm, build, tmp_path):
    with pytest.raises(RuntimeError, match='no good'):
        run(build(wrong=_raises))
    assert 'ValueError: no good' in crash(tmp_path)


def test_resources_are_the_estimates(slurm, build):
    run(build(good=_double), sbatch_args="--partition=long --comment='a b'")
    (call,) = (slurm / 'calls').read_text().splitlines()
    for word in ('--mem=3584M', '--cpus-per-task=3', '--partition=long', '--comment=a b'):
        assert word in call
    assert not (slurm / 'cancelled').exists()


@pytest.mark.parametrize(
    'given, expected',
    [
        ('', ['--mem=3584M', '--cpus-per-task=3']),
        ('--mem=1G', ['--cpus-per-task=3']),
        ('--mem-per-cpu 1G -c2', []),
        ('--mem 1G --cpus-per-task=1', []),
        ('--exclusive', ['--mem=3584M', '--cpus-per-task=3']),
    ],
)
def test_what_is_given_comes_first(given, expected):
    node = pe.Node(Function(function=_double), name='node', mem_gb=2.5, n_procs=3)
    assert sbatch_resources(node, shlex.split(given)) == expected


def test_refused_job(slurm, build, tmp_path, monkeypatch):
    monkeypatch.setenv('REFUSED', 'yes')
    with pytest.raises(Exception, match='QOSMaxSubmitJobPerUserLimit'):
        run(build(good=_double), max_tries=1)
    assert len((slurm / 'calls').read_text().splitlines()) == 2


def test_no_job_outlives_an_interrupt(slurm, build, monkeypatch):
    def interrupted(self, taskid):
        raise KeyboardInterrupt

    monkeypatch.setattr(SupervisedSLURMPlugin, '_is_pending', interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(build(good=_double))
    assert (slurm / 'cancelled').read_text() == '1\n'


def test_result_of_an_earlier_run_is_not_taken(slurm, build, tmp_path):
    run(build(again=_double))
    stale = tmp_path / 'my work/wf/again/result_again.pklz'
    assert stale.exists()
    sbatch = slurm / 'sbatch'
    sbatch.write_text(sbatch.read_text().replace('*wf.bad*', '*wf.again*'))
    workflow = build(again=_double)
    workflow.get_node('again').inputs.x = 2
    with pytest.raises(RuntimeError, match=r'wf\.again: SLURM job \d+ ended without a result'):
        run(workflow)
    assert not stale.exists()


def test_no_wait_for_the_result_of_a_job_that_is_known_to_be_killed(slurm, build):
    workflow = build(bad=_double)
    workflow.config['execution']['job_finished_timeout'] = '100'
    before = time.monotonic()
    with pytest.raises(RuntimeError, match='CANCELLED'):
        run(workflow)
    assert time.monotonic() - before < 50


def test_controller_that_does_not_answer_is_no_failure(slurm, build, monkeypatch, caplog):
    monkeypatch.setenv('SILENT', 'yes')
    with caplog.at_level(logging.WARNING, 'precondqsm_bids'):
        run(build(good=_double))
    assert 'Unable to contact slurm controller' in caplog.text


def test_queue_is_asked_for_all_jobs_at_once(slurm, build):
    run(build(one=_double, two=_double, three=_double))
    looks = (slurm / 'looks').read_text().splitlines()
    assert len(looks) <= 2
    assert sorted(looks[0].partition('--jobs=')[2].split(',')) == ['1', '2', '3']


def test_job_that_may_wait_for_ever_is_reported(slurm, build, monkeypatch):
    warned = []
    monkeypatch.setenv('WAITING', 'PartitionTimeLimit')
    run(build(good=_double), more={'warn': warned.append})
    assert warned == ['warning: wf.good: SLURM job 1 waits, perhaps for ever: PartitionTimeLimit']


def test_job_that_waits_for_its_turn_is_not_reported(slurm, build, monkeypatch):
    warned = []
    monkeypatch.setenv('WAITING', 'Priority')
    run(build(good=_double), more={'warn': warned.append})
    assert warned == []


def test_jobs_inherit_what_they_are_given(slurm, build, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', '/gone/with/the/main/process')
    launcher = tmp_path / 'launcher'
    launcher.write_text(f'#!/bin/bash\necho "$HOME" >{slurm}/home\nexec {sys.executable} "$@"\n')
    launcher.chmod(0o755)
    environment = {**os.environ, 'HOME': '/home/of/the/user'}
    run(build(good=_double), more={'environment': environment, 'launcher': [str(launcher)]})
    assert (slurm / 'home').read_text() == '/home/of/the/user\n'
    assert os.environ['HOME'] == '/gone/with/the/main/process'


MAIN = """
import os, sys
from nipype.interfaces.utility import Function
from nipype.pipeline import engine as pe
from precondqsm_bids.cli.environment import before_sigterm_ends, ending_on_sigterm
from precondqsm_bids.workflows.plugins import SupervisedSLURMPlugin
workflow = pe.Workflow('wf', base_dir=sys.argv[1])
node = pe.Node(Function(function_str='def f(x): return x', input_names=['x']), name='bad')
node.inputs.x = 1
workflow.add_nodes([node])
plugin = SupervisedSLURMPlugin({'poll_interval': 0.1})
with ending_on_sigterm('terminated'), before_sigterm_ends(plugin.cancel):
    workflow.run(plugin=plugin)
"""


def test_no_job_outlives_a_terminated_main_process(slurm, tmp_path):
    (slurm / 'squeue').write_text('#!/bin/bash\ntouch "$FAKE/looked"; echo "1 None"\n')
    main = subprocess.Popen(
        [sys.executable, '-W', 'ignore', '-c', MAIN, str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not (slurm / 'looked').exists():
            assert time.monotonic() < deadline
            assert main.poll() is None, main.stderr.read()
            time.sleep(0.1)
        main.send_signal(signal.SIGTERM)
        _, error = main.communicate(timeout=30)
    finally:
        main.kill()
    assert (main.returncode, error) == (143, 'terminated\n')
    assert (slurm / 'cancelled').read_text() == '1\n'


@pytest.mark.parametrize(
    'plugin, system', [(SupervisedPBSPlugin, 'PBS'), (SupervisedLSFPlugin, 'LSF')]
)
def test_killed_job_of_other_systems(slurm, build, tmp_path, monkeypatch, plugin, system):
    monkeypatch.setenv('LOGNAME', 'somebody')
    monkeypatch.chdir(tmp_path)  # where Nipype's plugin keeps what qstat prints
    workflow = build(bad=_double, good=_double)
    workflow.base_dir = str(tmp_path / 'work')  # Nipype does not quote it for these
    with pytest.raises(RuntimeError, match=rf'wf\.bad: {system} job \d ended without a result'):
        run(workflow, plugin)
    assert 'Node: wf.bad' in crash(tmp_path)
    assert (tmp_path / 'work/wf/good/result_good.pklz').exists()
