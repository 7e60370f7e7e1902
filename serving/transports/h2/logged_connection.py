"""Access lines and spans: a connection of HTTP/2 that records how its calls begin and end.

It takes the place of the engine's where either is on, so a server without them runs none of this.
"""

import socket
from collections.abc import Iterable

from serving.http2 import events
from serving.http2.events import Event
from serving.http2.headers import Block, Layout
from serving.http2.hpack import Fields
from serving.http2.server_side import ServerConnection
from serving.protocols.status import StatusCode
from serving.transports.access_log import REQUEST_ID, AccessLog, LoggedCall
from serving.transports.connections import Limits, peer_of
from serving.transports.h2.trailers import OK, RESPONSE


class LoggedConnection(ServerConnection):
    """Logs its calls, and returns each one's id in its trailers; recognises none."""

    def __init__(self, limits: Limits, sock: socket.socket, access_log: AccessLog) -> None:
        """See `ServerConnection`."""
        super().__init__(limits.http2, RESPONSE, OK)
        self._access_log = access_log
        self._peer = peer_of(sock)
        self._calls: dict[bytes, LoggedCall] = {}
        """The calls that have not ended, by stream."""

    def expect(self, block: Block, layout: Layout, token: object, *, calls: bool = True) -> None:
        """Do nothing: each call is an event."""

    def receive(self, data: bytes, now_s: float) -> list[Event]:
        """See `Connection`; records the calls that begin, and those whose callers have left."""
        found = super().receive(data, now_s)
        for kind, stream, value, _ in found:
            if kind == events.HEADERS:
                fields = {n.decode("latin-1"): v.decode("latin-1") for n, v in value.fields}
                call = LoggedCall(fields.get(":path", ""), self._peer, fields)
                self._calls[stream] = call
            elif kind == events.RESET:
                self._end(stream, "CANCELLED")
        return found

    def _learn(self, size: int) -> None:
        """Prepare no answers: each is ended by `end`."""

    def end(self, stream: bytes, trailers: Fields = OK) -> None:
        """See `ServerConnection`."""
        super().end(stream, self._with_id(stream, trailers))
        self._end(stream, _status_in(trailers))

    def refuse(self, streams: Iterable[bytes], fields: Fields, data: bytes = b"") -> None:
        """See `ServerConnection`."""
        for stream in streams:
            if data:  # the request is not gRPC
                self._calls.pop(stream, None)
                super().refuse([stream], fields, data)
            else:
                super().refuse([stream], self._with_id(stream, fields))
                self._end(stream, _status_in(fields))

    def end_calls(self) -> None:
        """Log the calls of a connection that is over."""
        for stream in list(self._calls):
            self._end(stream, "CANCELLED")

    def _with_id(self, stream: bytes, fields: Fields) -> Fields:
        call = self._calls.get(stream)
        if call is None:
            return fields
        return (*fields, (REQUEST_ID.encode(), call.ids["request_id"].encode()))

    def _end(self, stream: bytes, status: str) -> None:
        call = self._calls.pop(stream, None)
        if call is not None:
            self._access_log.end(call, status)


def _status_in(trailers: Fields) -> str:
    return StatusCode(int(dict(trailers)[b"grpc-status"])).name
