"""Distributions of a measure over the runs, and which runs lie outside."""

from __future__ import annotations

import math
from array import array
from typing import NamedTuple

import numpy as np

LIMIT = 3.5
"""Robust z from which a value is an outlier (Iglewicz B, Hoaglin DC, How to detect and handle
outliers, 1993)."""

LIMITS = {3: 111.0, 4: 15.9, 5: 18.6, 6: 10.0, 7: 10.7}
"""The same of few values, whose median absolute deviation varies much: values of one normal
distribution have one beyond it in 1 % of such groups (simulated, 4 million groups each)."""

LEAST_VALUES = min(LIMITS)
"""With fewer, nothing can be told."""

NORMAL_MAD, NORMAL_MEAN = 1.4826, 1.2533
"""Standard deviation of a normal distribution over its median and its mean absolute deviation."""


class Distribution(NamedTuple):
    """What is kept of a measure: its size, quantiles, and centre and spread of the robust z."""

    n: int
    minimum: float
    low: float
    """5 % of the values are below."""
    quartile: float
    median: float
    upper_quartile: float
    high: float
    maximum: float
    log: bool
    """Whether centre and spread are those of the logarithm."""
    centre: float
    spread: float
    """0 where nothing can be told: too few values, or all of them the same."""
    limit: float = LIMIT
    """Robust z from which one of these values is an outlier."""

    def z(self, value: float) -> float:
        """How many robust standard deviations a value of the measure is from the median."""
        if not self.spread:
            return 0.0
        return ((math.log(value) if self.log else value) - self.centre) / self.spread


def distribution(values: array[float], log: bool = False) -> Distribution:
    """Quantiles of a measure, and centre and spread that outliers do not move.

    The spread is 1.4826 times the median absolute deviation; where more than half of the values
    are the same, 1.2533 times the mean absolute deviation. There are one or more ``values``, all
    finite; with ``log`` their logarithms are compared, if every one is positive.

    >>> found = distribution(array('d', [1, 2, 3, 4, 5, 6, 7, 8, 9]))
    >>> found.median, round(found.z(9 * 1.4826), 1)
    (5.0, 2.8)
    >>> distribution(array('d', [1, 50])).z(50)
    0.0
    """
    data = np.frombuffer(values, dtype=float)
    log = log and bool(data.min() > 0)
    quantiles = np.quantile(data, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]).tolist()
    compared = np.log(data) if log else data
    centre = float(np.median(compared))
    spread, limit = 0.0, LIMITS.get(len(data), LIMIT)
    if len(data) >= LEAST_VALUES:
        deviations = np.abs(compared - centre)
        spread = NORMAL_MAD * float(np.median(deviations))
        # Values that differ in their last digit only are the same value.
        least = 1e-5 * (1 if log else abs(centre))
        if spread <= least:
            spread, limit = NORMAL_MEAN * float(deviations.mean()), LIMIT
        if float(deviations.max()) <= least:
            spread = 0.0
    least_value, low, lower, median, upper, high, most = quantiles
    return Distribution(
        len(data), least_value, low, lower, median, upper, high, most, log, centre, spread, limit
    )
