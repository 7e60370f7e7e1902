"""What one timed run of a load leaves behind, and what a load is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Trace:
    """The raw outcome of one timed run."""

    generator: str
    """What asked: "threads", "h2load" or "asyncio"."""
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

    @property
    def calls_per_s(self) -> float:
        """The achieved rate."""
        return (len(self.latencies_s) - self.num_errors) / self.duration_s


class Load(Protocol):
    """Something that asks a target, and keeps the time."""

    def closed(self, callers: int, batch: int, seconds: float) -> Trace:
        """Have `callers` ask for `batch` images a call, each anew as soon as it is answered."""

    def open(self, offsets_s: Seconds, batch: int) -> Trace:
        """Send a call of `batch` images at each offset from the start, answered or not."""


def merge(traces: Sequence[Trace]) -> Trace:
    """Join the traces of generators that ran side by side."""
    return Trace(
        generator=traces[0].generator,
        latencies_s=np.concatenate([trace.latencies_s for trace in traces]),
        duration_s=max(trace.duration_s for trace in traces),
        num_errors=sum(trace.num_errors for trace in traces),
        lag_s=np.concatenate([trace.lag_s for trace in traces]),
        busy=max(trace.busy for trace in traces),
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
