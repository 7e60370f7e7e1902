"""Export: from the trained Keras model to a published version that serving can load."""

import dataclasses
from pathlib import Path
from typing import Any

import keras
import onnx

from commandline import checkout
from training.config import RECIPES
from training.data.mnist import Mnist
from training.errors import ExportError
from training.export import graph, int8_gate, manifest, parity, quantization
from training.export.repository import Files, publish
from training.fitting.artifacts import load_json, load_model
from training.fitting.evaluation import probabilities

METRICS_TOLERANCE = 0.001  # another processor may round a digit in thousands the other way

FILES = {"fp32": "model.onnx", "int8": "model.int8.onnx"}
"""The graphs of a version by precision; int8 is there only if it passed its gate."""

TRITON_CONFIG = """\
# For NVIDIA Triton. Tune it as you like: an export never overwrites it.
name: "{name}"
backend: "onnxruntime"
max_batch_size: 512
input [ {{ name: "images" data_type: TYPE_UINT8 dims: [ 784 ] }} ]
output [ {{ name: "probabilities" data_type: TYPE_FP32 dims: [ 10 ] }} ]
dynamic_batching {{ }}
"""


def export(artifacts: Path, models: Path, data: Mnist, name: str = "digits") -> Path:
    """Convert the trained model, compare it with Keras on every test image, and publish it.

    Args:
        artifacts: holds model.keras and metrics.json, as training leaves them.
        models: the model repository; the version becomes models/<name>/<n>/.
        data: MNIST; the test images are those compared.
        name: the model's name in the repository.

    Returns:
        The new version's folder.

    Raises:
        ExportError: nothing is trained, the graph does not answer as Keras does, or the files
            could not be written. Nothing is published.
    """
    model, metrics = _read(artifacts)
    _say(f"exporting {artifacts / 'model.keras'} (recipe {metrics['recipe']})")
    expected = probabilities(model, data.test_images)
    facts = _facts(model, metrics, float((expected.argmax(axis=1) == data.test_labels).mean()))
    fp32 = graph.convert(model, facts | {"accuracy": facts["accuracy"]["test"]})

    _say(f"comparing it with Keras on {len(expected):,} test images")
    measured = parity.measure(parity.open_session(fp32), data.test_images, expected)
    if not measured.holds:
        raise ExportError(f"not published, ONNX Runtime and Keras disagree: {measured}")

    quantised, verdict = _int8(fp32, data, metrics["recipe"])
    graphs = {"fp32": fp32, **quantised}
    files = {FILES[name]: proto.SerializeToString() for name, proto in graphs.items()}
    samples = data.test_images[manifest.choose_golden(expected, data.test_labels)]
    answers = {
        name: parity.run(parity.open_session(proto), samples, len(samples))
        for name, proto in graphs.items()
    }
    contents = facts | {
        "files": manifest.digests(files),
        "parity": dataclasses.asdict(measured),
        "int8": verdict,
        "libraries": manifest.libraries(),
        "golden": manifest.golden(samples, answers),
    }
    version = _publish(models / name, files, contents)
    _summarise(version, files, contents)
    return version


def _read(artifacts: Path) -> tuple[keras.Model, dict[str, Any]]:
    """Read the trained model and what training measured."""
    model, metrics = load_model(artifacts), load_json(artifacts, "metrics.json")
    if metrics["recipe"] not in RECIPES:
        raise ExportError(
            f"no recipe is called {metrics['recipe']!r}: run {checkout.run('train')} again"
        )
    return model, metrics


def _facts(model: keras.Model, metrics: dict[str, Any], test_accuracy: float) -> dict[str, Any]:
    """Collect what is told about the model, and refuse a model that is not the one measured.

    Args:
        model: the trained network.
        metrics: metrics.json.
        test_accuracy: the model's share of right answers, 0 to 1, measured just now.
    """
    claimed = metrics["accuracy"]["test"]
    if abs(claimed - test_accuracy) > METRICS_TOLERANCE:
        raise ExportError(
            f"metrics.json tells of another model (test accuracy {claimed:.2%}, this one has "
            f"{test_accuracy:.2%}): run {checkout.run('train')} again"
        )
    return {
        "recipe": metrics["recipe"],
        "seed": metrics["seed"],
        "parameters": model.count_params(),
        "accuracy": {"validation": metrics["accuracy"]["validation"], "test": test_accuracy},
    }


def _int8(
    fp32: onnx.ModelProto, data: Mnist, recipe: str
) -> tuple[dict[str, onnx.ModelProto], dict[str, Any]]:
    """Quantise the graph and see how good that is.

    Returns:
        {"int8": the graph}, or nothing if it was refused; and what the manifest says of it.
    """
    _say("quantising its first layer to int8, and comparing that with float32")
    training, validation = data.split(RECIPES[recipe].validation_split)
    quantised = quantization.quantize(fp32, training.images)
    try:
        measured = int8_gate.measure(
            parity.open_session(quantised), parity.open_session(fp32), validation, data.test
        )
    except int8_gate.Refused as err:
        return {}, {"refused": str(err)}
    return {"int8": quantised}, dataclasses.asdict(measured)


def _publish(folder: Path, files: Files, contents: dict[str, Any]) -> Path:
    """Publish the files and their manifest as the model's next version."""

    def version_files(version: str) -> Files:
        return {**files, "manifest.json": manifest.render(folder.name, version, contents)}

    config = TRITON_CONFIG.format(name=folder.name).encode()
    try:
        return publish(folder, version_files, {"config.pbtxt": config})
    except OSError as err:
        raise ExportError(f"not published, cannot write {folder}: {err.strerror}") from err


def _summarise(version: Path, files: Files, contents: dict[str, Any]) -> None:
    """Tell what was published and how to go on."""
    measured, accuracy = contents["parity"], contents["accuracy"]
    size_mb = len(files["model.onnx"]) / 1e6
    _say(f"  size      {size_mb:.2f} MB, {contents['parameters']:,} parameters")
    _say(f"  accuracy  {accuracy['test']:.2%} of the test images")
    _say(f"  parity    Keras's digits, probabilities within {measured['max_difference']:.1e}")
    _say(f"  int8      {_verdict(contents['int8'])}")
    _say(f"published {version}; serve it with {checkout.run('serve')}")


def _verdict(facts: dict[str, Any]) -> str:
    """Say in one line how the int8 graph did."""
    if "refused" in facts:
        return f"not published: {facts['refused']}"
    speedup = ", ".join(f"{ratio:.1f}x at {size}" for size, ratio in facts["speedup"].items())
    return f"{facts['different_digits']} digits differ from fp32; faster by batch size: {speedup}"


def _say(line: str) -> None:
    print(line, flush=True)
