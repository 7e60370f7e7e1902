"""How a call's images become its response, and what that is for the calls of one image."""

import struct
from array import array
from collections.abc import Callable

from serving.batching.request import Answer
from serving.predictions import ClassNumbers
from serving.protocols.oip.statistics import Answered, Run, Statistics

Write = Callable[[ClassNumbers, bytes | bytearray, str], bytes]
"""Encodes a response: N class numbers, N rows of little-endian float32, the version."""

_MARK = bytes(range(200, 240))
"""Probabilities that no other part of a response looks like."""


class Plan:
    """What a call asks for beside its images; calls of the same layout share one."""

    __slots__ = ("_starts", "_tail", "_version", "decode_s", "method", "num_rows", "statistics",
                 "timeout_s", "write")  # fmt: skip

    def __init__(
        self, method: str | None, num_rows: int, write: Write, *, timeout_s: float | None = None,
        statistics: Statistics | None = None, decode_s: float = 0.0,
    ) -> None:  # fmt: skip
        """Describe a call.

        Args:
            method: the name to count the call under; None where somebody else counts it.
            num_rows: its images.
            write: encodes the response.
            timeout_s: how long it may wait; None leaves that to the deadline of the call.
            statistics: counts the answer, too.
            decode_s: how long it took to read the request.
        """
        self.method = method
        self.num_rows = num_rows
        self.write = write
        self.timeout_s = timeout_s
        self.statistics = statistics
        self.decode_s = decode_s
        self._version: str | None = None
        self._starts: tuple[bytes, ...] = ()
        self._tail = b""

    def one_image_parts(self, version: str, num_classes: int) -> tuple[tuple[bytes, ...], bytes]:
        """Return what precedes an image's probabilities, for each class, and what follows them.

        A framed response is `starts[digit] + probabilities + tail`.
        """
        if version != self._version:
            first, self._tail = self._parts(0, version, num_classes)
            if first == self._parts(num_classes - 1, version, num_classes)[0]:  # they name no class
                self._starts = (first,) * num_classes
            else:
                digits = range(num_classes)
                self._starts = tuple(self._parts(d, version, num_classes)[0] for d in digits)
            self._version = version
        return self._starts, self._tail

    def _parts(self, digit: int, version: str, num_classes: int) -> tuple[bytes, bytes]:
        mark = (_MARK * (num_classes // 10 + 1))[: 4 * num_classes]
        start, _, tail = frame(self.write(array("I", (digit,)), mark, version)).partition(mark)
        return start, tail

    def respond(self, answer: Answer) -> bytes:
        """Encode the answer to a call that went through the batcher, and count it."""
        batch, version = answer.batch, answer.batch.model.version
        response = self.write(answer.digits, answer.probabilities, version)
        if self.statistics is not None:
            answered = Answered(1, self.num_rows, answer.arrived_s, self.decode_s)
            run = Run(batch.num_rows, batch.started_s, batch.finished_s)
            self.statistics.count_success(version, answered, run)
        return response


class Layouts(dict[bytes, Plan]):
    """How framed messages begin of which all is known but their images; these follow, to the end.

    What begins so need not be read: its number of images is that of all whole images' bytes in it.
    """

    _MAX_HEAD_BYTES = 512
    """Longer ones are not kept, nor those as long as an image: how many images follow would not
    be clear."""
    _MAX_KEPT = 256

    def learn(self, message: bytes, num_image_bytes: int, plan: Plan) -> None:
        """Answer messages that differ from this one in their last bytes only by the same plan."""
        head = frame(message)[:-num_image_bytes]
        if len(head) < min(self._MAX_HEAD_BYTES, num_image_bytes // plan.num_rows):
            if len(self) >= self._MAX_KEPT:
                self.clear()
            self[head] = plan


def frame(message: bytes) -> bytes:
    """Put gRPC's prefix before a message: not compressed, and its length."""
    return struct.pack(">BI", 0, len(message)) + message
