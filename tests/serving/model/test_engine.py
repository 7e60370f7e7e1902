"""The GPU's engine on the CPU's provider: everything but the kernels, without a GPU."""

import json
import logging
import os
import re
import threading
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from digit_classifier.predictions import DIGITS
from serving.__main__ import main
from serving.config import Device
from serving.errors import DeviceError, InvalidRequest, ModelError
from serving.model import time_limit
from serving.model.engine import ENGINES, CudaEngine, OnnxEngine, open_engine
from serving.model.onnx_runtime import ON_CPU, SessionSettings, new_session, runtime
from serving.model.time_limit import within
from tests.serving.model.graphs import model, node, rows_model, value
from tests.support.fakes import classified
from tests.support.gpu import NO_GPU

TOLERANCE = 1e-5
"""Batches of other sizes add up in another order."""


@pytest.fixture(scope="module")
def onnx_bytes(models):
    return (models / "digits" / "1" / "model.onnx").read_bytes()


@pytest.fixture(scope="module")
def engine(onnx_bytes):
    return cuda_engine(new_session(onnx_bytes))


def cuda_engine(session):
    engine = CudaEngine(session)
    engine.require(DIGITS)
    return engine


@pytest.fixture(scope="module")
def reference(onnx_bytes):
    return open_engine(onnx_bytes, ON_CPU, DIGITS)


@settings(max_examples=60, deadline=None)
@given(num_images=st.integers(1, 300), first=st.integers(0, 199))
def test_answers_are_those_of_the_plain_engine(engine, reference, images, num_images, first):
    batch = images[first : first + num_images]
    answer = classified(engine, batch)
    assert answer.shape == (len(batch), 10)
    assert answer.dtype == np.float32
    np.testing.assert_allclose(answer, classified(reference, batch), atol=TOLERANCE)


def test_device_sees_powers_of_two_only(onnx_bytes, images):
    session, sizes = new_session(onnx_bytes), []

    def run(outputs, inputs, run_options):
        sizes.append(len(inputs["images"]))
        return session.run(outputs, inputs, run_options)

    bare = SimpleNamespace(run=run, get_inputs=session.get_inputs, get_outputs=session.get_outputs)
    engine = cuda_engine(bare)
    for num_images in (1, 2, 3, 4, 5, 300):
        classified(engine, images[:num_images])
    assert sizes == [1, 2, 4, 4, 8, 512]


