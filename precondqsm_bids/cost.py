"""What a run costs, roughly: one set of rates for limits, warnings and forecasts.

All are as measured (docs/scaling.md), of both arms. Only the standard library.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from precondqsm_bids.method import Method

STAGE_MEMORY = {
    'shape_mask': 15, 'prior_fit': 86, 'flattening': 23, 'background_removal': 20,
    'dipole_inversion': 24, 'comparison': 23, 'uncertainty': 37,
}  # fmt: skip
"""Memory of the stages after the echo fit, in volumes of float32 on the grid of the images, of
however many echoes: as measured of tubes, whose region fills three fifths of the field of view."""
OTHER_MEMORY = 10
"""The same of all other stages."""
FIT_MEMORY = (0.05, 1.4, 32.5)
"""Memory of the echo fit: GiB of any run, sizes of the run's images, and of one volume of float32.
Measured of 2 to 12 echoes of a head that fills two fifths of the field of view; a brain takes
less, down to two thirds."""
LIBRARIES_GB = 0.2
"""GiB of a process without any image."""
WORK_BYTES = 124
"""Size of a run's intermediate results, bytes a voxel: 31 maps of float32, not compressed."""
OUTPUT_BYTES = 30
"""Size of what is written of a run, bytes a voxel."""
CONSENSUS = (1.25, 1.2, 1.1)
"""Factors on work folder, outputs and CPU time of a run with the arms of the consensus: seven maps
more in between, three files, and total variation, which costs what a background removal does."""
SECONDS_PER_VALUE = 2e-6
"""CPU seconds of a run for each voxel of each echo."""
SECONDS_PER_RUN = 12.0
"""CPU seconds of any run: libraries, figures. With :data:`SECONDS_PER_VALUE` as measured: 15 s for
64 x 64 x 64 voxels with 8 echoes, 37 s for 128 x 128 x 106, 121 s for a head of 184 x 232 x 196
with 7 echoes and its brain as region."""


class Sized(Protocol):
    """What is asked of a run."""

    @property
    def matrix(self) -> tuple[int, ...]: ...
    @property
    def echo_times(self) -> tuple[float, ...]: ...
    @property
    def series_gb(self) -> float: ...


class Cost(NamedTuple):
    """Result of :func:`cost_of`."""

    memory_gb: float
    """GiB of the largest stage."""
    work_bytes: float
    output_bytes: float
    cpu_seconds: float


def stage_gb(stage: str, series_gb: float, echoes: int) -> float:
    """GiB of a stage, without the libraries, from the size of a run's magnitude and phase.

    >>> round(stage_gb('echo_fit', 2.0, 5), 2), stage_gb('shape_mask', 2.0, 5)
    (9.35, 3.0)
    """
    volume = series_gb / (2 * echoes)
    if stage == 'echo_fit':
        least, images, volumes = FIT_MEMORY
        return least + images * series_gb + volumes * volume
    return STAGE_MEMORY.get(stage, OTHER_MEMORY) * volume


def cost_of(runs: Sequence[Sized], method: Method) -> Cost:
    """The cost of some runs: the memory of the largest stage, and the sum of all else."""
    voxels = sum(math.prod(run.matrix) for run in runs)
    values = sum(math.prod(run.matrix) * max(1, len(run.echo_times)) for run in runs)
    largest = max(
        (
            stage_gb(stage, run.series_gb, max(1, len(run.echo_times)))
            for run in runs
            for stage in ('echo_fit', *STAGE_MEMORY)
        ),
        default=0.0,
    )
    iterations = max(1.0, method.pdf_iterations / Method.pdf_iterations)
    work, output, seconds = CONSENSUS if method.consensus else (1, 1, 1)
    return Cost(
        LIBRARIES_GB + largest,
        WORK_BYTES * voxels * work,
        OUTPUT_BYTES * voxels * output,
        SECONDS_PER_RUN * len(runs) + SECONDS_PER_VALUE * iterations * values * seconds,
    )
