"""Tensors without elements: no input of a caller ends the process."""

import subprocess
import sys

import numpy as np
import pytest

from serving.model.empty_tensors import ends_empty, may_end_empty
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


GATES = {"GRU": 3, "LSTM": 4}
OPERATORS = {
    # operator: (a graph of x, the open axes of x, calls that would end the process)
    "GRU": (
        [node("GRU", ["x", "w", "r"], ["z", "y"], hidden_size=4)],
        ["L", "N", 3], [(0, 1, 3), (0, 2, 3), (2, 0, 3)],
    ),
    "LSTM": (
        [node("LSTM", ["x", "w", "r"], ["z", "y"], hidden_size=4)],
        ["L", "N", 3], [(2, 0, 3)],
    ),
    "Einsum": (
        [node("Einsum", ["x", "x"], ["y"], equation="nlk,nmk->nlm")],
        ["N", "L", "K"], [(1, 2, 0), (2, 5, 0)],
    ),
    "InstanceNormalization": (
        [node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
         node("InstanceNormalization", ["t", "s", "s"], ["y"])],
        ["N", "L", 3], [(1, 0, 3), (2, 0, 3)],
    ),
}  # fmt: skip
RUN_EMPTY = """
import sys
import numpy as np
from serving import Model
from serving.errors import InvalidRequest
with Model.load(sys.argv[1]) as model:
    print(model.infer({"x": np.ones((2, 2, 3), np.float32)})["y"].ndim)
    for text in sys.argv[2:]:
        try:
            model.infer({"x": np.ones([*map(int, text.split(","))], np.float32)})
        except InvalidRequest as err:
            print(err)
"""


def network_of(operator):
    nodes, shape, _ = OPERATORS[operator]
    gates = GATES.get(operator, 1)
    shapes = {"w": (1, 4 * gates, 3), "r": (1, 4 * gates, 4), "s": (3,)}
    used = {name for each in nodes for name in each.input}
    inputs, outputs = [value("x", "FP32", shape)], [value("y", "FP32", ["A", "B", "C"])]
    weights = {name: np.ones(each, np.float32) for name, each in shapes.items() if name in used}
    return graphs.model(nodes, inputs, outputs, weights)


@pytest.mark.parametrize("operator", OPERATORS)
def test_operator_that_takes_no_empty_tensor_is_found(operator):
    assert ends_empty(network_of(operator).SerializeToString()) == operator
    assert ends_empty(network(OPEN, kernel_shape=[2, 2]).SerializeToString()) is None


@pytest.mark.parametrize("operator", OPERATORS)
def test_no_empty_input_ends_the_process(tmp_path, operator):
    graphs.save(network_of(operator), tmp_path)
    calls = OPERATORS[operator][2]
    shapes = [",".join(map(str, each)) for each in calls]
    command = [sys.executable, "-c", RUN_EMPTY, str(tmp_path / "model.onnx"), *shapes]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120.0, check=False)
    assert ran.returncode == 0, ran.stderr
    rank, *refusals = ran.stdout.splitlines()
    assert rank == "3"
    expected = [
        f"input x: expected at least 1 along axis {shape.index(0)}, got 0: the model's {operator} "
        "takes no empty tensor"
        for shape in calls
    ]
    assert refusals == expected
