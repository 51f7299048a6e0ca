"""Columns of the prior fit: what each coefficient adds to the map, and the transpose.

Nothing that grows with voxels times nodes is stored. Interpolation on a lattice is a product over
the axes: that along the first axis is done for all at once, where the arrays are small, that along
the second within a part, and that along the third is in the sparse matrix of the voxels, which so
has twice the entries.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from precondqsm_bids.numerics.arrays import side_by_side
from precondqsm_bids.numerics.prior.basis import Basis
from precondqsm_bids.numerics.prior.lattice import Lattice
from precondqsm_bids.numerics.solver import DipoleSystem

F32 = npt.NDArray[np.float32]


class _Term(NamedTuple):
    """Voxels of a basis, and the place of its columns."""

    entries: list[tuple[npt.NDArray, npt.NDArray, F32]]
    """Voxels, in ascending order, their cells and weights."""
    first: int
    """First column, within a plane if there is a lattice, else among the other coefficients."""
    lattice: Lattice | None


class Columns:
    """Coefficients of bases, as further unknowns of :meth:`DipoleSystem.descend`.

    What bases with a lattice add has no part in a polynomial of position of second degree: of
    those, all but one have a field that is harmonic in the region, so that sources outside can
    cancel it, and the fit would put there whatever suits it.

    Memory: 8 bytes per voxel of the mask and cell that it belongs to, 16 in a basis with a
    lattice.

    Parameters
    ----------
    bases : sequence of Basis
        The bases; the unknowns are their coefficients one after another.
    mask : (X, Y, Z) ndarray of bool
        Region of interest.
    system : DipoleSystem
        The solver, whose parts are used.
    size : (unknowns,) ndarray
        Expected size of each coefficient.
    start : (unknowns,) ndarray
        Coefficients to start from.
    """

    def __init__(
        self,
        bases: Sequence[Basis],
        mask: npt.NDArray[np.bool_],
        system: DipoleSystem,
        size: npt.NDArray[np.float64],
        start: npt.NDArray[np.float64],
    ):
        self.size, self.values = size, start / size
        box, self.planes = system.grid.box, system.planes
        self.plane_size = int(np.prod([part.stop - part.start for part in box[1:]]))
        self.hats: list[_Hats] = []
        voxels = np.flatnonzero(mask)
        self.width, end = 0, 0
        plain: list[npt.NDArray] = []
        terms: list[_Term] = []
        for basis in bases:
            here, end = slice(end, end + basis.parcels), end + basis.parcels
            entries = _entries(basis, mask, voxels)
            if basis.lattice is None:
                terms.append(_Term(entries, sum(part.size for part in plain), None))
                plain.append(np.arange(here.start, here.stop))
            else:
                terms.append(_Term(entries, self.width, basis.lattice))
                self.hats.append(_Hats(basis.lattice, here, box))
                self.width += self.hats[-1].width
        self.plain = np.concatenate([np.zeros(0, int), *plain])
        self.parts: list[tuple[Any, Any]] = side_by_side(
            system.workers,
            *(partial(self._rows, terms, planes, box, mask.shape) for planes in self.planes),
        )
        self.found = [np.zeros(0, np.float32)] * len(self.parts)
        self.coefficients = np.zeros(0, np.float32)
        self.unseen: list[tuple[slice, npt.NDArray[np.float64]]] = []
        if self.hats:
            self._leave_out(_smooth(mask[box], box))

    def _leave_out(self, maps: Sequence[F32]) -> None:
        """Keep the part of each lattice orthogonal to these maps of the box."""
        directions = []
        for chi in maps:
            planes = chi.reshape(chi.shape[0], -1)
            for i, part in enumerate(self.planes):
                self.collect(i, planes[part].reshape(-1))
            directions.append(self.transposed())
        self.unseen = [
            (hats.here, np.linalg.qr(np.stack([d[hats.here] for d in directions], axis=1))[0])
            for hats in self.hats
        ]

    def _rows(
        self,
        terms: Sequence[_Term],
        planes: slice,
        box: tuple[slice, slice, slice],
        shape: tuple[int, ...],
    ) -> tuple[sparse.csr_array | None, sparse.sparray | None]:
        """The matrix of the voxels in some planes of the box, and its transpose; None if empty.

        Its columns are those of the lattices of each plane, and last the other coefficients.
        """
        count = planes.stop - planes.start
        start = planes.start + box[0].start
        size = shape[1] * shape[2]
        found: list[tuple[npt.NDArray, npt.NDArray, npt.NDArray]] = []
        for term in terms:
            for voxels, labels, weight in term.entries:
                some = slice(*np.searchsorted(voxels, [start * size, (start + count) * size]))
                at, label, values = voxels[some], labels[some], weight[some]
                x, y, z = (index.astype(np.int32) for index in np.unravel_index(at, shape))
                x, y = x - start, y - box[1].start
                row = (x * (box[1].stop - box[1].start) + y) * (box[2].stop - box[2].start)
                row += z - box[2].start
                if term.lattice is None:
                    found.append((row, count * self.width + term.first + label, values))
                    continue
                axis, cells = term.lattice.axes[2], term.lattice.cells
                column = x * self.width + term.first + label
                column += (y * axis.nodes + axis.lower[z]) * cells
                above = axis.fraction[z]
                found.append((row, column, values * (1 - above)))
                used = above > 0
                column, above = column[used] + cells, above[used]
                found.append((row[used], column, values[used] * above))
        row, column, values = (np.concatenate(part) for part in zip(*found, strict=True))
        if not row.size:
            return None, None
        matrix = sparse.csr_array(
            (values, (row, column)),
            shape=(count * self.plane_size, count * self.width + self.plain.size),
        )
        # One entry in a voxel: a copy by columns is small, and sums in a register.
        few = matrix.nnz <= matrix.shape[0]
        return matrix, matrix.T.tocsr() if few else matrix.T

    def set(self, values: npt.NDArray) -> None:
        """Take these values, in units of the expected sizes, for :meth:`map`."""
        coefficients = (values * self.size).astype(np.float32)
        self.coefficients = coefficients[self.plain]
        for hats in self.hats:
            hats.set(coefficients)

    def map(self, i: int) -> F32 | None:
        """What they add to the voxels of the box in part ``i``, ppm; None if nothing."""
        rows, planes = self.parts[i][0], self.planes[i]
        if rows is None:
            return None
        count = planes.stop - planes.start
        between = np.empty(rows.shape[1], np.float32)
        lattices = between[: count * self.width].reshape(count, self.width)
        first = 0
        for hats in self.hats:
            for k in range(count):
                lattices[k, first : first + hats.width] = hats.plane(planes.start + k)
            first += hats.width
        between[count * self.width :] = self.coefficients
        return rows @ between

    def collect(self, i: int, values: F32) -> None:
        """Take part ``i`` of a map for :meth:`transposed`."""
        transposed, planes = self.parts[i][1], self.planes[i]
        if transposed is None:
            return
        count = planes.stop - planes.start
        between = transposed @ values
        lattices = between[: count * self.width].reshape(count, self.width)
        first = 0
        for hats in self.hats:
            for k in range(count):
                hats.collect(planes.start + k, lattices[k, first : first + hats.width])
            first += hats.width
        self.found[i] = between[count * self.width :]

    def transposed(self) -> npt.NDArray[np.float64]:
        """The transpose applied to the map whose parts were collected."""
        out = np.zeros(self.size.size)
        for found in self.found:  # in the order of the parts, whichever thread had them
            if found.size:
                out[self.plain] += found
        for hats in self.hats:
            out[hats.here] = hats.transposed()
        out *= self.size
        for here, directions in self.unseen:
            out[here] -= directions @ (directions.T @ out[here])
        return out

    def chi(self, values: npt.NDArray) -> F32:
        """Map of the values, in units of the expected sizes: ppm per voxel of the mask's box."""
        self.set(values)
        parts = []
        for i, planes in enumerate(self.planes):
            part = self.map(i)
            if part is None:
                part = np.zeros((planes.stop - planes.start) * self.plane_size, np.float32)
            parts.append(part)
        return np.concatenate(parts)


