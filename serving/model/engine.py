"""Runs the model on one device: ONNX Runtime behind a Protocol of one method.

A device is an engine class and its row in ENGINES; elsewhere in serving, only the setting in
config.py names devices.
"""

import logging
import os
import re
from collections.abc import Mapping
from typing import Protocol, Self

import numpy as np

from serving.config import Device, Precision
from serving.errors import ConfigurationError, CorruptModel, DeviceError, ModelError
from serving.images import Images
from serving.installation import install
from serving.model.onnx_runtime import (
    INPUT,
    OUTPUT,
    bare_run,
    check_signature,
    new_session,
    onnxruntime,
)
from serving.predictions import Probabilities
from serving.signature import Signature

_log = logging.getLogger(__name__)
_OUTPUTS = [OUTPUT]


class Engine(Protocol):
    """Something that classifies a batch; safe to call from many threads."""

    @property
    def device(self) -> Device:
        """The device of the runs; never "auto"."""

    @property
    def max_concurrent_runs(self) -> int | None:
        """How many concurrent runs are useful; None for one on each core."""

    def run(self, images: Images) -> Probabilities:
        """Classify one batch on this engine's device.

        Args:
            images: (N, pixels) uint8, each row-major; N >= 1.

        Returns:
            (N, classes) float32; each row sums to 1.

        Raises:
            ModelError: the run failed.
            DeviceError: the device can't be used in this process.
        """


class OnnxEngine:
    """An ONNX Runtime session on the CPU, where plain runs are the fastest."""

    device: Device = "cpu"
    provider = "CPUExecutionProvider"
    precisions: tuple[Precision, ...] = ("fp32", "int8")
    max_concurrent_runs: int | None = None  # ONNX Runtime runs outside the GIL

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        run_options: onnxruntime.RunOptions | None = None,
    ) -> None:
        """Run a session; `open_engine` is the usual way."""
        self._run = bare_run(session)
        # Without any, each run makes its own: 1 us.
        self._run_options = run_options or onnxruntime.RunOptions()
        self._pid = os.getpid()

    @classmethod
    def open(
        cls,
        model: bytes,
        signature: Signature,
        run_options: onnxruntime.RunOptions | None = None,
    ) -> Self:
        """Build a session and its engine; see `open_engine`."""
        try:
            session = new_session(model, cls.provider)
        except Exception as err:  # ONNX Runtime's own exceptions have no common base
            raise CorruptModel(f"ONNX Runtime can't load the model: {_first_line(err)}") from err
        check_signature(session, signature)
        return cls(session, run_options)

    def run(self, images: Images) -> Probabilities:
        """See `Engine.run`."""
        try:
            return self._run(_OUTPUTS, {INPUT: images}, self._run_options)[0]  # type: ignore[no-any-return]
        except Exception as err:  # ONNX Runtime's own exceptions have no common base
            if err.__traceback__ and err.__traceback__.tb_next:  # Python: a handler of a signal
                raise
            raise ModelError() from err


class CudaEngine(OnnxEngine):
    """An ONNX Runtime session on a GPU.

    A batch is padded to the next power of two, so that the device sees few shapes. This has
    not been run on a GPU, so optimisations that need a measurement (buffers that stay on the
    device, page-locked memory, CUDA graphs) are left out: `benchmarks/targets/engine_kinds.py` has
    them, for `make verify-gpu` to measure.
    """

    device: Device = "cuda"
    provider = "CUDAExecutionProvider"
    precisions: tuple[Precision, ...] = ("fp32",)
    max_concurrent_runs: int | None = 1  # more would only make its batches smaller
    provider_options: Mapping[str, str] = {"use_tf32": "0"}
    """ONNX Runtime's default is TF32. With operands rounded to its 10 bits (computed on a CPU), the
    bundled model is off by 1.2e-3 on its golden samples: more than the 1e-3 of acceptance.py."""

    @classmethod
    def open(
        cls,
        model: bytes,
        signature: Signature,
        run_options: onnxruntime.RunOptions | None = None,
    ) -> Self:
        """Build a session and its engine, and run it once: a run shows what the card can't do."""
        try:
            onnxruntime.preload_dlls()  # finds the CUDA libraries that pip installed
            no_fallback = ("session.disable_cpu_ep_fallback", "1")
            session = new_session(model, cls.provider, no_fallback, **cls.provider_options)
            check_signature(session, signature)
            engine = cls(session, run_options)
            engine.run(np.zeros((1, signature.image_bytes), np.uint8))
        except CorruptModel:
            raise
        except Exception as err:  # no driver, no memory left, or a kernel that the card can't run
            raise DeviceError(f"CUDA can't be used: {_cuda_reason(err.__cause__ or err)}") from err
        return engine

    def run(self, images: Images) -> Probabilities:
        """See `Engine.run`."""
        if self._pid != os.getpid():
            raise DeviceError(
                "CUDA can't be used after a fork: make the Classifier in the child, or spawn it"
            )
        padded = np.zeros((1 << (len(images) - 1).bit_length(), images.shape[1]), np.uint8)
        padded[: len(images)] = images
        return super().run(padded)[: len(images)]


ENGINES: tuple[type[OnnxEngine], ...] = (CudaEngine, OnnxEngine)
"""The engine of each device; "auto" takes the first that works."""


def open_engine(
    model: bytes,
    signature: Signature,
    device: Device = "auto",
    precision: Precision = "fp32",
    run_options: onnxruntime.RunOptions | None = None,
) -> Engine:
    """Build an engine on the requested device; "auto" takes CUDA if it works, else the CPU.

    Args:
        model: the content of an ONNX file; weights kept in other files are refused.
        signature: the signature in its manifest.
        device: "auto", "cpu" or "cuda".
        precision: the model's; "auto" takes only a device that supports it.
        run_options: for all its runs; `terminate` ends the current and all later ones.

    Raises:
        CorruptModel: ONNX Runtime can't load it, or it has another signature.
        DeviceError: the requested device can't be used; there is no silent fallback.
        ConfigurationError: the device doesn't run this precision.
    """
    able = [engine for engine in ENGINES if precision in engine.precisions]
    asked = [engine for engine in able if device in (engine.device, "auto")]
    if not asked:
        devices = " and the ".join(engine.device.upper() for engine in able)
        raise ConfigurationError(f"{precision} runs on the {devices} only, not on device {device}")
    providers = onnxruntime.get_available_providers()
    engines = [engine for engine in asked if engine.provider in providers]
    if not engines:
        raise DeviceError(
            f"device {device!r} needs ONNX Runtime with {asked[0].provider}: "
            f"pip uninstall onnxruntime, then {install('serve-gpu')}"
        )
    for engine in engines[:-1]:
        try:
            return engine.open(model, signature, run_options)
        except DeviceError as err:
            _log.warning("serving on the %s: %s", engines[-1].device.upper(), err)
    return engines[-1].open(model, signature, run_options)


def _cuda_reason(err: BaseException) -> str:
    """Return CUDA's own message, without ONNX Runtime's C++ signatures around it."""
    found = re.search(r"\w+ failure \d+: [^;\n]*", str(err))
    return found[0].strip() if found else _first_line(err)


def _first_line(err: BaseException) -> str:
    return str(err).strip().partition("\n")[0][:200]
