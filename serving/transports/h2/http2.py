"""HTTP/2 without I/O by the ngh2 package (libnghttp2): bytes in, events and bytes out.

The package is young, so only this module imports it. What else is here is the part of HPACK that
needs no table (RFC 7541).
"""

import ngh2

from serving.transports.h2.limits import Limits

Error = ngh2.NGH2Error
Session = ngh2.Connection
Event = ngh2.Event
ConnectionClosed = ngh2.ConnectionClosed
DataReceived = ngh2.DataReceived
RequestReceived = ngh2.RequestReceived
StreamClosed = ngh2.StreamClosed
TrailersReceived = ngh2.TrailersReceived
Headers = tuple[tuple[bytes, bytes], ...]
NO_ERROR = int(ngh2.ErrorCode.NO_ERROR)

_MAX_HEADER_BYTES = 16_384
"""The most metadata of a call, as announced; four times as much ends the connection."""
_CONNECTION_WINDOW = 1 << 30
"""So large that only the streams' windows bound a peer: else stalled streams would stall the
connection's other calls."""

_UNKNOWN = 0xFFFFFFFF
"""The value of a setting of which nothing is known before the peer's first SETTINGS."""

_CONFIGURATION = ngh2.Configuration(
    # A stream's window opens when its data is consumed: back-pressure.
    auto_window_update=False,
    # Callers that time out together reset up to all their streams at once, many times a second.
    # A reset costs less than the call that it ends; the default of 1,000 and then 33 a second
    # would end the connections of callers that only time out.
    stream_reset_rate_limit=(100_000, 20_000),
    max_inbound_header_list_size=4 * _MAX_HEADER_BYTES,
    max_inbound_header_count=256,
)


def open_session(limits: Limits, session_class: type[Session] = Session) -> Session:
    """Begin the server's side of a connection, whose SETTINGS are ready to be sent."""
    session = session_class(ngh2.Role.SERVER, _CONFIGURATION)
    session.initiate_connection(
        {
            ngh2.Setting.MAX_CONCURRENT_STREAMS: limits.max_streams,
            ngh2.Setting.INITIAL_WINDOW_SIZE: limits.stream_window_bytes,
            ngh2.Setting.MAX_HEADER_LIST_SIZE: _MAX_HEADER_BYTES,
        }
    )
    session.set_local_window_size(_CONNECTION_WINDOW)
    return session


def has_settings(session: Session) -> bool:
    """Return whether the peer's SETTINGS, which end its preface, have arrived."""
    try:
        settings = session.remote_settings
    except Error:  # it is over
        return True
    return settings[ngh2.Setting.NO_RFC7540_PRIORITIES] != _UNKNOWN


def changes_table(block: bytes) -> bool:
    """Return whether a header block changes HPACK's table, or is no header block (RFC 7541, 6)."""
    at = 0
    try:
        while at < len(block):
            first = block[at]
            if first & 0x80:
                _, at = _integer(block, at, 7)
            elif first & 0x60:
                return True
            else:
                name, at = _integer(block, at, 4)
                for _ in range(1 if name else 2):
                    length, at = _integer(block, at, 7)
                    at += length
    except IndexError:
        return True
    return at != len(block)


def _integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """Read an integer of HPACK at `at`; return it and where it ends (RFC 7541, 5.1)."""
    most = (1 << bits) - 1
    value, at = block[at] & most, at + 1
    if value == most:
        shift = 0
        while True:
            value += (block[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if block[at - 1] < 0x80:
                break
    return value, at


def encode_without_table(headers: Headers) -> bytes:
    """Encode headers, the first of them ":status 200", so that they change no table.

    Args:
        headers: names and values of fewer than 127 bytes each.
    """
    fields = [bytes((0, len(n))) + n + bytes((len(v),)) + v for n, v in headers[1:]]
    return b"\x88" + b"".join(fields)
