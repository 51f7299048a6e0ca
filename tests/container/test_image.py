"""The container image computes what the same source computes outside, under hostile conditions.

`make test-image` runs these tests and names the image in PRECONDQSM_IMAGE; then a missing image
is a failure. Elsewhere it is a reason to skip.
"""

import json
import os
import re
import shutil
import time
from pathlib import Path

import nibabel as nb
import numpy as np
import pytest
from containers import (
    BLAS_VARIABLES,
    IMAGE,
    LIST_PACKAGES,
    OPTIONS,
    assert_same_results,
    bind,
    docker,
    problem_with_image,
    python_inside,
)

from precondqsm_bids import __version__
from precondqsm_bids.revision import local_version

pytestmark = [pytest.mark.docker, pytest.mark.slow]

ROOT = Path(__file__).parents[2]

STRANGER = ('--user', '12345', '--network', 'none', '--read-only', '--tmpfs', '/tmp')
"""A user without a passwd entry, no network, nothing writable but /tmp."""

TRUTH = ('-d', 'truth=/data/derivatives/truth')

HOST_BLAS = [word for name in BLAS_VARIABLES for word in ('--env', name)]

MEMORY = ('--memory', '600m', '--memory-swap', '600m')

VERSION = 'import sys; print("%d.%d" % sys.version_info[:2])'


@pytest.fixture(scope='module', autouse=True)
def image():
    """What ``docker image inspect`` says, or the reason why there is nothing to test."""
    problem = problem_with_image()
    if not problem:
        return json.loads(docker('image', 'inspect', IMAGE).stdout)[0]
    if 'PRECONDQSM_IMAGE' in os.environ:
        pytest.fail(problem)
    pytest.skip(problem)


@pytest.fixture
def out_dir(tmp_path):
    """A folder that anybody may write to; at the end its owner may remove what is in it."""
    folder = tmp_path / 'out'
    folder.mkdir()
    folder.chmod(0o777)
    yield folder
    docker(
        'run', '--rm', '--user', '0', *bind(folder, '/out'),
        '--entrypoint', 'chmod', IMAGE, '-R', 'a+rwX', '/out',
    )  # fmt: skip


def run_app(raw, out_dir, *arguments, options=()):
    """Run the app in a container as users do: the dataset read-only, results in /out."""
    return docker(
        'run', '--rm', *options, *bind(raw, '/data', 'readonly'), *bind(out_dir, '/out'),
        IMAGE, '/data', '/out', 'participant', *arguments,
    )  # fmt: skip


def test_version_and_labels_are_those_of_the_source(image):
    done = docker('run', '--rm', IMAGE, '--version')
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ['precondqsm_bids', __version__]
    labels = image['Config']['Labels']
    assert labels['org.opencontainers.image.version'] == __version__
    assert labels['org.opencontainers.image.licenses'] == 'Apache-2.0'
    code = 'from precondqsm_bids.revision import full_version; print(full_version())'
    local = local_version(labels['org.opencontainers.image.revision'])
    assert python_inside(code=code) == __version__ + local


def test_default_user_is_not_root(image):
    code = 'import os, pwd; print(pwd.getpwuid(os.getuid()).pw_name, os.environ["HOME"])'
    assert python_inside(code=code) == 'app /home/app'


def test_nothing_in_the_image_is_there_for_its_build():
    code = (
        'import sys, importlib.util as u; from pathlib import Path; '
        'print(u.find_spec("pip"), len(list(Path(sys.prefix).rglob("tests"))))'
    )
    assert python_inside(code=code) == 'None 0'


def test_packages_are_those_of_the_constraints():
    lines = (ROOT / 'constraints.txt').read_text().splitlines()
    pinned = dict(line.split('==') for line in lines if not line.startswith('#'))
    inside = json.loads(python_inside(code=LIST_PACKAGES))
    inside = {re.sub('[-_.]+', '-', name).lower(): version for name, version in inside.items()}
    del inside['precondqsm-bids']
    assert inside == pinned


def test_size_is_bounded(image):
    assert image['Size'] < 700e6


def test_every_module_has_byte_code():
    # What is compiled anew at each start of a read-only image is lost time.
    code = (
        'import sys, importlib.util as u; from pathlib import Path; '
        'files = Path(sys.prefix, "lib").rglob("*.py"); '
        'print(*[p for p in files if not Path(u.cache_from_source(p)).exists()])'
    )
    assert python_inside(code=code) == ''


