"""How sure is a difference? Exact tests and 95 % intervals."""

from collections.abc import Sequence
from fractions import Fraction
from math import comb, sqrt

import numpy as np
from scipy import special

TAIL = 0.025
"""Of each side of a 95 % interval."""


def mcnemar(gained: int, lost: int) -> float:
    """Compute the exact two-sided p of McNemar's test.

    Args:
        gained: the number of images that only one classifier gets right.
        lost: the number of those that only the other gets right.

    Returns:
        The probability of a difference at least as large between two equally good classifiers.
    """
    num = gained + lost
    tail: int = sum(comb(num, k) for k in range(min(gained, lost) + 1))
    return float(min(Fraction(1), Fraction(2 * tail, 2**num)))


def difference_interval(gained: int, lost: int) -> tuple[float, float]:
    """Compute the 95 % interval of the difference in errors of two classifiers.

    It is Clopper and Pearson's for the share of gained images, given how many are gained or lost:
    it leaves out 0 where McNemar's exact p is below 0.05.

    Args:
        gained: the number of images that only one classifier gets right.
        lost: the number of those that only the other gets right.

    Returns:
        The least and the largest difference, in images; above 0 the former is better.
    """
    num = gained + lost
    low = special.betaincinv(gained, lost + 1, TAIL) if gained else 0.0
    high = special.betaincinv(gained + 1, lost, 1 - TAIL) if lost else 1.0
    return num * (2 * float(low) - 1), num * (2 * float(high) - 1)


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Compute Student's 95 % interval of the mean; None for less than two values."""
    if len(values) < 2:
        return None
    reach = special.stdtrit(len(values) - 1, 1 - TAIL) * np.std(values, ddof=1) / sqrt(len(values))
    return float(np.mean(values) - reach), float(np.mean(values) + reach)
