"""One peer: its socket, its HTTP/2 state, and the calls that it has in progress."""

import random
import socket
import ssl
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from serving.transports.access_log import AccessLog
from serving.transports.h2 import http2
from serving.transports.h2.access import LoggedSession, open_session
from serving.transports.h2.limits import Limits

if TYPE_CHECKING:
    from serving.transports.h2.calls import Call
    from serving.transports.h2.heads import Head, HttpError
    from serving.transports.h2.queue import Entry
    from serving.transports.h2.streams import AnswerStream, ReplyStream

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_RECORD_BYTES = 1 << 14
"""The most that TLS decrypts at once, and what is read of a peer whose bytes are dear."""
_DEAR_S = 4e-3
"""A turn that takes as long is dear: one of many tiny frames, not of calls."""
RESPONSE = ((b":status", b"200"), (b"content-type", b"application/grpc"))
_OK = ((b"grpc-status", b"0"),)
_NOT_HTTP2 = b"this port speaks gRPC, over HTTP/2 only\n"
_HTTP1_RESPONSE = (
    b"HTTP/1.1 505 HTTP Version Not Supported\r\nconnection: close\r\n"
    b"content-type: text/plain\r\ncontent-length: %d\r\n\r\n%s" % (len(_NOT_HTTP2), _NOT_HTTP2)
)
Trailers = Iterable[tuple[bytes, bytes]]


