"""Verdict: how far the field supports a prior, against priors that know nothing."""

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage, sparse

from precondqsm_bids.numerics.arrays import side_by_side
from precondqsm_bids.numerics.coarse import CoarseRegion
from precondqsm_bids.numerics.dipole import Geometry
from precondqsm_bids.numerics.prior.basis import Basis, Overlap
from precondqsm_bids.numerics.prior.columns import cells_of
from precondqsm_bids.numerics.prior.fit import FitOptions, PriorFit, fit_prior, outer_start
from precondqsm_bids.numerics.prior.lattice import Axis, lattice

F32 = npt.NDArray[np.float32]
OPTIONS = FitOptions(iterations=76, rounds=2)
"""Of each fit on the coarse grid."""
OUTER_SIZE = 9.0
"""Expected size of what these fits add to the sources outside, ppm: more than in the fit itself.
Less is faster, and lets a prior that knows nothing take up more of the background."""
NULLS = 2
"""Fits of the turned prior."""
TIE = 2
"""Decimals of a turned prior's rank correlation with itself that count: some turns of a symmetric
object are equally unlike it, and rounding may not choose among them."""
MOST_ALIKE = 0.7
"""Rank correlation with itself up to which a turned prior is a null."""
MOST_DESCRIBED = 0.5
"""Fraction of the prior's variance that its turned cells may describe, over that of its own: a
ring of vials is turned onto itself, with other values, and its cells fit as well. Heads have 0.05
to 0.25 but for left to right (0.7 to 0.9), tubes 0.04 and 0.3."""
LARGER = 2.0
"""Factor on the expected sizes of cells in windows of space, at most."""
LEAST_MORE = 0.01
"""What a prior of that size has to explain more, for it to be compared with chance, which gains
0.015 to 0.15 and counts for no less than this."""
GROWN = 0.2
"""What it has to explain more beyond its null, relative to what chance gains, for the whole
factor. Of heads of 2 mm 0.2 where their relaxivity varies in space, below 0 with other faults;
of tubes too, and 0.04 of two bottles."""
NOTHING = 1e-6
"""Fraction of a variance that is none: below it rounding would choose among the turns."""
DROPPED, COUNTED = 0.03, 0.12
"""What a prior explains beyond its null, from which it counts at all, and in full. Contrasts that
know nothing reach -0.03 to 0.025, one that half follows the susceptibility 0.25 or more."""


class Verdict(NamedTuple):
    """Result of :func:`judge_prior`."""

    explained: float
    """Fraction of the local field's energy that the prior explains, on the coarse grid."""
    null: float
    """The same of the prior turned, mean of the turns, without what it shares with the prior; 0
    where no turn is a null."""
    trust: float
    """0: the prior is dropped, 1: it counts in full."""
    gains: tuple[float, ...]
    """Factor on the expected size of each basis: the part of its size that is not chance, and of
    cells in windows of space by how much they should be larger."""
    turns: tuple[str, ...]
    """How the prior was turned; none if whatever is turned is like the prior itself."""
    coarse_chi: F32
    """The prior as it was fitted on the coarse grid, ppm."""

    @property
    def beyond_null(self) -> float | None:
        """What the prior explains beyond its null; None where no turn is one."""
        return self.explained - self.null if self.turns else None

    @property
    def record(self) -> dict[str, Any]:
        """What is measured, as plain numbers; None of what takes a null where there is none."""
        return {
            'trust': self.trust,
            'gains': list(self.gains),
            'turns': list(self.turns),
            'beyond_null': self.beyond_null,
            'judged': {'explained': self.explained, 'null': self.null} if self.turns else None,
        }

    @property
    def warnings(self) -> tuple[str, ...]:
        """That the prior does not count in full, and why, or that it could not be judged."""
        if not self.turns:
            return (
                f'the prior could not be judged, and counts for {self.trust:.0%}: it explains '
                f'{self.explained:.0%} of the local field, and mirrored, turned or shifted it is '
                'like itself; compare with the conventional map',
            )
        if self.trust == 1:
            return ()
        counts = f'counts for {self.trust:.0%}' if self.trust else 'is dropped'
        map_is = '' if self.trust else ': the map is that of the field alone'
        return (
            f'the prior {counts}{map_is}: it explains {self.explained:.0%} of the local field, '
            f'and {max(self.null, 0):.0%} when it is turned ({" and ".join(self.turns)}) and '
            'knows nothing',
        )


