"""A call that takes more than one message of rows in one piece; `kinds.py` has each kind of method.

Its messages begin in the order in which they arrive, and are answered in that order. A caller that
does not read its answers, or sends more than can run, is not read: its messages stay unconsumed,
and flow control of HTTP/2 stops it.
"""

from typing import Any

from serving.errors import DigitsError
from serving.protocols.encoding import PREFIX_BYTES
from serving.protocols.status import Status, error_of
from serving.transports.h2 import trailers
from serving.transports.h2.call_headers import Headers
from serving.transports.h2.context import Context
from serving.transports.h2.h2_peer import Connection
from serving.transports.h2.message_reader import MessageReader, PendingResponse
from serving.transports.h2.trailers import trailers_of

MAX_PENDING = 512
"""The most requests of one stream that are in flight."""


class Stream:
    """A call in progress; used by the loop's thread only."""

    takes_one = True
    """Whether the caller sends exactly one message."""
    __slots__ = (
        "_connection", "_context", "_error", "_has_begun", "_is_full", "_owed", "_stream_id",
        "_unconsumed", "head", "pending", "reader",
    )  # fmt: skip

    def __init__(
        self, context: Context, connection: Connection, stream_id: bytes, head: Headers
    ) -> None:
        self._context = context
        self._connection = connection
        self._stream_id = stream_id
        self.head = head
        self.pending: list[PendingResponse] = []
        """Requests in progress, in order. An empty deque would take ten times an empty list."""
        self.reader = MessageReader(context.limits.max_message_bytes, takes_one=self.takes_one)
        self._unconsumed = 0
        """How many of the reader's last bytes the window is still short of."""
        self._owed = 0
        """The window bytes of answered requests, until the answers are read."""
        self._has_begun = False
        """Whether the headers of the answer were sent."""
        self._is_full = False
        """Whether requests have arrived for which there is no room among the pending ones."""
        self._error: Status | None = None
        """How the call ends, after the answers before it."""

    # Requests

    def receive(self, data: bytes, now_s: float, *, ended: bool) -> None:
        """Process more bytes of the caller."""
        may_begin = self.reader.add(data, ended=ended)
        if not self.takes_one:
            self._unconsumed += len(data)
        else:
            self._connection.http2.acknowledge(self._stream_id, len(data))
            if ended and not self.reader.data:
                self._error = trailers.NOT_ONE_MESSAGE
        if may_begin:
            self.resume(now_s)
        else:  # cheap, for there may be many parts
            self._consume_all()
            self._context.buffer(self, len(self.reader.data))

    def resume(self, now_s: float) -> None:
        """Begin the requests that have arrived, as far as there is room; send ready answers."""
        if not self._is_open:
            return
        if self._owed:
            self._note_read()
        at, reader = 0, self.reader
        self._is_full = False
        while self._error is None and at < len(reader.data) and self._has_room():
            end = reader.end_of(at)
            if isinstance(end, Status):
                self._error = end
                break
            if not end:
                self._consume_all()
                break
            num_bytes = end - at - max(0, len(reader.data) - self._unconsumed - at)
            message = self._message(at + PREFIX_BYTES, end)
            pending = PendingResponse(num_bytes, now_s, message)
            try:
                is_begun = self._begin(pending)
            except Exception as err:  # a flaw of ours ends this request, and never the loop
                self._refuse_request(pending, error_of(err))
                is_begun = self._put(pending)
            if not is_begun:
                self._context.stalled[self] = None
                self._context.hurry()
                break
            self._unconsumed -= num_bytes
            at = end
        del reader.data[:at]
        self._context.buffer(self, len(reader.data))
        self.flush()

    def _message(self, begin: int, end: int) -> Any:
        return bytes(memoryview(self.reader.data)[begin:end])

    def _consume_all(self) -> None:
        """Open the window: a message may be longer. `Context.buffer` bounds the buffered bytes."""
        if self._unconsumed:
            self._connection.http2.acknowledge(self._stream_id, self._unconsumed)
            self._unconsumed = 0
            self._context.schedule_flush(self._connection)

    def _has_room(self) -> bool:
        """Return whether a request may begin; if not, the stream is resumed later."""
        if self._is_unread():
            self._connection.unread[self] = None
        elif len(self.pending) >= MAX_PENDING:
            self._is_full = True
        else:
            return True
        return False

    def _is_unread(self) -> bool:
        num_unsent = self._connection.http2.num_unsent(self._stream_id)
        return num_unsent > self._context.limits.max_stream_unread_bytes

    def _begin(self, pending: PendingResponse) -> bool:
        """Answer a request, or have it run; return False if it must wait for memory.

        Raises:
            DigitsError: it is refused.
        """
        raise NotImplementedError

    # Answers

    def _put(self, pending: PendingResponse) -> bool:
        """Note a request that has begun; send its answer if it has one, and its turn."""
        self.pending.append(pending)
        self._send_answers()
        return True

    def _refuse_request(self, pending: PendingResponse, error: DigitsError) -> None:
        pending.response = error

    def flush(self) -> None:
        """Send the answers that are ready; end the call after the last."""
        if not self._is_open:
            return
        self._send_answers()
        if self._is_full and len(self.pending) < MAX_PENDING:
            self.resume(self._context.clock())
        elif not self.pending:
            if self._error is not None:
                self.end(self._error)
            elif self.reader.ended and not self.reader.data and not self._is_endless:
                self.end(None)

    _is_endless = False
    """Whether answers may come until the caller leaves."""

    def _send_answers(self) -> None:
        """Send the answers that are ready, in order."""
        ready: list[bytes] = []
        for pending in self.pending:
            if pending.response is None or isinstance(pending.response, DigitsError):
                break
            ready.append(pending.response)
            self._owed += pending.num_bytes
        del self.pending[: len(ready)]
        if self.pending and isinstance(self.pending[0].response, DigitsError):
            self._error = Status.of(self.pending[0].response)
            self._release()
        if ready:
            self._send(b"".join(ready))
            self._note_read()

    def _send(self, data: bytes) -> None:
        self._begin_answer()
        self._connection.http2.send(self._stream_id, data)
        self._context.schedule_flush(self._connection)

    def _note_read(self) -> None:
        """Let the caller send as much again as it has read answers to."""
        if self._is_unread():
            self._connection.unread[self] = None
            return
        self._connection.http2.acknowledge(self._stream_id, self._owed)
        self._owed = 0

    def _begin_answer(self) -> None:
        if not self._has_begun:
            self._has_begun = True
            self._connection.http2.respond(self._stream_id)

    # The end

    @property
    def _is_open(self) -> bool:
        return self._connection.call(self._stream_id) is self

    @property
    def is_incomplete(self) -> bool:
        """Whether the one message of the call has not arrived."""
        return self.takes_one and not self.reader.ended

    def end(self, reason: Status | None) -> None:
        """End the call with a status; None is OK."""
        self._release()
        connection, stream_id = self._connection, self._stream_id
        if reason is not None and not self._has_begun:
            self._context.refuse(connection, stream_id, self.head, reason)
            return
        self._begin_answer()
        connection.http2.end(stream_id, trailers_of(reason) if reason else trailers.OK)
        self._context.metrics.count(self.head.name, reason.code.name if reason else "OK")
        self._context.schedule_flush(connection)

    def cancel(self) -> None:
        """Forget the call: the caller has left."""
        self._release()
        self._context.metrics.count(self.head.name, "CANCELLED")

    def drain(self, reason: Status) -> None:
        """End a call of rows once it has been answered as far as it was accepted."""

    def _release(self) -> None:
        """Release the call's resources."""
        self._context.buffer(self, 0)
        self._owed = self._unconsumed = 0
        self.pending.clear()
        self.reader.data.clear()
        self._context.stalled.pop(self, None)
