"""Reads a picture file as levels: any format, size, colours, alpha and orientation.

This module imports Pillow; `reader.from_picture` imports it and reports a missing package.
"""

import io
import math
import sys
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from serving.errors import InvalidRequest, TooLarge
from serving.system.files import open_regular
from serving.system.usage import free_bytes
from serving.tensors import Images

MAX_PIXELS = 80_000_000
"""The largest picture that is decoded: a PNG of this size takes some 700 MB meanwhile."""
MAX_BYTES = 256 * 2**20
"""The largest file that is read."""
MAX_READS = 50_000
"""The most pieces of a file that Pillow reads: millions of chunks would take seconds."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF")
"""The formats to read if this Pillow can; HEIF (HEIC) with pillow-heif."""

_Made = TypeVar("_Made")
_PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2}
"""Bytes a pixel of those of Pillow's modes that have other than four."""
MAX_SIDE = 256
"""Pictures that show one object are shrunk to this many pixels a side."""
MAX_PAGE_SIDE = 1024
"""The same for pages of several."""
_RESIZE: dict[str, Callable[..., Image.Image]] = {
    "stretch": Image.Image.resize, "pad": ImageOps.pad, "crop": ImageOps.fit,
}  # fmt: skip
_ORIENTATION, _ON_ITS_SIDE = 0x0112, range(5, 9)
"""The tag of EXIF, and its values for a picture that is turned by 90 degrees."""
Grey = npt.NDArray[np.float32]
_Doubles = npt.NDArray[np.float64]


def read(source: str | Path | BinaryIO, make: Callable[[Image.Image], _Made]) -> _Made:
    """Open a picture and make something of it.

    Raises:
        InvalidRequest: not a readable picture, or more than MAX_PIXELS or MAX_BYTES.
    """
    return _made(source, partial(_opened, make=make))


def read_bytes(source: str | Path | BinaryIO) -> bytes:
    """Read a file whole.

    Raises:
        InvalidRequest: it can't be read, or has more than MAX_BYTES.
    """
    return _made(source, lambda file: file.read())


def _made(source: str | Path | BinaryIO, make: Callable[[BinaryIO], _Made]) -> _Made:
    try:
        if isinstance(source, str | Path):
            with open_regular(Path(source), sys.maxsize) as file:  # a FIFO would never end
                return make(_seekable(file))
        return make(_seekable(source))
    except InvalidRequest:
        raise
    except UnidentifiedImageError as err:
        raise InvalidRequest(f"expected a picture ({', '.join(formats())})") from err
    except Image.DecompressionBombError as err:
        raise TooLarge(f"expected at most {MAX_PIXELS} pixels: {_line(err)}") from err
    except MemoryError as err:
        raise TooLarge("it takes too much memory") from err
    except OSError as err:
        raise InvalidRequest(f"cannot be read: {err.strerror or _line(err)}") from err
    except Exception as err:  # decoders raise anything, from TypeError to struct.error
        raise InvalidRequest(f"damaged picture: {_line(err)}") from err


@cache
def formats() -> tuple[str, ...]:
    """List the FORMATS that can be read here."""
    if find_spec("pillow_heif"):  # by name: no extra installs it
        import_module("pillow_heif").register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _line(err: Exception) -> str:
    text = str(err) or type(err).__name__
    return "".join(c if c.isprintable() else " " for c in text)[:200]


def _seekable(file: BinaryIO) -> BinaryIO:
    """Read a pipe to its end; refuse one that is longer than a picture may be."""
    if file.seekable():
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
    else:
        content = file.read(MAX_BYTES + 1)
        file, size = io.BytesIO(content), len(content)
    if size > MAX_BYTES:
        raise TooLarge(f"expected at most {MAX_BYTES} bytes")
    return file


