"""Calls of many messages: answers in the order of the requests, a bounded number in flight.

A caller that does not read its answers, or that sends more than can be run, is not read either:
its messages stay unconsumed, and HTTP/2's flow control stops it.
"""

import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from serving.batching.request import Request
from serving.errors import DigitsError, Overloaded
from serving.protocols.method import ImagesStream, Replies, Watch
from serving.protocols.plan import Plan, frame
from serving.protocols.status import error_of
from serving.transports.h2 import status
from serving.transports.h2.connection import Connection
from serving.transports.h2.heads import Head
from serving.transports.h2.status import PREFIX_BYTES, Status, length_of

if TYPE_CHECKING:
    from serving.transports.h2.calls import Calls

_WINDOW = 512
"""The most requests of one stream that are in flight."""


class Stream:
    """What all streams share: how they send, and how they end."""

    __slots__ = ("_begun", "_calls", "_connection", "_head", "_stream_id")

    def __init__(self, calls: "Calls", connection: Connection, stream_id: int, head: Head) -> None:
        self._calls = calls
        self._connection = connection
        self._stream_id = stream_id
        self._head = head
        self._begun = False

    def receive(self, data: bytes, now_s: float, *, ended: bool) -> None:
        """Take more of what the caller sends."""
        raise NotImplementedError

    def send(self, data: bytes) -> int:
        """Send framed messages; returns the bytes that the caller has not taken yet."""
        if not self._begun:
            self._begun = True
            self._connection.begin_answers(self._stream_id)
        self._calls.touch(self._connection)
        return self._connection.send(self._stream_id, data)

    def end(self, reason: Status | None) -> None:
        """End the call with a status; None is OK."""
        self._drop()
        connection, stream_id = self._connection, self._stream_id
        if reason is not None and not self._begun:
            self._calls.refuse(connection, stream_id, self._head, reason)
            return
        connection.calls.pop(stream_id, None)
        if not self._begun:
            connection.begin_answers(stream_id)
        connection.end(stream_id, status.OK if reason is None else reason.trailers)
        self._calls.metrics.count(self._head.name, "OK" if reason is None else reason.name)
        self._calls.touch(connection)

    def cancel(self) -> None:
        """Forget the call: the caller has left."""
        self._drop()
        self._calls.metrics.count(self._head.name, "CANCELLED")

    def drain(self, reason: Status) -> None:
        """End the call once it has been answered as far as it was accepted."""

    @property
    def is_pending(self) -> bool:
        """Whether something that was accepted has not been answered."""
        return False

    def _drop(self) -> None:
        """Give back what the call holds."""
        self._calls.hold(self, 0)


class Slot:
    """The place of one request's answer in its stream."""

    __slots__ = ("large", "num_bytes", "request", "response", "stream")

    def __init__(self, stream: "AnswerStream", num_bytes: int, request: bytes = b"") -> None:
        self.stream = stream
        self.request = request
        """The message, where its answer depends on more than its images."""
        self.num_bytes = num_bytes
        """What its request took of the stream's window and has not been given back."""
        self.response: bytes | DigitsError | None = None
        """The framed answer, or why there is none."""
        self.large: Request | None = None


