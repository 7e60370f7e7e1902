"""Finds the pictures that the command line names, and reads them in order on several cores."""

import os
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from serving.pictures.files import SUFFIXES, processes, read_or_reason
from serving.system.cores import usable_cores
from serving.system.processes.mapping import mapped
from serving.system.processes.zygote import CAN_FORK, silence_pillow

MIN_PICTURES = 100
"""Fewer pictures are read in this process: others take 0.5 s to start, a picture 7 ms."""
AHEAD = 8
"""Pictures for each process that are read ahead of the answers."""

Reading = tuple[str, Any]
"""A picture's name, and its image, or the reason if there is none: a text."""
Reader = Callable[[Any], Any]
"""Makes something of a path or an open file; a function of a module, for processes to import."""


def find(names: Sequence[str]) -> list[Reading | str]:
    """List the pictures: files in the order given, those in folders sorted, - for stdin.

    Returns:
        Names, and readings of files that are known to be unreadable.
    """
    found: list[Reading | str] = []
    for name in names:
        if not os.path.isdir(name):
            found.append(name)
            continue
        inside = list(_walk(name))
        found += inside or [(name, "no pictures in this folder")]
    return found


def _walk(folder: str) -> Iterator[Reading | str]:
    """List the pictures below a folder, sorted; skips hidden ones and links to folders."""
    refused: list[OSError] = []
    for path, folders, files in os.walk(folder, onerror=refused.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                file = os.path.join(path, name)
                # A FIFO would never end.
                yield file if os.path.isfile(file) else (file, "cannot be read: no regular file")
    yield from ((str(err.filename), f"cannot be read: {err.strerror}") for err in refused)


def read(found: Sequence[Reading | str], reader: Reader) -> Generator[Reading, None, None]:
    """Read pictures, and yield each once it and all before it are read.

    Where processes are used, a picture that crashes its process (out of memory, a decoder's fault)
    fails alone.
    """
    workers = usable_cores()
    if workers < 2 or len(found) < MIN_PICTURES or not CAN_FORK:
        silence_pillow()
        for name in found:
            yield _quietly(partial(_read, reader), name) if isinstance(name, str) else name
        return
    names = [name if isinstance(name, str) else name[0] for name in found]
    with closing(processes(workers)) as pool:
        # Stdin is read here, since the processes have none.
        items = (_read(reader, name) if name == "-" else name for name in found)
        readings = mapped(pool, partial(_reading, reader), items, workers * AHEAD)
        for name, reading in zip(names, readings, strict=True):
            yield (name, reading) if isinstance(reading, str) else reading


def _quietly(read: Callable[[str], Reading], name: str) -> Reading:
    """Read a picture without libtiff's own output to stderr."""
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        return read(name)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def _reading(reader: Reader, found: Reading | str) -> Reading:
    return _read(reader, found) if isinstance(found, str) else found


def _read(reader: Reader, name: str) -> Reading:
    if name == "-" and sys.stdin is None:
        return name, "cannot be read: stdin is closed"
    return name, read_or_reason(reader, sys.stdin.buffer if name == "-" else name)
