"""`serving.publish`: an ONNX file, or a Keras model, becomes the next version of a model."""

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from serving.cli.doors import publish_keras
from serving.errors import ConfigurationError, ModelNotFound
from serving.model import repository
from serving.model.manifest import FILES
from serving.model.signatures import (
    MARK,
    GraphSignature,
    difference,
    find_signature,
    newest_accepted,
    read_graph,
)
from serving.publishing.writer import write_version
from serving.tensors import Signature

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NO_MANIFEST: Mapping[str, Any] = {}
_KERAS_FILES = (".keras", ".h5", ".hdf5")
_MARKED = b"Published as a new signature: callers of the version below need a change.\n"


def publish(
    model: Any, name: str, *, models: str | Path = "models", new_signature: bool = False
) -> Path:
    """Publish a model as the next version in a repository, which servers load at a reload.

    The version is seen whole or not at all, and nothing is written of a model that is refused. An
    ONNX file is copied with the weights in files beside it. A Keras model is converted and compared
    with Keras on drawn rows, as `digit-serving export` does; that needs the extra `train`.

    Args:
        model: the path of an ONNX or a Keras file, or a Keras model.
        name: the model's name in the repository: up to 100 letters, digits and `._-`.
        models: the repository's root; the version becomes models/name/N/, N one above the highest
            there. Created if missing.
        new_signature: whether inputs and outputs may differ from those of the newest version so
            that its callers can't go on.

    Returns:
        The new version's folder.

    Raises:
        ConfigurationError: the name, the model or its signature can't be used, an extra is missing,
            or the repository can't be written.
        CorruptModel: the ONNX file, or one with its weights, is damaged or missing.
    """
    require_name(name)
    root = Path(models)
    if not isinstance(model, str | Path):
        if not _is_keras(model):
            got = type(model).__name__
            raise ConfigurationError(
                f"model: expected the path of an ONNX or a Keras file, or a Keras model, got {got}"
            )
        return publish_keras(model, name, root, is_new_signature=new_signature)
    path = Path(model)
    if path.suffix.lower() in _KERAS_FILES:
        if not path.is_file():
            raise ConfigurationError(f"there is no file {path}")
        return publish_keras(path, name, root, is_new_signature=new_signature)
    files = _onnx_files(path)
    files |= mark_of(files[FILES["fp32"]], root / name, is_new_allowed=new_signature)
    try:
        return write_version(root / name, lambda _: files)
    except OSError as err:
        reason = f"not published, can't write {root / name}: {err.strerror}"
        raise ConfigurationError(reason) from err


def require_name(name: str) -> None:
    """Raise ConfigurationError for a name that is none of a model in a repository."""
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"name: expected up to 100 letters, digits and ._-, got {name[:120]!r}"
        )


def _is_keras(model: object) -> bool:
    """Return whether an object is a Keras model, without an import of Keras."""
    names = {f"{each.__module__.partition('.')[0]}.{each.__name__}" for each in type(model).__mro__}
    return "keras.Model" in names


def _onnx_files(path: Path) -> dict[str, bytes]:
    """Read an ONNX file, and those with its weights, by the names that they get."""
    repository.require_onnx(path)
    if not repository.is_file(path):
        raise ConfigurationError(repository.NO_ONNX_FILE.format(path))
    try:
        _, data, weights = repository.load(path, repository.VERSION_OF_FILE)
    except ModelNotFound as err:
        raise ConfigurationError(str(err)) from err
    if FILES["fp32"] in weights:
        raise ConfigurationError(f"{path}: a file with weights has the name {FILES['fp32']}")
    return {FILES["fp32"]: data, **weights}


def newest(folder: Path) -> tuple[str, GraphSignature] | None:
    """Return the newest version of a model that is served by itself, and its signature.

    Args:
        folder: the model's, of its versions.

    Returns:
        None if there is none.
    """
    try:
        versions = repository.versions(folder)
    except ModelNotFound:
        return None
    return newest_accepted(folder, versions, lambda version: find_signature(folder, version))


def new_mark() -> Mapping[str, bytes]:
    """Return the file beside a graph that is served although its signature is another one."""
    return {MARK: _MARKED}


def mark_of(
    data: bytes, folder: Path, *, is_new_allowed: bool, document: Mapping[str, Any] = _NO_MANIFEST
) -> Mapping[str, bytes]:
    """Check a graph against the newest version; return the mark, if it is another and may be.

    Args:
        data: the ONNX file.
        folder: the model's, of its versions.
        is_new_allowed: whether it may be another.
        document: the manifest that it gets, if it gets one.

    Returns:
        The files to publish beside it.

    Raises:
        ConfigurationError: it is no ONNX model, or another one and may not be.
    """
    described = document.get("signature")
    images = json.dumps(Signature.of(described).document()) if described else ""
    try:
        signature = GraphSignature(*read_graph(io.BytesIO(data), len(data)), images)
    except (ValueError, DecodeError) as err:
        raise ConfigurationError(f"not published, it is no ONNX model: {err}") from err
    if not signature.outputs:
        raise ConfigurationError("not published, it is no ONNX model: it has no output")
    last = newest(folder)
    reason = None if last is None else difference(last[1], signature)
    if last is None or reason is None:
        return {}
    if is_new_allowed:
        return new_mark()
    raise ConfigurationError(
        f"not published, {reason}: version {last[0]} has {last[1]}, this one {signature}; "
        "new_signature=True publishes it as it is"
    )
