"""The ONNX graph: from raw pixels to probabilities, by two writers that check each other.

    images ─ Cast ─ MatMul ─ Add ─ Relu ─ ... ─ MatMul ─ Add ─ Softmax ─ probabilities

One writes a network of dense layers layer by layer: scaling in front goes into the first dense
layer's weights, which saves passes over the pixels, and makes it a layer that int8 can replace. The
other is tf2onnx.
"""

from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

import keras
import numpy as np
import onnx
import tensorflow as tf
from keras import activations, layers
from onnx import GraphProto, TensorProto, helper, numpy_helper

from training.errors import ExportError, first_line
from training.export import conversion
from training.export.conversion import IR_VERSION, OPSET, Call
from training.export.image_signature import ImageSignature

X = "input"
NAMED = ("Elu", "Relu", "Selu", "Sigmoid", "Softmax", "Softplus", "Softsign", "Tanh")
ACTIVATIONS: dict[object, tuple[tuple[Any, ...], ...]] = {
    **{getattr(activations, operator.lower()): ((operator,),) for operator in NAMED},
    activations.linear: (),
    activations.silu: (("Sigmoid",), ("Mul", X)),
    activations.gelu: (("Mul", 0.5**0.5), ("Erf",), ("Add", 1), ("Mul", X), ("Mul", 0.5)),
}
"""Operators in order, some with a second operand: a number, or X, the activation's input."""

KNOWN = "Dense, Dropout and BatchNormalization with relu, gelu, silu, tanh, sigmoid or softmax"


def _by_layers(model: keras.Model) -> GraphProto:
    """Write the nodes and weights from `images` to `probabilities`.

    Raises:
        LookupError: the layers are not, in float32 and one after the other: Rescaling and Flatten
            in front, then Dense, Dropout, BatchNormalization, and the activations above.
    """
    graph, scale, offset = GraphProto(), 1.0, 0.0
    _put(graph, "images", "Cast", to=TensorProto.FLOAT)
    for layer in _chain(model):
        in_front = len(graph.node) == 1
        match layer:
            case layers.InputLayer() | layers.Dropout():
                pass
            case layers.Flatten(data_format="channels_last"):
                pass
            case layers.Rescaling(scale=int() | float(), offset=int() | float()) if in_front:
                scale, offset = scale * layer.scale, offset * layer.scale + layer.offset
            case layers.Dense(
                input=keras.KerasTensor(ndim=2), dtype_policy=keras.DTypePolicy(name="float32")
            ):
                kernel = _array(layer.kernel)
                bias = _array(layer.bias) + offset * kernel.sum(axis=0)
                _put(graph, layer.name, "MatMul", kernel * scale, "kernel")
                _put(graph, layer.name, "Add", bias, "bias")
                _activate(graph, layer.name, layer.activation)
                scale, offset = 1.0, 0.0
            case _ if in_front:
                raise LookupError(layer.name)
            case layers.BatchNormalization(dtype_policy=keras.DTypePolicy(name="float32")):
                variance = _array(layer.moving_variance) + layer.epsilon
                factor = _array(layer.gamma, 1) / np.sqrt(variance)
                _put(graph, layer.name, "Mul", factor, "scale")
                shift = _array(layer.beta) - _array(layer.moving_mean) * factor
                _put(graph, layer.name, "Add", shift, "shift")
            case layers.Activation():
                _activate(graph, layer.name, layer.activation)
            case layers.Softmax(axis=-1):
                _activate(graph, layer.name, activations.softmax)
            case layers.ReLU(max_value=None, negative_slope=0, threshold=0):
                _activate(graph, layer.name, activations.relu)
            case _:
                raise LookupError(layer.name)
    graph.node[-1].output[0] = "probabilities"
    return graph


def _chain(model: keras.Model) -> Iterator[Any]:
    """Yield the layers in order, also those of networks among them."""
    for config in model.get_config()["layers"]:
        if len(config.get("inbound_nodes", ())) > 1:  # used twice
            raise LookupError(config["name"])
    for layer in getattr(model, "operations", model.layers):  # `layers` lacks ops.gelu
        yield from _chain(layer) if isinstance(layer, keras.Model) else [layer]


def _array(weights: Any, default: float = 0) -> Any:
    return np.asarray(default if weights is None else weights, np.float64)


def _activate(graph: GraphProto, layer: str, function: object) -> None:
    if function not in ACTIVATIONS:
        raise LookupError(layer)
    start = graph.node[-1].output[0]
    for operator, *operands in ACTIVATIONS[function]:
        _put(graph, layer, operator, *(start if operand == X else operand for operand in operands))


def _put(
    graph: GraphProto,
    layer: str,
    operator: str,
    operand: Any = None,
    role: str = "",
    **options: Any,
) -> None:
    """Append an operator on the last answer and, if given, on weights or on a named tensor."""
    is_taken = any(node.name == f"{layer}/{operator}" for node in graph.node)
    name = f"{layer}/{operator}" + f"_{len(graph.node)}" * is_taken
    inputs = [graph.node[-1].output[0] if graph.node else "images"]
    if isinstance(operand, str):
        inputs.append(operand)
    elif operand is not None:
        inputs.append(f"{layer}/{role}" if role else f"{name}/operand")
        weights = numpy_helper.from_array(np.asarray(operand, np.float32), inputs[1])
        graph.initializer.append(weights)
    graph.node.append(helper.make_node(operator, inputs, [name], name, **options))


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
            f"it: {KNOWN} always work"
        )
    return graphs


def _by_tf2onnx(model: keras.Model) -> GraphProto:
    dtype = model.inputs[0].dtype

    def classify(call: Call, images: tf.Tensor) -> dict[str, tf.Tensor]:
        pixels = tf.reshape(tf.cast(images, dtype), (-1, *model.input_shape[1:]))
        return {"probabilities": tf.cast(call(pixels), tf.float32)}

    flat = tf.TensorSpec((None, np.prod(model.input_shape[1:])), tf.uint8, name="images")
    return conversion.convert(model, classify, [flat]).graph


WRITERS: dict[str, Callable[[keras.Model], GraphProto]] = {
    "dense": _by_layers,
    "tf2onnx": _by_tf2onnx,
}
"""In the order of preference."""


def _complete(
    graph: GraphProto, name: str, signature: ImageSignature, properties: Mapping[str, object]
) -> onnx.ModelProto:
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
