"""Load by ourselves: closed and open loops over connections, and their trace."""

import gc
import math
import selectors
from bisect import bisect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from time import perf_counter, process_time, sleep
from typing import cast

import numpy as np
import numpy.typing as npt

from benchmarks.calls import CallRequest
from benchmarks.connections import (
    DEADLINE_EXCEEDED,
    OK,
    RESOURCE_EXHAUSTED,
    CallerConnection,
    Ended,
)
from benchmarks.grpc_connection import GrpcConnection
from benchmarks.http_connection import HttpConnection

Seconds = npt.NDArray[np.float64]


_LAST_S = 2.0
"""How long the last calls of an open loop are waited for if they have no deadline."""
_SELECT_S = 0.05
_TICK_S = 0.0005
"""How often an open loop of calls with deadlines sends and receives."""
_SPIN_S = 0.0002
"""How near the next call must be for an open loop to stay awake: sleepers wake up that late."""


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
    """Latencies of every call that ended in time, failed ones included; in an open loop from the
    intended send time. Without a deadline, a call that was never answered counts with the time
    waited."""
    duration_s: float
    """How long calls were counted."""
    num_errors: int
    """How many of them failed, or were never answered."""
    num_refused: int = 0
    """How many of these the server had no room for (RESOURCE_EXHAUSTED)."""
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
        num_refused=sum(trace.num_refused for trace in traces),
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


_OUTCOMES = {
    OK: Outcome.IN_TIME, DEADLINE_EXCEEDED: Outcome.LATE, 8: Outcome.REFUSED, 14: Outcome.REFUSED,
}  # fmt: skip
"""By gRPC status, for calls that ended before their deadline."""


def closed(request: CallRequest, in_flight: Sequence[int], begin_s: float, seconds: float) -> Trace:
    """Keep `in_flight[i]` calls in flight on connection i.

    Args:
        request: the call.
        in_flight: one number for each connection.
        begin_s: when to begin, on the clock of `perf_counter`, which all processes share.
        seconds: how long.

    Raises:
        OSError: the server can't be reached, does not answer rightly, or closes a connection.
    """
    ended: Ended = {}
    selector = selectors.DefaultSelector()
    with _connected(selector, request, in_flight, ended) as callers, _undisturbed(begin_s):
        begin_s, cpu_s, ready = perf_counter(), process_time(), callers
        while (now_s := perf_counter()) < begin_s + seconds:
            for caller in ready:
                caller.fill(now_s)
                _watch(selector, caller)
            ready = list(_select(selector, min(_SELECT_S, begin_s + seconds - now_s)))
        seconds, cpu_s = perf_counter() - begin_s, process_time() - cpu_s
    return _trace(ended, seconds, cpu_s / seconds)


def open_loop(
    request: CallRequest,
    offsets_s: Seconds,
    begin_s: float,
    connections: int,
    timeout_s: float = math.inf,
) -> Trace:
    """Send a call at each offset from `begin_s`, answered or not.

    Args:
        request: the call.
        offsets_s: ascending.
        begin_s: when to begin; see `closed`.
        connections: how many take turns.
        timeout_s: how long after a call was due its caller gives up; inf for never.

    Raises:
        OSError: see `closed`.
    """
    ended: Ended = {OK: [], DEADLINE_EXCEEDED: []}
    has_deadline = timeout_s < math.inf
    timeout = f"{timeout_s * 1e3:.0f}m" if has_deadline else ""
    selector = selectors.SelectSelector()  # unlike epoll, it waits for microseconds
    with (
        _connected(selector, request, [1] * connections, ended, timeout) as calls,
        _undisturbed(begin_s),
    ):
        begin_s, cpu_s = max(begin_s, perf_counter() - 2 * _TICK_S), process_time()
        due_s = (begin_s + offsets_s).tolist()
        lag_s, unsent_s = _offer(selector, calls, due_s, timeout_s)
        end_s = perf_counter()
        seconds, cpu_s = end_s - begin_s, process_time() - cpu_s
        for each in calls:
            each.give_up(math.inf)
    if not has_deadline:
        ended[DEADLINE_EXCEEDED] += [end_s - start_s for start_s in unsent_s]
        return _trace(ended, seconds, cpu_s / seconds, lag_s)
    outcomes = Counter({Outcome.DUE: len(due_s), Outcome.SENT: sum(e.num_calls for e in calls)})
    for status, latencies_s in ended.items():
        num_in_time = sum(latency_s <= timeout_s for latency_s in latencies_s)
        outcomes[_OUTCOMES.get(status, Outcome.FAILED)] += num_in_time
        outcomes[Outcome.LATE] += len(latencies_s) - num_in_time
    in_time = {OK: [latency_s for latency_s in ended[OK] if latency_s <= timeout_s]}
    return _trace(in_time, float(offsets_s[-1]), cpu_s / seconds, lag_s, outcomes)


