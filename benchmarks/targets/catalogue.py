"""The targets by name."""

from contextlib import AbstractContextManager

from benchmarks.targets.in_process import OPENERS, local
from benchmarks.targets.servers import OURS, SERVED, open_inference, served
from benchmarks.targets.target import Running, Setting, Spec

NAMES = (*OPENERS, *SERVED)

_WAYS = {
    "-stream": "the same, messages of ClassifyStream",
    "-infer": "the same, calls of ModelInfer",
    "-infer-stream": "the same, messages of ModelStreamInfer",
    "-tls": "the same, over TLS",
    "-token": "the same, each call with a token",
}

ABOUT = {
    "null": "answers at once: prices the harness",
    "keras": "model.predict, in process",
    "tf-function": "the Keras model as a compiled graph, in process",
    "engine": "ONNX Runtime, in process",
    "classifier": "what services embed, in process",
    "h2": "our server, h2 transport",
    "grpcio": "our server, grpcio transport",
    **{server + way: text for server in OURS for way, text in _WAYS.items()},
    "plain": "the grpcio server of a tutorial",
    "bare": "HTTP/2 by ngh2 and the model, no queue and no checks",
    "echo": "HTTP/2 by ngh2 without a model",
    "echo-grpcio": "grpc.aio without a model",
}
"""What each is, in a few words."""


def open_target(spec: Spec, setting: Setting) -> AbstractContextManager[Running]:
    """Start a target; entering the context raises NotMeasured where it can't run."""
    if spec.target in setting.addresses:
        return open_inference(spec, setting)
    return (local if spec.target in OPENERS else served)(spec, setting)
