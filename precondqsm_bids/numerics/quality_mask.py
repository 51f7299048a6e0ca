"""Mask of the quality of the field: the region without a border whose field is uncertain."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from precondqsm_bids.numerics.arguments import checked
from precondqsm_bids.numerics.field_quality import MOST_FIELD_SD

Bools = npt.NDArray[np.bool_]

USUAL = 3.0
"""Times the median standard deviation that a voxel may have where all of the region is uncertain:
half of it is then kept at least."""


class QualityMask(NamedTuple):
    """Result of :func:`quality_mask`."""

    mask: Bools
    """Region that is kept, (X, Y, Z)."""
    most_field_sd: float
    """Standard deviation of the field beyond which a voxel is uncertain, ppm."""
    left_out: int
    """Voxels of the region that are not in it."""
    enclosed: int
    """Uncertain voxels that are, because certain ones enclose them."""

    def record(self) -> dict[str, Any]:
        """Choices as plain numbers."""
        record: dict[str, Any] = {
            'most_field_sd': self.most_field_sd,
            'left_out_voxels': self.left_out,
            'enclosed_voxels': self.enclosed,
        }
        return record


@checked
def quality_mask(field_sd: npt.NDArray, mask: Bools) -> QualityMask:
    """Leave out what lies at the border of a region and has an uncertain field.

    A voxel is uncertain where the standard deviation of its field exceeds what tissues differ by,
    0.05 ppm, or three times the median over the region if that is more: near air the signal
    decays before there is a phase to measure. Of these voxels all are left out that a path
    through uncertain ones, from face to face, ties to the outside of the region or to the edge of
    the field of view. Those that certain voxels enclose stay: a vein or a bleed is a source, and a
    hole in the region would cost the spheres of a background removal more than its few voxels.

    Parameters
    ----------
    field_sd : (X, Y, Z) ndarray
        Standard deviation of the field, ppm.
    mask : (X, Y, Z) ndarray of bool
        Region of interest.

    Raises
    ------
    ValueError
        The mask is empty, or shapes differ.

    References
    ----------
    QSM Consensus Organization Committee, Magn Reson Med 2024, 10.1002/mrm.30006 (masks by the
    magnitude and by the quality of the phase).

    Examples
    --------
    >>> sd = np.full((1, 1, 7), 0.01); sd[..., [0, 3]] = 1.0
    >>> region = np.pad(np.ones((1, 1, 7), bool), 1)
    >>> quality_mask(np.pad(sd, 1), region).mask[1, 1].astype(int)
    array([0, 0, 1, 1, 0, 1, 1, 1, 0])

    Within a plane of certain voxels the one in the middle is enclosed:

    >>> sd = np.full((3, 3, 3), 0.01); sd[1, 1, 1] = 1.0
    >>> quality_mask(sd, np.ones(sd.shape, bool)).enclosed
    1
    """
    if not mask.any():
        raise ValueError('the mask is empty: it has no field whose quality could be judged')
    most = max(MOST_FIELD_SD, USUAL * float(np.median(field_sd[mask])))
    certain = mask & (field_sd <= most)
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    kept = np.zeros_like(certain)
    kept[box] = mask[box] & ndimage.binary_fill_holes(certain[box])
    left_out = np.count_nonzero(mask) - np.count_nonzero(kept)
    enclosed = np.count_nonzero(kept) - np.count_nonzero(certain)
    return QualityMask(kept, most, int(left_out), int(enclosed))
