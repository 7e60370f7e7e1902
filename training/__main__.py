"""The command line: get the data, label pictures, train, export, report."""

import argparse
import io
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from serving.commandline import installation
from serving.commandline.terminal import escape
from training import cli, runs
from training.cli import parser
from training.config import RECIPES, Recipe
from training.data import extra
from training.data.extra import Extra
from training.data.extra import load as load_extra
from training.data.mnist import Mnist, cache_dir
from training.errors import ExportError, TrainingError, UnusableInput
from training.tables import as_text

EXTRA = ("tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime", "matplotlib", "scipy")
"""Modules of the extra `train` that the base installation lacks."""
OPTIMIZE = ("onnx_ir",)
"""Those that `--optimize` needs besides."""


def main(argv: list[str] | None = None, program: str = cli.PROGRAM) -> int:
    """Run one command.

    Args:
        argv: the command line's words; None for those of this process.
        program: the name in usages and errors.

    Returns:
        The exit code: 0 done, 2 the command or its input can't be used, 1 failed or interrupted.
    """
    arguments = parser(program).parse_args(argv)
    try:
        if arguments.command not in ("data", "label", "runs"):
            installation.require(*EXTRA)  # now, not after the training
        COMMANDS[arguments.command](arguments)
        return 0
    except ModuleNotFoundError as err:
        return _fail(program, advice(err), 2)
    except TrainingError as err:
        return _fail(program, str(err), err.exit_code)
    except OSError as err:
        return _fail(program, str(err), TrainingError.exit_code)
    except KeyboardInterrupt as err:
        return _fail(program, ": ".join(("interrupted", *err.args)), TrainingError.exit_code)


def publish(model: Any, name: str, models: Path, *, is_new_signature: bool) -> Path:
    """Convert a Keras model, compare it with Keras, and publish it as the next version.

    Args:
        model: a Keras model, or the path of its file.
        name: the model's, in the repository.
        models: the repository.
        is_new_signature: whether its inputs and outputs may differ from the newest version's.

    Returns:
        The version's folder.

    Raises:
        ModuleNotFoundError: a package of the extra is not installed.
        TrainingError: it is not published; see `training.export.keras_model.export`.
    """
    installation.require(*EXTRA)
    cli.import_tensorflow(cache_dir().parent)
    from training.export import any_model, keras_model  # late, as all that imports TensorFlow
    from training.export.any_model import Naming

    naming = Naming(is_new_signature=is_new_signature)
    with redirect_stdout(io.StringIO()):  # a function prints nothing
        if isinstance(model, Path):
            return keras_model.export(model, None, models, name, naming=naming)
        return any_model.export(model, None, models / name, None, naming)


def advice(error: ImportError) -> str:
    """Return the line about a package of the extra that is not installed."""
    extras = dict.fromkeys(EXTRA, "train") | dict.fromkeys(OPTIMIZE, "optimize")
    return installation.advice(error, extras)


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
    recipe = _recipe(arguments, "fine-tune" if extra else "default")
    data = _load(arguments)
    # Late, here and below: TensorFlow and matplotlib take seconds to import.
    from training import report
    from training.fitting.epochs import device
    from training.fitting.train import train

    artifacts, seed = arguments.artifacts, arguments.seed
    base = runs.base_name(recipe, seed, extra=None if extra is None else extra.digest)
    folder = (runs.interrupted if arguments.resume else runs.begin)(artifacts, base)
    try:
        how = ", ".join((recipe.name, *recipe.changes_in_words(), f"seed {seed}"))
        print(f"training: recipe {how}, device {device()}; run {folder.name}", flush=True)
        if sys.stdout.isatty():
            print()  # the line that every epoch rewrites
        metrics = train(
            recipe,
            data,
            folder,
            seed=seed,
            resume=arguments.resume,
            extra=extra,
            teachers=artifacts / "teachers",
            log=cli.show,
        )
    except Exception as err:
        runs.note_failure(artifacts, folder.name, str(err))
        raise
    finally:
        runs.discard_empty(folder)
    runs.publish(folder, artifacts)
    report.write(folder, data)
    runs.publish(folder, artifacts)
    print(
        f"test accuracy {metrics['accuracy']['test']:.2%} ({metrics['errors']['test']} errors), "
        f"{metrics['train_seconds']:.0f} s of training"
    )
    if "accuracy" in (own := metrics.get("extra", {})):
        print(
            f"your own digits, held out: {own['accuracy']:.2%} "
            f"({own['errors']} errors in {own['held_out']})"
        )
    print(f"look at {artifacts / 'report.html'}; {installation.run('export')} comes next")
    if metrics["epochs"] < recipe.epochs:
        kept = f"kept the best of {metrics['epochs']} epochs; --resume continues"
        raise KeyboardInterrupt(kept)


