"""The interface of a load: a call as bytes, and the trace of one timed run."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from serving.http2.hpack import Fields

Seconds = npt.NDArray[np.float64]


Headers = tuple[tuple[str, str], ...]
GRPC: Headers = (("content-type", "application/grpc"), ("te", "trailers"))
TIMEOUT, TRACE = "99999999u", f"00-{'a' * 32}-{'b' * 16}-01"
"""Values that are replaced in each call that has headers of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CallRequest:
    """One call of gRPC, or one POST over HTTP/1.1."""

    address: str
    """host:port."""
    path: str
    """/package.Service/Method, or the path of a URL."""
    message: bytes
    """The request message."""
    headers: Headers = GRPC
    is_http: bool = False
    """Whether this is no call of gRPC."""
    has_new_headers: bool = False
    """Whether its deadline and its trace's ids differ in each call, as those of traced callers."""

    @property
    def body(self) -> bytes:
        """The message; with gRPC's prefix, if it is one of gRPC."""
        prefix = b"" if self.is_http else b"\0" + len(self.message).to_bytes(4, "big")
        return prefix + self.message

    def fields(self, timeout: str = "") -> Fields:
        """Return the header fields.

        Args:
            timeout: the value of `grpc-timeout`, such as "50m"; empty for no such header.
        """
        fields = (
            (":method", "POST"), (":scheme", "http"), (":path", self.path),
            (":authority", self.address), *self.headers,
            *((("grpc-timeout", timeout),) if timeout else ()),
            *((("grpc-timeout", TIMEOUT), ("traceparent", TRACE)) if self.has_new_headers else ()),
        )  # fmt: skip
        return tuple((name.encode(), text.encode()) for name, text in fields)


class Outcome:
    """How calls with a deadline end; keys of `Trace.outcomes`."""

    DUE = "due"  # all of them
    SENT = "sent"  # the rest found no free connection before their deadline
    IN_TIME = "in time"  # answered before their deadline, which counts from when they were due
    REFUSED = "refused"  # ended by RESOURCE_EXHAUSTED or UNAVAILABLE before their deadline
    LATE = "late"  # sent, and without an answer at their deadline: reset, or expired
    FAILED = "failed"  # ended otherwise


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Trace:
    """The raw outcome of one timed run."""

    generator: str
    """The sender of the requests: "h2load" or "python"."""
    latencies_s: Seconds
    """Of every call that ended in time, failed ones included; in an open loop from the intended
    send time. Without a deadline, a call that was never answered counts with the time waited."""
    duration_s: float
    """How long calls were counted."""
    num_errors: int
    """How many of them failed, or were never answered."""
    lag_s: Seconds = field(default_factory=lambda: np.empty(0))
    """Open loop only: how much later than intended each call left the generator."""
    busy: float
    """Share of its time that the generator's busiest process computed; 1 is a full core."""
    outcomes: Mapping[str, int] = field(default_factory=dict)
    """With a deadline only: how many calls ended how; see `Outcome`."""

    @property
    def calls_per_s(self) -> float:
        """The achieved rate."""
        return (len(self.latencies_s) - self.num_errors) / self.duration_s


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
        return np.arange(1, number + 1) / rate
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, number))
