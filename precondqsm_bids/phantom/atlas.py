"""The template of the head phantom, distances to its brain, and their interpolation.

Arrays have the axes (z, x, y), so that a plane across z is contiguous; coordinates are those of
the template, mm: right, anterior, superior.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from scipy import ndimage, sparse

from precondqsm_bids.phantom.head_parts import OBJECT_SEED

HULL_CLOSING, HULL_SMOOTHING = 20.0, 5.0
"""Radius of the ball that closes the brain to its hull, and standard deviation of the smoothing of
the distance to it, mm: the skull does not follow the folds."""

DOMAIN = ((-104.0, 104.0), (-146.0, 122.0), (-168.0, 118.0))
"""Extent of the coarse maps along x, y and z, mm."""


class Map(NamedTuple):
    """A coarse map, with axes (z, x, y), to be interpolated."""

    values: np.ndarray
    origin: tuple[float, float, float]
    """Coordinates (x, y, z) of its first point, mm."""
    spacing: float
    """mm."""


class Atlas(NamedTuple):
    """The coarse maps that the head is made from."""

    gm: Map
    """Grey matter of the template, 0 to 1."""
    wm: Map
    """White matter of the template, 0 to 1."""
    brain: Map
    """Outline of the brain: inside where it is 0.5 or more."""
    from_brain: Map
    """Distance to the brain, mm, 0 inside."""
    from_hull: Map
    """Distance to the hull of the brain, mm, negative inside."""


@cache
def load_atlas():
    """Load the template and measure the distances; kept for the next head.

    Returns
    -------
    Atlas

    Raises
    ------
    FileNotFoundError
        nilearn no longer ships the template.
    """
    gm, wm, t1 = (_template(name) for name in ('gm', 'wm', 't1'))
    solid = ndimage.binary_fill_holes(t1.values > 0)
    brain = t1._replace(values=ndimage.gaussian_filter(solid.astype(np.float32), 0.7))
    coarse = _resampled(brain, 2.0) >= 0.5
    outside = _distance(~coarse)
    closed = outside <= HULL_CLOSING
    hull = (_distance(closed) > HULL_CLOSING) | coarse
    signed = _distance(~hull) - _distance(hull)
    origin = tuple(low for low, _ in DOMAIN)
    from_brain, from_hull = (
        Map(ndimage.gaussian_filter(distance, smoothing / 2.0), origin, 2.0)
        for distance, smoothing in ((outside, 2.0), (signed, HULL_SMOOTHING))
    )
    scaled = (m._replace(values=m.values.astype(np.float32) / 255) for m in (gm, wm))
    return Atlas(*scaled, brain, from_brain, from_hull)


def _template(name):
    from importlib.util import find_spec
    from pathlib import Path

    import nibabel as nib

    # found, not imported: nilearn loads scikit-learn and more, and the file is all that is needed
    folder = Path(find_spec('nilearn').origin).parent / 'datasets' / 'data'
    path = folder / f'mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz'
    if not path.exists():
        raise FileNotFoundError(
            f'{path} is missing: the head phantom is made from the template that nilearn ships; '
            'install the version of nilearn that niworkflows asks for'
        )
    image = nib.load(path)
    values = np.asanyarray(image.dataobj).transpose(2, 0, 1)
    return Map(np.ascontiguousarray(values), tuple(image.affine[:3, 3]), float(image.affine[0, 0]))


def _distance(mask):
    """Distance to the nearest point where the mask is false, mm, on the grid of 2 mm."""
    return ndimage.distance_transform_edt(mask, sampling=2.0).astype(np.float32)


def _resampled(source, spacing):
    """A map on the whole domain at another spacing (mm), 0 where it is not defined."""
    x, y, z = (np.arange(low, high + spacing / 2, spacing) for low, high in DOMAIN)
    planes = Planes(source, x, y)
    return np.stack([planes.at(height) for height in z])


@cache
def texture(number, size):
    """A smooth random map of mean 0 and standard deviation 1.

    Parameters
    ----------
    number : int
        Which one: another number is another texture.
    size : float
        Standard deviation of the smoothing, mm.

    Returns
    -------
    Map
    """
    rng = np.random.default_rng([OBJECT_SEED, number])
    shape = [int((high - low) / 2) + 1 for low, high in (DOMAIN[2], DOMAIN[0], DOMAIN[1])]
    values = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), size / 2.0)
    return Map(values / values.std(), tuple(low for low, _ in DOMAIN), 2.0)


def linear_weights(points, origin, spacing, number):
    """Matrix of linear interpolation along one axis; 0 beyond the ends.

    Parameters
    ----------
    points : (N,) ndarray
        Where to, mm.
    origin, spacing : float
        Of the samples, mm.
    number : int
        Of samples, M.

    Returns
    -------
    (N, M) sparse array of float32

    Examples
    --------
    >>> linear_weights(np.array([0.5, 9.0]), 0.0, 2.0, 2).toarray()
    array([[0.75, 0.25],
           [0.  , 0.  ]], dtype=float32)
    """
    position = (np.asarray(points) - origin) / spacing
    inside = (position >= 0) & (position <= number - 1)
    rows = np.flatnonzero(inside)
    position = position[inside]
    left = np.minimum(position.astype(int), number - 2)
    right = (position - left).astype(np.float32)
    values = np.concatenate([1 - right, right])
    columns = np.concatenate([left, left + 1])
    shape = len(points), number
    return sparse.csr_array((values, (np.tile(rows, 2), columns)), shape=shape)


class Planes:
    """Linear interpolation of a map to the planes of a finer grid.

    Parameters
    ----------
    source : Map
        What to interpolate.
    x, y : ndarray
        Coordinates of the points of the planes, mm.
    beyond : float
        Value where the map is not defined.
    """

    def __init__(self, source, x, y, beyond=0.0):
        self._source, self._beyond = source, np.float32(beyond)
        n_z, n_x, n_y = source.values.shape
        self._n_z = n_z
        self._to_x = linear_weights(x, source.origin[0], source.spacing, n_x)
        self._to_y = linear_weights(y, source.origin[1], source.spacing, n_y)
        self._defined = np.outer(self._to_x.sum(axis=1) > 0, self._to_y.sum(axis=1) > 0)

    def at(self, z):
        """The plane at height ``z`` (mm), (X, Y) ndarray of float32."""
        values, origin, spacing = self._source
        along = linear_weights(np.array([z]), origin[2], spacing, self._n_z)
        if not along.nnz:
            return np.full(self._defined.shape, self._beyond)
        plane = np.zeros(values.shape[1:], np.float32)
        for k, weight in zip(along.indices, along.data, strict=True):
            plane += weight * values[k]
        fine = (self._to_y @ (self._to_x @ plane).T).T
        if self._beyond:
            fine[~self._defined] = self._beyond
        return fine
