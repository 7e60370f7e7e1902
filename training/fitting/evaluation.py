"""Evaluation: a network's probabilities, and how good they are."""

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from training.data.mnist import Examples, Images

Probabilities = npt.NDArray[np.float32]
"""(N, classes): each row sums to 1."""

CHUNK = 1_000
"""Images that a network classifies at once: of convolutions, all 10,000 fill a gigabyte."""


def probabilities(model: keras.Model, images: Images) -> Probabilities:
    """Classify images with Keras, in float32."""
    answers = []
    with tf.device("/CPU:0"):  # on a GPU, TensorFlow multiplies in TF32: three digits, not seven
        for start in range(0, max(len(images), 1), CHUNK):
            chunk = images[start : start + CHUNK].astype(np.float32) / 255
            answers.append(np.asarray(model(chunk, training=False)))
    return np.concatenate(answers)


def evaluate(model: keras.Model, examples: Examples) -> tuple[float, float]:
    """Compute the mean cross-entropy and the accuracy, 0 to 1."""
    answers = probabilities(model, examples.images)
    of_label = answers[np.arange(len(answers)), examples.labels]
    loss = -np.log(np.maximum(of_label, keras.config.epsilon())).mean()
    return float(loss), float((answers.argmax(axis=1) == examples.labels).mean())
