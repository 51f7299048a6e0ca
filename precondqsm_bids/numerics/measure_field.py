"""The echo fit as a stage: from a scan as it is stored to its field, and a record."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from precondqsm_bids.numerics.arguments import checked
from precondqsm_bids.numerics.arrays import side_by_side
from precondqsm_bids.numerics.echo_fit import EchoFit, fit_echoes
from precondqsm_bids.numerics.echoes import check_echoes, root_sum_of_squares
from precondqsm_bids.numerics.field_quality import FieldQuality, judge_field
from precondqsm_bids.numerics.ghosts import Ghosts, find_ghosts, without_ghosts
from precondqsm_bids.numerics.one_echo import OneEcho, field_of_one_echo
from precondqsm_bids.numerics.partial_fourier import measured_lines
from precondqsm_bids.numerics.phase.checks import check_not_phase, check_phase, check_stored
from precondqsm_bids.numerics.phase.repair import PhaseRepair, repair_phase
from precondqsm_bids.numerics.phase.scale import PhaseScale, phase_scale, phase_to_radians
from precondqsm_bids.numerics.phase.shape_field import ShapeField, shape_field
from precondqsm_bids.numerics.scan import Scan
from precondqsm_bids.numerics.unwrapping import ambiguous_fraction

F32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
MOST_AMBIGUOUS = 1e-3
"""Fraction of neighbours half a turn apart above which unwrapping is not to be trusted: 0 in tubes
of ordinary spacing, 0.002 to 0.02 where turns are lost."""

ONE_ECHO = (
    'one echo: the field is its unwrapped phase over the echo time, and the phase offset of the '
    'coil, which one echo cannot tell from it, is part of it; R2* and S0 are not known'
)
ONE_DIFFERENCE = (
    'one echo: the phase is the difference of two echoes, and the field is that over the time '
    'between them; a difference has no phase offset; R2* and S0 are not known'
)
GHOSTS = (
    'ghosts of a field that fluctuates during the scan (breathing) lie along axis {ghost_axis}, '
    'of {ghost_size:.2f} rad in the last echo: corrected'
)
PARTIAL_FOURIER = (
    'partial Fourier: {:.0%} of the lines of k-space along axis {} were measured, the others are '
    'zero; edges are blurred there, and the maps less exact'
)
UNWRAPPED = (
    'the phase has no Units and spans more than a turn without a jump: it was taken for radians '
    'that are already unwrapped; write "Units": "rad" into its sidecar if it is so'
)


class MeasuredField(NamedTuple):
    """Result of :func:`measure_field`; maps are (X, Y, Z), zero outside the mask."""

    total_field: F32
    """Relative field, ppm."""
    field_sd: F32
    """Standard deviation of the field, ppm."""
    usable_echoes: npt.NDArray[np.uint8]
    """Echoes whose fitted signal exceeds twice the noise."""
    magnitude: F32
    """Root sum of squares over the echoes, of every voxel, free of the ringing that was found."""
    roi_mask: Bools
    """The mask without what was recognised as fat."""
    record: dict[str, Any]
    """Numbers and choices of the stage, ready for JSON."""
    r2star: F32 | None = None
    """Effective transverse relaxation rate, 1/s; this and the following: None of one echo."""
    t2star: F32 | None = None
    """Effective transverse relaxation time, s."""
    s0: F32 | None = None
    """Signal at TE = 0, in the unit of the magnitude."""
    reliable: Bools | None = None
    """Voxels whose R2* is to be trusted."""
    misfit: F32 | None = None
    """Root mean square of the residual over the noise."""
    r2star_sd: F32 | None = None
    """Standard deviation of R2* by the noise, 1/s."""
    magnitude_sd: F32 | None = None
    """Standard deviation of the magnitude by the noise, in its unit."""


@checked
def measure_field(
    scan: Scan,
    mask: Bools,
    shape_mask: Bools | None = None,
    *,
    workers: int = 1,
    overwrite: bool = False,
) -> MeasuredField:
    """Field of a scan as it is stored, whatever its scale and sign.

    1. The stored phase is scaled to radians
       (:func:`~precondqsm_bids.numerics.phase.scale.phase_scale`); images that are not what their
       names say are refused (:mod:`~precondqsm_bids.numerics.phase.checks`).
    2. Ghosts of a field that fluctuates during the scan are taken off
       (:func:`~precondqsm_bids.numerics.ghosts.find_ghosts`).
    3. Slices of alternating sign and the sign of the phase are repaired
       (:func:`~precondqsm_bids.numerics.phase.repair.repair_phase`).
    4. The echoes are fitted (:func:`~precondqsm_bids.numerics.echo_fit.fit_echoes`; of a single
       one :func:`~precondqsm_bids.numerics.one_echo.field_of_one_echo`), helped by the field of
       the object's shape. Fat is left out (:func:`~precondqsm_bids.numerics.fat.find_fat`).
    5. The result is judged (:func:`~precondqsm_bids.numerics.field_quality.judge_field`).

    Parameters
    ----------
    scan : Scan
        Echoes as stored, and what is known of them.
    mask : (X, Y, Z) ndarray of bool
        Voxels to fit.
    shape_mask : (X, Y, Z) ndarray of bool, optional
        Object in air; its field helps unwrapping and tells the sign.
    workers : int
        Threads.
    overwrite : bool
        Scale the phase of the scan in place, and take ghosts off the images there, which saves
        copies of them.

    Raises
    ------
    ValueError
        Shapes, times or field strength are not those of a scan, an image is not what its name
        says, the field contradicts the stated sign or the header's direction of B0, or most of
        the region has no field. The message has the values and the way out.

    Examples
    --------
    >>> te = np.array([4e-3, 8e-3, 12e-3])
    >>> x = np.indices((12, 12, 12))[0][..., None] / 12
    >>> signal = np.exp(-30 * te + 2j * np.pi * 127.729 * (0.05 + 0.02 * x) * te)
    >>> noise = 0.01 * np.random.default_rng(0).normal(size=(2, *signal.shape))
    >>> signal = signal + noise[0] + 1j * noise[1]
    >>> scan = Scan(np.abs(signal), np.angle(signal), te, 3.0, phase_units='rad', phase_sign=1)
    >>> found = measure_field(scan, np.ones((12, 12, 12), bool))
    >>> print(found.total_field.mean().round(3), found.record['phase_scale'])
    0.059 radians
    """
    check_echoes(scan.magnitude, scan.phase, scan.echo_times, least=1)
    check_stored(scan, mask, workers)
    try:
        with scan.named():
            scale = phase_scale(scan.phase, scan.phase_units)
    except ValueError:  # perhaps since magnitude and phase of one echo are swapped
        for e, name in enumerate(scan.names('magnitude')):
            check_not_phase(scan.magnitude[..., e], name)
        raise
    with scan.named():
        scan = scan._replace(phase=phase_to_radians(scan.phase, scale, overwrite))
    lines = _measured_lines(scan, mask if shape_mask is None else shape_mask)
    scan, ghosts = _without_ghosts(scan, shape_mask, workers, overwrite)
    shape, repair = _shape_and_repair(scan, mask, shape_mask, workers)
    fields = (shape.field if shape else None), repair.first_field
    right = scan._replace(phase=repair.phase)
    _, fit = side_by_side(
        workers,
        lambda: check_phase(scan, mask, shape),
        lambda: _fit(right, mask, shape_mask, fields, workers),
    )

    roi_mask = mask & ~fit.fat if isinstance(fit, EchoFit) else mask

    def judged() -> FieldQuality:
        with scan.named():
            return judge_field(fit, roi_mask)

    quality, ambiguous = side_by_side(workers, judged, lambda: _ambiguous(scan, fit, roi_mask))
    record = _record(scan, scale, repair) | _record_of_ghosts(scan, ghosts)
    record |= _record_of_fit(fit, scan, quality, ambiguous, roi_mask)
    record['warnings'] = _warnings(scan, scale, repair, quality, ambiguous)
    record['measured_lines'] = lines
    if ghosts:
        record['warnings'].append(GHOSTS.format(**record))
    record['warnings'] += [
        PARTIAL_FOURIER.format(share, axis)
        for axis, share in zip('ijk', lines or (), strict=False)
        if share < 1
    ]
    maps = fit.total_field, fit.field_sd, fit.usable_echoes
    if isinstance(fit, OneEcho):
        return MeasuredField(*maps, root_sum_of_squares(scan.magnitude), roi_mask, record)
    return MeasuredField(
        *maps, fit.magnitude, roi_mask, record, fit.r2star, t2star_of(fit.r2star), fit.s0,
        fit.reliable, fit.misfit, fit.r2star_sd, fit.magnitude_sd,
    )  # fmt: skip


def t2star_of(r2star: F32) -> F32:
    """T2* (s) of R2* (1/s), 0 where that is 0."""
    return np.divide(1, r2star, out=np.zeros_like(r2star), where=r2star > 0)


def _without_ghosts(
    scan: Scan, shape_mask: Bools | None, workers: int, overwrite: bool
) -> tuple[Scan, Ghosts | None]:
    """The scan freed of the ghosts that the air shows; a phase difference has no lines."""
    if shape_mask is None or scan.phase_difference:
        return scan, None
    images = scan.magnitude, scan.phase, scan.echo_times
    ghosts = find_ghosts(*images, shape_mask)
    if ghosts is None:
        return scan, None
    magnitude, phase = without_ghosts(*images, ghosts, workers, overwrite)
    return scan._replace(magnitude=magnitude, phase=phase), ghosts


def _measured_lines(scan: Scan, mask: Bools) -> list[float] | None:
    """Share of the lines of k-space that were measured, along the axes of the file."""
    if scan.phase_difference or not mask.any():
        return None
    return _along_file(scan, measured_lines(scan.magnitude[..., 0], scan.phase[..., 0], mask))


def _shape_and_repair(
    scan: Scan, mask: Bools, shape_mask: Bools | None, workers: int
) -> tuple[ShapeField | None, PhaseRepair]:
    """Field of the object's shape, and the phase repaired, side by side.

    Where the repair refuses the phase, what :func:`check_phase` refuses is said first.
    """

    def expected() -> ShapeField | None:
        if shape_mask is None:
            return None
        placed = shape_mask, scan.voxel_size, scan.b0_dir, mask, workers
        return shape_field(*placed, apart=False)

    try:
        with scan.named():
            shape, repair = side_by_side(
                workers, expected, lambda: repair_phase(scan, mask, shape_mask, workers)
            )
    except ValueError:
        check_phase(scan, mask, expected())
        raise
    return shape, repair


def _fit(
    scan: Scan,
    mask: Bools,
    shape_mask: Bools | None,
    fields: tuple[F32 | None, F32 | None],
    workers: int,
) -> EchoFit | OneEcho:
    """The fit of all echoes, or the field of the one, helped by a predicted and a first field."""
    predicted, first = fields
    if scan.one_echo:
        return field_of_one_echo(
            scan.magnitude[..., 0],
            scan.phase[..., 0],
            float(np.asarray(scan.echo_times)[0]),
            scan.field_strength,
            mask,
            object_mask=shape_mask,
            predicted_field=predicted,
            first_field=first,
        )
    return fit_echoes(
        scan.magnitude,
        scan.phase,
        scan.echo_times,
        scan.field_strength,
        mask,
        object_mask=shape_mask,
        voxel_size=scan.voxel_size,
        predicted_field=predicted,
        first_field=first,
        workers=workers,
    )


def _record(scan: Scan, scale: PhaseScale, repair: PhaseRepair) -> dict[str, Any]:
    """Record of the input and its repair."""
    test = repair.sign_test
    return {
        'echo_times': np.asarray(scan.echo_times, float).tolist(),
        'field_strength': scan.field_strength,
        'field_strength_source': 'given',
        'phase_scale': scale.convention,
        'phase_turn': scale.turn,
        'alternating_axes': [scan.stored_axes[axis] for axis in repair.alternating_axes],
        'phase_sign': repair.sign,
        'phase_sign_source': repair.sign_source,
        'phase_sign_coefficient': test.coefficient if test else None,
        'phase_sign_correlation': test.correlation if test else None,
        'phase_sign_by_depth': list(test.shells) if test else None,
        'phase_sign_outline': test.radius if test else None,
        'b0_dir': np.asarray(scan.b0_dir, float).round(6).tolist(),
        'b0_dir_source': 'given' if scan.b0_stated else 'header',
        'b0_contradicted': bool(repair.axes and repair.axes.better),
    }


def _record_of_ghosts(scan: Scan, ghosts: Ghosts | None) -> dict[str, Any]:
    """Record of the ghosts that were taken off, the axis as in ``PhaseEncodingDirection``."""
    return {
        'ghost_axis': 'ijk'[scan.stored_axes[ghosts.axis]] if ghosts else None,
        'ghost_share': ghosts.share if ghosts else 0.0,
        'ghost_size': ghosts.size if ghosts else 0.0,
    }


def _record_of_fit(
    fit: EchoFit | OneEcho, scan: Scan, quality: FieldQuality, ambiguous: float, mask: Bools
) -> dict[str, Any]:
    """Record of the fit and its quality."""
    many = fit if isinstance(fit, EchoFit) else None
    phases = many.echo_phase if many else None
    in_field = 'none (phase difference)' if scan.phase_difference else 'in the field'
    return {
        'median_field_sd': float(np.median(fit.field_sd[mask])),
        'misfit_fraction': quality.misfit_fraction,
        'unusable_fraction': quality.unusable_fraction,
        'zero_r2star_fraction': quality.zero_rate_fraction,
        'noise_ratio': quality.noise_ratio,
        'own_offset_fraction': quality.own_offset_fraction,
        'bodies': quality.bodies,
        'ambiguous_fraction': ambiguous,
        'noise_sd': fit.noise_sd,
        'noise_source': fit.noise_source,
        'channels': many.air.channels if many and many.air else None,
        'offset_model': many.offset_model if many else in_field,
        'offset_misfit': many.offset_misfit if many else None,
        'reliable_fraction': float(many.reliable[mask].mean()) if many else None,
        'echo_phase': phases
        and {
            'constant': phases.coefficients[:, 0].tolist(),
            'gradient': phases.coefficients[:, 1:].tolist(),
            'size': phases.size.tolist(),
        },
        'echo_phase_size': float(phases.size.max()) if phases else None,
        'body_turns': list(many.body_turns) if many else [],
        'fat_voxels': int(np.count_nonzero(many.fat)) if many else 0,
        'ringing': _along_file(scan, many.ringing.share) if many and many.ringing else None,
    }


def _along_file(scan: Scan, values: Sequence[float]) -> list[float]:
    """Values along the axes of the arrays in the order of the file's."""
    return [values[scan.stored_axes.index(axis)] for axis in range(3)]


