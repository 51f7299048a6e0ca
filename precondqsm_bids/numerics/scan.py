"""A scan as it is stored: its echoes, and what is known of them besides their values."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy.typing as npt


class Scan(NamedTuple):
    """Echoes of one run on one grid."""

    magnitude: npt.NDArray
    """(X, Y, Z, E), any unit."""
    phase: npt.NDArray
    """(X, Y, Z, E), rad or codes."""
    echo_times: npt.ArrayLike
    """(E,) s, increasing."""
    field_strength: float
    """B0, T."""
    voxel_size: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """mm"""
    b0_dir: npt.ArrayLike = (0.0, 0.0, 1.0)
    """Direction of B0 along the voxel axes."""
    b0_stated: bool = False
    """The user states the direction; it is the header's otherwise."""
    stored_axes: tuple[int, int, int] = (0, 1, 2)
    """Axis of the file that each axis of the arrays is."""
    phase_units: str | None = None
    """``rad`` or ``arbitrary`` (``Units`` of the metadata); from the values if None."""
    phase_sign: int | None = None
    """+1 if the phase grows with time where the field is positive, -1 if it falls; found by the
    field of the object's shape if None."""
    phase_difference: bool = False
    """The phase of the one echo is the difference of two."""
    manufacturer: str | None = None
    """Of the scanner: its usual sign counts where the field does not tell."""
    magnitude_files: tuple[str, ...] = ()
    """One for each echo, for messages."""
    phase_files: tuple[str, ...] = ()
    """The same for the phase."""

    @property
    def one_echo(self) -> bool:
        """The scan has a single echo."""
        return self.magnitude.shape[-1] == 1

    def names(self, part: str) -> list[str]:
        """Names of the echoes of a part, ``magnitude`` or ``phase``, in messages."""
        files = getattr(self, f'{part}_files')
        return list(files) or [f'{part}[..., {e}]' for e in range(self.magnitude.shape[-1])]

    @contextmanager
    def named(self) -> Iterator[None]:
        """Name the file, and that there are others, in what a function on arrays raises."""
        try:
            yield
        except ValueError as error:
            if not self.phase_files:
                raise
            raise ValueError(f'{self.phase_files[0]} and its other echoes: {error}') from error
