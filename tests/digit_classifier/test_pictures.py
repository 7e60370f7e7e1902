"""Pictures of any kind become images as MNIST makes its own."""

import contextlib
import io
import sys

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from digit_classifier.normalizer import bounding_box
from digit_classifier.pictures import from_picture
from serving.errors import ConfigurationError, InvalidRequest
from serving.pictures import decoder
from tests.support.pictures import encoded
from tests.support.pictures.drawing import (
    FONTS,
    POPULATIONS,
    accuracy,
    draw,
    font_glyph,
    framed,
    row,
    stroke_glyph,
)
from tests.support.pictures.random_pictures import read_all

Levels = npt.NDArray[np.uint8]

SAME = 12.0
"""Mean difference of a pixel between two readings of one digit: resampling, no more."""

MOVED = 25.0
"""The same where a reading may lie a pixel beside the other; of two digits it is 40 and more."""


def saved(picture, kind="PNG", **options):
    return io.BytesIO(encoded(picture, kind, **options))


def read(picture, kind="PNG", **options):
    return from_picture(saved(picture, kind, **options)).reshape(28, 28).astype(np.float32)


def is_refused_as_several(ink):
    try:
        from_picture(saved(Image.fromarray(255 - ink)))
    except InvalidRequest as err:
        return "expected one digit, found" in str(err)
    return False


@pytest.fixture(scope="module")
def glyph():
    """A 5 of 120 pixels, ink 255."""
    return np.asarray(font_glyph(5, 120, np.random.default_rng(3)))


@pytest.fixture(scope="module")
def expected(glyph):
    return read(Image.fromarray(255 - glyph))


