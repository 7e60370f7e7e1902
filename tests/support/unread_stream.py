"""A caller that sends on a stream and reads none of its answers."""

import threading
import time

import grpc

from tests.support.raw import TIMEOUT_S

MAX_SENT_BYTES = 32 << 20
"""Far more than the windows and buffers of both sides hold, some 10 MB, and far less than a server
takes in that does not stop its caller."""
SMALL_WINDOW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1 << 16))
"""Else gRPC's client keeps 4 MB of answers that nobody reads."""


def assert_stopped_until_it_reads(address, path, message, ask):
    """Check that flow control stops the caller, and that it gets every answer once it reads.

    Args:
        address: the server's.
        path: the stream's.
        message: sent again and again.
        ask: a call of somebody else, who is answered meanwhile.
    """
    num_sent = 0
    is_enough = threading.Event()

    def messages():
        nonlocal num_sent
        while not is_enough.is_set():
            num_sent += 1
            yield message

    with grpc.insecure_channel(address, options=SMALL_WINDOW) as channel:
        answers = channel.stream_stream(path)(messages(), timeout=TIMEOUT_S)
        seen = 0
        while num_sent != seen or num_sent < 2:
            seen = num_sent
            ask()
            time.sleep(0.3)  # a caller that nobody stops sends hundreds of messages meanwhile
            assert num_sent * len(message) <= MAX_SENT_BYTES, "nothing stops the caller"
        assert answers.is_active()
        is_enough.set()
        assert sum(1 for _ in answers) == num_sent
