"""Header blocks of requests and responses: decoded, checked, cached while they mean the same."""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

from serving.http2.frames import Limits
from serving.http2.hpack import Decoder, Field, Fields

_MAX_CACHED = 32
_MAX_CACHED_BYTES = 1024
"""The longest blocks that are cached, encoded."""
_MAX_KIND_BYTES, _FIELD_BYTES = 4096, 128
"""The largest kinds that are cached; the memory of a field beside its bytes."""

_MAX_LEFT_OUT = 8
"""Values that are left out of a block: of a run's pattern, each takes 0.1 ms and 6 kB."""

_NAME = re.compile(rb":?[!#$%&'*+\-.^_`|~0-9a-z]+")
_VALUE = re.compile(rb"[!-~\x80-\xff]*|[!-~\x80-\xff][^\0\r\n]*[!-~\x80-\xff]")
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
"""Names that need no closer look."""
_COUNTING = _OF_A_CONNECTION | frozenset(
    (b":method", b":scheme", b":path", b":authority", b":status", b"content-length",
     b"content-type", b"te", b"authorization")
)  # fmt: skip
"""Names whose values determine the kind of message."""
_REQUEST = frozenset((b":method", b":scheme", b":path", b":authority"))
_NEEDED = frozenset((b":method", b":scheme", b":path"))
_RESPONSE = frozenset((b":status",))

TIMEOUT = re.compile(b"[0-9]{1,8}[HMSmun]")
"""The values of grpc-timeout in calls that are recognised."""
Layout = tuple[bytes, int]
"""A message's first bytes, and how many follow them."""
Shape = tuple[tuple[int, int, bytes], ...]
"""Of header blocks that differ in some values: the bytes up to one, its length, its pattern; the
last part is without a value."""


class OpenCall:
    """The state of a stream of which only a cached block has come, and perhaps its one message.

    Streams with the same block share it, so a call that repeats others needs no object of its own.
    """

    __slots__ = ("block", "ended", "send_credit")
    trailers = None
    """See `Stream`: its answer has not begun."""

    def __init__(self, block: "Block", *, ended: bool, send_credit: int = 0) -> None:
        """Describe streams whose peer has ended its side, or not, and has added to their window."""
        self.block = block
        self.ended = ended
        self.send_credit = send_credit

    @property
    def call(self) -> Any:
        return self.block.call


_Value = tuple[int, int, bytes]
"""Where a block has a value, and its name."""


class Block:
    """A decoded header block; also the common part of those that differ only in a few values."""

    content_length: int | None = None
    """Of a kind."""
    is_malformed = False
    """Of a kind, whether HTTP does not allow it: its stream ends with PROTOCOL_ERROR."""
    is_call = False
    """Of a kind: whether one of them is a whole call."""
    is_repeated = False
    """Whether its bytes have come more than once; of a kind, more than one of its blocks."""
    is_kept = False
    """Whether others share it."""
    call: Any = None
    """For the application, such as the meaning of its fields; a kind has no changing ones."""
    states: Mapping[int, OpenCall] = {}
    """See `state`."""
    shape: Shape = ()
    """Where there are values that others do not share, if there are any."""
    names: tuple[bytes, ...] = ()
    """Their names; its fields do not have them."""
    common: "Block | None" = None
    """The part that it shares with blocks of the same bytes but for some values."""
    last: tuple[bytes, list[_Value]] | None = None
    """Of a kind: the last block of it that was decoded, and where it has values."""

    def __init__(
        self, raw: bytes, fields: Fields, kind: "Block | None" = None,
        changing: Sequence[Field] = (),
    ) -> None:  # fmt: skip
        """Take its bytes and its fields; without a `kind` it is one."""
        self.raw = raw
        self.fields = fields
        """Of a kind without those that change."""
        self.changing = changing
        """The fields whose values others of its kind do not share."""
        self.kind = kind or self
        """The part that it shares with blocks in which other values change from call to call."""
        if kind is None:
            self.messages: dict[bytes, tuple[Layout, Any]] = {}
            """The messages that are recognised on streams of a kind, with the application's tokens,
            by the first bytes of their frame."""

    def state(self, key: int) -> OpenCall:
        """Return the state of streams of which only the block has come, and perhaps a message.

        Args:
            key: how much more the peer takes on them than on others, less than 256; -1 where the
                message has not come.
        """
        state = self.states.get(key)
        if state is None:
            state = OpenCall(self, ended=key >= 0, send_credit=max(0, key))
            self.states = {**self.states, key: state}
        return state

    def shrink(self) -> None:
        """Drop the fields of a block that nobody shares, now that they were read."""
        if not self.is_kept:
            self.raw, self.fields, self.changing = b"", (), ()


