"""The ONNX graph: Cast, four times MatMul + Add + Relu, and a Softmax in place of the last Relu."""

from collections.abc import Mapping
from importlib.metadata import version

import keras
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx

OPSET = 18  # ONNX Runtime 1.20, the oldest we support, reads up to opset 21 ...
IR_VERSION = 8  # ... and IR 10; this pair has been readable since 1.14.

DESCRIPTION = (
    "Handwritten digits. images: (N, 784) uint8, row-major 28 x 28, 0 = background, 255 = ink; "
    "probabilities: (N, 10) float32, of the digits 0 to 9."
)


def convert(model: keras.Model, properties: Mapping[str, object]) -> onnx.ModelProto:
    """Convert a trained network to a graph from raw pixels to probabilities.

    MatMul, Add and Relu stay apart: ONNX Runtime fuses them when it loads the graph, and then
    runs at the speed of one written with Gemm.

    Args:
        model: (N, 784) float32 in [0, 1] to (N, 10) float32.
        properties: what the graph shall tell about itself, as its metadata.

    Returns:
        A checked graph from `images` uint8 [N, 784] to `probabilities` float32 [N, 10].
    """
    pixels = [tf.TensorSpec((None, 784), tf.uint8, name="images")]
    raw = _on_raw_pixels(model)
    function = tf.function(lambda images: raw(tf.cast(images, tf.float32), training=False))
    proto: onnx.ModelProto = tf2onnx.convert.from_function(function, pixels, opset=OPSET)[0]
    _rename(proto.graph, [layer.name for layer in model.layers if layer.weights])
    _describe(proto, properties)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _on_raw_pixels(model: keras.Model) -> keras.Model:
    """Copy a network, with the scaling of 0..255 to 0..1 folded into its first weights."""
    kernel, *others = model.get_weights()
    copy = keras.models.clone_model(model)
    copy.set_weights([kernel / np.float32(255), *others])
    return copy


def _rename(graph: onnx.GraphProto, layers: list[str]) -> None:
    """Name nodes, tensors and weights after the Keras layers: `dense/MatMul`, `dense/kernel`.

    Args:
        graph: changed in place.
        layers: the names of the dense layers, in order.
    """
    names = {graph.output[0].name: "probabilities"}
    remaining = iter(layers)
    layer = "images"
    for node in graph.node:
        if node.op_type == "MatMul":
            layer = next(remaining)
            names[node.input[1]] = f"{layer}/kernel"
        if node.op_type == "Add":
            names[node.input[1]] = f"{layer}/bias"
        node.name = f"{layer}/{node.op_type}"
        names.setdefault(node.output[0], node.name)
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    for weights in graph.initializer:
        weights.name = names[weights.name]
    graph.output[0].name = "probabilities"


def _describe(proto: onnx.ModelProto, properties: Mapping[str, object]) -> None:
    """Say what the graph is, who made it, and from what; changed in place."""
    proto.ir_version = IR_VERSION
    proto.producer_name = "digit-serving"
    proto.producer_version = version("digit-serving")
    proto.doc_string = DESCRIPTION
    proto.graph.name = "digits"
    proto.graph.doc_string = ""  # tf2onnx writes its own here
    del proto.graph.value_info[:]  # shapes under the old names
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    del proto.opset_import[:]  # tf2onnx also imports ai.onnx.ml, which nothing here uses
    proto.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    onnx.helper.set_model_props(proto, {key: str(value) for key, value in properties.items()})
