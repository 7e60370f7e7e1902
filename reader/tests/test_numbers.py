"""Whole numbers are read from pictures, and none where there is none."""

import io
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw, ImageOps

from digit_classifier import Classifier
from digit_classifier.predictions import Predictions
from digit_reader import Number, read_numbers
from digit_reader.reader import BATCH, find_candidates
from digit_reader.text.lines import Line
from digit_reader.text.marks import Mark
from experiments.handwriting import evaluation
from experiments.synthetic.drawing import optdigits_glyph
from experiments.synthetic.papers import PAPERS, file_of, lay
from experiments.synthetic.strings import Composed, compose, random_string
from serving import ConfigurationError, InvalidRequest
from training.data.mnist import Examples, Mnist

PAGES = 8
FLOORS = {
    "gaps of 1 to 10 pixels": 0.8,
    "gaps of -4 to 10 pixels, none touches": 0.75,
    "gaps of -4 to 10 pixels, a pair touches": 0.5,
    "boxes of a form": 0.75,
    "round boxes, lines and combs": 0.7,
    "pen strokes and fonts": 0.75,
    "blank": 0.9,
    "ruled": 0.9,
    "letters": 0.9,
    "scribbles": 0.8,
    "photographs": 0.9,
}
"""Below the figures of `python -m experiments evaluate` on many more pages."""


@pytest.fixture(scope="module")
def classifier() -> Iterator[Classifier]:
    with Classifier.pretrained(device="cpu") as classifier:
        yield classifier


@pytest.fixture(scope="module")
def digits(mnist_sample: Mnist) -> Examples:
    return mnist_sample.test


@pytest.fixture
def composed(digits: Examples) -> Composed:
    """Five digits with wide gaps, all well written."""
    chosen = [int(np.flatnonzero(digits.labels == digit)[0]) for digit in (9, 0, 2, 1, 0)]
    glyphs = [digits.images[index].reshape(28, 28) for index in chosen]
    return compose("90210", glyphs, [6.0] * 4, np.random.default_rng(1))


def texts(numbers: list[Number]) -> list[str]:
    return [number.text for number in numbers]


@pytest.mark.parametrize("kind", FLOORS)
def test_pages_are_read_rightly(kind: str, classifier: Classifier, digits: Examples) -> None:
    right = 0
    for page in range(PAGES):
        picture, text = evaluation.picture_of(kind, digits, np.random.default_rng([7, page]))
        right += " ".join(texts(read_numbers(picture, classifier))) == text
    assert right >= FLOORS[kind] * PAGES


@pytest.mark.parametrize("paper", PAPERS)
def test_paper_makes_no_difference(paper: str, classifier: Classifier, composed: Composed) -> None:
    page = lay(composed.ink, paper, np.random.default_rng(3))
    assert texts(read_numbers(file_of(page), classifier)) == ["90210"]


@pytest.mark.parametrize("pitch", [20, 25, 30])
def test_squares_of_a_high_page_are_no_strokes(
    pitch: int, classifier: Classifier, composed: Composed
) -> None:
    page = np.pad(composed.ink, 180)
    lines = np.zeros_like(page)
    for width in range(2):
        lines[width::pitch] = lines[:, width::pitch] = 120
    assert texts(read_numbers(file_of(255 - np.maximum(page, lines)), classifier)) == ["90210"]


def test_boxes_are_in_the_pixels_of_the_picture(classifier: Classifier, composed: Composed) -> None:
    scale = 3  # more than is looked at
    size = (composed.ink.shape[1] * scale, composed.ink.shape[0] * scale)
    page = Image.fromarray(255 - composed.ink).resize(size)
    (number,) = read_numbers(file_of(np.asarray(page)), classifier)
    for index, digit in enumerate(number.digits):
        rows, columns = np.nonzero((composed.owners >> index) & 1)
        expected = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) * scale
        assert np.abs(np.array(digit.box) - expected).max() <= 3 * scale
    assert number.box.left == min(digit.box.left for digit in number.digits)
    assert number.box.bottom == max(digit.box.bottom for digit in number.digits)


def test_boxes_follow_the_cameras_orientation(classifier: Classifier, composed: Composed) -> None:
    upright = Image.fromarray(255 - composed.ink)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    file = io.BytesIO()
    upright.rotate(90, expand=True).save(file, "PNG", exif=exif)
    assert ImageOps.exif_transpose(Image.open(file)).size == upright.size
    (number,) = read_numbers(file, classifier)
    (straight,) = read_numbers(file_of(255 - composed.ink), classifier)
    assert number.text == "90210"
    assert number.box == straight.box


