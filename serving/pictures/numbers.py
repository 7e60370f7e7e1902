"""Finds the numbers on a page: candidates for digits first, then, by their classes, the numbers."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from serving.errors import InvalidRequest
from serving.images import Images
from serving.pictures import candidates, cuts, path, rejecter
from serving.pictures.candidates import Candidates
from serving.pictures.cuts import Pieces
from serving.pictures.decoder import Page
from serving.pictures.facts import Box, FoundDigit, Number
from serving.pictures.page import find_ink
from serving.pictures.parts import Numbers, Work
from serving.pictures.rows import Row, find_rows
from serving.predictions import Probabilities

NUM_DIGITS = 10
MAX_OF_ONE = 1000
"""Candidates of a picture that should have one digit."""
BIAS = 0.5
"""Added to the log odds of a whole digit."""
SKIP = -6.0
"""The score of leaving out a piece as high as the row."""
MIN_TOTAL = 6.0
"""A number's score; what has less is none."""
MIN_ALONE = 8.5
"""The same of a single digit, which scribbles resemble more often than several in a row."""
STROKE_ODDS, DRAWN_ODDS = 8.0, -4.0
"""Of a drawing that is one number: what is added to the log odds of an uncut 1, and of another
digit. On a page, an upright stroke is more often a letter or a line than a 1."""
MIN_DRAWN = 0.1
"""The probability from which a drawing shows digits."""
SHARPNESS = 0.2
"""The exponent of a path's probability: other paths often give the same digits."""
MAX_BLANK = 1.2
"""Of the row's height, beyond 1.5 usual gaps: a wider blank ends a number."""
MIN_BLANK = 0.25
"""Of the row's height, between a number and a letter."""


class _Line(NamedTuple):
    row: Row
    pieces: Pieces
    candidates: Candidates
    odds: npt.NDArray[np.float64]
    """(N,): log odds that a candidate is one whole digit."""
    logits: npt.NDArray[np.float32]
    """(N, 11): the rejecter's."""


class _Choice(NamedTuple):
    """The best way through a line's candidates."""

    run: list[int]
    """The candidates that are digits, left to right."""
    probabilities: Probabilities
    scores: npt.NDArray[np.float64]
    path_probability: float


class Reading:
    """The candidates for digits on a page."""

    def __init__(self, page: Page, most: float = math.inf) -> None:
        """Find the candidates.

        Args:
            page: the picture.
            most: of them, where each part that is cut counts as CUT_WORK more.

        Raises:
            InvalidRequest: there are more.
        """
        ink, work = find_ink(page.grey), Work(most)
        self._lines = [_line(row, work) for row in find_rows(ink)] if ink else []
        height, width = page.grey.shape
        self._scale = page.width / width, page.height / height
        self._size = page.width, page.height

    @property
    def images(self) -> Images:
        """(N, 784) uint8: the images to classify; there may be none."""
        images = [line.candidates.images for line in self._lines]
        return np.concatenate([np.empty((0, 784), np.uint8), *images])

    @property
    def logits(self) -> npt.NDArray[np.float32]:
        """(N, 11): the rejecter's, of the images."""
        return np.concatenate(
            [np.empty((0, 11), np.float32), *(line.logits for line in self._lines)]
        )

    def numbers(self, probabilities: Probabilities) -> list[Number]:
        """Return the numbers, from the top to the bottom, from the left to the right.

        Args:
            probabilities: (N, 10): of the images' classes.

        Raises:
            InvalidRequest: the classes are not the ten digits.
        """
        found: list[Number] = []
        for line, agreed in self._rows(probabilities):
            choice = _choose(line, agreed, line.odds)
            found += [
                self._number(line, run, choice)
                for run in _runs(choice.run, line)
                if choice.scores[run].sum() >= (MIN_TOTAL if len(run) > 1 else MIN_ALONE)
            ]
        return found

    def drawn_numbers(self, probabilities: Probabilities) -> list[Number]:
        """Return the numbers of a drawing: if there is none, all of its ink may be one.

        Args:
            probabilities: see `numbers`.

        Raises:
            InvalidRequest: see `numbers`.
        """
        found = self.numbers(probabilities)
        if found or len(self._lines) != 1:
            return found
        for line, agreed in self._rows(probabilities):
            odds = _drawn_odds(line, agreed)
            choice = _choose(line, agreed, odds)
            run = choice.run
            if _runs(run, line) == [run] and not _letters(run, line):
                number = self._number(line, run, choice)
                are_digits = float(np.exp(-np.logaddexp(0, -odds[run]).sum()))
                sure = number.probability * are_digits
                return [replace(number, probability=sure)] if sure >= MIN_DRAWN else []
        return []

    def _rows(self, probabilities: Probabilities) -> Iterator[tuple[_Line, Probabilities]]:
        """Yield each line of candidates with their probabilities, of both networks together."""
        if probabilities.shape[1] != NUM_DIGITS:
            raise InvalidRequest(
                f"numbers need a model of {NUM_DIGITS} classes, got {probabilities.shape[1]}"
            )
        start = 0
        for line in self._lines:
            end = start + len(line.odds)
            if end > start:
                yield line, rejecter.agreed(probabilities[start:end], line.logits)
            start = end

    def _number(self, line: _Line, run: list[int], choice: _Choice) -> Number:
        digits = tuple(self._digit(line, each, choice.probabilities[each]) for each in run)
        sure = math.prod(max(digit.probability, 1e-6) for digit in digits)
        sure *= choice.path_probability**SHARPNESS
        return Number("".join(str(digit.digit) for digit in digits), sure, digits)

    def _digit(
        self, line: _Line, number: int, probabilities: npt.NDArray[np.float32]
    ) -> FoundDigit:
        digit = int(probabilities.argmax())
        row, (top, left, bottom, right) = line.row, line.candidates.boxes[number].tolist()
        x, y = self._scale
        box = Box(
            max(0, round((row.left + left * row.scale) * x)),
            max(0, round((row.top + top * row.scale) * y)),
            min(self._size[0], round((row.left + right * row.scale) * x)),
            min(self._size[1], round((row.top + bottom * row.scale) * y)),
        )
        return FoundDigit(
            digit, float(probabilities[digit]), tuple(probabilities.tolist()), box,
            line.candidates.images[number].tobytes(),
        )  # fmt: skip


