"""The tubes phantom: fields in closed form, a supersampled multi-echo signal, and the truth."""

from dataclasses import dataclass, replace
from functools import reduce
from typing import NamedTuple

import numpy as np
from scipy import fft

from precondqsm_bids.numerics.constants import AIR_CHI, GAMMA, WATER_CHI, hz_per_ppm
from precondqsm_bids.phantom.fields import (
    CylinderOnGrid,
    CylinderTable,
    cylinder_field,
    sphere_field,
)
from precondqsm_bids.phantom.spec import TubesSpec


@dataclass(frozen=True)
class TubesPhantom:
    """What a scanner would measure of the phantom, and what is true.

    Attributes
    ----------
    spec : TubesSpec
        What was simulated.
    magnitude, phase : (X, Y, Z, E) ndarray of float32
        Measured echoes, with noise. The agar's magnitude is 1 at TE -> 0, averaged over the
        coil's shading. Phase in radians, in [-pi, pi].
    signal : (X, Y, Z, E) ndarray of complex64
        The same echoes without noise.
    affine : (4, 4) ndarray
        From voxels to scanner coordinates, mm: B0 is the scanner's z axis.
    echo_times : (E,) tuple of float
        Echo times, s.
    chi : (X, Y, Z) ndarray of float32
        Voxel mean of the true susceptibility, ppm: relative to the agar inside the container
        (so that of an air bubble is the step from water to air), 0 in the air outside.
    field : (X, Y, Z) ndarray of float32
        Voxel mean of the true relative field, ppm, shim included.
    r2star : (X, Y, Z) ndarray of float32
        Voxel mean of the true R2*, 1/s, 0 where there is no signal.
    density : (X, Y, Z) ndarray of float32
        Share of each voxel that gives signal.
    labels : (X, Y, Z) ndarray of int16
        1 ... n for the tubes, n + 1 for the agar, in voxels that lie in it with all their
        points; 0 elsewhere, in voxels on an edge too.
    label_names : dict of int to str
        'tube1' ... and 'agar'.
    label_dchi : dict of int to float
        True susceptibility of each label relative to the agar, ppm.
    """

    spec: TubesSpec
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
        magnitude, phase = measure(self.signal, self.spec.snr, seed)
        return replace(self, magnitude=magnitude, phase=phase)


class _Truth(NamedTuple):
    """Voxel means of one slice, and the share of each material in it."""

    chi: np.ndarray
    field: np.ndarray
    r2star: np.ndarray
    density: np.ndarray
    labels: np.ndarray


def r2prime(dchi, field_strength, scale=1.0):
    """R2' of randomly placed small magnetised spheres, in the static dephasing regime.

    ``R2' = scale 2 pi gamma B0 |dchi| / (9 sqrt(3))``

    Parameters
    ----------
    dchi : array_like
        Bulk susceptibility relative to the medium, ppm.
    field_strength : float
        B0, T.
    scale : float
        Relative to theory.

    Returns
    -------
    ndarray
        R2', 1/s.

    References
    ----------
    Yablonskiy DA, Haacke EM. MRM 1994;32:749.

    Examples
    --------
    >>> print(f'{r2prime(1.0, 3.0):.1f}')
    323.5
    """
    rate = 2 * np.pi * GAMMA * field_strength * np.abs(dchi) * 1e-6
    return scale * rate / (9 * np.sqrt(3))


def scanner_affine(spec):
    """Return the (4, 4) affine: stored axes tilted about x, centre of the volume at the isocentre.

    Its third row, divided by the voxel size, is the scanner's z axis in voxel axes:
    ``(0, sin t, cos t)``, with t the tilt.

    Examples
    --------
    >>> print(scanner_affine(TubesSpec(b0_tilt=30.0)).round(3)[2, :3])
    [0.    0.5   0.866]
    """
    _, sin, cos = spec.b0_dir
    rotation = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.asarray(spec.voxel_size, float)
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(spec.matrix) - 1) / 2)
    return affine


def coil_magnitude(x, y, spec):
    """Receive sensitivity ``1 + shading (rho^2 / R^2 - 1/2 + x / (2 R))``; 1 on average over R.

    Stronger towards the rim, as of a surface array, and towards one side.
    """
    u, v = x / spec.container_radius, y / spec.container_radius
    return 1 + spec.coil_shading * (u**2 + v**2 - 0.5 + 0.5 * u)


