"""Refuses calls by the bytes of their frames, before HTTP/2 reads them.

Under overload most calls are refused, and HTTP/2 takes three quarters of what that costs: it
decodes the headers of each and hands over its data. But callers repeat their header blocks byte for
byte, and a block that does not change HPACK's table can be left out. So calls with the block of one
that was just refused are taken out of what HTTP/2 reads, and answered by bytes that change no table
either.
"""

from collections import Counter
from struct import Struct

from serving.transports.h2 import http2
from serving.transports.h2.heads import Head
from serving.transports.h2.queue import Queue

_DATA, _HEADERS, _WINDOW_UPDATE = 0, 1, 8
_END_STREAM, _END_HEADERS = 0x1, 0x4
_FRAME = Struct(">IBI")
"""A frame's header: length and kind, flags, stream."""
_FRAME_BYTES = 9
_MAX_WAIT_BYTES = 1024
"""Longer frames are not waited for, nor are longer header blocks looked into."""
_MAX_KNOWN = 64
_MAX_CALM = 100
"""Reads in a row without a refusal after which the overload has ended."""


class Sieve:
    """Stands before a connection's HTTP/2 session while the server is overloaded."""

    def __init__(
        self, session: http2.Session, queue: Queue, image_bytes: int, max_images: int,
        answer: bytes,
    ) -> None:  # fmt: skip
        """Begin to learn.

        Args:
            session: reads what is left.
            queue: says which calls have room.
            image_bytes: of one image in a message.
            max_images: larger requests do not wait in the queue, and are left to HTTP/2.
            answer: the header block that refuses a call; see `encode_without_table`.
        """
        self._session = session
        self._queue = queue
        self._image_bytes = image_bytes
        self._max_images = max_images
        self._answer = answer
        self._early: list[http2.Event] = []
        self._output: list[bytes] = []
        self._is_aligned = False
        """Whether it is known where frames begin."""
        self._skip = 0
        """How much of a frame that has begun is still to come."""
        self._rest = b""
        """What can't be judged before more of it arrives."""
        self._known: dict[bytes, Head] = {}
        """The blocks of calls that were refused, as long as they mean the same."""
        self._passed: dict[int, bytes] = {}
        """Other blocks of the last read, by stream."""
        self._heard = self._refused = b""
        """The latest streams that HTTP/2 has heard of, and that were refused here. What else comes
        on those between them would look to it like frames on idle streams."""
        self._num_rows = 0
        """Images that the last read has left for the queue."""
        self._num_calm = 0
        self.refused: Counter[Head] = Counter()
        """Calls that were refused here, to be counted."""

    @property
    def is_over(self) -> bool:
        """Whether it can go: nothing was refused for a while."""
        is_whole = self._refused <= self._heard and not (self._rest or self._early or self._output)
        return is_whole and self._num_calm > _MAX_CALM

    @property
    def is_useful(self) -> bool:
        """Whether it has refused anything: callers that repeat no header blocks gain nothing."""
        return bool(self._refused)

    def learn(self, stream_id: int, head: Head) -> None:
        """Note that a call of the last read was refused for want of room."""
        block = self._passed.get(stream_id)
        if block is not None and len(self._known) < _MAX_KNOWN:
            self._known[block] = head

    def forget(self) -> None:
        """Leave all calls to HTTP/2, until some are refused again."""
        self._known.clear()
        self._passed.clear()

    def events(self) -> list[http2.Event]:
        """See ngh2."""
        early, self._early = self._early, []
        return early + self._session.events()

    def data_to_send(self) -> bytes:
        """See ngh2."""
        output, self._output = self._output, []
        return b"".join([self._session.data_to_send(), *output])

    def receive_data(self, data: bytes | memoryview) -> None:
        """Refuse the calls that have no room; HTTP/2 reads the rest."""
        if not self._is_aligned:
            data = self._align(data)
        self._passed.clear()
        self._num_rows = 0
        self._num_calm += 1
        for part in self._sift(self._rest + data):
            self._session.receive_data(part)

    def _align(self, data: bytes | memoryview) -> bytes | memoryview:
        """Have HTTP/2 read to the end of a frame, where it has an event; return what follows."""
        self._early += self._session.events()
        for at in range(len(data)):
            self._session.receive_data(data[at : at + 1])
            if events := self._session.events():
                self._early += events
                self._is_aligned = True
                return data[at + 1 :]
        return data[:0]

    def _sift(self, data: bytes) -> list[bytes]:
        """Refuse the calls that have no room; return the parts between them."""
        parts: list[bytes] = []
        begin, at, size = 0, self._skip, len(data)
        while at <= size - _FRAME_BYTES:
            word, flags, _ = _FRAME.unpack_from(data, at)
            is_head, end = word & 0xFF == _HEADERS, at + _FRAME_BYTES + (word >> 8)
            is_late = not is_head and self._heard < data[at + 5 : at + 9] <= self._refused
            is_cut_off = end > size or (is_head and size - _FRAME_BYTES < end < size)
            if (is_head or is_late) and is_cut_off and word >> 8 <= _MAX_WAIT_BYTES:
                break
            cut = at if is_late else end
            if is_head:
                cut, end = self._judge(data, at, end, flags)
            if cut < end:
                if begin < cut:
                    parts.append(data[begin:cut])
                begin = end
            at = end
        if begin < min(at, size):
            parts.append(data[begin:at])
        self._rest, self._skip = data[at:], max(0, at - size)
        return parts

    def _judge(self, data: bytes, at: int, end: int, flags: int) -> tuple[int, int]:
        """Judge the call that begins at `at`, whose headers end at `end`, and those like it.

        Returns:
            From where on they are refused, and where the last one ends; equal if none is refused.
        """
        block, stream = data[at + _FRAME_BYTES : end], data[at + 5 : at + 9]
        stop, length = _body(data, end, stream) if flags == _END_HEADERS else (0, 0)
        head = self._known.get(block)
        if head is None or not stop:
            if flags != _END_HEADERS or (head is None and _may_change_table(block)):
                self.forget()
            elif stop:
                self._passed[int.from_bytes(stream, "big")] = block
            self._heard = max(self._heard, stream)
            return end, end
        streams = _equal_calls(data, at, stop, stop - length)
        num_images = max(1, length // self._image_bytes)
        room = max(0.0, self._queue.room(head.timeout_s) - self._num_rows)
        num_passed = len(streams) if num_images > self._max_images else int(room // num_images)
        passed, refused = streams[:num_passed], streams[num_passed:]
        if passed:
            self._heard = max(self._heard, passed[-1])
            self._num_rows += len(passed) * num_images
        if refused:
            self._refuse(refused, head, length)
        cut = at + len(passed) * (stop - at)
        return cut, cut + len(refused) * (stop - at)

    def _refuse(self, streams: list[bytes], head: Head, length: int) -> None:
        """Answer calls, and give back what each took of the connection's window."""
        self._num_calm = 0
        self._refused = streams[-1]
        self.refused[head] += len(streams)
        frame = _FRAME.pack(len(self._answer) << 8 | _HEADERS, _END_STREAM | _END_HEADERS, 0)
        start, window = frame[:5], _FRAME.pack(4 << 8 | _WINDOW_UPDATE, 0, 0)
        self._output += (
            start, (self._answer + start).join(streams), self._answer,
            window, (length * len(streams)).to_bytes(4, "big"),
        )  # fmt: skip


def _may_change_table(block: bytes) -> bool:
    """Return whether a block changes HPACK's table, or is too long to find that out cheaply."""
    return len(block) > _MAX_WAIT_BYTES or http2.changes_table(block)


def _body(data: bytes, at: int, stream: bytes) -> tuple[int, int]:
    """Find the rest of a call at `at`: one frame of data, perhaps after an update of its window.

    Returns:
        Where it ends, and the length of the data; zeros if anything else is there.
    """
    while at <= len(data) - _FRAME_BYTES and data[at + 5 : at + 9] == stream:
        word, flags, _ = _FRAME.unpack_from(data, at)
        at += _FRAME_BYTES + (word >> 8)
        if word & 0xFF == _DATA:
            is_whole = flags == _END_STREAM and word >> 8 and at <= len(data)
            return (at, word >> 8) if is_whole else (0, 0)
        if word & 0xFF != _WINDOW_UPDATE:
            break
    return 0, 0


def _equal_calls(data: bytes, at: int, stop: int, body_at: int) -> list[bytes]:
    """Return the streams of the call from `at` to `stop` and of all after it that are like it.

    They differ in their streams and in the bytes from `body_at` on, not in their length.
    """
    streams, stride, last = [], stop - at, len(data) - (stop - at)
    shape = data[at:body_at].split(data[at + 5 : at + 9])
    while at <= last and data.startswith((stream := data[at + 5 : at + 9]).join(shape), at):
        streams.append(stream)
        at += stride
    return streams
