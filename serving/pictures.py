"""Read a PNG or JPEG as grey levels, whatever its size, colours, alpha or orientation.

This module needs Pillow at import; images.from_picture is the way in, and says so if it is missing.
"""

from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from serving.errors import InvalidRequest

MAX_PIXELS = 80_000_000
"""The largest picture decoded: a PNG of this size takes some 700 MB for a moment."""
MAX_SIDE = 256
"""Pictures are shrunk to this many pixels a side: a digit needs twenty of them."""

Grey = npt.NDArray[np.float32]


def read_grey(source: str | Path | BinaryIO) -> Grey:
    """Read a picture as one level a pixel, at most MAX_SIDE a side.

    Args:
        source: a path, or an open binary file.

    Returns:
        (H, W) float32, 0 to 255. Which end is the ink is not known yet.

    Raises:
        InvalidRequest: not a readable PNG or JPEG, or more than MAX_PIXELS.
    """
    try:
        with Image.open(source, formats=("PNG", "JPEG")) as picture:
            _check_size(picture)
            return _grey(_opaque(_shrunk(picture)))
    except (UnidentifiedImageError, SyntaxError) as err:  # SyntaxError: a damaged PNG header
        raise InvalidRequest("not a PNG or JPEG picture") from err
    except Image.DecompressionBombError as err:
        raise InvalidRequest(f"expected at most {MAX_PIXELS} pixels: {err}") from err
    except OSError as err:
        raise InvalidRequest(f"cannot be read: {err.strerror or err}") from err


def _check_size(picture: Image.Image) -> None:
    if picture.width * picture.height > MAX_PIXELS:
        raise InvalidRequest(
            f"expected at most {MAX_PIXELS} pixels, got {picture.width} x {picture.height}"
        )


def _shrunk(picture: Image.Image) -> Image.Image:
    """Decode as RGBA, upright, at most MAX_SIDE a side by area averaging."""
    picture.draft("RGB", (MAX_SIDE, MAX_SIDE))  # JPEG: decode fewer pixels to begin with
    if picture.mode.startswith("I"):  # 16 bits: Pillow's own conversion clips at 255
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    picture = ImageOps.exif_transpose(picture.convert("RGBA"))
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BOX)
    return picture


def _opaque(picture: Image.Image) -> npt.NDArray[np.float32]:
    """Lay RGBA on the white or black that its visible part stands out from: (H, W, 3)."""
    levels = np.asarray(picture, np.float32)
    colours, alpha = levels[..., :3], levels[..., 3:] / 255
    is_light = (colours * alpha).sum() > 127 * 3 * alpha.sum()
    paper = np.float32(0 if is_light else 255)
    return (colours * alpha + paper * (1 - alpha)).astype(np.float32)


def _grey(colours: npt.NDArray[np.float32]) -> Grey:
    """Project (H, W, 3) on the direction in which the colours differ most: (H, W).

    Yellow on white or red on green has next to no contrast in plain luminance.
    """
    centred = colours.reshape(-1, 3) - colours.mean((0, 1))
    axis = np.linalg.eigh(centred.T @ centred).eigenvectors[:, -1]
    grey: Grey = np.abs(colours @ (axis / np.abs(axis).sum()))
    return grey
