"""Export of a Keras model that was trained elsewhere, checked on samples of its user's."""

import runpy
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from training.data.mnist import Images
from training.errors import UnusableInput, first_line
from training.export import any_model, samples
from training.export.any_model import Naming
from training.export.image_signature import ImageSignature
from training.export.samples import Samples, read_labels, share_of_commonest
from training.export.version import ExportCandidate, publish_version
from training.fitting.evaluation import Probabilities

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


def export(
    keras_file: Path,
    samples_file: Path | None,
    models: Path,
    name: str,
    labels_file: Path | None = None,
    resize: str | None = None,
    *,
    invert: bool = False,
    imports: Sequence[Path] = (),
    naming: Naming | None = None,
) -> Path:
    """Convert a Keras model, compare it with Keras on the samples, and publish it.

    A model that is no classifier of images, or has no samples of them, goes to `any_model`.

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
        imports: Python files with layers of the model's own.
        naming: names of inputs and outputs, where they are not those of layers.

    Returns:
        The new version's folder.

    Raises:
        UnusableInput: a file can't be read, or the model is no classifier of such images.
        ExportError: the network can't be converted, the graph does not answer as Keras does, or
            the files could not be written. Nothing is published.
    """
    naming = naming or Naming()
    for file in imports:
        _import(file)
    model = _load(keras_file)
    print(f"exporting {keras_file}", flush=True)
    if samples_file is None or not samples.are_images(samples_file):
        given = {"--resize": resize, "--invert": invert}
        if found := [option for option, value in given.items() if value]:
            raise UnusableInput(
                f"{found[0]} is for classifiers of images, which need --samples "
                "with an array `images`"
            )
        return any_model.export(model, samples_file, models / name, labels_file, naming)
    if naming.inputs or naming.outputs:
        raise UnusableInput(
            "a classifier of images has the names images and probabilities: "
            "--input-names and --output-names are for other models"
        )
    _check_ends(model)
    num_classes, num_parameters = max(2, model.output_shape[1]), model.count_params()
    data, sample_shape = samples.read(samples_file, num_classes)
    model, shape = _fixed_shape(model, sample_shape)
    signature = ImageSignature(
        input_shape=shape, classes=num_classes, labels=_labels(labels_file, num_classes)
    )
    preprocessing = signature.preprocessing(resize, invert=invert)
    model, expected = _classifier(model, data.images)
    candidate = ExportCandidate(
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
        is_new_signature=naming.is_new_signature,
        facts={
            "recipe": None,
            "seed": None,
            "parameters": num_parameters,
            "accuracy": {"validation": None, "test": _accuracy(expected, data)},
        },
    )
    return publish_version(candidate, models)


def _import(file: Path) -> None:
    """Run a Python file that registers layers.

    Raises:
        UnusableInput: it can't be run.
    """
    try:
        runpy.run_path(str(file), run_name=file.stem)
    except Exception as err:  # somebody's own code
        raise UnusableInput(f"--import {file}: {type(err).__name__}: {first_line(err)}") from err


def _load(path: Path) -> keras.Model:
    try:
        return keras.models.load_model(path, compile=False)
    except Exception as err:  # Keras and the layers' own code raise any exception
        advice = ""
        if "register_keras_serializable" in str(err):
            advice = "; --import layers.py names the file that defines and registers it"
        reason = f"cannot read {path} as a Keras model: {first_line(err)}{advice}"
        raise UnusableInput(reason) from err


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
    guessed = share_of_commonest(data.labels)
    if accuracy <= guessed:
        print(
            f"  warning   accuracy {accuracy:.2%} on {len(data.labels):,} samples, and "
            f"{guessed:.2%} for the same class each time: the model may have learned nothing",
            flush=True,
        )
    return accuracy


def _labels(path: Path | None, num_classes: int) -> tuple[str, ...]:
    """Read a text for each class; without a file they are numbers."""
    return tuple(map(str, range(num_classes))) if path is None else read_labels(path, num_classes)


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
        raise UnusableInput(
            f"the model answers {num_bad:,} of {len(images):,} samples with NaN or infinity"
        )
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
