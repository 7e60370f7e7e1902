"""Closed loops of messages on long streams, many in flight on each, from one thread.

Frames are made beforehand and answers are counted by their bytes, so that one core can exchange
some hundred thousand messages a second.
"""

import gc
import selectors
from collections import deque
from collections.abc import Sequence
from time import perf_counter, process_time, sleep

import numpy as np

from benchmarks.load.frames import (
    DATA,
    END_HEADERS,
    HEADERS,
    MAX_FRAME_BYTES,
    PREFIX_BYTES,
    Request,
    frame,
    widen,
)
from benchmarks.load.sockets import Peer
from benchmarks.load.trace import Trace

NAME = "streams"
_STREAM = 1
_INFER, _ERROR_MESSAGE = "/ModelStreamInfer", b"\x0a"
"""A method that answers with errors as messages, and how those begin; right ones have no error."""
_SELECT_S = 0.05
_WIDEN_BYTES = 1 << 30


class MessageStream:
    """One stream on a connection of its own, on which the same message is sent again and again."""

    def __init__(self, request: Request, in_flight: int) -> None:
        """Connect, and have one message answered; `first_answer` is what came.

        Raises:
            OSError: nobody answers there, or not rightly.
        """
        self.peer = Peer(request)
        self.latencies: list[tuple[float, int]] = []
        """A latency in seconds, and how many answers had it."""
        self._body = request.body
        self._frames = frame(DATA, 0, _STREAM, self._body)
        self._frame_bytes = len(self._frames)
        self._frames *= in_flight
        self._num_sent = 0  # bytes of the message that is being sent
        self._sent: deque[tuple[float, int]] = deque()  # when, and how many messages, in order
        self._rest = b""  # of an answer that has not arrived whole
        self._num_unacknowledged = 0
        self._free = 1  # messages that may be sent
        try:
            self.first_answer = self._ask_once(request)
        except BaseException:
            self.peer.close()
            raise
        self._answer_bytes = PREFIX_BYTES + len(self.first_answer)
        self._prefix = b"\0" + len(self.first_answer).to_bytes(4, "big")
        self._sent.clear()
        self._free = in_flight
        self.peer.begin()

    def _ask_once(self, request: Request) -> bytes:
        self.peer.send(frame(HEADERS, END_HEADERS, _STREAM, request.headers()))
        answer = b""
        while len(answer) <= PREFIX_BYTES or len(answer) < PREFIX_BYTES + _length(answer):
            self.fill(0.0)
            answer += self._read()
        message = answer[PREFIX_BYTES:]
        if request.path.endswith(_INFER) and message.startswith(_ERROR_MESSAGE):
            raise ConnectionError(f"{request.address} fails on {request.path}")
        return message

    def fill(self, now_s: float) -> None:
        """Send as many messages as may be in flight, and as the windows allow."""
        peer, size = self.peer, len(self._body)
        while self._free and not peer.is_full:
            window = min(peer.window, peer.stream_window)
            number = min(self._free, window // size)
            if number > 0 and not self._num_sent and size <= MAX_FRAME_BYTES:
                part, num_bytes = self._frames[: number * self._frame_bytes], number * size
                self._sent.append((now_s, number))
                self._free -= number
            elif window > 0:  # a part: the message is longer than a frame, or than the window
                begin = self._num_sent
                data = self._body[begin : begin + min(window, MAX_FRAME_BYTES)]
                part, num_bytes = frame(DATA, 0, _STREAM, data), len(data)
                if not begin:
                    self._sent.append((now_s, 1))
                self._num_sent = (begin + num_bytes) % size
                self._free -= not self._num_sent
            else:
                return
            peer.window -= num_bytes
            peer.stream_window -= num_bytes
            peer.send(part)

    def receive(self, now_s: float) -> None:
        """Count the answers that have come.

        Raises:
            OSError: the stream was ended, or something else came.
        """
        answers = self._rest + self._read()
        number = len(answers) // self._answer_bytes
        whole = number * self._answer_bytes
        for place, byte in enumerate(self._prefix):
            if answers[place : whole : self._answer_bytes] != bytes([byte]) * number:
                raise ConnectionError(f"{self.peer.address} sent an answer of another length")
        self._rest = answers[whole:]
        self._free += number
        while number:
            sent_s, num_sent = self._sent.popleft()
            if num_sent > number:
                self._sent.appendleft((sent_s, num_sent - number))
            self.latencies.append((now_s - sent_s, min(num_sent, number)))
            number = max(0, number - num_sent)

    def _read(self) -> bytes:
        """Read once; return what it brought of answers."""
        parts = []
        for kind, flags, _, payload in self.peer.receive():
            if kind == DATA:
                parts.append(payload)
            elif kind != HEADERS or flags != END_HEADERS:
                raise ConnectionError(f"{self.peer.address} ended the stream")
        data = b"".join(parts)
        self._num_unacknowledged += len(data)
        if self._num_unacknowledged > _WIDEN_BYTES:
            self.peer.send(widen(_STREAM, self._num_unacknowledged))
            self._num_unacknowledged = 0
        return data


def _length(answer: bytes) -> int:
    return int.from_bytes(answer[1:PREFIX_BYTES], "big")


def run_closed(request: Request, in_flight: Sequence[int], begin_s: float, seconds: float) -> Trace:
    """Keep `in_flight[i]` messages in flight on stream i, each on a connection of its own.

    Args:
        request: the method and the message.
        in_flight: one number for each stream.
        begin_s: when to begin, on the clock of `perf_counter`, which all processes share.
        seconds: how long.

    Raises:
        OSError: the server can't be reached, or ended a stream.
    """
    streams = [MessageStream(request, number) for number in in_flight]
    gc.collect()
    gc.disable()
    try:
        sleep(max(0.0, begin_s - perf_counter()))
        begin_s, cpu_s = perf_counter(), process_time()
        _exchange(streams, begin_s + seconds)
        seconds, cpu_s = perf_counter() - begin_s, process_time() - cpu_s
    finally:
        gc.enable()
        for stream in streams:
            stream.peer.close()
    pairs = [pair for stream in streams for pair in stream.latencies]
    latencies_s, counts = zip(*pairs, strict=True) if pairs else ((), ())
    return Trace(
        generator=NAME,
        latencies_s=np.repeat(np.array(latencies_s, float), np.array(counts, int)),
        duration_s=seconds,
        num_errors=0,
        lag_s=np.empty(0),
        busy=cpu_s / seconds,
    )


def _exchange(streams: Sequence[MessageStream], stop_s: float) -> None:
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            stream.fill(perf_counter())
            selector.register(stream.peer, _mask(stream), stream)
        while (now_s := perf_counter()) < stop_s:
            for key, mask in selector.select(min(_SELECT_S, stop_s - now_s)):
                stream, now_s = key.data, perf_counter()
                if mask & selectors.EVENT_WRITE:
                    stream.peer.flush()
                if mask & selectors.EVENT_READ:
                    stream.receive(now_s)
                stream.fill(now_s)
                if key.events != _mask(stream):
                    selector.modify(stream.peer, _mask(stream), stream)


def _mask(stream: MessageStream) -> int:
    return selectors.EVENT_READ | (selectors.EVENT_WRITE if stream.peer.is_full else 0)
