"""HTTP/2 by ngh2 and the model, nothing between: the price of all else that our server does.

It reads, answers all that has come, and writes. No queue, no limits, no deadlines, no cancellation,
no metrics; a bad request ends it. With --echo there is no model either, only fixed answers.

python -m benchmarks.targets.bare_server [--models models] [--precision fp32|int8] [--echo]
"""

import argparse
import selectors
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.targets.echo_server import answer_of
from serving.model.loaded_model import load_model
from serving.protocols.digits_v1 import wire
from serving.signature import DIGITS
from serving.transports.h2 import http2
from serving.transports.h2.limits import Limits

_LIMITS = Limits(max_message_bytes=8 << 20)
_PREFIX_BYTES = 5
_RESPONSE = ((b":status", b"200"), (b"content-type", b"application/grpc"))
_OK = ((b"grpc-status", b"0"),)

Answer = Callable[[Sequence[bytes]], Sequence[bytes]]
"""Takes the messages that have come, and gives their answers, all without gRPC's prefix."""


class _Connection:
    """A connection, and the messages that have not arrived whole."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = sock
        self._http2 = http2.open_session(_LIMITS)
        self._parts: dict[int, bytes] = {}

    def read(self, buffer: memoryview) -> dict[int, bytes] | None:
        """Return the messages that are whole now, by stream; None if the peer has left."""
        num_bytes = 0
        with suppress(OSError):
            num_bytes = self.socket.recv_into(buffer)
        try:
            self._http2.receive_data(buffer[:num_bytes])
        except http2.Error:  # more after a GOAWAY, such as h2load's last frames
            return None
        whole = {}
        for event in self._http2.events():
            if isinstance(event, http2.ConnectionClosed):
                return None
            if isinstance(event, http2.DataReceived):
                stream = event.stream_id
                self._http2.acknowledge_received_data(len(event.data), stream)
                self._parts[stream] = self._parts.get(stream, b"") + event.data
                if event.end_stream:
                    whole[stream] = self._parts.pop(stream)[_PREFIX_BYTES:]
        return whole if num_bytes else None

    def answer(self, stream: int, message: bytes) -> None:
        """Answer a call."""
        self._http2.send_response(stream, _RESPONSE)
        self._http2.send_data(stream, b"\0" + len(message).to_bytes(4, "big") + message)
        self._http2.send_trailers(stream, _OK)

    def write(self) -> None:
        """Send what HTTP/2 has to say, windows and answers."""
        with suppress(OSError):  # the peer has left, as the next read will find
            while output := self._http2.data_to_send():
                self.socket.sendall(output)


def serve(answer: Answer) -> None:
    """Serve unary calls on a port that the kernel chooses, and print where, until killed."""
    buffer = memoryview(bytearray(_LIMITS.read_bytes))
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    print(f"serving address=127.0.0.1:{listener.getsockname()[1]}", flush=True)
    while True:
        ready: list[Any] = [key.data for key, _ in selector.select()]
        calls: list[tuple[_Connection, int, bytes]] = []
        for connection in ready:
            if connection is None:
                sock, _ = listener.accept()
                selector.register(sock, selectors.EVENT_READ, _Connection(sock))
            elif (whole := connection.read(buffer)) is None:
                selector.unregister(connection.socket)
                connection.socket.close()
            else:
                calls += [(connection, stream, message) for stream, message in whole.items()]
        if calls:
            answers = answer([message for _, _, message in calls])
            for (connection, stream, _), message in zip(calls, answers, strict=True):
                connection.answer(stream, message)
        for connection in filter(None, ready):
            connection.write()


def _classify(models: Path, precision: Any) -> Answer:
    model = load_model(models / "digits", None, "cpu", precision)

    def classify(messages: Sequence[bytes]) -> list[bytes]:
        pixels = [wire.decode_request(each, DIGITS.image_bytes, len(each)) for each in messages]
        images = np.frombuffer(b"".join(pixels), np.uint8)
        rows = model.run(images.reshape(-1, DIGITS.image_bytes))
        digits = rows.argmax(axis=1).astype(np.uint8)
        ends = accumulate((len(each) // DIGITS.image_bytes for each in pixels), initial=0)
        return [
            wire.encode_response(digits[a:b].tobytes(), rows[a:b].tobytes(), model.version)
            for a, b in pairwise(ends)
        ]

    return classify


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--precision", choices=("fp32", "int8"), default="fp32")
    parser.add_argument("--echo", action="store_true")
    options = parser.parse_args()
    if options.echo:
        serve(lambda messages: [answer_of(len(message)) for message in messages])
    serve(_classify(options.models, options.precision))
