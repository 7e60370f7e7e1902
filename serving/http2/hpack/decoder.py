"""Decodes header blocks."""

from collections.abc import Callable

from serving.http2.frames import ErrorCode, Http2Error
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


class HpackError(Http2Error):
    """A header block that can't be decoded."""

    def __init__(self, text: str) -> None:
        """Take the reason for people."""
        super().__init__(ErrorCode.COMPRESSION_ERROR, text)


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
        self.literals: list[int] = []
        """Which of the last block's fields were literals, not taken from the table."""
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
        self.literals = literals = []
        table = self._table.fields
        self.has_changed = self.has_invalid = False
        for first in block:  # most blocks begin with several of these
            if not INDEXED < first < 0xFF:
                break
            fields.append(table[first & 0x7F])
        at, size = len(fields), len(block)
        while at < size:
            first = block[at]
            if first > INDEXED:
                index, at = (first & 0x7F, at + 1) if first < 0xFF else _integer(block, at, 0x7F)
                fields.append(table[index])
            elif first == INDEXED:
                raise HpackError("an index of 0")
            elif first & 0xE0 == RESIZE:
                at = self._resize(block, at, is_first=not fields)
            else:
                literals.append(len(fields))
                field, at = self._literal(block, at, first)
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
            index, at = _integer(block, at - 1, most)
        if index:
            name = self._table.fields[index][0]
        else:
            name, at = _string(block, at)
        value, at = _string(block, at)
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
        max_bytes, at = _integer(block, at, 0x1F)
        if not is_first or max_bytes > DEFAULT_TABLE:
            raise HpackError("a table size that is too large or out of place")
        self._table.resize(max_bytes)
        self.has_changed = True
        return at

    def _check_size(self, fields: list[Field]) -> None:
        num_bytes = sum(len(name) + len(value) + ENTRY_BYTES for name, value in fields)
        if num_bytes > self._max_list_bytes or len(fields) > self._max_fields:
            raise HpackError("more header fields than are accepted")


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    """Read a string at `at`; return it and where it ends."""
    first = block[at]
    begin = at + 1
    end = begin + (first & 0x7F)
    if first | 0x80 == 0xFF:
        length, begin = _integer(block, at, 0x7F)
        end = begin + length
    if end > len(block):
        raise HpackError("a string that is cut off")
    text = block[begin:end]
    return (text if first < 0x80 else huffman.decode(text)), end


def _integer(block: bytes, at: int, most: int) -> tuple[int, int]:
    """Read an integer at `at`, whose first byte has `most` at most; return it and its end."""
    value, at = block[at] & most, at + 1
    if value < most:
        return value, at
    shift = 0
    while True:
        byte = block[at]
        value += (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 28:
            raise HpackError("an integer that is too long")
