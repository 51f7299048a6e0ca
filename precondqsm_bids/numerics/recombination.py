"""Recombination: residual plus prior, against a stated reference."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]


class Recombination(NamedTuple):
    """What :func:`recombine` computed."""

    chi: F32
    """Susceptibility relative to the reference, ppm, (X, Y, Z), zero outside the mask."""
    reference_value: float
    """What was subtracted: the mean over the reference region, ppm."""
    reference_sd: float
    """Standard deviation over the reference region, ppm."""
    roi_mean: float
    """Mean over the whole region of interest before referencing, ppm."""
    roi_sd: float
    """Standard deviation over the whole region of interest, ppm."""


def recombine(
    residual_chi: npt.NDArray,
    prior_chi: npt.NDArray | None,
    mask: npt.NDArray[np.bool_],
    reference: npt.NDArray[np.bool_] | None = None,
) -> Recombination:
    """Add the prior back to the residual susceptibility and subtract the reference's mean.

    ``chi = residual_chi + prior_chi - mean over the reference``. The shape's susceptibility is
    constant over the region and is not added: referencing would take it away again.

    Parameters
    ----------
    residual_chi : (X, Y, Z) ndarray
        Susceptibility from the flattened field, ppm.
    prior_chi : (X, Y, Z) ndarray or None
        Prior susceptibility, ppm; None in the conventional arm.
    mask : (X, Y, Z) ndarray of bool
        Region of interest.
    reference : (X, Y, Z) ndarray of bool, optional
        Reference region; nothing is subtracted if omitted.

    Returns
    -------
    Recombination

    Raises
    ------
    ValueError
        The mask is empty, or the reference has no voxel inside it.

    Examples
    --------
    >>> residual = np.zeros((1, 1, 4)); prior = np.array([[[0.0, 0.0, 1.0, 1.0]]])
    >>> mask = np.ones((1, 1, 4), bool)
    >>> recombine(residual, prior, mask, prior == 0).chi
    array([[[0., 0., 1., 1.]]], dtype=float32)
    """
    if not mask.any():
        raise ValueError('the mask is empty: there is nothing to recombine')
    chi = residual_chi.astype(np.float32)
    if prior_chi is not None:
        chi = chi + prior_chi.astype(np.float32)
    everything = chi[mask]
    value, sd = 0.0, 0.0
    if reference is not None:
        region = chi[reference & mask]
        if region.size == 0:
            raise ValueError('the reference has no voxel inside the region of interest')
        value, sd = float(region.mean(dtype=np.float64)), float(region.std(dtype=np.float64))
    chi = np.where(mask, chi - np.float32(value), 0).astype(np.float32)
    return Recombination(
        chi,
        value,
        sd,
        float(everything.mean(dtype=np.float64)),
        float(everything.std(dtype=np.float64)),
    )
