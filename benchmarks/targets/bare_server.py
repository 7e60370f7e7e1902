"""Our HTTP/2 engine and the model, nothing between: the price of all else that our server does.

It reads, answers all that has come, and writes. No queue, no limits, no deadlines, no cancellation,
no metrics; a bad request ends it. With --echo there is no model either, only fixed answers.

python -m benchmarks.targets.bare_server [--models models] [--precision fp32|int8] [--echo]
"""

import argparse
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.targets.echo_server import answer_of
from serving.http2 import events
from serving.http2.frames import Http2Error
from serving.http2.limits import Limits
from serving.http2.server import ServerConnection
from serving.model.loaded_model import load_model
from serving.protocols.digits_v1 import wire
from serving.signature import DIGITS

_READ_BYTES = 512 << 10
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
        self._http2 = ServerConnection(Limits(), _RESPONSE, _OK)
        self._parts: dict[bytes, bytes] = {}

    def read(self, buffer: memoryview) -> dict[bytes, bytes] | None:
        """Return the messages that are whole now, by stream; None if the peer has left."""
        num_bytes = 0
        with suppress(OSError):
            num_bytes = self.socket.recv_into(buffer)
        if not num_bytes:
            return None
        try:
            found = self._http2.receive(bytes(buffer[:num_bytes]), time.monotonic())
        except Http2Error:
            return None
        whole: dict[bytes, bytes] = {}
        for kind, stream, value, ended in found:
            if kind == events.CALLS:
                _, prefix, calls = value
                whole.update((each, prefix + message) for each, message in calls.items())
            elif kind == events.GOAWAY:
                return None
            elif kind == events.DATA:
                self._http2.acknowledge(stream, len(value))
                if ended and stream not in self._parts:
                    self._expect(stream, value)
                self._parts[stream] = self._parts.get(stream, b"") + value
                if ended:
                    whole[stream] = self._parts.pop(stream)[_PREFIX_BYTES:]
        return whole

    def _expect(self, stream: bytes, data: bytes) -> None:
        """Have one-image calls like this one recognised."""
        state = self._http2.streams.get(stream)
        if state is not None and state.block is not None and state.block.is_repeated:
            at = len(data) - DIGITS.image_bytes
            self._http2.expect(state.block, (data[:at], DIGITS.image_bytes), data[5:at])

    def answer(self, stream: bytes, message: bytes) -> None:
        """Answer a call."""
        self._http2.answer([stream], [b"\0" + len(message).to_bytes(4, "big") + message])

    def write(self) -> None:
        """Send what HTTP/2 has to say, windows and answers."""
        with suppress(OSError):  # the peer has left, as the next read will find
            while output := self._http2.data_to_send():
                self.socket.sendall(output)


def serve(answer: Answer) -> None:
    """Serve unary calls on a port that the kernel chooses, and print where, until killed."""
    buffer = memoryview(bytearray(_READ_BYTES))
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    print(f"serving address=127.0.0.1:{listener.getsockname()[1]}", flush=True)
    while True:
        ready: list[Any] = [key.data for key, _ in selector.select()]
        calls: list[tuple[_Connection, bytes, bytes]] = []
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
        rows = model.classify(images.reshape(-1, DIGITS.image_bytes))
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
