"""Export of a Keras classifier that was trained elsewhere, checked on samples of its user's."""

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from training.data.mnist import Images
from training.errors import UnusableInput, first_line
from training.export import samples
from training.export.manifest import Signature
from training.export.samples import Samples
from training.export.version import Candidate, publish_version
from training.fitting.evaluation import Probabilities

BATCH = 256

PARITY_TOLERANCE = 1e-4
"""Ten times that of digits: logits may be large, and float32 rounds large numbers coarsely."""

MAX_LABEL = 100
"""Characters of a label: serving refuses longer ones."""

SUM_TOLERANCE = 1e-3
"""The largest distance from 1 of probabilities added up, as float32 or coarser rounds them."""


def export(
    keras_file: Path, samples_file: Path, models: Path, name: str, labels_file: Path | None = None
) -> Path:
    """Convert a Keras classifier, compare it with Keras on the samples, and publish it.

    Half of the samples are those that int8 weights are rounded on, the others test int8.

    Args:
        keras_file: a model that takes (N, ...) pixels from 0 to 255 and gives (N, classes) logits
            or probabilities. Which of both is decided by its answers to the samples: numbers from
            0 to 1 that add up to 1 are probabilities; any outside of 0 to 1 make them logits, and
            the graph gets a softmax.
        samples_file: an NPZ file with `images`, (N, ...) uint8 of the shape that the model takes or
            of another with as many pixels, and optionally `labels`, (N,) integers from 0.
        models: the model repository; the version becomes models/<name>/<n>/.
        name: the model's name in the repository.
        labels_file: a text for each class, one a line, UTF-8; None for "0", "1" and so on.

    Returns:
        The new version's folder.

    Raises:
        UnusableInput: a file can't be read, or the model is no classifier of such images.
        ExportError: the network can't be converted, the graph does not answer as Keras does, or
            the files could not be written. Nothing is published.
    """
    model = _load(keras_file)
    num_classes = model.output_shape[-1]
    data, sample_shape = samples.read(samples_file, num_classes)
    shape = _image_shape(model, sample_shape, samples_file)
    print(f"exporting {keras_file}", flush=True)
    model, expected = _with_probabilities(model, data.images)
    candidate = Candidate(
        name=name,
        model=model,
        signature=Signature(
            input_shape=shape, classes=num_classes, labels=_labels(labels_file, num_classes)
        ),
        samples=data,
        expected=expected,
        tolerance=PARITY_TOLERANCE,
        rounding=data.images[::2],
        int8_test=data.odd(),
        int8_validation=None,
        facts={
            "recipe": None,
            "seed": None,
            "parameters": model.count_params(),
            "accuracy": {"validation": None, "test": _accuracy(expected, data)},
        },
    )
    return publish_version(candidate, models)


def _load(path: Path) -> keras.Model:
    """Read a model; raises UnusableInput if it is no classifier of images of one size."""
    try:
        model = keras.models.load_model(path, compile=False)
    except Exception as err:  # Keras and the layers' own code raise what they like
        raise UnusableInput(f"cannot read {path} as a Keras model: {first_line(err)}") from err
    inputs, outputs = getattr(model, "inputs", None), getattr(model, "outputs", None)
    if not inputs or not outputs or len(inputs) + len(outputs) != 2:
        raise UnusableInput(f"{path} is not a classifier: expected one input and one output")
    if None in model.input_shape[1:] or not model.input_shape[1:]:
        raise UnusableInput(
            f"{path}: expected an input of a fixed shape, got {model.input_shape[1:]}"
        )
    if len(model.output_shape) != 2 or (model.output_shape[1] or 0) < 2:
        raise UnusableInput(
            f"{path} is not a classifier: expected an output of (N, classes), "
            f"got {model.output_shape}"
        )
    return model


def _image_shape(model: keras.Model, sample_shape: tuple[int, ...], path: Path) -> tuple[int, ...]:
    """Return the shape of an image: the model's or, where that is flat, the samples'.

    Raises:
        UnusableInput: the samples have another number of pixels than the model takes.
    """
    shape = model.input_shape[1:]
    if np.prod(sample_shape) != np.prod(shape):
        raise UnusableInput(
            f"{path}: expected images of shape {shape}, as the model takes, got {sample_shape}"
        )
    full: tuple[int, ...] = max(shape, sample_shape, key=len)
    return full[:-1] if len(full) == 3 and full[-1] == 1 else full  # one channel needs no axis


def _with_probabilities(model: keras.Model, images: Images) -> tuple[keras.Model, Probabilities]:
    """Return a model that gives probabilities, and those of (N, pixels) images, (N, classes).

    Raises:
        UnusableInput: the answers are neither logits nor probabilities of one class an image.
    """
    answers = _classify(model, images)
    if num_bad := int((~np.isfinite(answers)).any(axis=1).sum()):
        raise UnusableInput(f"the model answers {num_bad:,} of {len(images):,} samples with NaN or "
                            "infinity")  # fmt: skip
    if answers.min() < 0 or answers.max() > 1 + SUM_TOLERANCE:  # logits
        model = keras.Model(model.inputs, keras.layers.Softmax()(model.outputs[0]))
        return model, np.asarray(keras.ops.softmax(answers))
    if np.abs(answers.sum(axis=1) - 1).max() > SUM_TOLERANCE:
        raise UnusableInput(
            "the model is not a classifier: its answers lie from 0 to 1 but don't add up to 1; "
            "expected softmax, or logits"
        )
    return model, answers


def _classify(model: keras.Model, images: Images) -> Probabilities:
    """Run a model on (N, pixels) images, on the CPU; returns (N, classes) float32."""
    pixels = images.reshape(-1, *model.input_shape[1:]).astype(model.inputs[0].dtype)
    batches = (pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH))
    with tf.device("/CPU:0"):  # see evaluation.probabilities
        return np.concatenate(
            [np.asarray(model(batch, training=False), np.float32) for batch in batches]
        )


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
