"""The trained network as it lies in the artifacts folder: read it, and ask it."""

import json
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from commandline import checkout
from training.data.mnist import Images

Probabilities = npt.NDArray[np.float32]


class NotTrained(Exception):
    """What training writes is missing or unreadable; the text names the command to run."""


def load_model(artifacts: Path) -> keras.Model:
    """Read model.keras: (N, 784) float32 in [0, 1] to (N, 10) float32.

    Raises:
        NotTrained: there is none, or it cannot be read.
    """
    path = artifacts / "model.keras"
    if not path.exists():
        raise NotTrained(f"nothing is trained in {artifacts}: run {checkout.run('train')} first")
    try:
        return keras.models.load_model(path, compile=False)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as err:
        raise NotTrained(f"cannot read {path}: run {checkout.run('train')} again") from err


def load_json(artifacts: Path, name: str) -> dict[str, Any]:
    """Read metrics.json or history.json.

    Raises:
        NotTrained: there is none, or it cannot be read.
    """
    try:
        contents: dict[str, Any] = json.loads((artifacts / name).read_text("utf-8"))
    except (OSError, ValueError) as err:
        raise NotTrained(
            f"cannot read {artifacts / name}: run {checkout.run('train')} again"
        ) from err
    return contents


def probabilities(model: keras.Model, images: Images) -> Probabilities:
    """Classify images with Keras, in float32.

    Args:
        model: as load_model returns it.
        images: (N, 784) uint8.

    Returns:
        (N, 10) float32; each row sums to 1.
    """
    with tf.device("/CPU:0"):  # on a GPU, TensorFlow multiplies in TF32: three digits, not seven
        answers = model(images.astype(np.float32) / 255, training=False)
    return np.asarray(answers)
