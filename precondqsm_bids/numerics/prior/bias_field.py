"""Bias field: the shading that the receive coil leaves in a magnitude image."""

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import sparse

from precondqsm_bids.numerics.arguments import checked
from precondqsm_bids.numerics.dipole import bounding_box

F32 = npt.NDArray[np.float32]
ORDER, ORDER_ALONE = 4, 2
"""Degree of the polynomial."""
LEAST_EXPLAINED = 0.05
"""Part of the variance of log image that a polynomial without R2* explains at least: less is
contrast that happens to lie so."""
GROUPS = 64
"""Groups of equal R2* and, nearly, equal volume."""
ROUNDS = 4
"""Rounds of reweighting."""
CHUNK_VOXELS = 1 << 13
"""Voxels whose terms are held at a time."""
MOST_VOXELS = 250_000
"""Voxels that the fit takes, at most: every second, third, ... of a larger mask."""


@checked
def bias_field(
    image: npt.NDArray,
    r2star: npt.NDArray | None,
    mask: npt.NDArray[np.bool_],
) -> F32:
    """Smooth factor of an image that has nothing to do with what is imaged.

    Least squares of ``log image = g(R2*) + p(position)``: ``g`` is any function of R2*, constant
    within each of 64 groups of voxels, and ``p`` a polynomial of fourth degree. R2*
    comes from the ratio of echoes, which the coil's sensitivity does not enter, so that tissues
    keep their contrast. Tissue boundaries, vessels and lesions lose weight (Cauchy, beyond two
    robust standard deviations). A mask of more than 250,000 voxels is thinned; which voxels stay
    depends on how the axes are stored, and moves the bias by up to 0.1 % at the corners.

    Of a single echo there is no R2*, and ``g`` is a constant: all of the image that is a
    polynomial, here of second degree, counts as bias, what tissue has of it too, unless that is
    less than a twentieth of its variance.

    A prior that reads susceptibility from the image needs this: where the image is shaded, its
    cells have a place in space, and can describe a susceptibility that varies slowly over the
    region. The field hardly tells such a susceptibility from sources outside.

    Memory: 13 bytes per voxel, and 40 MB.

    Parameters
    ----------
    image : (X, Y, Z) ndarray
        Magnitude, any unit, not negative.
    r2star : (X, Y, Z) ndarray or None
        R2*, 1/s; None if it is not known.
    mask : (X, Y, Z) ndarray of bool
        Region of interest.

    Returns
    -------
    (X, Y, Z) ndarray of float32
        What to divide the image by: its geometric mean over the mask is 1, and 1 outside.

    Raises
    ------
    ValueError
        The mask is empty, shapes differ, or the image is zero in the whole mask.

    References
    ----------
    Polynomials per tissue class: Van Leemput et al., IEEE Trans Med Imaging 1999;18:885.

    Examples
    --------
    >>> x = np.indices((16, 16, 16))[0] / 16
    >>> r2star = np.random.default_rng(0).integers(0, 5, x.shape)
    >>> bias = bias_field((1 + r2star) * np.exp(0.3 * x), r2star, np.ones(x.shape, bool))
    >>> print((bias[15] / bias[0]).round(3).mean(), round(float(np.exp(0.3 * 15 / 16)), 3))
    1.325 1.325
    """
    if not mask.any():
        raise ValueError('the mask is empty: there is no image to find a bias field in')
    voxels = np.flatnonzero(mask)
    voxels = voxels[:: -(-voxels.size // MOST_VOXELS)]
    values = image.reshape(-1)[voxels].astype(np.float64)
    if not np.any(values > 0):
        raise ValueError(
            f'the image has no positive value in the mask, where it is {values.min():g} to '
            f'{values.max():g}: it has no shading'
        )
    log_image = np.log(np.maximum(values, 1e-3 * np.median(values[values > 0])))
    group = np.zeros(values.size, np.intp)
    if r2star is not None:
        r2 = r2star.reshape(-1)[voxels]
        edges = np.unique(np.quantile(r2, np.linspace(0, 1, GROUPS + 1)[1:-1]))
        group = np.digitize(r2, edges)
    polynomial = _Polynomial(mask, ORDER_ALONE if r2star is None else ORDER)
    indices = np.unravel_index(voxels, mask.shape)
    weight = np.ones(values.size)
    for i in range(ROUNDS):
        fitted = polynomial.fit(log_image, weight, group, indices)
        if i + 1 < ROUNDS:
            left = log_image - fitted
            left -= _means(left, weight, group)[group]
            scale = 1.4826 * float(np.median(np.abs(left)))
            weight = 1 / (1 + (left / (2 * scale + 1e-9)) ** 2)
    if r2star is None and _explained(log_image, fitted, weight) < LEAST_EXPLAINED:
        return np.ones(mask.shape, np.float32)
    log_bias = polynomial.everywhere()
    log_bias -= np.float32(log_bias[mask].mean(dtype=float))
    return np.where(mask, np.exp(log_bias), np.float32(1))


def _explained(values: npt.NDArray, fitted: npt.NDArray, weight: npt.NDArray) -> float:
    """Part of the weighted variance that a fit explains."""
    left, total = (
        np.average((v - np.average(v, weights=weight)) ** 2, weights=weight)
        for v in (values - fitted, values)
    )
    return 1 - float(left / total) if total > 0 else 0.0


def _means(values: npt.NDArray, weight: npt.NDArray, group: npt.NDArray) -> npt.NDArray:
    """Weighted mean of each group."""
    return np.bincount(group, weight * values) / np.maximum(np.bincount(group, weight), 1e-9)


class _Polynomial:
    """Polynomials of the position, without the constant."""

    def __init__(self, mask: npt.NDArray[np.bool_], order: int):
        degrees = itertools.product(range(order + 1), repeat=3)
        self.degrees = np.array([d for d in degrees if 0 < sum(d) <= order])
        self.coefficients: npt.NDArray = np.zeros(len(self.degrees))
        self.powers = []
        for box, length in zip(bounding_box(mask), mask.shape, strict=True):
            half = max((box.stop - box.start - 1) / 2, 0.5)
            position = (np.arange(length) - (box.start + box.stop - 1) / 2) / half
            self.powers.append(position[:, None] ** np.arange(order + 1))

    def rows(self, indices: Sequence[npt.NDArray]) -> npt.NDArray[np.float64]:
        """Every term in some voxels, (voxels, terms)."""
        first, *others = (
            power[:, degree][index]
            for power, degree, index in zip(self.powers, self.degrees.T, indices, strict=True)
        )
        for other in others:
            first *= other
        return first

    def fit(
        self,
        values: npt.NDArray,
        weight: npt.NDArray,
        group: npt.NDArray,
        indices: Sequence[npt.NDArray],
    ) -> npt.NDArray[np.float64]:
        """Fit the values in some voxels, each group having a constant of its own; what fits.

        The constants are eliminated: with ``X`` the terms, ``W`` the weights and ``P`` the mean
        over a voxel's group, ``X' W (1 - P) X c = X' W (1 - P) values``.
        """
        count, terms = values.size, len(self.degrees)
        total = np.maximum(np.bincount(group, weight), 1e-9)
        groups = total.size
        normal, sums = np.zeros((terms, terms)), np.zeros((groups, terms))
        right = np.zeros(terms)
        parts = [slice(i, i + CHUNK_VOXELS) for i in range(0, count, CHUNK_VOXELS)]
        for part in parts:
            x, w = self.rows([index[part] for index in indices]), weight[part]
            here = np.arange(w.size)
            sums += sparse.csr_array((w, (group[part], here)), shape=(groups, w.size)) @ x
            right += (w * values[part]) @ x
            normal += x.T @ (w[:, None] * x)
        normal -= sums.T @ (sums / total[:, None])
        right -= sums.T @ _means(values, weight, group)
        self.coefficients = np.linalg.lstsq(normal, right, rcond=1e-10)[0]
        return np.concatenate(
            [self.rows([index[part] for index in indices]) @ self.coefficients for part in parts]
        )

    def everywhere(self) -> F32:
        """The fitted polynomial in every voxel of the volume."""
        first, second, third = self.powers
        tensor = np.zeros([power.shape[1] for power in self.powers])
        tensor[tuple(self.degrees.T)] = self.coefficients
        out = np.empty([len(power) for power in self.powers], np.float32)
        for plane, of_two in zip(out, np.tensordot(first, tensor, axes=1), strict=True):
            np.matmul(second @ of_two, third.T, out=plane, casting='same_kind')
        return out
