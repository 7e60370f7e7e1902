"""The loss of a row's text is that of all paths counted one by one; its gradient is its slope."""

from collections.abc import Iterator
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest

from experiments.handwriting.paths import text_loss

Floats = npt.NDArray[np.float64]
SPANS = np.array([(0, 1), (0, 2), (1, 2), (1, 3), (2, 3), (1, 2)])
"""Two of the candidates have the same pieces, as those with and without shared ink."""
SKIPS = np.array([-1.5, -0.5, -2.0])


@pytest.fixture
def scores() -> Floats:
    return np.random.default_rng(1).normal(-1, 2, (len(SPANS), 10))


def paths(scores: Floats, piece: int = 0) -> Iterator[tuple[str, float]]:
    """Every way from a piece to the end: its text and its score."""
    if piece == len(SKIPS):
        yield "", 0.0
        return
    for text, score in paths(scores, piece + 1):
        yield text, score + SKIPS[piece]
    for candidate, digit in product(np.flatnonzero(SPANS[:, 0] == piece).tolist(), range(10)):
        for text, score in paths(scores, SPANS[candidate, 1]):
            yield f"{digit}{text}", score + scores[candidate, digit]


def loss_of(scores: Floats, text: str) -> float:
    loss = text_loss(SPANS, scores, SKIPS, text)
    assert loss is not None
    return loss.value


@pytest.mark.parametrize("text", ["7", "33", "402"])
def test_loss_is_that_of_all_paths_counted_one_by_one(scores: Floats, text: str) -> None:
    every = [(found, np.exp(score)) for found, score in paths(scores)]
    right = sum(weight for found, weight in every if found == text)
    assert loss_of(scores, text) == pytest.approx(-np.log(right / sum(w for _, w in every)))


@pytest.mark.parametrize("text", ["7", "33", "402"])
def test_gradient_is_the_slope_of_the_loss(scores: Floats, text: str) -> None:
    loss = text_loss(SPANS, scores, SKIPS, text)
    assert loss is not None
    step = 1e-5
    for place in np.ndindex(scores.shape):
        more, less = scores.copy(), scores.copy()
        more[place] += step
        less[place] -= step
        slope = (loss_of(more, text) - loss_of(less, text)) / (2 * step)
        assert loss.gradient[place] == pytest.approx(slope, abs=1e-7)


def test_text_that_no_path_gives_has_no_loss(scores: Floats) -> None:
    assert text_loss(SPANS, scores, SKIPS, "1234") is None
