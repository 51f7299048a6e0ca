"""Threads of a node: all of one participant, fewer of several beside each other."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from precondqsm_bids.cli.call import Found
from precondqsm_bids.cli.run import threads_of_each
from precondqsm_bids.config import Settings


def participants(count):
    """As many runs of 1.7 million voxels and 8 echoes, of 0.8 GB each."""
    return [
        SimpleNamespace(
            subject=f'{i:02}', matrix=(128, 128, 106), echo_times=(0.001,) * 8, series_gb=0.1
        )
        for i in range(count)
    ]


@pytest.mark.parametrize(
    ('count', 'nprocs', 'memory', 'threads'),
    [
        (1, 12, 20.0, 8),
        (10, 2, 20.0, 1),
        (3, 12, 20.0, 4),
        (10, 12, 20.0, 1),
        (10, 4, 1.7, 2),  # room for two
        (10, 4, 0.1, 4),  # one that may not fit is tried with all
        (0, 4, 20.0, 4),
    ],
)
def test_participants_share_the_threads_as_far_as_the_memory_goes(count, nprocs, memory, threads):
    settings = Settings(
        Path('raw'), Path('out'), nprocs=nprocs, omp_nthreads=min(nprocs, 8), mem_gb=memory
    )
    assert threads_of_each(settings, Found(participants(count), [])) == threads


def test_runs_of_one_participant_do_not_share():
    runs = participants(2)
    runs[1].subject = runs[0].subject
    settings = Settings(Path('raw'), Path('out'), nprocs=4, omp_nthreads=4, mem_gb=20.0)
    assert threads_of_each(settings, Found(runs, [])) == 4
