"""How long a server with calls to answer has sent nothing, and when it counts as gone."""

import math

from serving.client.calls import KEEPALIVE_TIME_S, KEEPALIVE_TIMEOUT_S


class Silence:
    """The time since the first call that nothing was heard after; outlasts calls that time out."""

    def __init__(self) -> None:
        """Start with nothing asked."""
        self._since_s: float | None = None
        self._asked_s: float | None = None
        self._time_s = KEEPALIVE_TIME_S

    def begin(self, now_s: float) -> None:
        """Note that a call was sent."""
        if self._since_s is None:
            self._since_s = now_s

    def end(self, now_s: float, num_calls: int) -> None:
        """Note that the server has sent something.

        One that answers pings and no calls is asked half as often each time: gRPC's own servers
        close a connection after four pings without data.

        Args:
            now_s: the time.
            num_calls: how many calls still wait for their outcome.
        """
        self._since_s = now_s if num_calls else None
        self._time_s = KEEPALIVE_TIME_S if self._asked_s is None else 2 * self._time_s
        self._asked_s = None

    def due_s(self) -> float:
        """Return when to ask the server for a sign of life, or when to give it up."""
        if self._asked_s is not None:
            return self._asked_s + KEEPALIVE_TIMEOUT_S
        return math.inf if self._since_s is None else self._since_s + self._time_s

    def ask(self, now_s: float) -> bool:
        """Return whether to ask the server now, which counts as done."""
        is_due = self._asked_s is None and now_s >= self.due_s()
        if is_due:
            self._asked_s = now_s
        return is_due

    def is_death(self, now_s: float) -> bool:
        """Return whether the server did not even answer that."""
        return self._asked_s is not None and now_s >= self.due_s()