class HeaderReader:
    """Reads the header blocks of one connection's peer, in their order."""

    def __init__(self, limits: Limits, forget: Callable[[], None], *, of_requests: bool) -> None:
        """Start with an empty table.

        Args:
            limits: the peer's limits.
            forget: called when blocks that were read do not mean the same any more.
            of_requests: whether blocks begin requests, or responses.
        """
        self._decoder = Decoder(limits.max_header_list_bytes, limits.max_header_fields, is_valid)
        self._of_requests = of_requests
        self._forget = forget
        self.blocks: dict[bytes, Block] = {}
        """Blocks that mean the same as long as no other one changes the table."""
        self.common: dict[tuple[bytes, ...], Block] = {}
        """Blocks likewise in which some values are left out, by the bytes between these.

        A value's length stands before it. So blocks with the same bytes between values have the
        same fields but for these values, and are as long.
        """
        self.num_vain = 0
        """How many blocks inserted values into the table that others of their kind do not have."""
        self._shapes: dict[int, Shape] = {}
        """Where blocks in `common` have values, by their length."""
        self._kinds: dict[tuple[Field | bytes, ...], Block] = {}
        """By fields, of which those that change are left with their name alone."""

    def repeats_without_table(self, block: Block) -> bool:
        """Return whether ones like the last block would be kept but for values, without a table.

        They must not be too long, and values in Huffman's code differ in length.
        """
        num_bytes = len(b"".join(chain.from_iterable(block.fields))) + 4 * len(block.fields)
        is_plain = all(begin < end for _, begin, end in self._decoder.literals)
        return is_plain and num_bytes <= _MAX_CACHED_BYTES

    def clear(self) -> None:
        """Read all blocks again."""
        self._clear_blocks()
        self._kinds.clear()

    def _clear_blocks(self) -> None:
        self.blocks.clear()
        self.common.clear()
        self._shapes.clear()

    def read(self, raw: bytes) -> Block:
        """Decode the block that begins a message.

        Raises:
            HpackError: it can't be decoded, or has too many fields.
        """
        block = self.blocks.get(raw)
        if block is not None:
            block.is_repeated = True
            return block
        if (block := self._changed(raw)) is not None:
            return block
        fields = self._decode(raw)
        decoder = self._decoder
        changing: list[Field] = []
        same: list[Field | bytes] = [*fields]
        for at, _, _ in decoder.literals:
            field = fields[at]
            if field[0] not in _COUNTING:
                same[at] = field[0]
                changing.append(field)
        key = tuple(same)
        kind = self._kinds.get(key)
        if decoder.has_invalid:
            kind = _malformed()
        elif kind is None:
            kind = self._learn(key, fields)
        else:
            kind.is_repeated = True
            self.num_vain += decoder.has_changed
        block = Block(raw, fields, kind, changing)
        if kind.is_kept and len(raw) <= _MAX_CACHED_BYTES and not decoder.has_changed:
            if len(self.blocks) >= _MAX_CACHED:
                self.blocks.clear()
            self.blocks[raw] = block
            block.is_kept = True
            values = [
                (begin, end, fields[at][0]) for at, begin, end in decoder.literals
                if begin < end and fields[at][0] not in _COUNTING
            ]  # fmt: skip
            if values:
                last, kind.last = kind.last, (raw, values)
                if last is not None and last[1] == values and len(last[0]) == len(raw):
                    block.common = self._common(block, last[0], values)
        return block

    def _changed(self, raw: bytes) -> Block | None:
        """Read a block that differs from known ones in some values; its fields end with these."""
        shape = self._shapes.get(len(raw))
        common = self.find(raw, 0, shape) if shape else None
        if common is None:
            return None
        changing, at = list(common.changing), 0
        for name, (number, size, _) in zip(common.names, common.shape, strict=False):
            field = name, raw[at + number : at + number + size]
            if not is_valid(field):
                return None
            changing.append(field)
            at += number + size
        fields = (*common.fields, *changing[len(common.changing) :])
        block = Block(raw, fields, common.kind, changing)
        block.common, common.is_repeated = common, True
        return block

    def find(self, data: bytes, at: int, shape: Shape) -> Block | None:
        """Return the common part of the blocks of a shape that begin at `at`, if it is known."""
        between: list[bytes] = []
        for number, size, _ in shape:
            between.append(data[at : at + number])
            at += number + size
        common = self.common.get(tuple(between))
        # A shorter value, and a field behind it, may stand where this shape has a longer one.
        return common if common is not None and common.shape == shape else None

    def _common(self, block: Block, last: bytes, values: list[_Value]) -> Block | None:
        """Return a block without the values in which it differs from the last one of its kind."""
        raw, names = block.raw, [name for name, _ in block.fields]
        changed = [
            (begin, end, name) for begin, end, name in values
            if raw[begin:end] != last[begin:end] and names.count(name) == 1
            and (name != b"grpc-timeout" or 1 < end - begin <= 9)
        ]  # fmt: skip
        if not 0 < len(changed) <= _MAX_LEFT_OUT:
            return None
        shape: list[tuple[int, int, bytes]] = []
        between: list[bytes] = []
        at = 0
        for begin, end, name in (*changed, (len(raw), len(raw), b"")):
            between.append(raw[at:begin])
            shape.append((begin - at, end - begin, _value_pattern(name, end - begin)))
            at = end
        key = tuple(between)
        common = self.common.get(key)
        if common is not None:
            common.is_repeated = True
            return common
        left_out = {name for _, _, name in changed}
        fields, changing = (
            tuple(field for field in each if field[0] not in left_out)
            for each in (block.fields, block.changing)
        )
        common = Block(raw, fields, block.kind, changing)
        common.shape, common.names = tuple(shape), tuple(name for _, _, name in changed)
        common.is_kept = True
        if len(self.common) >= _MAX_CACHED:
            self.common.clear()
            self._shapes.clear()
        self.common[key] = common
        self._shapes[len(raw)] = common.shape
        return common

    def _learn(self, key: tuple[Field | bytes, ...], fields: Fields) -> Block:
        length = dict(fields).get(b"content-length")
        has_shape = _has_shape([name for name, _ in fields], of_requests=self._of_requests)
        num_bytes = len(b"".join(chain.from_iterable(fields))) + len(fields) * _FIELD_BYTES
        kind = Block(b"", tuple(each for each in key if isinstance(each, tuple)))
        kind.content_length = int(length) if has_shape and length else None
        # The static table has an empty length.
        kind.is_malformed = not has_shape or length == b""
        kind.is_kept = num_bytes <= _MAX_KIND_BYTES
        if kind.is_kept:
            if len(self._kinds) >= _MAX_CACHED:
                self._kinds.clear()
            self._kinds[key] = kind
        return kind

    def read_trailers(self, raw: bytes) -> Fields | None:
        """Decode the block that ends a message; None if it is malformed.

        Raises:
            HpackError: as in `read`.
        """
        fields = self._decode(raw)
        is_malformed = any(name.startswith(b":") for name, _ in fields)
        return None if is_malformed or self._decoder.has_invalid else fields

    def _decode(self, raw: bytes) -> Fields:
        fields = self._decoder.decode(raw)
        if self._decoder.has_changed and self.blocks:
            self._clear_blocks()
            self._forget()
        return fields


