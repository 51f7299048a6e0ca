"""The app on a real SLURM of three hosts: arrays, one job a node, and what ends jobs before time.

`make test-slurm` runs these tests and names the image in PRECONDQSM_IMAGE; then a missing image is
a failure. Elsewhere it is a reason to skip.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest

import precondqsm_bids
from precondqsm_bids import __version__

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

IMAGE = os.environ.get('PRECONDQSM_IMAGE', 'precondqsm_bids')
IMAGE = IMAGE if ':' in IMAGE else f'{IMAGE}:{__version__}'
NAME = os.environ.get('PRECONDQSM_CLUSTER', f'precondqsm_bids-slurm-{os.getpid()}')
SCRIPT = Path(__file__).with_name('cluster.sh')
USER = str(os.getuid() or 1000)

# On this small phantom the field of the shape does not decide the sign of the phase.
OPTIONS = ('--nprocs', '2', '--omp-nthreads', '1', '--phase-sign', '+1')

HASH_SOURCE = (
    'import json, precondqsm_bids; from hashlib import sha256; from pathlib import Path; '
    'top = Path(precondqsm_bids.__file__).parent; '
    'print(json.dumps({str(p.relative_to(top)): sha256(p.read_bytes()).hexdigest() '
    "for p in top.rglob('*.py')}))"
)

PLUGIN = """
plugin: SLURM
plugin_args:
  poll_interval: 1
  sbatch_args: --time=30 {more}
