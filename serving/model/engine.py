"""Runs the model on one device: ONNX Runtime behind a Protocol of one method.

A device is an engine class and its row in ENGINES; elsewhere in serving, only the setting in
config.py names devices.
"""

import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Protocol, Self

import numpy as np

from serving.commandline.installation import install
from serving.config import Device, Precision
from serving.errors import (
    ConfigurationError,
    CorruptModel,
    DeadlineExceeded,
    DeviceError,
    InvalidRequest,
    ModelError,
)
from serving.model import onnx_runtime
from serving.model.empty_tensors import ends_empty, may_end_empty
from serving.model.onnx_errors import complaint_of, reason_of
from serving.model.onnx_runtime import (
    NO_WEIGHTS,
    ON_CPU,
    RunOptions,
    Session,
    SessionSettings,
    new_session,
    runtime,
    without_optimization,
)
from serving.model.wide import Alone
from serving.tensors import Array, Feeds, Signature, TensorSignature

_log = logging.getLogger(__name__)

DEFAULT = SessionSettings()

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

    def run_alone(self, feeds: Feeds) -> list[Array]:
        """Run a call beside which no other one needs the cores, so that it may take several."""

    def stoppable(self, *, is_alone: bool = False) -> tuple[Run, Callable[[], None]]:
        """Return `run` for one call of it, and a function that ends it, from any thread.

        A run that was ended raises DeadlineExceeded. It ends between two operators, also of a loop.

        Args:
            is_alone: whether no other run needs the cores, so that it may take several.
        """


class OnnxEngine:
    """An ONNX Runtime session on the CPU, where plain runs are the fastest."""

    device: Device = "cpu"
    provider = onnx_runtime.CPU_PROVIDER
    precisions: tuple[Precision, ...] = ("fp32", "int8")
    max_concurrent_runs: int | None = None  # ONNX Runtime runs outside the GIL
    has_bounded_time = False
    """Whether runs of one shape take equally long for all values; set by the loader."""
    wide: "OnnxEngine | None" = None
    """The same model with several threads a run, for runs that are alone; set by the loader."""
    _needs_elements: str | None = None
    """An operator for which an input without elements would end the process, if there is one."""
    _source: tuple[bytes, Mapping[str, bytes]] | None = None
    """The model's bytes and those of its weights, as long as it is being loaded."""

    def __init__(
        self,
        session: Session,
        run_options: "RunOptions | None" = None,
        settings: SessionSettings = ON_CPU,
    ) -> None:
        """Run a session; `open_engine` is the usual way.

        Args:
            session: the session.
            run_options: those of all its runs; None for new ones.
            settings: those that it was built with.

        Raises:
            CorruptModel: an input or an output has a type that can't be served.
        """
        self.settings = settings
        self.tensors = onnx_runtime.tensors_of(session)
        self._outputs = [each.name for each in self.tensors.outputs]
        self._texts = [each.name for each in self.tensors.inputs if each.datatype == "BYTES"]
        self._bare_run = onnx_runtime.bare_run(session)
        # Without any, each run makes its own: 1 us.
        self._run_options = run_options or runtime().RunOptions()
        self._pid = os.getpid()
        self._alone = Alone()
        self._has_threads = settings.num_threads > 1

    @classmethod
    def open(
        cls,
        model: bytes,
        settings: SessionSettings,
        signature: Signature | None,
        run_options: "RunOptions | None" = None,
        weights: Mapping[str, bytes] = NO_WEIGHTS,
    ) -> Self:
        """Build a session and its engine; see `open_engine`."""
        settings = replace(settings, device=cls.device, provider_options={})
        if may_end_empty(model):
            settings = without_optimization(settings, "NchwcTransformer")
        try:
            session = new_session(model, settings, weights)
        except CorruptModel:
            raise
        except Exception as err:  # ONNX Runtime's own exceptions have no common base
            raise CorruptModel(f"ONNX Runtime can't load the model: {reason_of(err)}") from err
        engine = cls(session, run_options, settings)
        engine.require(signature)
        engine._needs_elements = ends_empty(model)
        engine._source = model, weights
        return engine

    def keeping_memory(self) -> Self:
        """Build the engine again, such that its runs keep their memory for the next ones.

        Returns:
            This engine, if it does so already, or if it was opened too long ago: `drop_source`.
        """
        if self._source is None or self.settings.keeps_memory:
            return self
        return self._again(replace(self.settings, keeps_memory=True))

    def widened(self, num_threads: int) -> "OnnxEngine":
        """Build the engine again, with more threads a run.

        Raises:
            DeviceError: it was opened too long ago: `drop_source`.
        """
        return self._again(replace(self.settings, num_threads=num_threads))

    def _again(self, settings: SessionSettings) -> Self:
        if self._source is None:
            raise DeviceError("the model's bytes are gone: build its engines while it is loaded")
        model, weights = self._source
        engine = type(self)(new_session(model, settings, weights), self._run_options, settings)
        engine.tensors, engine.has_bounded_time = self.tensors, self.has_bounded_time
        engine._needs_elements = self._needs_elements
        engine._source = self._source
        return engine

    def drop_source(self) -> None:
        """Forget the model's bytes, of which the session has what it needs."""
        self._source = None
        if self.wide is not None:
            self.wide.drop_source()

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
        if self.wide is not None:
            self.wide.end_runs()

    def run(self, feeds: Feeds) -> list[Array]:
        return self._run(self._run_options, feeds)

    def stoppable(self, *, is_alone: bool = False) -> tuple[Run, Callable[[], None]]:
        options = runtime().RunOptions()
        run = self._run
        # Its threads do not survive a fork, the narrow one does.
        if is_alone and self.wide is not None and self.wide._pid == os.getpid():
            run = self._run_alone
        return partial(run, options), partial(setattr, options, "terminate", True)

    def run_alone(self, feeds: Feeds) -> list[Array]:
        # Its threads do not survive a fork, the narrow one does.
        if self.wide is None or self.wide._pid != os.getpid():
            return self._run(self._run_options, feeds)
        return self._run_alone(self._run_options, feeds)

    def _run_alone(self, options: RunOptions, feeds: Feeds) -> list[Array]:
        """Run a call beside which no other one needs the cores."""
        size = sum([array.size for array in feeds.values()])
        assert self.wide is not None
        is_wide = self._alone.is_wide(size)
        begin_s = time.monotonic()
        outputs = (self.wide if is_wide else self)._run(options, feeds)
        self._alone.note(size, time.monotonic() - begin_s, is_wide=is_wide)
        return outputs

    def _run(self, options: RunOptions, feeds: Feeds) -> list[Array]:
        if self._has_threads and self._pid != os.getpid():
            raise DeviceError(
                f"its runs have {self.settings.num_threads} threads, which do not survive a fork: "
                "load the model in the child, or with one thread a run"
            )
        if self._needs_elements is not None:
            _require_elements(self._needs_elements, feeds)
        if self._texts:
            feeds = {**feeds, **{name: _decoded(feeds[name]) for name in self._texts}}
        try:
            return self._bare_run(self._outputs, feeds, options)
        except Exception as err:  # ONNX Runtime's own exceptions have no common base
            if err.__traceback__ and err.__traceback__.tb_next:  # Python: a handler of a signal
                raise
            if options.terminate and options is not self._run_options:
                raise DeadlineExceeded("the run was ended: it took too long") from err
            if (complaint := complaint_of(err)) is not None:
                raise InvalidRequest(f"the model does not take these values: {complaint}") from err
            raise ModelError() from err


