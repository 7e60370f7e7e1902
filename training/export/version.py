"""A version: from a trained network over the gates to the model repository."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras
import onnx

from training import commandline
from training.data.mnist import Images
from training.errors import ExportError, first_line
from training.export import graph, int8_gate, manifest, parity, quantization
from training.export.manifest import ImageSignature
from training.export.parity import Parity
from training.export.repository import Files, publish
from training.export.samples import Samples
from training.fitting.evaluation import Probabilities

print_now = partial(print, flush=True)

FILES = {"fp32": "model.onnx", "int8": "model.int8.onnx"}
"""The graphs of a version by precision; int8 is there only if it passed its gate."""

TRITON_CONFIG = """\
# For NVIDIA Triton. Tune it as you like: an export never overwrites it.
name: "{name}"
backend: "onnxruntime"
max_batch_size: 512
input [ {{ name: "images" data_type: TYPE_UINT8 dims: [ {pixels} ] }} ]
output [ {{ name: "probabilities" data_type: TYPE_FP32 dims: [ {classes} ] }} ]
dynamic_batching {{ }}
"""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Candidate:
    """A trained network, and all that it takes to check and publish it."""

    name: str
    """The model's name in the repository."""
    model: keras.Model
    """From pixels of 0 to 255, in an input shape of its own, to (N, classes) probabilities."""
    signature: ImageSignature
    """Its input and output."""
    preprocessing: Mapping[str, object]
    """How pictures become its images; empty if they can't."""
    samples: Samples
    """The images that the graph is compared with Keras on; golden samples come from them."""
    expected: Probabilities
    """(N, classes) float32, Keras's answers to the samples."""
    tolerance: float
    """The largest difference of a probability from Keras's."""
    rounding: Images
    """(N, pixels) uint8: int8 weights are rounded for the least error on these images."""
    int8_test: Samples
    """Images that int8 is compared with fp32 on, none of those it is rounded on."""
    int8_validation: Samples | None
    """Labelled images that int8 must not answer worse than fp32."""
    facts: Mapping[str, Any]
    """recipe, seed, parameters and accuracy, as in the manifest."""


def publish_version(candidate: Candidate, models: Path) -> Path:
    """Convert a network, compare it with Keras on its samples, and publish it.

    Raises:
        ExportError: the network can't be converted, the graph does not answer as Keras does, or
            the files could not be written. Nothing is published.
    """
    samples, facts = candidate.samples, candidate.facts
    images = samples.images[manifest.choose_golden(candidate.expected, samples)]
    fp32, measured = _fp32(candidate, images)
    quantised, verdict = _int8(fp32, candidate)
    graphs = {"fp32": fp32, **quantised}
    files = {FILES[name]: proto.SerializeToString() for name, proto in graphs.items()}
    answers = {
        name: parity.run(parity.open_session(proto), images) for name, proto in graphs.items()
    }
    contents = {
        "signature": asdict(candidate.signature),
        **({"preprocessing": candidate.preprocessing} if candidate.preprocessing else {}),
        **facts,
        "files": manifest.digests(files),
        "parity": asdict(measured),
        "int8": verdict,
        "libraries": manifest.libraries(),
        "golden": manifest.golden(images, answers),
    }
    version = _publish(candidate, models, files, contents)
    size_mb, accuracy = len(files[FILES["fp32"]]) / 1e6, facts["accuracy"]["test"]
    print_now(f"  size      {size_mb:.2f} MB, {facts['parameters']:,} parameters")
    if accuracy is not None:
        print_now(f"  accuracy  {accuracy:.2%} of the images it was compared on")
    print_now(f"published {version}; serve it with {commandline.serve(version.parent)}")
    return version


def _fp32(candidate: Candidate, golden: Images) -> tuple[onnx.ModelProto, Parity]:
    """Convert the network, and compare it with Keras and with the other writer."""
    facts, samples, tolerance = candidate.facts, candidate.samples, candidate.tolerance
    properties = {**facts, "accuracy": facts["accuracy"]["test"]}
    graphs = graph.convert(candidate.model, candidate.name, candidate.signature, properties)
    writer, *others = graphs
    print_now(f"comparing the graph of {writer} with Keras on {len(samples.images):,} images")
    try:
        session, *checks = (parity.open_session(proto) for proto in graphs.values())
        measured = parity.measure(session, samples.images, candidate.expected, tolerance)
        answers = parity.run(session, golden)
        between = [parity.measure(check, golden, answers, tolerance) for check in checks]
    except Exception as err:  # ONNX Runtime's own exceptions have no common base
        reason = f"ONNX Runtime can't run the graph of {' or '.join(graphs)}: {first_line(err)}"
        raise ExportError(f"not published, {reason}") from err
    if not measured.holds:
        raise ExportError(f"not published, ONNX Runtime and Keras disagree: {measured}")
    print_now(f"  parity    {measured}")
    for other, compared in zip(others, between, strict=True):
        if not compared.holds:
            raise ExportError(f"not published, {writer} and {other} disagree: {compared}")
        print_now(f"  {other:<9} {compared}")
    return graphs[writer], measured


def _int8(
    fp32: onnx.ModelProto, candidate: Candidate
) -> tuple[dict[str, onnx.ModelProto], dict[str, Any]]:
    """Quantise the graph and test it.

    Returns:
        {"int8": the graph}, or nothing if it was refused; and its entry in the manifest.
    """
    print_now("quantising its first layer to int8, and comparing that with float32")
    try:
        quantised = quantization.quantize(fp32, candidate.rounding)
        measured = int8_gate.measure(
            parity.open_session(quantised),
            parity.open_session(fp32),
            candidate.int8_test,
            candidate.int8_validation,
        )
    except quantization.Refused as err:
        print_now(f"  int8      not published: {err}")
        return {}, {"refused": str(err)}
    print_now(f"  int8      {measured}")
    return {"int8": quantised}, asdict(measured)


def _publish(candidate: Candidate, models: Path, files: Files, contents: dict[str, Any]) -> Path:
    """Publish the files and their manifest as the model's next version."""
    name, signature = candidate.name, candidate.signature
    config = TRITON_CONFIG.format(name=name, pixels=signature.pixels, classes=signature.classes)

    def version_files(version: str) -> Files:
        return {**files, "manifest.json": manifest.render(name, version, contents)}

    try:
        return publish(models / name, version_files, {"config.pbtxt": config.encode()})
    except OSError as err:
        raise ExportError(f"not published, cannot write {models / name}: {err.strerror}") from err
