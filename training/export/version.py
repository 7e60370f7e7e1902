"""A version: over the gates to the model repository, with a manifest."""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import onnx
import tensorflow as tf
import tf2onnx

from serving.publishing.manifest import (
    FILES,
    ManifestTooLong,
    Precision,
    digests,
    golden,
    render,
)
from serving.publishing.writer import Files, write_version
from training import cli
from training.data.mnist import Images
from training.errors import ExportError, first_line
from training.export import graph, int8, parity, signature
from training.export.image_signature import ImageSignature
from training.export.parity import Parity, onnxruntime
from training.export.samples import Samples
from training.fitting.evaluation import Probabilities

GOLDEN_IMAGES = 32
GOLDEN_PER_CLASS = 2
GOLDEN_BYTES = 256 << 10
"""The most that golden samples take in the manifest, unless a single one takes more."""
NUMBER_BYTES = 32
"""Digits of a probability in the manifest, on a line of its own."""
TRITON_CONFIG = """\
# For NVIDIA Triton. Tune it as you like: an export never overwrites it.
name: "{name}"
backend: "onnxruntime"
max_batch_size: 512
input [ {{ name: "images" data_type: TYPE_UINT8 dims: [ {pixels} ] }} ]
output [ {{ name: "probabilities" data_type: TYPE_FP32 dims: [ {classes} ] }} ]
dynamic_batching {{ }}
"""
print_now = partial(print, flush=True)


def libraries() -> dict[str, str]:
    """Return the versions of everything that shaped the exported files."""
    modules = (tf, keras, tf2onnx, onnx, onnxruntime, np)
    return {module.__name__: module.__version__ for module in modules} | {
        "python": platform.python_version()
    }


def choose_golden(probabilities: Probabilities, samples: Samples) -> npt.NDArray[np.intp]:
    """Choose the images to ship with the model: some of every class, then the least confident ones.

    Only correctly answered images are chosen, or any where labels are unknown. The least confident
    ones lie closest to the border between two classes, where a wrong weight shows first.

    Returns:
        Row numbers, ascending: up to 32, or fewer where these would make the manifest large.
    """
    answers = probabilities.argmax(axis=1)
    labels = answers if samples.labels is None else samples.labels
    right = np.flatnonzero(answers == labels)
    num_classes = probabilities.shape[1]
    sample_bytes = samples.images.shape[1] * 4 // 3 + 2 * num_classes * NUMBER_BYTES
    num = min(GOLDEN_IMAGES, max(1, GOLDEN_BYTES // sample_bytes))
    of_each = min(GOLDEN_PER_CLASS, num // num_classes)
    chosen = np.concatenate(
        [right[labels[right] == number][:of_each] for number in range(num_classes)]
    )
    others = np.setdiff1d(right, chosen)
    by_certainty = others[probabilities[others].max(axis=1).argsort(kind="stable")]
    return np.sort(np.append(chosen, by_certainty[: num - len(chosen)]))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ExportCandidate:
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
    """recipe, seed, settings, parameters and accuracy, as in the manifest."""
    is_new_signature: bool = False
    """Whether its images and classes may differ from those of the newest version."""


def publish_version(candidate: ExportCandidate, models: Path) -> Path:
    """Convert a network, compare it with Keras on its samples, and publish it.

    Raises:
        ExportError: the network can't be converted, the graph does not answer as Keras does, or
            the files could not be written. Nothing is published.
    """
    samples, facts = candidate.samples, candidate.facts
    images = samples.images[choose_golden(candidate.expected, samples)]
    fp32, measured = _fp32(candidate, images)
    facts_of_images = json.loads(json.dumps(asdict(candidate.signature)))
    mark = signature.require_same(
        models / candidate.name,
        signature.of_graph(fp32, facts_of_images),
        is_new_allowed=candidate.is_new_signature,
    )
    quantised, report = _int8(fp32, candidate)
    graphs: dict[Precision, onnx.ModelProto] = {"fp32": fp32, **quantised}
    files = {FILES[name]: proto.SerializeToString() for name, proto in graphs.items()}
    answers = {
        name: parity.run(parity.open_session(proto), images) for name, proto in graphs.items()
    }
    contents = {
        "signature": asdict(candidate.signature),
        **({"preprocessing": candidate.preprocessing} if candidate.preprocessing else {}),
        **facts,
        "files": digests(files),
        "parity": asdict(measured),
        "int8": report,
        "libraries": libraries(),
        "golden": golden(images, answers),
    }
    version = _publish(candidate, models, {**files, **mark}, contents)
    size_mb, accuracy = len(files[FILES["fp32"]]) / 1e6, facts["accuracy"]["test"]
    print_now(f"  size      {size_mb:.2f} MB, {facts['parameters']:,} parameters")
    if accuracy is not None:
        print_now(f"  accuracy  {accuracy:.2%} of the images it was compared on")
    print_now(f"published {version}; serve it with {cli.serve(version.parent)}")
    return version


def _fp32(candidate: ExportCandidate, golden: Images) -> tuple[onnx.ModelProto, Parity]:
    """Convert the network, and compare it with Keras and with the other writer."""
    facts, samples, tolerance = candidate.facts, candidate.samples, candidate.tolerance
    properties = {**facts, "accuracy": facts["accuracy"]["test"]}
    properties.pop("settings", None)  # the manifest has them
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
    fp32: onnx.ModelProto, candidate: ExportCandidate
) -> tuple[dict[Precision, onnx.ModelProto], dict[str, Any]]:
    """Quantise the graph and test it.

    Returns:
        {"int8": the graph}, or nothing if it was refused; and its entry in the manifest.
    """
    print_now("quantising its first layer to int8, and comparing that with float32")
    try:
        quantised = int8.quantize(fp32, candidate.rounding)
        measured = int8.measure(
            parity.open_session(quantised),
            parity.open_session(fp32),
            candidate.int8_test,
            candidate.int8_validation,
        )
    except int8.Refused as err:
        print_now(f"  int8      not published: {err}")
        return {}, {"refused": str(err)}
    print_now(f"  int8      {measured}")
    return {"int8": quantised}, asdict(measured)


def _publish(
    candidate: ExportCandidate, models: Path, files: Files, contents: dict[str, Any]
) -> Path:
    name, images = candidate.name, candidate.signature
    config = TRITON_CONFIG.format(name=name, pixels=images.pixels, classes=images.classes)

    def version_files(version: str) -> Files:
        return {**files, "manifest.json": render(name, version, contents)}

    try:
        return write_version(models / name, version_files, {"config.pbtxt": config.encode()})
    except ManifestTooLong as err:  # a golden sample alone is too large
        raise ExportError(f"not published, {err}: train on smaller images") from err
    except OSError as err:
        raise ExportError(f"not published, cannot write {models / name}: {err.strerror}") from err
