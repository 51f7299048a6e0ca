"""Brain of a head: the body inside a layer of little signal, from the magnitude alone.

Every length is relative to the object's radius, that of the sphere of its volume, so that neither
the size of the head nor the unit of the header counts.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from precondqsm_bids.numerics.arguments import checked
from precondqsm_bids.numerics.arrays import block_means
from precondqsm_bids.numerics.morphology import deeper, eroded, gaussian, interpolated, within

F32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Sizes = npt.NDArray[np.float64]

FINEST = 1 / 40
"""Voxel size from which voxels are not joined: a skull is 0.05 to 0.1 thick."""
SENSITIVITY = 0.25
"""Width of the Gaussian mean of the signal that stands for the sensitivity of the coil."""
TISSUE = 0.5
"""Signal over that mean from which a voxel is tissue: fluid has 0.5 to 0.7, bone up to 0.35."""
HOLE = 0.1
"""Radius of the largest hole inside tissue that is filled before its depth counts."""
OPENINGS = (0.06, 0.08, 0.1, 0.125, 0.16, 0.2)
"""Radii of the ball that has to fit into the brain, and must not fit through what ties it to the
rest: optic canals and veins are thinner than 0.06, the spinal canal with 0.1."""
DARK = 0.05
"""Fraction of the object that is not tissue below which nothing in it can be a skull, and the
first ball alone is tried: heads have 0.14 to 0.2, tubes in agar 0.013."""
BEYOND = 1.1
"""Reach of the brain around the places where the ball fits, over the ball's radius."""
CLOSING = 0.06
"""Radius of the ball that must fit between two parts of the brain for the gap to stay open: sulci
are narrower."""
BONE = 0.3
"""Signal over the sensitivity below which a voxel at the border is not brain."""
REACH = 0.3
"""Length of the ray from each voxel of the border outwards."""
ENCLOSED = 0.5
"""Fraction of the rays that meet a layer of little signal, and tissue beyond it, from which a body
is a brain. Heads have 0.65 to 0.95, the middle one of seven bottles 0.37, one of two legs 0.1."""
SHARE = 0.3
"""Fraction of the object's tissue that a brain has at least: heads have 0.6 to 0.7."""
STRUCTURE = 0.02
"""Least spread of the levelled signal within a brain, without what is noise: brains have 0.05 to
0.08, real ones from 0.035, a ball of water in a shell 0.005, one with ringing 0.015."""
SMOOTH = 0.08
"""Width of the Gaussian mean that this spread is about."""
DOUBT = 0.4
"""Fraction of rays from which a body that is not taken for a brain is mentioned."""
IN_VIEW = 0.3
"""Fraction of the rays that must end inside the field of view for them to tell anything."""
WHOLE_HEAD = 0.7
"""Part of the object that a region of interest has at least if it holds a head with its scalp: of
simulated heads the brain is half, all that has signal 0.83 to 0.90."""
SKULL, SCALP = 0.07, 0.02
"""Least thickness of what lies between brain and scalp, over the radius of a ball of the brain's
volume, and part of a region beyond it from which the region holds scalp: a brain has 0.002."""
LEAST_VOXELS = 1000
"""Voxels, as they were joined, of the smallest brain."""


class Brain(NamedTuple):
    """Result of :func:`find_brain`."""

    mask: Bools
    """Brain, (X, Y, Z)."""
    enclosed: float
    """Fraction of its border beyond which lie a layer of little signal and then tissue."""
    share: float
    """Fraction of the object's tissue."""
    structure: float
    """Spread of the levelled signal inside, correlated over two joined voxels: not noise."""
    opening: float
    """Radius of the ball that fits into all of it, over that of the object."""

    @property
    def certain(self) -> bool:
        """Whether the object is a head: a large body, not uniform, enclosed by bone and scalp."""
        return self.enclosed >= ENCLOSED and self.share >= SHARE and self.structure >= STRUCTURE

    @property
    def record(self) -> dict[str, float]:
        """Measured values as plain numbers."""
        return {name: round(float(getattr(self, name)), 4) for name in self._fields[1:]}


