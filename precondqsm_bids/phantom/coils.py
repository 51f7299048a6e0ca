"""An array of receive loops around the object: sensitivities, combination, noise.

Each loop receives ``s_c S + n_c``. The scanner makes the magnitude from the root sum of squares
and the phase from a weighted complex sum, which leaves the phase of ``P = sum_c w_c s_c`` on every
echo. Sensitivities are normalised, ``sum_c |s_c|^2 = 1``: how strongly the array as a whole
receives is the coil's shading of the phantom, and stays the same.
"""

import numpy as np
from scipy import ndimage
from scipy.special import ellipe, ellipk

from precondqsm_bids.phantom.acquisition import coil_magnitude

PLACES = 8
"""Loops around the object, one ring of an array; 32 coils are four rings."""

DISTANCE, LOOP_RADIUS, RING_SPACING = 1.5, 0.75, 0.9
"""Distance of a loop's centre from the axis, its radius, and that of the rings from each other,
relative to the radius of the object: loops that overlap a little, two fingers off the skin."""

COIL_SEED = 4
"""Of the phases that cables and preamplifiers add to the loops."""

CABLE_PHASE = {'smooth': 0.2, 'lobed': 0.8, 'poles': 0.7}
"""Standard deviation of these phases, rad, in the combination of each `Scanner.receive`."""

AIR_SENSITIVITY, FADE = 0.2, 0.3
"""Where a prescan finds no signal its sensitivity fades to the first, over the second times the
radius of the object."""

DAMPING = 0.1
"""Factor on a background that is damped."""

BACKGROUND = 0.05
"""Signal of the first echo, relative to the medium, below which a voxel is background."""


def loop_field(x, y, z, radius):
    """Field of a circular current about z at the origin, up to a factor.

    Parameters
    ----------
    x, y, z : array_like
        Where, mm; broadcast together.
    radius : float
        Of the loop, mm.

    Returns
    -------
    across, along : ndarray
        Components away from the axis and along it. At the centre the latter is ``pi / radius``.

    References
    ----------
    Smythe WR. Static and Dynamic Electricity, 3rd ed., 1968, section 7.10.

    Examples
    --------
    >>> print(loop_field(0.0, 0.0, 0.0, 2.0)[1].round(4))
    1.5708
    """
    rho = np.maximum(np.hypot(x, y), 1e-6 * radius)
    near = np.maximum((radius - rho) ** 2 + z**2, 1e-6 * radius**2)
    far = (radius + rho) ** 2 + z**2
    k, e = ellipk(4 * radius * rho / far), ellipe(4 * radius * rho / far)
    along = (k + (radius**2 - rho**2 - z**2) / near * e) / np.sqrt(far)
    across = (-k + (radius**2 + rho**2 + z**2) / near * e) * z / (rho * np.sqrt(far))
    return across, along


def loops(n_coils):
    """Angle about z (rad) and height (radii of the object) of each loop, (C, 2) ndarray."""
    rings = n_coils // PLACES
    heights = (np.arange(rings) - (rings - 1) / 2) * RING_SPACING
    # every other ring is turned by half a loop
    return np.array(
        [
            (2 * np.pi * (place + 0.25 + 0.5 * (ring % 2)) / PLACES, height)
            for ring, height in enumerate(heights)
            for place in range(PLACES)
        ]
    )


def loop_sensitivity(x, y, z, angle, height, object_radius):
    """Complex sensitivity ``B_x - i B_y`` of a loop that faces the axis of the object.

    Parameters
    ----------
    x, y, z : array_like
        Where, mm from the centre of the object; broadcast together.
    angle, height : float
        Of the loop, as `loops` gives them.
    object_radius : float
        mm.

    Returns
    -------
    ndarray of complex64
    """
    cos, sin = np.cos(angle), np.sin(angle)
    depth = DISTANCE * object_radius - (cos * x + sin * y)
    side, up = cos * y - sin * x, z - height * object_radius
    across, along = loop_field(side, up, depth, LOOP_RADIUS * object_radius)
    off = np.maximum(np.hypot(side, up), 1e-6 * LOOP_RADIUS * object_radius)
    tangential = across * side / off
    # inwards is -(cos, sin), sideways (-sin, cos)
    b_x, b_y = -cos * along - sin * tangential, -sin * along + cos * tangential
    return (b_x - 1j * b_y).astype(np.complex64)


