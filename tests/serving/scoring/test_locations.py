"""File systems other than this machine's, and the files left there."""

import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from serving import Predictions
from serving.__main__ import main
from serving.catalog.remote import without_credentials
from serving.errors import ConfigurationError
from serving.images import Images
from serving.model.loaded_model import load_model
from serving.model.repository import PRETRAINED
from serving.scoring import scorer
from serving.scoring.location import Location
from serving.scoring.opening import open_dataset
from serving.signature import DIGITS
from tests.serving.scoring.conftest import check, picture, rows_of, write


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


def scored(source: Location, out: Location) -> int:
    model = load_model(PRETRAINED / "digits", device="cpu")
    dataset = open_dataset(source, DIGITS, None, 100)
    dropped = None if dataset.are_images_kept else dataset.image_column
    schema = scorer.answered(dataset.schema, dropped, "", DIGITS)
    task = scorer.Task(dataset.image_column, dataset.compression, out, schema)
    num_rows: list[int] = []
    assert not any(scorer.score(task, dataset.pieces, model, 2, num_rows.append))
    return sum(num_rows)


@pytest.mark.parametrize("are_pictures", [False, True], ids=["Parquet", "pictures"])
def test_files_of_another_file_system_are_read_and_written(
    are_pictures: bool, tmp_path: Path, images: Images, expected: Predictions
) -> None:
    # In memory, as far as ours can know an object store.
    remote = Location(fs._MockFileSystem(), "bucket")
    files = {f"a/{row:02}.png": picture(image) for row, image in enumerate(images[:30])}
    if not are_pictures:
        write(tmp_path, rows_of(images[:30]), row_group_size=10)
        files = {"digits.parquet": (tmp_path / "digits.parquet").read_bytes()}
    for folder in ("in/a", "out"):
        remote.filesystem.create_dir((remote / folder).path)
    for name, content in files.items():
        with remote.filesystem.open_output_stream((remote / "in" / name).path) as stream:
            stream.write(content)
    assert scored(remote / "in", remote / "out") == 30
    (part,) = (remote / "out").files()
    table = pq.read_table(remote.filesystem.open_input_file(part.path))
    check(table, expected[:30])
    if are_pictures:
        assert table["picture"].to_pylist() == [*files]


def test_threads_end_when_a_piece_fails(tmp_path: Path, images: Images) -> None:
    write(tmp_path, rows_of(np.tile(images, (20, 1))), row_group_size=100)
    source, out = Location.of(str(tmp_path / "digits.parquet")), Location.of(str(tmp_path / "no"))
    with pytest.raises(ConfigurationError, match=r"/no: .*No such file or directory"):
        scored(source, out)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("scorer")]
