"""A caller that minds its own business beside an attack: one image at a time, as a process.

    python -m tests.reliability.attacks.polite ADDRESS PID [TOKEN]

Prints "ready" after its first answers, and once stdin ends, each call's latency, the processor
time of the server's process meanwhile, and its status.
"""

import json
import select
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
from hyperframe.frame import DataFrame, WindowUpdateFrame

from digit_classifier.wire import encode_request
from tests.support.wire import Connection, Headers, Reply, message, request_headers

TIMEOUT_S = 30.0
PAUSE_S = 0.01
REQUEST = message(encode_request(bytes(784)))


class Polite:
    """The caller, from the side of the test."""

    def __init__(self, process):
        self._process = process
        self.latencies_s: np.ndarray = np.array([0.0])
        self.computed_s: np.ndarray = np.array([0.0])
        """The server's processor time while a call waited; other processes do not count."""
        self.share_answered = 1.0
        """The share of its calls that were answered; the others found the queue full."""

    @property
    def max_s(self):
        """The longest latency."""
        return float(self.latencies_s.max(initial=0.0))

    @property
    def max_computed_s(self):
        """The most that the server computed while a call waited."""
        return float(self.computed_s.max(initial=0.0))

    def finish(self):
        """End the caller, and read its measurements; fail if a call did."""
        out, _ = self._process.communicate()
        assert self._process.returncode == 0
        calls = json.loads(out.splitlines()[-1])
        if calls:
            self.latencies_s, self.computed_s, statuses = map(np.array, zip(*calls, strict=True))
            self.share_answered = float((statuses == "OK").mean())

    def __str__(self):
        half, most = np.quantile(self.latencies_s, (0.5, 0.99))
        return (
            f"{len(self.latencies_s)} calls, {self.share_answered:.0%} answered, "
            f"p50 {half * 1e3:.1f} ms, p99 {most * 1e3:.1f} ms, max {self.max_s * 1e3:.1f} ms, "
            f"computed meanwhile {self.max_computed_s * 1e3:.1f} ms"
        )


@contextmanager
def polite_caller(server, token=""):
    """Call politely for as long as the context lasts."""
    command = [sys.executable, "-m", "tests.reliability.attacks.polite", server.address,
               str(server.process.pid), token]  # fmt: skip
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        polite = Polite(process)
        yield polite
        polite.finish()
    finally:
        process.kill()
        process.wait()


def main():
    address, pid, token = sys.argv[1:4]
    cpu_clock = ~int(pid) << 3 | 2  # of all threads of a process; see clock_getcpuclockid(3)
    headers: Headers = request_headers(authorization=f"Bearer {token}" if token else None)
    calls: list[tuple[float, float, str]] = []
    expected = b""
    with Connection(address, TIMEOUT_S) as connection:
        connection.open()
        connection.send(WindowUpdateFrame(0, window_increment=1 << 30))
        stream = 1
        while len(calls) < 20 or not select.select([sys.stdin], [], [], PAUSE_S)[0]:
            begin_s, begin_cpu_s = time.perf_counter(), time.clock_gettime(cpu_clock)
            data = DataFrame(stream, REQUEST, flags=["END_STREAM"])
            connection.send(connection.headers(stream, headers), data)
            reply = connection.replies[stream] = Reply()
            while not reply.is_over:
                connection.receive()
            assert reply.status in ("OK", "RESOURCE_EXHAUSTED"), (
                reply
            )  # a full queue is an answer, too
            expected = expected or reply.body
            assert reply.status != "OK" or reply.body == expected, reply
            computed_s = time.clock_gettime(cpu_clock) - begin_cpu_s
            calls.append((time.perf_counter() - begin_s, computed_s, reply.status))
            stream += 2
            if len(calls) == 20:
                print("ready", flush=True)
    print(json.dumps(calls[20:]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
