"""The metrics page: a report in Prometheus's format."""

from collections.abc import Iterator
from functools import partial
from itertools import product
from types import SimpleNamespace

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder

from serving.system.process import start_time_s
from serving.telemetry.metrics import Counts, Report

_METHODS = (
    "Classify", "ClassifyStream", "ModelInfer", "ModelStreamInfer",
    "HttpInfer", "HttpDigits", "HttpNumbers", "HttpClassify",
)  # fmt: skip
_STATUSES = (
    "OK", "CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL", "INVALID_ARGUMENT", "NOT_FOUND",
    "RESOURCE_EXHAUSTED", "UNAVAILABLE",
)  # fmt: skip
_NO_REQUESTS = dict.fromkeys(product(_METHODS, _STATUSES), 0)
"""Each outcome of a call for a model is there from the start: a series that begins at 1 has no rate
(https://prometheus.io/docs/practices/instrumentation/#avoid-missing-metrics)."""


def encode(report: Report, accept: str) -> tuple[str, bytes]:
    """Write the metrics page."""
    encoder, content_type = choose_encoder(accept)
    # The part of a registry that encoders use.
    return content_type, encoder(SimpleNamespace(collect=partial(_metrics, report)))


def _metrics(report: Report) -> Iterator[Metric]:
    model = InfoMetricFamily("digits_model", "The served versions.")
    facts = ("name", "version", "device", "precision", "transport")
    for served in report.models:
        model.add_metric((), {fact: getattr(served, fact) for fact in facts})
    yield model
    yield from _counters(report.counts)
    yield from _by_label(report)
    yield from _gauges(report)
    yield from _histograms(report.counts)


def _counters(counts: Counts) -> Iterator[Metric]:
    for name, text, value in (
        ("digits_worker_restarts", "Workers that died and were restarted.", counts.restarts),
        ("digits_images", "Images run.", counts.batch_images.sum),
        ("process_cpu_seconds", "CPU time.", counts.cpu_s),
    ):
        yield CounterMetricFamily(name, text, value)


def _by_label(report: Report) -> Iterator[Metric]:
    counts = report.counts
    unused = {(served.name, served.version): 0 for served in report.models}
    reloads = {(outcome,): counts.reloads[outcome] for outcome in ("adopted", "failed")}
    digits = range(max((served.num_classes for served in report.models), default=0))
    answers = {(str(digit),): counts.digits[digit] for digit in digits}
    calls, rows = unused | counts.answered, unused | counts.rows
    versions = ("model", "version")
    for name, text, labels, numbers in (
        ("digits_requests", "Calls that have ended.", ("method", "status"),
         _NO_REQUESTS | counts.requests),
        ("digits_reloads", "Versions adopted or refused while serving.", ("outcome",), reloads),
        ("digits_answers", "Images run, by their digit.", ("digit",), answers),
        ("digits_model_calls", "Calls answered by a version.", versions, calls),
        ("digits_model_rows", "Rows run by a version.", versions, rows),
    ):  # fmt: skip
        family = CounterMetricFamily(name, text, labels=labels)
        for values, number in numbers.items():
            family.add_metric(values, number)
        yield family


def _gauges(report: Report) -> Iterator[Metric]:
    """Yield the current values; those of processes are sums over all of them."""
    usage = report.usage
    for name, text, value in (
        ("digits_queue_images", "Rows that wait for a run.", report.num_waiting),
        ("digits_queue_capacity_images", "The most rows that may wait.", report.queue_capacity),
        ("digits_calls_in_flight", "Calls in progress.", report.num_calls),
        ("digits_serving", "1 if health says SERVING, else 0.", int(report.is_serving)),
        ("process_start_time_seconds", "Since 1970.", start_time_s()),
        ("process_resident_memory_bytes", "Memory in use.", usage.resident_bytes),
        ("process_virtual_memory_bytes", "Address space in use.", usage.virtual_bytes),
        ("process_open_fds", "Open file descriptors.", usage.num_files),
        ("process_max_fds", "How many file descriptors may be open.", usage.max_files),
    ):
        yield GaugeMetricFamily(name, text, value)


def _histograms(counts: Counts) -> Iterator[Metric]:
    for name, text, histogram in (
        ("digits_batch_images", "Images in a run.", counts.batch_images),
        ("digits_queue_seconds", "From arrival to the last run of a request.", counts.queue_s),
        ("digits_run_seconds", "One run of the model.", counts.run_s),
        ("digits_request_seconds", "From arrival to the answer.", counts.request_s),
        ("digits_certainty", "The probability of the digit that was answered.", counts.certainty),
    ):
        yield HistogramMetricFamily(name, text, histogram.cumulative(), histogram.sum)
