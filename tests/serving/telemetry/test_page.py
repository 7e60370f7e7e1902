"""The page of metrics, whole: each number of a drawn ledger, summed over workers, and no other."""

import math
import pickle
import random
from collections import Counter, defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.config import BatchingConfig
from serving.system.usage import Usage
from serving.telemetry import exposition
from serving.telemetry import metrics as module
from serving.telemetry.exposition import encode
from serving.telemetry.metrics import (
    Counts,
    HandlerUsage,
    Metrics,
    OwnCounts,
    QueueUsage,
    Report,
    Served,
    total,
)

DIGITS, TEXTS = ("digits", "3"), ("texts", "1")
GONE = ("digits", "2")
"""A version that is served no more: its counts stay."""
VERSIONS = DIGITS, TEXTS, GONE
MODELS = (
    Served(*DIGITS, "cpu", "int8", "h2", "default", 10),
    Served(*TEXTS, "cuda", "fp32", "grpcio", "canary", 0, ("good", "bad")),
)
STATUSES = ("OK", "CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL", "INVALID_ARGUMENT",
            "RESOURCE_EXHAUSTED", "UNAVAILABLE")  # fmt: skip
NOW_S, CPU_S = 100.0, 0.5
STEPS = ("preprocess", "postprocess", "first_part", "part_gap")
HISTOGRAMS = {
    **dict.fromkeys(["serving_batch_rows", "serving_queue_seconds", "serving_run_seconds",
                     "serving_request_seconds", "serving_confidence"], VERSIONS),
    **{f"serving_{step}_seconds": (TEXTS,) for step in STEPS},
    "handler_length": (TEXTS,),
}  # fmt: skip


def named(name, of=None, **labels):
    if of is not None:
        labels |= dict(zip(("model", "version"), of, strict=True))
    return name, frozenset(labels.items())


class Answers:
    """Of a run of a model with names of classes."""

    def __init__(self, names):
        self._names = names

    def kept(self, outputs):
        return {"classes": np.array(outputs)}

    def counted(self, runs):
        return Counter(self._names * len(runs)), [np.array([0.5, 1.0], np.float32)] * len(runs)