def phase_offset(x, y, z, spec):
    """Phase at TE = 0, radians: smooth, spanning about 1 rad over the container."""
    u, v = x / spec.container_radius, y / spec.container_radius
    w = 2 * z / spec.container_height
    return 0.4 + 0.3 * u + 0.25 * v**2 - 0.15 * w


def solid_harmonics(x, y, z, length):
    """Solid harmonics up to second order, the terms of a scanner's shim.

    Parameters
    ----------
    x, y, z : array_like
        Coordinates, mm; broadcast together.
    length : float
        Length that makes them dimensionless, mm.

    Returns
    -------
    tuple of 9 array_like
        1, x, y, z, xy, yz, xz, x^2 - y^2 and 2 z^2 - x^2 - y^2, not yet broadcast.
    """
    x, y, z = x / length, y / length, z / length
    return 1.0, x, y, z, x * y, y * z, x * z, x**2 - y**2, 2 * z**2 - x**2 - y**2


def total_field(points, spec):
    """Relative field before the shim, closed form at any points (exact, but slow).

    Parameters
    ----------
    points : (..., 3) array_like
        Relative to the container's centre, mm, in voxel axes.
    spec : TubesSpec
        The phantom.

    Returns
    -------
    (...) ndarray
        Field, ppm.
    """
    points = np.asarray(points, float)
    field = (WATER_CHI - AIR_CHI) * cylinder_field(
        points, spec.container_radius, spec.container_height, spec.b0_dir
    )
    for centre, dchi in zip(spec.tube_centres, spec.tubes_dchi, strict=True):
        field += dchi * cylinder_field(
            points - centre, spec.tube_radius, spec.tube_height, spec.b0_dir
        )
    return field + _bubble_field(points, spec)


def _bubble_field(points, spec):
    if spec.air_bubble == 0:
        return 0.0
    relative = points - np.asarray(spec.bubble_centre)
    return (AIR_CHI - WATER_CHI) * sphere_field(relative, spec.air_bubble, spec.b0_dir)


def shim(spec):
    """Fit what a scanner's shim would cancel: the harmonics of the field inside the agar.

    Returns
    -------
    (9,) ndarray
        Coefficients of `solid_harmonics` (length: the container's radius), ppm.
    """
    step = spec.container_radius / 16
    across = np.arange(-15.5, 16) * step
    half = int(spec.container_height / 2 / step)
    along = np.arange(-half + 0.5, half) * step
    points = np.stack(np.meshgrid(across, across, along, indexing='ij'), axis=-1).reshape(-1, 3)
    points = points[np.hypot(points[:, 0], points[:, 1]) < spec.container_radius]
    for centre in spec.tube_centres:
        across_tube = np.hypot(points[:, 0] - centre[0], points[:, 1] - centre[1])
        tube = (across_tube <= spec.tube_radius) & (np.abs(points[:, 2]) <= spec.tube_height / 2)
        points = points[~tube]
    bubble = np.linalg.norm(points - np.asarray(spec.bubble_centre), axis=1) <= spec.air_bubble
    points = points[~bubble]
    harmonics = solid_harmonics(*points.T, spec.container_radius)
    harmonics = np.stack(np.broadcast_arrays(*harmonics), axis=-1)
    return np.linalg.lstsq(harmonics, total_field(points, spec), rcond=None)[0]


