"""The options of the command line."""

import argparse
import re
from pathlib import Path

from commandline.parser import Parser
from training.config import RECIPES
from training.study.comparison import RESULTS


def parser() -> argparse.ArgumentParser:
    """Describe the commands and their options; the command's name is parsed as `command`."""
    digits_train = Parser(
        prog="digits-train",
        description="Train a digit classifier on MNIST, and export it for serving.",
        epilog="In short: train, then export. Each command has a --help of its own.",
    )
    digits_train.add_version()
    commands = digits_train.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    data = add("data", "get MNIST, verify it, and print where it is")
    train = add("train", "train the network, and write its model and report")
    export = add("export", "publish the trained model as the next version to serve")
    report = add("report", "write the report on the trained model again")
    study = add(
        "study", "train every recipe from several seeds and compare them (an hour; resumable)"
    )
    for command in (data, train, export, report, study):
        command.add_argument(
            "--data-dir",
            type=Path,
            metavar="FOLDER",
            help="MNIST's four files, raw or as .gz (default: a cache, filled from the network "
            "once)",
        )
    for command in (train, export, report, study):
        _add_path(command, "--artifacts", "artifacts", "what training writes")
    _add_path(export, "--models", "models", "the model repository to publish in")
    _add_export_options(export)
    _add_path(study, "--results", RESULTS, "gets each result as soon as it is complete")
    _add_training_options(train)
    return digits_train


def _add_path(
    command: argparse.ArgumentParser, option: str, default: str | Path, content: str
) -> None:
    """Add an option that has a path as its default."""
    command.add_argument(
        option,
        type=Path,
        default=Path(default),
        metavar="PATH",
        help=f"{content} (default: %(default)s)",
    )


def _add_training_options(command: argparse.ArgumentParser) -> None:
    """Add the options that only `train` has."""
    command.add_argument(
        "--recipe",
        choices=RECIPES,
        default="default",
        help="seed is the plain tutorial's way; default takes two minutes on two cores; best has "
        "teachers and takes twenty (default: %(default)s)",
    )
    command.add_argument(
        "--seed", type=_natural, default=0, help="of all random numbers (default: %(default)s)"
    )
    command.add_argument(
        "--epochs",
        type=_positive,
        metavar="N",
        help="passes over the training images (default: the recipe's)",
    )
    command.add_argument(
        "--resume",
        action="store_true",
        help="continue an interrupted training of the same recipe, seed and epochs",
    )


def _add_export_options(command: argparse.ArgumentParser) -> None:
    """Add the options that only `export` has, for a model that was trained elsewhere."""
    command.epilog = (
        "a Keras classifier of your own:\n  python -m training export --keras MODEL.keras "
        "--samples SAMPLES.npz --name letters"
    )
    command.add_argument(
        "--keras",
        type=Path,
        metavar="FILE",
        help="export this Keras classifier in place of the one in --artifacts: it takes pixels of "
        "0 to 255 (if it was trained on 0 to 1, put keras.layers.Rescaling(1 / 255) first) and "
        "gives a logit or a probability for each class",
    )
    command.add_argument(
        "--samples",
        type=Path,
        metavar="FILE",
        help="with --keras: images to check the export on, some hundreds or more; an NPZ file with "
        "`images`, (N, ...) uint8, and optionally `labels`, (N,) integers from 0",
    )
    command.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="with --keras: a text for each class, one a line (default: 0, 1 and so on)",
    )
    command.add_argument(
        "--name",
        type=_name,
        help="the model's name in the repository (default: digits; --keras needs one)",
    )


def _name(text: str) -> str:
    """Parse a model's name, which is also that of a folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", text):
        raise argparse.ArgumentTypeError(
            f"expected up to 100 letters, digits and ._-, got {text!r}"
        )
    return text


def _natural(text: str) -> int:
    """Parse a whole number from 0."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"expected a whole number, 0 to 2^32 - 1, got {text!r}")
    return int(text)


def _positive(text: str) -> int:
    """Parse a whole number from 1."""
    if _natural(text) == 0:
        raise argparse.ArgumentTypeError("expected at least 1, got 0")
    return int(text)
