"""Engines in ways that serving leaves out: bound and page-locked buffers, CUDA graphs, TF32, FP16.

Nothing here has run on a GPU: `make verify-gpu` does that. On the CPU "bound" and "fp16" run too,
which rehearses their code, and says nothing of a GPU's speed.
"""

import ctypes
import mmap
import os
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Self

import numpy as np

from serving.errors import ConfigurationError, DeviceError, ModelError
from serving.images import Images
from serving.model.engine import CudaEngine, OnnxEngine
from serving.model.onnx_runtime import onnxruntime
from serving.predictions import Probabilities
from serving.signature import INPUT, OUTPUT, Signature
from serving.tensors import Array, Feeds

_CUDA_RUNTIMES = ("libcudart.so.13", "libcudart.so.12")
"""The names of CUDA's runtime library, of which ONNX Runtime has loaded one."""


def page_lock(buffer: Images) -> None:
    """Lock a buffer's pages in memory, so that the device copies from it without staging.

    They stay locked until the buffer goes. Never run on a GPU.

    Raises:
        DeviceError: there is no CUDA here, or it can't lock them.
    """
    address = ctypes.c_void_p(buffer.ctypes.data)
    for name in _CUDA_RUNTIMES:
        with suppress(OSError):
            runtime = ctypes.CDLL(name, os.RTLD_NOLOAD)
            if error := runtime.cudaHostRegister(address, ctypes.c_size_t(buffer.nbytes), 0):
                runtime.cudaGetLastError()  # forgets the error, or the next kernel would find it
                raise DeviceError(f"pages can't be locked: CUDA failure {error}")
            weakref.finalize(buffer, runtime.cudaHostUnregister, address).atexit = False
            return
    raise DeviceError("pages can't be locked: CUDA's runtime library is not loaded")


class _Shape:
    """Buffers of one batch size: on the host, and on the device, where they are bound once."""

    def __init__(self, session: Any, device: str, size: int, run_options: Any) -> None:
        (taken,), (given,) = session.get_inputs(), session.get_outputs()
        # On pages of its own: two locked buffers must not share one.
        memory = mmap.mmap(-1, size * taken.shape[1], mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.padded = np.frombuffer(memory, np.uint8).reshape(size, -1)
        """(size, pixels): what the next run copies to the device."""
        self._session, self._run_options = session, run_options
        allocate = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        self._input = allocate(self.padded.shape, np.uint8, device, 0)
        self._output = allocate((size, given.shape[1]), np.float32, device, 0)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(INPUT, self._input)
        self._binding.bind_ortvalue_output(OUTPUT, self._output)

    def run(self, images: Images) -> Probabilities:
        self.padded[: len(images)] = images
        self._input.update_inplace(self.padded)  # one copy to the device
        self._session.run_with_iobinding(self._binding, self._run_options)
        # On the CPU numpy() may be a view of the buffer that the next run writes.
        return np.array(self._output.numpy()[: len(images)])


class Bound(OnnxEngine):
    """Runs in buffers that stay on the device, a pair for each power of two; one run at a time."""

    is_locked = False
    """Whether the host's buffers are in page-locked memory."""

    def __init__(self, session: Any, run_options: Any = None) -> None:
        """See `OnnxEngine`."""
        super().__init__(session, run_options)
        self._session = session
        self._lock = threading.Lock()
        self._shapes: dict[int, _Shape] = {}

    def run(self, feeds: Feeds) -> list[Array]:
        """See `Engine.run`."""
        images = feeds[INPUT]
        size = 1 << (len(images) - 1).bit_length()
        try:
            with self._lock:
                if size not in self._shapes:
                    self._shapes[size] = self._new_shape(size)
                return [self._shapes[size].run(images)]
        except DeviceError:
            raise
        except Exception as err:  # ONNX Runtime's own exceptions have no common base
            raise ModelError() from err

    def _new_shape(self, size: int) -> _Shape:
        options = self._run_options
        if "enable_cuda_graph" in getattr(self, "provider_options", {}):
            options = onnxruntime.RunOptions()
            options.add_run_config_entry("gpu_graph_id", str(size))  # a graph for each shape
        shape = _Shape(self._session, self.device, size, options)
        if self.is_locked:
            page_lock(shape.padded)
        return shape


class BoundOnCuda(Bound, CudaEngine):
    """`Bound` on a GPU. Never run on one."""


class Locked(BoundOnCuda):
    """The same from page-locked memory. Never run on a GPU."""

    is_locked = True


class Graphs(Locked):
    """The same, as a CUDA graph for each shape, which each thread captures. Never run on a GPU."""

    provider_options: Mapping[str, str] = {**CudaEngine.provider_options, "enable_cuda_graph": "1"}


class Tf32(CudaEngine):
    """The plain engine, multiplying in TF32. Never run on a GPU."""

    provider_options: Mapping[str, str] = {"use_tf32": "1"}


class Half(OnnxEngine):
    """Runs the model with weights and activations in FP16; the probabilities stay float32."""

    @classmethod
    def open(cls, model: bytes, signature: Signature | None, run_options: Any = None) -> Self:
        """See `OnnxEngine.open`.

        Raises:
            ConfigurationError: the package onnx is missing.
        """
        return super().open(_in_fp16(model), signature, run_options)


class HalfOnCuda(Half, CudaEngine):
    """`Half` on a GPU. Never run on one."""


def _in_fp16(model: bytes) -> bytes:
    try:
        import onnx
        from onnxruntime.transformers.float16 import convert_float_to_float16
    except ImportError as err:
        raise ConfigurationError("fp16 needs the package onnx: extra train or train-gpu") from err
    converted = convert_float_to_float16(onnx.load_from_string(model), keep_io_types=True)
    return bytes(converted.SerializeToString())


_ENGINES: Mapping[str, Mapping[str, type[OnnxEngine]]] = {
    "cuda": {"bound": BoundOnCuda, "locked": Locked, "graphs": Graphs, "tf32": Tf32,
             "fp16": HalfOnCuda},
    "cpu": {"bound": Bound, "fp16": Half},
}  # fmt: skip
"""By device and by name in `commands.ENGINE_KINDS`."""


def engine_of(kind: str, device: str) -> type[OnnxEngine]:
    """Return the engine of a kind.

    Args:
        kind: a name of `commands.ENGINE_KINDS`.
        device: "cpu" or "cuda".

    Raises:
        DeviceError: it exists on a GPU only, or ONNX Runtime is not for this device.
    """
    if kind not in _ENGINES[device]:
        raise DeviceError(f"{kind} exists on a GPU only")
    engine = _ENGINES[device][kind]
    if engine.provider not in onnxruntime.get_available_providers():
        raise DeviceError(f"this ONNX Runtime has no {engine.provider}")
    return engine
