"""The app as its users meet it: exit statuses, last lines, files beside the log."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np
import pytest

import precondqsm_bids
from precondqsm_bids.cli import reports
from precondqsm_bids.cli import run as module
from precondqsm_bids.cli.run import main
from precondqsm_bids.config import Settings
from precondqsm_bids.cost import OUTPUT_BYTES, SECONDS_PER_RUN, SECONDS_PER_VALUE, WORK_BYTES
from precondqsm_bids.phantom.cli import main as write_phantom


@pytest.fixture
def app(dataset, tmp_path, monkeypatch, capsys):
    """Call the app on the dataset; status, standard output and error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, 'which', lambda name: None)

    def call(*options):
        status = main([str(dataset.root), 'out', 'participant', *map(str, options)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


# -- without a reconstruction -------------------------------------------------------------------


def test_nothing_to_do(dataset, app):
    dataset.write_image(dataset.root / 'sub-01/anat/sub-01_T1w.nii.gz')
    status, _, error = app()
    assert status == 70
    assert 'nothing to do' in error
    assert not Path('out').exists()


def test_a_dry_run_lists_what_is_skipped_once(dataset, app):
    dataset.add_run(suffix='MEGRE')
    Path('filter.json').write_text('{"megre": {"acquisition": "no"}}')
    status, output, error = app('--dry-run', '--bids-filter-file', 'filter.json')
    assert status == 70
    assert (output + error).count('left out by --bids-filter-file') == 1


def test_unknown_participant(dataset, app):
    dataset.add_run('sub-01')
    status, _, error = app('--participant-label', '01', '02')
    assert status == 2
    assert error.splitlines() == [
        f'precondqsm_bids: error: no participant 02 in {dataset.root}; its participants are: 01'
    ]


def test_no_dataset(dataset, app):
    dataset.add_run()
    (dataset.root / 'dataset_description.json').unlink()
    assert app('--dry-run')[0] == 2
    assert app('--dry-run', '--skip-bids-validation')[0] == 0


def test_output_that_cannot_be_written(dataset, app):
    dataset.add_run()
    Path('file').touch()
    status = main([str(dataset.root), 'file/out', 'participant'])
    assert status == 2


def test_dry_run(dataset, app):
    dataset.add_run('sub-01')
    dataset.add_labels('sub-01/anat/sub-01_dseg.nii.gz', {1: 'agar', 2: 'tube'})
    (dataset.add_run('sub-02') / 'sub-02_echo-1_part-mag_MEGRE.nii.gz').unlink()
    status, output, _ = app('--dry-run')
    assert status == 1
    lines = output.splitlines()
    expected = 'sub-01 3 4x5x6 4 to 12 3 auto contrast+shape none median 2 nothing'
    assert lines[1].split() == expected.split()
    assert any(line.endswith('sub-01_echo-2_part-phase_MEGRE.nii.gz') for line in lines)
    assert "  sign of the phase: by the field of the object's shape; where" in output
    assert '+1 is assumed, the usual convention' in output
    assert '  takes about 0.3 GB of memory (of ' in output
    assert 'all runs\n  time: about 1 min of CPU (' in output
    assert ' are free' in output
    assert 'sign of the phase: -1, stated' in app('--dry-run', '--phase-sign', '-1')[1]
    assert 'error: sub-02: ' in lines[-1]
    assert 'has no magnitude beside it' in lines[-1]
    assert not Path('out').exists()


def test_dry_run_foresees_what_a_large_slab_takes(dataset, app, monkeypatch):
    folder = dataset.add_run(extension='.nii')
    matrix = (500, 500, 40)  # of 2 mm, 0.08 as thick as wide; 3 echoes of 2 parts
    for path in folder.glob('*.nii'):
        head = nib.Nifti1Header(path.read_bytes()[:348])
        head.set_data_shape(matrix)
        path.write_bytes(head.binaryblock + bytes(4))
        os.truncate(path, 352 + 4 * 500 * 500 * 40)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: mock.Mock(free=5e8))
    output = app('--dry-run', '--mem', '1.5G', '--nprocs', '2')[1]
    fit = 344 * 1e7 / 1024**3  # of the prior: bytes a voxel, where the object fills the slab
    assert f'takes about {0.2 + fit:.1f} GB of memory (of 1.5, which may not do' in output
    assert 'is to be given with --phase-sign: in a slab, 8% as thick as wide' in output
    minutes = math.ceil((3e7 * SECONDS_PER_VALUE + SECONDS_PER_RUN) / 60)
    assert f'time: about {minutes} min of CPU ({1e6 * SECONDS_PER_VALUE:g} microseconds' in output
    gb = f'{(WORK_BYTES + OUTPUT_BYTES) * 1e7 / 1e9:.3g} GB'
    assert f'disk: about {gb} in the work folder ' in output
    assert '; 500 MB are free' in output
    assert 'has room for 500 MB' in output


def test_boilerplate_only(dataset, app):
    dataset.add_run()
    status, output, error = app(
        *('--boilerplate-only', '--prior', 'r2prime', '--r2', '12.5', '-w', 'w', '--write-graph')
    )
    assert (status, error) == (0, '')
    (log,) = Path('out/logs').iterdir()
    assert '12.5/s' in (log / 'CITATION.md').read_text()
    assert str(log / 'CITATION.md') in output
    assert 'dot (Graphviz) is not installed' in output
    assert (log / 'graph.dot').read_text().startswith('digraph')
    settings = Settings.from_toml((log / 'config.toml').read_text())
    assert (settings.method.r2, settings.boilerplate_only) == (12.5, True)
    description = json.loads(Path('out/dataset_description.json').read_text())
    assert description['DatasetType'] == 'derivative'
    assert not Path('w').exists()


def test_clean_workdir_removes_only_our_own(dataset, app):
    dataset.add_run()
    for name in ('precondqsm_bids_wf/old', 'other'):
        Path('w', name).mkdir(parents=True)
    assert app('--boilerplate-only', '-w', 'w')[0] == 0
    assert Path('w/precondqsm_bids_wf/old').exists()
    assert app('--boilerplate-only', '-w', 'w', '--clean-workdir')[0] == 0
    assert not Path('w/precondqsm_bids_wf').exists()
    assert Path('w/other').exists()


@pytest.mark.parametrize('stamp', ['0.0.1', f'{precondqsm_bids.__version__}+g0123456', None])
def test_work_folder_of_another_version_is_refused(dataset, app, monkeypatch, stamp):
    monkeypatch.setattr(module, 'execute', lambda *arguments: '')
    dataset.add_run()
    old = Path('w/precondqsm_bids_wf/old')
    old.mkdir(parents=True)
    if stamp:
        Path('w/precondqsm_bids_wf.version').write_text(f'{stamp}\n')
    status, _, error = app('-w', 'w')
    assert status == 2
    assert (f'version {stamp}' if stamp else 'an unknown version') in error
    assert 'remove them with --clean-workdir, or give another folder with -w' in error
    assert old.exists()
    assert not Path('out').exists()
    assert app('-w', 'w', '--clean-workdir')[0] == 0
    assert not old.exists()
    old.mkdir(parents=True)
    assert app('-w', 'w')[0] == 0, 'stamped by the run before'
    assert old.exists()
    assert sorted(path.name for path in Path('w').iterdir()) == [
        'precondqsm_bids_wf',
        'precondqsm_bids_wf.lock',
        'precondqsm_bids_wf.version',
    ]


def test_node_timeout_reaches_the_plugin(dataset, app, monkeypatch):
    from precondqsm_bids.workflows.plugins import SupervisedMultiProcPlugin

    def stop(self, graph, config, updatehash=False):
        raise RuntimeError(f'limit {self._timeout:g} s')

    monkeypatch.setattr(SupervisedMultiProcPlugin, 'run', stop)
    dataset.add_run()
    assert 'limit 90 s' in app('--node-timeout', 1.5, '-w', 'w')[2]
    Path('plugin.yml').write_text('plugin: Linear\n')
    status, _, error = app('--node-timeout', 1.5, '--use-plugin', 'plugin.yml')
    assert status == 2
    assert '--node-timeout does not go with --use-plugin' in error


def test_reports_only_needs_outputs(dataset, app):
    dataset.add_run()
    status, _, error = app('--reports-only')
    assert status == 70
    assert 'no outputs in' in error
    Path('out/sub-02/figures').mkdir(parents=True)
    status, _, error = app('--reports-only', '--participant-label', '01')
    assert status == 2
    assert 'there are: 02' in error
    assert app('--reports-only')[0] == 0
    assert Path('out/sub-02.html').exists()


def test_all_participants_have_problems(dataset, app):
    """No graph is built, and still everything is written that tells what happened."""
    dataset.add_run(field_strength=None)
    status, _, error = app()
    assert status == 1
    last = error.splitlines()[-1]
    assert 'sub-01 failed: ' in last
    assert 'has no MagneticFieldStrength' in last
    crash = Path(last.rpartition('crash file: ')[2])
    assert 'sub-01_echo-1_part-mag_MEGRE.nii.gz' in crash.read_text()
    assert Path('out/sub-01.html').exists()
    assert Path('out/dataset_description.json').exists()


def test_a_missing_report_is_a_failure(dataset, app, monkeypatch):
    dataset.add_run()
    monkeypatch.setattr(module, 'execute', lambda *args: '')

    def fail(*args, **keywords):
        raise OSError('no space left')

    monkeypatch.setattr('precondqsm_bids.outputs.report.write_report', fail)
    status, _, error = app()
    assert status == 1
    assert "sub-01 failed: report: OSError('no space left')" in error.splitlines()[-1]


def test_a_failed_run_is_told_until_it_is_done(dataset, app, monkeypatch):
    """One job for each session: the second one goes well and says nothing of the first."""
    good, bad = 'sub-01_ses-b', 'sub-01_ses-a'
    for name in (good, bad, f'{good}_run-2'):
        dataset.add_run(name)
    sidecar = dataset.root / f'sub-01/ses-a/anat/{bad}_echo-1_part-mag_MEGRE.json'
    broken, right = '{', sidecar.read_text()

    def reconstruct(call, workflow, found, plugin, finished):
        for run in found.runs:
            figures = Path(f'out/sub-01/figures/{run.label}_desc-summary_report.json')
            figures.parent.mkdir(parents=True, exist_ok=True)
            summary = {'record': {'echo_fit': {'warnings': ['look']}}, 'field_strength': 3.0}
            summary |= {key: [] for key in ('echo_times', 'matrix', 'voxel_size', 'sources')}
            summary |= {'echo_spacing': '', 'orientation': 'RAS', 'b0_tilt': 0.0}
            figures.write_text(json.dumps(summary))
        return ''

    monkeypatch.setattr(module, 'execute', reconstruct)

    def errors():
        text = Path('out/sub-01.html').read_text()
        return text[text.index('<section id="errors">') :]

    sidecar.write_text(broken)
    status, output, _ = app('-w', 'w')
    assert status == 1
    assert f'{good} | warning: echo fit: look' in output  # though the other run failed
    assert app('-w', 'w', '--session-label', 'b')[0] == 0
    assert 'is not a readable JSON' in errors()
    assert main([str(dataset.root), 'out', 'group']) == 70  # no maps here
    about = json.loads(Path('out/sub-01/figures/sub-01_desc-about_report.json').read_text())
    assert [name for name, said in about['runs'].items() if said['crash_files']] == [bad]
    sidecar.write_text(right)
    assert app('-w', 'w', '--session-label', 'a')[0] == 0
    assert 'No step failed' in errors()


def test_an_error_of_the_workflow_is_of_those_that_are_not_through(dataset, app, monkeypatch):
    for label in ('01', '02'):
        dataset.add_run(f'sub-{label}')

    def stop(call, workflow, found, plugin, finished):
        finished('01')
        return 'RuntimeError: no more jobs'

    monkeypatch.setattr(module, 'execute', stop)
    status, _, error = app('-w', 'w')
    assert status == 1
    assert 'sub-02 failed: RuntimeError: no more jobs' in error
    assert 'sub-01 failed' not in error


def test_participants_after_the_first_crash_are_not_reported(dataset, app, monkeypatch):
    for label in ('01', '02', '03'):
        dataset.add_run(f'sub-{label}')

    def stop(call, workflow, found, plugin, finished):
        crash = Path('out/sub-02/log', call.log_name, 'crash-1.txt')
        crash.parent.mkdir(parents=True)
        crash.write_text('Node: x.echo_fit\nOSError: truncated\n')
        figures = Path('out/sub-01/figures/sub-01_desc-summary_report.json')
        figures.parent.mkdir(parents=True)
        figures.write_text('{}')  # of a plugin that does not say when a participant is through
        return 'a node failed'

    monkeypatch.setattr(module, 'execute', stop)
    status, output, error = app('-w', 'w', '--stop-on-first-crash')
    assert status == 1
    assert [Path(f'out/sub-{label}.html').exists() for label in ('01', '02', '03')] == [
        *(True, True, False)
    ]
    assert 'sub-03 | report' not in output
    assert 'finished: 1 of 3 participants failed, 1 not computed; log ' in error


def test_validator_is_asked_and_stops_nobody(dataset, app, monkeypatch, tmp_path):
    dataset.add_run()
    program = tmp_path / 'validator'
    issues = {'issues': {'issues': [{'severity': 'error', 'code': 'BAD_THING'}]}}
    program.write_text(f"#!/bin/sh\necho '{json.dumps(issues)}'\nexit 16\n")
    program.chmod(0o755)
    monkeypatch.setattr(shutil, 'which', lambda name: str(program))
    status, output, _ = app('--boilerplate-only')
    assert status == 0
    assert 'finds 1 errors (BAD_THING)' in output
    assert 'BAD_THING' not in app('--boilerplate-only', '--skip-bids-validation')[1]


@pytest.mark.parametrize(
    'content, message',
    [
        ('plugin: SLURMGraph', 'returns at once with success, whatever fails later; use SLURM or'),
        ('plugin: Slurm', 'unknown plugin Slurm; known: '),
        ('plugin: [', 'not a readable YAML'),
        ('plugin_args: {}', 'should name a plugin'),
        ('plugin: SLURM\nargs: {}', 'unknown key args'),
        ('plugin: SLURM\nplugin_args: 3', 'should be a mapping'),
    ],
)
def test_plugin_files_that_are_refused(dataset, app, content, message):
    dataset.add_run()
    Path('plugin.yml').write_text(content)
    status, _, error = app('--use-plugin', 'plugin.yml')
    assert status == 2
    assert message in error
    assert error.count('\n') == 1


# -- the group level, on outputs written by hand ------------------------------------------------


@pytest.fixture
def group_level(dataset, tmp_path, monkeypatch, capsys):
    """Call the group level on the dataset, with runs 01 to 03, of which 03 has no outputs."""
    monkeypatch.chdir(tmp_path)
    for label in ('01', '02', '03'):
        dataset.add_run(f'sub-{label}')
    for label, noise in (('01', 2.5), ('02', 3.5)):
        folder = Path('out', f'sub-{label}', 'anat')
        folder.mkdir(parents=True)
        record = {'Parameters': {'echo_fit': {'noise_sd': noise}}}
        (folder / f'sub-{label}_desc-precond_Chimap.json').write_text(json.dumps(record))
        (folder / f'sub-{label}_desc-precond_Chimap.nii.gz').touch()

    def call(*options):
        status = main([str(dataset.root), 'out', 'group', *map(str, options)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def rows_of_the_group():
    lines = Path('out/group_quality.tsv').read_text().splitlines()
    return [dict(zip(lines[0].split('\t'), line.split('\t'), strict=True)) for line in lines[1:]]


def test_group_level_gathers_and_lists_who_is_missing(group_level):
    status, output, error = group_level()
    assert (status, error) == (0, '')
    assert [(row['run'], row['noise_sd']) for row in rows_of_the_group()] == [
        ('sub-01', '2.5'),
        ('sub-02', '3.5'),
        ('sub-03', 'n/a'),
    ]
    lines = [line.split('] ', 1)[1] for line in output.splitlines()]
    assert lines[0].startswith('sub-03 | missing: no outputs')
    assert str(Path('out/group_report.html').absolute()) in lines
    assert lines[-1] == ('finished: 3 participants, 2 complete, 1 missing runs, 0 outlying values')
    assert 'group_*' in Path('out/.bidsignore').read_text().splitlines()
    assert not Path('work').exists()


def test_group_level_of_some_participants(group_level, dataset):
    assert group_level('--participant-label', 'sub-02', '--skip-bids-validation')[0] == 0
    assert [row['run'] for row in rows_of_the_group()] == ['sub-02']
    status, _, error = group_level('--participant-label', '02', '09')
    assert status == 2
    assert (
        f'no participant 09 in {dataset.root} or {Path("out").absolute()}; there are: 01' in error
    )
    status, _, error = group_level('--session-label', 'a')
    assert status == 70
    assert 'run the participant level first' in error.splitlines()[-1]


def test_group_level_without_usable_outputs(group_level, dataset):
    for path in Path('out').rglob('*.json'):
        path.write_text('{')
    status, output, error = group_level()
    assert (status, output) == (70, '')
    assert 'sub-01 | incomplete: sub-01_desc-precond_Chimap.json is not valid JSON' in error
    assert 'sub-03 | missing' in error
    assert not list(Path('out').glob('*group_*'))
    shutil.rmtree('out')
    assert group_level()[0] == 70
    assert not Path('out').exists()


def test_group_level_names_few_on_the_terminal(group_level, monkeypatch):
    monkeypatch.setattr(reports, 'MOST_LINES', 0)
    assert '... and 1 more: ' in group_level()[1]
    assert 'sub-03 | missing' not in group_level()[1]
    assert 'sub-03 | missing' in group_level('-v')[1]


@pytest.mark.parametrize('number', [errno.EACCES, errno.EROFS])
def test_group_level_where_nothing_can_be_written(group_level, monkeypatch, number):
    def refuse(*args):
        raise OSError(number, os.strerror(number), 'out/.group_rois.rows')

    monkeypatch.setattr('precondqsm_bids.outputs.group.gather.write_rows', refuse)
    status, _, error = group_level()
    assert status == 2
    assert f'cannot read or write out/.group_rois.rows: {os.strerror(number)}' in error


def test_group_level_on_a_full_disk(group_level, monkeypatch):
    monkeypatch.setattr('precondqsm_bids.outputs.group.gather.write_rows', no_space)
    status, _, error = group_level()
    assert status == 1
    assert error.rstrip().endswith('make room, and the same command does it')


# -- a disk without room ------------------------------------------------------------------------


def no_space(*args, **keywords):
    raise OSError(errno.ENOSPC, 'No space left on device', 'out/x')


def test_a_full_disk_is_reported_in_one_line(dataset, app, monkeypatch):
    dataset.add_run()
    monkeypatch.setattr(module, 'process', no_space)
    status, _, error = app()
    assert status == 1
    assert error.splitlines() == [
        error.splitlines()[0].partition('failed')[0]
        + 'failed: out/x: No space left on device; make room, and the same command goes on from '
        'the work folder'
    ]


def test_a_failure_without_room_for_its_crash_file(dataset, app, monkeypatch):
    dataset.add_run(field_strength=None)
    write = Path.write_text

    def full(path, *args, **keywords):
        return no_space() if path.name.startswith('crash-') else write(path, *args, **keywords)

    monkeypatch.setattr(Path, 'write_text', full)
    status, _, error = app()
    assert status == 1
    assert 'crash-' in error.splitlines()[0]
    assert 'has no MagneticFieldStrength' in error.splitlines()[-1]


@pytest.mark.parametrize('free, warned', [(1e9, False), (9000, True)])
def test_a_work_folder_that_will_be_full_is_reported_at_the_start(
    dataset, app, monkeypatch, free, warned
):
    # Two runs of 4 x 5 x 6 voxels: 19200 bytes.
    dataset.add_run('sub-01')
    dataset.add_run('sub-02')
    usage = type('Usage', (), {'free': free})
    monkeypatch.setattr(shutil, 'disk_usage', lambda folder: usage)
    monkeypatch.setattr(module, 'execute', lambda *args: '')
    monkeypatch.setattr(module, 'write_reports', lambda *args: [])
    _, output, _ = app()
    assert ('room for 0 MB, and about 1 MB will be written' in output) == warned


# -- with one -----------------------------------------------------------------------------------


def start(*arguments, **keywords):
    """The app as a process of its own."""
    package = Path(precondqsm_bids.__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, '-m', 'precondqsm_bids', *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(package)},
        **keywords,
    )


@pytest.fixture(scope='session')
def phantom(tmp_path_factory):
    """One good participant, one with a truncated image, one with a broken sidecar."""
    root = tmp_path_factory.mktemp('phantom') / 'raw'
    write_phantom([str(root), '--matrix', '16', '16', '14', '--voxel-size', '8', '8', '8'])
    for label in ('02', '03'):
        for source in (root / 'sub-01' / 'anat').iterdir():
            target = root / f'sub-{label}' / 'anat' / source.name.replace('sub-01', f'sub-{label}')
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    image = root / 'sub-02/anat/sub-02_echo-3_part-phase_MEGRE.nii.gz'
    image.write_bytes(image.read_bytes()[:2000])
    (root / 'sub-03/anat/sub-03_echo-1_part-mag_MEGRE.json').write_text('{')
    return root


@pytest.fixture(scope='session')
def finished(phantom, tmp_path_factory):
    """The app run on it once: status, what it said, and its folder."""
    folder = tmp_path_factory.mktemp('finished')
    process = start(phantom, 'out', 'participant', '-w', 'work', cwd=folder)
    output, error = process.communicate()
    return process.returncode, output, error, folder


@pytest.mark.slow
def test_one_failure_stops_no_other(finished, phantom):
    status, _, error, folder = finished
    assert status == 1
    for name in ('precond', 'conventional'):
        image = nib.load(folder / f'out/sub-01/anat/sub-01_desc-{name}_Chimap.nii.gz')
        assert image.shape == (16, 16, 14)
    for label in ('01', '02', '03'):
        assert (folder / f'out/sub-{label}.html').exists()
    last = error.splitlines()[-2:]
    expected = (
        ('sub-03 failed: ', phantom / 'sub-03/anat/sub-03_echo-1_part-mag_MEGRE.json'),
        ('sub-02 failed: ', phantom / 'sub-02/anat/sub-02_echo-3_part-phase_MEGRE.nii.gz'),
    )
    for line, (who, file) in zip(last, expected, strict=True):
        assert who in line
        assert str(file) in line
        assert Path(line.rpartition('crash file: ')[2]).is_file()
    assert 'echo_fit' in last[1]


@pytest.mark.slow
def test_group_level_of_what_was_reconstructed(finished, phantom):
    """Every measure of a real run, and both failures with their crash files."""
    *_, folder = finished
    process = start(phantom, folder / 'out', 'group', cwd=folder)
    _, error = process.communicate()
    assert (process.returncode, error) == (0, '')
    lines = (folder / 'out' / 'group_quality.tsv').read_text().splitlines()
    first, *failed = [
        dict(zip(lines[0].split('\t'), line.split('\t'), strict=True)) for line in lines[1:]
    ]
    assert first['status'] == 'complete'
    sidecar = folder / 'out/sub-01/anat/sub-01_desc-precond_Chimap.json'
    record = json.loads(sidecar.read_text())['Parameters']
    assert float(first['noise_sd']) == pytest.approx(record['echo_fit']['noise_sd'], rel=1e-5)
    assert float(first['explained']) == pytest.approx(record['comparison']['explained'], rel=1e-5)
    # Nothing is to be had of: a sign that the cylinder's field does not tell, or no reference.
    empty = {column for column, cell in first.items() if cell == 'n/a'}
    assert empty <= {
        *('session_id', 'phase_sign_correlation', 'echo_phase_size', 'warnings', 'note'),
        *('outliers', 'scanner', 'sign_differs', 'equal_to'),
        *(column for column in first if column.startswith(('consensus_', 'conventional_risk_'))),
    }
    assert [row['status'] for row in failed] == ['failed', 'failed']
    for row in failed:
        crash = row['note'].rpartition('crash file: ')[2]
        assert (folder / 'out' / crash).is_file()
    validator = shutil.which('bids-validator-deno', path=Path(sys.executable).parent)
    done = subprocess.run(
        [validator, '--format', 'json', str(folder / 'out')], capture_output=True, text=True
    )
    issues = json.loads(done.stdout)['issues']['issues']
    assert [i for i in issues if i.get('severity') in ('error', 'warning')] == []


@pytest.mark.slow
def test_progress_is_reported(finished):
    _, output, _, _ = finished
    lines = [line.split('] ', 1)[1] for line in output.splitlines()]
    ends = [line for line in lines if line.startswith('sub-01 | ') and ' done in ' in line]
    total = len(ends)
    assert {line.split()[2] for line in ends} >= {'echo_fit', 'background_removal', 'outputs'}
    assert ends[-1].endswith(f'({total}/{total})')
    assert any(line.startswith('sub-02 | echo_fit ... FAILED') for line in lines)
    assert not [line for line in lines if 'nipype' in line]


@pytest.mark.slow
def test_what_is_beside_the_log(finished):
    *_, folder = finished
    (log,) = (folder / 'out' / 'logs').iterdir()
    names = {path.name for path in log.iterdir()}
    assert {'CITATION.md', 'CITATION.bib', 'config.toml', 'precondqsm_bids.log'} <= names
    assert Settings.from_toml((log / 'config.toml').read_text()).work_dir == folder / 'work'
    text = (log / 'precondqsm_bids.log').read_text()
    assert 'nipype.workflow' in text
    assert 'sub-01 | echo_fit ... done' in text


@pytest.mark.slow
def test_sigterm_ends_it_in_seconds(phantom, tmp_path):
    process = start(phantom, tmp_path / 'out', 'participant', '-w', tmp_path / 'work')
    for line in process.stdout:
        if 'echo_fit ... started' in line:
            break
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    _, error = process.communicate(timeout=30)
    assert time.monotonic() - started < 10
    assert process.returncode == 128 + signal.SIGTERM, error
    assert 'terminated' in error.splitlines()[-1]


@pytest.mark.slow
def test_a_moved_work_folder_is_used_again_unless_an_input_changed(finished, phantom):
    """The changed file keeps its name, its size and its time: only its content tells."""
    *_, folder = finished
    work = (folder / 'work').rename(folder / 'moved')
    options = ('participant', '--participant-label', '01', '-w', work)

    def again():
        output, _ = start(phantom, folder / 'out', *options).communicate()
        return output

    assert 'echo_fit ... taken from the work folder' in again()
    path = phantom / 'sub-01/anat/sub-01_echo-1_part-mag_MEGRE.nii.gz'
    before, content = path.stat(), path.read_bytes()
    image = nib.load(path)
    data = np.asarray(image.dataobj).copy()
    data[8, 8, 7] *= 1.01
    nib.save(nib.Nifti1Image(data, image.affine, image.header), path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    try:
        assert 'echo_fit ... done in' in again()
    finally:
        path.write_bytes(content)


def test_slurm_plugin_is_the_supervised_one(dataset, app, monkeypatch):
    from precondqsm_bids.workflows.plugins import SupervisedSLURMPlugin

    dataset.add_run()
    Path('plugin.yml').write_text('plugin: SLURM\nplugin_args: {sbatch_args: --time=5}\n')

    def refuse(self, scriptfile, node):
        raise RuntimeError(f'{node.fullname}: no job for {self._sbatch_args}')

    monkeypatch.setattr(SupervisedSLURMPlugin, '_submit_batchtask', refuse)
    status, _, error = app('--use-plugin', 'plugin.yml', '-w', 'w')
    assert status == 1
    assert 'no job for --time=5; crash file: ' in error
