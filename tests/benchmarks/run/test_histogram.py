"""The histogram against numpy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.run.histogram import Latencies

BUCKET = 0.008
"""How far apart values of one bucket lie at most, as a share."""
MICROSECOND = 1e-6


def latencies(seed, number=5_000):
    return np.random.default_rng(seed).lognormal(-7, 1.5, number)


@pytest.mark.parametrize("share", [0.0001, 0.5, 0.9, 0.99, 0.999, 1.0])
def test_quantile_is_numpys_within_a_bucket(share):
    values = latencies(1)
    expected = np.quantile(values, share, method="inverted_cdf")
    found = Latencies.of(values).quantile(share)
    assert found == pytest.approx(expected, rel=BUCKET, abs=MICROSECOND)


@given(st.lists(st.floats(0, 4000), min_size=1, max_size=50))
def test_histogram_keeps_every_value_within_a_bucket(values):
    histogram = Latencies.decode(Latencies.of(values).encode())
    kept = np.repeat(histogram.values_s, histogram.count)
    np.testing.assert_allclose(kept, np.sort(values), rtol=BUCKET, atol=MICROSECOND)


def test_joined_histogram_is_that_of_all_values():
    a, b = latencies(2), latencies(3)
    both = Latencies.joined([Latencies.of(a), Latencies.of(b)])
    expected = Latencies.of(np.concatenate((a, b)))
    np.testing.assert_array_equal(both.index, expected.index)
    np.testing.assert_array_equal(both.count, expected.count)


def test_no_latency_has_no_quantile():
    assert math.isnan(Latencies.of([]).quantile(0.5))
