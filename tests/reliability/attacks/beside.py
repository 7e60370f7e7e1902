"""An attack beside a polite caller: it is answered rightly and in time, and memory comes back."""

import threading
import time
from contextlib import contextmanager

from tests.reliability.attacks.polite import polite_caller
from tests.support.servers import Footprint, wait_until

MAX_WAIT_S = 10.0
"""How long a polite caller may wait, on a machine that has other work to do; `due_s`
limits the server's own processor time meanwhile."""
MIB = 1 << 20


@contextmanager
def beside(server, token="", *, due_s, peak_bytes=None):
    """Attack meanwhile.

    Args:
        server: the victim.
        token: the polite caller's.
        due_s: how much the server may compute while a polite call waits.
        peak_bytes: the most memory that the attack may cost for a while; None is not checked.
    """
    before = resident(server)
    peaks, has_ended = [before], threading.Event()

    def watch():
        while not has_ended.wait(0.02):
            peaks.append(resident(server))

    with polite_caller(server, token) as polite:
        watcher = threading.Thread(target=watch)
        watcher.start()
        begin_s = time.monotonic()
        try:
            yield
        finally:
            has_ended.set()
            watcher.join()
        attack_s = time.monotonic() - begin_s
    wait_until(lambda: num_files(server) < 60)
    print(f"attack {attack_s:.1f} s; polite: {polite}; "
          f"MiB before {before >> 20}, peak {max(peaks) >> 20}")  # fmt: skip
    assert polite.max_computed_s < due_s
    assert polite.max_s < MAX_WAIT_S
    assert polite.share_answered > 0.5
    wait_until(lambda: resident(server) - before < 100 * MIB)  # it is given back a second later
    assert peak_bytes is None or max(peaks) - before < peak_bytes
    assert server.process.poll() is None


def resident(server):
    """Return the bytes of memory that a server has."""
    return Footprint.of(server.process.pid).resident_bytes


def num_files(server):
    """Return how many descriptors it has open."""
    return Footprint.of(server.process.pid).num_files
