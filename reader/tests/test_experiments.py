"""`python -m experiments` refuses bad input in one line."""

from pathlib import Path

import pytest

from experiments.__main__ import _fonts, main
from training.errors import TrainingError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--number", "0"], "expected a whole number, at least 1, got '0'"),
        (["evaluate", "--rows", "poems"], "invalid choice: 'poems'"),
        (["fit", "--pages", "3"], "expected a whole number, at least 100, got '3'"),
        (["fit", "--epochs", "x"], "expected a whole number, at least 1, got 'x'"),
        ([], "COMMAND"),
    ],
)
def test_a_wrong_command_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("command", "option"),
    [("evaluate", "--data-dir"), ("fit", "--data-dir"), ("pictures", "--models")],
)
def test_a_command_without_images_or_model_fails_in_one_line(
    command: str, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, option, str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m experiments: ")
    assert str(tmp_path) in line


def test_pictures_prints_a_row_for_each_population(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pictures", "--models", str(models), "--number", "2"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split()[1] for row in rows] == ["fonts", "strokes", "optdigits"]


def test_each_fifth_font_is_held_out(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.woff").touch()
    fitted, held_out = _fonts(tmp_path)
    assert [font.stem for font in held_out] == ["2", "7"]
    assert [font.stem for font in fitted] == [*"0134568"]
    for number in range(5):
        (tmp_path / f"{number}.woff").unlink()
    with pytest.raises(TrainingError, match="4 fonts"):
        _fonts(tmp_path)
