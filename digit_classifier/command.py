"""The command `classify`: pictures in, their digits or other classes out."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from serving.cli import model_options, models, target
from serving.commandline import installation, values
from serving.errors import ConfigurationError, InvalidRequest

if TYPE_CHECKING:
    from digit_classifier import Classifier
    from digit_classifier.predictions import Predictions
    from serving.config import ModelConfig
    from serving.model.preprocessing import Preprocessing
    from serving.pictures.classifier import Steps
    from serving.tensors import Array, Images

RunModel = Callable[["Sequence[Array]"], "Sequence[Array]"]
"""From a model's inputs to its outputs."""

HELP = "classify picture files"
EXAMPLES = """\
  digit-serving classify seven.png scans/ --csv > answers.csv
  digit-serving classify - --target 127.0.0.1:50051 < seven.png
  digit-serving classify scans/ --reject-below 0.9
  digit-serving classify rose.jpg --model flowers.onnx --input image --labels labels.txt
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "pictures",
        nargs="+",
        metavar="PICTURE",
        help="picture of one digit, any size, dark on light or the reverse, or one for another "
        "classifier: PNG, JPEG, WebP, GIF, TIFF, BMP, AVIF; HEIC with pillow-heif; a folder of "
        "them; or - for stdin",
    )
    parser.add_argument(
        "--reject-below",
        type=values.share,
        default=0.0,
        metavar="P",
        help="print ? instead of a digit that is less probable than this, 0 to 1",
    )
    model_options.add_pictures(parser)
    parser.add_argument("--csv", action="store_true", help="print a CSV table with a heading")
    model_options.add_source(parser)


def run(options: argparse.Namespace) -> int:
    """Classify the pictures; return the exit code."""
    installation.require("PIL", "scipy")
    if not options.target:
        return _classify(options, *_local_model(options, models.model_config(options)))
    # Late, here and below: a list of the commands needs no pictures, which are an extra.
    from digit_classifier import Classifier
    from digit_classifier.handler import STEPS, about
    from digit_classifier.remote import RemoteDigits

    with Classifier(RemoteDigits(target.client_of(options))) as classifier:

        def run_model(inputs: "Sequence[Array]") -> "Sequence[Array]":
            return [classify_images(classifier, inputs[0]).probabilities]

        return _classify(options, STEPS, about(), run_model)


def classify_images(classifier: "Classifier", images: "Images") -> "Predictions":
    """Classify images of pictures, with an error that speaks of pictures."""
    try:
        return classifier.classify(images)
    except InvalidRequest as err:
        raise ConfigurationError(f"pictures are read as images of 28 x 28: {err}") from err


def _classify(options: argparse.Namespace, steps: "Steps", about: Any, run_model: RunModel) -> int:
    """Classify the pictures that the command line names, by the steps beside a model."""
    from digit_classifier.answers import (
        DIGIT_COLUMNS,
        PictureAnswer,
        decoded,
        digit_answer,
        print_answers,
    )

    def answer(_: str, read: Any) -> PictureAnswer:
        found = steps.finish(about, run_model(read.inputs), read.state)
        return digit_answer(found, options.reject_below)

    return print_answers(options, DIGIT_COLUMNS, partial(decoded, steps, about), answer)


def _local_model(
    options: argparse.Namespace, config: "ModelConfig"
) -> "tuple[Steps, Preprocessing, RunModel]":
    """Load a model here; return the steps of its pictures, their data, and the model's run.

    Raises:
        ServingError: see `load_model`; or it isn't known to classify pictures.
    """
    from serving.pictures.classifier import steps_of

    model, pictures = models.load_with_pictures(options, config)
    tensors = model.tensors
    if pictures is None:
        raise ConfigurationError(
            f"model {config.model} ({tensors}) is not known to classify pictures: --input image, "
            "or a classifier.json in its folder, says that it does"
        )

    def run_model(inputs: "Sequence[Array]") -> "Sequence[Array]":
        names = [each.name for each in tensors.inputs]
        return model.run(dict(zip(names, inputs, strict=True)))

    return steps_of(pictures), pictures, run_model
