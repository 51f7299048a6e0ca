"""Prior fit: the field chooses the coefficients of the prior.

A prior is a sum of basis maps ``sum_j c_j b_j``. Many maps cost no more than one when they are
given as a :class:`Basis`: integer labels (parcels) times a weight map, so that
``sum_j c_j b_j = c[labels] * weight``. What makes a prior is which labels and which weights;
the fit treats all alike.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage, sparse

from precondqsm_bids.numerics.background_removal import (
    DipoleSystem,
    Unknowns,
    noise_weights,
    pdf,
)
from precondqsm_bids.numerics.dipole import DipoleGrid
from precondqsm_bids.numerics.dipole_inversion import l2_inversion

F32 = npt.NDArray[np.float32]
OUTER_SIZE = 9.0
"""Expected size of the sources outside, ppm: tissue against air."""
SIZE = 0.75
"""Expected size of a constant, relative to the size of the local field."""
FLOOR = 0.35
"""What no prior can describe of the field, relative to the size of the local field."""

OWN_LEAST = 4.0
"""Standard deviations that a source must exceed to become one of its own."""
OWN_GAIN = 3.0
"""Expected size of such a source, relative to what the inversion shows of it."""
OWN_ROUNDS = 2
"""Rounds of the fit with them, the last ones."""

LEAST_BLOCKS = 32
"""Blocks of the region over which standard errors are counted, at least."""


TRANSITION = 0.5
"""Half width of the transition between two contrast cells, in widths of the narrower."""


class Overlap(NamedTuple):
    """Voxels that belong to a second parcel too, because they lie near an edge of the first."""

    voxels: npt.NDArray[np.int64]
    """Each voxel once, as its index in the flattened (X, Y, Z)."""
    labels: npt.NDArray[np.int32]
    """Parcel of each of them."""
    weight: F32
    """What that parcel's coefficient is multiplied by."""


class Basis(NamedTuple):
    """Basis maps of a prior: one coefficient per parcel."""

    labels: npt.NDArray[np.int32]
    """Parcel of each voxel, 0 to ``count - 1``, (X, Y, Z); negative where there is none."""
    weight: F32
    """Map that the coefficients multiply, ppm or dimensionless, (X, Y, Z)."""
    expected: float
    """Coefficient where the field does not tell: 1 for a susceptibility map, 0 for a constant."""
    overlaps: tuple[Overlap, ...] = ()
    """Further parcels of voxels near an edge."""
    gain: npt.NDArray[np.float64] | None = None
    """Factor on the expected size of each coefficient, (parcels,); 1 if omitted."""

    @property
    def parcels(self) -> int:
        """Number of parcels."""
        last = [int(o.labels.max()) for o in self.overlaps if o.labels.size]
        return max([int(self.labels.max()), *last]) + 1


class PriorFit(NamedTuple):
    """What :func:`fit_prior` found."""

    prior_chi: F32
    """Fitted prior, ppm, (X, Y, Z), zero outside the mask; of constants alone, its median is 0."""
    coefficients: tuple[npt.NDArray[np.float64], ...]
    """One array per basis."""
    own_chi: F32
    """What of the prior are sources of their own, which no basis describes, ppm, (X, Y, Z)."""
    surface_chi: F32
    """What the fit adds to the shape's susceptibility at its surface, ppm, (X, Y, Z)."""
    inner_size: float
    """Expected size of the fitted susceptibility, ppm: that of the local field."""
    explained: float
    """Share of the local field's energy that the fitted prior explains, at most 1."""
    shares: tuple[float, ...]
    """Share of each basis in ``explained``, and last of sources of their own, if they were asked
    for; they add up to it."""
    down_weighted: float
    """Share of the voxels that the robust weights hold at less than half."""


def constant_parcels(labels: npt.NDArray, mask: npt.NDArray[np.bool_]) -> Basis:
    """One constant (ppm) per label: a contrast cell, a tissue class, a supervoxel.

    Parameters
    ----------
    labels : (X, Y, Z) ndarray of int
        Any integers; each distinct one inside the mask becomes a parcel.
    mask : (X, Y, Z) ndarray of bool
        Region of interest.

    Examples
    --------
    >>> constant_parcels(np.array([[[7, 7, 3]]]), np.ones((1, 1, 3), bool)).labels
    array([[[1, 1, 0]]], dtype=int32)
    """
    out = np.full(mask.shape, -1, np.int32)
    out[mask] = np.unique(labels[mask], return_inverse=True)[1]
    return Basis(out, mask.astype(np.float32), 0.0)


