"""The networks: the served one, with the same layers in every recipe, and the teachers'."""

import keras
from keras import layers

from training.config import Recipe


def build(recipe: Recipe) -> keras.Model:
    """Build the untrained network; keras.utils.set_random_seed determines its first weights.

    Returns:
        (N, 784) float32 in [0, 1] to (N, 10) float32 probabilities.
    """
    return _mlp(recipe) if recipe.network == "mlp" else _cnn(recipe)


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
