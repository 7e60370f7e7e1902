import json
from importlib import metadata

import keras
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from training.export.parity import onnxruntime


@pytest.fixture(scope="module")
def proto(models):
    return onnx.load(models / "digits" / "1" / "model.onnx")


def weights(proto, name):
    [tensor] = [tensor for tensor in proto.graph.initializer if tensor.name == name]
    return numpy_helper.to_array(tensor)


def test_graph_turns_uint8_pixels_into_probabilities(proto):
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    [images], [probabilities] = session.get_inputs(), session.get_outputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", ["N", 784])
    assert (probabilities.name, probabilities.type, probabilities.shape) == (
        "probabilities", "tensor(float)", ["N", 10],
    )  # fmt: skip


def test_graph_has_no_node_too_many(proto):
    hidden, last = ["MatMul", "Add", "Relu"], ["MatMul", "Add", "Softmax"]
    assert [node.op_type for node in proto.graph.node] == ["Cast", *hidden * 3, *last]


def test_graph_is_named_after_the_layers(proto):
    layers = ["hidden_1", "hidden_2", "hidden_3", "probabilities"]
    assert {tensor.name for tensor in proto.graph.initializer} == {
        f"{layer}/{kind}" for layer in layers for kind in ("kernel", "bias")
    }
    assert proto.graph.node[1].name == "hidden_1/MatMul"
    assert proto.graph.name == "digits"


def test_graph_scales_pixels_in_its_first_weights(proto, artifacts):
    model = keras.models.load_model(artifacts / "model.keras", compile=False)
    kernel, bias = model.get_layer("hidden_1").get_weights()
    np.testing.assert_array_equal(weights(proto, "hidden_1/kernel"), kernel / np.float32(255))
    np.testing.assert_array_equal(weights(proto, "hidden_1/bias"), bias)


def test_graph_loads_in_the_oldest_supported_onnx_runtime(proto):
    assert proto.ir_version <= 10  # ONNX Runtime 1.20
    assert [(opset.domain, opset.version <= 21) for opset in proto.opset_import] == [("", True)]


def test_graph_names_its_origin(proto, artifacts):
    metrics = json.loads((artifacts / "metrics.json").read_text())
    assert (proto.producer_name, proto.producer_version) == (
        "digit-serving", metadata.version("digit-serving"),
    )  # fmt: skip
    assert "uint8" in proto.doc_string
    assert {entry.key: entry.value for entry in proto.metadata_props} == {
        "recipe": "seed",
        "seed": "0",
        "parameters": "241650",
        "accuracy": str(metrics["accuracy"]["test"]),
    }
