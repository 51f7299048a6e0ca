"""Shape mask: the object against air, and the susceptibility step that its shape stands for."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from precondqsm_bids.numerics.air import air_around, without_floor
from precondqsm_bids.numerics.arrays import check_map
from precondqsm_bids.numerics.brain import brain_if_any
from precondqsm_bids.numerics.constants import AIR_CHI, WATER_CHI

WHOLE = 0.9
"""Least fraction of object in a voxel of the region of interest. A voxel that is half air measures
the field of its other half, ppm away from that at its centre."""

SURFACE_ERROR = 0.1
"""Expected error of the filled fraction of a border voxel: ringing of a sharp edge is 9 % of its
height."""

THIN = 5.0
"""Half the thickness, mm, up to which a layer without signal in the object is bone, not air."""

LEAST_SURFACE = 0.5
"""Fraction of a region's border on the surface of the object below which the shape's field, whose
sources lie outside the region, is better left to the background removal."""

LARGE = 0.1
"""Size relative to the largest connected region from which another one is object too."""

NO_AIR = 0.5
"""Second percentile of the magnitude over its ninth decile above which there is no air in the
field of view: air has at most 0.1, the floor of 32 coils at an SNR of 20 has 0.4, a crop of a
brain 0.75."""

LARGEST_BUBBLE = 5000.0
"""Volume, mm^3, up to which an enclosed hole without signal is a bubble as a whole."""

LEAST_REGION = 27
"""Voxels of the smallest region of interest: in fewer, none has all its neighbours."""

NO_AIR_WORDS = (
    'there is no air in the field of view: all of it was taken for the object, and its shape is '
    'not known'
)


class ShapeMask(NamedTuple):
    """Result of :func:`shape_mask`, (X, Y, Z)."""

    shape_mask: npt.NDArray[np.bool_]
    """Object (true) against air."""
    roi_mask: npt.NDArray[np.bool_]
    """Object without the border voxels that are partly air and the layers without signal: what
    can be reconstructed."""
    shape_chi: npt.NDArray[np.float32]
    """Susceptibility relative to air, ppm: the step times the fraction of object in each voxel."""
    shape_sd: npt.NDArray[np.float32]
    """Expected error of ``shape_chi``, ppm: a tenth of the step on the border, zero elsewhere."""
    threshold: float
    """Magnitude above which a voxel is object."""


class Region(NamedTuple):
    """Result of :func:`region_of_interest`, (X, Y, Z)."""

    shape_mask: npt.NDArray[np.bool_]
    """Object (true) against air."""
    roi_mask: npt.NDArray[np.bool_]
    """Region of interest: the object without voxels that are partly air, inside the mask."""
    shape_chi: npt.NDArray[np.float32]
    """Susceptibility of the shape relative to air, ppm; zero if the region lies inside it."""
    shape_sd: npt.NDArray[np.float32]
    """Expected error of ``shape_chi`` at the surface, ppm."""
    inner: bool
    """True if the region lies inside the object, its border off the surface."""
    record: dict[str, Any]
    """Measured and chosen values."""


def filled_fraction(
    magnitude: npt.NDArray, mask: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """Fraction of object in each voxel: 1 inside, 0 in air, from the signal on the border.

    Air gives no signal, so that a border voxel's magnitude over that of the object beside it
    (Gaussian mean of 2 voxels, at least two voxels deep) is the fraction that is filled. Border
    means the outermost layer of the mask and the first layer outside. A surface known to a
    fraction of a voxel takes most of the error out of the shape's field near it.

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
    border = (ndimage.binary_dilation(mask) & ~mask) | _surface(mask)
    border &= weight > 1e-4
    filled = magnitude[border] * weight[border]
    fraction[border] = np.clip(filled / np.maximum(mean[border], np.finfo(np.float32).tiny), 0, 1)
    return fraction


def _surface(mask: npt.NDArray[np.bool_], depth: int = 1) -> npt.NDArray[np.bool_]:
    """The outermost ``depth`` layers of voxels of a mask.

    The edge of the field of view is not a surface: a slab's object goes on beyond it.

    >>> _surface(np.array([[[True, True, True, False]]])).tolist()
    [[[False, False, True, False]]]
    """
    return mask & ~ndimage.binary_erosion(mask, iterations=depth, border_value=1)


