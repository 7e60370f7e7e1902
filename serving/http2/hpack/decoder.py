"""Decodes header blocks."""

from collections.abc import Callable

from serving.http2.hpack import huffman
from serving.http2.hpack.table import (
    DEFAULT_TABLE,
    ENTRY_BYTES,
    INDEXED,
    INSERT,
    RESIZE,
    Field,
    Fields,
    Table,
)

_MAX_CACHED = 256
_MAX_CACHED_BYTES = 128


class HpackError(ValueError):
    """A header block that can't be decoded."""


class _Invalid(Field):
    """A field that HTTP does not allow; it equals the same tuple, in the table, too."""

    __slots__ = ()


class Decoder:
    """Reads the header blocks of one connection, in their order."""

    def __init__(
        self, max_list_bytes: int, max_fields: int, is_valid: Callable[[Field], bool]
    ) -> None:
        """Start with an empty table.

        Args:
            max_list_bytes: the most of a block's names and values, each field counting 32 more.
            max_fields: the most fields of a block.
            is_valid: says of a field that was sent as a literal whether HTTP allows it.
        """
        self._table = Table()
        self._is_valid = is_valid
        self._may_have_invalid = False
        """Whether the table ever had a field that HTTP does not allow."""
        self._max_list_bytes = max_list_bytes
        self._max_fields = max_fields
        self._cache: dict[bytes, bytes] = {}
        self.has_changed = False
        """Whether the last block changed the table."""
        self.has_invalid = False
        """Whether the last block had a field that HTTP does not allow."""

    def decode(self, block: bytes) -> Fields:
        """Decode a block.

        Raises:
            HpackError: it is malformed or too large; the table is of no more use.
        """
        try:
            return self._decode(block)
        except IndexError:
            raise HpackError(
                "a header block that is cut off, or an index out of the table"
            ) from None
        except ValueError as err:
            raise HpackError(f"a malformed header block: {err}") from None

    def _decode(self, block: bytes) -> Fields:
        fields: list[Field] = []
        table, at, size = self._table.fields, 0, len(block)
        self.has_changed = self.has_invalid = False
        while at < size:
            first = block[at]
            at += 1
            if first > INDEXED:
                if first < 0xFF:
                    field = table[first & 0x7F]
                else:
                    index, at = _integer(block, at - 1, 7)
                    field = table[index]
            elif first == INDEXED:
                raise HpackError("an index of 0")
            elif first & 0xE0 == RESIZE:
                at = self._resize(block, at - 1, is_first=not fields)
                continue
            else:
                field, at = self._literal(block, at - 1, first)
            fields.append(field)
        if len(fields) * DEFAULT_TABLE + 2 * size > self._max_list_bytes:  # else it can't be more
            self._check_size(fields)
        if self._may_have_invalid and any(field.__class__ is _Invalid for field in fields):
            self.has_invalid = True
        return tuple(fields)

    def _literal(self, block: bytes, at: int, first: int) -> tuple[Field, int]:
        """Read a field that is not in the table; return it and where it ends."""
        is_inserted = first & INSERT
        most = 0x3F if is_inserted else 0x0F
        index, at = first & most, at + 1
        if index == most:
            index, at = _integer(block, at - 1, 6 if is_inserted else 4)
        if not index:
            name, at = self._string(block, at)
        else:
            name = self._table.fields[index][0]
        value, at = self._string(block, at)
        field: Field = name, value
        if not self._is_valid(field):
            self.has_invalid = self._may_have_invalid = True
            field = _Invalid(field)
        if is_inserted:
            self._table.insert(field)
            self.has_changed = True
        return field, at

    def _resize(self, block: bytes, at: int, *, is_first: bool) -> int:
        """Read a new size of the table; return where it ends."""
        max_bytes, at = _integer(block, at, 5)
        if not is_first or max_bytes > DEFAULT_TABLE:
            raise HpackError("a table size that is too large or out of place")
        self._table.resize(max_bytes)
        self.has_changed = True
        return at

    def _check_size(self, fields: list[Field]) -> None:
        num_bytes = sum(len(name) + len(value) + ENTRY_BYTES for name, value in fields)
        if num_bytes > self._max_list_bytes or len(fields) > self._max_fields:
            raise HpackError("more header fields than are accepted")

    def _string(self, block: bytes, at: int) -> tuple[bytes, int]:
        """Read a string at `at`; return it and where it ends."""
        first = block[at]
        length, at = first & 0x7F, at + 1
        if length == 0x7F:
            length, at = _integer(block, at - 1, 7)
        text, end = block[at : at + length], at + length
        if len(text) != length:
            raise HpackError("a string that is cut off")
        if first < 0x80:
            return text, end
        decoded = self._cache.get(text)
        if decoded is None:
            decoded = huffman.decode(text)
            if length <= _MAX_CACHED_BYTES:
                if len(self._cache) >= _MAX_CACHED:
                    self._cache.clear()
                self._cache[text] = decoded
        return decoded, end


def _integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """Read an integer at `at`; return it and where it ends (section 5.1)."""
    most = (1 << bits) - 1
    value, at = block[at] & most, at + 1
    if value == most:
        shift = 0
        while True:
            byte = block[at]
            value += (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                break
            if shift > 28:
                raise HpackError("an integer that is too long")
    return value, at
