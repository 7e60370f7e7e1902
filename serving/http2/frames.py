"""The numbers of RFC 9113, and how a frame is written and checked."""

from enum import IntEnum
from struct import Struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_BYTES = 9
"""The length of a frame's header."""
(
    DATA,
    HEADERS,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    PUSH_PROMISE,
    PING,
    GOAWAY,
    WINDOW_UPDATE,
    CONTINUATION,
) = range(10)
ACK = END_STREAM = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITIZED = 0x20
(
    HEADER_TABLE_SIZE,
    ENABLE_PUSH,
    MAX_CONCURRENT_STREAMS,
    INITIAL_WINDOW_SIZE,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
) = range(1, 7)
DEFAULT_WINDOW = 65_535
DEFAULT_FRAME = 16_384
MAX_WINDOW = (1 << 31) - 1
CONNECTION = bytes(4)
"""The stream of frames that concern the connection."""
_WORD = Struct(">I")
_NAMES = ("DATA", "HEADERS", "PRIORITY", "RST_STREAM", "SETTINGS", "PUSH_PROMISE", "PING", "GOAWAY",
          "WINDOW_UPDATE", "CONTINUATION")  # fmt: skip
_LENGTHS = {PRIORITY: 5, RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}
_OF_STREAMS = frozenset((DATA, HEADERS, PRIORITY, RST_STREAM, PUSH_PROMISE, CONTINUATION))
_OF_CONNECTION = frozenset((SETTINGS, PING, GOAWAY))


class ErrorCode(IntEnum):
    """Why a stream or a connection ends (RFC 9113, section 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11


class Http2Error(Exception):
    """The peer broke the protocol or a limit: the connection is over."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(f"{text} ({code.name})")
        self.code = code


def frame(kind: int, flags: int, stream: bytes, payload: bytes = b"") -> bytes:
    """Write a frame; `stream` is its number as four bytes."""
    return b"%b%c%b%b" % (_WORD.pack(len(payload) << 8 | kind), flags, stream, payload)


def word(value: int) -> bytes:
    """Write a number of 32 bits, such as a stream's."""
    return _WORD.pack(value)


def check_header(kind: int, length: int, stream: bytes) -> None:
    """Check the length and the stream of a frame whose kind the protocol defines.

    Raises:
        Http2Error: the kind has another length, or does not belong on this stream.
    """
    if length != _LENGTHS.get(kind, length):
        raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, f"{_NAMES[kind]} of a wrong length")
    if kind in (_OF_CONNECTION if stream != CONNECTION else _OF_STREAMS):
        raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"{_NAMES[kind]} on a wrong stream")
