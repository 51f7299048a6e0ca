"""What a scanner and a living body do to the signal, each as a function of its own.

On the fine planes, before they become voxels: fat, the frequency of white matter, flow and varying
relaxivity. On the voxels of each echo: phase of eddy currents and alternating readouts, ghosts of
breathing, partial Fourier. Then the coils (`precondqsm_bids.phantom.coils`) with their noise, the
background, and the integers that are stored. Coordinates are mm from the centre of the field of
view, in voxel axes; the readout is along the first axis, the phase is encoded along the second.

Left out are the displacement of water off resonance (0.1 voxels for 1 ppm at 3 T), inflow of fresh
spins, bulk motion, and effects of the receive phase and the coils on partial Fourier and ghosts:
sensitivities are smooth, so that each coil is taken to see the same lines.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy import fft

from precondqsm_bids.numerics.constants import hz_per_ppm
from precondqsm_bids.phantom import coils
from precondqsm_bids.phantom.acquisition import echo_planes, measure
from precondqsm_bids.phantom.head_spec import HeadSpec
from precondqsm_bids.phantom.scanner_spec import PIXEL_BANDWIDTH
from precondqsm_bids.phantom.spec import TubesSpec

EDDY_SEED = 20210527
"""Of the pattern of eddy currents: it belongs to the scanner, whatever the noise."""

GHOST_SHIFT = 0.3
"""Displacement of the ghosts along the phase encoding, share of the field of view."""

TAPER = 1 / 16
"""Share of the phase-encoding lines over which partial Fourier fades out at its cut."""

FLOW_GRADIENT = 0.02
"""Gradient of the field along the flow, ppm/mm; of the order of that near air spaces and veins."""

MAGNITUDE_LEVELS = 100
"""Stored magnitude of the medium where it is a small integer."""

PHASE_CODES = 4096
"""Codes in a turn where the phase is stored as such."""


# -- on the fine planes ------------------------------------------------------------------------


class Extras(NamedTuple):
    """What the spins of one fine plane do beside precessing in the field; None where nothing."""

    frequency: np.ndarray | None = None
    """(X, Y) ndarray: shift that is no field of dipoles, ppm."""
    fat: np.ndarray | None = None
    """(X, Y) ndarray of bool: where the signal is that of fat."""
    velocity: np.ndarray | None = None
    """(3, X, Y) ndarray: velocity of what flows, mm/s."""


def plane_signal(spec, on, spins, extras=None):
    """Complex signal of one fine plane at each echo, with what the spins do beside.

    Parameters
    ----------
    spec : TubesSpec or HeadSpec
        Protocol and scanner.
    on : (X, Y) ndarray of bool
        Where there is signal.
    spins : Spins
        Of the whole plane, (X, Y) each.
    extras : Extras, optional
        What is not ideal.

    Yields
    ------
    (X, Y) ndarray of complex64
    """
    frequency, fat, velocity = extras or Extras()
    protocol = spec.echo_times, spec.field_strength
    if frequency is not None:
        spins = spins._replace(field=spins.field + frequency)
    water = on if fat is None else on & ~fat
    of_water = spins.at(water)
    if velocity is not None:
        turn = flow_phase(spec, velocity[:, water])
        of_water = of_water._replace(offset=of_water.offset + turn)
    planes = echo_planes(water, of_water, *protocol)
    if fat is None:
        yield from planes
        return
    fat = fat & on
    of_fat = spins.at(fat)
    of_fat = of_fat._replace(field=of_fat.field + spec.scanner.fat)
    fat_planes = echo_planes(fat, of_fat, *protocol)
    shift = fat_displacement(spec) * spec.supersampling
    pairs = zip(planes, fat_planes, readout_polarity(spec), strict=True)
    for of_water, of_fat, polarity in pairs:
        yield of_water + displaced(of_fat, polarity * shift)


def readout_polarity(spec):
    """+1, or -1 of the even echoes (second, fourth ...) if the readout alternates, (E,)."""
    polarity = np.ones(len(spec.echo_times))
    if spec.scanner.bipolar:
        polarity[1::2] = -1
    return polarity


def fat_displacement(spec):
    """Displacement of fat along the readout, voxels: its frequency over that of a pixel.

    >>> from precondqsm_bids.phantom.scanner_spec import scanner
    >>> from precondqsm_bids.phantom.spec import TubesSpec
    >>> print(f"{fat_displacement(TubesSpec(scanner=scanner('fat'))):.3f}")
    -0.394
    """
    return spec.scanner.fat * hz_per_ppm(spec.field_strength) / PIXEL_BANDWIDTH


def displaced(plane, points):
    """Move a plane along its first axis by points, linear in between; 0 comes in.

    >>> displaced(np.array([[0.0], [1], [0], [0]]), 1.25).ravel()
    array([0.  , 0.  , 0.75, 0.25])
    """
    whole = int(np.floor(points))
    part = plane.real.dtype.type(points - whole)
    moved = np.zeros_like(plane)
    for shift, weight in ((whole, 1 - part), (whole + 1, part)):
        if weight and abs(shift) < len(plane):
            to = slice(max(shift, 0), len(plane) + min(shift, 0))
            come = slice(max(-shift, 0), len(plane) + min(-shift, 0))
            moved[to] += weight * plane[come]
    return moved


def flow_phase(spec, velocity):
    r"""Phase of moving spins at each echo, rad.

    ``2 pi sum_a v_a m_a - pi f |v| TE^2``: readout (a = x) and slab encoding (z) begin with a lobe
    that is not compensated, of first moment ``m_a = 1 / (4 d BW)`` with d the voxel size and BW
    the bandwidth of a pixel. Symmetric lobes between the echoes of one polarity add none; of
    alternating readouts that of the even echoes is none (even-echo rephasing). The square of the
    echo time comes from motion along a gradient of the field, f (`FLOW_GRADIENT`).

    Parameters
    ----------
    spec : TubesSpec or HeadSpec
        Protocol.
    velocity : (3, N) ndarray
        mm/s.

    Returns
    -------
    (E, N) ndarray

    References
    ----------
    Xu B et al. MRM 2014;72:438.
    """
    d_x, _, d_z = spec.voxel_size
    moment_x, moment_z = 1 / (4 * d_x * PIXEL_BANDWIDTH), 1 / (4 * d_z * PIXEL_BANDWIDTH)
    speed = np.sqrt(np.sum(velocity**2, axis=0))
    rate = np.pi * hz_per_ppm(spec.field_strength) * FLOW_GRADIENT * speed
    rephased = readout_polarity(spec) < 0
    return np.stack(
        [
            2 * np.pi * (moment_x * velocity[0] * (not even) + moment_z * velocity[2])
            - rate * time**2
            for time, even in zip(spec.echo_times, rephased, strict=True)
        ]
    )


def relaxivity_factor(spec, x, y, z):
    """Factor on R2', ``1 + relaxivity p``: p a sum of two plane waves, from -1 to 1.

    The waves are 2 and 3 radii long: an object of one radius sees the whole range, of mean near 1.
    """
    u, v, w = (np.asarray(a) / spec.object_radius for a in (x, y, z))
    first = np.sin(np.pi * (0.7 * u + 0.5 * v + 0.51 * w) + 0.3)
    second = np.sin(2 / 3 * np.pi * (-0.5 * u + 0.75 * v - 0.43 * w) + 3.3)
    return 1 + spec.scanner.relaxivity * (0.6 * first + 0.4 * second)


# -- on the voxels -----------------------------------------------------------------------------


def voxel_axes(spec):
    """Coordinates of the voxels along each axis, mm from the centre of the field of view."""
    x, y, z = (
        (np.arange(n) - (n - 1) / 2) * size
        for n, size in zip(spec.matrix, spec.voxel_size, strict=True)
    )
    return x, y, z[spec.slab]


class EchoPhase(NamedTuple):
    """True phase that each echo has of its own."""

    constant: np.ndarray
    """(E,) ndarray, rad."""
    gradient: np.ndarray
    """(E, 3) ndarray, rad/mm along each axis of the voxels, from the centre of the volume."""


def echo_phase(spec):
    """Constants and gradients of phase of each echo: eddy currents and alternating readouts.

    Half of the power of the eddy currents alternates from echo to echo, the other half is drawn
    for each echo. The phase error of the first echo is not a gradient and not in here.

    Returns
    -------
    EchoPhase
    """
    n_echoes = len(spec.echo_times)
    radius, settings = spec.object_radius, spec.scanner
    rng = np.random.default_rng([EDDY_SEED, n_echoes])
    alternating = np.where(np.arange(n_echoes) % 2, 1, -1)[:, None] * rng.choice([-1, 1], 4)
    pattern = alternating + rng.standard_normal((n_echoes, 4))
    pattern *= settings.eddy_currents / np.sqrt(np.mean(pattern**2, axis=0))
    even = readout_polarity(spec) < 0
    pattern[even, :2] += settings.bipolar
    return EchoPhase(pattern[:, 0], pattern[:, 1:] / radius)


def first_echo_phase(spec):
    """Phase error of the first echo, ``size 2^(-r^2 / R^2)`` rad, (X, Y, Z) ndarray."""
    x, y, z = voxel_axes(spec)
    r2 = x[:, None, None] ** 2 + y[:, None] ** 2 + z**2
    return spec.scanner.first_echo * 2.0 ** (-r2 / spec.object_radius**2)


def add_echo_phase(signal, spec):
    """Multiply each echo by the phase of its own, in place.

    Parameters
    ----------
    signal : (X, Y, Z, E) ndarray of complex64
        Echoes.
    spec : TubesSpec or HeadSpec
        Scanner and geometry.
    """
    settings = spec.scanner
    if settings.eddy_currents or settings.bipolar:
        x, y, z = voxel_axes(spec)
        for e, (constant, (g_x, g_y, g_z)) in enumerate(zip(*echo_phase(spec), strict=True)):
            phase = constant + (g_x * x)[:, None, None] + (g_y * y)[:, None] + g_z * z
            signal[..., e] *= np.exp(1j * phase).astype(np.complex64)
    if settings.first_echo:
        signal[..., 0] *= np.exp(1j * first_echo_phase(spec)).astype(np.complex64)


def line_weights(image, weights):
    """Multiply the phase-encoding lines of an image, from the most negative frequency up.

    Parameters
    ----------
    image : (X, Y, Z) ndarray of complex64
    weights : (Y,) ndarray
        Real or complex, of each line in the order of k-space: line ``Y // 2`` is the centre.

    Returns
    -------
    (X, Y, Z) ndarray of complex64
    """
    lines = fft.fft(image, axis=1)
    lines *= fft.ifftshift(weights).astype(np.complex64)[:, None]
    return fft.ifft(lines, axis=1, overwrite_x=True)


def breathing(spec, echo_time):
    """Factor on each phase-encoding line, ``exp(2 pi i f TE sin(2 pi s n + 1))``, (Y,) ndarray.

    f is the peak deviation of the frequency, n the number of the line; ghosts lie s
    (`GHOST_SHIFT`) of the field of view away, and their size grows with the echo time.
    """
    peak = spec.scanner.ghost * hz_per_ppm(spec.field_strength)
    cycle = np.sin(2 * np.pi * GHOST_SHIFT * np.arange(spec.matrix[1]) + 1)
    return np.exp(2j * np.pi * peak * echo_time * cycle)


def partial_fourier(number, share):
    """Weight of each phase-encoding line, (Y,) ndarray: the first are missing, filled with zeros.

    The cut is softened over `TAPER` of all lines by a Hann flank.

    >>> print(partial_fourier(8, 0.75).round(2))
    [0.  0.  0.5 1.  1.  1.  1.  1. ]
    """
    missing = number - round(share * number)
    flank = max(round(TAPER * number), 1)
    if not missing:
        return np.ones(number)
    position = np.clip((np.arange(number) - missing + 1) / (flank + 1), 0, 1)
    return np.sin(np.pi / 2 * position) ** 2


def acquire(signal, spec):
    """Voxels of an ideal scanner -> noise-free voxels of this one, before its coils' noise.

    Phase of each echo, ghosts and partial Fourier, then the phase of the coils' combination.

    Parameters
    ----------
    signal : (X, Y, Z, E) ndarray of complex64
        May be changed.
    spec : TubesSpec or HeadSpec
        What the scanner does.

    Returns
    -------
    (X, Y, Z, E) ndarray of complex64
    """
    settings = spec.scanner
    add_echo_phase(signal, spec)
    if settings.ghost or settings.partial_fourier < 1:
        lines = partial_fourier(spec.matrix[1], settings.partial_fourier)
        for e, time in enumerate(spec.echo_times):
            signal[..., e] = line_weights(signal[..., e], lines * breathing(spec, time))
    if settings.receive != 'none':
        signal *= coils.unit(receive_array(spec).combination())[..., None]
    return signal


def receive_array(spec):
    """The coils around the object, `precondqsm_bids.phantom.coils.Array` on the voxels.

    The angle of its ``combination()`` is the receive phase of all echoes.
    """
    settings = spec.scanner
    n_coils = max(settings.coils, coils.PLACES)
    return coils.Array(voxel_axes(spec), spec.object_radius, n_coils, settings.receive)


@dataclass(frozen=True)
class Phantom:
    """What a scanner would measure of an object, and what is true.

    Attributes
    ----------
    spec : TubesSpec or HeadSpec
        What was simulated.
    magnitude, phase : (X, Y, Z, E) ndarray of float32
        Measured echoes, with noise. The magnitude of the medium (agar, white matter) is 1 at
        TE -> 0, averaged over the coil's shading. Phase in radians, in [-pi, pi].
    signal : (X, Y, Z, E) ndarray of complex64
        The same echoes without noise.
    affine : (4, 4) ndarray
        From voxels to scanner coordinates, mm: B0 is the scanner's z axis.
    echo_times : (E,) tuple of float
        Echo times, s.
    chi : (X, Y, Z) ndarray of float32
        Voxel mean of the true susceptibility, ppm: relative to the medium (a head: to water)
        inside the object, so that that of air in it is the step from water to air, and 0 in the
        air outside.
    field : (X, Y, Z) ndarray of float32
        Voxel mean of the true relative field, ppm, shim included.
    r2star : (X, Y, Z) ndarray of float32
        Voxel mean of the true R2* of what gives signal, 1/s, 0 where there is none.
    density : (X, Y, Z) ndarray of float32
        Share of each voxel that gives signal.
    labels : (X, Y, Z) ndarray of int16
        Material of each voxel, 0 for the air outside.
    label_names : dict of int to str
        Names of the materials.
    label_dchi : dict of int to float
        Their nominal susceptibility, ppm.
    """

    spec: TubesSpec | HeadSpec
    magnitude: np.ndarray
    phase: np.ndarray
    signal: np.ndarray
    affine: np.ndarray
    echo_times: tuple[float, ...]
    chi: np.ndarray
    field: np.ndarray
    r2star: np.ndarray
    density: np.ndarray
    labels: np.ndarray
    label_names: dict[int, str]
    label_dchi: dict[int, float]

    def remeasure(self, seed):
        """Return the same phantom with noise of another seed."""
        magnitude, phase = measure_with(self.spec, self.signal, seed)
        return replace(self, magnitude=magnitude, phase=phase)


def measure_with(spec, signal, seed):
    """Magnitude and phase as the scanner of a phantom gives them.

    Parameters
    ----------
    spec : TubesSpec or HeadSpec
        SNR and scanner.
    signal : (X, Y, Z, E) ndarray of complex64
        Noise-free, as `acquire` returns it.
    seed : int or sequence of int
        Of the noise.

    Returns
    -------
    magnitude, phase : (X, Y, Z, E) ndarray of float32
        As in `precondqsm_bids.phantom.acquisition.measure`.
    """
    settings = spec.scanner
    plain = settings.coils == 1 and settings.receive == 'none'
    if plain and settings.background != 'normalised':
        magnitude, phase = measure(signal, spec.snr, seed)
    else:
        magnitude, phase = _combine(spec, signal, seed)
    if settings.background in ('zero', 'damped'):
        air = ~_body(signal)
        magnitude[air] *= 0 if settings.background == 'zero' else coils.DAMPING
        if settings.background == 'zero':
            phase[air] = 0
    if settings.integers:
        magnitude = np.rint(magnitude * MAGNITUDE_LEVELS) / np.float32(MAGNITUDE_LEVELS)
        phase = phase_of_codes(phase_codes(phase))
    return magnitude, phase


def _combine(spec, signal, seed):
    settings = spec.scanner
    array = receive_array(spec)
    if settings.background == 'normalised':
        received = (array.strength / coils.shading(spec, voxel_axes(spec))).astype(np.float32)
        body = _body(signal)
        signal = signal * received[..., None]
    magnitude, combined = coils.receive(signal, array, settings.coils, spec.snr, seed)
    if settings.background == 'normalised':
        found = coils.prescan(array.strength, body, spec.voxel_size, spec.object_radius)
        magnitude /= found[..., None]
    return magnitude, np.angle(combined)


def _body(signal):
    return np.abs(signal[..., 0]) > coils.BACKGROUND


def phase_codes(phase):
    """Radians in [-pi, pi] -> codes from 0 to 4095, 2048 for 0.

    >>> phase_codes(np.float32([-np.pi, 0, np.pi]))
    array([   0, 2048,    0])
    """
    return np.rint((phase / (2 * np.pi) + 0.5) * PHASE_CODES).astype(int) % PHASE_CODES


def phase_of_codes(codes):
    """Codes from 0 to 4095 -> radians, float32."""
    return ((codes / PHASE_CODES - 0.5) * 2 * np.pi).astype(np.float32)
