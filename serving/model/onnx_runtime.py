"""ONNX Runtime without its telemetry; all of serving imports it from here.

Since 1.29 its wheels look up a host of the vendor, connect to it and write a device id to ~/.cache.
`disable_telemetry_events()` is too late: the variable works only before the first import.
"""

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from serving import installation

try:
    import onnxruntime
except ModuleNotFoundError as err:  # for those who embed a Classifier
    hint = installation.advice(err, {"onnxruntime": "serve"})
    raise ModuleNotFoundError(hint, name=err.name) from None

from serving.errors import CorruptModel, DeviceError
from serving.signature import Signature

__all__ = ["INPUT", "OUTPUT", "bare_run", "check_signature", "new_session", "onnxruntime"]

INPUT, OUTPUT = "images", "probabilities"


def new_session(
    model: bytes, provider: str, *config: tuple[str, str], **provider_options: str
) -> onnxruntime.InferenceSession:
    """Build a session on one provider; ONNX Runtime's own errors pass through.

    Args:
        model: the content of an ONNX file.
        provider: ONNX Runtime's name of it.
        config: entries of the session's configuration.
        provider_options: of the provider.

    Raises:
        DeviceError: ONNX Runtime chose another provider.
    """
    options = onnxruntime.SessionOptions()
    for key, value in config:
        options.add_session_config_entry(key, value)
    options.intra_op_num_threads = 1  # runs on the caller's thread: the batcher owns the cores
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised, and logged by us
    # With its fallback ONNX Runtime would print a banner on stdout and hide the reason.
    session = onnxruntime.InferenceSession(
        model, options, providers=[provider], provider_options=[provider_options],
        enable_fallback=0,
    )  # fmt: skip
    # A provider that can't load is replaced by the CPU with only a log line (onnxruntime #23372).
    if session.get_providers()[0] != provider:
        raise DeviceError(f"ONNX Runtime chose {session.get_providers()[0]}, not {provider}")
    session.disable_fallback()
    return session


def bare_run(session: onnxruntime.InferenceSession) -> Callable[..., list[Any]]:
    """Return the session's `run` without its wrapper in Python, where this release has one.

    The wrapper checks names, which `check_signature` did, and falls back to other providers, which
    `new_session` turned off. It takes 1.1 us of a one-image run's 21, and all of it under the GIL,
    for which threads compete.
    """
    run: Callable[..., list[Any]] = getattr(session, "_sess", session).run
    return run


def check_signature(session: onnxruntime.InferenceSession, signature: Signature) -> None:
    """Check that a model is images -> probabilities, with the sizes in its manifest.

    Raises:
        CorruptModel: it has other inputs or outputs.
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