class Connection:
    """What the loop holds of one peer; used by the loop's thread only."""

    __slots__ = (
        "active_s", "awaited", "calls", "closing", "ended", "handshaking", "head", "headers",
        "http2", "is_writing", "jitter", "limits", "num_tiny", "opened_s", "output", "retired",
        "socket", "swept", "swept_s", "tag_s", "touched", "trusted", "turn_s", "unread", "waiting",
    )  # fmt: skip

    def __init__(
        self, sock: socket.socket, limits: Limits, now_s: float, access_log: AccessLog | None
    ) -> None:
        """Take over a socket that does not block."""
        self.socket = sock
        self.limits = limits
        self.http2 = open_session(limits, sock, access_log)
        self.calls: dict[int, Head | Call] = {}
        """The calls in progress, by stream: what is not here has ended or was cancelled."""
        self.waiting: deque[Entry] = deque()
        """Those that wait for a run."""
        self.headers: object = None
        self.head: Any = None
        """The last call's headers and what they mean: most callers send the same again."""
        self.output: bytes | memoryview = b""
        self.opened_s = self.active_s = now_s
        self.swept_s = now_s
        self.jitter = random.uniform(0.9, 1.1)
        """Spreads what many connections of one moment do after the same time."""
        self.handshaking = isinstance(sock, ssl.SSLSocket)
        self.awaited = _PREFACE
        """What the peer has not sent yet of HTTP/2's preface."""
        self.ended: list[int] = []
        """Streams that were ended before their callers ended them, perhaps."""
        self.unread: set[AnswerStream | ReplyStream] = set()
        """Streams whose callers do not read their answers."""
        self.num_tiny = 0
        """Tiny DATA frames, less the others."""
        self.swept = 0
        """The last stream that was open at the last sweep."""
        self.trusted = False
        """Whether the peer has shown a valid token."""
        self.turn_s = _DEAR_S
        """What its turns to be read take, in seconds, of late; of a new peer nothing is known."""
        self.tag_s = 0.0
        """When its next turn is due where not all can have one, on the loop's clock of turns."""
        self.retired = False
        """Whether the peer was asked to connect again."""
        self.touched = False
        """Whether it is to be flushed at the end of the round."""
        self.is_writing = False
        """Whether the loop waits until the socket takes more."""
        self.closing = False
        """Whether it is to be closed once its output is gone."""

    def shake_hands(self) -> bool:
        """Go on with TLS's handshake.

        Returns:
            True once it is done.

        Raises:
            OSError: it failed, or its certificate was refused.
        """
        assert isinstance(self.socket, ssl.SSLSocket)
        try:
            self.socket.do_handshake()
        except ssl.SSLWantReadError:
            self.is_writing = False
            return False
        except ssl.SSLWantWriteError:
            self.is_writing = True
            return False
        if self.socket.selected_alpn_protocol() not in ("h2", None):
            raise OSError("the peer did not choose h2")
        self.handshaking = self.is_writing = False
        return True

    def read(self, buffer: memoryview) -> int:
        """Read what has come, at most a buffer full, and give it to HTTP/2.

        Returns:
            The bytes read; -1 if the peer has left.

        Raises:
            OSError: the socket failed.
            http2.Error: the peer broke the protocol.
        """
        total = 0
        if self.turn_s >= _DEAR_S:
            buffer = buffer[:_RECORD_BYTES]
        is_tls = isinstance(self.socket, ssl.SSLSocket)
        # With room for a whole record each time: what OpenSSL holds back wakes nobody.
        last = len(buffer) - _RECORD_BYTES if is_tls else 0
        while total <= last:
            try:
                num_bytes = self.socket.recv_into(buffer[total:])
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            if not num_bytes:
                total = total or -1
                break
            total += num_bytes
            if not is_tls:
                break
        if total > 0:
            if self.awaited:
                self._check_preface(bytes(buffer[: min(total, len(self.awaited))]))
            self.http2.receive_data(buffer[:total])
        return total

    def _check_preface(self, part: bytes) -> None:
        if not self.awaited.startswith(part):
            self.output = _HTTP1_RESPONSE
            self.closing = True
            raise OSError("not HTTP/2")
        self.awaited = self.awaited[len(part) :]

    def answer(self, stream_id: int, message: bytes) -> None:
        """Answer a unary call with a framed message; nothing happens if the caller has left."""
        session = self.http2
        try:
            session.send_response(stream_id, RESPONSE)
            session.send_data(stream_id, message)
            session.send_trailers(stream_id, _OK)
        except http2.Error:
            pass

    def refuse(self, stream_id: int, trailers: Trailers) -> None:
        """End a call that has had no answer with a status, and stop what is still being sent."""
        try:
            self.http2.send_response(stream_id, (*RESPONSE, *trailers), end_stream=True)
        except http2.Error:
            pass
        self.ended.append(stream_id)

    def refuse_http(self, stream_id: int, error: "HttpError") -> None:
        """Answer a request that is not gRPC's."""
        headers = ((b":status", error.status), (b"content-type", b"text/plain"))
        try:
            self.http2.send_response(stream_id, headers)
            self.http2.send_data(stream_id, error.text, end_stream=True)
        except http2.Error:
            pass
        self.ended.append(stream_id)

    def begin_answers(self, stream_id: int) -> None:
        """Send the headers of a stream's answers."""
        try:
            self.http2.send_response(stream_id, RESPONSE)
        except http2.Error:
            pass

    def send(self, stream_id: int, data: bytes) -> int:
        """Send framed messages of a stream.

        Returns:
            The bytes that the stream has not taken yet.
        """
        try:
            self.http2.send_data(stream_id, data)
        except http2.Error:
            return 0
        return self.num_unread(stream_id)

    def end(self, stream_id: int, trailers: Trailers) -> None:
        """End a stream that has had answers with a status."""
        try:
            self.http2.send_trailers(stream_id, trailers)
        except http2.Error:
            pass
        self.ended.append(stream_id)

    def num_unread(self, stream_id: int) -> int:
        """Return the bytes of answers that a stream has not taken yet."""
        try:
            return self.http2.queued_body_size(stream_id)
        except http2.Error:
            return 0

    def _note_read(self) -> None:
        """Have the streams go on whose answers have left for the socket."""
        unread, self.unread = self.unread, set()
        for stream in unread:
            stream.note_window()

    def consume(self, stream_id: int, num_bytes: int) -> None:
        """Let the peer send as much again on a stream."""
        try:
            self.http2.acknowledge_received_data(num_bytes, stream_id)
        except (http2.Error, ValueError):
            pass

    def flush(self) -> bool:
        """Write what HTTP/2 has to say, as far as the socket takes it.

        Returns:
            False if the connection is over.
        """
        try:
            if not self.output and not self.closing:
                self.output = self.http2.data_to_send()
                if self.unread:
                    self._note_read()
                    self.output += self.http2.data_to_send()
            while self.output:
                sent = self.socket.send(self.output)
                if sent < len(self.output):
                    self.output = memoryview(self.output)[sent:]
                    continue
                self.output = b""
                if self.ended:
                    self.output = self._reset_ended()
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return True
        except (OSError, http2.Error):
            return False
        return not self.closing and (self.http2.want_read or self.http2.want_write)

    def _reset_ended(self) -> bytes:
        """Have callers stop sending what will not be read, once their answer has gone out.

        In one go with the answer, the reset would overtake it; and what their windows keep back
        is still to go out.
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
        self.socket.close()
        if isinstance(self.http2, LoggedSession):
            self.http2.end_calls()
