"""The files and numbers of one reconstruction, and what can be wrong with them."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple


class InputError(ValueError):
    """The request cannot be met by anybody's data: a usage error, reported in one line."""


@dataclass(frozen=True)
class Tissue:
    """The tissue classes of a run."""

    files: tuple[str, ...]
    """One label image, or one map of shares for each class."""
    classes: tuple[str, ...]
    """Names."""
    label_classes: dict[int, str] | None = None
    """Label to class, of a label image."""
    resampled: bool = False
    """Whether the files are on another grid, in the same scanner coordinates."""


@dataclass(frozen=True)
class Run:
    """The files and numbers of one reconstruction."""

    subject: str
    session: str | None
    entities: dict[str, str]
    """Short name to label, as in the file names, without sub, ses, echo and part."""
    magnitude: tuple[str, ...]
    phase: tuple[str, ...]
    """Paths, one per echo, ordered by echo time; or one path each if ``echoes_in_one_file``. Empty
    where the run has ``real`` and ``imaginary`` instead."""
    echo_times: tuple[float, ...]
    """s; empty where the field is given"""
    field_strength: float
    """T"""
    metadata: dict[str, Any]
    """Merged sidecars of the first magnitude echo, or of the given field."""
    real: tuple[str, ...] = ()
    imaginary: tuple[str, ...] = ()
    field: str | None = None
    """Total field that was found elsewhere: then there is one magnitude, and no phase."""
    field_units: str | None = None
    field_sd: str | None = None
    """Its standard deviation, in the same units."""
    r2star_map: str | None = None
    """R2* (1/s) beside the field."""
    echoes_in_one_file: bool = False
    """Whether the files have the echoes along a fourth axis."""
    matrix: tuple[int, ...] = (0, 0, 0)
    """Voxels along each axis."""
    b0_dir: tuple[float, ...] | None = None
    """Direction of B0 along the voxel axes, where it is stated; else that of the affine holds."""
    labels: str | None = None
    """Label image; like all images beside the echoes it is on their grid, except mask and
    tissue."""
    label_names: dict[int, str] | None = None
    """Index to name."""
    phase_units: str | None = None
    """``Units`` of the phase images."""
    mask: str | None = None
    """Region of interest; None leaves it to the images."""
    mask_resampled: bool = False
    """Whether the mask is on another grid, in the same scanner coordinates."""
    tissue: Tissue | None = None
    r2_map: str | None = None
    r2_map_kind: str | None = None
    """R2map (1/s) or T2map (s)."""
    contrasts: tuple[str, ...] = ()
    """Further images, where the method reads them."""
    missing: tuple[str, ...] = ()
    """What the dataset does not say, and what stands in for it."""
    field_strength_source: str = 'MagneticFieldStrength'
    """That, ``ImagingFrequency`` or ``--field-strength``."""
    phase_difference: bool = False
    """Whether the phase is the difference of two echoes, and the echo time that between them."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Every image of the run, the field or that of the first echo first."""
        echoes = (*self.magnitude, *self.phase, *self.real, *self.imaginary)
        return tuple(filter(None, (self.field, *echoes, self.field_sd, self.r2star_map)))

    @property
    def one_echo(self) -> bool:
        """Whether there is one echo, so that R2*, S0 and the phase offset are not known."""
        return len(self.echo_times) == 1

    @property
    def without_r2star(self) -> bool:
        """Whether R2* is not known."""
        return self.one_echo or (self.field is not None and self.r2star_map is None)

    @property
    def series_gb(self) -> float:
        """Size of all magnitude and phase images as float32, GiB."""
        return math.prod(self.matrix) * 4 * 2 * max(1, len(self.echo_times)) / 1024**3

    @property
    def as_needed(self) -> bool:
        """Whether the files are what the stages read: 3D magnitude and phase with an affine."""
        return not (self.real or self.echoes_in_one_file or self.b0_dir)

    @property
    def label(self) -> str:
        """Name of the run for logs and nodes: ``sub-01_ses-a_run-1``."""
        pairs = {'sub': self.subject, 'ses': self.session, **self.entities}
        return '_'.join(f'{key}-{value}' for key, value in pairs.items() if value is not None)


@dataclass(frozen=True)
class Problem:
    """What is wrong with one participant's files, and the way out."""

    subject: str
    file: str
    message: str
    kind: str = 'error'
    """``error``; ``warning``: the run goes on without what the problem is about; or ``skipped``:
    left out on purpose."""
    run: str = ''
    """Name of the run that it is about; empty where it is about no particular one."""

    @property
    def fatal(self) -> bool:
        """Whether a run is refused."""
        return self.kind == 'error'

    def __str__(self) -> str:
        return f'sub-{self.subject}: {self.file}: {self.message}'


class Note(NamedTuple):
    """What is to be reported of a file while its run is put together."""

    path: Any
    message: str
    kind: str = 'warning'


class RunError(Exception):
    """One run's files cannot be used: the file and what is wrong."""

    def __init__(self, path: Any, message: str, kind: str = 'warning') -> None:
        super().__init__(message)
        self.path = str(path)
        self.kind = kind
        """How it is reported where the run goes on without the file."""
