"""Load by ourselves: a call as bytes, closed and open loops over connections, and their trace."""

import gc
import math
import re
import selectors
import socket
from bisect import bisect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import cycle
from struct import Struct
from time import perf_counter, process_time, sleep
from typing import cast

import numpy as np
import numpy.typing as npt

from serving.http2 import ErrorCode, Http2Error, Limits, events, frames
from serving.http2.client import ClientConnection
from serving.http2.frames import MAX_WINDOW, frame, word
from serving.http2.hpack import Fields, encode_literally

Seconds = npt.NDArray[np.float64]


Headers = tuple[tuple[str, str], ...]
GRPC: Headers = (("content-type", "application/grpc"), ("te", "trailers"))
TIMEOUT, TRACE = "99999999u", f"00-{'a' * 32}-{'b' * 16}-01"
"""Values that are replaced in each call that has headers of its own."""
_READ_BYTES = 256 << 10
_TIMEOUT_S = 10.0
_LIMITS = Limits(
    stream_window_bytes=MAX_WINDOW,
    connection_window_bytes=MAX_WINDOW,
    header_table_bytes=0,
    max_frame_bytes=frames.DEFAULT_FRAME,
    burst_small_frames=1 << 60,
)
"""Windows as wide as they go, a server that is measured may send any number of frames, and the
trailers of right answers are the same bytes each time, compared instead of decoded."""
_ACKNOWLEDGED_BYTES = 1 << 28
"""Received before the connection's window is opened again."""
_HEADER = Struct(">IBI")
_OF_CALLS = (frames.DATA, frames.HEADERS, frames.RST_STREAM)
OK, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNKNOWN = 0, 4, 8, -1
"""Statuses of gRPC, and of calls that ended without one."""
_CHUNK = 32
"""Calls that are sent at once."""
_STREAM_AT = 5
"""Where a frame has the number of its stream."""
_STATUS = re.compile(rb"(?:\x0bgrpc-status|\x88\x9a\xca\xc8\xb2\x124\xda\x8f)[\x01\x02](\d{1,2})")
"""In a header block: the name as it is or in Huffman's code, and the value."""
_TIMEOUT, _TRACE = TIMEOUT.encode(), TRACE[3:-3].encode()
_SPREAD = 0x9E3779B97F4A7C15F39CC0605CEDC835
"""Makes ids that look random of numbers: an odd number near 2^128 by the golden ratio."""
_LAST_S = 2.0
"""How long the last calls of an open loop are waited for if they have no deadline."""
_SELECT_S = 0.05
_TICK_S = 0.0005
"""How often an open loop of calls with deadlines sends and receives."""
_SPIN_S = 0.0002
"""How near the next call must be for an open loop to stay awake: sleepers wake up that late."""
Ended = dict[int, list[float]]
"""By status: the latencies in seconds of the calls that ended with it."""


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