def judge_prior(
    field: npt.NDArray,
    bases: Sequence[Basis],
    geometry: Geometry,
    field_sd: npt.NDArray,
    shape_sd: npt.NDArray | None = None,
) -> Verdict:
    """Compare what a prior explains of the field with what chance does.

    A prior of many cells explains some of any field: 0.1 to 0.35 of the local field's energy if
    its contrast knows nothing. So it is fitted once more with the voxels turned: mirrored, turned
    by half a turn, or shifted by half the region, of which those two are taken that are least like
    the prior itself (a head is nearly its own mirror image, left to right). With ``e`` and ``n``
    the energy explained, or the variance of one basis' part in space, of the prior and of the
    turned one, and ``rho`` the rank correlation of the two priors, chance has

        n' = (n - rho^2 e) / (1 - rho^2)

    since what is alike explains alike. The prior counts in full where ``e - n'`` is 0.12 or more,
    not at all below 0.03, and in proportion between. The expected size of a basis (a scale of the
    contrast's cells) is multiplied by ``sqrt(1 - n' / e)`` of its variances: a scale that takes
    up as much of the field when turned has nothing to say at that scale, and what it would take
    up is background. That of cells of the whole region is multiplied by no less than the same of
    the energies: turned against the field, cells may strain to parts that are as large.

    Whether contrast means the same everywhere the field tells too: all of this is tried with
    twice the expected sizes of cells in windows of space. Where ``e - n'`` is greater then, by a
    fifth of what ``n'`` gains or more, and is 0.24 or more as it was, their sizes are doubled;
    where by less, or from 0.12 to 0.24, by a smaller factor. A prior that is doubted gets no more
    freedom.

    Turns of a rank correlation above 0.7 are no null, and neither are those whose cells could
    describe the prior itself by other coefficients, to half of its variance (a ring of vials).
    Where there is no other, as of layers, ``e`` alone decides, and a warning says that the prior
    was not judged.

    Free voxels have no part in it: where the sources are strong, they describe any field. All fits
    are made on a grid of about 20,000 voxels, whose field and basis maps are means over
    blocks of voxels: no length of an object is assumed.

    Parameters
    ----------
    field : (X, Y, Z) ndarray
        Measured field, ppm; the shape's field is off it.
    bases : sequence of Basis
        The prior.
    geometry : Geometry
        Region of interest, voxel size (mm), direction of B0, threads.
    field_sd, shape_sd : (X, Y, Z) ndarray
        As in :func:`~precondqsm_bids.numerics.fit_prior`.

    Returns
    -------
    Verdict

    References
    ----------
    Permutation as a null: Fisher RA, The Design of Experiments, 1935, section 21.

    Examples
    --------
    >>> from precondqsm_bids.numerics import constant_parcels, forward_field
    >>> rng = np.random.default_rng(0); mask = np.ones((24, 24, 24), bool)
    >>> cells = ndimage.gaussian_filter(rng.normal(size=mask.shape), 2) > 0.05
    >>> field = forward_field(0.1 * cells, (1, 1, 1), (0, 0, 1))
    >>> field += rng.normal(0, 0.001, mask.shape); sd = np.full(mask.shape, 0.001)
    >>> geometry = Geometry(mask, (1, 1, 1), (0, 0, 1))
    >>> judge_prior(field, [constant_parcels(cells, mask)], geometry, sd).trust
    1.0
    >>> other = constant_parcels(rng.normal(size=mask.shape) > 0.2, mask)
    >>> judge_prior(field, [other], geometry, sd).trust
    0.0
    """
    coarse = _Coarse(geometry)
    images = [coarse.mean(image) for image in (field, field_sd)]
    sd_of_shape = None if shape_sd is None else coarse.mean(shape_sd)
    maps = [coarse.rows(basis) for basis in bases]

    # One thread for each fit: on so small a grid more of them wait for each other.
    alone = coarse.geometry._replace(workers=1)
    start = outer_start(images[0], images[1], alone, margin=coarse.margin)
    start = start._replace(outer_size=OUTER_SIZE)
    in_windows = [basis.lattice is not None for basis in bases]

    def fitted(maps: Sequence[sparse.csr_array], size: float) -> PriorFit:
        pairs = zip(maps, bases, strict=True)
        on_grid = [coarse.basis(rows, basis, size) for rows, basis in pairs]
        return fit_prior(images[0], on_grid, alone, images[1], sd_of_shape, OPTIONS, start)

    own = side_by_side(
        geometry.workers,
        *(partial(fitted, maps, size) for size in ((1.0, LARGER) if any(in_windows) else (1.0,))),
    )
    cells = [rows for rows, some in zip(maps, in_windows, strict=True) if not some] or maps
    turns = _least_alike(own[0].prior_chi[coarse.geometry.mask], cells, coarse.geometry.mask)
    if not turns:
        alone_trust = _trust(own[0].explained)
        ones = (1.0,) * len(bases)
        return Verdict(own[0].explained, 0.0, alone_trust, ones, (), own[0].prior_chi)

    def against_nulls(fit: PriorFit, size: float) -> _Trial:
        turned = [[rows[source] for rows in maps] for _, _, source in turns]
        nulls = side_by_side(geometry.workers, *(partial(fitted, rows, size) for rows in turned))
        return _trial(fit, nulls, [rho for _, rho, _ in turns])

    plain, size = against_nulls(own[0], 1.0), 1.0
    sure = np.clip((plain.beyond - COUNTED) / COUNTED, 0, 1)
    if len(own) > 1 and sure > 0 and own[1].explained > own[0].explained + LEAST_MORE:
        large = against_nulls(own[1], LARGER)
        grown = (large.beyond - plain.beyond) / max(large.null - plain.null, LEAST_MORE)
        size = float(LARGER ** (sure * np.clip(grown / GROWN, 0, 1)))
    kept = np.clip(1 - plain.chance, 0, 1)
    least = np.clip(plain.beyond / max(plain.own.explained, 1e-6), 0, 1)
    gains = np.sqrt(np.where(in_windows, kept, np.maximum(kept, least)))
    return Verdict(
        plain.own.explained,
        plain.null,
        _trust(plain.beyond),
        tuple(np.where(in_windows, size * gains, gains).tolist()),
        tuple(name for name, _, _ in turns),
        own[int(size > np.sqrt(LARGER))].prior_chi,
    )


