"""What `classify` reads and prints, in this process: which files, on what cores, in what words."""

import io
import json
import os
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from digit_classifier import answers, command, handler
from digit_classifier.answers import answer_text, as_word, digit_answer, find, read
from serving.cli.commands import parser
from serving.commandline import installation
from serving.errors import ConfigurationError, InvalidRequest
from serving.model.preprocessing import Preprocessing
from serving.pictures import classifier
from serving.pictures.classifier import CLASS, LABEL, PROBABILITIES

SHARES = [[0.05, 0.9, 0.05]]


def outputs(label="one\x1b"):
    return {
        CLASS: np.array([1]), LABEL: np.array([label], object),
        PROBABILITIES: np.array(SHARES, np.float32),
    }  # fmt: skip


@pytest.mark.parametrize(("reject_below", "rejected"), [(0.0, False), (0.89, False), (0.91, True)])
def test_answer_has_its_words_for_each_format(reject_below, rejected):
    text, facts, rows = digit_answer(outputs(), reject_below)
    shown = r"? (perhaps one\x1b, 90.0 %)" if rejected else r"one\x1b (90.0 %)"
    assert text == shown
    assert facts == {
        "digit": 1, "label": "one\x1b", "probabilities": [0.05, 0.9, 0.05], "rejected": rejected,
    }  # fmt: skip
    assert rows == [{
        "digit": 1, "probability": 0.9, "rejected": "true" if rejected else "false",
        "label": "one\x1b",
    }]  # fmt: skip


def test_words_of_an_answer():
    assert answer_text("7", 0.98765, False) == "7 (98.8 %)"
    assert answer_text("7", 0.5, True, ", 3 pixels") == "? (perhaps 7, 50.0 %, 3 pixels)"
    assert (as_word(True), as_word(False)) == ("true", "false")


KINDS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".tif", ".tiff", ".bmp",
         ".avif", ".heic", ".heif")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_in_a_folder_are_known_by_their_suffix(kind, tmp_path):
    for name in (f"b{kind}", f"a{kind.upper()}", f".c{kind}", f"{kind[1:]}.txt", kind[1:]):
        (tmp_path / name).touch()
    assert find([str(tmp_path)]) == [str(tmp_path / f"a{kind.upper()}"), str(tmp_path / f"b{kind}")]


def test_names_are_taken_as_they_are_and_a_folder_without_pictures_is_said(tmp_path):
    (tmp_path / "notes.txt").touch()
    empty = str(tmp_path), "no pictures in this folder"
    assert find(["-", "b.txt", str(tmp_path), "a.png"]) == ["-", "b.txt", empty, "a.png"]
    assert find([]) == []


class Pool:
    """The processes that would read pictures."""

    def __init__(self):
        self.made, self.ahead, self.closed = 0, 0, 0

    def close(self):
        self.closed += 1


@pytest.fixture
def pool(monkeypatch):
    pool = Pool()

    def processes(number):
        pool.made = number
        return pool

    def mapped(given, function, items, ahead):
        assert given is pool
        pool.ahead = ahead
        return map(function, items)

    @contextmanager
    def silenced():
        yield

    monkeypatch.setattr(answers, "processes", processes)
    monkeypatch.setattr(answers, "mapped", mapped)
    monkeypatch.setattr(answers, "silenced_stderr", silenced)
    monkeypatch.setattr(answers, "silence_pillow", lambda: None)
    return pool


def of(name):
    return f"read {name}"


@pytest.mark.parametrize(
    ("cores", "number", "made", "ahead"),
    [(1, 100, 0, 0), (2, 99, 0, 0), (2, 100, 2, 16), (5, 100, 5, 40)],
)
def test_hundred_pictures_are_read_by_processes_on_all_cores(
    cores, number, made, ahead, pool, monkeypatch
):
    """Eight ahead for each; fewer pictures would be read while the processes start."""
    monkeypatch.setattr(answers, "usable_cores", lambda: cores)
    names: list[Any] = [f"{each}.png" for each in range(number)]
    names[3] = ("3.png", "cannot be read: a reason")
    found = [*read(names, of)]
    expected: list[Any] = [(f"{each}.png", f"read {each}.png") for each in range(number)]
    expected[3] = names[3]
    assert found == expected
    assert (pool.made, pool.ahead, pool.closed) == (made, ahead, bool(made))


def test_processes_end_where_nobody_reads_on(pool, monkeypatch):
    monkeypatch.setattr(answers, "usable_cores", lambda: 2)
    readings = read([f"{each}.png" for each in range(100)], of)
    next(readings)
    readings.close()
    assert pool.closed == 1


def test_stdin_is_read_in_this_process(pool, monkeypatch):
    stdin: Any = SimpleNamespace(buffer="its bytes")
    monkeypatch.setattr("sys.stdin", stdin)
    monkeypatch.setattr(answers, "usable_cores", lambda: 2)
    names = ["-", *[f"{each}.png" for each in range(99)]]
    assert next(read(names, of)) == ("-", "read its bytes")
    monkeypatch.setattr("sys.stdin", None)
    assert next(read(names, of)) == ("-", "cannot be read: stdin is closed")