class AnswerStream(Stream):
    """A stream of images."""

    __slots__ = ("_data", "_ended", "_error", "_is_full", "_method", "_owed", "_slots",
                 "_unconsumed")  # fmt: skip

    def __init__(self, calls: "Calls", connection: Connection, stream_id: int, head: Head) -> None:
        super().__init__(calls, connection, stream_id, head)
        assert isinstance(head.method, ImagesStream)
        self._method = head.method
        self._slots: deque[Slot] = deque()
        self._data = bytearray()
        """What has been received and not begun."""
        self._unconsumed = 0
        """How many of its last bytes the window is still short of."""
        self._owed = 0
        """What answered requests took of the window, until the answers are read."""
        self._ended = False
        self._is_full = False
        """Whether requests have arrived for which there is no slot."""
        self._error: Status | None = None

    def receive(self, data: bytes, now_s: float, *, ended: bool) -> None:
        """See `Call`."""
        self._ended = ended
        room = self._calls.queue.has_room and len(self._slots) < _WINDOW
        if room and not self._data and self._error is None:
            num_images = len(data) // self._calls.image_bytes
            size = num_images * self._calls.image_bytes
            plan = self._head.layouts.get(data[: len(data) - size])
            if (
                plan is not None
                and plan.num_rows == num_images
                and num_images <= self._calls.max_inline_images
            ):
                self._put(data[-size:], plan, Slot(self, len(data)), now_s)
                return
        self._data += data
        self._unconsumed += len(data)
        self.go_on(now_s)

    def _put(self, pixels: bytes | memoryview, plan: Plan, slot: Slot, now_s: float) -> None:
        late_s = now_s + (self._head.timeout_s if plan.timeout_s is None else plan.timeout_s)
        entry = (self._connection, self._stream_id, pixels, plan, now_s, late_s, slot)
        self._calls.queue.put(entry)
        self._slots.append(slot)

    def go_on(self, now_s: float) -> None:
        """Begin the requests that have arrived, and answer those that are done."""
        at, data = 0, self._data
        self._is_full = False
        while self._error is None:
            if len(self._slots) >= _WINDOW:
                self._is_full = True
                break
            if at < len(data) and not self._calls.queue.has_room:
                self._calls.stalled[self] = None
                break
            length = 0
            if len(data) - at >= PREFIX_BYTES:
                found = length_of(data, at, self._calls.limits.max_message_bytes)
                if isinstance(found, Status):
                    self._error = found
                    break
                length = found
            end = at + PREFIX_BYTES + length
            if len(data) < end:
                # A message may be longer than the window: what is kept of it is bounded elsewhere.
                self._connection.consume(self._stream_id, self._unconsumed)
                self._unconsumed = 0
                if self._ended and at < len(data):
                    self._error = status.TRUNCATED
                break
            num_bytes = end - at - max(0, len(data) - self._unconsumed - at)
            if not self._begin(bytes(data[at + PREFIX_BYTES : end]), num_bytes, now_s):
                self._calls.stalled[self] = None
                break
            self._unconsumed -= num_bytes
            at = end
        del data[:at]
        self._calls.hold(self, len(data))
        self.flush()

    def _begin(self, message: bytes, num_bytes: int, now_s: float) -> bool:
        """Have a request run; False if it has to wait for room."""
        slot = Slot(self, num_bytes, message)
        try:
            pixels, plan = self._method.read(message)
            if plan.num_rows <= self._calls.max_inline_images:
                self._put(pixels, plan, slot, now_s)
                return True
            timeout_s = self._head.timeout_s if plan.timeout_s is None else plan.timeout_s
            slot.large = self._calls.large_request(
                pixels, plan, self._connection, now_s + timeout_s, partial(self._finish_run, slot)
            )
        except Overloaded:
            return False
        except Exception as err:  # a flaw of ours ends this request, and never the loop
            self.fail(slot, error_of(err))
        self._slots.append(slot)
        return True

    def _finish_run(self, slot: Slot, outcome: bytes | DigitsError) -> None:
        """Take the outcome of a runner thread's run."""
        if isinstance(outcome, DigitsError):
            self.fail(slot, outcome)
        else:
            slot.response = outcome
        self.flush()

    def fail(self, slot: Slot, error: DigitsError) -> None:
        """Take the reason why a request has no answer; `flush` sends it."""
        self._method.note_failure(error, 0.0)
        response = self._method.error_message(slot.request, error)
        slot.response = error if response is None else frame(response)

    def flush(self) -> None:
        """Send what is answered, in order; give its part of the window back once it is read."""
        if self._connection.calls.get(self._stream_id) is not self:
            return
        ready: list[bytes] = []
        while self._slots and self._slots[0].response is not None:
            slot = self._slots.popleft()
            self._owed += slot.num_bytes
            if isinstance(slot.response, DigitsError):
                self._error = Status.of(slot.response)
                self._drop()
                break
            assert slot.response is not None
            ready.append(slot.response)
        if ready:
            self._note_unread(self.send(b"".join(ready)))
        if self._is_full and len(self._slots) < _WINDOW:
            self.go_on(time.monotonic())
        elif not self._slots:
            if self._error is not None:
                self.end(self._error)
            elif self._ended and not self._data:
                self.end(None)

    def _note_unread(self, num_bytes: int) -> None:
        if num_bytes <= self._calls.limits.max_stream_unread_bytes:
            self._connection.consume(self._stream_id, self._owed)
            self._owed = 0
        else:
            self._connection.unread.add(self)

    def note_window(self) -> None:
        """See whether the caller has read what it had not."""
        self._note_unread(self._connection.num_unread(self._stream_id))

    def drain(self, reason: Status) -> None:
        """See `Call`."""
        self._error = self._error or reason
        self.flush()

    @property
    def is_pending(self) -> bool:
        """See `Call`."""
        return bool(self._slots)

    def _drop(self) -> None:
        super()._drop()
        # The connection's window is short of it as long as it is not given back.
        num_bytes = self._owed + self._unconsumed + sum(slot.num_bytes for slot in self._slots)
        self._connection.consume(self._stream_id, num_bytes)
        self._owed = self._unconsumed = 0
        for slot in self._slots:
            if slot.large is not None:
                self._calls.batcher.cancel(slot.large)
        self._slots.clear()
        self._data.clear()
        self._calls.stalled.pop(self, None)


