"""Runs with large intermediate tensors keep their memory, others give it back."""

import os
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serving.errors import DeviceError, ModelError
from serving.model import loading, memory
from serving.model.engine import OnnxEngine
from serving.model.loading import load_model
from serving.system.libc import limit_free_memory
from serving.tensors import Tensor, TensorSignature
from tests.serving.model.graphs import node, rows_model, save, two_layers

needs_counts = pytest.mark.skipif(memory._num_faults() is None, reason="faults are not counted")
ONE = TensorSignature((Tensor("x", "FP32", (-1, 4)),), (), is_batchable=True)


def wide():
    """A network whose rows become 8 MB each: glibc maps and unmaps a batch of them."""
    return rows_model(
        node("Tile", ["x", "repeats"], ["repeated"]),
        node("Relu", ["repeated"], ["positive"]),
        node("ReduceMean", ["positive"], ["y"], axes=[1]),
        constants={"repeats": np.array([1, 500_000], np.int64)},
    )


@needs_counts
@pytest.mark.parametrize(
    ("graph", "settings", "keeps"),
    [
        (wide, "", True),
        (wide, "parameters { key: 'enable_mem_arena' value { string_value: '0' } }", False),
        (two_layers, "", False),
        (two_layers, "parameters { key: 'enable_mem_arena' value { string_value: '1' } }", True),
    ],
)
def test_model_keeps_its_memory_where_that_pays(graph, settings, keeps, tmp_path):
    path = save(graph(), tmp_path)
    (tmp_path / "config.pbtxt").write_text(settings)
    model = load_model(path)
    assert isinstance(model.engine, OnnxEngine)
    assert model.engine.settings.keeps_memory == keeps
    rows = np.ones((3, 4), np.float32)
    (answer,) = model.run({"x": rows})
    assert len(answer) == 3
    assert model.tensors.is_batchable


@needs_counts
def test_memory_that_a_load_has_freed_hides_no_fault():
    """Else one of some starts took the runs of a detector for such without faults: 12 ms, not 9."""
    limit_free_memory()  # as a server does first: blocks of 4 MiB and more are mapped
    freed = [np.ones(3 << 20, np.uint8) for _ in range(64)]
    above = np.ones(3 << 20, np.uint8)  # so that what is freed is no part of the heap's end
    freed.clear()

    def run(feeds):
        return [np.frombuffer(b"x" * (5 << 20), np.uint8)[:1]]  # NumPy would ask for huge pages

    assert memory.remaps_memory(run, ONE, {"x": np.ones((1, 4), np.float32)}, 1)
    assert len(above)


@pytest.mark.parametrize(("width", "times"), [(1_000, 0), (300_000, 1)])
def test_memory_of_loading_a_large_model_goes_back(width, times, tmp_path, monkeypatch):
    """Its file, the session of its check and their tensors are several times its weights."""
    trims = []
    monkeypatch.setattr(loading, "trim_memory", lambda: trims.append(1))
    weights = np.ones((4, width), np.float32)
    load_model(
        save(rows_model(node("MatMul", ["x", "w"], ["y"]), constants={"w": weights}), tmp_path)
    )
    assert len(trims) == times


def test_loaded_model_keeps_no_copy_of_its_file(tmp_path):
    model = load_model(save(two_layers(), tmp_path))
    assert isinstance(model.engine, OnnxEngine)
    with pytest.raises(DeviceError, match="the model's bytes are gone"):
        model.engine.widened(2)


@needs_counts
def test_faults_of_the_second_run_are_counted(monkeypatch):
    """The first one fills the heap."""
    counts, runs = iter([0, 5_000, 5_511, 6_000, 6_511, 7_000, 7_511, 0, 5_000, 5_512]), []
    monkeypatch.setattr(memory, "_num_faults", lambda: next(counts))
    feeds = {"x": np.zeros((1, 4), np.float32)}

    def run(given):
        runs.append(len(given["x"]))
        return []

    assert not memory.remaps_memory(run, ONE, feeds, 512)
    assert memory.remaps_memory(run, ONE, feeds, 512)
    assert runs == [2, 2, 8, 8, 32, 32, 2, 2]


@needs_counts
@pytest.mark.parametrize(("took_s", "sizes"), [(0.01, [2, 2, 8, 8, 32, 32]), (10.0, [2, 2])])
def test_larger_batches_are_looked_at_where_small_ones_are_quick(took_s, sizes, monkeypatch):
    now_s, runs = iter([0.0, took_s, took_s, took_s]), []
    monkeypatch.setattr(memory, "time", SimpleNamespace(thread_time=lambda: next(now_s)))
    monkeypatch.setattr(memory, "_num_faults", lambda: 0)

    def run(given):
        runs.append(len(given["x"]))
        return []

    assert not memory.remaps_memory(run, ONE, {"x": np.zeros((1, 4), np.float32)}, 512)
    assert runs == sizes


def test_nothing_is_found_out_without_inputs_or_where_runs_fail():
    def fails(feeds):
        raise ModelError()

    assert not memory.remaps_memory(fails, ONE, None, 8)
    assert not memory.remaps_memory(fails, ONE, {"x": np.zeros((1, 4), np.float32)}, 8)


def test_threads_of_a_run_end_with_a_fork(tmp_path, monkeypatch):
    path = save(two_layers(), tmp_path)
    model = load_model(path, num_threads=2)
    rows = np.ones((3, 4), np.float32)
    expected = load_model(path).run({"x": rows})
    np.testing.assert_allclose(model.run({"x": rows}), expected, rtol=1e-5)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with pytest.raises(DeviceError, match="its runs have 2 threads, which do not survive a fork"):
        model.run({"x": rows})


def test_settings_of_a_model_say_how_many_threads_its_runs_have(tmp_path):
    path = save(two_layers(), tmp_path)
    (tmp_path / "config.pbtxt").write_text(
        "parameters { key: 'intra_op_thread_count' value { string_value: '3' } }"
    )
    model = load_model(path, num_threads=2)
    assert isinstance(model.engine, OnnxEngine)
    assert model.engine.settings.num_threads == model.settings.num_threads == 3
    (tmp_path / "config.pbtxt").unlink()
    model = load_model(path)
    assert isinstance(model.engine, OnnxEngine)
    assert model.engine.settings.num_threads == 1


@needs_counts
@pytest.mark.parametrize(("took_s", "sizes"), [(0.049, [2, 2, 8, 8]), (0.051, [2, 2])])
def test_batch_of_50_ms_is_the_last_one(took_s, sizes, monkeypatch):
    now_s = iter([0.0, took_s, 1.0])
    runs: Any = []
    monkeypatch.setattr(memory, "time", SimpleNamespace(thread_time=lambda: next(now_s)))
    monkeypatch.setattr(memory, "_num_faults", lambda: 0)
    assert not memory.remaps_memory(
        lambda given: runs.append(len(given["x"])) or [], ONE, {"x": np.zeros((1, 4), "f4")}, 512
    )
    assert runs == sizes
