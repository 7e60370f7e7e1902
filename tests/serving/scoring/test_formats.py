"""Every format in, the same answers out."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.predictions import Images
from serving.ray import Classify
from tests.serving.scoring.conftest import check, picture, rows_of, write

COLUMNS: dict[str, Callable[[Images], Any]] = {
    "bytes": rows_of,
    "large bytes": lambda images: rows_of(images).cast(pa.large_binary()),
    "bytes of one size": lambda images: rows_of(images).cast(pa.binary(784)),
    "dictionary of bytes": lambda images: rows_of(images).dictionary_encode(),
    "lists of uint8": lambda images: pa.array(list(images)),
    "lists of int64": lambda images: pa.array(list(images.astype(np.int64))),
    "large lists": lambda images: pa.array(list(images), pa.large_list(pa.int16())),
    "lists of one size": lambda images: pa.FixedSizeListArray.from_arrays(images.ravel(), 784),
    "lists of lists": lambda images: pa.array(images.reshape(-1, 28, 28).tolist()),
    "rows of one size": lambda images: pa.FixedSizeListArray.from_arrays(
        pa.FixedSizeListArray.from_arrays(images.ravel(), 28), 28
    ),
    "tensors": lambda images: pa.FixedShapeTensorArray.from_numpy_ndarray(
        images.reshape(-1, 28, 28)
    ),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_parquet_column_of_images_is_scored(kind, tmp_path, images, expected, score):
    source = write(tmp_path, COLUMNS[kind](images), row_group_size=150)
    result = score(source, "--rows-per-file", 300)
    assert result.code == 0, result.err
    check(result.table, expected)
    assert result.table.schema.names[:2] == ["id", "image"]
    assert result.table.select(["id", "image"]).to_pylist() == pq.read_table(source).to_pylist()
    assert len(list((tmp_path / "out").glob("part-*"))) == 2
    assert "scored rows=500 errors=0 files=2 " in result.out


@pytest.mark.parametrize("as_struct", [True, False], ids=["struct", "bytes"])
def test_parquet_column_of_picture_files_is_scored(as_struct, tmp_path, images, expected, score):
    files = [picture(image) for image in images[:30]]
    column = [{"bytes": file, "path": None} for file in files] if as_struct else files
    result = score(write(tmp_path, pa.array(column)))
    assert result.code == 0, result.err
    check(result.table, expected[:30])


def test_folder_of_parquet_is_scored_in_the_order_of_its_files(tmp_path, images, expected, score):
    source, elsewhere = tmp_path / "tables", tmp_path / "elsewhere"
    for folder in (source, elsewhere):
        folder.mkdir()
    (source / "a").symlink_to(elsewhere)
    for name, part in (("b", images[250:]), ("a/1", images[:250]), ("_temporary/0", images)):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"image": rows_of(part)}), source / f"{name}.parquet")
    result = score(source)
    assert result.code == 0, result.err
    check(result.table, expected)


def test_folder_of_pictures_is_scored(tmp_path, images, expected, score):
    source = tmp_path / "scans"
    for number, image in enumerate(images[:30]):
        path = source / ("a" if number < 20 else "b") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(image))
    (source / "notes.txt").write_text("no picture")
    result = score(source, "--rows-per-file", 25)
    assert result.code == 0, result.err
    check(result.table, expected[:30])
    assert result.table.schema.names == [
        "picture", "digit", "probability", "model_version", "error",
    ]  # fmt: skip
    assert result.table["picture"][0].as_py() == "a/00.png"
    assert len(list((tmp_path / "out").glob("part-*"))) == 2


def test_images_can_be_left_out_and_places_be_uris(tmp_path, images, expected, score):
    source = write(tmp_path, rows_of(images))
    result = score(f"file://{source}", "--drop-images", "--output", f"file://{tmp_path}/out/")
    assert result.table.schema.names == ["id", "digit", "probability", "model_version", "error"]
    check(result.table, expected)


def test_output_can_be_scored_again(tmp_path, images, expected, score):
    score(write(tmp_path, rows_of(images)))
    (tmp_path / "out").rename(tmp_path / "before")
    refused = score(tmp_path / "before")
    assert (refused.code, refused.table) == (2, None)
    assert "the input has a column 'digit' already: --prefix names the new ones" in refused.err
    result = score(tmp_path / "before", "--prefix", "new_")
    assert result.code == 0, result.err
    assert result.table["new_digit"].equals(result.table["digit"])


def test_tables_are_classified_as_ray_data_maps_them(images, expected):
    column = [*rows_of(images[:30]).to_pylist(), b"broken"]
    table = Classify(prefix="new_")(pa.table({"id": range(31), "image": column}))
    assert table.schema.names == [
        "id", "image", "new_digit", "new_probability", "new_model_version", "new_error",
    ]  # fmt: skip
    assert table["new_digit"].to_pylist() == [*expected.digits[:30].tolist(), None]
    assert table["new_error"][30].as_py() == "expected 784 pixels or a picture, got 6 bytes"
