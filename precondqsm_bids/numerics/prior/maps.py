"""Susceptibility maps as a prior: whole, by cluster, or by tissue class."""

import numpy as np
import numpy.typing as npt

from precondqsm_bids.numerics.arguments import checked
from precondqsm_bids.numerics.prior.basis import Basis, Overlap, balanced, clusters, whole_map


@checked
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


@checked
def map_by_tissue(tissue: Basis, chi: npt.NDArray, mask: npt.NDArray[np.bool_]) -> Basis:
    """One coefficient per tissue class for a map: R2' of white matter apart from that of grey.

    ``b_c = p_c chi / rms(chi)``, so that a coefficient is in ppm, as that of a constant is, and
    expected to be 0: R2' has no sign, and the field gives one to each tissue. Divided by
    :func:`map_scale` it is the factor that the map is multiplied by.

    Parameters
    ----------
    tissue : Basis
        From :func:`~precondqsm_bids.numerics.tissue_parcels`.
    chi : (X, Y, Z) ndarray
        Susceptibility map, such as that of R2', ppm.
    mask : (X, Y, Z) ndarray of bool
        Region of interest.

    Examples
    --------
    >>> from precondqsm_bids.numerics import tissue_parcels
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
    return balanced(Basis(tissue.labels, tissue.weight * scaled, 0.0, overlaps))


@checked
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
