"""ONNX Runtime without its telemetry; all of serving imports it from here.

Since 1.29 its wheels look up a host of the vendor, connect to it and write a device id to ~/.cache.
`disable_telemetry_events()` is too late: the variable works only before the first import.
"""

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from serving.commandline.installation import not_installed
from serving.config import Device, Precision
from serving.errors import CorruptModel, DeviceError
from serving.proof.onnx_fields import outline
from serving.tensors import DTYPES, Tensor, TensorSignature

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime

Session: TypeAlias = "onnxruntime.InferenceSession"
RunOptions: TypeAlias = "onnxruntime.RunOptions"
_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(string)": "BYTES",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    **{
        f"tensor({kind}{bits})": f"{kind.upper()}{bits}"
        for kind in ("int", "uint")
        for bits in (8, 16, 32, 64)
    },
}
"""The protocol's name of each of ONNX Runtime's types."""
CPU_PROVIDER = "CPUExecutionProvider"
_EXTERNAL_DATA = "session.model_external_initializers_file_folder_path"
_DISABLED = "optimization.disable_specified_optimizers", "DivMulFusion;GatherToSliceFusion"
"""Optimizations that answer where the graph fails, or with another number of axes, which the proof
of batching relies on: Gather by a Range beyond the end becomes a Slice, which ends there, and
1 / x * z becomes z / x, also where 1 has more axes than both."""
_FORMAT = "session.load_model_format", "ONNX"
"""What the bytes are. ONNX Runtime would look for its own format, and a file can be both: what was
proved of the one says nothing of the other."""
_SPINS_BRIEFLY = 1, 27
"""The first release that takes a time to spin for."""
NO_WEIGHTS: Mapping[str, bytes] = {}
_LARGE_BYTES, _WRITTEN_BYTES = 8 << 20, 1 << 20
_LOCATION = b"location"
"""The key under which a tensor names the file that has its content."""
_OPEN_FILE = "/proc/self/fd/{}"
"""Where a process finds its open files, as long as there is a /proc."""
_SEALS = 0x1 | 0x2 | 0x4 | 0x8
"""Of a file in memory, whose content stays as it is: F_SEAL_SEAL, _SHRINK, _GROW, _WRITE."""


os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


@cache
def runtime() -> Any:
    """Import ONNX Runtime when it is first used: a supervisor of workers never needs it."""
    try:
        import onnxruntime
    except ModuleNotFoundError as err:  # for those who load a model in their own process
        raise not_installed(err) from None
    return onnxruntime


def release() -> tuple[int, ...]:
    """Return ONNX Runtime's release, such as 1, 32."""
    return tuple(map(int, runtime().__version__.split(".")[:2]))


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionSettings:
    """How a model is built and run: what ONNX Runtime has a setting for."""

    device: Device = "auto"
    """The device of the runs."""
    precision: Precision = "fp32"
    """The variant of the model: its file, and the devices that run it."""
    num_threads: int = 1
    """Threads of one run. With one, a run stays on the thread that asks for it: the batcher owns
    the cores. More do not survive a fork."""
    keeps_memory: bool = False
    """Whether the memory of a run is kept for the next one, in an arena that grows to the largest
    run; `memory.py` says where that pays."""
    optimization: Literal["all", "none"] = "all"
    """Which graph optimizations are made; with none the nodes stay as they are in the file."""
    provider_options: Mapping[str, str] = field(default_factory=dict)
    """Options of the device's execution provider, by ONNX Runtime's names."""
    config: Mapping[str, str] = field(default_factory=dict)
    """Entries of the session's configuration, by ONNX Runtime's names."""


ON_CPU = SessionSettings(device="cpu")


def without_optimization(settings: SessionSettings, name: str) -> SessionSettings:
    """Return settings in which one more graph optimization is not made.

    Args:
        settings: how a model is built and run.
        name: ONNX Runtime's.
    """
    key, usual = _DISABLED
    names = f"{settings.config.get(key, usual)};{name}"
    return replace(settings, config={**settings.config, key: names})


def _spinning() -> dict[str, str]:
    """Return how long threads of a run wait for its next operator before they sleep: 10 us.

    Where they sleep at once, a run of MobileNetV2 on two idle cores takes 4.7 ms in place of 3.8.
    Where they spin as long as by default, it takes 14 ms in place of 8.4 beside two busy processes.
    """
    if release() < _SPINS_BRIEFLY:
        return {"session.intra_op.allow_spinning": "0"}
    return {"session.intra_op.spin_duration_us": "10", "session.force_spinning_stop": "1"}