def test_image_is_sized_and_centred_as_mnists(expected):
    rows, columns = np.flatnonzero(expected.any(1)), np.flatnonzero(expected.any(0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    for axis in (0, 1):
        centre = (np.indices(expected.shape)[axis] * expected).sum() / expected.sum()
        assert abs(centre - 14) <= 1
    assert expected.max() == 255
    assert expected[0, 0] == 0


def test_kind_of_picture_makes_no_difference(glyph, expected):
    dark_on_light = Image.fromarray(255 - glyph)
    alpha = Image.fromarray(glyph)
    black, white = (Image.new("RGB", alpha.size, colour) for colour in ("black", "white"))
    for ink in (black, white):
        ink.putalpha(alpha)  # the digit is in the alpha channel alone
    pictures = {
        "inverted": read(Image.fromarray(glyph)),
        "colour": read(Image.merge("RGB", [dark_on_light] * 3)),
        "jpeg": read(dark_on_light, "JPEG", quality=90),
        "cmyk": read(Image.merge("RGB", [dark_on_light] * 3).convert("CMYK"), "JPEG", quality=90),
        "palette": read(dark_on_light.convert("P")),
        "16 bits": read(Image.fromarray((255 - glyph).astype(np.uint16) * 257)),
        "black on nothing": read(black),
        "white on nothing": read(white),
        "larger": read(dark_on_light.resize((700, 700 * glyph.shape[0] // glyph.shape[1]))),
        "elsewhere": read(Image.fromarray(255 - np.pad(glyph, ((0, 200), (300, 0))))),
    }
    for name, image in pictures.items():
        assert np.abs(image - expected).mean() < SAME, name


def test_orientation_of_a_camera_is_followed(glyph, expected):
    turned = Image.fromarray(255 - glyph).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    assert np.abs(read(turned, "JPEG", exif=exif, quality=95) - expected).mean() < SAME


def test_specks_are_left_out(glyph, expected):
    speckled = np.pad(glyph, 100)
    speckled[5:8, 5:8] = speckled[-9:-6, 20:23] = 255
    assert np.abs(read(Image.fromarray(255 - speckled)) - expected).mean() < SAME


@pytest.mark.parametrize("height", [12, 60])
def test_digit_may_touch_the_edges(height):
    differences = []
    for digit in range(10):
        ink = np.asarray(font_glyph(digit, height, np.random.default_rng(8)))
        cut_out = Image.fromarray(255 - ink[bounding_box(ink > 64)])
        differences.append(np.abs(read(cut_out) - read(Image.fromarray(255 - ink))).mean())
    assert np.mean(np.array(differences) < MOVED) >= 0.9


def test_mnist_digit_saved_as_a_picture_stays_itself(images, classifier):
    pictures = [saved(Image.fromarray(image.reshape(28, 28))) for image in images[:200]]
    read_back = np.concatenate([from_picture(picture) for picture in pictures])
    answers, originals = classifier.classify(read_back), classifier.classify(images[:200])
    assert (answers.digits == originals.digits).mean() >= 0.98


@pytest.mark.parametrize("levels", [0, 128, 255])
def test_blank_page_is_refused(levels):
    with pytest.raises(InvalidRequest, match="blank"):
        from_picture(saved(Image.new("L", (100, 80), levels)))


def test_what_is_no_picture_is_refused(tmp_path, glyph):
    whole = saved(Image.fromarray(glyph)).getvalue()
    for content in (b"", b"hello", whole[:100], b"GIF89a" + bytes(100), b"P5 1 1 255 a"):
        with pytest.raises(InvalidRequest):
            from_picture(io.BytesIO(content))
    with pytest.raises(InvalidRequest, match="No such file"):
        from_picture(tmp_path / "missing.png")
    with pytest.raises(InvalidRequest, match="directory"):
        from_picture(tmp_path)


def test_picture_of_too_many_pixels_is_refused_before_it_is_decoded():
    bomb = saved(Image.new("1", (20_000, 5_000)))  # a few kilobytes
    with pytest.raises(InvalidRequest, match="at most 80000000 pixels"):
        from_picture(bomb)


def test_missing_pillow_names_the_extra(monkeypatch, glyph):
    file = saved(Image.fromarray(glyph))
    for name in ("digit_classifier.normalizer", "serving.pictures.decoder"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr("digit_classifier.normalizer", raising=False)
    monkeypatch.delattr("serving.pictures.decoder", raising=False)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(
        ConfigurationError, match=r"Pillow is not installed: pip install '\.\[pictures\]'"
    ):
        from_picture(file)


@pytest.mark.parametrize("kind", ["WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF"])
def test_format_makes_no_difference(kind, glyph, expected):
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow has no {kind}")
    assert np.abs(read(Image.fromarray(255 - glyph), kind) - expected).mean() < SAME


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_grey_of_more_than_8_bits_is_scaled_by_the_bits_in_use(bits, glyph, expected):
    levels = ((255 - glyph) / 255 * (2**bits - 1)).astype(np.uint16)
    for picture, kind in (
        (Image.fromarray(levels), "PNG"),
        (Image.fromarray(levels.astype(">u2")), "TIFF"),
        (Image.fromarray(levels.astype(np.int32)), "TIFF"),
        (Image.fromarray(levels.astype(np.float32) / levels.max()), "TIFF"),
    ):
        assert np.abs(read(picture, kind) - expected).mean() < SAME, picture.mode


def test_levels_that_are_no_numbers_are_passed_over(glyph, expected):
    levels = 1 - glyph.astype(np.float32) / 255
    levels[0, :3] = np.nan, np.inf, -np.inf
    assert np.abs(read(Image.fromarray(levels), "TIFF") - expected).mean() < SAME
    with pytest.raises(InvalidRequest, match="blank"):
        read(Image.fromarray(np.full((9, 9), np.nan, np.float32)), "TIFF")


def test_lab_is_read(glyph, expected):
    neutral = np.full_like(glyph, 128)
    lab = Image.merge("LAB", [Image.fromarray(band) for band in (255 - glyph, neutral, neutral)])
    assert np.abs(read(lab, "TIFF") - expected).mean() < SAME


def test_pipe_is_read_to_its_end(glyph, expected):
    class Pipe(io.BytesIO):
        def seekable(self):
            return False

    pipe = Pipe(saved(Image.fromarray(255 - glyph)).getvalue())
    assert np.abs(from_picture(pipe).reshape(28, 28) - expected).mean() < SAME


def test_huge_file_is_refused_unread(tmp_path):
    path = tmp_path / "huge.webp"
    with path.open("wb") as file:
        file.truncate(2**32)
    with pytest.raises(InvalidRequest, match="at most 268435456 bytes"):
        from_picture(path)


@pytest.mark.parametrize("text", ["42", "10", "94043", "11", "00", "1234567890123"])
@pytest.mark.parametrize("margin", [3, 40])
def test_row_of_digits_is_refused(text, margin):
    for font in FONTS[:4]:
        image = Image.new("L", (60 * len(text) + 100, 200))
        ImageDraw.Draw(image).text((50, 50), text, 255, ImageFont.truetype(str(font), 80))
        box = image.getbbox()
        assert is_refused_as_several(np.pad(np.asarray(image.crop(box)), margin)), font.stem


@pytest.mark.parametrize("gap", [2, 3, 5, 10, 20])
@pytest.mark.parametrize("margin", [0, 4])
def test_row_of_handwriting_is_refused(images, gap, margin):
    rng = np.random.default_rng(gap)
    refused = 0
    for _ in range(20):
        digits = images[rng.choice(len(images), rng.integers(2, 6))].reshape(-1, 28, 28)
        refused += is_refused_as_several(enlarged(np.pad(row(list(digits), gap), margin), 4))
    assert refused >= 18  # MNIST has digits of fragments, and some touch no edge where others do


def test_column_of_digits_is_refused():
    image = Image.new("L", (100, 300))
    pen, font = ImageDraw.Draw(image), ImageFont.truetype(str(FONTS[0]), 80)
    for digit, top in (("4", 20), ("2", 130)):
        pen.text((25, top), digit, 255, font)
    assert is_refused_as_several(np.asarray(image))


def test_message_says_how_many_digits_and_where():
    image = Image.new("L", (200, 100))
    ImageDraw.Draw(image).text((30, 10), "4 2", 255, ImageFont.truetype(str(FONTS[0]), 70))
    with pytest.raises(InvalidRequest, match=r"found 2, at 2\d% \d\d%, 5\d% \d\d% of the width"):
        from_picture(saved(image))


def test_single_handwriting_is_not_refused(images):
    pictures = [np.pad(image.reshape(28, 28), 5) for image in images[:100]]
    refused = sum(is_refused_as_several(enlarged(picture, 4)) for picture in pictures)
    assert refused <= 1  # of 60,000, about one in 1,000 is in pieces, or twice as wide as high


def enlarged(levels, scale):
    height, width = levels.shape
    size = (width * scale, height * scale)
    return np.asarray(Image.fromarray(levels).resize(size, Image.Resampling.BICUBIC))


def test_digit_of_two_strokes_is_one_digit():
    five = Image.new("L", (200, 260))
    pen = ImageDraw.Draw(five)
    pen.line([(60, 40), (150, 36)], 255, 12)  # the bar, apart from the rest
    pen.line([(60, 60), (58, 120), (110, 115), (140, 160), (110, 210), (55, 215)], 255, 12)
    four = Image.new("L", (200, 260))
    pen = ImageDraw.Draw(four)
    pen.line([(70, 40), (50, 140), (120, 140)], 255, 12)
    pen.line([(132, 80), (132, 220)], 255, 12)  # not quite reached
    for digit in (five, four):
        image = read(Image.fromarray(255 - np.asarray(digit)))
        rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
        assert np.ptp(rows) + 1 == 20
        assert np.ptp(columns) + 1 > 8


@pytest.mark.parametrize("shape", ["box", "circle", "partly outside"])
def test_frame_is_not_taken_for_the_digit(shape):
    rng = np.random.default_rng(8)
    same = 0
    for digit in np.resize(np.arange(10), 40):
        glyph = (stroke_glyph if rng.random() < 0.5 else font_glyph)(int(digit), 150, rng)
        alone = read(Image.fromarray(255 - np.asarray(glyph)))
        try:
            image = read(Image.fromarray(255 - np.asarray(framed(glyph, shape, rng))))
        except InvalidRequest:
            continue
        same += bool(np.abs(image - alone).mean() < MOVED)
    assert same >= 38


def test_dot_in_a_zero_is_no_digit_in_a_frame():
    image = Image.new("L", (200, 200))
    mono = next(font for font in FONTS if font.stem == "DejaVuSansMono")
    ImageDraw.Draw(image).text((50, 20), "0", 255, ImageFont.truetype(str(mono), 120))
    assert np.ptp(np.flatnonzero(read(image)[14])) > 8  # both sides of the zero


@given(
    st.integers(1, 40), st.integers(1, 40), st.randoms(use_true_random=False),
    st.sampled_from([2, 3, 256]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_small_picture_is_read_or_refused(height, width, random, levels):
    values = [random.randrange(levels) * 255 // (levels - 1) for _ in range(height * width)]
    with contextlib.suppress(InvalidRequest):
        assert read(Image.fromarray(np.array(values, np.uint8).reshape(height, width))).any()


@given(st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"\xff\xd8\xff"]),
       st.binary(max_size=300))  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_read_or_refused(magic, rest):
    with contextlib.suppress(InvalidRequest):
        from_picture(io.BytesIO(magic + rest))


@pytest.mark.slow
def test_random_pictures_are_read_or_refused():
    outcomes = read_all(range(40))
    assert min(outcomes.values()) > 4  # both happen


@pytest.mark.parametrize("population", POPULATIONS)
def test_drawn_digits_are_recognised(classifier, population):
    # The suite's model has seen 2,000 images; the figures of a full one are in the README.
    for on_paper in (False, True):
        pictures = draw(population, 20, seed=5, on_paper=on_paper)
        assert accuracy(classifier, pictures) >= 0.5


@pytest.mark.parametrize(
    ("kind", "place", "chunk"),
    [
        ("PNG", b"IDAT", b"\0\0\0\3tEXta\0b\xdcI\xa2;"),
        ("JPEG", b"\xff\xdb", b"\xff\xfe\0\4ab"),
        ("GIF", b",\0\0\0\0", b"!\xfe\1a\0"),
    ],
)
def test_picture_in_a_million_chunks_is_refused_early(kind, place, chunk):
    content = encoded(Image.new("L", (60, 60), 255), kind)
    at = content.index(place) - 4 * (kind == "PNG")
    with pytest.raises(InvalidRequest, match="in fewer chunks"):
        decoder.read_page(io.BytesIO(content[:at] + chunk * 1_000_000 + content[at:]))
