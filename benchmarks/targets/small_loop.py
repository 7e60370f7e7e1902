"""The smallest server on the h2 transport's HTTP/2 layer: read, answer all that has come, write.

No limits, no deadlines, no cancellation, no other methods than one; a bad request ends it.
"""

import selectors
import socket
from collections.abc import Callable

from serving.transports.h2 import http2
from serving.transports.h2.limits import Limits

_LIMITS = Limits(max_message_bytes=8 << 20)
_PREFIX_BYTES = 5
_RESPONSE = ((b":status", b"200"), (b"content-type", b"application/grpc"))
_OK = ((b"grpc-status", b"0"),)

Answer = Callable[[list[bytes]], list[bytes]]
"""Takes the messages that have come, and gives their answers, all without gRPC's prefix."""


class _Peer:
    """A connection and the messages that have not arrived whole."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = sock
        self.http2 = http2.open_session(_LIMITS)
        self._parts: dict[int, bytes] = {}

    def read(self, buffer: memoryview) -> list[tuple[int, bytes]] | None:
        """Return the streams and messages that are whole now; None if the peer has left."""
        num_bytes = self.socket.recv_into(buffer)
        if not num_bytes:
            return None
        self.http2.receive_data(buffer[:num_bytes])
        whole = []
        for event in self.http2.events():
            if isinstance(event, http2.DataReceived):
                stream, data = event.stream_id, event.data
                self.http2.acknowledge_received_data(len(data), stream)
                if stream in self._parts:
                    data = self._parts.pop(stream) + data
                if event.end_stream:
                    whole.append((stream, data[_PREFIX_BYTES:]))
                else:
                    self._parts[stream] = data
            elif isinstance(event, http2.ConnectionClosed):
                return None
        return whole

    def answer(self, stream: int, message: bytes) -> None:
        """Answer a call."""
        self.http2.send_response(stream, _RESPONSE)
        self.http2.send_data(stream, b"\0" + len(message).to_bytes(4, "big") + message)
        self.http2.send_trailers(stream, _OK)


def serve(answer: Answer) -> None:
    """Serve unary calls on a port that the kernel chooses, and print where, until killed."""
    buffer = memoryview(bytearray(_LIMITS.read_bytes))
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        selector = selectors.DefaultSelector()
        selector.register(listener, selectors.EVENT_READ)
        print(f"serving address=127.0.0.1:{listener.getsockname()[1]}", flush=True)
        while True:
            ready = [key.data for key, _ in selector.select()]
            calls: list[tuple[_Peer, int]] = []
            messages: list[bytes] = []
            for peer in ready:
                if peer is None:
                    sock, _ = listener.accept()
                    selector.register(sock, selectors.EVENT_READ, _Peer(sock))
                elif (whole := _read(peer, buffer)) is None:
                    selector.unregister(peer.socket)
                    peer.socket.close()
                else:
                    calls += [(peer, stream) for stream, _ in whole]
                    messages += [message for _, message in whole]
            if messages:
                for (peer, stream), message in zip(calls, answer(messages), strict=True):
                    peer.answer(stream, message)
            for peer in filter(None, ready):
                _write(peer)


def _read(peer: _Peer, buffer: memoryview) -> list[tuple[int, bytes]] | None:
    try:
        return peer.read(buffer)
    except OSError:
        return None


def _write(peer: _Peer) -> None:
    """Send what HTTP/2 has to say, windows and answers."""
    try:
        while output := peer.http2.data_to_send():
            peer.socket.sendall(output)
    except OSError:
        pass  # the peer has left, which the next read will show