def test_forked_process_is_refused(engine, images, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with pytest.raises(DeviceError, match="fork"):
        classified(engine, images[:1])


def test_each_device_has_its_engine():
    assert {"auto", *(engine.device for engine in ENGINES)} == set(get_args(Device))


def test_failed_run_is_a_model_error_and_the_next_one_works(onnx_bytes, images):
    engine = cuda_engine(new_session(onnx_bytes))
    with pytest.raises(ModelError) as caught:
        classified(engine, images[:2, :700])
    assert "700" in str(caught.value.__cause__)
    assert "700" not in str(caught.value)
    assert len(classified(engine, images[:2])) == 2


@pytest.mark.parametrize(
    ("operator", "columns", "constant", "text"),
    [
        ("Reshape", 4, np.array([-1, 5]),
         "Reshape: The input tensor cannot be reshaped to the requested shape. "
         "Input shape:{2,4}, requested shape:{-1,5}"),
        ("Add", 4, np.zeros((1, 3), np.float32),
         "Add: Attempting to broadcast an axis by a dimension other than 1. 3 by 4"),
        ("MatMul", 4, np.zeros((3, 2), np.float32), "MatMul: MatMul dimension mismatch"),
        ("Gather", 4, np.array([9]), "Gather: indices element out of data bounds, idx=9 must be "
         "within the inclusive range [-2,1]"),
    ],
)  # fmt: skip
def test_values_that_do_not_fit_are_refused_by_the_operators_name(
    operator, columns, constant, text
):
    graph = rows_model(
        node(operator, ["x", "c"], ["y"]), num_columns="M", constants={"c": constant}
    )
    engine = open_engine(graph.SerializeToString(), ON_CPU)
    with pytest.raises(InvalidRequest) as refused:
        engine.run({"x": np.ones((2, columns), np.float32)})
    assert str(refused.value) == f"the model does not take these values: {text}"


def test_memory_that_runs_out_is_not_the_callers_mistake():
    graph = model(
        [node("Range", ["zero", "x", "one"], ["y"])], [value("x", "INT64", [])],
        [value("y", "INT64", None)], {"zero": np.array(0), "one": np.array(1)},
    )  # fmt: skip
    engine = open_engine(graph.SerializeToString(), ON_CPU)
    with pytest.raises(ModelError):
        engine.run({"x": np.array(2**44)})


def listed(monkeypatch, open_session):
    """Replace ONNX Runtime by one that lists CUDA, and opens sessions so."""
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(runtime(), "get_available_providers", lambda: providers)
    monkeypatch.setattr(runtime(), "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(runtime(), "InferenceSession", open_session)


@pytest.fixture
def silent_fallback(monkeypatch):
    """ONNX Runtime where CUDA is listed but can't load: it says nothing and takes the CPU."""
    plain = runtime().InferenceSession
    listed(
        monkeypatch,
        lambda model, options, providers, **_: plain(model, providers=["CPUExecutionProvider"]),
    )


@pytest.mark.usefixtures("silent_fallback")
def test_silent_fallback_is_an_error_on_cuda_and_a_warning_on_auto(onnx_bytes, images, caplog):
    with pytest.raises(DeviceError, match="ONNX Runtime chose CPUExecutionProvider"):
        open_engine(onnx_bytes, SessionSettings(device="cuda"), DIGITS)
    with caplog.at_level(logging.WARNING):
        engine = open_engine(onnx_bytes, signature=DIGITS)
    assert "serving on the CPU: CUDA can't be used" in caplog.text
    assert engine.device == "cpu"
    assert len(classified(engine, images[:3])) == 3


def test_onnx_runtime_without_cuda_is_named_with_the_package_to_install(onnx_bytes, monkeypatch):
    monkeypatch.setattr(runtime(), "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(DeviceError, match=r"CUDAExecutionProvider.*install '\.\[serve-gpu\]'"):
        open_engine(onnx_bytes, SessionSettings(device="cuda"), DIGITS)


@pytest.fixture
def no_driver(monkeypatch):
    """ONNX Runtime with CUDA and without a driver: the messages of 1.26."""
    plain = runtime().InferenceSession

    def open_session(model, options, providers, **settings):
        if providers == ["CPUExecutionProvider"]:
            return plain(model, options, providers=providers)
        if settings.get("enable_fallback", 1):
            print("*************** EP Error ***************")
            raise RuntimeError("[ONNXRuntimeError] : 2 : Conflicting session configuration: ...")
        raise RuntimeError(
            "/core/providers/cuda/cuda_call.cc:122 std::conditional_t<THRW, void> CudaCall(ERRTYPE)"
            " [with ERRTYPE = cudaError; bool THRW = true] CUDA failure 35: CUDA driver version is "
            "insufficient for CUDA runtime version ; GPU=-1 ; hostname=vm ; file=cuda.cc ; line=336"
        )

    listed(monkeypatch, open_session)


@pytest.mark.usefixtures("no_driver")
def test_missing_driver_is_the_reason_given(onnx_bytes):
    with pytest.raises(DeviceError) as caught:
        open_engine(onnx_bytes, SessionSettings(device="cuda"), DIGITS)
    assert str(caught.value) == (
        "CUDA can't be used: CUDA failure 35: "
        "CUDA driver version is insufficient for CUDA runtime version"
    )


@pytest.mark.usefixtures("no_driver")
def test_missing_driver_leaves_stdout_to_the_program(models, capsys):
    assert main(["info", "--models", str(models), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["device"] == "cpu"


def test_cuda_multiplies_in_float32(onnx_bytes, monkeypatch):
    asked = []

    def open_session(model, options, **settings):
        asked.append(settings)
        raise RuntimeError("CUDA failure 35: none here")

    listed(monkeypatch, open_session)
    with pytest.raises(DeviceError):
        open_engine(onnx_bytes, SessionSettings(device="cuda"), DIGITS)
    (settings,) = asked
    assert settings["provider_options"] == [{"use_tf32": "0"}]  # else golden samples may differ


@pytest.mark.usefixtures("no_gpu")
def test_cuda_without_a_gpu_ends_with_one_line(models, capfd):
    ports = ["--port", "0", "--metrics-port", "0"]
    assert main(["serve", "--models", str(models), *ports, "--device", "cuda"]) == 2
    out, err = capfd.readouterr()
    (line,) = err.splitlines()
    assert re.match(f"digit-serving: .*({NO_GPU})", line)
    assert not out


def test_inputs_without_a_batch_are_not_padded():
    x, y = (value(name, "FP32", [3, 2]) for name in "xy")
    graph = model([node("Neg", ["x"], ["y"])], [x], [y]).SerializeToString()
    (answer,) = CudaEngine(new_session(graph)).run({"x": np.ones((3, 2), np.float32)})
    assert answer.shape == (3, 2)


# The limit of a step of loading counts the step's own work, not its waits


class Step:
    """A step that shows its processor time as a test likes, and ends after some looks at it."""

    def __init__(self, used_s, num_looks=10_000):
        self._used_s, self._num_looks = used_s, num_looks
        self.num_seen = 0
        self.ended = threading.Event()

    def clock(self):
        self.num_seen += 1
        if self.num_seen >= self._num_looks:
            self.ended.set()
        return self._used_s(self.num_seen)

    def run(self, monkeypatch):
        monkeypatch.setattr(time_limit, "_thread_clock", lambda: self.clock)
        try:
            return within(10.0, self.ended.wait, look_s=1e-4)
        finally:
            self.ended.set()


def test_step_that_gets_little_processor_time_goes_on(monkeypatch):
    step = Step(lambda looks: looks // 100 * 0.1, num_looks=1000)  # waits for 25 s at a time
    assert step.run(monkeypatch)
    assert step.num_seen >= 1000


def test_endless_step_is_left_behind(monkeypatch):
    step = Step(lambda looks: looks * 0.25)
    with pytest.raises(TimeoutError, match="is not ready after 10 s of processor time"):
        step.run(monkeypatch)
    assert step.num_seen == 41


def test_step_that_hangs_is_left_behind(monkeypatch):
    step = Step(lambda looks: 0.5)
    with pytest.raises(TimeoutError, match="makes no progress"):
        step.run(monkeypatch)
    assert step.num_seen == 241


def test_step_that_waits_takes_no_processor_time():
    assert within(0.02, partial(time.sleep, 0.1), look_s=0.005) is None


def test_step_is_measured_by_the_clock_where_threads_have_none(monkeypatch):
    monkeypatch.delattr(time, "pthread_getcpuclockid")
    ended = threading.Event()
    with pytest.raises(TimeoutError, match=r"is not ready after 0\.02 s"):
        within(0.02, ended.wait, look_s=0.005)
    ended.set()


def test_step_that_takes_long_says_so_once(monkeypatch):
    monkeypatch.setattr("serving.model.time_limit.SLOW_S", 0.0)
    noted, looked = [], threading.Event()

    def note():
        noted.append(1)
        looked.set()

    within(10.0, looked.wait, look_s=1e-3, on_slow=note)
    assert noted == [1]


def test_step_that_computes_without_end_is_left_behind():
    ended = threading.Event()

    def compute():
        while not ended.is_set():
            pass

    with pytest.raises(TimeoutError, match="processor time"):
        within(0.1, compute, look_s=0.01)
    ended.set()


def test_only_a_card_has_one_run_at_a_time():
    """More would make its batches smaller; cores have a run each."""
    facts = [(each.device, each.precisions, each.max_concurrent_runs) for each in ENGINES]
    assert facts == [("cuda", ("fp32",), 1), ("cpu", ("fp32", "int8"), None)]


FALLBACK = "session.disable_cpu_ep_fallback"


def entry_of(options, name):
    try:
        return options.get_session_config_entry(name)
    except RuntimeError:  # there is none
        return None


@pytest.mark.parametrize(("signature", "expected"), [(DIGITS, "1"), (None, None)])
def test_graph_of_images_is_on_the_card_as_a_whole(signature, expected, onnx_bytes, monkeypatch):
    """Those of others may leave the arithmetic of shapes to the CPU."""
    asked = []

    def open_session(model, options, **settings):
        asked.append((entry_of(options, FALLBACK), settings["provider_options"]))
        raise RuntimeError("CUDA failure 35: none here")

    listed(monkeypatch, open_session)
    own = SessionSettings(device="cuda", provider_options={"gpu_mem_limit": "9"})
    with pytest.raises(DeviceError):
        open_engine(onnx_bytes, own, signature)
    assert asked == [(expected, [{"use_tf32": "0", "gpu_mem_limit": "9"}])]


def test_card_is_tried_with_an_image_before_it_serves(onnx_bytes, monkeypatch):
    plain = new_session(onnx_bytes)
    seen = []

    def run(outputs, inputs, run_options):
        seen.append(
            {name: (each.shape, each.dtype.name, each.any()) for name, each in inputs.items()}
        )
        return [np.zeros((1, 10), np.float32)]

    session = SimpleNamespace(
        run=run, get_inputs=plain.get_inputs, get_outputs=plain.get_outputs,
        get_providers=lambda: ["CUDAExecutionProvider"], disable_fallback=lambda: None,
    )  # fmt: skip
    listed(monkeypatch, lambda *_, **__: session)
    given = SessionSettings(device="auto", config={"session.set_denormal_as_zero": "1"})
    engine = open_engine(onnx_bytes, given, DIGITS)
    assert seen == [{"images": ((1, 784), "uint8", False)}]
    assert isinstance(engine, CudaEngine)
    assert engine.settings == replace(
        given, device="cuda", provider_options={"use_tf32": "0"},
        config={FALLBACK: "1", "session.set_denormal_as_zero": "1"},
    )  # fmt: skip
    assert engine.keeping_memory() is engine


def test_engine_is_built_again_with_one_setting_changed(onnx_bytes):
    given = SessionSettings(device="auto", provider_options={"use_tf32": "0"}, config={"a": "b"})
    engine = OnnxEngine.open(onnx_bytes, given, DIGITS)
    own = replace(given, device="cpu", provider_options={})
    assert engine.settings == own
    engine.has_bounded_time = True
    keeping, wide = engine.keeping_memory(), engine.widened(2)
    assert keeping.settings == replace(own, keeps_memory=True)
    assert wide.settings == replace(own, num_threads=2)
    for each in (keeping, wide):
        assert each.tensors is engine.tensors
        assert each.has_bounded_time
    assert keeping.keeping_memory() is keeping
    engine.wide = wide
    engine.drop_source()
    assert engine.keeping_memory() is engine
    for each in (engine, wide):
        with pytest.raises(DeviceError, match="the model's bytes are gone"):
            each.widened(3)


def test_runs_that_are_ended_are_those_in_progress(onnx_bytes):
    engine = OnnxEngine.open(onnx_bytes, ON_CPU, DIGITS)
    ended: list[int] = []
    wide: Any = SimpleNamespace(end_runs=lambda: ended.append(1))
    engine.wide, before = wide, engine._run_options
    engine.end_runs()
    assert before.terminate
    assert not engine._run_options.terminate
    assert ended == [1]


def test_only_a_run_that_is_alone_is_wide(onnx_bytes, images, monkeypatch):
    engine = OnnxEngine.open(onnx_bytes, ON_CPU, DIGITS)
    wide: Any = SimpleNamespace(_pid=os.getpid(), _run=lambda options, feeds: ["wide"])
    engine.wide = wide
    monkeypatch.setattr(engine._alone, "is_wide", lambda size: True)
    for options, is_wide in (({}, False), ({"is_alone": False}, False), ({"is_alone": True}, True)):
        run, _ = engine.stoppable(**options)
        assert isinstance(run({"images": images[:1]})[0], str) == is_wide
