"""Killed, out of disk space, two at once: whole files, and the same bytes in the end."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from outputs import checksums

import precondqsm_bids
from precondqsm_bids.outputs import files
from precondqsm_bids.phantom.cli import main as write_phantom

pytestmark = pytest.mark.slow
ROUNDS = int(os.environ.get('PRECONDQSM_ROUNDS', '1'))
"""How often two processes work into one output folder."""


@pytest.fixture(scope='module')
def phantom(tmp_path_factory):
    """Two participants of a small phantom."""
    root = tmp_path_factory.mktemp('phantom') / 'raw'
    size = ('--matrix', '16', '16', '14', '--voxel-size', '8', '8', '8')
    write_phantom([str(root), *size, '--participants', '2'])
    return root


def command(phantom, out, work, *options):
    words = [sys.executable, '-m', 'precondqsm_bids', phantom, out, 'participant', '-w', work]
    words += ['--skip-bids-validation', '--nprocs', '2', '--no-conventional', *options]
    return [*map(str, words)]


def start(words, **keywords):
    package = Path(precondqsm_bids.__file__).parents[1]
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(package)},
        **keywords,
    )


def finish(process, status=0):
    output, error = process.communicate(timeout=600)
    assert process.returncode == status, output + error
    return output, error


@pytest.fixture(scope='module')
def reference(phantom, tmp_path_factory):
    """What a run that nothing happens to writes."""
    folder = tmp_path_factory.mktemp('reference')
    finish(start(command(phantom, folder / 'out', folder / 'work')))
    return folder / 'out'


@pytest.fixture(scope='module')
def expected(reference):
    both = checksums(reference)
    assert len([name for name in both if name.endswith('_Chimap.nii.gz')]) == 10
    return both


@pytest.fixture(scope='module')
def first(expected):
    """Of the first participant."""
    return {name: checksum for name, checksum in expected.items() if name.startswith('sub-01/')}


def wait_for(process, words):
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(f'no line with "{words}": {process.stderr.read()}')


def remains(out):
    """Hidden files that a writer left; nothing under the name of a map is ever half."""
    return [path for path in out.glob('sub-*/**/.*') if path.is_file()]


def end_group(process):
    """As the system does when memory runs out or a node goes down: nobody is asked."""
    os.killpg(process.pid, signal.SIGKILL)


def terminate(process):
    process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    'end, stage',
    [
        pytest.param(end_group, 'echo_fit ... started', id='sigkill-in-the-echo-fit'),
        pytest.param(end_group, 'recombination ... done', id='sigkill-while-maps-are-written'),
        pytest.param(terminate, 'background_removal ... started', id='sigterm'),
    ],
)
def test_started_again_gives_the_same_bytes(phantom, first, tmp_path, end, stage):
    out = tmp_path / 'out'
    words = command(phantom, out, tmp_path / 'work', '--participant-label', '01')
    process = start(words, start_new_session=True)
    wait_for(process, stage)
    end(process)
    process.communicate(timeout=60)
    assert process.returncode != 0
    for name, checksum in checksums(out, hidden=False).items():
        assert first[name] == checksum, f'{name} is not whole'
    output, _ = finish(start(words))
    assert 'taken from the work folder' in output
    assert checksums(out, hidden=False) == first


def test_rerun_gives_the_same_bytes(phantom, reference, expected, tmp_path):
    """From another work folder, over what is there."""
    out = shutil.copytree(reference, tmp_path / 'out')
    old = (out / 'sub-01/anat/sub-01_desc-precond_Chimap.nii.gz').stat().st_mtime_ns
    finish(start(command(phantom, out, tmp_path / 'work', '--participant-label', '01')))
    assert (out / 'sub-01/anat/sub-01_desc-precond_Chimap.nii.gz').stat().st_mtime_ns != old
    assert checksums(out) == expected


@pytest.mark.parametrize('number', range(1, ROUNDS + 1))
def test_two_processes_on_one_output_folder(number, phantom, expected, tmp_path):
    """A participant each, at the same time, as a batch system runs them."""
    out = tmp_path / 'out'
    processes = [
        start(command(phantom, out, tmp_path / label, '--participant-label', label))
        for label in ('01', '02')
    ]
    for process in processes:
        finish(process)
    assert checksums(out) == expected
    assert not remains(out)
    assert (out / 'dataset_description.json').is_file()


def mount_words(folder, size):
    return f'mount -t tmpfs -o size={size} tmpfs {folder}'


def test_disk_full(phantom, first, tmp_path):
    """The output folder on a file system that the maps do not fit into, in a namespace of its own.

    The failure is told, no map is half written, and with room the same command ends well.
    """
    out, work = tmp_path / 'out', tmp_path / 'work'
    out.mkdir()
    probe = ['unshare', '--mount', '--map-root-user', 'sh', '-c', mount_words(out, '64k')]
    if not shutil.which('unshare') or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip('no file system can be mounted here')
    kept = tmp_path / 'kept'
    words = command(phantom, out, work, '--participant-label', '01')
    inner = ' '.join(words)
    script = f'{mount_words(out, "300k")} && {inner}; status=$?; cp -a {out} {kept}; exit $status'
    process = start(['unshare', '--mount', '--map-root-user', 'sh', '-c', script])
    output, error = process.communicate(timeout=600)
    assert process.returncode in (1, 2), output + error
    assert 'No space left on device' in error
    assert 'Traceback' not in error
    for name, checksum in checksums(kept, hidden=False).items():
        if name.endswith(('.nii.gz', '.json')):
            assert first[name] == checksum, f'{name} is not whole'
    assert not remains(kept)
    finish(start(words))
    assert checksums(out) == first


def test_outputs_get_their_names_when_they_are_whole(tmp_path):
    """Written under a hidden name beside the destination, and renamed; or gone."""
    target = tmp_path / 'out' / 'sub-01' / 'map.nii.gz'
    target.parent.mkdir(parents=True)
    target.write_bytes(b'old')
    with pytest.raises(OSError, match='No space'), files.whole(target) as temporary:  # noqa: PT012
        temporary.write_bytes(b'n')
        assert target.read_bytes() == b'old'
        raise OSError(28, 'No space left on device')
    assert [path.name for path in target.parent.iterdir()] == ['map.nii.gz']
    assert target.read_bytes() == b'old'
    with files.whole(target) as temporary:
        temporary.write_bytes(b'new')
    assert target.read_bytes() == b'new'
