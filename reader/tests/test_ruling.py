"""Lines of forms and papers are removed from ink, and nothing that is written."""

from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from digit_reader.ink.page import find_ink
from digit_reader.ink.rings import without_rings
from digit_reader.ink.ruling import without_ruling
from digit_reader.ink.strokes import parts_of
from digit_reader.text.runs import Item, split
from experiments.synthetic.drawing import FONTS
from experiments.synthetic.pages import FIELDS, draw_field

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


def _without_ruling(ink: Levels) -> Levels:
    return without_ruling(ink, parts_of(ink > 0.2))


def assert_only(digits: Levels, lines: Levels) -> None:
    """Assert that the digits of a page with both are left, except for the ink shared with lines."""
    left = _without_ruling(np.maximum(lines, digits)) > 0.2
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
    left = _without_ruling(field(kind, 5))
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
    assert np.array_equal(_without_ruling(digits) > 0, digits > 0)


def test_a_fives_bar_stays() -> None:
    image = Image.new("L", (200, 160))
    draw = ImageDraw.Draw(image)
    draw.line((60, 40, 120, 40), 255, 5)  # apart from the rest
    draw.line((60, 50, 60, 80, 110, 85, 110, 120, 60, 130), 255, 5)
    digit = (np.asarray(image) / 255).astype(np.float32)
    assert np.array_equal(_without_ruling(digit), digit)


def test_a_tooth_that_a_digit_touches_is_removed() -> None:
    lines, digits = field("combs", 5), np.zeros((HEIGHT, WIDTH), np.float32)
    tooth = LEFT + 2 * SIDE
    digits[TOP : TOP + 42, tooth - 1 : tooth + 5] = 1  # a one that stands on it
    left = _without_ruling(np.maximum(lines, digits))
    assert np.count_nonzero(left[TOP + SIDE - 16 : TOP + SIDE]) == 0
    assert left[TOP : TOP + 36][digits[TOP : TOP + 36] > 0].all()


