"""The app under the real Apptainer, run by a plain user as a cluster runs it.

`make test-apptainer` runs these tests and names the image in PRECONDQSM_IMAGE; then a missing
image is a failure. Apptainer itself is Debian's, in a Docker container; a Docker Engine that
forbids what it needs (/dev/fuse, user namespaces) is a reason to skip.
"""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from containers import (
    BLAS_VARIABLES,
    IMAGE,
    OPTIONS,
    assert_same_results,
    bind,
    docker,
    problem_with_image,
    python_inside,
)

from precondqsm_bids import __version__

pytestmark = [pytest.mark.apptainer, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
TOOL = 'precondqsm_bids-apptainer'

ALLOWED = (
    *('--security-opt', 'seccomp=unconfined', '--security-opt', 'systempaths=unconfined'),
    *('--device', '/dev/fuse'),
)
"""What a container must be allowed in which Apptainer makes containers of its own."""

HOST_BLAS = [word for name in BLAS_VARIABLES for word in ('--env', f'{name}={os.environ[name]}')]

TRUTH = ('-d', 'truth=/data/derivatives/truth')

PROBE = (
    'set -e; mkdir -p /tmp/probe; cp /etc/hostname /tmp/probe; '
    'mksquashfs /tmp/probe /tmp/probe.sqfs -quiet -no-progress; '
    'unshare --user --map-root-user --mount sh -c '
    '"squashfuse /tmp/probe.sqfs /mnt && cat /mnt/hostname"'
)
"""What every start of a SIF by a plain user comes down to."""


class Cluster:
    """A container with Apptainer and a folder, /cluster, that it shares with the test."""

    def __init__(self, name, folder):
        self.name, self.folder = name, folder

    def run(self, *words, env=(), user=1000):
        """Run a command, of a plain user unless said otherwise."""
        variables = [word for pair in ('HOME=/home/user', *env) for word in ('--env', pair)]
        return docker(
            *('exec', '--user', user, '--workdir', '/cluster', *variables, self.name, *words)
        )

    def new_folder(self, name):
        """A folder below /cluster that the user may write to."""
        path = self.folder / name
        path.mkdir(parents=True)
        path.chmod(0o777)
        return path


@pytest.fixture(scope='module')
def cluster(tmp_path_factory, raw):
    """The machine of the tests, or the reason why there is none."""
    if problem := problem_with_image():
        if 'PRECONDQSM_IMAGE' in os.environ:
            pytest.fail(problem)
        pytest.skip(problem)
    made = subprocess.run(
        [ROOT / 'scripts' / 'make_apptainer_image.sh', TOOL], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f'no image with Apptainer can be made: {made.stderr[-2000:]}')
    folder = tmp_path_factory.mktemp('cluster')
    folder.chmod(0o777)
    started = docker(
        *('run', '--detach', *ALLOWED, *bind(folder, '/cluster')),
        *(*bind(raw, '/raw', 'readonly'), TOOL, 'sleep', 'infinity'),
    )
    if started.returncode:
        pytest.skip(f'this Docker Engine forbids what Apptainer needs: {started.stderr.strip()}')
    cluster = Cluster(started.stdout.strip(), folder)
    try:
        cluster.run('chmod', '666', '/dev/fuse', user=0)
        probe = cluster.run('sh', '-c', PROBE)
        if probe.returncode:
            pytest.skip(f'Apptainer cannot mount an image here: {probe.stderr.strip()}')
        yield cluster
    finally:
        # What the user made is his; and pytest keeps folders, which are large here.
        cluster.run('find', '/cluster', '-mindepth', '1', '-delete', user=0)
        docker('rm', '--force', cluster.name)


@pytest.fixture(scope='module')
def sif(cluster):
    """The image file that Apptainer makes of Docker's image."""
    archive = cluster.folder / 'image.tar'
    with archive.open('wb') as file:
        subprocess.run(['docker', 'save', IMAGE], stdout=file, check=True)
    # lz4 takes half the time of gzip.
    built = cluster.run(
        *('apptainer', 'build', '--mksquashfs-args', '-comp lz4'),
        *('precondqsm_bids.sif', 'docker-archive:image.tar'),
    )
    archive.unlink()
    assert built.returncode == 0, built.stdout + built.stderr
    return '/cluster/precondqsm_bids.sif'


@pytest.fixture
def out_dir(cluster, request):
    """An output folder of its own for each test."""
    return cluster.new_folder(f'{request.node.name}/out')


def inside(path):
    """Where a folder of the test is in the machine with Apptainer."""
    return Path('/cluster', *path.parts[-2:])


def run_app(cluster, sif, out_dir, *arguments, options=(), env=(), level='participant'):
    """Run the app as users do: dataset read-only at /data, results in /out."""
    return cluster.run(
        *('apptainer', '--quiet', 'run', *HOST_BLAS, *options, '--bind', '/raw:/data:ro'),
        *('--bind', f'{inside(out_dir)}:/out', sif, '/data', '/out', level, *arguments),
        env=env,
    )


CONTAINED = ('--containall', '--cleanenv')


def test_version_and_labels_are_those_of_the_source(cluster, sif):
    done = cluster.run('apptainer', '--quiet', 'run', sif, '--version')
    assert (done.returncode, done.stdout) == (0, f'precondqsm_bids {__version__}\n'), done.stderr
    told = cluster.run('apptainer', 'inspect', '--json', '--labels', sif)
    labels = json.loads(told.stdout)['data']['attributes']['labels']
    assert labels['org.opencontainers.image.version'] == __version__
    assert labels['org.opencontainers.image.licenses'] == 'Apache-2.0'


@pytest.mark.parametrize(
    'options',
    [
        pytest.param((*CONTAINED, '--net', '--network', 'none'), id='containall-without-network'),
        pytest.param((*CONTAINED, '--userns', '--no-home'), id='userns-without-home'),
    ],
)
def test_maps_are_bit_identical_to_those_computed_outside(cluster, sif, out_dir, outside, options):
    # Without a folder for it the work goes to the 64 MB that --containall gives to home and /tmp.
    done = run_app(cluster, sif, out_dir, *OPTIONS, *TRUTH, options=options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'warning' not in done.stdout + done.stderr
    assert_same_results(out_dir, outside)
    description = json.loads((out_dir / 'dataset_description.json').read_text())
    assert description['GeneratedBy'][0]['Container'] == {
        'Type': 'singularity',
        'URI': f'file://{sif}',
    }


@pytest.fixture
def strays(cluster):
    """Broken packages in ~/.local and in a folder for PYTHONPATH, until the test ends."""
    version = python_inside(code='import sys; print("%d.%d" % sys.version_info[:2])')
    folder = cluster.new_folder('strays')
    for name in ('sitecustomize', 'usercustomize', 'numpy', 'nibabel', 'precondqsm_bids'):
        (folder / f'{name}.py').write_text("raise SystemExit('a stray package')\n")
    local = f'/home/user/.local/lib/python{version}/site-packages'
    made = cluster.run(
        'sh',
        '-c',
        f'mkdir -p {local} && cp /cluster/strays/*.py {local} && cp -r /cluster/strays ~',
    )
    assert made.returncode == 0, made.stderr
    yield '/home/user/strays'
    cluster.run('rm', '-r', '/home/user/.local', '/home/user/strays')


def test_nothing_of_the_users_environment_is_taken(cluster, sif, out_dir, outside, strays):
    """Plain ``run`` lets in the home folder and every variable."""
    env = (
        *(f'PYTHONPATH={strays}', 'PYTHONNOUSERSITE=', 'PYTHONSTARTUP=/nowhere'),
        *('TMPDIR=/scratch/job.1', 'TEMPLATEFLOW_HOME=/nowhere', 'MPLCONFIGDIR=/nowhere'),
        *('MPLBACKEND=module://matplotlib_inline.backend_inline', 'OMP_NUM_THREADS=7'),
        *('LANG=xx_XX.UTF-8', 'LC_ALL=xx_XX.UTF-8', 'PYTHONHASHSEED=7'),
    )
    # They are there to be taken: a Python that is not isolated fails of them.
    python = ('apptainer', '--quiet', 'exec', sif, '/opt/precondqsm_bids/bin/python')
    control = cluster.run(*python, '-c', 'import numpy', env=env)
    assert control.returncode == 1
    assert 'a stray package' in control.stderr
    work = inside(cluster.new_folder(f'{out_dir.parent.name}/work'))
    done = run_app(
        *(cluster, sif, out_dir, *OPTIONS, *TRUTH, '-w', '/work'),
        options=('--bind', f'{work}:/work'),
        env=env,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'stray package' not in done.stdout + done.stderr
    assert_same_results(out_dir, outside)


def test_too_small_a_work_folder_is_told_at_the_start_and_at_the_end(cluster, sif, out_dir):
    """--containall has 64 MB for home and /tmp; here most of them are taken."""
    script = (
        'head -c 63M /dev/zero >"$HOME/filled"; '
        f'precondqsm_bids /data /out participant {" ".join(OPTIONS)}'
    )
    done = cluster.run(
        *('apptainer', '--quiet', 'exec', *CONTAINED, '--bind', '/raw:/data:ro'),
        *('--bind', f'{inside(out_dir)}:/out', sif, 'sh', '-c', script),
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert 'warning: the work folder /home/user/work has room for ' in done.stdout
    last = done.stderr.splitlines()[-1]
    assert 'No space left on device in the work folder (/home/user/work/' in last
    assert 'give another with -w' in last
    assert 'Traceback' not in done.stderr


def test_output_folder_that_is_bound_read_only(cluster, sif, out_dir):
    done = cluster.run(
        *('apptainer', '--quiet', 'run', *CONTAINED, '--bind', '/raw:/data:ro'),
        *('--bind', f'{inside(out_dir)}:/out:ro', sif, '/data', '/out', 'participant'),
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert 'cannot write to /out' in done.stderr
    assert 'Read-only file system' in done.stderr
    assert 'Traceback' not in done.stderr
    assert not list(out_dir.iterdir())


def test_folder_that_was_not_bound(cluster, sif):
    done = cluster.run(
        'apptainer', '--quiet', 'run', *CONTAINED, sif, '/raw', '/out', 'participant'
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert '/raw' in done.stderr
    assert 'Traceback' not in done.stderr


def test_arguments_arrive_as_they_were_given(cluster, sif, out_dir):
    # Apptainer puts the arguments of an image of Docker's together to a line of the shell.
    done = run_app(
        *(cluster, sif, out_dir, '--participant-label', "it's a label"), options=CONTAINED
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "it's a label" in done.stderr


@pytest.mark.parametrize(
    'options, told',
    [
        pytest.param((), '1 processes (of 1 CPUs: SLURM_CPUS_PER_TASK)', id='plain'),
        pytest.param(
            (*CONTAINED, '--env', 'SLURM_JOB_ID=1', '--env', 'SLURM_CPUS_PER_TASK=1'),
            '1 processes (of 1 CPUs: SLURM_CPUS_PER_TASK)',
            id='cleanenv-and-env',
        ),
        pytest.param(CONTAINED, ': affinity mask)', id='cleanenv'),
    ],
)
def test_what_slurm_allows_is_seen_unless_the_environment_is_cleaned(
    cluster, sif, out_dir, options, told
):
    done = run_app(
        *(cluster, sif, out_dir, '--boilerplate-only', '-w', '/out/work'),
        options=options,
        env=['SLURM_JOB_ID=1', 'SLURM_CPUS_PER_TASK=1'],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert told in done.stdout


def test_terminated_at_once_and_resumed_to_the_same_maps(cluster, sif, out_dir, outside):
    """SIGTERM to Apptainer's own process, which is the one that a batch system knows."""
    work = inside(cluster.new_folder(f'{out_dir.parent.name}/work'))
    words = [
        *('apptainer', '--quiet', 'run', *CONTAINED, *HOST_BLAS, '--bind', '/raw:/data:ro'),
        *('--bind', f'{inside(out_dir)}:/out', '--bind', f'{work}:/work', sif, '/data', '/out'),
        *('participant', *OPTIONS, *TRUTH, '-w', '/work'),
    ]
    folder = cluster.new_folder(f'{out_dir.parent.name}/job')
    job, log, status = inside(folder), folder / 'log', folder / 'status'
    script = f'cd {job}; "$@" >log 2>&1 & echo $! >pid; wait $!; echo $? >status'
    started = docker(
        *('exec', '--detach', '--user', '1000', '--env', 'HOME=/home/user', cluster.name),
        *('sh', '-c', script, 'sh', *words),
    )
    assert started.returncode == 0, started.stderr
    wait_until(lambda: log.exists() and 'echo_fit ... done' in log.read_text(), 120, log)
    before = time.monotonic()
    cluster.run('sh', '-c', f'kill -TERM "$(cat {job}/pid)"')
    wait_until(lambda: status.exists() and status.read_text().strip(), 60, log)
    assert time.monotonic() - before < 30
    assert status.read_text().strip() == '143', log.read_text()
    assert 'terminated; the same command goes on from the work folder' in log.read_text()
    left = cluster.run('sh', '-c', 'cat /proc/[0-9]*/comm')
    assert 'precondqsm' not in left.stdout
    assert not list(out_dir.glob('sub-01/anat/*_Chimap.nii.gz'))

    done = cluster.run(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'echo_fit ... taken from the work folder' in done.stdout
    assert_same_results(out_dir, outside)


@pytest.fixture(scope='module')
def own_sif(cluster):
    """The image file that apptainer.def makes, from a base image that Docker has."""
    if not os.environ.get('PRECONDQSM_BUILD_DEFINITION'):
        pytest.skip('takes minutes: PRECONDQSM_BUILD_DEFINITION=1 make test-apptainer')
    bases = ('python:3.11-slim-bookworm', 'precondqsm_bids-base:build')
    base = next((name for name in bases if not docker('image', 'inspect', name).returncode), None)
    assert base, f'none of {", ".join(bases)} is here: make image'
    source = cluster.new_folder('source')
    for name in ('setup.cfg', 'constraints.txt', 'pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, source)
    shutil.copy(ROOT / 'apptainer.def', source)
    shutil.copytree(ROOT / 'precondqsm_bids', source / 'precondqsm_bids')
    with (source / 'base.tar').open('wb') as file:
        subprocess.run(['docker', 'save', base], stdout=file, check=True)
    pip = []
    if base != bases[0]:  # it has the certificates of this host
        pip += ['--cert', '/etc/ssl/certs/ca-certificates.crt']
    if index := os.environ.get('PIP_INDEX_URL'):
        pip += ['--index-url', index]
    # %post runs as root of a user namespace, for which Docker must allow more than for a run.
    built = docker(
        *('run', '--rm', '--cap-add', 'SYS_ADMIN', *ALLOWED),
        *(*bind(cluster.folder, '/cluster'), '--workdir', '/cluster/source', TOOL, 'sh', '-c'),
        'chmod 666 /dev/fuse && export HOME=/home/user && '
        'exec setpriv --reuid=1000 --regid=1000 --init-groups "$@"',
        *('sh', 'apptainer', 'build', '--mksquashfs-args', '-comp lz4'),
        *('--build-arg', 'BOOTSTRAP=docker-archive', '--build-arg', 'BASE=base.tar'),
        *('--build-arg', f'PIP_ARGS={" ".join(pip)}', '/cluster/own.sif', 'apptainer.def'),
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return '/cluster/own.sif'


def test_definition_file_makes_the_same_app(cluster, own_sif, out_dir, outside):
    told = cluster.run('apptainer', 'inspect', '--json', '--labels', own_sif)
    labels = json.loads(told.stdout)['data']['attributes']['labels']
    assert labels['org.opencontainers.image.version'] == __version__
    done = run_app(cluster, own_sif, out_dir, *OPTIONS, *TRUTH, options=CONTAINED)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_results(out_dir, outside)
    # Its own script hands the arguments on, and no shell reads them again.
    done = run_app(cluster, own_sif, out_dir, '--participant-label', '$HOME', options=CONTAINED)
    assert done.returncode == 2
    assert '$HOME' in done.stderr


def wait_until(holds, seconds, log):
    """Wait for a condition, and show the log if it does not come."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, log.read_text() if log.exists() else 'no log'
        time.sleep(0.2)
