"""The files and numbers of one reconstruction, and what can be wrong with them."""

import math
from dataclasses import dataclass
from typing import Any


class InputError(ValueError):
    """The request cannot be met by anybody's data: a usage error, told in one line."""


@dataclass(frozen=True)
class Tissue:
    """The tissue classes of a run.

    Attributes
    ----------
    files : tuple of str
        One label image, or one map of shares for each class.
    classes : tuple of str
        Names.
    label_classes : dict or None
        Label to class, of a label image.
    resampled : bool
        Whether the files are on another grid, in the same scanner coordinates.
    """

    files: tuple[str, ...]
    classes: tuple[str, ...]
    label_classes: dict[int, str] | None = None
    resampled: bool = False


@dataclass(frozen=True)
class Run:
    """The files and numbers of one reconstruction.

    Attributes
    ----------
    entities : dict
        Short name to label, as in the file names, without sub, ses, echo and part.
    magnitude, phase : tuple of str
        Paths, one per echo, ordered by echo time; or one path each if ``echoes_in_one_file``.
        Empty where the run has ``real`` and ``imaginary`` instead.
    echo_times : tuple of float
        s
    field_strength : float
        T
    field_strength_source : str
        ``ImagingFrequency``, ``MagneticFieldStrength`` or ``--field-strength``.
    metadata : dict
        Merged sidecars of the first magnitude echo.
    phase_difference : bool
        Whether the phase is the difference of two echoes, and the echo time that of their times.
    phase_units : str or None
        ``Units`` of the phase images.
    real, imaginary : tuple of str
        As magnitude and phase.
    echoes_in_one_file : bool
        Whether the files have the echoes along a fourth axis.
    matrix : tuple of int
        Voxels along each axis.
    b0_dir : tuple of float or None
        Direction of B0 along the voxel axes, where it is stated; else that of the affine holds.
    labels : str or None
        Label image on the grid of the echoes.
    label_names : dict
        Index to name.
    mask : str or None
        Region of interest on the grid of the echoes; None is the object itself.
    tissue : Tissue or None
        Tissue classes, where the method reads them.
    r2_map, r2_map_kind : str or None
        R2map (1/s) or T2map (s) on the grid of the echoes, and which it is.
    contrasts : tuple of str
        Further images on the grid of the echoes, where the method reads them.
    missing : tuple of str
        What the dataset does not say, and what stands in for it.
    """

    subject: str
    session: str | None
    entities: dict[str, str]
    magnitude: tuple[str, ...]
    phase: tuple[str, ...]
    echo_times: tuple[float, ...]
    field_strength: float
    metadata: dict[str, Any]
    real: tuple[str, ...] = ()
    imaginary: tuple[str, ...] = ()
    echoes_in_one_file: bool = False
    matrix: tuple[int, int, int] = (0, 0, 0)
    b0_dir: tuple[float, float, float] | None = None
    labels: str | None = None
    label_names: dict[int, str] | None = None
    phase_units: str | None = None
    mask: str | None = None
    tissue: Tissue | None = None
    r2_map: str | None = None
    r2_map_kind: str | None = None
    contrasts: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    field_strength_source: str = 'MagneticFieldStrength'
    phase_difference: bool = False

    @property
    def sources(self) -> tuple[str, ...]:
        """Every image of the run, that of the first echo first."""
        return (*self.magnitude, *self.phase, *self.real, *self.imaginary)

    @property
    def one_echo(self) -> bool:
        """Whether there is one echo, so that R2*, S0 and the phase offset are not known."""
        return len(self.echo_times) == 1

    @property
    def series_gb(self) -> float:
        """Size of all magnitude and phase images as float32, GiB."""
        return math.prod(self.matrix) * 4 * 2 * len(self.echo_times) / 1024**3

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
    """What is wrong with one participant's files, and the way out.

    A problem that is not ``fatal`` leaves the run in, without what the problem is about. What is
    ``skipped`` was left out on purpose.
    """

    subject: str
    file: str
    message: str
    fatal: bool = True
    skipped: bool = False

    @property
    def kind(self) -> str:
        """``error``, ``warning`` or ``skipped``."""
        return 'error' if self.fatal else 'skipped' if self.skipped else 'warning'

    def __str__(self) -> str:
        return f'sub-{self.subject}: {self.file}: {self.message}'


class RunError(Exception):
    """One run's files cannot be used: the file and what is wrong."""

    def __init__(self, path: Any, message: str) -> None:
        super().__init__(message)
        self.path = str(path)
