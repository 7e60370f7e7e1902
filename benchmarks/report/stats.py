"""The statistics, as pure functions of arrays."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]


class Interval(NamedTuple):
    """The median of some rounds, with the least and the greatest of them."""

    estimate: float
    low: float
    high: float

    def overlaps(self, other: "Interval") -> bool:
        """Return whether the two ranges share a value."""
        return self.low <= other.high and other.low <= self.high


def paired_ratio(values: npt.ArrayLike, baseline: npt.ArrayLike) -> Interval:
    """Compare two quantities that were measured in the same rounds.

    What a round's drift does to both cancels in its own ratio.

    Args:
        values: one positive number per round.
        baseline: the other quantity's, in the same rounds.

    Returns:
        The median, the least and the greatest of values / baseline.
    """
    ratios = np.asarray(values, float) / np.asarray(baseline, float)
    return _interval(np.median(ratios), ratios.min(), ratios.max(), len(ratios))


def unpaired_ratio(values: npt.ArrayLike, baseline: npt.ArrayLike) -> Interval:
    """Compare two quantities that were measured apart, such as in two runs.

    Returns:
        The ratio of their medians, with the least and the greatest ratio of any two rounds.
    """
    above, below = np.asarray(values, float), np.asarray(baseline, float)
    estimate = np.median(above) / np.median(below)
    low, high = above.min() / below.max(), above.max() / below.min()
    return _interval(estimate, low, high, min(len(above), len(below)))


def _interval(estimate: float, low: float, high: float, num_rounds: int) -> Interval:
    """Make a range; one round has none."""
    if num_rounds < 2:
        return Interval(float(estimate), 0.0, math.inf)
    return Interval(float(estimate), float(low), float(high))


def crossover(
    sizes: Sequence[float], slower_start: Sequence[float], faster_end: Sequence[float]
) -> float | None:
    """Find where one curve overtakes another for good, such as CUDA the CPU by batch size.

    Args:
        sizes: ascending.
        slower_start: the rates, at these sizes, of what is to be overtaken.
        faster_end: the rates of what overtakes.

    Returns:
        The size, interpolated on logarithmic axes between two measured ones; the first size if it
        leads everywhere; None if it doesn't lead at the last.
    """
    lead = np.log(np.asarray(faster_end, float) / np.asarray(slower_start, float))
    behind = np.flatnonzero(lead <= 0)
    if not len(behind):
        return float(sizes[0])
    last = int(behind[-1])
    if last == len(sizes) - 1:
        return None
    x = np.log(np.asarray(sizes, float))
    share = -lead[last] / (lead[last + 1] - lead[last])
    return float(np.exp(x[last] + share * (x[last + 1] - x[last])))


def interpolate(size: float, sizes: Sequence[float], rates: Sequence[float]) -> float:
    """Read a curve between its points, on logarithmic axes; never beyond its ends.

    Raises:
        ValueError: the size lies outside of what was measured.
    """
    if not sizes or not sizes[0] <= size <= sizes[-1]:
        raise ValueError(f"{size:g} lies outside of what was measured")
    return float(np.exp(np.interp(math.log(size), np.log(sizes), np.log(rates))))
