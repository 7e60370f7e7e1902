"""Lines of forms and papers are removed from ink, and nothing that is written."""

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from serving.pictures.ink.ruling import without_ruling
from training.lab.handwriting.drawing import FONTS
from training.lab.handwriting.pages import FIELDS, draw_field

Levels = npt.NDArray[np.float32]

SIDE, LEFT, TOP = 60, 40, 50
WIDTH, HEIGHT = 420, 170


def written(text: str, x: int, y: int, pitch: int, size: int = 44) -> Levels:
    """Set digits in a font, each at a place of its own."""
    image = Image.new("L", (WIDTH, HEIGHT))
    font = ImageFont.truetype(str(FONTS[0]), size)
    for index, digit in enumerate(text):
        ImageDraw.Draw(image).text((x + index * pitch, y), digit, 255, font)
    return (np.asarray(image) / 255).astype(np.float32)


def field(kind: str, count: int, gap: int = 0, pen: int = 2) -> Levels:
    """Draw a form's field."""
    image = Image.new("L", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(image)
    inset = {"round boxes": 3, "lines": 6}.get(kind, 0)
    for index in range(count):
        left = LEFT + index * (SIDE + gap)
        draw_field(draw, kind, (left + inset, TOP, left + SIDE - inset, TOP + SIDE), 160, pen)
    return (np.asarray(image) / 255).astype(np.float32)


def assert_only(digits: Levels, lines: Levels) -> None:
    """Assert that the digits of a page with both are left, except for the ink shared with lines."""
    left = without_ruling(np.maximum(lines, digits), 0.4, 0.2) > 0.2
    assert left[(digits > 0.4) & (lines == 0)].mean() > 0.92
    is_line = (lines > 0.2) & ~ndimage.maximum_filter(digits > 0, 7)
    assert left[is_line].mean() < 0.01


@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize("pen", [1, 2, 3])
def test_fields_are_removed(kind: str, pen: int) -> None:
    digits = written("4071", LEFT + 16, TOP + 6, SIDE)
    assert_only(digits, field(kind, 5, pen=pen))


@pytest.mark.parametrize("kind", FIELDS)
def test_a_field_without_digits_is_removed(kind: str) -> None:
    left = without_ruling(field(kind, 5), 0.4, 0.2)
    if kind == "lines":  # nothing stands on them: dashes
        assert left.any()
    else:
        assert np.count_nonzero(left) < 20


def test_boxes_that_a_digit_touches_are_removed() -> None:
    digits = written("74", LEFT + 8, TOP - 20, SIDE + 20, size=84)
    lines = field("boxes", 2, gap=20)
    assert (np.minimum(digits, lines) > 0.2).any()
    assert_only(digits, lines)


def test_boxes_are_removed_on_ruled_paper() -> None:
    digits, lines = written("365", LEFT + 16, TOP + 6, SIDE + 12), field("boxes", 4, gap=12)
    lines[TOP + 20 : TOP + 22] = lines[TOP + SIDE : TOP + SIDE + 2] = 0.6
    assert_only(digits, lines)


@pytest.mark.parametrize(
    ("text", "pitch"),
    [("0000", 34), ("8888", 34), ("1111", 34), ("1111", 60), ("117711", 34), ("77777", 30)],
)
@pytest.mark.parametrize("gap", [-1, 0, 2])
def test_what_stands_on_a_line_stays(text: str, pitch: int, gap: int) -> None:
    digits = written(text, LEFT, TOP, pitch)
    bottom = int(np.flatnonzero(digits.any(1))[-1])
    lines = np.zeros_like(digits)
    lines[bottom + gap : bottom + gap + 2, 20:-20] = 0.6
    assert_only(digits, lines)


@pytest.mark.parametrize("text", ["12-34", "4-44-4", "00-11"])
def test_dashes_are_not_what_digits_stand_on(text: str) -> None:
    digits = written(text, LEFT, TOP, 34)
    assert np.array_equal(without_ruling(digits, 0.4, 0.2) > 0, digits > 0)


def test_a_fives_bar_stays() -> None:
    image = Image.new("L", (200, 160))
    draw = ImageDraw.Draw(image)
    draw.line((60, 40, 120, 40), 255, 5)  # apart from the rest
    draw.line((60, 50, 60, 80, 110, 85, 110, 120, 60, 130), 255, 5)
    digit = (np.asarray(image) / 255).astype(np.float32)
    assert np.array_equal(without_ruling(digit, 0.4, 0.2), digit)


def test_a_tooth_that_a_digit_touches_is_removed() -> None:
    lines, digits = field("combs", 5), np.zeros((HEIGHT, WIDTH), np.float32)
    tooth = LEFT + 2 * SIDE
    digits[TOP : TOP + 42, tooth - 1 : tooth + 5] = 1  # a one that stands on it
    left = without_ruling(np.maximum(lines, digits), 0.4, 0.2)
    assert np.count_nonzero(left[TOP + SIDE - 16 : TOP + SIDE]) == 0
    assert left[TOP : TOP + 36][digits[TOP : TOP + 36] > 0].all()