def _recipe(arguments: argparse.Namespace, usual: str) -> Recipe:
    """Return the recipe that is named, or the usual one, with the settings that are given."""
    try:
        return RECIPES[arguments.recipe or usual].changed(cli.settings_of(arguments))
    except ValueError as err:
        raise UnusableInput(f"recipe {arguments.recipe or usual}: {err}") from err


def _runs(arguments: argparse.Namespace) -> None:
    """List the runs, or compare some."""
    artifacts, names = arguments.artifacts, list(dict.fromkeys(arguments.names))
    if arguments.verb not in ("list", "compare"):
        raise UnusableInput(f"expected runs list or runs compare, got {arguments.verb!r}")
    if arguments.verb == "list":
        if names:
            raise UnusableInput(f"runs list takes no names, got {' '.join(names)}")
        found = runs.all_runs(artifacts)
        if not found:
            raise UnusableInput(f"no runs in {artifacts}: run {installation.run('train')} first")
        print(as_text(runs.listing(found)), end="")
        return
    installation.require("matplotlib", "numpy")
    chosen = [runs.load(artifacts, name) for name in names]
    from training import comparison

    if not 2 <= len(chosen) <= comparison.MOST_RUNS:
        raise UnusableInput(f"expected 2 to {comparison.MOST_RUNS} runs, got {len(chosen)}")
    page = comparison.write(chosen, artifacts)
    print(as_text([("", "run"), *runs.letters(chosen).items()]))
    differences = runs.differences(chosen)
    print(as_text(differences) if len(differences) > 1 else f"{comparison.SAME}\n")
    print(as_text(runs.results(chosen)))
    print(f"look at {page}")


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
    if not any((*own, *how.values(), *names, arguments.optimize)):
        runs.require_latest(arguments.artifacts)
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
        raise UnusableInput("a Keras model of your own needs MODEL.keras and --name")
    if arguments.optimize and arguments.samples is None:
        raise UnusableInput("--optimize needs --samples: calls that the model gets")
    if arguments.optimize:
        installation.require(*OPTIMIZE)  # now, not after the export
    cli.import_tensorflow(cache_dir().parent)
    from training.export import keras_model
    from training.export.any_model import Naming

    naming = Naming(
        inputs=tuple(names[0]), outputs=tuple(names[1]), is_new_signature=arguments.new_signature
    )
    keras_model.export(
        *own[:2], arguments.models, arguments.name, arguments.labels, **how, naming=naming
    )
    if arguments.optimize:
        _optimize(arguments)


def _optimize(arguments: argparse.Namespace) -> None:
    """Make the new version faster, in a process of its own: TensorFlow's threads would be timed.

    Raises:
        ExportError: it failed; its own line says why, and the version stays.
    """
    command = [sys.executable, "-m", "serving", "optimize", arguments.name]
    options = ["--samples", arguments.samples, "--models", arguments.models]
    code = subprocess.run([*command, *map(str, options), "--name", arguments.name]).returncode
    if code:
        raise ExportError("the version above is published, and not optimized")


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


def _fail(program: str, reason: str, code: int) -> int:
    print(f"{program}: {escape(reason)}", file=sys.stderr)
    return code


COMMANDS = {
    "data": _data,
    "label": _label,
    "train": _train,
    "export": _export,
    "report": _report,
    "runs": _runs,
}


if __name__ == "__main__":
    sys.exit(main())
