"""A call that takes more than one message of rows in one piece, of any kind of method.

Its messages begin in the order in which they arrive, and are answered in that order. A caller that
does not read its answers, or sends more than can run, is not read: its messages stay unconsumed,
and flow control of HTTP/2 stops it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from serving.batching.group import Group
from serving.errors import DigitsError
from serving.protocols.encoding import PrefixCache, ResponseEncoder, frame
from serving.protocols.method import BatchedStream, BatchedUnary, Method, Replies, Unary, Watch
from serving.protocols.status import error_of
from serving.system.runners import Task
from serving.transports.h2 import status
from serving.transports.h2.connection import Connection
from serving.transports.h2.context import Context
from serving.transports.h2.heads import Head
from serving.transports.h2.status import PREFIX_BYTES, Status, length_of

_WINDOW = 512
"""The most requests of one stream that are in flight."""


class Slot:
    """The place of one request's answer in its stream."""

    __slots__ = ("arrived_s", "num_bytes", "request", "response")

    def __init__(self, num_bytes: int, arrived_s: float, request: bytes = b"") -> None:
        self.num_bytes = num_bytes
        """The part of the stream's window that its request has not given back."""
        self.arrived_s = arrived_s
        self.request = request
        """The message, where its answer depends on more than its rows."""
        self.response: bytes | DigitsError | None = None
        """The framed answer, or why there is none."""


