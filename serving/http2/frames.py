"""The numbers of RFC 9113, how a frame is written, and every limit of the engine, with its unit."""

from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits of one connection."""

    max_streams: int = 1_024
    """Streams that it may have open; one more is refused."""
    stream_window_bytes: int = 1 << 20
    """Bytes that it may send on a stream before they are acknowledged."""
    connection_window_bytes: int = 1 << 30
    """Bytes that it may send before they are read: enough that only the streams' windows limit it,
    else stalled streams would stall the connection's other calls."""
    max_frame_bytes: int = 1 << 18
    """The longest DATA frame; the parts of a long one are handed on as they arrive."""
    announced_header_bytes: int = 16 << 10
    """The most metadata of a call, as announced; beyond `max_header_list_bytes` the connection
    ends, since a block that is not decoded leaves the table behind."""
    header_table_bytes: int = 4096
    """Of header fields that later blocks may refer to, up to 4096; with 0 equal blocks are equal
    bytes (RFC 7541, section 4.2)."""
    max_header_list_bytes: int = 64 << 10
    max_header_fields: int = 256
    max_block_bytes: int = 64 << 10
    """The longest header block, encoded, and the longest frame that is not DATA."""
    max_continuations: int = 64
    """The most CONTINUATION frames of a block (CVE-2024-27316 and its kin)."""
    burst_resets: int = 100_000
    resets_per_s: float = 20_000.0
    """Streams that it resets (CVE-2023-44487) or has us reset by its errors (CVE-2025-8671).
    Callers that time out together reset up to all their streams at once, many times a second, and
    a reset costs less than the call that it ends."""
    burst_small_frames: int = 1_000
    small_frames_per_s: float = 200.0
    """Frames that cost more than they carry: nearly empty DATA, settings, pings, window updates,
    priorities, unknown ones, frames on streams that are over (CVE-2019-9512, -9515, -9518). Each
    request and each message allows a few more."""
    small_frames_per_request: int = 3
    small_bytes: int = 64
    """Less data in a frame that does not end its stream is small."""


class Budget:
    """A budget: the peer's allowance at once, and its growth with time."""

    def __init__(self, burst: int, per_s: float) -> None:
        self._burst, self._per_s = burst, per_s
        self.left = float(burst)
        """The present allowance; adding to it lets the peer do more."""
        self._taken_s = 0.0

    def take(self, now_s: float) -> bool:
        """Use one; return whether there was one left."""
        gained_s, self._taken_s = now_s - self._taken_s, now_s
        self.left = min(self._burst, self.left + gained_s * self._per_s) - 1
        return self.left >= 0