"""


def docker(*arguments):
    """Run a docker command; its completed process with the output as text."""
    return subprocess.run(
        ['docker', *map(str, arguments)], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


class Cluster:
    """The hosts, and the folder that is /shared on each of them."""

    def __init__(self, shared):
        self.shared = shared

    def words(self, *command, env=()):
        variables = [word for name in env for word in ('--env', name)]
        inside = ('exec', '--user', USER, '--workdir', '/shared', *variables, f'{NAME}-ctl')
        return ['docker', *inside, *map(str, command)]

    def run(self, *command, env=()):
        """Run a command on the controller, as the user of the jobs."""
        return subprocess.run(
            self.words(*command, env=env),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )

    def app(self, out, *options, raw='raw', env=()):
        """Run the app on the controller; the work folder has the name of the output folder."""
        return self.run(*app_words(out, *options, raw=raw), env=env)

    def jobs(self, since=0):
        """What the controller knows of the jobs from a number on: one dictionary each."""
        done = self.run('scontrol', '--oneliner', 'show', 'jobs')
        assert done.returncode == 0, done.stderr
        jobs = [
            dict(word.split('=', 1) for word in line.split() if '=' in word)
            for line in done.stdout.splitlines()
            if line.startswith('JobId=')
        ]
        return [job for job in jobs if int(job['JobId']) >= since]

    def wait(self, what, condition, timeout=240):
        """Wait until a condition has a value that is true; the value."""
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            queue = self.run('squeue', '--all', '--format=%i %j %T %r %N').stdout
            assert time.monotonic() < deadline, f'{what} did not come about\n{queue}'
            time.sleep(0.3)
        return value

    def wait_for_jobs(self, since):
        """Wait until no job from a number on is in the queue; all of them."""

        def ended():
            return not self.run('squeue', '--noheader').stdout.strip()

        self.wait('the end of the jobs', ended)
        return self.jobs(since)


def app_words(out, *options, raw='raw'):
    work = () if '-w' in options else ('-w', f'/shared/work-{out}')
    return ('precondqsm_bids', f'/shared/{raw}', f'/shared/{out}', 'participant', *work, *options)


def by_name(jobs, part):
    return [job for job in jobs if part in job['JobName']]


def results(out, subject='01', patterns=('*/*.nii.gz', '*/*.tsv')):
    """Name (of participant 01) and bytes of what was computed for a participant."""
    folder = out / f'sub-{subject}'
    return {
        path.name.replace(f'sub-{subject}', 'sub-01'): path.read_bytes()
        for pattern in patterns
        for path in folder.glob(pattern)
    }


def assert_same(out, reference, subject='01'):
    expected, found = results(reference), results(out, subject)
    assert 'sub-01_desc-precond_Chimap.nii.gz' in expected
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []


@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
    """The cluster, with the image that is tested; it is removed at the end."""
    if problem := missing():
        if 'PRECONDQSM_IMAGE' in os.environ:
            pytest.fail(problem)
        pytest.skip(problem)
    shared = tmp_path_factory.mktemp('shared')
    shared.chmod(0o777)
    tag = f'{IMAGE}-slurm'
    environment = {**os.environ, 'JOB_UID': USER}
    try:
        for words in (('image', IMAGE, tag), ('up', NAME, tag, shared)):
            done = subprocess.run(
                [str(SCRIPT), *map(str, words)], env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout + done.stderr
        yield Cluster(shared)
    finally:
        subprocess.run([str(SCRIPT), 'down', NAME], check=True)


def missing():
    """Why there is nothing to test, or an empty string."""
    if shutil.which('docker') is None:
        return 'there is no docker command'
    if (engine := docker('version')).returncode:
        return f'no Docker Engine answers: {engine.stderr.strip()}'
    if docker('image', 'inspect', IMAGE).returncode:
        return f'there is no image {IMAGE}: make image'
    inside = docker('run', '--rm', '--entrypoint', 'python', IMAGE, '-c', HASH_SOURCE)
    there = json.loads(inside.stdout)
    top = Path(precondqsm_bids.__file__).parent
    here = {
        str(path.relative_to(top)): sha256(path.read_bytes()).hexdigest()
        for path in top.rglob('*.py')
    }
    changed = sorted(name for name in here.keys() | there if here.get(name) != there.get(name))
    return f'{IMAGE} is of another source ({", ".join(changed)}): make image' if changed else ''


def copy_participant(raw, label, to=None):
    """Participant 01 once more, under another label."""
    folder = (to or raw) / f'sub-{label}'
    shutil.copytree(raw / 'sub-01', folder)
    for path in folder.rglob('sub-01_*'):
        path.rename(path.with_name(path.name.replace('sub-01', f'sub-{label}')))
    return folder


@pytest.fixture(scope='module')
def raw(cluster):
    """Four participants with the same small phantom; the fourth has half of a file."""
    raw = cluster.shared / 'raw'
    phantom = [sys.executable, '-m', 'precondqsm_bids.phantom', raw, '--kind', 'tubes']
    size = ['--matrix', '32', '32', '24', '--voxel-size', '4', '4', '4']
    subprocess.run([*map(str, phantom), *size], check=True, capture_output=True)
    for label in ('02', '03', '04'):
        copy_participant(raw, label)
    half = raw / 'sub-04' / 'anat' / 'sub-04_echo-3_part-phase_MEGRE.nii.gz'
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    return raw


@pytest.fixture(scope='module')
def reference(cluster, raw):
    """What the first participant gives without SLURM."""
    done = cluster.app('out-local', '--participant-label', '01', *OPTIONS)
    assert done.returncode == 0, done.stdout + done.stderr
    return cluster.shared / 'out-local'


@pytest.fixture
def plugin(cluster):
    """A function that writes a file for --use-plugin."""

    def write(more=''):
        (cluster.shared / 'plugin.yml').write_text(PLUGIN.format(more=more))
        return '--use-plugin', '/shared/plugin.yml'

    return write


def submitted(done):
    """Numbers of the jobs that --submit told."""
    assert done.returncode == 0, done.stdout + done.stderr
    return [int(number) for number in re.findall(r'submitted (?:array )?job (\d+)', done.stdout)]


def test_array_of_four_one_of_them_broken(cluster, raw, reference):
    done = cluster.app('out', *OPTIONS, '--submit', 'slurm')
    array, group = submitted(done)
    jobs = cluster.wait_for_jobs(array)
    tasks = {job['ArrayTaskId']: job for job in jobs if job.get('ArrayJobId') == str(array)}
    assert {task: job['ExitCode'] for task, job in tasks.items()} == {
        **{'0': '0:0', '1': '0:0', '2': '0:0'},
        '3': '1:0',
    }
    assert {job['JobState'] for job in tasks.values()} == {'COMPLETED', 'FAILED'}
    assert {job['BatchHost'] for job in tasks.values()} == {'c1', 'c2'}
    # Two runs of next to no voxels: the least that is asked for, and ten times 12 s for each.
    assert {job['TimeLimit'] for job in tasks.values()} == {'00:33:00'}

    out = cluster.shared / 'out'
    for subject in ('01', '02', '03'):
        assert_same(out, reference, subject)
    assert not list(out.glob('sub-04/anat/*Chimap*'))
    (log,) = out.glob('logs/*/sub-04.log')
    found = re.search(r'sub-04 failed: .*; crash file: /shared/(\S+)\n*$', log.read_text())
    assert found, log.read_text()
    assert 'sub-04_echo-3_part-phase' in (cluster.shared / found[1]).read_text()

    # The group level had waited for all of them, and has the broken one in its table.
    (after,) = [job for job in jobs if job['JobId'] == str(group)]
    assert after['ExitCode'] == '0:0'
    assert after['StartTime'] >= max(job['EndTime'] for job in tasks.values())
    header, *rows = (out / 'group_quality.tsv').read_text().splitlines()
    column = header.split('\t').index('status')
    status = {row.split('\t')[0]: row.split('\t')[column] for row in rows}
    assert status['sub-04'] == 'failed'
    assert {status[f'sub-0{i}'] for i in (1, 2, 3)} == {'complete'}


def test_more_participants_than_an_array_takes(cluster, raw):
    # The cluster takes five in an array. These have no magnitude of one echo, and end at once.
    many = cluster.shared / 'many'
    many.mkdir()
    shutil.copy(raw / 'dataset_description.json', many)
    for label in '123456':
        folder = copy_participant(raw, label, many)
        next(folder.glob('anat/*_echo-1_part-mag_MEGRE.nii.gz')).unlink()
    done = cluster.app(
        'out-many', *OPTIONS, '--mem', '700M', '--submit', 'slurm', '--submit-limit', 4, raw='many'
    )
    first, second, group = submitted(done)
    jobs = cluster.wait_for_jobs(first)
    tasks = [job for job in jobs if job.get('ArrayJobId') in (str(first), str(second))]
    assert [job['ExitCode'] for job in tasks] == ['1:0'] * 6
    begin = [job['StartTime'] for job in jobs if job.get('ArrayJobId') == str(second)]
    ends = [job['EndTime'] for job in jobs if job.get('ArrayJobId') == str(first)]
    assert begin[0] >= max(ends), 'with a limit, one array waits for the other'
    (after,) = [job for job in jobs if job['JobId'] == str(group)]
    assert after['StartTime'] >= max(job['EndTime'] for job in tasks)
    for label in '123456':
        (log,) = (cluster.shared / 'out-many').glob(f'logs/*/sub-{label}.log')
        assert 'has no magnitude beside it' in log.read_text()


def test_array_goes_on_when_a_lost_node_returns(cluster, raw, reference):
    # One partition has but one node, so that the job has to wait for its return.
    done = cluster.app(
        'out-lost', *('--participant-label', '01'), *OPTIONS, '--submit', 'slurm',
        env=['SBATCH_PARTITION=second'],
    )  # fmt: skip
    array, group = submitted(done)

    def log():
        return ''.join(
            path.read_text() for path in (cluster.shared / 'out-lost').glob('logs/*/sub-01.log')
        )

    def state(job):
        return next(j for j in cluster.jobs() if j['JobId'] == str(job))

    cluster.wait('the second stage', lambda: 'shape_mask ... done' in log())
    assert docker('kill', f'{NAME}-c2').returncode == 0
    try:
        cluster.wait('the requeue', lambda: state(array)['Restarts'] == '1', timeout=120)
        assert state(array)['JobState'] == 'PENDING'
        assert state(group)['JobState'] == 'PENDING'
    finally:
        assert docker('start', f'{NAME}-c2').returncode == 0
    jobs = cluster.wait_for_jobs(array)
    assert {job['JobState'] for job in jobs} == {'COMPLETED'}
    assert log().count('sub-01 | shape_mask ... started') == 1
    assert 'shape_mask ... taken from the work folder' in log()
    assert 'finished: 1 of 1 participants' in log()
    assert_same(cluster.shared / 'out-lost', reference)


def last_job(cluster):
    return max((int(job['JobId']) for job in cluster.jobs()), default=0)


def test_plugin_distributes_the_nodes(cluster, raw, reference, plugin):
    # With a home that cannot be: the main process makes one for itself, which no job may get.
    before = last_job(cluster)
    done = cluster.app(
        'out-plugin', *('--participant-label', '01'), *OPTIONS, *plugin(), env=['HOME=/']
    )
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = cluster.jobs(before + 1)
    assert len(by_name(jobs, '.precondqsm_wf.')) >= 12
    assert {job['JobState'] for job in jobs} == {'COMPLETED'}
    assert {job['BatchHost'] for job in jobs} == {'c1', 'c2'}
    assert_same(cluster.shared / 'out-plugin', reference)


def assert_told(cluster, output, status, pattern):
    """The exit status is 1, and the last line and the crash file say what became of the job."""
    assert status == 1, output
    line = output.strip().splitlines()[-1]
    found = re.search(rf'sub-01 failed: .*{pattern}.*; crash file: /shared/(\S+)$', line)
    assert found, output
    crash = (cluster.shared / found[1]).read_text()
    assert re.search(pattern, crash)
    assert 'TypeError' not in output + crash
    assert cluster.run('squeue', '--noheader').stdout == ''


def test_node_job_that_is_cancelled(cluster, raw, plugin):
    before = last_job(cluster)
    out = ('out-cancelled', '--participant-label', '01', *OPTIONS, *plugin())
    with subprocess.Popen(
        cluster.words(*app_words(*out)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as main:
        try:
            (job,) = cluster.wait(
                'the job of a node',
                lambda: [
                    job
                    for job in by_name(cluster.jobs(before + 1), '.echo_fit')
                    if job['JobState'] == 'RUNNING'
                ],
                timeout=90,
            )
            assert cluster.run('scancel', job['JobId']).returncode == 0
            # Apart: Docker carries the two streams on their own, in any order.
            stdout, stderr = main.communicate(timeout=120)
        finally:
            main.kill()
    number, host = job['JobId'], job['BatchHost']
    pattern = rf'echo_fit: SLURM job {number} ended without a result: CANCELLED.* on {host}'
    assert_told(cluster, stdout + stderr, main.returncode, pattern)
    # What does not need that node was computed.
    assert 'shape_mask ... done' in stdout


def test_node_job_that_takes_too_much_memory(cluster, raw, plugin):
    options = ('--participant-label', '01', *OPTIONS, *plugin('--mem=60M'))
    done = cluster.app('out-memory', *options)
    pattern = (
        r'\w+: SLURM job \d+ ended without a result: [A-Z_]+ .*on c\d.*; '
        'it may have had too little memory: give more with --mem in sbatch_args'
    )
    assert_told(cluster, done.stdout + done.stderr, done.returncode, pattern)


def test_main_process_that_is_cancelled_takes_its_jobs_along(cluster, raw, plugin):
    # The main process is a job itself here, as it would be on a cluster.
    words = app_words('out-main', '--participant-label', '01', *OPTIONS, *plugin())
    done = cluster.run(
        *('sbatch', '--parsable', '--mem=900M', '--output=/shared/main.log'),
        *('--wrap', f'exec {" ".join(words)}'),
    )
    main = int(done.stdout)
    cluster.wait(
        'the job of a node',
        lambda: by_name(cluster.jobs(main + 1), '.shape_mask'),
        timeout=90,
    )
    assert cluster.run('scancel', main).returncode == 0
    jobs = {job['JobId']: job for job in cluster.wait_for_jobs(main)}
    log = (cluster.shared / 'main.log').read_text()
    assert len(jobs) >= 2
    assert {job['JobState'] for job in jobs.values()} == {'CANCELLED'}, log
    assert 'terminated; the same command goes on from the work folder' in log
