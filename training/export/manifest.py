"""manifest.json: what a version says about itself, and how to check that it is intact and right."""

import base64
import hashlib
import json
import platform
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import onnx
import tensorflow as tf
import tf2onnx

from training.data.mnist import Images, Labels
from training.export.onnx_runtime import onnxruntime
from training.fitting.evaluation import Probabilities

FORMAT = 1
"""Raised when a reader of older manifests would misread a newer one."""

GOLDEN_IMAGES = 32
GOLDEN_PER_DIGIT = 2
GOLDEN_KEYS = {"fp32": "probabilities", "int8": "int8_probabilities"}


def render(name: str, version: str, contents: Mapping[str, Any]) -> bytes:
    """Write the manifest of one version as JSON that a person can read too."""
    return json.dumps(
        {"format": FORMAT, "name": name, "version": version, **contents}, indent=2
    ).encode()


def digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """Compute the SHA-256 of each file, in hex, by file name."""
    return {name: hashlib.sha256(contents).hexdigest() for name, contents in files.items()}


def libraries() -> dict[str, str]:
    """List the versions of everything that shaped the exported files."""
    modules = (tf, keras, tf2onnx, onnx, onnxruntime, np)
    return {module.__name__: module.__version__ for module in modules} | {
        "python": platform.python_version()
    }


def choose_golden(probabilities: Probabilities, labels: Labels) -> npt.NDArray[np.intp]:
    """Choose the images to ship with the model: some of every digit, then the least certain ones.

    Only correctly answered images are chosen. The least certain ones lie closest to the border
    between two digits, where a wrong weight shows first.

    Args:
        probabilities: (N, 10) float32, the model's answers.
        labels: (N,) uint8, the true digits.

    Returns:
        Up to 32 row numbers, ascending.
    """
    right = np.flatnonzero(probabilities.argmax(axis=1) == labels)
    of_each = [right[labels[right] == digit][:GOLDEN_PER_DIGIT] for digit in range(10)]
    chosen = np.concatenate(of_each)
    others = np.setdiff1d(right, chosen)
    by_certainty = others[probabilities[others].max(axis=1).argsort(kind="stable")]
    return np.sort(np.append(chosen, by_certainty[: GOLDEN_IMAGES - len(chosen)]))


def golden(images: Images, answers: Mapping[str, Probabilities]) -> dict[str, object]:
    """Put sample questions and answers in a form for JSON.

    Args:
        images: (N, 784) uint8.
        answers: (N, 10) float32, the published graphs' answers by precision.

    Returns:
        images: base64 of N x 784 bytes. probabilities, and int8_probabilities if that graph is
        published: N lists of 10 numbers, in the fewest digits that give back the same float32.
    """
    return {
        "images": base64.b64encode(images.tobytes()).decode(),
        **{
            GOLDEN_KEYS[precision]: [[float(str(p)) for p in row] for row in probabilities]
            for precision, probabilities in answers.items()
        },
    }
