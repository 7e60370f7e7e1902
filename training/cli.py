"""The command line: options, hints on how to go on, and the import of TensorFlow."""

import argparse
import os
import re
import sys
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import Any, get_args, get_type_hints

from serving.commandline import values
from serving.commandline.help_texts import command_help
from serving.commandline.installation import in_checkout
from serving.commandline.parser import Parser
from serving.commandline.terminal import silenced_stderr
from training.config import AUGMENTATIONS, RECIPES, Recipe

PROGRAM = "python -m training"
_UP = "\033[A\033[K"
"""On a terminal: go to the line above, and clear it."""
_TRAIN = """\
  digit-serving train --recipe seed --units 128,64 --dropout 0.2 --learning-rate 5e-4
  digit-serving train --recipe seed --augment affine --batch-size 64 --optimizer adamw
  digit-serving train --extra own        with your handwriting, as pictures in own/0 to own/9
"""
_LABEL = """\
  python -m training label own      asks of each picture in own which digit it is
"""
_RUNS = """\
  digit-serving runs                                        lists the trainings
  digit-serving runs compare seed seed_epochs=60            draws their curves together
"""
_EXPORT = """\
  digit-serving export MODEL.keras --samples SAMPLES.npz --name letters
  digit-serving export MODEL.keras --samples SAMPLES.npz --name letters --optimize
"""
SETTINGS = {
    "epochs": "passes over the training images",
    "units": "outputs of each hidden layer, such as 256,128,56",
    "dropout": "share of each hidden layer's outputs dropped while training: one rate for all, or "
    "one for each, such as 0.4,0.3,0.2",
    "batch_size": "images per step of the optimizer",
    "optimizer": "sgd (with momentum) and rmsprop have a constant rate; that of adamw and muon "
    "rises, then decays",
    "learning_rate": "the optimizer's rate, or its peak, such as 1e-3",
    "augment": "what is done to the training images in each epoch. none: nothing; affine: rotate, "
    "scale, shear, shift; elastic: deform them locally, too; full: also vary the strokes, degrade "
    "some, and add images of no digit",
}
"""Settings of a recipe that options change, and their help."""


def serve(folder: Path) -> str:
    """Return the command that serves the model in a folder."""
    is_usual = folder == Path("models", "digits")
    if is_usual and in_checkout():
        return "`make serve`"
    program = ".venv/bin/digit-serving" if in_checkout() else "digit-serving"
    options = "" if is_usual else f" --models {folder.parent} --model {folder.name}"
    return f"`{program} serve{options}`"


def import_tensorflow(cache: Path) -> None:
    """Import TensorFlow without the notes that it prints about itself.

    Args:
        cache: a folder where libraries keep files that they would put into the home.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # a GPU may have other users
    os.environ.setdefault("KERAS_HOME", str(cache / "keras"))
    os.environ.setdefault("MPLCONFIGDIR", str(cache / "matplotlib"))
    with silenced_stderr():  # no setting covers its first lines
        import tensorflow as tf

        tf.config.list_physical_devices()
        tf.get_logger().setLevel("ERROR")  # advice for its own callers


def show(line: str) -> None:
    """Rewrite one line on a terminal; elsewhere print the line."""
    print(f"{_UP if sys.stdout.isatty() else ''}{line}", flush=True)


def parser(name: str = PROGRAM) -> argparse.ArgumentParser:
    """Describe the commands and their options; the command's name is parsed as `command`.

    Args:
        name: of the program, in usages.
    """
    program = Parser(
        prog=name,
        description="Train a digit classifier on MNIST, and export it for serving.",
        epilog="In short: train, then export. Each command has a --help of its own.",
    )
    program.add_version()
    commands = program.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, examples: str = "") -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = commands.add_parser(name, **command_help(text, examples))
        command.add_argument(
            "--data-dir",
            type=Path,
            metavar="PATH",
            help="folder of MNIST's four files, raw or as .gz (default: a cache, filled from the "
            "network once)",
        )
        return command

    add("data", "get MNIST, verify it, and print where it is")
    label = commands.add_parser(
        "label", **command_help("ask which digits your pictures are, to train on them", _LABEL)
    )
    label.add_argument(
        "folder",
        type=Path,
        metavar="DIR",
        help="folder with pictures, also in folders of it; each is moved into DIR/0 to DIR/9, or "
        "DIR/none",
    )
    train = add("train", "train the network, and write its model and report", _TRAIN)
    export = add("export", "publish the trained model as the next version to serve", _EXPORT)
    report = add("report", "write the report on the trained model again")
    for command in (train, export, report):
        _add_artifacts(command)
    _add_training_options(train)
    _add_export_options(export)
    text = "list the trainings, or compare some"
    _add_runs_options(commands.add_parser("runs", **command_help(text, _RUNS)))
    return program


def _add_runs_options(command: Parser) -> None:
    command.intermixed = "names"
    add = command.add_argument
    add(
        "verb",
        nargs="?",
        metavar="{list,compare}",
        default="list",
        help="list: a line for each training; compare: the curves of some over each other, and "
        "tables of the settings and figures in which they differ",
    )
    add("names", nargs="*", metavar="RUN", help="with compare: trainings, by their names")
    _add_artifacts(command)


def _add_artifacts(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--artifacts",
        type=Path,
        default=Path("artifacts"),
        metavar="PATH",
        help="folder that training writes",
    )


def _add_training_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--recipe",
        choices=RECIPES,
        help="seed: as tutorials do; default: two minutes on two cores; best: with teachers, 45 "
        "minutes; fine-tune: continues the bundled model, a minute (default: default; with "
        "--extra: fine-tune)",
    )
    add(
        "--extra",
        type=Path,
        metavar="DIR",
        help="train on your own digits, too: pictures in DIR/0 to DIR/9; one in five is held out, "
        "and the report says how many of those are read correctly (needs the extra "
        "pictures)",
    )
    add("--seed", type=_seed, default="0", help="of all random numbers")
    add(
        "--resume",
        action="store_true",
        help="continue an interrupted training of the same recipe, seed and settings",
    )
    _add_setting_options(command)


def _add_setting_options(command: argparse.ArgumentParser) -> None:
    optimizers = get_args(get_type_hints(Recipe)["optimizer"])
    kinds: dict[str, dict[str, Any]] = {
        "epochs": {"type": values.count, "metavar": "N"},
        "units": {"type": _counts, "metavar": "N,N"},
        "dropout": {"type": _rates, "metavar": "P,P"},
        "batch_size": {"type": values.count, "metavar": "N"},
        "optimizer": {"choices": optimizers},
        "learning_rate": {"type": _rate, "metavar": "RATE"},
        "augment": {"choices": tuple(AUGMENTATIONS)},
    }
    for name, text in SETTINGS.items():
        flag, usual = f"--{name.replace('_', '-')}", " (default: the recipe's)"
        command.add_argument(flag, dest=name, help=text + usual, **kinds[name])


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of a recipe that the command line gives."""
    given = {name: getattr(arguments, name) for name in SETTINGS}
    return {name: value for name, value in given.items() if value is not None}


