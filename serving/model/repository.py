"""Reads models from disk: versions, manifests, digests. Runs nothing.

    <model_dir>/<version>/model.onnx, manifest.json, ...      version = 1, 2, 3 ...
    <name>.onnx                                               version 1, without a manifest

A graph needs no manifest; if there is one, the files are those that it describes.

The bytes that were hashed are the bytes that are returned, so a file that changes in between has no
effect.
"""

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path

from serving.commandline import installation
from serving.config import ModelConfig, Precision
from serving.errors import ConfigurationError, CorruptModel, ModelNotFound
from serving.model.manifest import FILES, MANIFEST, MAX_BYTES, Manifest, parse_manifest
from serving.system.files import read_regular

PRETRAINED = Path(__file__).parent.with_name("pretrained")
"""The bundled repository: a model that is installed with the package."""

_VERSION = re.compile(r"[1-9][0-9]{0,8}")
VERSION_OF_FILE = "1"
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
"""Characters that names of models, which become parts of addresses and of lines, go without."""
_MAX_NAME = 100
_MAX_MODEL_BYTES = 256 << 20
"""The file is in memory while the session is built."""


def versions(model_dir: Path) -> list[str]:
    """List the versions of a model's directory, or of an ONNX file, newest first.

    Raises:
        ModelNotFound: the directory doesn't exist or has no version; the text has the command to
            run.
        ConfigurationError: the directory can't be read.
    """
    if is_file(model_dir):
        return [VERSION_OF_FILE]
    try:
        found = [name for name in _folders(model_dir) if _VERSION.fullmatch(name)]
    except OSError as err:
        raise ConfigurationError(f"can't read {model_dir}: {err.strerror}") from err
    if not found:
        raise ModelNotFound(f"no model in {model_dir}{_instead(model_dir)}")
    return sorted(found, key=int, reverse=True)


def is_file(model: Path) -> bool:
    """Return whether a model is an ONNX file, which has one version, instead of a directory."""
    return model.suffix.lower() == ".onnx" and not model.is_dir()


def _instead(model_dir: Path) -> str:
    """Say where a model is, if one is near a directory that has none, else how to make one."""
    root = model_dir.parent
    with suppress(OSError):
        near = (path / name for path in (root, model_dir) for name in sorted(_folders(path)))
        for folder in (root, *near):
            numbers = filter(_VERSION.fullmatch, _folders(folder))
            if any((folder / number / FILES["fp32"]).is_file() for number in numbers):
                return f", but in {folder}: --models {folder.parent} --model {folder.name}"
    return f": run {installation.run('train', 'export')}"


