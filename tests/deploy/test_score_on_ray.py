"""`score --ray` on a cluster of two raylets: every row once."""

import subprocess

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from digit_classifier import PRETRAINED, Classifier
from tests.deploy.conftest import ROOT, needed
from tests.digit_scoring.conftest import picture

NUM_FILES = 100
NUM_ROWS = 50
"""Rows of each file."""


@pytest.fixture(scope="session")
def ray_python():
    """The interpreter of the environment with Ray."""
    needed(ROOT / ".venv-ray" / "bin" / "ray", "make test-deploy")
    return ROOT / ".venv-ray" / "bin" / "python"


@pytest.fixture
def cluster(ray_python):
    """The address of two raylets, each with two cores."""
    process = subprocess.Popen(
        [ray_python, ROOT / "tests" / "deploy" / "ray_cluster.py"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    with process:
        yield process.stdout.readline().strip()
        process.stdin.close()


@pytest.fixture
def source(tmp_path, images):
    folder = tmp_path / "digits"
    folder.mkdir()
    column = [images[row % len(images)].tobytes() for row in range(NUM_FILES * NUM_ROWS)]
    column[7] = b"broken"
    for start in range(0, len(column), NUM_ROWS):
        some = pa.table({"id": range(start, start + NUM_ROWS),
                         "image": column[start : start + NUM_ROWS]})  # fmt: skip
        pq.write_table(some, folder / f"{start:06}.parquet")
    return folder


def start(python, *options):
    command = [python, "-m", "serving", "score", *options, "--models", PRETRAINED]
    return subprocess.Popen(
        [*map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.timeout(300)
def test_rows_are_there_once(cluster, ray_python, source, tmp_path, images):
    out = tmp_path / "out"
    options = ("--output", out, "--rows-per-file", NUM_ROWS, "--ray", cluster)
    with start(ray_python, source, *options) as process:
        printed, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert f"scored rows={NUM_FILES * NUM_ROWS} errors=1 files=" in printed
    table = pq.read_table(out)
    assert sorted(table["id"].to_pylist()) == list(range(NUM_FILES * NUM_ROWS))
    with Classifier.load(PRETRAINED / "digits", device="cpu") as classifier:
        expected = np.tile(classifier.classify(images).digits, NUM_FILES * NUM_ROWS // len(images))
    rows = {row["id"]: row for row in table.to_pylist()}
    answers = [rows[number]["digit"] for number in range(len(rows))]
    assert answers == [None if row == 7 else digit for row, digit in enumerate(expected)]
    assert rows[7]["error"] == "expected 784 pixels or a picture, got 6 bytes"


@pytest.mark.timeout(120)
def test_pictures_are_scored_as_on_one_machine(cluster, ray_python, tmp_path, images):
    for row, image in enumerate(images[:20]):
        path = tmp_path / "scans" / str(row % 2) / f"{row:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(image))
    path.write_bytes(b"no picture")
    tables = []
    for name, options in (("ray", ["--ray", cluster]), ("here", [])):
        out = tmp_path / name
        with start(ray_python, tmp_path / "scans", "--output", out, *options) as process:
            _, errors = process.communicate()
        assert process.returncode == 1, errors
        tables.append(pq.read_table(out).sort_by("picture"))
    assert tables[0].equals(tables[1])


@pytest.mark.timeout(120)
@pytest.mark.parametrize("address", ["nonsense://127.0.0.1:1", "127.0.0.1:1"])
def test_cluster_out_of_reach_is_one_line(address, ray_python, source, tmp_path):
    options = ("--output", tmp_path / "out", "--ray", address)
    with start(ray_python, source, *options) as process:
        printed, errors = process.communicate()
    assert (process.returncode, printed) == (2, "")
    assert errors.splitlines()[-1].startswith(f"digit-serving: can't reach the cluster {address}: ")
