"""Export of a Keras model of any inputs and outputs, compared with Keras, without a manifest."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import onnx
import tensorflow as tf

from serving.publishing.writer import write_version
from training import cli
from training.errors import ExportError, UnusableInput, first_line
from training.export import conversion, parity, samples, signature
from training.export.conversion import IR_VERSION, Call

Arrays = dict[str, npt.NDArray[Any]]

TOLERANCE = 1e-4
"""The largest difference from Keras's numbers, relative to the greatest of an output: float32 adds
up in another order."""
_NUM_DRAWN, _NUM_LARGE, _LARGE_BYTES = 32, 8, 256 << 10
"""Rows that are drawn without samples; of rows of more bytes than the third fewer."""
_BATCH_BYTES = 8 << 20
"""The most bytes of input in one run: activations take many times as much."""
_LENGTHS = (16, 32, 64, 128, 224)
_SIDES = (224, 32, 64, 96, 128, 160, 192, 256, 299)
"""Sizes that are tried for axes that the model leaves open; of pictures the second ones."""
_CHANNELS = (1, 3, 4)
_LITTLE = 10 * TOLERANCE
"""The least difference between answers that shows something, relative as the tolerance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Naming:
    """The names of a graph's inputs and outputs."""

    inputs: tuple[str, ...] = ()
    """Names in the order of the model's inputs; none: those of its layers."""
    outputs: tuple[str, ...] = ()
    """Names in the order of the model's outputs; none: those of its layers."""
    is_new_signature: bool = False
    """Whether they may differ from those of the newest version."""


def export(
    model: keras.Model,
    samples_file: Path | None,
    folder: Path,
    labels_file: Path | None,
    naming: Naming,
) -> Path:
    """Convert a model, compare it with Keras, and publish it without a manifest.

    Args:
        model: of any inputs and outputs; each has the rows of a batch along its first axis.
        samples_file: an NPZ file with an array for each input by its name, (N, ...); None: drawn
            numbers are used, which say nothing of the model's answers to real ones.
        folder: the model's folder; the version becomes <folder>/<n>/.
        labels_file: a text for each class, one a line; None if it has no classes, or no names.
        naming: the names of inputs and outputs.

    Returns:
        The new version's folder.

    Raises:
        UnusableInput: the samples don't fit, the model fails on them, or names don't hold.
        ExportError: it can't be converted, or the graph does not answer as Keras does. Nothing is
            published.
    """
    flat = keras.Model(model.inputs, model.outputs)  # lists in place of dicts or nests
    if texts := [each.name for each in model.inputs if each.dtype == "string"]:
        raise UnusableInput(
            f"input {texts[0]} takes texts, which can't be converted: look them up before the model"
        )
    inputs = _chosen("--input-names", naming.inputs, own_names(model.inputs))
    outputs = _chosen("--output-names", naming.outputs, own_names(flat.outputs, inputs))
    labels = _labels(labels_file, flat)
    feeds, expected = _answered(flat, inputs, samples_file)
    size_mb = conversion.weight_bytes(flat) / 1e6
    print(
        f"  keras     ran {_num_rows(feeds)} rows; converting {size_mb:.1f} MB of weights",
        flush=True,
    )
    proto = _convert(flat, inputs, outputs)
    answers = dict(zip(outputs, expected, strict=True))
    if not naming.is_new_signature:
        kept = signature.names_kept(folder, signature.of_graph(proto))
        _rename(proto, kept)
        feeds, answers = ({kept.get(n, n): a for n, a in each.items()} for each in (feeds, answers))
    mark = signature.require_same(
        folder, signature.of_graph(proto), is_new_allowed=naming.is_new_signature
    )
    if labels:
        proto.metadata_props.add(key="labels", value=json.dumps(labels))
    data = proto.SerializeToString()
    del proto  # a large one is in memory often enough
    print("  onnx      converted; comparing it with Keras", flush=True)
    _compare(data, feeds, answers, is_drawn=samples_file is None)
    try:
        version = write_version(folder, lambda _: {"model.onnx": data, **mark})
    except OSError as err:
        raise ExportError(f"not published, cannot write {folder}: {err.strerror}") from err
    print(f"  size      {len(data) / 1e6:.2f} MB, {model.count_params():,} parameters")
    print(f"published {version}; serve it with {cli.serve(version.parent)}", flush=True)
    return version


