"""Finds the numbers on a page: candidates for digits first, then, by their classes, the numbers."""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from digit_reader import detector
from digit_reader.facts import Number
from digit_reader.ink.sheets import find_sheet
from digit_reader.places import Places
from digit_reader.text import constrained, marks, runs
from digit_reader.text.lines import Choice, Line
from digit_reader.text.runs import Run
from digit_reader.text.turning import find_lines
from serving.errors import InvalidRequest
from serving.pictures.decoder import Page
from serving.tensors import Images, Probabilities

NUM_DIGITS = 10
MAX_OF_ONE = 1000
"""Candidates of a picture that should have one digit."""
MIN_TOTAL, MIN_ALONE, MIN_BESIDE = 6.0, 8.5, 0.0
"""The least score of a number, of a single digit, which scribbles resemble more often than several
in a row, and of any beside such a number."""
MIN_DRAWN = 0.1
"""The probability from which a drawing shows digits."""
SHARE_ALONE, MIN_ALONE_SHARE = 0.88, 0.28
"""Factor of the probability of a number that may be all the ink of a page, and the least that is
answered."""
LONE_POWER = 1 / 3
"""Power of the probability of a digit that is all of the ink, which is right more often than it
says: of 100 enlarged optdigits 91 are read, not 74, and none wrongly."""
MIN_STROKE, MAX_STROKE_WIDTH = 8.5, 0.62
"""Mean score of a page's ink that is strokes, and the width of each, by its height."""
DOUBTS = 1.8, 0.6, 1.4, 1.5
"""How much the probabilities of digits, marks, blanks and the page's turn count in a number's
doubt, the negative logarithm of its probability."""
ROW_DOUBT, USUAL_DOUBT = 0.15, 0.05
"""How much the probability of a row's texts among all its readings counts in a number's doubt: its
negative logarithm above the usual one."""
REVERSED = {"0": "0", "1": "1", "6": "9", "8": "8", "9": "6"}
"""The digits that can be read upside down, and as which."""
MIN_FITTING = 0.2
"""The least probability of a number that fits a pattern."""
LEAST_DOUBT, ANY_DOUBT = 0.1, 0.003
"""How much a number's least score counts in its doubt, and the doubt of any number.

All were fitted to pages of validation digits by their log loss, then raised: of the answers that
are 90 % sure at most 1 % may be wrong."""


