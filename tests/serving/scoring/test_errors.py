"""Broken rows have an error each; broken inputs are one line."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving import Predictions
from serving.images import Images
from serving.scoring.location import Location
from serving.scoring.opening import open_dataset
from serving.signature import DIGITS
from tests.serving.scoring.conftest import Score, picture, rows_of, write


def check_broken(result: Any, expected: Predictions, errors: dict[int, str]) -> None:
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


def test_broken_bytes_are_rows_with_errors(
    tmp_path: Path, images: Images, expected: Predictions, score: Score
) -> None:
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


def test_broken_lists_are_rows_with_errors(
    tmp_path: Path, images: Images, expected: Predictions, score: Score
) -> None:
    column: list[Any] = images.astype(int).tolist()
    column[0], column[1] = column[0][:783], None
    column[2][5], column[3][5], column[4][0] = 256, -1, None
    result = score(write(tmp_path, pa.array(column)))
    range_ = "expected pixels from 0 to 255"
    errors = {0: "expected 784 pixels, got 783", 1: "no image", 2: range_, 3: range_, 4: range_}
    check_broken(result, expected, errors)


def test_broken_pictures_are_rows_with_errors(
    tmp_path: Path, images: Images, expected: Predictions, score: Score
) -> None:
    (tmp_path / "scans").mkdir()
    files = [tmp_path / f"scans/{number}.png" for number in range(5)]
    for file, image in zip(files, images, strict=False):
        file.write_bytes(picture(image))
    files[1].write_bytes(b"x" * 784)
    check_broken(score(tmp_path / "scans"), expected, {1: "expected a picture (PNG"})
    dataset = open_dataset(Location.of(f"{tmp_path}/scans"), DIGITS, None, None)
    files[2].unlink()
    ((batch, errors),) = dataset.pieces[0].read()
    assert [*errors] == [2]
    assert errors[2].startswith("cannot be read: ")
    assert batch["image"].is_null().to_pylist() == [False, False, True, False, False]


def table(names: list[str], *columns: list[Any]) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pa.table([*map(pa.array, columns)], names), path)


empty = table(["image"], pa.array([], pa.binary()))
several = table(["a", "b"], [b""], [b""])


def cut(path: Path) -> None:
    table(["image"], [b"0" * 784] * 50)(path)
    path.write_bytes(path.read_bytes()[:-20])


def beside(add: Callable[[Path], object]) -> Callable[[Path], None]:
    def fill(path: Path) -> None:
        path.mkdir()
        table(["image"], [b"0" * 784])(path / "a.parquet")
        add(path)

    return fill


def idx(*sizes: int, num_bytes: int) -> Callable[[Path], object]:
    head = bytes([0, 0, 8, len(sizes)]) + b"".join(size.to_bytes(4, "big") for size in sizes)
    return lambda path: path.write_bytes(head + b"\0" * num_bytes)


def gzipped(damage: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    content = bytes([0, 0, 8, 3, 0, 0, 0, 9, 0, 0, 0, 28, 0, 0, 0, 28]) + b"\0" * (9 * 784)
    return lambda path: path.write_bytes(damage(gzip.compress(content)))


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing": (lambda path: None, "no such file or folder"),
    "no rows": (empty, "has no rows"),
    "an empty folder": (Path.mkdir, "holds no Parquet files and no pictures"),
    "both": (beside(lambda at: (at / "b.png").touch()), "holds Parquet files and pictures"),
    "unlike tables": (beside(lambda at: several(at / "b.parquet")), "has other columns than"),
    "a cut table": (beside(lambda at: cut(at / "b.parquet")), "/b.parquet: Parquet magic"),
    "a broken link": (beside(lambda at: (at / "b.png").symlink_to("no")), "/b.png is neither"),
    "a pipe inside": (beside(lambda at: os.mkfifo(at / "b.pq")), "/b.pq is neither"),
    "a loop": (beside(lambda at: (at / "up").symlink_to(at)), "which is read already"),
    "a name of bytes": (
        beside(lambda at: (at / os.fsdecode(b"\xff")).touch()),
        "its name is not UTF-8",
    ),
    "a pipe": (os.mkfifo, "is neither Parquet, IDX nor NPZ"),
    "text": (lambda path: path.write_text("digits"), "is neither Parquet, IDX nor NPZ"),
    "cut Parquet": (cut, "Parquet magic bytes not found in footer"),
    "two columns": (several, "has several columns of images (bytes, or lists of"),
    "one name twice": (table(["image", "image"], [b""], [b""]), "has several columns of images"),
    "floats": (table(["image"], [[0.5] * 784]), "no column of images (bytes, or lists of whole"),
    "cut IDX": (idx(9, 28, 28, num_bytes=9), ": cut off"),
    "labels": (idx(9, num_bytes=9), "has no column of images ("),
    "small images": (idx(9, 14, 14, num_bytes=1764), "has no column of images ("),
    "gzip of text": (lambda path: path.write_bytes(gzip.compress(b"0" * 99)), "no IDX file of"),
    "cut gzip": (gzipped(lambda content: content[:-20]), ": cut off"),
    "damaged gzip": (gzipped(lambda content: content[:-8] + bytes(8)), ": CRC check failed"),
    "cut NPZ": (lambda path: path.write_bytes(b"PK\x03\x04"), "can't be read as NPZ or IDX: "),
    "NPZ without images": (
        lambda path: np.savez(path.open("wb"), x=np.zeros((3, 784))),
        "x (float64 (3, 784))",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_line(name: str, tmp_path: Path, score: Score) -> None:
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
        (["--version", "9"], "model 'digits' has no version '9'"),
        (["--device", "cuda"], "device 'cuda' needs"),
    ],
)
@pytest.mark.usefixtures("no_gpu")
def test_wrong_option_is_one_line(
    options: list[str], line: str, tmp_path: Path, images: Images, score: Score
) -> None:
    result = score(write(tmp_path, rows_of(images)), *options)
    assert (result.code, result.out, result.table) == (2, "", None)
    assert result.err.count("\n") == 1
    assert line in result.err


def test_input_that_is_damaged_inside_leaves_no_file(
    tmp_path: Path, images: Images, score: Score
) -> None:
    source = write(tmp_path, rows_of(images), compression="zstd")
    content = bytearray(source.read_bytes())
    content[2000:9000] = bytes(7000)
    source.write_bytes(content)
    result = score(source)
    assert (result.code, result.table) == (2, None)
    assert result.err.startswith(f"digit-serving: {source}: ")
    assert result.err.count("\n") == 1
    assert not list((tmp_path / "out").glob("_part-*"))
    assert "OUT is in INPUT" in score(tmp_path).err
