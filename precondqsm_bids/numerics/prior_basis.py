"""Basis maps of tissue and of given maps, for :func:`~precondqsm_bids.numerics.fit_prior`.

Each prior is one small function that returns a :class:`~precondqsm_bids.numerics.Basis`; those of
contrast and of R2' are in :mod:`precondqsm_bids.numerics.prior_fit`.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from precondqsm_bids.numerics.prior_fit import (
    Basis,
    Overlap,
    clusters,
    contrast_cells,
    whole_map,
)

LEAST_SHARE = 0.01
"""Shares of a tissue in a voxel below this are left out."""
MOST_GAIN = 30.0
"""Largest gain: that of a class of a thousandth of the largest one's voxels."""


def tissue_parcels(tissue: npt.NDArray, count: int, mask: npt.NDArray[np.bool_]) -> Basis:
    """One constant (ppm) per tissue class, and one for what no class names.

    Parcel ``c`` is class ``c + 1``, parcel ``count`` the rest. A voxel that several classes share
    belongs to each with its share, ``b_c = p_c``, and to the rest with ``1 - sum_c p_c``.

    Parameters
    ----------
    tissue : (X, Y, Z) ndarray of int or (X, Y, Z, C) ndarray
        Class of each voxel, 1 to ``count`` (0: none), or the shares of the classes, 0 to 1.
    count : int
        Number of classes, C.
    mask : (X, Y, Z) ndarray of bool
        Region of interest.

    Returns
    -------
    Basis

    Raises
    ------
    ValueError
        Another shape than the mask's, other classes than 0 to ``count``, or no class in the mask.

    Examples
    --------
    >>> tissue_parcels(np.array([[[1, 2, 0]]]), 2, np.ones((1, 1, 3), bool)).labels
    array([[[0, 1, 2]]], dtype=int32)
    >>> shares = np.array([[[[0.75, 0.25], [0.0, 1.0]]]])
    >>> basis = tissue_parcels(shares, 2, np.ones((1, 1, 2), bool))
    >>> basis.labels.tolist(), basis.weight.tolist(), basis.overlaps[0].labels.tolist()
    ([[[0, 1]]], [[[0.75, 1.0]]], [1])
    """
    if tissue.shape[:3] != mask.shape:
        raise ValueError(f'tissue {tissue.shape} and mask {mask.shape} differ in matrix size')
    labels, weight = np.full(mask.shape, -1, np.int32), np.zeros(mask.shape, np.float32)
    if tissue.ndim == 3:
        found = tissue[mask].astype(np.int32)
        if found.size and not 0 <= found.min() <= found.max() <= count:
            raise ValueError(
                f'classes {found.min()} to {found.max()} are not among the {count} that have names'
            )
        if not np.any(found):
            raise ValueError('no tissue class has a voxel in the region of interest')
        labels[mask], weight[mask] = np.where(found > 0, found - 1, count), 1
        return _balanced(Basis(labels, weight, 0.0))
    if tissue.shape[3] != count:
        raise ValueError(f'{tissue.shape[3]} maps of shares for {count} classes')
    shares = np.clip(tissue[mask].astype(np.float32), 0, None)
    if not np.any(shares >= LEAST_SHARE):
        raise ValueError('no tissue class has a voxel in the region of interest')
    total = shares.sum(axis=1, keepdims=True)
    shares = np.concatenate([shares / np.maximum(total, 1), np.clip(1 - total, 0, None)], axis=1)
    order = np.argsort(-shares, axis=1, kind='stable').astype(np.int32)
    ranked = np.take_along_axis(shares, order, axis=1)
    labels[mask], weight[mask] = order[:, 0], ranked[:, 0]
    voxels = np.flatnonzero(mask)
    overlaps = []
    for rank in range(1, count + 1):
        used = np.flatnonzero(ranked[:, rank] >= LEAST_SHARE)
        if used.size:
            overlaps.append(Overlap(voxels[used], order[used, rank], ranked[used, rank]))
    return _balanced(Basis(labels, weight, 0.0, tuple(overlaps)))


def _balanced(basis: Basis) -> Basis:
    """The basis with a gain that lets a class of few voxels converge with one of many.

    ``gain_c = sqrt(n / n_c)`` with ``n_c = sum_r b_c(r)^2`` and ``n`` the largest of them: the
    columns of the fit have one norm. Without it the gradient of a small nucleus, a sum over few
    voxels, is so small that an early stop leaves its constant near zero.
    """
    parts = [(basis.labels[basis.labels >= 0], basis.weight[basis.labels >= 0])]
    parts += [(labels, weight) for _, labels, weight in basis.overlaps]
    energy = np.zeros(basis.parcels)
    for labels, weight in parts:
        energy += np.bincount(labels, weight.astype(np.float64) ** 2, energy.size)
    if not energy.any():  # a map that is zero: nothing to balance
        return basis
    gain = np.sqrt(energy.max() / np.maximum(energy, 1))
    return basis._replace(gain=np.minimum(gain, MOST_GAIN))


