"""A caller that minds its own business beside an attack: one image at a time, as a process.

    python -m tests.support.polite ADDRESS [TOKEN]

Prints "ready" after its first answers, and each call's begin and latency, as JSON, once stdin ends.
"""

import json
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from hyperframe.frame import DataFrame, WindowUpdateFrame

from serving.protocols.digits_v1.wire import encode_request
from tests.support.h2_connection import Connection, Headers, Reply, message, request_headers

TIMEOUT_S = 30.0
PAUSE_S = 0.01
REQUEST = message(encode_request(bytes(784)))


class Polite:
    """The caller, from the side of the test."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.latencies_s: np.ndarray = np.array([0.0])

    @property
    def max_s(self) -> float:
        return float(self.latencies_s.max(initial=0.0))

    def finish(self) -> None:
        """End the caller, and take what it measured; it fails if a call did."""
        out, _ = self._process.communicate()
        assert self._process.returncode == 0
        self.latencies_s = np.array(json.loads(out.splitlines()[-1]))

    def __str__(self) -> str:
        if not len(self.latencies_s):
            return "no call"
        half, most = np.quantile(self.latencies_s, (0.5, 0.99))
        return (f"{len(self.latencies_s)} calls, p50 {half * 1e3:.1f} ms, p99 {most * 1e3:.1f} ms, "
                f"max {self.max_s * 1e3:.1f} ms")  # fmt: skip


@contextmanager
def polite_caller(address: str, token: str = "") -> Iterator[Polite]:
    """Call politely for as long as the context lasts."""
    command = [sys.executable, "-m", "tests.support.polite", address, token]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        polite = Polite(process)
        yield polite
        polite.finish()
    finally:
        process.kill()
        process.wait()


def main() -> int:
    address, token = sys.argv[1:3]
    headers: Headers = request_headers(authorization=f"Bearer {token}" if token else None)
    latencies: list[float] = []
    with Connection(address, TIMEOUT_S) as connection:
        connection.open()
        connection.send(WindowUpdateFrame(0, window_increment=1 << 30))
        stream = 1
        while len(latencies) < 20 or not select.select([sys.stdin], [], [], PAUSE_S)[0]:
            begin_s = time.perf_counter()
            data = DataFrame(stream, REQUEST, flags=["END_STREAM"])
            connection.send(connection.headers(stream, headers), data)
            reply = connection.replies[stream] = Reply()
            while not reply.is_over:
                connection.receive()
            latencies.append(time.perf_counter() - begin_s)
            assert reply.status in (0, 8), reply  # a full queue is an answer, too
            stream += 2
            if len(latencies) == 20:
                print("ready", flush=True)
    print(json.dumps(latencies[20:]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
