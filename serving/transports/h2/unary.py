"""A unary call whose message does not come, or is not answered, in one piece."""

import time
from typing import TYPE_CHECKING

from serving.batching.request import Request
from serving.errors import DigitsError
from serving.protocols.method import ImagesUnary, Unary
from serving.protocols.plan import Plan, frame
from serving.protocols.status import error_of
from serving.transports.h2.connection import Connection
from serving.transports.h2.heads import Head
from serving.transports.h2.status import PREFIX_BYTES, Status, flaw
from serving.transports.h2.streams import WatchStream

if TYPE_CHECKING:
    from serving.transports.h2.calls import Calls


class Body:
    """A unary call: its message as it arrives, and its run if that is a runner thread's."""

    __slots__ = ("_begun_s", "_calls", "_connection", "_data", "_head", "_large", "_stream_id")

    def __init__(self, calls: "Calls", connection: Connection, stream_id: int, head: Head) -> None:
        self._calls = calls
        self._connection = connection
        self._stream_id = stream_id
        self._head = head
        self._data = bytearray()
        self._begun_s = time.monotonic()
        self._large: Request | None = None

    @property
    def is_pending(self) -> bool:
        """See `Call`."""
        return self._large is not None

    def receive(self, data: bytes, now_s: float, *, ended: bool) -> None:
        """See `Call`."""
        if data:
            self._connection.consume(self._stream_id, len(data))
            self._data += data
        reason = flaw(self._data, self._calls.limits.max_message_bytes, ended=ended)
        if reason is not None:
            self.end(reason)
        elif ended:
            self._calls.hold(self, 0)
            self._finish_message(now_s)
        else:
            self._calls.hold(self, len(self._data))

    def _finish_message(self, now_s: float) -> None:
        calls, connection, stream_id, head = (
            self._calls, self._connection, self._stream_id, self._head,
        )  # fmt: skip
        method, message = head.method, bytes(self._data[PREFIX_BYTES:])
        self._data = bytearray()
        try:
            if isinstance(method, ImagesUnary):
                self._submit(*method.read(message), now_s)
            elif isinstance(method, Unary):
                response = method.answer(message)
                connection.calls.pop(stream_id, None)
                connection.answer(stream_id, frame(response))
                calls.metrics.count(head.name, "OK")
                calls.touch(connection)
            else:
                watch = WatchStream(calls, connection, stream_id, head)
                connection.calls[stream_id] = watch
                watch.subscribe(message)
        except Exception as err:  # a flaw of ours ends this call, and never the loop
            self._fail(error_of(err))

    def _submit(self, pixels: bytes | memoryview, plan: Plan, now_s: float) -> None:
        """Have the images run, in the loop's next batch or by a runner thread."""
        calls, connection = self._calls, self._connection
        timeout_s = self._head.timeout_s
        if plan.timeout_s is not None:
            timeout_s = min(timeout_s, plan.timeout_s)
        deadline_s = now_s + timeout_s
        if plan.num_rows > calls.max_inline_images:
            connection.calls[self._stream_id] = self
            self._large = calls.large_request(
                pixels, plan, connection, deadline_s, self._finish_run
            )
            return
        connection.calls[self._stream_id] = self._head
        calls.submit((connection, self._stream_id, pixels, plan, now_s, deadline_s, None))

    def _finish_run(self, outcome: bytes | DigitsError) -> None:
        connection, stream_id = self._connection, self._stream_id
        if connection.calls.get(stream_id) is not self:
            return  # the caller has left
        if isinstance(outcome, DigitsError):
            self._fail(outcome)
            return
        del connection.calls[stream_id]
        connection.answer(stream_id, outcome)
        self._calls.metrics.count(self._head.name, "OK")
        self._calls.touch(connection)

    def _fail(self, error: DigitsError) -> None:
        if isinstance(self._head.method, ImagesUnary):
            self._head.method.note_failure(error, time.monotonic() - self._begun_s)
        self.end(Status.of(error))

    def end(self, reason: Status) -> None:
        """See `Call`."""
        self._calls.hold(self, 0)
        self._drop_run()
        self._calls.refuse(self._connection, self._stream_id, self._head, reason)

    def cancel(self) -> None:
        """See `Call`."""
        self._calls.hold(self, 0)
        self._drop_run()
        self._calls.metrics.count(self._head.name, "CANCELLED")

    def drain(self, reason: Status) -> None:
        """See `Call`."""
        if self._large is None and self._head.is_plain:
            self.end(reason)

    def _drop_run(self) -> None:
        if self._large is not None:
            self._calls.batcher.cancel(self._large)