def whole_map(chi: npt.NDArray, mask: npt.NDArray[np.bool_]) -> Basis:
    """One coefficient for a whole susceptibility map.

    Parameters
    ----------
    chi : (X, Y, Z) ndarray
        Susceptibility map, ppm.
    mask : (X, Y, Z) ndarray of bool
        Region of interest.

    Examples
    --------
    >>> whole_map(np.array([[[0.5, 0.0]]]), np.ones((1, 1, 2), bool)).parcels
    1
    """
    return Basis(np.where(mask, 0, -1).astype(np.int32), (chi * mask).astype(np.float32), 1.0)


def clusters(
    chi: npt.NDArray, mask: npt.NDArray[np.bool_], threshold: float | None = None
) -> Basis:
    """One coefficient per connected cluster of a susceptibility map, one for what is left.

    A cluster is a connected set of voxels above ``threshold`` (a tenth of the map's 99.9th
    percentile above its median if omitted, but at least five robust standard deviations), grown
    by two voxels, so that the border of an object belongs to it. Clusters of less than 27 voxels
    join the rest.

    Parameters
    ----------
    chi : (X, Y, Z) ndarray
        Susceptibility map, ppm, not negative.
    mask : (X, Y, Z) ndarray of bool
        Region of interest.
    threshold : float, optional
        Least value of a cluster's core, ppm.

    Examples
    --------
    >>> chi = np.zeros((12, 12, 12)); chi[1:5, 1:5, 1:5] = 1; chi[7:11, 7:11, 7:11] = 0.5
    >>> clusters(chi, np.ones(chi.shape, bool)).parcels
    3
    """
    values = chi[mask]
    if threshold is None:
        middle = np.median(values)
        noise = 1.4826 * float(np.median(np.abs(values - middle)))
        threshold = float(middle) + max(5 * noise, 0.1 * float(np.percentile(values, 99.9)))
    found, _ = ndimage.label((chi > threshold) & mask)
    sizes = np.bincount(found.ravel())
    keep = np.flatnonzero(sizes >= 27)
    keep = keep[keep > 0]
    compact = np.zeros(sizes.size, np.int32)
    compact[keep] = np.arange(1, keep.size + 1)
    labels = compact[found]
    if keep.size:
        distance, nearest = ndimage.distance_transform_edt(labels == 0, return_indices=True)
        grown = labels[tuple(nearest)]
        labels = np.where(distance <= 2, grown, 0)
    return Basis(np.where(mask, labels, -1).astype(np.int32), (chi * mask).astype(np.float32), 1.0)


class Scale(NamedTuple):
    """One scale of the contrast prior: histogram bins within blocks of space."""

    block: float
    """Edge of a block, mm; infinite for the whole region."""
    bins: tuple[int, ...]
    """Bins per contrast."""
    centred: bool
    """Whether a block lies at the centre of the region, or a wall."""


SCALES = (
    Scale(np.inf, (24, 12), False),
    Scale(60.0, (8, 8), False),
    Scale(30.0, (6, 6), True),
    Scale(15.0, (4, 4), False),
)


def bin_edges(values: npt.NDArray, bins: int) -> npt.NDArray[np.float64]:
    """Inner edges of ``bins`` bins, half by volume (quantiles) and half by value range.

    Quantiles alone merge small objects of strong contrast, equal steps alone waste bins on
    values that hardly occur. The range ends at the 0.1st and 99.9th percentile.

    >>> bin_edges(np.arange(101.0), 4).round(1)
    array([33.4, 50. , 66.6])
    """
    by_value = (bins - 1) // 2 + (bins - 1) % 2
    by_volume = bins - 1 - by_value
    shares = np.linspace(0, 100, by_volume + 2)[1:-1]
    low, high, *quantiles = np.percentile(values, [0.1, 99.9, *shares])
    equal = np.linspace(low, high, by_value + 2)[1:-1]
    edges = np.unique(np.concatenate([equal, quantiles]))
    return edges[edges > np.min(values)]  # below the least value there is nothing to tell apart


