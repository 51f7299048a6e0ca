"""How a fine complex signal becomes measured echoes: what all phantoms share.

Planes of a grid finer than the voxels come in one by one; voxels, noise, magnitude and phase come
out. Nothing here knows what is measured.
"""

from typing import NamedTuple

import numpy as np
from scipy import fft

from precondqsm_bids.numerics.constants import hz_per_ppm


def scanner_affine(spec):
    """Return the (4, 4) affine: stored axes tilted about x, centre of the volume at the isocentre.

    Its third row, divided by the voxel size, is the scanner's z axis in voxel axes:
    ``(0, sin t, cos t)``, with t the tilt.

    Examples
    --------
    >>> from precondqsm_bids.phantom.spec import TubesSpec
    >>> print(scanner_affine(TubesSpec(b0_tilt=30.0)).round(3)[2, :3])
    [0.    0.5   0.866]
    """
    _, sin, cos = spec.b0_dir
    rotation = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.asarray(spec.voxel_size, float)
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(spec.matrix) - 1) / 2)
    if spec.slab.start:
        affine[:3, 3] += affine[:3, 2] * spec.slab.start
    return affine


def coil_magnitude(x, y, radius, shading):
    """Receive sensitivity ``1 + shading (rho^2 / R^2 - 1/2 + x / (2 R))``; 1 on average over R.

    Stronger towards the rim, as of a surface array, and towards one side.

    Parameters
    ----------
    x, y : array_like
        Relative to the axis of the object, mm; broadcast together.
    radius : float
        R, mm.
    shading : float
        Strength, from 0 for none to 1.
    """
    u, v = x / radius, y / radius
    return 1 + shading * (u**2 + v**2 - 0.5 + 0.5 * u)


def phase_offset(x, y, z, radius, height):
    """Phase at TE = 0, radians: smooth, spanning about 1 rad over an object of this size (mm)."""
    u, v = x / radius, y / radius
    w = 2 * z / height
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


def fit_shim(points, field, length):
    """Fit what a scanner's shim would cancel: the harmonics of a field.

    Parameters
    ----------
    points : (N, 3) ndarray
        Where the shim looks, mm.
    field : (N,) ndarray
        Field there, ppm.
    length : float
        That of `solid_harmonics`, mm.

    Returns
    -------
    (9,) ndarray
        Coefficients of `solid_harmonics`, ppm.
    """
    harmonics = solid_harmonics(*points.T, length)
    harmonics = np.stack(np.broadcast_arrays(*harmonics), axis=-1)
    return np.linalg.lstsq(harmonics, field, rcond=None)[0]


class Spins(NamedTuple):
    """What makes the signal of a plane of points, arrays of one shape."""

    amplitude: np.ndarray
    """Signal at TE = 0."""
    offset: np.ndarray
    """Phase there, radians; with a first axis more it has one of each echo."""
    field: np.ndarray
    """Relative field, ppm."""
    r2star: np.ndarray
    """R2*, 1/s."""

    def at(self, where):
        """Those of the points of a mask, (N,) each."""
        return Spins(*(values[where] for values in self))


def echo_planes(on, spins, echo_times, field_strength):
    """Complex signal of one plane of points at each echo.

    ``amplitude exp(-R2* TE) exp(i (offset + 2 pi gammabar B0 field TE))``

    Parameters
    ----------
    on : (X, Y) ndarray of bool
        Where there is signal.
    spins : Spins
        Of the points that are on, (N,) each.
    echo_times : tuple of float
        Echo times, s.
    field_strength : float
        B0, T.

    Yields
    ------
    (X, Y) ndarray of complex64
    """
    amplitude, phase, field, r2star = spins
    omega = 2 * np.pi * hz_per_ppm(field_strength) * field
    offsets = np.broadcast_to(phase, (len(echo_times), *np.shape(field)))
    for time, offset in zip(echo_times, offsets, strict=True):
        plane = np.zeros(on.shape, np.complex64)
        # the angle in double precision, its sine and cosine in single: they take the time
        angle = np.remainder(offset + omega * time, 2 * np.pi).astype(np.float32)
        size = (amplitude * np.exp(-r2star * time)).astype(np.float32)
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


class Readout:
    """Collects the fine planes of all echoes and makes them into voxels.

    Parameters
    ----------
    matrix : tuple of 3 int
        Voxels along each axis.
    factor : int
        Points per voxel and axis.
    n_echoes : int
        Number of echoes.
    sampling : {'box', 'kspace'}
        Mean over each voxel, or truncation in k-space.
    """

    def __init__(self, matrix, factor, n_echoes, sampling):
        nx, ny, nz = matrix
        self._factor = factor
        self._sample = {'box': box_samples, 'kspace': kspace_samples}[sampling]
        # voxels in the plane, still fine along z: the point spread along z needs the whole of it
        self._planes = np.zeros((n_echoes, nz * factor, nx, ny), np.complex64)

    def add(self, k, echoes):
        """Take the fine plane ``k`` of each echo, in order."""
        for echo, plane in enumerate(echoes):
            in_x = self._sample(plane, self._factor, 0)
            self._planes[echo, k] = self._sample(in_x, self._factor, 1)

    def voxels(self):
        """Return the signal, (X, Y, Z, E) ndarray of complex64."""
        n_echoes, n_fine, nx, ny = self._planes.shape
        signal = np.empty((nx, ny, n_fine // self._factor, n_echoes), np.complex64)
        for echo, stack in enumerate(self._planes):
            signal[..., echo] = self._sample(stack, self._factor, 0).transpose(1, 2, 0)
        return signal


def points_of_voxels(planes, factor):
    """Views of the fine planes of one slice, one for each point of a voxel.

    Parameters
    ----------
    planes : sequence of (X factor, Y factor) ndarray
        The ``factor`` planes of the slice.
    factor : int
        Points per voxel and axis.

    Returns
    -------
    list of (X, Y) ndarray
        ``factor**3`` views.
    """
    return [p[i::factor, j::factor] for p in planes for i in range(factor) for j in range(factor)]


def mean_of(views):
    """Mean of a list of arrays, float32."""
    return (sum(views, np.zeros(views[0].shape)) / len(views)).astype(np.float32)


def measure(signal, snr, seed):
    """Magnitude and phase of a signal with complex Gaussian noise.

    Parameters
    ----------
    signal : (X, Y, Z, E) ndarray of complex64
        Noise-free; the magnitude of the medium is 1 at TE -> 0.
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
