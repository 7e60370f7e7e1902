"""Which parts of a picture are the digit, another digit, a line or a speck: each rule's limits."""

import numpy as np
import pytest

from digit_classifier import normalizer
from digit_classifier.normalizer import (
    digit_like,
    fills_picture,
    find_components,
    grouped,
    is_made_as_mnist,
    only_digit,
    smallest_gap,
    with_neighbours,
    without_frames,
)
from serving.errors import InvalidRequest


def drawn(shape, *boxes):
    """Ink of filled boxes: top, left, bottom, right, and the level, 200 if none is given."""
    ink = np.zeros(shape, np.float32)
    for top, left, bottom, right, *level in boxes:
        ink[top:bottom, left:right] = level[0] if level else 200
    return ink


def place_of(components, box):
    """The number of the component of a box."""
    (found,) = np.flatnonzero((components.boxes == box[:4]).all(axis=1))
    return int(found)


MAIN = 50, 100, 150, 150
"""A digit 100 high, away from the edges of 400 x 400."""
AT_LEFT = 50, 0, 150, 50
"""One that is cut off."""


@pytest.mark.parametrize(
    ("shape", "main", "other", "is_like"),
    [
        # About as high: half to twice.
        ((400, 400), MAIN, (160, 200, 210, 240), True),
        ((400, 400), MAIN, (160, 200, 209, 240), False),
        ((400, 400), MAIN, (160, 200, 360, 280), True),
        ((400, 400), MAIN, (160, 200, 361, 280), False),
        # At most twice as wide as high.
        ((400, 400), MAIN, (160, 200, 220, 320), True),
        ((400, 400), MAIN, (160, 200, 220, 321), False),
        # An eighth of its pixels, which are 5000.
        ((400, 400), MAIN, (160, 200, 210, 213), True),
        ((400, 400), MAIN, (160, 200, 210, 212), False),
        # Half as strong.
        ((400, 400), MAIN, (160, 200, 260, 250, 100), True),
        ((400, 400), MAIN, (160, 200, 260, 250, 99), False),
        # A line from edge to edge, higher than the digit by 30 % and narrow.
        ((130, 400), (20, 0, 120, 50), (0, 200, 130, 230), True),
        ((131, 400), (20, 0, 120, 50), (0, 200, 131, 230), False),
        ((131, 400), (20, 0, 120, 50), (0, 200, 131, 240), True),
        ((140, 400), (20, 0, 120, 50), (1, 200, 140, 230), True),
        # A part of a frame: narrow, in a corner, or beyond the digit above and below by a tenth.
        ((400, 400), MAIN, (50, 0, 150, 30), True),
        ((400, 400), MAIN, (50, 0, 150, 29), False),
        ((400, 400), AT_LEFT, (50, 371, 150, 400), True),
        ((400, 400), MAIN, (0, 0, 100, 50), False),
        ((400, 400), MAIN, (0, 1, 100, 51), True),
        ((400, 400), MAIN, (39, 0, 161, 40), False),
        ((400, 400), MAIN, (40, 0, 161, 40), True),
        ((400, 400), MAIN, (39, 0, 160, 40), True),
        ((400, 400), MAIN, (39, 1, 161, 41), True),
        ((400, 400), AT_LEFT, (39, 360, 161, 400), True),
    ],
)
def test_part_that_looks_like_a_digit(shape, main, other, is_like):
    ink = drawn(shape, main, other)
    components = find_components(ink > 0)
    own, another = place_of(components, main), place_of(components, other)
    found = digit_like(ink, components, own).tolist()
    assert found == sorted([own, another] if is_like else [own])


@pytest.mark.parametrize(
    ("boxes", "gap"),
    [
        ([(50, 100, 150, 150), (50, 155, 150, 205)], 5),
        ([(50, 100, 150, 150), (50, 156, 150, 206)], 6),
        ([(50, 100, 100, 150), (114, 100, 164, 150)], 14),
        ([(50, 100, 100, 150), (115, 100, 165, 150)], 15),
        ([(50, 100, 100, 150), (114, 125, 164, 175)], 14),
    ],
)
def test_parts_are_one_digit_if_the_gap_is_small(boxes, gap):
    """A 17th of the height beside one another, a third above one another."""
    components = find_components(drawn((400, 400), *boxes) > 0)
    is_one = gap in (5, 14) and boxes[1][1] != 125
    assert (grouped(components, np.array([0, 1])).max() == 0) == is_one
    is_stacked = boxes[1][1] == 100
    assert smallest_gap(components, 0, 1) == pytest.approx(
        15.0 if is_stacked else 0.06 * max(components.heights)
    )


