"""R2' prior: a first estimate of the susceptibility from static-dephasing theory."""

from math import pi, sqrt
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from precondqsm_bids.numerics.constants import GAMMA

F32 = npt.NDArray[np.float32]


class R2PrimePrior(NamedTuple):
    """What :func:`r2prime_prior` computed; maps are (X, Y, Z), zero outside the mask."""

    prior_chi: F32
    """Prior susceptibility relative to a medium without R2', ppm."""
    r2prime: F32
    """Reversible relaxation rate, 1/s."""
    r2: float
    """The R2 that was subtracted, 1/s; the median over the mask if ``r2`` was a map."""


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
