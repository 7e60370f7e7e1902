"""Candidates of composed pages, with labels: a whole digit, or none."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from serving import Classifier
from serving.pictures import decoder
from serving.pictures.ink import page, rows
from serving.pictures.ink.rows import Row
from serving.pictures.text import candidates, cuts, lines
from training.data.mnist import Examples
from training.lab.handwriting.workers import on_all_cores
from training.lab.made.pages import (
    EMPTY,
    FIELDS,
    OTHER_FONTS,
    any_paper,
    form,
    without_digits,
    written,
)
from training.lab.made.papers import file_of
from training.lab.made.strings import Composed, Levels, random_string, single

NO_DIGIT = 10
"""The label of candidates that are not one whole digit."""
MIN_WHOLE = 0.9
"""Of a digit's ink, and of a candidate's: a candidate that shares more of both is that digit."""
MAX_PART = 0.75
"""One that shares less is no digit. Between the two a digit's best candidate is that digit, since
where digits overlap none has all of its ink; others are left out."""


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
    text: str
    """The digits in the row; "" if there are none."""

    def part(self, is_kept: npt.NDArray[np.bool_]) -> "LabelledRow":
        """Leave out some of the candidates."""
        names = self._fields[:6]
        return self._replace(**{name: getattr(self, name)[is_kept] for name in names})


def join(rows: Sequence[LabelledRow]) -> list[npt.NDArray[Any]]:
    """Join the rows' images, surroundings, measures, labels and probabilities."""
    return [np.concatenate(column) for column in zip(*(row[:5] for row in rows), strict=True)]


def of_pages(digits: Examples, num_pages: int, seed: int) -> Iterator[list[LabelledRow]]:
    """Return the rows of each of many random pages, made on all cores."""
    return on_all_cores(_of_page, digits, [(seed, number) for number in range(num_pages)])


def _of_page(digits: Examples, classifier: Classifier, seed: tuple[int, int]) -> list[LabelledRow]:
    rng = np.random.default_rng(seed)
    kind = rng.choice(6, p=[0.21, 0.28, 0.05, 0.07, 0.22, 0.17])
    composed: Composed | None = None
    if kind == 0:
        composed = random_string(digits, rng, -4, 10)
    elif kind == 1:
        composed = random_string(digits, rng, -4, 1)
    elif kind == 2:
        composed = single(digits, rng)
    elif kind == 3:
        composed = written(rng, OTHER_FONTS)
    elif kind == 4:
        composed = form(digits, rng, str(rng.choice(FIELDS, p=[0.55, 0.15, 0.15, 0.15])))
    if composed is None:
        kind_of_page = str(rng.choice(EMPTY, p=[0.03, 0.03, 0.42, 0.38, 0.14]))
        grey = without_digits(kind_of_page, rng, OTHER_FONTS)
    else:
        grey = any_paper(composed.ink, rng)
    return of_picture(grey, composed, classifier)


def of_picture(
    grey: Levels, composed: Composed | None, classifier: Classifier
) -> list[LabelledRow]:
    """Label the candidates of a page by the digits that their ink belongs to."""
    labelled = []
    ink = page.find_ink(decoder.read_page(file_of(grey)).grey)
    for row in rows.find_rows(ink) if ink else []:
        pieces = cuts.cut(row)
        found = candidates.join(row, pieces)
        if not len(found.spans):
            continue
        labels, text = np.full(len(found.spans), NO_DIGIT), ""
        if composed is not None:
            owners = _owners_in(row, composed.owners)
            labels = _labels(row, pieces, found, owners, composed.text)
            text = _text_in(row, composed, owners)
        labelled.append(LabelledRow(
            found.images, found.surroundings, found.measures, labels.astype(np.int8),
            classifier.classify(found.images).probabilities, found.spans,
            lines.skips(row, pieces), text,
        ))  # fmt: skip
    return labelled


def _owners_in(row: Row, owners: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the digits that each of a row's pixels belongs to."""
    y = np.clip(row.top + (np.arange(row.mask.shape[0]) + 0.5) * row.scale, 0, len(owners) - 1)
    x = np.clip(row.left + (np.arange(row.mask.shape[1]) + 0.5) * row.scale, 0, owners.shape[1] - 1)
    return owners[np.ix_(y.astype(np.intp), x.astype(np.intp))]


def _text_in(row: Row, composed: Composed, owners: npt.NDArray[np.uint8]) -> str:
    """Return the digits that have most of their ink in a row."""
    text = ""
    for index, digit in enumerate(composed.text):
        inside = np.count_nonzero((owners >> index) & 1) * row.scale**2
        if inside > 0.5 * np.count_nonzero((composed.owners >> index) & 1):
            text += digit
    return text


def _labels(
    row: Row,
    pieces: cuts.Pieces,
    found: candidates.Candidates,
    owners: npt.NDArray[np.uint8],
    text: str,
) -> npt.NDArray[np.intp]:
    """Return each candidate's digit, NO_DIGIT, or -1 where that is open."""
    sizes = _sums(np.ones(owners.shape), pieces, found)
    share, best = np.zeros(len(sizes)), np.zeros(len(sizes), np.intp)
    is_best = np.zeros(len(sizes), np.bool_)
    for index, digit in enumerate(text):
        bits = (owners >> index) & 1
        shared = _sums(bits, pieces, found)
        whole = shared / np.maximum(np.count_nonzero(bits[row.mask]), sizes)
        is_more = whole > share
        share, best = np.where(is_more, whole, share), np.where(is_more, int(digit), best)
        if len(whole):
            is_best[whole.argmax()] = True
    is_digit = (share >= MIN_WHOLE) | (is_best & (share >= MAX_PART))
    return np.where(is_digit, best, np.where(share < MAX_PART, NO_DIGIT, -1))


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
