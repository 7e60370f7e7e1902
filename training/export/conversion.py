"""From a Keras model to an ONNX graph, by tf2onnx, with the weights apart from the graph.

tf2onnx copies constants at every step: 512 MiB of weights once took 24 GB. So the weights are
inputs of the function that it converts, and become initializers at the end. In between, nodes of
constants alone are replaced by their results, one at a time, and tf2onnx's optimizers run once more
with the small constants, as those of batch normalization, in the graph.
"""

import gc
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import onnx
import tensorflow as tf
import tf2onnx
from onnx import GraphProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from tf2onnx.graph import GraphUtil

OPSET = 18  # ONNX Runtime 1.20, the oldest we support, reads up to opset 21 ...
IR_VERSION = 8  # ... and IR 10; this pair has been readable since 1.14.
MAX_BYTES = (2 << 30) - (16 << 20)
"""The most bytes of weights: protobuf has no larger messages."""
_SMALL_BYTES = 64 << 10
"""The largest constant that tf2onnx's optimizers see: they copy it many times."""
_MAX_FROZEN_BYTES = 64 << 20
"""The most bytes of weights that may be constants of the function, where nothing else works."""

Call = Callable[[Any], Any]
"""A model: takes its input, or a list of them, and returns its output, or a list of them."""
Run = Callable[..., Mapping[str, tf.Tensor]]
"""A function of a `Call` and of tensors; returns outputs by their names."""
_Constants = dict[str, npt.NDArray[Any]]


def convert(model: keras.Model, run: Run, specs: Sequence[tf.TensorSpec]) -> onnx.ModelProto:
    """Convert the operations that TensorFlow records of a function.

    Args:
        model: what `run` calls; its weights are constants of the graph.
        run: the function.
        specs: its inputs.

    Raises:
        Exception: any, of tf2onnx or of the layers.
    """
    num_bytes = weight_bytes(model)
    if num_bytes > MAX_BYTES:
        raise ValueError(f"it has {num_bytes / 2**30:.1f} GiB of weights, an ONNX file holds 2")
    try:
        return _with_weights_apart(model, run, specs)
    except Exception:  # such as a layer with variables that are not Keras's
        if num_bytes > _MAX_FROZEN_BYTES:
            raise
    gc.collect()
    call = partial(model, training=False)
    proto, constants = _by_tf2onnx(lambda *inputs: run(call, *inputs), specs)
    _attach(proto.graph, constants)
    return proto


def weight_bytes(model: keras.Model) -> int:
    """Return the bytes of a model's weights."""
    return sum(int(np.prod(v.shape)) * int(tf.as_dtype(v.dtype).size) for v in model.variables)


def _with_weights_apart(
    model: keras.Model, run: Run, specs: Sequence[tf.TensorSpec]
) -> onnx.ModelProto:
    trainable, others = model.trainable_variables, model.non_trainable_variables
    variables = {f"weight_{number}": v for number, v in enumerate((*trainable, *others))}
    weights = [tf.TensorSpec(v.shape, v.dtype, name=name) for name, v in variables.items()]

    def with_weights(*arrays: tf.Tensor) -> Mapping[str, tf.Tensor]:
        values = [*arrays[len(specs) :]]
        first, rest = values[: len(trainable)], values[len(trainable) :]

        def call(inputs: Any) -> Any:
            return model.stateless_call(first, rest, inputs, training=False)[0]

        return run(call, *arrays[: len(specs)])

    proto, constants = _by_tf2onnx(with_weights, [*specs, *weights])
    _keep_inputs(proto.graph, lambda name: name not in variables)
    constants |= {name: np.asarray(keras.ops.convert_to_numpy(v)) for name, v in variables.items()}
    _fold(proto.graph, constants)
    proto = _optimized(proto, constants)
    _fold(proto.graph, constants)
    paths = {name: v.path for name, v in variables.items()}
    _attach(proto.graph, constants, paths)
    return proto


def _by_tf2onnx(
    run: Callable[..., object], specs: Sequence[tf.TensorSpec]
) -> tuple[onnx.ModelProto, _Constants]:
    """Convert a function; return the graph, and constants that are to become initializers.

    tf2onnx takes tensors that the function captures, as of Normalization, for inputs.
    """
    function = tf.function(run)
    with _quiet(), _inlined():
        proto: onnx.ModelProto = tf2onnx.convert.from_function(
            function, specs, opset=OPSET, custom_op_handlers={"Erfc": (_complement, ["Erf"])}
        )[0]
        captures = function.get_concrete_function(*specs).graph.captures
    used = {name for node in proto.graph.node for name in node.input}
    constants = {
        placeholder.name: tensor.numpy()
        for tensor, placeholder in captures
        if placeholder.name in used
    }
    captured = {placeholder.name for _, placeholder in captures}
    _keep_inputs(proto.graph, lambda name: name not in captured)
    return proto, constants