class Stream:
    """A call in progress; used by the loop's thread only."""

    __slots__ = ("_connection", "_context", "_data", "_ended", "_error", "_has_begun", "_head",
                 "_is_full", "_is_unary", "_method", "_missing_at", "_owed", "_read", "_slots",
                 "_stream_id", "_unconsumed", "_unsubscribe")  # fmt: skip

    def __init__(
        self, context: Context, connection: Connection, stream_id: bytes, head: Head
    ) -> None:
        assert head.method is not None
        self._context = context
        self._connection = connection
        self._stream_id = stream_id
        self._head = head
        self._method: Method = head.method
        self._is_unary = not isinstance(head.method, BatchedStream | Replies)
        """Whether the caller sends exactly one message."""
        self._slots: list[Slot] = []
        """Requests in progress, in order. An empty deque would take ten times an empty list."""
        self._data = bytearray()
        """The bytes received of requests that have not begun."""
        self._read: tuple[Any, ResponseEncoder] | None = None
        """The first of them, if it was read and waits for room."""
        self._missing_at = 0
        """How long it must be for its first message to be whole, as far as that is known."""
        self._unconsumed = 0
        """How many of its last bytes the window is still short of."""
        self._owed = 0
        """What answered requests took of the window, until the answers are read."""
        self._ended = False
        """Whether the caller has sent everything."""
        self._has_begun = False
        """Whether the headers of the answer were sent."""
        self._is_full = False
        """Whether requests have arrived for which there is no slot."""
        self._error: Status | None = None
        """How the call ends, after the answers before it."""
        self._unsubscribe: Callable[[], None] | None = None

    # Requests

    def receive(self, data: bytes, now_s: float, *, ended: bool) -> None:
        """Take more of what the caller sends."""
        self._ended = ended
        context = self._context
        self._data += data
        if self._is_unary:
            self._connection.http2.acknowledge(self._stream_id, len(data))
        else:
            self._unconsumed += len(data)
        if ended and self._is_unary and not self._data:
            self._error = status.NOT_ONE_MESSAGE
        if len(self._data) < self._missing_at and not ended:  # cheap, for there may be many
            self._consume_all()
            context.hold(self, len(self._data))
        else:
            self.resume(now_s)

    @property
    def is_amid_message(self) -> bool:
        """Whether a part of a message has come."""
        return bool(self._data)

    def run_messages(
        self, encoder: ResponseEncoder, messages: Sequence[bytes], num_bytes: int, now_s: float,
        *, ended: bool,
    ) -> int:  # fmt: skip
        """Run messages that are whole, as far as they need not wait for others.

        Returns:
            How many.
        """
        room = encoder.target.room_for_stream(encoder.num_rows)
        number = min(len(messages), _WINDOW - len(self._slots), room)
        if number <= 0 or self._data or self._error or self._is_unary:
            return 0
        self._ended = ended and number == len(messages)
        slots = [Slot(num_bytes, now_s) for _ in range(number)]
        self._queue(slots, messages[:number], encoder)
        self._slots += slots
        return number

    def resume(self, now_s: float) -> None:
        """Begin the requests that have arrived, as far as there is room; send what is ready."""
        if not self._is_open:
            return
        if self._owed:
            self._note_read()
        at, data = 0, self._data
        self._is_full = False
        while self._error is None and at < len(data) and self._has_room():
            end = self._message_end(at)
            if not end:
                self._consume_all()
                break
            num_bytes = end - at - max(0, len(data) - self._unconsumed - at)
            message = self._message(at + PREFIX_BYTES, end)
            if not self._begin(message, num_bytes, now_s):
                self._context.stalled[self] = None
                self._context.hurry()
                break
            self._unconsumed -= num_bytes
            at = end
            self._missing_at = 0
            if data is not self._data:  # it was handed on
                at, data = 0, self._data
        del data[:at]
        self._context.hold(self, len(data))
        self.flush()

    def _message(self, begin: int, end: int) -> bytes | memoryview:
        """Return a message; it is not copied if it is the call's only one, in a known layout."""
        view = memoryview(self._data)[begin:end]
        if self._is_unary and self._head.prefixes.find(view):
            self._data = bytearray()
            return view
        return bytes(view)

    def _consume_all(self) -> None:
        """Open the window: a message may be longer. `Context.hold` bounds what is kept."""
        if self._unconsumed:
            self._connection.http2.acknowledge(self._stream_id, self._unconsumed)
            self._unconsumed = 0
            self._context.touch(self._connection)

    def _has_room(self) -> bool:
        """Return whether a request may begin; else what makes room resumes the stream."""
        connection, context = self._connection, self._context
        if connection.http2.num_unsent(self._stream_id) > context.limits.max_stream_unread_bytes:
            connection.unread[self] = None
        elif len(self._slots) >= _WINDOW:
            self._is_full = True
        else:
            return True
        return False

    def _message_end(self, at: int) -> int:
        """Return where the message at `at` ends, 0 if it has not arrived or is refused."""
        size = len(self._data)
        end = at + PREFIX_BYTES
        if size >= end:
            length = length_of(self._data, at, self._context.limits.max_message_bytes)
            if isinstance(length, Status):
                self._error = length
                return 0
            end += length
            if self._is_unary and size > end:
                self._error = status.NOT_ONE_MESSAGE
                return 0
        self._missing_at = end - at
        if size < end and self._ended:
            self._error = status.TRUNCATED
        return end if size >= end and (self._ended or not self._is_unary) else 0

    def _begin(self, message: Any, num_bytes: int, now_s: float) -> bool:
        """Answer a request, or have it run; False if it has to wait for room."""
        method, slot = self._method, Slot(num_bytes, now_s, message)
        try:
            if isinstance(method, BatchedUnary):
                rows, encoder = self._read or method.read(message)
                self._read = None
                if not self._run(slot, rows, encoder):
                    self._read = rows, encoder
                    return False
                return True
            if isinstance(method, Watch):
                self._unsubscribe = method.subscribe(message, self._post)
                return True
            if isinstance(method, Unary) and method.is_slow:
                runner = self._context.router.host.runners(1)
                runner.put(partial(self._answer_slowly, method, slot), self._context.post)
                runner.close()
            elif isinstance(method, Unary):
                slot.response = frame(method.answer(message))
            elif isinstance(method, Replies):
                slot.response = b"".join(map(frame, method.replies(message)))
        except Exception as err:  # a flaw of ours ends this request, and never the loop
            self._refuse_request(slot, error_of(err))
        self._slots.append(slot)
        self._send_answers()
        return True

    def _answer_slowly(self, method: Unary, slot: Slot) -> Task:
        """Answer a request, on a thread of its own; return what sends the answer."""
        try:
            outcome: bytes | DigitsError = frame(method.answer(slot.request))
        except Exception as err:
            outcome = error_of(err)

        def finish() -> None:
            slot.response = outcome
            self.flush()

        return finish

    def _run(self, slot: Slot, rows: Any, encoder: ResponseEncoder) -> bool:
        """Have rows run; False if a stream has to wait for room."""
        if self._is_unary:  # from here on it is like a call whose message came in one piece
            connection, stream_id = self._connection, self._stream_id
            connection.streams[stream_id].call = self._head
            deadline_s = self._deadline_s(encoder, slot.arrived_s)
            self._context.submit(
                connection, self._head, encoder, [stream_id], [rows], slot.arrived_s, deadline_s
            )
            return True
        if not encoder.target.room_for_stream(encoder.num_rows):
            return False
        self._queue([slot], [rows], encoder)
        self._slots.append(slot)
        return True

    def _deadline_s(self, encoder: ResponseEncoder, arrived_s: float) -> float:
        timeout_s, own_s = self._head.timeout_s, encoder.timeout_s
        return arrived_s + (timeout_s if own_s is None else min(timeout_s, own_s))

    def _queue(self, slots: list[Slot], messages: Sequence[Any], encoder: ResponseEncoder) -> None:
        """Have messages run in one of the next batches."""
        arrived_s = slots[0].arrived_s
        deadline_s = self._deadline_s(encoder, arrived_s)
        streams = [self._stream_id] * len(slots)
        encoder.target.add(
            Group(self._connection, streams, messages, encoder, self, arrived_s, deadline_s, slots)
        )

    # Answers

    def answer(self, group: Group, responses: Sequence[bytes]) -> None:
        """See `Sink`."""
        for slot, response in zip(group.slots or (), responses, strict=True):
            slot.response = response
        self.flush()

    def fail(self, group: Group, error: DigitsError) -> None:
        """See `Sink`."""
        if self._is_open:
            for slot in group.slots or ():
                self._refuse_request(slot, error)
            self.flush()

    def _refuse_request(self, slot: Slot, error: DigitsError) -> None:
        response, method = None, self._method
        if isinstance(method, BatchedStream):
            response = method.error_message(slot.request, error)
        slot.response = error if response is None else frame(response)

    def flush(self) -> None:
        """Send the answers that are ready; end the call after the last."""
        if not self._is_open:
            return
        self._send_answers()
        if self._is_full and len(self._slots) < _WINDOW:
            self.resume(self._context.clock())
        elif not self._slots:
            if self._error is not None:
                self.end(self._error)
            elif self._ended and not self._data and self._unsubscribe is None:
                self.end(None)

    def _send_answers(self) -> None:
        """Send the answers that are ready, in order."""
        ready: list[bytes] = []
        for slot in self._slots:
            if slot.response is None or isinstance(slot.response, DigitsError):
                break
            ready.append(slot.response)
            self._owed += slot.num_bytes
        del self._slots[: len(ready)]
        if self._slots and isinstance(self._slots[0].response, DigitsError):
            self._error = Status.of(self._slots[0].response)
            self._release()
        if ready:
            self._send(b"".join(ready))
            self._note_read()

    def _send(self, data: bytes) -> None:
        self._begin_answer()
        self._connection.http2.send(self._stream_id, data)
        self._context.touch(self._connection)

    def _note_read(self) -> None:
        """Let the caller send as much again as it has read answers to."""
        connection, limit = self._connection, self._context.limits.max_stream_unread_bytes
        if connection.http2.num_unsent(self._stream_id) > limit:
            connection.unread[self] = None
            return
        connection.http2.acknowledge(self._stream_id, self._owed)
        self._owed = 0

    def _begin_answer(self) -> None:
        if not self._has_begun:
            self._has_begun = True
            self._connection.http2.respond(self._stream_id)

    def _post(self, message: bytes) -> None:
        """Send a message of a subscription, from any thread."""
        self._context.post(partial(self._send_if_open, frame(message)))

    def _send_if_open(self, data: bytes) -> None:
        if self._is_open:
            self._send(data)

    # The end

    @property
    def _is_open(self) -> bool:
        return self._connection.call(self._stream_id) is self

    @property
    def prefixes(self) -> PrefixCache:
        """Prefixes of messages that need not be parsed."""
        return self._head.prefixes

    @property
    def is_pending(self) -> bool:
        """Whether a request was accepted and is not answered."""
        return bool(self._slots)

    @property
    def is_incomplete(self) -> bool:
        """Whether the one message of the call has not arrived."""
        return self._is_unary and not self._ended

    def end(self, reason: Status | None) -> None:
        """End the call with a status; None is OK."""
        self._release()
        connection, stream_id = self._connection, self._stream_id
        if reason is not None and not self._has_begun:
            self._context.refuse(connection, stream_id, self._head, reason)
            return
        self._begin_answer()
        connection.http2.end(stream_id, reason.trailers if reason else status.OK)
        self._context.metrics.count(self._head.name, reason.name if reason else "OK")
        self._context.touch(connection)

    def cancel(self) -> None:
        """Forget the call: the caller has left."""
        self._release()
        self._context.metrics.count(self._head.name, "CANCELLED")

    def drain(self, reason: Status) -> None:
        """End a call of images once it has been answered as far as it was accepted."""
        if isinstance(self._method, BatchedUnary) and not (self._is_unary and self._slots):
            self._error = self._error or reason
            self.flush()

    def _release(self) -> None:
        """Give back what the call holds."""
        self._context.hold(self, 0)
        self._owed = self._unconsumed = 0
        self._slots.clear()
        self._data.clear()
        self._read = None
        self._context.stalled.pop(self, None)
        if self._unsubscribe is not None:
            self._unsubscribe()
