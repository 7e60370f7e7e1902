"""Runs the model on one device: ONNX Runtime behind a Protocol of one method.

A device is an engine class and its row in ENGINES; elsewhere in serving, only the setting in
config.py names devices.
"""

import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, Self

import numpy as np

from serving.commandline.installation import install
from serving.config import BatchingConfig, Device, Precision
from serving.errors import (
    ConfigurationError,
    CorruptModel,
    DeadlineExceeded,
    DeviceError,
    InvalidRequest,
    ModelError,
)
from serving.model import onnx_runtime
from serving.model.acceptance import ENOUGH_ROWS
from serving.model.fork import native_run
from serving.model.onnx_runtime import NO_WEIGHTS, RunOptions, Session, reason_of, runtime
from serving.model.preprocessing import Preprocessing
from serving.model.repository import Manifest
from serving.model.settings import NO_SETTINGS, ModelSettings
from serving.predictions import Images, Probabilities
from serving.tensors import Array, Feeds, ModelInfo, Signature, TensorSignature

_log = logging.getLogger(__name__)

Run = Callable[[Feeds], list[Array]]


class Engine(Protocol):
    """Something that runs a model; safe to call from many threads."""

    tensors: TensorSignature
    """The model's inputs and outputs; the loader sets whether rows can be batched."""

    @property
    def device(self) -> Device:
        """The device of the runs; never "auto"."""

    @property
    def max_concurrent_runs(self) -> int | None:
        """How many concurrent runs are useful; None for one on each core."""

    def run(self, feeds: Feeds) -> list[Array]:
        """Run the model once on this engine's device.

        Returns:
            An array for each output, in the order of `tensors.outputs`.

        Raises:
            InvalidRequest: a text is not UTF-8, or an operator refuses the values.
            ModelError: the run failed.
            DeviceError: the device can't be used in this process.
        """

    def stoppable(self) -> tuple[Run, Callable[[], None]]:
        """Return `run` for one call of it, and a function that ends it, from any thread.

        A run that was ended raises DeadlineExceeded. It ends between two operators, also of a loop.
        """


class OnnxEngine:
    """An ONNX Runtime session on the CPU, where plain runs are the fastest."""

    device: Device = "cpu"
    provider = "CPUExecutionProvider"
    precisions: tuple[Precision, ...] = ("fp32", "int8")
    max_concurrent_runs: int | None = None  # ONNX Runtime runs outside the GIL
    has_bounded_time = False
    """Whether runs of one shape take equally long for all values; set by the loader."""

    def __init__(
        self,
        session: Session,
        run_options: "RunOptions | None" = None,
    ) -> None:
        """Run a session; `open_engine` is the usual way.

        Raises:
            CorruptModel: an input or an output has a type that can't be served.
        """
        self.tensors = onnx_runtime.tensors_of(session)
        self._outputs = [each.name for each in self.tensors.outputs]
        self._texts = [each.name for each in self.tensors.inputs if each.datatype == "BYTES"]
        self._bare_run = onnx_runtime.bare_run(session)
        # Without any, each run makes its own: 1 us.
        self._run_options = run_options or runtime().RunOptions()
        self._pid = os.getpid()

    @classmethod
    def open(
        cls,
        model: bytes,
        signature: Signature | None,
        run_options: "RunOptions | None" = None,
        weights: Mapping[str, bytes] = NO_WEIGHTS,
    ) -> Self:
        """Build a session and its engine; see `open_engine`."""
        try:
            session = onnx_runtime.new_session(model, cls.provider, weights=weights)
        except CorruptModel:
            raise
        except Exception as err:  # ONNX Runtime's own exceptions have no common base
            raise CorruptModel(f"ONNX Runtime can't load the model: {reason_of(err)}") from err
        engine = cls(session, run_options)
        engine.require(signature)
        return engine

    def require(self, signature: Signature | None) -> None:
        """Check that the graph is images -> probabilities, with the sizes in its manifest.

        Raises:
            CorruptModel: it has other inputs or outputs.
        """
        if signature is not None:
            found, expected = self.tensors, signature.tensors
            if (found.inputs, found.outputs) != (expected.inputs, expected.outputs):
                raise CorruptModel(f"the manifest says {expected}, the graph is {found}")
            self.tensors = expected

    def end_runs(self) -> None:
        """End the runs in progress, which fail; later ones are not affected."""
        ended, self._run_options = self._run_options, runtime().RunOptions()
        ended.terminate = True

    def run(self, feeds: Feeds) -> list[Array]:
        return self._run(self._run_options, feeds)

    def stoppable(self) -> tuple[Run, Callable[[], None]]:
        options = runtime().RunOptions()
        return partial(self._run, options), partial(setattr, options, "terminate", True)

    def _run(self, options: RunOptions, feeds: Feeds) -> list[Array]:
        if self._texts:
            feeds = {**feeds, **{name: _decoded(feeds[name]) for name in self._texts}}
        try:
            return self._bare_run(self._outputs, feeds, options)
        except Exception as err:  # ONNX Runtime's own exceptions have no common base
            if err.__traceback__ and err.__traceback__.tb_next:  # Python: a handler of a signal
                raise
            if options.terminate and options is not self._run_options:
                raise DeadlineExceeded("the run was ended: it took too long") from err
            if (complaint := onnx_runtime.complaint_of(err)) is not None:
                raise InvalidRequest(f"the model does not take these values: {complaint}") from err
            raise ModelError() from err


