"""Small ONNX models of any kind, each written as its nodes."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

TYPES = {
    "BOOL": TensorProto.BOOL, "BYTES": TensorProto.STRING,
    "INT8": TensorProto.INT8, "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32, "INT64": TensorProto.INT64,
    "UINT8": TensorProto.UINT8, "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32, "UINT64": TensorProto.UINT64,
    "FP16": TensorProto.FLOAT16, "FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE,
}  # fmt: skip
node = helper.make_node


def value(name, datatype, shape):
    """An input or output; a shape of None is one that the graph does not say."""
    return helper.make_tensor_value_info(name, TYPES[datatype], shape)


def model(nodes, inputs, outputs, constants=None, opset=17):
    """A model with these nodes and constants."""
    initializers = [numpy_helper.from_array(np.asarray(array), name)
                    for name, array in (constants or {}).items()]  # fmt: skip
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def rows_model(*nodes, num_columns=4, constants=None):
    """A model of rows, x FP32 [N, columns] -> y FP32 of any shape."""
    inputs, outputs = [value("x", "FP32", ["N", num_columns])], [value("y", "FP32", None)]
    return model(nodes, inputs, outputs, constants)


def save(model, folder, name="model.onnx"):
    """Write a model as a file."""
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def two_layers():
    """A network whose rows are independent, x FP32 [N, 4] -> y FP32 [N, 3]."""
    generator = np.random.default_rng(0)
    return rows_model(
        node("MatMul", ["x", "first"], ["hidden"]),
        node("Relu", ["hidden"], ["active"]),
        node("MatMul", ["active", "second"], ["y"]),
        constants={
            "first": generator.normal(size=(4, 8)).astype(np.float32),
            "second": generator.normal(size=(8, 3)).astype(np.float32),
        },
    )
