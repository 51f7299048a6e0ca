"""What a head phantom is: size, protocol, relaxivity and what is hidden in it, as one value.

Standard library only, so that the command line can read its defaults without loading numpy.
"""

from dataclasses import dataclass
from math import ceil, prod

from precondqsm_bids.phantom.spec import MOST_POINTS, Spec, check_number

RADIUS, HEIGHT = 90.0, 200.0
"""Size of the head for all that is smooth in space: shading, phase offset, shim, coils; mm."""

FIELD_OF_VIEW = (184.0, 232.0, 196.0)
"""Field of view, mm: from ear to ear, from nose to nape, from the crown to the upper neck."""

FIELD_CENTRE = (0.0, -12.0, 6.0)
"""Its centre in the coordinates of the template, mm (right, anterior, superior)."""

MARGIN = ((12.0, 12.0), (16.0, 16.0), (72.0, 12.0))
"""What is simulated beyond the field of view along each axis, mm: air, and below it the neck."""

SMALLEST_VOXEL, LARGEST_VOXEL = 0.6, 6.0
"""mm: below, the grid takes tens of gigabytes; above, nuclei are smaller than voxels."""


@dataclass(frozen=True)
class HeadSpec(Spec):
    """A head of known susceptibility.

    The head stands upright along the third voxel axis, the nose along the second; at ``b0_tilt``
    = 0 B0 is parallel to the third axis.

    Parameters
    ----------
    relaxivity : float
        R2' of a ppm of para- or diamagnetic susceptibility at 3 T, Hz/ppm (that is 1/s per ppm);
        it grows in proportion to B0. The default is that of Shin et al., NeuroImage
        2021;240:118371.
    hard : bool
        Whether there is what no magnitude shows: a texture of the susceptibility of its own,
        veins, microbleeds and calcifications, R2* without susceptibility and the reverse. See
        `hard_head` for the protocol that goes with it.
    lesion_relaxivity : float
        R2' of microbleeds and calcifications relative to what ``relaxivity`` gives for them: at 0
        no magnitude shows them, at 1 they obey the same law as tissue. Read if ``hard``.
    **others
        Those of `Spec`; the matrix follows from the voxel size.

    Raises
    ------
    ValueError
        A value is out of range.

    Examples
    --------
    >>> HeadSpec().matrix, HeadSpec(voxel_size=(2.0, 2.0, 2.0)).matrix
    ((184, 232, 196), (92, 116, 98))
    """

    echo_times: tuple[float, ...] = (0.004, 0.008, 0.012, 0.016, 0.020, 0.024, 0.028)
    snr: float = 100.0
    relaxivity: float = 137.0
    hard: bool = False
    lesion_relaxivity: float = 0.0
    coil_shading: float = 0.2

    def __post_init__(self):
        """Refuse what cannot be simulated, with the numbers that are at odds."""
        super().__post_init__()
        if not all(SMALLEST_VOXEL <= size <= LARGEST_VOXEL for size in self.voxel_size):
            raise ValueError(
                f'voxel_size must lie between {SMALLEST_VOXEL:g} and {LARGEST_VOXEL:g} mm for '
                f'the head, not {self.voxel_size}'
            )
        for name in ('relaxivity', 'lesion_relaxivity'):
            check_number(name, getattr(self, name), at_least=0)
        points = prod(n + sum(self.margin(axis)) for axis, n in enumerate(self.matrix))
        points *= self.supersampling**3
        if points > MOST_POINTS:
            raise ValueError(
                f'voxel_size {self.voxel_size} mm with {self.supersampling} points per axis has '
                f'{points:.2g} points, more than the {MOST_POINTS:.2g} that fit in the '
                'memory of a workstation: take larger voxels or less supersampling'
            )

    @property
    def matrix(self):
        """Number of voxels along each axis."""
        return tuple(
            ceil(fov / size - 1e-6)
            for fov, size in zip(FIELD_OF_VIEW, self.voxel_size, strict=True)
        )

    @property
    def object_radius(self):
        """Radius of the head, the length of all that is smooth in space, mm."""
        return RADIUS

    def margin(self, axis):
        """Voxels that are simulated before and after the field of view along an axis."""
        before, after = MARGIN[axis]
        return ceil(before / self.voxel_size[axis]), ceil(after / self.voxel_size[axis])


def hard_head(**changes):
    """Return the spec of the hard head: hidden sources, oblique by 15 degrees, SNR 60.

    Parameters
    ----------
    **changes
        Fields of `HeadSpec` that differ from it.

    Examples
    --------
    >>> spec = hard_head(voxel_size=(2.0, 2.0, 2.0))
    >>> spec.hard, spec.b0_tilt, spec.snr
    (True, 15.0, 60.0)
    """
    return HeadSpec(**{'hard': True, 'b0_tilt': 15.0, 'snr': 60.0, **changes})
