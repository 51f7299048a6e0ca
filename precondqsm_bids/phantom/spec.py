"""What a tubes phantom is: geometry, materials, protocol and sampling, as one checked value.

Standard library only, so that the command line can read its defaults without loading numpy.
"""

from dataclasses import dataclass, field
from math import cos, inf, isfinite, pi, prod, radians, sin

from precondqsm_bids.phantom.scanner_spec import Scanner

CONTAINER_RADIUS = 52.0
CONTAINER_HEIGHT = 95.0
TUBE_RADIUS = 8.0
TUBE_HEIGHT = 60.0
RING_RADIUS = 30.0
"""Radii and heights of the container, the tubes and the ring of their centres, mm."""

BUBBLE_CLEARANCE = 2.0
"""Least distance between the air bubble and the container's lid or the tubes' ends, mm."""

BOTTLE_RADIUS, BOTTLE_HEIGHT, BOTTLE_GAP = 12.0, 70.0, 8.0
"""Radius and height of the bottle beside the container, and the air between them, mm."""

BOTTLE_DCHI, BOTTLE_R2 = 0.1, 5.0
"""Susceptibility of the bottle's water relative to the agar, ppm, and its R2, 1/s."""

FLOW_RADIUS = 4.0
"""Radius of the flow tube along the axis of the container, mm."""

OIL_THICKNESS = 6.0
"""Thickness of the layer of oil under the lid, mm."""

OIL_R2 = 15.0
"""R2 of the oil, 1/s."""

MOST_POINTS = 250_000_000
"""Most points (of the head), or voxels of all echoes (of the tubes), that are simulated; arrays
take about 25 bytes for each."""

SAMPLINGS = ('box', 'kspace')
"""How the fine signal becomes voxels: mean over each voxel, or truncation in k-space."""


@dataclass(frozen=True)
class Spec:
    """What every phantom has: voxels, protocol, sampling and scanner.

    Parameters
    ----------
    voxel_size : tuple of 3 float
        Voxel size, mm. The object keeps its physical size.
    field_strength : float
        B0, T.
    b0_tilt : float
        Angle between B0 and the third axis, degrees, in the plane of the second and third axis.
    echo_times : tuple of float
        Echo times, s, ascending.
    snr : float
        Signal of the medium (agar, white matter) at TE -> 0, averaged over the coil's shading,
        divided by the standard deviation of the noise in each of the real and imaginary parts.
        ``inf`` for no noise.
    coil_shading : float
        Strength of the receive coil's shading (`precondqsm_bids.phantom.acquisition`).
    supersampling : int
        Points per voxel and axis.
    sampling : {'box', 'kspace'}
        'box' averages the fine complex signal over each voxel; 'kspace' keeps the central
        ``matrix`` of its Fourier transform, which is what a scanner does.
    slices : int, optional
        How many of the central slices the field of view keeps; the object and its field stay
        whole. All of them unless given.
    scanner : Scanner
        What the scanner and a body do to the signal; ideal unless given. See
        `precondqsm_bids.phantom.scanner_spec.scanner`.

    Raises
    ------
    ValueError
        A value is out of range.
    """

    voxel_size: tuple[float, float, float] = (1.0, 1.0, 1.0)
    field_strength: float = 3.0
    b0_tilt: float = 0.0
    echo_times: tuple[float, ...] = ()
    snr: float = inf
    coil_shading: float = 0.0
    supersampling: int = 2
    sampling: str = 'box'
    slices: int | None = None
    scanner: Scanner = field(default_factory=Scanner)

    def __post_init__(self):
        """Refuse what cannot be simulated, with the numbers that are at odds."""
        if len(self.voxel_size) != 3:
            raise ValueError(f'voxel_size must be three lengths in mm, not {self.voxel_size}')
        for size in self.voxel_size:
            check_number('voxel_size', size, above=0)
        check_number('field_strength', self.field_strength, above=0)
        check_number('b0_tilt', self.b0_tilt)
        if not self.snr > 0:
            raise ValueError(f'snr must be positive (inf for no noise), not {self.snr}')
        if not 0 <= self.coil_shading <= 1:
            raise ValueError(f'coil_shading must lie between 0 and 1, not {self.coil_shading}')
        if not 1 <= self.supersampling <= 8:
            raise ValueError(f'supersampling must lie between 1 and 8, not {self.supersampling}')
        if self.sampling not in SAMPLINGS:
            raise ValueError(f'sampling must be one of {SAMPLINGS}, not {self.sampling!r}')
        check_echo_times(self.echo_times)
        if self.slices is not None and not 1 <= self.slices <= self.matrix[2]:
            raise ValueError(
                f'slices must lie between 1 and the {self.matrix[2]} there are, not {self.slices}'
            )

    @property
    def slab(self):
        """The slices that the field of view keeps, as a slice of the third axis.

        >>> TubesSpec(slices=4).slab
        slice(51, 55, None)
        """
        kept = self.matrix[2] if self.slices is None else self.slices
        first = (self.matrix[2] - kept) // 2
        return slice(first, first + kept)

    @property
    def b0_dir(self):
        """Unit vector of B0 in voxel axes."""
        return (0.0, sin(radians(self.b0_tilt)), cos(radians(self.b0_tilt)))

    @property
    def repetition_time(self):
        """TR, s: the protocol's 25 ms, or longer where the last echo asks for it.

        >>> TubesSpec(echo_times=(0.004, 0.028)).repetition_time
        0.032
        """
        return max(0.025, round(self.echo_times[-1] + 0.004, 6))


