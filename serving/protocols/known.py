"""Requests that repeat an earlier one but for their rows: nothing else of them is read.

gRPC                          prefix | rows               of any connection
HTTP with bytes               head, JSON | rows           of the same connection
HTTP with JSON of one input   head, text | values | text  of the same head
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from serving.batching.run import ResponseEncoder
from serving.protocols.framing import PREFIX_BYTES, frame, frame_prefix

_BRACKETS = re.compile(rb"\[+")


class Known(dict[bytes, ResponseEncoder]):
    """Requests that are known by the prefix of their framed message: only rows follow it.

    A message with such a prefix need not be parsed: the rest of it is whole rows. A prefix has the
    lengths of the message and of its rows.
    """

    _MAX_PREFIX_BYTES = 512
    """Longer prefixes are not kept."""
    _MAX_KEPT = 256

    def __init__(self) -> None:
        super().__init__()
        self._starts: dict[int, tuple[int, ...]] = {}
        """The length of a framed message, and where the rows of such ones may start."""

    def learn(self, message: bytes, num_row_bytes: int, encoder: ResponseEncoder) -> None:
        """Remember the prefix of a message: later ones with it get the same encoder."""
        framed = frame(message)
        start = len(framed) - num_row_bytes
        if start > self._MAX_PREFIX_BYTES:
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
            prefix = b"".join((frame_prefix(size), message[: start - PREFIX_BYTES]))
            encoder = self.get(prefix)
            if encoder is not None:
                return memoryview(message)[start - PREFIX_BYTES :], encoder
        return None


class ValuesPlace(NamedTuple):
    """Where the values of a request's inputs stand: its last bytes, or a list in its text.

    A client's requests differ in them alone, most often. Then they are all that has to be read.
    """

    before: bytes
    after: bytes
    """The bytes around them."""
    datatype: str
    """Datatype of the values in JSON; "" if they are raw bytes."""
    num_bytes: int
    """Length of the values as raw bytes."""

    def rows(self, request: bytes) -> bytes | None:
        """Return the values of another request, its last bytes; None if more may be different."""
        if len(request) == len(self.before) + self.num_bytes and request.startswith(self.before):
            return request[len(self.before) :]
        return None

    def parts(self, body: bytes, num_bytes: int) -> list[bytes]:
        """Return the values' text in another request, cut into lists of some length.

        Args:
            body: the request.
            num_bytes: the least length of each but the last.

        Returns:
            None of them if more than the values may be different.
        """
        end = len(body) - len(self.after)
        begin, is_alike = len(self.before), body.startswith(self.before + b"[")
        if not is_alike or end - begin < 2 or not body.endswith(self.after):
            return []
        # "[[[1, 2], [3]], [[4]]]" is cut at "]],".
        found = _BRACKETS.match(body, begin, end)
        cut = b"]" * (0 if found is None else found.end() - begin - 1) + b","
        parts, begin = [], begin + 1
        while (at := body.find(cut, begin + num_bytes, end)) > 0:
            parts.append(b"[%b]" % body[begin : at + len(cut) - 1])
            begin = at + len(cut)
        return [*parts, b"[" + body[begin:end]]


class KnownRequest(NamedTuple):
    """Requests over HTTP that differ in their values only."""

    place: ValuesPlace
    """Where the values stand: in the body, or in all bytes of a request that needs no handler."""
    encoder: ResponseEncoder
    """Of their answers."""
    head: tuple[bytes, bytes] | None = None
    """The bytes around the length of the body in the head, where values of any length may stand in
    the text behind it."""
    read: Callable[[ValuesPlace, bytes], bytes | None] | None = None
    """Reads the rows of such a body; None if it may differ in more."""

    def rows(self, data: bytes) -> bytes | None:
        """Return the rows of a request that has come whole; None if it may differ in more."""
        place, _, head, read = self
        if head is None or read is None:  # as `ValuesPlace.rows`, without a call
            before, _, _, num_bytes = place
            is_alike = len(data) == len(before) + num_bytes and data.startswith(before)
            return data[len(before) :] if is_alike else None
        before, after = head
        at = data.find(b"\r", len(before))
        if not data.startswith(before) or not data.startswith(after, at):
            return None
        length, body = data[len(before) : at], data[at + len(after) :]
        if length != b"%d" % len(body):  # one with zeros before it may be too long: h11 decides
            return None
        return read(place, body)
