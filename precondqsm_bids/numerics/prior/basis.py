"""Basis maps of a prior: one coefficient per parcel.

A prior is a sum of basis maps ``sum_j c_j b_j``. Many maps cost no more than one when they are
given as a :class:`Basis`: integer labels (parcels) times a weight map, so that
``sum_j c_j b_j = c[labels] * weight``. What makes a prior is which labels and which weights;
the fit treats all alike. With a lattice each label has one coefficient per node, interpolated in
between: ``sum_n hat_n c[n, labels] * weight``.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from precondqsm_bids.numerics.arguments import checked
from precondqsm_bids.numerics.prior.lattice import Lattice

F32 = npt.NDArray[np.float32]

MOST_GAIN = 30.0
"""Largest gain: that of a class of a thousandth of the largest one's voxels."""


class Overlap(NamedTuple):
    """Voxels that belong to a second parcel too, because they lie near an edge of the first."""

    voxels: npt.NDArray[np.signedinteger]
    """Each voxel once, as its index in the flattened (X, Y, Z), in ascending order."""
    labels: npt.NDArray[np.int32]
    """Parcel of each of them."""
    weight: F32
    """Factor on that parcel's coefficient."""


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
    lattice: Lattice | None = None
    """Nodes at which each label has a coefficient of its own; None for one everywhere."""

    @property
    def parcels(self) -> int:
        """Number of coefficients: the parcels, with a lattice times the nodes that they reach."""
        if self.lattice is not None:
            return self.lattice.used.size
        last = [int(o.labels.max()) for o in self.overlaps if o.labels.size]
        return max([int(self.labels.max()), *last]) + 1


@checked
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


@checked
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


@checked
def clusters(chi: npt.NDArray, mask: npt.NDArray[np.bool_]) -> Basis:
    """One coefficient per connected cluster of a susceptibility map, one for what is left.

    A cluster is a connected set of voxels that exceed the map's median by a tenth of its 99.9th
    percentile, and by five robust standard deviations, grown by two voxels, so that the border of
    an object belongs to it. Clusters of less than 27 voxels join the rest.

    Parameters
    ----------
    chi : (X, Y, Z) ndarray
        Susceptibility map, ppm, not negative.
    mask : (X, Y, Z) ndarray of bool
        Region of interest.

    Examples
    --------
    >>> chi = np.zeros((12, 12, 12)); chi[1:5, 1:5, 1:5] = 1; chi[7:11, 7:11, 7:11] = 0.5
    >>> clusters(chi, np.ones(chi.shape, bool)).parcels
    3
    """
    values = chi[mask]
    if not values.size:
        raise ValueError('the mask is empty: it has no clusters')
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


def balanced(basis: Basis) -> Basis:
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