class ReplyStream(Stream):
    """A stream of messages that are answered at once."""

    __slots__ = ("_data", "_ended", "_unconsumed")

    def __init__(self, calls: "Calls", connection: Connection, stream_id: int, head: Head) -> None:
        super().__init__(calls, connection, stream_id, head)
        self._data = bytearray()
        self._unconsumed = 0
        self._ended = False

    def receive(self, data: bytes, now_s: float, *, ended: bool) -> None:
        """See `Call`."""
        self._data += data
        self._unconsumed += len(data)
        self._ended = ended
        self.note_window()

    def note_window(self) -> None:
        """Answer what has arrived, as long as the caller reads the answers."""
        connection, limits = self._connection, self._calls.limits
        if connection.calls.get(self._stream_id) is not self:
            return
        assert isinstance(self._head.method, Replies)
        while len(self._data) >= PREFIX_BYTES:
            if connection.num_unread(self._stream_id) > limits.max_stream_unread_bytes:
                connection.unread.add(self)
                return
            length = length_of(self._data, 0, limits.max_message_bytes)
            if isinstance(length, Status):
                self.end(length)
                return
            end = PREFIX_BYTES + length
            if len(self._data) < end:
                break
            message = bytes(self._data[PREFIX_BYTES:end])
            del self._data[:end]
            try:
                for reply in self._head.method.replies(message):
                    self.send(frame(reply))
            except Exception as err:  # a flaw of ours ends this call, and never the loop
                self.end(Status.of(error_of(err)))
                return
        self._give_back()
        self._calls.hold(self, len(self._data))
        if self._ended:
            self.end(status.TRUNCATED if self._data else None)

    def _give_back(self) -> None:
        self._connection.consume(self._stream_id, self._unconsumed)
        self._unconsumed = 0

    def _drop(self) -> None:
        super()._drop()
        self._give_back()


class WatchStream(Stream):
    """One message, answered for as long as the caller stays."""

    __slots__ = ("_unsubscribe",)

    def subscribe(self, message: bytes) -> None:
        """Begin to answer; raises DigitsError."""
        assert isinstance(self._head.method, Watch)
        self._unsubscribe = self._head.method.subscribe(message, self._post)

    def _post(self, message: bytes) -> None:
        """Send a message, from any thread."""
        self._calls.post(partial(self._send_alive, frame(message)))

    def _send_alive(self, data: bytes) -> None:
        if self._connection.calls.get(self._stream_id) is self:
            self.send(data)

    def receive(self, data: bytes, now_s: float, *, ended: bool) -> None:
        """See `Call`: there is nothing more to be said."""
        if data:
            self._connection.consume(self._stream_id, len(data))

    def _drop(self) -> None:
        super()._drop()
        self._unsubscribe()
