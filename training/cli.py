"""The options of the command line."""

import argparse
import re
from pathlib import Path

from training.commandline import PROGRAM, Parser, version
from training.config import RECIPES

PATHS = {
    "--data-dir": (
        None,
        "folder of MNIST's four files, raw or as .gz (default: a cache, filled from the network "
        "once)",
    ),
    "--artifacts": ("artifacts", "folder that training writes (default: %(default)s)"),
    "--models": ("models", "model repository to publish in (default: %(default)s)"),
    "--keras": (
        None,
        "export this Keras classifier in place of the one in --artifacts: it takes pixels of 0 to "
        "255 (if it was trained on 0 to 1, put keras.layers.Rescaling(1 / 255) first) and gives a "
        "logit or a probability for each class, or one probability for two",
    ),
    "--samples": (
        None,
        "with --keras: images to check the export on, some hundreds or more; an NPZ file with "
        "`images`, (N, ...) uint8, and optionally `labels`, (N,) integers from 0",
    ),
    "--labels": (
        None,
        "with --keras: text file, a name for each class, one a line (default: 0, 1 and so on)",
    ),
}
"""Default and help of each option that is a path."""


def parser() -> argparse.ArgumentParser:
    """Describe the commands and their options; the command's name is parsed as `command`."""
    program = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Train a digit classifier on MNIST, and export it for serving.",
        epilog="In short: train, then export. Each command has a --help of its own.",
    )
    program.add_argument("--version", action="version", version=f"%(prog)s {version()}")
    commands = program.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=Parser
    )

    def add(name: str, text: str, *paths: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for path in ("--data-dir", *paths):
            default, help_text = PATHS[path]
            command.add_argument(path, type=Path, default=default, metavar="PATH", help=help_text)
        return command

    add("data", "get MNIST, verify it, and print where it is")
    train = add("train", "train the network, and write its model and report", "--artifacts")
    _add_training_options(train)
    train.epilog = (
        "with your own handwriting, as pictures in own/0 to own/9:\n"
        "  python -m training train --extra own"
    )
    export = add(
        "export", "publish the trained model as the next version to serve",
        "--artifacts", "--models", "--keras", "--samples", "--labels",
    )  # fmt: skip
    export.add_argument(
        "--name",
        type=_name,
        help="the model's name in the repository (default: digits; --keras needs one)",
    )
    export.add_argument(
        "--resize",
        choices=("stretch", "pad", "crop", "digits"),
        help="how its training made pictures of other proportions fit: stretched, between black "
        "bars, cut to their middle, or as digits are found (default: digits of 28 x 28, else "
        "stretch)",
    )
    export.add_argument(
        "--invert",
        action="store_true",
        help="it was trained on light ink on dark paper: light pictures are inverted",
    )
    export.epilog = (
        "a Keras classifier of your own:\n  python -m training export --keras MODEL.keras "
        "--samples SAMPLES.npz --name letters"
    )
    add("report", "write the report on the trained model again", "--artifacts")
    return program


def _add_training_options(command: argparse.ArgumentParser) -> None:
    """Add the options that only `train` has."""
    command.add_argument(
        "--recipe",
        choices=RECIPES,
        default="default",
        help="seed is the plain tutorial's way; default takes two minutes on two cores; best has "
        "teachers and takes forty-five (default: %(default)s)",
    )
    command.add_argument(
        "--extra",
        type=Path,
        metavar="DIR",
        help="train on your own digits, too: pictures in DIR/0 to DIR/9; one in five is held out, "
        "and the report says how many of those are read rightly (needs the extra pictures)",
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
        action=argparse.BooleanOptionalAction,
        default=False,
        help="continue an interrupted training of the same recipe, seed and epochs",
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