def _fill_holes(
    mask: npt.NDArray[np.bool_],
    magnitude: npt.NDArray,
    level: float,
    voxel_size: npt.NDArray[np.float64],
    smallest: int = 27,
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Fill what is not air; the object, and the part of it that was filled for being thin.

    An enclosed hole is filled if its median exceeds ``level`` or it has fewer than ``smallest``
    voxels: a strong source has little signal but some; an air bubble has none but ringing. What
    has none and is larger than `LARGEST_BUBBLE`, or is open to the outside (a skull with its
    sinuses), is air where a ball of `THIN` fits, with the two voxels around that, and filled
    elsewhere.
    """
    filled = mask.copy()
    holes, count = ndimage.label(~mask)
    index = np.arange(1, count + 1)
    size = np.bincount(holes.ravel(), minlength=count + 1)[1:]
    at_edge = np.zeros(count + 1, bool)
    for axis in range(3):
        for plane in (0, -1):
            at_edge[np.take(holes, plane, axis)] = True
    enclosed = ~at_edge[1:]
    empty = np.zeros(count, bool)
    if enclosed.any():
        empty[enclosed] = ndimage.median(magnitude, holes, index[enclosed]) < level
    empty &= size >= smallest
    small = size * np.prod(voxel_size) <= LARGEST_BUBBLE
    filled |= np.isin(holes, index[enclosed & ~empty])
    rest = np.isin(holes, index[~enclosed | (empty & ~small)])
    if not rest.any():
        return filled, np.zeros_like(mask)
    # What is at the edge of the field of view goes on beyond it.
    beyond = [(int(np.ceil(THIN / size)) + 1,) * 2 for size in voxel_size]
    padded = np.pad(rest, beyond, mode='edge')
    core = ndimage.distance_transform_edt(padded, sampling=voxel_size) > THIN
    air = core
    if core.any():
        air = ndimage.distance_transform_edt(~core, sampling=voxel_size) <= THIN
        air = ndimage.binary_dilation(air, iterations=2)
    inner = tuple(slice(low, -high) for low, high in beyond)
    thin = rest & ~air[inner]
    return filled | thin, thin


def shape_mask(
    magnitude: npt.NDArray,
    step: float = WATER_CHI - AIR_CHI,
    threshold: float | None = None,
    voxel_size: npt.ArrayLike = (1.0, 1.0, 1.0),
) -> ShapeMask:
    """Object in air: threshold of the measured magnitude, large components, holes filled.

    Holes without any signal stay open: bubbles of air. Layers of less than 10 mm without signal
    are filled: the skull between brain and scalp. Magnitude cannot tell bone from air, so that
    wider bone counts as air and narrow air cells count as bone.

    Where there is no air in the field of view (:func:`has_air`) all of it is object.

    The measured first echo is used, never an extrapolation to TE = 0, which means nothing in
    air. The threshold is a quarter of the object's median signal, below the darkest fluid, but
    never above half of Otsu's (an object shaded by the coil) and never within the noise. Of the
    voxels on the border those stay that are at least half filled (:func:`filled_fraction`).

    Parameters
    ----------
    magnitude : (X, Y, Z) ndarray
        Magnitude of the first echo, any unit.
    step : float
        Susceptibility of the object relative to air, ppm; water against air if omitted.
    threshold : float, optional
        Magnitude above which a voxel is object; from the histogram if omitted.
    voxel_size : (3,) array_like
        Voxel size, mm.

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
    if threshold is None and magnitude.max() <= magnitude.min():
        raise ValueError(
            f'the magnitude is {magnitude.max():g} everywhere: no object can be told from air'
        )
    if threshold is None and not has_air(magnitude):
        whole = np.ones(magnitude.shape, bool)
        zero = np.zeros(magnitude.shape, np.float32)
        return ShapeMask(whole, whole.copy(), zero + np.float32(step), zero, 0.0)
    magnitude = _without_spikes(magnitude)
    given = threshold is not None
    size = np.asarray(voxel_size, dtype=np.float64)
    level = threshold if threshold is not None else _threshold(magnitude)
    mask, thin = _object(magnitude, level, size)
    # A root sum of squares has a floor in air, which hides dark sources and fills the border.
    air = air_around(magnitude[..., None], mask)
    if air is not None and air.floor:
        magnitude = without_floor(magnitude, air)
        if not given:
            # What is left of the floor is as wide as the fourth root of the channels.
            level = max(_threshold(magnitude, 0.0), 4 * air.noise_sd * air.channels**0.25)
        mask, thin = _object(magnitude, level, size)
    if not given:
        mask &= ~((filled_fraction(magnitude, mask) < 0.5) & _surface(mask))
    fraction = filled_fraction(magnitude, mask)
    return ShapeMask(
        mask,
        mask & ~thin & (fraction >= WHOLE),
        np.float32(step) * fraction,
        np.float32(abs(step) * SURFACE_ERROR) * _surface(mask),
        float(level),
    )


def has_air(magnitude: npt.NDArray) -> bool:
    """Tell a field of view with air in it from one that is all object, a crop of a brain.

    There is none if the second percentile of the magnitude exceeds half of its ninth decile.

    >>> crop = np.random.default_rng(0).normal(1, 0.1, (16, 16, 16))
    >>> has_air(crop), has_air(np.where(np.indices(crop.shape)[0] < 2, 0.1, crop))
    (False, True)
    """
    low, high = np.percentile(magnitude, (2, 90))
    return bool(low <= NO_AIR * high)


def _without_spikes(magnitude: npt.NDArray) -> npt.NDArray:
    """The magnitude, a few voxels that are far above all others limited to these.

    The smallest object, of `LEAST_REGION` voxels, has that many of its own signal: what exceeds
    the last of as many by ten times is not an object, and would alone set a histogram's threshold.
    """
    if magnitude.size <= LEAST_REGION:
        return magnitude
    last = np.partition(magnitude, -LEAST_REGION, axis=None)[-LEAST_REGION]
    return np.minimum(magnitude, last) if magnitude.max() > 10 * last > 0 else magnitude


def _threshold(magnitude: npt.NDArray, noise: float | None = None) -> float:
    """A quarter of the object's median signal, at most half of Otsu's threshold, and four
    deviations of the noise, that of the background if it is not given."""
    from skimage.filters import threshold_otsu  # here: importing the nodes must stay quick

    otsu = float(threshold_otsu(magnitude))
    half = 0.5 * float(np.median(magnitude[magnitude > otsu]))
    if noise is None:
        background = magnitude[magnitude < min(otsu, half)]
        noise = float(np.median(background)) / np.sqrt(2 * np.log(2)) if background.size else 0.0
    return max(min(otsu, half) / 2, 4 * noise)


def _object(
    magnitude: npt.NDArray, threshold: float, voxel_size: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """The object above the threshold, holes filled, and its part that is thin."""
    labels, count = ndimage.label(magnitude > threshold)
    if count == 0:
        raise ValueError(
            f'no voxel of the magnitude (largest {magnitude.max():g}) exceeds the threshold '
            f'{threshold:g}: no object found'
        )
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    # A skull may part brain and scalp.
    large = np.isin(labels, np.flatnonzero(sizes >= LARGE * sizes.max()))
    return _fill_holes(large, magnitude, threshold / 2, voxel_size)


def surface_fraction(roi_mask: npt.NDArray[np.bool_], shape_mask: npt.NDArray[np.bool_]) -> float:
    """Fraction of the region's border that lies within three voxels of the object's surface.

    1 for the object itself, near 0 for a brain within its head, and 0 for an object without a
    surface in the field of view.

    Parameters
    ----------
    roi_mask : (X, Y, Z) ndarray of bool
        Region of interest.
    shape_mask : (X, Y, Z) ndarray of bool
        Object.

    Examples
    --------
    >>> shape = np.zeros((20, 20, 20), bool); shape[2:18, 2:18, 2:18] = True
    >>> roi = np.zeros((20, 20, 20), bool); roi[7:13, 7:13, 7:13] = True
    >>> surface_fraction(roi, shape), surface_fraction(shape, shape)
    (0.0, 1.0)
    """
    surface = _surface(shape_mask, depth=3)
    if not surface.any():
        return 0.0
    border = _surface(roi_mask)
    return float(np.mean(surface[border])) if border.any() else 1.0


def region_of_interest(
    magnitude: npt.NDArray,
    voxel_size: npt.ArrayLike,
    mask: npt.NDArray | None = None,
    erosion: float = 0.0,
    step: float = WATER_CHI - AIR_CHI,
    inside: str = 'object',
) -> Region:
    """Object, region of interest, and the shape's susceptibility as far as the region reaches it.

    Where less than half of the region's border lies on the surface of the object
    (:func:`surface_fraction`), the field of the shape is better left to the background removal.

    Parameters
    ----------
    magnitude : (X, Y, Z) ndarray
        Magnitude of the first echo, any unit.
    voxel_size : (3,) array_like
        Voxel size, mm.
    mask : (X, Y, Z) ndarray, optional
        Restricts the region of interest: 0 outside, one other value inside.
    erosion : float
        Depth that is taken off the region of interest, mm.
    step : float
        Susceptibility of the object relative to air, ppm.
    inside : str
        Region of interest where there is no mask: ``object``, the whole of it; ``brain``, what is
        found of one (:func:`find_brain`); or ``auto``, the brain of a head and else the object.

    Raises
    ------
    ValueError
        No object, not a valid mask, or a region of fewer than 27 voxels. The message opens with
        the name of the parameter.

    Examples
    --------
    >>> magnitude = np.zeros((9, 9, 9)); magnitude[2:7, 2:7, 2:7] = 1
    >>> region = region_of_interest(magnitude, (1, 1, 1), erosion=1)
    >>> int(region.roi_mask.sum()), region.record['eroded_voxels'], region.inner
    (27, 98, False)
    """
    try:
        shape = shape_mask(magnitude, step, voxel_size=voxel_size)
    except ValueError as error:
        raise ValueError(f'magnitude: {error}') from error
    roi, source, brain = shape.roi_mask, 'magnitude', None
    kind = 'object' if mask is None else 'given'
    said = [NO_AIR_WORDS] if shape.shape_mask.all() else []
    if mask is None and inside != 'object':
        brain, more = brain_if_any(magnitude, shape.shape_mask, voxel_size, inside == 'brain')
        said += more
    if brain:
        mask, kind = brain.mask, 'brain'
    if mask is not None:
        roi, source = roi & _checked(mask, roi), 'mask'
    whole = int(np.count_nonzero(roi))
    if mask is not None and not whole:
        raise ValueError(
            'mask has no voxel in common with the object '
            f'({np.count_nonzero(shape.roi_mask)} voxels): give a mask of this image'
        )
    if whole < LEAST_REGION:
        raise ValueError(
            f'{source}: the region of interest has {whole} voxels, fewer than {LEAST_REGION}: the '
            'object is too small for these voxels, or not in the image'
        )
    roi = erode(roi, voxel_size, erosion) if erosion > 0 else roi
    if (left := int(np.count_nonzero(roi))) < LEAST_REGION:
        raise ValueError(
            f'{source}: an erosion of {erosion:g} mm leaves {left} of the {whole} voxels of the '
            f'region of interest, fewer than {LEAST_REGION}: give a smaller erosion'
        )
    whole_view = bool(shape.shape_mask.all())
    beside = mask is not None or whole_view
    fraction = surface_fraction(roi, shape.shape_mask) if beside else 1.0
    within = brain is not None and brain.certain  # of few voxels, all may be near the surface
    used = np.float32(fraction >= LEAST_SURFACE and not within)
    record = {
        'threshold': shape.threshold,
        'step': step,
        'shape_voxels': int(np.count_nonzero(shape.shape_mask)),
        'roi_voxels': left,
        'least_filled_fraction': WHOLE,
        'mask': kind,
        'brain': brain.record if brain else None,
        'erosion': erosion,
        'eroded_voxels': whole - left,
        'surface_fraction': fraction,
        'shape_used': bool(used),
        'warnings': said,
    }
    shape_chi, shape_sd = used * shape.shape_chi, used * shape.shape_sd
    return Region(shape.shape_mask, roi, shape_chi, shape_sd, not used, record)


def _checked(mask: npt.NDArray, like: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """A mask that was given, as booleans."""
    check_map(mask, 'mask', like)
    values = np.unique(mask)
    if not values.any():
        raise ValueError('mask is an empty mask (0 in every voxel): give another')
    if len(values[values != 0]) > 1:
        raise ValueError(
            f'mask is not a valid mask: it has {len(values)} different values, from {values[0]:g} '
            f'to {values[-1]:g}; a mask is 0 outside and 1 inside'
        )
    return mask != 0


def erode(
    mask: npt.NDArray[np.bool_], voxel_size: npt.ArrayLike, depth: float
) -> npt.NDArray[np.bool_]:
    """The voxels of a mask that are deeper than ``depth`` (mm), counted from voxel centres.

    The edge of the field of view is not a border: a slab is cut there, and does not end.

    >>> int(erode(np.ones((3, 3, 3), bool), (1, 1, 1), 1).sum())
    27
    >>> mask = np.zeros((1, 1, 9), bool); mask[..., 1:8] = True
    >>> int(erode(mask, (1, 1, 2), 2).sum())
    5
    """
    if mask.all():
        return mask
    return ndimage.distance_transform_edt(mask, sampling=voxel_size) > depth
