"""What the study measures of every final model, once it is trained."""

from functools import cached_property, partial
from typing import Any

import keras
import numpy as np

from training.data.mnist import Images, Mnist
from training.fitting.calibration import accuracy_at_coverage
from training.fitting.evaluation import probabilities
from training.lab.study import corruptions, outliers

COVERAGES = (0.99, 0.98)
"""Shares of the test images that are answered; the least certain ones are rejected."""


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

    @cached_property
    def _corrupted(self) -> dict[str, Images]:
        """The corrupted test images, which are the same for every network."""
        return corruptions.corrupt(self._data.test_images)
