"""Bodies: the parts of a region that are not connected, between which nothing is determined."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from precondqsm_bids.numerics.arguments import checked
from precondqsm_bids.numerics.dipole import bounding_box

LEAST_VOXELS = 27
"""Voxels of the smallest body: smaller pieces belong to the largest."""


@checked
def bodies(mask: npt.NDArray[np.bool_], by_faces: bool = False) -> npt.NDArray[np.int32]:
    """Connected bodies of a mask, numbered from the largest, 1; smaller pieces belong to it.

    What is not connected shares neither turns of the phase nor a reference: values between bodies
    are undetermined. A piece of less than 27 voxels is no body of its own.

    Parameters
    ----------
    mask : (X, Y, Z) ndarray of bool
        Region of interest.
    by_faces : bool
        Whether voxels have to share a face to be connected, as where phase is unwrapped; else an
        edge or a corner will do.

    Returns
    -------
    (X, Y, Z) ndarray of int
        Number of each voxel's body; 0 outside the mask.

    Examples
    --------
    >>> mask = np.zeros((30, 10, 10), bool); mask[:12, 1:9, 1:9] = mask[20:, 2:8, 2:8] = True
    >>> np.unique(bodies(mask), return_counts=True)[1].tolist()
    [1872, 768, 360]
    """
    labels = np.zeros(mask.shape, np.int32)
    box = bounding_box(mask)
    count = ndimage.label(mask[box], None if by_faces else np.ones((3, 3, 3)), labels[box])
    if count < 2:
        return labels
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    order = np.argsort(-sizes, kind='stable')[:count]
    numbers = np.ones(count + 1, np.int32)
    numbers[0] = 0
    for number, label in enumerate(order, start=1):
        if sizes[label] >= LEAST_VOXELS:
            numbers[label] = number
    return numbers[labels]