def _outwards(x: npt.NDArray) -> npt.NDArray:
    """Round away from zero, with some tolerance for zero itself."""
    return np.where(np.abs(x) < 1e-6, 0, np.sign(x) * np.ceil(np.abs(x)))


def contrast_cells(
    contrasts: Sequence[npt.NDArray],
    mask: npt.NDArray[np.bool_],
    voxel_size: npt.ArrayLike,
    scales: Sequence[Scale] = SCALES,
) -> list[Basis]:
    """Cells of the contrasts' joint histogram times blocks of space, one basis per scale.

    Static dephasing says that susceptibility is a function of R2'; here the field learns the
    function, as one constant per cell, coarse over the whole region and finer in blocks.

    Parameters
    ----------
    contrasts : sequence of (X, Y, Z) ndarray
        Maps on one grid, such as R2* and the first magnitude, any unit. NaN where a map is not
        known, as R2* of voxels without a second echo: they are a bin of their own, and not the
        lowest.
    mask : (X, Y, Z) ndarray of bool
        Region of interest.
    voxel_size : (3,) array_like
        Voxel size, mm.
    scales : sequence of Scale
        Blocks and bins.

    Returns
    -------
    list of Basis

    Examples
    --------
    >>> r2star = np.arange(8.0).reshape(2, 2, 2)
    >>> cells = contrast_cells([r2star], np.ones((2, 2, 2), bool), (1, 1, 1),
    ...                        [Scale(np.inf, (4,), False)])
    >>> cells[0].parcels
    4
    """
    position = [
        (index - np.mean(index)) * size
        for index, size in zip(np.nonzero(mask), np.asarray(voxel_size, float), strict=True)
    ]
    values = [np.asarray(contrast)[mask] for contrast in contrasts]
    voxels = np.flatnonzero(mask)
    bases = []
    for scale in scales:
        block = np.zeros(voxels.size, np.int64)
        if np.isfinite(scale.block):
            for coordinate in position:
                # Symmetric about the centre, with the other walls where no voxel is centred, so
                # that the cells do not depend on the direction in which an axis is stored.
                number = coordinate / (scale.block * 0.9987)
                number = np.round(number) if scale.centred else _outwards(number)
                number = (number - number.min()).astype(np.int64)
                block = block * (number.max() + 1) + number
        places = [_places(value, bins) for value, bins in zip(values, scale.bins, strict=False)]
        bases.append(_soft_parcels(block, places, voxels, mask))
    return bases


class _Places(NamedTuple):
    """Where the voxels stand in the bins of one contrast."""

    bins: npt.NDArray[np.int64]
    """Bin of each voxel."""
    other: npt.NDArray[np.int64]
    """The neighbouring bin at its nearest edge."""
    share: F32
    """Share of that bin."""
    number: int
    """Number of bins."""


def _places(values: npt.NDArray, bins: int) -> _Places:
    """Bins of one contrast; values that are not known (NaN) are a bin of their own, the last."""
    known = np.isfinite(values)
    if known.all():
        return _Places(*_soft_bin(values, bin_edges(values, bins)), bins)
    found = np.full(values.size, bins, np.int64)
    other, share = found.copy(), np.zeros(values.size, np.float32)
    if known.any():
        found[known], other[known], share[known] = _soft_bin(
            values[known], bin_edges(values[known], bins)
        )
    return _Places(found, other, share, bins + 1)


def _soft_bin(
    values: npt.NDArray, edges: npt.NDArray
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], F32]:
    """Bin of each value, the neighbouring bin at its nearest edge, and the share of that bin.

    The share is a half on the edge and falls to zero at ``TRANSITION`` widths from it: a value
    that moves across an edge moves from one bin to the other by and by. Without this the rounding
    of a float decides which cell a voxel belongs to, and by how much its prior jumps.
    """
    edges, values = edges.astype(np.float32), values.astype(np.float32, copy=False)
    bins = np.digitize(values, edges)
    if edges.size == 0:
        return bins, bins, np.zeros(values.size, np.float32)
    width = np.diff(edges) if edges.size > 1 else np.array([np.ptp(values) / 2])
    width = np.minimum(np.append(width[0], width), np.append(width, width[-1]))
    reach = np.maximum(TRANSITION * width, np.finfo(np.float32).tiny)
    below, above = np.maximum(bins - 1, 0), np.minimum(bins, edges.size - 1)
    from_below = np.abs(values - edges[below]) / reach[below]
    from_above = np.abs(values - edges[above]) / reach[above]
    from_below[bins == 0] = from_above[bins == edges.size] = np.inf
    other = np.where(from_below < from_above, bins - 1, bins + 1)
    share = np.float32(0.5) * np.clip(1 - np.minimum(from_below, from_above), 0, None)
    return bins, other, share


