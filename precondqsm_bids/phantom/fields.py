"""Fields of magnetised spheres and finite cylinders in closed form, Lorentz-corrected.

Nothing here goes through a dipole kernel or a Fourier transform, so that a solver which does is
validated against physics that it does not share. The relative field of a body of susceptibility
chi is ``dB / B0 = chi (b_i b_j d_i d_j phi + [inside] / 3)`` with b the direction of B0 and phi
the Newtonian potential of the body, ``laplacian phi = -1`` inside. It is linear in chi, so bodies
inside bodies add up.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import elliprd, elliprf, elliprj

GRADING = 0.02
"""Spacing of the radial nodes of `CylinderOnGrid` over their distance to the rim."""


class Derivatives(NamedTuple):
    """Second derivatives of the potential of a cylinder, dimensionless, and where it is."""

    zz: np.ndarray
    rho_z: np.ndarray
    rho_over_rho: np.ndarray
    inside: np.ndarray


def cylinder_derivatives(rho, z, radius, height):
    r"""Second derivatives of the Newtonian potential of a finite cylinder about z.

    A cylinder with unit magnetisation along z is a uniformly wound solenoid: its B and vector
    potential A give all components, ``phi_zz = B_z - [inside]``, ``phi_{rho z} = B_rho`` and
    ``phi_rho / rho = -A_phi / rho``. Each is a difference over both ends of complete elliptic
    integrals, here in Carlson's symmetric forms.

    Parameters
    ----------
    rho, z : array_like
        Distance from the axis and height above the centre, mm; broadcast together.
    radius, height : float
        Of the cylinder, mm.

    Returns
    -------
    Derivatives
        ``phi_zz``, ``phi_rho_z``, ``phi_rho / rho`` and ``inside`` (bool).

    References
    ----------
    Derby N, Olbert S. Am J Phys 2010;78:229 (B). A: the vector potential of the winding
    integrated by parts once.

    Examples
    --------
    The centre of a long cylinder has demagnetising factors 0 and 1/2:

    >>> d = cylinder_derivatives(0.0, 0.0, 1.0, 1e4)
    >>> print(f'{abs(d.zz):.3f} {d.rho_over_rho:.3f}')
    0.000 -0.500
    """
    rho, z = np.broadcast_arrays(np.asarray(rho, float), np.asarray(z, float))
    inside = (rho <= radius) & (np.abs(z) <= height / 2)
    # The closed forms are 0/0 on the axis and on the wall. Off the axis by 1e-5 radius both
    # rounding and curvature stay near 1e-10.
    rho = np.maximum(rho, 1e-5 * radius)
    wall = 1e-7 * radius
    rho = np.where(np.abs(rho - radius) < wall, radius - wall, rho)

    gamma = (radius - rho) / (radius + rho)
    b_z = np.zeros(rho.shape)
    b_rho = np.zeros(rho.shape)
    a_over_rho = np.zeros(rho.shape)
    for sign in (1, -1):
        end = z + sign * height / 2
        far = np.hypot(end, radius + rho)
        kc2 = (end**2 + (radius - rho) ** 2) / far**2
        r_f = elliprf(0.0, kc2, 1.0)
        r_d = elliprd(0.0, kc2, 1.0)
        r_j = elliprj(0.0, kc2, 1.0, gamma**2)
        b_z += sign * end / far * (r_f + (gamma - gamma**2) / 3 * r_j)
        b_rho += sign * radius / far * (r_f - 2 / 3 * r_d)
        a_over_rho += sign * end / far * (r_d - gamma**2 * r_j) / 3
    b_z *= radius / (radius + rho) / np.pi
    b_rho /= np.pi
    # 4 / (radius + rho)^2 over 1 - gamma^2 is 1 / (radius rho)
    a_over_rho *= radius / rho / np.pi

    wound = (rho < radius) & (np.abs(z) <= height / 2)
    return Derivatives(b_z - wound, b_rho, -a_over_rho, inside)


def _project(d, b_z, b_rho, b_phi):
    """Field of unit susceptibility from the derivatives and B0 in cylindrical components."""
    rho_rho = -1.0 * d.inside - d.zz - d.rho_over_rho
    return (
        b_z**2 * d.zz
        + 2 * b_z * b_rho * d.rho_z
        + b_rho**2 * rho_rho
        + b_phi**2 * d.rho_over_rho
        + d.inside / 3
    )


def _cylindrical(x, y, b0_dir):
    """Distance from the axis, and B0's radial and azimuthal components there."""
    rho = np.hypot(x, y)
    safe = np.where(rho > 0, rho, 1)
    cos, sin = np.where(rho > 0, x / safe, 1.0), y / safe
    return rho, b0_dir[0] * cos + b0_dir[1] * sin, b0_dir[1] * cos - b0_dir[0] * sin


