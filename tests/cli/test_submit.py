"""Submission to SLURM: what the scripts say, what is submitted, and what is told when it fails."""

import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from precondqsm_bids.cli import submit as module
from precondqsm_bids.cli.parser import build_parser, parse_args
from precondqsm_bids.cli.run import main

SBATCH = """#!/bin/bash
calls=$(dirname "$0")/calls
printf '%s\\n' "$*" >>"$calls"
printf '%s\\n' "$OMP_NUM_THREADS" >"$calls.threads"
number=$(wc -l <"$calls")
if [ "$number" = "${FAILING_CALL:-0}" ]; then
    echo 'sbatch: error: Invalid partition name specified' >&2
    exit 1
fi
echo "$((40 + number))${CLUSTER:-}"
"""


@pytest.fixture
def folder(tmp_path):
    """A folder whose path has to be quoted."""
    path = tmp_path / "it's a folder"
    path.mkdir()
    return path


@pytest.fixture
def submit(dataset, folder, monkeypatch, capsys):
    """Submit the dataset; status, standard output and error."""
    monkeypatch.chdir(folder)

    def call(*options):
        words = [str(dataset.root), 'out', 'participant', '--submit', 'slurm']
        status = main([*words, *map(str, options)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A program sbatch that writes its arguments to a file; that file."""
    (tmp_path / 'bin').mkdir()
    program = tmp_path / 'bin' / 'sbatch'
    program.write_text(SBATCH)
    program.chmod(0o755)
    monkeypatch.setenv('PATH', f'{program.parent}:{os.environ["PATH"]}')
    return program.parent / 'calls'


def scripts(folder):
    (logs,) = (folder / 'out' / 'logs').iterdir()
    return logs / 'participants.sh', logs / 'group.sh'


def head(script):
    lines = [line for line in script.read_text().splitlines() if line.startswith('#SBATCH')]
    return dict(line.removeprefix('#SBATCH --').partition('=')[::2] for line in lines)


def commands(script, tmp_path, **environment):
    """Run a script whose Python only tells its arguments."""
    teller = tmp_path / 'teller'
    teller.write_text('#!/bin/bash\nprintf "%s\\n" "$PWD" "$@" >"$TOLD"\n')
    teller.chmod(0o755)
    text = script.read_text().replace(f'exec {shlex.quote(sys.executable)}', f'exec {teller}')
    told = tmp_path / 'told'
    copy = tmp_path / 'copy.sh'
    copy.write_text(text)
    subprocess.run(
        ['bash', str(copy)], check=True, env={**os.environ, 'TOLD': str(told), **environment}
    )
    return told.read_text().splitlines()


def test_array_and_group(dataset, submit, folder, slurm, tmp_path, monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '3')
    for label in ('01', '02', 'a'):
        dataset.add_run(f'sub-{label}')
    status, output, error = submit(
        '--submit-limit', 2, '--submit-time', '2:00:00', '-w', 'my work'
    )
    assert (status, error) == (0, '')
    array, group = scripts(folder)
    assert slurm.read_text().splitlines() == [
        f'--parsable {array}',
        f'--parsable --dependency=afterany:41 {group}',
    ]
    assert Path(f'{slurm}.threads').read_text() == '3\n', 'the jobs inherit the environment'
    assert 'submitted array job 41' in output
    assert 'job 42 of the group level' in output
    options = head(array)
    assert options['array'] == '0-2%2'
    assert options['time'] == '2:00:00'
    assert options['cpus-per-task'] == str(module.CPUS)
    assert options['output'] == f'"{array.parent}/slurm-%A_%a.out"'
    assert commands(array, tmp_path, SLURM_ARRAY_TASK_ID='2') == [
        str(folder),
        *('-m', 'precondqsm_bids', str(dataset.root), str(folder / 'out'), 'participant'),
        *('--participant-label', 'a', f'--work-dir={folder}/my work/sub-a'),
    ]
    assert (array.parent / 'sub-a.log').exists()
    told = commands(group, tmp_path)
    assert told[5:] == ['group', '--work-dir=my work']
    parse_args(told[3:])


def test_without_limit_and_time(dataset, submit, folder, slurm):
    dataset.add_run()
    assert submit()[0] == 0
    options = head(scripts(folder)[0])
    assert options['array'] == '0-0'
    assert options['time'] == str(module.LEAST_MINUTES + 3), 'next to no voxels'
    assert 'time' not in head(scripts(folder)[1])


def test_job_of_a_lost_host_begins_again(dataset, submit, folder, slurm):
    dataset.add_run()
    submit()
    for script in scripts(folder):
        assert '\n#SBATCH --requeue\n#SBATCH --open-mode=append\n' in script.read_text()


def test_time_is_that_of_the_largest_participant(dataset, folder):
    from precondqsm_bids.inputs.discovery import find_runs

    dataset.add_run('sub-01')
    dataset.add_run('sub-02')
    runs, _ = find_runs(dataset.root)
    words = [str(dataset.root), str(folder / 'out'), 'participant']
    settings = parse_args(words)
    # 12 s and 3 echoes of 10 million voxels at 2 us: 1.2 minutes, and ten times as long.
    large = [runs[0], replace(runs[1], matrix=(250, 200, 200))]
    assert module.estimated_minutes(settings, large) == 30 + 12
    two_runs = [*large, replace(large[1])]
    assert module.estimated_minutes(settings, two_runs) == 30 + 24
    longer = parse_args([*words, '--pdf-iterations', '60'])
    assert module.estimated_minutes(longer, large) == 30 + 22
    assert module.estimated_minutes(settings, []) == 30


@pytest.fixture
def five(dataset, slurm):
    """Five participants, and a cluster that takes two in an array."""
    for label in '12345':
        dataset.add_run(f'sub-{label}')
    program = slurm.with_name('scontrol')
    program.write_text('#!/bin/bash\n[ "$*" = "show config" ] && echo "MaxArraySize  = 2"\n')
    program.chmod(0o755)
    return slurm


def test_more_participants_than_an_array_takes(five, submit, folder, tmp_path):
    status, output, error = submit('-w', 'work')
    assert (status, error) == (0, '')
    (logs,) = (folder / 'out' / 'logs').iterdir()
    parts = [logs / f'participants-{i}.sh' for i in (1, 2, 3)]
    assert sorted(logs.glob('participants*')) == parts
    assert five.read_text().splitlines() == [
        *(f'--parsable {part}' for part in parts),
        f'--parsable --dependency=afterany:41:42:43 {logs / "group.sh"}',
    ]
    assert '5 participants: 3 arrays of at most 2 (MaxArraySize)' in output
    assert [head(part)['array'] for part in parts] == ['0-1', '0-1', '0-0']
    done = [
        commands(part, tmp_path, SLURM_ARRAY_TASK_ID=str(task))[-2]
        for part, tasks in zip(parts, (2, 2, 1), strict=True)
        for task in range(tasks)
    ]
    assert done == list('12345')


def test_arrays_with_a_limit_wait_for_each_other(five, submit, folder):
    assert submit('--submit-limit', 2)[0] == 0
    assert [line.split()[1] for line in five.read_text().splitlines()][1:] == [
        '--dependency=afterany:41',
        '--dependency=afterany:42',
        '--dependency=afterany:41:42:43',
    ]


def test_a_later_array_that_is_not_taken(five, submit, folder, monkeypatch):
    monkeypatch.setenv('FAILING_CALL', '2')
    status, _, error = submit()
    (logs,) = (folder / 'out' / 'logs').iterdir()
    assert status == 1
    assert 'array job 41 is submitted and goes on' in error
    rest = [logs / name for name in ('participants-2.sh', 'participants-3.sh', 'group.sh')]
    assert f'submit {" and then ".join(map(str, rest))} when it is done' in error


def test_dry_run_only_writes(dataset, submit, folder, slurm):
    dataset.add_run()
    status, output, _ = submit('--dry-run')
    array, group = scripts(folder)
    assert status == 0
    assert not slurm.exists()
    assert output.splitlines()[0].endswith(f'1 participants: {array}')
    assert output.splitlines()[1].endswith(f'group level: {group}')
    assert '--dry-run' not in array.read_text() + group.read_text()


def test_memory_is_that_of_the_largest_node(dataset, submit, folder, slurm, monkeypatch):
    dataset.add_run()
    monkeypatch.setattr(module, 'largest_node_gb', lambda settings, runs: 9.0)
    submit()
    array, group = scripts(folder)
    assert head(array)['mem'] == '11264M', '9 GB are nine tenths of 10, and 1 GB is beside them'
    assert head(group)['mem'] == '2048M'


def test_estimates_of_the_largest_run(dataset, folder):
    from precondqsm_bids.inputs.discovery import find_runs

    dataset.add_run('sub-01')
    dataset.add_run('sub-02')
    runs, _ = find_runs(dataset.root)
    settings = parse_args([str(dataset.root), str(folder / 'out'), 'participant'])
    small = module.largest_node_gb(settings, runs)
    large = [runs[0], replace(runs[1], matrix=(400, 500, 600))]
    assert module.largest_node_gb(settings, large) > max(small, 1)
    assert module.largest_node_gb(settings, []) == 0


def test_limits_are_passed_on_and_asked_for(dataset, submit, folder, slurm, tmp_path):
    dataset.add_run()
    submit('--mem', '9G', '--nprocs', 6)
    array, group = scripts(folder)
    assert head(array)['mem'] == '10240M', '--mem is nine tenths of it, as without a scheduler'
    assert head(array)['cpus-per-task'] == '6'
    told = commands(array, tmp_path, SLURM_ARRAY_TASK_ID='0')
    assert {'--mem=9G', '--nprocs=6'} <= set(told)
    assert not [
        word for word in commands(group, tmp_path) if word.startswith(('--mem', '--nprocs'))
    ]


def test_every_option_is_passed_on_once(dataset, submit, folder, slurm, tmp_path):
    dataset.add_run()
    (folder / 'a map.nii').touch()
    (folder / 'filters.json').write_text('{"megre": {"run": null}}')
    (folder / 'more').mkdir()
    (folder / 'settings.toml').write_text('pdf_iterations = 7\nnprocs = 5\n')
    options = [
        *('--participant-label', 'sub-01', '--skip-bids-validation', '--bids-filter-file'),
        *('filters.json', '-d', 'x=more', '--bids-database-dir=data base'),
        *('--b0-dir', '0', '-1', '1e-3', '--mask', 'derivatives', '--mask-erosion', '1'),
        *('--phase-sign', '-1', '--prior', 'contrast', 'map:a map.nii', '--prior-fit=clusters'),
        *('--contrasts', 'T1w', '--write-prior-labels', '--r2', '12', '--no-shape'),
        *('--field-strength', '3', '--field', 'echoes', '--inversion', 'tv'),
        *('--background', 'pdf', '--preset', 'consensus'),
        *('--conventional', '--no-conventional', '-w', 'w', '--clean-workdir'),
        *('--pdf-iterations', '9', '--reg-weight', 'risk', '--reference', 'none', '-v', '-v'),
        *('--omp-nthreads', '2', '--mem', '4G', '--resource-monitor', '--node-timeout', '30'),
        *('--config-file', 'settings.toml', '--write-graph', '--stop-on-first-crash'),
        *('--report-self-contained', '--stop-after', 'flattening'),
        *('--submit-limit', '3', '--submit-time', '90'),
    ]  # fmt: skip
    forms = {o: action for action in build_parser()._actions for o in action.option_strings}
    given = {forms[o].dest for word in options if (o := word.partition('=')[0]) in forms}
    absent = {'help', 'version', 'session_label', 'nprocs', 'submit'}
    absent |= {'brain_model', 'use_plugin', 'boilerplate_only', 'reports_only', 'dry_run'}
    absent |= {'resume_with'}  # which reconstructs nothing
    assert given | absent == {action.dest for action in forms.values()}, 'a new option?'
    assert submit(*options)[0] == 0
    array, group = scripts(folder)
    assert head(array)['cpus-per-task'] == '5', 'of the settings file'
    told = commands(array, tmp_path, SLURM_ARRAY_TASK_ID='0')[3:]
    names = [word.partition('=')[0] for word in told if word.startswith('--')]
    assert sorted(names) == sorted([*{*names}, '--verbose']), 'once, but for -v'
    wanted = parse_args([str(dataset.root), 'out', 'participant', *options[:-4]])
    got = parse_args(told)
    assert got == replace(wanted, work_dir=folder / 'w' / 'sub-01')
    assert not [word for word in told if 'submit' in word]
    told = commands(group, tmp_path)[3:]
    at_group = parse_args(told)
    assert at_group.participant_label == ('01',)
    assert at_group.method == parse_args([*told[:3], '--config-file=settings.toml']).method


def test_a_job_that_is_not_taken(dataset, submit, folder, slurm, monkeypatch):
    dataset.add_run()
    monkeypatch.setenv('FAILING_CALL', '1')
    status, _, error = submit()
    array, _ = scripts(folder)
    assert status == 1
    assert f'sbatch {array} ended with status 1: ' in error
    assert 'Invalid partition name specified' in error
    assert len(slurm.read_text().splitlines()) == 1


def test_a_group_job_that_is_not_taken(dataset, submit, folder, slurm, monkeypatch):
    dataset.add_run()
    monkeypatch.setenv('FAILING_CALL', '2')
    status, _, error = submit()
    assert status == 1
    assert 'array job 41 is submitted' in error
    assert 'scancel 41' in error


def test_several_clusters(dataset, submit, slurm, monkeypatch):
    dataset.add_run()
    monkeypatch.setenv('CLUSTER', ';east')
    assert submit()[0] == 0
    assert '--dependency=afterany:41 ' in slurm.read_text()


def test_no_slurm(dataset, submit, monkeypatch, tmp_path):
    dataset.add_run()
    monkeypatch.setenv('PATH', str(tmp_path))
    status, _, error = submit()
    assert status == 2
    assert 'sbatch: No such file or directory; --submit slurm needs' in error


def test_broken_participant_has_a_job_too(dataset, submit, folder, slurm):
    dataset.add_run('sub-01')
    (dataset.add_run('sub-02') / 'sub-02_echo-1_part-mag_MEGRE.nii.gz').unlink()
    status, _, error = submit()
    assert status == 0
    assert 'has no magnitude beside it' in error
    assert 'participants=(01 02)' in scripts(folder)[0].read_text()


def test_output_folder_that_slurm_cannot_name(dataset, submit, folder, slurm):
    dataset.add_run()
    status = main([str(dataset.root), str(folder / '50%'), 'participant', '--submit', 'slurm'])
    assert status == 2
    assert not slurm.exists()


@pytest.mark.parametrize(
    'options, message',
    [
        ('--submit-limit 3', 'need --submit'),
        ('--submit-time 3', 'need --submit'),
        ('--submit slurm --reports-only', 'does not go with --reports-only'),
        ('--submit slurm --boilerplate-only', 'does not go with --boilerplate-only'),
        ('--submit slurm --use-plugin plugin.yml', 'does not go with --use-plugin'),
        ('--submit slurm --submit-time soon', '"soon" is not a time'),
        ('--submit pbs', 'invalid choice'),
        ('--submit slurm --config-file again.toml', 'submit goes on the command line only'),
    ],
)
def test_refused(dataset, folder, monkeypatch, capsys, options, message):
    monkeypatch.chdir(folder)
    Path('plugin.yml').touch()
    Path('again.toml').write_text('submit = "slurm"\n')
    assert main([str(dataset.root), 'out', 'participant', *options.split()]) == 2
    assert message in capsys.readouterr().err
