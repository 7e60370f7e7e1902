"""A caller that minds its own business beside an attack: one image at a time, as a process.

    python -m tests.reliability.attacks.polite ADDRESS PID [TOKEN]

For each line on stdin it opens a connection and prints "ready" after its first answers; at the next
line, it prints each call's latency, the processor time of the server's process meanwhile, and its
status. It ends with stdin.
"""

import json
import select
import subprocess
import sys
import time
import weakref
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
        """Read its measurements; fail if a call did."""
        tell(self._process)
        calls = json.loads(self._process.stdout.readline())
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


CALLERS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
"""The process that calls a server politely: a start takes a second, and a server has a hundred
tests."""


def tell(process):
    process.stdin.write("\n")
    process.stdin.flush()


def caller_of(server, token):
    process = CALLERS.get(server.process)
    if process is None or process.poll() is not None:
        command = [sys.executable, "-m", "tests.reliability.attacks.polite", server.address,
                   str(server.process.pid), token]  # fmt: skip
        process = CALLERS[server.process] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        weakref.finalize(server.process, ended, process)
    return process


def ended(process):
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


@contextmanager
def polite_caller(server, token=""):
    """Call politely for as long as the context lasts."""
    process = caller_of(server, token)
    try:
        tell(process)
        assert process.stdout.readline() == "ready\n"
        polite = Polite(process)
        yield polite
        polite.finish()
    except BaseException:
        ended(process)  # the next test has another one
        raise


def main():
    while sys.stdin.readline():
        print(json.dumps(measured(*sys.argv[1:4])), flush=True)
    return 0


def measured(address, pid, token):
    """Call until stdin has a line; return the measurements."""
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
    sys.stdin.readline()
    return calls[20:]


if __name__ == "__main__":
    sys.exit(main())
