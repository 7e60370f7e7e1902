"""The events of a connection: what `receive` returns, in the order in which it happened."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from serving.http2.headers import SharedHeaders
from serving.http2.hpack import Fields
from serving.http2.streams import OpenCall, Stream

Layout: TypeAlias = tuple[bytes, int]
"""A message's first bytes, and how many follow them."""


class HeadersReceived(NamedTuple):
    """A request or a response begins."""

    stream: bytes
    block: SharedHeaders
    is_end: bool
    """Whether the peer has ended the stream."""


class DataReceived(NamedTuple):
    """Data have come, or a part of a long frame of data."""

    stream: bytes
    data: bytes
    is_end: bool


class TrailersReceived(NamedTuple):
    """The peer has ended the stream with fields."""

    stream: bytes
    fields: Fields


class StreamReset(NamedTuple):
    """The peer has reset the stream, or an error of the peer's has."""

    stream: bytes
    code: int
    state: Stream | OpenCall
    """The stream's state before it; the stream is over."""


class CallsReceived(NamedTuple):
    """Whole calls were recognised, whose header blocks and first bytes repeat earlier ones."""

    shared: SharedHeaders
    """The header fields that all have."""
    token: Any
    """The application's, from `expect`."""
    messages: dict[bytes, bytes]
    """Each call's message without its known first bytes, by stream."""
    values: Mapping[bytes, list[bytes]]
    """The values that `shared` leaves out, by the field's name, in the order of the messages."""


class MessagesReceived(NamedTuple):
    """Frames of a known layout have come on one stream."""

    stream: bytes
    layout: Layout
    token: Any
    """The application's, from `expect`."""
    messages: Sequence[bytes]
    """Each frame's data without their known first bytes."""
    is_end: bool


class GoAway(NamedTuple):
    """The peer opens or takes no more streams than up to the one named."""

    last_stream: bytes
    code: int


Event: TypeAlias = (
    HeadersReceived
    | DataReceived
    | TrailersReceived
    | StreamReset
    | CallsReceived
    | MessagesReceived
    | GoAway
)
