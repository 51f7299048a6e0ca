"""R2' prior: a first estimate of the susceptibility from static-dephasing theory."""

from collections.abc import Sequence
from math import pi, sqrt
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from precondqsm_bids.numerics.arguments import checked
from precondqsm_bids.numerics.arrays import check_map
from precondqsm_bids.numerics.constants import GAMMA
from precondqsm_bids.numerics.prior.tissue import R2_CITATION, literature_r2

F32 = npt.NDArray[np.float32]
Rate = float | npt.NDArray | None
R2_RANGE = (0.2, 2000.0)
"""1/s: the median R2 of a map lies within, or its unit is another."""
WELL_BELOW, MOST_BELOW = 0.8, 0.75
"""R2* over R2 that noise and a bias of either explain hardly, and fraction of the region below it
from which R2 is in doubt: R2* is R2 and more."""


class R2PrimePrior(NamedTuple):
    """Result of :func:`r2prime_prior`; maps are (X, Y, Z), zero outside the mask."""

    prior_chi: F32
    """Prior susceptibility relative to a medium without R2', ppm."""
    r2prime: F32
    """Reversible relaxation rate, 1/s."""
    r2: float
    """The R2 that was subtracted, 1/s; the median over the mask if ``r2`` was a map."""


@checked
def relaxivity(field_strength: float) -> float:
    """R2' per ppm of susceptibility, ``2 pi gamma B0 / (9 sqrt(3))``, in 1/s/ppm.

    Parameters
    ----------
    field_strength : float
        B0, T.

    References
    ----------
    Yablonskiy & Haacke, Magn Reson Med 1994;32:749, eq. 30 (spheres at random positions, static
    dephasing).

    Examples
    --------
    >>> round(relaxivity(3.0), 1)
    323.5
    """
    return 2 * pi * GAMMA * field_strength * 1e-6 / (9 * sqrt(3))


@checked
def r2prime_prior(
    r2star: npt.NDArray,
    mask: npt.NDArray[np.bool_],
    field_strength: float,
    r2: float | npt.NDArray | None = None,
    reliable: npt.NDArray[np.bool_] | None = None,
) -> R2PrimePrior:
    """Susceptibility from R2', ``chi = 9 sqrt(3) R2' / (2 pi gamma B0)``, ``R2' = R2* - R2``.

    Parameters
    ----------
    r2star : (X, Y, Z) ndarray
        Effective transverse relaxation rate, 1/s.
    mask : (X, Y, Z) ndarray of bool
        Region of interest.
    field_strength : float
        B0, T.
    r2 : float or (X, Y, Z) ndarray, optional
        Transverse relaxation rate, 1/s. If omitted, the median of R2* over the mask: right for
        a phantom whose medium fills most of it and has no R2' of its own.
    reliable : (X, Y, Z) ndarray of bool, optional
        Voxels whose R2* is to be trusted; elsewhere the prior is zero.

    Returns
    -------
    R2PrimePrior
        R2' is never negative: noise below R2 counts as zero.

    Raises
    ------
    ValueError
        The mask is empty, or ``r2`` is negative or not finite.

    References
    ----------
    Yablonskiy & Haacke, Magn Reson Med 1994;32:749.

    Examples
    --------
    >>> r2star = np.full((3, 3, 3), 10.0); r2star[1, 1, 1] = 333.5
    >>> prior = r2prime_prior(r2star, np.ones((3, 3, 3), bool), 3.0)
    >>> print(prior.r2, prior.prior_chi[1, 1, 1].round(3))
    10.0 1.0
    """
    if not mask.any():
        raise ValueError('the mask is empty: there is no R2* to form a prior from')
    trusted = mask if reliable is None else mask & reliable
    if r2 is None:
        r2 = float(np.median(r2star[trusted if trusted.any() else mask]))
    if not np.all(np.isfinite(r2)) or np.min(r2) < 0:
        raise ValueError(f'R2 must be finite and not negative (1/s): {np.min(r2)}')
    r2prime = np.where(trusted, np.maximum(r2star - r2, 0), 0).astype(np.float32)
    chi = r2prime / np.float32(relaxivity(field_strength))
    subtracted = np.median(r2[mask]) if isinstance(r2, np.ndarray) else r2
    return R2PrimePrior(chi, r2prime, float(subtracted))


