"""A version's manifest: the exporter's description, parsed and checked."""

import base64
import json
import re
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from serving.config import Precision
from serving.errors import CorruptModel
from serving.images import Images
from serving.model.preprocessing import Preprocessing, of_signature
from serving.predictions import Probabilities
from serving.signature import DIGITS, Signature

MANIFEST = "manifest.json"
FILES: dict[Precision, str] = {"fp32": "model.onnx", "int8": "model.int8.onnx"}
_GOLDEN: dict[Precision, str] = {"fp32": "probabilities", "int8": "int8_probabilities"}
MAX_MANIFEST_BYTES = 512 << 10
"""Twice the most that the exporter writes of golden samples; of digits 50 KB."""
_MAX_TEXT = 100
"""Characters of a name, which is part of every answer to GetModel and of log lines."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Manifest:
    """The exporter's description of a version."""

    name: str
    version: str
    test_accuracy: float | None
    """Share of the test images answered correctly, 0 to 1; None if unknown."""
    digests: dict[str, str]
    """File name to SHA-256, in hexadecimal."""
    golden_images: Images
    """(N, pixels) uint8: samples to check a loaded model."""
    golden_probabilities: dict[Precision, Probabilities]
    """(N, classes) float32: the answers of each exported variant to them; empty without a file."""
    signature: Signature | None = DIGITS
    """The shape of its images, and its classes; None if it isn't known to classify images."""
    pictures: Preprocessing | None = None
    """How pictures become its input, and the names of its classes; None if it takes none."""

    @classmethod
    def of_graph(cls, name: str, version: str, digests: dict[str, str]) -> Self:
        """Describe a version that has no manifest."""
        return cls(
            name=name, version=version, test_accuracy=None, digests=digests,
            golden_images=np.empty((0, 0), np.uint8), golden_probabilities={}, signature=None,
        )  # fmt: skip


def parse_manifest(data: bytes) -> Manifest:
    """Parse a manifest's JSON.

    Raises:
        CorruptModel: too large, not JSON, another format, or a field is missing or of the wrong
            type.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise CorruptModel(f"{MANIFEST}: {len(data)} bytes, at most {MAX_MANIFEST_BYTES} expected")
    try:
        return _manifest_of(json.loads(data))
    except (
        ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError,
    ) as err:  # fmt: skip
        raise CorruptModel(
            f"{MANIFEST} is malformed: {type(err).__name__}: {str(err)[:_MAX_TEXT]}"
        ) from err


def _manifest_of(document: dict[str, Any]) -> Manifest:
    if document["format"] != 1:
        raise ValueError(f"format 1 expected, got {document['format']!r}")
    golden = document["golden"]
    signature = Signature.of(document["signature"]) if "signature" in document else DIGITS
    pixels = base64.b64decode(golden["images"], validate=True)
    golden_images = np.frombuffer(pixels, np.uint8).reshape(-1, signature.image_bytes)
    shape = len(golden_images), signature.num_classes
    return Manifest(
        name=_text(document, "name"),
        version=_text(document, "version"),
        test_accuracy=_accuracy(document["accuracy"]["test"]),
        digests={name: _digest(document["files"], name) for name in document["files"]},
        golden_images=golden_images,
        golden_probabilities={
            precision: _probabilities(golden[_GOLDEN[precision]], shape)
            for precision, file_name in FILES.items()
            if file_name in document["files"]
        },
        signature=signature,
        pictures=of_signature(signature, document.get("preprocessing")),
    )


def _text(document: dict[str, Any], name: str) -> str:
    text = document[name]
    if not isinstance(text, str) or not 0 < len(text) <= _MAX_TEXT or not text.isprintable():
        raise ValueError(f"{name} must be 1 to {_MAX_TEXT} printable characters")
    return text  # a lone surrogate, which no message can encode, isn't printable either


def _accuracy(share: float | None) -> float | None:
    if share is not None and not 0 <= share <= 1:
        raise ValueError("the accuracy must be from 0 to 1")
    return share


def _digest(document: dict[str, Any], name: str) -> str:
    digest = document[name]
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ValueError(f"the digest of {name} must be 64 hexadecimal digits")
    return digest


def _probabilities(rows: list[list[float]], shape: tuple[int, int]) -> Probabilities:
    exact = np.array(rows, np.float64)  # first: float32 would only warn of overflow
    if exact.shape != shape:
        raise ValueError(f"golden probabilities have shape {exact.shape}, not {shape}")
    if not ((exact >= 0) & (exact <= 1)).all():
        raise ValueError("golden probabilities are not all from 0 to 1")
    probabilities: Probabilities = exact.astype(np.float32)
    return probabilities
