"""One peer of HTTP/2, and the calls that it has in progress."""

import socket
from functools import partial
from typing import Any

from serving.credentials.tls import Tls
from serving.http2.server_side import ServerConnection
from serving.system.host import Host
from serving.transports.access_log import AccessLog
from serving.transports.connections import Limits, Peer
from serving.transports.h2.call_headers import Headers
from serving.transports.h2.logged_connection import LoggedConnection
from serving.transports.h2.trailers import OK, RESPONSE

_NOT_HTTP2 = b"this port speaks gRPC, over HTTP/2 only\n"
_HTTP1_RESPONSE = (
    b"HTTP/1.1 505 HTTP Version Not Supported\r\nconnection: close\r\n"
    b"content-type: text/plain\r\ncontent-length: %d\r\n\r\n%s" % (len(_NOT_HTTP2), _NOT_HTTP2)
)


class Connection(Peer):
    """A `Peer` that speaks HTTP/2."""

    __slots__ = ("http2", "swept_stream")

    def __init__(
        self, sock: socket.socket, tls: Tls | None, limits: Limits, host: Host,
        access_log: AccessLog | None,
    ) -> None:  # fmt: skip
        """See `Peer`."""
        super().__init__(sock, tls, host)
        self.http2 = (
            ServerConnection(limits.http2, RESPONSE, OK)
            if access_log is None
            else LoggedConnection(limits, sock, access_log)
        )
        self.streams: dict[bytes, Any] = self.http2.streams
        """The calls in progress: the `call` of each is a `Headers` or a `Stream`."""
        self.data_to_send = self.http2.data_to_send
        self.swept_stream = b""
        """The last stream that was open at the last sweep."""

    def call(self, stream: bytes) -> Any:
        """Return the call on a stream; None if it is over."""
        state = self.streams.get(stream)
        return None if state is None else state.call

    def refuse_protocol(self) -> None:
        """Say to a peer that does not speak HTTP/2, as one of HTTP/1.1 understands it, to leave."""
        self.data_to_send = partial(next, iter((_HTTP1_RESPONSE,)), b"")

    def is_unread(self, limits: Limits) -> bool:
        """Return whether too many answers wait for the peer: its new calls are refused."""
        return self.http2.num_unsent() > limits.max_unread_bytes

    @property
    def is_established(self) -> bool:
        """See `Peer`."""
        return self.http2.is_established

    @property
    def is_pending(self) -> bool:
        """See `Peer`."""
        return bool(self.output or self.http2.num_unsent()) or any(
            isinstance(state.call, Headers) or state.call.pending
            for state in self.streams.values()
            if state.call is not None
        )

    def forget_known(self) -> None:
        """See `Peer`."""
        self.http2.forget()

    def ping(self) -> bool:
        """See `Peer`."""
        self.http2.ping()
        return True

    def announce_end(self) -> None:
        """See `Peer`."""
        self.http2.announce_end()

    def go_away(self) -> None:
        """See `Peer`."""
        self.http2.go_away()
