"""What one timed run of a load leaves behind, and what a load is."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Trace:
    """The raw outcome of one timed run."""

    generator: str
    """What asked: "threads", "h2load", "asyncio", "streams" or "overload"."""
    latencies_s: Seconds
    """Of every call that ended in time, failed ones included; in an open loop from the intended
    send time, and a call that was never answered counts with how long it was waited for."""
    duration_s: float
    """How long calls were counted."""
    num_errors: int
    """How many of them failed, or were never answered."""
    lag_s: Seconds
    """Open loop only: how much later than intended each call left the generator."""
    busy: float
    """Share of its time that the generator's busiest process computed; 1 is a full core."""
    outcomes: Mapping[str, int] = field(default_factory=dict)
    """Overload only: how many calls ended how; see `Outcome`. Latencies are of those in time."""

    @property
    def calls_per_s(self) -> float:
        """The achieved rate."""
        return (len(self.latencies_s) - self.num_errors) / self.duration_s


class Outcome:
    """How calls of an overload end, and how many there were; keys of `Trace.outcomes`."""

    DUE = "due"
    """Those that were to be sent."""
    SENT = "sent"
    """Those that were sent; the rest found no room on any connection before their deadline."""
    IN_TIME = "in time"
    """Answered before their deadline, which counts from when they were due."""
    REFUSED = "refused"
    """Ended by RESOURCE_EXHAUSTED or UNAVAILABLE before their deadline."""
    LATE = "late"
    """Sent, and without an answer at their deadline: reset by the caller, or expired."""
    FAILED = "failed"
    """Ended otherwise."""


class Load(Protocol):
    """Something that asks a target, and keeps the time."""

    def closed(self, callers: int, batch: int, seconds: float, connections: int = 0) -> Trace:
        """Have `callers` ask for `batch` images a call, each again as soon as it is answered.

        Over the network they share `connections`; 0 leaves their number to the generator.
        """

    def open(self, offsets_s: Seconds, batch: int) -> Trace:
        """Send a call of `batch` images at each offset from the start, answered or not."""

    def overload(self, rate: float, seconds: float, *, with_timeout: bool) -> Trace:
        """Send calls of one image at a fixed rate, whose callers give up after 50 ms.

        Args:
            rate: calls a second.
            seconds: how long.
            with_timeout: whether the calls carry their deadline in `grpc-timeout`.
        """


def merge(traces: Sequence[Trace]) -> Trace:
    """Join the traces of generators that ran side by side."""
    return Trace(
        generator=traces[0].generator,
        latencies_s=np.concatenate([trace.latencies_s for trace in traces]),
        duration_s=max(trace.duration_s for trace in traces),
        num_errors=sum(trace.num_errors for trace in traces),
        lag_s=np.concatenate([trace.lag_s for trace in traces]),
        busy=max(trace.busy for trace in traces),
        outcomes=sum((Counter(trace.outcomes) for trace in traces), Counter()),
    )


def arrivals(kind: str, rate: float, seconds: float, seed: int) -> Seconds:
    """Draw the intended send times of an open loop.

    Args:
        kind: "poisson" (independent callers) or "constant" (evenly spaced).
        rate: calls a second.
        seconds: how long.
        seed: the same seed gives the same times.

    Returns:
        Offsets from the start, in seconds, ascending.
    """
    number = max(1, round(rate * seconds))
    if kind == "constant":
        return np.arange(number) / rate
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, number))
