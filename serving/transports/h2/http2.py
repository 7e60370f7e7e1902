"""HTTP/2 without I/O: the ngh2 package (libnghttp2 inside), behind the few names that we use.

It is young, so nothing else imports it: bytes go in, events and bytes come out.
"""

import ngh2
from ngh2 import (
    ConnectionClosed,
    DataReceived,
    Event,
    RequestReceived,
    StreamClosed,
    TrailersReceived,
)

from serving.transports.h2.limits import Limits

__all__ = [
    "NO_ERROR",
    "ConnectionClosed",
    "DataReceived",
    "Error",
    "Event",
    "Headers",
    "RequestReceived",
    "Session",
    "StreamClosed",
    "TrailersReceived",
    "open_session",
]

Error = ngh2.NGH2Error
Session = ngh2.Connection
Headers = tuple[tuple[bytes, bytes], ...]
NO_ERROR = int(ngh2.ErrorCode.NO_ERROR)

_MAX_HEADER_BYTES = 16_384
"""What a call's metadata may add up to, announced; four times as much ends the connection."""
_CONNECTION_WINDOW = 1 << 30
"""What a peer may send before any of it is consumed: the streams' windows are what bounds it, else
stalled streams would stall the connection's other calls."""

_CONFIGURATION = ngh2.Configuration(
    # What a stream has not consumed is not sent: that is how a slow one is slowed down.
    auto_window_update=False,
    # Callers that time out together reset up to all their streams at once, many times a second.
    # A reset costs less than the call that it ends, so the limit need not be the default of
    # 1,000 and then 33 a second, past which the connection ends.
    stream_reset_rate_limit=(100_000, 20_000),
    max_inbound_header_list_size=4 * _MAX_HEADER_BYTES,
    max_inbound_header_count=256,
)


def open_session(limits: Limits, session_class: type[Session] = Session) -> Session:
    """Begin the server's side of a connection; its first bytes are ready to be sent."""
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
