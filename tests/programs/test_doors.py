"""The doors of `digit-serving` to the project's other programs."""

import sys

import pytest

from serving.__main__ import main
from serving.cli.doors import DOORS
from tests.programs.test_installation import TRAIN, without
from tests.serving.model.graphs import save, two_layers


@pytest.mark.parametrize("name", DOORS)
def test_help_is_that_of_the_command_behind_it(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: digit-serving {name} ")


def test_all_commands_are_listed_with_examples(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    for name in ("serve", "infer", "info", "health", "classify", "score", *DOORS):
        assert f"\n    {name} " in shown
    assert "digit-serving export model.keras" in shown


@pytest.mark.parametrize("name", ["train", "export"])
def test_missing_extra_is_one_line(name):
    code, out, err = without(TRAIN, "serving", name)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("digit-serving: tensorflow is not installed: pip install '.[train]'")


def test_program_that_is_left_out_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "training", None)
    monkeypatch.delitem(sys.modules, "training.__main__", raising=False)
    assert main(["runs"]) == 2
    expected = "digit-serving: runs is not installed here: `pip install .` in the checkout has it\n"
    assert capsys.readouterr().err == expected


def test_errors_and_files_are_those_of_the_program(tmp_path, capsys):
    assert main(["bench", str(tmp_path / "nope.onnx")]) == 2
    assert "digit-serving bench: there is no file" in capsys.readouterr().err
    path = save(two_layers(), tmp_path)
    with pytest.raises(SystemExit):
        main(["tune", str(path), "--goal", "nonsense"])
    assert capsys.readouterr().err.startswith("digit-serving tune: argument --goal")
