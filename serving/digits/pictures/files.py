"""Picture files: which names are pictures, and processes that read many of them."""

import io
from collections.abc import Callable
from typing import TypeVar

from serving.applications import modules_of
from serving.digits.pictures.reader import JUDGES, from_picture
from serving.errors import InvalidRequest
from serving.predictions import Images
from serving.system.processes import Processes

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


def image_or_reason(content: bytes) -> Images | str:
    """Read a picture of a digit, or say why not; here, since processes import a job's module."""
    return read_or_reason(from_picture, io.BytesIO(content))


def processes(number: int) -> Processes:
    """Make processes that read pictures, one at a time each; they start with the first one."""
    return Processes(number, ("serving.digits.pictures.normalizer", *modules_of(JUDGES)))
