"""Our own generator's loops, closed and open: many connections on one event loop."""

import asyncio
import gc
from collections.abc import Coroutine, Sequence
from time import perf_counter, process_time

import numpy as np

from benchmarks.load.frames import Request
from benchmarks.load.http2 import Connection, connect
from benchmarks.load.trace import Seconds, Trace

NAME = "asyncio"

_PATIENCE_S = 2.0
"""How long the last calls are waited for."""
_SLACK_S = 0.001
"""How late a run may begin and still keep to the common start."""
_NEAR_S = 0.003
"""How near the next send must be for the loop to stay awake: its timers count in milliseconds."""


class _Recorder:
    """Keeps what the connections report."""

    def __init__(self) -> None:
        self.latencies_s: list[float] = []
        self.num_errors = 0
        self.last_s = 0.0
        self.stop_s = float("inf")

    def on_answer(self, connection: Connection, start_s: float, is_ok: bool) -> None:
        now_s = perf_counter()
        if now_s <= self.stop_s:
            self.latencies_s.append(now_s - start_s)
            self.num_errors += not is_ok
            self.last_s = now_s


class _Closed(_Recorder):
    """Asks anew at each answer."""

    def on_answer(self, connection: Connection, start_s: float, is_ok: bool) -> None:
        super().on_answer(connection, start_s, is_ok)
        now_s = perf_counter()
        if now_s < self.stop_s:
            connection.call(now_s)


async def closed(request: Request, callers: Sequence[int], begin_s: float, seconds: float) -> Trace:
    """Keep `callers[i]` calls in flight on connection i.

    Args:
        request: what to ask.
        callers: one number for each connection.
        begin_s: when to begin, on the clock of `perf_counter`, which all processes share.
        seconds: how long.
    """
    recorder = _Closed()
    connections = [await connect(request) for _ in callers]
    await _until(begin_s)
    begin_s, cpu_s = perf_counter(), process_time()
    recorder.stop_s = begin_s + seconds
    for connection, number in zip(connections, callers, strict=True):
        connection.on_answer = recorder.on_answer
        for _ in range(number):
            connection.call(begin_s)
    await _until(recorder.stop_s)
    return _trace(recorder, connections, np.empty(0), seconds, process_time() - cpu_s)


async def open_(request: Request, num_connections: int, begin_s: float, offsets: Seconds) -> Trace:
    """Send a call at each offset from `begin_s`, the connections taking turns; see `closed`."""
    recorder = _Recorder()
    connections = [await connect(request) for _ in range(num_connections)]
    for connection in connections:
        connection.on_answer = recorder.on_answer
    await _until(begin_s)
    begin_s, cpu_s = max(begin_s, perf_counter() - _SLACK_S), process_time()
    intended = (begin_s + offsets).tolist()
    lag_s = await _send(connections, intended)
    cpu_s = process_time() - cpu_s
    give_up_s = perf_counter() + _PATIENCE_S
    while any(connection.unanswered() for connection in connections):
        if perf_counter() > give_up_s:
            break
        await asyncio.sleep(0.001)
    now_s = perf_counter()
    lost = [now_s - start_s for each in connections for start_s in each.unanswered()]
    recorder.latencies_s += lost
    recorder.num_errors += len(lost)
    seconds = max(float(offsets[-1]), recorder.last_s - begin_s)
    return _trace(recorder, connections, np.array(lag_s), seconds, cpu_s)


async def _send(connections: Sequence[Connection], intended: Sequence[float]) -> list[float]:
    """Send each call at its time.

    Returns:
        How late each one left, in seconds.
    """
    lag_s = []
    for number, time_s in enumerate(intended):
        if time_s - perf_counter() > 0:
            await _until(time_s)
        lag_s.append(perf_counter() - time_s)
        connections[number % len(connections)].call(time_s)
        if number % 16 == 15:
            await asyncio.sleep(0)  # let answers in, even when late
    return lag_s


async def _until(time_s: float) -> None:
    """Sleep while the time is far, then keep turning the loop: precise to some 20 us."""
    while (left_s := time_s - perf_counter()) > 0:
        await asyncio.sleep(left_s - _NEAR_S / 2 if left_s > _NEAR_S else 0)


def _trace(
    recorder: _Recorder, connections: Sequence[Connection], lag_s: Seconds, seconds: float,
    cpu_s: float,
) -> Trace:  # fmt: skip
    for connection in connections:
        connection.close()
    return Trace(
        generator=NAME,
        latencies_s=np.array(recorder.latencies_s),
        duration_s=seconds,
        num_errors=recorder.num_errors,
        lag_s=lag_s,
        busy=cpu_s / seconds,
    )


def check(request: Request) -> None:
    """Have one call answered.

    Raises:
        OSError: nobody answers there, or not rightly.
    """

    async def ask() -> None:
        (await connect(request)).close()

    asyncio.run(ask())


def run_closed(request: Request, callers: Sequence[int], begin_s: float, seconds: float) -> Trace:
    """Run `closed` on an event loop of its own, with no pauses for garbage."""
    return _run(closed(request, callers, begin_s, seconds))


def run_open(request: Request, num_connections: int, begin_s: float, offsets: Seconds) -> Trace:
    """Run `open_`; see `run_closed`."""
    return _run(open_(request, num_connections, begin_s, offsets))


def _run(work: Coroutine[object, object, Trace]) -> Trace:
    import uvloop

    gc.collect()
    gc.disable()
    try:
        trace: Trace = uvloop.run(work)
        return trace
    finally:
        gc.enable()