class _Bounded:
    """A file that can be read in at most MAX_READS pieces."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = MAX_READS

    def read(self, size: int = -1) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise TooLarge("expected a picture in fewer chunks")
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _opened(file: BinaryIO, make: Callable[[Image.Image], _Made]) -> _Made:
    bounded: Any = _Bounded(file)
    with Image.open(bounded, formats=formats()) as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise TooLarge(
                f"expected at most {MAX_PIXELS} pixels, got {picture.width} x {picture.height}"
            )
        return make(picture)


def require_memory(picture: Image.Image) -> None:
    """Check, before it is decoded, that a picture will fit in what its process may allocate."""
    needed = picture.width * picture.height * _PIXEL_BYTES.get(picture.mode, 4)
    if needed > free_bytes():
        raise TooLarge(f"its {picture.width} x {picture.height} pixels take too much memory")


class Page(NamedTuple):
    """A decoded picture."""

    grey: Grey
    """(H, W) float32, 0 to 255; the ink may be dark or light."""
    width: int
    """Size of the picture as it was, in pixels, the camera's orientation applied."""
    height: int


def read_page(source: str | Path | BinaryIO, max_side: int = MAX_PAGE_SIDE) -> Page:
    """Read a picture, or the first of an animation, as one level a pixel.

    Args:
        source: a path, or an open binary file.
        max_side: larger pictures are shrunk to this many pixels a side.

    Returns:
        Its levels and its original size.

    Raises:
        InvalidRequest: not a readable picture, or more than MAX_PIXELS or MAX_BYTES.
    """
    return read(source, partial(_page, max_side=max_side))


def read_pixels(
    source: str | Path | BinaryIO,
    size: tuple[int, int],
    channels: int,
    resize: str,
    *,
    invert: bool,
) -> Images:
    """Read a picture, or the first of an animation, in a fixed size; bilinear, antialiased.

    Args:
        source: a path, or an open binary file.
        size: height and width.
        channels: 1 for grey levels, 3 for red, green, blue.
        resize: "stretch", "pad" with black, or "crop" to the middle.
        invert: whether pictures that are mostly light are inverted.

    Returns:
        (height, width, channels) uint8.

    Raises:
        InvalidRequest: not a readable picture, or more than MAX_PIXELS or MAX_BYTES.
    """

    def pixels(picture: Image.Image) -> Images:
        require_memory(picture)
        levels = _in_mode(picture, "L" if channels == 1 else "RGB")
        if invert and np.asarray(levels.convert("L")).mean() > 127:
            levels = ImageOps.invert(levels)
        sized = _RESIZE[resize](levels, size[::-1], Image.Resampling.BILINEAR)
        return np.asarray(sized).reshape(*size, channels)

    return read(source, pixels)


def read_colours(source: str | Path | BinaryIO) -> Images:
    """Read a picture, or the first of an animation, in its own size, upright.

    Args:
        source: a path, or an open binary file.

    Returns:
        (height, width, 3) uint8: red, green, blue; what is transparent is white.

    Raises:
        InvalidRequest: not a readable picture, or more than MAX_PIXELS or MAX_BYTES.
    """

    def pixels(picture: Image.Image) -> Images:
        require_memory(picture)
        return np.array(_in_mode(picture, "RGB", max(picture.size)))

    return read(source, pixels)


def _in_mode(picture: Image.Image, mode: str, max_side: int = MAX_SIDE * 2) -> Image.Image:
    """Convert to grey levels ("L") or colours ("RGB"); what is transparent becomes white.

    Args:
        picture: one of more than 8 bits a level may lose rows and columns, if it is far larger than
            `max_side`.
        mode: the wanted one.
        max_side: pixels a side that suffice.
    """
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode[0] in "IF":  # more than 8 bits: Pillow's own conversion would clip at 255
        picture = Image.fromarray(_in_bytes(np.asarray(_floats(picture, max_side))))
    if picture.has_transparency_data:
        inked, picture = picture.convert("RGBA"), Image.new("RGB", picture.size, "white")
        picture.paste(inked, mask=inked)
    return picture if picture.mode == mode else picture.convert(mode)  # without a copy


def _page(picture: Image.Image, max_side: int) -> Page:
    size = picture.size
    picture.draft("RGB", (max_side, max_side))  # JPEG: decodes fewer pixels from the start
    require_memory(picture)
    if picture.getexif().get(_ORIENTATION, 1) in _ON_ITS_SIDE:
        size = size[::-1]
    return Page(_grey_of(picture, max_side), *size)


