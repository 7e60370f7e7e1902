"""Export of digits: from the artifacts of a training to a published version."""

from pathlib import Path

import keras
import numpy as np

from serving.commandline import installation
from training.data.mnist import SIDE, Mnist
from training.errors import ExportError
from training.export.image_signature import DIGIT_LABELS, ImageSignature
from training.export.samples import Samples, share_of_commonest
from training.export.version import ExportCandidate, publish_version
from training.fitting.artifacts import load_json, load_model, recipe_of
from training.fitting.evaluation import probabilities
from training.fitting.train import split
from training.runs import published

PARITY_TOLERANCE = 1e-5  # float32 rounding in another order of summation; measured: 1e-6
METRICS_TOLERANCE = 0.001  # another processor may round a digit in thousands the other way

SIGNATURE = ImageSignature(input_shape=(SIDE, SIDE), classes=10, labels=DIGIT_LABELS)


def export(
    artifacts: Path,
    models: Path,
    data: Mnist,
    name: str = "digits",
    *,
    is_new_signature: bool = False,
) -> Path:
    """Convert the trained model, compare it with Keras on every test image, and publish it.

    Raises:
        NotTrained: model.keras or metrics.json is missing, unreadable, or of an older version.
        ExportError: metrics.json is of another model, the network has learned nothing, the graph
            does not answer as Keras does, or the files could not be written. Nothing is published.
    """
    model, metrics = load_model(artifacts), load_json(artifacts, "metrics.json")
    again = f"run {installation.run('train')} again"
    recipe = recipe_of(metrics)
    run = f", run {found}" if (found := published(artifacts)) else ""
    print(f"exporting {artifacts / 'model.keras'} (recipe {metrics['recipe']}{run})", flush=True)
    expected = probabilities(model, data.test_images)
    accuracy = float((expected.argmax(axis=1) == data.test_labels).mean())
    claimed = metrics["accuracy"]["test"]
    if abs(claimed - accuracy) > METRICS_TOLERANCE:
        raise ExportError(
            f"metrics.json is of another model (test accuracy {claimed:.2%}, this one has "
            f"{accuracy:.2%}): {again}"
        )
    guessed = share_of_commonest(data.test_labels)
    if accuracy <= guessed:
        raise ExportError(
            f"not published, the network has learned nothing: test accuracy {accuracy:.2%}, and "
            f"{guessed:.2%} for the same digit each time; train with a lower --learning-rate than "
            f"{recipe.learning_rate:g}"
        )
    training, validation = split(data, recipe)
    test = Samples(*data.test)
    candidate = ExportCandidate(
        name=name,
        model=on_raw_pixels(model),
        signature=SIGNATURE,
        preprocessing=SIGNATURE.preprocessing(),
        samples=test,
        expected=expected,
        tolerance=PARITY_TOLERANCE,
        rounding=training.images,
        int8_test=test,
        int8_validation=Samples(*validation),
        is_new_signature=is_new_signature,
        facts={
            "recipe": metrics["recipe"],
            "seed": metrics["seed"],
            "settings": recipe.as_json(),
            "parameters": model.count_params(),
            "accuracy": {"validation": metrics["accuracy"]["validation"], "test": accuracy},
        },
    )
    return publish_version(candidate, models)


def on_raw_pixels(model: keras.Model) -> keras.Model:
    """Copy a network, with the scaling of 0..255 to 0..1 folded into its first weights."""
    kernel, *others = model.get_weights()
    copy = keras.models.clone_model(model)
    copy.set_weights([kernel / np.float32(255), *others])
    return copy
