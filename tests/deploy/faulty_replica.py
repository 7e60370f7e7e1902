"""A replica that says it is well, and resets every call."""

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from grpc_health.v1 import health_pb2
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import Event, RequestReceived, StreamEnded

from serving.protocols.encoding import frame

_SERVING = frame(
    health_pb2.HealthCheckResponse(
        status=health_pb2.HealthCheckResponse.SERVING
    ).SerializeToString()
)


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        connection = H2Connection(H2Configuration(client_side=False))
        connection.initiate_connection()
        self.request.sendall(connection.data_to_send())
        healths: set[int] = set()
        while data := self.request.recv(1 << 16):
            for event in connection.receive_data(data):
                _answer(connection, event, healths)
            self.request.sendall(connection.data_to_send())


def _answer(connection: H2Connection, event: Event, healths: set[int]) -> None:
    if isinstance(event, RequestReceived):
        assert event.stream_id is not None
        if (b":path", b"/grpc.health.v1.Health/Check") in (event.headers or ()):
            healths.add(event.stream_id)
        else:
            connection.reset_stream(event.stream_id, ErrorCodes.INTERNAL_ERROR)
    if isinstance(event, StreamEnded) and event.stream_id in healths:
        head = [(":status", "200"), ("content-type", "application/grpc")]
        connection.send_headers(event.stream_id, head)
        connection.send_data(event.stream_id, _SERVING)
        connection.send_headers(event.stream_id, [("grpc-status", "0")], end_stream=True)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True


@contextmanager
def faulty_replica() -> Iterator[str]:
    """Start one; gives its address."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            host, port = server.server_address[:2]
            yield f"{host!s}:{port}"
        finally:
            server.shutdown()
            thread.join()
