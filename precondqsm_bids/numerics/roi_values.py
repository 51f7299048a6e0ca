"""Values of the maps in labelled regions, and the susceptibility of a cylinder from its own field.

The second is independent of every inversion. A long cylinder whose susceptibility differs by
``chi`` from the medium shifts the field inside it, relative to the medium, by

    field = chi / 2 * (cos^2 theta - 1/3)

with ``theta`` the angle between its axis and B0 (Haacke et al., Magnetic Resonance Imaging, 1999,
ch. 25), so the bulk field of its core against that of the medium around it gives
``chi = 2 field / (cos^2 theta - 1/3)``; along B0 this is ``3 dphi / (gamma B0 dt)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

MIN_ASPECT = 3.0
"""Length over diameter from which a label counts as a long cylinder."""

MIN_ANGULAR_FACTOR = 0.1
"""Smallest ``|cos^2 theta - 1/3|`` that is divided by: at least 6 degrees off the magic angle."""

MIN_CORE_VOXELS = 8
"""Fewer voxels in the core than this are too few for a mean that deserves its name."""

MOST_NUMBERS = 1 << 16
"""Largest label up to which all numbers are looked for, rather than those that there are."""


class RegionValues(NamedTuple):
    """Summary of one map in one region, in the unit of the map; NaN where no voxel is left."""

    mean: float
    sd: float
    median: float
    n_voxels: int


class Cylinder(NamedTuple):
    """A long cylinder in scanner space."""

    centre: NDArray[np.float64]
    """Centre, mm, shape (3,)."""
    axis: NDArray[np.float64]
    """Unit vector along the cylinder, shape (3,)."""
    radius: float
    """mm."""
    length: float
    """mm."""


class CylinderReference(NamedTuple):
    """Susceptibility of a cylinder relative to the medium around it, from the bulk field."""

    chi: float
    """ppm; NaN where it cannot be told, and ``note`` says why."""
    sd: float
    """Standard deviation of the voxels of the core, ppm of susceptibility."""
    angle: float
    """Angle between the axis and B0, degrees."""
    n_core: int
    n_medium: int
    note: str


def region_values(values: ArrayLike, region: ArrayLike) -> RegionValues:
    """Mean, standard deviation, median and count of the finite voxels of a map in a region.

    In the unit of the map; the standard deviation is that of the population (ddof 0).

    >>> region_values([1.0, 2.0, 6.0, 9.0], [True, True, True, False])
    RegionValues(mean=3.0, sd=2.160246899469287, median=2.0, n_voxels=3)
    """
    values, region = np.asarray(values), np.asarray(region, dtype=bool)
    # As files are: along the memory is several times faster.
    if values.strides[0] < values.strides[-1]:
        values, region = values.T, region.T
    inside = values[region].astype(float)
    inside = inside[np.isfinite(inside)]
    if not inside.size:
        return RegionValues(np.nan, np.nan, np.nan, 0)
    return RegionValues(
        float(inside.mean()), float(inside.std()), float(np.median(inside)), int(inside.size)
    )


def label_boxes(labels: NDArray) -> dict[int, tuple[slice, ...]]:
    """Labels above 0, in their order, and the box around each.

    >>> label_boxes(np.array([[0, 2, 1], [0, 2, 0]]))[2]
    (slice(0, 2, None), slice(1, 2, None))
    """
    numbers: NDArray | range = range(1, 1 + int(labels.max(initial=0)))
    if len(numbers) > MOST_NUMBERS:
        numbers, places = np.unique(labels, return_inverse=True)
        labels = places.reshape(labels.shape) + 1
    found = ndimage.find_objects(labels) if len(numbers) else []
    boxes = zip(numbers, found, strict=True)
    return {int(number): box for number, box in boxes if box is not None and number > 0}


def surrounding_label(
    labels: ArrayLike, boxes: Mapping[int, tuple[slice, ...]] | None = None
) -> int | None:
    """The largest label, if the boxes around all other labels lie within the box around it.

    This is the medium that the others are embedded in. ``None`` where there is no such label.
    ``boxes`` are those of :func:`label_boxes`, if they are known.

    >>> surrounding_label([[1, 1, 1], [1, 2, 1], [1, 1, 1]])
    1
    >>> surrounding_label([[1, 1, 0, 2]]) is None
    True
    """
    labels = np.asarray(labels)
    boxes = label_boxes(labels) if boxes is None else boxes
    if len(boxes) < 2:
        return None
    largest = max(boxes, key=lambda i: np.count_nonzero(labels[boxes[i]] == i))
    inside = all(
        outer.start <= other.start and other.stop <= outer.stop
        for box in boxes.values()
        for outer, other in zip(boxes[largest], box, strict=True)
    )
    return largest if inside else None


def find_cylinder(
    region: ArrayLike, affine: ArrayLike, first: ArrayLike = (0, 0, 0)
) -> Cylinder | None:
    """Tell from the shape of a region alone whether it is a long, straight, filled cylinder.

    The principal axes of the voxel positions give its axis; the variances of a filled cylinder,
    ``length^2 / 12`` along and ``radius^2 / 4`` across, its size. It is a cylinder if

    - length / diameter is at least `MIN_ASPECT`;
    - the cross-section is round: the two variances across agree within 30 %, and its four-fold
      moment ``|sum (x + iy)^4| / sum |x + iy|^4``, 0 for a disc and 0.43 for a square, is at
      most 0.25;
    - it is filled: its volume is that of the cylinder within 15 %.

    Parameters
    ----------
    region : (X, Y, Z) array_like of bool
        The region.
    affine : (4, 4) array_like
        Voxel indices to scanner millimetres.
    first : (3,) array_like of int
        Indices of the first voxel of the region's array.

    Examples
    --------
    >>> x, y, _ = np.mgrid[-8:9, -8:9, 0:60]
    >>> rod = find_cylinder(x**2 + y**2 <= 25, np.eye(4))
    >>> round(rod.radius, 1), round(rod.length)
    (5.1, 60)
    >>> find_cylinder(np.ones((8, 8, 60), bool), np.eye(4)) is None
    True
    """
    affine = np.asarray(affine, dtype=float)
    voxels = np.argwhere(np.ascontiguousarray(region, dtype=bool))
    count = len(voxels)
    if count < 4 * MIN_CORE_VOXELS:
        return None
    voxels += np.asarray(first)
    points = voxels @ affine[:3, :3].T
    del voxels  # a region may be as large as the grid
    points += affine[:3, 3]
    centre = points.mean(axis=0)
    points -= centre
    variances, directions = np.linalg.eigh(np.cov(points.T))
    across_min, across_max, along = variances
    length = float(np.sqrt(12 * along))
    radius = float(np.sqrt(2 * (across_min + across_max)))
    if radius <= 0 or length < MIN_ASPECT * 2 * radius or across_min < 0.7 * across_max:
        return None

    across = points @ directions[:, :2] @ [1, 1j]
    round_ = abs(np.sum(across**4)) <= 0.25 * np.sum(np.abs(across) ** 4)
    volume = count * abs(np.linalg.det(affine[:3, :3]))
    filled = abs(volume / (np.pi * radius**2 * length) - 1) <= 0.15
    axis = directions[:, 2]
    return Cylinder(centre, axis, radius, length) if round_ and filled else None


def cylinder_reference(
    total_field: ArrayLike,
    label: int,
    cylinders: Mapping[int, Cylinder],
    affine: ArrayLike,
    mask: ArrayLike,
) -> CylinderReference:
    """Susceptibility of a long cylinder from the field in its core and in the medium around it.

    ``chi = 2 (field_core - field_medium) / (cos^2 theta - 1/3)``.

    The core is the inner half of the radius, the medium a ring of 1.3 to 2 radii, both over the
    middle half of the length. Sources further away (container, shim, the other cylinders) give a
    field that is harmonic here, so what the medium's field would be in the core is predicted by
    the nine solid harmonics up to degree two, fitted to the ring together with the cylinder's own
    field outside it, ``cos(2 phi) / rho^2`` and ``sin(2 phi) / rho^2``. Voxels beyond four robust
    standard deviations (phase wraps) do not count.

    Parameters
    ----------
    total_field : (X, Y, Z) array_like
        Unwrapped total field, ppm: neither flattened nor background-corrected.
    label : int
        Which of the ``cylinders``.
    cylinders : mapping of int to Cylinder
        All cylinders; the others, with a rim of 1.2 radii, are kept out of the ring.
    affine : (4, 4) array_like
        Voxel indices to scanner millimetres; B0 is along the scanner's z.
    mask : (X, Y, Z) array_like of bool
        Where the field was measured.

    Returns
    -------
    CylinderReference
        ``chi`` is NaN near the magic angle, where a cylinder hardly shifts its own field, and
        where too few voxels are left.
    """
    field = np.asarray(total_field)
    cylinder = cylinders[label]
    angle = float(np.degrees(np.arccos(min(1.0, abs(cylinder.axis[2])))))
    factor = cylinder.axis[2] ** 2 - 1 / 3
    if abs(factor) < MIN_ANGULAR_FACTOR:
        note = (
            f'axis at {angle:.1f} degrees to B0, too near the magic angle of 54.7 degrees, where '
            f'a cylinder does not shift its own field'
        )
        return CylinderReference(np.nan, np.nan, angle, 0, 0, note)

    affine = np.asarray(affine, dtype=float)
    box, first = _box_around(cylinder, affine, field.shape)
    voxels = first + np.argwhere(np.asarray(mask, dtype=bool)[box] & np.isfinite(field[box]))
    points = voxels @ affine[:3, :3].T + affine[:3, 3]
    along, distance = _cylindrical(points, cylinder.centre, cylinder.axis)
    near = (np.abs(along) <= cylinder.length / 4) & (distance <= 2 * cylinder.radius)
    voxels, points, distance = voxels[near], points[near], distance[near]
    core = distance <= 0.5 * cylinder.radius
    ring = distance >= 1.3 * cylinder.radius
    for index, other in cylinders.items():
        if index != label:
            other_along, other_distance = _cylindrical(points, other.centre, other.axis)
            ring &= (other_distance > 1.2 * other.radius) | (
                np.abs(other_along) > 0.5 * other.length + 0.2 * other.radius
            )

    design = _harmonics(points - cylinder.centre, cylinder)
    n_core, n_ring = int(core.sum()), int(ring.sum())
    if n_core < MIN_CORE_VOXELS or n_ring < 4 * design.shape[1]:
        note = f'{n_core} voxels in the core and {n_ring} in the medium around it are too few'
        return CylinderReference(np.nan, np.nan, angle, n_core, n_ring, note)

    measured = field[tuple(voxels.T)].astype(float)
    background = _robust_fit(design[ring], measured[ring])
    # The cylinder's own outside field, the last two terms, does not exist inside it.
    chi = 2 / factor * (measured[core] - design[core, :-2] @ background[:-2])
    chi = chi[_inliers(chi - np.median(chi))]
    return CylinderReference(float(chi.mean()), float(chi.std()), angle, n_core, n_ring, '')


def _box_around(
    cylinder: Cylinder, affine: NDArray[np.float64], shape: tuple[int, ...]
) -> tuple[tuple[slice, ...], NDArray[np.int64]]:
    """Part of the grid that holds the core of a cylinder and the medium around it; its corner."""
    reach = np.hypot(cylinder.length / 4, 2 * cylinder.radius)
    inverse = np.linalg.inv(affine[:3, :3])
    middle = inverse @ (cylinder.centre - affine[:3, 3])
    apart = reach * np.linalg.norm(inverse, axis=1)
    low = np.clip(np.floor(middle - apart), 0, shape).astype(np.int64)
    high = np.clip(np.ceil(middle + apart) + 1, low, shape).astype(np.int64)
    return tuple(slice(a, b) for a, b in zip(low, high, strict=True)), low


def _cylindrical(
    points: NDArray[np.float64], centre: NDArray[np.float64], axis: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Position along an axis and distance from it, mm."""
    offset = points - centre
    along = offset @ axis
    return along, np.linalg.norm(offset - along[:, None] * axis, axis=1)


