"""Reads exported models from disk: versions, manifests, digests. Runs nothing.

    <model_dir>/<version>/manifest.json, model.onnx, ...      version = 1, 2, 3 ...

The bytes that were hashed are the bytes that are returned, so a file that changes in between has no
effect.
"""

import base64
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from commandline import checkout
from serving import images
from serving.config import Precision
from serving.errors import ConfigurationError, CorruptModel, InvalidRequest, ModelNotFound
from serving.images import Images
from serving.predictions import Probabilities
from serving.signature import DIGITS, Signature
from serving.system.files import read_regular

PRETRAINED = Path(__file__).parent.with_name("pretrained")
"""The bundled repository: a model that is installed with the package."""

MANIFEST = "manifest.json"
_FILES: dict[Precision, str] = {"fp32": "model.onnx", "int8": "model.int8.onnx"}
_GOLDEN: dict[Precision, str] = {"fp32": "probabilities", "int8": "int8_probabilities"}
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_MAX_MANIFEST_BYTES = 8 << 20
"""What samples take of a thousand classes, ten times over; of digits 50 KB."""
_MAX_MODEL_BYTES = 256 << 20
"""The file is in memory while the session is built."""
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
    """(N, classes) float32: the answers of each exported variant to them."""
    signature: Signature = DIGITS
    """The shape of its images, and its classes."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ModelFile:
    """One variant of one version, read and verified."""

    manifest: Manifest
    precision: Precision
    onnx: bytes


def versions(model_dir: Path) -> list[str]:
    """List a model's versions, newest first.

    Raises:
        ModelNotFound: the directory doesn't exist or has no version; the text has the command to
            run.
        ConfigurationError: the directory can't be read.
    """
    try:
        with os.scandir(model_dir) as entries:
            found = [e.name for e in entries if _VERSION.fullmatch(e.name) and os.path.isdir(e)]
    except (FileNotFoundError, NotADirectoryError):
        found = []
    except OSError as err:
        raise ConfigurationError(f"can't read {model_dir}: {err.strerror}") from err
    if not found:
        raise ModelNotFound(f"no model in {model_dir}: run {checkout.run('train', 'export')}")
    return sorted(found, key=int, reverse=True)


def find_root(model: str, root: Path) -> Path:
    """Return the usual repository if it has the model, else the bundled one if that has it.

    Args:
        model: the model's name.
        root: the usual repository.
    """
    for candidate in (root, PRETRAINED):
        try:
            versions(candidate / model)
        except ModelNotFound:
            continue
        return candidate
    return root


def load(model_dir: Path, version: str, precision: Precision = "fp32") -> ModelFile:
    """Read one version and verify its digests.

    Args:
        model_dir: the model's directory, such as models/digits.
        version: a number without leading zeros, such as "3".
        precision: which variant of the version.

    Raises:
        ModelNotFound: no such version; anything but a number is refused without reading.
        ConfigurationError: the version has no such variant.
        CorruptModel: a file is missing or unreadable, or differs from the manifest.
    """
    if not _VERSION.fullmatch(version) or not os.path.isdir(model_dir / version):
        raise ModelNotFound(f"model {model_dir.name!r} has no version {version[:40]!r}")
    manifest = load_manifest(model_dir / version)
    file_name = _FILES[precision]
    if file_name not in manifest.digests:
        raise ConfigurationError(f"version {version} has no {precision} variant")
    onnx = _read(model_dir / version / file_name, _MAX_MODEL_BYTES)
    digest = hashlib.sha256(onnx).hexdigest()
    if digest != manifest.digests[file_name]:
        raise CorruptModel(
            f"{version}/{file_name}: expected SHA-256 {manifest.digests[file_name]}, got {digest}"
        )
    return ModelFile(manifest=manifest, precision=precision, onnx=onnx)


def load_manifest(version_dir: Path) -> Manifest:
    """Read and check a version's manifest.

    Raises:
        CorruptModel: it is missing, unreadable, malformed, or belongs to another version or model.
    """
    manifest = parse_manifest(_read(version_dir / MANIFEST, _MAX_MANIFEST_BYTES))
    if manifest.version != version_dir.name:
        raise CorruptModel(f"{version_dir.name}/{MANIFEST} is that of version {manifest.version}")
    model_dir = version_dir.absolute().parent
    if manifest.name not in (model_dir.name, model_dir.resolve().name):  # or a symbolic link to it
        raise CorruptModel(
            f"{version_dir.name}/{MANIFEST} is that of model {manifest.name!r}, "
            f"expected {model_dir.name!r}"
        )
    return manifest


def parse_manifest(data: bytes) -> Manifest:
    """Parse a manifest's JSON.

    Raises:
        CorruptModel: too large, not JSON, another format, or a field is missing or of the wrong
            type.
    """
    if len(data) > _MAX_MANIFEST_BYTES:
        raise CorruptModel(f"{MANIFEST}: {len(data)} bytes, at most {_MAX_MANIFEST_BYTES} expected")
    try:
        return _manifest_of(json.loads(data))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError,
            InvalidRequest) as err:  # fmt: skip
        raise CorruptModel(
            f"{MANIFEST} is malformed: {type(err).__name__}: {str(err)[:_MAX_TEXT]}"
        ) from err


def _manifest_of(document: dict[str, Any]) -> Manifest:
    if document["format"] != 1:
        raise ValueError(f"format 1 expected, got {document['format']!r}")
    golden = document["golden"]
    signature = Signature.of(document["signature"]) if "signature" in document else DIGITS
    pixels = base64.b64decode(golden["images"], validate=True)
    golden_images = images.from_bytes(pixels, signature.image_bytes)
    shape = len(golden_images), signature.num_classes
    return Manifest(
        name=_text(document, "name"),
        version=_text(document, "version"),
        test_accuracy=_accuracy(document["accuracy"]["test"]),
        digests={
            name: _digest(document["files"], name)
            for name in _FILES.values()
            if name in document["files"]
        },
        golden_images=golden_images,
        golden_probabilities={
            precision: _probabilities(golden[_GOLDEN[precision]], shape)
            for precision, file_name in _FILES.items()
            if file_name in document["files"]
        },
        signature=signature,
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
    exact = np.array(rows, np.float64)  # first: float32 would only warn of what it can't hold
    if exact.shape != shape:
        raise ValueError(f"golden probabilities have shape {exact.shape}, not {shape}")
    if not ((exact >= 0) & (exact <= 1)).all():
        raise ValueError("golden probabilities are not all from 0 to 1")
    probabilities: Probabilities = exact.astype(np.float32)
    return probabilities


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        return read_regular(path, max_bytes)
    except OSError as err:
        raise CorruptModel(f"{path.parent.name}/{path.name}: {err.strerror}") from err