def _soft_parcels(
    block: npt.NDArray[np.int64],
    places: Sequence[_Places],
    voxels: npt.NDArray[np.int64],
    mask: npt.NDArray[np.bool_],
) -> Basis:
    """Constants of the cells of bins times blocks, with overlaps where a voxel has two bins."""
    entries = []
    for corner in np.ndindex(*(2,) * len(places)):
        key, weight = block, np.ones(voxels.size, np.float32)
        for second, (here, other, share, number) in zip(corner, places, strict=True):
            key = key * number + (other if second else here)
            weight = weight * (share if second else 1 - share)
        used = np.flatnonzero(weight > 0) if any(corner) else slice(None)
        entries.append((key[used], weight[used], voxels[used]))
    used = np.zeros(
        (int(block.max()) + 1) * int(np.prod([place.number for place in places])), bool
    )
    for key, _, _ in entries:
        used[key] = True
    parcel_of = np.cumsum(used, dtype=np.int32) - 1
    own, *others = (parcel_of[key] for key, _, _ in entries)
    labels, weight = np.full(mask.shape, -1, np.int32), np.zeros(mask.shape, np.float32)
    labels[mask], weight[mask] = own, entries[0][1]
    overlaps = tuple(
        Overlap(at, label, w) for label, (_, w, at) in zip(others, entries[1:], strict=True)
    )
    return Basis(labels, weight, 0.0, overlaps)


def own_sizes(residual_chi: npt.NDArray, mask: npt.NDArray[np.bool_]) -> F32:
    """Expected size of the sources that a prior lacks, from what the inversion shows of them.

    ``3 sqrt(chi^2 - (4 sd)^2)`` with ``chi`` the susceptibility of the residual field, relative to
    its median, and ``sd`` its robust standard deviation; zero below four of them. Regularised
    inversion shows about half of a small source, but shows where it is.

    Parameters
    ----------
    residual_chi : (X, Y, Z) ndarray
        Susceptibility from the field that a fitted prior leaves, ppm.
    mask : (X, Y, Z) ndarray of bool
        Region of interest.

    Examples
    --------
    >>> chi = np.random.default_rng(0).normal(0, 0.01, (20, 20, 20)); chi[5, 5, 5] = 0.1
    >>> sizes = own_sizes(chi, np.ones(chi.shape, bool))
    >>> print(np.count_nonzero(sizes), sizes[5, 5, 5].round(1))
    1 0.3
    """
    values = residual_chi[mask] - np.median(residual_chi[mask])
    least = OWN_LEAST * 1.4826 * np.median(np.abs(values))
    sizes = np.zeros(mask.shape, np.float32)
    sizes[mask] = OWN_GAIN * np.sqrt(np.maximum(values**2 - least**2, 0))
    return sizes


