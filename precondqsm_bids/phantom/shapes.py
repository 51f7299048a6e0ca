"""Ellipsoids and capsules, of which the parts of the head phantom are made.

Coordinates are those of the template, mm: right, anterior, superior.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np


class Ellipsoid(NamedTuple):
    """An ellipsoid, turned about the z axis and then about the x axis."""

    centre: tuple[float, float, float]
    """mm."""
    semi: tuple[float, float, float]
    """Semi-axes, mm."""
    about_z: float = 0.0
    """Degrees, anticlockwise as seen from above."""
    about_x: float = 0.0
    """Degrees, the front upwards."""

    @property
    def reach(self):
        """Extent from the centre along each axis, mm."""
        return (max(self.semi),) * 3 if self.about_z or self.about_x else self.semi

    def inside(self, x, y, z):
        """Whether points are inside; coordinates in mm, broadcast together."""
        x, y, z = (a - c for a, c in zip((x, y, z), self.centre, strict=True))
        if self.about_x:
            cos, sin = np.cos(np.radians(self.about_x)), np.sin(np.radians(self.about_x))
            y, z = cos * y + sin * z, cos * z - sin * y
        if self.about_z:
            cos, sin = np.cos(np.radians(self.about_z)), np.sin(np.radians(self.about_z))
            x, y = cos * x + sin * y, cos * y - sin * x
        return sum((a / s) ** 2 for a, s in zip((x, y, z), self.semi, strict=True)) <= 1

    def shrunk(self, depth):
        """The same with every semi-axis less by ``depth`` (mm)."""
        return self._replace(semi=tuple(length - depth for length in self.semi))

    def mirrored(self):
        """The same on the other side of the head."""
        x, y, z = self.centre
        return self._replace(centre=(-x, y, z), about_z=-self.about_z)


class Capsule(NamedTuple):
    """All points nearer than a radius to a line."""

    start: tuple[float, float, float]
    end: tuple[float, float, float]
    radius: float
    """mm."""

    @property
    def centre(self):
        """Middle of the line, mm."""
        return tuple((a + b) / 2 for a, b in zip(self.start, self.end, strict=True))

    @property
    def reach(self):
        """Extent from the centre along each axis, mm."""
        return tuple(
            abs(a - b) / 2 + self.radius for a, b in zip(self.start, self.end, strict=True)
        )

    def inside(self, x, y, z):
        """Whether points are inside; coordinates in mm, broadcast together."""
        start = np.array(self.start)
        line = np.array(self.end) - start
        x, y, z = x - start[0], y - start[1], z - start[2]
        along = (x * line[0] + y * line[1] + z * line[2]) / (line @ line)
        along = np.clip(along, 0, 1)
        distance = sum((a - along * b) ** 2 for a, b in zip((x, y, z), line, strict=True))
        return distance <= self.radius**2

    def shrunk(self, depth):
        """The same with a radius less by ``depth`` (mm)."""
        return self._replace(radius=self.radius - depth)

    def mirrored(self):
        """The same on the other side of the head."""
        ends = ((-x, y, z) for x, y, z in (self.start, self.end))
        return Capsule(*ends, self.radius)


def both_sides(*shapes):
    """The shapes and their mirror images."""
    return (*shapes, *(shape.mirrored() for shape in shapes))


def polyline(radius, *points):
    """Capsules of one radius (mm) from point to point."""
    return tuple(Capsule(a, b, radius) for a, b in pairwise(points))
