"""Header blocks of requests and responses: decoded, checked, cached while they mean the same."""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from serving.http2.frames import ErrorCode, Http2Error
from serving.http2.hpack.decoder import Decoder, HpackError
from serving.http2.hpack.table import Field, Fields
from serving.http2.limits import Limits

_MAX_CACHED = 64
_MAX_CACHED_BYTES = 1024
_MAX_CACHED_FIELDS = 32
"""Larger blocks are not kept: a field of three bytes takes 70 in memory."""
_MAX_SHAPES = 1024
_MAX_MESSAGES = 16
"""Layouts that are recognised after one block."""

_NAME = re.compile(rb":?[!#$%&'*+\-.^_`|~0-9a-z]+")
_VALUE = re.compile(rb"(?:[^\0-\x20\x7f](?:[^\0\r\n]*[^\0-\x20\x7f])?)?")
"""Section 8.2.1: neither NUL nor ends of lines, and no blanks around it."""
_OF_A_CONNECTION = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade")
)
_VALUES = {
    b"te": re.compile(b"trailers"),
    b"content-length": re.compile(b"[0-9]{1,19}"),
    b":status": re.compile(b"[0-9]{3}"),
    b":path": re.compile(b".+"),
}
_COMMON = frozenset((b"grpc-timeout", b"traceparent", b"x-request-id", b"authorization"))
"""Names that need no closer look each time."""
_REQUEST = frozenset((b":method", b":scheme", b":path", b":authority"))
_NEEDED = frozenset((b":method", b":scheme", b":path"))
_RESPONSE = frozenset((b":status",))


Layout = tuple[bytes, int]
"""A message's first bytes, and how many follow them."""


class OpenCall:
    """The state of a stream of which only a cached block has come, and perhaps its one message.

    Streams with the same block share it, so a call that repeats others needs no object of its own.
    """

    __slots__ = ("block", "ended")

    def __init__(self, block: "Block", *, ended: bool) -> None:
        """Describe streams whose peer has ended its side, or not."""
        self.block = block
        self.ended = ended

    @property
    def call(self) -> Any:
        """See `Block`."""
        return self.block.call


class Block:
    """A decoded header block."""

    is_repeated = False
    """Whether its bytes have come more than once, and meant the same."""
    is_kept = False
    """Whether others with the same bytes share it."""
    content_length: int | None = None
    call: Any = None
    """For the application, such as the meaning of the fields."""
    messages: Mapping[Layout, Any] = MappingProxyType({})
    """The messages that are recognised on its streams, with the application's tokens."""
    opened: "OpenCall | None" = None
    """The state of streams that begin with it, where they are recognised from their headers on."""
    answered: "OpenCall | None" = None

    def __init__(self, raw: bytes, fields: Fields, *, is_malformed: bool) -> None:
        self.raw = raw
        self.fields = fields
        self.is_malformed = is_malformed
        """Whether HTTP does not allow it: its stream ends with PROTOCOL_ERROR."""

    def shrink(self) -> None:
        """Drop the fields of a block that nobody shares, now that they were read."""
        if not self.is_kept:
            self.raw, self.fields = b"", ()

    def expect(self, layout: "Layout", token: Any, *, calls: bool) -> None:
        """Have messages of a layout recognised, and perhaps whole calls."""
        if calls and self.opened is None:
            self.opened = OpenCall(self, ended=False)
            self.answered = OpenCall(self, ended=True)
        others = self.messages if len(self.messages) < _MAX_MESSAGES else {}
        self.messages = {**others, layout: token}


_request_shapes: dict[tuple[bytes, ...], bool] = {}
_response_shapes: dict[tuple[bytes, ...], bool] = {}
"""By the names of a message's fields: whether they are those of a request, of a response."""


class HeaderReader:
    """Reads the header blocks of one connection's peer, in their order."""

    def __init__(self, limits: Limits, forget: Callable[[], None], *, of_requests: bool) -> None:
        """Start with an empty table.

        Args:
            limits: what the peer may use.
            forget: called when blocks that were read do not mean the same any more.
            of_requests: whether blocks begin requests, or responses.
        """
        self._decoder = Decoder(limits.max_header_list_bytes, limits.max_header_fields, is_valid)
        self._shapes = _request_shapes if of_requests else _response_shapes
        self._forget = forget
        self.blocks: dict[bytes, Block] = {}
        """Blocks that mean the same as long as no other one changes the table."""

    def read(self, raw: bytes) -> Block:
        """Decode the block that begins a message.

        Raises:
            Http2Error: it can't be decoded, or has too many fields.
        """
        block = self.blocks.get(raw)
        if block is not None:
            block.is_repeated = True
            return block
        fields, is_valid = self._decode(raw)
        may_keep = len(raw) <= _MAX_CACHED_BYTES and len(fields) <= _MAX_CACHED_FIELDS
        names: tuple[bytes, ...] = next(zip(*fields, strict=False), ())
        has_shape = self._shapes.get(names)
        if has_shape is None:
            has_shape = _has_shape(names, of_requests=self._shapes is _request_shapes)
            if may_keep:
                self._keep_shape(names, has_shape=has_shape)
        is_malformed = not (is_valid and has_shape)
        block = Block(raw, fields, is_malformed=is_malformed)
        if b"content-length" in names and not is_malformed:
            length = dict(fields)[b"content-length"]
            block.is_malformed = not length  # the static table has an empty one
            block.content_length = int(length or b"0")
        if may_keep and not self._decoder.has_changed:
            if len(self.blocks) >= _MAX_CACHED:
                self.blocks.clear()
            self.blocks[raw] = block
            block.is_kept = True
        return block

    def _keep_shape(self, names: tuple[bytes, ...], *, has_shape: bool) -> None:
        if len(self._shapes) >= _MAX_SHAPES:
            self._shapes.clear()
        self._shapes[names] = has_shape

    def read_trailers(self, raw: bytes) -> Fields | None:
        """Decode the block that ends a message; None if it is malformed.

        Raises:
            Http2Error: as in `read`.
        """
        fields, is_valid = self._decode(raw)
        is_malformed = not is_valid or any(name.startswith(b":") for name, _ in fields)
        return None if is_malformed else fields

    def _decode(self, raw: bytes) -> tuple[Fields, bool]:
        decoder = self._decoder
        try:
            fields = decoder.decode(raw)
        except HpackError as err:
            raise Http2Error(ErrorCode.COMPRESSION_ERROR, str(err)) from None
        if decoder.has_changed and self.blocks:
            self.blocks.clear()
            self._forget()
        return fields, not decoder.has_invalid


def is_valid(field: Field) -> bool:
    """Return whether HTTP/2 allows a field (RFC 9113, section 8.2)."""
    name, value = field
    if not _VALUE.fullmatch(value):
        return False
    pattern = _VALUES.get(name)
    if pattern is not None:
        return pattern.fullmatch(value) is not None
    if name in _COMMON:
        return True
    return _NAME.fullmatch(name) is not None and name not in _OF_A_CONNECTION


def _has_shape(names: tuple[bytes, ...], *, of_requests: bool) -> bool:
    """Return whether the pseudo-header fields are those that a message has (section 8.3)."""
    pseudo = [name for name in names if name.startswith(b":")]
    allowed, needed = (_REQUEST, _NEEDED) if of_requests else (_RESPONSE, _RESPONSE)
    return (
        list(names[: len(pseudo)]) == pseudo
        and len(set(pseudo)) == len(pseudo)
        and needed <= set(pseudo) <= allowed
        and names.count(b"content-length") <= 1
        and _OF_A_CONNECTION.isdisjoint(names)
    )
