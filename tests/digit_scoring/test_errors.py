"""Broken rows have an error each; broken inputs are one line."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from digit_classifier import PRETRAINED
from digit_scoring.files import open_place
from digit_scoring.source import open_source
from tests.digit_scoring.conftest import picture, read, rows_of, write
from tests.support.servers import program, wait_until


def check_broken(result, expected, errors):
    """Check that some rows have no answer, and all others theirs."""
    assert result.code == 1, result.err
    assert f"errors={len(errors)} " in result.out
    for row, found in enumerate(result.table.to_pylist()):
        if row in errors:
            assert found["error"].startswith(errors[row])
            assert found["digit"] is None
            assert found["probability"] is None
        else:
            assert (found["error"], found["digit"]) == (None, expected.digits[row])


def test_broken_bytes_are_rows_with_errors(tmp_path, images, expected, score):
    column = rows_of(images).to_pylist()
    column[3], column[7], column[8], column[499] = b"no", None, b"", picture(images[9])[:-50]
    column[9] = picture(images[9]).ljust(784, b"\0")  # as many bytes as pixels
    result = score(write(tmp_path, pa.array(column), row_group_size=200))
    size = "expected 784 pixels or a picture, got"
    errors = {3: f"{size} 2 bytes", 7: "no image: it is null", 8: f"{size} 0 bytes"}
    check_broken(result, expected, errors | {499: ""})
    assert json.loads((tmp_path / "out" / "_summary.json").read_text()) == {
        "rows": 500, "errors": 4, "files": 1,
    }  # fmt: skip


def test_broken_lists_are_rows_with_errors(tmp_path, images, expected, score):
    column: list[Any] = images.astype(int).tolist()
    column[0], column[1] = column[0][:783], None
    column[2][5], column[3][5], column[4][0] = 256, -1, None
    result = score(write(tmp_path, pa.array(column)))
    range_ = "expected pixels from 0 to 255"
    errors = {0: "expected 784 pixels, got 783", 1: "no image", 2: range_, 3: range_, 4: range_}
    check_broken(result, expected, errors)


def test_broken_pictures_are_rows_with_errors(tmp_path, images, expected, score):
    (tmp_path / "scans").mkdir()
    files = [tmp_path / f"scans/{number}.png" for number in range(5)]
    for file, image in zip(files, images, strict=False):
        file.write_bytes(picture(image))
    files[1].write_bytes(b"x" * 784)
    check_broken(score(tmp_path / "scans"), expected, {1: "expected a picture (PNG"})
    source = open_source(open_place(f"{tmp_path}/scans"), None, None)
    files[2].unlink()
    (batch,) = source.parts[0].read()
    assert batch["image"].to_pylist()[2] == {"bytes": None}


def test_run_without_any_answer_gives_a_reason(tmp_path, score):
    result = score(write(tmp_path, pa.array([b"no", None])))
    assert result.code == 1
    assert result.err == "digit-serving: no row has an answer, such as: no image: it is null\n"


def table(names, *columns):
    return lambda path: pq.write_table(pa.table([*map(pa.array, columns)], names), path)


empty = table(["image"], pa.array([], pa.binary()))
several = table(["a", "b"], [b""], [b""])


def cut(path):
    table(["image"], [b"0" * 784] * 50)(path)
    path.write_bytes(path.read_bytes()[:-20])


def beside(add):
    def fill(path):
        path.mkdir()
        table(["image"], [b"0" * 784])(path / "a.parquet")
        add(path)

    return fill


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing": (lambda path: None, "no such file or folder"),
    "no rows": (empty, "has no rows"),
    "an empty folder": (Path.mkdir, "holds no Parquet files and no pictures: name"),
    "both": (
        beside(lambda at: (at / "b.png").touch()),
        "holds both Parquet files and pictures: name",
    ),
    "unlike tables": (beside(lambda at: several(at / "b.parquet")), "has other columns than"),
    "a cut table": (beside(lambda at: cut(at / "b.parquet")), "/b.parquet': Parquet magic"),
    "a broken link": (
        beside(lambda at: (at / "b.pq").symlink_to("no")),
        "/b.pq is no regular file",
    ),
    "a pipe inside": (beside(lambda at: os.mkfifo(at / "b.pq")), "/b.pq is no regular file"),
    "a loop": (beside(lambda at: (at / "up").symlink_to(at)), "which is read already"),
    "a name of bytes": (
        beside(lambda at: (at / os.fsdecode(b"\xff")).touch()),
        "'utf-8' codec can't encode",
    ),
    "a pipe": (os.mkfifo, "is no regular file"),
    "text": (lambda path: path.write_text("digits"), "smaller than the minimum file footer"),
    "cut Parquet": (cut, "Parquet magic bytes not found in footer"),
    "two columns": (several, "has several columns of images (bytes, or lists of"),
    "one name twice": (table(["image", "image"], [b""], [b""]), "has several columns of images"),
    "floats": (table(["image"], [[0.5] * 784]), "no column of images (bytes, or lists of whole"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_line(name, tmp_path, score):
    make, line = WRONG[name]
    make(tmp_path / "input")
    result = score(tmp_path / "input")
    assert (result.code, result.out, result.table) == (2, "", None)
    assert result.err.count("\n") == 1
    assert line in result.err


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--column", "pixels"], "has no column 'pixels' of images ("),
        (["--column", "id"], "name one with --column: id (int64), image (binary)"),
        (["--output", "nowhere://x"], "nowhere://x: Unrecognized filesystem type in URI"),
        (["--output", "fsspec+gcs://x"], "fsspec+gcs://x: Please install gcsfs"),
        (["--ray", "--resume"], "--resume is not for --ray"),
        (["--version", "9"], "model 'digits' has no version '9'"),
        (["--device", "cuda"], "device 'cuda' needs"),
    ],
)
@pytest.mark.usefixtures("no_gpu")
def test_wrong_option_is_one_line(options, line, tmp_path, images, score):
    result = score(write(tmp_path, rows_of(images)), *options)
    assert (result.code, result.out, result.table) == (2, "", None)
    assert result.err.count("\n") == 1
    assert line in result.err


def test_input_that_is_damaged_inside_leaves_no_file(tmp_path, images, score):
    source = write(tmp_path, rows_of(images), compression="zstd")
    content = bytearray(source.read_bytes())
    content[2000:9000] = bytes(7000)
    source.write_bytes(content)
    result = score(source)
    assert (result.code, result.table) == (2, None)
    assert result.err.startswith(f"digit-serving: {source}: ")
    assert result.err.count("\n") == 1
    assert not list((tmp_path / "out").glob("_unfinished-*"))
    assert "OUT is in INPUT" in score(tmp_path).err


# Interrupted runs go on: every row once, and the same files as of a run without interruption


NUM_FILES = 200


@pytest.fixture
def source(tmp_path, images):
    """10,000 rows, 50 a file."""
    return write(tmp_path, rows_of(np.tile(images, (20, 1))), row_group_size=50)


def command(source, out):
    words = [sys.executable, "-m", "serving", "score", source, "--output", out]
    options = ["--models", PRETRAINED, "--rows-per-file", 50, "--workers", 2]
    return [*map(str, [*words, *options])]


def interrupt(source, out, number):
    """Start a run and send it a signal once it has made some files."""
    with program(command(source, out), stderr=subprocess.PIPE) as process:
        wait_until(lambda: len(list(out.glob("part-*"))) > 5)
        process.send_signal(number)
        line = "digit-serving: interrupted: --resume goes on\n" if number == signal.SIGINT else ""
        assert process.stderr.read() == line
    assert 5 < len(list(out.glob("part-*"))) < NUM_FILES
    assert not (out / "_summary.json").exists()
    return process.returncode


def times(out):
    return {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 1)]
)
@pytest.mark.slow
def test_interrupted_run_is_resumed_and_has_every_row_once(number, code, tmp_path, source):
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert interrupt(source, out, number) == code
    assert code < 0 or not list(out.glob("_unfinished-*"))
    (out / "_unfinished-leftover").touch()
    before = times(out)
    for folder in (out, whole):
        subprocess.run([*command(source, folder), "--resume"], check=True)
    assert before.items() <= times(out).items()  # none was made again
    assert read(out)["id"].to_pylist() == list(range(10_000))
    contents = [
        {path.name: path.read_bytes() for path in folder.iterdir()} for folder in (out, whole)
    ]
    assert contents[0] == contents[1]


def test_finished_run_is_not_made_again(tmp_path, images, score):
    source = write(tmp_path, [None, *rows_of(images[:99]).to_pylist()])
    score(source)
    before = times(tmp_path / "out")
    again = score(source)
    assert again.code == 2
    assert "holds results already: --resume goes on, or name another folder" in again.err
    resumed = score(source, "--resume")
    assert (resumed.code, times(tmp_path / "out")) == (1, before)
    assert "scored rows=100 errors=1 files=1 " in resumed.out
    (part,) = (tmp_path / "out").glob("part-*")
    part.write_bytes(part.read_bytes()[:-9])
    damaged = score(source, "--resume", is_read=False)
    assert damaged.code == 2
    assert f"{part}: Parquet magic bytes not found" in damaged.err


@pytest.mark.parametrize(
    ("options", "subject"),
    [(["--precision", "int8"], "model"), (["--rows-per-file", 600], "rows_per_file"),
     (["--drop-images"], "columns"), ([], "input")],
)  # fmt: skip
def test_resume_of_something_else_is_refused(options, subject, tmp_path, images, score):
    source = write(tmp_path, rows_of(images), row_group_size=100)
    score(source)
    if not options:
        write(tmp_path, rows_of(images[::-1]), row_group_size=100)
    result = score(source, "--resume", *options)
    assert result.code == 2
    assert f"holds results of another {subject} (" in result.err


def test_folder_with_other_files_is_refused(tmp_path, images, score):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    result = score(write(tmp_path, rows_of(images)))
    assert result.code == 2
    assert "is not empty, and holds no results to resume" in result.err