def doubts_of_r2(r2star: npt.NDArray, mask: npt.NDArray[np.bool_], r2: Rate) -> list[str]:
    """A sentence if R2* (1/s) is below the R2 (1/s, or None for its median) of most of the mask.

    >>> doubts_of_r2(np.full(4, 20.0), np.ones(4, bool), 80.0)[0][:49]
    'R2 exceeds R2* in 100% of the region of interest:'
    """
    if r2 is None or not mask.any():
        return []
    least = WELL_BELOW * (r2[mask] if isinstance(r2, np.ndarray) else r2)
    below = float(np.mean(r2star[mask] < least))
    if below <= MOST_BELOW:
        return []
    return [
        f"R2 exceeds R2* in {below:.0%} of the region of interest: R2' is 0 there, and so is the "
        'prior that is made of it; is R2 that of this object, and in 1/s?'
    ]


class R2Inputs(NamedTuple):
    """Where R2 may come from beside R2* itself."""

    r2_map: npt.NDArray | None = None
    """R2 (1/s) or T2 (s), (X, Y, Z)."""
    r2_map_kind: str | None = None
    """Which of the two ``r2_map`` is: ``R2map`` or ``T2map``."""
    tissue: npt.NDArray | None = None
    """Class of each voxel, (X, Y, Z), or fractions of the classes, (X, Y, Z, C)."""
    tissue_names: Sequence[str] = ()
    """Names of the C classes."""


@checked
def transverse_rate(
    r2: float | str,
    mask: npt.NDArray[np.bool_],
    field_strength: float,
    inputs: R2Inputs = R2Inputs(),  # noqa: B008 (frozen)
) -> tuple[float | npt.NDArray | None, str]:
    """R2 as the method says (1/s; None for the median of R2*), and where it comes from.

    Parameters
    ----------
    r2 : float or {'median', 'map', 'literature'}
        1/s; or the median of R2*, the map of ``inputs``, or the literature's by its tissue.
    mask : (X, Y, Z) ndarray of bool
        Region of interest.
    field_strength : float
        B0, T.
    inputs : R2Inputs
        A map, or tissue classes.

    Raises
    ------
    ValueError
        What ``r2`` needs is missing, or is not what it should be.

    Examples
    --------
    >>> transverse_rate(0.0, np.ones((1, 1, 1), bool), 3.0)
    (0.0, "R2* used as R2' (R2 taken as 0)")
    """
    if not isinstance(r2, str):
        return r2, 'given' if r2 else "R2* used as R2' (R2 taken as 0)"
    if r2 == 'median':
        return None, 'median of R2* in the region of interest'
    if r2 == 'map':
        if inputs.r2_map is None:
            raise ValueError('R2 is to come from a map, and there is none: give r2_map')
        if (kind := inputs.r2_map_kind) not in ('R2map', 'T2map'):
            raise ValueError(f'r2_map_kind is R2map (1/s) or T2map (s), not {kind}')
        return _mapped(inputs.r2_map, kind, mask), kind
    if r2 != 'literature':
        raise ValueError(f'r2 is a number (1/s), median, map or literature, not {r2!r}')
    if inputs.tissue is None:
        raise ValueError('the R2 of the literature needs tissue classes: give tissue')
    found = literature_r2(inputs.tissue, inputs.tissue_names, mask, field_strength)
    return found, f'literature, by tissue class: {R2_CITATION}'


def _mapped(data: npt.NDArray, kind: str, mask: npt.NDArray[np.bool_]) -> F32:
    """R2 (1/s) of a map; where it has no positive value, the median of those it has."""
    check_map(data, 'r2_map', mask)
    known = mask & (data > 0)
    if not known.any():
        raise ValueError('r2_map has no positive value in the region of interest')
    r2 = np.zeros(mask.shape, np.float32)
    r2[known] = data[known] if kind == 'R2map' else 1 / data[known]
    median = float(np.median(r2[known]))
    low, high = R2_RANGE
    if not low <= median <= high:
        raise ValueError(
            f'r2_map: the median R2 would be {median:.3g}/s, not between {low} and {high:g}; '
            'an R2map is in 1/s and a T2map in s: convert it, or give r2 as a number'
        )
    r2[mask & ~known] = median
    return r2
