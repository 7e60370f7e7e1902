"""Sheets that are photographed on a table are found, and read as if seen from above."""

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image, ImageDraw

from digit_classifier import Classifier
from digit_reader import read_numbers
from digit_reader.ink.sheets import find_sheet
from experiments.handwriting import evaluation
from experiments.synthetic.papers import PAPERS, Levels, file_of, lay
from experiments.synthetic.strings import Composed, compose
from experiments.synthetic.tables import projected
from training.data.mnist import Mnist

SIZE = WIDTH, HEIGHT = 900, 700
TABLE = 90.0
CORNERS = {
    "whole": [(150, 90), (760, 160), (820, 640), (60, 560)],
    "cut off at the left": [(-60, 120), (700, 90), (760, 600), (-90, 560)],
    "cut off at the bottom": [(120, 160), (720, 110), (850, 780), (40, 770)],
}


@pytest.fixture(scope="module")
def classifier() -> Iterator[Classifier]:
    with Classifier.pretrained(device="cpu") as classifier:
        yield classifier


@pytest.fixture(scope="module")
def composed(mnist_sample: Mnist) -> Composed:
    """Five digits on a sheet with wide margins."""
    digits = mnist_sample.test
    chosen = [int(np.flatnonzero(digits.labels == digit)[0]) for digit in (9, 0, 2, 1, 0)]
    glyphs = [digits.images[index].reshape(28, 28) for index in chosen]
    made = compose("90210", glyphs, [6.0] * 4, np.random.default_rng(1))
    margins = ((60, 60), (70, 70))
    return Composed(made.text, np.pad(made.ink, margins), np.pad(made.owners, margins))


def on_table(page: Levels, corners: list[tuple[int, int]], table: float = TABLE) -> Levels:
    at = np.array(corners, np.float64)
    alpha = projected(np.full_like(page, 255), at, SIZE) / 255
    grain = np.random.default_rng(4).normal(0, 4, (HEIGHT, WIDTH))
    levels = table * (1 - alpha) + projected(page, at, SIZE) * alpha + grain
    return np.clip(levels, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("place", CORNERS)
def test_boxes_are_in_the_photograph(
    place: str, classifier: Classifier, composed: Composed
) -> None:
    picture = on_table(255 - composed.ink, CORNERS[place])
    (number,) = read_numbers(file_of(picture), classifier)
    assert number.text == "90210"
    for index, digit in enumerate(number.digits):
        alone = (composed.owners >> index & 1).astype(np.uint8) * np.uint8(255)
        rows, columns = np.nonzero(projected(alone, np.array(CORNERS[place], float), SIZE) > 127)
        expected = np.array([columns.min(), rows.min(), columns.max(), rows.max()])
        assert np.abs(np.array(digit.box) - expected).max() <= 12  # the corners of a turned box


def test_corners_of_the_sheet_are_in_the_answer(classifier: Classifier, composed: Composed) -> None:
    picture = on_table(255 - composed.ink, CORNERS["whole"])
    (number,) = read_numbers(file_of(picture), classifier)
    assert np.abs(np.array(number.sheet) - CORNERS["whole"]).max() <= 5


def test_sheet_is_seen_from_above(composed: Composed) -> None:
    picture = on_table(255 - composed.ink, CORNERS["whole"])
    sheet = find_sheet(picture.astype(np.float32))
    assert sheet is not None
    border = np.concatenate([sheet.grey[[0, -1]].ravel(), sheet.grey[:, [0, -1]].ravel()])
    assert (border > 200).mean() > 0.99  # no table is left


@pytest.mark.parametrize("paper", PAPERS)
def test_paper_without_a_table_is_no_sheet(paper: str, composed: Composed) -> None:
    for seed in range(5):
        page = lay(composed.ink, paper, np.random.default_rng(seed))
        assert find_sheet(page.astype(np.float32)) is None


def test_white_field_of_a_grey_form_is_no_sheet(composed: Composed) -> None:
    picture = on_table(255 - composed.ink, CORNERS["whole"], table=215.0)
    assert find_sheet(picture.astype(np.float32)) is None


def test_frame_on_white_paper_is_no_sheet() -> None:
    levels = np.full((400, 600), 255, np.float32)
    levels[60:340, 80:520] = 0
    levels[80:320, 100:500] = 255
    assert find_sheet(levels) is None


def test_shapes_that_are_no_sheet_seen_from_somewhere_are_left() -> None:
    """The meeting points of this triangle's edges make no convex shape, outside the picture."""
    picture = Image.new("L", (475, 177), 30)
    corners = [(243.91, -40.75), (459.01, 10.21), (458.56, 210.59)]
    ImageDraw.Draw(picture).polygon(corners, fill=230)
    assert find_sheet(np.asarray(picture, np.float32)) is None


def test_photographs_are_read(classifier: Classifier, mnist_sample: Mnist) -> None:
    right = 0
    for page in range(3):
        rng = np.random.default_rng([7, page])
        picture, text = evaluation.picture_of(evaluation.SHEETS, mnist_sample.test, rng)
        right += " ".join(number.text for number in read_numbers(picture, classifier)) == text
    assert right >= 2
