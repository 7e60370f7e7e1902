"""Reads models from disk: versions, manifests, digests. Runs nothing.

    <model_dir>/<version>/model.onnx, manifest.json, ...      version = 1, 2, 3 ...
    <name>.onnx                                               version 1, without a manifest
    <name>/MLmodel, <name>/model.onnx                         the same: MLflow's, KServe's

A graph needs no manifest; if there is one, the files are those that it describes.

The bytes that were hashed are the bytes that are returned, so a file that changes in between has no
effect.
"""

import errno
import hashlib
import logging
import os
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from serving.applications import MODELS, installed
from serving.commandline import installation
from serving.config import ModelConfig, Precision
from serving.errors import ConfigurationError, CorruptModel, ModelNotFound
from serving.model.agreement import GOLDEN_FILE
from serving.model.manifest import FILES, MANIFEST, MAX_MANIFEST_BYTES, Manifest
from serving.model.manifest_file import parse_manifest
from serving.proof.onnx_fields import outline
from serving.proof.onnx_file import external_files, parse_model
from serving.system.files import read_regular

_log = logging.getLogger(__name__)
LABELS = "labels.json"
CLASSIFIER = "classifier.json"
"""A model's companion: fields of `Preprocessing`, all of them optional."""
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
NO_ONNX_FILE = "{}: expected an ONNX file, whose name ends in .onnx"
VERSION_OF_FILE = "1"
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
"""Characters that names of models, which become parts of addresses and of lines, go without."""
_MAX_NAME = 100
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # Windows has none
_MAX_MLMODEL_BYTES = 1 << 20
MAX_BYTES = ModelConfig().max_model_bytes
"""The most bytes of a model's files: they are in memory while the session is built."""
_KERAS = (
    "`digit-serving export {file} --name NAME` makes one of a Keras model, and "
    "`digit-serving serve --models models --model NAME` serves it"
)
_TORCH = "torch.onnx.export(model, inputs, 'model.onnx', dynamo=True) makes one of a PyTorch model"
_OF_OTHERS = {
    ".keras": _KERAS, ".h5": _KERAS, ".hdf5": _KERAS, ".pt": _TORCH, ".pth": _TORCH,
    ".safetensors": _TORCH, ".pb": "python -m tf2onnx.convert --saved-model DIR makes one",
    ".tflite": "python -m tf2onnx.convert --tflite FILE makes one",
    ".pkl": "skl2onnx.to_onnx(model, sample) makes one of a model of scikit-learn",
    ".joblib": "skl2onnx.to_onnx(model, sample) makes one of a model of scikit-learn",
}  # fmt: skip
"""Files of other frameworks by their suffixes, and how they become ONNX."""


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
    """Say where a model is, if one is near, else what was looked for and found."""
    root = model_dir.parent
    advice = _near(root, model_dir)
    if not advice and model_dir.name in installed(MODELS):
        advice = _training(root)
    return advice or _found(model_dir, f"1/{FILES['fp32']}, {FILES['fp32']} or MLmodel")


def none_in(root: Path) -> ModelNotFound:
    """Build the error for a repository without a model, where none was named."""
    advice = _near(root) or _training(root)
    expected = f"NAME/1/{FILES['fp32']}, NAME.onnx or NAME/MLmodel"
    return ModelNotFound(f"no model in {root}{advice or _found(root, expected)}")


def _near(*folders: Path) -> str:
    """Name the options for the first model in a folder or in its own folders."""
    with suppress(OSError):
        inner = (path / name for path in folders for name in sorted(_folders(path)))
        for folder in (folders[0], *inner):
            numbers = filter(_VERSION.fullmatch, _folders(folder))
            if any((folder / number / FILES["fp32"]).is_file() for number in numbers):
                return f", but {folder} is one: --models {folder.parent} --model {folder.name}"
    return ""


def _training(root: Path) -> str:
    """Name the commands that fill the usual repository of a checkout."""
    is_here = root == ModelConfig().models and installation.in_checkout()
    return f": run {installation.run('train', 'export')}" if is_here else ""


def _found(folder: Path, expected: str) -> str:
    found = "no such folder"
    with suppress(OSError):
        found = ", ".join(sorted(os.listdir(folder))[:5]) or "nothing"
    return f": expected {expected} there, found {found}"


def _folders(folder: Path) -> list[str]:
    """List the names of the folders in a folder; none if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if os.path.isdir(entry)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def find_root(model: str, root: Path) -> Path:
    """Return the usual repository if it has the model, else an application's that has it."""
    try:
        versions(find(root, model))
    except ModelNotFound:
        bundled: Path = installed(MODELS).get(model, root)
        return bundled
    return root


