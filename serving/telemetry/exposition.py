"""The metrics page: a report in Prometheus's format."""

from collections.abc import Iterator

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder

from serving.system.process import start_time_s
from serving.telemetry.metrics import Counts
from serving.telemetry.report import Report


def encode(report: Report, accept: str) -> tuple[str, bytes]:
    """Write the metrics page.

    Args:
        report: what to show.
        accept: the caller's Accept header, which chooses the format.

    Returns:
        Content type and body.
    """
    encoder, content_type = choose_encoder(accept)
    return content_type, encoder(_Collector(report))


class _Collector:
    """The part of a registry that the encoders use."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def collect(self) -> Iterator[Metric]:
        yield from _model(self._report)
        yield from _calls(self._report)
        yield from _now(self._report)
        yield from _distributions(self._report.counts)
        yield from _process(self._report)


def _model(report: Report) -> Iterator[Metric]:
    model = InfoMetricFamily("digits_model", "What is being served.")
    facts = ("name", "version", "device", "precision", "transport")
    model.add_metric((), {fact: str(getattr(report.info, fact)) for fact in facts})
    yield model


def _calls(report: Report) -> Iterator[Metric]:
    counts = report.counts
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
    yield CounterMetricFamily(
        "digits_worker_restarts", "Workers that died and were restarted.", counts.restarts
    )
    yield CounterMetricFamily("digits_images", "Images run.", counts.batch_images.sum)
    answers = CounterMetricFamily(
        "digits_answers", "Images run, by their digit.", labels=("digit",)
    )
    for digit in range(report.info.signature.num_classes):
        answers.add_metric((str(digit),), counts.digits[digit])
    yield answers


def _now(report: Report) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "digits_queue_images", "Images that wait for a run.", report.num_waiting
    )
    yield GaugeMetricFamily(
        "digits_queue_capacity_images", "The most images that may wait.", report.queue_capacity
    )
    yield GaugeMetricFamily("digits_calls_in_flight", "Calls in progress.", report.num_calls)
    yield GaugeMetricFamily(
        "digits_serving", "1 if health says SERVING, else 0.", int(report.is_serving)
    )


def _distributions(counts: Counts) -> Iterator[Metric]:
    for name, text, histogram in (
        ("digits_batch_images", "Images in a run.", counts.batch_images),
        ("digits_queue_seconds", "From arrival to the last run of a request.", counts.queue_s),
        ("digits_run_seconds", "One run of the model.", counts.run_s),
        ("digits_request_seconds", "From arrival to the answer.", counts.request_s),
        ("digits_certainty", "The probability of the digit that was answered.", counts.certainty),
    ):
        yield HistogramMetricFamily(name, text, histogram.cumulative(), histogram.sum)


def _process(report: Report) -> Iterator[Metric]:
    """Yield the names that every exporter has: sums over workers and supervisor."""
    usage = report.usage
    yield CounterMetricFamily("process_cpu_seconds", "CPU time.", report.counts.cpu_s)
    yield GaugeMetricFamily("process_start_time_seconds", "Since 1970.", start_time_s())
    for name, text, value in (
        ("process_resident_memory_bytes", "Memory in use.", usage.resident_bytes),
        ("process_virtual_memory_bytes", "Address space in use.", usage.virtual_bytes),
        ("process_open_fds", "Open file descriptors.", usage.num_files),
        ("process_max_fds", "How many file descriptors may be open.", usage.max_files),
    ):
        yield GaugeMetricFamily(name, text, value)
