"""One run of a model for `infer`: the values of a command line, and the outputs as text."""

import argparse
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from serving import json_values
from serving.cli.models import config_of, load_with_pictures, model_config
from serving.cli.target import client_of, require_here
from serving.commandline import installation
from serving.commandline.installation import DISTRIBUTION
from serving.commandline.terminal import escape
from serving.config import ModelConfig
from serving.errors import ConfigurationError, InvalidRequest
from serving.model.picture_inputs import read_labels
from serving.model.preprocessing import Preprocessing, is_known, of_graph
from serving.oip.examples import Shapes, shape_of, word_of
from serving.system.files import read_regular
from serving.tensors import Array, Tensor, TensorSignature, as_feeds, finite

if TYPE_CHECKING:
    from serving.embedded import Model
    from serving.model.loaded import LoadedModel

_NPY = b"\x93NUMPY"
_FILLED = re.compile(r"(?P<how>zeros|random)(?:\[(?P<sizes>[0-9]{1,9}(?:, ?[0-9]{1,9})*)\])?")
"""A value such as zeros[1,3,224,224]; without sizes, open axes are 1."""
_NEAR = 0.75
"""How like an input's name a word before = is that was meant as one: not each of a text is."""
_TOP = 5
"""Classes that are shown with their names."""


def run(options: argparse.Namespace) -> int:
    """Run the model once; return the exit code."""
    own: tuple[str, ...] = ()
    require_here(options)
    if options.input != "image":  # else they are a part of the pictures' description
        own, options.labels = read_labels(options.labels), None
    if options.target:
        version = options.version or ""
        with client_of(options) as client:
            info = client.describe(options.model, version)
            pictures = _pictures_of(options, info.tensors, info.pictures)
            labels: Sequence[str] = info.labels
            feeds = _feeds(options, info.tensors, pictures)
            if info.in_parts:
                parts = client.stream(options.model, feeds, version=version)
                return _print_parts(options, parts, own or labels)
            outputs: Mapping[str, Array] = client.infer(options.model, feeds, version=version)
    elif options.around or options.model.endswith(".py"):
        pictures, labels = None, ()
        with _around(options) as around:
            tensors = around.describe().tensors
            feeds = _feeds(options, tensors, None)
            if tensors.in_parts:
                return _print_parts(options, around.stream(feeds), own)
            outputs = around.infer(feeds)
    else:
        model, pictures = _loaded(options)
        feeds = _feeds(options, model.tensors, pictures, model.sample_shapes)
        labels, arrays = model.labels, model.run(feeds)
        names = [each.name for each in model.tensors.outputs]
        outputs = dict(zip(names, arrays, strict=True))
    if pictures is not None:
        first = next(iter(outputs.values()))
        labels = pictures.labels or labels or [str(each) for each in range(first.shape[-1])]
    if own and not any(array.shape[1:] == (len(own),) for array in outputs.values()):
        shapes = "; ".join(f"{name} {list(array.shape)}" for name, array in outputs.items())
        raise ConfigurationError(f"--labels: {len(own)} labels fit no output of {shapes}")
    _print(options, outputs, own or labels)
    return 0


def _print_parts(
    options: argparse.Namespace, parts: Iterable[Mapping[str, Array]], labels: Sequence[str]
) -> int:
    """Print the parts of an answer as they come."""
    for outputs in parts:
        _print(options, outputs, labels)
    return 0


def _print(
    options: argparse.Namespace, outputs: Mapping[str, Array], labels: Sequence[str]
) -> None:
    if options.json:
        print(json.dumps({name: _plain(array) for name, array in outputs.items()}), flush=True)
    else:
        print("\n".join(_lines(outputs, labels)), flush=True)


def _pictures_of(
    options: argparse.Namespace, tensors: TensorSignature, document: Mapping[str, Any] | None
) -> Preprocessing | None:
    """Return how pictures become the input of a server's model: as it says, else as the options."""
    try:
        if document is not None:
            return Preprocessing.of(document) if is_known(document) else None
        if options.input == "image":
            return of_graph(tensors, {"labels": read_labels(options.labels)})
    except (ValueError, TypeError) as err:
        raise ConfigurationError(f"{options.target}: pictures of {options.model}: {err}") from err
    return None


