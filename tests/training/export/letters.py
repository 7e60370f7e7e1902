"""A second model: 32 x 32 patterns of 26 classes, and a Keras classifier of them."""

from typing import Any

import keras
import numpy as np
from keras import layers

CLASSES = 26


def letters(num, seed):
    """Draw noisy patterns: (num, 32, 32) uint8 images and (num,) labels."""
    coarse = np.random.default_rng(0).integers(0, 2, (CLASSES, 8, 8)) * 255
    patterns = coarse.repeat(4, axis=1).repeat(4, axis=2)
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, num)
    noisy = patterns[labels] * rng.uniform(0.3, 1, (num, 1, 1)) + rng.normal(0, 60, (num, 32, 32))
    return np.clip(noisy, 0, 255).astype(np.uint8), labels


def train_letters():
    """Train a classifier for seconds: (N, 32, 32) pixels of 0 to 255 to (N, 26) logits."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((32, 32)),
            layers.Rescaling(1 / 127.5, offset=-1),
            layers.Flatten(),
            layers.Dense(48, activation="relu", name="hidden"),
            layers.Dense(CLASSES, name="letter"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss)
    model.fit(*letters(2_000, seed=1), epochs=3, batch_size=64, verbose=0)
    return model


def rebuild(model, *stack):
    """Give other layers the trained weights."""
    other = keras.Sequential(stack)
    other.set_weights(model.get_weights())
    return other


def save_samples(path, num=600, **changes):
    """Write samples as `export MODEL.keras` reads them; a change of None leaves an array out."""
    images, labels = letters(num, seed=2)
    arrays: dict[str, Any] = {"images": images, "labels": labels} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path
