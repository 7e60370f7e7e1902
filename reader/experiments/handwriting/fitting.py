"""Fits the detector: first candidate by candidate, then by the paths through whole rows."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from digit_classifier.normalizer import Mask, Numbers
from digit_reader.detector import SHARE, odds
from experiments.handwriting import onnx_file
from experiments.handwriting.examples import NO_DIGIT, LabelledRow, join
from experiments.handwriting.paths import Loss, text_loss
from training.config import Deformation
from training.data.augmentation import deform, prefetch

EPOCHS, PATH_EPOCHS = 1, 18
BATCH_ROWS, PATH_BATCH_ROWS = 4, 16
LEARNING_RATE, PATH_LEARNING_RATE = 2e-3, 1e-3
LABEL_WEIGHT = 0.04
"""Weight of each candidate's label beside its row's paths."""
DIGIT_WEIGHT = 3.0
"""Weight of a digit's label beside those of no digit: the classifier learned from the same digits,
so that with its probabilities the paths teach little of which digit it is."""
TEXTLESS_WEIGHT = 4.0
"""Weight of the labels in a row without digits, which has no right path."""
MIN_LOSS = 0.01
"""The weight of a candidate's label beside the paths."""
MIN_GRADIENT = 1e-4
"""The same of the paths' loss by a candidate's score."""
EASY_LOSS = 0.02
"""A row that lost less in its last epoch is easy."""
EASY_SHARE = 0.35
"""Share of the easy rows that are in an epoch; each counts as many times more."""
MIN_ODDS = -6.0
"""Log odds of a whole digit: candidates below it that are none are left out of the row's paths."""
LOOKS = (0, 1, 3, 6, 10, 14)
"""The epochs before which the odds of all candidates are found."""
LOOK_ROWS = 64
NONE_SHARE = 0.15
"""Share of the candidates that are no digit, which are trained on before the paths."""
RAISED = 0.8
"""By how much log odds are raised where weights were averaged, which makes them more doubtful."""
DEFORMATION = Deformation(
    rotation_deg=6, scale=0.1, shear=0.15, shift_px=0.7, elastic_px=0, elastic_sigma_px=4,
    thickness=0.3, identity_share=0.15,
)  # fmt: skip
"""How a row is distorted: all of its candidates alike."""
FILTERS = (48, 96)
UNITS = 192

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

    def start_from(self, path: Path) -> None:
        """Take over saved weights."""
        self._model.set_weights(onnx_file.load(path))

    def blend(self, path: Path) -> None:
        """Average the weights with those that the fit went on from, and raise all log odds."""
        both = zip(self._model.get_weights(), onnx_file.load(path), strict=True)
        weights = [(fitted + saved) / 2 for fitted, saved in both]
        weights[-1][NO_DIGIT] -= RAISED
        self._model.set_weights(weights)

    def by_labels(self, rows: Sequence[LabelledRow], epochs: int = EPOCHS) -> None:
        """Train on deformed candidates, each by its label."""
        num_batches = -(-len(rows) // BATCH_ROWS)
        step = self._step(with_dropout=True)

        def make(batch: Numbers) -> list[npt.NDArray[Any]]:
            return join([self._deformed(self._thinned(rows[index])) for index in batch])

        for epoch in range(epochs):
            losses = []
            batches = np.array_split(self._rng.permutation(len(rows)), num_batches)
            for done, columns in enumerate(prefetch(make, batches)):
                count = len(columns[3])
                weights = np.full(count, 1 / max(1, count), np.float32)
                no_gradient = np.zeros((count, 10), np.float32)
                rate = LEARNING_RATE * _falling((epoch + done / num_batches) / epochs)
                losses.append(float(step(rate, *columns, weights, no_gradient)))
            print(f"labels, epoch {epoch + 1} of {epochs}: loss {np.mean(losses):.4f}", flush=True)

    def by_paths(self, rows: Sequence[LabelledRow], epochs: int = PATH_EPOCHS) -> None:
        """Train on deformed rows, each by the paths through it and by its labels."""
        step = self._step(with_dropout=False)
        last = np.full(len(rows), np.inf)
        for epoch in range(epochs):
            if epoch in LOOKS:
                is_plausible = self._plausible(rows)
            batches = self._batches(last)

            def make(batch: Numbers, kept: list[Mask] = is_plausible) -> list[LabelledRow]:
                return [self._deformed(rows[index].part(kept[index])) for index in batch]

            made = prefetch(make, [batch for batch, _ in batches])
            total = count = 0.0
            for done, ((batch, times), some) in enumerate(zip(batches, made, strict=True)):
                columns = join(some)
                gradient, of_labels, losses = self._gradient(some, times)
                last[batch] = losses
                counted = times * [row.text != "" for row in some]
                total, count = total + float(counted @ losses), count + float(counted.sum())
                weights = _label_weights(some, times)
                teaches = (np.abs(gradient).max(1) > MIN_GRADIENT) | (of_labels > MIN_LOSS)
                if teaches.any():
                    rate = PATH_LEARNING_RATE * _falling((epoch + done / len(batches)) / epochs)
                    step(rate, *(column[teaches] for column in (*columns, weights, gradient)))
            print(f"paths, epoch {epoch + 1} of {epochs}: loss {total / count:.4f}", flush=True)

    def _plausible(self, rows: Sequence[LabelledRow]) -> list[Mask]:
        """Return which candidates of each row are on paths that count: the others cost time."""
        kept: list[Mask] = []
        for start in range(0, len(rows), LOOK_ROWS):
            some = [rows[index] for index in range(start, min(start + LOOK_ROWS, len(rows)))]
            images, surroundings, measures, labels, _ = join(some)
            logits = self._logits(images, surroundings, measures, with_dropout=False).numpy()
            is_kept = (odds(logits) > MIN_ODDS) | (labels != NO_DIGIT)
            kept += np.split(is_kept, np.cumsum([len(row.labels) for row in some])[:-1])
        return kept

    def _thinned(self, row: LabelledRow) -> LabelledRow:
        """Leave out most of the candidates that are no digit, and those that are open."""
        is_some = self._rng.random(len(row.labels)) < NONE_SHARE
        return row.part((row.labels >= 0) & ((row.labels != NO_DIGIT) | is_some))

    def _batches(self, last: _Floats) -> list[tuple[Numbers, _Floats]]:
        """Return the rows of each batch of an epoch, and how many times each counts."""
        is_easy = last < EASY_LOSS
        order = self._rng.permutation(
            np.flatnonzero(~is_easy | (self._rng.random(len(last)) < EASY_SHARE))
        )
        batches = np.array_split(order, max(1, -(-len(order) // PATH_BATCH_ROWS)))
        return [(batch, np.where(is_easy[batch], 1 / EASY_SHARE, 1.0)) for batch in batches]

    def _deformed(self, row: LabelledRow) -> LabelledRow:
        both = np.concatenate([row.images, row.surroundings])
        images, surroundings = np.split(deform(both, DEFORMATION, self._rng, max(1, len(both))), 2)
        return row._replace(images=images, surroundings=surroundings)

    def path_loss(self, rows: Sequence[LabelledRow]) -> float:
        """Return the mean loss of the rows that have a text."""
        return float(np.mean([self._gradient([row])[2] for row in rows if row.text]))

    def save(self, path: Path) -> None:
        """Save the network, with weights as half floats."""
        onnx_file.save(self._model.get_weights(), path)

    def _gradient(
        self, rows: Sequence[LabelledRow], times: npt.ArrayLike = 1.0
    ) -> tuple[_Floats, _Floats, list[float]]:
        """Return the loss of the rows.

        The loss of a row without a text is that of its worst label: it is the number's total that
        `digit_reader.numbers` refuses it by.

        Args:
            rows: R rows, of N candidates together.
            times: (R,): how many times each row counts.

        Returns:
            (N, 10): the gradient of the rows' mean loss by the candidates' scores; (N,): the
            labels' losses; and each row's loss.
        """
        images, surroundings, measures, labels, probabilities = join(rows)
        logits = self._logits(images, surroundings, measures, with_dropout=False)
        of_labels = self._label_losses(logits, labels.astype(np.int32)).numpy()
        scores = self._scores(logits, probabilities).numpy().astype(np.float64)
        gradient, values, at = np.zeros(scores.shape, np.float32), [], 0
        for row, count in zip(rows, np.broadcast_to(times, len(rows)), strict=True):
            part = slice(at, at + len(row.labels))
            at = part.stop
            loss = _path_loss(row, scores[part]) if row.text else None
            if loss is not None:
                gradient[part] = count * loss.gradient / len(rows)
            values.append(float(of_labels[part].max(initial=0)) if loss is None else loss.value)
        return gradient, of_labels, values

    def _step(self, *, with_dropout: bool) -> Any:
        """Return a function that trains on a batch, and returns the weighted loss of its labels."""
        tf, model = self._tf, self._model
        optimizer = self._keras.optimizers.AdamW(1e-3, weight_decay=1e-3, global_clipnorm=2.0)

        def step(
            images: Any,
            surroundings: Any,
            measures: Any,
            labels: Any,
            probabilities: Any,
            weights: Any,
            gradient: Any,
        ) -> Any:
            with tf.GradientTape() as tape:
                logits = self._logits(images, surroundings, measures, with_dropout=with_dropout)
                losses = self._label_losses(logits, tf.cast(labels, tf.int32))
                of_labels = tf.reduce_sum(weights * losses)
                loss = of_labels + tf.reduce_sum(gradient * self._scores(logits, probabilities))
            variables = model.trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            return of_labels

        compiled = tf.function(step, reduce_retracing=True)

        def at_rate(rate: float, *columns: Any) -> Any:
            optimizer.learning_rate.assign(rate)
            return compiled(*columns)

        return at_rate

    def _logits(self, images: Any, surroundings: Any, measures: Any, *, with_dropout: bool) -> Any:
        tf = self._tf
        both = [tf.reshape(each, (-1, 28, 28)) for each in (images, surroundings)]
        pixels = tf.cast(tf.stack(both, -1), tf.float32) / 255
        return self._model([pixels, tf.convert_to_tensor(measures)], training=with_dropout)

    def _scores(self, logits: Any, probabilities: Any) -> Any:
        """Score candidates as each digit: (N, 10), as `digit_reader.numbers` does."""
        tf = self._tf
        odds = tf.reduce_logsumexp(logits[:, :10], 1) - logits[:, 10]
        of_classifier = tf.math.log(tf.maximum(probabilities, 1e-6))
        both = (1 - SHARE) * of_classifier + SHARE * logits[:, :10]
        return odds[:, None] + tf.nn.log_softmax(both, 1)

    def _label_losses(self, logits: Any, labels: Any) -> Any:
        """Return each candidate's loss, 0 where the label is open: (N,)."""
        tf = self._tf
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(labels, 0), logits)
        return losses * tf.cast(labels >= 0, tf.float32)


def _path_loss(row: LabelledRow, scores: npt.NDArray[np.float64]) -> Loss | None:
    return text_loss(row.spans, scores, row.skips, row.text, row.has_mark)


def _label_weights(rows: Sequence[LabelledRow], times: _Floats) -> _Floats:
    """Return the weight of each candidate's label beside the rows' paths: (N,)."""
    kinds = times * [1 if row.text else TEXTLESS_WEIGHT for row in rows]
    of_rows = np.repeat(kinds, [len(row.labels) for row in rows])
    labels = np.concatenate([row.labels for row in rows])
    weights = of_rows * np.where(labels == NO_DIGIT, 1, DIGIT_WEIGHT)
    return (LABEL_WEIGHT / len(rows) * weights).astype(np.float32)


def _falling(done: float) -> float:
    """Return the share of a learning rate after some of the training, 0 to 1: half a cosine."""
    return float(1 + np.cos(np.pi * done)) / 2
