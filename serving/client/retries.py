"""When a client tries a call again, for how long, and how often in all."""

import math
import random
import time
from collections.abc import Callable

from serving.errors import (
    Overloaded,
    ServerError,
    ServingError,
    Unavailable,
)
from serving.protocols.status import TABLE, Failure, StatusCode, error_from

_FIRST_CONTACT_S = 5.0
"""How long a client that never had an answer retries: long enough for a server that is starting,
but shorter than a long timeout, in case the address is wrong."""
_SHORTEST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.05, 0.5
_MAX_REFUSED = 5
"""The most attempts of one call that servers answer by a failure; gRPC's own limit (gRFC A6)."""
_LONGEST_TIMEOUT_S = 1e9
"""Thirty years: locks, poll and grpcio take no infinity."""


class RetryBudget:
    """The retries of all calls of a client together, counted over some seconds.

    In each window there may be a few retries, and a share of as many as there were answers: a
    server that fails most calls gets each of them once, and recovers.
    """

    _WINDOW_S = 10
    _FREE = 50
    """Retries in a window that need no answers."""
    _SHARE = 0.1
    """Retries for each answer."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or (lambda: time.monotonic())
        # No lock: threads that meet lose a count.
        self._answers = [0] * self._WINDOW_S
        self._retries = [0] * self._WINDOW_S
        self._second = int(self._clock())

    def put(self) -> None:
        """Note an answer."""
        self._answers[self._slot()] += 1

    def take(self) -> bool:
        """Note a failed attempt; return whether it may be made again."""
        slot = self._slot()
        if self.is_spent:
            return False
        self._retries[slot] += 1
        return True

    @property
    def is_spent(self) -> bool:
        """Whether there were as many retries in the window as there may be."""
        return sum(self._retries) >= self._FREE + int(self._SHARE * sum(self._answers))

    def _slot(self) -> int:
        """Return the place of this second, and forget those before the window."""
        second = int(self._clock())
        if second != self._second:
            for gone in range(self._second + 1, min(second, self._second + self._WINDOW_S) + 1):
                self._answers[gone % self._WINDOW_S] = self._retries[gone % self._WINDOW_S] = 0
            self._second = second
        return second % self._WINDOW_S


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
        max_refused: float = _MAX_REFUSED,
    ) -> None:
        """Start the clock; see `BaseClient` for the timeouts.

        Args:
            address: named in errors.
            timeout_s: for all attempts together.
            attempt_timeout_s: for one.
            first_contact: whether the client has never had an answer.
            budget: of the client's calls; None is no limit.
            max_refused: the most attempts that servers answer by a failure.
        """
        self._address = address
        now_s = time.monotonic()
        timeout_s = min(timeout_s, _LONGEST_TIMEOUT_S)
        self._deadline_s = now_s + timeout_s
        self._attempt_timeout_s = math.inf if attempt_timeout_s is None else attempt_timeout_s
        self._until_s = now_s + (min(timeout_s, _FIRST_CONTACT_S) if first_contact else timeout_s)
        self._budget = budget
        self._max_refused = max_refused
        self._backoff_s = _SHORTEST_BACKOFF_S
        self._was_late = False
        self._num_refused = 0
        self._reason: ServerError | None = None

    def timeout_s(self) -> float:
        """Return the seconds that the next attempt may take."""
        return min(self._attempt_timeout_s, max(0.0, self._deadline_s - time.monotonic()))

    def backoff_s(self, failure: Failure) -> float:
        """Return how long to wait before the call is sent again.

        Args:
            failure: how this attempt ended; where a server answered so, the retry is one of the
                budget's.

        Raises:
            ServingError: the call is not sent again; this is the reason why it failed.
        """
        error, is_answer = error_from(failure, self._address), failure.is_answer
        is_late = failure.code is StatusCode.DEADLINE_EXCEEDED
        if is_late and self._attempt_timeout_s < math.inf and time.monotonic() < self._until_s:
            # The attempt's time is over, not the call's: another server may answer. The first time
            # takes no token, since a server that stands still meets every caller once.
            is_answer, self._was_late = self._was_late, True
            self._spend(is_answer, error)
            return 0.0
        if isinstance(error, Overloaded):
            return self._pause_s(error)
        # CANCELLED, of calls pending at a grpcio server's stop (grpc #41785), has no row: such an
        # error is Unavailable, too.
        is_retried = TABLE[type(error)].is_retried
        if not is_retried or failure.is_permanent or (failure.pushback_s or 0) < 0:
            # No time was left for another attempt, so report why the last one failed.
            raise self._reason if is_late and self._reason else error
        assert isinstance(error, Unavailable)
        self._num_refused += is_answer
        if self._num_refused >= self._max_refused:
            raise error
        self._spend(is_answer, error)
        self._reason = error
        backoff_s = self._backoff_s * random.uniform(0.5, 1.5)  # spreads those that failed together
        if time.monotonic() + backoff_s >= self._until_s:
            raise error
        self._backoff_s = min(2 * self._backoff_s, _LONGEST_BACKOFF_S)
        return backoff_s

    def _pause_s(self, error: Overloaded) -> float:
        """Return how long to wait for a server whose queue is full: at least as long as it asks."""
        if error.retry_after_s is None or error.retry_after_s < 0:
            raise error
        least_s = max(error.retry_after_s, self._backoff_s)
        pause_s = least_s * random.uniform(1.0, 1.5)  # spreads those that were refused together
        if time.monotonic() + pause_s >= self._deadline_s:
            raise error
        self._spend(True, error)
        self._reason = error
        self._backoff_s = min(2 * self._backoff_s, _LONGEST_BACKOFF_S)
        return pause_s

    def _spend(self, is_charged: bool, error: ServingError) -> None:
        """Take a token for another attempt; raise the error if there are too few."""
        if is_charged and self._budget is not None and not self._budget.take():
            raise error
