"""HTTP/2 without I/O by the ngh2 package (libnghttp2): bytes in, events and bytes out.

The package is young, so only this module imports it.
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
