"""Finds the best way through a row's candidates: which are digits, and what is left out.

A candidate's score is the logarithm of how much more probable it is as one whole digit than as
anything else. A path's score is the sum of its candidates', less what the pieces that it leaves out
cost; the best is found by dynamic programming (LeCun, Bottou, Bengio, Haffner 1998, sections V
and VI).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from digit_classifier.normalizer import Numbers


class Path(NamedTuple):
    """The best path."""

    candidates: list[int]
    """The digits' candidates, left to right."""
    score: float
    """Its total."""


def best_path(
    spans: Numbers, scores: npt.NDArray[np.float64], skips: npt.NDArray[np.float64]
) -> Path:
    """Find the best path.

    Args:
        spans: (N, 2): each candidate's first piece and the one after its last.
        scores: (N,): of candidates.
        skips: (P,): of leaving out a piece.
    """
    count = len(skips)
    best = np.full(count + 1, -np.inf)
    chosen = np.full(count + 1, -1)
    best[0] = 0
    ends: list[list[int]] = [[] for _ in range(count + 1)]
    for number, (_, last) in enumerate(spans.tolist()):
        ends[last].append(number)
    for end in range(1, count + 1):
        best[end] = best[end - 1] + skips[end - 1]
        for number in ends[end]:
            first = spans[number, 0]
            if best[first] + scores[number] > best[end]:
                best[end], chosen[end] = best[first] + scores[number], number
    path, end = [], count
    while end:
        number = int(chosen[end])
        if number >= 0:
            path.append(number)
        end = int(spans[number, 0]) if number >= 0 else end - 1
    return Path(path[::-1], float(best[count]))
