"""Random picture files of every format, mode, size and content that from_picture may meet."""

import io
import warnings
from collections import Counter

import numpy as np
from PIL import Image

from digit_classifier.pictures import from_picture
from serving.errors import InvalidRequest

KINDS = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I"),
    "JPEG": ("L", "RGB", "CMYK", "YCbCr"),
    "WEBP": ("L", "RGB", "RGBA", "RGBX"),
    "GIF": ("1", "L", "P", "RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "AVIF": ("L", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB",
             "HSV", "I", "F", "I;16", "I;16B"),
}  # fmt: skip
"""The modes that each format can be saved in; others are converted or skipped."""
SIZES = (1, 2, 3, 5, 8, 28, 64, 200, 256, 257, 1000, 4000)
"""Upper bounds of a side; the area stays below 2 megapixels so that many can be tried."""


def random_picture(rng):
    """Make one file; a fifth of them is cut off or has flipped bytes."""
    Image.init()
    formats = [name for name in KINDS if name in Image.SAVE]
    content = b""
    while not content:
        kind = formats[rng.integers(len(formats))]
        mode = KINDS[kind][rng.integers(len(KINDS[kind]))]
        content = _saved(_content(rng), kind, mode, rng)
    if rng.random() < 0.2:
        damaged = bytearray(content[: rng.integers(1, len(content) + 1)])
        for at in rng.integers(0, len(damaged), rng.integers(0, 20)):
            damaged[at] = rng.integers(256)
        content = bytes(damaged)
    return content


def _content(rng):
    """Draw noise, rectangles, strokes or a ramp: (H, W) levels of 0 to 1."""
    height = int(rng.integers(1, SIZES[rng.integers(len(SIZES))] + 1))
    width = int(rng.integers(1, SIZES[rng.integers(len(SIZES))] + 1))
    width = min(width, 2_000_000 // height)
    levels = np.full((height, width), rng.random())
    match rng.integers(5):
        case 0:
            levels = rng.random((height, width)) ** rng.integers(1, 9)
        case 1:
            levels = np.linspace(0, 1, height * width).reshape(height, width)
        case 2:  # half-filled, striped, dotted
            levels[:: rng.integers(1, 9), : rng.integers(1, width + 1)] = rng.random()
        case _:
            for _ in range(rng.integers(1, 9)):
                y, x = rng.integers(height), rng.integers(width)
                h, w = rng.integers(1, height + 1), rng.integers(1, width + 1)
                levels[y : y + h // 2 + 1, x : x + w // 2 + 1] = rng.random()
    if rng.random() < 0.3:
        levels = np.clip(levels + rng.normal(0, 0.05, levels.shape), 0, 1)
    return levels


def _saved(levels, kind, mode, rng):
    """Save as this format and mode; empty if Pillow cannot."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            picture = _picture(levels, mode, rng)
            frames = [picture] * int(rng.integers(1, 4))
            more = {"save_all": True, "append_images": frames[1:]} if kind != "JPEG" else {}
            is_still = kind in ("BMP", "JPEG") or len(frames) == 1
            picture.save(file, kind, **({} if is_still else more))
        except (OSError, ValueError, KeyError):
            return b""
    return file.getvalue()


def _picture(levels, mode, rng):
    if mode == "F":
        values = (levels * 10.0 ** rng.integers(-3, 39)).astype(np.float32)
        values -= rng.random() * values.max() * rng.integers(2)
        for odd in (np.nan, np.inf, -np.inf):
            values[
                rng.random(values.shape) < rng.choice([0, 0, 0.01, 1], p=[0.4, 0.2, 0.3, 0.1])
            ] = odd
        return Image.fromarray(values)
    if mode == "I":
        return Image.fromarray((levels * 2.0 ** rng.integers(1, 31)).astype(np.int32))
    if mode.startswith("I;16"):
        values = (levels * (2 ** rng.integers(1, 17) - 1)).astype(np.uint16)
        return Image.fromarray(values.astype(">u2") if mode == "I;16B" else values)
    grey = (levels * 255).astype(np.uint8)
    bands = [grey if rng.random() < 0.7 else 255 - grey for _ in range(4)]
    count = len(Image.new(mode, (1, 1)).getbands())
    if mode in ("1", "P", "PA"):
        return Image.fromarray(grey).convert("L").convert(mode)
    return Image.merge(mode, [Image.fromarray(band) for band in bands[:count]])


def read_all(seeds):
    """Read a picture of each seed: an image or InvalidRequest, else AssertionError.

    Returns:
        How many became images, and how many were refused.
    """
    outcomes: Counter[str] = Counter()
    for seed in seeds:
        content = random_picture(np.random.default_rng(seed))
        try:
            image = from_picture(io.BytesIO(content))
        except InvalidRequest as err:
            outcomes["refused" if str(err).isprintable() else "unprintable"] += 1
        except Exception as err:
            raise AssertionError(f"picture {seed}: {err!r}") from err
        else:
            assert image.shape == (1, 784), seed
            assert image.any(), seed
            outcomes["read"] += 1
    assert set(outcomes) <= {"read", "refused"}, outcomes
    return outcomes
