"""The messages of a stream: cut from the bytes that a caller sends, and waiting for answers."""

from typing import Any

from serving.errors import DigitsError
from serving.protocols.encoding import PREFIX_BYTES
from serving.protocols.status import Status
from serving.transports.h2.trailers import (
    COMPRESSED,
    MALFORMED,
    NOT_ONE_MESSAGE,
    TRUNCATED,
    too_long,
)


class MessageReader:
    """The bytes received of messages that have not begun."""

    __slots__ = ("_max_bytes", "_missing_at", "_takes_one", "data", "ended")

    def __init__(self, max_bytes: int, *, takes_one: bool) -> None:
        """Start empty; `takes_one` says that there must be exactly one message."""
        self._max_bytes = max_bytes
        self._takes_one = takes_one
        self._missing_at = 0
        """How long `data` must be for its first message to be whole, as far as that is known."""
        self.data = bytearray()
        self.ended = False
        """Whether the caller has sent everything."""

    def add(self, data: bytes, *, ended: bool) -> bool:
        """Take more; return False if no message can be whole yet."""
        self.data += data
        self.ended = ended
        return ended or len(self.data) >= self._missing_at

    def end_of(self, at: int) -> int | Status:
        """Return where the message at `at` ends, 0 if it has not come, or its error."""
        data = self.data
        size, end = len(data), at + PREFIX_BYTES
        if size >= end:
            length = int.from_bytes(data[at + 1 : end], "big")
            if data[at]:
                return COMPRESSED if data[at] == 1 else MALFORMED
            if length > self._max_bytes:
                return too_long(length, self._max_bytes)
            end += length
            if self._takes_one and size > end:
                return NOT_ONE_MESSAGE
        self._missing_at = end - at
        if size < end and self.ended:
            return TRUNCATED
        if size < end or (self._takes_one and not self.ended):
            return 0
        self._missing_at = 0
        return end


class PendingResponse:
    """The place of one request's answer in its stream."""

    __slots__ = ("arrived_s", "num_bytes", "request", "response")

    def __init__(self, num_bytes: int, arrived_s: float, request: Any = b"") -> None:
        self.num_bytes = num_bytes
        """The part of the stream's window that its request has not given back."""
        self.arrived_s = arrived_s
        self.request = request
        """The message, where its answer depends on more than its rows."""
        self.response: bytes | DigitsError | None = None
        """The framed answer, or why there is none."""
