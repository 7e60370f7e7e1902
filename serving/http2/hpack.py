"""HPACK (RFC 7541): header blocks to fields and back, with a table of fields on either side.

Table      the static fields, and those that one side has inserted
Decoder    blocks to fields
Encoder    fields to blocks
Huffman's code (appendix B), decoded a byte at a time by a table made on demand
"""

from collections.abc import Callable, Iterable

from serving.http2.frames import ErrorCode, Http2Error

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
    (b":authority", b""), (b":method", b"GET"), (b":method", b"POST"), (b":path", b"/"),
    (b":path", b"/index.html"), (b":scheme", b"http"), (b":scheme", b"https"),
    *((b":status", status) for status in b"200 204 206 304 400 404 500".split()),
    *((name.encode(), b"gzip, deflate" if name == "accept-encoding" else b"")
      for name in _NAMES.split()),
)  # fmt: skip
"""The first 61 entries of every table (appendix A)."""
_FIRST_INSERTED = 1 + len(STATIC)


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
        """Of the last block's fields that were literals: which, and where the block has the value;
        an empty range if that is in Huffman's code."""
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


# Encoding

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
            num_bytes = len(field[0]) + len(field[1]) + ENTRY_BYTES
            if field[0] in _VOLATILE or num_bytes > self._table.max_bytes:
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


# Huffman's code is canonical: codes of one length are consecutive numbers, in the order of their
# symbols.

_EOS = 256
_LONGEST = 30
_SYMBOLS_BY_LENGTH: dict[int, bytes | tuple[int, ...]] = {
    5: b"012aceiost",
    6: b" %-./3456789=A_bdfghlmnpru",
    7: b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",
    8: b"&*,;XZ",
    10: b"!\"()?",
    11: b"'+|",
    12: b"#>",
    13: b"\0$@[]~",
    14: b"^}",
    15: b"<`{",
    19: (92, 195, 208),
    20: (128, 130, 131, 162, 184, 194, 224, 226),
    21: (153, 161, 167, 172, 176, 177, 179, 209, 216, 217, 227, 229, 230),
    22: (129, 132, 133, 134, 136, 146, 154, 156, 160, 163, 164, 169, 170, 173, 178, 181, 185, 186,
         187, 189, 190, 196, 198, 228, 232, 233),
    23: (1, 135, 137, 138, 139, 140, 141, 143, 147, 149, 150, 151, 152, 155, 157, 158, 165, 166,
         168, 174, 175, 180, 182, 183, 188, 191, 197, 231, 239),
    24: (9, 142, 144, 145, 148, 159, 171, 206, 215, 225, 236, 237),
    25: (199, 207, 234, 235),
    26: (192, 193, 200, 201, 202, 205, 210, 213, 218, 219, 238, 240, 242, 243, 255),
    27: (203, 204, 211, 212, 214, 221, 222, 223, 241, 244, 245, 246, 247, 248, 250, 251, 252, 253,
         254),
    28: (2, 3, 4, 5, 6, 7, 8, 11, 12, 14, 15, 16, 17, 18, 19, 20, 21, 23, 24, 25, 26, 27, 28, 29,
         30, 31, 127, 220, 249),
    _LONGEST: (10, 13, 22, _EOS),
}  # fmt: skip


def _codes() -> dict[tuple[int, int], int]:
    """Return the symbol of each (length, code)."""
    symbols, code, last = {}, 0, 0
    for length, of_length in _SYMBOLS_BY_LENGTH.items():
        code <<= length - last
        last = length
        for symbol in of_length:
            symbols[length, code] = symbol
            code += 1
    return symbols


_SYMBOLS = _codes()


class _CodePart:
    """The part of a code that has come."""

    __slots__ = ("_code", "_length", "may_end", "next")

    def __init__(self, length: int, code: int) -> None:
        self._length, self._code = length, code
        self.may_end = length < 8 and code == (1 << length) - 1
        """Whether the part is padding: fewer than 8 bits, all ones."""
        self.next: list[tuple[_CodePart, bytes]] = []
        """For each next byte the state after it, and the symbols that end in it; empty at first."""

    def fill(self) -> list[tuple["_CodePart", bytes]]:
        """Fill `next`, bit by bit."""
        rows = [(self._length, self._code, b"")]
        for _ in range(8):
            rows = [_after(*row, bit) for row in rows for bit in (0, 1)]
        self.next = [
            (_state(length, code), _PARTS.setdefault(symbols, symbols))
            for length, code, symbols in rows
        ]
        return self.next


def _after(length: int, code: int, symbols: bytes, bit: int) -> tuple[int, int, bytes]:
    length, code = length + 1, code << 1 | bit
    symbol = _SYMBOLS.get((length, code), _EOS)
    return (length, code, symbols) if symbol == _EOS else (0, 0, symbols + bytes((symbol,)))


def _state(length: int, code: int) -> _CodePart:
    if length >= _LONGEST:
        return _FAILED
    state = _STATES.get((length, code))
    if state is None:
        state = _STATES[length, code] = _CodePart(length, code)
    return state


_PARTS: dict[bytes, bytes] = {}
"""The symbols of all entries; some 65,000 share them."""
_STATES: dict[tuple[int, int], _CodePart] = {}
_START = _STATES[0, 0] = _CodePart(0, 0)
_FAILED = _CodePart(8, 0)
_FAILED.next = [(_FAILED, b"")] * 256


def decode_huffman(encoded: bytes) -> bytes:
    """Decode a string.

    Raises:
        ValueError: it has the symbol for the end, or padding that is not the longest code's start
            of fewer than 8 bits (RFC 7541, section 5.2).
    """
    state, parts = _START, []
    for byte in encoded:
        state, symbols = (state.next or state.fill())[byte]
        parts.append(symbols)
    if not state.may_end:
        raise ValueError("the end of the code in a string, or wrong padding")
    return b"".join(parts)
