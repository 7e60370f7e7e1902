"""A client's transport: one interface for threads and event loops, ours and grpcio's."""

from typing import Protocol

from serving.protocols.status import Failure, StatusCode

Outcome = bytes | Failure
Metadata = tuple[tuple[str, str], ...]
MAX_ANSWER_BYTES = (256 << 20) + (1 << 20)
"""The longest message that is accepted: outputs of as many bytes as servers send by default
(`max_response_bytes`), and their names and shapes."""
KEEPALIVE_TIME_S = 1.5
"""How long nothing may come while a call waits; then a ping asks whether the server lives."""
KEEPALIVE_TIMEOUT_S = 1.25
"""How long its answer may take; then the connection is given up."""

CUT_OFF = Failure(StatusCode.CANCELLED, "the call was cut off")
ENDED = Failure(StatusCode.OK, "")
"""The end of a stream behind its last message."""
LATE = Failure(StatusCode.DEADLINE_EXCEEDED, "no answer within the timeout")


def too_long() -> Failure:
    """Return the failure of a call whose answer is longer than is accepted."""
    text = f"the answer has more than {MAX_ANSWER_BYTES} bytes, the most that this client takes"
    return Failure(StatusCode.RESOURCE_EXHAUSTED, text, is_answer=True, reason="TOO_LARGE")


class PendingCall(Protocol):
    """A call that was sent."""

    def cancel(self) -> None:
        """Forget the call, if it has not ended."""

    async def result(self) -> Outcome:
        """Wait for the end of the call."""


class PendingStream(Protocol):
    """A call that was sent, and that any number of messages answer."""

    def cancel(self) -> None:
        """Forget the call, if it has not ended."""

    async def next(self) -> Outcome:
        """Wait for the next message; behind the last one it is `ENDED`, or why it failed.

        The server sends more as messages are taken.
        """


class EndedCall:
    """A call that could not be sent."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def cancel(self) -> None:
        """Do nothing: it has ended."""

    async def result(self) -> Outcome:
        """Return the reason."""
        return self._outcome

    next = result


class Transport(Protocol):
    """Connects at the first call, and again when that is needed.

    For threads, too, these methods are coroutines: they block instead of suspending.
    """

    async def send(
        self, path: str, message: bytes, timeout_s: float, metadata: Metadata = ()
    ) -> PendingCall:
        """Start a call; its metadata come after those of the credentials."""

    async def exchange(
        self, path: str, message: bytes, timeout_s: float, metadata: Metadata = ()
    ) -> Outcome:
        """Start a call and wait for its end."""
        return await (await self.send(path, message, timeout_s, metadata)).result()

    async def stream(
        self, path: str, message: bytes, timeout_s: float, metadata: Metadata = ()
    ) -> PendingStream:
        """Start a call that any number of messages answer; see `send`."""

    async def close(self) -> None:
        """End all calls and connections."""
