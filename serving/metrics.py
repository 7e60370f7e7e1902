"""What the server counts, and how Prometheus reads it.

Timings ride with each run, so nothing is observed per request. A run is noted, and many runs are
added up at once: when Prometheus reads, or when there are enough of them.
"""

import threading
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from serving.model_info import ModelInfo
from serving.requests import Answered, Batch

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_SECONDS = tuple(
    mantissa * 10.0**exponent for exponent in range(-5, 1) for mantissa in (1, 2.5, 5)
)  # 10 µs to 5 s
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


_MAX_RUNS = 64
"""Runs that are noted before they are added up."""
_Run = tuple[int, float, float, list[tuple[float, str | None, int]]]
"""Images, seconds at start and end, and (arrival, method, calls) of what was answered."""


class Histogram:
    """Counts of values between fixed bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """Start empty; a value on a bound counts below it, as in Prometheus."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Count a value, perhaps several times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def cumulative(self) -> list[tuple[str, float]]:
        """(upper bound, how many values up to it), as the exposition format wants them."""
        names = [*map(str, self.bounds), "+Inf"]
        return [(name, sum(self.counts[: i + 1])) for i, name in enumerate(names)]


class Metrics:
    """Everything that is counted in one server process."""

    def __init__(self) -> None:
        """Start at zero."""
        self.batch_images = Histogram(_IMAGES)
        self.queue_s = Histogram(_SECONDS)
        self.run_s = Histogram(_SECONDS)
        self.request_s = Histogram(_SECONDS)
        self._requests: Counter[tuple[str, str]] = Counter()
        self._reloads: Counter[str] = Counter(adopted=0, failed=0)
        self._lock = threading.Lock()
        self._runs: deque[_Run] = deque()

    def observe(self, batch: Batch, answered: Sequence[Answered]) -> None:
        """Note a run and the requests that it answered; called under the batcher's lock."""
        requests = [(request.arrived_s, request.method, answer.num_calls)
                    for request, answer in answered]  # fmt: skip
        self._runs.append((batch.num_rows, batch.started_s, batch.finished_s, requests))
        if len(self._runs) >= _MAX_RUNS:
            self.add_up()

    def add_up(self) -> None:
        """Add what was noted to the histograms and counters; call it before reading them."""
        with self._lock:
            while self._runs:
                num_rows, started_s, finished_s, requests = self._runs.popleft()
                self.batch_images.add(num_rows)
                self.run_s.add(finished_s - started_s)
                for arrived_s, method, times in requests:
                    self.queue_s.add(started_s - arrived_s, times)
                    self.request_s.add(finished_s - arrived_s, times)
                    if method is not None:
                        self._requests[method, "OK"] += times

    def count(self, method: str, status: str) -> None:
        """Count a call that has ended, unless `observe` does; from any thread.

        Args:
            method: the gRPC method's name, such as "Classify".
            status: the status code's name, such as "OK".
        """
        with self._lock:
            self._requests[method, status] += 1

    def count_reload(self, outcome: str) -> None:
        """Count a version that was "adopted", or one that "failed" and was refused."""
        with self._lock:
            self._reloads[outcome] += 1

    @property
    def reloads(self) -> dict[str, int]:
        """Reloads so far by outcome."""
        with self._lock:
            return dict(self._reloads)

    @property
    def num_images(self) -> float:
        """Images run so far."""
        self.add_up()
        return self.batch_images.sum

    @property
    def requests(self) -> dict[tuple[str, str], int]:
        """Calls so far by (method, status)."""
        self.add_up()
        with self._lock:
            return dict(self._requests)


class Exporter:
    """Serves metrics to Prometheus over HTTP on the loopback interface."""

    def __init__(
        self,
        metrics: Metrics,
        info: Callable[[], ModelInfo],
        num_waiting: Callable[[], int],
        port: int,
    ) -> None:
        """Listen, on a thread of its own.

        Args:
            metrics: what was counted.
            info: what is being served.
            num_waiting: how many images wait.
            port: the TCP port; 0 lets the kernel choose.

        Raises:
            OSError: the port can't be bound.
        """
        from prometheus_client import CollectorRegistry, start_http_server

        self._metrics = metrics
        self._info = info
        self._num_waiting = num_waiting
        registry = CollectorRegistry()
        registry.register(self)
        self._server, self._thread = start_http_server(port, "127.0.0.1", registry)
        self.port: int = self._server.server_port

    def close(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def collect(self) -> "Iterator[Metric]":
        """Yield everything in Prometheus's terms; called at each scrape."""
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
            InfoMetricFamily,
        )

        info, metrics = self._info(), self._metrics
        metrics.add_up()
        model = InfoMetricFamily("digits_model", "What is being served.")
        facts = ("name", "version", "device", "precision", "transport")
        model.add_metric((), {fact: str(getattr(info, fact)) for fact in facts})
        yield model
        calls = CounterMetricFamily(
            "digits_requests", "Calls that have ended.", labels=("method", "status")
        )
        for labels, number in metrics.requests.items():
            calls.add_metric(labels, number)
        yield calls
        reloads = CounterMetricFamily(
            "digits_reloads", "Versions adopted or refused while serving.", labels=("outcome",)
        )
        for outcome, number in metrics.reloads.items():
            reloads.add_metric((outcome,), number)
        yield reloads
        yield CounterMetricFamily("digits_images", "Images run.", metrics.num_images)
        yield GaugeMetricFamily("digits_queue_images", "Images that wait.", self._num_waiting())
        for name, text, histogram in (
            ("digits_batch_images", "Images in a run.", metrics.batch_images),
            ("digits_queue_seconds", "From arrival to the (last) run.", metrics.queue_s),
            ("digits_run_seconds", "One run of the model.", metrics.run_s),
            ("digits_request_seconds", "From arrival to the answer.", metrics.request_s),
        ):
            yield HistogramMetricFamily(name, text, histogram.cumulative(), histogram.sum)
