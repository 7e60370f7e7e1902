"""Scaling before the first dense layer: folded where that changes no answer."""

import numpy as np
import onnx
import pytest

from training.export import parity
from training.export.folding import fold_scaling

SAME = 1e-4
"""Float32 rounding in another order of summation; the answers are some hundreds."""

GRAPH = """
<ir_version: 8, opset_import: ["": 18]>
scaled (uint8[N, 4] images) => (float[N, 2] probabilities) <
    float scale = {{0.5}}, float offset = {{-3.0}}, float[4] weights = {{1, 2, 3, 4}},
    float[4, 2] kernel = {{1, 2, 3, 4, 5, 6, 7, 8}}, float[2] bias = {{10, 20}},
    float[2, 2] small = {{1, 2, 3, 4}}, int64[2] flat = {{-1, 4}}, int64[3] rows = {{-1, 2, 2}}
> {{
    pixels = Cast <to = 1> (images)
    {nodes}
}}
"""
DENSE = "product = MatMul (a, kernel) probabilities = Add (product, bias)"


def graph(nodes: str) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(GRAPH.format(nodes=nodes))
    used = {name for node in proto.graph.node for name in node.input}
    unused = [tensor for tensor in proto.graph.initializer if tensor.name not in used]
    for tensor in unused:
        proto.graph.initializer.remove(tensor)
    return proto


@pytest.mark.parametrize(
    "before",
    [
        "a = Mul (pixels, scale)",
        "a = Mul (scale, pixels)",
        "b = Mul (pixels, scale) a = Add (b, offset)",
        "b = Add (pixels, offset) a = Mul (b, scale)",
        "b = Reshape (pixels, rows) c = Mul (b, scale) a = Reshape (c, flat)",
    ],
)
def test_scaling_and_reshaping_are_folded(before: str) -> None:
    original, folded = graph(f"{before} {DENSE}"), graph(f"{before} {DENSE}")
    fold_scaling(folded.graph, num_pixels=4)
    assert [node.op_type for node in folded.graph.node] == ["Cast", "MatMul", "Add"]
    assert [tensor.name for tensor in folded.graph.initializer] == ["kernel", "bias"]
    onnx.checker.check_model(folded, full_check=True)
    images = np.random.default_rng(0).integers(0, 256, (40, 4), np.uint8)
    answers, expected = (
        parity.run(parity.open_session(proto), images) for proto in (folded, original)
    )
    np.testing.assert_allclose(answers, expected, rtol=0, atol=SAME)


@pytest.mark.parametrize(
    "nodes",
    [
        DENSE.replace("(a", "(pixels"),
        "a = Mul (pixels, weights) " + DENSE,
        "a = Relu (pixels) " + DENSE,
        "a = Mul (pixels, scale) probabilities = MatMul (a, kernel)",
        "a = Mul (pixels, scale) b = MatMul (a, kernel) probabilities = Add (b, b)",
        "a = Mul (pixels, scale) b = MatMul (a, kernel) c = Add (b, bias) d = MatMul (a, kernel) "
        "probabilities = Add (c, d)",
        "r = Reshape (pixels, rows) a = Mul (r, scale) b = MatMul (a, small) c = Add (b, bias) "
        "probabilities = ReduceSum <keepdims = 0> (c, flat)",
    ],
    ids=[
        "nothing",
        "by pixel",
        "relu",
        "no bias",
        "no constant bias",
        "used twice",
        "rows of pixels",
    ],
)
def test_other_beginnings_stay(nodes: str) -> None:
    original, other = graph(nodes), graph(nodes)
    fold_scaling(other.graph, num_pixels=4)
    assert other == original
