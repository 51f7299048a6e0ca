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
from scipy import fft, ndimage

from precondqsm_bids.numerics.background_removal import dot, noise_weights, pdf
from precondqsm_bids.numerics.dipole import dipole_kernel, solver_grid

F32 = npt.NDArray[np.float32]
OUTER_SIZE = 9.0
"""Expected size of the sources outside, ppm: tissue against air."""
FLOOR = 0.35
"""What no prior can describe of the field, relative to the size of the local field."""


class Basis(NamedTuple):
    """Basis maps of a prior: one coefficient per parcel."""

    labels: npt.NDArray[np.int32]
    """Parcel of each voxel, 0 to ``count - 1``, (X, Y, Z); negative where there is none."""
    weight: F32
    """Map that the coefficients multiply, ppm or dimensionless, (X, Y, Z)."""
    expected: float
    """Coefficient where the field does not tell: 1 for a susceptibility map, 0 for a constant."""

    @property
    def parcels(self) -> int:
        """Number of parcels."""
        return int(self.labels.max()) + 1


class PriorFit(NamedTuple):
    """What :func:`fit_prior` found."""

    prior_chi: F32
    """Fitted prior, ppm, (X, Y, Z), zero outside the mask; of constants alone, its median is 0."""
    coefficients: tuple[npt.NDArray[np.float64], ...]
    """One array per basis."""
    inner_size: float
    """Expected size of the fitted susceptibility, ppm: that of the local field."""
    explained: float
    """Share of the local field's energy that the fitted prior explains, at most 1."""
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
    low, high = np.percentile(values, (0.1, 99.9))
    by_value = (bins - 1) // 2 + (bins - 1) % 2
    by_volume = bins - 1 - by_value
    equal = np.linspace(low, high, by_value + 2)[1:-1]
    quantiles = np.percentile(values, np.linspace(0, 100, by_volume + 2)[1:-1])
    return np.unique(np.concatenate([equal, quantiles]))


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
        Maps on one grid, such as R2* and the first magnitude, any unit.
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
    bases = []
    for scale in scales:
        key = np.zeros(len(position[0]), np.int64)
        for value, bins in zip(values, scale.bins, strict=False):
            key = key * bins + np.digitize(value, bin_edges(value, bins))
        if np.isfinite(scale.block):
            for coordinate in position:
                # Symmetric about the centre, with the other walls where no voxel is centred, so
                # that the cells do not depend on the direction in which an axis is stored.
                block = coordinate / (scale.block * 0.9987)
                block = np.round(block) if scale.centred else _outwards(block)
                key = key * 64 + (block.astype(np.int64) + 32) % 64
        labels = np.zeros(mask.shape, np.int64)
        labels[mask] = key
        bases.append(constant_parcels(labels, mask))
    return bases


