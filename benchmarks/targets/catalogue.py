"""The targets by name."""

from contextlib import AbstractContextManager

from benchmarks.targets.local import OPENERS, local
from benchmarks.targets.served import SERVED, open_inference, served
from benchmarks.targets.target import Running, Setting, Spec

NAMES = (*OPENERS, *SERVED)

ABOUT = {
    "null": "answers at once: prices the harness",
    "keras": "model.predict, in process",
    "tf-function": "the Keras model as a compiled graph, in process",
    "engine": "ONNX Runtime, in process",
    "classifier": "what services embed, in process",
    "native": "our server, native transport",
    "grpcio": "our server, grpcio transport",
    "grpcio-stream": "the same, calls as messages of streams",
    "plain": "the grpcio server of a tutorial",
    "bare": "native transport and the model, no queue and no checks",
    "echo": "native transport without a model",
    "echo-grpcio": "grpc.aio without a model",
}
"""What each is, in a few words."""


def open_target(spec: Spec, setting: Setting) -> AbstractContextManager[Running]:
    """Start a target; entering the context raises NotMeasured where it can't run."""
    if spec.target in setting.addresses:
        return open_inference(spec, setting)
    return (local if spec.target in OPENERS else served)(spec, setting)
