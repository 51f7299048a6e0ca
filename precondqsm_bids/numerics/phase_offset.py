"""Phase offset: the phase at TE = 0 as a smooth function of position, where it is one.

Strong sources live by the offset: with two or three usable echoes an error of 0.1 rad is 0.05 ppm
of field. Free in each voxel it is unbiased and throws away most of the precision; smooth, it
costs none.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage, sparse

from precondqsm_bids.numerics.echoes import difference_of_phase, in_place, sample
from precondqsm_bids.numerics.unwrapping import unwrap

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
MOST_VOXELS = 100_000
"""Voxels that the fit of a quartic takes, evenly over the mask: 35 numbers are sought."""
LEAST_KNOWN = 0.3
"""Standard deviation of the offset, rad, below which a voxel helps to find the smooth one."""
MOST_MISFIT = 0.015
"""Root mean square of what a quartic may leave in blocks of voxels, rad: noise alone leaves 0.001
to 0.005 there."""
INTERVALS = 7
"""Intervals between the spline's knots along the longest axis of the mask: 25 mm in a brain."""
BINS = 4
"""Bins of each interval in which the voxels are gathered before the spline is fitted."""
MOST_ERROR = 0.1
"""Local error of the smooth offset, rad, above which the offset of a voxel is its own."""
SOME_ERROR = 0.03
"""Local error above which a voxel's own offset counts if it is four deviations off."""
LEAST_LENGTH = 0.8
"""Length of the complex spline below which it counts likewise: 1 far from a pole, 0 at it."""


class Offset(NamedTuple):
    """Result of :func:`smooth_offset`, (V,) each."""

    offset: F32
    """Smooth offset, rad; where ``own`` the voxel's own."""
    own: Bools
    """Voxels whose offset no smooth function describes: their own offset stands."""
    error: F32
    """Local error of the smooth offset: what it leaves around each voxel, rad."""
    misfit: float
    """Root mean square of what it leaves in blocks of voxels, rad."""
    model: str
    """``quartic``, ``spline`` or ``voxelwise``."""

    @property
    def free(self) -> Bools | bool:
        """Where the offset is fitted beside the field: nowhere, if a quartic describes it."""
        return False if self.model == 'quartic' else self.own


def smooth_offset(
    offset: F32,
    offset_sd: F32,
    mask: Bools,
    voxel_size: npt.ArrayLike = (1.0, 1.0, 1.0),
) -> Offset:
    """Smooth function of position for the phase offset: a quartic, else a spline.

    Of offsets of free fits and their standard deviations, rad, (V,); the voxel size is in mm.

    A polynomial of fourth order serves if the block medians of what it leaves stay below
    0.015 rad. Else a cubic B-spline, of seven intervals along the longest axis of the mask, is
    fitted to the complex ``exp(i offset)``::

        minimise  sum w |exp(i offset) - sum_k c_k B_k(r)|^2 + small |second differences of c|^2,

    Its angle is taken: where the receive phase of several coils has a pole the spline goes
    through zero, so that a pole is no obstacle. To it comes the robust mean of what it leaves
    over 5 x 5 x 5 voxels: on a head with eight coils the spline alone is off by up to 0.13 rad
    near a pole, with the mean by 0.02. What a second such mean would still add is the local error
    of the offset. Voxels where it exceeds 0.1 rad keep an offset of their own, as do those where
    it exceeds 0.03 rad, or the spline is shorter than 0.8, and the voxel's own is four deviations
    off. Both fits weight by the inverse variance and give next to no weight to what is beyond
    four deviations, in six rounds the quartic and in four the spline.
    """
    good = np.flatnonzero(offset_sd < LEAST_KNOWN)
    nothing = np.zeros_like(offset)
    if good.size < 1000:
        return Offset(offset, np.ones(offset.shape, bool), nothing, 0.0, 'voxelwise')
    smooth = _quartic(offset, offset_sd, mask, good)
    left = difference_of_phase(offset, smooth)
    misfit = _block_misfit(left, good, mask)
    if misfit < MOST_MISFIT:
        return Offset(smooth, np.zeros(offset.shape, bool), nothing, misfit, 'quartic')
    smooth, length = _spline(offset, offset_sd, mask, np.asarray(voxel_size, float), good)
    weight = np.zeros(offset.shape, np.float32)
    weight[good] = 1 / np.maximum(offset_sd[good], 1e-2) ** 2
    weight = np.minimum(weight, np.median(weight[good]))
    smooth += _level(difference_of_phase(offset, smooth), weight, mask)
    left = difference_of_phase(offset, smooth)
    error = np.abs(_level(left, weight, mask))
    doubtful = (error > SOME_ERROR) | (length < LEAST_LENGTH)
    own = (error > MOST_ERROR) | (doubtful & (np.abs(left) > 4 * offset_sd))
    misfit = _block_misfit(difference_of_phase(offset, smooth), good[~own[good]], mask)
    if own.mean() > 0.5:
        return Offset(offset, np.ones(offset.shape, bool), nothing, misfit, 'voxelwise')
    return Offset(
        np.where(own, offset, smooth), own, np.where(own, nothing, error), misfit, 'spline'
    )


