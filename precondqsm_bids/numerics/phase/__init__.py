"""Phase as scanners and converters store it: its scale and its sign.

Everything here happens before the echo fit, in this order: stored values become radians by one
scale for all echoes of a run (:func:`phase_to_radians`); then :func:`repair_phase` undoes a sign
that alternates from slice to slice and negates the phase if its sign is the opposite of the
convention

    S(TE) = S0 exp(-R2* TE) exp(i (phi0 + 2 pi gammabar B0 field TE)).

A constant added to all echoes alike is part of ``phi0`` and without meaning, so that the zero of
stored codes does not matter.
"""

from precondqsm_bids.numerics.phase.outline import (
    CoarseField,
    closed_outline,
    coarse_field,
    cut_fraction,
)
from precondqsm_bids.numerics.phase.readout import (
    alternating_axes,
)
from precondqsm_bids.numerics.phase.recognition import (
    Advance,
    Growth,
    SlowPhase,
    fills_quarter_turn,
    growth,
    is_phase,
    likeness,
    phase_growth,
    slow_phase,
    unsigned_parts,
)
from precondqsm_bids.numerics.phase.repair import PhaseRepair, first_field, repair_phase
from precondqsm_bids.numerics.phase.scale import (
    PhaseScale,
    apply_scale,
    phase_scale,
    phase_to_radians,
)
from precondqsm_bids.numerics.phase.shape_field import ShapeField, shape_field
from precondqsm_bids.numerics.phase.sign import (
    AxisTest,
    PhaseSign,
    SignDecision,
    check_b0,
    compare_axes,
    decide_sign,
    phase_sign,
    shape_evidence,
    vendor_sign,
)

__all__ = [
    'Advance',
    'AxisTest',
    'CoarseField',
    'Growth',
    'PhaseRepair',
    'PhaseScale',
    'PhaseSign',
    'ShapeField',
    'SignDecision',
    'SlowPhase',
    'alternating_axes',
    'apply_scale',
    'check_b0',
    'closed_outline',
    'coarse_field',
    'compare_axes',
    'cut_fraction',
    'decide_sign',
    'fills_quarter_turn',
    'first_field',
    'growth',
    'is_phase',
    'likeness',
    'phase_growth',
    'phase_scale',
    'phase_sign',
    'phase_to_radians',
    'repair_phase',
    'shape_evidence',
    'shape_field',
    'slow_phase',
    'unsigned_parts',
    'vendor_sign',
]
