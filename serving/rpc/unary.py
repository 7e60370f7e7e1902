"""A hot unary method, from bytes to bytes: what every transport needs to know of it."""

from collections.abc import Set
from typing import Protocol, TypeVar

from serving.errors import DigitsError
from serving.requests import Answer, Request

MAX_HEAD_BYTES = 512
"""What precedes a one-image request's pixels is shorter."""


class Question:
    """What a call asks for; subclasses add what its answer needs."""

    __slots__ = ("pixels", "timeout_s")

    def __init__(self, pixels: bytes | memoryview, timeout_s: float | None = None) -> None:
        """Ask for N x 784 bytes; `timeout_s` None leaves the deadline to the call."""
        self.pixels = pixels
        self.timeout_s = timeout_s


Q = TypeVar("Q", bound=Question)


class UnaryMethod(Protocol[Q]):
    """Reads the method's requests and writes its responses; safe to call from many threads."""

    name: str
    """Its name in the metrics, such as "Classify"."""
    path: str
    """Its path on the wire, such as "/digits.v1.DigitClassifier/Classify"."""

    @property
    def heads(self) -> Set[bytes]:
        """How requests begin of which all is known but their last 784 bytes, which are one image.

        They need not be read, and `write_each` answers them. None has MAX_HEAD_BYTES or more.
        """

    def read(self, data: bytes) -> Q:
        """Decode and check a request.

        Raises:
            DigitsError: what is wrong with it.
        """

    def ask(self, image: bytes) -> Q:
        """Give what `read` would make of a known head and an image of 784 bytes."""

    def write(self, question: Q, call: Request, answer: Answer) -> bytes:
        """Encode the response to a request that was read."""

    def write_each(self, call: Request, answer: Answer) -> list[bytes]:
        """Encode the responses to one-image requests that were not read, a response a row."""

    def note_failure(self, question: Q, error: DigitsError) -> None:
        """Take note that a request which was read ends with an error."""
