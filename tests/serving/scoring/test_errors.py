"""Broken rows have an error each; broken inputs are one line."""

import gzip
import json
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
    result = score(write(tmp_path, pa.array(column), row_group_size=200))
    size = "expected 784 pixels or a picture, got"
    errors = {3: f"{size} 2 bytes", 7: "no image: it is null", 8: f"{size} 0 bytes"}
    check_broken(result, expected, errors | {499: ""})
    assert json.loads((tmp_path / "out" / "_summary.json").read_text()) == {
        "rows": 500, "errors": 4, "files": 1,
    }  # fmt: skip


def test_picture_with_as_many_bytes_as_pixels_is_decoded(
    tmp_path: Path, images: Images, expected: Predictions, score: Score
) -> None:
    file = picture(images[0])
    column = [file + b"\0" * (784 - len(file)), images[1].tobytes()]
    result = score(write(tmp_path, pa.array(column)))
    assert result.table["digit"].to_pylist() == expected.digits[:2].tolist()


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
    source = tmp_path / "scans"
    source.mkdir()
    for number, image in enumerate(images[:5]):
        (source / f"{number}.png").write_bytes(picture(image))
    (source / "1.png").write_bytes(b"x" * 784)
    result = score(source)
    check_broken(result, expected, {1: "expected a picture (PNG"})


def test_picture_that_has_gone_is_a_row_with_its_error(tmp_path: Path, images: Images) -> None:
    for number, image in enumerate(images[:3]):
        (tmp_path / f"{number}.png").write_bytes(picture(image))
    dataset = open_dataset(Location.of(str(tmp_path)), DIGITS, None, None)
    (tmp_path / "1.png").unlink()
    (rows,) = dataset.reader.read(dataset.pieces[0])
    assert list(rows.errors) == [1]
    assert rows.errors[1].startswith("cannot be read: ")
    assert rows.batch["image"].field("bytes").is_null().to_pylist() == [False, True, False]


def empty(path: Path) -> None:
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), path)


def cut(path: Path) -> None:
    pq.write_table(pa.table({"image": [b"0" * 784] * 50}), path)
    path.write_bytes(path.read_bytes()[:-20])


def several(path: Path) -> None:
    pq.write_table(pa.table({"a": [b""], "b": [b""]}), path)


def mixed(path: Path) -> None:
    path.mkdir()
    several(path / "a.parquet")
    (path / "b.png").touch()


def unlike(path: Path) -> None:
    path.mkdir()
    several(path / "a.parquet")
    empty(path / "b.parquet")


def idx(*sizes: int, num_bytes: int) -> Callable[[Path], object]:
    head = bytes([0, 0, 8, len(sizes)]) + b"".join(size.to_bytes(4, "big") for size in sizes)
    return lambda path: path.write_bytes(head + b"\0" * num_bytes)


def cut_gzip(path: Path) -> None:
    idx(9, 28, 28, num_bytes=9 * 784)(path)
    path.write_bytes(gzip.compress(path.read_bytes())[:-20])


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing": (lambda path: None, "no such file or folder"),
    "no rows": (empty, "has no rows"),
    "an empty folder": (Path.mkdir, "holds no Parquet files and no pictures"),
    "a folder of both": (mixed, "holds Parquet files and pictures: name a folder of one"),
    "unlike tables": (unlike, "has other columns than"),
    "text": (lambda path: path.write_text("digits"), "is neither Parquet, IDX nor NPZ"),
    "cut Parquet": (cut, "Parquet magic bytes not found in footer"),
    "two columns": (several, "several columns of bytes or lists; name one with --column"),
    "floats": (
        lambda path: pq.write_table(pa.table({"image": [[0.5] * 784]}), path),
        "no column of bytes or lists; name one with --column: image (list<",
    ),
    "cut IDX": (idx(9, 28, 28, num_bytes=9), "is cut off: its header says 9 images"),
    "labels": (idx(9, num_bytes=9), "no images 28 x 28 uint8"),
    "gzip of text": (lambda path: path.write_bytes(gzip.compress(b"0" * 99)), "is no IDX file"),
    "cut gzip": (cut_gzip, "is cut off"),
    "cut NPZ": (lambda path: path.write_bytes(b"PK\x03\x04"), "can't be read as NPZ"),
    "NPZ without images": (
        lambda path: np.savez(path.open("wb"), x=np.zeros((3, 784))),
        "has no array of images, 28 x 28 uint8 -> 10 classes: it has x <f8 (3, 784)",
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
        (["--column", "pixels"], "has no column 'pixels': it has id, image"),
        (["--column", "id"], "column 'id' can't hold images: it is int64"),
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


def test_output_within_the_input_is_refused(tmp_path: Path, images: Images, score: Score) -> None:
    write(tmp_path, rows_of(images))
    result = score(tmp_path)
    assert result.code == 2
    assert "OUT is in INPUT" in result.err


def test_input_that_is_damaged_inside_leaves_no_file(
    tmp_path: Path, images: Images, score: Score
) -> None:
    source = write(tmp_path, rows_of(images), compression="zstd")
    content = bytearray(source.read_bytes())
    content[2000:9000] = bytes(7000)
    source.write_bytes(content)
    result = score(source)
    assert (result.code, result.table) == (2, None)
    assert result.err.count("\n") == 1
    assert not list((tmp_path / "out").glob("_part-*"))