class Worker:
    """Counts in one process, and keeps a ledger beside it."""

    def __init__(self, draw):
        self.draw, self.metrics = draw, Metrics()
        self.counted = Counter()
        self.values = defaultdict(list)
        self.versions = set()

    def run(self, version):
        """Count a run, and the calls that it has answered."""
        num_rows = self.draw.choice([1, 2, 7, 64])
        classes = None if version == TEXTS else bytes(self.draw.choices(range(10), k=num_rows))
        table = np.full((num_rows, 10), 0.01, "<f4")
        for row, number in enumerate(classes or b""):
            table[row, number] = self.draw.choice([0.25, 0.5, 0.9375])
            self.counted[named("serving_answers_total", version, **{"class": str(number)})] += 1
            self.values["serving_confidence", version].append(float(table[row, number]))
        started_s, run_s = 50.0, self.draw.choice([0.125, 0.25, 4.0, 16.0])
        run = SimpleNamespace(num_rows=num_rows, started_s=started_s, finished_s=started_s + run_s,
                              classes=classes, rows=table.tobytes())  # fmt: skip
        groups = []
        for _ in range(self.draw.randrange(1, 4)):
            number, method = self.draw.randrange(1, 5), self.draw.choice(["ModelInfer", None])
            waited_s = self.draw.choice([0.0, 0.5, 2.0])
            encoder = SimpleNamespace(method=method)
            groups.append(SimpleNamespace(streams=range(number), encoder=encoder,
                                          arrived_s=started_s - waited_s))  # fmt: skip
            if method is not None:
                self.counted[named("serving_requests_total", version, method=method,
                                   status="OK")] += number  # fmt: skip
            self.values["serving_queue_seconds", version] += [waited_s] * number
            self.values["serving_request_seconds", version] += [waited_s + run_s] * number
        self.versions.add(version)
        self.metrics.observe_run(run, groups, version)
        self.counted[named("serving_rows_total", version)] += num_rows
        self.values["serving_batch_rows", version].append(num_rows)
        self.values["serving_run_seconds", version].append(run_s)

    def answers(self):
        """Count the names of classes."""
        names = [self.draw.choice(["good", "bad", "odd"]) for _ in range(4)]
        self.metrics.observe_answers(Answers(names), [1, 2, 3, 4], TEXTS)
        for name in names:
            self.counted[named("serving_answers_total", TEXTS, **{"class": name})] += 1
        self.values["serving_confidence", TEXTS] += [0.5, 1.0]

    def handler(self):
        """Count the steps and parts of a handler, and what it counts itself."""
        for step in STEPS:
            taken_s = self.draw.choice([0.25, 1.0, 8.0])
            if step.endswith("process"):
                self.metrics.observe_step(TEXTS, step, taken_s)
            else:
                self.metrics.observe_part(TEXTS, taken_s, is_first=step == "first_part")
                self.counted[named("serving_parts_total", TEXTS)] += 1
            self.values[f"serving_{step}_seconds", TEXTS].append(taken_s)
        self.metrics.observe_step(TEXTS, "predict", 1.0)  # on no page
        own, amount = OwnCounts(), self.draw.choice([1.0, 2.5])
        own.count("words", (("language", "en"),), amount)
        length = self.draw.choice([0.5, 20_000.0])
        own.observe("length", (), length)
        self.metrics.count_own(TEXTS, OwnCounts.of(own.document()))
        self.counted[named("handler_words_total", TEXTS, language="en")] += amount
        self.values["handler_length", TEXTS].append(length)

    def other(self):
        """Count what is no run."""
        version, times = self.draw.choice(VERSIONS), self.draw.randrange(1, 4)
        self.versions.add(version)
        self.metrics.count("HttpInfer", "UNAVAILABLE", times, version)
        ended = {"method": "HttpInfer", "status": "UNAVAILABLE"}
        self.counted[named("serving_requests_total", version, **ended)] += times
        self.metrics.count("other", "UNIMPLEMENTED")
        ended = {"method": "other", "status": "UNIMPLEMENTED"}
        self.counted[named("serving_requests_total", ("", ""), **ended)] += 1
        self.metrics.count_failure(version, 1.0, times)  # for the log of slow versions alone
        self.metrics.count_mismatch(version)
        self.counted[named("serving_batch_mismatches_total", version)] += 1
        outcome = self.draw.choice(["loaded", "failed", "unread"])
        self.metrics.count_reload(outcome)
        self.counted[named("serving_reloads_total", outcome=outcome)] += 1

    def work(self):
        ways = self.one, self.answers, self.handler, self.other
        for _ in range(self.draw.randrange(1, 30)):
            self.draw.choice(ways)()

    def one(self):
        self.run(self.draw.choice(VERSIONS))

    def report(self, number):
        """Return the same as a worker sends: a report, pickled; and count what it has on a page."""
        queues = {version: QueueUsage(number + 3, 40 + number) for version in (DIGITS, TEXTS)}
        usage = Usage(*range(number, number + 4))
        handlers = {TEXTS: HandlerUsage(number + 1, number + 5, number + 1000)}
        for version, queue in queues.items():
            self.counted[named("serving_queue_rows", version)] += queue.num_rows
            self.counted[named("serving_queue_capacity_rows", version)] += queue.capacity
        for name, amount in zip(("processes", "starts_total", "memory_bytes"), handlers[TEXTS],
                                strict=True):  # fmt: skip
            self.counted[named(f"serving_handler_{name}", TEXTS)] += amount
        self.counted[named("serving_calls_in_flight")] += number
        report = Report(
            MODELS, BatchingConfig(), queues, number, True, usage, self.metrics.snapshot(),
            methods=("Classify",), handlers=handlers, waiting={}, missing={},
        )  # fmt: skip
        return pickle.loads(pickle.dumps(report))


