"""Commands of the other programs: which module runs them, and with which words."""

from types import SimpleNamespace
from typing import Any

import pytest

from serving.cli import doors
from serving.cli.doors import open_door, publish_keras
from serving.errors import ConfigurationError


@pytest.fixture
def programs(monkeypatch):
    """What is called, of which module; a program ends with 7."""
    called: list[Any] = []

    def import_module(name):
        def main(words, program):
            called.append((name, words, program))
            return 7

        return SimpleNamespace(main=main)

    monkeypatch.setattr(doors, "import_module", import_module)
    return called


@pytest.mark.parametrize(
    ("name", "words", "module", "passed", "program"),
    [
        ("export", ["a.keras"], "training.__main__", ["export", "a.keras"], "digit-serving"),
        ("train", [], "training.__main__", ["train"], "digit-serving"),
        ("runs", ["--json"], "training.__main__", ["runs", "--json"], "digit-serving"),
        ("tune", ["a.onnx"], "benchmarks.cli", ["tune", "a.onnx"], "digit-serving"),
        ("bench", [], "benchmarks.cli", [], "digit-serving bench"),
        ("bench", ["server", "a"], "benchmarks.cli", ["server", "a"], "digit-serving bench"),
        ("bench", ["a.onnx", "b"], "benchmarks.cli", ["model", "a.onnx", "b"],
         "digit-serving bench"),
    ],
)  # fmt: skip
def test_command_is_that_of_its_program(name, words, module, passed, program, programs):
    assert open_door(name, words) == 7
    assert programs == [(module, passed, program)]


def test_each_program_is_listed():
    assert {name: each.help for name, each in doors.DOORS.items()} == {
        "export": "publish a version of a Keras model, or of the digits",
        "train": "train the classifier of digits",
        "runs": "list the trainings, and compare them",
        "bench": "measure servers, or what serving a model costs",
        "tune": "find the settings of a model",
    }


class TrainingError(Exception):
    """As the program of trainings has it."""


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (None, None),
        (TrainingError("it does not fit"), "it does not fit"),
        (ModuleNotFoundError("keras"), "advice on keras"),
    ],
    ids=["published", "refused", "extra"],
)
def test_keras_model_is_published_by_the_program_of_trainings(error, text, monkeypatch, tmp_path):
    called: list[Any] = []

    def publish(*given, **options):
        called.append((given, options))
        if error is not None:
            raise error
        return tmp_path / "1"

    def import_module(name):
        assert name == "training.__main__"
        return SimpleNamespace(
            publish=publish, TrainingError=TrainingError, advice=lambda err: f"advice on {err}"
        )

    monkeypatch.setattr(doors, "import_module", import_module)
    if text is None:
        found = publish_keras("model", "net", tmp_path, is_new_signature=True)
        assert found == tmp_path / "1"
    else:
        with pytest.raises(ConfigurationError, match=f"^{text}$"):
            publish_keras("model", "net", tmp_path, is_new_signature=True)
    assert called == [(("model", "net", tmp_path), {"is_new_signature": True})]


def test_program_that_is_not_there_is_named(monkeypatch, tmp_path):
    def import_module(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(doors, "import_module", import_module)
    expected = "export is not installed here: `pip install .` in the checkout has it"
    with pytest.raises(ConfigurationError) as caught:
        publish_keras("model", "net", tmp_path, is_new_signature=False)
    assert str(caught.value) == expected
    with pytest.raises(ModuleNotFoundError):
        open_door("train", [])
