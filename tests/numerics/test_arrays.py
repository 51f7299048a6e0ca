"""The median against that of numpy, to the last bit."""

import numpy as np
import pytest

from precondqsm_bids.numerics.arrays import median

MANY = 200_001
VALUES = {
    'even number': lambda noise: noise[:-1],
    'odd number': lambda noise: noise,
    'few': lambda noise: noise[:10],
    'rising': np.sort,
    'one value': np.ones_like,
    'mostly zero': lambda noise: np.where(noise > 1, noise, 0),
    'two heaps': lambda noise: noise + 100 * (np.arange(MANY) % 2),
    'whole numbers': np.round,
    'infinite': lambda noise: np.where(noise > 0, np.inf, noise),
    'every other one': lambda noise: np.repeat(noise, 2)[::2],
}


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize('kind', VALUES)
def test_median_is_that_of_numpy(kind, dtype):
    noise = np.random.default_rng(0).normal(size=MANY).astype(dtype)
    values = VALUES[kind](noise).astype(dtype)
    found, expected = median(values), np.median(values)
    assert found.dtype == expected.dtype
    assert found == expected


def test_median_of_unknown_values_is_unknown():
    values = np.random.default_rng(0).normal(size=MANY)
    values[7] = np.nan
    assert np.isnan(median(values))


def test_median_where_the_sample_misleads():
    values = np.random.default_rng(0).normal(size=MANY)
    values[:: (MANY // 8000) | 1] += 1000
    assert median(values) == np.median(values)
