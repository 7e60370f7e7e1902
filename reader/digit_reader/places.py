"""Where digits are in the picture: their row is on a page, which may be turned or be a sheet."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from digit_reader.facts import Box, Field, FoundDigit, Number
from digit_reader.ink.sheets import Sheet
from digit_reader.text.lines import Choice, Line
from digit_reader.text.runs import Run
from digit_reader.text.turning import turned_back
from serving.pictures.decoder import Page


class Places:
    """Makes the answer for a number, with its boxes in the picture."""

    def __init__(self, page: Page, sheet: Sheet | None, quarters: int) -> None:
        """Know the picture, the sheet that was found in it, and how it was turned."""
        self._sheet, self._quarters = sheet, quarters
        self._shape = (sheet or page).grey.shape
        self._size = page.width, page.height
        self._scale = np.array(self._size) / page.grey.shape[::-1]

    @property
    def height(self) -> int:
        """The height of the picture."""
        return self._size[1]

    def number(self, line: Line, run: Run, choice: Choice, probability: float) -> Number:
        """Return a number of a row."""
        digits = tuple(
            self._digit(line, int(item.text), item.candidate, choice)
            for item in run.items
            if item.candidate >= 0
        )
        fields = []
        for is_mark, items in groupby(run.items, lambda item: item.candidate < 0):
            for each in ([item] for item in items if item.text != " ") if is_mark else [[*items]]:
                boxes = np.array([item.box for item in each])
                box = *boxes[:, :2].min(0).tolist(), *boxes[:, 2:].max(0).tolist()
                fields.append(Field("".join(item.text for item in each), self._box(line, box)))
        corners = self._sheet.corners * self._scale if self._sheet else np.empty((0, 2))
        sheet = tuple((round(x), round(y)) for x, y in corners.tolist())
        return Number(run.text, probability, digits, tuple(fields), 90 * self._quarters, sheet)

    def _digit(self, line: Line, digit: int, number: int, choice: Choice) -> FoundDigit:
        probabilities = choice.probabilities[number]
        return FoundDigit(
            digit,
            float(probabilities[digit]),
            tuple(probabilities.tolist()),
            self._box(line, line.candidates.boxes[number].tolist()),
            line.candidates.images[number].tobytes(),
        )

    def _box(self, line: Line, box: Sequence[int]) -> Box:
        row, (top, left, bottom, right) = line.row, box
        height, width = self._shape
        in_page = turned_back(
            (
                row.left + left * row.scale,
                row.top + top * row.scale,
                row.left + right * row.scale,
                row.top + bottom * row.scale,
            ),
            self._quarters,
            (width, height),
        )
        corners = self._sheet.placed(in_page) if self._sheet else np.reshape(in_page, (2, 2))
        corners = np.rint(corners * self._scale).clip(0, self._size).astype(int)
        return Box(*corners.min(0).tolist(), *corners.max(0).tolist())
