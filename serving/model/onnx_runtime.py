"""ONNX Runtime as we use it: everything that needs it imports it from here.

Without its telemetry: since 1.29 its wheels look up the maker's host, connect to it and write a
device id to ~/.cache. `disable_telemetry_events()` comes too late: this variable counts only before
the first import.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

from serving.errors import CorruptModel, DeviceError
from serving.signature import Signature

__all__ = ["INPUT", "OUTPUT", "check_signature", "new_session", "onnxruntime"]

INPUT, OUTPUT = "images", "probabilities"


def new_session(
    model: bytes, provider: str, *config: tuple[str, str]
) -> onnxruntime.InferenceSession:
    """Build a session on one provider; raises what ONNX Runtime says of the model or the device.

    Raises:
        DeviceError: ONNX Runtime took another.
    """
    options = onnxruntime.SessionOptions()
    for key, value in config:
        options.add_session_config_entry(key, value)
    options.intra_op_num_threads = 1  # runs on the caller's thread: the batcher owns the cores
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised, and logged by us
    # With its fallback ONNX Runtime would print a banner on stdout and hide the reason.
    session = onnxruntime.InferenceSession(model, options, providers=[provider], enable_fallback=0)
    # A provider that can't load is replaced by the CPU with only a log line (onnxruntime #23372).
    if session.get_providers()[0] != provider:
        raise DeviceError(f"ONNX Runtime chose {session.get_providers()[0]}, not {provider}")
    session.disable_fallback()
    return session


def check_signature(session: onnxruntime.InferenceSession, signature: Signature) -> None:
    """Refuse a model that is not images -> probabilities, each of the sizes in its manifest.

    Raises:
        CorruptModel: its inputs or outputs are others.
    """
    found = [
        f"{node.name} {node.type} {['N', *node.shape[1:]]}"
        for node in (*session.get_inputs(), *session.get_outputs())
    ]
    expected = [
        f"{INPUT} tensor(uint8) {['N', signature.image_bytes]}",
        f"{OUTPUT} tensor(float) {['N', signature.num_classes]}",
    ]
    if found != expected:
        raise CorruptModel(
            f"the manifest says {' -> '.join(expected)}, the graph is {' -> '.join(found)}"
        )