def _decoded(texts: Array) -> Array:
    """Return texts for ONNX Runtime, which would take the text of a bytes object, "b'...'"."""
    try:
        decoded = [each.decode() if isinstance(each, bytes) else each for each in texts.flat]
    except UnicodeDecodeError:
        raise InvalidRequest("expected texts in UTF-8") from None
    return np.array(decoded, object).reshape(texts.shape)


class CudaEngine(OnnxEngine):
    """An ONNX Runtime session on a GPU.

    A batch is padded to the next power of two, so that the device sees few shapes. This has
    not been run on a GPU, so optimisations that need a measurement (buffers that stay on the
    device, page-locked memory, CUDA graphs) are left out.
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
        signature: Signature | None,
        run_options: "RunOptions | None" = None,
        weights: Mapping[str, bytes] = NO_WEIGHTS,
    ) -> Self:
        """Build a session and its engine, and run it once to see whether the card supports it."""
        # Graphs of others may leave the shapes' arithmetic to the CPU, as ONNX Runtime plans it.
        config = [("session.disable_cpu_ep_fallback", "1")] if signature is not None else []
        try:
            runtime().preload_dlls()  # finds the CUDA libraries that pip installed
            session = onnx_runtime.new_session(
                model, cls.provider, *config, weights=weights, **cls.provider_options
            )
            engine = cls(session, run_options)
            engine.require(signature)
            if signature is not None:
                image = np.zeros((1, signature.image_bytes), np.uint8)
                engine.run({engine.tensors.inputs[0].name: image})
        except CorruptModel:
            raise
        except Exception as err:  # no driver, no memory left, or a kernel that the card can't run
            raise DeviceError(f"CUDA can't be used: {_cuda_reason(err.__cause__ or err)}") from err
        return engine

    def _run(self, options: RunOptions, feeds: Feeds) -> list[Array]:
        if self._pid != os.getpid():
            raise DeviceError(
                "CUDA can't be used after a fork: load the model in the child, or spawn it"
            )
        num_rows = min(map(len, feeds.values())) if self.tensors.is_batchable else 1
        padding = (1 << (num_rows - 1).bit_length()) - num_rows
        if not padding:
            return super()._run(options, feeds)
        padded = {name: np.concatenate([rows, np.repeat(rows[-1:], padding, axis=0)])
                  for name, rows in feeds.items()}  # fmt: skip
        return [rows[:num_rows] for rows in super()._run(options, padded)]


ENGINES: tuple[type[OnnxEngine], ...] = (CudaEngine, OnnxEngine)
"""The engine of each device; "auto" takes the first that works."""


def open_engine(
    model: bytes,
    signature: Signature | None = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    run_options: "RunOptions | None" = None,
    weights: Mapping[str, bytes] = NO_WEIGHTS,
) -> OnnxEngine:
    """Build an engine on the requested device; "auto" takes CUDA if it works, else the CPU.

    Args:
        model: the content of an ONNX file.
        signature: the signature in its manifest, if it has one.
        device: "auto", "cpu" or "cuda".
        precision: the model's; "auto" takes only a device that supports it.
        run_options: for all its runs; `terminate` ends the current and all later ones.
        weights: the content of files with weights, by their location in the model.

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
    providers = runtime().get_available_providers()
    engines = [engine for engine in asked if engine.provider in providers]
    if not engines:
        raise DeviceError(
            f"device {device!r} needs ONNX Runtime with {asked[0].provider}: "
            f"pip uninstall onnxruntime, then {install('serve-gpu')}"
        )
    for engine in engines[:-1]:
        try:
            return engine.open(model, signature, run_options, weights)
        except DeviceError as err:
            _log.warning("serving on the %s: %s", engines[-1].device.upper(), err)
    return engines[-1].open(model, signature, run_options, weights)


