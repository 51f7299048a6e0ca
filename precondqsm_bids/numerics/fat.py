"""Fat: recognised by the step that its chemical shift makes in the phase of all echoes.

A shift is a frequency, as a field is. But a step of the field is unwrapped over the echo spacing
``dTE`` and continues the phase offset of what is around it; the shift of fat is mostly more than
half a turn per spacing, so that it aliases: the field of fat steps by ``shift - n / dTE``, and its
offset by ``2 pi n TE1 / dTE``. Both steps are known beforehand, and no susceptibility makes the
second unless its field is unwrapped a turn off. Where ``n TE1 / dTE`` is near a whole number, or a
turn off looks the same, the echoes do not tell fat from a field.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse import csgraph

from precondqsm_bids.numerics.arrays import neighbours
from precondqsm_bids.numerics.constants import FAT_SHIFT, hz_per_ppm
from precondqsm_bids.numerics.echoes import (
    Echoes,
    difference_of_phase,
    fit_phase,
    in_place,
)
from precondqsm_bids.numerics.morphology import dilated

F32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
RATE = 30.0
"""R2* that weights the echoes where the step of fat is worked out, 1/s."""
LEAST_ECHOES = 3
"""Echoes that it takes: of two, eddy currents may be what the offset shows."""
LEAST_STEP = 1.0
"""Step of the offset, rad, below which the echoes do not tell fat from a field."""
MOST_SD = 0.15
"""Standard deviation of the offset, rad, of a voxel that counts."""
SMOOTH = 0.3
"""Step of the offset, rad, up to which neighbours are of one tissue."""
NEAR, NEAR_PPM = 0.5, 0.7
"""Distance from the step of fat, rad and ppm, up to which a step is one: its smaller lines are
within, and what the field changes over three voxels."""
LARGEST_STEP = 1.5
"""Largest step of the field between voxels of water that is thought of, ppm."""
LEAST_VOLUME, LEAST_VOXELS = 500.0, 50
"""Least piece of one tissue, mm^3 and voxels."""
ACROSS = (2, 3)
"""Distances over which two tissues are compared, voxels: those between them hold both."""
MOST_RATE = 150.0
"""Decay of a piece, 1/s, beyond which it is a strong source that is unwrapped a turn off: fat has
30 to 70."""
LEAST_PAIRS = 20
"""Pairs of voxels that it takes to compare a piece with others."""


class Step(NamedTuple):
    """What the fit of a line to the phase of the echoes makes of the chemical shift."""

    field: float
    """ppm"""
    offset: float
    """rad"""


def step_of_fat(echo_times: npt.NDArray, field_strength: float) -> Step:
    """Step of field and phase offset from water to fat, as unwrapping over the echoes has it.

    Parameters
    ----------
    echo_times : (E,) ndarray
        s, increasing.
    field_strength : float
        B0, T.

    References
    ----------
    Ren J et al., J Lipid Res 2008;49:2055 (the lines of fat: the largest, of the methylene
    chains, is 3.4 ppm from water and has 70 % of the signal).

    Examples
    --------
    At 3 T and a spacing of 2.8 ms fat is more than a turn off; at 4, 8, 12 ms the echoes do not
    tell:

    >>> [round(value, 2) for value in step_of_fat(1e-3 * np.array([1.4, 4.2, 7.0]), 3.0)]
    [-0.6, 3.14]
    >>> abs(step_of_fat(1e-3 * np.array([4.0, 8.0, 12.0]), 3.0).offset) < LEAST_STEP
    True
    """
    times = np.asarray(echo_times, np.float64)
    shift = FAT_SHIFT * hz_per_ppm(field_strength)
    signal = np.exp((2j * np.pi * shift - RATE) * times).astype(np.complex64)
    fat = Echoes(signal[None], times, np.ones((1, 1, 1), bool), field_strength)
    turns = np.round(shift * np.diff(times).min()) / np.diff(times).min()
    field = np.array([(shift - turns) / hz_per_ppm(field_strength)], np.float32)
    offset = np.zeros(1, np.float32)
    fit_phase(fat, field, offset, True)
    return Step(float(field[0]), float(difference_of_phase(offset, 0)[0]))


def find_fat(
    echoes: Echoes, field: F32, offset: F32, offset_sd: F32, voxel_size: npt.ArrayLike
) -> Bools:
    """Voxels of fat, (X, Y, Z), from field and offset that are free in each voxel.

    1. Pieces of one tissue: voxels that are connected by steps of the offset below 0.3 rad.
    2. Voxels of two pieces that are two or three apart along an axis are compared. A piece of
       which most steps to others are those of fat, to half a radian and 0.7 ppm (or half a turn),
       is fat if it does not decay as fast as a strong source does; to fat the water beside it has
       the opposite step.
    3. Voxels beside fat that belong to no piece hold some of both and go with it.

    Memory: 100 bytes per voxel of the mask; no Fourier transform.

    Parameters
    ----------
    echoes : Echoes
        Echoes of the V voxels of a mask.
    field, offset, offset_sd : (V,) ndarray
        Field, ppm; phase offset and its standard deviation, rad, by the noise alone: of several
        lines, fat leaves more than noise.
    voxel_size : (3,) array_like
        mm
    """
    nothing = np.zeros(echoes.mask.shape, bool)
    if echoes.echo_times.size < LEAST_ECHOES:
        return nothing
    step = step_of_fat(echoes.echo_times, echoes.field_strength)
    turn = float(echoes.turn)
    if abs(step.offset) < LEAST_STEP or any(_like_water(step, echoes, m) for m in (-1, 1)):
        return nothing
    least = max(LEAST_VOXELS, LEAST_VOLUME / float(np.prod(np.asarray(voxel_size, float))))
    offsets = in_place(offset, echoes.mask)
    pieces = _pieces(offsets, in_place(offset_sd < MOST_SD, echoes.mask), least)
    number = int(pieces.max())
    if number < 2:
        return nothing
    steps, as_fat = np.zeros(number + 1), np.zeros(number + 1)
    fields = in_place(field, echoes.mask)
    for low, high in (neighbours(axis, d) for axis in range(3) for d in ACROSS):
        one, other = pieces[low], pieces[high]
        at = np.nonzero((one != other) & (one > 0) & (other > 0))
        one, other = one[at], other[at]
        change = difference_of_phase(offsets[high][at], offsets[low][at])
        of_field = fields[high][at] - fields[low][at]
        up, down = (
            (difference_of_phase(change, sign * step.offset) / NEAR) ** 2
            + ((of_field - sign * step.field) / min(NEAR_PPM, turn / 2)) ** 2
            for sign in (1, -1)
        )
        apart = np.abs(change) > LEAST_STEP / 2
        for piece, own, opposite in ((other, up, down), (one, down, up)):
            steps += np.bincount(piece[apart], minlength=number + 1)
            as_fat += np.bincount(piece[(own < 1) & (own < opposite)], minlength=number + 1)
    found = np.flatnonzero((steps >= LEAST_PAIRS) & (as_fat > steps / 2))
    of = pieces[echoes.mask]
    slow = [p for p in found if np.median(_rate(echoes, np.flatnonzero(of == p))) < MOST_RATE]
    fat = np.isin(pieces, slow)
    return (dilated(fat) & echoes.mask & (pieces == 0)) | fat


def _rate(echoes: Echoes, voxels: npt.NDArray[np.intp]) -> F32:
    """Decay of the magnitude, 1/s: slope of its logarithm, weighted by its square."""
    amplitude = np.maximum(np.abs(echoes.signal[voxels]), np.finfo(np.float32).tiny)
    weight = amplitude**2 / (amplitude**2).sum(1, keepdims=True)
    log, times = np.log(amplitude), echoes.te
    time = times - (weight @ times)[:, None]
    return -(weight * time * log).sum(1) / (weight * time**2).sum(1)


def _like_water(step: Step, echoes: Echoes, turns: int) -> bool:
    """Whether water whose field is unwrapped so many turns off steps as fat does.

    Its field steps by that many turns (ppm) more.
    """
    field = turns * float(echoes.turn)
    offset = np.array([field * echoes.to_rad[0]])
    alike = abs(float(difference_of_phase(offset, step.offset)[0])) < LEAST_STEP
    return alike and abs(step.field + field) < LARGEST_STEP


def _pieces(offset: F32, known: Bools, least: float) -> npt.NDArray[np.int32]:
    """Number of the connected piece of one tissue, 0 where there is none of that many voxels."""
    index = np.full(offset.shape, -1, np.int32)
    index[known] = np.arange(np.count_nonzero(known))
    pairs = []
    for low, high in map(neighbours, range(3)):
        alike = known[low] & known[high]
        alike &= np.abs(difference_of_phase(offset[high], offset[low])) < SMOOTH
        pairs.append((index[low][alike], index[high][alike]))
    rows, columns = (np.concatenate(ends) for ends in zip(*pairs, strict=True))
    count = np.count_nonzero(known)
    graph = sparse.coo_array((np.ones(rows.size, bool), (rows, columns)), shape=(count, count))
    _, labels = csgraph.connected_components(graph, directed=False)
    sizes = np.bincount(labels)
    large = np.flatnonzero(sizes >= least)
    numbers = np.zeros(sizes.size, np.int32)
    numbers[large] = np.arange(1, large.size + 1)
    return in_place(numbers[labels], known)
