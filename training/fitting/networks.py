"""The networks that recipes name, built and started from the bundled one."""

from importlib.resources import files

import keras
import numpy as np
import onnx
from keras import layers
from onnx import numpy_helper

from training.config import Recipe


def build(recipe: Recipe) -> keras.Model:
    """Build the network; keras.utils.set_random_seed determines its first weights, if random.

    Returns:
        (N, 784) float32 in [0, 1] to (N, 10) float32 probabilities.
    """
    network = _mlp(recipe) if recipe.network == "mlp" else _cnn(recipe)
    if recipe.pretrained_share:
        mix_in_bundled(network, 1.0)
    return network


def mix_in_bundled(network: keras.Model, share: float) -> None:
    """Give the bundled model's weights a share in a network's; its graph takes 0 to 255."""
    if not share:
        return
    path = files("digit_classifier") / "pretrained" / "digits" / "1" / "model.onnx"
    tensors = onnx.load_from_string(path.read_bytes()).graph.initializer
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}
    weights["hidden_1/kernel"] = weights["hidden_1/kernel"] * np.float32(255)
    for layer in network.layers:
        layer.set_weights(
            [
                share * weights[f"{layer.name}/{own.name}"] + (1 - share) * own.numpy()
                for own in layer.weights
            ]
        )


def _mlp(recipe: Recipe) -> keras.Model:
    """Stack dense layers: with (256, 128, 56) 200,960 + 32,896 + 7,224 + 570 parameters."""
    stack = [keras.Input((784,), name="images")]
    layers_of = zip(recipe.units, recipe.dropout, strict=True)
    for number, (units, rate) in enumerate(layers_of, start=1):
        stack.append(layers.Dense(units, activation="relu", name=f"hidden_{number}"))
        stack.append(layers.Dropout(rate, name=f"dropout_{number}"))
    stack.append(layers.Dense(10, activation="softmax", name="probabilities"))
    return keras.Sequential(stack, name="digits")


def _cnn(recipe: Recipe) -> keras.Model:
    """Stack convolutions, 14.6 million products an image: a stride of 2 at once makes it cheap."""
    stack = [keras.Input((784,), name="images"), layers.Reshape((28, 28, 1))]
    for channels, size, stride in ((32, 5, 2), (64, 3, 1), (96, 3, 2), (96, 3, 1), (96, 3, 1)):
        stack += [
            layers.Conv2D(channels, size, stride, padding="same", use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
        ]
    stack += [layers.Flatten(), layers.Dropout(*recipe.dropout)]
    return keras.Sequential([*stack, layers.Dense(10, activation="softmax")], name="teacher")