def fit_prior(
    field: npt.NDArray,
    bases: Sequence[Basis],
    mask: npt.NDArray[np.bool_],
    voxel_size: npt.ArrayLike,
    b0_dir: npt.ArrayLike,
    field_sd: npt.NDArray | None = None,
    shape_sd: npt.NDArray | None = None,
    iterations: int = 150,
    rounds: int = 5,
    inner_size: float | None = None,
    own_sources: bool = False,
    workers: int = 1,
) -> PriorFit:
    """Fit the coefficients of a prior to the field, together with the sources outside.

    Solves ``min_(x, c) || W (f - D (x + sum_j c_j b_j)) ||^2`` by conjugate gradients on the
    normal equations, ``x`` outside the mask and ``c`` inside. Every unknown is expressed in
    units of its expected size and starts at its expectation, so that an early stop leaves it
    there where the field does not tell. The iterations are split into ``rounds``; before each
    but the first, voxels whose residual exceeds four robust standard deviations lose weight
    (Huber), which keeps wrapped voxels out of the fit.

    With ``own_sources``, what the fit leaves is inverted before the last two rounds
    (:func:`~precondqsm_bids.numerics.l2_inversion`, rule ``risk``), and where that shows a source
    (:func:`own_sizes`) each voxel becomes an unknown of its own: lesions that no contrast shows,
    parts of a nucleus that its cells do not follow.

    Memory: 52 bytes per voxel of the mask's box with its margin, and 8 per voxel of the mask and
    parcel that it belongs to (a contrast cell of two contrasts: up to four at each scale; 16 if
    that is one), 20 while it starts;
    transforms: two pairs an iteration, however many parcels there are, and a PDF of 30
    iterations before, unless ``inner_size`` is given. Sources of their own take one inversion,
    whose memory comes on top.

    Parameters
    ----------
    field : (X, Y, Z) ndarray
        Measured field, ppm; the shape's field may be off it already.
    bases : sequence of Basis
        The prior.
    mask : (X, Y, Z) ndarray of bool
        Region of interest.
    voxel_size : (3,) array_like
        Voxel size, mm.
    b0_dir : (3,) array_like
        Direction of B0 along the voxel axes.
    field_sd : (X, Y, Z) ndarray, optional
        Standard deviation of the field, ppm. The weights are
        ``1 / sqrt(field_sd^2 + (0.35 inner_size)^2)``: with noise alone, a strong source, whose
        signal decays fast, would have no say in its own coefficient.
    shape_sd : (X, Y, Z) ndarray, optional
        Expected error of the shape's susceptibility, ppm: where it is not zero, the fit has a
        source of that size too (``surface_chi``), so that an error of the object's surface does
        not become susceptibility inside. Only for a prior that can describe what is inside.
    iterations : int
        Conjugate-gradient iterations, of all rounds together.
    rounds : int
        Number of reweighting rounds.
    inner_size : float, optional
        Expected size of the susceptibility inside, ppm; the root mean square of the local field
        that a PDF of 30 iterations leaves if omitted.
    own_sources : bool
        Whether what the fit leaves gives the prior sources of their own. Only for a prior that
        describes most of what is inside: what a prior of few coefficients leaves is its error.
    workers : int
        Threads of the Fourier transforms.

    Returns
    -------
    PriorFit

    Raises
    ------
    ValueError
        No basis, an empty mask, or shapes that differ.

    Examples
    --------
    A diamagnetic block that R2' took for a paramagnetic one:

    >>> from precondqsm_bids.numerics.dipole import forward_field
    >>> mask = np.ones((24, 24, 24), bool); chi = np.zeros(mask.shape)
    >>> chi[8:16, 8:16, 8:16] = 0.5
    >>> field = forward_field(-chi, (1, 1, 1), (0, 0, 1))
    >>> fit = fit_prior(field, [whole_map(chi, mask)], mask, (1, 1, 1), (0, 0, 1))
    >>> print(round(float(fit.coefficients[0][0]), 1))
    -1.0

    References
    ----------
    The extended projection: Liu T et al., NMR Biomed 2011;24:1129, with unknowns inside.
    """
    if not bases:
        raise ValueError('a prior to fit takes at least one basis')
    if not mask.any():
        raise ValueError('the mask is empty: there is no field to fit a prior to')
    for basis in bases:
        if not basis.labels.shape == basis.weight.shape == mask.shape == field.shape:
            raise ValueError(f'a basis {basis.labels.shape} and the field {field.shape} differ')
    if inner_size is None:
        weights = None if field_sd is None else noise_weights(field_sd, mask)
        local = pdf(field, mask, voxel_size, b0_dir, weights, workers=workers).local_field
        inner_size = _robust_rms(local[mask], weights[mask] if weights is not None else None)
    sd = np.zeros(mask.shape, np.float32) if field_sd is None else field_sd
    weights = noise_weights(sd, mask, FLOOR * inner_size)

    system = DipoleSystem(mask, voxel_size, b0_dir, workers)
    grid = system.grid
    inside = np.zeros(grid.shape, bool)
    inside[grid.inner] = mask[grid.box]
    rows = np.flatnonzero(inside)
    size = np.concatenate([_expected_size(basis, inner_size) for basis in bases])
    start = np.concatenate([np.full(basis.parcels, basis.expected) for basis in bases])
    columns = _columns(bases, mask, grid, size)
    unknowns = Unknowns(columns, start / size, system.split(columns))
    expected_squared = np.where(inside, 0, np.float32(OUTER_SIZE**2))
    if shape_sd is not None:
        expected_squared += grid.embed(shape_sd * mask) ** 2
    w_squared = grid.embed(weights) ** 2

    def fitted() -> F32:
        chi = np.zeros(grid.shape, np.float32)
        chi[grid.inner] = unknowns.chi(unknowns.values).reshape(chi[grid.inner].shape)
        return chi

    sources = fitted()
    residual = grid.embed(field * mask)
    if sources.any():
        residual -= system.convolve(sources)
    robust = np.ones(np.count_nonzero(mask), np.float32)
    w_robust = w_squared.copy()
    own_squared = np.zeros_like(sources)
    for i in range(rounds):
        if i:
            robust = _huber(residual.reshape(-1)[rows], w_squared.reshape(-1)[rows])
            w_robust.reshape(-1)[rows] = w_squared.reshape(-1)[rows] * robust
        if own_sources and i == max(rounds - OWN_ROUNDS, 1) and residual[inside].any():
            shown = l2_inversion(
                grid.extract(residual, mask.shape),
                mask,
                voxel_size,
                b0_dir,
                field_sd=field_sd,
                workers=workers,
                rule='risk',
            )
            own_squared = grid.embed(own_sizes(shown.chi, mask)) ** 2
            expected_squared += own_squared
        steps = iterations // rounds + (iterations % rounds if i == 0 else 0)
        system.descend(sources, residual, w_robust, expected_squared, steps, unknowns)

    prior = fitted()
    box, inside = grid.inner, mask[grid.box]
    expected_squared, own_squared = expected_squared[box], own_squared[box]
    surface = np.zeros(inside.shape, np.float32)
    np.subtract(sources[box], prior[box], out=surface, where=inside & (expected_squared > 0))
    # Where a voxel of the surface is a source of its own too, each has its part by its variance.
    own = np.zeros_like(surface)
    np.divide(surface * own_squared, expected_squared, out=own, where=own_squared > 0)
    surface -= own
    prior[box] += own
    constant = np.float32(0)
    if all(basis.expected == 0 for basis in bases):
        # A constant over the region is the field of its surroundings: the fit cannot tell it.
        constant = np.median(prior[box][inside])
        prior[box][inside] -= constant
    field_of_prior = system.convolve(prior)[box]
    residual, w_robust = residual[box], w_robust[box]
    total = float(np.sum((w_robust * (residual + field_of_prior) ** 2), dtype=float))
    left = float(np.sum(w_robust * residual**2, dtype=float))
    last = np.cumsum([basis.parcels for basis in bases])
    number = np.searchsorted(last, np.arange(size.size), side='right')
    alone = [np.where(number == i, unknowns.values, 0) for i in range(last.size)]
    parts = _centred([unknowns.chi(v)[inside.reshape(-1)] for v in alone], constant)
    if own_sources:
        parts.append(own[inside])

    def in_volume(of_box: F32) -> F32:
        out = np.zeros(mask.shape, np.float32)
        out[grid.box] = of_box
        return out

    return PriorFit(
        grid.extract(prior, mask.shape),
        tuple(np.split(size * unknowns.values, last[:-1])),
        in_volume(own),
        in_volume(surface),
        inner_size,
        1 - left / total if total > 0 else 0.0,
        _shares(system, parts, inside, field_of_prior, residual, w_robust, total),
        float(np.mean(robust < 0.5)),
    )