def _harmonics(offset: NDArray[np.float64], cylinder: Cylinder) -> NDArray[np.float64]:
    """Solid harmonics up to degree two about the axis, then the cylinder's own outside field."""
    u = np.cross(cylinder.axis, np.eye(3)[np.argmin(np.abs(cylinder.axis))])
    u /= np.linalg.norm(u)
    # Lengths in radii keep the columns of one size.
    x, y, t = (
        offset @ np.stack([u, np.cross(cylinder.axis, u), cylinder.axis], axis=1)
    ).T / cylinder.radius
    rho2 = x**2 + y**2
    own = np.divide(1.0, rho2**2, out=np.zeros_like(rho2), where=rho2 > 0.25)
    return np.stack(
        [
            np.ones_like(x), x, y, t,
            x * y, x * t, y * t, x**2 - y**2, 2 * t**2 - rho2,
            (x**2 - y**2) * own, 2 * x * y * own,
        ],
        axis=1,
    )  # fmt: skip


def _inliers(residual: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Within four robust standard deviations, with room for rounding where there is no noise."""
    return np.abs(residual) <= 4 * 1.4826 * np.median(np.abs(residual)) + 1e-6


def _robust_fit(design: NDArray[np.float64], measured: NDArray[np.float64]) -> NDArray[np.float64]:
    keep = np.ones(len(measured), dtype=bool)
    for _ in range(4):
        coefficients: NDArray[np.float64] = np.linalg.lstsq(
            design[keep], measured[keep], rcond=None
        )[0].astype(np.float64)
        keep = _inliers(measured - design @ coefficients)
    return coefficients
