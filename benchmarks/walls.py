"""Walls: steps of a map across planes that repeat, against those across planes beside them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from precondqsm_bids.numerics.prior.contrast import SCALES, node_spacing


def walls(
    chi: npt.NDArray,
    mask: npt.NDArray[np.bool_],
    voxel_size: npt.ArrayLike,
    periods: Sequence[float] = (),
) -> dict[tuple[float, float], float]:
    """Typical step across the planes of each period and phase, relative to that beside them.

    Planes lie at whole or half periods from the centre of the region along each axis. The steps
    across them (between the two voxels that they lie between) are compared with those one and
    two voxels before and behind, where no such plane lies. A wall goes through all of a plane:
    of each the median absolute step counts, to which the edge of an object adds little.

    Parameters
    ----------
    chi : (X, Y, Z) ndarray
        Map, any unit.
    mask : (X, Y, Z) ndarray of bool
        Region of interest.
    voxel_size : (3,) array_like
        Voxel size, mm.
    periods : sequence of float
        Distances of the planes, mm; those of the contrast prior's nodes if none is given.

    Returns
    -------
    dict
        Ratio by period (mm) and phase (0 or 0.5).

    Examples
    --------
    >>> x = np.arange(-30, 30)[:, None, None] + np.zeros((60, 4, 4))
    >>> tiles = np.floor((x + 0.5) / 10) + 0.02 * x
    >>> found = walls(tiles, np.ones(x.shape, bool), (1, 1, 1), [10])
    >>> print(round(found[10, 0]), round(found[10, 0.5]))
    51 1
    """
    periods = periods or [node_spacing(s, mask, voxel_size) for s in SCALES[1:]]
    sums = {(period, phase): np.zeros(2) for period in periods for phase in (0, 0.5)}
    for axis, size in enumerate(np.asarray(voxel_size, float)):
        volume, inside = (np.moveaxis(v, axis, 0) for v in (chi, mask))
        pairs = inside[1:] & inside[:-1]
        steps = np.abs(np.diff(volume, axis=0))
        count = np.sum(pairs, axis=(1, 2))
        typical = np.array(
            [np.median(s[p]) if p.any() else 0.0 for s, p in zip(steps, pairs, strict=True)]
        )
        middle = (np.arange(len(typical)) + 0.5 - np.mean(np.nonzero(inside)[0])) * size
        for (period, phase), total in sums.items():
            place = middle / period - phase
            # A plane that goes through a voxel's centre shows in both steps beside it.
            across = np.abs(place - np.round(place)) * period < 0.51 * size
            for i in np.flatnonzero(across & (count > 0.2 * count.max())):
                beside = [
                    j
                    for j in (i - 2, i - 1, i + 1, i + 2)
                    if 0 <= j < len(typical) and count[j] and not across[j]
                ]
                if beside:
                    total += count[i] * typical[i], count[i] * np.mean(typical[beside])
    return {key: float(a / b) if b else 1.0 for key, (a, b) in sums.items()}