# Names


def own_names(tensors: Sequence[Any], taken: Sequence[str] = ()) -> list[str]:
    """Return the names of the layers that tensors belong to, without Keras's running numbers.

    The same network built twice in one process has other numbers: `input_layer_1` and `dense_3`.
    Of several with one name the first that was made gets the letter a, the next one b.

    Args:
        tensors: inputs or outputs of a model.
        taken: names that none may have.
    """
    found = [_own_name(tensor) for tensor in tensors]
    names = []
    for base, number in found:
        numbers = sorted(each for name, each in found if name == base)
        rank = numbers.index(number)
        suffix = chr(ord("a") + rank) if len(numbers) <= 26 else f"x{rank}"
        names.append(f"{base}_{suffix}" if len(numbers) > 1 else base)
    return [f"{name}_output" if name in taken else name for name in _distinct(names)]


def _own_name(tensor: Any) -> tuple[str, int]:
    """Return the name of a tensor's layer, and its running number if Keras has made it up."""
    layer = tensor._keras_history.operation
    name = str(layer.name)
    usual = re.sub(
        r"([a-z])([A-Z])",
        r"\1_\2",
        re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", type(layer).__name__)),
    ).lower()
    found = re.fullmatch(rf"({re.escape(usual)})(?:_(\d+))?", name)
    plain = "".join(c if c.isalnum() else "_" for c in name)
    return (found[1], int(found[2] or 0)) if found else (plain, 0)


def _distinct(names: list[str]) -> list[str]:
    """Number the outputs of one layer."""
    return [f"{n}_{i}" if names.count(n) > 1 else n for i, n in enumerate(names)]


def _chosen(option: str, names: Sequence[str], own: list[str]) -> list[str]:
    if not names:
        return own
    is_good = len({*names}) == len(names) == len(own)
    if not is_good or not all(re.fullmatch(r"[A-Za-z]\w*", each, re.ASCII) for each in names):
        raise UnusableInput(
            f"{option}: expected {len(own)} different names of letters, digits and "
            f"_ for {', '.join(own)}, got {', '.join(names)}"
        )
    return [*names]


