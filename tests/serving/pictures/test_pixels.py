"""Pictures in a classifier's size: the same pixels as Pillow's own steps, which trainings use."""

import io

import numpy as np
import pytest
from PIL import Image

from serving.pictures.decoder import read_pixels
from tests.support.pictures import encoded

BILINEAR = Image.Resampling.BILINEAR


@pytest.fixture
def photo():
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    return Image.fromarray(noise).resize((150, 100), Image.Resampling.BICUBIC)


def read(picture, size=(48, 48), channels=3, resize="stretch", kind="PNG", **options):
    is_inverted = bool(options.pop("invert", False))
    file = io.BytesIO(encoded(picture, kind, **options))
    return read_pixels(file, size, channels, resize, invert=is_inverted)


def test_stretched_colours_are_pillows(photo):
    expected = np.asarray(photo.resize((32, 48), BILINEAR))
    np.testing.assert_array_equal(read(photo, (48, 32)), expected)


def test_grey_is_luminance(photo):
    expected = np.asarray(photo.convert("L").resize((32, 48), BILINEAR))[..., None]
    np.testing.assert_array_equal(read(photo, (48, 32), 1), expected)


def test_padded_has_black_bars_and_cropped_its_middle(photo):
    padded = read(photo, resize="pad")
    np.testing.assert_array_equal(padded[8:40], np.asarray(photo.resize((48, 32), BILINEAR)))
    assert not padded[:8].any()
    assert not padded[40:].any()
    middle = photo.resize((48, 48), BILINEAR, box=(25, 0, 125, 100))
    np.testing.assert_array_equal(read(photo, resize="crop"), np.asarray(middle))


@pytest.mark.parametrize("channels", [1, 3])
def test_only_light_pictures_are_inverted(channels):
    light, dark = Image.new("L", (20, 20), 250), Image.new("L", (20, 20), 5)
    for paper in (light, dark):
        assert (read(paper, channels=channels, invert=True) == 5).all()
    bars = read(light.resize((40, 20)), resize="pad", invert=True)
    assert bars.max() == 5  # inverted before the bars, which stay paper


def test_what_is_transparent_is_white():
    picture = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    assert (read(picture) == 255).all()
    assert (read(picture.convert("P")) == 255).all()


def test_camera_orientation_is_applied(photo):
    exif = Image.Exif()
    exif[0x0112] = 6
    expected = np.asarray(photo.transpose(Image.Transpose.ROTATE_270).resize((48, 48), BILINEAR))
    np.testing.assert_array_equal(read(photo, exif=exif), expected)


def test_16_bits_are_scaled():
    levels = np.full((30, 30), 32768, np.uint16)
    levels[0, 0] = 65535
    read_levels = read(Image.fromarray(levels), (30, 30), 3)
    assert (read_levels[5] == 128).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr"])
def test_any_mode_has_the_channels_asked_for(mode, photo):
    for channels in (1, 3):
        pixels = read(photo.convert(mode), channels=channels, kind="TIFF")
        assert pixels.shape == (48, 48, channels)
