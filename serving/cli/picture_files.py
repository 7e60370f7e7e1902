"""Read many pictures for the command line: found in folders, read on several cores, in order."""

import logging
import multiprocessing
import os
import signal
import sys
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from serving.errors import InvalidRequest
from serving.images import Images
from serving.pictures.reader import from_picture
from serving.system.cores import usable_cores

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".tif", ".tiff", ".bmp"),
    *(".avif", ".heic", ".heif"),
)
"""What is read of a folder; a file that is named itself may have any name."""
MIN_PICTURES = 100
"""Fewer are read before processes have started: 0.5 s, where a picture takes 7 ms."""
AHEAD = 8
"""Pictures a process that are read before the first is answered."""

Reading = tuple[str, Images | str]
"""A picture's name, and what was made of it or why it can't be."""


def find(names: Sequence[str]) -> list[Reading | str]:
    """List the pictures: files as named, those in folders sorted, - for stdin.

    Returns:
        Names, and readings for what is known to be unreadable.
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
    """List a folder and those below, sorted; hidden ones and links to folders are left out."""
    refused: list[OSError] = []
    for path, folders, files in os.walk(folder, onerror=refused.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                yield os.path.join(path, name)
    yield from ((str(err.filename), f"cannot be read: {err.strerror}") for err in refused)


def read(found: Sequence[Reading | str]) -> Generator[Reading, None, None]:
    """Read pictures, each as soon as it and all before it are read.

    A picture that ends the process that reads it, for want of memory or by a fault of a decoder,
    costs no other its answer where processes are used.
    """
    silence()
    workers = usable_cores()
    if workers < 2 or len(found) < MIN_PICTURES:
        yield from (_read(name) if isinstance(name, str) else name for name in found)
        return
    readers = _Readers(workers)
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
    """Processes that read pictures; they are started again when one has ended."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._start()

    def _start(self) -> None:
        # Never forked: threads of gRPC and ONNX Runtime may run here.
        self._pool = ProcessPoolExecutor(
            self._workers, multiprocessing.get_context("spawn"), initializer=_start_reader
        )

    def submit(self, found: Reading | str) -> tuple[str, "Future[Reading]"]:
        """Begin to read one picture; what is stdin's is read here, for the processes have none."""
        if isinstance(found, str) and found != "-":
            try:
                return found, self._pool.submit(_read, found)
            except BrokenProcessPool as err:
                broken: Future[Reading] = Future()
                broken.set_exception(err)
                return found, broken
        done: Future[Reading] = Future()
        done.set_result(_read(found) if isinstance(found, str) else found)
        return found if isinstance(found, str) else found[0], done

    def result(self, ahead: "deque[tuple[str, Future[Reading]]]") -> Reading:
        """Wait for the first; where a process has ended, read it once more by itself."""
        name, future = ahead.popleft()
        try:
            return future.result()
        except BrokenProcessPool:
            self.close()
            self._start()
        try:
            reading = self._pool.submit(_read, name).result()
        except BrokenProcessPool:
            self.close()
            self._start()
            reading = name, "cannot be read: it ends the process that reads it"
        again = [
            self.submit(name) if future.exception() else (name, future) for name, future in ahead
        ]
        ahead.clear()
        ahead.extend(again)
        return reading

    def close(self) -> None:
        """End the processes once they have read what they are at."""
        self._pool.shutdown(cancel_futures=True)


def _start_reader() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the parent ends it
    silence()


def silence() -> None:
    """Keep what Pillow has to say of damaged files off stderr, where our own line will be."""
    warnings.filterwarnings("ignore", module="PIL")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)


def _read(name: str) -> Reading:
    try:
        if name != "-":
            return name, from_picture(name)
        if sys.stdin is None:
            return name, "cannot be read: stdin is closed"
        return name, from_picture(sys.stdin.buffer)
    except InvalidRequest as err:
        return name, str(err)
    except MemoryError:
        return name, "cannot be read: out of memory"
