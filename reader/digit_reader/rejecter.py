"""Tells whole digits from all else: halves and pairs of digits, letters, dots, lines, smears.

A small convolutional network in numpy. It sees a candidate, the ink around it, and where it is in
its row. `python -m lab fit` makes its weights.
"""

import math
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from digit_reader.text.candidates import Candidates
from serving.digits.pictures.normalizer import HEIGHT, WIDTH
from serving.images import Images
from serving.predictions import Probabilities

Floats = npt.NDArray[np.float32]

WEIGHTS = Path(__file__).parent / "rejecter.npz"
SHARE = 0.5
"""Of the rejecter in the log probabilities of a candidate's classes."""
_STRIDE = 2
_BATCH = 64
"""Candidates at once: more need more memory, and no less time."""


def logits(candidates: Candidates) -> Floats:
    """Judge candidates.

    Returns:
        (N, 11) float32: log probabilities up to a constant, of each digit, and of no whole digit.
    """
    parts = range(0, max(len(candidates.images), 1), _BATCH)
    return np.concatenate([_logits(candidates, slice(at, at + _BATCH)) for at in parts])


def _logits(candidates: Candidates, part: slice) -> Floats:
    weights = _weights()
    both = np.stack([candidates.images[part], candidates.surroundings[part]], -1)
    hidden: npt.NDArray[np.floating] = both.reshape(-1, HEIGHT, WIDTH, 2).astype(np.float32) / 255
    for layer in (1, 2):
        hidden = np.maximum(
            _convolved(hidden, weights[f"kernel{layer}"]) + weights[f"bias{layer}"], 0
        )
    pixels = hidden.reshape(len(hidden), math.prod(hidden.shape[1:]))  # not -1: N may be 0
    flat = np.concatenate([pixels, candidates.measures[part]], axis=1)
    dense = np.maximum(flat @ weights["kernel3"] + weights["bias3"], 0)
    answer: Floats = dense @ weights["kernel4"] + weights["bias4"]
    return answer


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
    """Return the rejecter's own probabilities of the digits, if it is one: (N, 10)."""
    return _softmax(logits[:, :10])


def _softmax(logs: Floats) -> Probabilities:
    weights = np.exp(logs - logs.max(1, initial=-np.inf, keepdims=True))
    answer: Probabilities = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return answer


def _convolved(images: npt.NDArray[np.floating], kernel: Floats) -> Floats:
    """Convolve (N, H, W, C) with (K, K, C, F), every second pixel, without padding."""
    size = kernel.shape[0]
    windows = np.lib.stride_tricks.sliding_window_view(images, (size, size), axis=(1, 2))
    windows = windows[:, ::_STRIDE, ::_STRIDE]  # (N, h, w, C, K, K)
    answer: Floats = np.tensordot(windows, kernel, axes=((4, 5, 3), (0, 1, 2)))
    return answer


@cache
def _weights() -> dict[str, Floats]:
    with np.load(WEIGHTS) as arrays:
        return {name: arrays[name].astype(np.float32) for name in arrays.files}
