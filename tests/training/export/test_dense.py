"""Networks of dense layers, written layer by layer, and by tf2onnx: both answer as Keras."""

import keras
import numpy as np
import pytest
from keras import layers

from training.errors import ExportError
from training.export import graph, parity
from training.export.image_signature import ImageSignature

SAME = 1e-6
"""Float32 rounding in another order of summation."""

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 64), np.uint8)
SIGNATURE = ImageSignature(input_shape=(8, 8), classes=5, labels=tuple("abcde"))


def network(*stack):
    model = stack[0] if isinstance(stack[0], keras.Model) else keras.Sequential(stack)
    generator = np.random.default_rng(1)
    for weights in model.weights:
        low = 0.1 if weights.name.endswith("variance") else -0.1
        weights.assign(generator.uniform(low, 0.2, weights.shape))
    return model


def scaled(*stack):
    """Stack layers on 64 numbers from -1 to 1, and five classes on them."""
    front = (keras.Input((8, 8)), layers.Rescaling(1 / 127.5, -1), layers.Flatten())
    return network(*front, *stack, layers.Dense(5, "softmax"))


def functional(function):
    images = keras.Input((64,))
    hidden = function(layers.Dense(64)(layers.Rescaling(1 / 255)(images)))
    return network(keras.Model(images, layers.Dense(5, "softmax")(hidden)))


def convert(model):
    return graph.convert(model, "letters", SIGNATURE, {})


def run(proto):
    return parity.run(parity.open_session(proto), IMAGES)


def keras_answers(model):
    return np.asarray(model(IMAGES.reshape(-1, *model.input_shape[1:]).astype(np.float32)))


@pytest.mark.parametrize(
    "model",
    [
        *(
            scaled(layers.Dense(6, activation))
            for activation in graph.ACTIVATIONS
            if activation != "approximate gelu"
        ),
        scaled(layers.Dense(6), layers.BatchNormalization(), layers.ReLU(), layers.Dropout(0.5)),
        scaled(
            layers.Dense(6, use_bias=False),
            layers.BatchNormalization(center=False, scale=False),
            layers.Activation("gelu"),
        ),
        scaled(keras.Sequential([keras.Input((64,)), layers.Dense(6, "relu")]), layers.Softmax()),
    ],
)
def test_both_writers_answer_as_keras(model):
    graphs = convert(model)
    assert list(graphs) == ["dense", "tf2onnx"]
    for proto in graphs.values():
        np.testing.assert_allclose(run(proto), keras_answers(model), rtol=0, atol=SAME)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_both_writers_give_the_same_bits_where_nothing_is_scaled(activation):
    stack = (layers.Dense(6, activation), layers.Dense(5, "softmax"))
    graphs = convert(network(keras.Input((8, 8)), layers.Flatten(), *stack))
    assert np.array_equal(run(graphs["dense"]), run(graphs["tf2onnx"]))


FLOAT16 = {"dtype": "mixed_float16"}
SHARED = layers.Dense(64)


@pytest.mark.parametrize(
    "model",
    [
        scaled(layers.Dense(6, "mish")),
        scaled(layers.Dense(6, **FLOAT16)),
        scaled(layers.Dense(6), layers.LayerNormalization()),
        scaled(layers.Dense(6), layers.ReLU(max_value=6)),
        scaled(layers.Dense(6), layers.Rescaling(2)),
        scaled(layers.BatchNormalization()),
        functional(lambda x: SHARED(SHARED(x))),
        functional(keras.ops.gelu),
        functional(lambda x: x + layers.Dense(64)(x)),
        network(keras.Input((8, 8)), layers.Dense(6), layers.Flatten(), layers.Dense(5, "softmax")),
        network(
            keras.Input((8, 8)),
            layers.Rescaling([0.1] * 8),
            layers.Flatten(),
            layers.Dense(5, "softmax"),
        ),
    ],
)
def test_other_networks_are_left_to_tf2onnx(model):
    with pytest.raises(LookupError):
        graph.WRITERS["dense"](model)
    graphs = convert(model)
    assert list(graphs) == ["tf2onnx"]
    tolerance = 2e-3 if model.layers[-2].compute_dtype == "float16" else SAME
    np.testing.assert_allclose(run(graphs["tf2onnx"]), keras_answers(model), rtol=0, atol=tolerance)


def test_network_that_only_tf2onnx_cannot_write_is_converted(monkeypatch):
    def fail(_):
        raise KeyError("keras_tensor_1")

    monkeypatch.setitem(graph.WRITERS, "tf2onnx", fail)
    assert list(convert(scaled())) == ["dense"]


def test_network_that_no_writer_knows_is_refused_on_one_line(capfd):
    with pytest.raises(ExportError, match=r"Expm1.*Replace the layer .* relu, gelu") as refusal:
        convert(scaled(layers.Dense(6, "celu")))
    assert "\n" not in str(refusal.value)
    assert "Expm1" not in capfd.readouterr().err
