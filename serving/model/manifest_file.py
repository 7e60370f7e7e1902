"""manifest.json, which the exporter writes beside a graph: its fields, parsed and checked."""

import base64
import json
import re
from difflib import get_close_matches
from typing import Any

import numpy as np

from serving.config import Precision
from serving.errors import CorruptModel
from serving.model.agreement import GOLDEN_FILE, AnswerComparison
from serving.model.manifest import FILES, MANIFEST, MAX_MANIFEST_BYTES, Manifest
from serving.model.preprocessing import of_signature
from serving.model.verdicts import Verdict, rules_version, verdict_of
from serving.tensors import Probabilities, Signature

FORMAT = 1
GOLDEN: dict[Precision, str] = {"fp32": "probabilities", "int8": "int8_probabilities"}
"""The golden answers of each variant."""
_MAX_TEXT = 100
"""Characters of a name, which is part of every answer to GetModel and of log lines."""
_MAX_PROCESSOR = 200
"""Characters of a processor's name with its features, which becomes part of log lines."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LONG_FIELDS = ("signature", "preprocessing", "batching", "optimized")
_MANIFEST_FIELDS = {
    *_LONG_FIELDS, "format", "name", "version", "recipe", "seed", "settings", "parameters",
    "accuracy", "files", "parity", "int8", "libraries", "golden",
}  # fmt: skip
"""Fields that the exporter writes."""
_SIGNATURE_FIELDS = {"input_shape", "dtype", "classes", "labels"}
_NEAR = 0.75
"""Likeness from which an unknown field is taken for a misspelled one."""


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
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as err:
        raise CorruptModel(
            f"{MANIFEST} is malformed: {type(err).__name__}: {str(err)[:_MAX_TEXT]}"
        ) from err


def _manifest_of(document: dict[str, Any]) -> Manifest:
    if document["format"] != FORMAT:
        raise ValueError(f"format {FORMAT} expected, got {document['format']!r}")
    golden = document["golden"]
    unknown = _unknown_fields(document)
    has_file = "file" in golden
    if has_file and golden["file"] != GOLDEN_FILE:
        raise ValueError(f"the golden file {GOLDEN_FILE} expected, got {golden['file']!r}")
    if has_file and GOLDEN_FILE not in document["files"]:
        raise ValueError(f"the digest of {GOLDEN_FILE} expected")
    fields: dict[str, Any] = {
        "name": _text(document, "name"),
        "version": _text(document, "version"),
        "digests": {name: _digest(document["files"], name) for name in document["files"]},
        "verdicts": _verdicts(document.get("batching", {})),
        "comparison": AnswerComparison.of(golden) if has_file else None,
        "gated_on": _text(golden, "gated_on", _MAX_PROCESSOR) if "gated_on" in golden else "",
        "optimized": _optimized(document["optimized"]) if "optimized" in document else "",
        "unknown": unknown,
    }
    if "signature" not in document and has_file:  # of a model of any inputs and outputs
        return Manifest(
            test_accuracy=None,
            golden_images=np.empty((0, 0), np.uint8),
            golden_probabilities={},
            **fields,
        )
    signature = Signature.of(document["signature"])
    pixels = base64.b64decode(golden["images"], validate=True)
    golden_images = np.frombuffer(pixels, np.uint8).reshape(-1, signature.image_bytes)
    shape = len(golden_images), signature.num_classes
    return Manifest(
        test_accuracy=_accuracy(document["accuracy"]["test"]),
        golden_images=golden_images,
        golden_probabilities={
            precision: _probabilities(golden[GOLDEN[precision]], shape)
            for precision, file_name in FILES.items()
            if file_name in document["files"]
        },
        signature=signature,
        pictures=of_signature(signature, document.get("preprocessing")),
        **fields,
    )


def _verdicts(document: dict[str, Any]) -> dict[str, Verdict]:
    """Return the verdicts on files; none, if other rules have found them."""
    if document.get("rules") != rules_version():
        return {}
    return {name: verdict_of(each) for name, each in document["verdicts"].items()}


def _unknown_fields(document: dict[str, Any]) -> tuple[str, ...]:
    """Return the fields of a manifest that are unknown here, as a later exporter may add some.

    Raises:
        ValueError: one is an optional field, misspelled.
    """
    signature = document.get("signature", {})
    unknown = [name for name in document if name not in _MANIFEST_FIELDS]
    inside = [name for name in signature if name not in _SIGNATURE_FIELDS]
    for names, optional in ((unknown, _LONG_FIELDS), (inside, ("labels",))):
        for name in names:
            if near := get_close_matches(name.lower(), optional, 1, _NEAR):
                raise ValueError(f"there is no field {name!r}: did you mean {near[0]}?")
    found = [*unknown, *(f"signature.{name}" for name in inside)]
    return tuple(name if name.isprintable() else repr(name) for name in found)


def _optimized(origin: dict[str, Any]) -> str:
    """Say how and of what a version was optimised; see `docs/optimize.md`."""
    base = origin["from"]
    of = f"{_text(base, 'name')} version {_text(base, 'version')}"
    return f"{_text(origin['by'], 'candidate')}, of {of}"


def _text(document: dict[str, Any], name: str, most: int = _MAX_TEXT) -> str:
    text = document[name]
    if not isinstance(text, str) or not 0 < len(text) <= most or not text.isprintable():
        raise ValueError(f"{name} must be 1 to {most} printable characters")
    return text  # a lone surrogate, which no message can encode, isn't printable either


def _accuracy(share: float | None) -> float | None:
    if share is not None and not 0 <= share <= 1:
        raise ValueError("the accuracy must be from 0 to 1")
    return share


def _digest(document: dict[str, Any], name: str) -> str:
    if not name.isprintable():  # it stands in messages
        raise ValueError(f"a file can't have the name {name!r}")
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
