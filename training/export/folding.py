"""Folding: a network's scaling of its pixels goes into the weights of its first dense layer.

    images ─ Cast ─ Reshape ─ Mul ─ Add ─ Reshape ─ MatMul ─ Add ─ ...     Rescaling, Flatten, Dense
    images ─ Cast ─ MatMul ─ Add ─ ...                                     the same, folded

It saves passes over the pixels, and makes the first layer one that int8 can replace.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

Arrays = Mapping[str, npt.NDArray[Any]]


def fold_scaling(graph: onnx.GraphProto, num_pixels: int) -> None:
    """Fold scaling by constants, and reshaping, into the first dense layer; changed in place.

    A graph that begins in another way stays as it is.

    Args:
        graph: takes (N, pixels).
        num_pixels: of an image.
    """
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    before = list(takewhile(lambda node: node.op_type != "MatMul", graph.node))
    affine = _affine(before, arrays)
    dense = graph.node[len(before) : len(before) + 2]
    uses = Counter(name for node in graph.node for name in node.input)
    is_chain = all(uses[node.output[0]] == 1 for node in before)
    if affine is None or not is_chain or [node.op_type for node in dense] != ["MatMul", "Add"]:
        return
    kernel, bias = (arrays.get(node.input[1]) for node in dense)
    if kernel is None or bias is None or len(kernel) != num_pixels:
        return
    scale, offset = affine
    folded = {
        dense[0].input[1]: kernel * np.float64(scale),
        dense[1].input[1]: bias + offset * kernel.sum(axis=0, dtype=np.float64),
    }
    dense[0].input[0] = before[0].output[0]
    _replace(graph, [before[0], *graph.node[len(before) :]], folded)


def _affine(nodes: Sequence[onnx.NodeProto], arrays: Arrays) -> tuple[float, float] | None:
    """Return scale and offset of what the nodes do to each pixel; None if it is more than that."""
    if len(nodes) < 2 or nodes[0].op_type != "Cast":
        return None
    scale, offset = 1.0, 0.0
    for node in nodes[1:]:
        constants = [arrays[name] for name in node.input if name in arrays]
        numbers = [constant.item() for constant in constants if constant.size == 1]
        if node.op_type == "Mul" and numbers:
            scale, offset = scale * numbers[0], offset * numbers[0]
        elif node.op_type == "Add" and numbers:
            offset += numbers[0]
        elif node.op_type != "Reshape":
            return None
    return scale, offset


def _replace(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto], folded: Arrays) -> None:
    """Give the graph other nodes and, as float32, other weights; drop weights without a use."""
    used = {name for node in nodes for name in node.input}
    weights = [
        numpy_helper.from_array(folded[tensor.name].astype(np.float32), tensor.name)
        if tensor.name in folded
        else tensor
        for tensor in graph.initializer
        if tensor.name in used
    ]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(weights)
