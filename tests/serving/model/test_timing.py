"""Which batches are tried, which models take a known time, and who waits for native code."""

import threading
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import StringStringEntryProto

from serving.errors import ConfigurationError, InvalidRequest, ModelError
from serving.model import fork, judging, loading, time_limit, timing, trial
from serving.model.answers import labels_of
from serving.model.loading import load_model
from serving.model.picture_inputs import read_labels
from serving.model.timing import batch_sizes, has_bounded_time
from serving.tensors import Tensor, TensorSignature
from tests.proof.models import graph
from tests.serving.model.graphs import node, rows_model, save, two_layers
from tests.support.fakes import TIMEOUT_S, FakeClock

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


def test_usual_batch_is_timed_three_times_and_the_others_once(monkeypatch):
    monkeypatch.setattr(timing, "time", SimpleNamespace(monotonic=float, thread_time=float))
    sides = (Tensor("x", "FP32", (-1, 4)),), (Tensor("y", "FP32", (-1, 4)),)
    seen: list[int] = []
    feeds = {"x": np.ones((1, 4), np.float32)}
    found = timing.find_rows(run_of(seen), TensorSignature(*sides, True), feeds, 300)
    assert Counter(seen) == Counter([1, 2, 4, 8, 16, 32, 64, 128, 128, 128, 256, 300])
    assert found == (300, 51_200_000)


@pytest.mark.parametrize("error", [InvalidRequest, ModelError])
def test_batches_that_fail_are_not_among_the_quick_ones(error, monkeypatch):
    monkeypatch.setattr(timing, "time", SimpleNamespace(monotonic=float, thread_time=float))
    sides = (Tensor("x", "FP32", (-1, 4)),), (Tensor("y", "FP32", (-1, 4)),)
    run = run_of([])

    def takes_few(feeds):
        if len(feeds["x"]) > 6:
            raise error("more than six rows")
        return run(feeds)

    feeds = {"x": np.ones((1, 4), np.float32)}
    quick, _ = timing.find_rows(takes_few, TensorSignature(*sides, True), feeds, 300)
    assert quick == 4


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
    data = model.SerializeToString()
    fixed = b"\x9d\x06" + bytes(4) + b"\x99\x06" + bytes(8)  # of field 99
    numbers = b"\x98\x06\x7f" + b"\x98\x06\x80\x01"
    assert labels_of(data) == labels_of(fixed + numbers + data) == ("a",)


def run_of(seen, columns=4):
    """A model of rows that notes how many rows it runs."""

    def run(feeds):
        (rows,) = feeds.values()
        seen.append(len(rows))
        return [np.repeat(rows[:, :1], columns, axis=1)]

    return run


@pytest.mark.parametrize(("columns", "most"), [(1, 64), (4, 64), (8, 128)])
def test_trial_runs_no_batch_of_more_bytes_than_it_may(columns, most, monkeypatch):
    """A row has 16 bytes of inputs, or more of outputs; batches of two are tried anyway."""
    monkeypatch.setattr(trial, "MAX_BYTES", most)
    tensors = TensorSignature(
        (Tensor("x", "FP32", (-1, 4)),), (Tensor("y", "FP32", (-1, columns)),), False
    )
    seen: list[int] = []
    found = trial.try_rows(run_of(seen, columns), tensors, 64, clock=lambda: 0.0)
    assert found.tensors.is_batchable
    assert max(seen) == 4
    monkeypatch.setattr(trial, "MAX_BYTES", 1)
    seen.clear()
    trial.try_rows(run_of(seen, columns), tensors, 64, clock=lambda: 0.0)
    assert max(seen) == 2


def test_rank_that_a_graph_does_not_say_is_that_of_its_answers():
    tensors = TensorSignature((Tensor("x", "FP32", (-1, 4)),), (Tensor("y", "FP32", ()),), False)
    found = trial.try_rows(run_of([]), tensors, 8, obstacle="any")
    assert found.tensors.outputs[0].shape == (-1, -1)


def test_pair_is_tried_even_where_batches_are_of_one_row():
    tensors = TensorSignature(
        (Tensor("x", "FP32", (-1, 4)),), (Tensor("y", "FP32", (-1, 4)),), False
    )
    found = trial.try_rows(lambda feeds: [feeds["x"] + len(feeds["x"])], tensors, 1)
    assert found.line.startswith("batching off: rows depend on the batch: in one of 2, output y")


def test_description_of_pictures_may_take_a_mebibyte(tmp_path):
    (tmp_path / "labels.txt").write_text("a" * (1 << 20))
    assert read_labels(tmp_path / "labels.txt") == ("a" * (1 << 20),)
    (tmp_path / "labels.txt").write_text("a" * ((1 << 20) + 1))
    with pytest.raises(ConfigurationError, match="can't read"):
        read_labels(tmp_path / "labels.txt")


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
    found, right = set(), time_limit.within

    def within(limit_s, *arguments, **more):
        found.add(limit_s)
        return right(limit_s, *arguments, **more)

    def widen(*_):
        raise AssertionError("one thread is the default")

    for module in (loading, judging):
        monkeypatch.setattr(module, "within", within)
    monkeypatch.setattr(loading, "gains", widen)
    loaded = load_model(save(two_layers(), tmp_path, "net.onnx"), device="cpu", **options)
    assert found == limits_s
    assert loaded.backend == "onnxruntime"


@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        *((each, False) for each in (
            "Loop", "Scan", "If", "SequenceMap", "BeamSearch", "GreedySearch", "Sampling", "Range",
            "ConstantOfShape", "Expand", "Tile", "Resize", "Upsample", "Pad", "OneHot",
            "BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix",
            "NonMaxSuppression",
        )),
        ("Neg", True), ("Ifs", True), ("ATile", True),
    ],
)  # fmt: skip
def test_time_of_an_operator_is_known_unless_it_gets_sizes_as_values(operator, expected):
    onnx = rows_model(node(operator, ["x"], ["y"])).SerializeToString()
    assert has_bounded_time(onnx) is expected


@pytest.mark.parametrize(
    ("seconds", "num_runs", "shortest_s"),
    [
        ([0.9, 0.8, 0.7], 1, 0.9), ([0.9, 0.8, 0.7], 3, 0.7),
        ([0.9, 0.9, 0.5], 3, 0.5),  # its processor time is over then, and it counts
        ([2.0, 2.5, 0.5], 3, 2.0), ([1.1, 1.0, 0.2], 1, 1.0), ([1.5, 1.4, 0.9], 1, 1.4),
    ],
)  # fmt: skip
def test_shortest_of_some_runs_counts(seconds, num_runs, shortest_s, monkeypatch):
    """One that is quick enough ends them, and twice the most of processor time does."""
    clock, left = FakeClock(), [*seconds]
    monkeypatch.setattr(timing, "time", SimpleNamespace(monotonic=clock, thread_time=clock))
    found = timing._shortest_s(lambda: clock.advance(left.pop(0)), num_runs, 1.0)
    assert found == pytest.approx(shortest_s)