def _offer(
    selector: selectors.BaseSelector,
    calls: Sequence[CallerConnection],
    due_s: list[float],
    timeout_s: float,
) -> tuple[list[float], list[float]]:
    """Send each call when it is due, and wait for the answers, or for the last deadline.

    Returns:
        How late each call was at its turn, whether or not it could be sent; and when those were
        due that could not, but would have waited.
    """
    turns, lag_s = cycle(calls), []
    at, num_seen, end_s = 0, 0, due_s[-1] + min(timeout_s, _LAST_S)
    while (now_s := perf_counter()) < end_s and (
        at < len(due_s) or any(each.num_open for each in calls)
    ):
        num_due = bisect(due_s, now_s)
        lag_s += [now_s - each_s for each_s in due_s[num_seen:num_due]]
        num_seen = num_due
        at = max(at, bisect(due_s, now_s - timeout_s))  # nobody waits for these any more
        num_full = 0
        while at < num_due and num_full < len(calls):
            caller = next(turns)
            number = min(num_due - at, caller.free_capacity)
            num_full = 0 if number else num_full + 1
            if number:
                caller.send(due_s[at : at + number])
                at += number
        for each in calls:
            each.give_up(now_s - timeout_s)
            _watch(selector, each)
        wait_s = (due_s[num_due] if num_due < len(due_s) else end_s) - perf_counter() - _SPIN_S
        if timeout_s < math.inf:  # answers of one tick are handled together, which is cheaper
            sleep(max(0.0, now_s + _TICK_S - perf_counter()))
            wait_s = 0.0
        list(_select(selector, max(0.0, wait_s)))
    return lag_s, due_s[at:]


def _trace(
    ended: Ended,
    seconds: float,
    busy: float,
    lag_s: Sequence[float] = (),
    outcomes: Mapping[str, int] | None = None,
) -> Trace:
    latencies_s = np.concatenate([[], *ended.values()])
    return Trace(
        generator="python",
        latencies_s=latencies_s,
        duration_s=seconds,
        lag_s=np.array(lag_s),
        num_errors=len(latencies_s) - len(ended.get(OK, [])),
        num_refused=len(ended.get(RESOURCE_EXHAUSTED, [])),
        busy=busy,
        outcomes=outcomes or {},
    )


@contextmanager
def _connected(
    selector: selectors.BaseSelector,
    request: CallRequest,
    in_flight: Sequence[int],
    ended: Ended,
    timeout: str = "",
) -> Iterator[list[CallerConnection]]:
    """Make callers, each on a connection, and register them; close all at the end."""
    kind = HttpConnection if request.is_http else GrpcConnection
    callers: list[CallerConnection] = []
    with selector, ExitStack() as stack:
        for number in in_flight:
            caller = stack.enter_context(closing(kind(request, ended, number, timeout)))
            selector.register(caller, selectors.EVENT_READ)
            callers.append(caller)
        yield callers


def _watch(selector: selectors.BaseSelector, caller: CallerConnection) -> None:
    """Wait for the socket to take more where it has not taken all."""
    events = selectors.EVENT_READ | (selectors.EVENT_WRITE * caller.is_blocked)
    if selector.get_key(caller).events != events:
        selector.modify(caller, events)


def _select(selector: selectors.BaseSelector, timeout_s: float) -> Iterator[CallerConnection]:
    """Wait for sockets, send and receive, and yield the connections that were ready."""
    for key, mask in selector.select(timeout_s):
        caller = cast("CallerConnection", key.fileobj)
        if mask & selectors.EVENT_WRITE:
            caller.flush()
        if mask & selectors.EVENT_READ:
            caller.receive()
        yield caller


@contextmanager
def _undisturbed(begin_s: float) -> Iterator[None]:
    """Wait until a time, and collect no garbage from then on."""
    gc.collect()
    gc.disable()
    try:
        sleep(max(0.0, begin_s - perf_counter()))
        yield
    finally:
        gc.enable()
