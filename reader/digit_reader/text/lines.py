"""A row of a page with its candidates for digits, and the best way through them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from digit_classifier.normalizer import Numbers
from digit_reader import detector
from digit_reader.ink.rows import Row
from digit_reader.text import candidates, cuts, marks, path
from digit_reader.text.candidates import Candidates
from digit_reader.text.cuts import Pieces, Work
from digit_reader.text.marks import Mark
from digit_reader.text.runs import Item
from serving.tensors import Probabilities

BIAS = 0.5
"""Added to the log odds of a whole digit."""
SKIP = -6.0
"""The score of leaving out a piece as high as the row."""
STROKE_ODDS, DRAWN_ODDS = 8.0, -4.0
"""Addends, in a drawing that is one number, to the log odds of an uncut 1 and of another digit. On
a page, an upright stroke is more often a letter or a line than a 1."""
MIN_LETTER = 0.35
"""Share of the row's height: ink that is left out and higher is a letter."""
MARK_SHARE = 2.5
"""Factor of a mark's log odds: the score of leaving it out of digits."""


class Choice(NamedTuple):
    """The best way through a line's candidates."""

    run: list[int]
    """The candidates that are digits, left to right."""
    probabilities: Probabilities
    scores: npt.NDArray[np.float64]
    """(N,): log odds of the candidates, each as its digit."""
    path: path.Path
    marks: list[Mark]
    """Those that are no part of a digit."""
    left_out: Numbers
    """(K, 4): the boxes of pieces that are no digit's, and no mark.

    Ink cut from a digit belongs to one: where digits touch, some ink is left between them."""


class Line(NamedTuple):
    """A row of a page."""

    row: Row
    pieces: Pieces
    candidates: Candidates
    odds: npt.NDArray[np.float64]
    """(N,): log odds that a candidate is one whole digit."""
    logits: npt.NDArray[np.float32]
    """(N, 11): the detector's."""
    marks: list[Mark]

    @classmethod
    def of(cls, row: Row, work: Work) -> "Line":
        """Find the candidates of a row.

        Raises:
            InvalidRequest: there is more to do than `work` is left.
        """
        pieces = cuts.cut(row, work)
        found = candidates.join(row, pieces, work)
        logits = detector.logits(found)
        none: Any = np.empty((0, 0))  # parts that are not needed any more would be large to send
        return cls(
            row._replace(levels=none, mask=none),
            pieces._replace(labels=none, shared=none),
            found._replace(surroundings=none, measures=none),
            detector.odds(logits),
            logits,
            marks.find_marks(row, pieces),
        )

    def choose(self, probabilities: Probabilities, odds: npt.NDArray[np.float64]) -> Choice:
        """Find the best way through the candidates.

        Args:
            probabilities: (N, 10): of the digits.
            odds: (N,): log odds that a candidate is one whole digit.
        """
        spans = self.candidates.spans
        scores = odds + BIAS + np.log(np.maximum(probabilities.max(1, initial=0), 1e-6))
        order = np.argsort(-scores, kind="stable")
        kept = order[np.unique(spans[order], axis=0, return_index=True)[1]]  # a span's best
        own = likely_marks(self.marks, self.pieces)
        left_out = skips(self.row, self.pieces, own)
        best = path.best_path(spans[kept], scores[kept], left_out)
        run = kept[best.candidates].tolist()
        used = sorted({piece for number in run for piece in range(*spans[number])})
        is_free = ~np.isin(self.pieces.parts, self.pieces.parts[used])
        found = [
            (mark, pieces)
            for mark, pieces in own
            if not np.isin(pieces, used).any() and (len(pieces) or not mark.touches)
        ]
        for _, pieces in found:
            is_free[pieces] = False
        free = [mark for mark, _ in found]
        return Choice(run, probabilities, scores, best, free, self.pieces.boxes[is_free])

    def items(self, choice: Choice) -> list[Item]:
        """Return a path's marks and digits."""
        items = [Item(mark.text, mark.box, mark.probability) for mark in choice.marks]
        return items + [
            Item(str(choice.probabilities[each].argmax()), self.candidates.boxes[each], 1.0, each)
            for each in choice.run
        ]

    def drawn_odds(self, probabilities: Probabilities) -> npt.NDArray[np.float64]:
        """Return the log odds that candidates of a drawing are whole digits: (N,)."""
        parts = self.pieces.parts
        is_uncut = [
            not np.isin(parts[first:last], np.delete(parts, np.s_[first:last])).any()
            for first, last in self.candidates.spans
        ]
        is_stroke = (probabilities.argmax(1) == 1) & is_uncut
        return self.odds + np.where(is_stroke, STROKE_ODDS, DRAWN_ODDS)

    def letters(self, choice: Choice) -> Numbers:
        """Return the boxes of pieces left out that are too high to be specks: (N, 4)."""
        heights = choice.left_out[:, 2] - choice.left_out[:, 0]
        return choice.left_out[heights > MIN_LETTER * self.row.height]


def likely_marks(found: Sequence[Mark], pieces: Pieces) -> list[tuple[Mark, Numbers]]:
    """Return the marks that are read without a pattern, and the pieces of each."""
    return [(mark, mark.inside(pieces)) for mark in found if mark.odds > marks.MIN_ODDS]


def skips(
    row: Row, pieces: Pieces, own: Sequence[tuple[Mark, Numbers]] = ()
) -> npt.NDArray[np.float64]:
    """Return the score of leaving out each piece: (P,).

    Args:
        row: the row.
        pieces: its P pieces.
        own: its `likely_marks`, whose pieces it is better to leave out.
    """
    heights = (pieces.boxes[:, 2] - pieces.boxes[:, 0]) / row.height
    scores = np.asarray(SKIP * np.minimum(heights, 1))
    for mark, inside in own:
        if not mark.touches:
            scores[inside] = MARK_SHARE * mark.odds / max(1, len(inside))
    return scores