def test_command_reads_pictures_as_digits_here_unless_it_is_told_otherwise():
    options = vars(parser().parse_args(["classify", "a.png", "scans"]))
    assert not options.pop("variables")
    assert (options.pop("command"), options.pop("run")) == ("classify", command.run)
    assert options == {
        "pictures": ["a.png", "scans"], "reject_below": 0.0, "csv": False, "input": "tensors",
        "labels": None, "target": None, "timeout": 10.0, "json": False, "tls_ca": None,
        "tls_cert": None, "tls_key": None, "token_file": None, "model": "", "model_cache": None,
        "version": None, "device": "auto", "precision": "fp32",
    }  # fmt: skip


def test_images_that_a_model_does_not_take_are_a_matter_of_the_command_line():
    class Refuses:
        def classify(self, images):
            raise InvalidRequest("expected images of shape (N, 64)")

    classifier: Any = Refuses()
    with pytest.raises(ConfigurationError) as caught:
        command.classify_images(classifier, np.zeros((1, 784), np.uint8))
    assert str(caught.value) == (
        "pictures are read as images of 28 x 28: expected images of shape (N, 64)"
    )


class Bar:
    """A bar on the terminal: what is done to it, and what is printed meanwhile, in their order."""

    done: ClassVar[list[Any]] = []

    def __init__(self, total, stream):
        assert stream is sys.stderr
        self.done.append(("bar", total))

    def clear(self):
        self.done.append("clear")

    def advance(self):
        self.done.append("advance")


class Out(io.StringIO):
    """Stdout of another encoding."""

    def write(self, text):
        Bar.done.append(text)
        return len(text)

    def flush(self):
        Bar.done.append("flush")

    def reconfigure(self, **options):
        Bar.done.append(options)


def printed(monkeypatch, *readings, **options):
    """Print the answers to pictures; return the exit code, and what was done."""
    monkeypatch.setattr(Bar, "done", [])
    monkeypatch.setattr(answers, "Bar", Bar)
    monkeypatch.setattr(answers, "find", lambda names: names)
    monkeypatch.setattr(answers, "read", lambda found, reader: (each for each in readings))
    monkeypatch.setattr("sys.stdout", Out())
    names = [name for name, _ in readings]
    asked: Any = SimpleNamespace(**({"csv": False, "json": False, "pictures": names} | options))

    def answer(picture, reading):
        return digit_answer(reading, 0.0) if isinstance(reading, dict) else f"no {picture}"

    code = answers.print_answers(asked, answers.DIGIT_COLUMNS, of, answer)
    return code, Bar.done


def test_bar_is_removed_before_each_line(monkeypatch):
    code, done = printed(monkeypatch, ("a\n", outputs("1")))
    line = [r"a\n: 1 (90.0 %)", "\n"]
    encoding = {"errors": "backslashreplace"}
    assert (code, done) == (
        0, [encoding, ("bar", 1), "clear", *line, "flush", "advance", "clear"])  # fmt: skip


def test_table_has_a_row_for_each_picture(monkeypatch, capsys):
    code, done = printed(monkeypatch, ("a", outputs("1")), ("b", "its reason"), csv=True)
    assert code == 1
    assert [each for each in done if isinstance(each, str) and "," in each] == [
        "picture,digit,probability,rejected,error,label\n", "a,1,0.9,false,,1\n",
        "b,,,,its reason,\n",
    ]  # fmt: skip
    assert capsys.readouterr().err == "1 of 2 failed\n"


def test_answers_are_objects_of_json(monkeypatch):
    code, done = printed(monkeypatch, ("a", outputs("1")), ("b", 3), json=True)
    assert code == 1
    assert [json.loads(each) for each in done if isinstance(each, str) and "{" in each] == [
        {"picture": "a", "digit": 1, "label": "1", "probabilities": [0.05, 0.9, 0.05],
         "rejected": False},
        {"picture": "b", "error": "no b"},
    ]  # fmt: skip


def test_reasons_are_for_stderr(monkeypatch, capsys):
    code, done = printed(monkeypatch, ("b", "its\nreason"))
    assert (code, [each for each in done if "reason" in each]) == (1, [])
    assert capsys.readouterr().err == "b: its\\nreason\n"


def test_formats_exclude_each_other(monkeypatch):
    with pytest.raises(ConfigurationError, match=r"^--csv and --json exclude each other$"):
        printed(monkeypatch, csv=True, json=True)


def test_folder_that_cannot_be_read_is_said(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "a.png").mkdir()
    (tmp_path / "in" / "b.png").touch()

    def scandir(path):
        if str(path).endswith("in"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    listed = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    assert find([str(tmp_path)]) == [
        (str(tmp_path / "in"), "cannot be read: Permission denied")]  # fmt: skip


@pytest.mark.parametrize("place", ["here", "a server"])
def test_packages_are_asked_for_before_anything_else(place, monkeypatch):
    def require(*names):
        raise ConfigurationError(f"{names} are not installed")

    monkeypatch.setattr(installation, "require", require)
    options: Any = SimpleNamespace(target=None if place == "here" else "127.0.0.1:1")
    with pytest.raises(ConfigurationError, match=r"^\('PIL', 'scipy'\) are not installed$"):
        command.run(options)


def test_steps_of_digits_are_those_of_their_model(monkeypatch):
    assert handler.about.__wrapped__() == Preprocessing(size=(28, 28), resize="digits")
    monkeypatch.setattr(classifier, "finish", lambda *facts: {"class": facts})
    rows: Any = ["rows"]
    image = np.zeros((1, 784), np.uint8)
    about = handler.about()
    assert handler.finish(about, rows, image) == {"class": (about, rows, None), "image": image}
