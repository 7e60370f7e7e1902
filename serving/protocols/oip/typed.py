"""Typed contents, taken out of a ModelInferRequest before protobuf parses the rest.

Of the three million numbers of the largest request, protobuf and numpy together took 0.1 s, numpy
alone takes 0.03 s. The rest is bounded: protobuf makes an object for each element of a repeated
message, so a few megabytes of outputs or parameters would take seconds.

The encoding: https://protobuf.dev/programming-guides/encoding
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serving.errors import InvalidRequest
from serving.protocols.digits_v1.wire import varint

_MAX_FIELDS = 64
"""The most fields of a message and its inputs; clients send a dozen. Numbers in a row are one."""
_MAX_OTHER_BYTES = 65_536
"""The most bytes besides the images: names, shapes, parameters, outputs."""

_PATH = (5, 5, 4)
"""The fields `inputs` of the request, `contents` of an input, `uint_contents` of these."""
_RAW_CONTENTS = 7
_VARINT, _DELIMITED = 0, 2
_FIXED_BYTES = {1: 8, 5: 4}
_NUMBER_TAG = _PATH[-1] << 3 | _VARINT
"""Before each number that is not packed."""
_PACKED, _UNPACKED = slice(None), slice(1, None, 2)
"""The numbers among the varints of a part."""
_MAX_VARINT_BYTES = 10
_TOO_LONG = b"\1" * _MAX_VARINT_BYTES
"""As many bytes behind which a number goes on."""
_WINDOW_BYTES = 65_536
"""Looked at at a time, so that it stays in the core's cache."""


class TypedContents:
    """The uint_contents of a ModelInferRequest, and the rest of it."""

    def __init__(self, message: bytes) -> None:
        """Divide a message; malformed fields are left in the rest, to its parser.

        Raises:
            InvalidRequest: too many fields, or too many bytes besides the images.
        """
        self._message = message
        self._parts: list[tuple[bytes, slice]] = []
        self._num_fields = self._num_raw_bytes = 0
        self._has_run = False
        rest = self._without_numbers(0, len(message), _PATH)
        if len(rest) - self._num_raw_bytes > _MAX_OTHER_BYTES:
            raise InvalidRequest(
                f"expected at most {_MAX_OTHER_BYTES} bytes beside the images, got more"
            )
        self.rest = rest
        """The message without the numbers."""

    def pixels(self) -> bytes:
        """Return the numbers as bytes.

        Raises:
            InvalidRequest: one is not from 0 to 255.
        """
        return b"".join(_small_numbers(part)[chosen].tobytes() for part, chosen in self._parts)

    def _without_numbers(self, at: int, end: int, path: tuple[int, ...]) -> bytes:
        """Copy the fields of a message without those at `path`, in it or its submessages."""
        message, kept, is_last = self._message, [], len(path) == 1
        while (field := _field_at(message, at, end)) is not None:
            self._count_field()
            begin, (number, kind, start, at) = at, field
            if number != path[0] or kind not in (_VARINT, _DELIMITED):
                kept.append(message[begin:at])
            elif is_last and kind == _DELIMITED:
                self._parts.append((message[start:at], _PACKED))
            elif is_last:
                if not self._has_run:  # once, since it looks at all that follows
                    self._has_run, at = True, _run_end(message, begin, end)
                self._parts.append((message[begin:at], _UNPACKED))
            elif kind == _DELIMITED:
                inner = self._without_numbers(start, at, path[1:])
                kept += [varint(number << 3 | kind), varint(len(inner)), inner]
            else:
                kept.append(message[begin:at])
            if path is _PATH and (number, kind) == (_RAW_CONTENTS, _DELIMITED):
                self._num_raw_bytes += at - start
        kept.append(message[at:end])
        return b"".join(kept)

    def _count_field(self) -> None:
        self._num_fields += 1
        if self._num_fields > _MAX_FIELDS:
            raise InvalidRequest(f"expected at most {_MAX_FIELDS} fields in a message, got more")


class _Field(NamedTuple):
    number: int
    kind: int
    start: int
    """Where its value starts."""
    end: int


def _field_at(message: bytes, at: int, end: int) -> _Field | None:
    """Return the field at `at` of a message that ends at `end`; None if it is malformed."""
    if at >= end:
        return None
    tag, at = _varint(message, at, end)
    number, kind = tag >> 3, tag & 7
    start = at
    if kind == _VARINT:
        _, at = _varint(message, at, end)
    elif kind == _DELIMITED:
        size, start = _varint(message, at, end)
        at = start + size
    else:
        at += _FIXED_BYTES.get(kind, end)
    return _Field(number, kind, start, at) if at <= end else None


def _varint(message: bytes, at: int, end: int) -> tuple[int, int]:
    """Return a number and where it ends; far past the end if it is malformed."""
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


def _run_end(message: bytes, at: int, end: int) -> int:
    """Return where the numbers end that follow one another from `at`, each behind its tag."""
    while at < end:
        data = np.frombuffer(message, np.uint8, min(_WINDOW_BYTES, end - at), at)
        starts = np.flatnonzero(data < 0x80)[1::2] + 1  # tags and numbers end in turn
        if not len(starts):
            break
        inside = starts[starts < len(data)]
        others = np.flatnonzero(data[inside] != _NUMBER_TAG)
        if len(others):
            return at + int(inside[others[0]])
        at += int(starts[-1])
        if at < end and message[at] != _NUMBER_TAG:
            break
    return at


def _small_numbers(encoded: bytes) -> npt.NDArray[np.uint8]:
    """Decode varints from 0 to 255, of any length.

    Raises:
        InvalidRequest: one is larger, or the last is cut off.
    """
    data = np.frombuffer(encoded, np.uint8)
    goes_on = data >> 7
    if not goes_on.any():
        return data
    if goes_on[-1] or _TOO_LONG in goes_on.tobytes():
        raise InvalidRequest("expected uint_contents, got bytes that are no varints")
    low, begins = data & 0x7F, np.ones_like(data)
    begins[1:] ^= goes_on[:-1]
    # Of a second byte the lowest bit counts; what else a number has makes it larger than 255.
    too_large = (low[1:] > begins[:-1]) & goes_on[:-1].view(bool)
    if too_large.any():
        first = int(np.flatnonzero(begins[: too_large.argmax() + 1])[-1])
        number, _ = _varint(encoded, first, len(encoded))
        raise InvalidRequest(f"expected uint_contents from 0 to 255, got {number}")
    low[:-1] |= (data[1:] & goes_on[:-1]) << 7
    return low.compress(begins.view(bool))
