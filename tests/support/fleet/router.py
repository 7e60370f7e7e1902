"""TCP connections that can go dead without a word."""

import socket
import threading
from contextlib import suppress


class Router:
    """Forwards TCP connections, and can forget those that it has: their data is dropped."""

    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._generation = 0
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def forget(self):
        """Forward nothing more on the connections made so far; new ones work."""
        self._generation += 1

    def close(self):
        for each in (self._listener, *self._sockets):
            each.close()

    def _accept(self):
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self._sockets += (near, far)
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._forward, args=pair, daemon=True).start()

    def _forward(self, source, sink):
        generation = self._generation
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if generation == self._generation:
                    sink.sendall(data)
