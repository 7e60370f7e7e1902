"""The ONNX graph: from raw pixels to probabilities, by two writers that check each other.

That of digits is Cast, four times MatMul + Add + Relu, and a Softmax in place of the last Relu.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import keras
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx
from onnx import GraphProto, TensorProto, helper, numpy_helper

from training.errors import ExportError, first_line
from training.export import dense
from training.export.manifest import ImageSignature

OPSET = 18  # ONNX Runtime 1.20, the oldest we support, reads up to opset 21 ...
IR_VERSION = 8  # ... and IR 10; this pair has been readable since 1.14.


def convert(
    model: keras.Model, name: str, signature: ImageSignature, properties: Mapping[str, object]
) -> dict[str, onnx.ModelProto]:
    """Convert a trained network to graphs from raw pixels to probabilities.

    MatMul, Add and Relu stay apart: ONNX Runtime fuses them when it loads the graph, and then
    runs at the speed of one written with Gemm.

    Returns:
        By writer, the one to publish first: checked graphs from `images` uint8 [N, pixels] to
        `probabilities` float32 [N, classes].

    Raises:
        ExportError: no writer knows all layers of the network.
    """
    graphs, failures = {}, {}
    for writer, write in WRITERS.items():
        try:
            graphs[writer] = _complete(write(model), name, signature, properties)
            onnx.checker.check_model(graphs[writer], full_check=True)
        except Exception as err:  # tf2onnx and Keras's layers raise any exception
            graphs.pop(writer, None)
            failures[writer] = first_line(err)
    if not graphs:
        raise ExportError(
            f"cannot convert {name} to ONNX: {failures['tf2onnx']}. Replace the layer that needs "
            f"it: {dense.KNOWN} always work"
        )
    return graphs


def _by_tf2onnx(model: keras.Model) -> GraphProto:
    """Have tf2onnx convert the operations that TensorFlow records."""
    dtype = model.inputs[0].dtype

    def classify(images: tf.Tensor) -> dict[str, tf.Tensor]:
        pixels = tf.reshape(tf.cast(images, dtype), (-1, *model.input_shape[1:]))
        return {"probabilities": tf.cast(model(pixels, training=False), tf.float32)}

    flat = tf.TensorSpec((None, np.prod(model.input_shape[1:])), tf.uint8, name="images")
    return from_function(classify, [flat]).graph


def from_function(run: Callable[..., object], specs: Sequence[tf.TensorSpec]) -> onnx.ModelProto:
    """Have tf2onnx convert the operations that TensorFlow records of a function.

    Constants, as of Normalization, which tf2onnx takes for inputs, become initializers.
    """
    function = tf.function(run)
    logging.disable()  # failures are raised
    try:
        proto: onnx.ModelProto = tf2onnx.convert.from_function(
            function, specs, opset=OPSET, custom_op_handlers={"Erfc": (_complement, ["Erf"])}
        )[0]
    finally:
        logging.disable(logging.NOTSET)
    graph, captures = proto.graph, function.get_concrete_function(*specs).graph.captures
    used = {name for node in graph.node for name in node.input}
    for tensor, placeholder in captures:
        if placeholder.name in used:
            graph.initializer.append(numpy_helper.from_array(tensor.numpy(), placeholder.name))
    captured = {placeholder.name for _, placeholder in captures}
    inputs = [each for each in graph.input if each.name not in captured]
    del graph.input[:]
    graph.input.extend(inputs)
    return proto


def _complement(graph: Any, node: Any, name: str, _: object) -> None:
    """Write erfc(x), which is in TensorFlow's gelu but not in ONNX, as 1 - erf(x)."""
    answer = node.output[0]
    one = np.ones(1, helper.tensor_dtype_to_np_dtype(graph.get_dtype(answer)))
    inputs = [graph.make_const(f"{name}/one", one).output[0], answer]
    graph.insert_new_node_on_output("Sub", answer, inputs=inputs, name=f"{name}/Sub")


WRITERS: dict[str, Callable[[keras.Model], GraphProto]] = {
    "dense": dense.write,
    "tf2onnx": _by_tf2onnx,
}
"""In the order of preference."""


def _complete(
    graph: GraphProto, name: str, signature: ImageSignature, properties: Mapping[str, object]
) -> onnx.ModelProto:
    """Write the graph's description, its producer and its source."""
    graph.name, graph.doc_string = name, ""  # tf2onnx writes its own here
    del graph.input[:], graph.output[:], graph.value_info[:]
    for values, tensor, dtype, size in (
        (graph.input, "images", TensorProto.UINT8, signature.pixels),
        (graph.output, "probabilities", TensorProto.FLOAT, signature.classes),
    ):
        values.append(helper.make_tensor_value_info(tensor, dtype, ["N", size]))
    proto = helper.make_model(
        graph,
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="digit-serving",
        producer_version=version("digit-serving"),
        doc_string=f"{name}. images: (N, {signature.pixels}) uint8, row-major "
        f"{' x '.join(map(str, signature.input_shape))}; "
        f"probabilities: (N, {signature.classes}) float32.",
    )
    known = {key: str(value) for key, value in properties.items() if value is not None}
    helper.set_model_props(proto, known)
    return proto
