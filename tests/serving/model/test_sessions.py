"""Sessions of ONNX Runtime: their options, their silence, and releases that lack something."""

import errno
import os
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from serving.errors import CorruptModel
from serving.model import onnx_runtime
from serving.model.onnx_runtime import (
    ON_CPU,
    SessionSettings,
    bare_run,
    inputs_of,
    new_session,
    output_dtypes,
    runtime,
    tensors_of,
    without_optimization,
)
from serving.tensors import DTYPES, Tensor, TensorSignature
from tests.serving.model.graphs import model, node, rows_model, two_layers, value

ROWS = np.ones((2, 4), np.float32)
SPINNING = {
    # release: how long threads of a run spin
    "1.26.1": {"session.intra_op.allow_spinning": "0"},
    "1.27.0": {"session.intra_op.spin_duration_us": "10", "session.force_spinning_stop": "1"},
    "2.0.0": {"session.intra_op.spin_duration_us": "10", "session.force_spinning_stop": "1"},
}


@pytest.fixture
def built(monkeypatch):
    """The options of each session that is built."""
    plain, seen = runtime().InferenceSession, []

    def open_session(data, options, **more):
        seen.append(options)
        return plain(data, options, **more)

    monkeypatch.setattr(runtime(), "InferenceSession", open_session)
    return seen


def entries(options):
    """Return the entries about spinning that a session has."""
    found = {}
    for name in {name for each in SPINNING.values() for name in each}:
        try:
            found[name] = options.get_session_config_entry(name)
        except RuntimeError:  # there is none
            continue
    return found


@pytest.mark.parametrize("release", SPINNING)
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_threads_of_a_run_spin_briefly_or_not_at_all(release, num_threads, built, monkeypatch):
    monkeypatch.setattr(runtime(), "__version__", release)
    settings = SessionSettings(device="cpu", num_threads=num_threads)
    new_session(two_layers().SerializeToString(), settings)
    (options,) = built
    assert options.intra_op_num_threads == num_threads
    assert options.inter_op_num_threads == 1
    assert entries(options) == (SPINNING[release] if num_threads > 1 else {})


def test_entries_of_a_model_go_before_ours(built):
    config = {"session.intra_op.spin_duration_us": "250", "session.disable_prepacking": "1"}
    settings = SessionSettings(device="cpu", num_threads=2, config=config)
    new_session(two_layers().SerializeToString(), settings)
    (options,) = built
    for name, text in config.items():
        assert options.get_session_config_entry(name) == text


@pytest.mark.parametrize("keeps_memory", [False, True])
@pytest.mark.parametrize("optimization", ["all", "none"])
def test_memory_and_optimizations_are_as_the_settings_say(keeps_memory, optimization, built):
    settings = SessionSettings(device="cpu", keeps_memory=keeps_memory, optimization=optimization)
    new_session(two_layers().SerializeToString(), settings)
    (options,) = built
    levels = runtime().GraphOptimizationLevel
    assert options.enable_cpu_mem_arena == keeps_memory
    assert not options.enable_mem_pattern
    expected = {"all": levels.ORT_ENABLE_ALL, "none": levels.ORT_DISABLE_ALL}
    assert options.graph_optimization_level == expected[optimization]


def test_failed_run_prints_nothing(capfd):
    """It is logged by the server, with the model's name."""
    run = bare_run(new_session(two_layers().SerializeToString()))
    with pytest.raises(Exception, match="invalid dimensions"):
        run(["y"], {"x": ROWS[:, :3]}, None)
    cast = rows_model(
        node("Reshape", ["x", "shape"], ["y"]), constants={"shape": np.array([3, -1])}
    )
    with pytest.raises(Exception, match="reshape"):
        bare_run(new_session(cast.SerializeToString()))(["y"], {"x": ROWS}, None)
    assert capfd.readouterr() == ("", "")


def test_file_is_never_read_as_another_format_than_was_proved(tmp_path):
    """Bytes 4 to 8 of an ONNX file can be those that ONNX Runtime knows its own format by."""
    options = runtime().SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "m.ort")
    runtime().InferenceSession(two_layers().SerializeToString(), options)
    own = (tmp_path / "m.ort").read_bytes()
    assert own[4:8] == b"ORTM"
    with pytest.raises(Exception, match="protobuf parsing failed"):
        new_session(own)
    settings = SessionSettings(config={"session.load_model_format": "ORT"})
    with pytest.raises(Exception, match="protobuf parsing failed"):
        new_session(own, settings)


