"""Every limit of the engine, with its unit, and budgets that fill again with time."""

from dataclasses import dataclass


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
    """Bytes of header fields that later blocks may refer to, up to 4096; with 0 equal blocks are
    equal bytes (RFC 7541, section 4.2)."""
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


class RateBudget:
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
