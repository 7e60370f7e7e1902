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


class Decoders:
    """Decodes pictures for several threads; starts its processes with the first picture."""

    def __init__(self, num_processes: int) -> None:
        self._num_processes = num_processes
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None

    def decode(self, contents: Sequence[bytes]) -> list[Images | str]:
        """Decode some picture files: (1, 784) uint8 each, or why it can't be read.

        Raises:
            ConfigurationError: Pillow or SciPy is not installed.
        """
        with self._lock:
            pool = self._pool = self._pool or reading_processes(self._num_processes)
        try:
            return list(pool.map(_decode, contents, chunksize=_CHUNK))
        except BrokenProcessPool:
            with self._lock:
                self._pool = None if self._pool is pool else self._pool
        decoded: list[Images | str] = []
        pool = reading_processes(1)
        for content in contents:  # one at a time, to find the poison one
            try:
                decoded.append(pool.submit(_decode, content).result())
            except BrokenProcessPool:
                decoded.append(CRASH)
                pool = reading_processes(1)
        pool.shutdown()
        return decoded

    def close(self) -> None:
        """End the processes after the pictures that they are decoding."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)
                self._pool = None


def _decode(content: bytes) -> Images | str:
    return read_or_reason(from_picture, io.BytesIO(content))
