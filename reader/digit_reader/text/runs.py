"""Splits a row's digits and marks into numbers: at blanks and letters."""

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from digit_classifier.normalizer import Numbers

MIN_BLANK, BLANK_SHARE = 0.4, 1.0
"""Between two numbers: this much of the row's height, and of a usual gap, more than that gap."""
MIN_USUAL = 0.1
"""Share of the row's height: the least usual gap; digits that touch have less."""
MIN_REGULAR, MIN_REGULAR_BLANK, REGULAR_SHARE = 10, 0.12, 2.0
"""The fewest gaps that are regular; a blank among them is larger than the usual gap by this much of
the row's height, and of the gaps' spread, if that is less."""
BLANK_SCALE = 0.04
"""Share of the row's height by which a gap must differ from that to be surely one or the other."""
MAX_MARK_GAP = 0.8
"""Share of the row's height beyond a usual gap: a mark that is farther belongs to no digit."""
MIN_ROUND, NO_CIRCLE = 0.8, 0.9
"""Width by height of a 0 alone that may be a circle, and the confidence that it is a 0."""
MIN_LETTER_GAP = 0.25
"""Share of the row's height between a number and a letter."""


class Item(NamedTuple):
    """A digit or a mark."""

    text: str
    box: Numbers
    """(4,) top, left, bottom, right in the row."""
    probability: float = 1.0
    """Probability of a mark."""
    candidate: int = -1
    """Index of a digit's candidate."""

    @property
    def middle(self) -> float:
        """The column of its middle."""
        return float(self.box[1] + self.box[3]) / 2


class Run(NamedTuple):
    """A number's digits and marks, from the left to the right."""

    items: list[Item]
    confidence: float
    """That it begins, goes on and ends where it does."""

    @property
    def text(self) -> str:
        """Its characters."""
        return "".join(item.text for item in self.items)

    @property
    def candidates(self) -> list[int]:
        """Candidates of its digits."""
        return [item.candidate for item in self.items if item.candidate >= 0]


def split(items: list[Item], letters: Numbers, height: float) -> list[Run]:
    """Split a row into numbers; leave out those that letters are next to.

    Args:
        items: the row's digits and marks.
        letters: (N, 4): the boxes of ink that is neither.
        height: of the row.
    """
    items = sorted(items, key=lambda item: item.middle)
    if not items:
        return []
    usual_gap, usual_pitch, limit = _usual(items, height)
    columns = (letters[:, 1] + letters[:, 3]) / 2
    runs = [Run([items[0]], 1.0)]
    for item in items[1:]:
        last = runs[-1].items[-1]
        gap = float(item.box[1] - last.box[3])
        pitch = item.middle - last.middle
        if min(item.candidate, last.candidate) >= 0:
            extra = min(gap - usual_gap, pitch - usual_pitch)
            blank = 1 / (1 + math.exp(min(30.0, (limit - extra) / _scale(usual_gap, height))))
        else:
            blank = float(gap > MAX_MARK_GAP * height + usual_gap)
        if ((columns > last.middle) & (columns < item.middle)).any():
            blank = 1.0
        confidence = max(blank, 1 - blank)
        runs[-1] = Run(runs[-1].items, runs[-1].confidence * confidence)
        if blank > 0.5:
            runs.append(Run([], confidence))
        runs[-1].items.append(item)
    whole = [Run(_trimmed(run.items), run.confidence) for run in runs if run.candidates]
    whole = [run._replace(confidence=run.confidence * _no_circle(run)) for run in whole]
    return [run for run in whole if not _is_in_word(run.items, letters, height)]


def _no_circle(run: Run) -> float:
    """Return the confidence that a 0 is no circle around nothing."""
    top, left, bottom, right = run.items[0].box
    is_round = right - left >= MIN_ROUND * (bottom - top)
    return NO_CIRCLE if run.text == "0" and is_round else 1.0


def blank_odds(
    gaps: npt.NDArray[np.float64], items: list[Item], height: float
) -> npt.NDArray[np.float64]:
    """Return the log odds that gaps between digits are blanks, by all items of their row."""
    usual, _, limit = _usual(sorted(items, key=lambda item: item.middle), height)
    limit = min(limit, 9 * height)
    return np.asarray((gaps - usual - limit) / _scale(usual, height))


def _scale(usual_gap: float, height: float) -> float:
    return BLANK_SCALE * height + 0.15 * usual_gap


def _usual(items: list[Item], height: float) -> tuple[float, float, float]:
    """Measure the gaps between neighbouring digits.

    Returns:
        The usual gap, the same between middles, and by how much more there is a blank.
    """
    pairs = [
        (float(right.box[1] - left.box[3]), right.middle - left.middle)
        for left, right in pairwise(items)
        if min(left.candidate, right.candidate) >= 0
    ]
    if not pairs:
        return 0.0, 0.0, math.inf
    gaps, pitches = np.sort(np.array(pairs).T, axis=1)
    lower = (len(pairs) - 1) // 2
    least = MIN_USUAL * height
    usual, pitch = max(least, float(gaps[lower])), float(pitches[lower])
    limit = MIN_BLANK * height + BLANK_SHARE * usual
    if len(pairs) >= MIN_REGULAR:
        spread = float(np.subtract(*np.percentile(gaps, (70, 10))))
        limit = min(limit, MIN_REGULAR_BLANK * height + REGULAR_SHARE * spread)
    return usual, pitch + max(0.0, least - float(gaps[lower])), limit


def _trimmed(items: list[Item]) -> list[Item]:
    """Leave out marks before and after the digits, apart from a minus."""
    digits = [at for at, item in enumerate(items) if item.candidate >= 0]
    first = digits[0] - (digits[0] > 0 and items[digits[0] - 1].text == "-")
    return items[first : digits[-1] + 1]


def _is_in_word(items: list[Item], letters: Numbers, height: float) -> bool:
    """Return whether a letter is next to a number."""
    left, right = items[0].box[1], items[-1].box[3]
    gaps = np.maximum(letters[:, 1] - right, left - letters[:, 3])
    return bool((gaps < MIN_LETTER_GAP * height).any())
