"""Typed contents, cut out of a ModelInferRequest before protobuf parses the rest.

Of the three million numbers of a large request, protobuf and numpy together took 0.1 s, numpy
alone takes 0.03 s. The rest is bounded: protobuf makes an object for each element of a repeated
message, so a few megabytes of outputs or parameters would take seconds.

The encoding: https://protobuf.dev/programming-guides/encoding
"""

from collections.abc import Iterator

from serving.errors import InvalidRequest
from serving.protocols.digits_v1.wire import varint
from serving.protocols.oip.values import MAX_STRINGS, check_strings

_MAX_FIELDS = 1024
"""The most fields of a message and its inputs; clients send five for each input."""
_MAX_OTHER_BYTES = 65_536
"""The most bytes besides the tensors: names, shapes, parameters, outputs."""
_MAX_UNPACKED_BYTES = 1 << 20
"""The most bytes of inputs with numbers that are not packed, which are left to protobuf. The
libraries of the protocol's third version pack them."""

_INPUTS, _CONTENTS, _RAW_CONTENTS = 5, 5, 7
"""The fields of the request and of an input."""
_STRINGS = 8
"""The last field of contents, bytes_contents; those before it are numbers."""
_VARINT, _DELIMITED, _MALFORMED = 0, 2, -1
_FIXED_BYTES = {1: 8, 5: 4}
_GROUPS = (3, 4)
"""Where a group begins and ends; the third version has none, but protobuf skips them as unknown."""
_STRING_TAG = _STRINGS << 3 | _DELIMITED
_MAX_VARINT_BYTES = 10
_INPUT_TAG, _NO_CONTENTS = b"\x2a", b"\x2a\0"

_Field = tuple[int, int, int, int, int]
"""Its number and kind; where it begins, where its value does, and where it ends."""


class TypedContents:
    """The typed contents of a ModelInferRequest's inputs, and the rest of it."""

    def __init__(self, message: bytes) -> None:
        """Divide a message; malformed fields are left in the rest, to its parser.

        Raises:
            InvalidRequest: too many fields, strings or unpacked numbers, too many bytes besides the
                tensors, or a group.
        """
        self._message = message
        self._num_fields = self._num_strings = self._num_unpacked_bytes = 0
        self.inputs: list[dict[int, list[bytes]]] = []
        """For each input the parts of each field of its contents: packed numbers, or strings."""
        kept, last, num_raw_bytes = [], 0, 0
        for number, kind, begin, start, at in self._fields(0, len(message)):
            if kind != _DELIMITED:
                continue
            if number == _RAW_CONTENTS:
                num_raw_bytes += at - start
            elif number == _INPUTS and (inner := self._input(start, at)) is not None:
                kept += [message[last:begin], _INPUT_TAG, varint(len(inner)), inner]
                last = at
        kept.append(message[last:])
        self.rest = b"".join(kept)
        """The message without them; `contents` that had some are empty in it."""
        if self._num_unpacked_bytes > _MAX_UNPACKED_BYTES:
            raise InvalidRequest(
                f"expected packed contents, or at most {_MAX_UNPACKED_BYTES} bytes of others"
            )
        if len(self.rest) - num_raw_bytes - self._num_unpacked_bytes > _MAX_OTHER_BYTES:
            raise InvalidRequest(
                f"expected at most {_MAX_OTHER_BYTES} bytes beside the tensors, got more"
            )

    def _input(self, at: int, end: int) -> bytes | None:
        """Return an input without its contents, which are kept apart; None if unchanged."""
        begin, kept, last, parts = at, [], at, dict[int, list[bytes]]()
        self.inputs.append(parts)
        for number, kind, tag, start, at in self._fields(begin, end):
            if (number, kind) != (_CONTENTS, _DELIMITED):
                continue
            if not self._take(start, at, parts):
                parts.clear()
                self._num_unpacked_bytes += end - begin
                return None
            kept += [self._message[last:tag], _NO_CONTENTS]
            last = at
        return b"".join((*kept, self._message[last:end])) if kept else None

    def _take(self, at: int, end: int, parts: dict[int, list[bytes]]) -> bool:
        """Add the fields of contents to `parts`; return whether all are strings or packed."""
        while at < end:
            if self._message[at] == _STRING_TAG and at + 1 < end:
                at = self._take_strings(at, end, parts.setdefault(_STRINGS, []))
                continue
            number, kind, _, start, at = next(self._fields(at, end))
            if kind != _DELIMITED or not 0 < number < _STRINGS:
                return False
            parts.setdefault(number, []).append(self._message[start:at])
        return at == end

    def _take_strings(self, at: int, end: int, strings: list[bytes]) -> int:
        """Add strings that follow one another; return their end, or more if one is malformed."""
        message, room = self._message, MAX_STRINGS - self._num_strings + len(strings)
        while at + 1 < end and message[at] == _STRING_TAG and len(strings) <= room:
            size, start = message[at + 1], at + 2
            if size >= 0x80:
                size, start = _varint(message, at + 1, end)
            at = start + size
            strings.append(message[start:at])
        self._num_strings = MAX_STRINGS - room + len(strings)
        check_strings(self._num_strings)
        return at

    def _fields(self, at: int, end: int) -> Iterator[_Field]:
        """Yield the fields of a message, a malformed one as the last."""
        while at < end:
            self._num_fields += 1
            if self._num_fields > _MAX_FIELDS:
                raise InvalidRequest(
                    f"expected at most {_MAX_FIELDS} fields in a message, got more"
                )
            field = _field_at(self._message, at, end)
            yield field
            at = field[-1]


def _field_at(message: bytes, begin: int, end: int) -> _Field:
    tag, at = _varint(message, begin, end)
    number, kind = tag >> 3, tag & 7
    start = at
    if kind == _VARINT:
        _, at = _varint(message, at, end)
    elif kind == _DELIMITED:
        size, start = _varint(message, at, end)
        at = start + size
    elif kind in _GROUPS:  # what follows must not be left to protobuf, which would read it
        raise InvalidRequest("expected a message without groups, got one")
    else:
        at += _FIXED_BYTES.get(kind, end)
    if at > end:
        return 0, _MALFORMED, begin, begin, end
    return number, kind, begin, start, at


def _varint(message: bytes, at: int, end: int) -> tuple[int, int]:
    """Return a number and where it ends; far past the end if it is malformed."""
    if at < end and message[at] < 0x80:  # most are
        return message[at], at + 1
    value = 0
    for shift in range(0, 7 * _MAX_VARINT_BYTES, 7):
        if at >= end:
            break
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
    return 0, 2 * end + 1
