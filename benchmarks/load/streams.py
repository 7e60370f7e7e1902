"""Messages on one long stream of a connection of its own, many in flight.

Frames are made beforehand and answers are counted by their bytes, so that one core can exchange
some hundred thousand messages a second.
"""

from collections import deque
from time import perf_counter

from benchmarks.load.calls import OK, Ended
from benchmarks.load.connection import Connection
from benchmarks.load.request import PREFIX_BYTES, Request
from serving.http2.frames import DATA, DEFAULT_FRAME, END_HEADERS, HEADERS, frame, word

_STREAM = 1
_INFER, _ERROR_MESSAGE = "/ModelStreamInfer", b"\x0a"
"""A method that answers with errors as messages, and how those begin; right ones have no error."""


class MessageStream:
    """A stream on which the same message is sent again and again; its calls are messages."""

    def __init__(
        self, connection: Connection, request: Request, ended: Ended, callers: int
    ) -> None:
        """Have one message answered; `first_answer` is what came.

        Args:
            connection: a new one, which still blocks.
            request: the method and the message.
            ended: gets the latencies; each message counts as a call.
            callers: how many messages `fill` keeps in flight.

        Raises:
            OSError: it is not answered rightly.
        """
        self.connection = connection
        self._latencies_s = ended.setdefault(OK, [])
        self._body = request.body
        self._frames = frame(DATA, 0, word(_STREAM), self._body)
        self._frame_bytes = len(self._frames)
        self._frames *= callers
        self._sent: deque[tuple[float, int]] = deque()  # when, and how many messages, in order
        self._rest = b""  # of an answer that has not arrived whole
        self._free = 1  # messages that may be sent
        self.first_answer = self._call_once(request)
        self._answer_bytes = PREFIX_BYTES + len(self.first_answer)
        self._prefix = b"\0" + len(self.first_answer).to_bytes(4, "big")
        self._sent.clear()
        self._free = callers

    def _call_once(self, request: Request) -> bytes:
        self.connection.send(frame(HEADERS, END_HEADERS, word(_STREAM), request.headers()))
        self.connection.send_body(_STREAM, b"", ends=False)
        answer, size = b"", PREFIX_BYTES
        while len(answer) <= PREFIX_BYTES or len(answer) < size:
            self.fill(0.0)
            answer += self._read()
            size = PREFIX_BYTES + int.from_bytes(answer[1:PREFIX_BYTES], "big")
        message = answer[PREFIX_BYTES:]
        if request.path.endswith(_INFER) and message.startswith(_ERROR_MESSAGE):
            raise ConnectionError(f"{request.address} fails on {request.path}")
        return message

    def fill(self, now_s: float) -> None:
        """Send as many messages as may be in flight, and as the windows allow."""
        connection, size = self.connection, len(self._body)
        while self._free and not connection.is_full:
            window = connection.window(_STREAM)
            number = max(1, min(self._free, window // size))
            if number * size <= window and size <= DEFAULT_FRAME:
                frames = self._frames[: number * self._frame_bytes]
                connection.send(frames, number * size, _STREAM)
            else:  # longer than a frame, or than the window
                number = 1
                connection.send_body(_STREAM, self._body, ends=False)
            self._sent.append((now_s, number))
            self._free -= number

    def receive(self) -> None:
        """Count the answers that have come.

        Raises:
            OSError: the stream was ended, or something else came.
        """
        answers, now_s = self._rest + self._read(), perf_counter()
        number = len(answers) // self._answer_bytes
        whole = number * self._answer_bytes
        for place, byte in enumerate(self._prefix):
            if answers[place : whole : self._answer_bytes] != bytes([byte]) * number:
                raise ConnectionError(f"{self.connection.address} sent an answer of another length")
        self._rest = answers[whole:]
        self._free += number
        while number:
            sent_s, num_sent = self._sent.popleft()
            if num_sent > number:
                self._sent.appendleft((sent_s, num_sent - number))
            answered = min(num_sent, number)
            self._latencies_s += [now_s - sent_s] * answered
            number -= answered

    def _read(self) -> bytes:
        """Read once; return what it brought of answers."""
        parts = []
        for kind, flags, _, payload in self.connection.read():
            if kind == DATA:
                parts.append(payload)
            elif kind != HEADERS or flags != END_HEADERS:
                raise ConnectionError(f"{self.connection.address} ended the stream")
        answers = b"".join(parts)
        self.connection.acknowledge(word(_STREAM), len(answers))
        return answers
