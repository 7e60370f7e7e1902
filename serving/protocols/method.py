"""The methods of a server, from bytes to bytes: coroutines, the same for every transport."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, NamedTuple, Protocol

from serving.batching.run import ResponseEncoder
from serving.errors import ServingError
from serving.protocols.known import Known
from serving.protocols.status import error_of

ReadRows = tuple[Any, ResponseEncoder]
"""The rows of a request (bytes, or an array for each input), and the encoder of the answer."""
Read = Callable[[Any], ReadRows]
"""Decodes and checks a request; raises ServingError."""
Refused = Callable[[ServingError], bytes | None]
"""Encodes the answer to a request that is refused; None ends the stream with the error."""


class Elsewhere(NamedTuple):
    """How the messages of a method are read that would keep other calls waiting."""

    is_needed: Callable[[Any], bool]
    """Returns whether a message is one."""
    convert: Callable[[Any], Any]
    """A function of a module, called in the pool with the message; raises ServingError."""
    read: Read
    """Reads its outcome."""
    pool: Any
    """A `Pool` of processes; None for the transport's threads."""


class Call(Protocol):
    """A call in progress, on any transport; each method of it raises ServingError."""

    async def message(self) -> Any:
        """Return the caller's next message, bytes or a view of them; None after the last."""

    async def send(self, message: bytes) -> None:
        """Send a message."""

    async def send_framed(self, response: bytes) -> None:
        """Send a message that has gRPC's prefix."""

    async def run(self, rows: Any, encoder: ResponseEncoder) -> bytes:
        """Have rows run, and return the response, with gRPC's prefix."""

    async def work(self, function: Callable[..., Any], *args: Any, pool: Any = None) -> Any:
        """Call a function that may take seconds, in a `Pool` or on another thread."""

    async def answer_in_order(self, rows: ReadRows | ServingError, refused: Refused) -> None:
        """Have a message of a stream answered after those before it; wait while there is no room.

        Args:
            rows: to be run, or why the message is refused.
            refused: encodes the answer if it is, or if its run fails.
        """

    def post(self, message: bytes) -> None:
        """Send a message, from any thread."""

    async def left(self) -> None:
        """Wait until the caller leaves; the call ends by cancellation."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Method:
    """The common part of all kinds of methods."""

    path: str
    """Its path on the wire, such as "/grpc.health.v1.Health/Check"."""
    name: str
    """Its name in the metrics, such as "Classify"."""
    is_open: bool = False
    """Whether it needs no token."""
    takes_one: ClassVar[bool] = True
    """Whether a caller sends exactly one message."""
    sends_one: ClassVar[bool] = True
    """Whether it is answered by one message."""
    is_counted_by_run: ClassVar[bool] = False
    """Whether the run that answers a call also counts it."""

    async def handle(self, call: Call) -> None:
        """Answer a call."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Unary(Method):
    """One message for one message, answered at once."""

    answer: Callable[[bytes], bytes]
    """Raises ServingError."""
    is_slow: bool = False
    """Whether it is to be called on a thread of its own, since it may take seconds."""

    async def handle(self, call: Call) -> None:
        message = await call.message()
        slow = call.work(self.answer, message) if self.is_slow else None
        await call.send(await slow if slow else self.answer(message))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BatchedUnary(Method):
    """One message of rows for one message of answers, through a batch."""

    read: Read
    known: Known = field(default_factory=Known)
    elsewhere: Elsewhere | None = None
    """None if each message is read at once."""
    is_counted_by_run: ClassVar[bool] = True

    async def handle(self, call: Call) -> None:
        rows = await self._rows(call, await call.message())
        await call.send_framed(await call.run(*rows))

    async def _rows(self, call: Call, message: Any) -> ReadRows:
        other = self.elsewhere
        if other is None or not other.is_needed(message):
            return self.read(message)
        return other.read(await call.work(other.convert, message, pool=other.pool))


def _ends_stream(request: bytes, error: ServingError) -> None:
    """Encode no answer."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BatchedStream(BatchedUnary):
    """A stream of messages of rows, answered in order; it waits where a unary call is refused."""

    error_message: Callable[[bytes, ServingError], bytes | None] = _ends_stream
    """Encodes the answer to a request that is refused; None ends the stream with the error."""
    is_counted_by_run: ClassVar[bool] = False
    takes_one: ClassVar[bool] = False
    sends_one: ClassVar[bool] = False

    async def handle(self, call: Call) -> None:
        while (message := await call.message()) is not None:
            try:
                rows: ReadRows | ServingError = await self._rows(call, message)
            except Exception as err:
                # Its traceback has this frame, which has it: a circle that would keep the message.
                rows = error_of(err).with_traceback(None)
            await call.answer_in_order(rows, partial(self.error_message, message))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Replies(Method):
    """A stream of messages, each answered at once by any number of messages."""

    replies: Callable[[bytes], Iterable[bytes]]
    """Raises ServingError."""
    takes_one: ClassVar[bool] = False
    sends_one: ClassVar[bool] = False

    async def handle(self, call: Call) -> None:
        while (message := await call.message()) is not None:
            for reply in self.replies(message):
                await call.send(reply)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Watch(Method):
    """One message, answered by a stream of messages until the caller leaves."""

    subscribe: Callable[[bytes, Callable[[bytes], None]], Callable[[], None]]
    """Takes the request and a function that sends an answer from any thread; returns a function
    that ends the subscription. Raises ServingError.
    """
    sends_one: ClassVar[bool] = False

    async def handle(self, call: Call) -> None:
        unsubscribe = self.subscribe(await call.message(), call.post)
        try:
            await call.left()
        finally:
            unsubscribe()
