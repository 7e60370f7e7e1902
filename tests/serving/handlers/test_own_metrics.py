"""What a handler counts itself: checked where it is counted, and bounded in number."""

import json

import pytest

from serving.handlers.own_metrics import HandlerMetrics
from serving.telemetry.metrics import OwnCounts
from tests.support.locks import KeptLock, handed_in, waits


def taken(metrics):
    """What was counted, as it arrives in the server."""
    return OwnCounts.of(json.loads(json.dumps(metrics.take())))


def test_counts_and_values_arrive_once():
    metrics = HandlerMetrics()
    metrics.count("hits", kind="a")
    metrics.count("hits", 2.5, kind="a")
    metrics.observe("size", 3)
    found = taken(metrics)
    assert found.counts == {("hits", (("kind", "a"),)): 3.5}
    ((series, histogram),) = found.values.items()
    assert series == ("size", ())
    assert histogram.sum == 3
    assert dict(histogram.cumulative())["5.0"] == 1
    assert metrics.take() is None


def test_many_labels_are_other():
    metrics, server = HandlerMetrics(), OwnCounts()
    for number in range(250):
        metrics.count("hits", kind=number)
        metrics.observe("size", 1, kind=number)
    found = taken(metrics)
    assert len(found.counts) == len(found.values) == 101
    assert found.counts["hits", (("kind", "other"),)] == 150
    for number in range(1000, 1200):  # another process has others
        metrics.count("hits", kind=number)
    server.add(found)
    server.add(taken(metrics))
    assert len(server.counts) == 101
    assert sum(server.counts.values()) == 450


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda metrics: metrics.count("a-b"), "'a-b' can't be a name or a label"),
        (lambda metrics: metrics.count("_x"), "can't be a name"),
        (lambda metrics: metrics.count("x", model="a"), "'model' can't be"),
        (lambda metrics: metrics.count("x", -1), "an amount of at least 0, got -1"),
        (lambda metrics: metrics.count("x", a=1, b=2, c=3, d=4, e=5), "more than 4 labels"),
        (lambda metrics: metrics.observe("x", float("nan")), "expected a number, got nan"),
        (lambda metrics: metrics.count("known"), "known was used before by metrics.count with th"),
        (lambda metrics: metrics.observe("known", 1, kind="a"), "known was used before"),
        (lambda metrics: [metrics.count(f"n{each}") for each in range(40)], "more than 32 names"),
    ],
)
def test_metric_that_cannot_be_counted_is_an_error_of_the_handler(use, words):
    metrics = HandlerMetrics()
    metrics.count("known", kind="a")
    with pytest.raises(ValueError, match=words):
        use(metrics)


def test_threads_of_a_handler_wait_for_one_another():
    lock = KeptLock()
    with handed_in(lock):
        metrics = HandlerMetrics()
    metrics.count("hits")
    assert waits(lock, lambda: metrics.count("hits"))
    assert waits(lock, lambda: metrics.observe("size", 3))
    assert waits(lock, metrics.take)
    found = taken(metrics)
    assert (found.counts, found.values) == ({("hits", ()): 1.0}, {})