def _weights(offset_sd: F32, left: F32 | None) -> F64:
    """Inverse deviations, those of outliers a thousandth."""
    weight = np.minimum(1 / np.maximum(offset_sd.astype(np.float64), 1e-6), 100.0)
    if left is not None:
        scale = 1.4826 * np.median(np.abs(left)) + 1e-6
        weight *= np.where(np.abs(left) < 4 * scale, 1, 1e-3)
    return weight


def _quartic(
    offset: F32, offset_sd: F32, mask: Bools, good: npt.NDArray[np.intp], order: int = 4
) -> F32:
    """Polynomial fitted on the circle where the offset is known, at every voxel."""
    known = np.zeros(mask.shape, bool)
    known[mask] = offset_sd < LEAST_KNOWN
    chosen = sample(known, MOST_VOXELS)
    used = good[chosen]
    powers = [_powers(n, order) for n in mask.shape]
    terms = [t for t in np.ndindex((order + 1,) * 3) if sum(t) <= order]
    where = [index[chosen] for index in np.nonzero(known)]
    x, y, z = (p[i] for p, i in zip(powers, where, strict=True))
    a = np.stack([x[:, i] * y[:, j] * z[:, k] for i, j, k in terms])
    weight = _weights(offset_sd[used], None)
    start = np.angle(np.exp(1j * offset[used]).mean())
    residual = difference_of_phase(offset[used], start)
    if np.mean(np.abs(residual) > 0.75 * np.pi) > 0.01:
        residual = unwrap(difference_of_phase(offset, start), mask)[used]
    coefficients = np.zeros((order + 1,) * 3)
    coefficients[0, 0, 0] = start
    at = tuple(np.transpose(terms))
    for _ in range(6):
        weighted = a * weight**2
        # An axis of one slice makes columns alike: the shortest solution.
        step = np.linalg.lstsq(weighted @ a.T, weighted @ residual, rcond=1e-11)[0]
        coefficients[at] += step
        residual = difference_of_phase(offset[used], coefficients[at] @ a)
        # Outliers (wraps between echoes, strong sources) lose their weight.
        weight = _weights(offset_sd[used], residual)
    return _on_grid(coefficients.astype(np.float32), powers)[mask]


def _powers(number: int, order: int) -> F64:
    """Powers of the position along an axis of ``number`` voxels, from -1 to 1, (number, order)."""
    position = np.arange(number) / max((number - 1) / 2, 1) - 1
    return np.vander(position, order + 1, increasing=True)


def _cells(along: list[npt.NDArray], shape: tuple[int, ...]) -> npt.NDArray[np.int32]:
    """Number of the cell of each voxel of the grid, from the cells along each axis."""
    x, y, z = (a.astype(np.int32) for a in along)
    return (x[:, None, None] * shape[1] + y[:, None]) * shape[2] + z


def _bases(mask: Bools, size: F64) -> tuple[list[F64], list[F64], list[npt.NDArray[np.intp]]]:
    """B-splines along each axis at its voxels and in its bins, and the bin of each voxel.

    Bins are symmetric about the middle of the mask, and have the mean of their voxels' splines.
    """
    from scipy.interpolate import BSpline  # here: importing the nodes must stay quick

    others = [(1, 2), (0, 2), (0, 1)]
    extents = [np.flatnonzero(mask.any(axis=axes)) for axes in others]
    lengths = [(e[-1] - e[0] + 1) * d for e, d in zip(extents, size, strict=True)]
    at_voxels, in_bins, bins = [], [], []
    for extent, length, number in zip(extents, lengths, mask.shape, strict=True):
        intervals = max(1, int(np.ceil(INTERVALS * length / max(lengths) - 1e-6)))
        knots = np.arange(-3, intervals + 4, dtype=float)
        voxels = extent[-1] - extent[0] + 1
        where = (np.arange(number) - extent[0] + 0.5) / voxels * intervals
        where = np.clip(where, 0, intervals - 1e-9)
        at_voxels.append(BSpline.design_matrix(where, knots, 3).toarray())
        half = intervals * BINS // 2
        side = (where / intervals - 0.5) * (2 * half + 1)
        near = np.sign(side) * np.ceil(np.abs(side) - 0.5 - 1e-6)  # of a tie the inner one
        bins.append(half + np.clip(near, -half, half).astype(int))
        member = np.zeros((2 * half + 1, number))
        inside = np.arange(extent[0], extent[-1] + 1)
        member[bins[-1][inside], inside] = 1
        in_bins.append(member @ at_voxels[-1] / np.maximum(member.sum(1), 1)[:, None])
    return at_voxels, in_bins, bins


