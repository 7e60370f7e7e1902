"""What the study measures of every final model, once it is trained."""

from functools import cached_property, partial
from time import perf_counter
from typing import Any

import keras
import numpy as np

from training.data.mnist import Images, Mnist
from training.export.digits import SIGNATURE, on_raw_pixels
from training.export.graph import convert
from training.export.parity import open_session, run
from training.fitting.calibration import accuracy_at_coverage
from training.fitting.evaluation import probabilities
from training.study import corruptions, outliers

COVERAGES = (0.99, 0.98)
"""Shares of the test images that are answered; the least certain ones are rejected."""

BATCH = 128
"""Images a call when throughput is measured."""
ROUNDS = 5
"""The fastest counts: whatever else the machine does, makes a round slower."""


class Measures:
    """Measures networks on the test images, clean and corrupted, and on images of no digit."""

    def __init__(self, data: Mnist) -> None:
        self._data = data

    def of(self, model: keras.Model) -> dict[str, Any]:
        """Measure a network.

        Args:
            model: (N, 784) float32 in [0, 1] to (N, 10) float32 probabilities.

        Returns:
            wrong: the numbers of the test images that it misreads;
            covered: by share of the test images, its accuracy on those it is most certain of;
            corrupted: by kind, its accuracy on corrupted test images;
            outliers: by kind, the share of images of no digit that it is sure of.
        """
        answers = probabilities(model, self._data.test_images)
        labels = self._data.test_labels
        return {
            "wrong": np.flatnonzero(answers.argmax(axis=1) != labels).tolist(),
            "covered": {
                f"{share}": accuracy_at_coverage(answers, labels, share)[0] for share in COVERAGES
            },
            "corrupted": {
                kind: float((probabilities(model, images).argmax(axis=1) == labels).mean())
                for kind, images in self._corrupted.items()
            },
            "outliers": outliers.confident_shares(partial(probabilities, model)),
        }

    def speed(self, model: keras.Model) -> float:
        """Measure how many images a second ONNX Runtime classifies on one core, 128 at a time.

        Args:
            model: a network of dense layers, (N, 784) float32 in [0, 1] to (N, 10) probabilities.
        """
        session = open_session(convert(on_raw_pixels(model), "digits", SIGNATURE, {})["dense"])
        images = self._data.test_images
        run(session, images, BATCH)  # the first calls allocate
        seconds = []
        for _ in range(ROUNDS):
            start = perf_counter()
            run(session, images, BATCH)
            seconds.append(perf_counter() - start)
        return len(images) / min(seconds)

    @cached_property
    def _corrupted(self) -> dict[str, Images]:
        """The corrupted test images, which are the same for every network."""
        return corruptions.corrupt(self._data.test_images)
