"""Interrupted runs go on: every row once, and the same files as of a run without interruption."""

import signal
import subprocess
import sys

import numpy as np
import pytest

from serving.model.repository import PRETRAINED
from tests.serving.scoring.conftest import read, rows_of, write
from tests.support.processes import wait_until
from tests.support.servers import program

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
