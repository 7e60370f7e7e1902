"""`read`: pictures in, a line of numbers for each out."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from digit_classifier import PRETRAINED
from digit_reader.command import numbers_answer
from digit_reader.facts import Box, Field, Number
from experiments.synthetic.strings import compose
from tests.serving.cli.conftest import Run
from training.data.mnist import Mnist


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


@pytest.fixture(autouse=True)
def bundled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVING_MODELS", str(PRETRAINED))


def test_number_is_a_line_of_text(form: Path, run: Run) -> None:
    code, (line,), err = run("read", form)
    assert (code, err) == (0, [])
    picture, _, answer = line.rpartition(": ")
    text, share = answer.removesuffix(" %)").split(" (")
    assert (picture, text) == (str(form), "90210")
    assert 0 < float(share) <= 100


def test_json_has_a_box_for_each_digit(form: Path, run: Run) -> None:
    code, (line,), _ = run("read", form, "--json")
    (number,) = json.loads(line)["numbers"]
    assert code == 0
    assert number["text"] == "90210"
    assert [digit["digit"] for digit in number["digits"]] == [9, 0, 2, 1, 0]
    lefts = [digit["box"]["left"] for digit in number["digits"]]
    assert lefts == sorted(lefts)
    assert number["box"]["left"] == lefts[0]
    assert all(len(digit["probabilities"]) == 10 for digit in number["digits"])


def test_csv_has_a_row_for_each_number(form: Path, run: Run) -> None:
    turned = form.with_name("turned.png")
    Image.open(form).rotate(90, expand=True).save(turned)
    code, out, _ = run(
        "read", form, turned, form.with_name("no.png"), "--csv", "--models", PRETRAINED
    )
    upright, sideways, missing = csv.DictReader(out)
    assert (code, upright["text"], sideways["text"], missing["text"]) == (1, "90210", "90210", "")
    assert (upright["turned"], sideways["turned"]) == ("0", "270")
    assert int(upright["left"]) < int(upright["right"])
    assert missing["error"].startswith("cannot be read")


def test_text_says_how_far_a_page_is_turned(form: Path, run: Run) -> None:
    turned = form.with_name("turned.png")
    Image.open(form).rotate(90, expand=True).save(turned)
    _, (line,), _ = run("read", turned)
    assert ": 90210 (" in line
    assert line.endswith(" %, turned by 270°)")


def test_less_sure_than_asked_is_a_question_mark(form: Path, run: Run) -> None:
    code, (line,), _ = run("read", form, "--reject-below", 1)
    assert code == 0
    assert ": ? (perhaps 90210, " in line


def test_one_unsure_number_makes_its_line_unsure() -> None:
    field = Field("1", Box(0, 0, 9, 9))
    both = [Number("1", probability, (), (field,), 0) for probability in (0.9, 0.5)]
    answer = numbers_answer(both, 0.6)
    assert answer.text == "? (perhaps 1 1, 45.0 %)"
    assert [row["rejected"] for row in answer.rows] == ["false", "true"]


def test_picture_without_a_number_and_a_missing_one_are_errors(
    form: Path, tmp_path: Path, run: Run
) -> None:
    Image.new("L", (200, 100), 255).save(tmp_path / "blank.png")
    code, out, err = run(
        "read", tmp_path / "blank.png", form, tmp_path / "no.png", "--models", PRETRAINED
    )
    assert (code, len(out)) == (1, 1)
    assert err[0] == f"{tmp_path / 'blank.png'}: no number found; `classify` reads a single digit"
    assert err[1].startswith(f"{tmp_path / 'no.png'}: cannot be read")


def test_only_numbers_that_fit_a_pattern_are_read(form: Path, run: Run) -> None:
    code, (line,), _ = run("read", form, "--pattern", r"90\d{3}")
    assert (code, ": 90210 (" in line) == (0, True)
    code, out, (err,) = run("read", form, "--pattern", r"\d+-\d+")
    assert (code, out, err) == (
        1,
        [],
        rf"{form}: no number found that fits \d+-\d+; `classify` reads a single digit",
    )


def test_bad_pattern_is_refused_in_one_line(
    form: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run("read", form, "--pattern", r"\d{2")
    (line,) = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2
    assert "--pattern: pattern" in line