class _Trial(NamedTuple):
    """A prior against what chance has of it."""

    own: PriorFit
    """The fit of the prior."""
    null: float
    """What chance explains."""
    chance: npt.NDArray[np.float64]
    """Part of the variance of each basis that is chance."""

    @property
    def beyond(self) -> float:
        """What the prior explains beyond chance."""
        return self.own.explained - self.null


def _trial(fit: PriorFit, nulls: Sequence[PriorFit], likeness: Sequence[float]) -> _Trial:
    """The fit of a prior against those of it turned, which are alike it by so much."""
    variance, explained, chance = np.square(fit.part_sd), [], []
    for null, rho in zip(nulls, likeness, strict=True):
        alike = rho**2
        explained.append((null.explained - alike * fit.explained) / (1 - alike))
        theirs = np.square(null.part_sd)
        chance.append(np.maximum(theirs - alike * variance, 0) / (1 - alike))
    share = np.mean(chance, axis=0) / np.maximum(variance, np.finfo(float).tiny)
    return _Trial(fit, float(np.mean(explained)), share)


def _trust(beyond: float) -> float:
    """How far a prior counts that explains this beyond its null."""
    return float(np.clip((beyond - DROPPED) / (COUNTED - DROPPED), 0, 1))


class _Coarse(CoarseRegion):
    """The prior on the grid of the blocks."""

    @cached_property
    def averages(self) -> sparse.csr_array:
        """What takes the mean over the voxels of each block, (blocks, voxels)."""
        count = self.number.size
        weights = 1 / self.count[self.number].astype(np.float32)
        rows = self.number.astype(np.int32), np.arange(count + 1, dtype=np.int32)
        return sparse.csr_array((weights, *rows), (count, self.count.size)).T.tocsr()

    def rows(self, basis: Basis) -> sparse.csr_array:
        """Cells of the coarse region, (voxels, cells): means of the weights of the voxels."""
        voxel, label, weight = cells_of(basis, self.mask)
        shape = self.number.size, int(label.max(initial=0)) + 1
        blocks = self.averages @ sparse.csr_array((weight, (voxel, label)), shape)
        return blocks[np.flatnonzero(self.geometry.mask)]

    def basis(self, rows: sparse.csr_array, like: Basis, size: float) -> Basis:
        """Basis of these cells on the coarse grid, in the windows of space of the fine one.

        Those in windows have ``size`` times their expected size.
        """
        mask, entries = self.geometry.mask, rows.tocoo()
        cells = entries.col.astype(np.int32)
        voxels = np.flatnonzero(mask)[entries.row]
        weight = np.zeros(mask.shape, np.float32)
        weight[mask] = rows.sum(axis=1)
        basis = Basis(
            np.full(mask.shape, -1, np.int32),
            weight,
            like.expected,
            (Overlap(voxels, cells, entries.data.astype(np.float32)),),
        )
        gain = like.gain
        if like.lattice is not None:
            first, second, third = (
                self._hats(axis, n) for axis, n in zip(like.lattice.axes, self.blocks, strict=True)
            )
            windows = lattice((first, second, third), [(voxels, cells)], mask.shape)
            basis = basis._replace(lattice=windows)
            gain = np.full(basis.parcels, size * (1.0 if gain is None else gain.mean()))
        return basis._replace(gain=None if gain is None else gain[: basis.parcels])

    def _hats(self, axis: Axis, block: int) -> Axis:
        """The windows along an axis, at the middles of the blocks."""
        place = axis.lower + axis.fraction
        starts = np.arange(0, place.size, block)
        middle = np.add.reduceat(place, starts) / np.diff([*starts, place.size])
        lower = np.clip(np.floor(middle), 0, axis.nodes - 2)
        fraction = np.clip(middle - lower, 0, 1).astype(np.float32)
        return Axis(lower.astype(np.int32), fraction, axis.nodes)