class _Object:
    """The phantom on the planes of the fine grid."""

    def __init__(self, spec):
        self.spec = spec
        self.x, self.y, self.z = (
            (np.arange(n * spec.supersampling) - (n * spec.supersampling - 1) / 2)
            * (size / spec.supersampling)
            for n, size in zip(spec.matrix, spec.voxel_size, strict=True)
        )
        extent = 2 * np.hypot(self.x[-1], self.y[-1])
        table = CylinderTable(self.z, spec.container_radius, spec.container_height, extent)
        self.container = CylinderOnGrid(table, self.x, self.y, spec.b0_dir)
        table = CylinderTable(self.z, spec.tube_radius, spec.tube_height, extent)
        self.tubes = [
            CylinderOnGrid(table, self.x - cx, self.y - cy, spec.b0_dir)
            for cx, cy, _ in spec.tube_centres
        ]
        self._shim = shim(spec)
        self._coil = coil_magnitude(self.x[:, None], self.y[None], spec)
        self._r2prime = r2prime(spec.tubes_dchi, spec.field_strength, spec.relaxivity_scale)

    def plane(self, k):
        """Materials (-1 air outside, 0 agar, 1 ... tubes, n + 1 bubble), chi, field and R2*."""
        spec = self.spec
        n_tubes = len(self.tubes)
        material = np.where(self.container.inside(k), 0, -1).astype(np.int16)
        field = (WATER_CHI - AIR_CHI) * self.container.field(k)
        for i, (tube, dchi) in enumerate(zip(self.tubes, spec.tubes_dchi, strict=True), start=1):
            material[tube.inside(k)] = i
            if dchi:
                field += dchi * tube.field(k)
        terms = solid_harmonics(self.x[:, None], self.y[None], self.z[k], spec.container_radius)
        for coefficient, term in zip(self._shim, terms, strict=True):
            field -= coefficient * term
        if spec.air_bubble:
            points = self.points(k)
            field += _bubble_field(points, spec)
            distance = np.linalg.norm(points - np.asarray(spec.bubble_centre), axis=-1)
            material[distance <= spec.air_bubble] = n_tubes + 1
        # the last entry of each table serves material -1, the air outside
        chi = np.array([0.0, *spec.tubes_dchi, AIR_CHI - WATER_CHI, 0.0])[material]
        r2star = np.array([spec.r2, *(spec.r2 + self._r2prime), 0.0, 0.0])[material]
        return material, chi, field, r2star

    def points(self, k):
        """Coordinates of plane ``k``, (X, Y, 3), mm."""
        grid = np.broadcast_arrays(self.x[:, None], self.y[None], self.z[k])
        return np.stack(grid, axis=-1)

    def signal(self, k, material, field, r2star):
        """Complex signal of plane ``k`` at each echo, yields (X, Y) complex64."""
        spec = self.spec
        on = (material >= 0) & (material <= len(self.tubes))
        amplitude = self._coil[on]
        offset = phase_offset(self.x[:, None], self.y[None], self.z[k], spec)[on]
        omega = 2 * np.pi * hz_per_ppm(spec.field_strength) * field[on]
        for time in spec.echo_times:
            plane = np.zeros(on.shape, np.complex64)
            # the angle in double precision, its sine and cosine in single: they take the time
            angle = np.remainder(offset + omega * time, 2 * np.pi).astype(np.float32)
            size = (amplitude * np.exp(-r2star[on] * time)).astype(np.float32)
            plane.real[on] = size * np.cos(angle)
            plane.imag[on] = size * np.sin(angle)
            yield plane


def box_samples(fine, factor, axis):
    """Mean over each ``factor`` points along ``axis``."""
    fine = np.moveaxis(fine, axis, 0)
    coarse = sum(fine[i::factor] for i in range(factor)) / np.float32(factor)
    return np.moveaxis(coarse, 0, axis)


