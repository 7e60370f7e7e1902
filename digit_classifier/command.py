"""The command `classify`: pictures in, their digits or other classes out."""

import argparse
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from serving.cli import model_options, models, target
from serving.commandline import installation, values
from serving.errors import ConfigurationError, InvalidRequest

if TYPE_CHECKING:
    from digit_classifier import Classifier
    from digit_classifier.predictions import Predictions
    from serving.config import ModelConfig
    from serving.model.preprocessing import Preprocessing
    from serving.tensors import Array, Images

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
    from digit_classifier import Classifier, pictures
    from digit_classifier.remote import RemoteDigits
    from serving.model.preprocessing import Preprocessing

    with Classifier(RemoteDigits(target.client_of(options))) as classifier:
        as_mnist = Preprocessing(size=pictures.SIZE, resize="digits")
        return _classify(options, as_mnist, partial(classify_images, classifier))


def classify_images(classifier: "Classifier", images: "Images") -> "Predictions":
    """Classify images of pictures, with an error that speaks of pictures."""
    try:
        return classifier.classify(images)
    except InvalidRequest as err:
        raise ConfigurationError(f"pictures are read as images of 28 x 28: {err}") from err


def _classify(
    options: argparse.Namespace,
    preprocessing: "Preprocessing",
    classify: "Callable[[Array], Predictions]",
) -> int:
    """Classify the pictures that the command line names, made rows by `preprocessing`."""
    from digit_classifier.answers import DIGIT_COLUMNS, PictureAnswer, digit_answer, print_answers
    from serving.pictures.reader import picture_row

    def answer(_: str, reading: "tuple[Array, float]") -> PictureAnswer:
        row, factor = reading
        found = classify(row).times(factor)
        rejected = bool(found.probabilities[0, int(found.digits[0])] < options.reject_below)
        return digit_answer(found, rejected=rejected)

    return print_answers(options, DIGIT_COLUMNS, partial(picture_row, preprocessing), answer)


def _local_model(
    options: argparse.Namespace, config: "ModelConfig"
) -> "tuple[Preprocessing, Callable[[Array], Predictions]]":
    """Load a model here.

    Raises:
        ServingError: see `load_model`; or it isn't known to classify pictures.
    """
    from digit_classifier.predictions import Predictions
    from serving.model.preprocessing import classes_of

    model, pictures = models.load_with_pictures(options, config)
    tensors = model.tensors
    if pictures is None:
        raise ConfigurationError(
            f"model {config.model} ({tensors}) is not known to classify pictures: --input image, "
            "or a classifier.json in its folder, says that it does"
        )

    def run(row: "Array") -> "Predictions":
        outputs = model.run({tensors.inputs[0].name: row})
        probabilities = classes_of(pictures, tensors, outputs)
        return Predictions.of(probabilities, model.version, pictures.labels)

    return pictures, run
