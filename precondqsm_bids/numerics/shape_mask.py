"""Shape mask: the object against air, and the susceptibility step that its shape stands for."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from precondqsm_bids.numerics.air import air_around, without_floor
from precondqsm_bids.numerics.arguments import as_mask, checked
from precondqsm_bids.numerics.arrays import check_map
from precondqsm_bids.numerics.bodies import bodies
from precondqsm_bids.numerics.brain import brain_if_any, scalp
from precondqsm_bids.numerics.constants import WATER_IN_AIR
from precondqsm_bids.numerics.dipole import bounding_box
from precondqsm_bids.numerics.morphology import deeper, dilated, eroded, gaussian
from precondqsm_bids.numerics.object_search import (
    LEAST_REGION,
    MOST_AROUND,
    find_object,
    has_air,
    without_spikes,
)

WHOLE = 0.9
"""Least fraction of object in a voxel of the region of interest. A voxel that is half air measures
the field of its other half, ppm away from that at its centre."""

SURFACE_ERROR = 0.1
"""Expected error of the filled fraction of a border voxel: ringing of a sharp edge is 9 % of its
height."""

LEAST_SURFACE = 0.5
"""Fraction of a region's border on the surface of the object below which the shape's field, whose
sources lie outside the region, is better left to the background removal."""

MOST_FADING = 0.1
"""Fraction of the object's surface where the signal fades into the noise from which it is warned
of; in heads and tubes it is 0. From a half on the shape is not known."""

LEAST_COVERAGE = 0.5
"""Fraction of the object, and of its signal, in the region below which it is warned of."""

MOST_FACES = 4
"""Faces of the field of view that the region may touch from which it is warned of."""

LEAST_THICKNESS = 0.36
"""Thickness of a region that the field of view cuts at both ends, over the geometric mean of its
other extents, below which it is warned of. Of the strongest tube's or the nuclei's conventional
susceptibility, slabs below it lose 10 to 55 % of that in the whole object, slabs above it 0 to
17 %."""

MOST_LEFT_OUT = 0.01
"""Volume of a piece that was left out, relative to the region, from which it is warned of."""

NO_AIR_WORDS = (
    'there is no air in the field of view: all of it was taken for the object, and its shape is '
    'not known; restrict it with a mask if part of it has no signal'
)
NO_OBJECT_WORDS = (
    'no object was found ({error}): the region of interest is the mask as it is, and neither the '
    'sign of the phase nor the noise of the air can be seen'
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
    """Magnitude above which a voxel is object, the median over it; 0 where there is no air."""
    fading: float = 0.0
    """Fraction of the surface where the signal fades into the noise: no surface of the object."""
    left_out: tuple[int, ...] = ()
    """Voxels of pieces with signal that were not taken for bodies, the largest first."""


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
    deep = eroded(mask, 2)
    if not deep.any():
        return fraction
    # A Gaussian has no edges, so that voxels at equal distance count equally however the axes
    # are stored; far from anything deep it finds nothing, and the border voxel counts as whole.
    weight, mean = gaussian(deep, 2.0), gaussian(np.where(deep, magnitude, 0), 2.0)
    border = (dilated(mask) & ~mask) | _surface(mask)
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
    return mask & ~eroded(mask, depth)


@checked
def shape_mask(magnitude: npt.NDArray, voxel_size: npt.ArrayLike = (1.0, 1.0, 1.0)) -> ShapeMask:
    """Object in air, by the signal of the first echo.

    The object and its holes: :func:`~precondqsm_bids.numerics.object_search.find_object`. Layers
    without signal that are thin (bone, walls) are object, but not of the region of interest;
    magnitude cannot tell bone from air, so that wider bone counts as air and narrow air cells
    count as bone.

    Where there is no air in the field of view
    (:func:`~precondqsm_bids.numerics.object_search.has_air`, or hardly a voxel that is not
    object) all of it is object.

    The measured first echo is used, never an extrapolation to TE = 0, which means nothing in
    air. Of the voxels on the border those stay that are at least half filled
    (:func:`filled_fraction`). The object has the susceptibility of water.

    Parameters
    ----------
    magnitude : (X, Y, Z) ndarray
        Magnitude of the first echo, any unit.
    voxel_size : (3,) array_like
        Voxel size, mm.

    Raises
    ------
    ValueError
        The magnitude is constant or not finite, or has no object.

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
    if magnitude.max() <= magnitude.min():
        raise ValueError(
            f'the magnitude is {magnitude.max():g} everywhere: no object can be told from air'
        )
    if not has_air(magnitude):
        return _whole_view(magnitude.shape)
    magnitude = without_spikes(magnitude)
    found = find_object(magnitude, voxel_size)
    # A root sum of squares has a floor in air, which hides dark sources and fills the border.
    air = air_around(magnitude[..., None], found.mask)
    if air is not None and air.floor:
        magnitude = without_floor(magnitude, air)
        # What is left of the floor is as wide as the fourth root of the channels.
        noise = 4 * air.noise_sd * air.channels**0.25
        found = find_object(magnitude, voxel_size, noise)
    mask = found.mask
    if np.count_nonzero(~mask) <= MOST_AROUND * mask.size:
        return _whole_view(mask.shape)
    mask &= ~((filled_fraction(magnitude, mask) < 0.5) & _surface(mask))
    fraction = filled_fraction(magnitude, mask)
    return ShapeMask(
        mask,
        mask & found.signal & (fraction >= WHOLE),
        np.float32(WATER_IN_AIR) * fraction,
        np.float32(abs(WATER_IN_AIR) * SURFACE_ERROR) * _surface(mask),
        found.threshold,
        found.fading,
        found.left_out,
    )


