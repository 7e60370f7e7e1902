"""Export of a Keras classifier that was trained elsewhere, checked on samples of its user's."""

from pathlib import Path

import keras

from training.errors import UnusableInput, first_line
from training.export import samples, served
from training.export.manifest import Signature
from training.export.samples import Samples
from training.export.version import Candidate, publish_version
from training.fitting.evaluation import Probabilities

PARITY_TOLERANCE = 1e-4
"""Ten times that of digits: logits may be large, and float32 rounds large numbers coarsely."""

MAX_LABEL = 100
"""Characters of a label: serving refuses longer ones."""


def export(
    keras_file: Path, samples_file: Path, models: Path, name: str, labels_file: Path | None = None,
    resize: str | None = None, *, invert: bool = False,
) -> Path:  # fmt: skip
    """Convert a Keras classifier, compare it with Keras on the samples, and publish it.

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
    served.check_ends(model)
    num_classes, num_parameters = max(2, model.output_shape[1]), model.count_params()
    data, sample_shape = samples.read(samples_file, num_classes)
    model, shape = served.fixed_shape(model, sample_shape)
    signature = Signature(
        input_shape=shape, classes=num_classes, labels=_labels(labels_file, num_classes)
    )
    preprocessing = signature.preprocessing(resize, invert=invert)
    print(f"exporting {keras_file}", flush=True)
    model, expected = served.classifier(model, data.images)
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
    """Read a model."""
    try:
        return keras.models.load_model(path, compile=False)
    except Exception as err:  # Keras and the layers' own code raise what they like
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
