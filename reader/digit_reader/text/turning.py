"""Finds the lines of a page that may lie on its side or be upside down.

A few digits that stand alone show which way up a page is likely to be. If that differs from the
page as it is, the page is turned and read again; the better reading is the answer.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from digit_classifier.normalizer import Levels
from digit_reader import detector
from digit_reader.ink.page import find_ink
from digit_reader.ink.rows import find_rows
from digit_reader.text.cuts import Work
from digit_reader.text.lines import Line
from serving.errors import InvalidRequest
from serving.tensors import Images

NUM_SAMPLES = 12
"""Connected parts of a page that are looked at."""
WORST, BEST = -3.0, 7.0
"""Log odds that one of them is a digit, at least and at most: a few must not decide alone."""
MIN_TURNED, MIN_GAIN, MAX_LOSS = 1.0, 2.0, 10.0
"""If the page is turned: their mean log odds; by how much their sum is more than as it is, and less
than the best, at most."""
UPRIGHT_BONUS, MIN_SCORE = 12.0, 2.0
"""By how much the score of a turned page must be higher; and its least score, for each line."""
UPRIGHT_ODDS = 2.0
"""Log odds that a page is not the other way up, before its parts are looked at."""
SCALE = 2.0
"""Factor that turns the scores' difference into log odds."""
MAX_TURNED_WORK = 2000
"""Candidates of the turned page."""


class Turned(NamedTuple):
    """The lines of a page, turned as they are read."""

    lines: list[Line]
    quarters: int
    """How often the page is turned by 90 degrees counter-clockwise, so that it is upright."""
    probability: float
    """Probability of this turn among those that were tried."""
    not_reversed: float
    """The probability that it is not the other way up, by its parts."""


def find_lines(grey: Levels, most: float, *, may_turn: bool) -> Turned:
    """Find the lines of a page.

    Args:
        grey: (H, W): the page as it is.
        most: the most that it may cost: see `Work`.
        may_turn: whether it may be turned.

    Raises:
        InvalidRequest: it costs more as it is.
    """
    work = Work(most)
    found = {0: _lines(grey, work)}
    turns, odds = likely_turns(found[0]) if may_turn else ([], [math.inf, 0.0, 0.0, 0.0])
    for quarters in turns:
        with suppress(InvalidRequest):
            left = Work(min(work.left, MAX_TURNED_WORK))
            found[quarters] = _lines(np.rot90(grey, quarters), left)
    best, probability = (0, 1.0) if len(found) == 1 else choose(found)
    gain = odds[best] - odds[best - 2] + UPRIGHT_ODDS
    return Turned(found[best], best, probability, 1 / (1 + math.exp(min(30.0, -gain / SCALE))))


def choose(found: dict[int, list[Line]]) -> tuple[int, float]:
    """Choose how often a page is turned by 90 degrees, and how probable that is."""
    scores = {turn: score(lines) for turn, lines in found.items()}
    likely = [turn for turn in found if not turn or scores[turn] > MIN_SCORE * len(found[turn])]
    scores[0] += UPRIGHT_BONUS
    best = max(likely, key=lambda turn: scores[turn])
    return best, 1 / sum(math.exp((scores[turn] - scores[best]) / SCALE) for turn in likely)


def likely_turns(lines: list[Line]) -> tuple[list[int], list[float]]:
    """Return by how many quarters a page may be turned, and its parts' log odds by each."""
    parts = [line.candidates.parts for line in lines]
    images = np.concatenate([np.empty((0, 784), np.uint8), *parts])
    images = images[:: max(1, math.ceil(len(images) / NUM_SAMPLES))].reshape(-1, 28, 28)
    odds = [_total(np.rot90(images, quarters, (1, 2))) for quarters in range(4)]
    least = max(MIN_TURNED * len(images), odds[0] + MIN_GAIN, max(odds) - MAX_LOSS)
    turns = [quarters for quarters in (1, 2, 3) if odds[quarters] > least and len(images) > 1]
    return turns, odds


def _total(images: Images) -> float:
    """Add up the log odds that images are whole digits, each as its likeliest."""
    logits = detector.logits_alone(np.ascontiguousarray(images))
    sure = detector.probabilities(logits).max(1, initial=0)
    odds = detector.odds(logits) + np.log(np.maximum(sure, 1e-6))
    return float(np.clip(odds, WORST, BEST).sum())


def score(lines: list[Line]) -> float:
    """Return how much lines look like numbers, by the detector alone."""
    return sum(
        line.choose(detector.probabilities(line.logits), line.odds).path.score for line in lines
    )


def turned_back(
    box: Sequence[float], quarters: int, size: tuple[float, float]
) -> tuple[float, float, float, float]:
    """Return where a box of a turned page is on the page as it is.

    Args:
        box: left, top, right, bottom.
        quarters: see `Turned`.
        size: the width and the height of the page as it is.
    """
    left, top, right, bottom = box
    width, height = size
    match quarters:
        case 1:
            return width - bottom, left, width - top, right
        case 2:
            return width - right, height - bottom, width - left, height - top
        case 3:
            return top, height - right, bottom, height - left
    return left, top, right, bottom


def _lines(grey: Levels, work: Work) -> list[Line]:
    ink = find_ink(np.ascontiguousarray(grey))
    return [Line.of(row, work) for row in find_rows(ink)] if ink else []
