"""Windows: limits of the grey scale by values inside the region, of one map or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Limits = tuple[float, float]
Window = Callable[[Sequence[np.ndarray]], Limits]

LEAST_PHASE = 0.1
"""Least that ends the window of the phase of the echoes, rad: less moves no field that counts."""


def symmetric(values: Sequence[np.ndarray]) -> Limits:
    """Around zero, with 99.9 % of the values: deep nuclei are less than 1 % of a brain.

    >>> symmetric([np.array([-0.5, 0.0, 0.1])])
    (-0.5, 0.5)
    """
    limit = max(round_up(float(np.percentile(np.abs(_finite(v)), 99.9))) for v in values)
    return -limit, limit


def from_zero(values: Sequence[np.ndarray]) -> Limits:
    """From zero, with 99.5 % of the values."""
    return 0.0, max(round_up(float(np.percentile(_finite(v), 99.5))) for v in values)


def both_ends(values: Sequence[np.ndarray]) -> Limits:
    """With the middle 98 % of each map."""
    ends = np.array([np.percentile(_finite(v), [1, 99]) for v in values])
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    return low, max(high, low + 1e-6)


def usual(values: Sequence[np.ndarray]) -> Limits:
    """From zero to five times the median, or to 0.01."""
    return 0.0, max(round_up(max(5 * float(np.median(_finite(v))), 0.01)) for v in values)


def up_to_the_most(values: Sequence[np.ndarray]) -> Limits:
    """From zero to the largest value, and to 1 at least."""
    return 0.0, max(max(float(_finite(v).max()), 1.0) for v in values)


def _finite(values: np.ndarray) -> np.ndarray:
    finite = values[np.isfinite(values)]
    return finite if finite.size else np.zeros(1)


def round_up(value: float) -> float:
    """To two digits, and never zero."""
    if value <= 0:
        return 1e-6
    unit = 10.0 ** (np.floor(np.log10(value)) - 1)
    return float(f'{np.ceil(value / unit) * unit:.2g}')


def of_phase(values: Sequence[np.ndarray]) -> Limits:
    """Around zero, to three times the median size, to 0.1 rad at least and pi at most.

    >>> of_phase([np.array([0.2, -0.2, 3.0])])
    (-0.61, 0.61)
    """
    usual = max(round_up(3 * float(np.median(np.abs(_finite(v))))) for v in values)
    limit = float(np.clip(usual, LEAST_PHASE, np.pi))
    return -limit, limit