class Calls:
    """A connection and its calls; call N is stream 2 N + 1, and call 0 does not count.

    Settings, pings, windows and long requests are the engine's. The other frames of calls pass it
    by, since they are alike: with it a call takes 15 us, not 4.
    """

    def __init__(
        self, request: CallRequest, ended: Ended, callers: int = 1, timeout: str = ""
    ) -> None:
        """Connect, and have one call answered, without a deadline.

        Args:
            request: the call.
            ended: gets the latencies of the calls.
            callers: how many calls `fill` keeps in flight.
            timeout: `grpc-timeout` of the calls, such as "50m"; empty for none.

        Raises:
            OSError: nobody answers there, or the call fails.
        """
        self.num_open = 0
        """Calls in flight."""
        self._address = request.address
        self._ended, self._callers = ended, callers
        self._start_s = [0.0]  # of every call
        self._is_over = bytearray([True])  # likewise
        self._num_expired = 1  # calls before this one are past their deadline
        self._body, self._fields = request.body, request.fields(timeout)
        self._is_small = len(self._body) <= frames.DEFAULT_FRAME
        self._own = request.has_new_headers
        self._engine = ClientConnection(_LIMITS)
        self._out, self._unread = memoryview(b""), b""
        self._ready: list[bytes] = []
        self._num_received = 0
        host, _, port = request.address.rpartition(":")
        self._socket = socket.create_connection((host.strip("[]"), int(port)), _TIMEOUT_S)
        self.close, self.fileno = self._socket.close, self._socket.fileno
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.flush()
            while not self._engine.is_established:
                self._read()
            # Without a header table, right answers have the same trailers each time.
            self._statuses = {self._call_once(request): OK}
        except BaseException:
            self.close()
            raise
        self._frames = self._frames_of(request)
        self._socket.setblocking(False)

    def _frames_of(self, request: CallRequest) -> list[bytes]:
        """Return the frames of a call around the number of its stream."""
        block = encode_literally(self._fields)
        if self._own:  # as clients send them: what repeats as indexes, the rest as it is
            constant = replace(request, has_new_headers=False).fields()
            own = encode_literally(self._fields[len(constant) :])
            block = self._engine.encoder.encode(constant) + own  # sent before: no table changes
        headers = frame(frames.HEADERS, frames.END_HEADERS, bytes(4), block)
        body = (
            frame(frames.DATA, frames.END_STREAM, bytes(4), self._body) if self._is_small else b""
        )
        first, rest = headers[:_STREAM_AT], headers[_STREAM_AT + 4 :] + body[:_STREAM_AT]
        return [first, rest, body[_STREAM_AT + 4 :]]

    def _call_once(self, request: CallRequest) -> bytes:
        """Have a call answered; return its trailers."""
        self._request(request.fields())
        has_message = False
        while True:
            for kind, flags, _, payload in self._read():
                has_message |= kind == frames.DATA
                if kind == frames.RST_STREAM or flags & frames.END_STREAM:
                    if has_message and kind == frames.HEADERS:
                        return payload
                    raise ConnectionError(f"{request.address} fails on {request.path}")

    @property
    def num_calls(self) -> int:
        """How many calls were sent."""
        return len(self._start_s) - 1

    @property
    def is_blocked(self) -> bool:
        """Whether the socket has not taken all that it was given."""
        return bool(self._out)

    @property
    def free_capacity(self) -> int:
        """How many calls can be sent now."""
        window = 0 if self._out or self._engine.blocked else self._engine.send_window
        fits = window // len(self._body) if self._is_small else window > 0
        return max(0, min(_CHUNK, self._engine.max_streams - self.num_open, fits))

    def send(self, start_s: Sequence[float]) -> None:
        """Send a call for each time that a latency counts from; at most `free_capacity`."""
        first = len(self._start_s)
        self._start_s += start_s
        self._is_over += bytes(len(start_s))
        self.num_open += len(start_s)
        if not self._is_small:
            self._request(self._fields)
            return
        self._ready += [
            word(2 * call + 1).join(self._own_frames(call) if self._own else self._frames)
            for call in range(first, len(self._start_s))
        ]
        self._engine.send_window -= len(start_s) * len(self._body)
        self.flush()

    def _own_frames(self, call: int) -> list[bytes]:
        """Return a call's frames with a deadline and a trace of its own: from 50 to 99 s."""
        trace = b"%032x-%016x" % (call * _SPREAD % (1 << 128), call * _SPREAD % (1 << 64))
        block = self._frames[1].replace(_TIMEOUT, b"%08du" % (99_999_999 - call % 50_000_000), 1)
        return [self._frames[0], block.replace(_TRACE, trace, 1), *self._frames[2:]]

    def _request(self, fields: Fields) -> None:
        """Send a request as the windows allow, sooner or later; its stream is the next."""
        self._engine.request(fields, self._body)
        self.flush()

    def fill(self, now_s: float) -> None:
        """Send as many calls as may be in flight."""
        while number := min(self._callers - self.num_open, self.free_capacity):
            self.send([now_s] * number)

    def flush(self) -> None:
        """Send buffered bytes, as far as the socket allows."""
        self._ready.append(self._engine.data_to_send())
        with suppress(BlockingIOError):
            while self._out or any(self._ready):
                if not self._out:
                    self._out = memoryview(b"".join(self._ready))
                    self._ready.clear()
                self._out = self._out[self._socket.send(self._out) :]

    def receive(self) -> None:
        """Take in the answers that have come.

        Raises:
            OSError: the connection was closed.
        """
        received, now_s = self._read(), perf_counter()
        for kind, flags, stream, payload in received:
            if kind == frames.RST_STREAM or (kind == frames.HEADERS and flags & frames.END_STREAM):
                status = UNKNOWN if kind == frames.RST_STREAM else self._status_of(payload)
                self._end(stream >> 1, status, now_s)

    def give_up(self, before_s: float) -> None:
        """Reset the calls in flight that started before a time: their deadline is exceeded."""
        call, now_s, cancel = self._num_expired, perf_counter(), word(ErrorCode.CANCEL)
        while call < len(self._start_s) and self._start_s[call] < before_s:
            if not self._is_over[call]:
                self._end(call, DEADLINE_EXCEEDED, now_s)
                stream = word(2 * call + 1)
                self._forget(stream)
                self._ready.append(frame(frames.RST_STREAM, 0, stream, cancel))
            call += 1
        self._num_expired = call
        self.flush()

    def _status_of(self, trailers: bytes) -> int:
        """Read a call's status from its last header block, and keep it: few differ."""
        if trailers not in self._statuses:
            found = _STATUS.search(trailers)
            self._statuses[trailers] = int(found[1]) if found else UNKNOWN
        return self._statuses[trailers]

    def _end(self, call: int, status: int, now_s: float) -> None:
        """Note how a call ended, unless it has ended before."""
        if not self._is_over[call]:
            self._is_over[call] = True
            self.num_open -= 1
            self._ended.setdefault(status, []).append(now_s - self._start_s[call])

    def _read(self) -> list[tuple[int, int, int, bytes]]:
        """Read once, then send bytes that windows had kept back.

        Returns:
            Kind, flags, stream and payload of the frames that are about calls, not the
            connection's own business.

        Raises:
            OSError: the server has closed the connection, is about to, or breaks the protocol.
        """
        with suppress(BlockingIOError):
            data = self._socket.recv(_READ_BYTES)
            if not data:
                raise ConnectionError(f"{self._address} closed the connection")
            self._unread += data
        data, at, streams = self._unread, 0, self._engine.streams
        of_calls, last = [], len(data) - frames.FRAME_BYTES
        while at <= last:
            first, flags, stream = _HEADER.unpack_from(data, at)
            begin, kind = at + frames.FRAME_BYTES, first & 0xFF
            end = begin + (first >> 8)
            if end > len(data):
                break
            if kind in _OF_CALLS:
                of_calls.append((kind, flags, stream, data[begin:end]))
                if kind == frames.DATA:
                    self._num_received += end - begin
                if streams and (kind == frames.RST_STREAM or flags & frames.END_STREAM):
                    self._forget(word(stream))
            elif not stream or word(stream) in streams:  # the engine does not know of all calls
                self._take(data[at:end])
            at = end
        self._unread = data[at:]
        if self._num_received > _ACKNOWLEDGED_BYTES:
            more = word(self._num_received)
            self._ready.append(frame(frames.WINDOW_UPDATE, 0, frames.CONNECTION, more))
            self._num_received = 0
        self.flush()
        return of_calls

    def _take(self, data: bytes) -> None:
        try:
            found = self._engine.receive(data, perf_counter())
        except Http2Error as err:
            raise ConnectionError(f"{self._address}: {err}") from err
        if any(isinstance(event, events.GoAway) for event in found):
            raise ConnectionError(f"{self._address} ends the connection")

    def _forget(self, stream: bytes) -> None:
        """Send nothing more on a stream that is over."""
        self._engine.streams.pop(stream, None)
        self._engine.blocked.pop(stream, None)


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
    selector: selectors.BaseSelector, calls: Sequence[Calls], due_s: list[float], timeout_s: float
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
) -> Iterator[list[Calls]]:
    """Make callers, each on a connection, and register them; close all at the end."""
    if request.is_http:
        raise OSError("HTTP/1.1 is measured in closed loops by h2load only")
    callers = []
    with selector, ExitStack() as stack:
        for number in in_flight:
            caller = stack.enter_context(closing(Calls(request, ended, number, timeout)))
            selector.register(caller, selectors.EVENT_READ)
            callers.append(caller)
        yield callers


def _watch(selector: selectors.BaseSelector, caller: Calls) -> None:
    """Wait for the socket to take more where it has not taken all."""
    events = selectors.EVENT_READ | (selectors.EVENT_WRITE * caller.is_blocked)
    if selector.get_key(caller).events != events:
        selector.modify(caller, events)


def _select(selector: selectors.BaseSelector, timeout_s: float) -> Iterator[Calls]:
    """Wait for sockets, send and receive, and yield the connections that were ready."""
    for key, mask in selector.select(timeout_s):
        caller = cast("Calls", key.fileobj)
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
