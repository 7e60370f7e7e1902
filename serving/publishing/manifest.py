"""manifest.json, written: what an exporter knows of a version, and the means to check its files.

format          1; raised when a reader of older manifests would misread a newer one
name, version   the model's name and the version's number, as text
signature       input_shape, such as [28, 28]: of one image, row-major; the graph takes them flat
                dtype "uint8", classes: their number, labels: a text for each class.
preprocessing   how `digit-serving` makes an image of a picture: size, channels, layout "flat",
                dtype "uint8", resize (stretch, pad, crop or digits), invert. Absent if images are
                no pictures.
recipe, seed    how it was trained; null for a model that was trained elsewhere
settings        every setting of that training; absent for a model that was trained elsewhere
parameters      their number
accuracy        validation, test: 0 to 1, each null where it is unknown. For a model that was
                trained elsewhere, test is that of its samples, if they have labels.
files           {file name: SHA-256 in hexadecimal} of model.onnx and, if it passed its gate,
                model.int8.onnx
parity          see training/export/parity.py
int8            see training/export/int8.py; or {"refused": why there is none}
libraries       {name: version} of everything that shaped the files
batching        only of the model in the package, by `make verdict`: rules: the version of the rules
                by which rows were proved independent; verdicts: {file name: {obstacle: why rows are
                not batched, null if they are; remark}}. Servers believe no other manifest's.
golden          images: base64 of N x pixels bytes; probabilities: N lists of floats, one for
                each class, that model.onnx gives; int8_probabilities: those of model.int8.onnx

`model/manifest_file.py` reads it.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from serving.config import Precision as Precision
from serving.model.manifest import FILES as FILES
from serving.model.manifest import MAX_MANIFEST_BYTES
from serving.model.manifest_file import FORMAT, GOLDEN
from serving.tensors import Images, Probabilities


class ManifestTooLong(ValueError):
    """A manifest is longer than a server reads."""


def render(name: str, version: str, contents: Mapping[str, Any]) -> bytes:
    """Write the manifest of one version as JSON that a person can read too.

    Args:
        name: the model's.
        version: the version's number.
        contents: all other fields.

    Raises:
        ManifestTooLong: a server would refuse it.
    """
    data = as_json({"format": FORMAT, "name": name, "version": version, **contents})
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestTooLong(
            f"its manifest has {len(data)} bytes, at most {MAX_MANIFEST_BYTES} expected"
        )
    return data


def as_json(document: Mapping[str, Any]) -> bytes:
    """Write a manifest's fields."""
    return json.dumps(document, indent=2).encode()


def digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """Compute the SHA-256 of each file, in hexadecimal, by file name."""
    return {name: hashlib.sha256(contents).hexdigest() for name, contents in files.items()}


def golden(images: Images, answers: Mapping[Precision, Probabilities]) -> dict[str, object]:
    """Put golden samples in a form for JSON.

    Args:
        images: (N, pixels) uint8.
        answers: (N, classes) float32 of each graph that is published.

    Returns:
        images: base64 of N x pixels bytes. probabilities, and int8_probabilities if that graph is
        published: N lists of numbers, in the fewest digits that give back the same float32.
    """
    return {
        "images": base64.b64encode(images.tobytes()).decode(),
        **{
            GOLDEN[precision]: [[float(str(p)) for p in row] for row in probabilities]
            for precision, probabilities in answers.items()
        },
    }