def _loaded(options: argparse.Namespace) -> "tuple[LoadedModel, Preprocessing | None]":
    """Load a model here, and how pictures become its input."""
    installation.require("onnxruntime")
    path = Path(options.model)
    if path.exists() and "models" not in options:
        return load_with_pictures(options, config_of(ModelConfig, options, model=""), path)
    return load_with_pictures(options, model_config(options))


def _around(options: argparse.Namespace) -> "Model":
    """Load a handler here, and the model that it is around, if there is one."""
    installation.require("onnxruntime")
    # Late: a call of a server loads no model.
    from serving.embedded import Model
    from serving.handlers.loading import source_for
    from serving.model.repository import find, is_file

    path = Path(options.model)
    if path.suffix == ".py":
        if options.around:
            raise ConfigurationError(f"handler: {path} is one itself, and runs without another")
        return Model.load(handler=path)
    if not path.exists():
        config = model_config(options)
        path = find(config.models, config.model)
    name = path.stem if is_file(path) else path.absolute().name
    source = source_for(name, options.around)
    facts = options.version, options.device, options.precision
    return Model.load(path, *facts, handler=str(source))


def _feeds(
    options: argparse.Namespace,
    tensors: TensorSignature,
    pictures: Preprocessing | None,
    shapes: Shapes = MappingProxyType({}),
) -> dict[str, Array]:
    """Return an array for each input; the name of the only one may be left out."""
    inputs = {each.name: each for each in tensors.inputs}
    given: dict[str, Any] = {}
    if options.random:
        given = {
            name: _filled("random", each, shape_of(each, shapes)) for name, each in inputs.items()
        }
    words: dict[str, str] = {}
    for word in options.values:
        name, text = _input_of(word, inputs)
        if name in words:
            raise InvalidRequest(f"input {name}: two values, {words[name]:.80} and {text:.80}")
        words[name] = text
    for name, text in words.items():
        given[name] = _value(inputs[name], text, pictures)
    missing = [each for name, each in inputs.items() if name not in given]
    if missing:
        listed = "; ".join(f"{each}, such as {_example(each)}" for each in missing)
        raise InvalidRequest(f"expected a value of {listed}")
    feeds = as_feeds(tensors, given)
    for each in tensors.inputs:
        if each.is_json:  # the words are JSON already
            texts = [json_values.JsonText(text) for text in feeds[each.name].tolist()]
            feeds[each.name] = json_values.column_of(texts)
    return feeds


def _input_of(word: str, inputs: Mapping[str, Tensor]) -> tuple[str, str]:
    """Return the name of the input that a word is for, and the word's value."""
    for name in inputs:
        if word.startswith(f"{name}="):
            return name, word.removeprefix(f"{name}=")
    name, equals, _ = word.partition("=")
    is_named = bool(equals) and not word.startswith("@")
    near = get_close_matches(name, inputs, 1, _NEAR) if is_named else []
    if len(inputs) == 1:
        (only,) = inputs.values()
        if not is_named or (only.datatype == "BYTES" and not near):
            return only.name, word
    if not inputs:
        raise InvalidRequest(f"the model has no inputs, got {word[:80]!r}")
    there = ", ".join(map(str, inputs.values()))
    example = " ".join(map(_example, inputs.values()))
    if not is_named:
        raise InvalidRequest(
            f"expected NAME=VALUE of {there}, such as {example}; got {word[:80]!r}"
        )
    hint = f" did you mean {near[0]}? The" if near else " the"
    raise InvalidRequest(f"no input {name[:80]!r}:{hint} model takes {there}, such as {example}")


def _example(tensor: Tensor) -> str:
    return word_of(tensor, {})