@contextmanager
def _quiet() -> Iterator[None]:
    logging.disable()  # failures are raised
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@contextmanager
def _inlined() -> Iterator[None]:
    """Have functions in the function, such as Keras's of grouped convolutions, traced in place.

    tf2onnx has no operator for a call of one that is compiled by XLA.
    """
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


def _fold(graph: GraphProto, constants: _Constants) -> None:
    """Replace nodes of constants alone by their results, but those that would make them large."""
    kept = []
    for node in graph.node:
        names = [name for name in node.input if name]
        is_plain = not any(each.HasField("g") or each.graphs for each in node.attribute)
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif not (names and is_plain and constants.keys() >= set(names)) or not _evaluate(
            node, constants
        ):
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del graph.node[:]
    graph.node.extend(kept)
    used = {name for node in kept for name in node.input} | {each.name for each in graph.output}
    used |= {name for node in kept for name in _inner_names(node)}
    for name in constants.keys() - used:
        del constants[name]


def _evaluate(node: onnx.NodeProto, constants: _Constants) -> bool:
    """Put a node's results among the constants; return whether they are not too large."""
    feeds = {name: constants[name] for name in node.input if name}
    inputs = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in feeds.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = helper.make_graph([node], "constants", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    try:
        found = [np.asarray(each) for each in ReferenceEvaluator(model).run(None, feeds)]
    except Exception:  # an operator that it lacks stays in the graph
        return False
    if sum(each.nbytes for each in found) > _SMALL_BYTES + sum(a.nbytes for a in feeds.values()):
        return False
    constants.update(zip((each.name for each in outputs), found, strict=True))
    return True


def _inner_names(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that the bodies of a node use."""
    for attribute in node.attribute:
        for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from (each.name for each in body.output)
            for inner in body.node:
                yield from inner.input
                yield from _inner_names(inner)


def _optimized(proto: onnx.ModelProto, constants: _Constants) -> onnx.ModelProto:
    """Have tf2onnx's optimizers see the small constants; the large ones are inputs meanwhile."""
    small = {name: array for name, array in constants.items() if array.nbytes <= _SMALL_BYTES}
    large = constants.keys() - small.keys()
    for name in large:
        dtype = helper.np_dtype_to_tensor_dtype(constants[name].dtype)
        proto.graph.input.append(helper.make_tensor_value_info(name, dtype, constants[name].shape))
    _attach(proto.graph, dict(small))
    with _quiet():
        proto = GraphUtil.optimize_model_proto(proto, catch_errors=False)
    _keep_inputs(proto.graph, lambda name: name not in large)
    for name in small:
        del constants[name]
    for each in proto.graph.initializer:
        constants[each.name] = numpy_helper.to_array(each)
    del proto.graph.initializer[:]
    gc.collect()
    return proto


def _keep_inputs(graph: GraphProto, is_kept: Callable[[str], bool]) -> None:
    inputs = [each for each in graph.input if is_kept(each.name)]
    del graph.input[:]
    graph.input.extend(inputs)


def _attach(
    graph: GraphProto, constants: _Constants, paths: Mapping[str, str] | None = None
) -> None:
    """Make the constants initializers, which ends them; those of `paths` by the names there."""
    counts = Counter((paths or {}).values())
    names = {name: path for name, path in (paths or {}).items() if counts[path] == 1}
    for name in list(constants):
        array = constants.pop(name)
        graph.initializer.append(numpy_helper.from_array(array, names.get(name, name)))
    rename_uses(graph, names)


def rename_uses(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Have the nodes of a graph, and of bodies in it, read tensors by other names."""
    for node in graph.node:
        for at, name in enumerate(node.input):
            node.input[at] = names.get(name, name)
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                rename_uses(body, names)


def _complement(graph: Any, node: Any, name: str, _: object) -> None:
    """Write erfc(x), which is in TensorFlow's gelu but not in ONNX, as 1 - erf(x)."""
    answer = node.output[0]
    one = np.ones(1, helper.tensor_dtype_to_np_dtype(graph.get_dtype(answer)))
    inputs = [graph.make_const(f"{name}/one", one).output[0], answer]
    graph.insert_new_node_on_output("Sub", answer, inputs=inputs, name=f"{name}/Sub")
