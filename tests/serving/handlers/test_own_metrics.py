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


def test_names_labels_and_values_reach_their_limits():
    metrics = HandlerMetrics()
    metrics.count("n" * 64, 0, a="x" * 128, b=1, c=None, d=2.5)
    metrics.count("n" * 64, 2, a="x" * 129, b=1, c=None, d=2.5)
    labels = (("a", "x" * 128), ("b", "1"), ("c", "None"), ("d", "2.5"))
    metrics.observe("size", -3.5)
    found = taken(metrics)
    assert found.counts == {("n" * 64, labels): 2.0}
    assert found.values["size", ()].sum == -3.5
    for number in range(30):
        metrics.count(f"n{number}")
    with pytest.raises(ValueError, match=r"^metrics.count: more: more than 32 names$"):
        metrics.count("more")
    metrics.count("n0")


@pytest.mark.parametrize(
    ("use", "text"),
    [
        (lambda metrics: metrics.count("n" * 65), f"metrics.count: '{'n' * 65}' can't be a name or "
         "a label"),
        (lambda metrics: metrics.count("9x"), "metrics.count: '9x' can't be a name or a label"),
        (lambda metrics: metrics.count("x", version="1"),
         "metrics.count: 'version' can't be a name or a label"),
        (lambda metrics: metrics.observe("x", 1, le="1"),
         "metrics.observe: 'le' can't be a name or a label"),
        (lambda metrics: metrics.count("x", float("inf")),
         "metrics.count: expected an amount of at least 0, got inf"),
        (lambda metrics: metrics.observe("x", float("-inf")),
         "metrics.observe: expected a number, got -inf"),
        (lambda metrics: metrics.observe("known", 1),
         "metrics.observe: known was used before by metrics.count with the labels kind, more"),
        (lambda metrics: metrics.count("plain", more=1),
         "metrics.count: plain was used before by metrics.observe with the labels none"),
    ],
)  # fmt: skip
def test_use_that_is_refused_is_not_counted(use, text):
    metrics = HandlerMetrics()
    metrics.count("known", more=1, kind="a")
    metrics.observe("plain", 1)
    taken(metrics)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        use(metrics)
    assert str(caught.value) == text
    assert metrics.take() is None


def test_wrong_name_is_told_before_the_number_of_labels():
    metrics, labels = HandlerMetrics(), dict.fromkeys("abcde", 1)
    for name, text in (
        ("a-b", "metrics.count: 'a-b' can't be a name or a label"),
        ("x", "metrics.count: x: more than 4 labels"),
    ):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            metrics.count(name, **labels)
        assert str(caught.value) == text
    assert metrics.take() is None
