"""A call that is alone has several threads, where that was measured to gain."""

import time
from types import SimpleNamespace

import numpy as np
import pytest

from serving.errors import CorruptModel, DeadlineExceeded, InvalidRequest
from serving.model import loading, verdicts
from serving.model import wide as module
from serving.model.engine import OnnxEngine
from serving.model.loading import load_model
from serving.model.wide import gains, usual_feeds
from serving.system.cores import usable_cores
from serving.tensors import Tensor, TensorSignature
from tests.serving.model.graphs import node, rows_model, save, two_layers
from tests.support.fakes import FakeClock

ROW = {"x": np.ones((1, 4), np.float32)}
needs_cores = pytest.mark.skipif(usable_cores() < 2, reason="one core has one thread")


def compute(seconds):
    """Keep this thread's core busy for some of its own time."""
    until_s = time.thread_time() + seconds
    while time.thread_time() < until_s:
        pass


class Wide:
    """An engine whose runs leave this thread some of the work."""

    def __init__(self, seconds):
        self.seconds = list(seconds)

    def run(self, feeds):
        compute(self.seconds.pop(0))
        return []


def narrow(seconds):
    """Runs of one thread."""
    return lambda feeds: compute(seconds) or []


def no_engine():
    raise AssertionError("no engine is built for short runs")


def test_short_runs_stay_on_one_thread():
    assert gains(("m", "1"), narrow(0.0001), no_engine, ROW) is None


def test_many_short_rows_may_gain_together():
    wide = Wide([0.01] * 100)

    def run(feeds):
        return narrow(0.0001 if feeds is ROW else 0.02)(feeds)

    assert gains(("m", "1"), run, lambda: wide, ROW, {"x": np.zeros((32, 4))}) is wide
    assert gains(("m", "1"), narrow(0.0001), no_engine, ROW, {"x": np.zeros((32, 4))}) is None


def test_work_that_other_threads_share_is_a_gain():
    wide = Wide([0.02, 0.02, 0.01])  # to reserve memory; before others had a core; shared
    assert gains(("m", "1"), narrow(0.02), lambda: wide, ROW) is wide
    assert not wide.seconds


def test_work_that_one_thread_does_is_none():
    assert gains(("m", "1"), narrow(0.01), lambda: Wide([0.01] * 100), ROW) is None


def test_others_may_have_no_core_for_a_while():
    wide = Wide([0.02] * 8 + [0.01])
    assert gains(("m", "1"), narrow(0.02), lambda: wide, ROW) is wide


def test_sizes_that_callers_choose_are_usual_ones():
    inputs = Tensor("x", "FP32", (-1, 4)), Tensor("ids", "INT64", (-1, -1, 3))
    feeds = {"x": np.ones((1, 4), np.float32), "ids": np.ones((1, 2, 3), np.int64)}
    shapes = []

    def run(given):
        shapes.append({name: array.shape for name, array in given.items()})
        return []

    usual = usual_feeds(run, TensorSignature(inputs, (), is_batchable=True), feeds)
    assert {name: array.shape for name, array in usual.items()} == shapes[0]
    assert shapes == [{"x": (1, 4), "ids": (1, 64, 3)}]

    def refuse(given):
        raise InvalidRequest("of these sizes none")

    assert usual_feeds(refuse, TensorSignature(inputs, (), is_batchable=True), feeds) is feeds


def test_pictures_that_are_not_batched_are_not_many():
    """64 of them took 1.3 GB in an arena, which kept it."""
    inputs = (Tensor("x", "FP32", (-1, 224, 224, 3)),)
    feeds = {"x": np.ones((1, 224, 224, 3), np.float32)}
    assert usual_feeds(no_engine, TensorSignature(inputs, (), is_batchable=False), feeds) is feeds


def multiplications():
    """Rows that are multiplied by large matrices, some 1 ms a row."""
    matrix = np.full((512, 512), 1 / 512, np.float32)
    names = [f"y{number}" for number in range(4)]
    tiled = node("Tile", ["x", "repeats"], ["tall"])
    shaped = node("Reshape", ["tall", "shape"], ["y0"])
    layers = [
        node("MatMul", [names[at], "matrix"], [names[at + 1]]) for at in range(len(names) - 1)
    ]
    mean = node("ReduceMean", [names[-1]], ["y"], axes=[1, 2])
    constants = {
        "matrix": matrix,
        "repeats": np.array([1, 32 * 256], np.int64),
        "shape": np.array([-1, 64, 512], np.int64),
    }
    return rows_model(tiled, shaped, *layers, mean, constants=constants)