def _counts(text: str) -> tuple[int, ...]:
    return tuple(values.count(part) for part in text.split(","))


def _rates(text: str) -> tuple[float, ...]:
    return tuple(values.share(part) for part in text.split(","))


def _rate(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"expected a number above 0, such as 1e-3, got {text!r}")


def _add_export_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--models",
        type=Path,
        default=Path("models"),
        metavar="PATH",
        help="model repository to publish in",
    )
    add(
        "keras",
        nargs="?",
        type=Path,
        metavar="MODEL.keras",
        help="export this Keras model in place of the one in --artifacts. A classifier of images "
        "takes pixels of 0 to 255 (if it was trained on 0 to 1, put keras.layers.Rescaling(1 / 255)"
        " first) and gives a logit or a probability for each class, or one probability for "
        "two",
    )
    add(
        "--samples",
        type=Path,
        metavar="PATH",
        help="with MODEL.keras: what to check the export on; of a classifier images, some hundreds "
        "or more: an NPZ file with `images`, (N, ...) uint8, and optionally `labels`, (N,) "
        "integers from 0; of any other model an array for each input by its name (default: drawn "
        "numbers)",
    )
    add(
        "--labels",
        type=Path,
        metavar="PATH",
        help="with MODEL.keras: text file, a name for each class of a classifier, one a line "
        "(default: 0, 1 and so on)",
    )
    add(
        "--name",
        type=_name,
        help="the model's name in the repository (default: digits; MODEL.keras needs one)",
    )
    add(
        "--resize",
        choices=("stretch", "pad", "crop", "digits"),
        help="how to fit pictures to the input size; choose what training used: stretch, pad "
        "(black bars), crop (centre), digits (find and centre the ink) (default: digits for the "
        "ten digits, else stretch)",
    )
    add(
        "--invert",
        action="store_true",
        help="invert pictures that are mostly light, for a model that was trained on light ink on "
        "dark paper",
    )

    add(
        "--import",
        dest="imports",
        nargs="+",
        action="extend",
        type=Path,
        default=[],
        metavar="FILE.py",
        help="with MODEL.keras: Python files that define and register layers of the model's own",
    )
    for side in ("input", "output"):
        add(
            f"--{side}-names",
            nargs="+",
            action="extend",
            default=[],
            metavar="NAME",
            help=f"with MODEL.keras: names of the {side}s, in their order (default: those of the "
            "layers)",
        )
    add(
        "--new-signature",
        action="store_true",
        help="publish a version whose inputs, outputs or classes differ from those of the newest "
        "one, and mark it so that servers serve it; callers of that one need a change",
    )
    add(
        "--optimize",
        action="store_true",
        help="with MODEL.keras and --samples: then make it faster as `digit-serving optimize` does "
        "and publish that as one version more, if it holds and gains (extra optimize)",
    )


def _name(text: str) -> str:
    """Parse a model's name, which is also that of a folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", text):
        raise argparse.ArgumentTypeError(
            f"expected up to 100 letters, digits and ._-, got {text!r}"
        )
    return text


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"expected a whole number, 0 to 2^32 - 1, got {text!r}")
    return int(text)
