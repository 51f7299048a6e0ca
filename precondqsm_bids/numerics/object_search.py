"""Object in air: which voxels have signal, what of it is a body, and what of the rest is object.

No length of a body is assumed: all lengths are fractions of the object's size, the cube root of
its volume.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from precondqsm_bids.numerics.arrays import median
from precondqsm_bids.numerics.morphology import deeper, dilated, eroded, within
from precondqsm_bids.numerics.noise import noise_inside

F32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

LEAST_REGION = 27
"""Voxels of the smallest region of interest: in fewer, none has all its neighbours."""
NO_AIR = 0.5
"""Second percentile of the magnitude over its ninth decile above which there is no air in the
field of view: air has at most 0.1, the floor of 32 coils at an SNR of 20 has 0.4, a crop of a
brain 0.75."""
MOST_AROUND = 0.02
"""Fraction of the field of view outside the object up to which there is no air around it."""
WHITE = 0.5
"""Deviation of the second differences over that of the values from which the dark part of an
image is noise; 1 of white noise, 0.1 to 0.3 of tissue under a coil that fades."""
SIGNAL = 0.25
"""Signal over the smooth level around it above which a voxel is object: below the darkest fluid,
above ghosts and ringing."""
REACH = 0.15
"""Standard deviation of the window of that level, in sizes of the object."""
LEAST_WEIGHT = 1e-3
"""Fraction of the window that holds signal below which the level is not known."""
LEAST_BODY = 0.1
"""Median signal of a body relative to that of the brightest from which it is no ghost."""
FADED = 1.5
"""Magnitude of the border over that above which noise is not expected below which it has faded
into the noise."""
BUBBLE = 1 / 800
"""Volume relative to the object up to which an enclosed hole without signal is a bubble as a
whole: 5 ml in a head."""
THIN = 1 / 36
"""Half the thickness, in sizes of the object, up to which a layer without signal in it is bone or
wall, and not air (half a voxel more, since it is counted between centres): 4 mm in a head."""
SMALL = 0.01
"""Volume relative to the object up to which an enclosed part of little signal is a source,
whatever its form (a vein)."""
COMPACT = 0.5
"""Volume over that of the ellipsoid of the same second moments from which it is one, whatever its
volume: 1 of an ellipsoid, 0.8 or more of a tube or a box, below 0.2 of a skull."""


class ObjectSearch(NamedTuple):
    """Result of :func:`find_object`."""

    mask: Bools
    """Object (true) against air, its holes filled."""
    signal: Bools
    """Part of the object that has signal or is an enclosed source."""
    threshold: float
    """Magnitude above which a voxel is object, the median over the object."""
    noise: float
    """Magnitude above which noise is not expected."""
    fading: float
    """Fraction of the object's surface where the signal fades into the noise, as far from a
    surface coil, so that it is no surface."""
    left_out: tuple[int, ...]
    """Voxels of each piece of at least 27 that has signal and is no body, the largest first."""


def has_air(magnitude: npt.NDArray) -> bool:
    """Tell a field of view with air in it from one that is all object, a crop of a brain.

    There is none if the second percentile of the magnitude exceeds half of its ninth decile.

    >>> crop = np.random.default_rng(0).normal(1, 0.1, (16, 16, 16))
    >>> has_air(crop), has_air(np.where(np.indices(crop.shape)[0] < 2, 0.1, crop))
    (False, True)
    """
    low, high = np.percentile(magnitude, (2, 90))
    return bool(low <= NO_AIR * high)


def without_spikes(magnitude: npt.NDArray) -> npt.NDArray:
    """The magnitude, a few voxels that are far above all others limited to these.

    The smallest object, of `LEAST_REGION` voxels, has that many of its own signal: what exceeds
    the last of as many by ten times is not an object, and would alone set a histogram's threshold.

    >>> magnitude = np.ones((4, 4, 4)); magnitude[0, 0, 0] = 1e6
    >>> print(without_spikes(magnitude).max())
    1.0
    """
    bright = np.count_nonzero(magnitude > 0.11 * magnitude.max())
    if magnitude.size <= LEAST_REGION or bright >= LEAST_REGION:
        return magnitude
    last = np.partition(magnitude, -LEAST_REGION, axis=None)[-LEAST_REGION]
    return np.minimum(magnitude, last) if magnitude.max() > 10 * last > 0 else magnitude


def find_object(
    magnitude: npt.NDArray,
    voxel_size: npt.ArrayLike,
    noise: float | None = None,
) -> ObjectSearch:
    """Object of a magnitude image, in three steps.

    1. **Signal**: what exceeds the noise and a quarter of the smooth level around it
       (:func:`smooth_level`), begun from half of Otsu's threshold and repeated until nothing
       changes: under a surface coil the object grows from the bright part to where the signal
       fades into the noise.
    2. **Bodies**: connected regions that hold 27 voxels after an opening by a voxel and its six
       neighbours, which noise does not survive; what is brighter than the noise and connected to
       none of them is a body from a tenth of their signal on (a ghost has less). The largest
       always counts.
    3. **Holes**: an enclosed part of little signal is a source (object, and of the region) if it
       is small or compact, and else bone (object); without any signal it is a bubble of air if it
       is small, and else, as what is open to the outside, object where it is thin. Fewer than 27
       voxels are filled.

    Parameters
    ----------
    magnitude : (X, Y, Z) ndarray
        First echo, any unit.
    voxel_size : (3,) array_like
        mm
    noise : float, optional
        Magnitude above which noise is not expected; from the dark part of the image if omitted.

    Raises
    ------
    ValueError
        Nothing exceeds the noise.

    References
    ----------
    The first threshold: Otsu, IEEE Trans Syst Man Cybern 1979;9:62.

    Examples
    --------
    Two bottles, one of 3 % of the other's volume and half its signal:

    >>> x, y, z = np.indices((40, 24, 24)) - 11.5
    >>> magnitude = 1.0 * (x**2 + y**2 + z**2 < 100) + 0.5 * ((x - 20)**2 + y**2 + z**2 < 9.5)
    >>> found = find_object(magnitude, (1, 1, 1))
    >>> ndimage.label(found.mask)[1], found.left_out
    (2, ())
    """
    size = np.asarray(voxel_size, np.float64)
    least, noise = _thresholds(magnitude, noise)
    if noise > 2 * least:
        # Noise above half of what is bright in all of 27 neighbours is amplified elsewhere
        # (prescan normalisation); none of it is as solid.
        solid = float(ndimage.minimum_filter(magnitude, 3).max())
        noise = min(noise, max(2 * least, 0.5 * solid))
    mask, level = _grow(magnitude, least, noise, size)
    kept, left_out = _bodies(magnitude, mask, noise)
    if not kept.any():
        raise ValueError(
            f'no voxel of the magnitude (largest {magnitude.max():g}) exceeds the threshold '
            f'{least:g}: no object found'
        )
    limit = np.maximum(np.float32(SIGNAL) * level, np.float32(noise))
    filled, sources = _fill(kept, magnitude, limit, size)
    fading = _fading(magnitude, filled, kept, noise)
    return ObjectSearch(
        filled, kept | sources, float(median(limit[kept])), float(noise), fading, left_out
    )


def _fading(magnitude: npt.NDArray, filled: Bools, kept: Bools, noise: float) -> float:
    """Fraction of the surface of what has signal that is hardly above the noise beside it."""
    surface = kept & ~eroded(kept)
    near = dilated(filled, 2)
    around = magnitude[dilated(near, 4) & ~near]
    if not surface.any() or not around.size:
        return 0.0
    beside = 4 * float(median(around)) / np.sqrt(2 * np.log(2))
    return float(np.mean(magnitude[surface] < FADED * min(noise, beside)))


def _thresholds(magnitude: npt.NDArray, noise: float | None) -> tuple[float, float]:
    """A quarter of the object's median signal or half of Otsu's threshold, the lesser of both,
    and four deviations of the noise, that of the dark part of the image if it is not given."""
    from skimage.filters import threshold_otsu  # here: importing the nodes must stay quick

    # As a list of values: three or four slices look like the channels of a colour image to it.
    otsu = float(threshold_otsu(magnitude.ravel()))
    half = 0.5 * float(median(magnitude[magnitude > otsu]))
    least = min(otsu, half) / 2
    return least, noise if noise is not None else _dark_noise(magnitude, 2 * least)


def _dark_noise(magnitude: npt.NDArray, limit: float) -> float:
    """Four standard deviations of the noise of one channel, from what is darker than a limit.

    Of air that is the median (with the floor of several channels); what is smoother than noise is
    no air, but object of little signal, and only its second differences are noise.
    """
    dark = magnitude < limit
    values = magnitude[dark]
    if not values.size:
        return 0.0
    middle = float(median(values))
    by_median = 4 * middle / np.sqrt(2 * np.log(2))
    spread = 1.4826 * float(median(np.abs(values - middle)))
    from_differences = noise_inside(magnitude, dark)
    if from_differences > WHITE * spread:
        return by_median
    return min(by_median, 4 * from_differences / 0.655)  # deviation of a Rayleigh distribution


def smooth_level(magnitude: npt.NDArray, mask: Bools, widths: npt.ArrayLike) -> tuple[F32, F32]:
    """Smooth level of the magnitude around each voxel: mean of the masked voxels.

    Three means over boxes of ``widths`` voxels (odd), nearly a Gaussian of half a width; also
    returned is the fraction of the window that is masked, below `LEAST_WEIGHT` of which the level
    is zero.

    >>> magnitude = np.full((8, 8, 8), 2.0); magnitude[..., 4:] = 0
    >>> level, weight = smooth_level(magnitude, magnitude > 1, (3, 3, 3))
    >>> level[4, 4, [0, 4, 7]].round(1)
    array([2., 2., 0.], dtype=float32)
    """
    weight = mask.astype(np.float32)
    total = np.where(mask, magnitude, 0).astype(np.float32, copy=False)
    for _ in range(3):
        for axis, width in enumerate(np.asarray(widths, int)):
            for volume in (weight, total):
                ndimage.uniform_filter1d(volume, int(width), axis, volume, mode='constant')
    for level, known in zip(total, weight, strict=True):
        level /= np.maximum(known, np.float32(LEAST_WEIGHT))
        level[known <= LEAST_WEIGHT] = 0
    return total, weight


def _grow(
    magnitude: npt.NDArray, least: float, noise: float, size: npt.NDArray[np.float64]
) -> tuple[Bools, F32]:
    """Voxels above the noise and a quarter of the smooth level, and that level."""
    mask = magnitude > max(least, noise)
    for _ in range(12):
        extent = np.cbrt(np.count_nonzero(mask) * np.prod(size))
        level, weight = smooth_level(magnitude, mask, _odd(2 * REACH * extent / size))
        changed = 0
        for k, known in enumerate(weight > LEAST_WEIGHT):
            limit = np.where(known, np.float32(SIGNAL) * level[k], np.float32(least))
            above = magnitude[k] > np.maximum(limit, np.float32(noise))
            changed += int(np.count_nonzero(above ^ mask[k]))
            mask[k] = above
        if changed <= 1e-3 * np.count_nonzero(mask):
            break
    level[weight <= LEAST_WEIGHT] = least / SIGNAL
    return mask, level


def _odd(widths: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """Nearest odd numbers, at least 3."""
    return np.maximum(2 * np.round((widths - 1) / 2).astype(int) + 1, 3)


def _bodies(magnitude: npt.NDArray, mask: Bools, noise: float) -> tuple[Bools, tuple[int, ...]]:
    """Connected regions that are bodies, and the voxels of other pieces of at least 27.

    ``mask`` is what has signal relative to the level around it; what is above the ``noise`` and
    not connected to it is looked at too.
    """
    labels, count = ndimage.label((magnitude > noise) | mask)
    apart = np.ones(count + 1, bool)
    apart[np.unique(labels[mask])] = apart[0] = False
    labels, count = ndimage.label(mask | apart[labels])
    if not count:
        return mask, ()
    found = labels > 0
    sizes, of_opened = (
        np.bincount(v, minlength=count + 1)[1:] for v in (labels[found], labels[_opened(found)])
    )
    solid = of_opened >= LEAST_REGION
    solid[np.argmax(sizes)] = True
    signal = _medians(magnitude, labels, solid)
    large = solid & (sizes >= LEAST_BODY * sizes.max())
    kept = solid & (signal >= LEAST_BODY * signal[large].max())
    left = np.sort(sizes[~kept & (sizes >= LEAST_REGION)])[::-1]
    return np.append(False, kept)[labels], tuple(int(n) for n in left)


def _opened(mask: Bools) -> Bools:
    """Opening by a voxel and its six neighbours, all of which must be in the field of view."""
    core = np.zeros_like(mask)
    core[1:-1, 1:-1, 1:-1] = eroded(mask)[1:-1, 1:-1, 1:-1]
    return dilated(core)


def _medians(
    values: npt.NDArray, labels: npt.NDArray[np.integer], wanted: Bools
) -> npt.NDArray[np.float64]:
    """Median in each region that is wanted, by its number less one; 0 in the others."""
    out = np.zeros(len(wanted))
    boxes = ndimage.find_objects(labels)
    for i in np.flatnonzero(wanted):
        out[i] = median(values[boxes[i]][labels[boxes[i]] == i + 1])
    return out


def _fill(
    mask: Bools, magnitude: npt.NDArray, limit: F32, size: npt.NDArray[np.float64]
) -> tuple[Bools, Bools]:
    """Fill what is not air: the object, and those parts of it that are enclosed sources."""
    holes, count = ndimage.label(~mask)
    volume = np.bincount(holes.ravel(), minlength=count + 1)[1:]
    enclosed = np.ones(count + 1, bool)
    for axis in range(3):
        for plane in (0, -1):
            enclosed[np.take(holes, plane, axis)] = False
    enclosed = enclosed[1:]
    tiny = enclosed & (volume < LEAST_REGION)
    large = enclosed & ~tiny
    some = np.zeros(count, bool)
    if large.any():
        ratio = np.where(mask, 0, 2 * magnitude / np.maximum(limit, np.finfo(np.float32).tiny))
        some = large & (_medians(ratio, holes, large) >= 1)
    whole = np.count_nonzero(mask) + volume[enclosed].sum()
    source = tiny | (some & (volume <= SMALL * whole))
    boxes = ndimage.find_objects(holes)
    for i in np.flatnonzero(some & ~source):
        source[i] = _compactness(holes[boxes[i]] == i + 1) >= COMPACT
    bubble = large & ~some & (volume <= BUBBLE * whole)
    sources = np.append(False, source)[holes]
    filled = mask | np.append(False, source | some)[holes]
    rest = np.append(False, ~(source | some | bubble))[holes]
    thin = _thin(rest, THIN * np.cbrt(whole * np.prod(size)) + 0.5 * size.mean(), size)
    return filled | thin, sources


def _compactness(part: Bools) -> float:
    """Volume over that of the ellipsoid of the same second moments: 1 of an ellipsoid.

    >>> x = np.indices((21, 21, 21)) - 10; r = np.sqrt((x**2).sum(0))
    >>> round(_compactness(r < 9), 1), _compactness((r < 9) & (r > 7)) < 0.5
    (1.0, True)
    """
    points = np.stack(np.nonzero(part)).astype(np.float64)
    # Of a voxel itself: 1/12 along each axis.
    moments = np.cov(points, bias=True) + np.eye(3) / 12
    return float(points.shape[1] / (4 / 3 * np.pi * np.sqrt(np.linalg.det(5 * moments))))


def _thin(rest: Bools, radius: float, size: npt.NDArray[np.float64]) -> Bools:
    """Part of what has no signal into which no ball of the radius (mm) fits, less two voxels.

    What is at the edge of the field of view goes on beyond it.
    """
    if not rest.any():
        return rest
    # More voxels than the field of view has tell nothing more about what lies beyond it.
    beyond = [
        (min(int(np.ceil(radius / d)) + 1, n),) * 2 for d, n in zip(size, rest.shape, strict=True)
    ]
    padded = np.pad(rest, beyond, mode='edge')
    air = dilated(within(deeper(padded, radius, size), radius, size), 2)
    inner = tuple(slice(low, -high) for low, high in beyond)
    return rest & ~air[inner]