def _value(tensor: Tensor, text: str, pictures: Preprocessing | None) -> Any:
    """Read one value of the command line; axes that it lacks in front are added."""
    is_file = text == "-" or text.startswith("@")
    if not is_file and os.path.isfile(text):
        _require_no_file(tensor, text)
    if not is_file and tensor.is_picture:
        raise InvalidRequest(f"expected a picture, such as {_example(tensor)}, got {text[:80]!r}")
    value = _of_file(tensor, text, pictures) if is_file else _of_text(tensor, text)
    try:
        num_axes = np.ndim(value)
    except ValueError as err:  # lists of different lengths or depths
        raise InvalidRequest(f"expected {tensor}, got {text[:80]!r}: {err}") from err
    for _ in range(len(tensor.shape) - num_axes):
        value = value[None] if isinstance(value, np.ndarray) else [value]
    return value


def _require_no_file(tensor: Tensor, text: str) -> None:
    """Refuse the name of a file where its content is meant; warn where it may be a text.

    Raises:
        InvalidRequest: the name is no value for the input.
    """
    is_text = tensor.datatype == "BYTES" and not tensor.is_binary
    reason = f"{text} is a file: {tensor.name}=@{text} sends its content"
    if is_text:
        print(f"{DISTRIBUTION}: {escape(reason)}, this its name", file=sys.stderr)
    elif tensor.is_binary or not _is_json(text):
        raise InvalidRequest(reason)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _of_file(tensor: Tensor, source: str, pictures: Preprocessing | None) -> Any:
    """Read a file, or stdin: an array, JSON, a text or a picture."""
    try:
        is_stdin, path = source == "-", Path(source[1:])
        content = sys.stdin.buffer.read() if is_stdin else read_regular(path, sys.maxsize - 1)
        if tensor.is_binary:
            return content
        if content.startswith(_NPY):
            return np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as err:  # a header may name a size or a type of which numpy says anything
        raise InvalidRequest(f"{source}: {getattr(err, 'strerror', None) or err}") from err
    try:
        return _of_text(tensor, content.decode())
    except (UnicodeDecodeError, InvalidRequest) as err:
        if pictures is None:
            raise InvalidRequest(
                f"{source}: expected an array (.npy) or JSON for {tensor}; pictures are for models "
                "with a classifier.json, or with --input image"
            ) from err
    from serving.pictures.classifier import steps_of  # late: few inputs are pictures

    return steps_of(pictures).decode(pictures, content).inputs[0]


def _filled(how: str, tensor: Tensor, shape: tuple[int, ...]) -> Array:
    """Return an array of zeros or of random numbers; of texts, if the input takes them."""
    try:
        if tensor.datatype == "BYTES":
            return np.full(shape, "text", object)
        if how == "zeros":
            return np.zeros(shape, tensor.dtype)
        numbers = np.random.default_rng(0).random(shape)
        most = 1 if tensor.dtype.kind == "f" else 2  # numbers that every table has, and masks take
        if tensor.datatype == "UINT8":
            most = 256  # pixels
        return (numbers * most).astype(tensor.dtype)
    except (MemoryError, ValueError) as err:
        raise InvalidRequest(f"{tensor.name}: no room for an array of {list(shape)}") from err


def _of_text(tensor: Tensor, text: str) -> Any:
    if (word := _FILLED.fullmatch(text)) and (word["sizes"] or tensor.datatype != "BYTES"):
        sizes = [int(size) for size in word["sizes"].split(",")] if word["sizes"] else None
        return _filled(word["how"], tensor, shape_of(tensor, {}) if sizes is None else tuple(sizes))
    try:
        value = json.loads(text, parse_float=finite)
    except (ValueError, RecursionError) as err:
        if tensor.datatype == "BYTES":
            return text
        expected = f"expected {tensor} as JSON, such as {_example(tensor)}"
        raise InvalidRequest(f"{expected}, got {text[:80]!r}") from err
    return text if tensor.datatype == "BYTES" and not isinstance(value, list | str) else value


def _plain(array: Array) -> Any:
    if array.dtype.kind == "O":
        texts = (
            each.decode("utf-8", "replace") if isinstance(each, bytes) else each
            for each in array.flat
        )
        array = np.array([*texts], object).reshape(array.shape)
    return array.tolist()


def _lines(outputs: Mapping[str, Array], labels: Sequence[str]) -> list[str]:
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
    return lines
