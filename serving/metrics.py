"""What the server counts, and how Prometheus reads it.

Timings ride with each run, so nothing is observed per request. A run is noted, and many runs are
added up at once: when Prometheus reads, or when there are enough of them.
"""

import copy
import threading
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, NamedTuple, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from serving.errors import ConfigurationError
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

    def __iadd__(self, other: "Histogram") -> Self:
        """Count what another one, with the same bounds, has counted."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum
        return self


@dataclass(slots=True)
class Counts:
    """Everything that is counted; the counts of several processes add up."""

    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Calls that have ended, by method and status."""
    reloads: Counter[str] = field(default_factory=lambda: Counter(adopted=0, failed=0))
    batch_images: Histogram = field(default_factory=partial(Histogram, _IMAGES))
    queue_s: Histogram = field(default_factory=partial(Histogram, _SECONDS))
    run_s: Histogram = field(default_factory=partial(Histogram, _SECONDS))
    request_s: Histogram = field(default_factory=partial(Histogram, _SECONDS))

    def __iadd__(self, other: "Counts") -> Self:
        """Add the counts of another process."""
        self.requests.update(other.requests)
        self.reloads.update(other.reloads)
        self.batch_images += other.batch_images
        self.queue_s += other.queue_s
        self.run_s += other.run_s
        self.request_s += other.request_s
        return self

    def __add__(self, other: "Counts") -> "Counts":
        """Sum the counts of two processes; both stay as they are."""
        total = copy.deepcopy(self)
        total += other
        return total


class Report(NamedTuple):
    """What a metrics page tells at one moment; goes from process to process."""

    info: ModelInfo
    """What is being served."""
    num_waiting: int
    """Images that wait."""
    counts: Counts
    """What was counted so far."""


class Metrics:
    """Counts what one server process does; safe to call from many threads."""

    def __init__(self) -> None:
        """Start at zero."""
        self._counts = Counts()
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
        """Add what was noted to the counts."""
        counts = self._counts
        with self._lock:
            while self._runs:
                num_rows, started_s, finished_s, requests = self._runs.popleft()
                counts.batch_images.add(num_rows)
                counts.run_s.add(finished_s - started_s)
                for arrived_s, method, times in requests:
                    counts.queue_s.add(started_s - arrived_s, times)
                    counts.request_s.add(finished_s - arrived_s, times)
                    if method is not None:
                        counts.requests[method, "OK"] += times

    def count(self, method: str, status: str) -> None:
        """Count a call that has ended, unless `observe` does; from any thread.

        Args:
            method: the gRPC method's name, such as "Classify".
            status: the status code's name, such as "OK".
        """
        with self._lock:
            self._counts.requests[method, status] += 1

    def count_reload(self, outcome: str) -> None:
        """Count a version that was "adopted", or one that "failed" and was refused."""
        with self._lock:
            self._counts.reloads[outcome] += 1

    def snapshot(self) -> Counts:
        """Copy what was counted so far."""
        self.add_up()
        with self._lock:
            return copy.deepcopy(self._counts)

    @property
    def reloads(self) -> dict[str, int]:
        """Reloads so far by outcome."""
        with self._lock:
            return dict(self._counts.reloads)

    @property
    def num_images(self) -> float:
        """Images run so far."""
        self.add_up()
        return self._counts.batch_images.sum


class _HttpServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        # HTTPServer's own asks the name servers for the address's name, and waits for them.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass  # a scrape is no event


class Exporter:
    """Serves metrics to Prometheus over HTTP on the loopback interface."""

    def __init__(self, report: Callable[[], Report], port: int) -> None:
        """Listen, on a thread of its own.

        Args:
            report: what to tell; asked at each scrape, on that thread.
            port: the TCP port; 0 lets the kernel choose.

        Raises:
            ConfigurationError: the port can't be bound.
        """
        from prometheus_client import CollectorRegistry, make_wsgi_app

        self._report = report
        registry = CollectorRegistry()
        registry.register(self)
        try:
            self._server = make_server(
                "127.0.0.1", port, make_wsgi_app(registry), _HttpServer, _QuietHandler
            )
        except OSError as err:
            raise ConfigurationError(
                f"can't listen on 127.0.0.1:{port} for metrics: is the port taken?"
            ) from err
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.address = f"127.0.0.1:{self._server.server_port}"

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

        info, num_waiting, counts = self._report()
        model = InfoMetricFamily("digits_model", "What is being served.")
        facts = ("name", "version", "device", "precision", "transport")
        model.add_metric((), {fact: str(getattr(info, fact)) for fact in facts})
        yield model
        calls = CounterMetricFamily(
            "digits_requests", "Calls that have ended.", labels=("method", "status")
        )
        for labels, number in counts.requests.items():
            calls.add_metric(labels, number)
        yield calls
        reloads = CounterMetricFamily(
            "digits_reloads", "Versions adopted or refused while serving.", labels=("outcome",)
        )
        for outcome, number in counts.reloads.items():
            reloads.add_metric((outcome,), number)
        yield reloads
        yield CounterMetricFamily("digits_images", "Images run.", counts.batch_images.sum)
        yield GaugeMetricFamily("digits_queue_images", "Images that wait.", num_waiting)
        for name, text, histogram in (
            ("digits_batch_images", "Images in a run.", counts.batch_images),
            ("digits_queue_seconds", "From arrival to the (last) run.", counts.queue_s),
            ("digits_run_seconds", "One run of the model.", counts.run_s),
            ("digits_request_seconds", "From arrival to the answer.", counts.request_s),
        ):
            yield HistogramMetricFamily(name, text, histogram.cumulative(), histogram.sum)