def further_cells(
    r2star: npt.NDArray,
    further: Sequence[npt.NDArray],
    mask: npt.NDArray[np.bool_],
    voxel_size: npt.ArrayLike,
) -> list[Basis]:
    """Cells of the joint histogram of R2* and each further contrast, beside those of magnitude.

    A histogram of all contrasts together would have cells of few voxels, or few bins for each of
    them; the sum of a function of two and a function of two others keeps the bins.

    Parameters
    ----------
    r2star : (X, Y, Z) ndarray
        R2*, 1/s.
    further : sequence of (X, Y, Z) ndarray
        Images such as T1w, or maps such as R1, any unit.
    mask : (X, Y, Z) ndarray of bool
        Region of interest.
    voxel_size : (3,) array_like
        Voxel size, mm.

    Returns
    -------
    list of Basis
        As many for each contrast as :func:`contrast_cells` has scales.

    Examples
    --------
    >>> r2star, r1 = np.random.default_rng(0).random((2, 8, 8, 8))
    >>> mask = np.ones(r1.shape, bool)
    >>> len(further_cells(r2star, [r1], mask, (1, 1, 1)))
    4
    """
    return [
        basis
        for contrast in further
        for basis in contrast_cells([r2star, contrast], mask, voxel_size)
    ]


def map_scale(chi: npt.NDArray, mask: npt.NDArray[np.bool_]) -> float:
    """Root mean square of a map where it is not zero inside the mask; 1 where it is zero.

    Parameters
    ----------
    chi : (X, Y, Z) ndarray
        Map, ppm.
    mask : (X, Y, Z) ndarray of bool
        Region of interest.

    Examples
    --------
    >>> map_scale(np.array([[[0.5, 0.0]]]), np.ones((1, 1, 2), bool))
    0.5
    """
    values = chi[mask & (chi != 0)].astype(np.float64)
    return float(np.sqrt(np.mean(values**2))) if values.size else 1.0


def map_by_tissue(tissue: Basis, chi: npt.NDArray, mask: npt.NDArray[np.bool_]) -> Basis:
    """One coefficient per tissue class for a map: R2' of white matter apart from that of grey.

    ``b_c = p_c chi / rms(chi)``, so that a coefficient is in ppm, as that of a constant is, and
    expected to be 0: R2' has no sign, and the field gives one to each tissue. Divided by
    :func:`map_scale` it is the factor that the map is multiplied by.

    Parameters
    ----------
    tissue : Basis
        From :func:`tissue_parcels`.
    chi : (X, Y, Z) ndarray
        Susceptibility map, such as that of R2', ppm.
    mask : (X, Y, Z) ndarray of bool
        Region of interest.

    Examples
    --------
    >>> mask = np.ones((1, 1, 2), bool)
    >>> tissue = tissue_parcels(np.array([[[1, 2]]]), 2, mask)
    >>> map_by_tissue(tissue, np.array([[[0.2, 0.2]]]), mask).weight.tolist()
    [[[1.0, 1.0]]]
    """
    scaled = (chi * mask / map_scale(chi, mask)).astype(np.float32)
    overlaps = tuple(
        Overlap(voxels, labels, weight * scaled.reshape(-1)[voxels])
        for voxels, labels, weight in tissue.overlaps
    )
    return _balanced(Basis(tissue.labels, tissue.weight * scaled, 0.0, overlaps))


def susceptibility_map(
    chi: npt.NDArray, mask: npt.NDArray[np.bool_], fit: str = 'global', among: int = 1
) -> Basis:
    """A susceptibility map: one coefficient, or one for each connected cluster.

    The map may be of either sign; clusters are found in its size. Each of several estimates of
    the same susceptibility is expected to be its share of it, ``1 / among``.

    Parameters
    ----------
    chi : (X, Y, Z) ndarray
        Susceptibility map, ppm.
    mask : (X, Y, Z) ndarray of bool
        Region of interest.
    fit : str
        ``global`` or ``clusters``.
    among : int
        Number of such maps in the prior.

    Raises
    ------
    ValueError
        Another ``fit``.

    Examples
    --------
    >>> chi = np.zeros((12, 12, 12)); chi[1:5, 1:5, 1:5] = -1; chi[7:11, 7:11, 7:11] = 0.5
    >>> basis = susceptibility_map(chi, np.ones(chi.shape, bool), 'clusters', among=2)
    >>> basis.parcels, basis.expected, float(basis.weight.min())
    (3, 0.5, -1.0)
    """
    if fit == 'global':
        basis = whole_map(chi, mask)
    elif fit == 'clusters':
        basis = clusters(np.abs(chi), mask)._replace(weight=(chi * mask).astype(np.float32))
    else:
        raise ValueError(f'a map is fitted as global or clusters, not {fit!r}')
    return basis._replace(expected=1.0 / among)