def _require_elements(operator: str, feeds: Feeds) -> None:
    """Raise InvalidRequest if an input has an axis of 0, for which an operator ends the process."""
    for name, array in feeds.items():
        if not array.size:
            axis = array.shape.index(0)
            raise InvalidRequest(
                f"input {name}: expected at least 1 along axis {axis}, got 0: "
                f"the model's {operator} takes no empty tensor"
            )


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
        settings: SessionSettings,
        signature: Signature | None,
        run_options: "RunOptions | None" = None,
        weights: Mapping[str, bytes] = NO_WEIGHTS,
    ) -> Self:
        """Build a session and its engine, and run it once to see whether the card supports it."""
        # Graphs of others may leave the shapes' arithmetic to the CPU, as ONNX Runtime plans it.
        config = {"session.disable_cpu_ep_fallback": "1"} if signature is not None else {}
        settings = replace(
            settings,
            device=cls.device,
            provider_options={**cls.provider_options, **settings.provider_options},
            config={**config, **settings.config},
        )
        try:
            runtime().preload_dlls()  # finds the CUDA libraries that pip installed
            session = new_session(model, settings, weights, cls.provider)
            engine = cls(session, run_options, settings)
            engine.require(signature)
            if signature is not None:
                image = np.zeros((1, signature.image_bytes), np.uint8)
                engine.run({engine.tensors.inputs[0].name: image})
        except CorruptModel:
            raise
        except Exception as err:  # no driver, no memory left, or a kernel that the card can't run
            raise DeviceError(f"CUDA can't be used: {_cuda_reason(err.__cause__ or err)}") from err
        return engine

    def keeping_memory(self) -> Self:
        """Return this engine: on a GPU it has an arena of its own."""
        return self

    def _run(self, options: RunOptions, feeds: Feeds) -> list[Array]:
        if self._pid != os.getpid():
            raise DeviceError(
                "CUDA can't be used after a fork: load the model in the child, or spawn it"
            )
        num_rows = min(map(len, feeds.values())) if self.tensors.is_batchable else 1
        padding = (1 << (num_rows - 1).bit_length()) - num_rows
        if not padding:
            return super()._run(options, feeds)
        padded = {
            name: np.concatenate([rows, np.repeat(rows[-1:], padding, axis=0)])
            for name, rows in feeds.items()
        }
        return [rows[:num_rows] for rows in super()._run(options, padded)]


ENGINES: tuple[type[OnnxEngine], ...] = (CudaEngine, OnnxEngine)
"""The engine of each device; "auto" takes the first that works."""


def open_engine(
    model: bytes,
    settings: SessionSettings = DEFAULT,
    signature: Signature | None = None,
    run_options: "RunOptions | None" = None,
    weights: Mapping[str, bytes] = NO_WEIGHTS,
) -> OnnxEngine:
    """Build an engine on the requested device; "auto" takes CUDA if it works, else the CPU.

    Args:
        model: the content of an ONNX file.
        settings: how it is built and run; "auto" takes only a device that runs its precision.
        signature: the signature in its manifest, if it has one.
        run_options: for all its runs; `terminate` ends the current and all later ones.
        weights: the content of files with weights, by their location in the model.

    Raises:
        CorruptModel: ONNX Runtime can't load it, or it has another signature.
        DeviceError: the requested device can't be used; there is no silent fallback.
        ConfigurationError: the device doesn't run this precision.
    """
    device, precision = settings.device, settings.precision
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
            return engine.open(model, settings, signature, run_options, weights)
        except DeviceError as err:
            _log.warning("serving on the %s: %s", engines[-1].device.upper(), err)
    return engines[-1].open(model, settings, signature, run_options, weights)


def _cuda_reason(err: BaseException) -> str:
    """Return CUDA's own message, without ONNX Runtime's C++ signatures around it."""
    found = re.search(r"\w+ failure \d+: [^;\n]*", str(err))
    return found[0].strip() if found else reason_of(err)
