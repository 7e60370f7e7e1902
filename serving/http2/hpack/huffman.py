"""HPACK's Huffman code (RFC 7541, appendix B): decoded a byte at a time by a table made on demand.

The code is canonical: codes of one length are consecutive numbers, in the order of their symbols.
"""

_EOS = 256
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
    30: (10, 13, 22, _EOS),
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


class _State(dict[int, tuple["_State", bytes]]):
    """What each next byte leads to: the next state, and the symbols that end in this byte.

    A state is the part of a code that has come; all of them have 65,536 entries in the end.
    """

    def __init__(self, length: int, code: int) -> None:
        self._length, self._code = length, code
        self.may_end = length < 8 and code == (1 << length) - 1
        """Whether the part is padding: fewer than 8 bits, all ones."""

    def __missing__(self, byte: int) -> tuple["_State", bytes]:
        length, code, text = self._length, self._code, bytearray()
        for shift in range(7, -1, -1):
            length, code = length + 1, code << 1 | (byte >> shift & 1)
            symbol = _SYMBOLS.get((length, code))
            if symbol == _EOS:
                raise ValueError("the end of the code in a string")
            if symbol is not None:
                text.append(symbol)
                length = code = 0
        state = _STATES.get((length, code))
        if state is None:
            state = _STATES[length, code] = _State(length, code)
        entry = self[byte] = state, bytes(text)
        return entry


_STATES: dict[tuple[int, int], _State] = {}
_START = _STATES[0, 0] = _State(0, 0)


def decode(encoded: bytes) -> bytes:
    """Decode a string.

    Raises:
        ValueError: it has the symbol for the end, or padding that is not the longest code's start
            of fewer than 8 bits (RFC 7541, section 5.2).
    """
    state, parts = _START, []
    for byte in encoded:
        state, text = state[byte]
        parts.append(text)
    if not state.may_end:
        raise ValueError("wrong padding")
    return b"".join(parts)
