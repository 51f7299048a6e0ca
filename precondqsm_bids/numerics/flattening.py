"""Flattening: the field of the first estimate, taken off the measured field."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from precondqsm_bids.numerics.arguments import checked
from precondqsm_bids.numerics.dipole import Geometry, forward_field

F32 = npt.NDArray[np.float32]
WIDER = 1.05
"""Spread of the flattened field over that of the field without the estimate that is warned of."""


class Flattening(NamedTuple):
    """Result of :func:`flatten_field`, (X, Y, Z), zero outside the mask."""

    flattened_field: F32
    """Part of the measured field that the estimate does not explain, ppm."""
    prior_field: F32
    """Field of the estimate, ppm."""

    def record(
        self, total_field: npt.NDArray, geometry: Geometry, shape_chi: npt.NDArray | None = None
    ) -> dict[str, Any]:
        """Spreads of the fields, and a warning if the estimate makes the field wider."""
        mask, voxel_size, b0_dir, workers = geometry
        spread, before = (
            float(np.std(field[mask], dtype=np.float64))
            for field in (self.flattened_field, total_field)
        )
        record: dict[str, Any] = {
            'shape': shape_chi is not None and bool(shape_chi.any()),
            'total_field_sd': before,
            'flattened_field_sd': spread,
            'warnings': [],
        }
        # A shim, which the shape does not know, may make the field wider without the shape's.
        if shape_chi is not None and record['shape'] and spread > WIDER * before:
            field = forward_field(shape_chi, voxel_size, b0_dir, mask, workers)
            before = float(np.std((total_field - field)[mask], dtype=np.float64))
        if spread > WIDER * before:
            record['warnings'] = [
                'the flattened field spreads more than the field does without the estimate '
                f'({spread:.3g} against {before:.3g} ppm): the estimate has a field that is not '
                'there'
            ]
        return record


@checked
def flatten_field(
    total_field: npt.NDArray,
    prior_chi: npt.NDArray,
    mask: npt.NDArray[np.bool_],
    voxel_size: npt.ArrayLike,
    b0_dir: npt.ArrayLike,
    shape_chi: npt.NDArray | None = None,
    workers: int = 1,
    tissue_shift: npt.NDArray | None = None,
) -> Flattening:
    """Subtract the forward field of the prior (and of the shape) from the measured field.

    ``flattened = total_field - d * (prior_chi + shape_chi) - tissue_shift``, the convolution of
    :func:`~precondqsm_bids.numerics.dipole.forward_field`: 3 transforms on a grid twice as long
    per axis.

    Parameters
    ----------
    total_field : (X, Y, Z) ndarray
        Measured relative field, ppm.
    prior_chi : (X, Y, Z) ndarray
        Prior susceptibility, ppm.
    mask : (X, Y, Z) ndarray of bool
        Where the field was measured.
    voxel_size, b0_dir : (3,) array_like
        Voxel size, mm; direction of B0 along the voxel axes.
    shape_chi : (X, Y, Z) ndarray, optional
        Susceptibility of the object's shape relative to air, ppm.
    workers : int
        Threads of the Fourier transforms.
    tissue_shift : (X, Y, Z) ndarray, optional
        Frequency of the tissue that is no field of a dipole, ppm.

    Raises
    ------
    ValueError
        Shapes differ, an estimate is not finite, or the field is not inside the mask.

    References
    ----------
    The preconditioning of the field: the ISMRM abstract this package implements (see README).

    Examples
    --------
    >>> chi = np.zeros((8, 8, 8)); chi[4, 4, 4] = 1
    >>> mask = np.ones((8, 8, 8), bool)
    >>> field = forward_field(chi, (1, 1, 1), (0, 0, 1))
    >>> print(abs(flatten_field(field, chi, mask, (1, 1, 1), (0, 0, 1)).flattened_field).max())
    0.0
    """
    chi = prior_chi if shape_chi is None else prior_chi + shape_chi
    prior_field = forward_field(chi, voxel_size, b0_dir, mask, workers)
    explained = prior_field if tissue_shift is None else prior_field + tissue_shift
    flattened = np.where(mask, total_field - explained, 0).astype(np.float32)
    return Flattening(flattened, prior_field)
