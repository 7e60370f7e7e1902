"""The methods of a server, from bytes to bytes: the same for every transport."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from serving.batching.queue import ResponseEncoder
from serving.errors import DigitsError
from serving.protocols.encoding import PrefixCache

Read = Callable[[bytes], tuple[Any, ResponseEncoder]]
"""Decodes and checks a request: its rows (bytes, or an array for each input), and the encoder of
the answer; raises DigitsError."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Method:
    """The common part of all kinds of methods."""

    path: str
    """Its path on the wire, such as "/digits.v1.DigitClassifier/Classify"."""
    name: str
    """Its name in the metrics, such as "Classify"."""
    is_open: bool = False
    """Whether it needs no token."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Unary(Method):
    """One message for one message, answered at once."""

    answer: Callable[[bytes], bytes]
    """Raises DigitsError."""
    is_slow: bool = False
    """Whether it is to be called on a thread of its own, since it may take seconds."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BatchedUnary(Method):
    """One message of rows for one message of answers, through a batch."""

    read: Read
    prefixes: PrefixCache = field(default_factory=PrefixCache)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BatchedStream(BatchedUnary):
    """A stream of messages of rows, answered in order."""

    error_message: Callable[[bytes, DigitsError], bytes | None] = lambda request, error: None
    """Encodes the answer to a request that is refused; None ends the stream with the error."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Replies(Method):
    """A stream of messages, each answered at once by any number of messages."""

    replies: Callable[[bytes], Iterable[bytes]]
    """Raises DigitsError."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Watch(Method):
    """One message, answered by a stream of messages until the caller leaves."""

    subscribe: Callable[[bytes, Callable[[bytes], None]], Callable[[], None]]
    """Takes the request and a function that sends an answer from any thread; returns a function
    that ends the subscription. Raises DigitsError.
    """
