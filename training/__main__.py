"""The command line: get the data, train, export, report."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from commandline import checkout, extras
from training.cli import parser
from training.config import RECIPES
from training.data.idx import DataError
from training.data.mnist import Mnist, cache_dir

DONE, FAILED, UNUSABLE = 0, 1, 2
"""Exit codes: done; failed or stopped; the command, its settings or its data cannot be used."""

EXTRAS = dict.fromkeys(
    ("tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime", "matplotlib"), "train"
)
"""What the base installation lacks, and the extra that brings it."""

_UP = "\033[A\033[K"
"""On a terminal: go back to the line above, and clear it."""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the arguments; None for this process's own.
    """
    arguments = parser().parse_args(argv)
    try:
        if arguments.command != "data":
            extras.require(*EXTRAS)  # now, not after the training
        return COMMANDS[arguments.command](arguments)
    except DataError as err:
        return _fail(str(err), UNUSABLE)
    except ModuleNotFoundError as err:
        return _fail(extras.advice(err, EXTRAS), UNUSABLE)
    except OSError as err:
        return _fail(str(err), FAILED)
    except KeyboardInterrupt:
        return _fail("interrupted", FAILED)


def _data(arguments: argparse.Namespace) -> int:
    """Get the data and say where it is."""
    mnist = Mnist.load(arguments.data_dir)
    num_training, num_test = len(mnist.train_labels), len(mnist.test_labels)
    print(f"{num_training:,} training and {num_test:,} test images, every file's digest is right")
    print(arguments.data_dir or cache_dir())
    return DONE


def _train(arguments: argparse.Namespace) -> int:
    """Train, showing every epoch."""
    mnist = Mnist.load(arguments.data_dir)
    _import_tensorflow()
    from training.fitting.checkpoint import ResumeError
    from training.fitting.loop import describe
    from training.fitting.train import train
    from training.fitting.trainer import device

    recipe = RECIPES[arguments.recipe]
    epochs = arguments.epochs or recipe.epochs
    print(f"training: recipe {recipe.name}, seed {arguments.seed}, device {device()}", flush=True)
    if sys.stdout.isatty():
        print()  # the line that every epoch rewrites
    try:
        metrics = train(
            recipe,
            mnist,
            arguments.artifacts,
            seed=arguments.seed,
            epochs=epochs,
            resume=arguments.resume,
            on_epoch=lambda epoch, row: _show(describe(epoch, epochs, row)),
            say=_show,
        )
    except ResumeError as err:
        return _fail(str(err), UNUSABLE)
    print(
        f"test accuracy {metrics['accuracy']['test']:.2%} ({metrics['errors']['test']} errors), "
        f"{metrics['train_seconds']:.0f} s of training"
    )
    print(f"look at {arguments.artifacts / 'report.html'}; {checkout.run('export')} comes next")
    if metrics["epochs"] < epochs:
        return _fail(
            f"interrupted: kept the best of {metrics['epochs']} epochs; --resume goes on", FAILED
        )
    return DONE


def _export(arguments: argparse.Namespace) -> int:
    """Publish what was trained."""
    mnist = Mnist.load(arguments.data_dir)
    _import_tensorflow()
    from training.export.digits import ExportError, export

    try:
        export(arguments.artifacts, arguments.models, mnist)
    except ExportError as err:
        return _fail(str(err), FAILED)
    return DONE


def _report(arguments: argparse.Namespace) -> int:
    """Write the report anew."""
    mnist = Mnist.load(arguments.data_dir)
    _import_tensorflow()
    from training.fitting.artifacts import NotTrained
    from training.study import report

    try:
        report.write(arguments.artifacts, mnist)
    except NotTrained as err:
        return _fail(str(err), FAILED)
    print(arguments.artifacts / "report.html")
    return DONE


def _study(arguments: argparse.Namespace) -> int:
    """Complete the study."""
    mnist = Mnist.load(arguments.data_dir)
    _import_tensorflow()
    from training.study import experiments

    experiments.run(mnist, arguments.artifacts, arguments.results, _show)
    chosen = experiments.chosen_folder(arguments.artifacts, arguments.results)
    print(f"{arguments.results}; of the best recipe's models, validation chooses {chosen}")
    return DONE


def _import_tensorflow() -> None:
    """Import TensorFlow, which takes seconds, without the notes that it prints about itself."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    cache = cache_dir().parent  # what the libraries keep goes there, not into the home
    os.environ.setdefault("KERAS_HOME", str(cache / "keras"))
    os.environ.setdefault("MPLCONFIGDIR", str(cache / "matplotlib"))
    with _silenced_stderr():  # its first lines heed no setting
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
    """Rewrite one line on a terminal; elsewhere print one for each epoch."""
    print(f"{_UP if sys.stdout.isatty() else ''}{line}", flush=True)


def _fail(reason: str, code: int) -> int:
    """Say what went wrong, on stderr."""
    print(f"digits-train: {reason}", file=sys.stderr)
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
