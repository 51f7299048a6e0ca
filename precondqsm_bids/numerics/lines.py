"""Lines of k-space along one axis, of columns of voxels that chance chooses."""

import numpy as np
import numpy.typing as npt
from scipy import fft

from precondqsm_bids.numerics.echoes import complex_signal

COLUMNS = 2_000
"""Most columns that are looked at."""


def some_columns(wanted: npt.ArrayLike) -> npt.NDArray[np.intp]:
    """Places of up to :data:`COLUMNS` of the wanted columns, (C, 2), in the order of chance.

    >>> some_columns(np.eye(2, dtype=bool)).sum(0).tolist()
    [1, 1]
    """
    places = np.argwhere(wanted)
    return places[np.random.default_rng(0).permutation(len(places))[:COLUMNS]]


def lines_of(
    images: tuple[npt.NDArray, npt.NDArray], places: npt.NDArray[np.intp], axis: int
) -> npt.NDArray[np.complex64]:
    """Lines of the columns at these places along an axis, (C, N, E), of magnitude and phase (rad).

    >>> ones = np.ones((2, 4, 2, 1))
    >>> lines_of((ones, 0 * ones), np.array([[1, 0]]), 1).real.ravel().tolist()
    [4.0, 0.0, 0.0, 0.0]
    """
    a, b = places.T
    magnitude, phase = (np.moveaxis(image, axis, -2)[a, b] for image in images)
    return fft.fft(complex_signal(magnitude, phase), axis=1, overwrite_x=True)