def _spline(
    offset: F32, offset_sd: F32, mask: Bools, size: F64, good: npt.NDArray[np.intp]
) -> tuple[F32, F32]:
    """Angle and length of the complex spline at every masked voxel."""
    at_voxels, in_bins, bins = _bases(mask, size)
    shape = tuple(len(b) for b in in_bins)
    bin_of = _cells(bins, shape)[mask][good]
    cosine, sine = np.cos(offset[good]), np.sin(offset[good])
    design = sparse.csr_array(
        sparse.kron(sparse.kron(in_bins[0], in_bins[1]), sparse.csr_array(in_bins[2]))
    )
    roughness = _roughness([b.shape[1] for b in in_bins])
    left: F32 | None = None
    count = int(np.prod(shape))
    for _ in range(4):
        weight = _weights(offset_sd[good], left) ** 2
        total = np.bincount(bin_of, weight, count)
        real = np.bincount(bin_of, weight * cosine, count)
        imaginary = np.bincount(bin_of, weight * sine, count)
        # No bin above the median of those filled: a bright region is no better known to be smooth.
        limit = np.median(total[total > 0])
        down = limit / np.maximum(total, limit)
        normal = design.T @ sparse.dia_array((total * down, 0), shape=(count, count)) @ design
        normal = normal.toarray()
        normal += 1e-3 * normal.diagonal().mean() * roughness
        right = design.T @ np.column_stack([real * down, imaginary * down])
        found = np.linalg.solve(normal, right)
        values = (found[:, 0] + 1j * found[:, 1]).astype(np.complex64)
        spline = _on_grid(values.reshape([b.shape[1] for b in at_voxels]), at_voxels)[mask]
        left = difference_of_phase(offset[good], np.angle(spline[good]).astype(np.float32))
    return np.angle(spline).astype(np.float32), np.abs(spline).astype(np.float32)


def _on_grid(coefficients: npt.NDArray, bases: list[F64]) -> npt.NDArray:
    """Sum of products of the bases along each axis, on the whole grid."""
    values = coefficients
    for axis, basis in enumerate(bases):
        values = np.moveaxis(np.tensordot(basis.astype(np.float32), values, (1, axis)), 0, axis)
    return values


def _roughness(shape: list[int]) -> F64:
    """Sum of the squared second differences of the coefficients along each axis, as a matrix."""
    total = 1e-6 * np.eye(int(np.prod(shape)))
    for axis, number in enumerate(shape):
        second = np.diff(np.eye(number), 2, axis=0)
        parts = [np.eye(n) for n in shape]
        parts[axis] = second.T @ second
        total += np.kron(np.kron(parts[0], parts[1]), parts[2])
    return total


def _level(left: F32, weight: F32, mask: Bools, size: int = 5) -> F32:
    """Angle of the robust mean of ``exp(i left)`` over the cube of ``size`` voxels around each."""

    def box(values: F32) -> F32:
        return ndimage.uniform_filter(in_place(values, mask), size, mode='constant')[mask]

    kept, cosine, sine = weight, np.cos(left), np.sin(left)
    least = weight[weight > 0].min() / np.float32(2 * size**3)
    for _ in range(3):
        level = np.arctan2(box(kept * sine), box(kept * cosine))
        level[box(kept) < least] = 0  # nothing known around: rounding has no angle
        apart = np.abs(difference_of_phase(left, level))
        kept = weight * (apart < 3 * 1.4826 * np.median(apart[weight > 0]))
    return level


def _block_misfit(left: F32, good: npt.NDArray[np.intp], mask: Bools) -> float:
    """Root mean square of the medians over blocks of 8 x 8 x 8 voxels, rad.

    Larger ones in a slab or a scattered mask, where these hold too few voxels for a median.
    """
    if good.size == 0:
        return 0.0
    edge = 8
    while True:
        along = [np.arange(n) // edge for n in mask.shape]
        blocks = _cells(along, tuple(n // edge + 1 for n in mask.shape))[mask][good]
        count = np.bincount(blocks)
        if edge >= max(mask.shape) or count[count > 64].sum() > 0.5 * good.size:
            break
        edge *= 2
    # Medians, so that a rim of voxels a turn off does not speak for its block.
    ordered = _ordered(left[good], blocks)
    first = np.cumsum(count) - count
    median = ordered[(first + count // 2)[count > 64]]
    return float(np.sqrt(np.mean(median**2))) if median.size else 0.0


def _ordered(values: F32, blocks: npt.NDArray[np.int32]) -> F32:
    """The values by their blocks, in rising order within each.

    They are sorted as whole numbers that hold both, the block in the upper half and in the lower
    half the bits of the value, of which a change of sign makes numbers of the same order.

    >>> _ordered(np.array([1, -2, 3, -4], np.float32), np.array([1, 0, 0, 1], np.int32)).tolist()
    [-2.0, 3.0, -4.0, 1.0]
    """
    lowest = np.uint32(1 << 31)
    bits = np.ascontiguousarray(values).view(np.uint32)
    keys = blocks.astype(np.uint64) << np.uint64(32)
    keys |= np.where(bits < lowest, bits | lowest, ~bits)
    keys.sort()
    bits = keys.astype(np.uint32)
    return np.where(bits < lowest, ~bits, bits ^ lowest).view(np.float32)
