"""Header blocks of requests and responses: decoded, checked, kept while they mean the same."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, Protocol, TypeAlias

from serving.http2.hpack import Decoder, Field, Fields
from serving.http2.limits import Limits

MAX_KEPT_BYTES = 1024
"""The longest blocks that are kept, encoded."""
_MAX_KEPT = 32
_MAX_KIND_BYTES, _FIELD_BYTES = 4096, 128
"""The largest kinds that are kept; the memory of a field beside its bytes."""

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
_COUNTING = _OF_A_CONNECTION | frozenset(
    (b":method", b":scheme", b":path", b":authority", b":status", b"content-length", b"te")
)
"""Names whose values always determine the kind of message."""
_REQUEST = frozenset((b":method", b":scheme", b":path", b":authority"))
_NEEDED = frozenset((b":method", b":scheme", b":path"))
_RESPONSE = frozenset((b":status",))

Literal: TypeAlias = tuple[int, int, int]
"""A field that a block has as a literal: its number, and where the block has the value."""


class SharedHeaders:
    """Header fields that streams have in common: a block, a kind of blocks, or a part of one."""

    call: Any = None
    """The application's, such as the meaning of the fields."""
    is_repeated = False
    """Whether it has come more than once."""
    is_kept = False
    """Whether later blocks share it."""
    names: tuple[bytes, ...] = ()
    """Fields that are left out, since each stream has a value of its own."""
    states: Mapping[int, Any] = {}
    """The states of streams of which nothing else is known; see the recogniser."""

    def __init__(self, fields: Fields, kind: "Kind", changing: Sequence[Field] = ()) -> None:
        """Share fields.

        Args:
            fields: all but those in `names`.
            kind: the kind of the blocks that have them.
            changing: those of `fields` whose values other blocks of the kind do not share.
        """
        self.fields = fields
        self.kind = kind
        self.changing = changing

    def shrink(self) -> None:
        """Drop the fields, now that they were read, if no later block shares them."""
        if not self.is_kept:
            self.fields, self.changing = (), ()


class Kind(SharedHeaders):
    """The part that blocks share whose other values change from call to call."""

    content_length: int | None = None
    is_malformed = False
    """Whether HTTP does not allow it: its stream ends with PROTOCOL_ERROR."""
    is_call = False
    """Whether a block and a known message are a whole call."""
    last: tuple[bytes, Any] | None = None
    """The last block of the kind that was decoded, and where it has values; for the recogniser."""

    def __init__(self, fields: Fields) -> None:
        """Take the fields whose values do not change."""
        super().__init__(fields, self)
        self.messages: dict[bytes, tuple[tuple[bytes, int], Any]] = {}
        """The layouts of messages that are recognised, with the application's tokens, by the first
        bytes of their frame."""


class Block(SharedHeaders):
    """A decoded header block."""

    template: SharedHeaders | None = None
    """The part that it shares with blocks of the same bytes but for some values."""

    def __init__(self, raw: bytes, fields: Fields, kind: Kind, changing: Sequence[Field]) -> None:
        """Take a block; see `SharedHeaders`.

        Args:
            raw: its bytes; empty once nobody shares them.
            fields: its fields.
            kind: its kind.
            changing: the fields whose values others of the kind do not share.
        """
        super().__init__(fields, kind, changing)
        self.raw = raw

    def shrink(self) -> None:
        """Drop bytes and fields, as `SharedHeaders.shrink` does."""
        super().shrink()
        if not self.is_kept:
            self.raw = b""


class BlockRecogniser(Protocol):
    """What a recogniser adds to the reading of blocks."""

    def read(self, raw: bytes) -> Block | None:
        """Read a block that differs from known ones in some values; None if it does not."""

    def learn(self, block: Block, literals: Sequence[Literal]) -> None:
        """Note a block that was decoded and is kept, with its literals."""

    def clear(self) -> None:
        """Forget all blocks: they do not mean the same any more."""


