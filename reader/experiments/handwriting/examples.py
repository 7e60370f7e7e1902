"""Candidates of composed pages, with labels: a whole digit, or none."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from digit_classifier import Classifier
from digit_reader.ink import page, rows
from digit_reader.ink.rows import Row
from digit_reader.text import candidates, cuts, lines, marks
from experiments.handwriting.workers import on_all_cores
from experiments.synthetic.forms import FORMS
from experiments.synthetic.hands import Writers
from experiments.synthetic.pages import EMPTY, FIELDS, any_paper, form, without_digits, written
from experiments.synthetic.papers import file_of, worn
from experiments.synthetic.strings import MARK, Composed, Levels, random_string, single
from experiments.synthetic.texts import TEXTS, TOUCHING
from serving.pictures import decoder
from training.data.mnist import Examples

NO_DIGIT = 10
"""The label of candidates that are not one whole digit."""
MIN_WHOLE = 0.9
"""Shares of a digit's ink, and of a candidate's: a candidate that shares more of both is that
digit."""
MAX_PART = 0.75
"""One that shares less is no digit. Between the two a digit's best candidate is that digit, since
where digits overlap none has all of its ink; others are left out."""
MIN_MARK, MAX_MARK = 0.25, 0.6
"""Shares of a mark's ink: a candidate with more is no digit alone; between the two its label is
open."""
MIN_MARK_SIZE = 8
"""Pixels: what is smaller may be a mark's edge."""
KINDS = {
    "gaps": 0.11, "touching": 0.17, "overlapping": 0.04, "single": 0.03, "written": 0.05,
    "close": 0.05, "fields": 0.11, "forms": 0.1, "texts": 0.09, "marks": 0.08, "turned": 0.04,
    "empty": 0.13,
}  # fmt: skip
"""The shares of the kinds of pages."""
WORN_SHARE = 0.25
"""Share of the pages that are photographed or copied badly."""
UPRIGHT = [name for name in TEXTS if not name.startswith("turned")]
LIKE_DIGITS = ("", "0", "0125689", "0")
"""For each number of quarter turns: what still looks like a digit then. Its labels are open."""


class LabelledRow(NamedTuple):
    """A row of a page: N candidates of P pieces, and their labels."""

    images: npt.NDArray[np.uint8]
    """(N, 784)."""
    surroundings: npt.NDArray[np.uint8]
    """(N, 784)."""
    measures: npt.NDArray[np.float32]
    """(N, NUM_MEASURES)."""
    labels: npt.NDArray[np.int8]
    """(N,): 0 to 9, NO_DIGIT, or -1 where that is open."""
    probabilities: npt.NDArray[np.float32]
    """(N, 10): the classifier's."""
    spans: npt.NDArray[np.intp]
    """(N, 2): the first piece, from 0, and the one after the last."""
    skips: npt.NDArray[np.float64]
    """(P,): the score of leaving out a piece."""
    has_mark: npt.NDArray[np.bool_]
    """(N,): whether a candidate has a mark's ink, too, so that it is no digit alone."""
    text: str
    """The digits in the row; "" if there are none."""

    def part(self, is_kept: npt.NDArray[np.bool_]) -> "LabelledRow":
        """Leave out some of the candidates."""
        names = [name for name in self._fields if name not in ("skips", "text")]
        return self._replace(**{name: getattr(self, name)[is_kept] for name in names})


def join(rows: Sequence[LabelledRow]) -> list[npt.NDArray[Any]]:
    """Join the rows' images, surroundings, measures, labels and probabilities."""
    return [np.concatenate(column) for column in zip(*(row[:5] for row in rows), strict=True)]


def of_pages(
    digits: Examples, fonts: Sequence[Path], num_pages: int, seed: int
) -> Iterator[list[LabelledRow]]:
    """Return the rows of each of many random pages, made on all cores.

    Args:
        digits: MNIST's, to compose pages of.
        fonts: to set digits and letters in.
        num_pages: how many.
        seed: decides the pages.
    """
    tasks = [(seed, number) for number in range(num_pages)]
    return on_all_cores(partial(_of_page, fonts), digits, tasks)


def _of_page(
    fonts: Sequence[Path], digits: Examples, classifier: Classifier, seed: tuple[int, int]
) -> list[LabelledRow]:
    rng = np.random.default_rng(seed)
    kind = str(rng.choice([*KINDS], p=[*KINDS.values()]))
    if kind == "empty":
        kind_of_page = str(rng.choice(EMPTY, p=[0.03, 0.03, 0.42, 0.38, 0.14]))
        composed, grey = None, without_digits(kind_of_page, rng, fonts)
    else:
        composed = _composed(kind, digits, fonts, rng)
        grey = any_paper(composed.ink, rng)
    quarters = int(rng.integers(1, 4)) if kind == "turned" else 0
    if rng.random() < WORN_SHARE:
        grey = worn(grey, rng)
    return of_picture(grey, composed, classifier, quarters)


def _composed(
    kind: str, digits: Examples, fonts: Sequence[Path], rng: np.random.Generator
) -> Composed:
    writers = Writers(digits, ("strokes", str(fonts[int(rng.integers(len(fonts)))])), fonts)
    match kind:
        case "gaps":
            return random_string(digits, rng, -4, 10)
        case "touching":
            return random_string(digits, rng, -4, 1)
        case "overlapping":
            return random_string(digits, rng, -6, 0)
        case "single":
            return single(digits, rng)
        case "written":
            return written(rng, fonts)
        case "close":
            return written(rng, fonts, -3)
        case "fields":
            return form(digits, rng, str(rng.choice(FIELDS, p=[0.55, 0.15, 0.15, 0.15])))
        case "marks":
            return TOUCHING["touching marks"](writers, rng)
        case "forms":
            return FORMS[str(rng.choice([*FORMS]))](writers, rng)
    return TEXTS[str(rng.choice(UPRIGHT))](writers, rng)  # "texts" and "turned"


