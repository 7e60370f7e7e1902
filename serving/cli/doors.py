"""Commands of this project's other programs: `export`, `train`, `runs`, `bench`, `tune`.

Each program is imported when its command is asked for, and reads the words behind it.
"""

from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from serving.commandline.installation import DISTRIBUTION
from serving.errors import ConfigurationError


class Door(NamedTuple):
    """A command of another program."""

    module: str
    """The program's module, with `main(words, program)`."""
    words: tuple[str, ...]
    """What the program calls the command; nothing where it has several, which are named behind."""
    help: str


DOORS = {
    "export": Door(
        "training.__main__", ("export",), "publish a version of a Keras model, or of the digits"
    ),
    "train": Door("training.__main__", ("train",), "train the classifier of digits"),
    "runs": Door("training.__main__", ("runs",), "list the trainings, and compare them"),
    "bench": Door("benchmarks.cli", (), "measure servers, or what serving a model costs"),
    "tune": Door("benchmarks.cli", ("tune",), "find the settings of a model"),
}


NOT_HERE = "{} is not installed here: `pip install .` in the checkout has it"


def open_door(name: str, words: list[str]) -> int:
    """Run a command of another program; return its exit code.

    Raises:
        ModuleNotFoundError: the program is not there, as in an image that leaves it out.
    """
    door = DOORS[name]
    if name == "bench" and words[:1] and words[0].endswith(".onnx"):
        words = ["model", *words]
    program = DISTRIBUTION if door.words else f"{DISTRIBUTION} {name}"
    code: int = import_module(door.module).main([*door.words, *words], program)
    return code


def publish_keras(model: Any, name: str, models: Path, *, is_new_signature: bool) -> Path:
    """Publish a Keras model as the command `export` does, without samples.

    Args:
        model: a Keras model, or the path of its file.
        name: the model's, in the repository.
        models: the repository.
        is_new_signature: whether its inputs and outputs may differ from the newest version's.

    Returns:
        The version's folder.

    Raises:
        ConfigurationError: an extra is missing, or the model can't be converted or does not fit.
    """
    try:
        program = import_module(DOORS["export"].module)
    except ModuleNotFoundError as err:
        raise ConfigurationError(NOT_HERE.format("export")) from err
    try:
        version: Path = program.publish(model, name, models, is_new_signature=is_new_signature)
    except ModuleNotFoundError as err:
        raise ConfigurationError(program.advice(err)) from err
    except program.TrainingError as err:
        raise ConfigurationError(str(err)) from err
    return version
