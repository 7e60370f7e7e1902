"""Calls by the kind of their method: how each processes and answers a message."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from serving.batching.queue import Group, ResponseEncoder
from serving.errors import DigitsError
from serving.protocols.encoding import frame
from serving.protocols.method import BatchedStream, BatchedUnary, Replies, Unary, Watch
from serving.protocols.status import Status, error_of
from serving.system.host import Task
from serving.transports.h2.message_reader import PendingResponse
from serving.transports.h2.stream import MAX_PENDING, Stream


class _UnaryCall(Stream):
    """One message, answered at once, or by a thread of its own."""

    __slots__ = ()

    def _begin(self, pending: PendingResponse) -> bool:
        method: Any = self.head.method
        if method.is_slow:
            runner = self._context.router.host.runners(1)
            runner.put(partial(self._answer_slowly, method, pending), self._context.post)
            runner.close()
        else:
            pending.response = frame(method.answer(pending.request))
        return self._put(pending)

    def _answer_slowly(self, method: Unary, pending: PendingResponse) -> Task:
        """Answer a request, on its own thread; return the function that sends the answer."""
        try:
            outcome: bytes | DigitsError = frame(method.answer(pending.request))
        except Exception as err:
            outcome = error_of(err)

        def finish() -> None:
            pending.response = outcome
            self.flush()

        return finish


class _RepliesCall(Stream):
    """A stream of messages, each answered at once by any number of them."""

    takes_one = False
    __slots__ = ()

    def _begin(self, pending: PendingResponse) -> bool:
        method: Any = self.head.method
        pending.response = b"".join(map(frame, method.replies(pending.request)))
        return self._put(pending)


class _WatchCall(Stream):
    """One message, answered until the caller leaves."""

    _unsubscribe: Callable[[], None] | None = None

    def _begin(self, pending: PendingResponse) -> bool:
        method: Any = self.head.method
        self._unsubscribe = method.subscribe(pending.request, self._post)
        return True

    @property
    def _is_endless(self) -> bool:  # type: ignore[override]
        return self._unsubscribe is not None

    def _post(self, message: bytes) -> None:
        """Send a message of the subscription, from any thread."""
        self._context.post(lambda: self._send(frame(message)) if self._is_open else None)

    def _release(self) -> None:
        super()._release()
        if self._unsubscribe is not None:
            self._unsubscribe()


class _BatchedUnaryCall(Stream):
    """One message of rows: once it is read, it is like one that came in one piece."""

    __slots__ = ("_read",)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._read: tuple[Any, ResponseEncoder] | None = None
        """The first message that has come, if it was read and waits for room."""

    def _message(self, begin: int, end: int) -> Any:
        """Return the message, which is not copied if its layout is known."""
        view = memoryview(self.reader.data)[begin:end]
        if self.head.prefixes.find(view):
            self.reader.data = bytearray()
            return view
        return bytes(view)

    def _begin(self, pending: PendingResponse) -> bool:
        method: Any = self.head.method
        found = self._read or method.read(pending.request)
        self._read = None
        if not self._run(pending, *found):
            self._read = found
            return False
        return True

    def _run(self, pending: PendingResponse, rows: Any, encoder: ResponseEncoder) -> bool:
        """Have rows run; False if they have to wait for room."""
        connection, stream_id, arrived_s = self._connection, self._stream_id, pending.arrived_s
        connection.streams[stream_id].call = self.head
        deadline_s = self._deadline_s(encoder, arrived_s)
        self._context.submit(
            connection, self.head, encoder, [stream_id], [rows], arrived_s, deadline_s
        )
        return True

    def _deadline_s(self, encoder: ResponseEncoder, arrived_s: float) -> float:
        timeout_s, own_s = self.head.timeout_s, encoder.timeout_s
        return arrived_s + (timeout_s if own_s is None else min(timeout_s, own_s))

    def drain(self, reason: Status) -> None:
        """See `Stream`."""
        if not (self.takes_one and self.pending):
            self._error = self._error or reason
            self.flush()

    def _release(self) -> None:
        super()._release()
        self._read = None


class BatchedStreamCall(_BatchedUnaryCall):
    """A stream of messages, which waits where a unary call is refused."""

    takes_one = False
    __slots__ = ()
    _message = Stream._message

    def run_messages(
        self, encoder: ResponseEncoder, messages: Sequence[bytes], num_bytes: int, now_s: float,
        *, ended: bool,
    ) -> int:  # fmt: skip
        """Run messages that are whole, as far as they need not wait; return how many."""
        room = encoder.target.room_for_stream(encoder.num_rows)
        number = min(len(messages), MAX_PENDING - len(self.pending), room)
        if number <= 0 or self.reader.data or self._error:
            return 0
        self.reader.ended = ended and number == len(messages)
        pending = [PendingResponse(num_bytes, now_s) for _ in range(number)]
        self._queue(pending, messages[:number], encoder)
        self.pending += pending
        return number

    def _run(self, pending: PendingResponse, rows: Any, encoder: ResponseEncoder) -> bool:
        if not encoder.target.room_for_stream(encoder.num_rows):
            return False
        self._queue([pending], [rows], encoder)
        self.pending.append(pending)
        return True

    def _queue(
        self, pending: list[PendingResponse], messages: Sequence[Any], encoder: ResponseEncoder
    ) -> None:
        """Have messages run in one of the next batches."""
        arrived_s = pending[0].arrived_s
        deadline_s = self._deadline_s(encoder, arrived_s)
        streams = [self._stream_id] * len(pending)
        group = Group(
            self._connection, streams, messages, encoder, self, arrived_s, deadline_s, pending
        )
        encoder.target.add(group)

    def answer(self, group: Group, responses: Sequence[bytes]) -> None:
        """See `Sink`."""
        for pending, response in zip(group.slots or (), responses, strict=True):
            pending.response = response
        self.flush()

    def fail(self, group: Group, error: DigitsError) -> None:
        """See `Sink`."""
        if self._is_open:
            for pending in group.slots or ():
                self._refuse_request(pending, error)
            self.flush()

    def _refuse_request(self, pending: PendingResponse, error: DigitsError) -> None:
        method: Any = self.head.method
        response = method.error_message(pending.request, error)
        pending.response = error if response is None else frame(response)


KINDS: dict[type[Any], type[Stream]] = {
    Unary: _UnaryCall,
    Replies: _RepliesCall,
    Watch: _WatchCall,
    BatchedUnary: _BatchedUnaryCall,
    BatchedStream: BatchedStreamCall,
}
