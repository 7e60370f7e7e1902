"""Cuts share the ink that they cross."""

import numpy as np
import pytest

from digit_reader import detector
from digit_reader.ink.rows import Row
from digit_reader.text.candidates import Candidates, join
from digit_reader.text.cuts import Pieces, cut

HEIGHT = 48


def row_of(levels: np.ndarray) -> Row:
    return Row(levels, levels > 0.5, float(HEIGHT), HEIGHT / 2, 0.0, 0.0, 1.0)


@pytest.fixture
def row() -> Row:
    """An H: two strokes, and a bar that a cut crosses."""
    levels = np.zeros((HEIGHT, 60), np.float32)
    levels[2:46, 8:14] = levels[2:46, 46:52] = levels[21:27, 8:52] = 1
    return row_of(levels)


@pytest.fixture
def pieces(row: Row) -> Pieces:
    return cut(row)


def test_shared_ink_is_on_both_sides_of_a_cut(row: Row, pieces: Pieces) -> None:
    assert len(pieces.boxes) > 1
    assert row.mask[pieces.shared > 0].all()
    number = pieces.shared[24, 30]  # the middle of the bar
    shared = pieces.labels[pieces.shared == number]
    assert number > 0
    assert (shared < number).any()
    assert (shared >= number).any()


def test_cut_pieces_are_candidates_with_and_without_shared_ink(row: Row, pieces: Pieces) -> None:
    found = join(row, pieces)
    is_cut = np.append(pieces.costs > 0, False)
    expected = {tuple(span) for span in found.spans.tolist() if is_cut[span].any()}
    assert {tuple(span) for span in found.spans[found.is_wide].tolist()} == expected
    assert expected
    middle = int(pieces.shared[24, 30])
    left = np.flatnonzero((found.spans == [0, middle - 1]).all(1))
    narrow, wide = (ink_width(found, int(index)) for index in left)
    assert wide > narrow


def ink_width(found: Candidates, index: int) -> float:
    """Sum the ink of an image's columns, where each has most of it."""
    return float(found.images[index].reshape(28, 28).max(0).sum(dtype=float)) / 255


def test_stroke_alone_is_not_cut() -> None:
    levels = np.zeros((HEIGHT, 16), np.float32)
    levels[2:46, 5:11] = 1
    pieces = cut(row_of(levels))
    assert len(pieces.boxes) == 1
    assert not pieces.shared.any()
    assert not join(row_of(levels), pieces).is_wide.any()


def test_row_of_specks_has_no_candidates() -> None:
    levels = np.zeros((HEIGHT, 60), np.float32)
    levels[20, 10:12] = levels[30, 40:42] = 1
    row = row_of(levels)
    assert detector.logits(join(row, cut(row))).shape == (0, 11)
