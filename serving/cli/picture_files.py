"""Finds the pictures that the command line names, and reads them in order on several cores."""

import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

from serving.pictures.files import (
    CRASH,
    SUFFIXES,
    read_or_reason,
    reading_processes,
    silence_pillow,
)
from serving.system.cores import usable_cores

MIN_PICTURES = 100
"""Fewer pictures are read in this process: others take 0.5 s to start, a picture 7 ms."""
AHEAD = 8
"""Pictures for each process that are read ahead of the answers."""

Reading = tuple[str, Any]
"""A picture's name, and what was made of it, or why there is none: a text."""
Reader = Callable[[Any], Any]
"""Makes something of a path or an open file; a function of a module, for processes to import."""


def find(names: Sequence[str]) -> list[Reading | str]:
    """List the pictures: files in the order given, those in folders sorted, - for stdin.

    Returns:
        Names, and readings of what is known to be unreadable.
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
                yield os.path.join(path, name)
    yield from ((str(err.filename), f"cannot be read: {err.strerror}") for err in refused)


def read(found: Sequence[Reading | str], reader: Reader) -> Generator[Reading, None, None]:
    """Read pictures, and yield each once it and all before it are read.

    Where processes are used, a picture that crashes its process (out of memory, a decoder's fault)
    fails alone.

    Args:
        found: what `find` returned.
        reader: what to make of a picture, such as `from_picture`.
    """
    silence_pillow()
    workers = usable_cores()
    if workers < 2 or len(found) < MIN_PICTURES:
        yield from (_read(reader, name) if isinstance(name, str) else name for name in found)
        return
    readers = _Readers(workers, reader)
    ahead: deque[tuple[str, Future[Reading]]] = deque()
    try:
        for name in found:
            ahead.append(readers.submit(name))
            if len(ahead) > workers * AHEAD:
                yield readers.result(ahead)
        while ahead:
            yield readers.result(ahead)
    finally:
        readers.close()


class _Readers:
    """Processes that read pictures; all are restarted when one has crashed."""

    def __init__(self, workers: int, reader: Reader) -> None:
        self._workers = workers
        self._read = partial(_read, reader)
        self._start()

    def _start(self) -> None:
        self._pool = reading_processes(self._workers)

    def submit(self, found: Reading | str) -> tuple[str, "Future[Reading]"]:
        """Start to read one picture; stdin is read here, since the processes have none."""
        if isinstance(found, str) and found != "-":
            try:
                return found, self._pool.submit(self._read, found)
            except BrokenProcessPool as err:
                broken: Future[Reading] = Future()
                broken.set_exception(err)
                return found, broken
        done: Future[Reading] = Future()
        done.set_result(self._read(found) if isinstance(found, str) else found)
        return found if isinstance(found, str) else found[0], done

    def result(self, ahead: "deque[tuple[str, Future[Reading]]]") -> Reading:
        """Wait for the first picture; after a crash, read it again alone to find the cause."""
        name, future = ahead.popleft()
        try:
            return future.result()
        except BrokenProcessPool:
            self.close()
            self._start()
        try:
            reading = self._pool.submit(self._read, name).result()
        except BrokenProcessPool:
            self.close()
            self._start()
            reading = name, CRASH
        again = [
            self.submit(name) if future.exception() else (name, future) for name, future in ahead
        ]
        ahead.clear()
        ahead.extend(again)
        return reading

    def close(self) -> None:
        """End the processes after the pictures that they are reading."""
        self._pool.shutdown(cancel_futures=True)


def _read(reader: Reader, name: str) -> Reading:
    if name == "-" and sys.stdin is None:
        return name, "cannot be read: stdin is closed"
    return name, read_or_reason(reader, sys.stdin.buffer if name == "-" else name)
