"""The commands `classify` and `read`: pictures in, their classes or their numbers out."""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from serving.cli.answers import (
    DIGIT_COLUMNS,
    NUMBER_COLUMNS,
    Answer,
    digit_answer,
    numbers_answer,
    print_answers,
)
from serving.cli.collection import open_collection
from serving.config import ModelConfig
from serving.digits.pictures.reader import find_candidates, numbers_of, picture_row
from serving.errors import ConfigurationError
from serving.images import Images
from serving.model.preprocessing import Preprocessing, predictions_of
from serving.predictions import Predictions
from serving.telemetry import logs
from serving.tensors import Array


def read(options: argparse.Namespace, classify: Callable[[Images], Predictions]) -> int:
    """Read the numbers in the pictures that the command line names; return the exit code."""

    def answer(_: str, reading: Any) -> Answer | str:
        if numbers := numbers_of(reading, classify, options.pattern):
            return numbers_answer(numbers, options.reject_below)
        fitting = f" that fits {options.pattern}" if options.pattern else ""
        return f"no number found{fitting}; `classify` reads a single digit"

    return print_answers(options, NUMBER_COLUMNS, find_candidates, answer)


def classify(
    options: argparse.Namespace,
    preprocessing: Preprocessing,
    run: Callable[[Array], Predictions],
) -> int:
    """Classify the pictures that the command line names; return the exit code.

    Args:
        options: the parsed command line.
        preprocessing: how pictures become rows.
        run: classifies a row.
    """
    collection = open_collection(options.collect, options.pictures, options.reject_below)

    def answer(picture: str, reading: tuple[Array, float]) -> Answer:
        row, factor = reading
        found = run(row).times(factor)
        digit = int(found.digits[0])
        rejected = bool(found.probabilities[0, digit] < options.reject_below)
        if collection is not None and rejected:
            collection.add(Path(picture), digit)
        return digit_answer(found, rejected=rejected)

    code = print_answers(options, DIGIT_COLUMNS, partial(picture_row, preprocessing), answer)
    if collection is not None:
        noun = "picture" if collection.num_kept == 1 else "pictures"
        line = f"{collection.num_kept} {noun} kept in {collection.folder}"
        logs.print_line(line, sys.stderr)
    return code


def local_model(
    options: argparse.Namespace, config: ModelConfig
) -> tuple[Preprocessing, Callable[[Array], Predictions]]:
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
