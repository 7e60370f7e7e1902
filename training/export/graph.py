"""The ONNX graph: from raw pixels to probabilities.

That of digits is Cast, four times MatMul + Add + Relu, and a Softmax in place of the last Relu.
"""

from collections.abc import Mapping
from importlib.metadata import version

import keras
import onnx
import tensorflow as tf
import tf2onnx

from training.errors import ExportError, first_line
from training.export.folding import fold_scaling
from training.export.manifest import Signature

OPSET = 18  # ONNX Runtime 1.20, the oldest we support, reads up to opset 21 ...
IR_VERSION = 8  # ... and IR 10; this pair has been readable since 1.14.

DENSE = {"Cast", "MatMul", "Add", "Relu", "Softmax"}
"""The operators of a network of dense layers."""


def convert(
    model: keras.Model, name: str, signature: Signature, properties: Mapping[str, object]
) -> onnx.ModelProto:
    """Convert a trained network to a graph from raw pixels to probabilities.

    MatMul, Add and Relu stay apart: ONNX Runtime fuses them when it loads the graph, and then
    runs at the speed of one written with Gemm.

    Args:
        model: takes pixels from 0 to 255, in an input shape of its own; gives (N, classes)
            probabilities.
        name: the graph's.
        signature: of the graph.
        properties: metadata for the graph; None values are left out.

    Returns:
        A checked graph from `images` uint8 [N, pixels] to `probabilities` float32 [N, classes].

    Raises:
        ExportError: ONNX lacks an operation of the network, or the graph is not valid.
    """
    shape, dtype = model.input_shape[1:], model.inputs[0].dtype

    def classify(images: tf.Tensor) -> tf.Tensor:
        pixels = tf.cast(images, dtype)
        if len(shape) > 1:
            pixels = tf.reshape(pixels, (-1, *shape))
        return tf.cast(model(pixels, training=False), tf.float32)

    flat = tf.TensorSpec((None, signature.pixels), tf.uint8, name="images")
    try:
        proto: onnx.ModelProto = tf2onnx.convert.from_function(
            tf.function(classify), [flat], opset=OPSET
        )[0]
    except Exception as err:  # tf2onnx and Keras's layers raise what they like
        raise ExportError(f"cannot convert {name} to ONNX: {first_line(err)}") from err
    fold_scaling(proto.graph, signature.pixels)
    _rename(proto.graph, [layer.name for layer in model.layers if layer.weights])
    _describe(proto, name, signature, properties)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except onnx.checker.ValidationError as err:
        raise ExportError(f"{name} has no valid ONNX graph: {first_line(err)}") from err
    return proto


def _rename(graph: onnx.GraphProto, layers: list[str]) -> None:
    """Name the output, and what belongs to dense layers after them: `dense/kernel`.

    Args:
        graph: changed in place.
        layers: the names of the layers with weights, in order.
    """
    names = {graph.output[0].name: "probabilities"}
    operators = [node.op_type for node in graph.node]
    if set(operators) <= DENSE and operators.count("MatMul") == len(layers):
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
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for weights in graph.initializer:
        weights.name = names.get(weights.name, weights.name)
    graph.output[0].name = "probabilities"


def _describe(
    proto: onnx.ModelProto, name: str, signature: Signature, properties: Mapping[str, object]
) -> None:
    """Write what the graph is, who made it, and from what; changed in place."""
    proto.ir_version = IR_VERSION
    proto.producer_name = "digit-serving"
    proto.producer_version = version("digit-serving")
    proto.doc_string = (
        f"{name}. images: (N, {signature.pixels}) uint8, row-major "
        f"{' x '.join(map(str, signature.input_shape))}; "
        f"probabilities: (N, {signature.classes}) float32."
    )
    proto.graph.name = name
    proto.graph.doc_string = ""  # tf2onnx writes its own here
    del proto.graph.value_info[:]  # shapes under the old names
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    del proto.opset_import[:]  # tf2onnx also imports ai.onnx.ml, which nothing here uses
    proto.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    known = {key: str(value) for key, value in properties.items() if value is not None}
    onnx.helper.set_model_props(proto, known)
