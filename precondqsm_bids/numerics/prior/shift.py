"""Tissue shift: what of the frequency is a constant of the tissue, and no field of a dipole."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import sparse

from precondqsm_bids.numerics.prior.basis import Basis
from precondqsm_bids.numerics.prior.columns import cells_of
from precondqsm_bids.numerics.solver import DipoleSystem

F32 = npt.NDArray[np.float32]

START = 0.05
"""Expected size of the shift before the field has told it, relative to that of the local field.
Small: along B0 a long cylinder's susceptibility and a shift of its frequency have the same field,
and there the shift may not have what susceptibility explains as well."""
LEAST, MOST = 1e-3, 1.0
"""Bounds of the expected size, relative to that of the local field."""
STEP = 10.0
"""Factor by which the expected size changes between two rounds, at most."""

LARGE_SHIFT = 0.002
"""Spread of the tissue's own frequency, ppm, from which it is warned of; without one 1e-6 is
found, with -0.02 ppm in white matter 0.008."""
SHIFTED = (
    'the tissue has frequencies of its own that are no field of a dipole, as of myelin (standard '
    'deviation {:.2g} ppm): they were taken off the field, and the map is less certain between '
    'tissues'
)


class TissueShift:
    """A frequency for each cell of bases of constants, as unknowns of the prior fit.

    The measured field of tissue is ``f = D chi + s``: within oriented microstructure (myelin, and
    the exchange of water with it) the frequency has a part ``s`` that does not reach beyond the
    voxel. Here ``s = sum_j z_j c_j`` with the cells ``c_j`` that the susceptibility has too, over
    the whole region. The kernel of the dipole has no mean over directions and that of the shift
    nothing else, so that the field tells them apart, but for cylinders along B0.

    The expected size ``t`` of ``z`` starts at 5 % of that of the local field and becomes the
    standard deviation of ``s`` between the rounds of the fit (expectation maximisation without the
    posterior's variance): where the field does not ask for a shift, it vanishes. What has not
    grown beyond its start is given back.

    Memory: 8 bytes per voxel of the mask and cell that it belongs to.

    References
    ----------
    Schweser F, Zivadinov R, NMR Biomed 2018;31:e3999 (field of susceptibility and a residual
    frequency); He X, Yablonskiy DA, PNAS 2009;106:13558 (why tissue has one); MacKay DJC, Neural
    Comput 1992;4:415 (expected sizes from the data).
    """

    def __init__(
        self,
        bases: Sequence[Basis],
        mask: npt.NDArray[np.bool_],
        system: DipoleSystem,
        inner_size: float,
    ):
        found, first = [], 0
        for basis in bases:
            voxel, cell, weight = cells_of(basis, mask)
            found.append((voxel, cell + first, weight))
            first += basis.parcels
        row, column, weight = (np.concatenate(part) for part in zip(*found, strict=True))
        inside = mask[system.grid.box]
        self.inside, self.inner_size = inside, inner_size
        self.size = START * inner_size
        self.values = np.zeros(first)
        # A row for each voxel of the mask's box, those outside the mask empty.
        voxels = np.flatnonzero(inside).astype(np.int32)
        cells = sparse.csr_array((weight, (voxels[row], column)), shape=(inside.size, first))
        plane = inside[0].size
        self.parts = [cells[x.start * plane : x.stop * plane] for x in system.planes]
        self.coefficients = np.zeros(first, np.float32)
        self.found = [np.zeros(first, np.float32)] * len(self.parts)

    def field(self, values: npt.NDArray[np.float64]) -> F32:
        """Shift of each voxel of the mask, ppm, of values in units of their expected size."""
        coefficients = (self.size * values).astype(np.float32)
        return np.concatenate([part @ coefficients for part in self.parts])[self.inside.ravel()]

    def set(self, values: npt.NDArray[np.float64]) -> None:
        """Take these values, in units of their expected size, for :meth:`add`."""
        self.coefficients = (self.size * values).astype(np.float32)

    def add(self, i: int, field: F32) -> None:
        """Add their shift to the box of part ``i`` of a field, ppm."""
        field += (self.parts[i] @ self.coefficients).reshape(field.shape)

    def collect(self, i: int, weighted: F32) -> None:
        """Take the box of part ``i`` of the weighted residual for :meth:`transposed`."""
        self.found[i] = self.parts[i].T @ weighted.reshape(-1)

    def transposed(self) -> npt.NDArray[np.float64]:
        """The gradient: their cells' sums of the weighted residual that was collected."""
        found: npt.NDArray[np.float64] = np.stack(self.found).sum(axis=0, dtype=np.float64)
        return self.size * found

    def resize(self, residual: F32) -> None:
        """Take the size that the shift has as the one that is expected.

        A shift that has not grown beyond its start is given back to the ``residual`` (ppm, on the
        mask's box) but for the square of that ratio: an unknown of small expected size does
        not move back on its own.
        """
        shift = self.field(self.values)
        sd = float(np.std(shift, dtype=np.float64))
        kept = min(1.0, (sd / self.size) ** 2)
        residual[self.inside] += np.float32(1 - kept) * shift
        size = np.clip(kept * sd, self.size / STEP, self.size * STEP)
        size = float(np.clip(size, LEAST * self.inner_size, MOST * self.inner_size))
        self.values *= kept * self.size / size
        self.size = size


def shifted(bases: Sequence[Basis]) -> list[Basis]:
    """Bases whose cells may have a shift: constants of at least two cells in the whole region."""
    return [b for b in bases if b.expected == 0 and b.lattice is None and b.parcels > 1]


def spread_of_shift(shift: npt.NDArray) -> tuple[float, list[str]]:
    """Standard deviation of the tissue's own frequency, ppm, and a warning if it is large.

    >>> spread_of_shift(np.zeros(4)), len(spread_of_shift(np.array([0, 0.02]))[1])
    ((0.0, []), 1)
    """
    spread = float(np.std(shift, dtype=np.float64))
    return spread, [SHIFTED.format(spread)] if spread > LARGE_SHIFT else []
