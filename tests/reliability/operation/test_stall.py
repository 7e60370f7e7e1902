"""A server whose process stands still for a while, measured by the two kinds of load."""

import signal
import threading
from contextlib import contextmanager
from time import perf_counter

import numpy as np

from benchmarks.load.loops import closed, open_loop
from benchmarks.load.trace import CallRequest, arrivals
from benchmarks.targets.workload import encode_digits
from tests.support.raw import CLASSIFY
from tests.support.servers import running_server

STALL_S = 0.2
CONNECT_S = 3.0
"""How long connecting, and collecting the garbage of this process, may take."""


def test_open_loop_shows_a_stall_of_a_server_and_closed_loop_hides_it(models, images):
    with running_server(models, "--device", "cpu") as server:
        message = encode_digits("digits", {"images": images[:1]})
        question = CallRequest(address=server.address, path=CLASSIFY, message=message)
        offsets = arrivals("constant", rate=200, seconds=1.0, seed=0)

        @contextmanager
        def stalled():
            """Stop the server's process half a second after the time that is returned."""
            begin_s, stop_s = perf_counter() + CONNECT_S, CONNECT_S + 0.5
            stop = threading.Timer(stop_s, server.process.send_signal, (signal.SIGSTOP,))
            resume = threading.Timer(
                stop_s + STALL_S, server.process.send_signal, (signal.SIGCONT,)
            )
            stop.start()
            resume.start()
            yield begin_s
            stop.join()
            resume.join()

        with stalled() as begin_s:
            opened = open_loop(question, offsets, begin_s, 2)
        with stalled() as begin_s:
            hidden = closed(question, [1], begin_s, 1.0)
    # 40 of 200 calls were due during the stall. Of a closed loop's one was.
    assert np.quantile(opened.latencies_s, 0.99) > 0.9 * STALL_S
    assert hidden.latencies_s.max() > 0.9 * STALL_S
    assert np.quantile(hidden.latencies_s, 0.99) < 0.1 * STALL_S