def _whole_view(shape: tuple[int, ...]) -> ShapeMask:
    """All of the field of view is object."""
    whole, zero = np.ones(shape, bool), np.zeros(shape, np.float32)
    return ShapeMask(whole, whole.copy(), zero + np.float32(WATER_IN_AIR), zero, 0.0)


@checked
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


@checked
def region_of_interest(
    magnitude: npt.NDArray,
    voxel_size: npt.ArrayLike,
    mask: npt.NDArray | str | None = None,
    erosion: float = 0.0,
    shape: bool = True,
) -> Region:
    """Object, region of interest, and the shape's susceptibility as far as the region reaches it.

    Where less than half of the region's border lies on the surface of the object
    (:func:`surface_fraction`), the field of the shape is better left to the background removal.

    With a mask and without the shape, the region is the mask as it is: the object only serves as
    a witness of the phase's sign and of the noise, and if none is found all is object.

    Parameters
    ----------
    magnitude : (X, Y, Z) ndarray
        Magnitude of the first echo, any unit.
    voxel_size : (3,) array_like
        Voxel size, mm.
    mask : (X, Y, Z) ndarray or str, optional
        Restricts the region of interest: 0 outside, one other value inside. Or what is to be found
        (:func:`find_brain`): ``brain``; ``auto``, the brain of a head and else the object; by
        default ``object``.
    erosion : float
        Depth that is taken off the region of interest, mm.
    shape : bool
        Whether the shape is part of the first estimate.

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
    inside, mask = (mask, None) if isinstance(mask, str) else ('object', mask)
    free = mask is not None and not shape
    try:
        found, missing = shape_mask(magnitude, voxel_size), ''
    except ValueError as error:
        if not free:
            raise ValueError(f'magnitude: {error}') from error
        found, missing = _whole_view(magnitude.shape), NO_OBJECT_WORDS.format(error=error)
    kind, brain = 'object' if mask is None else 'given', None
    whole_view = bool(found.shape_mask.all())
    said = [missing or NO_AIR_WORDS] if whole_view else []
    if mask is None and inside != 'object':
        brain, of_brain = brain_if_any(magnitude, found.shape_mask, voxel_size, inside == 'brain')
        said += of_brain
    if brain:
        mask, kind = brain.mask, 'brain'
    roi, source = found.roi_mask, 'magnitude'
    if mask is not None:
        given = _checked(mask, roi)
        roi, source = given if free else roi & given, 'mask'
    whole = int(np.count_nonzero(roi))
    roi = _eroded(roi, voxel_size, erosion, source, found)
    beside = mask is not None or whole_view
    fraction = surface_fraction(roi, found.shape_mask) if beside else 1.0
    used = min(fraction, 1 - found.fading) >= LEAST_SURFACE
    if brain and brain.certain:  # of large voxels, all of its border may be near the surface
        used = False
    volume = float(np.prod(np.asarray(voxel_size))) / 1000
    said += _thin(roi, voxel_size)
    if mask is None and not whole_view:
        said += _doubts(magnitude, roi, found, volume)
    if not brain and (kind == 'given' or inside == 'object'):
        said += scalp(roi, magnitude, found.shape_mask, voxel_size)
    if kind == 'given':
        said += _holes(roi, found.shape_mask, volume)
    left = int(np.count_nonzero(roi))
    record: dict[str, Any] = {
        **_record(found, roi, volume),
        'mask': kind,
        'brain': brain.record if brain else None,
        'erosion': erosion,
        'eroded_voxels': whole - left,
        'surface_fraction': fraction,
        'shape_used': used,
        'warnings': said,
    }
    factor = np.float32(used)
    shape_chi, shape_sd = factor * found.shape_chi, factor * found.shape_sd
    return Region(found.shape_mask, roi, shape_chi, shape_sd, not used, record)


def _record(found: ShapeMask, roi: npt.NDArray[np.bool_], volume: float) -> dict[str, Any]:
    """What is measured of object and region; ``volume`` is that of a voxel, ml."""
    return {
        'threshold': found.threshold,
        'step': WATER_IN_AIR,
        'shape_voxels': int(np.count_nonzero(found.shape_mask)),
        'roi_voxels': int(np.count_nonzero(roi)),
        'volumes': [float(f'{n * volume:.4g}') for n in np.bincount(bodies(roi)[roi])[1:]],
        'left_out': [float(f'{n * volume:.4g}') for n in found.left_out],
        'fading_fraction': found.fading,
        'least_filled_fraction': WHOLE,
    }


def _eroded(
    roi: npt.NDArray[np.bool_],
    voxel_size: npt.ArrayLike,
    erosion: float,
    source: str,
    found: ShapeMask,
) -> npt.NDArray[np.bool_]:
    """The region less its erosion (mm); ValueError if it is too small before or after."""
    whole = int(np.count_nonzero(roi))
    if source == 'mask' and not whole:
        raise ValueError(
            'mask has no voxel in common with the object '
            f'({np.count_nonzero(found.roi_mask)} voxels): give a mask of this image'
        )
    if whole < LEAST_REGION:
        raise ValueError(
            f'{source}: the region of interest has {whole} voxels, fewer than {LEAST_REGION}: the '
            'object is too small for these voxels, or not in the image'
        )
    roi = deeper(roi, erosion, voxel_size) if erosion > 0 else roi
    if (left := int(np.count_nonzero(roi))) < LEAST_REGION:
        raise ValueError(
            f'{source}: an erosion of {erosion:g} mm leaves {left} of the {whole} voxels of the '
            f'region of interest, fewer than {LEAST_REGION}: give a smaller erosion'
        )
    return roi


def _thin(roi: npt.NDArray[np.bool_], voxel_size: npt.ArrayLike) -> list[str]:
    """A warning for each axis along which the region is a thin slab, cut at both ends."""
    size = np.asarray(voxel_size, float)
    extent = np.array([side.stop - side.start for side in bounding_box(roi)]) * size
    said = []
    for axis in range(3):
        across = float(np.sqrt(np.prod(np.delete(extent, axis))))
        cut = all(roi.take(k, axis).any() for k in (0, -1))
        if cut and extent[axis] < LEAST_THICKNESS * across:
            said.append(
                f'the region of interest is a slab of {extent[axis]:.3g} mm, cut at both ends, '
                f'and {across:.3g} mm across: background removal takes the field of strong '
                'sources with it and that beyond the ends is not known, so that the map may lose '
                'a tenth to a half of their susceptibility; acquire a thicker slab'
            )
    return said


def _holes(roi: npt.NDArray[np.bool_], shape: npt.NDArray[np.bool_], volume: float) -> list[str]:
    """A sentence if a region inside a given mask encloses much of the object and lacks it.

    ``volume`` is that of a voxel, ml.
    """
    enclosed = int(np.count_nonzero(ndimage.binary_fill_holes(roi) & ~roi & shape))
    if enclosed <= MOST_LEFT_OUT * np.count_nonzero(roi):
        return []
    return [
        f'the mask has holes with signal, of {enclosed * volume:.3g} ml: the sources in them are '
        'taken for background, and the map around them is wrong if they are strong; give a mask '
        'without holes unless they are meant'
    ]


def _doubts(
    magnitude: npt.NDArray, roi: npt.NDArray[np.bool_], found: ShapeMask, volume: float
) -> list[str]:
    """What is unusual about a region that was found by the magnitude, in sentences.

    ``volume`` is that of a voxel, ml.
    """
    said = []
    inside = int(np.count_nonzero(roi))
    share = inside / max(int(np.count_nonzero(found.shape_mask)), 1)
    signal = np.where(magnitude > found.threshold, magnitude, 0)
    of_signal = float(signal[roi].sum() / max(signal.sum(), np.finfo(np.float32).tiny))
    if min(share, of_signal) < LEAST_COVERAGE:
        said.append(
            f'the region of interest is {share:.0%} of the object and has {of_signal:.0%} of its '
            'signal: look at it, and give a mask if it is not what is meant'
        )
    faces = sum(bool(roi.take(k, axis).any()) for axis in range(3) for k in (0, -1))
    if faces >= MOST_FACES:
        said.append(
            f'the region of interest touches {faces} of the 6 faces of the field of view: the '
            'field of what lies beyond them is not known, and values near them are doubtful'
        )
    if found.fading > MOST_FADING:
        said.append(
            f'the signal fades into the noise at {found.fading:.0%} of the border of the object, '
            'as far from a surface coil: what lies beyond is not known'
            + '; the shape is left out of the first estimate'
            * (1 - found.fading < LEAST_SURFACE)
        )
    large = [n for n in found.left_out if n > MOST_LEFT_OUT * inside]
    if large:
        volumes = ', '.join(f'{n * volume:.3g}' for n in large)
        said.append(
            f'pieces with signal of {volumes} ml were left out of the region of interest: they '
            'have less than a tenth of its signal, as ghosts do, or are too thin; give a mask to '
            'have them'
        )
    return said


def _checked(mask: npt.NDArray, like: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """A mask that was given, as booleans."""
    check_map(mask, 'mask', like)
    found = as_mask(mask)
    if not found.any():
        raise ValueError('mask is an empty mask (0 in every voxel): give another')
    return found