def find(root: Path, model: str) -> Path:
    """Return the place of a repository's model: its folder of versions, or its file."""
    if _may_be_model(root / model):
        return root / model
    return models_in(root).get(model, root / model)


def only_file(model_dir: Path) -> Path:
    """Return the file of a folder that has no versions and one model; else the folder itself."""
    if not model_dir.is_dir() or _may_be_model(model_dir):
        return model_dir
    return next(iter(_files_of(model_dir)), model_dir)


def models_in(root: Path) -> dict[str, Path]:
    """Return the folders of a repository that have a version, and its files, by the models' names.

    Raises:
        ConfigurationError: the repository can't be read, or two models have one name.
    """
    try:
        names = sorted(name for name in os.listdir(root) if not name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as err:
        raise ConfigurationError(f"can't read {root}: {err.strerror}") from err
    if "MLmodel" in names:  # the repository is one model
        return {_safe(root.absolute().name): file for file in _files_of(root)}
    paths: dict[str, Path] = {}
    for name in names:
        path = root / name
        is_model = is_file(path) or _may_be_model(path)
        if not is_model and _VERSION.fullmatch(name):
            continue  # the root is a model's folder, which a line should say
        for each in [path] if is_model else _files_of(path):
            _add(paths, _safe(path.stem) if is_file(path) else name, each)
    return paths


def _files_of(folder: Path) -> list[Path]:
    """Return the file of a folder without versions: model.onnx, or the one that MLmodel names."""
    try:
        text = read_regular(folder / "MLmodel", _MAX_MLMODEL_BYTES).decode("utf-8", "replace")
    except OSError:
        path = folder / FILES["fp32"]
    else:
        named = re.search(r"(?m)^ +data: *([^\s'\"]+) *$", text[text.find("onnx:") :])
        name = Path(named[1] if named else FILES["fp32"])
        path = folder / name
        if name.is_absolute() or ".." in name.parts:
            return []
    return [path] if path.is_file() else []


def _add(paths: dict[str, Path], name: str, path: Path) -> None:
    if name in paths:
        raise ConfigurationError(
            f"two models are named {name}: {paths[name]} and {path}; rename one, or put each into "
            "a folder of its own below --models"
        )
    paths[name] = path


def companion(model: Path, name: str) -> Path | None:
    """Return the file of this name that belongs to a model; None if there is none.

    In a folder of versions it is beside them. Beside an ONNX file it is net.config.pbtxt for
    net.onnx; or config.pbtxt itself if there is no other model in the folder.
    """
    if not is_file(model):
        return model / name
    folder = model.absolute().parent
    own = folder / f"{model.stem}.{name}"
    if os.path.lexists(own):
        return own
    if not os.path.lexists(folder / name):
        return None
    others = [each for each in sorted(os.listdir(folder)) if is_file(folder / each)]
    if others == [model.name]:
        return folder / name
    _log.warning(
        "model %s: %s is not used: %d models are beside it; name it %s for this one",
        model.stem,
        name,
        len(others),
        own.name,
    )
    return None


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
    paths = models_in(root) if names is None else {name: find(root, name) for name in names}
    if names is None and not paths:
        raise none_in(root)
    for file in config.files:
        require_onnx(file)
        _add(paths, _safe(file.stem if is_file(file) else file.absolute().name), only_file(file))
    if config.served_name is None:
        return paths
    if len(paths) > 1:
        raise ConfigurationError(f"served_name is for one model, not for {', '.join(paths)}")
    return dict.fromkeys([config.served_name], *paths.values())


def require_onnx(file: Path) -> None:
    """Refuse a file of another kind by its name.

    Raises:
        ConfigurationError: it is one; the text says how it becomes ONNX, where that is known.
    """
    if (advice := _OF_OTHERS.get(file.suffix.lower())) is not None:
        raise ConfigurationError(f"{file}: expected an ONNX file: {advice.format(file=file)}")
    if file.is_file() and not is_file(file):
        raise ConfigurationError(NO_ONNX_FILE.format(file))


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]", "-", name, flags=re.ASCII)


