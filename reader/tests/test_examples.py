"""Pages to fit on are labelled by whose ink each candidate has."""

from collections.abc import Iterator

import numpy as np
import pytest

from digit_classifier import Classifier
from experiments.handwriting import examples
from experiments.handwriting.examples import KINDS, NO_DIGIT, LabelledRow, of_picture
from experiments.synthetic.pages import OTHER_FONTS
from training.data.mnist import Mnist

OTHERS = ("empty", "turned", "overlapping")
"""No digits, or some within others, which have no candidate."""


@pytest.fixture(scope="module")
def classifier() -> Iterator[Classifier]:
    with Classifier.pretrained(device="cpu") as classifier:
        yield classifier


def labelled(
    kind: str, seed: int, mnist: Mnist, classifier: Classifier, quarters: int = 0
) -> tuple[str, list[LabelledRow]]:
    composed = examples._composed(kind, mnist.test, OTHER_FONTS, np.random.default_rng(seed))
    return composed.digits, of_picture(255 - composed.ink, composed, classifier, quarters)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in OTHERS])
def test_each_digit_is_some_candidates_label(
    kind: str, mnist_sample: Mnist, classifier: Classifier
) -> None:
    for seed in range(3):
        digits, rows = labelled(kind, seed, mnist_sample, classifier)
        assert "".join(row.text for row in rows) == digits
        for row in rows:
            assert {*map(int, row.text)} <= {*row.labels.tolist()} <= {*range(-1, NO_DIGIT + 1)}


def test_turned_page_has_no_digits(mnist_sample: Mnist, classifier: Classifier) -> None:
    upright, rows = labelled("turned", 1, mnist_sample, classifier)
    labels = {label for row in rows for label in row.labels.tolist()}
    _, turned = labelled("turned", 1, mnist_sample, classifier, quarters=2)
    found = [row.labels[row.labels != NO_DIGIT] for row in turned]
    assert labels & {3, 4, 7}, upright
    assert {row.text for row in turned} == {""}
    assert {*np.concatenate(found).tolist()} == {-1}