def test_number_has_the_probabilities_of_its_digits(
    classifier: Classifier, composed: Composed
) -> None:
    (number,) = read_numbers(file_of(255 - composed.ink), classifier)
    assert number.text == "".join(str(digit.digit) for digit in number.digits)
    assert 0 < number.probability <= min(digit.probability for digit in number.digits)
    for digit in number.digits:
        assert digit.digit == np.argmax(digit.probabilities)
        assert digit.probability == max(digit.probabilities)
        assert sum(digit.probabilities) == pytest.approx(1, abs=1e-5)
        image = np.frombuffer(digit.image, np.uint8)[None]
        assert classifier.classify(image).digits == [digit.digit]


def test_letter_next_to_digits_is_no_ink_that_touches_them() -> None:
    heights = [40, 40, 38, 40, 10]
    boxes = np.array([(0, 30 * at, height, 30 * at + 25) for at, height in enumerate(heights)])
    spans = np.array([(0, 1), (1, 2), (3, 4)])  # pieces 2 and 4 are left out
    line = Line(
        row=SimpleNamespace(height=40),  # type: ignore[arg-type]
        pieces=SimpleNamespace(boxes=boxes, parts=np.array([1, 2, 2, 3, 4])),  # type: ignore[arg-type]
        candidates=SimpleNamespace(spans=spans),  # type: ignore[arg-type]
        odds=np.empty(0), logits=np.empty((0, 11), np.float32),
        marks=[Mark(".", 1.0, 3.0, boxes[4], ((".", 3.0),))],
    )  # fmt: skip
    probabilities = np.full((3, 10), 0.1, np.float32)
    touching = line.choose(probabilities, np.array([9.0, 9.0, 9.0]))
    assert touching.run == [0, 1, 2]
    assert not len(line.letters(touching))
    assert touching.marks == line.marks
    beside = line.choose(probabilities, np.array([9.0, -9.0, 9.0]))
    assert beside.run == [0, 2]
    assert line.letters(beside).tolist() == boxes[1:3].tolist()


def test_detector_decides_where_the_network_does_not(composed: Composed) -> None:
    class Undecided:
        def classify(self, images: npt.ArrayLike) -> Predictions:
            return Predictions.of(np.full((len(np.asarray(images)), 10), 0.1, np.float32), "1")

    (number,) = read_numbers(file_of(255 - composed.ink), Undecided())
    assert number.text == "90210"


def test_lines_are_in_reading_order(classifier: Classifier, digits: Examples) -> None:
    rng = np.random.default_rng(2)
    inks = []
    for text in ("407", "123", "58"):
        glyphs = [
            digits.images[np.flatnonzero(digits.labels == int(digit))[1]].reshape(28, 28)
            for digit in text
        ]
        inks.append(compose(text, glyphs, [4.0] * (len(text) - 1), rng).ink)
    width = max(ink.shape[1] for ink in inks)
    page = np.vstack([np.pad(ink, ((0, 0), (0, width - ink.shape[1]))) for ink in inks])
    assert texts(read_numbers(file_of(255 - page), classifier)) == ["407", "123", "58"]


def test_blank_picture_has_no_number(classifier: Classifier) -> None:
    assert read_numbers(file_of(np.full((90, 200), 255, np.uint8)), classifier) == []


def test_digit_alone_is_read_with_little_certainty(classifier: Classifier) -> None:
    rng = np.random.default_rng(1)
    glyphs = [np.asarray(optdigits_glyph(number % 10, 56, rng)) for number in range(40)]
    pages = [np.pad(glyph, 40) for glyph in glyphs]
    found = [read_numbers(file_of(255 - page), classifier) for page in pages]
    right = [texts(numbers) == [str(number % 10)] for number, numbers in enumerate(found)]
    assert sum(right) >= 35  # 30 without LONE_POWER
    assert sum(len(numbers) > 0 for numbers in found) <= sum(right) + 1


def drawing(*strokes: list[tuple[float, float]]) -> bytes:
    image = Image.new("L", (1280, 1280), 255)
    for stroke in strokes:
        points = [(x * 1280, y * 1280) for x, y in stroke]
        ImageDraw.Draw(image).line(points, fill=0, width=56, joint="curve")
    file = io.BytesIO()
    image.resize((320, 320)).save(file, "PNG")
    return file.getvalue()


