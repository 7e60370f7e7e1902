"""Export of a Keras model that was trained elsewhere, checked on samples of its user's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import onnx
import tensorflow as tf

from training import cli
from training.data.mnist import Images
from training.errors import ExportError, UnusableInput, first_line
from training.export import parity, samples
from training.export.graph import IR_VERSION, from_function
from training.export.repository import publish
from training.export.samples import ImageSignature, Samples
from training.export.version import Candidate, publish_version
from training.fitting.evaluation import Probabilities

Arrays = dict[str, npt.NDArray[Any]]

TOLERANCE = 1e-4
"""The largest difference from Keras's numbers, relative to the greatest of an output: float32 adds
up in another order."""
_NUM_DRAWN, _LENGTH = 32, 16
"""Rows that are drawn without samples, and the length of axes that the model leaves open."""


def export_any(model: keras.Model, samples_file: Path | None, models: Path, name: str) -> Path:
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
    print(f"published {version}; serve it with {cli.serve(version.parent)}", flush=True)
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


PARITY_TOLERANCE = 1e-4
"""Ten times that of digits: logits may be large, and float32 rounds large numbers coarsely."""

_BATCH = 256

_SUM_TOLERANCE = 1e-3
"""The largest distance from 1 of probabilities added up, as float32 or coarser rounds them."""


_ONE = {
    "input": "join them in one, which the model splits; a model never called has none",
    "output": "save keras.Model(model.inputs, model.outputs[0])",
}
"""The parts that a model must have once, and a remedy."""

MAX_LABEL = 100
"""Characters of a label: serving refuses longer ones."""


def export(
    keras_file: Path, samples_file: Path | None, models: Path, name: str,
    labels_file: Path | None = None, resize: str | None = None, *, invert: bool = False,
) -> Path:  # fmt: skip
    """Convert a Keras model, compare it with Keras on the samples, and publish it.

    A model that is no classifier of images, or has no samples of them, goes to `export_any`.

    Half of the samples are those that int8 weights are rounded on, the others test int8.

    Args:
        keras_file: a model that takes (N, ...) pixels from 0 to 255 and gives (N, classes) logits
            or probabilities. Which of both is decided by its answers to the samples: numbers from
            0 to 1 that add up to 1 are probabilities; any outside of 0 to 1 make them logits, and
            the graph gets a softmax. A single probability is that of the second of two classes.
        samples_file: an NPZ file with `images`, (N, ...) uint8 of the shape that the model takes or
            of another with as many pixels, and optionally `labels`, (N,) integers from 0.
        models: the model repository; the version becomes models/<name>/<n>/.
        name: the model's name in the repository.
        labels_file: a text for each class, one a line, UTF-8; None for "0", "1" and so on.
        resize: how pictures of other proportions are made to fit; see `Signature.preprocessing`.
        invert: whether pictures that are mostly light are inverted.

    Returns:
        The new version's folder.

    Raises:
        UnusableInput: a file can't be read, or the model is no classifier of such images.
        ExportError: the network can't be converted, the graph does not answer as Keras does, or
            the files could not be written. Nothing is published.
    """
    model = _load(keras_file)
    print(f"exporting {keras_file}", flush=True)
    if samples_file is None or not samples.are_images(samples_file):
        given = {"--labels": labels_file, "--resize": resize, "--invert": invert}
        if found := [option for option, value in given.items() if value]:
            raise UnusableInput(f"{found[0]} is for classifiers of images, which need --samples "
                                "with an array `images`")  # fmt: skip
        return export_any(model, samples_file, models, name)
    _check_ends(model)
    num_classes, num_parameters = max(2, model.output_shape[1]), model.count_params()
    data, sample_shape = samples.read(samples_file, num_classes)
    model, shape = _fixed_shape(model, sample_shape)
    signature = ImageSignature(
        input_shape=shape, classes=num_classes, labels=_labels(labels_file, num_classes)
    )
    preprocessing = signature.preprocessing(resize, invert=invert)
    model, expected = _classifier(model, data.images)
    candidate = Candidate(
        name=name,
        model=model,
        signature=signature,
        preprocessing=preprocessing,
        samples=data,
        expected=expected,
        tolerance=PARITY_TOLERANCE,
        rounding=data.images[::2],
        int8_test=data.odd(),
        int8_validation=None,
        facts={
            "recipe": None,
            "seed": None,
            "parameters": num_parameters,
            "accuracy": {"validation": None, "test": _accuracy(expected, data)},
        },
    )
    return publish_version(candidate, models)


def _load(path: Path) -> keras.Model:
    try:
        return keras.models.load_model(path, compile=False)
    except Exception as err:  # Keras and the layers' own code raise any exception
        raise UnusableInput(f"cannot read {path} as a Keras model: {first_line(err)}") from err


def _accuracy(answers: Probabilities, data: Samples) -> float | None:
    """Compute the accuracy on the samples; None without labels.

    Raises:
        UnusableInput: not one answer is right: this is another model, or it takes other pixels.
    """
    if data.labels is None:
        return None
    accuracy = float((answers.argmax(axis=1) == data.labels).mean())
    if not accuracy:
        raise UnusableInput(
            f"the model answers none of {len(data.labels):,} samples as labelled: does it take "
            "pixels of 0 to 255?"
        )
    return accuracy


def _labels(path: Path | None, num_classes: int) -> tuple[str, ...]:
    """Read a text for each class, one a line."""
    if path is None:
        return tuple(map(str, range(num_classes)))
    try:
        labels = path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as err:
        raise UnusableInput(f"cannot read {path}: {err}") from err
    fit = {label for label in labels if label.isprintable() and 0 < len(label) <= MAX_LABEL}
    if not len(fit) == len(labels) == num_classes:
        raise UnusableInput(
            f"{path}: expected {num_classes} different labels of 1 to {MAX_LABEL} printable "
            f"characters, one a line, got {len(fit)} in {len(labels)} lines"
        )
    return tuple(labels)


def _check_ends(model: keras.Model) -> None:
    """Raise UnusableInput unless a model has one input, and one output of a row for each image."""
    for kind, advice in _ONE.items():
        found = getattr(model, f"{kind}s", None) or []
        if len(found) != 1:
            raise UnusableInput(f"expected a model of one {kind}, got {len(found)}: {advice}")
    if len(model.output_shape) != 2 or not model.output_shape[1]:
        raise UnusableInput(
            f"expected an output of (N, classes), got {model.output_shape}: flatten or pool before "
            "the last Dense"
        )


def _fixed_shape(
    model: keras.Model, sample_shape: tuple[int, ...]
) -> tuple[keras.Model, tuple[int, ...]]:
    """Return a model that takes images of a fixed shape, and this shape without a lone channel.

    Sizes that the model leaves open are those of the samples; a flat image has their shape.

    Raises:
        UnusableInput: the samples don't fit.
    """
    wanted = model.input_shape[1:]
    for shape in (sample_shape, (*sample_shape, 1)):
        open_sizes = [size for size, own in zip(wanted, shape, strict=False) if size != own]
        if len(shape) == len(wanted) and set(open_sizes) == {None}:
            model = _with_input(model, shape)
    shape = model.input_shape[1:]
    if None in shape or not shape or np.prod(sample_shape) != np.prod(shape):
        raise UnusableInput(
            f"expected images of shape {wanted}, as the model takes, got {sample_shape}"
        )
    full: tuple[int, ...] = max(shape, sample_shape, key=len)
    return model, full[:-1] if len(full) == 3 and full[-1] == 1 else full


def _with_input(model: keras.Model, shape: tuple[int, ...]) -> keras.Model:
    """Put an input of a fixed shape in front; of a model that can't take it, nothing."""
    try:
        images = keras.Input(shape, dtype=model.inputs[0].dtype)
        return keras.Model(images, model(images))
    except Exception:  # layers raise any exception
        return model