def has_several_digits(page: Page) -> bool:
    """Return whether a number of two or more digits is found, by the rejecter alone."""
    reading = Reading(page, MAX_OF_ONE)
    found = reading.numbers(rejecter.probabilities(reading.logits))
    return any(len(number.digits) > 1 for number in found)


def skips(row: Row, pieces: Pieces) -> npt.NDArray[np.float64]:
    """Return the score of leaving out each piece: (P,)."""
    heights = (pieces.boxes[:, 2] - pieces.boxes[:, 0]) / row.height
    return np.asarray(SKIP * np.minimum(heights, 1))


def _line(row: Row, work: Work) -> _Line:
    pieces = cuts.cut(row, work)
    found = candidates.join(row, pieces, work)
    logits = rejecter.logits(found)
    none: Any = np.empty((0, 0))  # what is not needed any more would be large to send
    return _Line(
        row._replace(levels=none, mask=none), pieces._replace(labels=none, shared=none),
        found._replace(surroundings=none, measures=none), rejecter.odds(logits), logits,
    )  # fmt: skip


def _choose(line: _Line, probabilities: Probabilities, odds: npt.NDArray[np.float64]) -> _Choice:
    spans = line.candidates.spans
    scores = odds + BIAS + np.log(np.maximum(probabilities.max(1), 1e-6))
    order = np.argsort(-scores, kind="stable")
    kept = order[np.unique(spans[order], axis=0, return_index=True)[1]]  # a span's best
    best = path.best_path(spans[kept], scores[kept], skips(line.row, line.pieces))
    return _Choice(kept[best.candidates].tolist(), probabilities, scores, best.probability)


def _drawn_odds(line: _Line, probabilities: Probabilities) -> npt.NDArray[np.float64]:
    """Return the log odds that candidates of a drawing are whole digits: (N,)."""
    parts = line.pieces.parts
    is_uncut = [
        not np.isin(parts[first:last], np.delete(parts, np.s_[first:last])).any()
        for first, last in line.candidates.spans
    ]
    is_stroke = (probabilities.argmax(1) == 1) & is_uncut
    return line.odds + np.where(is_stroke, STROKE_ODDS, DRAWN_ODDS)


def _runs(chosen: list[int], line: _Line) -> list[list[int]]:
    """Split a path's digits into numbers; leave out those that letters are next to."""
    if not chosen:
        return []
    spans, boxes, height = line.candidates.spans, line.candidates.boxes, line.row.height
    gaps = boxes[chosen[1:], 1] - boxes[chosen[:-1], 3]
    widest = MAX_BLANK * height + 1.5 * max(0.0, float(np.median(gaps)) if len(gaps) else 0.0)
    letters = _letters(chosen, line)
    runs = [[chosen[0]]]
    for number, gap in zip(chosen[1:], gaps, strict=True):
        between = range(spans[runs[-1][-1], 1], spans[number, 0])
        if gap > widest or letters.intersection(between):
            runs.append([])
        runs[-1].append(number)
    return [run for run in runs if not _is_in_word(run, letters, line)]


def _letters(chosen: list[int], line: _Line) -> set[int]:
    """Return the pieces left out that are too high to be specks.

    What was cut from a digit is none: where digits touch, some ink is left between them.
    """
    used = {piece for number in chosen for piece in range(*line.candidates.spans[number])}
    parts, boxes = line.pieces.parts, line.pieces.boxes
    is_high = boxes[:, 2] - boxes[:, 0] > 0.35 * line.row.height
    is_letter = is_high & ~np.isin(parts, parts[sorted(used)])
    return set(np.flatnonzero(is_letter).tolist())


def _is_in_word(run: list[int], letters: set[int], line: _Line) -> bool:
    """Return whether a letter is next to a number."""
    if not letters:
        return False
    left, right = line.candidates.boxes[run[0], 1], line.candidates.boxes[run[-1], 3]
    boxes: Numbers = line.pieces.boxes[sorted(letters)]
    gap = np.maximum(boxes[:, 1] - right, left - boxes[:, 3])
    return bool((gap < MIN_BLANK * line.row.height).any())
