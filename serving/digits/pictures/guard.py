"""Opens a picture file of a stranger within limits: every failure is one of our errors.

This module imports Pillow, like `decoder`.
"""

import io
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from PIL import Image, UnidentifiedImageError

from serving.errors import InvalidRequest, TooLarge
from serving.system.process import free_bytes

MAX_PIXELS = 80_000_000
"""The largest picture that is decoded: a PNG of this size takes some 700 MB meanwhile."""
MAX_BYTES = 256 * 2**20
"""The largest file that is read."""
MAX_READS = 50_000
"""The most pieces of a file that Pillow reads: millions of chunks would take seconds."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF")
"""The formats to read if this Pillow can; HEIF (HEIC) with pillow-heif."""

_Made = TypeVar("_Made")


def read(source: str | Path | BinaryIO, make: Callable[[Image.Image], _Made]) -> _Made:
    """Open a picture and make something of it.

    Raises:
        InvalidRequest: not a readable picture, or more than MAX_PIXELS or MAX_BYTES.
    """
    try:
        if isinstance(source, str | Path):
            with open(source, "rb") as file:
                return _opened(_seekable(file), make)
        return _opened(_seekable(source), make)
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
    """Shorten another library's message to one line."""
    text = str(err) or type(err).__name__
    return "".join(c if c.isprintable() else " " for c in text)[:200]


def _seekable(file: BinaryIO) -> BinaryIO:
    """Read a pipe to its end; refuse one that is too long to be a picture of a digit."""
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


_PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2}
"""Of those of Pillow's modes that have other than four."""