def of_picture(
    grey: Levels, composed: Composed | None, classifier: Classifier, quarters: int = 0
) -> list[LabelledRow]:
    """Label the candidates of a page by the digits that their ink belongs to.

    Args:
        grey: the page.
        composed: what is on it; None if it has no digits.
        classifier: for the candidates' probabilities.
        quarters: how often the page is turned, which leaves no digits.
    """
    labelled = []
    ink = page.find_ink(decoder.read_page(file_of(np.rot90(grey, quarters))).grey)
    for row in rows.find_rows(ink) if ink else []:
        pieces = cuts.cut(row)
        found = candidates.join(row, pieces)
        if not len(found.spans):
            continue
        labels, text = np.full(len(found.spans), NO_DIGIT), ""
        has_mark = np.zeros(len(labels), np.bool_)
        if composed is not None:
            owners = _owners_in(row, np.rot90(composed.owners, quarters))
            labels = _labels(row, pieces, found, owners, composed.digits)
            mark = _share_of_marks(pieces, found, owners)
            labels = np.where(mark > MAX_MARK, NO_DIGIT, np.where(mark < MIN_MARK, labels, -1))
            has_mark, text = mark > MAX_MARK, _text_in(row, composed, owners)
        if quarters:
            is_open = np.isin(labels, [*map(int, LIKE_DIGITS[quarters])])
            labels, text = np.where(is_open, -1, NO_DIGIT), ""
        likely = lines.likely_marks(marks.find_marks(row, pieces), pieces)
        labelled.append(LabelledRow(
            found.images, found.surroundings, found.measures, labels.astype(np.int8),
            classifier.classify(found.images).probabilities, found.spans,
            lines.skips(row, pieces, likely), has_mark, text,
        ))  # fmt: skip
    return labelled


def _owners_in(row: Row, owners: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Return the digits that each of a row's pixels belongs to."""
    y = np.clip(row.top + (np.arange(row.mask.shape[0]) + 0.5) * row.scale, 0, len(owners) - 1)
    x = np.clip(row.left + (np.arange(row.mask.shape[1]) + 0.5) * row.scale, 0, owners.shape[1] - 1)
    return owners[np.ix_(y.astype(np.intp), x.astype(np.intp))]


def _text_in(row: Row, composed: Composed, owners: npt.NDArray[np.uint32]) -> str:
    """Return the digits that have most of their ink in a row."""
    text = ""
    for index, digit in enumerate(composed.digits):
        inside = np.count_nonzero((owners >> np.uint32(index)) & 1) * row.scale**2
        if inside > 0.5 * np.count_nonzero((composed.owners >> np.uint32(index)) & 1):
            text += digit
    return text


def _labels(
    row: Row,
    pieces: cuts.Pieces,
    found: candidates.Candidates,
    owners: npt.NDArray[np.uint32],
    text: str,
) -> npt.NDArray[np.intp]:
    """Return each candidate's digit, NO_DIGIT, or -1 where that is open."""
    sizes = _sums(np.ones(owners.shape), pieces, found)
    share, best = np.zeros(len(sizes)), np.zeros(len(sizes), np.intp)
    is_best = np.zeros(len(sizes), np.bool_)
    for index, digit in enumerate(text):
        bits = (owners >> np.uint32(index)) & 1
        shared = _sums(bits, pieces, found)
        whole = shared / np.maximum(np.count_nonzero(bits[row.mask]), sizes)
        is_more = whole > share
        share, best = np.where(is_more, whole, share), np.where(is_more, int(digit), best)
        if len(whole):
            is_best[whole.argmax()] = True
    is_digit = (share >= MIN_WHOLE) | (is_best & (share >= MAX_PART))
    return np.where(is_digit, best, np.where(share < MAX_PART, NO_DIGIT, -1))


def _share_of_marks(
    pieces: cuts.Pieces, found: candidates.Candidates, owners: npt.NDArray[np.uint32]
) -> npt.NDArray[np.float64]:
    """Return how much each candidate has of any mark: (N,), 0 to 1."""
    numbers, count = ndimage.label(owners == 1 << MARK, np.ones((3, 3)))
    shares = np.zeros(len(found.spans))
    for number in range(1, count + 1):
        size = np.count_nonzero(numbers == number)
        if size >= MIN_MARK_SIZE:
            shares = np.maximum(shares, _sums(numbers == number, pieces, found) / size)
    return shares


def _sums(
    weights: npt.NDArray[Any], pieces: cuts.Pieces, found: candidates.Candidates
) -> npt.NDArray[np.float64]:
    """Sum the (H, W) weights of each candidate's pixels."""
    labels, shared, count = pieces.labels, pieces.shared, len(pieces.boxes) + 2
    first, last = found.spans.T
    totals = np.cumsum(np.bincount(labels.ravel(), weights.ravel() * (labels.ravel() > 0), count))
    is_left = labels < shared  # of the cut that shares it
    is_right = (labels >= shared) & (shared > 0)
    left = np.bincount(shared[is_left], weights[is_left], count)
    right = np.bincount(shared[is_right], weights[is_right], count)
    return np.asarray(
        totals[last] - totals[first] + found.is_wide * (left[first + 1] + right[last + 1])
    )