def _smooth(inside: npt.NDArray[np.bool_], box: tuple[slice, slice, slice]) -> list[F32]:
    """Polynomials of position up to second degree within the region, on its box."""
    x, y, z = (
        (np.arange(part.stop - part.start) - np.mean(index)) / max(float(np.std(index)), 1)
        for part, index in zip(box, np.nonzero(inside), strict=True)
    )
    x, y, z = x[:, None, None], y[:, None], z
    terms = [1.0, x, y, z, x * y, y * z, x * z, x * x, y * y, z * z]
    return [(inside * term).astype(np.float32) for term in terms]


class _Hats:
    """Interpolation of one basis along the first two axes of the mask's box."""

    def __init__(self, lattice: Lattice, here: slice, box: tuple[slice, slice, slice]):
        self.here, self.used, self.shape = here, lattice.used, lattice.shape
        first, second, _ = lattice.axes
        self.first, self.second = first.matrix(box[0]), second.matrix(box[1])
        self.first_t, self.second_t = self.first.T.tocsr(), self.second.T.tocsr()
        # Third nodes times cells: what neither axis touches.
        self.across = self.shape[2] * self.shape[3]
        self.width = self.second.shape[0] * self.across
        self.planes = np.zeros((self.first.shape[0], self.shape[1], self.across), np.float32)
        self.found = np.zeros_like(self.planes)

    def set(self, coefficients: F32) -> None:
        nodes = np.zeros(int(np.prod(self.shape)), np.float32)
        nodes[self.used] = coefficients[self.here]
        self.planes[:] = (self.first @ nodes.reshape(self.shape[0], -1)).reshape(self.planes.shape)

    def plane(self, i: int) -> F32:
        return (self.second @ self.planes[i]).reshape(-1)

    def collect(self, i: int, values: F32) -> None:
        self.found[i] = self.second_t @ values.reshape(-1, self.across)

    def transposed(self) -> F32:
        nodes = self.first_t @ self.found.reshape(self.found.shape[0], -1)
        return nodes.reshape(-1)[self.used]


def _entries(
    basis: Basis, mask: npt.NDArray[np.bool_], voxels: npt.NDArray
) -> list[tuple[npt.NDArray, npt.NDArray, F32]]:
    """Voxels of a basis, as indices in the flattened mask, ascending; their cells and weights."""
    labels, weight = basis.labels[mask], basis.weight[mask]
    if labels.min() < 0:
        used = labels >= 0
        voxels, labels, weight = voxels[used], labels[used], weight[used]
    return [(voxels, labels, weight), *((o.voxels, o.labels, o.weight) for o in basis.overlaps)]


def cells_of(basis: Basis, mask: npt.NDArray[np.bool_]) -> tuple[npt.NDArray, npt.NDArray, F32]:
    """Number of the voxel within the mask, cell and weight of each entry of a basis."""
    number = np.cumsum(mask.reshape(-1), dtype=np.int32) - 1
    voxels, cells, weights = zip(*_entries(basis, mask, np.flatnonzero(mask)), strict=True)
    return number[np.concatenate(voxels)], np.concatenate(cells), np.concatenate(weights)
