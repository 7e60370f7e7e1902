"""Ratios of two quantities over the rounds, and values between measured sizes."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Interval(NamedTuple):
    """A ratio, with the least and the greatest of its rounds."""

    estimate: float
    low: float
    high: float

    def overlaps(self, other: "Interval") -> bool:
        """Return whether the two ranges share a value."""
        return self.low <= other.high and other.low <= self.high

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"{self.estimate:.3g} ×, one round"
        return f"{self.estimate:.3g} ×, {self.low:.3g} to {self.high:.3g}"


def paired_ratio(values: npt.ArrayLike, baseline: npt.ArrayLike) -> Interval:
    """Compare two quantities that were measured in the same rounds.

    What a round's drift does to both cancels in its own ratio.

    Args:
        values: one positive number per round.
        baseline: the other quantity's, in the same rounds.

    Returns:
        The median, the least and the greatest of values / baseline; one round has no range.
    """
    ratios = np.asarray(values, float) / np.asarray(baseline, float)
    low, high = (ratios.min(), ratios.max()) if len(ratios) > 1 else (0.0, math.inf)
    return Interval(float(np.median(ratios)), float(low), float(high))


def unpaired_ratio(values: npt.ArrayLike, baseline: npt.ArrayLike) -> Interval:
    """Compare two quantities that were measured apart, such as in two runs.

    Returns:
        The ratio of their medians, with the least and the greatest ratio of any two rounds.
    """
    above, below = np.asarray(values, float), np.asarray(baseline, float)
    _, low, high = paired_ratio(*(each.ravel() for each in np.meshgrid(above, below)))
    return Interval(float(np.median(above) / np.median(below)), low, high)


def interpolate(size: float, sizes: Sequence[float], rates: Sequence[float]) -> float | None:
    """Read a curve between its points, on logarithmic axes; None beyond its ends."""
    if not sizes or not sizes[0] <= size <= sizes[-1]:
        return None
    return float(np.exp(np.interp(math.log(size), np.log(sizes), np.log(rates))))