def _folders(folder: Path) -> list[str]:
    """List the names of the folders in a folder; none if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if os.path.isdir(entry)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def find_root(model: str, root: Path) -> Path:
    """Return the usual repository if it has the model, else the bundled one if that has it."""
    for candidate in (root, PRETRAINED):
        try:
            versions(candidate / model)
        except ModelNotFound:
            continue
        return candidate
    return root


def models_in(root: Path) -> dict[str, Path]:
    """Return the folders of a repository that have a version, by the models' names.

    Raises:
        ConfigurationError: the repository can't be read.
    """
    try:
        names = sorted(name for name in os.listdir(root) if not name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as err:
        raise ConfigurationError(f"can't read {root}: {err.strerror}") from err
    return {name: root / name for name in names if _may_be_model(root / name)}


def _may_be_model(folder: Path) -> bool:
    try:
        return not folder.is_file() and bool(versions(folder))
    except ModelNotFound:
        return False
    except ConfigurationError:  # it can't be read: a line should say so
        return True


def named_models(config: ModelConfig, root: Path) -> dict[str, Path]:
    """Return the models to serve by name: folders of a repository, and files.

    Raises:
        ModelNotFound: the repository has none.
        ConfigurationError: two have one name.
    """
    names = config.names
    paths = models_in(root) if names is None else {name: root / name for name in names}
    if names is None and not paths:
        versions(root / config.model)  # raises, and says where there is one
    for file in config.files:
        name = re.sub(r"[^\w.-]", "-", file.stem, flags=re.ASCII)
        if name in paths:
            raise ConfigurationError(f"two models are named {name}: {paths[name]} and {file}")
        paths[name] = file
    if config.served_name is None:
        return paths
    if len(paths) > 1:
        raise ConfigurationError(f"served_name is for one model, not for {', '.join(paths)}")
    return dict.fromkeys([config.served_name], *paths.values())


def load(
    model_dir: Path, version: str, precision: Precision = "fp32", file_name: str | None = None,
    *, is_described: bool = True,
) -> tuple[Manifest, bytes]:  # fmt: skip
    """Read one version, and verify its digests if it has a manifest.

    Args:
        model_dir: the model's directory, or an ONNX file.
        version: the version's number.
        precision: the variant.
        file_name: the name of the file of a version without a manifest; None for the usual one.
        is_described: whether it needs a manifest.

    Returns:
        The manifest, and the content of the variant's ONNX file.

    Raises:
        ModelNotFound: no such version; anything but a number is refused without reading.
        ConfigurationError: the version has no such variant.
        CorruptModel: a file is missing or unreadable, or differs from the manifest.
    """
    version_dir, path = model_dir / version, model_dir
    if is_file(model_dir):
        is_there, is_described = version == VERSION_OF_FILE and model_dir.exists(), False
    else:
        is_there = _VERSION.fullmatch(version) is not None and os.path.isdir(version_dir)
        path = version_dir / FILES[precision]
    if path is model_dir and not model_dir.exists():
        raise ModelNotFound(f"there is no file {model_dir}")
    if not is_there:
        raise ModelNotFound(f"model {model_dir.name!r} has no version {version[:40]!r}")
    manifest, has_variant = None, precision == "fp32" or (path is not model_dir and path.exists())
    if is_described or os.path.lexists(version_dir / MANIFEST):
        manifest = load_manifest(version_dir)
        has_variant = path.name in manifest.digests
    elif file_name and path is not model_dir and precision == "fp32":
        path = version_dir / file_name
    if not has_variant:
        raise ConfigurationError(f"version {version} has no {precision} variant")
    onnx = _read(path, _MAX_MODEL_BYTES)
    digest = hashlib.sha256(onnx).hexdigest()
    if manifest is None:
        return Manifest.of_graph(_name_of(model_dir), version, {FILES[precision]: digest}), onnx
    if digest != manifest.digests[path.name]:
        raise CorruptModel(
            f"{version}/{path.name}: expected SHA-256 {manifest.digests[path.name]}, got {digest}"
        )
    return manifest, onnx


def _name_of(model: Path) -> str:
    """Return the name of a model that has no manifest: that of its file or folder, made safe."""
    name = model.stem if is_file(model) else model.name
    return _UNSAFE.sub("-", name)[:_MAX_NAME].strip("-.") or "model"


def load_manifest(version_dir: Path) -> Manifest:
    """Read and check a version's manifest.

    Raises:
        CorruptModel: it is missing, unreadable, malformed, or belongs to another version or model.
    """
    manifest = parse_manifest(_read(version_dir / MANIFEST, MAX_BYTES))
    if manifest.version != version_dir.name:
        raise CorruptModel(f"{version_dir.name}/{MANIFEST} is that of version {manifest.version}")
    model_dir = version_dir.absolute().parent
    if manifest.name not in (model_dir.name, model_dir.resolve().name):  # or a symbolic link to it
        raise CorruptModel(
            f"{version_dir.name}/{MANIFEST} is that of model {manifest.name!r}, "
            f"expected {model_dir.name!r}"
        )
    return manifest


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        return read_regular(path, max_bytes)
    except OSError as err:
        raise CorruptModel(f"{path.parent.name}/{path.name}: {err.strerror}") from err