def _turns(mask: npt.NDArray[np.bool_]) -> Iterator[tuple[str, npt.NDArray[np.intp]]]:
    """Names of turns, and the voxel of the region that each voxel takes its prior from.

    The region's box is mirrored, turned by half a turn or shifted by half its length; where that
    meets no voxel of the region, the nearest one counts.
    """
    box = ndimage.find_objects(mask.astype(np.int8))[0]
    number = np.full(mask.shape, -1, np.intp)
    number[mask] = np.arange(np.count_nonzero(mask))
    mirrors = {'x': (0,), 'y': (1,), 'z': (2,), 'xy': (0, 1), 'yz': (1, 2), 'xz': (0, 2)}
    inside = number[box]
    moved = {f'mirror {name}': np.flip(inside, axes) for name, axes in mirrors.items()}
    moved |= {
        f'shift {name}': np.roll(inside, inside.shape[axis] // 2, axis)
        for axis, name in enumerate('xyz')
    }
    for name, source in moved.items():
        nearest = np.array(
            ndimage.distance_transform_edt(source < 0, return_distances=False, return_indices=True)
        )
        yield name, source[tuple(nearest)][mask[box]]


def _least_alike(
    prior: npt.NDArray, cells: Sequence[sparse.csr_array], mask: npt.NDArray[np.bool_]
) -> list[tuple[str, float, npt.NDArray[np.intp]]]:
    """Turns that make the prior least like itself: name, rank correlation, source voxels.

    Those that leave it alike, or its cells (voxels, cells), are no null, and left out.
    """
    _, number, count = np.unique(prior, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[number]  # the mean rank of equal values
    ranks -= ranks.mean()
    energy = max(float(ranks @ ranks), 1.0)
    turns = []
    for name, source in _turns(mask):
        turned = ranks[source] - ranks[source].mean()
        norm = np.sqrt(energy * max(float(turned @ turned), 1.0))
        turns.append((name, abs(float(ranks @ turned)) / norm, source))
    turns = [turn for turn in turns if round(turn[1], TIE) <= MOST_ALIKE]
    turns.sort(key=lambda turn: round(turn[1], TIE))
    columns = np.hstack([rows.toarray() for rows in cells]).astype(float)
    most = max(MOST_DESCRIBED * _described(prior, columns), NOTHING)
    return list(islice((t for t in turns if _described(prior, columns[t[2]]) <= most), NULLS))


def _described(prior: npt.NDArray, columns: npt.NDArray[np.float64]) -> float:
    """Fraction of a prior's variance that these cells describe."""
    left = prior - prior.mean(dtype=float)
    energy = float(left @ left)
    normal = columns.T @ columns
    left -= columns @ np.linalg.lstsq(normal, columns.T @ left, rcond=1e-6)[0]
    return 1 - float(left @ left) / energy if energy > 0 else 0.0
