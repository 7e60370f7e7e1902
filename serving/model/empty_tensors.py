"""Operators that end the process where a tensor has no element, and what is done about them.

A caller needs no more than an input with an axis of 0: GRU throws where nobody catches, without
turns or without rows, and so does LSTM without rows; Einsum divides by zero, and
InstanceNormalization reads where no memory is (ONNX Runtime 1.32). Such calls are refused.

Pools need no more than a small picture: ONNX Runtime lays convolutions out in blocks of channels
(NchwcTransformer), and pools between them divide by zero there if an axis of their output has size
0: SIGFPE, where the usual pool answers with nothing or refuses (1.20 to 1.32, MaxPool and
AveragePool). Graphs of open height and width are served without those blocks.
"""

import re
from collections.abc import Mapping

from serving.proof.onnx_fields import outline
from serving.proof.onnx_file import Message, nodes_of, parse_model

_POOLS = re.compile(b"\x22(?:\x07MaxPool|\x0bAveragePool)")
"""NodeProto.op_type, in the graph or in any function or subgraph."""
_OTHERS = re.compile(
    b"\x22(?:\x03GRU|\x04LSTM|\x13DynamicQuantizeLSTM|\x06Einsum|\x15InstanceNormalization)"
)


def ends_empty(onnx: bytes) -> str | None:
    """Return an operator of a model that ends the process for an input without elements, if any.

    Args:
        onnx: the content of an ONNX file, which ONNX Runtime has read.
    """
    found = _OTHERS.search(outline(onnx))
    return None if found is None else found[0][2:].decode()


def may_end_empty(onnx: bytes) -> bool:
    """Return whether a pool of a model may have an output without elements.

    So it is where callers choose sizes, and a window is larger by its stride than the smallest
    picture with its borders.

    Args:
        onnx: the content of an ONNX file, which ONNX Runtime has read.
    """
    graph = outline(onnx)
    if _POOLS.search(graph) is None:
        return False
    model = parse_model(graph)
    weights = {each.name for each in model.graph.initializer}
    inputs = [each for each in model.graph.input if each.name not in weights]
    if not any(map(_has_open_size, inputs)):
        return False
    return any(map(_may_end_empty, nodes_of(model.graph, model.functions)))


def _has_open_size(described: Message) -> bool:
    """Return whether an axis behind the first has no size; the first one is the batch."""
    kind = described.type.tensor_type
    sizes = kind.shape.dim if kind.HasField("shape") else None
    return sizes is None or any(each.dim_value <= 0 for each in sizes[1:])


def _may_end_empty(node: Message) -> bool:
    if node.op_type not in ("MaxPool", "AveragePool"):
        return False
    attributes = {each.name: each for each in node.attribute}
    automatic = attributes.get("auto_pad")
    if automatic is not None and automatic.s.startswith(b"SAME"):
        return False
    windows = _numbers(attributes, "kernel_shape")
    size = len(windows)
    strides = _numbers(attributes, "strides") or [1] * size
    dilations = _numbers(attributes, "dilations") or [1] * size
    borders = _numbers(attributes, "pads") or [0] * (2 * size)
    if not len(strides) == len(dilations) == size or len(borders) != 2 * size:
        return True
    sides = zip(borders[:size], borders[size:], strict=True)
    return any(
        (window - 1) * dilation >= sum(border) + stride
        for window, dilation, stride, border in zip(windows, dilations, strides, sides, strict=True)
    )


def _numbers(attributes: Mapping[str, Message], name: str) -> list[int]:
    return list(attributes[name].ints) if name in attributes else []