def load(
    model_dir: Path,
    version: str,
    precision: Precision = "fp32",
    file_name: str | None = None,
    max_bytes: int = MAX_BYTES,
    *,
    is_described: bool = True,
) -> tuple[Manifest, bytes, dict[str, bytes]]:
    """Read one version, and verify its digests if it has a manifest.

    Args:
        model_dir: the model's directory, or an ONNX file.
        version: the version's number.
        precision: the variant.
        file_name: the name of the file of a version without a manifest; None for the usual one.
        max_bytes: the most of the file and of weights beside it together.
        is_described: whether it needs a manifest.

    Returns:
        The manifest, the content of the variant's ONNX file, and that of files with weights by
        their location.

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
    elif path is not model_dir and precision == "fp32":
        path = _file_of(version_dir, file_name)
    if not has_variant:
        text = f"version {version} has no {precision} variant"
        if manifest is not None and manifest.optimized:
            text += f": --precision fp32 serves what it is ({manifest.optimized})"
        raise ConfigurationError(text)
    onnx = _read(path, max_bytes)
    weights = _read_weights(path.parent, onnx, max_bytes - len(onnx))
    contents = {path.name: onnx, **weights}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    if manifest is None:
        digests[FILES[precision]] = digests[path.name]
        return Manifest.of_graph(_name_of(model_dir), version, digests), onnx, weights
    for name, digest in digests.items():
        expected = manifest.digests.get(name, "none")
        if digest != expected:
            raise CorruptModel(f"{version}/{name}: expected SHA-256 {expected}, got {digest}")
    if manifest.comparison is not None:
        manifest = _with_golden(version_dir, manifest)
    return manifest, onnx, weights


def _with_golden(version_dir: Path, manifest: Manifest) -> Manifest:
    """Read golden.npz, whose digest and comparison a manifest states."""
    from serving.model import golden  # late: few versions have one

    data = _read(version_dir / GOLDEN_FILE, golden.MAX_GOLDEN_BYTES)
    digest, expected = hashlib.sha256(data).hexdigest(), manifest.digests[GOLDEN_FILE]
    if digest != expected:
        place = f"{version_dir.name}/{GOLDEN_FILE}"
        raise CorruptModel(f"{place}: expected SHA-256 {expected}, got {digest}")
    assert manifest.comparison is not None
    found = golden.read_golden(data, manifest.comparison, manifest.gated_on)
    return replace(manifest, golden=found)


def file_of(version_dir: Path, precision: Precision, file_name: str | None) -> Path:
    """Return the file of a version's variant; see `load`."""
    if precision != "fp32" or os.path.lexists(version_dir / MANIFEST):
        return version_dir / FILES[precision]
    return _file_of(version_dir, file_name)


def _file_of(version_dir: Path, file_name: str | None) -> Path:
    """Return the file of a version without a manifest.

    It is model.onnx or the one that its settings name; or the only ONNX file, as OpenVINO's server
    takes it; or it is in a folder of its own name with its weights, as Triton takes it.
    """
    path = version_dir / (file_name or FILES["fp32"])
    with suppress(PermissionError):  # reading the file will say so
        if file_name is None and not os.path.exists(path):
            others = [each for each in version_dir.iterdir() if is_file(each)]
            path = others[0] if len(others) == 1 else path
        path = path / path.name if os.path.isdir(path) else path
    return path


def _read_weights(folder: Path, onnx: bytes, max_bytes: int) -> dict[str, bytes]:
    """Read the files in which a model keeps weights, as PyTorch writes them, from its folder alone.

    Raises:
        CorruptModel: one is elsewhere, a link or no regular file, is missing, or they are too
            large.
    """
    weights: dict[str, bytes] = {}
    graph = outline(onnx)
    if b"location" not in graph:
        return weights

    for name in sorted(external_files(parse_model(graph))):
        shown = repr(name[:_MAX_NAME])
        if name != Path(name).name or name.startswith(".") or "\0" in name or "\\" in name:
            raise CorruptModel(f"weights in {shown}: only files beside the model are read")
        try:
            weights[name] = read_regular(folder / name, max_bytes, _NO_LINK)
        except OSError as err:
            if err.errno == errno.ELOOP:
                raise CorruptModel(f"weights in {shown}: a symbolic link is not followed") from err
            raise CorruptModel(
                f"weights in {shown}, which belongs beside the model: {err.strerror}; in PyTorch, "
                "torch.onnx.export(..., external_data=False) writes one file"
            ) from err
        max_bytes -= len(weights[name])
    return weights


def _name_of(model: Path) -> str:
    """Return the name of a model that has no manifest: that of its file or folder, made safe."""
    name = model.stem if is_file(model) else model.name
    return _UNSAFE.sub("-", name)[:_MAX_NAME].strip("-.") or "model"


def load_manifest(version_dir: Path) -> Manifest:
    """Read and check a version's manifest.

    Raises:
        CorruptModel: it is missing, unreadable, malformed, or belongs to another version or model.
    """
    manifest = parse_manifest(_read(version_dir / MANIFEST, MAX_MANIFEST_BYTES))
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