ONE, SECOND_ONE = [(0.3, 0.2), (0.3, 0.6)], [(0.6, 0.2), (0.6, 0.6)]
ZIGZAG = [(0.2 + 0.1 * step, 0.3 + 0.3 * (step % 2)) for step in range(7)]


@pytest.mark.parametrize(
    ("strokes", "text"),
    [
        ((ONE,), "1"),
        ((ONE, SECOND_ONE), "11"),
        ((ZIGZAG,), None),
        (([(0.2, 0.2), (0.8, 0.8)], [(0.8, 0.2), (0.2, 0.8)]), None),
        (([(0.3, 0.8), (0.5, 0.2), (0.7, 0.8)], [(0.4, 0.6), (0.6, 0.6)]), None),
    ],
)
def test_ink_of_a_drawing_may_be_a_number(
    strokes: tuple[list[tuple[float, float]], ...], text: str | None, classifier: Classifier
) -> None:
    reading = find_candidates(io.BytesIO(drawing(*strokes)))
    probabilities = classifier.classify(reading.images).probabilities
    assert all(number.probability < 0.9 for number in reading.numbers(probabilities))
    found = reading.drawn_numbers(probabilities)
    assert texts(found) == ([text] if text else [])
    assert all(number.probability > 0.9 for number in found)


def test_drawn_digits_are_read_with_a_fair_certainty(
    classifier: Classifier, digits: Examples
) -> None:
    sure, right = [], []
    for image, label in zip(digits.images[:60], digits.labels[:60], strict=True):
        picture = Image.new("L", (320, 320), 255)
        picture.paste(Image.fromarray(255 - image.reshape(28, 28)).resize((200, 200)), (60, 60))
        file = io.BytesIO()
        picture.save(file, "PNG")
        reading = find_candidates(io.BytesIO(file.getvalue()))
        found = reading.drawn_numbers(classifier.classify(reading.images).probabilities)
        sure.append(sum(number.probability for number in found))
        right.append(texts(found) == [str(label)])
    assert np.mean(right) > 0.9
    assert abs(np.mean(sure) - np.mean(right)) < 0.08


def test_page_of_many_digits_is_classified_in_few_calls(digits: Examples) -> None:
    class Counting:
        def __init__(self) -> None:
            self.sizes: list[int] = []

        def classify(self, images: npt.ArrayLike) -> Predictions:
            self.sizes.append(len(np.asarray(images)))
            return Predictions.of(np.full((self.sizes[-1], 10), 0.1, np.float32), "1")

    made = random_string(digits, np.random.default_rng(1), 2, 3)
    counting = Counting()
    read_numbers(file_of(255 - made.ink), counting)
    assert len(counting.sizes) == 1
    assert 0 < counting.sizes[0] <= BATCH


def test_model_of_other_classes_is_refused(composed: Composed) -> None:
    class Letters:
        def classify(self, images: npt.ArrayLike) -> Predictions:
            return Predictions.of(np.full((len(np.asarray(images)), 26), 1 / 26, np.float32), "1")

    with pytest.raises(InvalidRequest, match="10 classes, got 26"):
        read_numbers(file_of(255 - composed.ink), Letters())


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (5, 5), (28, 28), (900, 900)])
@pytest.mark.parametrize("fill", ["noise", "half", "stripes", "dots", "border"])
def test_odd_picture_is_read_or_empty(
    shape: tuple[int, int], fill: str, classifier: Classifier
) -> None:
    levels = np.zeros(shape, np.uint8)
    noise = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    fills: dict[str, Callable[[], None]] = {
        "noise": lambda: np.copyto(levels, noise),
        "half": lambda: levels[: shape[0] // 2 + 1].fill(255),
        "stripes": lambda: levels[::7].fill(255),
        "dots": lambda: levels[::5, ::5].fill(255),
        "border": lambda: levels[[0, -1]].fill(255),
    }
    fills[fill]()
    for number in read_numbers(file_of(levels), classifier):
        assert set(number.text) <= set("0123456789.,-/:")


def test_what_is_no_picture_is_refused(classifier: Classifier) -> None:
    with pytest.raises(InvalidRequest, match="expected a picture"):
        read_numbers(io.BytesIO(b"no picture"), classifier)


def test_missing_pillow_names_the_extra(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    for name in ("digit_reader.numbers", "serving.pictures.decoder"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr("digit_reader.numbers", raising=False)
    monkeypatch.delattr("serving.pictures.decoder", raising=False)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(
        ConfigurationError, match=r"Pillow is not installed: pip install '\.\[pictures\]'"
    ):
        read_numbers(io.BytesIO(), classifier)
