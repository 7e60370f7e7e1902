"""The last look: both models are served, and called by real clients in turns."""

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.client.client import Client
from serving.errors import ServingError
from serving.launch import Server
from serving.optimising.measure import LEAST_ALONE, Gain
from serving.tensors import Feeds

CALLERS = (1, 16)
ROUNDS = 5
_ROUND_S, _LEAST_CALLS = 0.4, 3
"""How long a round lasts at least, and how many calls each caller makes."""
_MOST_S = 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """What callers of a server get."""

    callers: int
    rate: float
    """Answers a second, the median of the rounds."""
    fp32_rate: float
    gain: Gain


def measure_served(
    repositories: Sequence[Path],
    name: str,
    calls: Sequence[Feeds],
    progress: Callable[[], None],
    device: str = "auto",
) -> list[Served]:
    """Serve two models, and call them in turns by each number of callers.

    Args:
        repositories: of fp32, and of the candidate; each has the one model.
        name: what both are called.
        calls: what is asked.
        progress: called after each round.
        device: where they run.

    Raises:
        ServingError: one can't be served, or does not answer.
    """
    options: dict[str, Any] = {"device": device, "http_port": None, "metrics_port": None}
    found = []
    with (
        Server(models=repositories[0], **options) as fp32,
        Server(models=repositories[1], **options) as other,
    ):
        addresses = [fp32.address, other.address]
        for callers in CALLERS:
            its, mine = call_in_turns(addresses, name, calls, callers, progress)
            found.append(
                Served(
                    callers=callers,
                    rate=statistics.median(mine),
                    fp32_rate=statistics.median(its),
                    gain=Gain.of(mine, its),
                )
            )
    return found


def call_in_turns(
    addresses: Sequence[str],
    name: str,
    calls: Sequence[Feeds],
    callers: int,
    progress: Callable[[], None],
) -> list[list[float]]:
    """Call several servers in turns; return the answers a second of each, a number for each round.

    Args:
        addresses: of gRPC, by the Open Inference Protocol.
        name: the model's on each.
        calls: what is asked.
        callers: how many call at once.
        progress: called after each round.

    Raises:
        ServingError: one does not answer.
    """
    rates: list[list[float]] = [[] for _ in addresses]
    for number in range(ROUNDS):
        for at in range(len(addresses)):
            turn = (at + number) % len(addresses)
            rates[turn].append(_rate(addresses[turn], name, calls, callers))
        progress()
    return rates


def is_confirmed(served: Sequence[Served]) -> str:
    """Return why a server's callers gain nothing; empty if they do."""
    for each in served:
        many = each.callers > 1
        if (many and each.gain.least <= 1) or (not many and each.gain.median < LEAST_ALONE):
            who = f"{each.callers} callers" if many else "a lone caller"
            return f"through the server {who} got {each.gain} times fp32's rate"
    return ""


def _rate(address: str, name: str, calls: Sequence[Feeds], callers: int) -> float:
    """Return the answers a second that some callers get, each in its own thread."""
    ends_s: list[float] = []
    failures: list[BaseException] = []
    start = threading.Barrier(callers + 1)
    with Client(address, timeout_s=60.0) as client:
        client.wait_ready()
        client.infer(name, dict(calls[0]))

        def call(number: int) -> None:
            start.wait()
            begin_s, num = time.perf_counter(), 0
            try:
                while num < _LEAST_CALLS or time.perf_counter() - begin_s < _ROUND_S:
                    client.infer(name, dict(calls[(number + num) % len(calls)]))
                    num += 1
                    ends_s.append(time.perf_counter())
                    if time.perf_counter() - begin_s > _MOST_S:
                        break
            except BaseException as err:
                failures.append(err)

        threads = [threading.Thread(target=call, args=(each,)) for each in range(callers)]
        for thread in threads:
            thread.start()
        start.wait()
        begin_s = time.perf_counter()
        for thread in threads:
            thread.join()
    if failures:
        raise (
            failures[0]
            if isinstance(failures[0], ServingError)
            else ServingError(f"a call failed: {failures[0]}")
        )
    # Callers end one after the other: those that go on alone would count for less.
    until_s = begin_s + _ROUND_S if len(ends_s) > 4 * callers else max(ends_s)
    num = sum(1 for each in ends_s if each <= until_s)
    return num / max(until_s - begin_s, 1e-9)
