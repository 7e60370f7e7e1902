"""Fits the rejecter: first candidate by candidate, then by the paths through whole rows."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from handwriting.examples import LabelledRow
from handwriting.paths import text_loss
from serving.pictures.rejecter import SHARE

EPOCHS, PATH_EPOCHS = 3, 2
BATCH_SIZE, BATCH_ROWS = 256, 16
LEARNING_RATE, PATH_LEARNING_RATE = 2e-3, 1e-3
LABELS_WEIGHT = 6.0
"""Of the labels' mean loss beside the rows', which say nothing of pages without digits."""
FILTERS = (16, 32)
UNITS = 64

_WEIGHTS = ("kernel1", "bias1", "kernel2", "bias2", "kernel3", "bias3", "kernel4", "bias4")
_Floats = npt.NDArray[np.float32]


class Fit:
    """The network in training: 11 logits for a candidate, the digits, and none."""

    def __init__(self, num_measures: int, seed: int) -> None:
        """Start from random weights."""
        os.environ["KERAS_BACKEND"] = "tensorflow"
        import keras
        import tensorflow

        self._keras, self._tf = keras, tensorflow
        keras.utils.set_random_seed(seed)
        self._rng = np.random.default_rng(seed)
        layers = keras.layers
        pixels, measures = keras.Input((28, 28, 2)), keras.Input((num_measures,))
        hidden = pixels
        for filters, size in zip(FILTERS, (5, 3), strict=True):
            hidden = layers.Conv2D(filters, size, strides=2, activation="relu")(hidden)
        hidden = layers.Concatenate()([layers.Flatten()(hidden), measures])
        hidden = layers.Dropout(0.3)(layers.Dense(UNITS, activation="relu")(hidden))
        self._model = keras.Model([pixels, measures], layers.Dense(11)(hidden))

    def by_labels(self, rows: Sequence[LabelledRow], epochs: int = EPOCHS) -> None:
        """Train on candidates, each by its label."""
        columns = _columns(rows)
        known = np.flatnonzero(columns[3] >= 0)
        num_batches = -(-len(known) // BATCH_SIZE)
        step = self._step(LEARNING_RATE, num_batches * epochs, with_dropout=True)
        no_gradient = np.zeros((BATCH_SIZE, 10), np.float32)
        for epoch in range(epochs):
            losses = []
            for batch in np.array_split(self._rng.permutation(known), num_batches):
                chosen = [column[batch] for column in columns]
                losses.append(float(step(*chosen, no_gradient[: len(batch)])))
            print(f"labels, epoch {epoch + 1} of {epochs}: loss {np.mean(losses):.4f}", flush=True)

    def by_paths(self, rows: Sequence[LabelledRow], epochs: int = PATH_EPOCHS) -> None:
        """Train on rows, each by the paths through it and by its labels."""
        num_batches = -(-len(rows) // BATCH_ROWS)
        step = self._step(PATH_LEARNING_RATE, num_batches * epochs, with_dropout=False)
        for epoch in range(epochs):
            losses: list[float] = []
            for batch in np.array_split(self._rng.permutation(len(rows)), num_batches):
                some = [rows[index] for index in batch]
                gradient, values = self._gradient(some)
                losses += values
                step(*_columns(some), gradient)
            print(f"paths, epoch {epoch + 1} of {epochs}: loss {np.mean(losses):.4f}", flush=True)

    def path_loss(self, rows: Sequence[LabelledRow]) -> float:
        """Return the mean loss of the rows that have a text."""
        return float(np.mean([value for row in rows for value in self._gradient([row])[1]]))

    def save(self, path: Path) -> None:
        """Save the weights as half floats."""
        weights = zip(_WEIGHTS, self._model.get_weights(), strict=True)
        with path.open("wb") as file:  # of exactly this name, which numpy would complete
            np.savez_compressed(file, **{name: array.astype(np.float16) for name, array in weights})

    def _gradient(self, rows: Sequence[LabelledRow]) -> tuple[_Floats, list[float]]:
        """Return the gradient of the rows' mean loss by each score, and their losses.

        What has no text has no loss: its candidates have labels, and it is the number's total that
        `serving.pictures.numbers` refuses it by.
        """
        images, surroundings, measures, _, probabilities = _columns(rows)
        logits = self._logits(images, surroundings, measures, with_dropout=False)
        scores = self._scores(logits, probabilities).numpy().astype(np.float64)
        gradient, values, at = np.zeros(scores.shape, np.float32), [], 0
        for row in rows:
            part = slice(at, at + len(row.labels))
            at = part.stop
            loss = text_loss(row.spans, scores[part], row.skips, row.text) if row.text else None
            if loss is not None:
                gradient[part] = loss.gradient / len(rows)
                values.append(loss.value)
        return gradient, values

    def _step(self, rate: float, num_steps: int, *, with_dropout: bool) -> Any:
        """Return a function that trains on a batch, and returns the loss of its labels."""
        tf, model = self._tf, self._model
        schedule = self._keras.optimizers.schedules.CosineDecay(rate, num_steps)
        optimizer = self._keras.optimizers.AdamW(schedule, weight_decay=1e-3, global_clipnorm=2.0)

        def step(
            images: Any, surroundings: Any, measures: Any, labels: Any, probabilities: Any,
            gradient: Any,
        ) -> Any:  # fmt: skip
            with tf.GradientTape() as tape:
                logits = self._logits(images, surroundings, measures, with_dropout=with_dropout)
                of_labels = self._label_loss(logits, tf.cast(labels, tf.int32))
                of_paths = tf.reduce_sum(gradient * self._scores(logits, probabilities))
                loss = LABELS_WEIGHT * of_labels + of_paths
            variables = model.trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            return of_labels

        return tf.function(step, reduce_retracing=True)

    def _logits(self, images: Any, surroundings: Any, measures: Any, *, with_dropout: bool) -> Any:
        tf = self._tf
        both = [tf.reshape(each, (-1, 28, 28)) for each in (images, surroundings)]
        pixels = tf.cast(tf.stack(both, -1), tf.float32) / 255
        return self._model([pixels, tf.convert_to_tensor(measures)], training=with_dropout)

    def _scores(self, logits: Any, probabilities: Any) -> Any:
        """Score candidates as each digit: (N, 10), as `serving.pictures.numbers` does."""
        tf = self._tf
        odds = tf.reduce_logsumexp(logits[:, :10], 1) - logits[:, 10]
        of_classifier = tf.math.log(tf.maximum(probabilities, 1e-6))
        both = (1 - SHARE) * of_classifier + SHARE * logits[:, :10]
        return odds[:, None] + tf.nn.log_softmax(both, 1)

    def _label_loss(self, logits: Any, labels: Any) -> Any:
        tf = self._tf
        is_known = tf.cast(labels >= 0, tf.float32)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(labels, 0), logits)
        return tf.reduce_sum(losses * is_known) / tf.maximum(tf.reduce_sum(is_known), 1)


def _columns(rows: Sequence[LabelledRow]) -> list[npt.NDArray[Any]]:
    """Join the rows' images, surroundings, measures, labels and probabilities."""
    return [np.concatenate(column) for column in zip(*(row[:5] for row in rows), strict=True)]
