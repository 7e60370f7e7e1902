"""One peer: its socket, its HTTP/2 state, and the calls that it has in progress."""

import random
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from serving.credentials.tls import Tls
from serving.transports.access_log import AccessLog
from serving.transports.h2 import http2
from serving.transports.h2.access import LoggedSession, open_session
from serving.transports.h2.http2 import Headers
from serving.transports.h2.limits import Limits

if TYPE_CHECKING:
    from serving.transports.h2.heads import Head
    from serving.transports.h2.queue import Entry
    from serving.transports.h2.sieve import Sieve
    from serving.transports.h2.stream import Stream

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
TURN_S = 2e-3
"""How long reading from one peer is to take, before the others' turn: as many bytes are read as its
last ones say."""
_LEAST_BYTES = 4096
"""Read of a peer at least, and at first: even of the tiniest frames, these take no more."""
MAX_BYTE_S = TURN_S / _LEAST_BYTES
"""What a byte takes at most, in seconds."""
RESPONSE: Headers = ((b":status", b"200"), (b"content-type", b"application/grpc"))
_NOT_HTTP2 = b"this port speaks gRPC, over HTTP/2 only\n"
_HTTP1_RESPONSE = (
    b"HTTP/1.1 505 HTTP Version Not Supported\r\nconnection: close\r\n"
    b"content-type: text/plain\r\ncontent-length: %d\r\n\r\n%s" % (len(_NOT_HTTP2), _NOT_HTTP2)
)


