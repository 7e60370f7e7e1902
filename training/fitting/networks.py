"""The networks: the served one, with the same layers in every recipe, and the teachers'."""

import keras
from keras import layers

UNITS = (256, 128, 56)
"""Outputs of each hidden layer: 200,960 + 32,896 + 7,224 parameters, and 570 of the last."""


def build(dropout: tuple[float, ...]) -> keras.Model:
    """Build the untrained network; keras.utils.set_random_seed determines its first weights.

    Args:
        dropout: the fraction of each hidden layer's outputs to drop while training.

    Returns:
        (N, 784) float32 in [0, 1] to (N, 10) float32 probabilities.
    """
    stack = [keras.Input((784,), name="images")]
    for number, (units, rate) in enumerate(zip(UNITS, dropout, strict=True), start=1):
        stack.append(layers.Dense(units, activation="relu", name=f"hidden_{number}"))
        stack.append(layers.Dropout(rate, name=f"dropout_{number}"))
    stack.append(layers.Dense(10, activation="softmax", name="probabilities"))
    return keras.Sequential(stack, name="digits")


def build_teacher(dropout: tuple[float, ...]) -> keras.Model:
    """Build an untrained convolutional network: 2.7 million products for an image.

    Two strides of 2 at the start make it cheap: almost all of the work is on 7 x 7 positions.

    Args:
        dropout: one number, the fraction of the last hidden layer's outputs to drop in training.

    Returns:
        (N, 784) float32 in [0, 1] to (N, 10) float32 probabilities.
    """
    stack = [keras.Input((784,), name="images"), layers.Reshape((28, 28, 1))]
    for channels, size, stride in ((32, 5, 2), (64, 3, 2), (64, 3, 1), (64, 3, 1)):
        stack += [
            layers.Conv2D(channels, size, stride, padding="same", use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
        ]
    stack += [layers.Flatten(), layers.Dropout(*dropout)]
    return keras.Sequential([*stack, layers.Dense(10, activation="softmax")], name="teacher")


NETWORKS = {"mlp": build, "cnn": build_teacher}
"""The function that builds each network a recipe can name."""