def _centred(parts: list[F32], constant: np.float32) -> list[F32]:
    """The parts of a sum that ``constant`` was taken off: each its median, and the rest evenly."""
    if not constant:
        return parts
    medians = [np.median(part) for part in parts]
    rest = (constant - sum(medians)) / len(parts)
    return [part - (median + rest) for part, median in zip(parts, medians, strict=True)]


def _shares(
    system: DipoleSystem,
    parts: list[F32],
    inside: npt.NDArray[np.bool_],
    field_of_prior: F32,
    residual: F32,
    w_squared: F32,
    total: float,
) -> tuple[float, ...]:
    """What each part of the prior explains of the local field's energy; all in the mask's box.

    With ``g`` the local field, ``r`` what is left of it and ``p_j`` the field of each part of the
    prior, the energy explained is ``<g, W^2 g> - <r, W^2 r> = sum_j <p_j, W^2 (g + r)>``: each
    part's gain, averaged over the orders in which the parts can be added. It is negative for a
    part that the field speaks against.

    References
    ----------
    Shapley LS, Contributions to the Theory of Games II, 1953;307 (the value of a player).
    """
    both = w_squared * (field_of_prior + 2 * residual)
    source = np.zeros(system.grid.shape, np.float32)

    def gain(part: F32) -> float:
        field = field_of_prior
        if len(parts) > 1:
            source[system.grid.inner][inside] = part
            field = system.convolve(source)[system.grid.inner]
        return float(np.sum(field * both, dtype=float))

    return tuple(gain(part) / total if total > 0 else 0.0 for part in parts)


