"""Marks between digits, blanks, turned pages and lone digits are read, or doubted."""

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from digit_classifier import Classifier
from digit_reader import Number, read_numbers
from digit_reader.text import runs
from digit_reader.text.marks import slashes
from digit_reader.text.runs import Item
from digit_reader.text.turning import turned_back
from experiments.handwriting.evaluation import picture_of
from experiments.synthetic.hands import Levels, Writers, write
from experiments.synthetic.papers import file_of
from training.data.mnist import Mnist

PAGES = 8


def written(
    text: str, mnist: Mnist, seed: int = 4, blank: tuple[float, float] = (0.12, 0.35),
    hand: str = "fonts",
) -> Levels:  # fmt: skip
    """Write a text on white."""
    return 255 - write(text, Writers(mnist.test), np.random.default_rng(seed), blank, hand).ink


FLOORS = {"dates": 6, "decimals": 6, "groups": 6, "turned 90": 5, "turned 180": 5,
          "turned 270": 5, "one or two digits": 6, "wide gaps": 5, "small print": 6,
          "touching marks": 4}  # fmt: skip
"""How many of those pages are read, below the figures of `python -m experiments evaluate` on
more."""


@pytest.fixture(scope="module")
def classifier() -> Iterator[Classifier]:
    with Classifier.pretrained(device="cpu") as classifier:
        yield classifier


def texts(numbers: list[Number]) -> str:
    return " ".join(number.text for number in numbers)


@pytest.mark.parametrize("kind", FLOORS)
def test_pages_by_other_hands_are_read_rightly_or_doubted(
    kind: str, classifier: Classifier, mnist_sample: Mnist
) -> None:
    right, sure_and_wrong = 0, 0
    for page in range(PAGES):
        picture, text = picture_of(kind, mnist_sample.test, np.random.default_rng([9, page]))
        found = read_numbers(picture, classifier)
        is_right = texts(found) == text
        right += is_right
        sure = np.prod([number.probability for number in found]) >= 0.9
        sure_and_wrong += bool(found) and bool(sure) and not is_right
    assert right >= FLOORS[kind]
    assert sure_and_wrong <= 1


@pytest.mark.parametrize("text", ["12/05/2026", "-3,14", "496.12", "65582-6084", "12:30"])
def test_marks_are_fields_with_boxes(
    text: str, classifier: Classifier, mnist_sample: Mnist
) -> None:
    page = written(text, mnist_sample)
    (number,) = read_numbers(file_of(page), classifier)
    assert number.text == "".join(field.text for field in number.fields) == text
    assert "".join(str(digit.digit) for digit in number.digits) == "".join(
        each for each in text if each.isdigit()
    )
    lefts = [field.box.left for field in number.fields]
    assert lefts == sorted(lefts)
    for field in number.fields:
        left, top, right, bottom = field.box
        assert (page[top:bottom, left:right] < 128).any()


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_boxes_of_a_turned_page_are_on_the_page_as_it_is(
    degrees: int, classifier: Classifier, mnist_sample: Mnist
) -> None:
    ink = written("34739", mnist_sample)
    (straight,) = read_numbers(file_of(ink), classifier)
    (turned,) = read_numbers(file_of(np.rot90(ink, -degrees // 90)), classifier)
    assert (turned.text, turned.turned) == ("34739", degrees)
    height, width = np.rot90(ink, -degrees // 90).shape
    for digit, upright in zip(turned.digits, straight.digits, strict=True):
        expected = turned_back(upright.box, degrees // 90, (width, height))
        assert np.abs(np.array(digit.box) - np.array(expected)).max() <= 2


def test_cameras_orientation_is_no_turn(classifier: Classifier, mnist_sample: Mnist) -> None:
    ink = written("34739", mnist_sample)
    file, exif = file_of(ink), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    file.truncate(0)
    Image.fromarray(np.rot90(ink)).save(file, "PNG", exif=exif)
    (number,) = read_numbers(file, classifier)
    assert (number.text, number.turned) == ("34739", 0)


@pytest.mark.parametrize(
    ("text", "odds", "places"),
    [
        ("1210512026", {0: -5.0, 2: 1.0, 5: 1.0}, {2, 5}),
        ("1210512026", {0: -5.0, 2: -4.0, 5: -4.0}, set()),
        ("9910512026", {2: 1.0, 5: 1.0}, set()),
        ("314", {1: 6.0}, {1}),
    ],
)
def test_strokes_are_slashes_by_their_shape_or_of_a_date(
    text: str, odds: dict[int, float], places: set[int]
) -> None:
    assert slashes(text, odds)[0] == places


def items(text: str, lefts: list[int], width: int = 25) -> list[Item]:
    return [
        Item(each, np.array([0, left, 48, left + width]), 1.0, at if each.isdigit() else -1)
        for at, (each, left) in enumerate(zip(text, lefts, strict=True))
    ]


@pytest.mark.parametrize(
    ("text", "lefts", "found"),
    [
        ("1234", [0, 30, 60, 90], ["1234"]),
        ("1234", [0, 30, 100, 130], ["12", "34"]),
        ("1234", [0, 100, 200, 300], ["1234"]),
        ("-12-34.", [0, 30, 60, 90, 120, 150, 180], ["-12-34"]),
        (".12", [0, 30, 60], ["12"]),
    ],
)
def test_row_is_split_at_blanks(text: str, lefts: list[int], found: list[str]) -> None:
    none = np.empty((0, 4), np.intp)
    split = runs.split(items(text, lefts), none, 48.0)
    assert ["".join(item.text for item in run.items) for run in split] == found


def test_letter_ends_a_number_and_rejects_what_it_touches() -> None:
    letter = np.array([[0, 110, 48, 135]])
    split = runs.split(items("1234", [0, 30, 60, 140]), letter, 48.0)
    assert [[item.text for item in run.items] for run in split] == [["1", "2", "3"]]


@pytest.mark.parametrize(("text", "is_sure"), [("668", False), ("1801", False), ("247", True)])
def test_number_that_also_reads_upside_down_is_doubted(
    text: str, is_sure: bool, classifier: Classifier, mnist_sample: Mnist
) -> None:
    page = written(text, mnist_sample, 6, (0.2, 0.3), "strokes")
    (number,) = read_numbers(file_of(np.rot90(page, 2)), classifier)
    assert (number.probability > 0.9) == is_sure
    assert number.text == text or not is_sure
