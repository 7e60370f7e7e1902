"""Pictures of any kind become images as MNIST makes its own."""

import io
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from serving import Classifier
from serving.errors import ConfigurationError, InvalidRequest
from serving.images import Images, from_picture
from tests.drawing import POPULATIONS, accuracy, draw, font_glyph

Levels = npt.NDArray[np.uint8]

SAME = 12.0
"""Mean difference of a pixel between two readings of one digit: resampling, no more."""


def saved(picture: Image.Image, kind: str = "PNG", **options: object) -> io.BytesIO:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    file.seek(0)
    return file


def read(picture: Image.Image, kind: str = "PNG", **options: object) -> npt.NDArray[np.float32]:
    return from_picture(saved(picture, kind, **options)).reshape(28, 28).astype(np.float32)


@pytest.fixture(scope="module")
def glyph() -> Levels:
    """A 5 of 120 pixels, ink 255."""
    return np.asarray(font_glyph(5, 120, np.random.default_rng(3)))


@pytest.fixture(scope="module")
def expected(glyph: Levels) -> npt.NDArray[np.float32]:
    return read(Image.fromarray(255 - glyph))


def test_image_is_sized_and_centred_as_mnists(expected: npt.NDArray[np.float32]) -> None:
    rows, columns = np.flatnonzero(expected.any(1)), np.flatnonzero(expected.any(0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    for axis in (0, 1):
        centre = (np.indices(expected.shape)[axis] * expected).sum() / expected.sum()
        assert abs(centre - 14) <= 1
    assert expected.max() == 255
    assert expected[0, 0] == 0


def test_kind_of_picture_makes_no_difference(
    glyph: Levels, expected: npt.NDArray[np.float32]
) -> None:
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


def test_orientation_of_a_camera_is_followed(
    glyph: Levels, expected: npt.NDArray[np.float32]
) -> None:
    turned = Image.fromarray(255 - glyph).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    assert np.abs(read(turned, "JPEG", exif=exif, quality=95) - expected).mean() < SAME


def test_specks_are_left_out(glyph: Levels, expected: npt.NDArray[np.float32]) -> None:
    speckled = np.pad(glyph, 100)
    speckled[5:8, 5:8] = speckled[-9:-6, 20:23] = 255
    assert np.abs(read(Image.fromarray(255 - speckled)) - expected).mean() < SAME


def test_mnist_digit_saved_as_a_picture_stays_itself(
    images: Images, classifier: Classifier
) -> None:
    pictures = [saved(Image.fromarray(image.reshape(28, 28))) for image in images[:200]]
    read_back = np.concatenate([from_picture(picture) for picture in pictures])
    answers, originals = classifier.classify(read_back), classifier.classify(images[:200])
    assert (answers.digits == originals.digits).mean() >= 0.98


@pytest.mark.parametrize("levels", [0, 128, 255])
def test_blank_page_is_refused(levels: int) -> None:
    with pytest.raises(InvalidRequest, match="blank"):
        from_picture(saved(Image.new("L", (100, 80), levels)))


def test_what_is_no_picture_is_refused(tmp_path: Path, glyph: Levels) -> None:
    whole = saved(Image.fromarray(glyph)).getvalue()
    for content in (b"", b"hello", whole[:100], b"GIF89a" + bytes(100)):
        with pytest.raises(InvalidRequest):
            from_picture(io.BytesIO(content))
    with pytest.raises(InvalidRequest, match="No such file"):
        from_picture(tmp_path / "missing.png")
    with pytest.raises(InvalidRequest, match="directory"):
        from_picture(tmp_path)


def test_picture_of_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    bomb = saved(Image.new("1", (20_000, 5_000)))  # a few kilobytes
    with pytest.raises(InvalidRequest, match="at most 80000000 pixels"):
        from_picture(bomb)


def test_missing_pillow_names_the_extra(monkeypatch: pytest.MonkeyPatch, glyph: Levels) -> None:
    file = saved(Image.fromarray(glyph))
    for name in ("serving.ink", "serving.pictures"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr("serving.ink", raising=False)
    monkeypatch.delattr("serving.pictures", raising=False)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ConfigurationError, match=r"digit-serving\[pictures\]"):
        from_picture(file)


@pytest.mark.parametrize("population", POPULATIONS)
def test_drawn_digits_are_recognised(classifier: Classifier, population: str) -> None:
    # The suite's model has seen 2,000 images; the figures of a full one are in the README.
    for on_paper in (False, True):
        pictures = draw(population, 20, seed=5, on_paper=on_paper)
        assert accuracy(classifier, pictures) >= 0.5