def kspace_samples(fine, factor, axis):
    """Fourier transform along ``axis``, keep the central part, transform back.

    Voxel centres lie ``(factor - 1) / 2`` points off the points of the fine grid: the linear
    phase in k-space accounts for it.
    """
    fine = np.moveaxis(fine, axis, -1)
    n = fine.shape[-1] // factor
    k = fft.ifftshift(np.arange(-(n // 2), n - n // 2))
    ramp = np.exp(1j * np.pi * k * (factor - 1) / (n * factor)) / factor
    coarse = fft.ifft(fft.fft(fine)[..., k] * ramp.astype(np.complex64))
    return np.moveaxis(coarse, -1, axis)


def measure(signal, snr, seed):
    """Magnitude and phase of a signal with complex Gaussian noise.

    Parameters
    ----------
    signal : (X, Y, Z, E) ndarray of complex64
        Noise-free; the agar's magnitude is 1 at TE -> 0.
    snr : float
        1 / standard deviation of the noise in each of the real and imaginary parts.
    seed : int or sequence of int
        Of `numpy.random.default_rng`.

    Returns
    -------
    magnitude, phase : (X, Y, Z, E) ndarray of float32
        Phase in radians.
    """
    rng = np.random.default_rng(seed)
    magnitude = np.empty(signal.shape, np.float32)
    phase = np.empty(signal.shape, np.float32)
    for echo in range(signal.shape[-1]):
        noise = rng.standard_normal((2, *signal.shape[:3]), dtype=np.float32) / np.float32(snr)
        real, imag = signal[..., echo].real + noise[0], signal[..., echo].imag + noise[1]
        magnitude[..., echo] = np.hypot(real, imag)
        phase[..., echo] = np.arctan2(imag, real)
    return magnitude, phase


def simulate_tubes(spec=None, *, seed=0):
    """Simulate the tubes phantom.

    At every point of a grid ``supersampling`` times finer than the voxels the signal is

    ``coil exp(-R2* TE) exp(i (phi0 + 2 pi gammabar B0 field TE))``,

    which is then averaged over the voxel or cut off in k-space. The field is that of container,
    tubes and bubble in air, less the solid harmonics up to second order which a shim would
    cancel. T1 is left out: the flip angle and TR of the protocol have no effect.

    Parameters
    ----------
    spec : TubesSpec, optional
        What to simulate; the default is the published phantom.
    seed : int or sequence of int
        Seed of the noise.

    Returns
    -------
    TubesPhantom
        Measured echoes and truth.
    """
    spec = spec or TubesSpec()
    body = _Object(spec)
    factor = spec.supersampling
    nx, ny, nz = spec.matrix
    n_tubes = len(spec.tubes_dchi)
    sample = {'box': box_samples, 'kspace': kspace_samples}[spec.sampling]
    # voxels in the plane, still fine along z: the point spread along z needs the whole of it
    planes = np.zeros((len(spec.echo_times), nz * factor, nx, ny), np.complex64)
    slices = []
    for k in range(nz):
        fine = [body.plane(i) for i in range(k * factor, (k + 1) * factor)]
        slices.append(_reduce(fine, factor, n_tubes))
        for i, (material, _, field, r2star) in enumerate(fine, start=k * factor):
            if (material >= 0).any():
                for echo, plane in enumerate(body.signal(i, material, field, r2star)):
                    planes[echo, i] = sample(sample(plane, factor, 0), factor, 1)
    signal = np.empty((nx, ny, nz, len(spec.echo_times)), np.complex64)
    for echo, stack in enumerate(planes):
        signal[..., echo] = sample(stack, factor, 0).transpose(1, 2, 0)
    truth = _Truth(*(np.stack(maps, axis=-1) for maps in zip(*slices, strict=True)))
    magnitude, phase = measure(signal, spec.snr, seed)
    names = {i: f'tube{i}' for i in range(1, n_tubes + 1)} | {n_tubes + 1: 'agar'}
    dchi = dict(enumerate((*spec.tubes_dchi, 0.0), start=1))
    return TubesPhantom(
        spec=spec,
        magnitude=magnitude,
        phase=phase,
        signal=signal,
        affine=scanner_affine(spec),
        echo_times=tuple(spec.echo_times),
        **truth._asdict(),
        label_names=names,
        label_dchi=dchi,
    )


def _reduce(planes, factor, n_tubes):
    """Voxel means, and labels of the voxels of one material, from the fine planes of a slice."""
    material, chi, field, r2star = (
        [p[i::factor, j::factor] for p in stack for i in range(factor) for j in range(factor)]
        for stack in zip(*planes, strict=True)
    )
    lowest, highest = reduce(np.minimum, material), reduce(np.maximum, material)
    pure = (lowest == highest) & (lowest >= 0) & (lowest <= n_tubes)
    label = np.where(lowest == 0, n_tubes + 1, lowest)
    return _Truth(
        chi=_mean(chi),
        field=_mean(field),
        r2star=_mean(r2star),
        density=_mean([(m >= 0) & (m <= n_tubes) for m in material]),
        labels=np.where(pure, label, 0).astype(np.int16),
    )


def _mean(views):
    return (sum(views, np.zeros(views[0].shape)) / len(views)).astype(np.float32)
