"""Reads exported models from disk: versions, manifests, digests. Runs nothing.

    <model_dir>/<version>/manifest.json, model.onnx, ...      version = 1, 2, 3 ...

The bytes that were hashed are the bytes that are returned: a file that changes in between can't
slip through.
"""

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from serving import images
from serving.config import Precision
from serving.errors import ConfigurationError, CorruptModel, InvalidRequest, ModelNotFound
from serving.images import Images
from serving.predictions import NUM_CLASSES, Probabilities

PRETRAINED = Path(__file__).with_name("pretrained")
"""The repository in the box: a model that is installed with the package."""

MANIFEST = "manifest.json"
_FILES: dict[Precision, str] = {"fp32": "model.onnx", "int8": "model.int8.onnx"}
_GOLDEN: dict[Precision, str] = {"fp32": "probabilities", "int8": "int8_probabilities"}
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_MAX_MANIFEST_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Manifest:
    """What the exporter says of a version."""

    name: str
    version: str
    recipe: str
    parameters: int
    validation_accuracy: float
    """Share of the validation images answered correctly, 0 to 1."""
    test_accuracy: float
    """Share of the 10,000 MNIST test images answered correctly, 0 to 1."""
    digests: dict[str, str]
    """File name to SHA-256, in hexadecimal."""
    golden_images: Images
    """(N, 784) uint8: samples to check a loaded model with."""
    golden_probabilities: dict[Precision, Probabilities]
    """(N, 10) float32: what each exported variant answered to them."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ModelFile:
    """One variant of one version, read and verified."""

    manifest: Manifest
    precision: Precision
    onnx: bytes


def versions(model_dir: Path) -> list[str]:
    """List a model's versions, newest first.

    Raises:
        ModelNotFound: the directory doesn't exist or holds no version; names what to run.
    """
    found = []
    if model_dir.is_dir():
        found = [path.name for path in model_dir.iterdir() if _VERSION.fullmatch(path.name)]
    if not found:
        raise ModelNotFound(f"no model in {model_dir}: run `make train export` to make one")
    return sorted(found, key=int, reverse=True)


def find_root(model: str, root: Path) -> Path:
    """Choose a repository: the usual one if it holds the model, else the one in the box if it does.

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
        ModelNotFound: no such version; anything but a number is refused unread.
        ConfigurationError: the version has no such variant.
        CorruptModel: a file is missing or unreadable, or differs from the manifest.
    """
    if not _VERSION.fullmatch(version) or not (model_dir / version).is_dir():
        raise ModelNotFound(f"model {model_dir.name!r} has no version {version[:40]!r}")
    manifest = load_manifest(model_dir / version)
    file_name = _FILES[precision]
    if file_name not in manifest.digests:
        raise ConfigurationError(f"version {version} has no {precision} variant")
    onnx = _read(model_dir / version / file_name)
    digest = hashlib.sha256(onnx).hexdigest()
    if digest != manifest.digests[file_name]:
        raise CorruptModel(
            f"{version}/{file_name}: expected SHA-256 {manifest.digests[file_name]}, got {digest}"
        )
    return ModelFile(manifest=manifest, precision=precision, onnx=onnx)


def load_manifest(version_dir: Path) -> Manifest:
    """Read and check a version's manifest.

    Raises:
        CorruptModel: it is missing, unreadable, malformed, or tells of another version.
    """
    manifest = parse_manifest(_read(version_dir / MANIFEST))
    if manifest.version != version_dir.name:
        raise CorruptModel(f"{version_dir.name}/{MANIFEST} is that of version {manifest.version}")
    return manifest


def parse_manifest(data: bytes) -> Manifest:
    """Parse a manifest's JSON.

    Raises:
        CorruptModel: too large, not JSON, a field missing or of the wrong type, another format.
    """
    if len(data) > _MAX_MANIFEST_BYTES:
        raise CorruptModel(f"{MANIFEST}: {len(data)} bytes, at most {_MAX_MANIFEST_BYTES} expected")
    try:
        return _manifest_of(json.loads(data))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError,
            InvalidRequest) as err:  # fmt: skip
        raise CorruptModel(f"{MANIFEST} is malformed: {type(err).__name__}: {err}") from err


def _manifest_of(document: dict[str, Any]) -> Manifest:
    if document["format"] != 1:
        raise ValueError(f"format 1 expected, got {document['format']!r}")
    for text in (document["name"], document["version"], document["recipe"]):
        str(text).encode()  # a lone surrogate can't be told to a client
    golden = document["golden"]
    golden_images = images.from_bytes(base64.b64decode(golden["images"], validate=True))
    return Manifest(
        name=str(document["name"]),
        version=str(document["version"]),
        recipe=str(document["recipe"]),
        parameters=int(document["parameters"]),
        validation_accuracy=float(document["accuracy"]["validation"]),
        test_accuracy=float(document["accuracy"]["test"]),
        digests={str(name): str(digest) for name, digest in document["files"].items()},
        golden_images=golden_images,
        golden_probabilities={
            precision: _probabilities(golden[_GOLDEN[precision]], len(golden_images))
            for precision, file_name in _FILES.items()
            if file_name in document["files"]
        },
    )


def _probabilities(rows: list[list[float]], num_images: int) -> Probabilities:
    exact = np.array(rows, np.float64)  # what float32 can't hold is seen, not warned about
    if exact.shape != (num_images, NUM_CLASSES):
        raise ValueError(f"golden probabilities have shape {exact.shape}")
    if not ((exact >= 0) & (exact <= 1)).all():
        raise ValueError("golden probabilities are not all from 0 to 1")
    probabilities: Probabilities = exact.astype(np.float32)
    return probabilities


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise CorruptModel(f"{path.parent.name}/{path.name}: {err.strerror}") from err
