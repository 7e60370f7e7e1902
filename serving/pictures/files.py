"""Picture files: which are taken for pictures, and processes that read many of them."""

import logging
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from serving.errors import InvalidRequest

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".tif", ".tiff", ".bmp"),
    *(".avif", ".heic", ".heif"),
)
"""Files that are read in a folder; a file that the command line names may have any suffix."""

CRASH = "cannot be read: it crashes the process that reads it"
"""Why there is nothing of a picture that ends its process: out of memory, or a decoder's fault."""

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


def reading_processes(number: int) -> ProcessPoolExecutor:
    """Make processes that read pictures, and leave Ctrl-C to this one."""
    # Spawned: a fork would copy locks that threads of gRPC, pyarrow and ONNX Runtime hold.
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(number, spawn, initializer=_start)


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff prints its remarks itself
    silence_pillow()


def silence_pillow() -> None:
    """Keep Pillow's remarks on damaged files off stderr: each file gets one line from us."""
    warnings.filterwarnings("ignore", module="PIL")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
