"""A client's transport: one interface for threads and event loops, ours and grpcio's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from serving.errors import (
    Unavailable,
)
from serving.protocols import error_info
from serving.protocols.status import PUSHBACK, Failure, StatusCode

Outcome = bytes | Failure
Metadata = tuple[tuple[str, str], ...]
KEEPALIVE_TIME_S = 1.5
"""How long nothing may come while a call waits; then a ping asks whether the server lives."""
KEEPALIVE_TIMEOUT_S = 1.25
"""How long its answer may take; then the connection is given up."""

CUT_OFF = Failure(StatusCode.CANCELLED, "the call was cut off")
LATE = Failure(StatusCode.DEADLINE_EXCEEDED, "no answer within the timeout")


def malformed(address: str, answer: str) -> Unavailable:
    """Build the error for a server that breaks its protocol."""
    return Unavailable(f"{address}: the server is broken: it answered {answer}")


class PendingCall(Protocol):
    """A call that was sent."""

    def cancel(self) -> None:
        """Forget the call, if it has not ended."""

    async def result(self) -> Outcome:
        """Wait for the end of the call."""


class EndedCall:
    """A call that could not be sent."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def cancel(self) -> None:
        """Do nothing: it has ended."""

    async def result(self) -> Outcome:
        """Return the reason."""
        return self._outcome


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

    async def close(self) -> None:
        """End all calls and connections."""


# Retries


# Trailers


def trailers_failure(
    code: StatusCode, text: str, trailers: Sequence[tuple[str, str | bytes]]
) -> Failure:
    """Build the failure of a call that a server has answered.

    Args:
        code: its status.
        text: its text.
        trailers: binary ones as bytes, or as they are on the wire, in base64.
    """
    fields = dict(trailers)
    details, pushback = fields.get(error_info.TRAILER, ""), fields.get(PUSHBACK, "")
    read = error_info.reason_in if isinstance(details, bytes) else error_info.decode
    reason = read(details)  # type: ignore[arg-type]
    return Failure(code, text, PUSHBACK not in fields, reason, _pause_s(str(pushback)))


def _pause_s(milliseconds: str) -> float | None:
    """Read a pushback; a negative number, or none, asks for no attempt (gRFC A6)."""
    if not milliseconds:
        return None
    try:
        return int(milliseconds[:12]) / 1e3
    except ValueError:
        return -1.0


# Credentials


# Addresses


@dataclass(frozen=True, slots=True)
class Address:
    """One server's address."""

    host: str
    port: int
    authority: str
    """As it was written: "host:port"."""
