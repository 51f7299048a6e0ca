"""Limits of CPUs and memory, from trees that look like /proc and /sys."""

import os

import pytest

from precondqsm_bids.cli.resources import GIB, cpu_limit, memory_limit, parse_memory

V1 = '12:cpu,cpuacct:/job/1\n11:memory:/job/1\n1:name=systemd:/'


@pytest.fixture
def host(tmp_path, monkeypatch):
    """Sixteen CPUs and 64 GiB, and a function that adds files."""
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(16)))

    def add(files):
        for path, text in files.items():
            target = tmp_path / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(f'{text}\n')
        return tmp_path

    add({'proc/meminfo': f'MemFree: 1 kB\nMemTotal:  {64 * 1024**2} kB'})
    return add


@pytest.mark.parametrize(
    'files, environ, cpus',
    [
        ({}, {}, (16, 'affinity mask')),
        ({'proc/self/cgroup': '0::/', 'sys/fs/cgroup/cpu.max': 'max 100000'}, {}, (16, 'aff')),
        ({'proc/self/cgroup': '0::/', 'sys/fs/cgroup/cpu.max': '250000 100000'}, {}, (2, 'con')),
        ({'proc/self/cgroup': '0::/', 'sys/fs/cgroup/cpu.max': '50000 100000'}, {}, (1, 'con')),
        # the parent's limit holds for the child
        (
            {
                'proc/self/cgroup': '0::/a/b',
                'sys/fs/cgroup/a/b/cpu.max': 'max 100000',
                'sys/fs/cgroup/a/cpu.max': '300000 100000',
            },
            {},
            (3, 'control group'),
        ),
        # in a container the path is the host's and is not there
        (
            {'proc/self/cgroup': '0::/host/path', 'sys/fs/cgroup/cpu.max': '400000 100000'},
            {},
            (4, 'control group'),
        ),
        (
            {
                'proc/self/cgroup': V1,
                'sys/fs/cgroup/cpu,cpuacct/job/1/cpu.cfs_quota_us': '600000',
                'sys/fs/cgroup/cpu,cpuacct/job/1/cpu.cfs_period_us': '100000',
            },
            {},
            (6, 'control group'),
        ),
        (
            {
                'proc/self/cgroup': V1,
                'sys/fs/cgroup/cpu/job/1/cpu.cfs_quota_us': '-1',
                'sys/fs/cgroup/cpu/job/1/cpu.cfs_period_us': '100000',
            },
            {},
            (16, 'affinity mask'),
        ),
        ({}, {'SLURM_JOB_ID': '1', 'SLURM_CPUS_PER_TASK': '5'}, (5, 'SLURM_CPUS_PER_TASK')),
        ({}, {'SLURM_JOB_ID': '1', 'SLURM_CPUS_PER_TASK': ''}, (16, 'affinity mask')),
        # of sbatch --ntasks=2 --cpus-per-task=4, and of --ntasks=3 alone
        (
            {},
            {'SLURM_JOB_ID': '1', 'SLURM_CPUS_PER_TASK': '4', 'SLURM_CPUS_ON_NODE': '8'},
            (4, 'SLURM_CPUS_PER_TASK'),
        ),
        ({}, {'SLURM_JOB_ID': '1', 'SLURM_CPUS_ON_NODE': '3'}, (3, 'SLURM_CPUS_ON_NODE')),
        ({}, {'PBS_JOBID': '1.server', 'NCPUS': '6'}, (6, 'NCPUS')),
        ({}, {'PBS_JOBID': '1.server', 'PBS_NP': '7'}, (7, 'PBS_NP')),
        ({}, {'JOB_ID': '1', 'NSLOTS': '8'}, (8, 'NSLOTS')),
        ({}, {'LSB_JOBID': '1', 'LSB_DJOB_NUMPROC': '9'}, (9, 'LSB_DJOB_NUMPROC')),
        ({}, {'LSB_JOBID': '1', 'LSB_MAX_NUM_PROCESSORS': '10'}, (10, 'LSB_MAX_NUM_PROCESSORS')),
        # outside a job the same names may be anybody's
        ({}, {'NCPUS': '1', 'NSLOTS': '1', 'SLURM_CPUS_ON_NODE': '1'}, (16, 'affinity mask')),
        ({}, {'JOB_ID': '1', 'NSLOTS': '64'}, (16, 'affinity mask')),
    ],
)
def test_cpus(host, files, environ, cpus):
    limit = cpu_limit(host(files), environ)
    assert limit.value == cpus[0]
    assert limit.source.startswith(cpus[1])


@pytest.mark.parametrize(
    'files, environ, size',
    [
        ({}, {}, (64, 'memory of the host')),
        ({'proc/self/cgroup': '0::/', 'sys/fs/cgroup/memory.max': 'max'}, {}, (64, 'memory')),
        ({'proc/self/cgroup': '0::/', 'sys/fs/cgroup/memory.max': 3 * GIB}, {}, (3, 'control')),
        (
            {
                'proc/self/cgroup': '0::/a/b',
                'sys/fs/cgroup/a/b/memory.max': 8 * GIB,
                'sys/fs/cgroup/a/memory.max': 4 * GIB,
            },
            {},
            (4, 'control group'),
        ),
        (
            {
                'proc/self/cgroup': V1,
                'sys/fs/cgroup/memory/job/1/memory.limit_in_bytes': 2 * GIB,
                'sys/fs/cgroup/memory/memory.limit_in_bytes': 9223372036854771712,
            },
            {},
            (2, 'control group'),
        ),
        ({}, {'SLURM_MEM_PER_NODE': '2048'}, (2, 'SLURM_MEM_PER_NODE')),
        ({}, {'SLURM_MEM_PER_NODE': '0'}, (64, 'memory of the host')),
        (
            {},
            {'SLURM_MEM_PER_CPU': '1024', 'SLURM_CPUS_PER_TASK': '4'},
            (4, 'SLURM_MEM_PER_CPU'),
        ),
        (
            {},
            {'SLURM_MEM_PER_CPU': '1024', 'SLURM_CPUS_ON_NODE': '6'},
            (6, 'SLURM_MEM_PER_CPU'),
        ),
    ],
)
def test_memory(host, files, environ, size):
    limit = memory_limit(host(files), environ)
    assert limit.value == size[0]
    assert limit.source.startswith(size[1])


def test_no_proc_at_all(tmp_path):
    assert memory_limit(tmp_path, {}).source == 'a guess'


@pytest.mark.parametrize(
    'text, gib',
    [('1024', 1), ('1.5G', 1.5), ('2t', 2048), ('512M', 0.5), ('1048576K', 1), ('4 GiB', 4)],
)
def test_sizes(text, gib):
    assert parse_memory(text) == gib


@pytest.mark.parametrize('text', ['', 'G', '-1G', '1.2.3', '0', '5X', '1e3', 'nan'])
def test_no_sizes(text):
    with pytest.raises(ValueError, match='not an amount of memory'):
        parse_memory(text)