class HeaderReader:
    """Reads the header blocks of one connection's peer, in their order."""

    recogniser: BlockRecogniser | None = None

    def __init__(
        self, limits: Limits, *, of_requests: bool, counting: frozenset[bytes] = frozenset()
    ) -> None:
        """Start with an empty table.

        Args:
            limits: the peer's limits.
            of_requests: whether blocks begin requests, or responses.
            counting: more names whose values determine the kind of message.
        """
        self._decoder = Decoder(limits.max_header_list_bytes, limits.max_header_fields, is_valid)
        self._of_requests = of_requests
        self._counting = _COUNTING | counting
        self.blocks: dict[bytes, Block] = {}
        """Blocks that mean the same as long as no other one changes the table."""
        self.num_vain = 0
        """How many blocks inserted values into the table that others of their kind do not have."""
        self.kinds: dict[tuple[Field | bytes, ...], Kind] = {}
        """Kinds by fields, of which those that change are left with their name alone."""

    @property
    def literals(self) -> Sequence[Literal]:
        """The literals of the last block that was decoded."""
        return self._decoder.literals

    def clear(self) -> None:
        """Read all blocks again."""
        self._clear_blocks()
        self.kinds.clear()

    def _clear_blocks(self) -> None:
        self.blocks.clear()
        if self.recogniser is not None:
            self.recogniser.clear()

    def read(self, raw: bytes) -> Block:
        """Decode the block that begins a message.

        Raises:
            HpackError: it can't be decoded, or has too many fields.
        """
        block = self.blocks.get(raw)
        if block is not None:
            block.is_repeated = True
            return block
        recogniser = self.recogniser
        if recogniser is not None and (block := recogniser.read(raw)) is not None:
            return block
        fields = self._decode(raw)
        decoder = self._decoder
        changing: list[Field] = []
        same: list[Field | bytes] = [*fields]
        for at, _, _ in decoder.literals:
            field = fields[at]
            if field[0] not in self._counting:
                same[at] = field[0]
                changing.append(field)
        kind = self._kind(tuple(same), fields)
        block = Block(raw, fields, kind, changing)
        if kind.is_kept and len(raw) <= MAX_KEPT_BYTES and not decoder.has_changed:
            if len(self.blocks) >= _MAX_KEPT:
                self.blocks.clear()
            self.blocks[raw] = block
            block.is_kept = True
            if recogniser is not None:
                recogniser.learn(block, decoder.literals)
        return block

    def _kind(self, key: tuple[Field | bytes, ...], fields: Fields) -> Kind:
        """Return the kind of the block that was decoded last."""
        if self._decoder.has_invalid:
            kind = Kind(())
            kind.is_malformed = True
            return kind
        known = self.kinds.get(key)
        if known is None:
            return self._new_kind(key, fields)
        known.is_repeated = True
        self.num_vain += self._decoder.has_changed
        return known

    def _new_kind(self, key: tuple[Field | bytes, ...], fields: Fields) -> Kind:
        length = dict(fields).get(b"content-length")
        has_shape = _has_shape([name for name, _ in fields], of_requests=self._of_requests)
        num_bytes = len(b"".join(chain.from_iterable(fields))) + len(fields) * _FIELD_BYTES
        kind = Kind(tuple(each for each in key if isinstance(each, tuple)))
        kind.content_length = int(length) if has_shape and length else None
        # The static table has an empty length.
        kind.is_malformed = not has_shape or length == b""
        kind.is_kept = num_bytes <= _MAX_KIND_BYTES
        if kind.is_kept:
            if len(self.kinds) >= _MAX_KEPT:
                self.kinds.clear()
            self.kinds[key] = kind
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
        return fields


@lru_cache(maxsize=256)  # callers repeat their names
def _is_name(name: bytes) -> bool:
    return _NAME.fullmatch(name) is not None and name not in _OF_A_CONNECTION


def is_valid(field: Field) -> bool:
    """Return whether HTTP/2 allows a field (RFC 9113, section 8.2)."""
    name, value = field
    if not value.isalnum() and not _VALUE.fullmatch(value):
        return False
    pattern: re.Pattern[bytes] | None = _VALUES.get(name)
    if pattern is not None:
        return pattern.fullmatch(value) is not None
    return _is_name(name)


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