def test_maps_are_bit_identical_to_those_computed_outside(raw, out_dir, outside):
    done = run_app(
        *(raw, out_dir, *OPTIONS, *TRUTH, '-w', '/tmp/work'), options=(*STRANGER, *HOST_BLAS)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_results(out_dir, outside)
    description = json.loads((out_dir / 'dataset_description.json').read_text())
    tag = f'precondqsm_bids:{__version__}'
    assert description['GeneratedBy'][0]['Container'] == {'Type': 'docker', 'Tag': tag}


@pytest.mark.parametrize('home', ['/', '/home/app', '/does-not-exist', ''])
def test_workflow_is_built_whatever_the_home(raw, out_dir, home):
    done = run_app(
        *(raw, out_dir, '--boilerplate-only', '-w', '/tmp/work'),
        options=(*STRANGER, '--env', f'HOME={home}'),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (citation,) = out_dir.glob('logs/*/CITATION.md')
    assert 'susceptibility' in citation.read_text()


def test_error_and_exit_status_leave_the_container(raw, out_dir):
    done = run_app(raw, out_dir, '--participant-label', 'nobody', options=STRANGER)
    assert done.returncode == 2
    assert 'nobody' in done.stderr


def test_output_folder_of_another_user(raw, tmp_path):
    folder = tmp_path / 'out'
    folder.mkdir(mode=0o755)
    done = run_app(raw, folder, '-w', '/tmp/work', options=STRANGER)
    assert done.returncode == 2, done.stdout + done.stderr
    assert 'cannot write to /out' in done.stderr
    assert 'Permission denied' in done.stderr
    assert 'Traceback' not in done.stderr
    assert list(folder.iterdir()) == []


def test_packages_of_the_host_are_not_taken(raw, out_dir, tmp_path):
    # A mounted home and a variable that comes along bring both.
    broken = "raise SystemExit('a stray package')\n"
    stray = tmp_path / 'stray'
    local = tmp_path / 'home' / '.local' / 'lib' / f'python{python_inside(code=VERSION)}'
    for folder in (stray, local / 'site-packages'):
        folder.mkdir(parents=True)
        for name in ('sitecustomize', 'numpy', 'nibabel', 'precondqsm_bids'):
            (folder / f'{name}.py').write_text(broken)
    (tmp_path / 'home').chmod(0o777)
    done = run_app(
        *(raw, out_dir, '--boilerplate-only', '-w', '/tmp/work'),
        options=(
            *(*STRANGER, *bind(stray, '/stray'), *bind(tmp_path / 'home', '/home/somebody')),
            *('--env', 'PYTHONPATH=/stray', '--env', 'PYTHONNOUSERSITE='),
            *('--env', 'HOME=/home/somebody'),
        ),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'stray package' not in done.stdout + done.stderr


@pytest.mark.parametrize(
    'option, said',
    [
        (('--cpus', '1'), '1 processes (of 1 CPUs: control group)'),
        (('--cpuset-cpus', '0'), '1 processes (of 1 CPUs: affinity mask)'),
        (('--memory', '2g'), '1.8 GB (of 2: control group)'),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else '',
)
def test_limits_of_the_container_are_told_at_the_start(raw, out_dir, option, said):
    if os.cpu_count() == 1:
        pytest.skip('one CPU is all that this host has')
    done = run_app(
        raw, out_dir, '--boilerplate-only', '-w', '/tmp/work', options=(*STRANGER, *option)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert said in done.stdout


@pytest.fixture
def large(raw, tmp_path):
    """The phantom repeated along each axis: 64 times its voxels."""
    folder = tmp_path / 'large'
    shutil.copytree(raw, folder, ignore=shutil.ignore_patterns('derivatives'))
    for path in folder.glob('sub-*/*/*.nii.gz'):
        image = nb.load(path)
        data = np.tile(np.asanyarray(image.dataobj), (4, 4, 4))
        nb.save(nb.Nifti1Image(data, image.affine, image.header), path)
    return folder


def test_too_little_memory_is_a_failure_with_a_name(large, out_dir):
    # The main process has room enough, the first node that reads the echoes has not.
    before = time.monotonic()
    done = run_app(
        *(large, out_dir, *OPTIONS, '-w', '/out/work'),
        options=(*('--user', '12345', '--network', 'none'), *MEMORY),
    )
    assert time.monotonic() - before < 200
    assert done.returncode == 1, done.stdout + done.stderr
    assert 'GB are allowed (--mem)' in done.stdout
    assert 'killed by signal 9 (SIGKILL)' in done.stdout + done.stderr
    assert 'memory runs out' in done.stdout + done.stderr
    crashes = [path.read_text() for path in out_dir.glob('sub-01/log/*/crash-*.txt')]
    assert any('memory runs out' in text for text in crashes), sorted(out_dir.rglob('crash*'))


def start(raw, out_dir, work, *options):
    """Start a container that goes on by itself; its name."""
    started = docker(
        'run', '--detach', *STRANGER, *HOST_BLAS, *options, *bind(raw, '/data', 'readonly'),
        *bind(out_dir, '/out'), IMAGE, '/data', '/out', 'participant', *OPTIONS, *TRUTH,
        '-w', work,
    )  # fmt: skip
    assert started.returncode == 0, started.stderr
    return started.stdout.strip()


def test_two_containers_on_one_output_folder(raw, out_dir, outside):
    containers = [start(raw, out_dir, '/tmp/work') for _ in range(2)]
    try:
        for container in containers:
            status = docker('wait', container).stdout.strip()
            logs = docker('logs', container)
            assert status == '0', logs.stdout + logs.stderr
    finally:
        docker('rm', '--force', *containers)
    assert_same_results(out_dir, outside)


def test_stopped_at_once_and_resumed_to_the_same_maps(raw, out_dir, outside):
    # The first process of a container gets no signal that it does not ask for: without a handler
    # docker stop waits for its whole time, then kills (137).
    work = out_dir.with_name('work')
    work.mkdir()
    work.chmod(0o777)
    mounted = bind(work, '/work')
    container = start(raw, out_dir, '/work', *mounted)
    try:
        deadline = time.monotonic() + 120
        while 'echo_fit ... done' not in (log := docker('logs', container).stdout):
            assert time.monotonic() < deadline, log
            time.sleep(0.2)
        before = time.monotonic()
        docker('stop', '--time', '60', container)
        took = time.monotonic() - before
        status = docker('inspect', '--format', '{{.State.ExitCode}}', container).stdout.strip()
    finally:
        docker('rm', '--force', container)
    assert status == '143'
    assert took < 30
    assert not list(out_dir.glob('sub-01/anat/*_Chimap.nii.gz'))

    done = run_app(
        *(raw, out_dir, *OPTIONS, *TRUTH, '-w', '/work'),
        options=(*STRANGER, *HOST_BLAS, *mounted),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'echo_fit ... taken from the work folder' in done.stdout
    assert_same_results(out_dir, outside)
