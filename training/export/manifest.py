"""manifest.json: a version's description, and the means to check its files.

format          1; raised when a reader of older manifests would misread a newer one
name, version   the model's name and the version's number, as text
signature       input_shape, such as [28, 28]: of one image, row-major; the graph takes them flat
dtype "uint8", classes: their number, labels: a text for each class.
Manifests without a signature are of digits: [28, 28], 10 classes, "0" to "9".
preprocessing   how `digit-serving` makes an image of a picture: size, channels, layout "flat",
dtype "uint8", resize (stretch, pad, crop or digits), invert. Absent if images are no pictures.
recipe, seed    how it was trained; null for a model that was trained elsewhere
parameters      their number
accuracy        validation, test: 0 to 1, each null where it is unknown. For a model that was
trained elsewhere, test is that of its samples, if they have labels.
files           {file name: SHA-256 in hexadecimal} of model.onnx and, if it passed its gate,
model.int8.onnx
parity          see parity.Parity
int8            see int8_gate.Int8; or {"refused": why there is none}
libraries       {name: version} of everything that shaped the files
golden          images: base64 of N x pixels bytes; probabilities: N lists of floats, one for
each class, that model.onnx gives; int8_probabilities: those of model.int8.onnx
"""

import base64
import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import onnx
import tensorflow as tf
import tf2onnx

from training.data.mnist import Images
from training.errors import ExportError, UnusableInput
from training.export.parity import onnxruntime
from training.export.samples import Samples
from training.fitting.evaluation import Probabilities

FORMAT = 1
DIGIT_LABELS = tuple("0123456789")

GOLDEN_IMAGES = 32
GOLDEN_PER_CLASS = 2
GOLDEN_BYTES = 256 << 10
"""The most that golden samples take in the manifest, unless a single one takes more."""
MAX_BYTES = 512 << 10
"""The longest manifest that a server reads."""
NUMBER_BYTES = 32
"""Of a probability in the manifest, on a line of its own."""
GOLDEN_KEYS = {"fp32": "probabilities", "int8": "int8_probabilities"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSignature:
    """A model's input and output."""

    input_shape: tuple[int, ...]
    """Of one image, such as (28, 28)."""
    dtype: str = "uint8"
    """Of a pixel."""
    classes: int
    """The number of classes."""
    labels: tuple[str, ...]
    """A text for each class."""

    @property
    def pixels(self) -> int:
        """The number of pixels of an image."""
        return int(np.prod(self.input_shape))

    def preprocessing(
        self, resize: str | None = None, *, invert: bool = False
    ) -> dict[str, object]:
        """Return how pictures become its images, as in the manifest; empty if they can't.

        Args:
            resize: None for "digits" of 28 x 28 in grey in the classes 0 to 9, else "stretch".
            invert: whether pictures that are mostly light are inverted first.

        Raises:
            UnusableInput: an option doesn't fit the shape of the images.
        """
        shape = self.input_shape if len(self.input_shape) == 3 else (*self.input_shape, 1)
        is_digit = shape == (28, 28, 1)
        if len(shape) != 3 or shape[2] not in (1, 3):
            if resize or invert:
                raise UnusableInput(f"--resize and --invert are of pictures, not of {shape[:-1]}")
            return {}
        if resize == "digits" and not is_digit:
            raise UnusableInput(f"--resize digits is of 28 x 28 in grey, not of {shape}")
        usual = "digits" if is_digit and self.labels == DIGIT_LABELS else "stretch"
        return {"size": shape[:2], "channels": shape[2], "layout": "flat", "dtype": self.dtype,
                "resize": resize or usual, "invert": invert}  # fmt: skip


def render(name: str, version: str, contents: Mapping[str, Any]) -> bytes:
    """Write the manifest of one version as JSON that a person can read too.

    Raises:
        ExportError: it is longer than a server reads: one golden sample alone is too large.
    """
    document = {"format": FORMAT, "name": name, "version": version, **contents}
    data = json.dumps(document, indent=2).encode()
    if len(data) > MAX_BYTES:
        raise ExportError(
            f"not published, its manifest has {len(data)} bytes, at most {MAX_BYTES} expected: "
            "train on smaller images"
        )
    return data


def digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """Compute the SHA-256 of each file, in hexadecimal, by file name."""
    return {name: hashlib.sha256(contents).hexdigest() for name, contents in files.items()}


def libraries() -> dict[str, str]:
    """Return the versions of everything that shaped the exported files."""
    modules = (tf, keras, tf2onnx, onnx, onnxruntime, np)
    return {module.__name__: module.__version__ for module in modules} | {
        "python": platform.python_version()
    }


def choose_golden(probabilities: Probabilities, samples: Samples) -> npt.NDArray[np.intp]:
    """Choose the images to ship with the model: some of every class, then the least confident ones.

    Only correctly answered images are chosen, or any where labels are unknown. The least confident
    ones lie closest to the border between two classes, where a wrong weight shows first.

    Returns:
        Row numbers, ascending: up to 32, or fewer where these would make the manifest large.
    """
    answers = probabilities.argmax(axis=1)
    labels = answers if samples.labels is None else samples.labels
    right = np.flatnonzero(answers == labels)
    num_classes = probabilities.shape[1]
    sample_bytes = samples.images.shape[1] * 4 // 3 + 2 * num_classes * NUMBER_BYTES
    num = min(GOLDEN_IMAGES, max(1, GOLDEN_BYTES // sample_bytes))
    of_each = min(GOLDEN_PER_CLASS, num // num_classes)
    chosen = np.concatenate(
        [right[labels[right] == number][:of_each] for number in range(num_classes)]
    )
    others = np.setdiff1d(right, chosen)
    by_certainty = others[probabilities[others].max(axis=1).argsort(kind="stable")]
    return np.sort(np.append(chosen, by_certainty[: num - len(chosen)]))


def golden(images: Images, answers: Mapping[str, Probabilities]) -> dict[str, object]:
    """Put golden samples in a form for JSON.

    Returns:
        images: base64 of N x pixels bytes. probabilities, and int8_probabilities if that graph is
        published: N lists of numbers, in the fewest digits that give back the same float32.
    """
    return {
        "images": base64.b64encode(images.tobytes()).decode(),
        **{
            GOLDEN_KEYS[precision]: [[float(str(p)) for p in row] for row in probabilities]
            for precision, probabilities in answers.items()
        },
    }
