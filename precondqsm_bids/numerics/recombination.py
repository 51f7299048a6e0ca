"""Recombination: residual plus prior, against a stated reference."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from precondqsm_bids.numerics.arguments import checked
from precondqsm_bids.numerics.bodies import bodies

F32 = npt.NDArray[np.float32]
LEAST_FRACTION = 0.01
"""Fraction of the reference's voxels from which a body holds it: a few that a segmentation left in
another body are no reference for that."""


class BodyReference(NamedTuple):
    """Reference of one body of the region."""

    voxels: int
    """Voxels of the body."""
    held: bool
    """True if the body has part of the reference; if not, it is relative to its own mean."""
    value: float
    """Subtracted value, ppm."""
    sd: float
    """Standard deviation over what the body is relative to, ppm."""
    mean: float
    """Mean over the body before referencing, ppm."""


class Recombination(NamedTuple):
    """Result of :func:`recombine`."""

    chi: F32
    """Susceptibility relative to the reference, ppm, (X, Y, Z), zero outside the mask."""
    reference_value: float
    """Subtracted value: the mean over the reference region, ppm; of several bodies, that of
    the body that holds most of it."""
    reference_sd: float
    """Standard deviation over the reference region, ppm; of the same body."""
    roi_mean: float
    """Mean over the whole region of interest before referencing, ppm."""
    roi_sd: float
    """Standard deviation over the whole region of interest, ppm."""
    bodies: tuple[BodyReference, ...]
    """Each body of the region, the largest first
    (:func:`~precondqsm_bids.numerics.bodies.bodies`)."""

    def record(self, name: str, voxel_size: npt.ArrayLike) -> dict[str, Any]:
        """Measured values as plain numbers, by the reference's name and the voxel size in mm."""
        record: dict[str, Any] = {
            'reference': name,
            'reference_value': self.reference_value,
            'reference_sd': self.reference_sd,
            'roi_mean': self.roi_mean,
            'roi_sd': self.roi_sd,
        }
        found = self.bodies
        if len(found) < 2:
            return record
        voxel = float(np.prod(np.asarray(voxel_size))) / 1000  # mL
        record['bodies'] = [
            {
                'voxels': body.voxels,
                'volume': round(body.voxels * voxel, 3),
                'reference': name if body.held or name == 'none' else 'roi-mean',
                'reference_value': body.value,
                'reference_sd': body.sd,
                'mean': body.mean,
            }
            for body in found
        ]
        alone = [str(number) for number, body in enumerate(found, start=1) if not body.held]
        record['warnings'] = []
        if alone and name != 'none':
            record['warnings'].append(
                f'the region has {len(found)} bodies that are not connected (numbered by size): '
                f'body {", ".join(alone)} does not hold the reference {name!r} and is relative '
                'to its own mean'
            )
        return record


@checked
def recombine(
    residual_chi: npt.NDArray,
    prior_chi: npt.NDArray | None,
    mask: npt.NDArray[np.bool_],
    reference: npt.NDArray[np.bool_] | None = None,
) -> Recombination:
    """Add the prior back to the residual susceptibility and subtract the reference's mean.

    ``chi = residual_chi + prior_chi - mean over the reference``. The shape's susceptibility is
    constant over the region and is not added: referencing would take it away again.

    Values between bodies that are not connected are undetermined, so that each is referenced by
    itself: to the reference's voxels in it, if it holds a hundredth of them, else to its own mean.

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

    Raises
    ------
    ValueError
        The mask is empty, or the reference has no voxel inside it; shapes differ; a map is not
        finite inside the mask.

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
    everything, region = chi[mask], None
    if reference is not None:
        region = reference & mask
        if not region.any():
            raise ValueError('the reference has no voxel inside the region of interest')
    of_body = bodies(mask)
    count = np.bincount(of_body[mask if region is None else region], minlength=of_body.max() + 1)
    held = holding(count)
    found = tuple(
        _refer(chi, of_body == number, region, region is not None and bool(held[number]))
        for number in range(1, of_body.max() + 1)
    )
    subtracted = np.array([0.0, *(body.value for body in found)]).astype(np.float32)
    chi = np.where(mask, chi - subtracted[of_body], 0).astype(np.float32)
    main = found[int(np.argmax(count[1:]))]
    return Recombination(
        chi,
        main.value,
        main.sd,
        float(everything.mean(dtype=np.float64)),
        float(everything.std(dtype=np.float64)),
        found,
    )


def holding(count: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    """Which bodies hold the reference, by how many of its voxels lie in each; the first in none.

    >>> holding(np.array([0, 500, 3, 0])).tolist()
    [False, True, False, False]
    """
    return count >= max(1, LEAST_FRACTION * int(count[1:].sum()))


def _refer(
    chi: F32, body: npt.NDArray[np.bool_], region: npt.NDArray[np.bool_] | None, held: bool
) -> BodyReference:
    """The reference of one body: its part of the region, its own mean, or nothing."""
    value, sd = 0.0, 0.0
    if region is not None:
        values = chi[region & body if held else body]
        value, sd = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    mean = float(chi[body].mean(dtype=np.float64))
    return BodyReference(int(np.count_nonzero(body)), bool(held), value, sd, mean)


def reference_region(
    name: str,
    mask: npt.NDArray[np.bool_],
    labels: npt.NDArray | None = None,
    label_names: Mapping[int, str] | None = None,
) -> npt.NDArray[np.bool_] | None:
    """Region (X, Y, Z) that a map is relative to, by its name; None without a reference.

    The name is ``none``, ``roi-mean`` (the mask) or one of ``label_names``, which several labels
    (X, Y, Z) may have. ValueError if no label has it.

    >>> labels = np.array([[[1, 2, 2]]])
    >>> reference_region('csf', labels > 0, labels, {1: 'wm', 2: 'csf'}).tolist()
    [[[False, True, True]]]
    """
    if name == 'none':
        return None
    if name == 'roi-mean':
        return mask
    names = label_names or {}
    indices = [index for index, label in names.items() if label == name]
    if not indices or labels is None:
        known = ', '.join(sorted(names.values())) or 'there is no segmentation'
        raise ValueError(
            f'no label is named {name!r} to reference the map to (labels: {known}); '
            'the reference is none, roi-mean or one of the labels'
        )
    region = np.isin(labels, indices)
    if not (region & mask).any():
        raise ValueError(
            f'the label {name!r}, which the map is to be relative to, has no voxel in the region '
            f'of interest ({np.count_nonzero(region)} in the image): take another label, '
            'roi-mean or none, or a larger mask'
        )
    return region
