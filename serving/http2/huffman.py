"""Huffman's code of HPACK (RFC 7541, appendix B), decoded a byte at a time.

The code is canonical: codes of one length are consecutive numbers, in the order of their symbols.
A table of states is made on demand: for each prefix of a code that has come, and each next byte,
the symbols that end in it, and the prefix that is left.
"""

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
_PREFIXES: dict[bytes, bytes] = {}
"""The symbols of all entries; some 65,000 entries share them."""


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


class _CodePrefix:
    """The bits of a code that have come."""

    __slots__ = ("_code", "_length", "may_end", "next")

    def __init__(self, length: int, code: int) -> None:
        self._length, self._code = length, code
        self.may_end = length < 8 and code == (1 << length) - 1
        """Whether it is padding: fewer than 8 bits, all ones."""
        self.next: list[tuple[_CodePrefix, bytes]] = []
        """For each next byte the state after it, and the symbols that end in it; empty at first."""

    def fill(self) -> list[tuple["_CodePrefix", bytes]]:
        """Fill `next`, bit by bit."""
        rows = [(self._length, self._code, b"")]
        for _ in range(8):
            rows = [_after(*row, bit) for row in rows for bit in (0, 1)]
        self.next = [
            (_state(length, code), _PREFIXES.setdefault(symbols, symbols))
            for length, code, symbols in rows
        ]
        return self.next


def _after(length: int, code: int, symbols: bytes, bit: int) -> tuple[int, int, bytes]:
    length, code = length + 1, code << 1 | bit
    symbol = _SYMBOLS.get((length, code), _EOS)
    return (length, code, symbols) if symbol == _EOS else (0, 0, symbols + bytes((symbol,)))


def _state(length: int, code: int) -> _CodePrefix:
    if length >= _LONGEST:
        return _FAILED
    state = _STATES.get((length, code))
    if state is None:
        state = _STATES[length, code] = _CodePrefix(length, code)
    return state


_STATES: dict[tuple[int, int], _CodePrefix] = {}
_START = _STATES[0, 0] = _CodePrefix(0, 0)
_FAILED = _CodePrefix(8, 0)
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
