"""The plan of an answer: from a call's rows to its response, with parts encoded once."""

import struct
from array import array
from collections.abc import Callable

from serving.batching.request import Answer
from serving.predictions import ClassNumbers
from serving.protocols.oip.statistics import Answered, Run, Statistics
from serving.telemetry.tracing import latest_run

Write = Callable[[ClassNumbers, bytes | bytearray, str], bytes]
"""Encodes a response: N class numbers, N rows of little-endian float32, the version."""

_MARK = bytes(range(200, 240))
"""Probabilities whose bytes occur nowhere else in a response."""


_PREFIX = struct.Struct(">BI")
"""Before each message of gRPC: the flag for no compression, and the length."""


class Plan:
    """What is known of a call besides its images; calls of the same layout share one."""

    __slots__ = ("_starts", "_tail", "_version", "decode_s", "method", "num_rows", "statistics",
                 "timeout_s", "write")  # fmt: skip

    def __init__(
        self, method: str | None, num_rows: int, write: Write, *, timeout_s: float | None = None,
        statistics: Statistics | None = None, decode_s: float = 0.0,
    ) -> None:  # fmt: skip
        """Describe a call.

        Args:
            method: the name in the metrics; None if the call is counted elsewhere.
            num_rows: the number of its images.
            write: encodes the response.
            timeout_s: the request's own timeout; None if only the deadline of the call counts.
            statistics: also counts the answer.
            decode_s: how long decoding the request took.
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
        """Return the bytes before an image's probabilities, for each class, and those after them.

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
        latest_run.set((batch.started_s, batch.finished_s))
        response = self.write(answer.digits, answer.probabilities, version)
        if self.statistics is not None:
            answered = Answered(1, self.num_rows, answer.arrived_s, self.decode_s)
            run = Run(batch.num_rows, batch.started_s, batch.finished_s)
            self.statistics.count_success(version, answered, run)
        return response


class Layouts(dict[bytes, Plan]):
    """Prefixes of framed messages after which only images follow, with the plan of each.

    A message with such a prefix need not be parsed: the rest of it is whole images.
    """

    _MAX_HEAD_BYTES = 512
    """Longer prefixes are not kept, nor those as long as an image: the number of images would not
    be clear."""
    _MAX_KEPT = 256

    def learn(self, message: bytes, num_image_bytes: int, plan: Plan) -> None:
        """Remember the prefix of a message: later ones with it are answered by the same plan."""
        head = frame(message)[:-num_image_bytes]
        if len(head) < min(self._MAX_HEAD_BYTES, num_image_bytes // plan.num_rows):
            if len(self) >= self._MAX_KEPT:
                self.clear()
            self[head] = plan

    def find(self, message: bytes | memoryview, image_bytes: int) -> tuple[memoryview, Plan] | None:
        """Return the images and the plan of a message whose prefix is known; else None."""
        num_images = len(message) // image_bytes
        start = len(message) - num_images * image_bytes
        plan = self.get(b"".join((_PREFIX.pack(0, len(message)), message[:start])))
        if plan is None or plan.num_rows != num_images:
            return None
        return memoryview(message)[start:], plan


def frame(message: bytes) -> bytes:
    """Put gRPC's prefix before a message."""
    return _PREFIX.pack(0, len(message)) + message