def _rename(proto: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Give inputs and outputs of a graph other names."""
    graph = proto.graph
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for at, name in enumerate(node.output):
            node.output[at] = names.get(name, name)
    conversion.rename_uses(graph, names)


def _labels(path: Path | None, model: keras.Model) -> tuple[str, ...]:
    """Read the labels of the output of so many classes."""
    if path is None:
        return ()
    sizes = [each.shape[-1] for each in model.outputs if len(each.shape) == 2]
    if not sizes or not sizes[0]:
        raise UnusableInput("--labels is for classifiers: no output has a row of classes")
    return samples.read_labels(path, sizes[0])


# Samples, and Keras's answers to them


def _answered(
    model: keras.Model, names: list[str], samples_file: Path | None
) -> tuple[Arrays, list[npt.NDArray[Any]]]:
    """Return rows for each input, and Keras's answers."""
    failure, given = None, ", ".join(names)
    tried = [samples_file] if samples_file else _fills(model)
    for fill in tried:
        feeds = _draw(model, names, fill) if isinstance(fill, int) else _read(fill, model, names)
        try:
            answers = _keras_answers(model, [feeds[each] for each in names])
        except Exception as err:  # layers raise any exception
            failure = err
            continue
        if num_bad := max(map(_num_not_finite, answers)):
            advice = "" if samples_file else f"; if not, pass --samples FILE.npz with {given}"
            raise UnusableInput(
                f"the model answers {num_bad} of {_num_rows(feeds)} rows with NaN or infinity: "
                f"did its training diverge?{advice}"
            )
        return feeds, answers
    assert failure is not None
    reason = first_line(failure)
    if samples_file:
        raise UnusableInput(f"the model fails on these inputs: {reason}") from failure
    raise UnusableInput(
        f"the model fails on drawn inputs, pass --samples FILE.npz with {given}: {reason}"
    ) from failure


def _num_not_finite(answers: npt.NDArray[Any]) -> int:
    """Return the number of rows with a NaN or an infinity."""
    if answers.dtype.kind in "SUO":  # text is neither
        return 0
    is_finite = np.isfinite(answers).reshape(len(answers), -1).all(axis=1)
    return int((~is_finite).sum())


def _fills(model: keras.Model) -> tuple[int, ...]:
    """Return the sizes to try for open axes."""
    is_open = any(None in each.shape[1:] for each in model.inputs)
    sizes = _SIDES if any(map(_is_picture, model.inputs)) else _LENGTHS
    return sizes if is_open else sizes[:1]


def _is_picture(tensor: Any) -> bool:
    shape = tensor.shape
    return len(shape) == 4 and (shape[3] in _CHANNELS or shape[1] in _CHANNELS)


def _draw(model: keras.Model, names: list[str], fill: int) -> Arrays:
    """Draw rows: normal numbers; whole ones below the smallest vocabulary; levels of pictures."""
    generator = np.random.default_rng(0)
    tables = [
        layer.input_dim
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.Embedding)
    ]
    shapes = [tuple(size or fill for size in each.shape[1:]) for each in model.inputs]
    is_large = max(4 * int(np.prod(shape)) for shape in shapes) > _LARGE_BYTES
    num_rows, arrays = _NUM_LARGE if is_large else _NUM_DRAWN, {}
    for name, tensor, sizes in zip(names, model.inputs, shapes, strict=True):
        shape, dtype = (num_rows, *sizes), np.dtype(tensor.dtype)
        if dtype.kind in "iu":
            drawn: npt.NDArray[Any] = generator.integers(0, min(tables, default=256), shape)
        else:
            drawn = generator.normal(size=shape)
        if _is_picture(tensor) and dtype.kind == "f":  # 0 to 255, or scaled before
            half = num_rows // 2
            drawn[:half] = generator.integers(0, 256, (half, *sizes))
        arrays[name] = drawn.astype(dtype)
    return arrays


def _read(path: Path | None, model: keras.Model, names: list[str]) -> Arrays:
    """Read an array for each input, of as many rows each; by its name in the graph or in Keras."""
    assert path is not None
    arrays = samples.load(path)
    for name, tensor in zip(names, model.inputs, strict=True):
        if name not in arrays and tensor.name in arrays:
            arrays[name] = arrays.pop(tensor.name)
    if missing := [name for name in names if name not in arrays]:
        raise UnusableInput(
            f"{path}: expected arrays {', '.join(names)}, got {sorted(arrays)}; "
            f"{missing[0]} is missing"
        )
    for name, tensor in zip(names, model.inputs, strict=True):
        own, wanted = arrays[name].shape, tensor.shape
        fits = len(own) == len(wanted) and all(
            w in (None, o) for w, o in zip(wanted, own, strict=True)
        )
        if not fits or not own[0] or own[0] != len(arrays[names[0]]):
            shown = tuple(size or "N" for size in wanted)
            raise UnusableInput(
                f"{path}: expected {name} of shape {shown}, got {own}, as many rows as {names[0]}"
            )
    return {
        name: arrays[name].astype(tensor.dtype)
        for name, tensor in zip(names, model.inputs, strict=True)
    }


def _num_rows(feeds: Mapping[str, npt.NDArray[Any]]) -> int:
    return len(next(iter(feeds.values())))


