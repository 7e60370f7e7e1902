"""The command line: get the data, label pictures, train, export, report."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from serving.commandline import installation
from serving.commandline.terminal import escape
from training import cli
from training.cli import parser
from training.config import RECIPES
from training.data import extra
from training.data.extra import Extra
from training.data.extra import load as load_extra
from training.data.mnist import Mnist, cache_dir
from training.errors import TrainingError, UnusableInput

EXTRA = ("tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime", "matplotlib", "scipy")
"""Modules of the extra `train` that the base installation lacks."""


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0 done, 2 the command or its input can't be used, 1 failed or interrupted.
    """
    arguments = parser().parse_args(argv)
    try:
        if arguments.command not in ("data", "label"):
            installation.require(*EXTRA)  # now, not after the training
        COMMANDS[arguments.command](arguments)
        return 0
    except ModuleNotFoundError as err:
        return _fail(installation.advice(err, dict.fromkeys(EXTRA, "train")), 2)
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


def _label(arguments: argparse.Namespace) -> None:
    print(extra.label(arguments.folder))


def _train(arguments: argparse.Namespace) -> None:
    extra = _load_extra(arguments.extra)
    data = _load(arguments)
    from training import report
    from training.fitting.epochs import device
    from training.fitting.train import train

    recipe = RECIPES[arguments.recipe or ("fine-tune" if extra else "default")]
    recipe = replace(recipe, epochs=arguments.epochs or recipe.epochs)
    print(f"training: recipe {recipe.name}, seed {arguments.seed}, device {device()}", flush=True)
    if sys.stdout.isatty():
        print()  # the line that every epoch rewrites
    folder = arguments.artifacts
    metrics = train(
        recipe,
        data,
        folder,
        seed=arguments.seed,
        resume=arguments.resume,
        extra=extra,
        log=cli.show,
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
    print(f"look at {folder / 'report.html'}; {installation.run('export')} comes next")
    if metrics["epochs"] < recipe.epochs:
        kept = f"kept the best of {metrics['epochs']} epochs; --resume continues"
        raise KeyboardInterrupt(kept)


def _load_extra(folder: Path | None) -> Extra | None:
    """Read a user's own digits, and print their number and the unreadable ones."""
    if folder is None:
        return None
    extra = load_extra(folder)
    for line in extra.unreadable:
        print(f"left out: {escape(line)}", file=sys.stderr)
    num_training, num_held_out = len(extra.training.labels), len(extra.held_out.labels)
    print(f"your own digits: {num_training:,} to train on, {num_held_out:,} held out", flush=True)
    return extra


def _export(arguments: argparse.Namespace) -> None:
    own = (arguments.keras, arguments.samples, arguments.labels)
    how = {"resize": arguments.resize, "invert": arguments.invert, "imports": arguments.imports}
    names = (arguments.input_names, arguments.output_names)
    if not any((*own, *how.values(), *names)):
        data = _load(arguments)
        from training.export import digits

        digits.export(
            arguments.artifacts,
            arguments.models,
            data,
            arguments.name or "digits",
            is_new_signature=arguments.new_signature,
        )
        return
    if not (arguments.keras and arguments.name):
        raise UnusableInput("a Keras model of your own needs --keras and --name")
    cli.import_tensorflow(cache_dir().parent)
    from training.export import keras_model
    from training.export.any_model import Naming

    naming = Naming(
        inputs=tuple(names[0]), outputs=tuple(names[1]), is_new_signature=arguments.new_signature
    )
    keras_model.export(
        *own[:2], arguments.models, arguments.name, arguments.labels, **how, naming=naming
    )


def _report(arguments: argparse.Namespace) -> None:
    data = _load(arguments)
    from training import report

    report.write(arguments.artifacts, data)
    print(arguments.artifacts / "report.html")


def _load(arguments: argparse.Namespace) -> Mnist:
    """Load MNIST, then TensorFlow: an error of the data comes before seconds of import."""
    data = Mnist.load(arguments.data_dir)
    cli.import_tensorflow(cache_dir().parent)
    return data


def _fail(reason: str, code: int) -> int:
    print(f"{cli.PROGRAM}: {escape(reason)}", file=sys.stderr)
    return code


COMMANDS = {
    "data": _data,
    "label": _label,
    "train": _train,
    "export": _export,
    "report": _report,
}


if __name__ == "__main__":
    sys.exit(main())
