"""Which batches are tried, which models take a known time, and who waits for native code."""

import threading

import pytest
from onnx import StringStringEntryProto

from serving.model import fork, loading
from serving.model.loading import load_model
from serving.model.onnx_fields import labels_of
from serving.model.timing import batch_sizes, has_bounded_time
from tests.serving.model.graphs import save, two_layers
from tests.serving.model.proof.models import graph
from tests.support.fakes import TIMEOUT_S

BRIEF_S = 0.05


@pytest.mark.parametrize(
    ("max_batch_size", "row_s", "budget_s", "expected"),
    [
        (1, 0.0, 1.0, []), (2, 0.0, 1.0, [2]), (3, 0.0, 1.0, [2, 3]), (5, 0.0, 1.0, [2, 3, 4, 5]),
        (8, 0.0, 1.0, [2, 3, 4, 7, 8]), (9, 0.0, 1.0, [2, 3, 4, 7, 8, 9]),
        (8, 1.0, 0.1, [2]), (8, 1.0, 5.0, [2, 3]), (8, 1.0, 4.9, [2]), (8, 1.0, 9.0, [2, 3, 4]),
    ],
)  # fmt: skip
def test_powers_of_two_and_one_less_are_tried_within_a_budget(
    max_batch_size, row_s, budget_s, expected
):
    assert [*batch_sizes(max_batch_size, row_s, budget_s)] == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = Neg(x)", True), ("Loop = Neg(x); y = Neg(Loop)", True), ("y = Tile(x, once)", False),
        ("y = Resize(x, , scales)", False), ("y = Pad(x, border)", False),
        ("i = ArgMax<axis=1, keepdims=0>(x); v = Cast<to=1>(both); y = OneHot(i, eight, v)", False),
    ],
)  # fmt: skip
def test_time_of_operators_whose_sizes_are_values_is_not_known(body, expected):
    assert has_bounded_time(graph(body).SerializeToString()) is expected


def test_labels_are_those_of_the_metadata_alone():
    entry = StringStringEntryProto(key="labels", value='["a"]')
    model = graph("y = Neg(x)")
    model.doc_string = entry.SerializeToString().decode()
    assert labels_of(model.SerializeToString()) == ()
    model.metadata_props.append(entry)
    assert labels_of(model.SerializeToString()) == ("a",)


def test_fork_waits_for_native_code_and_keeps_threads_out(monkeypatch):
    monkeypatch.setattr(fork, "_MAX_WAIT_S", BRIEF_S)
    entered, leave, again = threading.Event(), threading.Event(), threading.Event()

    def run_twice():
        with fork.native_run():
            entered.set()
            leave.wait(TIMEOUT_S)
        has_left.set()
        paused.wait(TIMEOUT_S)
        with fork.native_run():
            again.set()

    has_left, paused = threading.Event(), threading.Event()
    thread = threading.Thread(target=run_twice)
    thread.start()
    entered.wait(TIMEOUT_S)
    fork._pause()  # it hangs: not for ever
    fork._resume()
    leave.set()
    has_left.wait(TIMEOUT_S)
    fork._pause()
    with fork.native_run():  # this thread's own
        paused.set()
        assert not again.wait(BRIEF_S)
    fork._resume()
    assert again.wait(TIMEOUT_S)
    thread.join(TIMEOUT_S)


@pytest.mark.parametrize(
    ("options", "limits_s"), [({}, {60.0, 10.0}), ({"limit_factor": 6.0}, {360.0, 60.0})]
)
def test_steps_of_loading_have_their_limits(options, limits_s, tmp_path, monkeypatch):
    found, right = set(), loading.within

    def within(limit_s, *arguments, **more):
        found.add(limit_s)
        return right(limit_s, *arguments, **more)

    def widen(*_):
        raise AssertionError("one thread is the default")

    monkeypatch.setattr(loading, "within", within)
    monkeypatch.setattr(loading, "gains", widen)
    load_model(save(two_layers(), tmp_path, "net.onnx"), device="cpu", **options)
    assert found == limits_s