def _grey_of(picture: Image.Image, max_side: int) -> Grey:
    if picture.mode[0] in "IF":  # more than 8 bits: Pillow's own conversion would clip at 255
        return _levels(_upright(_floats(picture, max_side), max_side))
    if picture.mode == "LAB":  # _grey takes any three channels; Pillow can't convert LAB
        colours = Image.merge("RGB", picture.split()).convert("RGBA")
        return _grey(_opaque(_upright(colours, max_side)))
    if picture.mode in ("1", "L") and "transparency" not in picture.info:
        return np.asarray(_upright(picture.convert("L"), max_side), np.float32)
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return _grey(np.asarray(_upright(picture, max_side), np.float32))
    return _grey(_opaque(_upright(picture.convert("RGBA"), max_side)))


def _upright(picture: Image.Image, max_side: int) -> Image.Image:
    """Shrink to at most `max_side` by area averaging, and apply the camera's orientation."""
    picture.thumbnail((max_side, max_side), Image.Resampling.BOX)
    if picture.getexif().get(_ORIENTATION, 1) == 1:  # else Pillow would copy it
        return picture
    return ImageOps.exif_transpose(picture)


def _floats(picture: Image.Image, max_side: int) -> Image.Image:
    """Convert 16 or 32 bits a pixel to mode F; invalid levels become the median."""
    step = max(1, max(picture.size) // (4 * max_side))  # floats of all pixels would take 1 GB
    levels = np.asarray(picture)[::step, ::step].astype(np.float32)
    is_level = np.abs(levels) < 1e30  # not NaN, infinite, or so large that sums overflow
    if not is_level.all():
        levels[~is_level] = np.median(levels[is_level]) if is_level.any() else 0
    floats = Image.fromarray(levels)
    floats.info = picture.info  # has the orientation
    return floats


def _levels(picture: Image.Image) -> Grey:
    """Scale to 0 to 255 by the used bits: cameras store 10 or 12 bits in 16."""
    levels = np.asarray(picture, np.float64)
    grey: Grey = _scale(levels)(levels).astype(np.float32)
    return grey


def _in_bytes(levels: Grey) -> npt.NDArray[np.uint8]:
    """Scale to whole levels of 0 to 255, as `_levels` does, without a second array of floats."""
    scale = _scale(levels)
    scaled = np.empty(levels.shape, np.uint8)
    for row, line in enumerate(levels):
        scaled[row] = np.rint(scale(line.astype(np.float64)))
    return scaled


def _scale(levels: npt.NDArray[Any]) -> Callable[[_Doubles], _Doubles]:
    """Return what scales some of these levels to 0 to 255, by the bits that they all use."""
    low = min(0.0, float(levels.min()))
    top = float(levels.max()) - low
    full = 1.0 if top <= 1 else 2.0 ** max(8, math.ceil(math.log2(top + 1))) - 1
    return lambda some: (some - low) * (255 / full)


def _opaque(picture: Image.Image) -> npt.NDArray[np.float32]:
    """Put RGBA on white or black, whichever contrasts with its visible part: (H, W, 3)."""
    levels = np.asarray(picture, np.float32)
    colours, alpha = levels[..., :3], levels[..., 3:] / 255
    if alpha.min() == 1:
        return colours
    is_light = (colours * alpha).sum() > 127 * 3 * alpha.sum()
    paper = np.float32(0 if is_light else 255)
    return (colours * alpha + paper * (1 - alpha)).astype(np.float32)


def _grey(colours: npt.NDArray[np.float32]) -> Grey:
    """Project (H, W, 3) on the direction in which the colours differ most: (H, W).

    Yellow on white, or red on green, has almost no contrast in luminance.
    """
    flat = colours.reshape(-1, 3)
    # By products, in a third of the time of np.cov and np.mean.
    apart = flat - np.ones(len(flat), np.float32) @ flat / len(flat)
    axis = np.linalg.eigh(apart.T @ apart).eigenvectors[:, -1]
    grey: Grey = np.abs(flat @ (axis / np.abs(axis).sum()).astype(np.float32))
    return grey.reshape(colours.shape[:2])
