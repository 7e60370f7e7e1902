"""Data sets to score, and `score` itself."""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from digit_classifier import PRETRAINED, Classifier
from serving.__main__ import main
from tests.support.pictures import encoded


class Result(NamedTuple):
    """The files that a run of `score` left behind."""

    code: int
    out: str
    err: str
    table: Any
    """A `pyarrow.Table` of all rows; None if there is no output."""


@pytest.fixture(scope="session")
def expected(images):
    """The answers to all test images."""
    with Classifier.load(PRETRAINED / "digits", device="cpu") as classifier:
        yield classifier.classify(images)


@pytest.fixture
def score(tmp_path, capsys):
    """Run `score` in this process on an input, with some options."""

    def run(source, *options, is_read=True):
        words = ["score", source, "--output", tmp_path / "out", "--models", PRETRAINED, *options]
        code = main([*map(str, words)])
        printed = capsys.readouterr()
        return Result(code, printed.out, printed.err, read(tmp_path / "out") if is_read else None)

    return run


def read(folder):
    """Read an output as any reader of Parquet does."""
    parts = sorted(folder.glob("part-*.parquet"))
    return pa.concat_tables(pq.read_table(part) for part in parts) if parts else None


def write(folder, column, **options):
    """Write a table of an id and a column of images."""
    path = folder / "digits.parquet"
    pq.write_table(pa.table({"id": range(len(column)), "image": column}), path, **options)
    return path


def rows_of(images):
    """Make a column of bytes."""
    return pa.array([image.tobytes() for image in images])


def picture(image):
    """Make a PNG."""
    return encoded(Image.fromarray(image.reshape(28, 28)))


def check(table, expected):
    """Compare an output with the classifier's own answers."""
    np.testing.assert_array_equal(table["digit"], expected.digits)
    certain = [each.probability for each in expected]
    # The classifier's runs have other sizes than ours: sums in another order.
    np.testing.assert_allclose(table["probability"], certain, atol=1e-5)
    assert set(table["model_version"].to_pylist()) == {expected.model_version}
    assert table["error"].null_count == len(table)
