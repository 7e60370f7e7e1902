"""One peer: its socket, its HTTP/2 state, and the calls that it has in progress."""

import math
import socket
from typing import Any, Protocol

from serving.batching.queue import Line, Queue
from serving.credentials.tls import Tls
from serving.system.host import Host
from serving.transports.access_log import AccessLog
from serving.transports.h2.access import LoggedConnection, host_of, open_connection
from serving.transports.h2.limits import Limits

TURN_S = 2e-3
"""How long reading from one peer is to take, before the others' turn: as many bytes are read as its
last ones say."""
_LEAST_BYTES = 4096
"""Read of a peer at least, and at first: even of the tiniest frames, these take no more."""
MAX_BYTE_S = TURN_S / _LEAST_BYTES
"""What a byte takes at most, in seconds."""
_NOT_HTTP2 = b"this port speaks gRPC, over HTTP/2 only\n"
_HTTP1_RESPONSE = (
    b"HTTP/1.1 505 HTTP Version Not Supported\r\nconnection: close\r\n"
    b"content-type: text/plain\r\ncontent-length: %d\r\n\r\n%s" % (len(_NOT_HTTP2), _NOT_HTTP2)
)


class Reader(Protocol):
    """A call whose peer may not read its answers."""

    def resume(self, now_s: float) -> None:
        """Go on, now that it may have read some."""


class Connection:
    """What the loop holds of one peer; used by the loop's thread only."""

    __slots__ = (
        "_clock", "active_s", "address", "byte_s", "closing", "gave_up_s", "http2", "is_leaving",
        "is_open", "is_writing", "jitter", "lines", "opened_s", "output", "retired", "socket",
        "streams", "swept_s", "swept_stream", "tag_s", "tls", "touched", "trusted", "unread",
    )  # fmt: skip

    def __init__(
        self, sock: socket.socket, tls: Tls | None, limits: Limits, host: Host,
        access_log: AccessLog | None,
    ) -> None:  # fmt: skip
        """Take over a socket that does not block; without `tls` it is read in plaintext."""
        self.socket = sock
        self.tls = tls
        self.http2 = open_connection(limits, sock, access_log)
        self.streams: dict[bytes, Any] = self.http2.streams
        """The calls in progress: the `call` of each is a `Head` or a `Stream`."""
        self.address = host_of(sock)
        """Where the peer is, without its port."""
        self.lines: dict[Queue, Line] = {}
        """The calls that wait in each queue."""
        self.gave_up_s = -math.inf
        """When it last cancelled a call that waited, in monotonic seconds."""
        self.output: bytes | memoryview = b""
        """What the socket has not taken yet."""
        self._clock = host.clock
        self.opened_s = self.active_s = self.swept_s = host.clock()
        self.jitter = host.random.uniform(0.9, 1.1)
        """Spreads over time what connections of the same age would do together."""
        self.unread: set[Reader] = set()
        """Streams whose callers do not read their answers."""
        self.swept_stream = b""
        """The last stream that was open at the last sweep."""
        self.trusted = False
        """Whether the peer has shown a valid token."""
        self.byte_s = MAX_BYTE_S
        """What each byte that it sends takes, in seconds: a moving average, which starts
        cautiously, for tiny frames can take a hundred times what large messages take."""
        self.tag_s = 0.0
        """When its next turn is due, on `Loop`'s clock of turns."""
        self.is_leaving = False
        """Whether the peer opens no more calls here."""
        self.retired = False
        """Whether the peer was asked to connect again."""
        self.touched = False
        """Whether the loop flushes it at the end of the round."""
        self.is_writing = False
        """Whether the loop waits until the socket takes more."""
        self.closing = False
        """Whether to close it once its output is gone."""
        self.is_open = True

    def read(self, buffer: memoryview) -> bytes | None:
        """Read what has arrived, at most a buffer full; None if the peer has left.

        Raises:
            OSError: the socket or its TLS failed.
        """
        buffer = buffer[: max(_LEAST_BYTES, int(TURN_S / self.byte_s))]
        try:
            num_bytes = self.socket.recv_into(buffer)
        except BlockingIOError:
            return b""
        if not num_bytes:
            return None
        data = buffer[:num_bytes]
        return bytes(data) if self.tls is None else self.tls.decrypt(data)

    def call(self, stream: bytes) -> Any:
        """Return the call on a stream; None if it is over."""
        state = self.streams.get(stream)
        return None if state is None else state.call

    def refuse_protocol(self) -> None:
        """Say to a peer that does not speak HTTP/2, as one of HTTP/1.1 understands it, to leave."""
        self.output = _HTTP1_RESPONSE if self.tls is None else self.tls.encrypt(_HTTP1_RESPONSE)
        self.closing = True

    def flush(self) -> bool:
        """Write HTTP/2's output, as far as the socket takes it.

        Returns:
            False if the connection is over.
        """
        is_rest = bool(self.output)
        try:
            if not is_rest and not self.closing:
                output = self.http2.data_to_send()
                if self.unread:
                    output += self._resume_read()
                self.output = output if self.tls is None else self.tls.encrypt(output)
            while self.output:
                sent = self.socket.send(self.output)
                self.output = memoryview(self.output)[sent:] if sent < len(self.output) else b""
        except BlockingIOError:
            return True
        except OSError:
            return False
        if is_rest and not self.closing:  # answers may have come since
            return self.flush()
        return not self.closing and (not self.is_leaving or bool(self.streams))

    def _resume_read(self) -> bytes:
        """Resume the streams whose answers may have been read, now that windows were used."""
        unread, self.unread = self.unread, set()
        now_s = self._clock()
        for stream in unread:
            stream.resume(now_s)
        return self.http2.data_to_send()

    def is_unread(self, limits: Limits) -> bool:
        """Return whether too many answers wait for the peer: its new calls are refused."""
        return self.http2.num_unsent() > limits.max_unread_bytes

    @property
    def is_busy(self) -> bool:
        """Whether calls are in progress, or answers on their way."""
        return bool(self.streams or self.output)

    def close(self) -> None:
        """Close the socket."""
        self.is_open = False
        self.socket.close()
        if isinstance(self.http2, LoggedConnection):
            self.http2.end_calls()
