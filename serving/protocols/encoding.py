"""From a run's outputs to responses; the common part of calls of one layout is computed once."""

import struct
from collections.abc import Sequence
from typing import Any

from serving.batching.queue import ResponseEncoder, Result

_PREFIX = struct.Struct(">BI")
"""Before each message of gRPC: the flag for no compression, and the length."""
PREFIX_BYTES = _PREFIX.size


class Rows(ResponseEncoder):
    """Answers with the outputs for a call's rows: the arrays, and their result."""

    def encode(self, result: Result, at: int, number: int) -> Sequence[Any]:
        """See `ResponseEncoder`."""
        step = self.num_rows
        return [(result.part(at + i * step, step), result) for i in range(number)]


class PrefixCache(dict[bytes, ResponseEncoder]):
    """Prefixes of framed messages after which only rows follow, with the encoder of each.

    A message with such a prefix need not be parsed: the rest of it is whole rows. A prefix has the
    lengths of the message and of its rows.
    """

    _MAX_HEAD_BYTES = 512
    """Longer prefixes are not kept."""
    _MAX_KEPT = 256

    def __init__(self) -> None:
        """Start empty."""
        super().__init__()
        self._starts: dict[int, tuple[int, ...]] = {}
        """The length of a framed message, and where the rows of such ones may start."""

    def learn(self, message: bytes, num_row_bytes: int, encoder: ResponseEncoder) -> None:
        """Remember the prefix of a message: later ones with it get the same encoder."""
        framed = frame(message)
        start = len(framed) - num_row_bytes
        if start > self._MAX_HEAD_BYTES:
            return
        if len(self) >= self._MAX_KEPT:
            self.clear()
        self[framed[:start]] = encoder
        starts = self._starts.get(len(framed), ())
        if start not in starts:
            self._starts[len(framed)] = (*starts, start)

    def clear(self) -> None:
        """Forget all prefixes."""
        super().clear()
        self._starts.clear()

    def find_framed(self, data: bytes) -> tuple[int, ResponseEncoder] | None:
        """Return where the rows start in a framed message, and its encoder; None if unknown."""
        for start in self._starts.get(len(data), ()):
            encoder = self.get(data[:start])
            if encoder is not None:
                return start, encoder
        return None

    def find(self, message: bytes | memoryview) -> tuple[memoryview, ResponseEncoder] | None:
        """Return the rows and the encoder of a message whose prefix is known; else None."""
        size = len(message)
        for start in self._starts.get(size + PREFIX_BYTES, ()):
            prefix = b"".join((_PREFIX.pack(0, size), message[: start - PREFIX_BYTES]))
            encoder = self.get(prefix)
            if encoder is not None:
                return memoryview(message)[start - PREFIX_BYTES :], encoder
        return None


def frame(message: bytes) -> bytes:
    """Put gRPC's prefix before a message."""
    return _PREFIX.pack(0, len(message)) + message
