"""The methods of a server, from bytes to bytes: coroutines, the same for every transport."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Protocol

from serving.batching.queue import ResponseEncoder
from serving.errors import DigitsError
from serving.protocols.encoding import PrefixCache
from serving.protocols.status import error_of

ReadRows = tuple[Any, ResponseEncoder]
"""The rows of a request (bytes, or an array for each input), and the encoder of the answer."""
Read = Callable[[Any], ReadRows]
"""Decodes and checks a request; raises DigitsError."""
Refused = Callable[[DigitsError], bytes | None]
"""Encodes the answer to a request that is refused; None ends the stream with the error."""


class Call(Protocol):
    """A call in progress, on any transport; each method of it raises DigitsError."""

    async def message(self) -> Any:
        """Return the caller's next message, bytes or a view of them; None after the last."""

    async def send(self, message: bytes) -> None:
        """Send a message."""

    async def send_framed(self, response: bytes) -> None:
        """Send a message that has gRPC's prefix."""

    async def run(self, rows: Any, encoder: ResponseEncoder) -> bytes:
        """Have rows run, and return the response, with gRPC's prefix."""

    async def work(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function that may take seconds, on another thread."""

    async def answer_in_order(self, rows: ReadRows | DigitsError, refused: Refused) -> None:
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
    """Its path on the wire, such as "/digits.v1.DigitClassifier/Classify"."""
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
    """Raises DigitsError."""
    is_slow: bool = False
    """Whether it is to be called on a thread of its own, since it may take seconds."""

    async def handle(self, call: Call) -> None:
        """See `Method`."""
        message = await call.message()
        slow = call.work(self.answer, message) if self.is_slow else None
        await call.send(await slow if slow else self.answer(message))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BatchedUnary(Method):
    """One message of rows for one message of answers, through a batch."""

    read: Read
    prefixes: PrefixCache = field(default_factory=PrefixCache)
    is_counted_by_run: ClassVar[bool] = True

    async def handle(self, call: Call) -> None:
        """See `Method`."""
        await call.send_framed(await call.run(*self.read(await call.message())))


def _ends_stream(request: bytes, error: DigitsError) -> None:
    """Encode no answer."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BatchedStream(BatchedUnary):
    """A stream of messages of rows, answered in order; it waits where a unary call is refused."""

    error_message: Callable[[bytes, DigitsError], bytes | None] = _ends_stream
    """Encodes the answer to a request that is refused; None ends the stream with the error."""
    is_counted_by_run: ClassVar[bool] = False
    takes_one: ClassVar[bool] = False
    sends_one: ClassVar[bool] = False

    async def handle(self, call: Call) -> None:
        """See `Method`."""
        while (message := await call.message()) is not None:
            try:
                rows: ReadRows | DigitsError = self.read(message)
            except Exception as err:
                rows = error_of(err)
            await call.answer_in_order(rows, partial(self.error_message, message))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Replies(Method):
    """A stream of messages, each answered at once by any number of messages."""

    replies: Callable[[bytes], Iterable[bytes]]
    """Raises DigitsError."""
    takes_one: ClassVar[bool] = False
    sends_one: ClassVar[bool] = False

    async def handle(self, call: Call) -> None:
        """See `Method`."""
        while (message := await call.message()) is not None:
            for reply in self.replies(message):
                await call.send(reply)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Watch(Method):
    """One message, answered by a stream of messages until the caller leaves."""

    subscribe: Callable[[bytes, Callable[[bytes], None]], Callable[[], None]]
    """Takes the request and a function that sends an answer from any thread; returns a function
    that ends the subscription. Raises DigitsError.
    """
    sends_one: ClassVar[bool] = False

    async def handle(self, call: Call) -> None:
        """See `Method`."""
        unsubscribe = self.subscribe(await call.message(), call.post)
        try:
            await call.left()
        finally:
            unsubscribe()
