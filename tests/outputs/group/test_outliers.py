"""Quantiles and the robust z against formulas written out."""

import math
from array import array
from statistics import median

import numpy as np
import pytest

from precondqsm_bids.outputs.group.outliers import LEAST_VALUES, LIMIT, LIMITS, distribution


def spread_of(values):
    """1.4826 times the median absolute deviation, in plain Python."""
    return 1.4826 * median(abs(value - median(values)) for value in values)


@pytest.mark.parametrize('n', [LEAST_VALUES, 4, 9, 100])
def test_centre_and_spread(n):
    values = np.random.default_rng(0).normal(5, 2, n).tolist()
    found = distribution(array('d', values))
    assert found.centre == found.median == pytest.approx(median(values))
    assert found.spread == pytest.approx(spread_of(values))
    assert found.z(11.0) == pytest.approx((11 - median(values)) / spread_of(values))
    assert (found.n, found.minimum, found.maximum) == (n, min(values), max(values))


def test_normal_values_are_rarely_called_outliers():
    """Of a normal distribution, 0.05 % lie beyond 3.5 standard deviations."""
    values = array('d', np.random.default_rng(1).normal(size=20_000).tolist())
    found = distribution(values)
    assert sum(abs(found.z(value)) > LIMIT for value in values) < 30
    assert found.spread == pytest.approx(1, rel=0.03)


def test_a_third_of_outliers_does_not_hide_itself():
    values = array('d', [1.0, 1.1, 1.2, 1.3, 1.1, 1.2, 1.0, 1.3, 50, 60, 70, 80])
    found = distribution(values)
    assert [value for value in values if abs(found.z(value)) > LIMIT] == [50, 60, 70, 80]


def test_a_scale_that_is_a_ratio():
    """Twice and half as much are equally far; a factor of 1000 in the middle of decades is not."""
    values = array('d', [2.0**i for i in range(-5, 6)])
    found = distribution(values, log=True)
    assert found.log
    assert found.z(8.0) == pytest.approx(-found.z(1 / 8))
    assert found.z(8.0) == pytest.approx(math.log(8) / (1.4826 * 3 * math.log(2)))
    assert not [value for value in values if abs(found.z(value)) > LIMIT]
    assert [value for value in values if abs(distribution(values).z(value)) > LIMIT]


def test_values_that_have_no_logarithm_are_compared_as_they_are():
    values = array('d', [0.0, *range(1, 9)])
    found = distribution(values, log=True)
    assert not found.log
    assert found.z(400.0) == pytest.approx((400 - 4) / spread_of(values))


def test_most_are_the_same():
    """The mean absolute deviation stands in: ten runs, one warning: 1 / (1.2533 * 0.1)."""
    found = distribution(array('d', [0.0] * 9 + [1.0]))
    assert found.z(1.0) == pytest.approx(10 / 1.2533)
    assert found.z(0.0) == 0


@pytest.mark.parametrize('log', [False, True])
@pytest.mark.parametrize('value', [3.0, 1e-9, 1e9])
def test_rounding_is_no_difference(value, log):
    values = array('d', [value] * 9 + [value * (1 + 2e-6)])
    assert distribution(values, log).z(values[-1]) == 0


@pytest.mark.parametrize('n', LIMITS)
def test_few_normal_values_have_an_outlier_in_a_hundredth_of_the_groups(n):
    rng = np.random.default_rng(n)
    groups = 20_000
    flagged = 0
    for values in rng.normal(5, 2, (groups, n)):
        found = distribution(array('d', values.tolist()))
        flagged += any(abs(found.z(value)) > found.limit for value in values)
    assert flagged / groups == pytest.approx(0.01, abs=0.0025)  # three standard errors: 0.002


def test_one_of_five_that_differs_from_equal_ones_is_an_outlier():
    values = array('d', [3.0, 3.0, 3.0, 3.0, 1.5])
    found = distribution(values)
    assert [value for value in values if abs(found.z(value)) > found.limit] == [1.5]


def test_too_few_to_tell():
    values = array('d', [1.0, 100.0])
    assert len(values) == LEAST_VALUES - 1
    assert distribution(values).z(100.0) == 0