def test_weights_in_the_current_directory_are_not_read(tmp_path, monkeypatch):
    """A model in memory has no folder; those beside its file are given as bytes."""
    monkeypatch.chdir(tmp_path)
    onnx.save(two_layers(), "m.onnx", save_as_external_data=True, location="w", size_threshold=0)
    data = (tmp_path / "m.onnx").read_bytes()
    with pytest.raises(Exception, match="External data"):
        new_session(data)
    session = new_session(data, weights={"w": (tmp_path / "w").read_bytes()})
    (expected,) = bare_run(new_session(two_layers().SerializeToString()))(["y"], {"x": ROWS}, None)
    np.testing.assert_array_equal(bare_run(session)(["y"], {"x": ROWS}, None)[0], expected)


def test_release_that_takes_no_weights_in_memory_is_named(monkeypatch):
    plain = runtime().SessionOptions

    class Options:
        """The options of ONNX Runtime 1.17."""

        def __getattr__(self, name):
            if name == "add_external_initializers_from_files_in_memory":
                raise AttributeError(name)
            return getattr(plain(), name)

    monkeypatch.setattr(runtime(), "SessionOptions", Options)
    with pytest.raises(CorruptModel, match="for which this ONNX Runtime is too old"):
        new_session(two_layers().SerializeToString(), weights={"w": b""})


def test_session_keeps_no_copy_of_its_file_and_falls_back_to_no_other_provider():
    session = new_session(two_layers().SerializeToString())
    assert session._model_bytes is None
    assert not session._enable_fallback


def test_axes_without_a_size_are_open_and_keep_their_names():
    inputs = [value("x", "FP32", ["N", 4, None, 0]), value("s", "INT64", []),
              value("t", "BYTES", ["N"])]  # fmt: skip
    outputs = [value("y", "FP32", ["N", 4, None, 0]), value("u", "BYTES", ["N"]),
               value("v", "INT64", [])]  # fmt: skip
    nodes = [node("Neg", ["x"], ["y"]), node("Identity", ["t"], ["u"]), node("Neg", ["s"], ["v"])]
    session = new_session(model(nodes, inputs, outputs).SerializeToString())
    found = tensors_of(session)
    assert [(each.name, each.datatype, each.shape) for each in found.inputs] == [
        ("x", "FP32", (-1, 4, -1, 0)), ("s", "INT64", ()), ("t", "BYTES", (-1,)),
    ]  # fmt: skip
    assert found.inputs == inputs_of(session)
    assert found.inputs[0].names == ("N", "", "", "")
    assert [each.name for each in found.outputs] == ["y", "u", "v"]
    assert not found.is_batchable
    dtypes = output_dtypes(session)
    assert {name: dtype.name for name, dtype in dtypes.items()} == {
        "y": "float32", "u": "object", "v": "int64",
    }  # fmt: skip


@pytest.fixture
def sources(monkeypatch):
    """What each session is built from: its kind, and its bytes."""
    plain, seen = runtime().InferenceSession, []

    def open_session(source, *arguments, **more):
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        seen.append((type(source), data))
        if isinstance(source, str):
            with pytest.raises(OSError, match="not permitted"):
                os.truncate(source, 0)
        return plain(source, *arguments, **more)

    monkeypatch.setattr(runtime(), "InferenceSession", open_session)
    return seen


def large(monkeypatch):
    monkeypatch.setattr(onnx_runtime, "_LARGE_BYTES", 100)
    return two_layers().SerializeToString()


def test_large_model_is_built_from_a_file_that_nobody_can_change(sources, monkeypatch):
    """Bytes are copied under the interpreter's lock, and all callers wait meanwhile."""
    before = set(os.listdir("/proc/self/fd"))
    session = new_session(data := large(monkeypatch))
    assert sources == [(str, data)]
    assert set(os.listdir("/proc/self/fd")) <= before
    (name,) = (each.name for each in session.get_inputs())
    expected = new_session(two_layers().SerializeToString()).run(None, {name: ROWS})
    np.testing.assert_array_equal(session.run(None, {name: ROWS})[0], expected[0])