def test_parts_of_parts_are_one_digit():
    boxes = [(50, 100 + 54 * at, 150, 150 + 54 * at) for at in range(3)]
    components = find_components(drawn((400, 400), *boxes) > 0)
    assert grouped(components, np.array([0, 1, 2])).tolist() == [0, 0, 0]
    assert grouped(components, np.array([0, 2])).tolist() == [0, 1]


def picture_of(*boxes):
    ink = drawn((400, 400), *boxes)
    return ink, find_components(ink > 0)


@pytest.mark.parametrize(("width", "is_digit"), [(200, True), (201, False)])
def test_digit_is_twice_as_wide_as_high_at_most(width, is_digit):
    ink, components = picture_of((50, 100, 150, 100 + width))
    if is_digit:
        assert only_digit(ink, components, 0).sum() == 100 * width
        return
    with pytest.raises(InvalidRequest) as caught:
        only_digit(ink, components, 0)
    assert str(caught.value) == (
        "expected one digit, found something 2.0 times as wide as high: several digits that "
        "touch, or no digit"
    )


def test_several_digits_are_counted_and_placed_from_the_left():
    ink, components = picture_of(
        (200, 300, 300, 340), (100, 20, 200, 60), (100, 62, 200, 100)
    )  # fmt: skip
    with pytest.raises(InvalidRequest) as caught:
        only_digit(ink, components, place_of(components, (200, 300, 300, 340)))
    assert str(caught.value) == (
        "expected one digit, found 2, at 15% 38%, 80% 62% of the width and height"
    )


@pytest.mark.parametrize(
    ("number", "words"), [(8, "found 8, at 3% 12%, "), (9, "found 9 that look like one")]
)
def test_more_than_eight_are_only_counted(number, words):
    boxes = [(20, 5 + 40 * at, 80, 20 + 40 * at) for at in range(number)]
    ink, components = picture_of(*boxes)
    with pytest.raises(InvalidRequest, match=f"^expected one digit, {words}"):
        only_digit(ink, components, 0)


@pytest.mark.parametrize(
    ("other", "is_near"),
    [
        ((100, 151, 110, 161), True),
        ((100, 163, 110, 173), False),  # it is 13 pixels away, an eighth of the height and one
        ((100, 162, 110, 172), True),
        ((100, 155, 109, 165), False),  # 90 of 5000 pixels: less than a 50th
    ],
)
def test_part_beside_a_digit_is_of_it_if_it_is_close_and_large(other, is_near):
    main = 50, 100, 150, 150
    _, components = picture_of(main, other)
    digit = components.labels == 1 + place_of(components, main)
    found = with_neighbours(digit, components)
    height, width = other[2] - other[0], other[3] - other[1]
    assert found.sum() == 5000 + is_near * height * width


def test_part_from_outside_the_picture_is_of_no_digit_inside():
    for main, is_near in (((1, 100, 101, 150), False), ((0, 100, 101, 150), True)):
        _, components = picture_of(main, (0, 155, 40, 165))
        digit = components.labels == 1 + place_of(components, main)
        found = with_neighbours(digit, components)
        assert found.sum() == digit.sum() + is_near * 400


@pytest.mark.parametrize(
    ("size", "least", "is_kept"), [(10, 0, True), (9, 0, False), (9, 9, True), (9, 10, False)]
)
def test_speck_has_less_than_a_200th_of_the_largest(size, least, is_kept):
    mask = drawn((100, 100), (0, 0, 40, 50), (60, 60, 61, 60 + size)) > 0
    found = find_components(mask, least)
    assert found.sizes.tolist() == [2000, *[size] * is_kept]
    assert int(found.labels.max()) == 1 + is_kept


