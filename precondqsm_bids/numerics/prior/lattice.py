"""Lattice of a prior: coefficients that vary smoothly over space.

On a regular lattice of nodes each cell of a basis has one coefficient per node, and in between
they are interpolated linearly along each axis: the window of a node is a product of hats, which
overlap and sum to one everywhere, so that the prior has no walls.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

F32 = npt.NDArray[np.float32]

TOLERANCE = 1e-6
"""Distance from a node, in node spacings, at which a voxel is on it."""


class Axis(NamedTuple):
    """Hats along one axis."""

    lower: npt.NDArray[np.int32]
    """Node below each voxel, (voxels of the axis,)."""
    fraction: F32
    """Weight of the node above it, 0 to 1; that of the node below is one less this."""
    nodes: int
    """Number of nodes."""

    def matrix(self, part: slice) -> sparse.csr_array:
        """Interpolation from the nodes to the voxels of ``part``, (voxels, nodes), float32."""
        lower, fraction = self.lower[part], self.fraction[part]
        columns = np.stack([lower, lower + 1], axis=1).ravel()
        values = np.stack([1 - fraction, fraction], axis=1).ravel()
        pointers = np.arange(0, values.size + 1, 2)
        return sparse.csr_array((values, columns, pointers), shape=(lower.size, self.nodes))


class Lattice(NamedTuple):
    """Nodes at which the cells of a basis have coefficients of their own."""

    axes: tuple[Axis, Axis, Axis]
    """Hats along each axis."""
    cells: int
    """Number of cells of the basis."""
    used: npt.NDArray[np.int64]
    """Node and cell of each coefficient, as index in the flattened (nodes, nodes, nodes, cells):
    those that have a voxel in their window."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Nodes along each axis, and cells."""
        a, b, c = (axis.nodes for axis in self.axes)
        return a, b, c, self.cells


def hats(coordinate: npt.NDArray, inside: slice, spacing: float) -> Axis:
    """Hats along an axis, with a node at its zero.

    Parameters
    ----------
    coordinate : (N,) ndarray
        Coordinate of each voxel of the axis, mm.
    inside : slice
        Voxels between which nodes are needed.
    spacing : float
        Distance of the nodes, mm.

    Examples
    --------
    >>> axis = hats(np.arange(-2.0, 3.0), slice(0, 5), 2.0)
    >>> print(axis.lower, axis.fraction, axis.nodes)
    [0 0 1 1 2] [0.  0.5 0.  0.5 0. ] 4
    """
    place = coordinate / spacing
    lower = np.floor(place + TOLERANCE)
    fraction = np.clip(place - lower, 0, 1).astype(np.float32)
    lower = (lower - lower[inside].min()).astype(np.int32)
    nodes = int(lower[inside].max()) + 2
    return Axis(np.clip(lower, 0, nodes - 2), fraction, nodes)


def lattice(
    axes: tuple[Axis, Axis, Axis],
    parts: Sequence[tuple[npt.NDArray, npt.NDArray]],
    shape: tuple[int, ...],
) -> Lattice:
    """The lattice of a basis, whose coefficients are those that any voxel has a part in.

    Parameters
    ----------
    axes : tuple of Axis
        Hats along each axis.
    parts : sequence of (voxels, labels)
        Voxels, as indices in the flattened (X, Y, Z), and their cells.
    shape : tuple of int
        (X, Y, Z).
    """
    cells = max(int(labels.max()) for _, labels in parts if labels.size) + 1
    out = Lattice(axes, cells, np.zeros(0, np.int64))
    used = np.zeros(out.shape, bool)
    for voxels, labels in parts:
        below = (
            axis.lower[index]
            for axis, index in zip(axes, np.unravel_index(voxels, shape), strict=True)
        )
        used[(*below, labels)] = True
    for i in range(3):  # the node above, in each axis
        along = np.moveaxis(used, i, 0)
        along[1:] |= along[:-1].copy()
    return out._replace(used=np.flatnonzero(used))
