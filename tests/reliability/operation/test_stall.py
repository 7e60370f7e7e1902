"""A server whose process stands still for a while: what the two kinds of load make of it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.load.asyncio_load import run_closed, run_open
from benchmarks.load.frames import Request
from benchmarks.load.trace import arrivals
from benchmarks.targets.servers import encode_digits
from serving.images import Images
from tests.support.raw import CLASSIFY
from tests.support.servers import running_server

STALL_S = 0.2
NOW = 0.0


def test_open_loop_shows_a_stall_of_a_server_and_closed_loop_hides_it(
    models: Path, images: Images
) -> None:
    with running_server(models, "--device", "cpu") as server:
        message = encode_digits(images[:1])
        question = Request(address=server.address, path=CLASSIFY, message=message)
        offsets = arrivals("constant", rate=200, seconds=1.0, seed=0)

        @contextmanager
        def stalled() -> Iterator[None]:
            """Stop the server's process for a while, half a second from now."""
            stop = threading.Timer(0.5, server.process.send_signal, (signal.SIGSTOP,))
            resume = threading.Timer(0.5 + STALL_S, server.process.send_signal, (signal.SIGCONT,))
            stop.start()
            resume.start()
            yield
            stop.join()
            resume.join()

        with stalled():
            opened = run_open(question, 2, NOW, offsets)
        with stalled():
            closed = run_closed(question, [1], NOW, 1.0)
    # 40 of 200 calls were due during the stall. Of a closed loop's one was.
    assert np.quantile(opened.latencies_s, 0.99) > 0.9 * STALL_S
    assert closed.latencies_s.max() > 0.9 * STALL_S
    assert np.quantile(closed.latencies_s, 0.99) < 0.1 * STALL_S
