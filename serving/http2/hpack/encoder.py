"""Encodes header blocks."""

from collections.abc import Iterable

from serving.http2.hpack.table import (
    DEFAULT_TABLE,
    INDEXED,
    INSERT,
    RESIZE,
    STATIC,
    Field,
    Fields,
    Table,
)

_MAX_CACHED = 256
_VOLATILE = frozenset(
    (b"grpc-timeout", b"grpc-message", b"x-request-id", b"traceparent", b"tracestate")
)
"""Names whose values change from call to call: inserted, they would only push others out."""
_STATIC_INDEX = {field: index for index, field in reversed([*enumerate(STATIC, 1)])}
_STATIC_NAME = {name: index for index, (name, _) in reversed([*enumerate(STATIC, 1)])}


class Encoder:
    """Writes the header blocks of one connection, in their order."""

    def __init__(self) -> None:
        """Start with an empty table."""
        self._table = Table()
        self.resized = b""
        """The change of the table's size that the next block must begin with, in any encoding."""
        self._blocks: dict[Fields, bytes] = {}

    def resize(self, max_bytes: int) -> None:
        """Take the peer's setting for the size of the table."""
        max_bytes = min(max_bytes, DEFAULT_TABLE)
        self._table.resize(0)
        self._table.resize(max_bytes)
        self.resized = _write_integer(0, 5, RESIZE) + _write_integer(max_bytes, 5, RESIZE)
        self._blocks.clear()

    def encode(self, fields: Fields) -> bytes:
        """Encode fields so that the same ones take a byte each the next time."""
        block = self._blocks.get(fields)
        if block is not None:
            return block
        changes = False
        parts = []
        for field in fields:
            index = self._index(field)
            if index:
                parts.append(_write_integer(index, 7, INDEXED))
                continue
            if field[0] in _VOLATILE:
                parts.append(literal(field))
                continue
            parts.append(literal(field, INSERT))
            self._table.insert(field)
            changes = True
        block = b"".join(parts)
        if changes:
            self._blocks.clear()
        else:
            if len(self._blocks) >= _MAX_CACHED:
                self._blocks.clear()
            self._blocks[fields] = block
        return block

    def repeated(self, fields: Fields) -> bytes | None:
        """Return the block of fields that are all in the table; None if one is not."""
        block = self._blocks.get(fields)
        if block is None and all(map(self._index, fields)):
            block = self.encode(fields)
        return block

    def _index(self, field: Field) -> int:
        index = _STATIC_INDEX.get(field, 0)
        if not index and field in self._table.fields:
            index = self._table.fields.index(field)
        return index


def literal(field: Field, kind: int = 0) -> bytes:
    """Encode a field as it is; of the kind 0 it changes no table."""
    name, value = field
    index = _STATIC_NAME.get(name, 0)
    start = _write_integer(index, 6 if kind == INSERT else 4, kind)
    return start + (b"" if index else _write_string(name)) + _write_string(value)


def encode_literally(fields: Iterable[Field]) -> bytes:
    """Encode fields so that neither side's table is needed or changed."""
    return b"".join(
        _write_integer(_STATIC_INDEX[field], 7, INDEXED) if field in _STATIC_INDEX
        else literal(field)
        for field in fields
    )  # fmt: skip


def _write_integer(value: int, bits: int, flags: int) -> bytes:
    most = (1 << bits) - 1
    if value < most:
        return bytes((flags | value,))
    value -= most
    text = bytearray((flags | most,))
    while value >= 0x80:
        text.append(value & 0x7F | 0x80)
        value >>= 7
    text.append(value)
    return bytes(text)


def _write_string(text: bytes) -> bytes:
    return _write_integer(len(text), 7, 0) + text