def zeros():
    """What is on the page from the start: each series that may come."""
    for version, methods in (DIGITS, ("ModelInfer", "HttpInfer", "Classify")), (TEXTS, (
        "ModelInfer", "HttpInfer")):  # fmt: skip
        for method in methods:
            for status in STATUSES:
                yield named("serving_requests_total", version, method=method, status=status)
        yield named("serving_model_crashes_total", version)
        yield named("serving_rows_total", version)
        yield named("serving_batch_mismatches_total", version)
    for name in range(10):
        yield named("serving_answers_total", DIGITS, **{"class": str(name)})
    for name in "good", "bad":
        yield named("serving_answers_total", TEXTS, **{"class": name})
    for outcome in "loaded", "failed", "unread":
        yield named("serving_reloads_total", outcome=outcome)
    yield named("serving_parts_total", TEXTS)


def samples_of(report):
    page = encode(report, "text/plain; version=0.0.4")[1].decode()
    families = text_string_to_metric_families(page)
    return {
        named(sample.name, **sample.labels): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def split(samples):
    """Divide histograms from other samples: of each its sum, its count and its buckets."""
    others, found = {}, defaultdict(dict)
    for (name, labels), value in samples.items():
        base, _, part = name.rpartition("_")
        if base not in HISTOGRAMS:
            others[name, labels] = value
            continue
        facts = dict(labels)
        bound = float(facts.pop("le")) if part == "bucket" else part
        found[base, (facts["model"], facts["version"])][bound] = value
    return others, found


def facts_of_processes(usages):
    """What the page has of processes: sums, with the supervisor's own."""
    names = ("process_resident_memory_bytes", "process_virtual_memory_bytes", "process_open_fds",
             "process_max_fds")  # fmt: skip
    return {
        named(name): sum(each) for name, each in zip(names, zip(*usages, strict=True), strict=True)
    }


def is_class_of(sample, version):
    """Whether it is of a class of a version, which may come where it is 0 as well."""
    name, labels = sample
    own = {"model": version[0], "version": version[1]}
    return name == "serving_answers_total" and own.items() <= labels


@pytest.mark.parametrize("seed", range(20))
def test_page_is_the_ledger_of_all_workers(seed, monkeypatch):
    """Of two that serve, and of one that has died and served a version that is gone."""
    stopped = SimpleNamespace(monotonic=lambda: NOW_S, time_ns=lambda: 0,
                              process_time=lambda: CPU_S)  # fmt: skip
    monkeypatch.setattr(module, "time", stopped)
    monkeypatch.setattr(exposition, "start_time_s", lambda: 1e9)
    own = Usage(100, 200, 300, 400)
    monkeypatch.setattr(Usage, "now", classmethod(lambda cls: own))
    draw = random.Random(seed)
    workers = [Worker(draw) for _ in range(3)]
    for worker in workers:
        worker.work()
    reports = [workers[number].report(number) for number in (0, 1)]
    earlier = workers[2].metrics.snapshot()
    earlier += Counts(restarts=2, crashes=Counter({GONE: 1}))
    found, histograms = split(samples_of(total(reports, earlier)))

    expected = Counter(dict.fromkeys(zeros(), 0))
    for worker in workers:
        expected.update(worker.counted)
    expected[named("serving_worker_restarts_total")] = 2
    expected[named("serving_model_crashes_total", GONE)] = 1
    expected[named("serving_ready")] = 1
    expected[named("process_start_time_seconds")] = 1e9
    expected[named("process_cpu_seconds_total")] = 4 * CPU_S
    for served in MODELS:
        facts = {"device": served.device, "precision": served.precision, "role": served.role,
                 "transport": served.transport}  # fmt: skip
        expected[named("serving_model_info", (served.name, served.version), **facts)] = 1
    expected.update(facts_of_processes([own, *(report.usage for report in reports)]))
    if any(GONE in worker.versions for worker in workers):
        for name in "serving_rows_total", "serving_batch_mismatches_total":
            expected[named(name, GONE)] += 0
    found = {name: value for name, value in found.items() if value or not is_class_of(name, GONE)}
    assert found == expected
    for (name, version), parts in histograms.items():
        values = [value for worker in workers for value in worker.values[name, version]]
        total_s, count = parts.pop("sum"), parts.pop("count")
        assert (count, total_s) == (len(values), pytest.approx(sum(values)))
        assert parts.pop(math.inf) == count
        assert len(parts) > 10
        assert parts == {bound: sum(value <= bound for value in values) for bound in parts}
    drawn = {each for worker in workers for each in worker.values}
    assert drawn <= histograms.keys()
