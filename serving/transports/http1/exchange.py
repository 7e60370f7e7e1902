"""A request and its answer: a `LoopCall` over HTTP."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from serving.batching.queue import Group, ResponseEncoder
from serving.errors import DeadlineExceeded, DigitsError, Overloaded
from serving.telemetry.tracing import Ran
from serving.transports.calls import SMALL_BYTES, LoopCall, Pool
from serving.transports.connections import Peer
from serving.transports.http1.problems import Answer
from serving.transports.http1.routing import RoutedRequest

__all__ = ("SMALL_BYTES", "Exchange", "Known", "OneThread", "Pool")

_NO_ROOM = Overloaded("other requests' bodies leave no room for this one")


class OneThread:
    """A `Pool` for trusted work."""

    def __init__(self, name: str) -> None:
        """Start nothing yet."""
        self._thread = ThreadPoolExecutor(1, name)

    def submit(self, owner: str, function: Callable[..., Any], *args: Any) -> "Future[Any]":
        """See `Pool`."""
        return self._thread.submit(function, *args)

    def close(self) -> None:
        """See `Pool`."""
        self._thread.shutdown(wait=False, cancel_futures=True)


class Exchange(LoopCall):
    """A request whose head has come; `start` begins once its body has."""

    __slots__ = ("body", "plan")

    def __init__(self, port: Any, peer: Peer, plan: RoutedRequest, stream: int) -> None:
        """Prepare; the port sets the deadline and the body once it knows them."""
        super().__init__(port, peer, stream, float("inf"))
        self.plan = plan
        """Its routing."""
        self.body = b""

    def encode(self, answer: Answer) -> bytes:
        """Write an answer as this request has it, from its third line on."""
        encoded: bytes = self.port.encode_rest(self.plan, answer)
        return encoded

    def learn(self, num_bytes: int, encoder: ResponseEncoder) -> None:
        """Have requests recognised that differ from this one in their last bytes only."""
        self.port.learn(self, num_bytes, encoder)

    def close(self) -> None:
        """See `LoopCall`."""
        super().close()
        self.body = b""

    def _returned(self, outcome: Answer) -> None:
        self.port.reply(self, outcome)

    def _raised(self, error: Exception) -> None:
        self.port.fail_request(self, error)

    def expire(self) -> None:
        """See `LoopCall`."""
        self.port.fail_request(self, DeadlineExceeded())

    def refuse_bytes(self) -> None:
        """See `LoopCall`."""
        self.port.fail_request(self, _NO_ROOM)


class Known:
    """Requests of one connection that differ only in the rows at their end, and their sink."""

    def __init__(
        self, prefix: bytes, num_bytes: int, encoder: ResponseEncoder, timeout_s: float,
        end: Callable[[Any, bytes | DigitsError], None],
    ) -> None:  # fmt: skip
        """Describe requests.

        Args:
            prefix: the head and the bytes before the rows.
            num_bytes: the length of all.
            encoder: makes answers but for their first two lines.
            timeout_s: how long they may take.
            end: answers the one in progress on a connection.
        """
        self._prefix, self._num_bytes = prefix, num_bytes
        self._encoder, self._timeout_s, self._end = encoder, timeout_s, end

    def is_same(self, data: bytes) -> bool:
        """Return whether a read is such a request, whole and alone."""
        return len(data) == self._num_bytes and data.startswith(self._prefix)

    def group(self, peer: Peer, stream: int, data: bytes, now_s: float) -> Group:
        """Return the batcher's side of a request."""
        rows, deadline_s = data[len(self._prefix) :], now_s + self._timeout_s
        streams: Any = [stream]
        return Group(peer, streams, [rows], self._encoder, self, now_s, deadline_s)

    def answer(self, group: Group, responses: Sequence[bytes], run: Ran) -> None:
        """See `Sink`."""
        for response in responses:
            self._end(group.caller, response)

    def fail(self, group: Group, error: DigitsError) -> None:
        """See `Sink`."""
        self._end(group.caller, error)