def coefficient_errors(
    field: npt.NDArray,
    basis: Basis,
    fit: PriorFit,
    mask: npt.NDArray[np.bool_],
    voxel_size: npt.ArrayLike,
    b0_dir: npt.ArrayLike,
    field_sd: npt.NDArray | None = None,
    block: float = 30.0,
    workers: int = 1,
) -> npt.NDArray[np.float64]:
    """Standard errors of the coefficients of a basis of few parcels.

    With ``U`` the fields of the basis maps and ``y`` the measured one, all after PDF, and ``r = y
    - U c``, the errors are the roots of the diagonal of

        N^-1 [ sum_B s_B s_B' ] N^-1 + diag(N^-1 U' W^2 r)^2,    N = U' W^2 U,
        s_B = (1 - U_B' W^2 U_B N^-1)^-1 U_B' W^2 r_B

    with blocks ``B`` of ``block`` to a side: what the model leaves is counted with its correlation
    in space, so that an unknown source counts as much as noise does. This is the jackknife over
    blocks, the coefficients being found again without each of them: most of a small parcel's field
    lies in one or two blocks, which the fit follows. The last term is what an early stop leaves. A
    parcel whose field is gone after PDF has an infinite error.

    Parameters
    ----------
    field, mask, voxel_size, b0_dir : array_like
        As in :func:`fit_prior`.
    basis : Basis
        The only basis of the fit.
    fit : PriorFit
        What :func:`fit_prior` found.
    field_sd : (X, Y, Z) ndarray, optional
        Standard deviation of the field, ppm, as the fit had it.
    block : float
        Edge of a block, mm; less in a region of fewer than 32 such blocks.
    workers : int
        Threads of the Fourier transforms.

    Returns
    -------
    (parcels,) ndarray
        In the unit of the coefficients. One PDF of 30 iterations per parcel.

    References
    ----------
    White, Econometrica 1980;48:817; clustered: Liang & Zeger, Biometrika 1986;73:13; without the
    block itself: Bell & McCaffrey, Surv Methodol 2002;28:169.

    Examples
    --------
    >>> from precondqsm_bids.numerics.dipole import forward_field
    >>> rng = np.random.default_rng(0); mask = np.ones((24, 24, 24), bool)
    >>> chi = np.zeros(mask.shape); chi[8:16, 8:16, 8:16] = 0.5
    >>> field = forward_field(chi, (1, 1, 1), (0, 0, 1)) + rng.normal(0, 0.01, chi.shape)
    >>> basis = whole_map(chi, mask)
    >>> fit = fit_prior(field, [basis], mask, (1, 1, 1), (0, 0, 1))
    >>> error = coefficient_errors(field, basis, fit, mask, (1, 1, 1), (0, 0, 1))
    >>> print(abs(fit.coefficients[0] - 1) < 3 * error, error < 0.02)
    [ True] [ True]
    """
    sd = np.zeros(mask.shape, np.float32) if field_sd is None else field_sd
    weights = noise_weights(sd, mask, FLOOR * fit.inner_size)
    system = DipoleSystem(mask, voxel_size, b0_dir, workers)

    def projected(values: npt.NDArray) -> npt.NDArray[np.float64]:
        local = pdf(values, mask, voxel_size, b0_dir, weights, workers=workers).local_field
        return (local * weights)[mask].astype(np.float64)

    def field_of(parcel: int) -> npt.NDArray:
        chi = np.where(basis.labels == parcel, basis.weight, 0)
        return system.grid.extract(system.convolve(system.grid.embed(chi)), mask.shape)

    u = np.stack([projected(field_of(j)) for j in range(basis.parcels)], axis=1)
    r = projected(field) - u @ fit.coefficients[0]
    normal = u.T @ u
    known = np.diag(normal) > 1e-6 * np.max(np.diag(normal), initial=0.0)
    errors = np.full(basis.parcels, np.inf)
    if not known.any():
        return errors
    size = np.asarray(voxel_size, float)
    edge = min(block, float(np.prod(size) * len(r) / LEAST_BLOCKS) ** (1 / 3))
    cells = [
        np.floor(i * d / edge).astype(int) for i, d in zip(np.nonzero(mask), size, strict=True)
    ]
    number = np.ravel_multi_index(cells, [int(c.max()) + 1 for c in cells])
    number = np.unique(number, return_inverse=True)[1]
    u = u[:, known]
    inverse = np.linalg.pinv(u.T @ u)
    scores = np.stack([np.bincount(number, column * r) for column in u.T], axis=1)
    stopped = inverse @ scores.sum(axis=0)
    share = np.stack(
        [np.stack([np.bincount(number, a * b) for a in u.T], axis=1) for b in u.T], axis=2
    )
    free = np.eye(u.shape[1]) - share @ inverse
    without = np.linalg.solve(free, scores[..., None])[..., 0]
    variance = np.diag(inverse @ (without.T @ without) @ inverse)
    errors[known] = np.sqrt(np.maximum(variance, 0) + stopped**2)
    return errors