def cylinder_field(points, radius, height, b0_dir):
    """Relative field of a finite cylinder about z, centred at the origin, chi = 1.

    Parameters
    ----------
    points : (..., 3) array_like
        Where, mm, in the cylinder's frame.
    radius, height : float
        Of the cylinder, mm.
    b0_dir : (3,) array_like
        Unit vector of B0 in the cylinder's frame.

    Returns
    -------
    (...) ndarray
        dB / B0 per unit of susceptibility (ppm in, ppm out).

    Examples
    --------
    Centre of a long cylinder along and across B0: 1/3 and -1/6.

    >>> print(f'{cylinder_field([0, 0, 0], 1, 1e4, [0, 0, 1]):.4f}')
    0.3333
    >>> print(f'{cylinder_field([0, 0, 0], 1, 1e4, [0, 1, 0]):.4f}')
    -0.1667
    """
    x, y, z = np.moveaxis(np.asarray(points, float), -1, 0)
    rho, b_rho, b_phi = _cylindrical(x, y, b0_dir)
    return _project(cylinder_derivatives(rho, z, radius, height), b0_dir[2], b_rho, b_phi)


def sphere_field(points, radius, b0_dir):
    """Relative field of a sphere centred at the origin, chi = 1.

    ``dB / B0 = (radius / r)^3 (cos^2 theta - 1/3)`` outside, 0 inside.

    Parameters
    ----------
    points : (..., 3) array_like
        Where, mm.
    radius : float
        Of the sphere, mm.
    b0_dir : (3,) array_like
        Unit vector of B0.

    Returns
    -------
    (...) ndarray
        dB / B0 per unit of susceptibility (ppm in, ppm out).

    Examples
    --------
    At its pole the field of a sphere is 2/3, inside it is 0:

    >>> print(sphere_field([[0, 0, 1.000001], [0, 0, 0.5]], 1.0, [0, 0, 1]).round(4))
    [0.6667 0.    ]
    """
    points = np.asarray(points, float)
    r2 = np.sum(points**2, axis=-1)
    along = points @ np.asarray(b0_dir, float)
    safe = np.maximum(r2, radius**2)
    outside = (radius**2 / safe) ** 1.5 * (along**2 / safe - 1 / 3)
    return np.where(r2 <= radius**2, 0.0, outside)


class CylinderTable:
    """Closed form of a cylinder at radial nodes, exact on each of a list of planes.

    Parameters
    ----------
    z : (Z,) array_like
        Heights of the planes above the cylinder's centre, mm.
    radius, height : float
        Of the cylinder, mm.
    extent : float
        Greatest distance from the axis that will be asked for, mm.

    Notes
    -----
    The second derivatives scale as the inverse square of the distance to the rim, so nodes
    whose spacing is `GRADING` times that distance keep the error of linear interpolation below
    about ``GRADING^2 / 8 / (2 pi)`` = 8e-6 of dchi.
    """

    def __init__(self, z, radius, height, extent):
        z = np.asarray(z, float)
        nearest = np.min(np.abs(np.abs(z) - height / 2))
        floor = max(nearest, 1e-3 * radius)
        self.nodes = _graded_nodes(radius, extent, floor)
        self.planes = cylinder_derivatives(self.nodes[None], z[:, None], radius, height)
        self.inside_z = np.abs(z) <= height / 2
        self.radius = radius


def _graded_nodes(radius, extent, floor):
    """Nodes from 0 to ``extent``, dense about ``radius``, which is one of them."""
    reach = max(radius, extent - radius)
    steps = np.arange(int(np.arcsinh(reach / floor) / GRADING) + 2)
    # sinh: even spacing floor * GRADING near the rim, geometric growth away from it
    away = floor * np.sinh(GRADING * steps)
    inner = radius - away[(away > 0) & (away < radius)]
    outer = radius + away[: np.searchsorted(away, max(extent - radius, 0)) + 1]
    return np.concatenate([[0.0], inner[::-1], outer])


class CylinderOnGrid:
    """Field of a cylinder, chi = 1, plane by plane of a regular grid.

    Parameters
    ----------
    table : CylinderTable
        Of the cylinder, on the grid's planes.
    x : (X,) array_like
    y : (Y,) array_like
        Coordinates of the grid relative to the cylinder's axis, mm.
    b0_dir : (3,) array_like
        Unit vector of B0.
    """

    def __init__(self, table, x, y, b0_dir):
        self._table = table
        rho, b_rho, b_phi = _cylindrical(x[:, None], y[None, :], b0_dir)
        self.disc = rho <= table.radius
        self._b0 = b0_dir[2], b_rho, b_phi
        nodes = table.nodes
        self._lower = np.clip(np.searchsorted(nodes, rho, side='right') - 1, 0, nodes.size - 2)
        self._weight = (rho - nodes[self._lower]) / np.diff(nodes)[self._lower]

    def inside(self, k):
        """Where plane ``k`` lies in the cylinder, (X, Y) bool."""
        return self.disc & self._table.inside_z[k]

    def field(self, k):
        """Relative field on plane ``k``, (X, Y) float64."""
        planes = self._table.planes
        zz, rho_z, over = (
            self._interpolate(d[k]) for d in (planes.zz, planes.rho_z, planes.rho_over_rho)
        )
        return _project(Derivatives(zz, rho_z, over, self.inside(k)), *self._b0)

    def _interpolate(self, values):
        return values[self._lower] + self._weight * np.diff(values)[self._lower]
