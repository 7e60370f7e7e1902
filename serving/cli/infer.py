"""The command `infer`: run any model on values, arrays or pictures that the command line names."""

import argparse
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serving.cli.models import client_of, model_config
from serving.commandline import installation
from serving.commandline.installation import escape
from serving.config import ModelConfig
from serving.errors import ConfigurationError, InvalidRequest
from serving.model.preprocessing import Preprocessing, of_graph
from serving.model.repository import PictureInputs, read_labels
from serving.protocols.oip.examples import sample_of
from serving.tensors import Array, Tensor, TensorSignature, as_feeds

_NPY = b"\x93NUMPY"
_TOP = 5
"""Classes that are shown with their names."""

Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]


def run(options: argparse.Namespace) -> int:
    """Run the model once; return the exit code."""
    if options.target:
        with client_of(options) as client:
            tensors, facts = client.model_facts(options.model, options.version or "")
            pictures = Preprocessing.of(facts["pictures"]) if "pictures" in facts else None
            if pictures is None and options.input == "image":
                pictures = of_graph(tensors, {"labels": read_labels(options.labels)})

            def call(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
                return client.infer(options.model, feeds, version=options.version or "")

            outputs = call(_feeds(options.values, tensors, pictures))
            labels = facts.get("labels", [])
    else:
        model, pictures = _loaded(options)
        tensors, labels = model.tensors, model.labels
        found = model.run(_feeds(options.values, tensors, pictures))
        outputs = {each.name: array for each, array in zip(tensors.outputs, found, strict=True)}
    if pictures is not None:
        first = next(iter(outputs.values()))
        labels = pictures.labels or labels or [str(each) for each in range(first.shape[-1])]
    print(_as_json(outputs) if options.json else _as_text(outputs, labels))
    return 0


def _loaded(options: argparse.Namespace) -> Any:
    """Load a model here, and how pictures become its input."""
    installation.require("onnxruntime")
    from serving.model.loading import load_model

    path = Path(options.model)
    is_path = path.exists() and "models" not in options
    if is_path:
        options.model = ModelConfig().model
    config = model_config(options)
    path = path if is_path else config.models / config.model
    model = load_model(path, config.version, config.device, config.precision)
    inputs = PictureInputs(is_image=options.input == "image", labels=read_labels(options.labels))
    try:
        return model, inputs.of(model.manifest, model.tensors)
    except ValueError as err:
        raise ConfigurationError(f"{path}: {err}") from err


def _feeds(
    words: Sequence[str], tensors: TensorSignature, pictures: Preprocessing | None
) -> dict[str, Array]:
    """Return an array for each input that the command line names.

    Raises:
        InvalidRequest: one is missing or unknown, can't be read, or does not fit.
    """
    inputs = {each.name: each for each in tensors.inputs}
    given = {}
    for word in words:
        name = next((each for each in inputs if word.startswith(f"{each}=")), "")
        text = word.removeprefix(f"{name}=")
        is_bare = "=" not in word or word.startswith("@") or tensors.inputs[0].datatype == "BYTES"
        if len(inputs) == 1 and not name and is_bare:
            (name,) = inputs
        if name not in inputs:
            there = "; ".join(f"{each.name}={_example(each)}" for each in tensors.inputs)
            raise InvalidRequest(f"expected inputs such as {there}, got {word[:80]!r}")
        given[name] = _value(inputs[name], text, pictures)
    missing = [each for name, each in inputs.items() if name not in given]
    if missing:
        listed = "; ".join(f"{each}, such as {each.name}={_example(each)}" for each in missing)
        raise InvalidRequest(f"expected a value of {listed}")
    return as_feeds(tensors, given)


def _example(tensor: Tensor) -> str:
    values = sample_of(tensor, {})
    return "@FILE.npy" if values is None else json.dumps(values)


def _value(tensor: Tensor, text: str, pictures: Preprocessing | None) -> object:
    """Read one value of the command line; batch axes that it lacks are added."""
    value: Any = text
    if text == "-" or text.startswith("@"):
        value = _of_bytes(tensor, _content(text), text, pictures)
    else:
        value = _of_text(tensor, text)
    for _ in range(len(tensor.shape) - np.ndim(value)):
        value = value[None] if isinstance(value, np.ndarray) else [value]
    return value


def _content(source: str) -> bytes:
    try:
        if source == "-":
            return sys.stdin.buffer.read()
        return Path(source[1:]).read_bytes()
    except OSError as err:
        raise InvalidRequest(f"{source}: {err.strerror or err}") from err


def _of_bytes(
    tensor: Tensor, content: bytes, source: str, pictures: Preprocessing | None
) -> object:
    """Read the content of a file: an array, JSON, a text or a picture."""
    if content.startswith(_NPY):
        try:
            return np.load(io.BytesIO(content), allow_pickle=False)
        except ValueError as err:
            raise InvalidRequest(f"{source}: {err}") from err
    try:
        return _of_text(tensor, content.decode())
    except (UnicodeDecodeError, InvalidRequest) as err:
        if pictures is None:
            raise InvalidRequest(
                f"{source}: expected an array (.npy) or JSON for {tensor}; pictures are for models "
                "with a classifier.json, or with --input image"
            ) from err
    from serving.digits.pictures.reader import picture_row

    return picture_row(pictures, io.BytesIO(content))[0]


def _of_text(tensor: Tensor, text: str) -> object:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as err:
        if tensor.datatype == "BYTES":
            return text
        raise InvalidRequest(
            f"expected {tensor} as JSON, such as {tensor.name}={_example(tensor)}, got "
            f"{text[:80]!r}"
        ) from err
    return text if tensor.datatype == "BYTES" and not isinstance(value, list | str) else value


def _as_json(outputs: Mapping[str, Array]) -> str:
    return json.dumps({name: _plain(array) for name, array in outputs.items()})


def _plain(array: Array) -> Any:
    if array.dtype.kind != "O":
        return array.tolist()
    texts = [each.decode("utf-8", "replace") if isinstance(each, bytes) else each
             for each in array.flat]  # fmt: skip
    return np.array(texts, object).reshape(array.shape).tolist()


def _as_text(outputs: Mapping[str, Array], labels: Sequence[str]) -> str:
    """Write outputs as lines; of rows of classes the likeliest, with their names."""
    lines = []
    for name, array in outputs.items():
        lines.append(f"{escape(name)} {array.dtype} {list(array.shape)}")
        if labels and array.dtype.kind == "f" and array.shape[1:] == (len(labels),):
            for row in array:
                best = np.argsort(-row, kind="stable")[:_TOP]
                lines.append("  " + ", ".join(f"{escape(labels[at])} {row[at]:.4g}" for at in best))
        else:
            shown = np.array2string(np.array(_plain(array)), threshold=64, edgeitems=4, precision=6)
            lines += [f"  {escape(line)}" for line in shown.splitlines()]
    return "\n".join(lines)