def divided_box(tops: tuple[int, ...], pen: int, rise: int) -> Levels:
    """Draw a box of three digits, and lines from these rows to its lower side, evenly apart."""
    image = Image.new("L", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(image)
    pitch, last = SIDE + 10, len(tops) - 1
    for number, top in enumerate(tops):
        x, down = LEFT + round(number * 3 * pitch / last), round(rise * (number / last - 0.5))
        draw.line((x, top + down, x, TOP + SIDE + down), 160, pen)
    for y in (TOP, TOP + SIDE):
        draw.line((LEFT, y - rise / 2, LEFT + 3 * pitch, y + rise / 2), 160, pen)
    return (np.asarray(image) / 255).astype(np.float32)


@pytest.mark.parametrize("rise", [0, 5])
@pytest.mark.parametrize("pen", [2, 5])
def test_teeth_in_a_box_are_removed(pen: int, rise: int) -> None:
    low = TOP + SIDE - 26
    lines = divided_box((TOP, low, low, TOP), pen, rise)
    assert_only(written("417", LEFT + 20, TOP + 8, SIDE + 10, 40), lines)


def test_ones_in_a_box_are_no_teeth() -> None:
    ones = np.zeros((HEIGHT, WIDTH), np.float32)
    for x in (LEFT + 70, LEFT + 140):
        ones[TOP + 22 : TOP + SIDE - 4, x : x + 3] = 1
    assert_only(ones, divided_box((TOP, TOP), 2, 0))


@pytest.mark.parametrize(("dash", "blank"), [(10, 6), (6, 4), (3, 5)])
def test_dashed_boxes_are_removed(dash: int, blank: int) -> None:
    lines, digits = field("boxes", 5), written("4017", LEFT + 16, TOP + 6, SIDE)
    y, x = np.indices(lines.shape)
    is_side = (y - TOP) % SIDE <= 2
    lines[np.where(is_side, (x - LEFT) % (dash + blank), (y - TOP) % (dash + blank)) >= dash] = 0
    assert_only(digits, lines)


def test_ones_in_boxes_stay() -> None:
    assert_only(written("1111", LEFT + 20, TOP + 18, SIDE, size=28), field("boxes", 5))


@pytest.mark.parametrize(
    "missing", [slice(TOP - 2, TOP + 4), slice(TOP + SIDE - 3, TOP + SIDE + 3)]
)
@pytest.mark.parametrize("gap", [6, 20])
def test_boxes_without_an_upper_or_lower_side_are_removed(missing: slice, gap: int) -> None:
    lines, digits = field("boxes", 4, gap), written("4017", LEFT + 16, TOP + 6, SIDE + gap)
    lines[missing] = 0
    assert_only(digits, lines)


@pytest.mark.parametrize(("rows", "gap"), [(1, 0), (1, 14), (2, 0)])
@pytest.mark.parametrize("side", [40, 60])
@pytest.mark.parametrize("pen", [3, 5])
def test_boxes_that_lean_are_removed(rows: int, gap: int, side: int, pen: int) -> None:
    image = Image.new("L", (WIDTH, HEIGHT))
    for row, column in product(range(rows), range(5)):
        left, top = LEFT + column * (side + gap), 30 + row * side
        box = left - 2, top - 2, left + side + 2, top + side + 2
        ImageDraw.Draw(image).rectangle(box, None, 160, pen)
    digits = written("40713", LEFT + side // 4, 36, side + gap, size=side * 2 // 3)
    assert_only(_leaning(Image.fromarray((255 * digits).astype(np.uint8))), _leaning(image))


def _leaning(image: Image.Image) -> Levels:
    return (np.asarray(image.rotate(2, Image.Resampling.BICUBIC)) / 255).astype(np.float32)


def ring(box: tuple[int, int, int, int], degrees: int = 360) -> Levels:
    """Draw a circle or a part of it."""
    image = Image.new("L", (WIDTH, HEIGHT))
    ImageDraw.Draw(image).arc(box, 20, 20 + degrees, 160, 3)
    return (np.asarray(image) / 255).astype(np.float32)


@pytest.mark.parametrize("degrees", [360, 320])
@pytest.mark.parametrize("width", [90, 300])
def test_a_ring_around_digits_is_removed(width: int, degrees: int) -> None:
    digits = written("5" if width == 90 else "50417", LEFT + 30, TOP + 10, 48)
    lines = ring((LEFT, TOP - 10, LEFT + width, TOP + 80), degrees)
    left = without_rings(np.maximum(lines, digits), 0.2)[0] > 0
    assert np.array_equal(left, digits > 0.2)


def test_a_ring_that_a_digit_touches_is_removed() -> None:
    digits, lines = written("7", LEFT + 18, TOP - 8, 0, size=76), ring((LEFT, TOP, 110, TOP + 70))
    assert (np.minimum(digits, lines) > 0.2).any()
    left = without_rings(np.maximum(lines, digits), 0.2)[0] > 0
    assert left[(digits > 0.4) & (lines == 0)].mean() > 0.92
    assert left[(lines > 0.2) & ~ndimage.maximum_filter(digits > 0, 9)].mean() < 0.01


@pytest.mark.parametrize("y", [TOP + 14, TOP + 35, TOP + 52])
def test_a_ring_on_ruled_paper_is_removed(y: int) -> None:
    digits, lines = written("5", LEFT + 24, TOP + 12, 0), ring((LEFT, TOP, LEFT + 76, TOP + 70))
    lines[y : y + 2] = np.maximum(lines[y : y + 2], 0.6)
    ink = find_ink(250 - 200 * np.maximum(lines, digits))
    assert ink is not None
    left = ink.levels > ink.threshold
    assert left[(digits > 0.4) & (lines == 0)].mean() > 0.92
    assert left[(lines > 0.2) & ~ndimage.maximum_filter(digits > 0, 7)].mean() < 0.01


@pytest.mark.parametrize("font", range(len(FONTS)))
def test_round_digits_and_letters_are_no_rings(font: int) -> None:
    image = Image.new("L", (700, HEIGHT))
    font_of = ImageFont.truetype(str(FONTS[font]), 60)
    ImageDraw.Draw(image).text((LEFT, TOP), "0 6 8 9 O D a e g B o", 255, font_of)
    digits = (np.asarray(image) / 255).astype(np.float32)
    assert np.array_equal(without_rings(digits.copy(), 0.2)[0] > 0, digits > 0.2)


@pytest.mark.parametrize(("width", "confidence"), [(60, 0.9), (40, 1.0)])
def test_a_zero_alone_that_may_be_a_circle_is_doubted(width: int, confidence: float) -> None:
    zero = Item("0", np.array([0, 0, 60, width]), candidate=0)
    assert [run.confidence for run in split([zero], np.empty((0, 4), np.intp), 60)] == [confidence]


def test_a_circle_alone_stays() -> None:
    lines = ring((LEFT, TOP, LEFT + 70, TOP + 70))
    assert np.array_equal(without_rings(lines.copy(), 0.2)[0] > 0, lines > 0.2)
