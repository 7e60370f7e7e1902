"""Models without a manifest that classify pictures: by a classifier.json, or the command line."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from serving.errors import ConfigurationError
from serving.model.loaded import LoadedModel
from serving.model.manifest import Manifest
from serving.model.preprocessing import Preprocessing, of_graph
from serving.model.repository import CLASSIFIER
from serving.system.files import read_regular
from serving.tensors import TensorSignature

_log = logging.getLogger(__name__)
_MAX_BYTES = 1 << 20


def described(file: Path, manifest: Manifest, tensors: TensorSignature) -> Manifest:
    """Return the description of a version, with a `classifier.json` for its pictures.

    Raises:
        ConfigurationError: the file is unreadable, or it doesn't fit the graph.
    """
    if manifest.signature is not None:
        _log.warning(
            "model %s version %s: %s is not used: the manifest describes its pictures",
            manifest.name,
            manifest.version,
            CLASSIFIER,
        )
        return manifest
    try:
        document = json.loads(_read_text(file))
        if not isinstance(document, dict):
            raise ValueError(f"a JSON object expected, got {type(document).__name__}")
        return replace(manifest, pictures=of_graph(tensors, document))
    except (ValueError, TypeError, OverflowError, RecursionError) as err:
        raise ConfigurationError(f"{file}: {err}") from err


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureInputs:
    """The command line's description of models without a manifest."""

    is_image: bool = False
    """Whether those that can take pictures do."""
    labels: tuple[str, ...] = ()
    """The names of their classes."""

    def of(self, model: LoadedModel) -> Preprocessing | None:
        """Return how pictures become a model's input; None if it takes none.

        Raises:
            ValueError: it can't take pictures, though the command line says that it does.
        """
        pictures = model.pictures
        if not self.is_image or model.manifest.signature is not None:
            return pictures
        if pictures is None:
            return of_graph(model.tensors, {"labels": self.labels})
        return replace(pictures, labels=pictures.labels or self.labels)

    def find(self, model: LoadedModel) -> Preprocessing | None:
        """Return the same; None, too, if it can't take pictures."""
        try:
            return self.of(model)
        except ValueError:
            return None

    def require_one(self, models: Mapping[str, LoadedModel]) -> None:
        """Check that the command line is right about a model, if it says something.

        Raises:
            ConfigurationError: it is about none.
        """
        reasons = []
        for name, model in models.items():
            try:
                if model.manifest.signature is None and self.of(model):
                    return
            except ValueError as err:
                reasons.append(f"model {name}: {err}")
        if self.is_image:
            raise ConfigurationError(f"--input image: {'; '.join(reasons[:3]) or 'no such model'}")


def read_labels(file: Path | None) -> tuple[str, ...]:
    """Read a text for each class, one a line.

    Raises:
        ConfigurationError: the file can't be read.
    """
    return () if file is None else tuple(_read_text(file).splitlines())


def _read_text(file: Path) -> str:
    try:
        return read_regular(file, _MAX_BYTES).decode("utf-8-sig")
    except (OSError, ValueError) as err:
        raise ConfigurationError(f"can't read {file}: {getattr(err, 'strerror', err)}") from err
