"""Runs the model on one device: ONNX Runtime behind a Protocol of one method."""

import logging
import re
from typing import TYPE_CHECKING, Protocol

from serving.config import Device
from serving.errors import CorruptModel, DeviceError, ModelError
from serving.images import IMAGE_BYTES, Images
from serving.model.cuda import INPUT, OUTPUT, CudaEngine
from serving.predictions import NUM_CLASSES, Probabilities

if TYPE_CHECKING:
    from serving.model.onnx_runtime import onnxruntime

_log = logging.getLogger(__name__)
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class Engine(Protocol):
    """Something that classifies a batch; safe to call from many threads."""

    @property
    def device(self) -> str:
        """Where the runs happen: "cpu" or "cuda"."""

    def run(self, images: Images) -> Probabilities:
        """Classify one batch on this engine's device.

        Args:
            images: (N, 784) uint8, row-major 28 x 28, 0 = background; N >= 1.

        Returns:
            (N, 10) float32; each row sums to 1.

        Raises:
            ModelError: the run failed.
        """


class OnnxEngine:
    """An ONNX Runtime session on the CPU, where plain runs are the fastest."""

    def __init__(
        self,
        session: "onnxruntime.InferenceSession",
        run_options: "onnxruntime.RunOptions | None" = None,
    ) -> None:
        """Run a session; `open_engine` is the usual way."""
        self.device = "cpu"
        self._session = session
        self._run_options = run_options

    def run(self, images: Images) -> Probabilities:
        """See `Engine.run`."""
        try:
            (probabilities,) = self._session.run([OUTPUT], {INPUT: images}, self._run_options)
        except Exception as err:  # ONNX Runtime's own exceptions have no common base
            raise ModelError("the model failed on these images") from err
        return probabilities  # type: ignore[no-any-return]


def new_run_options() -> "onnxruntime.RunOptions":
    """Make what an engine's runs look at: `terminate` ends those that go on, and all later ones."""
    from serving.model.onnx_runtime import onnxruntime

    return onnxruntime.RunOptions()


def open_engine(
    model: bytes, device: Device = "auto", run_options: "onnxruntime.RunOptions | None" = None
) -> Engine:
    """Build an engine on the device asked for; "auto" takes CUDA where it works, else the CPU.

    Args:
        model: the content of an ONNX file; weights kept in other files are refused.
        device: "auto", "cpu" or "cuda".
        run_options: of all its runs; see `new_run_options`.

    Raises:
        CorruptModel: ONNX Runtime can't load it, or it is not images -> probabilities.
        DeviceError: the device asked for can't be used; never falls back in silence.
    """
    if device == "auto" and _has_cuda():
        try:
            return _open_cuda(model, run_options)
        except DeviceError as err:
            _log.warning("serving on the CPU: %s", err)
    if device == "cuda":
        return _open_cuda(model, run_options)
    return OnnxEngine(open_session(model, "cpu"), run_options)


def _open_cuda(model: bytes, run_options: "onnxruntime.RunOptions | None") -> CudaEngine:
    session = open_session(model, "cuda")
    try:
        return CudaEngine(session, run_options=run_options)
    except Exception as err:  # no memory left, or a kernel that the card can't run
        raise DeviceError(f"CUDA can't be used: {_cuda_reason(err.__cause__ or err)}") from err


def _has_cuda() -> bool:
    from serving.model.onnx_runtime import onnxruntime

    return _PROVIDERS["cuda"] in onnxruntime.get_available_providers()


def open_session(model: bytes, device: str) -> "onnxruntime.InferenceSession":
    """Build a checked session on "cpu" or "cuda"; raises what `open_engine` raises."""
    from serving.model.onnx_runtime import onnxruntime

    provider = _PROVIDERS[device]
    if provider not in onnxruntime.get_available_providers():
        raise DeviceError(
            f"device {device!r} needs ONNX Runtime with {provider}: "
            "pip uninstall onnxruntime, then pip install 'digit-serving[serve-gpu]'"
        )
    options = onnxruntime.SessionOptions()
    if device == "cuda":
        onnxruntime.preload_dlls()  # finds the CUDA libraries that pip installed
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.intra_op_num_threads = 1  # runs on the caller's thread: the batcher owns the cores
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised and told by us
    try:
        # With its fallback ONNX Runtime would print a banner on stdout and hide the reason.
        session = onnxruntime.InferenceSession(
            model, options, providers=[provider], enable_fallback=0
        )
    except Exception as err:  # ONNX Runtime's own exceptions have no common base
        if device == "cuda":
            raise DeviceError(f"CUDA can't be used: {_cuda_reason(err)}") from err
        raise CorruptModel(f"ONNX Runtime can't load the model: {_first_line(err)}") from err
    # A provider that can't load is replaced by the CPU with only a log line (onnxruntime #23372).
    if session.get_providers()[0] != provider:
        raise DeviceError(f"CUDA can't be used: ONNX Runtime chose {session.get_providers()[0]}")
    session.disable_fallback()
    _check_signature(session)
    return session


def _check_signature(session: "onnxruntime.InferenceSession") -> None:
    found = [
        (node.name, node.type, node.shape[1:])
        for node in (*session.get_inputs(), *session.get_outputs())
    ]
    expected = [
        (INPUT, "tensor(uint8)", [IMAGE_BYTES]),
        (OUTPUT, "tensor(float)", [NUM_CLASSES]),
    ]
    if found != expected:
        raise CorruptModel(f"expected a model {expected}, got {found}")


def _cuda_reason(err: BaseException) -> str:
    """Return what CUDA says, without ONNX Runtime's C++ signatures around it."""
    found = re.search(r"\w+ failure \d+: [^;\n]*", str(err))
    return found[0].strip() if found else _first_line(err)


def _first_line(err: BaseException) -> str:
    return str(err).strip().partition("\n")[0][:200]