@checked
def find_brain(
    magnitude: npt.NDArray, object_mask: Bools, voxel_size: npt.ArrayLike, least: float = 0.0
) -> Brain:
    """Brain of a head, or what comes nearest to one in another object.

    1. Tissue is what has at least half of the signal around it, a Gaussian mean of a quarter of
       the object's radius, which levels the sensitivity of the coil.
    2. The brain is the largest body of tissue in which a ball fits everywhere that does not fit
       through what ties the brain to neck, eyes and scalp. Of six balls that one is taken whose
       body is best enclosed.
    3. Narrow gaps (sulci) and holes (ventricles, vessels) are brain too.
    4. From its border, rays go outwards: the fraction that meet first a layer without tissue and
       then tissue tells a head from other objects (:attr:`Brain.certain`), with the body's share
       of all tissue and the contrast inside, which a ball of water in a shell does not have.

    All of this is done on joined voxels of a fortieth of the radius, the border then sharpened.

    Parameters
    ----------
    magnitude : (X, Y, Z) ndarray
        Magnitude of an echo in which bone is darker than all tissue, any unit.
    object_mask : (X, Y, Z) ndarray of bool
        Object against air.
    voxel_size : (3,) array_like
        Voxel size, any unit.
    least : float
        Fraction of the rays that must tell a head before more is done.

    Raises
    ------
    ValueError
        There is no body of tissue, or fewer of the rays tell a head.

    References
    ----------
    Morphology in place of a model of the brain: Shattuck et al., NeuroImage 2001;13:856. Levelled
    magnitude and connected cores: Hahn & Peitgen, MICCAI 2000:134.

    Examples
    --------
    A ball in a shell, with a gap between them, and the ball alone:

    >>> radius = np.linalg.norm(np.indices((48, 48, 48)) - 23.5, axis=0)
    >>> shell = (radius > 18) & (radius < 21)
    >>> layers = 1 + 0.1 * np.sin(radius)
    >>> for magnitude in (layers * ((radius < 16) | shell), layers * (radius < 16)):
    ...     brain = find_brain(magnitude, magnitude > 0, (1, 1, 1))
    ...     print(bool((brain.mask == (radius < 16)).all()), brain.certain)
    True True
    True False
    """
    size = np.asarray(voxel_size, np.float64)
    volume = np.count_nonzero(object_mask) * np.prod(size)
    size = size / np.cbrt(3 * volume / (4 * np.pi))
    joined = np.maximum(np.rint(FINEST / size), 1).astype(int)
    size = size * joined
    inside = block_means(object_mask.astype(np.float32), joined) >= 0.5
    of_blocks = block_means(magnitude.astype(np.float32), joined)
    tissue, sensitivity, level = _tissue(of_blocks, inside, size)
    bone = np.count_nonzero(inside & ~tissue) >= DARK * np.count_nonzero(inside)
    found = [_opened(tissue, radius, size) for radius in OPENINGS[: None if bone else 1]]
    scores = [_enclosed(body, tissue, size) for body in found]
    best = int(np.argmax(scores))
    body = found[best]
    if not body.any() or scores[best] < least:
        raise ValueError('magnitude: there is no body of tissue in it')
    share = float(np.count_nonzero(body & tissue) / np.count_nonzero(tissue))
    body = ndimage.binary_fill_holes(body | (_closed(body, CLOSING, size) & (level >= BONE)))
    enclosed = _enclosed(body, tissue, size) if np.count_nonzero(body) >= LEAST_VOXELS else 0.0
    mask = _part(body, joined, magnitude.shape) >= 0.5
    if joined.max() > 1:
        # Infinite where there is no tissue around; a product with zero must stay zero.
        sensitivity = np.minimum(sensitivity, np.float32(1e6) * np.float32(magnitude.max()))
        dark = magnitude < BONE * _part(sensitivity, joined, magnitude.shape)
        mask = ndimage.binary_fill_holes(_largest(mask & ~dark))
    return Brain(
        mask & object_mask, enclosed, share, _structure(body, level, size), OPENINGS[best]
    )


