"""`read`: pictures in, a line of numbers for each out."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.__main__ import main
from serving.cli import picture_files
from serving.model.repository import PRETRAINED
from training.data.mnist import Mnist
from training.lab.handwriting.strings import compose


@pytest.fixture(scope="module")
def form(tmp_path_factory: pytest.TempPathFactory, mnist_sample: Mnist) -> Path:
    digits = mnist_sample.test
    glyphs = [
        digits.images[np.flatnonzero(digits.labels == digit)[0]].reshape(28, 28)
        for digit in (9, 0, 2, 1, 0)
    ]
    ink = compose("90210", glyphs, [6.0] * 4, np.random.default_rng(1)).ink
    path = tmp_path_factory.mktemp("scans") / "form.png"
    Image.fromarray(255 - ink).save(path)
    return path


def run(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str], list[str]]:
    code = main(["read", *map(str, arguments), "--models", str(PRETRAINED)])
    output = capsys.readouterr()
    return code, output.out.splitlines(), output.err.splitlines()


def test_number_is_a_line_of_text(form: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, (line,), err = run(form, capsys=capsys)
    assert (code, err) == (0, [])
    picture, _, answer = line.rpartition(": ")
    text, share = answer.removesuffix(" %)").split(" (")
    assert (picture, text) == (str(form), "90210")
    assert 0 < float(share) <= 100


def test_json_has_a_box_for_each_digit(form: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, (line,), _ = run(form, "--json", capsys=capsys)
    (number,) = json.loads(line)["numbers"]
    assert code == 0
    assert number["text"] == "90210"
    assert [digit["digit"] for digit in number["digits"]] == [9, 0, 2, 1, 0]
    lefts = [digit["box"]["left"] for digit in number["digits"]]
    assert lefts == sorted(lefts)
    assert number["box"]["left"] == lefts[0]
    assert all(len(digit["probabilities"]) == 10 for digit in number["digits"])


def test_csv_has_a_row_for_each_number(form: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turned = form.with_name("turned.png")
    Image.open(form).rotate(90, expand=True).save(turned)
    code, out, _ = run(form, turned, form.with_name("no.png"), "--csv", capsys=capsys)
    upright, sideways, missing = csv.DictReader(out)
    assert (code, upright["text"], sideways["text"], missing["text"]) == (1, "90210", "90210", "")
    assert (upright["turned"], sideways["turned"]) == ("0", "270")
    assert int(upright["left"]) < int(upright["right"])
    assert missing["error"].startswith("cannot be read")


def test_text_says_how_far_a_page_is_turned(form: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turned = form.with_name("turned.png")
    Image.open(form).rotate(90, expand=True).save(turned)
    _, (line,), _ = run(turned, capsys=capsys)
    assert ": 90210 (" in line
    assert line.endswith(" %, turned by 270°)")


def test_less_sure_than_asked_is_a_question_mark(
    form: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, (line,), _ = run(form, "--reject-below", 1, capsys=capsys)
    assert code == 0
    assert ": ? (perhaps 90210, " in line


def test_picture_without_a_number_and_a_missing_one_are_errors(
    form: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (200, 100), 255).save(tmp_path / "blank.png")
    code, out, err = run(tmp_path / "blank.png", form, tmp_path / "no.png", capsys=capsys)
    assert (code, len(out)) == (1, 1)
    assert err[0] == f"{tmp_path / 'blank.png'}: no number found; `classify` reads a single digit"
    assert err[1].startswith(f"{tmp_path / 'no.png'}: cannot be read")


def test_only_numbers_that_fit_a_pattern_are_read(
    form: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, (line,), _ = run(form, "--pattern", r"90\d{3}", capsys=capsys)
    assert (code, ": 90210 (" in line) == (0, True)
    code, out, (err,) = run(form, "--pattern", r"\d+-\d+", capsys=capsys)
    assert (code, out, err) == (
        1,
        [],
        rf"{form}: no number found that fits \d+-\d+; `classify` reads a single digit",
    )


def test_bad_pattern_is_refused_in_one_line(form: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(form, "--pattern", r"\d{2", capsys=capsys)
    (line,) = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2
    assert "--pattern: pattern" in line


def test_processes_give_the_same_answers(
    form: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, alone, _ = run(form, "--json", capsys=capsys)
    monkeypatch.setattr(picture_files, "MIN_PICTURES", 1)
    monkeypatch.setattr(picture_files, "usable_cores", lambda: 2)
    _, shared, _ = run(*[form] * 3, "--json", capsys=capsys)
    assert shared == alone * 3


def test_stdin_is_read_where_a_dash_is_given(form: Path) -> None:
    command = [sys.executable, "-m", "serving", "read", "-", "--models", str(PRETRAINED)]
    result = subprocess.run(command, input=form.read_bytes(), capture_output=True)
    assert result.stdout.startswith(b"-: 90210 ("), result.stderr
