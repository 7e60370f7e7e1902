"""Several servers on one machine, 127.0.0.2 and so on, and the load of their callers."""

import signal
import socket
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress
from urllib.request import urlopen

import numpy as np

from serving.errors import ServerError
from tests.support.servers import RunningServer, serve_command, started


class Replica:
    """One server, which keeps its address when it is started again."""

    def __init__(self, models, host, *options):
        with socket.create_server((host, 0)) as place:
            self.address = f"{host}:{place.getsockname()[1]}"
        port = self.address.rpartition(":")[2]
        self._command = [*serve_command(models, *options), "--host", host]
        self._command[self._command.index("--port") + 1] = port
        self._stack = ExitStack()
        self.server: RunningServer

    def start(self):
        self.server = self._stack.enter_context(started(self._command))

    def send(self, number):
        self.server.process.send_signal(number)

    def restart(self):
        """Drain, and start again."""
        assert self.server.stop() == 0
        self.start()

    def num_answered(self):
        """The calls of Classify that this process has answered."""
        url = f"http://{self.server.facts['metrics']}/metrics"
        with urlopen(url, timeout=10) as page:
            lines = page.read().decode().splitlines()
        wanted = [line for line in lines if 'method="Classify"' in line and 'status="OK"' in line]
        return float(wanted[0].split()[-1]) if wanted else 0.0

    def close(self):
        if hasattr(self, "server"):
            self.send(signal.SIGCONT)
        self._stack.close()


class Callers:
    """Threads that call one `Client` without a pause; use it as a context manager."""

    def __init__(self, client, num_threads=8):
        self._client = client
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(num_threads)]
        self.latencies_s: list[float] = []
        self.failures: Counter[str] = Counter()

    def _call(self):
        image = np.zeros((1, 784), np.uint8)
        while not self._ended.is_set():
            begun_s = time.monotonic()
            try:
                self._client.classify(image)
            except ServerError as err:
                self.failures[f"{type(err).__name__}: {err}"] += 1
            self.latencies_s.append(time.monotonic() - begun_s)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info):
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def __str__(self):
        half, most, last = np.quantile(self.latencies_s, (0.5, 0.99, 1)) * 1e3
        return (
            f"{len(self.latencies_s)} calls, {self.failures.total()} failed, "
            f"p50 {half:.1f} ms, p99 {most:.1f} ms, longest {last:.0f} ms"
        )


# TCP connections that can go dead without a word


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
