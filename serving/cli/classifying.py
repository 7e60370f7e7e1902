"""The command `classify`: pictures in, their classes out."""

import argparse
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

from serving.cli import picture_files
from serving.cli.answers import Answer, Report, answer, kind_of
from serving.cli.collection import open_collection
from serving.config import ModelConfig
from serving.errors import ConfigurationError
from serving.pictures.reader import picture_row
from serving.predictions import Predictions
from serving.preprocessing import Preprocessing, predictions_of
from serving.telemetry import logs
from serving.tensors import Array

Classify = Callable[[Array], Predictions]


def classify(options: argparse.Namespace, preprocessing: Preprocessing, run: Classify) -> int:
    """Classify the pictures that the command line names; return the exit code.

    Args:
        options: the parsed command line.
        preprocessing: how pictures become rows.
        run: classifies a row.
    """
    kind = kind_of("digits", options)
    collection = open_collection(options.collect, options.pictures, options.reject_below)
    found = picture_files.find(options.pictures)
    report: Report[Answer] = Report(kind, len(found))
    with (
        closing(picture_files.read(found, partial(picture_row, preprocessing))) as readings,
        closing(report),
    ):
        for picture, read in readings:
            if isinstance(read, str):
                report.add(Answer(picture=picture, error=read))
            else:
                row, factor = read
                answered = answer(picture, run(row).times(factor), options.reject_below)
                report.add(answered)
                if collection is not None and answered.rejected:
                    collection.add(Path(picture), int(answered.digit or 0))
    if collection is not None:
        noun = "picture" if collection.num_kept == 1 else "pictures"
        line = f"{collection.num_kept} {noun} kept in {collection.folder}"
        logs.print_line(line, sys.stderr)
    return report.exit_code()


def local_model(options: argparse.Namespace, config: ModelConfig) -> tuple[Preprocessing, Classify]:
    """Load a model here.

    Raises:
        DigitsError: see `load_model`; or it isn't known to classify pictures.
    """
    from serving.model.loaded_model import load_model
    from serving.model.pictures import PictureInputs, read_labels

    inputs = PictureInputs(is_image=options.input == "image", labels=read_labels(options.labels))
    if inputs.labels and not inputs.is_image:
        raise ConfigurationError("--labels is for --input image")
    path = config.models / config.model
    model = load_model(path, config.version, config.device, config.precision)
    tensors = model.tensors
    try:
        pictures = inputs.of(model.manifest, tensors)
    except ValueError as err:
        raise ConfigurationError(f"{path}: {err}") from err
    if pictures is None:
        raise ConfigurationError(
            f"model {config.model} ({tensors}) is not known to classify pictures: --input image, "
            "or a classifier.json in its folder, says that it does"
        )

    def run(row: Array) -> Predictions:
        outputs = model.run({tensors.inputs[0].name: row})
        return predictions_of(pictures, tensors, outputs, model.version)

    return pictures, run
