"""`score --ray` on a cluster of two raylets, one of which is killed: every row once."""

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving import Classifier
from serving.images import Images
from serving.model.repository import PRETRAINED
from tests.deploy.conftest import ROOT, needed

NUM_FILES = 100
NUM_ROWS = 50
"""Of each file."""


class RayCluster:
    """Two raylets, each with a core."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.address = self._line()

    def kill_one(self) -> None:
        """Kill a raylet and its children."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        assert self._line() == "killed"

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@pytest.fixture(scope="session")
def ray_python() -> Path:
    """The interpreter of the environment with Ray."""
    needed(ROOT / ".venv-ray" / "bin" / "ray", "make test-deploy")
    return ROOT / ".venv-ray" / "bin" / "python"


@pytest.fixture
def cluster(ray_python: Path) -> Iterator[RayCluster]:
    process = subprocess.Popen(
        [ray_python, ROOT / "tests" / "deploy" / "ray_cluster.py"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    with process:
        yield RayCluster(process)
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def source(tmp_path: Path, images: Images) -> Path:
    path = tmp_path / "digits.parquet"
    column = [images[row % len(images)].tobytes() for row in range(NUM_FILES * NUM_ROWS)]
    column[7] = b"broken"
    table = pa.table({"id": range(len(column)), "image": column})
    pq.write_table(table, path, row_group_size=NUM_ROWS)
    return path


def start(python: Path, *options: object) -> "subprocess.Popen[str]":
    command = [python, "-m", "serving", "score", *options, "--models", PRETRAINED]
    return subprocess.Popen(
        [*map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.timeout(300)
def test_rows_are_there_once_after_a_machine_has_died(
    cluster: RayCluster, ray_python: Path, source: Path, tmp_path: Path, images: Images
) -> None:
    out = tmp_path / "out"
    files = ("--output", out, "--rows-per-file", NUM_ROWS)
    with start(ray_python, source, *files, "--ray", cluster.address) as process:
        while len(list(out.glob("part-*"))) <= 5:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        cluster.kill_one()
        num_made = len(list(out.glob("part-*")))
        printed, errors = process.communicate()
    assert num_made < NUM_FILES - 5  # there was something left to do
    assert process.returncode == 1, errors
    ours = re.compile("(scored .* left\n|1 of 3 machines died: their files are done again\n)*")
    assert ours.fullmatch(errors)  # and not a line of Ray's
    assert f"scored rows={NUM_FILES * NUM_ROWS} errors=1 files={NUM_FILES} " in printed
    assert len(list(out.glob("part-*"))) == NUM_FILES
    table = pq.read_table(out)
    assert sorted(table["id"].to_pylist()) == list(range(NUM_FILES * NUM_ROWS))
    with Classifier.load(PRETRAINED / "digits", device="cpu") as classifier:
        expected = np.tile(classifier.classify(images).digits, NUM_FILES * NUM_ROWS // len(images))
    rows = {row["id"]: row for row in table.to_pylist()}
    answers = [rows[number]["digit"] for number in range(len(rows))]
    assert answers == [None if row == 7 else digit for row, digit in enumerate(expected)]
    assert rows[7]["error"] == "expected 784 pixels or a picture, got 6 bytes"
    local = tmp_path / "local"
    with start(ray_python, source, "--output", local, "--rows-per-file", NUM_ROWS) as process:
        process.communicate()
    assert {path.name: path.read_bytes() for path in out.glob("part-*")} == {
        path.name: path.read_bytes() for path in local.glob("part-*")
    }


@pytest.mark.timeout(120)
@pytest.mark.parametrize("address", ["nonsense://127.0.0.1:1", "127.0.0.1:1"])
def test_cluster_out_of_reach_is_one_line(
    address: str, ray_python: Path, source: Path, tmp_path: Path
) -> None:
    options = ("--output", tmp_path / "out", "--ray", address)
    with start(ray_python, source, *options) as process:
        printed, errors = process.communicate()
    assert (process.returncode, printed) == (2, "")
    assert errors.startswith(f"digit-serving: can't reach the cluster {address}: ")
    assert errors.count("\n") == 1
