"""A client's transport: one interface for threads and event loops, ours and grpcio's."""

import math
import random
import time
from typing import Protocol

from serving.errors import DigitsError, Unavailable
from serving.protocols.status import StatusCode, error_from

Failure = tuple[StatusCode, str | None] | tuple[StatusCode, str | None, bool]
"""A status, its text, and whether a server answered so without asking for another attempt."""
Outcome = bytes | Failure

PUSHBACK = "grpc-retry-pushback-ms"
"""The trailer that asks for another attempt (gRFC A6): our servers send it when they end."""
KEEPALIVE_TIME_S = 1.5
"""How long nothing may come while a call waits; then a ping asks whether the server lives."""
KEEPALIVE_TIMEOUT_S = 1.25
"""How long its answer may take; then the connection is given up."""

CUT_OFF: Failure = (StatusCode.CANCELLED, "the call was cut off")
LATE: Failure = (StatusCode.DEADLINE_EXCEEDED, "no answer within the timeout")


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

    async def send(self, path: str, message: bytes, timeout_s: float) -> PendingCall:
        """Start a call."""

    async def exchange(self, path: str, message: bytes, timeout_s: float) -> Outcome:
        """Start a call and wait for its end."""
        return await (await self.send(path, message, timeout_s)).result()

    async def close(self) -> None:
        """End all calls and connections."""


_FIRST_CONTACT_S = 5.0
"""How long a client that never had an answer retries: long enough for a server that is starting,
but shorter than a long timeout, in case the address is wrong."""
_SHORTEST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.05, 0.5
_MAX_ATTEMPTS = 5
"""The most attempts of one call that servers answer by a failure; gRPC's own limit (gRFC A6)."""
_LONGEST_TIMEOUT_S = 1e9
"""Thirty years: locks, poll and grpcio take no infinity."""
_RETRYABLE = (
    StatusCode.UNAVAILABLE,
    StatusCode.CANCELLED,  # of calls pending at a grpcio server's stop (grpc #41785)
)
_PERMANENT = ("andshake", "erification")
"""Words of gRPC's core for certificates that do not match: another attempt fails, too."""


class RetryBudget:
    """The retries of all calls of a client together: the token bucket of gRFC A6.

    A failed attempt takes a token, an answer puts a part of one back, and half of the tokens are
    kept: a server that fails most calls gets each of them once, and recovers.
    """

    _MAX_TOKENS = 100.0
    _TOKENS_AN_ANSWER = 0.1

    def __init__(self) -> None:
        self._tokens = self._MAX_TOKENS  # no lock: threads that meet lose a token or a part of it

    def put(self) -> None:
        """Note an answer."""
        if self._tokens < self._MAX_TOKENS:
            self._tokens = min(self._MAX_TOKENS, self._tokens + self._TOKENS_AN_ANSWER)

    def take(self) -> bool:
        """Note a failed attempt; return whether it may be made again."""
        self._tokens = max(0.0, self._tokens - 1.0)
        return self._tokens > self._MAX_TOKENS / 2


class RetryState:
    """One call's deadline, and how its attempts went."""

    def __init__(
        self,
        address: str,
        timeout_s: float,
        *,
        attempt_timeout_s: float | None = None,
        first_contact: bool = False,
        budget: RetryBudget | None = None,
    ) -> None:
        """Start the clock; see `BaseClient` for the timeouts.

        Args:
            address: named in errors.
            timeout_s: for all attempts together.
            attempt_timeout_s: for one.
            first_contact: whether the client has never had an answer.
            budget: of the client's calls; None is no limit.
        """
        self._address = address
        now_s = time.monotonic()
        timeout_s = min(timeout_s, _LONGEST_TIMEOUT_S)
        self._deadline_s = now_s + timeout_s
        self._attempt_timeout_s = math.inf if attempt_timeout_s is None else attempt_timeout_s
        self._until_s = now_s + (min(timeout_s, _FIRST_CONTACT_S) if first_contact else timeout_s)
        self._budget = budget
        self._backoff_s = _SHORTEST_BACKOFF_S
        self._was_late = False
        self._num_refused = 0
        self._reason: Unavailable | None = None

    def timeout_s(self) -> float:
        """Return the seconds that the next attempt may take."""
        return min(self._attempt_timeout_s, max(0.0, self._deadline_s - time.monotonic()))

    def backoff_s(self, code: StatusCode, details: str | None, is_answer: bool = False) -> float:
        """Return how long to wait before the call is sent again.

        Args:
            code: how this attempt ended.
            details: the text that came with it.
            is_answer: whether a server answered so; its retry takes a token of the budget.

        Raises:
            DigitsError: the call is not sent again; this is the reason why it failed.
        """
        details = details or ""
        error = error_from(code, details, self._address)
        is_late = code is StatusCode.DEADLINE_EXCEEDED
        if is_late and self._attempt_timeout_s < math.inf and time.monotonic() < self._until_s:
            # The attempt's time is over, not the call's: another server may answer. The first time
            # takes no token, since a server that stands still meets every caller once.
            is_answer, self._was_late = self._was_late, True
            self._spend(is_answer, error)
            return 0.0
        if code not in _RETRYABLE or any(word in details for word in _PERMANENT):
            # No time was left for another attempt, so report why the last one failed.
            raise self._reason if is_late and self._reason else error
        assert isinstance(error, Unavailable)
        self._num_refused += is_answer
        if self._num_refused == _MAX_ATTEMPTS:
            raise error
        self._spend(is_answer, error)
        self._reason = error
        backoff_s = self._backoff_s * random.uniform(0.5, 1.5)  # spreads those that failed together
        if time.monotonic() + backoff_s >= self._until_s:
            raise error
        self._backoff_s = min(2 * self._backoff_s, _LONGEST_BACKOFF_S)
        return backoff_s

    def _spend(self, is_charged: bool, error: DigitsError) -> None:
        """Take a token for another attempt; raise the error if there are too few."""
        if is_charged and self._budget is not None and not self._budget.take():
            raise error