def _ambiguous(scan: Scan, fit: EchoFit | OneEcho, mask: Bools) -> float:
    """Fraction of neighbours that unwrapping may have a turn apart."""
    maps = fit.total_field, fit.field_sd
    return ambiguous_fraction(*maps, _times(scan), scan.field_strength, mask)


def _times(scan: Scan) -> npt.NDArray[np.float64]:
    """Echo times, of one echo with that of the excitation."""
    times = np.asarray(scan.echo_times, np.float64)
    return np.append(0, times) if scan.one_echo else times


def _warnings(
    scan: Scan,
    scale: PhaseScale,
    repair: PhaseRepair,
    quality: FieldQuality,
    ambiguous: float,
) -> list[str]:
    """Assumptions, repairs and doubts, in sentences."""
    warnings = [*repair.notes, *quality.warnings]
    if scale.convention == 'unwrapped' and not scan.phase_units:
        warnings.append(UNWRAPPED)
    if scan.one_echo:
        warnings.append(ONE_DIFFERENCE if scan.phase_difference else ONE_ECHO)
    if ambiguous > MOST_AMBIGUOUS:
        spacing = 1e3 * float(np.diff(_times(scan)).min())
        what = 'echo time' if scan.one_echo else 'shortest echo spacing'
        warnings.append(
            f'the field may be wrong by whole turns: the {what} of '
            f'{spacing:g} ms is too long to unwrap it, {ambiguous:.2%} of neighbours are more '
            'than half a turn apart'
        )
    return warnings
