"""`classify`: files, folders and stdin in; answers out as they are made, in the input's order."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image

from digit_classifier import answers
from serving.commandline.progress import Bar
from serving.commandline.terminal import escape
from serving.tensors import Signature
from tests.serving.model import templates
from tests.support.servers import ended, program, running_server

COMMAND = [sys.executable, "-m", "serving", "classify"]


@pytest.fixture
def folder(tmp_path, images):
    """Five test digits in a folder and one below, beside files that are no pictures."""
    folder = tmp_path / "scans"
    (folder / "below").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    names = ["b.png", "a.PNG", "below/d.png", "below/c.webp", "10.gif"]
    for name, image in zip(names, images, strict=False):
        Image.fromarray(image.reshape(28, 28)).save(folder / name)
    for name in ("notes.txt", ".b.png", ".hidden/e.png"):
        (folder / name).write_text("no picture")
    return folder


SORTED = ["10.gif", "a.PNG", "b.png", "below/c.webp", "below/d.png"]


def test_folder_is_read_with_those_below_in_order(models, folder, run):
    code, out, err = run("classify", folder, folder / "b.png", "--models", models)
    assert (code, err) == (0, [])
    assert [line.rpartition(": ")[0] for line in out] == [
        str(folder / name) for name in [*SORTED, "b.png"]
    ]


def test_folder_without_pictures_is_an_error(models, folder, tmp_path, run):
    empty = tmp_path / "empty"
    empty.mkdir()
    code, out, err = run("classify", empty, folder / "b.png", "--models", models)
    assert (code, len(out)) == (1, 1)
    assert err == [f"{empty}: no pictures in this folder", "1 of 2 failed"]


def test_pipe_is_refused_and_not_waited_for(models, folder, tmp_path):
    for place in (tmp_path, folder):
        os.mkfifo(place / "pipe.png")
    command = [*COMMAND, str(tmp_path / "pipe.png"), str(folder), "--models", str(models)]
    done = ended(command)
    assert (done.returncode, len(done.stdout.splitlines())) == (1, len(SORTED))
    assert f"{tmp_path / 'pipe.png'}: cannot be read: not a regular file" in done.stderr
    assert f"{folder / 'pipe.png'}: cannot be read: not a regular file" in done.stderr


def test_stdin_is_read_where_a_dash_is_given(models, folder):
    content = (folder / "b.png").read_bytes()
    result = subprocess.run([*COMMAND, "-", "--models", models], input=content, capture_output=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(b"-: ")


def test_closed_stdin_is_one_line(models):
    result = ended(["sh", "-c", 'exec "$@" <&-', "sh", *COMMAND, "-", "--models", models])
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "-: cannot be read: stdin is closed\n"


def test_closed_stderr_costs_no_answer(models, folder):
    words = [*COMMAND, folder / "b.png", "--models", models]
    result = ended(["sh", "-c", 'exec "$@" 2>&-', "sh", *words])
    assert result.returncode == 0
    assert result.stdout.startswith(f"{folder}/b.png: ")


def test_csv_has_a_line_a_picture_and_the_names_above(models, folder, run):
    (folder / "bad.png").write_text("no picture")
    code, out, err = run("classify", folder, "--csv", "--models", models, "--reject-below", 1)
    assert (code, err) == (1, [f"1 of {len(SORTED) + 1} failed"])
    rows = {Path(row["picture"]).name: row for row in csv.DictReader(out)}
    assert rows["bad.png"]["error"].startswith("expected a picture (PNG, JPEG")
    assert rows["bad.png"]["digit"] == ""
    assert rows["b.png"]["digit"].isdecimal()
    assert 0 < float(rows["b.png"]["probability"]) <= 1
    assert rows["b.png"]["rejected"] in ("true", "false")


def test_csv_and_json_exclude_each_other(models, folder, run):
    code, out, err = run("classify", folder, "--csv", "--json", "--models", models)
    assert (code, out) == (2, [])
    assert "--csv and --json exclude each other" in err[0]


def test_several_digits_are_refused_and_the_others_answered(models, folder, images, run):
    both = Image.new("L", (68, 28))
    for number, left in enumerate((0, 40)):
        both.paste(Image.fromarray(images[number].reshape(28, 28)), (left, 0))
    both.save(folder / "both.png")
    code, out, err = run("classify", folder, "--models", models)
    assert (code, len(out)) == (1, len(SORTED))
    assert err[0].startswith(f"{folder / 'both.png'}: expected one digit, found 2")


def test_answer_is_printed_before_the_next_picture_is_there(models, folder):
    with program(
        [*COMMAND, folder / "b.png", "-", "--models", models],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout.readline().startswith(f"{folder / 'b.png'}: ")
        process.stdin.buffer.write((folder / "b.png").read_bytes())
        process.stdin.close()
        assert process.stdout.readline().startswith("-: ")
    assert process.returncode == 0


def test_reader_that_leaves_ends_it_without_a_traceback(models, folder):
    with program(
        [*COMMAND, *[folder] * 20, "--models", models],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_ctrl_c_ends_it_without_a_traceback(models, folder):
    with program(
        [*COMMAND, folder / "b.png", "-", "--models", models],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        # Python misses one that comes between its last look and the call that reads the pipe.
        again = threading.Timer(30, process.send_signal, (signal.SIGINT,))
        again.start()
        assert process.stderr.read() == ""
        again.cancel()
    assert process.returncode == 1


def test_processes_read_in_the_inputs_order(models, folder, tmp_path, run, monkeypatch):
    monkeypatch.setattr(answers, "MIN_PICTURES", 1)
    monkeypatch.setattr(answers, "usable_cores", lambda: 2)
    missing = tmp_path / "missing.png"
    code, out, _ = run("classify", *[folder] * 5, missing, folder, "--json", "--models", models)
    expected = [*SORTED * 5, "missing.png", *SORTED]
    found = [json.loads(line) for line in out]
    assert code == 1
    names = [answer["picture"].removeprefix(f"{folder}/") for answer in found]
    assert [name.removeprefix(f"{tmp_path}/") for name in names] == expected
    assert ["error" in answer for answer in found] == [name == "missing.png" for name in expected]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_terminal_has_a_progress_bar_that_makes_room_for_answers():
    terminal = Terminal()
    bar = Bar(total=4, stream=terminal)
    bar.advance()
    assert "1 of 4" in terminal.getvalue()
    bar.clear()
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_name_cannot_break_the_line():
    assert escape("a\nb\x1b[2J\udcff.png") == r"a\nb\x1b[2J\udcff.png"
    assert escape("größe.png") == "größe.png"


def test_odd_names_are_printed_whatever_the_encoding(models, folder):
    odd = folder / os.fsdecode("grö\xffße\n".encode("latin-1") + b".png")
    (folder / "b.png").rename(odd)
    for encoding in ("ascii", "utf-8"):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        result = ended([*COMMAND, odd, "--models", models], env=environment, text=False)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count(b"\n") == 1


def test_damaged_picture_says_only_our_line(models, folder):
    content = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(content[:-60])
    Image.new("1", (9_500, 9_500)).save(folder / "bomb.png")  # Pillow has a warning for it
    command = [*COMMAND, *(str(folder / name) for name in ("b.png", "bomb.png"))]
    command += ["--models", str(models)]
    result = ended(command)
    assert result.returncode == 1
    assert [line.split(": ")[0] for line in result.stderr.splitlines()] == [
        str(folder / "b.png"),
        str(folder / "bomb.png"),
        "2 of 2 failed",
    ]


# The command line on models that are not digits'


def test_pictures_are_classified_by_other_models(other_models, tmp_path, images, run):
    pets = Signature((28, 28, 1), 3, ("cat", "dog", "fish"))
    templates.publish(tmp_path, "pets", pets)
    picture = tmp_path / "7.png"
    Image.fromarray(images[0].reshape(28, 28)).save(picture)

    def classified(models, name, *options):
        command = ("classify", picture, "--models", models, "--model", name, *options)
        code, out, _ = run(*command)
        assert code == 0
        return out

    (line,) = classified(other_models, "letters")
    assert line.removeprefix(f"{picture}: ").partition(" (")[0] in templates.LETTERS.labels
    (line,) = classified(tmp_path, "pets")
    answer = json.loads(classified(tmp_path, "pets", "--json")[0])
    label = line.removeprefix(f"{picture}: ").partition(" (")[0]
    assert pets.labels[answer["digit"]] == answer["label"] == label
    (row,) = csv.DictReader(classified(tmp_path, "pets", "--csv"))
    assert (row["digit"], row["label"]) == (str(answer["digit"]), label)


@pytest.mark.parametrize("name", ["letters", "glyphs"])
def test_info_shows_the_labels(other_models, name, run):
    signature = {"letters": templates.LETTERS, "glyphs": templates.GLYPHS}[name]
    with running_server(other_models, "--model", name) as server:
        for source in (("--models", other_models), ("--target", server.address)):
            command = ["info", *source, "--model", name]
            facts = dict(re.split("  +", line, maxsplit=1) for line in run(*command).out)
            assert facts.get("labels", "") == ", ".join(signature.labels)
            described = json.loads(run(*command, "--json").out[0])
            assert described["inputs"] == [f"images UINT8 [N, {signature.image_bytes}]"]
            assert described.get("labels", []) == list(signature.labels)