def test_largest_hundred_are_kept():
    boxes = [(3 * (at // 20), 3 * (at % 20), 3 * (at // 20) + 2, 3 * (at % 20) + 2)
             for at in range(101)]  # fmt: skip
    boxes[50] = (*boxes[50][:3], boxes[50][1] + 1)
    found = find_components(drawn((20, 70), *boxes) > 0)
    assert found.sizes.tolist() == [4] * 100
    assert len(find_components(drawn((20, 70), *boxes) > 0, most=7).sizes) == 7


def frame_of(box, width=2):
    top, left, bottom, right = box
    return [(top, left, top + width, right), (bottom - width, left, bottom, right),
            (top, left, bottom, left + width), (top, right - width, bottom, right)]  # fmt: skip


@pytest.mark.parametrize(
    ("frame", "inside", "is_frame"),
    [
        ((50, 50, 250, 250), (100, 120, 160, 160), True),  # 60 of 200: three tenths
        ((50, 50, 250, 250), (100, 120, 159, 160), False),
        ((50, 50, 250, 190), (100, 100, 170, 130), True),  # narrower than 0.8: a half
        ((50, 50, 250, 190), (100, 100, 169, 130), False),
        ((0, 50, 250, 250), (100, 120, 200, 160), True),  # partly outside the picture
    ],
)
def test_frame_is_around_a_part_of_some_size(frame, inside, is_frame):
    ink = drawn((400, 400), *frame_of(frame), inside)
    components = find_components(ink > 0, least=1)
    kept = without_frames(components)
    assert len(components.sizes) == 2
    assert len(kept.sizes) == 2 - is_frame
    assert [*inside] in kept.boxes.tolist()


@pytest.mark.parametrize(
    ("boxes", "is_full"),
    [
        ([(10, 5, 90, 40), (10, 60, 90, 95)], True),
        ([(10, 5, 70, 40), (10, 60, 90, 95)], False),  # 60 of 100, not more
        ([(10, 5, 71, 40), (10, 60, 90, 95)], True),
        ([(10, 5, 90, 40)], False),
        ([(10, 0, 80, 100), (85, 60, 99, 95)], False),
        ([(10, 5, 90, 40), (10, 60, 90, 95), (92, 5, 99, 93)], True),  # a tenth, not more
        ([(10, 5, 90, 40), (10, 60, 90, 95), (92, 5, 99, 94)], False),
    ],
)
def test_row_of_digits_that_fills_the_picture(boxes, is_full):
    assert fills_picture(find_components(drawn((100, 100), *boxes) > 0)) is is_full


@pytest.mark.parametrize(
    ("height", "shift", "is_made"),
    [
        (18, 0, False),
        (19, 0, True),
        (20, 0, True),
        (21, 0, False),
        (20, 1, True),
        (20, 2, False),
        (20, -1, False),
    ],
)
def test_image_of_mnist_is_20_high_and_centred(height, shift, is_made):
    top = 14 - height // 2 + shift
    image = np.zeros((28, 28), np.float32)
    image[top : top + height, 10:18] = 255
    assert is_made_as_mnist(image) is is_made
    assert not is_made_as_mnist(np.zeros((28, 28), np.float32))


def test_blank_is_less_than_16_levels_of_ink():
    grey = np.full((40, 40), 100, np.float32)
    grey[15:25, 18:22] = 84
    with pytest.raises(InvalidRequest, match="the picture is blank"):
        normalizer.to_images(np.full((40, 40), 100, np.float32))
    faint = grey.copy()
    faint[15:25, 18:22] = 85
    with pytest.raises(InvalidRequest, match="the picture is blank"):
        normalizer.to_images(faint)
    assert normalizer.to_images(grey).shape == (1, 28, 28)


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, [400, 2]), ({"least": 1}, [400, 2, 1]), ({"least": 3}, [400]),
        ({"least": 1, "most": 2}, [400, 2]),
    ],
)  # fmt: skip
def test_specks_have_less_than_a_200th_of_the_largest_part(options, sizes):
    mask = drawn((60, 60), (0, 0, 20, 20), (30, 30, 31, 32), (40, 40, 41, 41)) > 0
    assert find_components(mask, **options).sizes.tolist() == sizes


def test_hundred_parts_are_looked_at():
    boxes = [(4 * (at // 12), 4 * (at % 12), 4 * (at // 12) + 2, 4 * (at % 12) + 2)
             for at in range(101)]  # fmt: skip
    assert len(find_components(drawn((60, 60), *boxes) > 0).sizes) == 100


def test_picture_without_ink_has_no_parts():
    found = find_components(np.zeros((9, 9), np.bool_))
    assert (len(found.sizes), found.boxes.shape) == (0, (0, 4))
    assert len(without_frames(found).sizes) == 0