class Reading:
    """The candidates for digits on a page."""

    def __init__(self, page: Page, most: float = math.inf, *, may_turn: bool = True) -> None:
        """Find the candidates.

        Args:
            page: the picture.
            most: of them, where each part that is cut counts as CUT_WORK more.
            may_turn: whether it may lie on its side or be upside down.

        Raises:
            InvalidRequest: there are more.
        """
        self._sheet = find_sheet(page.grey)
        grey = self._sheet.grey if self._sheet else page.grey
        found = find_lines(grey, most, may_turn=may_turn)
        self._lines, quarters, self._share, self._not_reversed = found
        self._places = Places(page, self._sheet, quarters)

    @property
    def images(self) -> Images:
        """(N, 784) uint8: the images to classify; there may be none."""
        images = [line.candidates.images for line in self._lines]
        return np.concatenate([np.empty((0, 784), np.uint8), *images])

    @property
    def logits(self) -> npt.NDArray[np.float32]:
        """(N, 11): the detector's, of the images."""
        return np.concatenate(
            [np.empty((0, 11), np.float32), *(line.logits for line in self._lines)]
        )

    def numbers(self, probabilities: Probabilities) -> list[Number]:
        """Return the numbers, from the top to the bottom, from the left to the right.

        If there is none, all of the ink may be one, at most SHARE_ALONE confident; not on a sheet.

        Args:
            probabilities: (N, 10): of the images' classes.

        Raises:
            InvalidRequest: the classes are not the ten digits.
        """
        found = self._sure_numbers(probabilities)
        if found or self._sheet or not (only := self._only_number(probabilities)):
            return found
        number, choice = only
        confidence = number.probability ** (LONE_POWER if len(number.digits) == 1 else 1)
        number = replace(number, probability=SHARE_ALONE * confidence)
        is_likely = number.probability >= MIN_ALONE_SHARE and _may_be_alone(
            number, choice, self._places.height
        )
        return [number] if is_likely else []

    def drawn_numbers(self, probabilities: Probabilities) -> list[Number]:
        """Return the numbers of a drawing: all of its ink is meant to be read.

        Args:
            probabilities: see `numbers`.

        Raises:
            InvalidRequest: see `numbers`.
        """
        found = self._sure_numbers(probabilities)
        if found or not (only := self._only_number(probabilities)):
            return found
        return [only[0]] if only[0].probability >= MIN_DRAWN else []

    def fitting_numbers(self, probabilities: Probabilities, pattern: str) -> list[Number]:
        """Return the numbers that fit a pattern.

        Args:
            probabilities: see `numbers`.
            pattern: see `digit_reader.text.pattern.of_rows`.

        Raises:
            InvalidRequest: see `numbers`, or the pattern is none.
        """
        found: list[Number] = []
        for line, agreed in self._rows(probabilities):
            choice = line.choose(agreed, line.odds)
            for run in constrained.read(line, choice, pattern):
                probability = run.confidence * self._turn_share(run) ** DOUBTS[3]
                probability *= math.exp(-_least_doubt(run, choice))
                found.append(self._places.number(line, run, choice, probability))
        return [number for number in found if number.probability >= MIN_FITTING]

    def _sure_numbers(self, probabilities: Probabilities) -> list[Number]:
        """Return the numbers whose scores are high enough, beside anything else on the page."""
        found: list[Number] = []
        for line, agreed in self._rows(probabilities):
            choice = line.choose(agreed, line.odds)
            whole = _runs(line, choice)
            if not any(
                _total(run, choice) >= (MIN_TOTAL if len(run.candidates) > 1 else MIN_ALONE)
                for run in whole
            ):
                continue
            kept = [run for run in whole if _total(run, choice) >= MIN_BESIDE]
            share = constrained.log_share(line, choice, [run.text for run in kept])
            row_doubt = ROW_DOUBT * float(np.clip(-share - USUAL_DOUBT, 0, 20))
            for run in kept:
                doubt = row_doubt + self._doubt(run, choice) + _least_doubt(run, choice)
                found.append(self._places.number(line, run, choice, math.exp(-doubt)))
        return found

    def _only_number(self, probabilities: Probabilities) -> tuple[Number, Choice] | None:
        """Return the number that all of the ink is, if it is one row without letters."""
        if len(self._lines) != 1:
            return None
        for line, agreed in self._rows(probabilities):
            odds = line.drawn_odds(agreed)
            choice = line.choose(agreed, odds)
            found = _runs(line, choice)
            if len(found) == 1 and not len(line.letters(choice)):
                doubt = float(np.logaddexp(0, -odds[choice.run]).sum())
                doubt += self._doubt(found[0], choice)
                return self._places.number(line, found[0], choice, math.exp(-doubt)), choice
        return None

    def _rows(self, probabilities: Probabilities) -> Iterator[tuple[Line, Probabilities]]:
        """Yield each line of candidates with their probabilities, of both networks together."""
        if probabilities.shape[1] != NUM_DIGITS:
            raise InvalidRequest(
                f"numbers need a model of {NUM_DIGITS} classes, got {probabilities.shape[1]}"
            )
        start = 0
        for line in self._lines:
            end = start + len(line.odds)
            if end > start:
                yield line, detector.agreed(probabilities[start:end], line.logits)
            start = end

    def _doubt(self, run: Run, choice: Choice) -> float:
        sure = choice.probabilities[run.candidates].max(1)
        facts = (
            -np.log(np.maximum(sure, 1e-6)).sum(),
            -sum(math.log(item.probability) for item in run.items),
            -math.log(max(run.confidence, 1e-9)),
            -math.log(self._turn_share(run)),
        )
        return float(np.dot(DOUBTS, facts))

    def _turn_share(self, run: Run) -> float:
        """Return the probability of the page's turn: some numbers read either way up."""
        turned = "".join(REVERSED.get(each, "?") for each in run.text[::-1])
        if len(turned) > 1 and "?" not in turned and turned != run.text:
            return self._share * self._not_reversed
        return self._share


def has_several_digits(page: Page) -> bool:
    """Return whether a number of two or more digits is found, by the detector alone."""
    reading = Reading(page, MAX_OF_ONE, may_turn=False)
    found = reading.numbers(detector.probabilities(reading.logits))
    return any(len(number.digits) > 1 for number in found)


def _runs(line: Line, choice: Choice) -> list[Run]:
    """Split a path's digits, and the marks between them, into numbers."""
    boxes, images = line.candidates.boxes, line.candidates.images
    items = line.items(choice)
    found = []
    for run in runs.split(items, line.letters(choice), line.row.height):
        near = boxes[run.candidates]
        odds = {
            at: marks.slash_odds(images[item.candidate], item.box, near, line.row.height)
            for at, item in enumerate(run.items)
            if item.text == "1"
        }
        chosen, sure = marks.slashes("".join(item.text for item in run.items), odds)
        read = [
            item._replace(text="/", candidate=-1) if at in chosen else item
            for at, item in enumerate(run.items)
        ]
        found.append(Run(read, run.confidence * sure))
    return found


def _may_be_alone(number: Number, choice: Choice, page_height: int) -> bool:
    """Return whether a number is all of the ink, and no stroke of a scribble or photograph."""
    if len(choice.left_out):
        return False
    ones = [digit.box for digit in number.digits if digit.digit == 1]
    if len(number.digits) == len(ones) and choice.scores[choice.run].mean() < MIN_STROKE:
        return False
    return all(
        box.top > 0
        and box.bottom < page_height
        and box.right - box.left <= MAX_STROKE_WIDTH * (box.bottom - box.top)
        for box in ones
    )


def _least_doubt(run: Run, choice: Choice) -> float:
    least = float(choice.scores[run.candidates].min())
    return LEAST_DOUBT * math.log1p(math.exp(min(50.0, 1 - least / 2))) + ANY_DOUBT


def _total(run: Run, choice: Choice) -> float:
    return float(choice.scores[run.candidates].sum())
