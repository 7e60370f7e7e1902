"""The network: 784 pixels, three hidden layers, ten digits; the same layers in every recipe."""

import keras
from keras import layers

UNITS = (256, 128, 56)
"""Outputs of each hidden layer."""

PARAMETERS = 241_650
"""200,960 + 32,896 + 7,224 + 570."""


def build(dropout: tuple[float, float, float]) -> keras.Model:
    """Build the untrained network; keras.utils.set_random_seed decides its first weights.

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
    model = keras.Sequential(stack, name="digits")
    if model.count_params() != PARAMETERS:
        raise ValueError(f"expected {PARAMETERS:,} parameters, built {model.count_params():,}")
    return model