def _classifier(model: keras.Model, images: Images) -> tuple[keras.Model, Probabilities]:
    """Return a model that gives probabilities, and those of (N, pixels) images, (N, classes).

    Raises:
        UnusableInput: the answers are neither logits nor probabilities of one class an image.
    """
    answers = _classify(model, images)
    if num_bad := int((~np.isfinite(answers)).any(axis=1).sum()):
        raise UnusableInput(f"the model answers {num_bad:,} of {len(images):,} samples with NaN or "
                            "infinity")  # fmt: skip
    is_logits = answers.min() < 0 or answers.max() > 1 + _SUM_TOLERANCE
    if answers.shape[1] == 1:
        if is_logits:
            raise UnusableInput(
                "expected one probability or several numbers an image, got one number outside of "
                '0 to 1: put keras.layers.Activation("sigmoid") last'
            )
        both = keras.layers.Dense(2)  # of p: 1 - p, and p
        model = keras.Model(model.inputs, both(model.outputs[0]))
        both.set_weights([np.array([[-1, 1]]), np.array([1, 0])])
        return model, np.concatenate([1 - answers, answers], axis=1)
    if is_logits:
        model = keras.Model(model.inputs, keras.layers.Softmax()(model.outputs[0]))
        return model, np.asarray(keras.ops.softmax(answers))
    if np.abs(answers.sum(axis=1) - 1).max() > _SUM_TOLERANCE:
        raise UnusableInput(
            "the model is not a classifier: its answers lie from 0 to 1 but don't add up to 1; "
            "expected softmax, or logits"
        )
    return model, answers


def _classify(model: keras.Model, images: Images) -> Probabilities:
    """Run a model on (N, pixels) images, on the CPU; returns (N, classes) float32."""
    try:
        pixels = images.reshape(-1, *model.input_shape[1:]).astype(model.inputs[0].dtype)
        batches = (pixels[start : start + _BATCH] for start in range(0, len(pixels), _BATCH))
        with tf.device("/CPU:0"):  # see evaluation.probabilities
            return np.concatenate(
                [np.asarray(model(batch, training=False), np.float32) for batch in batches]
            )
    except Exception as err:  # layers raise any exception
        raise UnusableInput(f"the model fails on the samples: {first_line(err)}") from err
