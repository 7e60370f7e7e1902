"""A call that is not one message of rows in a known layout, in one piece.

Its messages begin in the order in which they arrive, and are answered in that order. A caller that
does not read its answers, or sends more than can run, is not read: its messages stay unconsumed,
and flow control of HTTP/2 stops it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from serving.batching.run import Group, Ran, ResponseEncoder
from serving.errors import Overloaded, ServingError
from serving.http2 import Pieces
from serving.protocols.framing import PREFIX_BYTES, frame
from serving.protocols.method import BatchedUnary, ReadRows, Refused, Watch
from serving.protocols.status import Status, error_of
from serving.transports import grpc_headers as headers
from serving.transports.calls import LoopCall, paused
from serving.transports.grpc_headers import CallHeaders, too_long, trailers_of
from serving.transports.peer import Peer

_MAX_QUERY_BYTES = 64 << 10
"""The most bytes of a compressed message that has no rows, such as of reflection."""
_MAX_PENDING = 512
"""The most requests of one stream that are in flight."""


class _Refusal(Exception):
    """A message that can't be read."""

    def __init__(self, status: Status) -> None:
        self.status = status


class PendingResponse:
    """The place of one request's answer in its stream."""

    __slots__ = ("num_bytes", "num_unpacked", "refused", "response")

    def __init__(self, num_bytes: int, refused: Refused, num_unpacked: int = 0) -> None:
        self.num_bytes = num_bytes
        """The part of the stream's window that its request has not given back."""
        self.num_unpacked = num_unpacked
        """The bytes of the request, if it was compressed."""
        self.refused = refused
        self.response: bytes | Pieces | ServingError | None = None
        """The framed answer, or why there is none."""


