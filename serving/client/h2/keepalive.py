"""How long a server with calls to answer has sent nothing, and when it counts as gone."""

import math

from serving.client.transport import KEEPALIVE_TIME_S, KEEPALIVE_TIMEOUT_S


class Keepalive:
    """The time since the first call that nothing was heard after; outlasts calls that time out."""

    def __init__(self) -> None:
        """Start with no ping under way."""
        self._since_s = math.inf
        self._pinged_s: float | None = None
        self._time_s = KEEPALIVE_TIME_S

    def begin(self, now_s: float) -> None:
        """Note that a call was sent."""
        if self._since_s == math.inf:
            self._since_s = now_s

    def end(self, now_s: float, num_calls: int) -> None:
        """Note that the server has sent something.

        One that answers pings and no calls is asked half as often each time: gRPC's own servers
        close a connection after four pings without data.

        Args:
            now_s: the time.
            num_calls: how many calls still wait for their outcome.
        """
        self._since_s = now_s if num_calls else math.inf
        self._time_s = KEEPALIVE_TIME_S if self._pinged_s is None else 2 * self._time_s
        self._pinged_s = None

    def due_s(self) -> float:
        """Return when to ping the server, or when to give it up."""
        if self._pinged_s is not None:
            return self._pinged_s + KEEPALIVE_TIMEOUT_S
        return self._since_s + self._time_s

    def should_ping(self, now_s: float) -> bool:
        """Return whether to ping the server now, which counts as done."""
        is_due = self._pinged_s is None and now_s >= self.due_s()
        if is_due:
            self._pinged_s = now_s
        return is_due

    def is_dead(self, now_s: float) -> bool:
        """Return whether the server did not even answer that."""
        return self._pinged_s is not None and now_s >= self.due_s()