def _value_pattern(name: bytes, size: int) -> bytes:
    """Return what matches values that change; others are read, and perhaps refused, one by one."""
    if name == b"grpc-timeout":
        return b"[0-9]{%d}[HMSmun]" % (size - 1)
    return rb"[!-~\x80-\xff]{%d}" % size


def _malformed() -> Block:
    kind = Block(b"", ())
    kind.is_malformed = True
    return kind


def is_valid(field: Field) -> bool:
    """Return whether HTTP/2 allows a field (RFC 9113, section 8.2)."""
    name, value = field
    if not value.isalnum() and not _VALUE.fullmatch(value):
        return False
    pattern = _VALUES.get(name)
    if pattern is not None:
        return pattern.fullmatch(value) is not None
    if name in _COMMON:
        return True
    return _NAME.fullmatch(name) is not None and name not in _OF_A_CONNECTION


def _has_shape(names: list[bytes], *, of_requests: bool) -> bool:
    """Return whether the pseudo-header fields are those that a message has (section 8.3)."""
    allowed, needed = (_REQUEST, _NEEDED) if of_requests else (_RESPONSE, _RESPONSE)
    seen = set(names)
    pseudo = seen & allowed
    number = len(pseudo)
    return (
        needed <= pseudo == set(names[:number])
        and b"\0:" not in b"\0".join((b"", *names[number:]))
        and names.count(b"content-length") <= 1
        and _OF_A_CONNECTION.isdisjoint(seen)
    )
