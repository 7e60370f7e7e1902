"""Offers calls of one image at a fixed rate, whether they are answered or not, from one thread.

Each caller gives up 50 ms after its call was due, by resetting the stream, as gRPC's clients do.
The frames are made beforehand and only get their stream's number, many calls at once, so that one
core can offer more than 200,000 calls a second. What could not be sent in time is counted, too.
"""

import gc
import re
import selectors
import struct
from collections import Counter
from collections.abc import Sequence
from time import perf_counter, process_time, sleep

import numpy as np
import numpy.typing as npt

from benchmarks.load.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    RESET,
    Request,
    frame,
)
from benchmarks.load.sockets import Peer
from benchmarks.load.trace import Outcome, Seconds, Trace

NAME = "overload"
TIMEOUT_S = 0.05
"""How long a caller waits, from when its call was due."""
_TIMEOUT = "50m"
_CHUNK = 32
"""Calls that are sent on one connection at once."""
_TICK_S = 0.0005
_CANCEL = 8
_STATUS = re.compile(rb"(?:\x0bgrpc-status|\x88\x9a\xca\xc8\xb2\x124\xda\x8f)[\x01\x02](\d{1,2})")
"""In a header block: the name as it is or in Huffman's code, and the value."""
_STATUSES = {4: Outcome.LATE, 8: Outcome.REFUSED, 14: Outcome.REFUSED}
_OK = 0

_Bytes = npt.NDArray[np.uint8]