def test_model_that_names_files_is_never_built_by_a_path(sources, monkeypatch):
    """ONNX Runtime would read what is beside it: descriptors of this process."""
    graph = two_layers()
    onnx.external_data_helper.set_external_data(graph.graph.initializer[0], "0")
    large(monkeypatch)
    with pytest.raises(Exception, match=r"(?i)external|file"):
        new_session(graph.SerializeToString())
    assert [kind for kind, _ in sources] == [bytes]


@pytest.mark.parametrize("step", ["memfd_create", "write"])
def test_model_is_built_from_its_bytes_where_there_is_no_such_file(step, sources, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    data = large(monkeypatch)
    monkeypatch.setattr(os, step, fail)
    new_session(data)
    assert sources == [(bytes, data)]


def test_model_is_built_from_its_bytes_where_open_files_have_no_path(sources, monkeypatch):
    """A jail may have no /proc."""
    data = large(monkeypatch)
    before = set(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(onnx_runtime, "_OPEN_FILE", "/nowhere/{}")
    new_session(data)
    assert sources == [(bytes, data)]
    assert set(os.listdir("/proc/self/fd")) <= before


def test_session_of_usual_settings_has_one_thread_and_keeps_no_memory(built):
    """The batcher has the cores, and what a run has had goes back."""
    assert asdict(SessionSettings()) == {
        "device": "auto", "precision": "fp32", "num_threads": 1, "keeps_memory": False,
        "optimization": "all", "provider_options": {}, "config": {},
    }  # fmt: skip
    new_session(two_layers().SerializeToString())
    (options,) = built
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert (options.enable_cpu_mem_arena, options.enable_mem_pattern) == (False, False)
    assert options.graph_optimization_level == runtime().GraphOptimizationLevel.ORT_ENABLE_ALL
    assert options.log_severity_level == 4
    assert entries(options) == {}


def test_file_of_a_model_that_can_not_be_built_is_closed(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no session")

    data = large(monkeypatch)
    before = set(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(runtime(), "InferenceSession", fail)
    with pytest.raises(RuntimeError, match="no session"):
        new_session(data)
    assert set(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize(("size", "kind"), [((8 << 20) - 1, bytes), (8 << 20, str)])
def test_model_of_8_mib_is_a_large_one(size, kind):
    data = bytes(size)
    with onnx_runtime._source(data) as source:
        assert type(source) is kind
        assert kind is bytes or Path(source).stat().st_size == size


@pytest.mark.parametrize(
    ("kind", "datatype"),
    [
        ("bool", "BOOL"), ("string", "BYTES"), ("float16", "FP16"), ("float", "FP32"),
        ("double", "FP64"), ("int8", "INT8"), ("int16", "INT16"), ("int32", "INT32"),
        ("int64", "INT64"), ("uint8", "UINT8"), ("uint16", "UINT16"), ("uint32", "UINT32"),
        ("uint64", "UINT64"),
    ],
)  # fmt: skip
def test_type_has_the_protocols_name(kind, datatype):
    each: Any = SimpleNamespace(name="x", type=f"tensor({kind})", shape=["N", 3])
    session: Any = SimpleNamespace(get_inputs=lambda: [each], get_outputs=lambda: [each])
    tensor = Tensor("x", datatype, (-1, 3), ("N", ""))
    assert tensors_of(session) == TensorSignature((tensor,), (tensor,), is_batchable=False)
    assert inputs_of(session) == (tensor,)
    assert output_dtypes(session) == {"x": DTYPES[datatype]}


def test_settings_for_the_cpu_are_the_usual_ones_there():
    assert replace(SessionSettings(), device="cpu") == ON_CPU


def test_optimizations_that_answer_otherwise_are_disabled(built):
    """A model's own entry goes before them, and one more may follow."""
    key, own = "optimization.disable_specified_optimizers", "ConstantFolding"
    data = two_layers().SerializeToString()
    plain = SessionSettings(config={"session.set_denormal_as_zero": "1"})
    given = SessionSettings(config={key: own})
    for settings in (plain, given):
        more = without_optimization(settings, "NchwcTransformer")
        assert more == replace(settings, config={**settings.config, key: more.config[key]})
        for each in (settings, more):
            new_session(data, each)
    usual = "DivMulFusion;GatherToSliceFusion"
    assert [each.get_session_config_entry(key) for each in built] == [
        usual, f"{usual};NchwcTransformer", own, f"{own};NchwcTransformer",
    ]  # fmt: skip