@dataclass(frozen=True)
class TubesSpec(Spec):
    """Agar-filled cylinder in air with parallel tubes of known susceptibility.

    The container stands along the third voxel axis, at the centre of the volume; at
    ``b0_tilt`` = 0 it is parallel to B0. The polymer wall of the container is left out: it gives
    no signal, and its susceptibility is close to that of water.

    Parameters
    ----------
    matrix : tuple of 3 int
        Number of voxels along each axis.
    tubes_dchi : tuple of 1 to 8 float
        Susceptibility of each tube relative to the agar, ppm.
    r2 : float
        R2 of agar and tubes, 1/s. R2' of the agar is zero.
    relaxivity_scale : float
        R2' of the tubes relative to the theory of static dephasing.
    object_scale : float
        Factor on every length of the object (not on the voxels, nor on the bubble).
    air_bubble : float
        Radius of a sphere of air under the container's lid, mm; 0 for none.
    **others
        Those of `Spec`.

    Raises
    ------
    ValueError
        A value is out of range, or the object does not fit the field of view.
    """

    matrix: tuple[int, int, int] = (128, 128, 106)
    echo_times: tuple[float, ...] = (
        0.00138, 0.00418, 0.00698, 0.00978, 0.01258, 0.01538, 0.01818, 0.02098,
    )  # fmt: skip
    snr: float = 80.0
    tubes_dchi: tuple[float, ...] = (0.0, 0.375, 0.75, 1.125, 1.5)
    r2: float = 10.0
    relaxivity_scale: float = 1.12
    object_scale: float = 1.0
    air_bubble: float = 0.0
    coil_shading: float = 0.1

    def __post_init__(self):
        """Refuse what cannot be simulated, with the numbers that are at odds."""
        if len(self.matrix) != 3 or not all(n >= 1 and n == int(n) for n in self.matrix):
            raise ValueError(f'matrix must be three positive whole numbers, not {self.matrix}')
        super().__post_init__()
        check_number('object_scale', self.object_scale, above=0)
        for name in ('r2', 'relaxivity_scale', 'air_bubble'):
            check_number(name, getattr(self, name), at_least=0)
        if not 1 <= len(self.tubes_dchi) <= 8:
            raise ValueError(
                f'tubes_dchi has {len(self.tubes_dchi)} tubes: 1 to 8 fit the container'
            )
        for value in self.tubes_dchi:
            check_number('tubes_dchi', value)
        points = prod(self.matrix) * len(self.echo_times)
        if points > MOST_POINTS:
            raise ValueError(
                f'matrix {self.matrix} with {len(self.echo_times)} echoes has {points:.2g} '
                f'voxels, more than the {MOST_POINTS:.2g} that fit in the memory of a '
                'workstation: take a smaller matrix or fewer echoes'
            )
        self._check_fit()

    def _check_fit(self):
        fov = [n * size for n, size in zip(self.matrix, self.voxel_size, strict=True)]
        extent = [2 * self.container_radius, 2 * self.container_radius, self.container_height]
        if any(e > f for e, f in zip(extent, fov, strict=True)):
            raise ValueError(
                f'the container ({_mm(extent)} mm) does not fit the field of view ({_mm(fov)} mm '
                f'= {self.matrix} voxels of {self.voxel_size} mm): take a larger matrix or voxel '
                f'size, or object_scale below {self.object_scale:g}'
            )
        room = (self.container_height - self.tube_height) / 2 - 2 * BUBBLE_CLEARANCE
        if 2 * self.air_bubble > max(room, 0):
            raise ValueError(
                f'air_bubble of radius {self.air_bubble:g} mm does not fit between the '
                f'tubes and the lid: its radius can be {max(room, 0) / 2:g} mm at most'
            )
        if self.scanner.two_bodies:
            reach = 2 * (max(self.bottle_centre) + self.bottle_radius)
            extent = [reach, reach, self.bottle_height]
            if any(e > f for e, f in zip(extent, fov, strict=True)):
                raise ValueError(
                    f'the bottle beside the container reaches beyond the field of view '
                    f'({_mm(fov)} mm): it needs {_mm(extent)} mm'
                )

    @property
    def container_radius(self):
        """Radius of the container, mm."""
        return CONTAINER_RADIUS * self.object_scale

    @property
    def container_height(self):
        """Height of the container, mm."""
        return CONTAINER_HEIGHT * self.object_scale

    @property
    def tube_radius(self):
        """Radius of each tube, mm."""
        return TUBE_RADIUS * self.object_scale

    @property
    def tube_height(self):
        """Height of each tube, mm."""
        return TUBE_HEIGHT * self.object_scale

    @property
    def tube_centres(self):
        """Centre (x, y, z) of each tube relative to the container's, mm."""
        ring = RING_RADIUS * self.object_scale
        angles = [pi / 2 + 2 * pi * i / len(self.tubes_dchi) for i in range(len(self.tubes_dchi))]
        return tuple((ring * cos(a), ring * sin(a), 0.0) for a in angles)

    @property
    def bubble_centre(self):
        """Centre (x, y, z) of the air bubble relative to the container's, mm."""
        z = self.container_height / 2 - BUBBLE_CLEARANCE - self.air_bubble
        return (self.container_radius / 2, 0.0, z)

    @property
    def bottle_radius(self):
        """Radius of the bottle beside the container, mm."""
        return BOTTLE_RADIUS * self.object_scale

    @property
    def bottle_height(self):
        """Height of the bottle beside the container, mm."""
        return BOTTLE_HEIGHT * self.object_scale

    @property
    def bottle_centre(self):
        """Centre (x, y, z) of the bottle relative to the container's, mm: in a corner."""
        away = self.container_radius + self.bottle_radius + BOTTLE_GAP * self.object_scale
        return (away * cos(pi / 4), away * sin(pi / 4), 0.0)

    @property
    def object_radius(self):
        """Radius of the object, the length of all that is smooth in space, mm."""
        return self.container_radius


def _mm(lengths):
    return ' x '.join(f'{length:g}' for length in lengths)


def check_number(name, value, above=-inf, at_least=-inf):
    """Raise ValueError unless ``value`` is finite and in its range."""
    if not (isfinite(value) and value > above and value >= at_least):
        limit = f' above {above}' if above > -inf else ''
        limit = f' of at least {at_least}' if at_least > -inf else limit
        raise ValueError(f'{name} must be a finite number{limit}, not {value}')


def check_echo_times(echo_times):
    """Raise ValueError unless the echo times ascend and can be seconds."""
    times = tuple(echo_times)
    if (
        not times
        or not all(isfinite(t) and t > 0 for t in times)
        or list(times) != sorted(set(times))
    ):
        raise ValueError(f'echo_times must be positive and ascending, in seconds: {times}')
    if times[-1] >= 1:
        raise ValueError(f'echo_times are in seconds; {times} looks like milliseconds')
