"""Models of any signature: the class whose template differs from the image in the fewest pixels.

A stand-in for models that people train: published as the exporter does it. The int8
variant is the same graph: `tests/serving/test_embedding.py` has a quantized one.
"""

import base64
import hashlib
import json

import numpy as np

from serving.model.onnx_runtime import runtime
from serving.tensors import Signature
from tests.serving.model.graphs import TYPES, model, node, value

LETTERS = Signature((32, 32), 26, tuple("abcdefghijklmnopqrstuvwxyz"))
GLYPHS = Signature((8, 8), 300)
"""Images smaller than the head of a message, and classes whose numbers need two bytes."""

_FILES = {"fp32": "model.onnx", "int8": "model.int8.onnx"}
_GOLDEN = {"fp32": "probabilities", "int8": "int8_probabilities"}
_SHARPNESS = 20.0
"""The logit of an image that differs from a template in every pixel, negated."""
_NOISE = 0.1
"""Share of the pixels of an image that differ from its template's."""


def images_of(signature, num_images):
    """Noisy templates, (N, pixels) uint8, and the class of each."""
    generator = np.random.default_rng(1)
    labels = generator.integers(0, signature.num_classes, num_images)
    flips = generator.random((num_images, signature.image_bytes)) < _NOISE
    return (_templates(signature)[labels] ^ flips).astype(np.uint8) * 255, labels


def publish(models, name, signature, version="1"):
    """Publish a version, its manifest with the signature."""
    graphs = dict.fromkeys(_FILES, _graph(signature))
    golden = images_of(signature, 20)[0]
    manifest = {
        "format": 1, "name": name, "version": version, "recipe": None, "parameters": 0,
        "accuracy": {"validation": None, "test": None}, "signature": signature.document(),
        "files": {_FILES[p]: hashlib.sha256(graph).hexdigest() for p, graph in graphs.items()},
        "golden": {"images": base64.b64encode(golden.tobytes()).decode()}
        | {_GOLDEN[p]: _answers(graph, golden) for p, graph in graphs.items()},
    }  # fmt: skip
    folder = models / name / version
    folder.mkdir(parents=True)
    for precision, graph in graphs.items():
        (folder / _FILES[precision]).write_bytes(graph)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _answers(graph, images):
    session = runtime().InferenceSession(graph, providers=["CPUExecutionProvider"])
    answers: list[list[float]] = session.run(None, {"images": images})[0].tolist()
    return answers


def _templates(signature):
    shape = (signature.num_classes, signature.image_bytes)
    return np.random.default_rng(0).random(shape) < 0.5


def _graph(signature):
    """Pixels of 0 and 1 to logits, the negated share that differs from each template."""
    templates = _templates(signature).T.astype(np.float32)
    gain = np.float32(_SHARPNESS / signature.image_bytes)
    nodes = [
        node("Cast", ["images"], ["levels"], to=TYPES["FP32"]),
        node("Mul", ["levels", "step"], ["pixels"]),
        node("MatMul", ["pixels", "kernel"], ["sums"]),
        node("Add", ["sums", "bias"], ["logits"]),
        node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    constants = {"step": np.float32(1 / 255), "kernel": (2 * templates - 1) * gain,
                 "bias": -templates.sum(axis=0) * gain}  # fmt: skip
    data: bytes = model(
        nodes,
        [value("images", "UINT8", ["N", signature.image_bytes])],
        [value("probabilities", "FP32", ["N", signature.num_classes])],
        constants,
    ).SerializeToString()
    return data