class _Caller:
    """One connection, and the calls that were sent on it, in order."""

    def __init__(self, request: Request, timeout: str) -> None:
        """Connect, and have one call answered, without a deadline.

        Raises:
            OSError: nobody answers there, or not rightly.
        """
        self.peer = peer = Peer(request)
        self.outcomes: Counter[str] = Counter()
        self.latencies: list[Seconds] = []
        """Of the answers in time."""
        self._due_s: Seconds = np.empty(1024)
        self._is_over = np.zeros(1024, bool)
        self._num_calls = self._num_over = 0
        self._num_expired = 0  # the calls before this one are past their deadline
        self._statuses: dict[bytes, int] = {}
        self._body_bytes = len(request.body)
        try:
            status = self._ask_once(request)
        except BaseException:
            peer.close()
            raise
        if status != _OK:
            peer.close()
            raise ConnectionError(f"{request.address} fails on {request.path}")
        peer.window -= self._body_bytes
        headers = frame(HEADERS, END_HEADERS, 0, request.headers(timeout))
        self._ids_at = (5, len(headers) + 5)
        self._calls = _repeated(headers + frame(DATA, END_STREAM, 0, request.body))
        self._resets = _repeated(frame(RESET, 0, 0, struct.pack(">I", _CANCEL)))
        peer.begin()

    def _ask_once(self, request: Request) -> int:
        headers = frame(HEADERS, END_HEADERS, 1, request.headers())
        self.peer.send(headers + frame(DATA, END_STREAM, 1, request.body))
        while True:
            for kind, flags, _, payload in self.peer.receive():
                if kind == RESET or flags & END_STREAM:
                    return self._status_of(payload)

    @property
    def room(self) -> int:
        """How many calls can be sent now."""
        if self.peer.is_full:
            return 0
        num_open = self._num_calls - self._num_over
        return min(_CHUNK, self.peer.max_streams - num_open, self.peer.window // self._body_bytes)

    def send(self, due_s: Seconds) -> None:
        """Send a call for each time; no more than there is room for."""
        first, number = self._num_calls, len(due_s)
        if first + number > len(self._due_s):
            self._due_s = np.concatenate((self._due_s, np.empty(len(self._due_s))))
            self._is_over = np.concatenate((self._is_over, np.zeros(len(self._is_over), bool)))
        self._due_s[first : first + number] = due_s
        self._num_calls = first + number
        calls = self._calls[:number]
        for at in self._ids_at:
            calls[:, at : at + 4] = _ids(np.arange(first, first + number))
        self.peer.window -= number * self._body_bytes
        self.peer.send(calls.tobytes())

    def receive(self) -> None:
        """Count the calls that have ended."""
        ended: dict[int, list[int]] = {}
        for kind, flags, stream, payload in self.peer.receive():
            if kind == HEADERS and flags & END_STREAM:
                status = self._statuses.get(payload)
                if status is None:
                    status = self._status_of(payload)
                ended.setdefault(status, []).append(stream)
            elif kind == RESET:
                ended.setdefault(-1, []).append(stream)
        now_s = perf_counter()
        for status, streams in ended.items():
            calls = (np.array(streams) - 3) >> 1
            calls = calls[~self._is_over[calls]]
            self._is_over[calls] = True
            self._num_over += len(calls)
            latencies_s = now_s - self._due_s[calls]
            is_in_time = latencies_s <= TIMEOUT_S
            num_in_time = int(is_in_time.sum())
            self.outcomes[Outcome.LATE] += len(calls) - num_in_time
            if status == _OK:
                self.outcomes[Outcome.IN_TIME] += num_in_time
                self.latencies.append(latencies_s[is_in_time])
            else:
                self.outcomes[_STATUSES.get(status, Outcome.FAILED)] += num_in_time

    def _status_of(self, block: bytes) -> int:
        """Read a call's status from the last header block, and keep it: few differ."""
        found = _STATUS.search(block)
        status = self._statuses[block] = int(found[1]) if found else -1
        return status

    def give_up(self, now_s: float) -> None:
        """Reset the calls whose deadline has passed."""
        first = self._num_expired
        due_s = self._due_s[first : self._num_calls]
        self._num_expired = first + int(np.searchsorted(due_s, now_s - TIMEOUT_S))
        calls = first + np.flatnonzero(~self._is_over[first : self._num_expired])
        self._is_over[calls] = True
        self._num_over += len(calls)
        self.outcomes[Outcome.LATE] += len(calls)
        for begin in range(0, len(calls), _CHUNK):
            some = calls[begin : begin + _CHUNK]
            resets = self._resets[: len(some)]
            resets[:, 5 : 5 + 4] = _ids(some)
            self.peer.send(resets.tobytes())


def _repeated(frames: bytes) -> _Bytes:
    """Make rows of the same bytes, to put the numbers of streams into."""
    return np.tile(np.frombuffer(frames, np.uint8), (_CHUNK, 1))


def _ids(calls: npt.NDArray[np.int64]) -> _Bytes:
    """Write the numbers of calls' streams: stream 1 was the first call's, which isn't counted."""
    return (2 * calls + 3).astype(">u4").view(np.uint8).reshape(-1, 4)


def run(
    request: Request, connections: int, rate: float, begin_s: float, seconds: float, *,
    with_timeout: bool,
) -> Trace:  # fmt: skip
    """Offer calls, evenly spaced, on connections in turn.

    Args:
        request: a unary method, and a message that fits a frame.
        connections: how many.
        rate: calls a second.
        begin_s: when to begin, on the clock of `perf_counter`, which all processes share.
        seconds: how long.
        with_timeout: whether the calls carry their deadline in `grpc-timeout`.

    Raises:
        OSError: the server can't be reached, or closed a connection.
    """
    timeout = _TIMEOUT if with_timeout else ""
    callers = [_Caller(request, timeout) for _ in range(connections)]
    gc.collect()
    gc.disable()
    try:
        sleep(max(0.0, begin_s - perf_counter()))
        begin_s, cpu_s = perf_counter(), process_time()
        due_s = begin_s + np.arange(max(1, round(rate * seconds))) / rate
        lag_s = _offer(callers, due_s)
        duration_s, cpu_s = perf_counter() - begin_s, process_time() - cpu_s
    finally:
        gc.enable()
        for caller in callers:
            caller.peer.close()
    outcomes = sum((caller.outcomes for caller in callers), Counter())
    outcomes[Outcome.DUE], outcomes[Outcome.SENT] = len(due_s), len(lag_s)
    return Trace(
        generator=NAME,
        latencies_s=np.concatenate([np.empty(0), *(s for each in callers for s in each.latencies)]),
        duration_s=len(due_s) / rate,
        num_errors=0,
        lag_s=lag_s,
        busy=cpu_s / duration_s,
        outcomes=outcomes,
    )


def _offer(callers: Sequence[_Caller], due_s: Seconds) -> Seconds:
    """Send each call when it is due, and wait for the last one's deadline.

    Returns:
        How late each one left that was sent.
    """
    lags: list[Seconds] = []
    at, turn, end_s = 0, 0, float(due_s[-1]) + TIMEOUT_S + 2 * _TICK_S
    with selectors.DefaultSelector() as selector:
        for caller in callers:
            selector.register(caller.peer, selectors.EVENT_READ, caller)
        while (now_s := perf_counter()) < end_s:
            for key, _ in selector.select(0):
                key.data.receive()
            at = max(at, int(np.searchsorted(due_s, now_s - TIMEOUT_S)))  # nobody waits any more
            stop, num_full = int(np.searchsorted(due_s, now_s)), 0
            while at < stop and num_full < len(callers):
                caller = callers[turn]
                turn = (turn + 1) % len(callers)
                number = min(stop - at, caller.room)
                num_full = 0 if number else num_full + 1
                if number:
                    caller.send(due_s[at : at + number])
                    lags.append(perf_counter() - due_s[at : at + number])
                    at += number
            for caller in callers:
                caller.give_up(now_s)
                caller.peer.flush()
            sleep(max(0.0, now_s + _TICK_S - perf_counter()))
    for caller in callers:
        caller.give_up(end_s)
    return np.concatenate([np.empty(0), *lags])
