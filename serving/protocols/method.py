"""What a server offers, from bytes to bytes: the same for every transport."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from serving.errors import DigitsError
from serving.protocols.plan import Layouts, Plan

Read = Callable[[bytes], tuple[bytes | memoryview, Plan]]
"""Decodes and checks a request: N x 784 bytes, and how they are answered; raises DigitsError."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Method:
    """What all kinds of methods have."""

    path: str
    """Its path on the wire, such as "/digits.v1.DigitClassifier/Classify"."""
    name: str
    """What its calls are counted under, such as "Classify"."""
    is_open: bool = False
    """Whether it is answered without a token."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Unary(Method):
    """One message for one message, answered at once."""

    answer: Callable[[bytes], bytes]
    """Raises DigitsError."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ImagesUnary(Method):
    """One message of images for one message of answers, through a batch."""

    read: Read
    layouts: Layouts = field(default_factory=Layouts)
    note_failure: Callable[[DigitsError, float], None] = lambda error, duration_s: None
    """Takes note of a request that was read and ends with an error, after so many seconds."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ImagesStream(ImagesUnary):
    """Messages of images, answered in their order."""

    error_message: Callable[[bytes, DigitsError], bytes | None] = lambda request, error: None
    """Encodes the answer to a request that is refused; None ends the stream with the error."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Replies(Method):
    """Messages, each answered at once by any number of messages."""

    replies: Callable[[bytes], Iterable[bytes]]
    """Raises DigitsError."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Watch(Method):
    """One message, answered by messages for as long as the caller stays."""

    subscribe: Callable[[bytes, Callable[[bytes], None]], Callable[[], None]]
    """Takes the request and what sends an answer from any thread; returns what ends it.

    Raises DigitsError.
    """
