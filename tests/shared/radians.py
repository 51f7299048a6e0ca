"""Phase as the stages have it."""

from precondqsm_bids.numerics.phase.scale import phase_scale, phase_to_radians


def in_radians(phase, units=None):
    """Stored phase in radians, by the scale that is found in it."""
    return phase_to_radians(phase, phase_scale(phase, units))