def fit_prior(
    field: npt.NDArray,
    bases: Sequence[Basis],
    mask: npt.NDArray[np.bool_],
    voxel_size: npt.ArrayLike,
    b0_dir: npt.ArrayLike,
    field_sd: npt.NDArray | None = None,
    iterations: int = 90,
    rounds: int = 3,
    inner_size: float | None = None,
    workers: int = 1,
) -> PriorFit:
    """Fit the coefficients of a prior to the field, together with the sources outside.

    Solves ``min_(x, c) || W (f - D (x + sum_j c_j b_j)) ||^2`` by conjugate gradients on the
    normal equations, ``x`` outside the mask and ``c`` inside. Every unknown is expressed in
    units of its expected size and starts at its expectation, so that an early stop leaves it
    there where the field does not tell. The iterations are split into ``rounds``; before each
    but the first, voxels whose residual exceeds four robust standard deviations lose weight
    (Huber), which keeps wrapped voxels out of the fit.

    Memory: 48 bytes per voxel of the mask's box with its margin, and 8 per voxel and basis;
    transforms: two pairs an iteration, however many parcels there are, and a PDF of 30
    iterations before, unless ``inner_size`` is given.

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
    iterations : int
        Conjugate-gradient iterations, of all rounds together.
    rounds : int
        Number of reweighting rounds.
    inner_size : float, optional
        Expected size of the susceptibility inside, ppm; the root mean square of the local field
        that a PDF of 30 iterations leaves if omitted.
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

    problem = _Problem(bases, mask, voxel_size, b0_dir, inner_size, workers)
    f = problem.grid.embed(field * mask)
    w_squared = problem.grid.embed(weights) ** 2
    start = [np.full(b.parcels, b.expected / problem.size(b)) for b in bases]
    solution = _Unknowns(np.zeros(problem.grid.shape, np.float32), start)
    robust = np.ones(mask.shape, np.float32)[mask]
    residual = f - problem.forward(solution)
    for i in range(rounds):
        if i:
            inside = problem.inside
            robust = _huber(residual.ravel()[inside], w_squared.ravel()[inside])
            w_robust = w_squared.copy()
            w_robust.ravel()[inside] *= robust
        else:
            w_robust = w_squared
        steps = iterations // rounds + (iterations % rounds if i == 0 else 0)
        residual = problem.descend(solution, residual, w_robust, steps)

    prior = problem.prior(solution.coefficients)
    if all(basis.expected == 0 for basis in bases):
        # A constant over the region is the field of its surroundings: the fit cannot tell it.
        prior.ravel()[problem.inside] -= np.median(prior.ravel()[problem.inside])
    total = float(np.sum((w_robust * (residual + problem.field_of(prior)) ** 2), dtype=float))
    left = float(np.sum(w_robust * residual**2, dtype=float))
    return PriorFit(
        problem.grid.extract(prior, mask.shape),
        tuple(c * problem.size(b) for c, b in zip(solution.coefficients, bases, strict=True)),
        inner_size,
        1 - left / total if total > 0 else 0.0,
        float(np.mean(robust < 0.5)),
    )


def _robust_rms(values: npt.NDArray, weights: npt.NDArray | None) -> float:
    """Root mean square, unreliable voxels counted by their weight, clipped at its 99.9th."""
    values = np.minimum(np.abs(values), np.percentile(np.abs(values), 99.9))
    return max(float(np.sqrt(np.average(values.astype(float) ** 2, weights=weights))), 1e-6)


def _huber(residual: npt.NDArray, w_squared: npt.NDArray) -> F32:
    """Weights that turn squares into absolute values beyond four robust standard deviations."""
    scaled = np.abs(residual) * np.sqrt(w_squared)
    limit = 4 * 1.4826 * float(np.median(scaled)) + np.finfo(np.float32).tiny
    return np.minimum(limit / np.maximum(scaled, limit * 1e-6), 1).astype(np.float32)


class _Unknowns(NamedTuple):
    """Sources outside and coefficients inside, each in units of its expected size."""

    sources: F32
    coefficients: list[npt.NDArray[np.float64]]

    def dot(self, other: '_Unknowns') -> float:
        outer = dot(self.sources, other.sources)
        pairs = zip(self.coefficients, other.coefficients, strict=True)
        return outer + sum(float(a @ b) for a, b in pairs)


class _Problem:
    """The linear map from the scaled unknowns to the field, and its adjoint."""

    def __init__(self, bases, mask, voxel_size, b0_dir, inner_size, workers):
        self.grid = solver_grid(mask)
        self.kernel = dipole_kernel(self.grid.shape, voxel_size, b0_dir)
        self.inner_size, self.workers = inner_size, workers
        inside = np.zeros(self.grid.shape, bool)
        inside[self.grid.inner] = mask[self.grid.box]
        self.outside = ~inside
        self.inside = np.flatnonzero(inside)  # ascending: the order of volume[mask]
        self.parts = []
        for basis in bases:
            labels, weight = basis.labels[mask], basis.weight[mask]
            used = labels >= 0
            whole = bool(used.all())
            flat = bool(np.all(weight[used] == 1))
            where = self.inside if whole else self.inside[used]
            scaled = None if flat else (weight if whole else weight[used])
            label = labels if whole else labels[used]
            self.parts.append((where, label, scaled, basis.parcels, self.size(basis)))
        self.shape = self.grid.shape

    def size(self, basis: Basis) -> float:
        """Expected size of the coefficients: ppm of a constant, else relative to the map."""
        if basis.expected == 0:
            return self.inner_size
        rms = float(np.sqrt(np.mean(basis.weight[basis.weight != 0].astype(float) ** 2)))
        return max(self.inner_size / max(rms, 1e-6), 0.5)

    def prior(self, coefficients) -> F32:
        chi = np.zeros(int(np.prod(self.shape)), np.float32)
        for (where, label, weight, _, size), c in zip(self.parts, coefficients, strict=True):
            values = (c * size).astype(np.float32)[label]
            if weight is not None:
                values *= weight
            chi[where] += values
        return chi.reshape(self.shape)

    def field_of(self, chi: F32) -> F32:
        spectrum = fft.rfftn(chi, workers=self.workers)
        spectrum *= self.kernel
        return fft.irfftn(spectrum, s=self.shape, overwrite_x=True, workers=self.workers)

    def forward(self, unknowns: _Unknowns) -> F32:
        chi = self.prior(unknowns.coefficients)
        chi += np.float32(OUTER_SIZE) * unknowns.sources
        return self.field_of(chi)

    def adjoint(self, field: F32) -> _Unknowns:
        chi = self.field_of(field)
        flat = chi.reshape(-1)
        coefficients = []
        for where, label, weight, count, size in self.parts:
            values = flat[where]
            if weight is not None:
                values = values * weight
            coefficients.append(size * np.bincount(label, values, count))
        chi *= self.outside
        chi *= np.float32(OUTER_SIZE)
        return _Unknowns(chi, coefficients)

    def descend(self, solution: _Unknowns, residual: F32, w_squared: F32, steps: int) -> F32:
        """Conjugate gradients from ``solution``, which is updated; returns the new residual."""
        gradient = self.adjoint(w_squared * residual)
        direction = _Unknowns(gradient.sources.copy(), [c.copy() for c in gradient.coefficients])
        energy = first = gradient.dot(gradient)
        for _ in range(steps):
            if energy <= 1e-10 * first or energy == 0:
                break
            image = self.forward(direction)
            weighted = w_squared * image
            curvature = dot(image, weighted)
            step = energy / curvature
            solution.sources.__iadd__(np.float32(step) * direction.sources)
            image *= np.float32(step)
            residual -= image
            change = self.adjoint(weighted)
            gradient.sources.__isub__(np.float32(step) * change.sources)
            for c, g, d, a in zip(
                solution.coefficients,
                gradient.coefficients,
                direction.coefficients,
                change.coefficients,
                strict=True,
            ):
                c += step * d
                g -= step * a
            previous, energy = energy, gradient.dot(gradient)
            beta = energy / previous
            direction.sources.__imul__(np.float32(beta))
            direction.sources.__iadd__(gradient.sources)
            for d, g in zip(direction.coefficients, gradient.coefficients, strict=True):
                d *= beta
                d += g
        return residual
