"""Graphs whose activations are quantised: how far a rounding moves an output."""

from typing import Any

import numpy as np

from serving.proof.onnx_file import parse_model, small_array
from serving.tensors import Array

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def output_step(onnx: bytes) -> float:
    """Return one step of a graph's quantised outputs; 0 if no activation is quantised.

    Sums of floats differ in their last bits with the number of rows. Where such a sum is rounded to
    an integer, that may be the difference of a whole step.

    Args:
        onnx: the content of the file.

    Returns:
        The largest scale of what makes an output, if that is quantised itself; else the largest
        scale of any activation.
    """
    if _QUANTIZE.encode() not in onnx:
        return 0.0

    def largest(scale: Any) -> float | None:
        array: Array | None = None if scale is None else small_array(scale)
        return None if array is None or not array.size else float(np.abs(array).max())

    graph: Any = parse_model(onnx).graph
    constants = {each.name: each for each in graph.initializer}
    outputs = {each.name for each in graph.output}
    last, every = [0.0], [0.0]
    for node in graph.node:
        is_activation = len(node.input) > 1 and node.input[0] not in constants
        if node.op_type not in (_QUANTIZE, _DEQUANTIZE) or not is_activation:
            continue
        if (scale := largest(constants.get(node.input[1]))) is not None:
            every.append(scale)
            if outputs & {*node.output}:
                last.append(scale)
    return max(last) or max(every)
