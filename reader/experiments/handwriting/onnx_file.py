"""The detector's network as an ONNX file: weights in, weights out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

WEIGHTS = ("kernel1", "bias1", "kernel2", "bias2", "kernel3", "bias3", "kernel4", "bias4")
"""In the order of Keras's layers and in its layouts; kernels of convolutions are (K, K, C, F)."""
_OPSET, _IR = 17, 8
"""Versions that ONNX Runtime 1.20 knows, of the operators and of the format."""


def save(weights: Sequence[npt.NDArray[np.floating]], path: Path) -> None:
    """Write the network, with its weights as half floats.

    Its inputs are images and surroundings, (N, 784) uint8, and measures, (N, 8) float32; its output
    is logits, (N, 11) float32: see `digit_reader.detector`.
    """
    named = dict(zip(WEIGHTS, weights, strict=True))
    for name in ("kernel1", "kernel2"):
        named[name] = named[name].transpose(3, 2, 0, 1)
    constants: dict[str, npt.NDArray[Any]] = {
        **{name: array.astype(np.float16) for name, array in named.items()},
        "grid": np.array([-1, 1, 28, 28], np.int64),
        "full": np.array(255, np.float32),
    }
    nodes = [
        *(helper.make_node("Cast", [name], [f"{name}_32"], to=TensorProto.FLOAT) for name in named),
        helper.make_node("Reshape", ["images", "grid"], ["image_grid"]),
        helper.make_node("Reshape", ["surroundings", "grid"], ["surrounding_grid"]),
        helper.make_node("Concat", ["image_grid", "surrounding_grid"], ["bytes"], axis=1),
        helper.make_node("Cast", ["bytes"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["levels", "full"], ["pixels"]),
        *_convolution("pixels", "1"),
        *_convolution("hidden1", "2"),
        helper.make_node("Transpose", ["hidden2"], ["last"], perm=[0, 2, 3, 1]),  # as Keras's are
        helper.make_node("Flatten", ["last"], ["flat"]),
        helper.make_node("Concat", ["flat", "measures"], ["both"], axis=1),
        helper.make_node("Gemm", ["both", "kernel3_32", "bias3_32"], ["dense"]),
        helper.make_node("Relu", ["dense"], ["hidden3"]),
        helper.make_node("Gemm", ["hidden3", "kernel4_32", "bias4_32"], ["logits"]),
    ]
    num_measures = named["kernel3"].shape[0] - 5 * 5 * named["kernel2"].shape[0]
    graph = helper.make_graph(
        nodes, "detector",
        [
            helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 784]),
            helper.make_tensor_value_info("surroundings", TensorProto.UINT8, ["N", 784]),
            helper.make_tensor_value_info("measures", TensorProto.FLOAT, ["N", num_measures]),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(named["bias4"])])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def _convolution(of: str, number: str) -> list[onnx.NodeProto]:
    names = [of, f"kernel{number}_32", f"bias{number}_32"]
    return [
        helper.make_node("Conv", names, [f"convolved{number}"], strides=[2, 2]),
        helper.make_node("Relu", [f"convolved{number}"], [f"hidden{number}"]),
    ]


def load(path: Path) -> list[npt.NDArray[np.float32]]:
    """Read the weights of a file that `save` wrote, as Keras has them."""
    arrays = {each.name: numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}
    for name in ("kernel1", "kernel2"):
        arrays[name] = arrays[name].transpose(2, 3, 1, 0)
    return [arrays[name].astype(np.float32) for name in WEIGHTS]
