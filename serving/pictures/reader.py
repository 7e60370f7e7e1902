"""Picture files: their suffixes, and the processes that read them."""

import logging
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from serving.applications import PICTURES, installed
from serving.errors import InvalidRequest

if TYPE_CHECKING:
    from serving.processes.pool import ProcessPool

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


def silence_pillow() -> None:
    """Keep Pillow's remarks on damaged files off stderr: each file gets one line from us."""
    warnings.filterwarnings("ignore", module="PIL")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)


def processes(number: int) -> "ProcessPool":
    """Make processes that read pictures, one at a time each; they start with the first one."""
    from serving.processes.pool import ProcessPool  # late: one picture needs no process

    return ProcessPool(number, modules())


def modules() -> tuple[str, ...]:
    """Return the modules that read pictures, those of applications too."""
    others = (name for each in installed(PICTURES).values() for name in each.modules())
    return ("serving.pictures.decoder", *others)