def _cuda_reason(err: BaseException) -> str:
    """Return CUDA's own message, without ONNX Runtime's C++ signatures around it."""
    found = re.search(r"\w+ failure \d+: [^;\n]*", str(err))
    return found[0].strip() if found else reason_of(err)


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A version that was checked; safe to run from many threads."""

    engine: Engine
    manifest: Manifest
    precision: Precision
    inline_rows: int = 0
    """The most rows of a batch that runs inline, on the thread that reads from all callers."""
    enough_rows: int = ENOUGH_ROWS
    """Rows that are worth their own run on another core."""
    batching: str = ""
    """One line that says whether rows are batched, and why not."""
    settings: ModelSettings = NO_SETTINGS
    """How it is served, where that differs from the server's options."""
    labels: tuple[str, ...] = ()
    """The classes of an output that its graph makes a dictionary of, else none."""
    sample_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Shapes of inputs, by name, with which a run succeeded; none if no run did."""

    @property
    def version(self) -> str:
        """The version named in every answer, such as "3"."""
        return self.manifest.version

    @property
    def tensors(self) -> TensorSignature:
        """Its inputs and outputs."""
        return self.engine.tensors

    @property
    def signature(self) -> Signature | None:
        """The shape of its images, and its classes; None if it isn't known to classify images."""
        return self.manifest.signature

    @property
    def pictures(self) -> Preprocessing | None:
        """How pictures become its input, and the names of its classes; None if it takes none."""
        return self.manifest.pictures

    @property
    def class_labels(self) -> tuple[str, ...]:
        """The names of its classes, if they are known."""
        return (self.pictures and self.pictures.labels) or self.labels

    @property
    def image_signature(self) -> Signature:
        """The signature; raises ConfigurationError if there is none."""
        if self.manifest.signature is None:
            raise ConfigurationError(
                f"model {self.manifest.name} has no manifest, so it is not known to classify "
                "images: serving.Model runs any model"
            )
        return self.manifest.signature

    @property
    def device(self) -> Device:
        """The device that it runs on: "cpu" or "cuda"."""
        return self.engine.device

    def info(self, name: str, transport: str, batching: BatchingConfig) -> ModelInfo:
        """Describe a classifier of images, as callers know it."""
        return ModelInfo(
            name=name, version=self.version, device=self.device, precision=self.precision,
            transport=transport, max_request_rows=batching.max_request_rows,
            max_batch_size=self.settings.of(batching).max_batch_size,
            test_accuracy=self.manifest.test_accuracy, signature=self.image_signature,
        )  # fmt: skip

    # On one line, so that the lock is released even if a trace function raises (debuggers,
    # coverage, tests): these run between lines.

    def run(self, feeds: Feeds) -> list[Array]:
        with native_run(): return self.engine.run(feeds)  # noqa: E701  # fmt: skip

    def stoppable(self) -> tuple[Run, Callable[[], None]]:
        engine_run, end = self.engine.stoppable()

        def run(feeds: Feeds) -> list[Array]:
            with native_run(): return engine_run(feeds)  # noqa: E701  # fmt: skip

        return run, end

    def classify(self, images: Images) -> Probabilities:
        """Return the (N, classes) float32 probabilities of (N, pixels) images."""
        name = self.engine.tensors.inputs[0].name
        with native_run(): return self.engine.run({name: images})[0]  # noqa: E701  # fmt: skip