@needs_cores
def test_a_long_run_is_wide_and_answers_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_TRIES_S", 20.0)  # the cores may be busy
    path = save(multiplications(), tmp_path)
    model = load_model(path, most_threads=2)
    assert isinstance(model.engine, OnnxEngine)
    assert model.engine.wide is not None
    assert model.engine.wide.settings.num_threads == 2
    row = {"x": np.arange(4, dtype=np.float32)[np.newaxis]}
    run, _ = model.stoppable(is_alone=True)
    assert np.allclose(run(row)[0], model.run(row)[0], rtol=1e-5)
    run, end = model.stoppable(is_alone=True)
    end()
    with pytest.raises(DeadlineExceeded):
        run(row)


@needs_cores
def test_what_a_start_found_is_not_measured_again(tmp_path, monkeypatch):
    monkeypatch.setenv(verdicts.VARIABLE, str(tmp_path / "verdicts"))
    monkeypatch.setattr(module, "_TRIES_S", 20.0)  # the cores may be busy
    path = save(multiplications(), tmp_path)
    first = load_model(path, most_threads=2)
    monkeypatch.setattr(loading, "gains", lambda *_: no_engine())
    again = load_model(path, most_threads=2)
    for each in (first, again):
        assert isinstance(each.engine, OnnxEngine)
        assert each.engine.wide is not None
    row = {"x": np.arange(4, dtype=np.float32)[np.newaxis]}
    assert np.allclose(again.run(row)[0], first.run(row)[0], rtol=1e-5)
    with pytest.raises(CorruptModel, match="no engine is built"):  # not tried with so many threads
        load_model(path, most_threads=3)


@pytest.mark.parametrize(
    ("graph", "settings", "options"),
    [
        (two_layers, "", {"most_threads": 2}),
        (multiplications, "", {}),
        (multiplications, "", {"most_threads": 2, "num_threads": 2}),
        (
            multiplications,
            "parameters { key: 'intra_op_thread_count' value { string_value: '1' } }",
            {"most_threads": 2},
        ),
    ],
    ids=["short", "not asked", "all runs", "one thread"],
)
def test_others_have_no_second_session(graph, settings, options, tmp_path):
    path = save(graph(), tmp_path)
    (tmp_path / "config.pbtxt").write_text(settings)
    model = load_model(path, **options)
    assert isinstance(model.engine, OnnxEngine)
    assert model.engine.wide is None


@pytest.fixture
def clock(monkeypatch):
    """The processor time of this thread, which only runs of the test move."""
    clock = FakeClock()
    monkeypatch.setattr(module, "time", SimpleNamespace(thread_time=clock, monotonic=clock))
    return clock


class Timed:
    """Runs that take so long each, by the clock."""

    def __init__(self, clock, seconds):
        self.num_runs = 0
        self._clock, self._seconds = clock, seconds

    def run(self, feeds):
        self.num_runs += 1
        self._clock.advance(self._seconds)
        return []


@pytest.mark.parametrize(
    ("narrow_s", "wide_s", "is_gain", "num_narrow", "num_wide"),
    [
        (0.00039, 0.0, False, 2, 0),  # waking a thread takes as long
        (0.00041, 0.0003, True, 2, 2),
        (1.0, 0.84, True, 2, 2),
        (1.0, 0.86, False, 2, 6),  # the first reserves memory, and five are compared
        (0.015, 0.015, False, 2, 15),  # or more, for 0.2 s
    ],
)
def test_run_is_worth_threads_if_its_own_does_85_percent_of_it_at_most(
    narrow_s, wide_s, is_gain, num_narrow, num_wide, clock
):
    narrow, wide = Timed(clock, narrow_s), Timed(clock, wide_s)
    found = gains(("m", "1"), narrow.run, lambda: wide, ROW)
    assert found is (wide if is_gain else None)
    assert (narrow.num_runs, wide.num_runs) == (num_narrow, num_wide)


@pytest.mark.parametrize(("most", "rows"), [(31, None), (32, 32), (512, 32)])
def test_call_of_32_rows_may_gain_where_a_row_is_too_short(most, rows, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(loading, "gains", lambda *given: asked.append(given))
    path = save(two_layers(), tmp_path, "net.onnx")
    load_model(path, device="cpu", max_batch_size=most, most_threads=2)
    ((label, _, _, feeds, many),) = asked
    assert (label, feeds["x"].shape) == (("net", "1"), (1, 4))
    assert (many and many["x"].shape) == (rows and (rows, 4))


@pytest.mark.parametrize(("size", "is_usual"), [(2048, True), (2049, False)])
def test_inputs_of_usual_sizes_have_a_mebibyte_at_most(size, is_usual):
    inputs = (Tensor("ids", "INT64", (-1, -1, size)),)
    feeds = {"ids": np.ones((1, 2, size), np.int64)}
    usual = usual_feeds(lambda given: [], TensorSignature(inputs, (), is_batchable=True), feeds)
    assert usual["ids"].shape == ((1, 64, size) if is_usual else (1, 2, size))
