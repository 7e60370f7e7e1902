"""File systems other than this machine's, and the files left there."""

import threading

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from serving.__main__ import main
from serving.errors import ConfigurationError
from serving.model.loading import load_model
from serving.model.remote import without_credentials
from serving.model.repository import PRETRAINED
from serving.scoring import scorer
from serving.scoring.source import open_place, open_source
from serving.tensors import DIGITS
from tests.serving.scoring.conftest import check, picture, rows_of, write


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
    output = scorer.Output(*out, scorer.answered(source.schema, dropped, "", DIGITS))
    num_rows: list[int] = []
    assert not any(number for number, _ in scorer.score(source, output, model, 2, num_rows.append))
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
