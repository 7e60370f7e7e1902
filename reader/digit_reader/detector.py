"""Tells whole digits from all else: halves and pairs of digits, letters, dots, lines, smears.

A small convolutional network, run by ONNX Runtime. It sees a candidate, the ink around it, and its
place in its row. `python -m experiments fit` makes it.
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from digit_classifier.normalizer import HEIGHT, WIDTH
from digit_reader.text.candidates import Candidates
from serving.model.onnx_runtime import new_session
from serving.tensors import Images, Probabilities

Floats = npt.NDArray[np.float32]

NETWORK = Path(__file__).parent / "detector.onnx"
NUM_CLASSES = 11
"""The digits, and none."""
SHARE = 0.5
"""Share of the detector in the log probabilities of a candidate's classes."""
_BATCH = 64
"""Candidates at once: more need more memory."""


def logits(candidates: Candidates) -> Floats:
    """Judge candidates.

    Returns:
        (N, 11) float32: log probabilities up to a constant, of each digit, and of no whole digit.
    """
    answers = [np.empty((0, NUM_CLASSES), np.float32)]
    for at in range(0, len(candidates.images), _BATCH):
        part = slice(at, at + _BATCH)
        answers += _session().run(
            ["logits"],
            {
                "images": candidates.images[part],
                "surroundings": candidates.surroundings[part],
                "measures": candidates.measures[part],
            },
        )
    return np.concatenate(answers)


@cache
def _session() -> Any:
    return new_session(NETWORK.read_bytes())


def logits_alone(images: Images) -> Floats:
    """Judge (N, 28, 28) images with nothing around them: as `logits` does."""
    count = len(images)
    is_ink = images > 0
    heights, widths = is_ink.any(2).sum(1), is_ink.any(1).sum(1)
    places = np.tile(np.array([1, 0, 0, 0, 0, 1, 1, 0], np.float32), (count, 1))
    places[:, 1] = widths / np.maximum(heights, 1)
    flat, none = images.reshape(count, HEIGHT * WIDTH), np.zeros((count, 4), np.intp)
    return logits(Candidates(none[:, :2], none, flat, flat, places, none[:, 0] > 0, flat[:0]))


def odds(logits: Floats) -> npt.NDArray[np.float64]:
    """Return the log odds of one whole digit: (N,)."""
    logits = logits.astype(np.float64)
    return np.asarray(np.logaddexp.reduce(logits[:, :10], axis=1) - logits[:, 10])


def agreed(probabilities: Probabilities, logits: Floats) -> Probabilities:
    """Return the weighted geometric mean of two networks' probabilities: (N, 10).

    The classifier is the better one, but has never seen a digit that was cut, nor ink around it.
    """
    logs = (1 - SHARE) * np.log(np.maximum(probabilities, 1e-6)) + SHARE * logits[:, :10]
    return _softmax(logs)


def probabilities(logits: Floats) -> Probabilities:
    """Return the detector's own probabilities of the digits, if it is one: (N, 10)."""
    return _softmax(logits[:, :10])


def _softmax(logs: Floats) -> Probabilities:
    weights = np.exp(logs - logs.max(1, initial=-np.inf, keepdims=True))
    answer: Probabilities = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return answer
