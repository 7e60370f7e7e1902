"""The metrics page: a report in Prometheus's format."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import product
from types import SimpleNamespace

from prometheus_client import core
from prometheus_client.exposition import choose_encoder

from serving.system.usage import start_time_s
from serving.telemetry.metrics import NO_MODEL, Histogram, ModelCounts, ModelLabel, Report

_INFER = "ModelInfer", "HttpInfer"
"""Methods of all models; `Report.methods` are those of classifiers."""
_STATUSES = (
    "OK", "CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED",
    "UNAVAILABLE",
)  # fmt: skip
"""Outcomes of calls that each version in service has from the start: a series that begins at 1 has
no rate (https://prometheus.io/docs/practices/instrumentation/#avoid-missing-metrics)."""
_VERSION = "model", "version"


def encode(report: Report, accept: str) -> tuple[str, bytes]:
    """Write the metrics page."""
    try:
        encoder, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # it compares a version that is no number
        encoder, content_type = choose_encoder("")
    # The part of a registry that encoders use.
    return content_type, encoder(SimpleNamespace(collect=partial(_metrics, report)))


def _metrics(report: Report) -> Iterator[core.Metric]:
    info = core.InfoMetricFamily("serving_model", "The versions in service.")
    facts = ("version", "device", "precision", "transport", "role")
    for served in report.models:
        info.add_metric((), {"model": served.name} | {f: getattr(served, f) for f in facts})
    yield info
    yield from _of_models(report)
    yield from _of_server(report)


def _of_models(report: Report) -> Iterator[core.Metric]:
    classes = {(served.name, served.version): served.num_classes for served in report.models}
    labels = {(served.name, served.version): served.labels for served in report.models}
    models = {label: ModelCounts() for label in classes} | report.counts.models
    requests = core.CounterMetricFamily(
        "serving_requests", "Calls that have ended.", labels=(*_VERSION, "method", "status")
    )
    rows = core.CounterMetricFamily("serving_rows", "Rows run.", labels=_VERSION)
    answers = core.CounterMetricFamily(
        "serving_answers",
        "Rows run, by the class answered.",
        labels=(*_VERSION, "class"),
    )
    for label, counts in models.items():
        methods = _INFER * (label in classes) + report.methods * bool(classes.get(label))
        for ended in {**dict.fromkeys(product(methods, _STATUSES)), **counts.requests}:
            requests.add_metric((*label, *ended), counts.requests[ended])
        if label != NO_MODEL:
            rows.add_metric(label, counts.num_rows)
        for name in {**dict.fromkeys(labels.get(label) or ()), **counts.labels}:
            answers.add_metric((*label, name), counts.labels[name])
        for number in range(max([classes.get(label, 0), *(each + 1 for each in counts.classes)])):
            answers.add_metric((*label, str(number)), counts.classes[number])
    yield from (requests, rows, answers)
    mismatches = core.CounterMetricFamily(
        "serving_batch_mismatches",
        "Batches with a row that had another answer alone.",
        labels=_VERSION,
    )
    for label in models:
        if label != NO_MODEL:
            mismatches.add_metric(label, models[label].num_mismatches)
    yield mismatches
    for name, text, field in (
        ("serving_batch_rows", "Rows in a run.", "batch_rows"),
        ("serving_queue_seconds", "From arrival to the last run of a request.", "queue_s"),
        ("serving_run_seconds", "One run of the model.", "run_s"),
        ("serving_request_seconds", "From arrival to the answer.", "request_s"),
        ("serving_confidence", "The probability of the class that was answered.", "confidence"),
    ):
        family = core.HistogramMetricFamily(name, text, labels=_VERSION)
        for label, counts in models.items():
            histogram: Histogram = getattr(counts, field)
            has_classes = classes.get(label) or labels.get(label) is not None
            has_classes = has_classes or any(counts.confidence.counts)  # of a version that is gone
            if label == NO_MODEL or (field == "confidence" and not has_classes):
                continue
            family.add_metric(label, histogram.cumulative(), histogram.sum)
        yield family
    waiting = core.GaugeMetricFamily("serving_queue_rows", "Rows that wait.", labels=_VERSION)
    capacities = core.GaugeMetricFamily(
        "serving_queue_capacity_rows", "The most rows that may wait.", labels=_VERSION
    )
    for label, queue in report.queues.items():
        waiting.add_metric(label, queue.num_rows)
        capacities.add_metric(label, queue.capacity)
    yield from (waiting, capacities)
    yield from _of_handlers(report, models)


def _of_handlers(report: Report, models: Mapping[ModelLabel, ModelCounts]) -> Iterator[core.Metric]:
    if not report.handlers:
        return
    of_step = "of a handler, with the way to its process and back."
    for name, text, field in (
        ("preprocess", f"One preprocess {of_step}", "preprocess_s"),
        ("postprocess", f"One postprocess {of_step}", "postprocess_s"),
        ("first_part", "From arrival to the first part of an answer in parts.", "first_part_s"),
        ("part_gap", "From a part to the next one.", "part_gap_s"),
    ):
        family = core.HistogramMetricFamily(f"serving_{name}_seconds", text, labels=_VERSION)
        for label in report.handlers:
            histogram: Histogram = getattr(models.get(label) or ModelCounts(), field)
            family.add_metric(label, histogram.cumulative(), histogram.sum)
        yield family
    parts = core.CounterMetricFamily("serving_parts", "Parts of answers.", labels=_VERSION)
    for label in report.handlers:
        counts = models.get(label) or ModelCounts()
        parts.add_metric(label, sum(counts.first_part_s.counts) + sum(counts.part_gap_s.counts))
    yield parts
    processes = core.GaugeMetricFamily(
        "serving_handler_processes", "Processes of a handler that are ready.", labels=_VERSION
    )
    starts = core.CounterMetricFamily(
        "serving_handler_starts", "Processes of a handler that were started.", labels=_VERSION
    )
    memory = core.GaugeMetricFamily(
        "serving_handler_memory_bytes", "Memory of a handler's processes.", labels=_VERSION
    )
    for label, usage in report.handlers.items():
        processes.add_metric(label, usage.num_processes)
        starts.add_metric(label, usage.num_starts)
        memory.add_metric(label, usage.memory_bytes)
    yield from (processes, starts, memory)
    yield from _of_their_own(models)


def _of_their_own(models: Mapping[ModelLabel, ModelCounts]) -> Iterator[core.Metric]:
    """Yield what handlers count themselves: a family for each name, with the labels of all."""
    counts: dict[str, list[tuple[dict[str, str], float]]] = {}
    values: dict[str, list[tuple[dict[str, str], Histogram]]] = {}
    for (model, version), each in models.items():
        own = {"model": model, "version": version}
        for (name, more), amount in each.own.counts.items():
            counts.setdefault(name, []).append((own | dict(more), amount))
        for (name, more), histogram in each.own.values.items():
            values.setdefault(name, []).append((own | dict(more), histogram))
    for name, found in counts.items():
        keys = _keys(labels for labels, _ in found)
        counter = core.CounterMetricFamily(f"handler_{name}", "Counted by a handler.", labels=keys)
        for labels, amount in found:
            counter.add_metric([labels.get(key, "") for key in keys], amount)
        yield counter
    for name in sorted(values.keys() - counts.keys()):
        keys = _keys(labels for labels, _ in values[name])
        family = core.HistogramMetricFamily(f"handler_{name}", "Noted by a handler.", labels=keys)
        for labels, histogram in values[name]:
            where = [labels.get(key, "") for key in keys]
            family.add_metric(where, histogram.cumulative(), histogram.sum)
        yield family


def _keys(labels: Iterable[Mapping[str, str]]) -> list[str]:
    """Return the names of all labels, in the order in which they come."""
    return [*{key: None for each in labels for key in each}]


def _of_server(report: Report) -> Iterator[core.Metric]:
    """Yield what all models share; the values of processes are sums over all of them."""
    usage, counts = report.usage, report.counts
    reloads = core.CounterMetricFamily(
        "serving_reloads",
        "Versions loaded or refused while serving; files unread.",
        labels=["outcome"],
    )
    for outcome in ("loaded", "failed", "unread"):
        reloads.add_metric([outcome], counts.reloads[outcome])
    yield reloads
    crashes = core.CounterMetricFamily(
        "serving_model_crashes", "Worker processes ended by a run of the model.", labels=_VERSION
    )
    served = ((each.name, each.version) for each in report.models)
    for label in {**dict.fromkeys(served), **counts.crashes}:
        crashes.add_metric(label, counts.crashes[label])
    yield crashes
    for name, text, value in (
        ("serving_worker_restarts", "Workers that died and were restarted.", counts.restarts),
        ("process_cpu_seconds", "CPU time.", counts.cpu_s),
    ):
        yield core.CounterMetricFamily(name, text, value)
    for name, text, value in (
        ("serving_calls_in_flight", "Calls in progress.", report.num_calls),
        ("serving_ready", "1 if health says SERVING, else 0.", int(report.is_serving)),
        ("process_start_time_seconds", "Since 1970.", start_time_s()),
        ("process_resident_memory_bytes", "Memory in use.", usage.resident_bytes),
        ("process_virtual_memory_bytes", "Address space in use.", usage.virtual_bytes),
        ("process_open_fds", "Open file descriptors.", usage.num_files),
        ("process_max_fds", "How many file descriptors may be open.", usage.max_files),
    ):
        yield core.GaugeMetricFamily(name, text, value)