class GrpcCall(LoopCall):
    """A call over HTTP/2; see `Call` of `serving.protocols.method`."""

    __slots__ = (
        "_ended",
        "_error",
        "_has_begun",
        "_missing_at",
        "_num_unpacked",
        "_owed",
        "_paused",
        "_response",
        "_taken",
        "_unconsumed",
        "_unpacked",
        "_waits",
        "call_headers",
        "data",
        "parts",
        "pending",
        "takes_one",
    )  # fmt: skip

    def __init__(
        self, port: Any, peer: Peer, stream: bytes, call_headers: CallHeaders, now_s: float
    ) -> None:
        super().__init__(port, peer, stream, now_s + call_headers.timeout_s)
        self.call_headers = call_headers
        self.takes_one = call_headers.method is None or call_headers.method.takes_one
        """Whether the caller sends exactly one message."""
        self.pending: list[PendingResponse] = []
        """Requests in progress, in order. An empty deque would take ten times an empty list."""
        self.parts: list[PendingResponse] = []
        """Requests that are answered in parts, and not to their end; among others' answers."""
        self._paused: list[Callable[[], None]] = []
        """Resumes those whose parts the caller does not read."""
        self.data = bytearray()
        """The bytes received of messages that have not begun."""
        self._missing_at = 0
        """How long they must be for the first message to be whole, as far as that is known."""
        self._ended = False
        """Whether the caller has sent everything."""
        self._unconsumed = 0
        """How many of its last bytes the window is still short of."""
        self._taken = 0
        """The window bytes of the message that the method has taken."""
        self._unpacked = 0
        """The bytes of the message that the method has taken, if it was compressed."""
        self._num_unpacked = 0
        """Bytes of all messages that are not answered."""
        self._owed = 0
        """The window bytes of answered requests, until the answers are read."""
        self._waits = ""
        """For "message" or "room" the method waits."""
        self._response: bytes | Pieces | None = None
        """The only answer, which is sent with the end."""
        self._has_begun = False
        """Whether the headers of the answer were sent."""
        self._error: Status | None = None
        """How the call ends, after the answers before it."""

    # Requests

    def receive(self, data: bytes, *, ended: bool) -> None:
        """Process more bytes of the caller."""
        self.data += data
        self._ended = ended
        may_begin = ended or len(self.data) >= self._missing_at  # cheap: there may be many parts
        if self.takes_one:
            if not ended:
                self._unconsumed += len(data)
            if may_begin:
                self._begin_if_whole()
            if self._unconsumed and not self.is_over:
                self._let_more_come()
        else:
            self._unconsumed += len(data)
            if may_begin:
                self.resume()
            else:
                self._let_more_come()
        if not self.is_over:
            self._hold()

    def _begin_if_whole(self) -> None:
        """Begin a method that takes one message, once it has come; refuse others early."""
        try:
            if self._end_of_message():
                self.start(self.call_headers.method.handle(self))  # type: ignore[union-attr]
        except _Refusal as err:
            self.end(err.status)

    async def message(self) -> Any:
        self._owed, self._taken = self._owed + self._taken, 0
        if self._owed:
            self._note_read()
        while True:
            if self._has_room():
                if self._ended and not self.data:
                    return None
                if end := self._end_of_message():
                    break
                self._let_more_come()
            await paused(self._wait_for_message)
        num_bytes = len(self.data)
        self._taken = end - max(0, num_bytes - self._unconsumed)
        self._unconsumed -= self._taken
        method, is_packed = self.call_headers.method, self.data[0]
        if method is None or end < num_bytes or is_packed:
            message = bytes(memoryview(self.data)[PREFIX_BYTES:end])
            del self.data[:end]
            return await self.unpacked(message, self._max_unpacked) if is_packed else message
        data, self.data = memoryview(self.data)[PREFIX_BYTES:], bytearray()
        return (
            data if self.call_headers.known.find(data) else bytes(data)
        )  # known: it is not copied

    def _wait_for_message(self) -> None:
        self._waits = "message"
        self._hold()

    def _hold(self) -> None:
        self.port.calls.budget.hold(self, len(self.data) + self._num_unpacked)

    def keep(self, num_bytes: int) -> None:
        self._num_unpacked += num_bytes - self._unpacked
        self._unpacked = num_bytes
        self._hold()

    def _end_of_message(self) -> int:
        """Return where the first message ends, 0 if it has not come.

        Raises:
            _Refusal: it can't be read.
        """
        data, end = self.data, PREFIX_BYTES
        size, limit = len(data), self._max_bytes
        if self._ended and not size:
            raise _Refusal(headers.NOT_ONE_MESSAGE)
        if size >= end:
            length = int.from_bytes(data[1:end], "big")
            if data[0] > 1:
                raise _Refusal(headers.MALFORMED)
            if data[0] and self.call_headers.encoding != headers.GZIP:
                raise _Refusal(headers.OTHER_ENCODING)
            if length > limit:
                raise _Refusal(too_long(length, limit))
            end += length
            if self.takes_one and size > end:
                raise _Refusal(headers.NOT_ONE_MESSAGE)
        self._missing_at = end
        if size < end and self._ended:
            raise _Refusal(headers.TRUNCATED)
        if size < end or (self.takes_one and not self._ended):
            return 0
        self._missing_at = 0
        return end

    @property
    def _max_bytes(self) -> int:
        most: int = self.port.limits.max_message_bytes
        return most

    @property
    def _max_unpacked(self) -> int:
        """The most bytes of a compressed message: only rows are long."""
        has_rows = isinstance(self.call_headers.method, BatchedUnary)
        return self._max_bytes if has_rows else min(self._max_bytes, _MAX_QUERY_BYTES)

    def _let_more_come(self) -> None:
        """Open the window for the rest of a message, once there is room for all of it."""
        if self.port.calls.budget.admit(self, self._missing_at):
            self.resume_reading()

    def resume_reading(self) -> None:
        if self._unconsumed:
            self.peer.engine.acknowledge(self.stream, self._unconsumed)
            self._unconsumed = 0
            self.port.schedule_flush(self.peer)

    def _has_room(self) -> bool:
        """Return whether a request may begin; if not, the call is resumed later."""
        if self._is_unread():
            self.peer.unread[self] = None
            return False
        return len(self.pending) + len(self.parts) < _MAX_PENDING

    def _is_unread(self) -> bool:
        unsent: int = self.peer.engine.num_unsent(self.stream)
        return bool(unsent > self.port.limits.max_stream_unread_bytes)

    def resume(self) -> None:
        if self.is_over:
            return
        if self._owed:
            self._note_read()
        if self._paused:
            self._resume_parts()
        if self._waits and self._steps is not None:
            self._waits = ""
            self._step(self._steps.send, None)

    async def answer_in_order(self, rows: ReadRows | ServingError, refused: Refused) -> None:
        pending = PendingResponse(self._taken, refused, self._unpacked)
        self._taken = self._unpacked = 0
        if isinstance(rows, ServingError):
            self._refuse(pending, rows)
            self.pending.append(pending)
            self._send_answers()
            if self._error is not None:
                raise _Refusal(self._error)
            return
        message, encoder = rows
        while not encoder.target.room_for_stream(encoder.num_rows):
            await paused(self.wait_for_room)
        (self.parts if encoder.in_parts else self.pending).append(pending)
        self._queue([pending], [message], encoder)
        if self._error is not None:
            raise _Refusal(self._error)

    def wait_for_room(self) -> None:
        self._waits = "room"
        super().wait_for_room()

    def run_messages(
        self, encoder: ResponseEncoder, messages: Sequence[bytes], num_bytes: int, *, ended: bool
    ) -> int:
        """Run messages that were recognised, as far as they need not wait; return how many.

        Args:
            encoder: of their answers.
            messages: their rows.
            num_bytes: of each, with its prefix.
            ended: whether the caller sends no more.
        """
        room = encoder.target.room_for_stream(encoder.num_rows)
        number = min(len(messages), _MAX_PENDING - len(self.pending) - len(self.parts), room)
        method: Any = self.call_headers.method
        if number <= 0 or self.data or self._waits != "message" or self.takes_one:
            return 0
        refused = partial(method.error_message, b"")
        pending = [PendingResponse(num_bytes, refused) for _ in range(number)]
        self.pending += pending
        self._queue(pending, messages[:number], encoder)
        if ended and number == len(messages):
            self._ended = True
            self.resume()
        return number

    def _queue(
        self, pending: list[PendingResponse], messages: Sequence[Any], encoder: ResponseEncoder
    ) -> None:
        """Have messages run in one of the next batches."""
        now_s = self.port.clock()
        own_s, self.model = encoder.timeout_s, encoder.target.label
        deadline_s = self.deadline_s if own_s is None else min(self.deadline_s, now_s + own_s)
        streams = [self.stream] * len(pending)
        encoder.target.add(
            Group(self.peer, streams, messages, encoder, self, now_s, deadline_s, pending)
        )

    # Answers

    async def send(self, message: bytes) -> None:
        await self.send_framed(frame(message))

    async def send_framed(self, response: bytes | Pieces) -> None:
        if isinstance(response, Pieces):
            self.port.calls.budget.hold_answer(response)
        if self.call_headers.method.sends_one and self.logged is None:  # type: ignore[union-attr]
            self._response = response
        else:
            self._send(response)

    def post(self, message: bytes) -> None:
        framed = frame(message)
        self.port.post(lambda: None if self.is_over else self._send(framed))

    async def left(self) -> None:
        await paused(lambda: None)

    def answer(self, group: Group, responses: Sequence[bytes | Pieces], run: Ran) -> None:
        if group.slots is None:
            super().answer(group, responses, run)
            return
        if group.encoder.in_parts:
            if responses:
                self._end_parts(group, responses[0])
            return
        for pending, response in zip(group.slots, responses, strict=True):
            pending.response = response
            if isinstance(response, Pieces):
                try:
                    self.port.calls.budget.hold_answer(response)
                except Overloaded as err:
                    self._refuse(pending, err)
        self._go_on()

    def fail(self, group: Group, error: ServingError) -> None:
        if group.slots is None:
            super().fail(group, error)
            return
        if group.encoder.in_parts:
            for pending in group.slots:
                self._refuse(pending, error)
                self._end_parts(group, pending.response)
            return
        for pending in group.slots:
            self._refuse(pending, error)
        self._go_on()

    def take_part(self, group: Group, response: bytes | Pieces, resume: Callable[[], None]) -> None:
        """Send a part; the next one is made once the caller has read enough."""
        if self.is_over:
            return
        if isinstance(response, Pieces):
            self.port.calls.budget.hold_answer(response)
        self._give_back(group.slots[0])  # type: ignore[index]
        self._send(response)
        self._paused.append(resume)
        self._resume_parts()

    def _resume_parts(self) -> None:
        if self._is_unread():
            self.peer.unread[self] = None
            return
        paused, self._paused = self._paused, []
        for resume in paused:
            resume()

    def _give_back(self, pending: PendingResponse) -> None:
        """Let the caller send as much as a request had, which has its first answer."""
        if pending.num_bytes:
            self._owed += pending.num_bytes
            self._num_unpacked -= pending.num_unpacked
            pending.num_bytes = pending.num_unpacked = 0
            self._note_read()
            self._hold()

    def _end_parts(self, group: Group, end: bytes | Pieces | ServingError | None) -> None:
        """Take the end of a request that is answered in parts: an answer, an error, or nothing."""
        (pending,) = group.slots  # type: ignore[misc]
        if self.is_over or pending not in self.parts:
            return
        was_full = len(self.pending) + len(self.parts) >= _MAX_PENDING
        self.parts.remove(pending)
        self._give_back(pending)
        if isinstance(end, ServingError):
            self._error, self.model = self._error or Status.of(end), end.model or self.model
        elif end is not None:
            self._send(end)
        if self._steps is None or self._error is not None:
            self._end_if_answered()
        elif was_full and self._waits == "message":
            self.resume()

    def _refuse(self, pending: PendingResponse, error: ServingError) -> None:
        response = pending.refused(error)
        pending.response = error if response is None else frame(response)

    def _go_on(self) -> None:
        """Send the answers that are ready; end the call after the last, or begin more."""
        if self.is_over:
            return
        was_full = len(self.pending) >= _MAX_PENDING
        self._send_answers()
        if self._steps is None or self._error is not None:
            self._end_if_answered()
        elif was_full and self._waits == "message":
            self.resume()

    def _send_answers(self) -> None:
        """Send the answers that are ready, in order."""
        ready: list[bytes | Pieces] = []
        for pending in self.pending:
            if pending.response is None or isinstance(pending.response, ServingError):
                break
            ready.append(pending.response)
            self._owed += pending.num_bytes
            self._num_unpacked -= pending.num_unpacked
        del self.pending[: len(ready)]
        if ready:
            for is_long, some in groupby(ready, key=lambda each: isinstance(each, Pieces)):
                for each in some if is_long else (b"".join(some),):  # type: ignore[arg-type]
                    self._send(each)
            self._note_read()
            if self.call_headers.encoding:
                self._hold()
        if self.pending and isinstance(self.pending[0].response, ServingError):
            error = self.pending[0].response
            self._error, self.model = Status.of(error), error.model or self.model
            self.pending.clear()

    def _send(self, data: bytes | Pieces) -> None:
        self._begin_answer()
        self.peer.engine.send(self.stream, data)
        self.port.schedule_flush(self.peer)

    def _note_read(self) -> None:
        """Let the caller send as much again as it has read answers to."""
        if self._is_unread():
            self.peer.unread[self] = None
            return
        self.peer.engine.acknowledge(self.stream, self._owed)
        self._owed = 0

    def _begin_answer(self) -> None:
        if not self._has_begun:
            self._has_begun = True
            self.peer.engine.respond(self.stream)

    # The end

    def _returned(self, outcome: Any) -> None:
        self._end_if_answered()

    def _raised(self, error: Exception) -> None:
        is_refusal = isinstance(error, _Refusal)
        self._error = error.status if is_refusal else Status.of(error_of(error))  # type: ignore[attr-defined]
        self._end_if_answered()

    def _end_if_answered(self) -> None:
        if not self.pending and not self.parts:
            self.end(self._error)
        elif self._error is not None and self._steps is not None:  # parts of earlier ones come
            steps: Any = self._steps
            if not steps.cr_running:
                self._steps = None
                steps.close()

    @property
    def is_accepted(self) -> bool:
        """Whether it is to be answered, however soon the server ends."""
        return self.is_running or bool(self.pending or self.parts)

    @property
    def is_watch(self) -> bool:
        """Whether its answers are news for as long as the caller stays, which nobody waits for."""
        return isinstance(self.call_headers.method, Watch)

    @property
    def is_incomplete(self) -> bool:
        """Whether the one message of the call has not arrived."""
        return self.takes_one and not self._ended

    def end(self, reason: Status | None) -> None:
        """End the call with a status; None is OK."""
        response = self._response
        self.close()
        engine, code = self.peer.engine, "OK" if reason is None else reason.code.name
        trailers = headers.OK if reason is None else trailers_of(reason)
        if request_id := self.end_log(code):
            trailers = (*trailers, (headers.REQUEST_ID, request_id.encode()))
        if response is not None and reason is None:
            engine.answer([self.stream], [response])
        elif reason is not None and not self._has_begun:
            engine.refuse([self.stream], (*headers.RESPONSE, *trailers))
        else:
            self._begin_answer()
            engine.end(self.stream, () if trailers is headers.OK else trailers)
        method = self.call_headers.method
        if reason is not None or method is None or not method.is_counted_by_run:
            self.port.metrics.count(self.call_headers.name, code, model=self.model)
        self.port.schedule_flush(self.peer)

    def close(self) -> None:
        super().close()
        self._owed = self._unconsumed = 0
        self.pending.clear()
        self.parts.clear()
        paused, self._paused = self._paused, []
        for resume in paused:  # so that they end: nobody waits
            self.port.post(resume)
        self._response = None  # the call itself is known until its deadline
        self.data = bytearray()

    def cancel(self) -> None:
        """Forget the call: the caller has left."""
        self.close()
        self.end_log("CANCELLED")
        self.port.metrics.count(self.call_headers.name, "CANCELLED", model=self.model)

    def drain(self, reason: Status) -> None:
        """End a call of rows once it has been answered as far as it was accepted."""
        if isinstance(self.call_headers.method, BatchedUnary) and not self.is_running:
            if self._steps is not None or not self._ended:  # else all of it was accepted
                self._error = self._error or reason
            steps, self._steps = self._steps, None
            if steps is not None:
                steps.close()
            self._end_if_answered()

    def expire(self) -> None:
        """End a call whose deadline has passed; a run that waits ends at its own."""
        if not (self.is_running and isinstance(self.call_headers.method, BatchedUnary)):
            self.end(headers.LATE)

    def refuse_bytes(self) -> None:
        self.end(headers.OUT_OF_MEMORY)