def brain_if_any(
    magnitude: npt.NDArray, object_mask: Bools, voxel_size: npt.ArrayLike, asked: bool
) -> tuple[Brain | None, list[str]]:
    """The brain if the object is a head, or if it was asked for; and what is doubtful of it.

    Where nothing tells a head for certain, the object stays what it is.
    """
    if not asked and object_mask.all():  # no air, so that what encloses it is not in view
        return None, []
    try:
        brain = find_brain(magnitude, object_mask, voxel_size, 0.0 if asked else DOUBT / 2)
    except ValueError:
        if asked:
            raise
        return None, []
    seen = (
        f'{brain.enclosed:.0%} of its border has a layer without signal and tissue beyond '
        f'(a head: {ENCLOSED:.0%} or more), it is {brain.share:.0%} of the object (a head: '
        f'{SHARE:.0%} or more)'
    )
    if asked and not brain.certain:
        return brain, [f'the object does not look like a head: {seen}; look at the outline']
    if not brain.certain and brain.enclosed >= DOUBT and brain.share >= SHARE:
        return None, [
            f'the object may be a head, and was not taken for one: {seen}; ask for the '
            'brain if it is one'
        ]
    return (brain if brain.certain else None), []


def scalp(
    region: Bools, magnitude: npt.NDArray, object_mask: Bools, voxel_size: npt.ArrayLike
) -> list[str]:
    """A sentence if a region of interest holds a whole head, scalp and marrow with it.

    A brain may be most of an object whose scalp has little signal, or lies beyond the field of
    view: what counts is that the region has voxels beyond the skull.
    """
    if np.count_nonzero(region) < WHOLE_HEAD * np.count_nonzero(object_mask):
        return []
    brain, _ = brain_if_any(magnitude, object_mask, voxel_size, asked=False)
    if brain is None:
        return []
    volume = np.count_nonzero(brain.mask) * float(np.prod(np.asarray(voxel_size, float)))
    radius = (0.75 / np.pi * volume) ** (1 / 3)
    beyond = region & ~within(brain.mask, SKULL * radius, voxel_size)
    if np.count_nonzero(beyond) < SCALP * np.count_nonzero(region):
        return []
    return [
        'the region of interest holds a whole head: the fat of scalp and marrow has a frequency '
        'of its own, -3.4 ppm, which is taken for a field where the echoes do not tell it, and '
        'its error reaches the brain; ask for the brain, or give a mask of it'
    ]


def _structure(body: Bools, level: F32, size: Sizes) -> float:
    """Root mean product of what two joined voxels apart departs from the mean around, inside."""
    deep = deeper(body, SMOOTH, size)
    sigma = SMOOTH / size
    weight = gaussian(deep, sigma, truncate=3)
    mean = gaussian(np.where(deep, level, 0), sigma, truncate=3)
    departure = np.where(deep, level - mean / np.maximum(weight, 1e-6), 0)
    products = 0.0
    for axis in range(3):
        line = np.moveaxis(departure, axis, 0)
        products += float(np.sum(line[:-2] * line[2:], dtype=np.float64)) / 3
    return float(np.sqrt(max(products, 0) / max(int(np.count_nonzero(deep)), 1)))


def _tissue(magnitude: F32, inside: Bools, size: Sizes) -> tuple[Bools, F32, F32]:
    """Tissue without small holes, the sensitivity, and the signal over it."""
    sigma = SENSITIVITY / size
    tissue = inside & (magnitude > TISSUE * np.median(magnitude[inside]))
    for _ in range(2):
        weight = gaussian(tissue, sigma, truncate=3)
        total = gaussian(np.where(tissue, magnitude, 0), sigma, truncate=3)
        sensitivity: F32 = np.divide(
            total, weight, out=np.full_like(total, np.inf), where=weight > 1e-3
        )
        tissue = inside & (magnitude > TISSUE * sensitivity)
    holes, _ = ndimage.label(~tissue)
    volume = np.bincount(holes.ravel()) * np.prod(size)
    small = volume <= 4 / 3 * np.pi * HOLE**3
    small[0] = False
    return tissue | small[holes], sensitivity, magnitude / sensitivity


