"""Runs the model on a GPU: fixed shapes, in buffers that stay instead of new ones for each run."""

import ctypes
import os
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from serving.config import BatchingConfig
from serving.errors import ModelError
from serving.images import IMAGE_BYTES, Images
from serving.predictions import NUM_CLASSES, Probabilities

if TYPE_CHECKING:
    from serving.model.onnx_runtime import onnxruntime

INPUT, OUTPUT = "images", "probabilities"
MAX_BUCKET = BatchingConfig().max_batch_size
"""The largest shape. Larger batches run in several."""
_CUDA_RUNTIMES = ("libcudart.so.13", "libcudart.so.12")
"""The names of the library, of which ONNX Runtime has loaded one."""


def buckets(max_size: int) -> tuple[int, ...]:
    """The sizes that runs have: powers of two, and `max_size` as the last."""
    return (*(1 << power for power in range((max_size - 1).bit_length())), max_size)


class CudaEngine:
    """An ONNX Runtime session whose input and output stay on the device, a pair a bucket.

    A batch is padded to the next bucket, so the device sees few shapes and its memory is bounded.
    Without CUDA graphs: ONNX Runtime keeps them by thread, and runs come from any.
    """

    def __init__(
        self,
        session: "onnxruntime.InferenceSession",
        device: str = "cuda",
        max_bucket: int = MAX_BUCKET,
        run_options: "onnxruntime.RunOptions | None" = None,
    ) -> None:
        """Allocate every bucket and run each once: the first run of a shape is the slow one.

        Args:
            session: one that takes `images` (N, 784) uint8 and gives `probabilities` (N, 10).
            device: where the buffers lie, "cuda"; "cpu" runs the same code without a GPU.
            max_bucket: the largest run, in images.
            run_options: of all its runs.

        Raises:
            ModelError: a run failed.
        """
        self.device = device
        self._lock = threading.Lock()  # the buffers are shared: one run at a time
        self._buckets = [
            _Bucket(session, device, size, run_options) for size in buckets(max_bucket)
        ]
        for bucket in self._buckets:
            self.run(np.zeros((bucket.size, IMAGE_BYTES), np.uint8))

    def run(self, images: Images) -> Probabilities:
        """See `Engine.run`; more images than the largest bucket run in several."""
        step = self._buckets[-1].size
        parts = [images[i : i + step] for i in range(0, len(images), step)]
        try:
            # On one line, as in LoadedModel.run, so that no exception leaves it locked.
            with self._lock: answers = [self._bucket(len(part)).run(part) for part in parts]  # noqa: E701  # fmt: skip
        except Exception as err:  # ONNX Runtime's own exceptions have no common base
            raise ModelError("the model failed on these images") from err
        return answers[0] if len(answers) == 1 else np.concatenate(answers)

    def _bucket(self, num_images: int) -> "_Bucket":
        return next(bucket for bucket in self._buckets if bucket.size >= num_images)


class _Bucket:
    """One shape: its buffers on the device, bound once, and the host's copy of the input."""

    def __init__(
        self,
        session: "onnxruntime.InferenceSession",
        device: str,
        size: int,
        run_options: "onnxruntime.RunOptions | None",
    ) -> None:
        from serving.model.onnx_runtime import onnxruntime

        self.size = size
        self._session = session
        self._run_options = run_options
        self._padded = np.zeros((size, IMAGE_BYTES), np.uint8)
        if device == "cuda":
            page_lock(self._padded)
        allocate: Any = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        self._input = allocate((size, IMAGE_BYTES), np.uint8, device, 0)
        self._output = allocate((size, NUM_CLASSES), np.float32, device, 0)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(INPUT, self._input)
        self._binding.bind_ortvalue_output(OUTPUT, self._output)

    def run(self, images: Images) -> Probabilities:
        """Classify up to `size` images; what an earlier run left in the padding is ignored."""
        self._padded[: len(images)] = images
        self._input.update_inplace(self._padded)  # one copy to the device
        self._session.run_with_iobinding(self._binding, self._run_options)
        # On the CPU numpy() may be a view of the buffer that the next run writes.
        return np.array(self._output.numpy()[: len(images)])


def page_lock(buffer: Images) -> None:
    """Keep a buffer where it is in memory, so that the device copies from it without staging.

    Where that fails, copies take a little longer.
    """
    if not hasattr(os, "RTLD_NOLOAD"):  # Windows
        return
    address = ctypes.c_void_p(buffer.ctypes.data)
    for name in _CUDA_RUNTIMES:
        with suppress(OSError):
            runtime = ctypes.CDLL(name, os.RTLD_NOLOAD)
            if runtime.cudaHostRegister(address, ctypes.c_size_t(buffer.nbytes), 0) == 0:
                weakref.finalize(buffer, runtime.cudaHostUnregister, address).atexit = False
            else:
                runtime.cudaGetLastError()  # forgets the error, or the next kernel would find it
