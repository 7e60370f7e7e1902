"""Access lines and spans: an HTTP/2 session that records how its calls begin and end.

It replaces ngh2's own where either is on, so a server without them runs none of this.
"""

import socket
from collections.abc import Iterable

from serving.transports.access_log import REQUEST_ID, STATUS_NAMES, AccessLog, LoggedCall
from serving.transports.h2 import http2
from serving.transports.h2.limits import Limits

_Headers = Iterable[tuple[bytes, bytes]]


def open_session(
    limits: Limits, sock: socket.socket, access_log: AccessLog | None
) -> http2.Session:
    """Begin the server's side of a connection; `access_log`, if given, records its calls."""
    if access_log is None:
        return http2.open_session(limits)
    session = http2.open_session(limits, LoggedSession)
    assert isinstance(session, LoggedSession)
    session.log_to(access_log, sock)
    return session


class LoggedSession(http2.Session):
    """A session that logs its calls and returns each one's id in its trailers."""

    def log_to(self, access_log: AccessLog, sock: socket.socket) -> None:
        """Set where to log; called before the first call."""
        self._access_log = access_log
        self._peer = _peer_of(sock)
        self._calls: dict[int, LoggedCall] = {}
        """The calls that have not ended, by stream."""

    def events(self) -> list[http2.Event]:
        """Return the events; record the calls that begin, and those whose callers have left."""
        events = super().events()
        for event in events:
            if isinstance(event, http2.RequestReceived):
                fields = {n.decode("latin-1"): v.decode("latin-1") for n, v in event.headers}
                call = LoggedCall(fields.get(":path", ""), self._peer, fields)
                self._calls[event.stream_id] = call
            elif isinstance(event, http2.StreamClosed):
                self._end(event.stream_id, "CANCELLED")
        return events

    def send_response(self, stream_id: int, headers: _Headers, *, end_stream: bool = False) -> None:
        """Send a response's headers, which may end the call."""
        headers = tuple(headers)
        if (b":status", b"200") not in headers:  # the request is not gRPC
            self._calls.pop(stream_id, None)
        if not end_stream:
            super().send_response(stream_id, headers)
            return
        super().send_response(stream_id, self._with_id(stream_id, headers), end_stream=True)
        self._end(stream_id, _status_in(headers))

    def send_trailers(self, stream_id: int, headers: _Headers) -> None:
        """Send a response's trailers, which end the call."""
        headers = tuple(headers)
        super().send_trailers(stream_id, self._with_id(stream_id, headers))
        self._end(stream_id, _status_in(headers))

    def end_calls(self) -> None:
        """Log the calls of a connection that is over."""
        for stream_id in list(self._calls):
            self._end(stream_id, "CANCELLED")

    def _with_id(self, stream_id: int, headers: http2.Headers) -> http2.Headers:
        call = self._calls.get(stream_id)
        if call is None:
            return headers
        return (*headers, (REQUEST_ID.encode(), call.ids["request_id"].encode()))

    def _end(self, stream_id: int, status: str) -> None:
        call = self._calls.pop(stream_id, None)
        if call is not None:
            self._access_log.end(call, status)


def _status_in(trailers: http2.Headers) -> str:
    return STATUS_NAMES[int(dict(trailers)[b"grpc-status"])]


def _peer_of(sock: socket.socket) -> str:
    """Write an address as gRPC does."""
    if sock.family == socket.AF_UNIX:
        return "unix:"
    host, port, *_ = sock.getpeername()
    host = host.removeprefix("::ffff:")  # IPv4, on a socket for both
    return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"
