"""Export of any Keras model: several inputs and outputs, tokens, no classifier of images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import onnx
import tensorflow as tf

from training import commandline
from training.errors import ExportError, UnusableInput, first_line
from training.export import parity, samples
from training.export.graph import IR_VERSION, from_function
from training.export.repository import publish

Arrays = dict[str, npt.NDArray[Any]]

TOLERANCE = 1e-4
"""The largest difference from Keras's numbers, relative to the greatest of an output: float32 adds
up in another order."""
_NUM_DRAWN, _LENGTH = 32, 16
"""Rows that are drawn without samples, and the length of axes that the model leaves open."""


def export(model: keras.Model, samples_file: Path | None, models: Path, name: str) -> Path:
    """Convert a model, compare it with Keras, and publish it without a manifest.

    Args:
        model: of any inputs and outputs; each has the rows of a batch along its first axis.
        samples_file: an NPZ file with an array for each input by its name, (N, ...); None: drawn
            numbers are used, which say nothing of the model's answers to real ones.
        models: the model repository; the version becomes models/<name>/<n>/.
        name: the model's name in the repository.

    Returns:
        The new version's folder.

    Raises:
        UnusableInput: the samples don't fit, or the model fails on them.
        ExportError: it can't be converted, or the graph does not answer as Keras does. Nothing is
            published.
    """
    flat = keras.Model(model.inputs, model.outputs)  # lists in place of dicts or nests
    inputs = _names([each.name for each in model.inputs])
    outputs = _names(list(flat.output_names))
    if texts := [n for n, each in zip(inputs, model.inputs, strict=True) if each.dtype == "string"]:
        raise UnusableInput(f"input {texts[0]} takes texts, which can't be converted: look them up "
                            "before the model")  # fmt: skip
    feeds = _draw(model, inputs) if samples_file is None else _read(samples_file, model, inputs)
    try:
        with tf.device("/CPU:0"):
            found = _outputs(flat, [tf.constant(feeds[each]) for each in inputs])
            expected = [*map(np.asarray, found)]
    except Exception as err:  # layers raise any exception
        raise UnusableInput(f"the model fails on these inputs: {first_line(err)}") from err
    proto = _convert(flat, inputs, outputs)
    _compare(proto, feeds, dict(zip(outputs, expected, strict=True)))
    if samples_file is None:
        print(f"  samples   {_NUM_DRAWN} drawn rows: pass --samples FILE.npz with "
              f"{', '.join(inputs)} to compare on yours", flush=True)  # fmt: skip
    data = proto.SerializeToString()
    try:
        version = publish(models / name, lambda _: {"model.onnx": data}, {})
    except OSError as err:
        raise ExportError(f"not published, cannot write {models / name}: {err.strerror}") from err
    print(f"  size      {len(data) / 1e6:.2f} MB, {model.count_params():,} parameters")
    print(f"published {version}; serve it with {commandline.serve(version.parent)}", flush=True)
    return version


def _names(found: list[str]) -> list[str]:
    """Return names that differ and can be names of arguments."""
    plain = ["".join(c if c.isalnum() else "_" for c in name) for name in found]
    return [f"{n}_{i}" if plain.count(n) > 1 else n for i, n in enumerate(plain)]


def _outputs(model: keras.Model, arrays: Sequence[Any]) -> Sequence[Any]:
    """Run a model; return its outputs, of which it may have only one."""
    found = model(arrays[0] if len(arrays) == 1 else [*arrays], training=False)
    return found if isinstance(found, list | tuple) else [found]


def _shape(tensor: Any, num_rows: int) -> tuple[int, ...]:
    return (num_rows, *(size or _LENGTH for size in tensor.shape[1:]))


def _draw(model: keras.Model, names: list[str]) -> Arrays:
    """Draw rows: normal numbers, and whole ones below the smallest vocabulary of the model."""
    generator = np.random.default_rng(0)
    tables = [layer.input_dim for layer in model._flatten_layers()
              if isinstance(layer, keras.layers.Embedding)]  # fmt: skip
    arrays = {}
    for name, tensor in zip(names, model.inputs, strict=True):
        shape, dtype = _shape(tensor, _NUM_DRAWN), np.dtype(tensor.dtype)
        if dtype.kind in "iu":
            drawn: npt.NDArray[Any] = generator.integers(0, min(tables, default=256), shape)
        else:
            drawn = generator.normal(size=shape)
        arrays[name] = drawn.astype(dtype)
    return arrays


def _read(path: Path, model: keras.Model, names: list[str]) -> Arrays:
    """Read an array for each input, of as many rows each."""
    arrays = samples.load(path)
    if missing := [name for name in names if name not in arrays]:
        raise UnusableInput(f"{path}: expected arrays {', '.join(names)}, got {sorted(arrays)}; "
                            f"{missing[0]} is missing")  # fmt: skip
    for name, tensor in zip(names, model.inputs, strict=True):
        own, wanted = arrays[name].shape, tensor.shape
        fits = len(own) == len(wanted) and all(
            w in (None, o) for w, o in zip(wanted, own, strict=True)
        )
        if not fits or not own[0] or own[0] != len(arrays[names[0]]):
            shown = tuple(size or "N" for size in wanted)
            raise UnusableInput(f"{path}: expected {name} of shape {shown}, got {own}, as many "
                                f"rows as {names[0]}")  # fmt: skip
    return {name: arrays[name].astype(tensor.dtype)
            for name, tensor in zip(names, model.inputs, strict=True)}  # fmt: skip


def _convert(model: keras.Model, inputs: list[str], outputs: list[str]) -> onnx.ModelProto:
    """Have tf2onnx convert the operations that TensorFlow records."""
    specs = [tf.TensorSpec(each.shape, each.dtype, name=name)
             for each, name in zip(model.inputs, inputs, strict=True)]  # fmt: skip

    def run(*arrays: tf.Tensor) -> Mapping[str, tf.Tensor]:
        found = zip(outputs, _outputs(model, arrays), strict=True)
        return {name: tf.identity(each) for name, each in found}

    try:
        proto = from_function(run, specs)
        for value in (*proto.graph.input, *proto.graph.output):
            for number, size in enumerate(value.type.tensor_type.shape.dim):
                if not size.dim_value:
                    size.dim_param = f"{value.name}_{number}" if number else "N"
        proto.ir_version = IR_VERSION
        onnx.checker.check_model(proto, full_check=True)
    except Exception as err:  # tf2onnx and Keras's layers raise any exception
        raise ExportError(f"cannot convert the model to ONNX: {first_line(err)}") from err
    return proto


def _compare(proto: onnx.ModelProto, feeds: Arrays, expected: Arrays) -> None:
    """Compare ONNX Runtime's answers with Keras's, row by row and all at once.

    Raises:
        ExportError: they differ.
    """
    num_rows, worst = len(next(iter(feeds.values()))), 0.0
    try:
        session = parity.open_session(proto)
        for size in (1, num_rows):
            answers = [
                session.run([*expected], {n: a[at : at + size] for n, a in feeds.items()})
                for at in range(0, num_rows, size)
            ]
            for wanted, parts in zip(expected.values(), zip(*answers, strict=True), strict=True):
                got = np.concatenate(parts)
                if got.shape != wanted.shape:
                    raise ExportError(f"not published, ONNX Runtime answers {got.shape}, Keras "
                                      f"{wanted.shape}")  # fmt: skip
                scale = max(1.0, float(np.abs(wanted).max(initial=0)))
                difference = float(np.abs(got - wanted.astype(got.dtype)).max(initial=0)) / scale
                worst = max(worst, difference)
    except ExportError:
        raise
    except Exception as err:  # ONNX Runtime's own exceptions have no common base
        raise ExportError(f"not published, ONNX Runtime can't run it: {first_line(err)}") from err
    text = (f"largest difference {worst:.1e} of {num_rows} rows at batch 1 and {num_rows}, relative"
            f" to an output's greatest number (allowed: {TOLERANCE:.0e})")  # fmt: skip
    if not worst <= TOLERANCE:
        raise ExportError(f"not published, ONNX Runtime and Keras disagree: {text}")
    print(f"  parity    {text}", flush=True)
