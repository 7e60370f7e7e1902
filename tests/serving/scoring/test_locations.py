"""File systems other than this machine's, and what stays there."""

import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from serving import Predictions
from serving.__main__ import main
from serving.errors import ConfigurationError
from serving.images import Images
from serving.model.loaded_model import load_model
from serving.model.repository import PRETRAINED
from serving.scoring import threads
from serving.scoring.location import Location, without_credentials
from serving.scoring.opening import open_dataset
from serving.scoring.output import Output
from serving.scoring.scorer import Task
from serving.signature import DIGITS
from tests.serving.scoring.conftest import Score, check, picture, rows_of, write


def test_uris_are_opened(
    tmp_path: Path, images: Images, expected: Predictions, score: Score
) -> None:
    source = write(tmp_path, rows_of(images))
    result = score(f"file://{source}", "--output", f"file://{tmp_path}/out/")
    assert result.code == 0, result.err
    check(result.table, expected)


def test_credentials_are_not_printed(
    tmp_path: Path, images: Images, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(write(tmp_path, rows_of(images)))
    assert main(["score", source, "--output", "nowhere://me:secret@there/a?key=secret"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("digit-serving: nowhere://there/a: ")
    assert "secret" not in line
    assert without_credentials("s3://key:secret@bucket/a?region=x") == "s3://bucket/a"
    assert without_credentials("a?b@c") == "a?b@c"


@pytest.fixture
def remote() -> Location:
    """A file system in memory, as far as ours can know an object store."""
    return Location(fs._MockFileSystem(), "bucket")


def scored(task: Task, source: Location) -> int:
    model = load_model(PRETRAINED / "digits", device="cpu")
    pieces = open_dataset(source, DIGITS, None, 100).pieces
    return sum(piece.num_rows for piece in threads.score(task, pieces, model, 2, lambda _: None))


def test_files_of_another_file_system_are_read_and_written(
    remote: Location, images: Images, expected: Predictions
) -> None:
    source, out = remote / "in", remote / "out"
    for folder in (source, out):
        remote.filesystem.create_dir(folder.path)
    with remote.filesystem.open_output_stream((source / "a.parquet").path) as stream:
        pq.write_table(pa.table({"image": rows_of(images)}), stream, row_group_size=100)
    task = Task(open_dataset(source, DIGITS, None, 100).reader, Output(out, "error"), "", True)
    assert scored(task, source) == 500
    files = out.files(recursive=False)
    assert len(files) == 5
    parts = [pq.read_table(remote.filesystem.open_input_file(file.path)) for file in files]
    check(pa.concat_tables(parts), expected)


def test_pictures_of_another_file_system_are_read(
    remote: Location, images: Images, expected: Predictions
) -> None:
    remote.filesystem.create_dir((remote / "out").path)
    remote.filesystem.create_dir((remote / "in/a").path)
    for number, image in enumerate(images[:3]):
        file = remote / f"in/a/{number}.png"
        with remote.filesystem.open_output_stream(file.path) as stream:
            stream.write(picture(image))
    source = remote / "in"
    task = Task(
        open_dataset(source, DIGITS, None, 9).reader, Output(remote / "out", "error"), "", False
    )
    assert scored(task, source) == 3
    (file,) = (remote / "out").files(recursive=False)
    table = pq.read_table(remote.filesystem.open_input_file(file.path))
    assert table["picture"].to_pylist() == ["a/0.png", "a/1.png", "a/2.png"]
    check(table, expected[:3])


def test_threads_end_when_a_piece_fails(tmp_path: Path, images: Images) -> None:
    write(tmp_path, rows_of(np.tile(images, (20, 1))), row_group_size=100)
    source, out = Location.of(str(tmp_path / "digits.parquet")), Location.of(str(tmp_path / "no"))
    task = Task(open_dataset(source, DIGITS, None, 100).reader, Output(out, "error"), "", True)
    with pytest.raises(ConfigurationError, match=r"/no: .*No such file or directory"):
        scored(task, source)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("scorer")]
