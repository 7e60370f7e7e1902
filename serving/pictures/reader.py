"""Reads picture files as the input of any classifier."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from serving.applications import PICTURES, installed
from serving.commandline.installation import not_installed
from serving.errors import InvalidRequest

if TYPE_CHECKING:
    from serving.model.preprocessing import Preprocessing
    from serving.system.process_pool import Processes
    from serving.tensors import Array

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".tif", ".tiff", ".bmp"),
    *(".avif", ".heic", ".heif"),
)
"""Files that are read in a folder; a file that the command line names may have any suffix."""

_Source = TypeVar("_Source")
_Read = TypeVar("_Read")


def read_or_reason(read: Callable[[_Source], _Read], source: _Source) -> _Read | str:
    """Read a picture, or say in a line why it can't be read."""
    try:
        return read(source)
    except InvalidRequest as err:
        return str(err)
    except MemoryError:
        return "cannot be read: out of memory"


def processes(number: int) -> "Processes":
    """Make processes that read pictures, one at a time each; they start with the first one."""
    from serving.system.process_pool import Processes  # who reads one picture needs none

    return Processes(number, modules())


def modules() -> tuple[str, ...]:
    """Return the modules that read pictures, those of applications too."""
    others = (name for each in installed(PICTURES).values() for name in each.modules())
    return ("serving.pictures.decoder", *others)


def picture_row(
    preprocessing: "Preprocessing", source: str | Path | BinaryIO
) -> "tuple[Array, float]":
    """Make the input of a classifier of a picture, as its manifest or its folder says it.

    Returns:
        (1, ...), as `Preprocessing.row` does, and a factor for the probabilities, which an
        application's reader of pictures finds; else 1.

    Raises:
        InvalidRequest: not a readable picture, too large, or refused by the application's reader.
        ConfigurationError: Pillow or SciPy is not installed.
    """
    known = preprocessing
    if (reader := known.reader) is not None:
        pixels, factor = reader.read(source)
        return known.row(pixels), factor
    try:
        from serving.pictures import decoder
    except ImportError as err:
        raise not_installed(err) from err
    pixels = decoder.read_pixels(
        source, known.size, known.channels, known.resize, invert=known.invert
    )
    return known.row(pixels), 1.0
