"""CPUs and memory that this process may use, which is seldom what the host has.

A container sees every CPU of its host, a batch job all memory of its node. The limits are in the
affinity mask, in the control groups (v1 and v2) and in the variables of the batch system.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

GIB = 1024**3
UNLIMITED = 2**60
"""Bytes; control groups v1 write a number of about 2**63 where there is no limit."""

UNITS = {'': 1 / 1024, 'K': 1024**-2, 'M': 1 / 1024, 'G': 1.0, 'T': 1024.0}
"""GiB per unit; a bare number is in megabytes."""

MAX_OMP_NTHREADS = 8
"""Fourier transforms of these sizes gain little from more threads."""

MEMORY_SHARE = 0.9
"""Part of the memory limit that the nodes may have; the rest is the main process's."""

BATCH_CPUS = {
    'SLURM_CPUS_PER_TASK': 'SLURM_JOB_ID',  # there only if it was asked for
    'SLURM_CPUS_ON_NODE': 'SLURM_JOB_ID',
    'NCPUS': 'PBS_JOBID',
    'PBS_NP': 'PBS_JOBID',
    'NSLOTS': 'JOB_ID',  # SGE
    'LSB_DJOB_NUMPROC': 'LSB_JOBID',
    'LSB_MAX_NUM_PROCESSORS': 'LSB_JOBID',
}
"""Variables with the CPUs of a job, and those without which they mean something else."""


class Limit(NamedTuple):
    """A limit and where it comes from."""

    value: float
    source: str


def parse_memory(text: str) -> float:
    """A size such as ``8000`` (MB), ``1.5G`` or ``2T`` in GiB.

    >>> parse_memory('2048'), parse_memory('1.5G'), parse_memory('512m'), parse_memory('1TB')
    (2.0, 1.5, 0.5, 1024.0)

    Raises ValueError if the text is not a positive size.
    """
    match = re.fullmatch(r'\s*(\d+\.?\d*|\.\d+)\s*([KMGT]?)(?:i?B)?\s*', text, re.IGNORECASE)
    size = float(match[1]) * UNITS[match[2].upper()] if match else 0.0
    if not size:
        raise ValueError(
            f'"{text}" is not an amount of memory: write 8000 (MB), 8000M, 1.5G or 1T'
        )
    return size


def cpu_limit(root: Path = Path('/'), environ: Mapping[str, str] = os.environ) -> Limit:
    """CPUs that this process may use; ``root`` has ``sys`` and ``proc``."""
    limits = [Limit(len(os.sched_getaffinity(0)), 'affinity mask')]
    for folder in _cgroups(root, 'cpu'):
        quota, period = _numbers(folder / 'cpu.max')  # v2: "200000 100000" or "max 100000"
        if quota is None:
            quota, _ = _numbers(folder / 'cpu.cfs_quota_us')
            period, _ = _numbers(folder / 'cpu.cfs_period_us')
        if quota and period and quota > 0:
            limits.append(Limit(max(1, int(quota // period)), 'control group'))
    for name, job in BATCH_CPUS.items():
        if job in environ and (cpus := _integer(environ.get(name))):
            limits.append(Limit(cpus, name))
    return min(limits, key=lambda limit: limit.value)


def memory_limit(root: Path = Path('/'), environ: Mapping[str, str] = os.environ) -> Limit:
    """Memory that this process may use, GiB; ``root`` has ``sys`` and ``proc``."""
    text = _read(root / 'proc/meminfo')
    match = re.search(r'^MemTotal:\s*(\d+) kB', text, re.MULTILINE)
    limits = [Limit(int(match[1]) * 1024 / GIB, 'memory of the host')] if match else []
    for folder in _cgroups(root, 'memory'):
        for name in ('memory.max', 'memory.limit_in_bytes'):
            size, _ = _numbers(folder / name)
            if size and size < UNLIMITED:
                limits.append(Limit(size / GIB, 'control group'))
    if size := _integer(environ.get('SLURM_MEM_PER_NODE')):
        limits.append(Limit(size / 1024, 'SLURM_MEM_PER_NODE'))
    elif size := _integer(environ.get('SLURM_MEM_PER_CPU')):
        names = ('SLURM_CPUS_ON_NODE', 'SLURM_CPUS_PER_TASK')
        cpus = next(filter(None, (_integer(environ.get(name)) for name in names)), 1)
        limits.append(Limit(size * cpus / 1024, 'SLURM_MEM_PER_CPU'))
    return min(limits, default=Limit(4.0, 'a guess'))


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's control groups, v1 and v2, up to the top: each may limit.

    Inside a container the path may be the host's and not exist; then its existing parents count.
    """
    mount = root / 'sys/fs/cgroup'
    for line in _read(root / 'proc/self/cgroup').splitlines():
        _, controllers, path = line.split(':', 2)
        if controllers and controller not in controllers.split(','):
            continue
        tops = (mount,) if not controllers else (mount / controller, mount / controllers)
        inner = PurePosixPath(path.lstrip('/'))
        for top in dict.fromkeys(tops):
            for step in (inner, *inner.parents):
                if (top / step).is_dir():
                    yield top / step


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ''


def _numbers(path: Path) -> tuple[float | None, float | None]:
    """The first two words of a file as numbers, None where they are none ("max")."""
    words = [*_read(path).split()[:2], '', '']
    first, second = (float(w) if re.fullmatch(r'-?\d+', w) else None for w in words[:2])
    return first, second


def _integer(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0
