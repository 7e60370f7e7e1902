"""Engines that only a GPU can judge: their code, on the CPU's provider and a made-up CUDA."""

import ctypes
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.targets.catalogue import open_target
from benchmarks.targets.commands import ENGINE_KINDS
from benchmarks.targets.engine_kinds import BoundOnCuda, Graphs, Locked, engine_of, page_lock
from benchmarks.targets.target import NotMeasured, Setting, Spec
from serving.errors import DeviceError, ModelError
from serving.images import Images
from serving.model.engine import OnnxEngine
from serving.model.onnx_runtime import new_session
from serving.signature import DIGITS
from tests.benchmarks.patience import until_answered
from tests.support.fakes import classified

TOLERANCES = {"bound": 1e-5, "fp16": 1e-2}
"""Other sizes add up in another order; FP16 has three digits."""


@pytest.fixture(scope="module")
def onnx_bytes(models: Path) -> bytes:
    return (models / "digits" / "1" / "model.onnx").read_bytes()


@pytest.fixture(scope="module")
def reference(onnx_bytes: bytes) -> OnnxEngine:
    return OnnxEngine.open(onnx_bytes, DIGITS)


@pytest.mark.parametrize("kind", TOLERANCES)
def test_answers_are_those_of_the_plain_engine(
    kind: str, onnx_bytes: bytes, reference: OnnxEngine, images: Images
) -> None:
    engine = engine_of(kind, "cpu").open(onnx_bytes, DIGITS)
    for num_images in (1, 2, 3, 100, 256):
        answer = classified(engine, images[:num_images])
        assert answer.dtype == np.float32
        np.testing.assert_allclose(
            answer, classified(reference, images[:num_images]), atol=TOLERANCES[kind]
        )


def test_threads_do_not_share_an_answer(
    onnx_bytes: bytes, reference: OnnxEngine, images: Images
) -> None:
    engine = engine_of("bound", "cpu").open(onnx_bytes, DIGITS)
    batches = [images[first : first + 5] for first in range(0, 400, 5)]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(partial(classified, engine), batches))
    np.testing.assert_allclose(
        np.concatenate(answers), classified(reference, images[:400]), atol=TOLERANCES["bound"]
    )


def test_failed_run_is_a_model_error(onnx_bytes: bytes, images: Images) -> None:
    engine = engine_of("bound", "cpu").open(onnx_bytes, DIGITS)
    with pytest.raises(ModelError):
        classified(engine, images[:, :700])
    assert len(classified(engine, images[:3])) == 3


def test_each_kind_exists_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from serving.model.onnx_runtime import onnxruntime

    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    assert {kind: engine_of(kind, "cuda").device for kind in ENGINE_KINDS} == dict.fromkeys(
        ENGINE_KINDS, "cuda"
    )
    with pytest.raises(DeviceError, match="graphs exists on a GPU only"):
        engine_of("graphs", "cpu")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers[1:])
    with pytest.raises(DeviceError, match="no CUDAExecutionProvider"):
        engine_of("graphs", "cuda")


class CudaRuntime:
    """Stands in for libcudart.so.12, where 13 is not loaded."""

    def __init__(self, result: int) -> None:
        self._result = result
        self.locked: dict[int, int] = {}
        self.last_error = 0

    def load(self, name: str, mode: int) -> "CudaRuntime":
        if "13" in name or not mode & os.RTLD_NOLOAD:
            raise OSError(name)
        return self

    def cudaHostRegister(self, address: Any, size: Any, flags: int) -> int:  # noqa: N802
        self.last_error = self._result
        if not self._result:
            self.locked[address.value] = size.value
        return self._result

    def cudaHostUnregister(self, address: Any) -> None:  # noqa: N802
        del self.locked[address.value]

    def cudaGetLastError(self) -> None:  # noqa: N802
        self.last_error = 0


def test_page_lock_ends_with_its_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = CudaRuntime(result=0)
    monkeypatch.setattr(ctypes, "CDLL", runtime.load)
    buffer = np.zeros((4, 784), np.uint8)
    page_lock(buffer)
    assert runtime.locked == {buffer.ctypes.data: buffer.nbytes}
    del buffer
    assert not runtime.locked


def test_page_lock_that_fails_is_an_error_and_leaves_none_to_the_next_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime = CudaRuntime(result=2)
    monkeypatch.setattr(ctypes, "CDLL", runtime.load)
    with pytest.raises(DeviceError, match="CUDA failure 2"):
        page_lock(np.zeros((4, 784), np.uint8))
    assert runtime.last_error == 0


def test_page_lock_without_cuda_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str, mode: int) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", find)
    with pytest.raises(DeviceError, match="not loaded"):
        page_lock(np.zeros((4, 784), np.uint8))


def test_graphs_are_for_a_shape_each_in_locked_buffers(
    onnx_bytes: bytes, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, graphs = CudaRuntime(result=0), []
    monkeypatch.setattr(ctypes, "CDLL", runtime.load)
    monkeypatch.setattr(Graphs, "device", "cpu")
    session = new_session(onnx_bytes, OnnxEngine.provider)
    run = session.run_with_iobinding

    def noted(binding: Any, run_options: Any) -> None:
        graphs.append(run_options.get_run_config_entry("gpu_graph_id"))
        run(binding, run_options)

    monkeypatch.setattr(session, "run_with_iobinding", noted)
    engine = Graphs(session)
    for num_images in (1, 3, 4, 100):
        classified(engine, images[:num_images])
    assert graphs == ["1", "4", "4", "128"]
    assert sorted(runtime.locked.values()) == [784, 4 * 784, 128 * 784]
    assert not any(address % mmap.PAGESIZE for address in runtime.locked)
    assert Locked.is_locked
    assert not BoundOnCuda.is_locked


def test_server_runs_another_kind_of_engine(setting: Setting) -> None:
    with open_target(Spec(target="h2-bound"), setting) as running:
        trace = until_answered(lambda seconds: running.load.closed(2, 1, seconds))
        assert trace.num_errors == 0
    with (
        pytest.raises(NotMeasured, match="graphs exists on a GPU only"),
        open_target(Spec(target="h2-graphs"), setting),
    ):
        pass
