"""Shape mask: the object against air, and the susceptibility step that its shape stands for."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from precondqsm_bids.numerics.constants import AIR_CHI, WATER_CHI

WHOLE = 0.9
"""Least share of object in a voxel of the region of interest. A voxel that is half air measures
the field of its other half, ppm away from that at its centre."""

SURFACE_ERROR = 0.1
"""Expected error of the filled share of a voxel on the border: ringing of a sharp edge is 9 % of
its height."""


class ShapeMask(NamedTuple):
    """What :func:`shape_mask` found, (X, Y, Z)."""

    shape_mask: npt.NDArray[np.bool_]
    """Object (true) against air."""
    roi_mask: npt.NDArray[np.bool_]
    """Object without the border voxels that are partly air: what can be reconstructed."""
    shape_chi: npt.NDArray[np.float32]
    """Susceptibility relative to air, ppm: the step times the share of object in each voxel."""
    shape_sd: npt.NDArray[np.float32]
    """Expected error of ``shape_chi``, ppm: a tenth of the step on the border, zero elsewhere."""
    threshold: float
    """Magnitude above which a voxel is object."""


def filled_fraction(
    magnitude: npt.NDArray, mask: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """Share of object in each voxel: 1 inside, 0 in air, from the signal on the border.

    Air gives no signal, so that a border voxel's magnitude over that of the object beside it
    (Gaussian mean of 2 voxels, at least two voxels deep) is the share that is filled. Border
    means the outermost layer of the mask and the first layer outside. A surface known to a
    fraction of a voxel takes most of the error out of the shape's field near it.

    Parameters
    ----------
    magnitude : (X, Y, Z) ndarray
        Magnitude of the first echo, any unit.
    mask : (X, Y, Z) ndarray of bool
        Object.

    Examples
    --------
    >>> magnitude = np.zeros((12, 12, 12)); magnitude[3:9, 3:9, 3:9] = 2; magnitude[9, 5, 5] = 0.5
    >>> filled_fraction(magnitude, magnitude > 1)[7:11, 5, 5]
    array([1.  , 1.  , 0.25, 0.  ], dtype=float32)
    """
    fraction = mask.astype(np.float32)
    deep = ndimage.binary_erosion(mask, iterations=2, border_value=1)
    if not deep.any():
        return fraction
    # A Gaussian has no edges, so that voxels at equal distance count equally however the axes
    # are stored; far from anything deep it finds nothing, and the border voxel counts as whole.
    weight = ndimage.gaussian_filter(deep.astype(np.float32), 2.0, truncate=4.0)
    mean = ndimage.gaussian_filter(np.where(deep, magnitude, 0).astype(np.float32), 2.0)
    # The edge of the field of view is no surface: a slab's object goes on beyond it.
    border = ndimage.binary_dilation(mask) & ~ndimage.binary_erosion(mask, border_value=1)
    border &= weight > 1e-4
    share = (
        magnitude[border] * weight[border] / np.maximum(mean[border], np.finfo(np.float32).tiny)
    )
    fraction[border] = np.clip(share, 0, 1)
    return fraction


def _fill_holes(
    mask: npt.NDArray[np.bool_], magnitude: npt.NDArray, level: float, smallest: int = 27
) -> npt.NDArray[np.bool_]:
    """Fill the holes whose median exceeds ``level``; others of ``smallest`` voxels are air.

    A strong source has little signal but some; an air bubble has none but ringing.
    """
    filled = ndimage.binary_fill_holes(mask)
    holes, count = ndimage.label(filled & ~mask)
    if count == 0:
        return filled
    index = np.arange(1, count + 1)
    empty = ndimage.median(magnitude, holes, index) < level
    empty &= np.bincount(holes.ravel())[1:] >= smallest
    return filled & ~np.isin(holes, index[empty])


def shape_mask(
    magnitude: npt.NDArray, step: float = WATER_CHI - AIR_CHI, threshold: float | None = None
) -> ShapeMask:
    """Object in air: threshold of the measured magnitude, largest component, holes filled.

    Holes without any signal stay open: bubbles of air.

    The measured first echo is used, never an extrapolation to TE = 0, which means nothing in
    air. The threshold is half the object's median signal, so that a voxel half filled is on the
    border, but never above Otsu's (an object shaded by the coil) and never within the noise.

    Parameters
    ----------
    magnitude : (X, Y, Z) ndarray
        Magnitude of the first echo, any unit.
    step : float
        Susceptibility of the object relative to air, ppm; water against air if omitted.
    threshold : float, optional
        Magnitude above which a voxel is object; from the histogram if omitted.

    Returns
    -------
    ShapeMask

    Raises
    ------
    ValueError
        The magnitude is constant or not finite, or nothing exceeds the threshold.

    References
    ----------
    The threshold: Otsu, IEEE Trans Syst Man Cybern 1979;9:62. The susceptibilities: Schenck,
    Med Phys 1996;23:815.

    Examples
    --------
    >>> magnitude = np.zeros((9, 9, 9)); magnitude[2:7, 2:7, 2:7] = 1; magnitude[4, 4, 4] = 0
    >>> shape = shape_mask(magnitude)
    >>> print(shape.shape_mask.sum(), shape.shape_chi.min().round(2))
    125 -9.41
    """
    if not np.all(np.isfinite(magnitude)):
        bad = np.count_nonzero(~np.isfinite(magnitude))
        raise ValueError(f'the magnitude has {bad} voxels that are not finite')
    if threshold is None:
        if magnitude.max() <= magnitude.min():
            raise ValueError(
                f'the magnitude is {magnitude.max():g} everywhere: no object can be told from air'
            )
        from skimage.filters import threshold_otsu  # here: importing the nodes must stay quick

        otsu = float(threshold_otsu(magnitude))
        half = 0.5 * float(np.median(magnitude[magnitude > otsu]))
        background = magnitude[magnitude < min(otsu, half)]
        noise = float(np.median(background)) / np.sqrt(2 * np.log(2)) if background.size else 0.0
        threshold = max(min(otsu, half), 4 * noise)
    labels, count = ndimage.label(magnitude > threshold)
    if count == 0:
        raise ValueError(
            f'no voxel of the magnitude (largest {magnitude.max():g}) exceeds the threshold '
            f'{threshold:g}: no object found'
        )
    largest = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    mask = _fill_holes(largest, magnitude, threshold / 4)
    fraction = filled_fraction(magnitude, mask)
    border = mask & ~ndimage.binary_erosion(mask, border_value=1)
    return ShapeMask(
        mask,
        mask & (fraction >= WHOLE),
        np.float32(step) * fraction,
        np.float32(abs(step) * SURFACE_ERROR) * border,
        float(threshold),
    )
