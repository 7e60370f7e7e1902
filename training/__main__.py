"""The command line: get the data, train, export, report, study."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from training import commandline
from training.cli import parser
from training.config import RECIPES
from training.data.extra import Extra
from training.data.extra import load as load_extra
from training.data.mnist import Mnist, cache_dir
from training.errors import TrainingError, UnusableInput

EXTRA = ("tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime", "matplotlib", "scipy")
"""What the base installation lacks, and the extra `train` brings."""

_UP = "\033[A\033[K"
"""On a terminal: go to the line above, and clear it."""


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments; None for those of this process.

    Returns:
        The exit code: 0 done, 2 the command or its input can't be used, 1 failed or interrupted.
    """
    arguments = parser().parse_args(argv)
    try:
        if arguments.command != "data":
            commandline.require(EXTRA)  # now, not after the training
        COMMANDS[arguments.command](arguments)
        return 0
    except TrainingError as err:
        return _fail(str(err), err.exit_code)
    except OSError as err:
        return _fail(str(err), TrainingError.exit_code)
    except KeyboardInterrupt as err:
        return _fail(": ".join(("interrupted", *err.args)), TrainingError.exit_code)


def _data(arguments: argparse.Namespace) -> None:
    """Get MNIST and print where it is."""
    data = Mnist.load(arguments.data_dir)
    num_training, num_test = len(data.train_labels), len(data.test_labels)
    print(f"{num_training:,} training and {num_test:,} test images, every file's digest is right")
    print(arguments.data_dir or cache_dir())


def _train(arguments: argparse.Namespace) -> None:
    """Train, showing every epoch, and write the report."""
    extra = _load_extra(arguments.extra)
    data = _load(arguments)
    from training.fitting.train import train
    from training.fitting.trainer import device
    from training.study import report

    recipe = RECIPES[arguments.recipe]
    recipe = replace(recipe, epochs=arguments.epochs or recipe.epochs)
    print(f"training: recipe {recipe.name}, seed {arguments.seed}, device {device()}", flush=True)
    if sys.stdout.isatty():
        print()  # the line that every epoch rewrites
    folder = arguments.artifacts
    metrics = train(
        recipe, data, folder, seed=arguments.seed, resume=arguments.resume, extra=extra, log=_show
    )
    report.write(folder, data)
    print(
        f"test accuracy {metrics['accuracy']['test']:.2%} ({metrics['errors']['test']} errors), "
        f"{metrics['train_seconds']:.0f} s of training"
    )
    if "accuracy" in (own := metrics.get("extra", {})):
        print(
            f"your own digits, held out: {own['accuracy']:.2%} "
            f"({own['errors']} errors in {own['held_out']})"
        )
    print(f"look at {folder / 'report.html'}; {commandline.run('export')} comes next")
    if metrics["epochs"] < recipe.epochs:
        kept = f"kept the best of {metrics['epochs']} epochs; --resume continues"
        raise KeyboardInterrupt(kept)


def _load_extra(folder: Path | None) -> Extra | None:
    """Read a user's own digits, and say how many there are and what can't be read."""
    if folder is None:
        return None
    extra = load_extra(folder)
    for line in extra.unreadable:
        print(f"left out: {line}", file=sys.stderr)
    num_training, num_held_out = len(extra.training.labels), len(extra.held_out.labels)
    print(f"your own digits: {num_training:,} to train on, {num_held_out:,} held out", flush=True)
    return extra


def _export(arguments: argparse.Namespace) -> None:
    """Publish the trained model, or one that was trained elsewhere."""
    own = (arguments.keras, arguments.samples, arguments.labels)
    how = {"resize": arguments.resize, "invert": arguments.invert}
    if not any((*own, *how.values())):
        data = _load(arguments)
        from training.export import digits

        digits.export(arguments.artifacts, arguments.models, data, arguments.name or "digits")
        return
    if not (arguments.keras and arguments.samples and arguments.name):
        raise UnusableInput("a Keras model of your own needs --keras, --samples and --name")
    _import_tensorflow()
    from training.export import keras_model

    keras_model.export(*own[:2], arguments.models, arguments.name, arguments.labels, **how)


def _report(arguments: argparse.Namespace) -> None:
    """Write the report again."""
    data = _load(arguments)
    from training.study import report

    report.write(arguments.artifacts, data)
    print(arguments.artifacts / "report.html")


def _study(arguments: argparse.Namespace) -> None:
    """Complete the study."""
    data = _load(arguments)
    from training.study import experiments

    experiments.run(data, arguments.artifacts, arguments.results, _show)
    chosen = experiments.chosen_folder(arguments.artifacts, arguments.results)
    print(f"{arguments.results}; of the models of `best`, publish {chosen}")


def _load(arguments: argparse.Namespace) -> Mnist:
    """Load MNIST, then TensorFlow: an error of the data comes before seconds of import."""
    data = Mnist.load(arguments.data_dir)
    _import_tensorflow()
    return data


def _import_tensorflow() -> None:
    """Import TensorFlow without the notes that it prints about itself."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    cache = cache_dir().parent  # the libraries keep their files there, not in the home
    os.environ.setdefault("KERAS_HOME", str(cache / "keras"))
    os.environ.setdefault("MPLCONFIGDIR", str(cache / "matplotlib"))
    with _silenced_stderr():  # no setting covers its first lines
        import tensorflow as tf

        tf.config.list_physical_devices()


@contextmanager
def _silenced_stderr() -> Iterator[None]:
    """Drop what native code writes to stderr; exceptions still come through."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _show(line: str) -> None:
    """Rewrite one line on a terminal; elsewhere print the line."""
    print(f"{_UP if sys.stdout.isatty() else ''}{line}", flush=True)


def _fail(reason: str, code: int) -> int:
    """Print on stderr what went wrong."""
    print(f"{commandline.PROGRAM}: {reason}", file=sys.stderr)
    return code


COMMANDS = {
    "data": _data,
    "train": _train,
    "export": _export,
    "report": _report,
    "study": _study,
}


if __name__ == "__main__":
    sys.exit(main())