def _opened(tissue: Bools, radius: float, size: Sizes) -> Bools:
    """The largest body of tissue around places that are deeper than a radius."""
    core = deeper(tissue, radius, size)
    if not core.any():
        return core
    core = _largest(core)
    return tissue & within(core, BEYOND * radius, size)


def _enclosed(body: Bools, tissue: Bools, size: Sizes) -> float:
    """Fraction of the rays from a body's border outwards that meet a gap, and tissue beyond it.

    Rays that leave the field of view before they meet tissue, or enter the body again, do not
    count; if most do that, nothing is known, and the fraction is 0.
    """
    border = np.argwhere(body & ~eroded(body))
    if not len(border):
        return 0.0
    outwards = -_gradient(gaussian(body, 2 * FINEST / size), border, size)
    outwards /= np.maximum(np.linalg.norm(outwards, axis=-1, keepdims=True), 1e-12)
    starts, directions = (np.ascontiguousarray(v.T) for v in (border, outwards))
    codes = (body + 2 * tissue).ravel()
    left, met, touches, again = np.zeros((4, len(border)), bool)
    seen = np.ones(len(border), bool)
    for step in np.arange(FINEST / 3, REACH, FINEST / 3):
        index = np.zeros(len(border), np.intp)
        for place, direction, edge, n in zip(starts, directions, size, body.shape, strict=True):
            point = np.rint(place + direction * step / edge).astype(np.intp)
            seen &= (point >= 0) & (point < n)
            index = n * index + np.clip(point, 0, n - 1)
        code = np.where(seen, codes[index], 0)
        inside, beyond = (code & 1).astype(bool), code == 2
        again |= inside & left
        touches |= beyond & ~left
        met |= beyond
        left |= ~inside
    counts = ~again & (met | seen)
    if np.count_nonzero(counts) < IN_VIEW * len(border):
        return 0.0
    return float(np.mean((met & ~touches)[counts]))


def _gradient(volume: F32, places: npt.NDArray[np.intp], size: Sizes) -> Sizes:
    """Gradient at some voxels, (N, 3), from the neighbours on both sides."""
    out = np.empty(places.shape)
    for axis in range(3):
        low, high = places.copy(), places.copy()
        low[:, axis] = np.maximum(low[:, axis] - 1, 0)
        high[:, axis] = np.minimum(high[:, axis] + 1, volume.shape[axis] - 1)
        length = np.maximum(high[:, axis] - low[:, axis], 1) * size[axis]
        out[:, axis] = (volume[tuple(high.T)] - volume[tuple(low.T)]) / length
    return out


def _closed(mask: Bools, radius: float, size: Sizes) -> Bools:
    """A mask with the gaps in which no ball fits."""
    beyond = [(int(np.ceil(radius / edge)) + 1,) * 2 for edge in size]
    closed = deeper(within(np.pad(mask, beyond), radius, size), radius, size)
    return mask | closed[tuple(slice(low, -high) for low, high in beyond)]


def _largest(mask: Bools) -> Bools:
    """The largest connected part of a mask."""
    labels, count = ndimage.label(mask)
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:]) if count > 1 else mask


def _part(image: npt.NDArray, joined: npt.NDArray[np.int_], shape: tuple[int, ...]) -> F32:
    """Joined voxels taken apart again, linearly between their centres.

    >>> _part(np.arange(2.0).reshape(2, 1, 1), np.array([2, 1, 1]), (4, 1, 1)).ravel().tolist()
    [0.0, 0.25, 0.75, 1.0]
    """
    places = [(np.arange(n) + 0.5) / step - 0.5 for n, step in zip(shape, joined, strict=True)]
    return image.astype(np.float32) if joined.max() == 1 else interpolated(image, places)