def new_session(
    model: bytes,
    settings: SessionSettings = ON_CPU,
    weights: Mapping[str, bytes] = NO_WEIGHTS,
    provider: str = CPU_PROVIDER,
) -> Session:
    """Build a session on one provider; ONNX Runtime's own errors pass through.

    Args:
        model: the content of an ONNX file.
        settings: how it is built and run.
        weights: the content of all files that it names, by their location.
        provider: ONNX Runtime's name of the device.

    Raises:
        DeviceError: ONNX Runtime chose another provider.
    """
    options = runtime().SessionOptions()
    # Of a model in memory ONNX Runtime would read weights from files in the current directory.
    options.add_session_config_entry(_EXTERNAL_DATA, os.devnull)
    if weights and not hasattr(options, "add_external_initializers_from_files_in_memory"):
        raise CorruptModel("its weights are in other files, for which this ONNX Runtime is too old")
    if weights:
        sizes = list(map(len, weights.values()))
        options.add_external_initializers_from_files_in_memory(
            list(weights), list(weights.values()), sizes
        )
    config = {_DISABLED[0]: _DISABLED[1], **settings.config, _FORMAT[0]: _FORMAT[1]}
    if settings.num_threads > 1:
        config = _spinning() | config
    for key, value in config.items():
        options.add_session_config_entry(key, value)
    options.intra_op_num_threads = settings.num_threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = settings.keeps_memory
    # With a pattern a run gets its memory as one block, which glibc maps and unmaps each time: 8
    # rows of a small network of convolutions took 1,160 page faults, a third of the time.
    options.enable_mem_pattern = False
    if settings.optimization == "none":
        options.graph_optimization_level = runtime().GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # errors are raised, and logged by us
    with _source(model) as source:
        # With its fallback ONNX Runtime would print a banner on stdout and hide the reason.
        session: Session = runtime().InferenceSession(
            source,
            options,
            providers=[provider],
            provider_options=[dict(settings.provider_options)],
            enable_fallback=0,
        )
    # A provider that can't load is replaced by the CPU with only a log line (onnxruntime #23372).
    if session.get_providers()[0] != provider:
        raise DeviceError(f"ONNX Runtime chose {session.get_providers()[0]}, not {provider}")
    session.disable_fallback()
    # The wrapper keeps the file's content for a fallback: as much memory as the weights again.
    session._model_bytes = None
    return session


@contextmanager
def _source(model: bytes) -> Iterator[bytes | str]:
    """Yield what a session is built from: a large model as a file in memory that nobody can change.

    Bytes are copied under the interpreter's lock, so that no call is read or answered meanwhile:
    270 MB take 240 ms. A file is read without it.
    """
    file = None
    # By a path ONNX Runtime would read weights from files that the model names beside it.
    if len(model) >= _LARGE_BYTES and _LOCATION not in outline(model):
        file = _sealed(model)
    try:
        yield model if file is None else _OPEN_FILE.format(file)
    finally:
        if file is not None:
            os.close(file)


def _sealed(model: bytes) -> int | None:
    """Write a model to a file in memory; return its descriptor, None where that can't be."""
    if not hasattr(os, "memfd_create") or not hasattr(fcntl, "F_ADD_SEALS"):
        return None
    try:
        file = os.memfd_create("model", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError:  # no more files
        return None
    try:
        rest = memoryview(model)
        while rest:
            rest = rest[os.write(file, rest[:_WRITTEN_BYTES]) :]
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
        os.stat(_OPEN_FILE.format(file))
    except OSError:  # no room, or no /proc
        os.close(file)
        return None
    return file


def bare_run(session: Session) -> Callable[..., list[Any]]:
    """Return the session's `run` without its wrapper in Python, where this release has one.

    The wrapper checks names, which their callers did, and falls back to other providers, which
    `new_session` turned off. It takes 1.1 us of a one-row run's 21, and all of it under the GIL,
    for which threads compete.
    """
    run: Callable[..., list[Any]] = getattr(session, "_sess", session).run
    return run


def tensors_of(session: Session) -> TensorSignature:
    """Read a model's inputs and outputs; whether rows can be batched is found out later.

    Graph inputs that have a default are optional, and are left out. ONNX Runtime accepts any shape
    for an input whose shape it reports as (): it is a scalar, or the graph names no shape.

    Raises:
        CorruptModel: an input or an output has a type that numpy does not have.
    """
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if not outputs:
        raise CorruptModel("the graph has no output")
    return TensorSignature(
        tuple(_tensor("input", each) for each in inputs),
        tuple(_tensor("output", each) for each in outputs),
        is_batchable=False,
    )


def inputs_of(session: Session) -> tuple[Tensor, ...]:
    """Read a model's inputs without its outputs; see `tensors_of`."""
    return tuple(_tensor("input", each) for each in session.get_inputs())


def output_dtypes(session: Session) -> dict[str, "np.dtype[Any]"]:
    """Return numpy's type of each output that has one, by name."""
    kinds = {each.name: _DATATYPES.get(each.type) for each in session.get_outputs()}
    return {name: DTYPES[kind] for name, kind in kinds.items() if kind is not None}


def _tensor(side: str, node: Any) -> Tensor:
    sizes = tuple(size if type(size) is int and size >= 0 else -1 for size in node.shape)
    names = tuple(size if isinstance(size, str) else "" for size in node.shape)
    return Tensor(node.name, _datatype(side, node), sizes, names)


def _datatype(side: str, node: Any) -> str:
    if node.type in _DATATYPES:
        return _DATATYPES[node.type]
    advice = "cast it to float32 in the graph"
    if "map(" in node.type:
        advice = "convert the classifier with options={'zipmap': False}"
    elif not node.type.startswith("tensor("):
        advice = "leave it out, or make it a tensor in the graph"
    raise CorruptModel(f"{side} {node.name!r} is a {node.type}, which can't be served: {advice}")
