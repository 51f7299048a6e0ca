"""A job of SLURM that is killed is a named failure of its node; stand-ins for SLURM's commands."""

import os
import shlex

import pytest
from nipype.interfaces.utility import Function
from nipype.pipeline import engine as pe

from precondqsm_bids.workflows.plugins import SupervisedSLURMPlugin, sbatch_resources

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
    'squeue': 'echo JOBID\n',
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
    monkeypatch.setenv('REFUSED', '')
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


def run(workflow, **plugin_args):
    workflow.run(plugin=SupervisedSLURMPlugin({'retry_timeout': 0, **plugin_args}))


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
