"""Phase as scanners and converters store it: its scale and its sign.

Everything here happens before the echo fit, in this order: stored values become radians by one
scale for all echoes of a run (:mod:`~precondqsm_bids.numerics.phase.scale`); then
:func:`~precondqsm_bids.numerics.phase.repair.repair_phase` undoes a sign that alternates from
slice to slice and negates the phase if its sign is the opposite of the convention

    S(TE) = S0 exp(-R2* TE) exp(i (phi0 + 2 pi gammabar B0 field TE)).

A constant added to all echoes alike is part of ``phi0`` and without meaning, so that the zero of
stored codes does not matter.
"""
