"""Pools whose output has no element: a small picture ends no process."""

import subprocess
import sys

import numpy as np
import pytest

from serving.model.empty_pools import may_end_empty
from tests.serving.model import graphs
from tests.serving.model.graphs import node, value

BLOCK = 16
"""Channels that ONNX Runtime lays out in blocks."""


def network(shape, name="MaxPool", **attributes):
    """A convolution and a pool."""
    weights = np.ones((BLOCK, BLOCK, 1, 1), np.float32)
    nodes = [node("Conv", ["x", "w"], ["c"]), node(name, ["c"], ["y"], **attributes)]
    inputs, outputs = [value("x", "FP32", shape)], [value("y", "FP32", ["N", BLOCK, "H2", "W2"])]
    return graphs.model(nodes, inputs, outputs, {"w": weights})


OPEN, FIXED = ["N", BLOCK, "H", "W"], ["N", BLOCK, 8, 8]


@pytest.mark.parametrize(
    ("graph", "may_be"),
    [
        (network(OPEN, kernel_shape=[3, 3]), True),
        (network(OPEN, "AveragePool", kernel_shape=[3, 3]), True),
        (network(OPEN, kernel_shape=[2, 2]), True),
        (network(OPEN, kernel_shape=[1, 2]), True),
        (network(OPEN, kernel_shape=[3, 3], strides=[2, 2]), True),
        (network(OPEN, kernel_shape=[2, 2], dilations=[3, 3], strides=[2, 2]), True),
        (network(OPEN, kernel_shape=[3, 3], auto_pad="VALID"), True),
        (network(FIXED, kernel_shape=[3, 3]), False),
        (network(OPEN, kernel_shape=[2, 2], strides=[2, 2]), False),
        (network(OPEN, kernel_shape=[3, 3], pads=[1, 1, 1, 1]), False),
        (network(OPEN, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), False),
        (network(OPEN, kernel_shape=[3, 3], auto_pad="SAME_UPPER"), False),
        (network(OPEN, "GlobalMaxPool"), False),
    ],
)
def test_pools_that_may_have_no_output_are_found(graph, may_be):
    assert may_end_empty(graph.SerializeToString()) == may_be


RUN = """
import sys
import numpy as np
from serving import Model
from serving.errors import InvalidRequest, ModelError
with Model.load(sys.argv[1]) as model:
    for size in (1, 2, 3, 4):
        try:
            found = model.infer({"x": np.ones((1, 16, size, size), np.float32)})["y"]
            print(size, found.shape)
        except (InvalidRequest, ModelError) as err:
            print(size, type(err).__name__)
"""


@pytest.mark.parametrize("name", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": [3, 3]},
        {"kernel_shape": [2, 2]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
        {"kernel_shape": [3, 3], "pads": [0, 0, 1, 1]},
        {"kernel_shape": [2, 2], "strides": [2, 2]},
    ],
)
def test_no_small_picture_ends_the_process(tmp_path, name, attributes):
    graphs.save(network(OPEN, name, **attributes), tmp_path)
    command = [sys.executable, "-c", RUN, str(tmp_path / "model.onnx")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120.0, check=False)
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.splitlines()) == 4
    assert ran.stdout.splitlines()[-1].startswith("4 (1, 16, ")
