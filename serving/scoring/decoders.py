"""Processes that decode pictures: a core each, and a decoder that crashes costs one picture."""

import io
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from serving.images import Images
from serving.pictures.files import CRASH, read_or_reason, reading_processes
from serving.pictures.reader import from_picture

_CHUNK = 16
"""Pictures that a process gets at once: 0.1 s of work."""

Decoded = Images | str


class Decoders:
    """Decodes pictures for several threads; starts its processes with the first picture."""

    def __init__(self, num_processes: int) -> None:
        self._num_processes = num_processes
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None

    def decode(self, contents: Sequence[bytes]) -> list[Decoded]:
        """Decode some picture files: (1, 784) uint8 each, or why it can't be read.

        Raises:
            ConfigurationError: Pillow or SciPy is not installed.
        """
        pool = self._current()
        starts = range(0, len(contents), _CHUNK)
        chunks = [contents[start : start + _CHUNK] for start in starts]
        try:
            futures = [pool.submit(_decode, chunk) for chunk in chunks]
            return [each for future in futures for each in future.result()]
        except BrokenProcessPool:
            self._discard(pool)
            return _decode_apart(contents)

    def close(self) -> None:
        """End the processes after the pictures that they are decoding."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)
                self._pool = None

    def _current(self) -> ProcessPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = reading_processes(self._num_processes)
            return self._pool

    def _discard(self, pool: ProcessPoolExecutor) -> None:
        with self._lock:
            if self._pool is pool:
                self._pool = None


def _decode_apart(contents: Sequence[bytes]) -> list[Decoded]:
    """Decode pictures one at a time after a crash, to find the guilty one."""
    decoded: list[Decoded] = []
    pool = reading_processes(1)
    for content in contents:
        try:
            decoded += pool.submit(_decode, [content]).result()
        except BrokenProcessPool:
            decoded.append(CRASH)
            pool = reading_processes(1)
    pool.shutdown()
    return decoded


def _decode(contents: Sequence[bytes]) -> list[Decoded]:
    return [read_or_reason(from_picture, io.BytesIO(content)) for content in contents]
