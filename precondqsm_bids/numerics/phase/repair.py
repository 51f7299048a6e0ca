"""Phase of the convention: slices and sign repaired, in this order."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from precondqsm_bids.numerics.arguments import checked
from precondqsm_bids.numerics.constants import hz_per_ppm
from precondqsm_bids.numerics.echoes import Echoes
from precondqsm_bids.numerics.noise import noise_inside
from precondqsm_bids.numerics.phase.readout import alternating_axes
from precondqsm_bids.numerics.phase.sign import (
    AxisTest,
    PhaseSign,
    compare_with_shape,
    decide_sign,
)
from precondqsm_bids.numerics.scan import Scan
from precondqsm_bids.numerics.unwrapping import phase_advance, unwrap

F32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
TWO_PI = 2 * np.pi


class PhaseRepair(NamedTuple):
    """Result of :func:`repair_phase`."""

    phase: F32
    """Phase of the convention, rad, (X, Y, Z, E)."""
    alternating_axes: tuple[int, ...]
    """Array axes along which the sign of the signal alternated from slice to slice."""
    sign: int
    """Sign that the phase had: +1, or -1 if it was negated."""
    sign_source: str
    """``given``, ``field of the shape``, ``vendor`` or ``convention``."""
    sign_test: PhaseSign | None
    """The field against that of the shape; None if it could not be compared."""
    axes: AxisTest | None
    """The same for B0 along each voxel axis; None if they could not be compared."""
    notes: tuple[str, ...]
    """Repairs and doubts, in sentences."""
    first_field: F32 | None = None
    """Field by the phase advance alone, ppm, (X, Y, Z); None if it was not looked at."""


def first_field(echoes: Echoes, noise_sd: float) -> tuple[F32, F32]:
    """Cheap field and its standard deviation, ppm, from the phase advance between echoes.

    ``angle(sum_e s_(e+1) s_e*)`` over the shortest echo spacing, unwrapped in space. No prediction
    enters, so that its sign is that of the phase; the phase offset enters where there is one echo.
    The noise of one channel (unit of the magnitude) only sets the weights of voxels.

    >>> te, mask = np.array([0.004, 0.008]), np.ones((4, 4, 4), bool)
    >>> phase = np.full((4, 4, 4, 1), 0.1) + 2 * np.pi * 127.729 * 0.05 * te
    >>> field, _ = first_field(Echoes.of((np.ones(phase.shape), phase), te, mask, 3.0), 0.01)
    >>> print(field[0, 0, 0].round(4))
    0.05
    """
    advance, spacing = phase_advance(echoes)
    to_rad = np.float32(TWO_PI * hz_per_ppm(echoes.field_strength) * spacing)
    amplitude = np.sqrt(np.abs(advance))
    noise = noise_sd / echoes.unit
    ratio = np.sqrt(2) * noise / np.maximum(amplitude, 1e-3 * noise + 1e-30)
    return (
        echoes.volume(unwrap(np.angle(advance), echoes.mask) / to_rad),
        echoes.volume((np.minimum(ratio, np.pi) / to_rad).astype(np.float32, copy=False)),
    )


@checked
def repair_phase(
    scan: Scan, mask: Bools, shape_mask: Bools | None = None, workers: int = 1
) -> PhaseRepair:
    """Phase of the convention: slices of one sign, and the right sign.

    Slices are repaired first (:func:`alternating_axes`), since nothing can be unwrapped before;
    then B0 and the sign are looked at (:func:`shape_evidence`, :func:`compare_axes`,
    :func:`decide_sign`) with the :func:`first_field` of what is left, the mask eroded by a voxel
    where that leaves any: the shape's field is least certain in the border.

    Parameters
    ----------
    scan : Scan
        Its phase in rad.
    mask : (X, Y, Z) ndarray of bool
        The object.
    shape_mask : (X, Y, Z) ndarray of bool, optional
        The object against air. Without it nothing is compared with the field.
    workers : int
        Threads of the Fourier transforms.

    Returns
    -------
    PhaseRepair
        Its ``phase`` is the very array that was given if nothing had to be repaired.

    Raises
    ------
    ValueError
        The field contradicts the stated sign, or the header's direction of B0; the message has
        the correlations and the way out. See also
        :func:`~precondqsm_bids.numerics.echoes.check_echoes`.

    Examples
    --------
    >>> te = np.array([2, 4, 6]) * 1e-3
    >>> phase = 0.2 + 100 * te + np.zeros((12, 12, 12, 3))
    >>> mask = np.ones((12, 12, 12), bool)
    >>> repaired = repair_phase(Scan(np.ones(phase.shape), phase, te, 3.0, phase_sign=-1), mask)
    >>> print(repaired.sign_source, repaired.phase[0, 0, 0, 0].round(1))
    given -0.4
    """
    if scan.phase_sign not in (None, 1, -1):
        raise ValueError(f'the sign of the phase is 1 or -1, not {scan.phase_sign!r}')
    if not mask.any():
        raise ValueError('the mask is empty: there is no phase to look at')
    notes = []
    magnitude, phase = scan.magnitude, scan.phase
    echoes = Echoes.of((magnitude, phase), scan.echo_times, mask, scan.field_strength)
    repaired = phase

    alternating = alternating_axes(echoes)
    for axis in alternating:
        odd = [slice(None)] * 4
        odd[axis] = slice(1, None, 2)
        repaired = repaired.copy() if repaired is phase else repaired
        repaired[tuple(odd)] += np.float32(np.pi)
        echoes.signal[np.nonzero(mask)[axis] % 2 == 1] *= -1
        notes.append(
            'the sign of the signal alternates from slice to slice: every second slice was turned '
            'by half a turn'
        )

    test = axes = field = None
    if shape_mask is not None:
        field, sd = first_field(echoes, noise_inside(magnitude[..., 0], mask))
        test, axes, doubts = compare_with_shape(field, sd, (mask, shape_mask), scan, workers)
        notes += doubts
    decided = decide_sign(test, scan.phase_sign, scan.manufacturer)
    notes += decided.warnings
    if decided.sign < 0:
        repaired = np.negative(repaired, out=None if repaired is phase else repaired)
        field = None if field is None else -field
        if decided.source != 'given':
            notes.append('the sign of the phase is reversed: it was negated')
    return PhaseRepair(
        repaired, alternating, decided.sign, decided.source, test, axes, tuple(notes), field
    )
