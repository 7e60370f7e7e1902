"""Ratios over rounds, and curves read between their points."""

import math

import numpy as np
import pytest

from benchmarks.report.ratios import Interval, interpolate, paired_ratio, unpaired_ratio


def test_paired_ratio_cancels_drift() -> None:
    drift = np.array([1.0, 0.6, 1.4, 0.9, 1.1])
    assert paired_ratio(30 * drift, 10 * drift) == pytest.approx((3, 3, 3))
    unpaired = unpaired_ratio(30 * drift, 10 * drift)
    assert unpaired == pytest.approx((3, 3 * 0.6 / 1.4, 3 * 1.4 / 0.6))


def test_ratio_is_the_median_and_the_least_to_the_greatest_of_the_rounds() -> None:
    ratio = paired_ratio([2, 9, 4], [1, 3, 1])
    assert ratio == (3, 2, 4)
    assert str(ratio) == "3 ×, 2 to 4"


def test_ranges_that_share_a_value_overlap() -> None:
    low, high = Interval(1, 0.5, 2), Interval(3, 2, 4)
    assert low.overlaps(high)
    assert high.overlaps(low)
    assert not low.overlaps(Interval(3, 2.1, 4))


def test_one_round_has_no_range() -> None:
    ratio = paired_ratio([2.0], [1.0])
    assert ratio == (2.0, 0.0, math.inf)
    assert str(ratio) == "2 ×, one round"


def test_interpolation_is_on_logarithmic_axes_and_never_beyond() -> None:
    sizes, rates = [1, 2, 4, 8], [1, 10, 20, 40]
    assert interpolate(2 * 2**0.5, sizes, rates) == pytest.approx(10 * 2**0.5)
    assert interpolate(1, sizes, rates) == pytest.approx(1)
    assert interpolate(9, sizes, rates) is None
    assert interpolate(0.9, sizes, rates) is None
    assert interpolate(1, [], []) is None