def _batch(arrays: Sequence[npt.NDArray[Any]]) -> int:
    """Return how many rows are run at once."""
    row_bytes = sum(array[:1].nbytes for array in arrays)
    return min(len(arrays[0]), max(1, _BATCH_BYTES // max(1, row_bytes)))


def _batches(arrays: Sequence[npt.NDArray[Any]], size: int) -> Iterator[list[npt.NDArray[Any]]]:
    for at in range(0, len(arrays[0]), size):
        yield [array[at : at + size] for array in arrays]


def _keras_answers(
    model: keras.Model, arrays: Sequence[npt.NDArray[Any]]
) -> list[npt.NDArray[Any]]:
    with tf.device("/CPU:0"):
        parts = [
            [*map(np.asarray, _call(lambda x: model(x, training=False), [*map(tf.constant, each)]))]
            for each in _batches(arrays, _batch(arrays))
        ]
    return [np.concatenate(each) for each in zip(*parts, strict=True)]


def _call(call: Call, arrays: Sequence[Any]) -> Sequence[Any]:
    """Call a model; return its outputs, of which it may have only one."""
    found = call(arrays[0] if len(arrays) == 1 else [*arrays])
    return found if isinstance(found, list | tuple) else [found]


# The graph


def _convert(model: keras.Model, inputs: list[str], outputs: list[str]) -> onnx.ModelProto:
    specs = [
        tf.TensorSpec(each.shape, each.dtype, name=name)
        for each, name in zip(model.inputs, inputs, strict=True)
    ]

    def run(call: Call, *arrays: tf.Tensor) -> Mapping[str, tf.Tensor]:
        found = zip(outputs, _call(call, arrays), strict=True)
        return {name: tf.identity(each) for name, each in found}

    try:
        proto = conversion.convert(model, run, specs)
        for value in (*proto.graph.input, *proto.graph.output):
            for number, size in enumerate(value.type.tensor_type.shape.dim):
                if not size.dim_value:
                    size.dim_param = f"{value.name}_{number}" if number else "N"
        proto.ir_version = IR_VERSION
        onnx.checker.check_model(proto, full_check=True)
    except Exception as err:  # tf2onnx and Keras's layers raise any exception
        raise ExportError(f"cannot convert the model to ONNX: {first_line(err)}") from err
    return proto


def _compare(data: bytes, feeds: Arrays, expected: Arrays, *, is_drawn: bool) -> None:
    """Compare ONNX Runtime's answers with Keras's, row by row and in batches.

    Raises:
        ExportError: they differ.
    """
    num_rows, most = _num_rows(feeds), _batch([*feeds.values()])
    try:
        session = parity.open_bytes(data)
        worst = max(_worst(session.run, feeds, expected, size) for size in {1, most})
    except ExportError:
        raise
    except Exception as err:  # ONNX Runtime's own exceptions have no common base
        raise ExportError(f"not published, ONNX Runtime can't run it: {first_line(err)}") from err
    text = (
        f"largest difference {worst:.1e} of {num_rows} rows at batch 1 and {most}, relative"
        f" to an output's greatest number (allowed: {TOLERANCE:.0e})"
    )
    if not worst <= TOLERANCE:
        raise ExportError(f"not published, ONNX Runtime and Keras disagree: {text}")
    print(f"  parity    {text}", flush=True)
    spread = max((_spread(each) for each in expected.values()), default=0.0)
    advice = f"pass --samples FILE.npz with {', '.join(feeds)} to compare on yours"
    if spread <= _LITTLE and num_rows > 1:
        print(
            f"  samples   this proves little: answers to these rows differ by {spread:.1e} at "
            f"most; {advice}",
            flush=True,
        )
    elif is_drawn:
        print(f"  samples   {num_rows} drawn rows: {advice}", flush=True)


def _scale(array: npt.NDArray[Any]) -> float:
    return max(1.0, float(np.abs(array).max(initial=0)))


def _spread(answers: npt.NDArray[Any]) -> float:
    """Return how much the answers to different rows differ, relative to the greatest number."""
    ranges = answers.max(axis=0).astype(float) - answers.min(axis=0).astype(float)
    return float(np.max(ranges, initial=0)) / _scale(answers)


def _worst(run: Callable[..., Sequence[Any]], feeds: Arrays, expected: Arrays, size: int) -> float:
    """Return the largest relative difference in batches of this size."""
    answers = [
        run([*expected], dict(zip(feeds, each, strict=True)))
        for each in _batches([*feeds.values()], size)
    ]
    worst = 0.0
    for wanted, parts in zip(expected.values(), zip(*answers, strict=True), strict=True):
        got = np.concatenate(parts)
        if got.shape != wanted.shape:
            raise ExportError(
                f"not published, ONNX Runtime answers {got.shape}, Keras {wanted.shape}"
            )
        difference = float(np.abs(got - wanted.astype(got.dtype)).max(initial=0)) / _scale(wanted)
        worst = difference if np.isnan(difference) else max(worst, difference)
    return worst
