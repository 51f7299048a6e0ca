"""The method around an inversion of somebody else's: what comes before it, and what after."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from precondqsm_bids.method import Method
from precondqsm_bids.numerics.arguments import checked
from precondqsm_bids.numerics.arrays import check_inside
from precondqsm_bids.numerics.background_removal import BackgroundRemoval, remove_background
from precondqsm_bids.numerics.dipole import Geometry, forward_field
from precondqsm_bids.numerics.given_field import GivenField
from precondqsm_bids.numerics.prior.estimate import PriorEstimate
from precondqsm_bids.numerics.recombination import Recombination, recombine
from precondqsm_bids.numerics.reconstruct import (
    Companions,
    Measured,
    first_estimate,
    flatten,
    left_by,
    measure,
)
from precondqsm_bids.numerics.scan import Scan
from precondqsm_bids.numerics.solver import noise_weights

F32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Inversion = Callable[[F32, Bools, tuple[float, float, float], npt.NDArray], npt.NDArray]
"""Field (ppm), mask, voxel size (mm) and direction of B0 to susceptibility (ppm)."""
TAKES = ('total', 'local')
"""What an inversion takes: a field with that of the sources outside the region, or without it."""
OTHER_UNIT = 30.0
"""Factor between the field of a map and that which it was made of from which on the map is in
another unit. The units that occur differ by 64 (Hz at 1.5 T) and more; what regularisation takes
off a map is less."""
MOST_LEFT_OUT = 0.01
"""Fraction of the region without a map that is warned of."""
SURE, OPPOSITE, UNLIKE = 0.5, -0.3, 0.1
"""Correlations of the two fields: from which on their ratio is one of units, below which the sign
is the other one, and below which they have nothing in common."""


class Preconditioned(NamedTuple):
    """A field without that of the first estimate; result of :func:`precondition`."""

    flattened_field: F32
    """What is to be inverted: the total field without that of the estimate, ppm, (X, Y, Z)."""
    prior_field: F32
    """Field of the estimate, ppm, (X, Y, Z)."""
    prior: PriorEstimate
    """First estimate; ``prior_chi`` is added to a map again."""
    found: Measured
    """Region, field and geometry."""
    method: Method
    """As it was given."""

    @property
    def mask(self) -> Bools:
        """Region of interest, (X, Y, Z)."""
        return self.found.region.roi_mask

    def local(self) -> BackgroundRemoval:
        """Flattened field without that of the sources outside, as the method's first arm has it.

        ``local_field`` (ppm) is known in ``known``.
        """
        arm, geometry = self.method.preconditioned, self.found.geometry
        left = left_by(self.prior, arm)
        weights = noise_weights(self.found.images.field_sd, geometry.mask, left.model_error)
        return remove_background(self.flattened_field, geometry, arm, weights, left.start)

    def around(self, inner: Inversion, takes: str = 'total') -> Recombination:
        """Susceptibility by an inversion of somebody else's.

        ``chi = inner(flattened field) + prior - mean over the reference``.

        Parameters
        ----------
        inner : callable
            ``inner(field, mask, voxel_size, b0_dir)``: field in ppm, boolean mask, voxel size in
            mm and unit vector of B0 to susceptibility in ppm, (X, Y, Z).
        takes : str
            ``total``: the inversion removes the background itself, or needs none removed;
            ``local``: it is given the field of :meth:`local`.

        Raises
        ------
        ValueError
            What the inversion gave is no map of this field (:func:`check_residual`).
        """
        if takes not in TAKES:
            raise ValueError(f'takes = {takes!r} is not one of {" and ".join(TAKES)}')
        field, mask = self.flattened_field, self.mask
        if takes == 'local':
            local = self.local()
            field, mask = local.local_field, local.known
        voxel_size, b0_dir = self.found.geometry[1:3]
        direction = np.asarray(b0_dir, float) / np.linalg.norm(b0_dir)
        x, y, z = np.asarray(voxel_size, float).tolist()
        return self.recombine(inner(field.copy(), mask.copy(), (x, y, z), direction), field, mask)

    @checked
    def recombine(
        self,
        residual_chi: npt.NDArray,
        field: npt.NDArray | None = None,
        mask: Bools | None = None,
    ) -> Recombination:
        """Susceptibility from a map (ppm) that was made of ``field``, the flattened one if None.

        ``mask`` is where the map is known, the region of interest if None. Raises ValueError, and
        warns (UserWarning), of what :func:`check_residual` finds.
        """
        mask = self.mask if mask is None else mask
        field = self.flattened_field if field is None else field
        record = check_residual(residual_chi, field, self.found.geometry._replace(mask=mask))
        for text in record['warnings']:
            warnings.warn(text, stacklevel=3)
        return recombine(residual_chi, self.prior.prior_chi, mask, self.found.reference)


@checked
def precondition(
    scan: Scan | GivenField,
    method: Method | None = None,
    companions: Companions = Companions(),  # noqa: B008 (never changed)
    workers: int = 1,
) -> Preconditioned:
    """Field of a scan without that of a first estimate: :func:`reconstruct` up to the flattening.

        f' = f - D chi_prior - tissue shift

    Any inversion of the flattened field ``f'``, with ``chi_prior`` added to it, is a map of the
    measured field ``f``: :meth:`Preconditioned.around`.

    Parameters
    ----------
    scan : Scan or GivenField
        Echoes as stored, or the field that was found from them elsewhere. A local field has no
        part of the object's shape: give it with ``Method(shape=False)``.
    method : Method, optional
        Everything that changes the maps.
    companions : Companions
        Images beside the echoes.
    workers : int
        Threads of the Fourier transforms.

    Raises
    ------
    ValueError
        The scan or a companion is not what it should be, or one that the method needs is missing.

    Examples
    --------
    Truncated k-space division of a block, alone and around a prior that has nine tenths of it:

    >>> from precondqsm_bids.numerics import dipole_kernel
    >>> mask = np.ones((24, 24, 24), bool); chi = np.zeros(mask.shape)
    >>> chi[8:16, 8:16, 8:16] = 0.5
    >>> field = forward_field(chi, (1, 1, 1), (0, 0, 1))
    >>> def division(field, mask, voxel_size, b0_dir):
    ...     kernel = dipole_kernel(field.shape, voxel_size, b0_dir)
    ...     kernel = np.where(abs(kernel) < 0.2, np.copysign(0.2, kernel), kernel)
    ...     return mask * np.fft.irfftn(np.fft.rfftn(field) / kernel, axes=(0, 1, 2))
    >>> scan = GivenField(field, 1 + chi, 3.0)
    >>> method = Method(prior='map:mine', prior_fit='none', shape=False)
    >>> found = precondition(scan, method, Companions(mask=mask, maps={'mine': 0.9 * chi}))
    >>> def contrast(values):
    ...     return float(values[chi > 0].mean() - values[chi == 0].mean())
    >>> alone = division(field, mask, (1, 1, 1), np.array([0, 0, 1.0]))
    >>> print(round(contrast(alone), 2), round(contrast(found.around(division).chi), 2))
    0.4 0.49
    """
    method = method or Method()
    found = measure(scan, method, companions, workers)
    prior = first_estimate(found.images, found.geometry, method)
    flat = flatten(found.measured.total_field, found.geometry, prior)
    return Preconditioned(flat.flattened_field, flat.prior_field, prior, found, method)


def check_residual(chi: npt.NDArray, field: npt.NDArray, geometry: Geometry) -> dict[str, Any]:
    """Compare a susceptibility from another program with the field that it was made of.

    A map in ppm has about the field that it explains, ``D chi = f``: the slope of one on the
    other is near 1, less what the regularisation took off, and their correlation is positive.
    Both are compared less their means over cubes, as the field of sources outside the region,
    which a map has not, is its own mean there (exactly up to third order).

    Parameters
    ----------
    chi : (X, Y, Z) ndarray
        Susceptibility, ppm.
    field : (X, Y, Z) ndarray
        The field that the program was given, total or local, ppm.
    geometry : Geometry
        Where the map is known, and how it lies to B0.

    Returns
    -------
    record : dict
        ``field_slope``, ``field_correlation``, ``left_out_fraction`` (of the mask, where the map
        is 0) and ``warnings``.

    Raises
    ------
    ValueError
        The map is of another shape, not finite in the mask, in another unit than ppm, or of the
        opposite sign.

    Examples
    --------
    >>> mask = np.ones((8, 8, 8), bool); chi = np.zeros(mask.shape); chi[4, 4, 4] = 1
    >>> geometry = Geometry(mask, (1, 1, 1), (0, 0, 1))
    >>> field = forward_field(chi, (1, 1, 1), (0, 0, 1))
    >>> check_residual(1000 * chi, field, geometry)
    Traceback (most recent call last):
    ...
    ValueError: residual_chi has 1e+03 times the field that it was made of: it is in another ...
    """
    mask, voxel_size, b0_dir, workers = geometry
    check_inside(chi, 'residual_chi', mask)
    inside = np.where(mask, chi, 0)
    own = forward_field(inside.astype(np.float32), voxel_size, b0_dir, mask, workers)
    where = _whole_cubes(mask, voxel_size)
    f, g = (_detail(v, mask, voxel_size)[where] for v in (field, own))
    spread, explained = float(np.sqrt(f @ f)), float(np.sqrt(g @ g))
    left_out = 1 - float(np.count_nonzero(chi[mask]) / np.count_nonzero(mask))
    record: dict[str, Any] = {
        'field_slope': None,
        'field_correlation': None,
        'left_out_fraction': left_out,
        'warnings': [],
    }
    if not explained or not spread:
        record['warnings'] = ['the inversion left a map that is constant'] * bool(spread)
        return record
    if left_out > MOST_LEFT_OUT:
        record['warnings'].append(
            f'the inversion left {left_out:.0%} of the region at 0, such as its rim: there the '
            'map is the first estimate alone'
        )
    correlation = float(f @ g) / spread / explained
    record |= {'field_slope': correlation * spread / explained, 'field_correlation': correlation}
    times = explained / spread
    if times > OTHER_UNIT or (correlation > SURE and times < 1 / OTHER_UNIT):
        raise ValueError(
            f'residual_chi has {times:.3g} times the field that it was made of: it is in another '
            'unit than ppm, or the field was given in another; convert it'
        )
    if correlation < OPPOSITE:
        raise ValueError(
            f'residual_chi has the opposite field of that which it was made of (correlation '
            f'{correlation:.2f}): the inversion takes or gives the other sign; negate one of them'
        )
    if correlation < UNLIKE:
        record['warnings'].append(
            f'the field of the map and that which it should be made of have a correlation of '
            f'{correlation:.2f}: is it a map of this field?'
        )
    return record


def _detail(field: npt.NDArray, mask: Bools, voxel_size: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """A field less its mean over a cube around each voxel."""
    inside = np.where(mask, field, 0).astype(np.float64)
    return inside - ndimage.uniform_filter(inside, _cube(voxel_size), mode='constant')


def _whole_cubes(mask: Bools, voxel_size: npt.ArrayLike) -> Bools:
    """Voxels whose cube is in a mask; the mask itself if there are none."""
    whole = ndimage.minimum_filter(mask, _cube(voxel_size), mode='constant')
    return whole if whole.any() else mask


def _cube(voxel_size: npt.ArrayLike) -> tuple[int, ...]:
    """Voxels along the edges of a cube, five of the largest voxel."""
    size = np.asarray(voxel_size, float)
    return tuple((2 * np.round(2 * size.max() / size) + 1).astype(int).tolist())
