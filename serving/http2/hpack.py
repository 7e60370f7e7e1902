"""HPACK (RFC 7541): header blocks to fields and back, with a table of fields on either side.

Table      the static fields, and those that one side has inserted
Decoder    blocks to fields
Encoder    fields to blocks
"""

from collections.abc import Callable, Iterable

from serving.http2.frames import ErrorCode, Http2Error
from serving.http2.huffman import decode_huffman

Field = tuple[bytes, bytes]
Fields = tuple[Field, ...]

DEFAULT_TABLE = 4096
ENTRY_BYTES = 32
"""The size of a table entry in addition to its name and value."""
INDEXED, INSERT, RESIZE = 0x80, 0x40, 0x20
"""The first bits of a field in the table, of one to be inserted, and of a new size (section 6)."""
_NAMES = (
    "accept-charset accept-encoding accept-language accept-ranges accept"
    " access-control-allow-origin age allow authorization cache-control content-disposition"
    " content-encoding content-language content-length content-location content-range content-type"
    " cookie date etag expect expires from host if-match if-modified-since if-none-match if-range"
    " if-unmodified-since last-modified link location max-forwards proxy-authenticate"
    " proxy-authorization range referer refresh retry-after server set-cookie"
    " strict-transport-security transfer-encoding user-agent vary via www-authenticate"
)
STATIC: Fields = (
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    *((b":status", status) for status in b"200 204 206 304 400 404 500".split()),
    *(
        (name.encode(), b"gzip, deflate" if name == "accept-encoding" else b"")
        for name in _NAMES.split()
    ),
)
"""The first 61 entries of every table (appendix A)."""
_FIRST_INSERTED = 1 + len(STATIC)
_STATIC_INDEX = {field: index for index, field in reversed([*enumerate(STATIC, 1)])}
_STATIC_NAME = {name: index for index, (name, _) in reversed([*enumerate(STATIC, 1)])}
_MAX_CACHED = 256
"""The header blocks that an encoder keeps."""


class Table:
    """The static fields and those that one side has inserted."""

    def __init__(self) -> None:
        self.fields: list[Field] = [(b"", b""), *STATIC]
        """By index: none, the static ones, the inserted ones with the newest first."""
        self.max_bytes = DEFAULT_TABLE
        self._num_bytes = 0

    def insert(self, field: Field) -> bool:
        """Insert a field; the oldest make room, all of them for one that is too large.

        Returns:
            Whether that has changed the table: an empty one stays so.
        """
        name, value = field
        fields, num_bytes = self.fields, self._num_bytes + len(name) + len(value) + ENTRY_BYTES
        fields.insert(_FIRST_INSERTED, field)
        was_empty = not self._num_bytes
        while num_bytes > self.max_bytes:
            name, value = fields.pop()
            num_bytes -= len(name) + len(value) + ENTRY_BYTES
        self._num_bytes = num_bytes
        return not was_empty or num_bytes > 0

    def resize(self, max_bytes: int) -> None:
        """Set the most bytes of all entries."""
        self.max_bytes = max_bytes
        while self._num_bytes > max_bytes:
            name, value = self.fields.pop()
            self._num_bytes -= len(name) + len(value) + ENTRY_BYTES


class HpackError(Http2Error):
    """A header block that can't be decoded."""

    def __init__(self, text: str) -> None:
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
        self.literals: list[tuple[int, int, int]] = []
        """The last block's fields that were literals: which, and where the block has the value; an
        empty range if that is in Huffman's code."""
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
                field, begin, at = self._literal(block, at, first)
                literals.append((len(fields), begin, at))
                fields.append(field)
        if len(fields) * DEFAULT_TABLE + 2 * size > self._max_list_bytes:  # else it can't be more
            self._check_size(fields)
        if self._may_have_invalid and any(field.__class__ is _Invalid for field in fields):
            self.has_invalid = True
        return tuple(fields)

    def _literal(self, block: bytes, at: int, first: int) -> tuple[Field, int, int]:
        """Read a field that is not in the table; return it, where its value begins, and ends."""
        is_inserted = first & INSERT
        most = 0x3F if is_inserted else 0x0F
        index, at = first & most, at + 1
        if index == most:
            index, at = _integer(block, at - 1, most)
        if index:
            name = self._table.fields[index][0]
        else:
            name, at = _string(block, at)
        is_coded = block[at] >= 0x80
        value, at = _string(block, at)
        field: Field = name, value
        if not self._is_valid(field):
            self.has_invalid = self._may_have_invalid = True
            field = _Invalid(field)
        if is_inserted:
            self.has_changed |= self._table.insert(field)
        return field, at if is_coded else at - len(value), at

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
    return (text if first < 0x80 else decode_huffman(text)), end


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


class Encoder:
    """Writes the header blocks of one connection, in their order."""

    def __init__(self, volatile: frozenset[bytes] = frozenset()) -> None:
        """Start with an empty table.

        Args:
            volatile: names whose values change from call to call: inserted into the table, they
                would only push others out.
        """
        self._table = Table()
        self._volatile = volatile
        self.resized = b""
        """The change of the table's size that the next block must begin with, in any encoding."""
        self.blocks: dict[Fields, bytes] = {}
        """Blocks by their fields, as long as the table stays as it is."""

    def resize(self, max_bytes: int) -> None:
        """Take the peer's setting for the size of the table."""
        max_bytes = min(max_bytes, DEFAULT_TABLE)
        self._table.resize(0)
        self._table.resize(max_bytes)
        self.resized = _write_integer(0, 5, RESIZE) + _write_integer(max_bytes, 5, RESIZE)
        self.blocks.clear()

    def encode(self, fields: Fields) -> bytes:
        """Encode fields so that the same ones take a byte each the next time."""
        block = self.blocks.get(fields)
        if block is not None:
            return block
        changes = False
        parts = []
        for field in fields:
            index = self._index(field)
            if index:
                parts.append(_write_integer(index, 7, INDEXED))
                continue
            num_bytes = len(field[0]) + len(field[1]) + ENTRY_BYTES
            if field[0] in self._volatile or num_bytes > self._table.max_bytes:
                parts.append(literal(field))
                continue
            parts.append(literal(field, INSERT))
            self._table.insert(field)
            changes = True
        block = b"".join(parts)
        if changes:
            self.blocks.clear()
        else:
            if len(self.blocks) >= _MAX_CACHED:
                self.blocks.clear()
            self.blocks[fields] = block
        return block

    def repeated(self, fields: Fields) -> bytes | None:
        """Return the block of fields that are all in the table; None if one is not."""
        block = self.blocks.get(fields)
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
        _write_integer(_STATIC_INDEX[field], 7, INDEXED)
        if field in _STATIC_INDEX
        else literal(field)
        for field in fields
    )


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
