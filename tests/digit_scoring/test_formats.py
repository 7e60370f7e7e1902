"""Every format in, the same answers out."""

import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyarrow import fs

from digit_classifier import PRETRAINED
from digit_classifier.predictions import DIGITS
from digit_scoring.answers import answered, decode
from digit_scoring.files import open_place
from digit_scoring.local import score
from digit_scoring.output import Output
from digit_scoring.ray import Classify
from digit_scoring.source import open_source
from serving.__main__ import main
from serving.commandline.installation import install
from serving.commandline.progress import Bar
from serving.errors import ConfigurationError
from serving.model.loading import load_model
from serving.model.remote import without_credentials
from serving.pictures.reader import processes
from serving.tensors import Images
from tests.digit_scoring.conftest import check, picture, rows_of, write
from tests.support.pictures import encoded
from tests.support.servers import ended

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


# The output of `score` beside its results


@pytest.mark.parametrize(
    ("module", "options", "extra"),
    [("pyarrow", [], "score"), ("ray", ["--ray"], "ray"), ("onnxruntime", [], "serve")],
)
def test_missing_package_is_one_line(module, options, extra):
    code = f"import sys\nsys.modules[{module!r}] = None\n"
    code += f"from serving.__main__ import main\nsys.exit(main(['score', 'a', *{options!r}]))"
    command = [sys.executable, "-c", code]
    environment = {"SERVING_OUTPUT": "b", "SERVING_MODEL": "digits"}
    result = ended(command, env=environment)
    assert (result.returncode, result.stdout) == (2, "")
    line = f"digit-serving: {module} is not installed: {install(extra)}\n"
    assert result.stderr.endswith(line)


def test_progress_is_lines_where_there_is_no_terminal(tmp_path, images, score, monkeypatch):
    monkeypatch.setattr(Bar, "LINE_INTERVAL_S", 0)
    result = score(write(tmp_path, rows_of(images), row_group_size=250), "--rows-per-file", 250)
    first, last = result.err.splitlines()
    assert first.startswith("scored 250 of 500 rows, ")
    assert last.startswith("scored 500 of 500 rows, ")


# Processes that decode pictures: a crash costs one picture


@pytest.fixture
def decoders():
    decoders = processes(2)
    yield decoders
    decoders.close()


def test_remarks_of_decoders_stay_off_stderr(decoders, capfd):
    content = encoded(Image.new("L", (40, 40)), "tiff", compression="tiff_lzw")
    (error,) = decode(decoders, [content[:8] + b"\xff" * 22 + content[30:]])
    assert error == "cannot be read: decoder error -2"
    assert capfd.readouterr().err == ""


# File systems other than this machine's, and the files left there


def test_credentials_are_not_printed(tmp_path, images, capsys):
    source = str(write(tmp_path, rows_of(images)))
    assert main(["score", source, "--output", "nowhere://me:secret@there/a?key=secret"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("digit-serving: nowhere://there/a: ")
    assert "secret" not in line
    assert without_credentials("s3://key:secret@bucket/a?region=x") == "s3://bucket/a"
    assert without_credentials("a?b@c") == "a?b@c"


def scored(place, out):
    model = load_model(PRETRAINED / "digits", device="cpu")
    source = open_source(place, None, 100)
    dropped = source.image_column if source.are_pictures else None
    output = Output(*out, answered(source.schema, dropped, "", DIGITS))
    num_rows: list[int] = []
    assert not any(number for number, _ in score(source, output, model, 2, num_rows.append))
    return sum(num_rows)


@pytest.mark.parametrize("are_pictures", [False, True], ids=["Parquet", "pictures"])
def test_files_of_another_file_system_are_read_and_written(
    are_pictures, tmp_path, images, expected
):
    # In memory, as far as ours can know an object store.
    remote = fs._MockFileSystem()
    files = {f"a/{row:02}.png": picture(image) for row, image in enumerate(images[:30])}
    if not are_pictures:
        write(tmp_path, rows_of(images[:30]), row_group_size=10)
        files = {"digits.parquet": (tmp_path / "digits.parquet").read_bytes()}
    for folder in ("in/a", "in/_left", "out"):
        remote.create_dir(f"bucket/{folder}")
    for name, content in {**files, "_left/no.png": b"", "_left/no.parquet": b""}.items():
        with remote.open_output_stream(f"bucket/in/{name}") as stream:
            stream.write(content)
    assert scored((remote, "bucket/in"), (remote, "bucket/out")) == 30
    table = pq.read_table(remote.open_input_file("bucket/out/part-000000.parquet"))
    check(table, expected[:30])
    if are_pictures:
        assert table["picture"].to_pylist() == [*files]


def test_threads_end_when_a_piece_fails(tmp_path, images):
    write(tmp_path, rows_of(np.tile(images, (20, 1))), row_group_size=100)
    places = [open_place(str(tmp_path / name)) for name in ("digits.parquet", "no")]
    with pytest.raises(ConfigurationError, match=r"/no: .*No such file or directory"):
        scored(*places)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("scorer")]
