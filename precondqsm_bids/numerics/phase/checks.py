"""Images that are not what their names say, refused by name, with values and way out."""

from functools import partial
from itertools import combinations

import numpy as np
import numpy.typing as npt

from precondqsm_bids.numerics.arrays import check_finite, side_by_side
from precondqsm_bids.numerics.phase.recognition import (
    SAME_IMAGE,
    fills_quarter_turn,
    growth,
    is_phase,
    likeness,
    phase_growth,
    slow_phase,
    unsigned_parts,
)
from precondqsm_bids.numerics.phase.shape_field import ShapeField
from precondqsm_bids.numerics.scan import Scan

Bools = npt.NDArray[np.bool_]
COMPARED = 10_000
"""About how many voxels tell whether two echoes are the same image."""


def check_not_phase(magnitude: npt.NDArray, name: str) -> None:
    """Raise ValueError if a magnitude has the values of a phase.

    >>> check_not_phase(np.random.default_rng(0).uniform(-3, 3, (20, 20, 20)), 'mag.nii')
    Traceback (most recent call last):
    ...
    ValueError: mag.nii, a magnitude by its name, has the values of a phase (-... to ...
    """
    if is_phase(magnitude):
        raise ValueError(
            f'{name}, a magnitude by its name, has the values of a phase ({magnitude.min():g} to '
            f'{magnitude.max():g}, as noise and wraps fill it): magnitude and phase are swapped; '
            'rename part-mag and part-phase'
        )


def check_not_negative(magnitude: npt.NDArray, name: str) -> None:
    """Raise ValueError if a magnitude is negative somewhere, or has the values of a phase.

    >>> check_not_negative(np.array([30000.0, -30000.0]), 'echo.nii')
    Traceback (most recent call last):
    ...
    ValueError: echo.nii, a magnitude, has 1 negative voxels (least -30000): unsigned numbers ...
    """
    if magnitude.min() < 0:
        check_not_phase(magnitude, name)
        raise ValueError(
            f'{name}, a magnitude, has {np.count_nonzero(magnitude < 0)} negative voxels (least '
            f'{magnitude.min():g}): unsigned numbers stored as signed, or not a magnitude; export '
            'the image again'
        )


def check_signed(real: npt.NDArray, imaginary: npt.NDArray, names: tuple[str, str]) -> None:
    """Raise ValueError if real and imaginary parts have lost their signs."""
    if unsigned_parts(real, imaginary):
        raise ValueError(
            f'{names[0]} and {names[1]}, real and imaginary parts, are never negative ('
            f'{real.min():g} to {real.max():g}, {imaginary.min():g} to {imaginary.max():g}): '
            'unsigned parts fill a quarter turn and hold no phase; export them with their sign, '
            'or with 0 stored as 0'
        )


def check_stored(scan: Scan, mask: Bools, workers: int = 1) -> None:
    """Raise ValueError if an echo is not finite, a magnitude negative or growing with time, or a
    stored phase a magnitude or that of another echo.

    Before the phase is scaled: the values of a magnitude are those of no phase.
    """
    magnitudes, names = scan.names('magnitude'), scan.names('phase')
    for echo, name in zip((*scan.magnitude.T, *scan.phase.T), (*magnitudes, *names), strict=True):
        if not np.isfinite(echo.sum()):
            check_finite(echo, name)
    for echo, name in zip(scan.magnitude.T, magnitudes, strict=True):
        check_not_negative(echo, name)
    pairs = zip(scan.phase.T, scan.magnitude.T, strict=True)
    alike = [partial(likeness, phase.T, magnitude.T, mask) for phase, magnitude in pairs]
    likenesses = side_by_side(workers, *alike)
    for e, (name, (values, differences)) in enumerate(zip(names, likenesses, strict=True)):
        if min(values, differences) > SAME_IMAGE:
            raise ValueError(
                f'{name}, a phase by its name, is a magnitude: it correlates with '
                f'{magnitudes[e]} by {values:.2f} in the object, and {differences:.2f} from '
                'voxel to voxel; export the phase'
            )
    _check_different(scan, mask)
    if not scan.one_echo:
        found = growth(scan.magnitude, mask)
        if found.reversed:
            first, last = (1e3 * np.asarray(scan.echo_times)[e] for e in (0, -1))
            raise ValueError(
                f'the magnitude grows from {magnitudes[0]} ({first:g} ms) to '
                f'{magnitudes[-1]} ({last:g} ms) in {found.fraction:.0%} of the object, by a '
                f'factor of {found.factor:.2f}, but signal decays: echo times in reverse order '
                '(correct EchoTime), or echoes that are scaled one by one (export them with one '
                'scale)'
            )


def _check_different(scan: Scan, mask: Bools) -> None:
    """Raise ValueError if two echoes have the same phase, one stored (or given) for the other."""
    voxels = np.flatnonzero(mask)[:: max(1, np.count_nonzero(mask) // COMPARED)]
    where = np.unravel_index(voxels, mask.shape)
    echoes = [phase.T[where] for phase in scan.phase.T]
    for e, f in combinations(range(len(echoes)), 2):
        if np.array_equal(echoes[e], echoes[f]) and np.ptp(echoes[e]) > 0:
            names, times = scan.names('phase'), 1e3 * np.asarray(scan.echo_times)
            raise ValueError(
                f'{names[f]} ({times[f]:g} ms) is the same image as {names[e]} ({times[e]:g} ms): '
                'each echo has a phase of its own; export that (of phase differences, give one '
                'as one echo with EchoTime1 and EchoTime2)'
            )


def check_phase(scan: Scan, mask: Bools, shape: ShapeField | None) -> None:
    """Raise ValueError if a phase (rad) is filtered, does not grow with time or lost its sign."""
    names = scan.names('phase')
    for e, name in enumerate(names):
        there = scan.magnitude[..., e] > 0
        if fills_quarter_turn(scan.phase[..., e][there]):
            raise ValueError(
                f'{name} fills a quarter turn only (0 to pi/2 rad), as the phase of real and '
                'imaginary parts that have lost their signs: compute it from signed parts'
            )
    if shape is None:
        return
    # First, since what does not grow with time has less than the time of an echo makes of it.
    advance = phase_growth(scan, mask, shape.field)
    if advance is not None and advance.differences:
        raise ValueError(
            f'{names[0]} and {names[1]} are phase differences: the phase does not '
            "grow with echo time (the field of the object's shape has the coefficient "
            f'{advance.first:.2f} in the first echo and {advance.coefficient:.2f} between the '
            'two, +1 or -1 by theory); give the phase of each echo, or one difference as one '
            'echo with EchoTime1 and EchoTime2'
        )
    slow = slow_phase(scan, mask, shape.field)
    if slow.filtered:
        raise ValueError(
            f'{names[-1]} is a filtered phase (high-pass, homodyne or SWI): what varies '
            f'slowly is {slow.size:.3f} rad (root mean square), where the shape of the object '
            f'alone makes {slow.expected:.2f} rad; the filter took most of the field, so export '
            'the phase before it'
        )
