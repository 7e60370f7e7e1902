"""The statistics against numpy and against published tables."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.report import stats
from benchmarks.run.histogram import Histogram

BUCKET = 0.008
"""How far apart values of one bucket lie at most, as a share."""
MICROSECOND = 1e-6


def latencies(seed: int, number: int = 5_000) -> stats.Values:
    return np.random.default_rng(seed).lognormal(-7, 1.5, number)


@pytest.mark.parametrize("share", [0.0001, 0.5, 0.9, 0.99, 0.999, 1.0])
def test_quantile_is_numpys_within_a_bucket(share: float) -> None:
    values = latencies(1)
    expected = np.quantile(values, share, method="inverted_cdf")
    found = Histogram.of(values).quantile(share)
    assert found == pytest.approx(expected, rel=BUCKET, abs=MICROSECOND)


@given(st.lists(st.floats(0, 4000), min_size=1, max_size=50))
def test_histogram_keeps_every_value_within_a_bucket(values: list[float]) -> None:
    histogram = Histogram.decode(Histogram.of(values).encode())
    kept = np.repeat(histogram.values_s, histogram.count)
    np.testing.assert_allclose(kept, np.sort(values), rtol=BUCKET, atol=MICROSECOND)


def test_sum_of_histograms_is_that_of_all_values() -> None:
    a, b = latencies(2), latencies(3)
    both, joined = Histogram.of(a) + Histogram.of(b), Histogram.of(np.concatenate((a, b)))
    np.testing.assert_array_equal(both.index, joined.index)
    np.testing.assert_array_equal(both.count, joined.count)


def test_encoded_histogram_is_small() -> None:
    assert len(Histogram.of(latencies(4, 100_000)).encode()) < 5_000


def test_no_latency_has_no_quantile() -> None:
    assert math.isnan(Histogram.of([]).quantile(0.5))


def test_paired_ratio_cancels_drift() -> None:
    drift = np.array([1.0, 0.6, 1.4, 0.9, 1.1])
    ratio = stats.paired_ratio(30 * drift, 10 * drift)
    assert ratio == pytest.approx((3, 3, 3))
    unpaired = stats.unpaired_ratio(30 * drift, 10 * drift)
    assert unpaired == pytest.approx((3, 3 * 0.6 / 1.4, 3 * 1.4 / 0.6))


def test_ratio_is_the_median_and_the_least_to_the_greatest_of_the_rounds() -> None:
    assert stats.paired_ratio([2, 9, 4], [1, 3, 1]) == (3, 2, 4)


def test_ranges_that_share_a_value_overlap() -> None:
    low, high = stats.Interval(1, 0.5, 2), stats.Interval(3, 2, 4)
    assert low.overlaps(high)
    assert high.overlaps(low)
    assert not low.overlaps(stats.Interval(3, 2.1, 4))


def test_one_round_tells_no_interval() -> None:
    assert stats.paired_ratio([2.0], [1.0]) == (2.0, 0.0, math.inf)


SIZES = [1, 2, 4, 8]


@pytest.mark.parametrize(
    ("cpu", "cuda", "expected"),
    [
        ([1, 1, 1, 1], [0.5, 2, 4, 8], 2**0.5),
        ([1, 1, 1, 1], [2, 2, 2, 2], 1),
        ([1, 1, 1, 1], [0.1, 0.2, 0.4, 0.8], None),
        ([1, 1, 1, 1], [2, 0.5, 0.5, 2], 2**2.5),
    ],
)
def test_crossover(cpu: list[float], cuda: list[float], expected: float | None) -> None:
    found = stats.crossover(SIZES, cpu, cuda)
    assert found == (None if expected is None else pytest.approx(expected))


def test_interpolation_is_numpys_on_logarithmic_axes_and_never_beyond() -> None:
    expected = math.exp(np.interp(math.log(3), np.log(SIZES), np.log([1, 10, 20, 40])))
    assert stats.interpolate(3, SIZES, [1, 10, 20, 40]) == pytest.approx(expected)
    with pytest.raises(ValueError, match="outside of what was measured"):
        stats.interpolate(9, SIZES, [1, 10, 20, 40])
