"""The labels of a model's versions, in the `labels.json` beside them: which version each names."""

import json
import re
from pathlib import Path
from typing import Any

from serving.errors import ConfigurationError
from serving.model.repository import LABELS
from serving.system.files import read_regular

STABLE, CANARY = "stable", "canary"
"""The label of the default version, and that of the version that gets a share of the calls."""
_MAX_BYTES = 64 << 10
_LABEL = re.compile(r"[A-Za-z_][\w.-]{0,63}", re.ASCII)
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


Labels = tuple[dict[str, str], float]
"""The version of each label, and the share of the calls that go to the canary."""


def read_labels(model_dir: Path) -> Labels:
    """Read the labels of a model; there are none without a file.

    Raises:
        ConfigurationError: the file can't be read or used; the text is one line.
    """
    try:
        data = read_regular(model_dir / LABELS, _MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return {}, 0.0
    except OSError as err:
        raise ConfigurationError(f"can't read {LABELS}: {err.strerror}") from err
    try:
        return _labels_of(json.loads(data, object_pairs_hook=_object))
    except (ValueError, RecursionError) as err:
        raise ConfigurationError(f"can't use {LABELS}: {str(err)[:200]}") from err


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{min(twice)!r} stands there twice")
    return dict(pairs)


def _labels_of(document: object) -> Labels:
    if not isinstance(document, dict):
        raise ValueError("an object of labels is expected")
    share = 0.0
    versions = {}
    for label, version in document.items():
        if not _LABEL.fullmatch(label):
            raise ValueError(f"{label!r} is no label: letters, digits, _ . - (first no digit)")
        if label == CANARY and isinstance(version, dict):
            if version.keys() != {"version", "share"}:
                raise ValueError(f"{CANARY} has a version and a share, got {sorted(version)}")
            version, share = version["version"], _share(version["share"])
        if not isinstance(version, str) or not _VERSION.fullmatch(version):
            raise ValueError(f'{label} must be a version such as "3", got {version!r}')
        versions[label] = version
    return versions, share


def _share(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"the share must be from 0 to 1, got {value!r}")
    return float(value)