class Array:
    """The array around an object, on the points of a grid.

    Parameters
    ----------
    axes : tuple of 3 (N,) ndarray
        Coordinates of the points along each axis, mm from the centre of the object.
    object_radius : float
        mm.
    n_coils : int
        8 or 32.
    receive : {'none', 'smooth', 'lobed', 'poles'}
        How the coils are combined, see `precondqsm_bids.phantom.scanner_spec.Scanner`.

    Attributes
    ----------
    strength : (X, Y, Z) ndarray of float32
        ``sqrt(sum_c |s_c|^2)`` before the normalisation, 1 at the centre of the object.
    """

    def __init__(self, axes, object_radius, n_coils, receive):
        x, y, z = axes
        self._where = x[:, None, None], y[:, None], z
        self._radius, self._receive = object_radius, receive
        self._loops = loops(n_coils)
        squares = sum(np.abs(self._raw(loop)) ** 2 for loop in self._loops)
        centre = sum(
            np.abs(loop_sensitivity(0.0, 0.0, 0.0, *loop, object_radius)) ** 2
            for loop in self._loops
        )
        self._norm = np.sqrt(squares)
        self.strength = self._norm / np.sqrt(centre)
        rng = np.random.default_rng([COIL_SEED, n_coils])
        self._cable = CABLE_PHASE.get(receive, 0) * rng.standard_normal(len(self._loops))

    def _raw(self, loop):
        return loop_sensitivity(*self._where, *loop, self._radius)

    def coils(self):
        """Yield sensitivity and weight of each coil, (X, Y, Z) ndarray of complex64 each.

        The squared sizes of both sum to 1 at every point, so that the noise of the sum is that of
        a coil.
        """
        angle = self._loops[:, 0]
        window = 0.5 + 0.5 * np.cos(angle - angle[0])
        window = window / np.sqrt(np.sum(window**2))
        for c, loop in enumerate(self._loops):
            sensitivity = self._raw(loop) / self._norm
            # a loop's own phase at the centre is pi - angle
            aligned = -np.exp(1j * (angle[c] + self._cable[c])).astype(np.complex64)
            if self._receive == 'none':
                weight = sensitivity.conj()
            elif self._receive == 'smooth':
                weight = np.full_like(sensitivity, window[c] * aligned)
            elif self._receive == 'lobed':
                weight = np.abs(sensitivity) * aligned
            else:
                weight = np.abs(sensitivity) * np.exp(1j * self._cable[c]).astype(np.complex64)
            yield sensitivity, weight

    def combination(self):
        """``P = sum_c w_c s_c``, (X, Y, Z) ndarray of complex64: 1 at most, 0 at a pole."""
        return sum(sensitivity * weight for sensitivity, weight in self.coils())


def unit(values):
    """Complex numbers over their size; 1 where they are 0.

    >>> unit(np.array([3j, 0]))
    array([0.+1.j, 1.+0.j])
    """
    size = np.abs(values)
    return np.where(size > 0, values / np.where(size > 0, size, 1), 1)


def prescan(strength, body, voxel_size, object_radius):
    """Sensitivity that a prescan finds: that of the array, fading away where there is no signal.

    Parameters
    ----------
    strength : (X, Y, Z) ndarray
        True sensitivity.
    body : (X, Y, Z) ndarray of bool
        Where there is signal.
    voxel_size : (3,) array_like
    object_radius : float
        mm.

    Returns
    -------
    (X, Y, Z) ndarray of float32
    """
    distance = ndimage.distance_transform_edt(~body, sampling=voxel_size)
    fade = np.exp(-distance / (FADE * object_radius))
    return (strength * fade + AIR_SENSITIVITY * (1 - fade)).astype(np.float32)


def receive(signal, array, n_coils, snr, seed):
    """Add noise and combine the coils.

    Parameters
    ----------
    signal : (X, Y, Z, E) ndarray of complex64
        Noise-free combined signal: the phase of the combination is on it.
    array : Array
        The coils and their weights.
    n_coils : int
        1: one channel has the noise, and the phase loses what the combination cancels.
    snr : float
        1 / standard deviation of the noise in each part of each coil.
    seed : int or sequence of int
        Of `numpy.random.default_rng`.

    Returns
    -------
    magnitude, combined : (X, Y, Z, E) ndarray of float32 and complex64
        ``sqrt(sum_c |s_c S + n_c|^2)`` and ``sum_c w_c (s_c S + n_c)``.
    """
    rng = np.random.default_rng(seed)
    shape, n_echoes = signal.shape[:3], signal.shape[3]

    def noise():
        real, imag = rng.standard_normal((2, *shape), dtype=np.float32) / np.float32(snr)
        return real + 1j * imag

    total = array.combination()
    combined = np.zeros(signal.shape, np.complex64)
    magnitude = np.zeros(signal.shape, np.float32)
    if n_coils == 1:
        for e in range(n_echoes):
            one = noise()
            magnitude[..., e] = np.abs(signal[..., e] + one)
            combined[..., e] = signal[..., e] * np.abs(total) + one
        return magnitude, combined
    back = unit(total).conj()
    for sensitivity, weight in array.coils():
        for e in range(n_echoes):
            one = sensitivity * (back * signal[..., e]) + noise()
            magnitude[..., e] += np.abs(one) ** 2
            combined[..., e] += weight * one
    return np.sqrt(magnitude, out=magnitude), combined


def shading(spec, axes):
    """The coil's shading of the phantom in each voxel, (X, Y, 1) ndarray."""
    x, y = axes[0][:, None], axes[1][None]
    return coil_magnitude(x, y, spec.object_radius, spec.coil_shading)[..., None]