def _robust_rms(values: npt.NDArray, weights: npt.NDArray | None) -> float:
    """Root mean square, unreliable voxels counted by their weight, clipped at its 99.9th."""
    values = np.minimum(np.abs(values), np.percentile(np.abs(values), 99.9))
    return max(float(np.sqrt(np.average(values.astype(float) ** 2, weights=weights))), 1e-6)


def _huber(residual: npt.NDArray, w_squared: npt.NDArray) -> F32:
    """Weights that turn squares into absolute values beyond four robust standard deviations."""
    scaled = np.abs(residual) * np.sqrt(w_squared)
    limit = 4 * 1.4826 * float(np.median(scaled)) + np.finfo(np.float32).tiny
    return np.minimum(limit / np.maximum(scaled, limit * 1e-6), 1).astype(np.float32)


def _columns(
    bases: Sequence[Basis],
    mask: npt.NDArray[np.bool_],
    grid: DipoleGrid,
    size: npt.NDArray[np.float64],
) -> sparse.csr_array:
    """``E s`` of :class:`~precondqsm_bids.numerics.background_removal.Unknowns`."""
    row_of = np.zeros(mask.shape, np.int32)
    of_box = row_of[grid.box]
    of_box[:] = np.arange(of_box.size).reshape(of_box.shape)
    voxels = np.flatnonzero(mask)
    rows, columns, values, first = [], [], [], 0
    parts: list[tuple[npt.NDArray, npt.NDArray, npt.NDArray]]
    for basis in bases:
        labels = basis.labels[mask]
        used = np.flatnonzero(labels >= 0)
        parts = [(voxels[used], labels[used], basis.weight[mask][used])]
        parts += [(o.voxels, o.labels, o.weight) for o in basis.overlaps]
        for voxel, label, weight in parts:
            column = label.astype(np.int32) + first
            rows.append(row_of.reshape(-1)[voxel])
            columns.append(column)
            values.append(weight * size[column].astype(np.float32))
        first += basis.parcels
    entries = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
    return sparse.csr_array(entries, shape=(of_box.size, first))


def _expected_size(basis: Basis, inner_size: float) -> npt.NDArray[np.float64]:
    """Expected size of the coefficients: ppm of a constant, else relative to the map."""
    if basis.expected == 0:
        gain = np.ones(basis.parcels) if basis.gain is None else basis.gain
        return SIZE * inner_size * gain
    values = basis.weight[basis.weight != 0].astype(float)
    rms = float(np.sqrt(np.mean(values**2))) if values.size else 0.0  # of a map that is zero
    return np.full(basis.parcels, max(inner_size / max(rms, 1e-6), 0.5))
