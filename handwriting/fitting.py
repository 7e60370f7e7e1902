"""Fits the rejecter: a small convolutional network that tells whole digits from all else."""

from pathlib import Path
from typing import Any

import numpy as np

from handwriting.examples import Candidates

EPOCHS = 12
BATCH_SIZE = 256
LEARNING_RATE = 2e-3
FILTERS = (16, 32)
UNITS = 64


def fit(examples: Candidates, held_out: Candidates, seed: int = 0, epochs: int = EPOCHS) -> Any:
    """Train the network.

    Args:
        examples: to fit.
        held_out: whose loss is shown after each epoch.
        seed: of weights and order.
        epochs: how often all examples are seen.

    Returns:
        The Keras model; its outputs are 11 logits: the digits, and none.
    """
    import keras

    keras.utils.set_random_seed(seed)
    layers = keras.layers
    image = keras.Input((28, 28, 2))
    measures = keras.Input((examples.measures.shape[1],))
    hidden = image
    for filters, size in zip(FILTERS, (5, 3), strict=True):
        hidden = layers.Conv2D(filters, size, strides=2, activation="relu")(hidden)
    hidden = layers.Concatenate()([layers.Flatten()(hidden), measures])
    hidden = layers.Dropout(0.3)(layers.Dense(UNITS, activation="relu")(hidden))
    model = keras.Model([image, measures], layers.Dense(11)(hidden))
    steps = len(examples.labels) // BATCH_SIZE * epochs
    rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
    model.compile(
        keras.optimizers.AdamW(rate, weight_decay=1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    model.fit(
        inputs(examples), examples.labels, BATCH_SIZE, epochs,
        validation_data=(inputs(held_out), held_out.labels), verbose=2,
    )  # fmt: skip
    return model


def inputs(examples: Candidates) -> list[Any]:
    """Return the network's inputs: (N, 28, 28, 2) and (N, NUM_MEASURES) float32."""
    both = np.stack([examples.images, examples.surroundings], -1).astype(np.float32) / 255
    return [both.reshape(-1, 28, 28, 2), examples.measures]


def save(model: Any, path: Path) -> None:
    """Save the weights as half floats."""
    names = ("kernel1", "bias1", "kernel2", "bias2", "kernel3", "bias3", "kernel4", "bias4")
    weights = zip(names, model.get_weights(), strict=True)
    with path.open("wb") as file:  # of exactly this name, which numpy would complete
        np.savez_compressed(file, **{name: array.astype(np.float16) for name, array in weights})