class Connection:
    """What the loop holds of one peer; used by the loop's thread only."""

    __slots__ = (
        "active_s", "byte_s", "calls", "can_sift", "closing", "ended", "has_settings", "head",
        "headers", "http2", "is_open", "is_writing", "jitter", "limits", "num_tiny", "opened_s",
        "output", "preface_left", "retired", "sieve", "socket", "swept_s", "swept_stream_id",
        "tag_s", "tls", "touched", "trusted", "unread", "waiting",
    )  # fmt: skip

    def __init__(
        self, sock: socket.socket, tls: Tls | None, limits: Limits, now_s: float,
        access_log: AccessLog | None,
    ) -> None:  # fmt: skip
        """Take over a socket that does not block; without `tls` it is read in plaintext."""
        self.socket = sock
        self.tls = tls
        self.limits = limits
        self.http2 = open_session(limits, sock, access_log)
        self.calls: dict[int, Head | Stream] = {}
        """The calls in progress, by stream; ended and cancelled ones are removed."""
        self.waiting: deque[Entry] = deque()
        """Those that wait for a run."""
        self.headers: object = None
        """The last call's headers: most callers repeat theirs."""
        self.head: Any = None
        """What they mean."""
        self.output: bytes | memoryview = b""
        """What the socket has not taken yet."""
        self.opened_s = self.active_s = self.swept_s = now_s
        self.jitter = random.uniform(0.9, 1.1)
        """Spreads over time what connections of the same age would do together."""
        self.preface_left = _PREFACE
        """The part of HTTP/2's preface that has not arrived."""
        self.has_settings = False
        """Whether its end, the peer's SETTINGS, was seen to have arrived."""
        self.ended: list[int] = []
        """Answered streams whose callers may still be sending."""
        self.unread: set[Stream] = set()
        """Streams whose callers do not read their answers."""
        self.num_tiny = 0
        """Tiny DATA frames, less the others."""
        self.swept_stream_id = 0
        """The last stream that was open at the last sweep."""
        self.trusted = False
        """Whether the peer has shown a valid token."""
        self.sieve: Sieve | None = None
        """Stands before `http2` under overload."""
        self.can_sift = access_log is None
        """Whether that is of use; lines are written of what HTTP/2 reads."""
        self.byte_s = MAX_BYTE_S
        """What each byte that it sends takes, in seconds: a moving average, which starts
        cautiously, for tiny frames can take a hundred times what large messages take."""
        self.tag_s = 0.0
        """When its next turn is due, on `Loop`'s clock of turns."""
        self.retired = False
        """Whether the peer was asked to connect again."""
        self.touched = False
        """Whether the loop flushes it at the end of the round."""
        self.is_writing = False
        """Whether the loop waits until the socket takes more."""
        self.closing = False
        """Whether to close it once its output is gone."""
        self.is_open = True

    def read(self, buffer: memoryview) -> int:
        """Read what has arrived, at most a buffer full, and hand it to HTTP/2.

        Returns:
            The bytes read; -1 if the peer has left.

        Raises:
            OSError: the socket or its TLS failed.
            http2.Error: the peer broke the protocol.
        """
        data: bytes | memoryview
        data = buffer[: max(_LEAST_BYTES, int(TURN_S / self.byte_s))]
        try:
            num_bytes = self.socket.recv_into(data)
        except BlockingIOError:
            return 0
        if not num_bytes:
            return -1
        data = data[:num_bytes]
        if self.tls is not None:
            data = self.tls.decrypt(data)
        if self.preface_left:
            self._check_preface(bytes(data[: len(self.preface_left)]))
        (self.sieve or self.http2).receive_data(data)
        return num_bytes

    def _check_preface(self, part: bytes) -> None:
        if not self.preface_left.startswith(part):
            self.output = _HTTP1_RESPONSE if self.tls is None else self.tls.encrypt(_HTTP1_RESPONSE)
            self.closing = True
            raise OSError("not HTTP/2")
        self.preface_left = self.preface_left[len(part) :]

    def has_begun(self) -> bool:
        """Return whether HTTP/2's preface has arrived, with the peer's SETTINGS."""
        if not self.has_settings and not self.preface_left:
            self.has_settings = http2.has_settings(self.http2)
        return self.has_settings

    def send(
        self, stream_id: int, headers: Headers = (), data: bytes = b"",
        trailers: Headers | None = None, *, final: bool = False,
    ) -> None:  # fmt: skip
        """Send a part of an answer; nothing happens if the caller has left.

        Args:
            stream_id: the call.
            headers: begin the answer.
            data: framed messages.
            trailers: end the answer.
            final: whether headers, or data, end the answer.
        """
        session = self.http2
        try:
            if headers:
                session.send_response(stream_id, headers, end_stream=final and not data)
            if data:
                session.send_data(stream_id, data, end_stream=final)
            if trailers:
                session.send_trailers(stream_id, trailers)
        except http2.Error:
            pass
        if final or trailers:
            self.ended.append(stream_id)

    def num_unread(self, stream_id: int) -> int:
        """Return the bytes of answers that HTTP/2's windows keep back on a stream."""
        try:
            return self.http2.queued_body_size(stream_id)
        except http2.Error:
            return 0

    def consume(self, stream_id: int, num_bytes: int) -> None:
        """Let the peer send as many bytes more on a stream."""
        try:
            self.http2.acknowledge_received_data(num_bytes, stream_id)
        except (http2.Error, ValueError):
            pass

    def flush(self) -> bool:
        """Write HTTP/2's output, as far as the socket takes it.

        Returns:
            False if the connection is over.
        """
        is_rest = bool(self.output)
        try:
            if not is_rest and not self.closing:
                output = (self.sieve or self.http2).data_to_send()
                if self.unread:
                    output += self._resume_read()
                self.output = output if self.tls is None else self.tls.encrypt(output)
            while self.output:
                sent = self.socket.send(self.output)
                if sent < len(self.output):
                    self.output = memoryview(self.output)[sent:]
                    continue
                self.output = b""
                if self.ended:
                    output = self._reset_ended()
                    self.output = output if self.tls is None else self.tls.encrypt(output)
        except BlockingIOError:
            return True
        except (OSError, http2.Error):
            return False
        if is_rest and not self.closing:  # answers may have come since
            return self.flush()
        return not self.closing and (self.http2.want_read or self.http2.want_write)

    def _resume_read(self) -> bytes:
        """Resume the streams whose answers may have been read, now that windows were used."""
        unread, self.unread = self.unread, set()
        now_s = time.monotonic()
        for stream in unread:
            stream.resume(now_s)
        return self.http2.data_to_send()

    def _reset_ended(self) -> bytes:
        """Have callers stop sending what nobody will read, once their answer has left.

        Sent together with the answer, the reset would overtake it; so what the windows keep back
        has to leave first.
        """
        session, blocked = self.http2, []
        for stream_id in self.ended:
            try:
                window = session.stream_remote_window_size(stream_id)  # raises where it is over
                window = min(window, session.remote_window_size)
                if window <= 0 or session.queued_body_size(stream_id):
                    blocked.append(stream_id)
                else:
                    session.reset_stream(stream_id, http2.NO_ERROR)
            except http2.Error:
                pass
        self.ended = blocked
        return session.data_to_send()

    @property
    def is_busy(self) -> bool:
        """Whether calls are in progress, or answers on their way."""
        return bool(self.calls or self.output)

    def go_away(self, *, notice: bool) -> None:
        """Ask the peer to open no more calls here: with a notice first, then for good."""
        try:
            if notice:
                self.http2.send_shutdown_notice()
            else:
                self.http2.send_goaway()
        except http2.Error:
            pass

    def close(self) -> None:
        """Close the socket."""
        self.is_open = False
        self.socket.close()
        if isinstance(self.http2, LoggedSession):
            self.http2.end_calls()
