"""The model to optimise: its files, and the graph that quantizers take.

They take one graph in one file, with a name for each node, of an opset whose quantized weights may
have a scale for each channel, and with normalizations folded into the convolutions before them.
"""

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

from serving.commandline.installation import not_installed
from serving.errors import ConfigurationError, ModelNotFound
from serving.model import repository
from serving.model.loading import load_model, settings_of
from serving.model.manifest import FILES, MANIFEST
from serving.model.onnx_runtime import runtime
from serving.model.settings import SETTINGS
from serving.system.interrupts import ended_by_sigterm

MAX_BYTES = 2_000_000_000
"""The most that a graph with its weights takes: protobuf's messages end at 2 GiB."""
_LEAST_OPSET = 13
"""The first whose QuantizeLinear has an axis."""
_QUANTIZED = {
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul",
    "ConvInteger", "MatMulInteger", "MatMulNBits", "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM", "QAttention", "QGemm", "GatherBlockQuantized", "MatMulBnb4",
}  # fmt: skip
_WORTH = {
    "Conv",
    "ConvTranspose",
    "MatMul",
    "Gemm",
    "LSTM",
    "Attention",
    "FusedConv",
    "FusedMatMul",
}
"""Operators whose weights take most of a run."""


class NothingToGain(Exception):
    """No quantizer takes the model; the text is one line and says why."""


@dataclass(frozen=True, slots=True, eq=False)
class OptimizedSource:
    """A model in its files."""

    name: str
    """Its name."""
    version: str
    """Its version; that of a file is 1."""
    folder: Path
    """The folder of its versions, or its file."""
    onnx: bytes
    weights: Mapping[str, bytes]
    digests: Mapping[str, str]
    """SHA-256 of the graph and of files with weights."""
    document: Mapping[str, Any]
    """Its manifest; empty without one."""
    file_name: str
    """What the graph is called in a folder without a manifest."""
    settings: bytes | None
    """Its config.pbtxt."""


def require_extra() -> None:
    """Raise ConfigurationError, with the extra to install, if a package is missing."""
    runtime()  # first: it turns ONNX Runtime's telemetry off
    for module in ("onnx", "onnx_ir"):
        try:
            import_module(module)
        except ModuleNotFoundError as err:
            raise not_installed(err) from None


def read_source(model: Path, version: str | None, max_bytes: int = MAX_BYTES) -> OptimizedSource:
    """Read the model to optimise.

    Args:
        model: an ONNX file, or the folder of a model's versions.
        version: the version; None for the newest that a server would answer with.
        max_bytes: the most of its files.

    Raises:
        ConfigurationError: there is none, it is no ONNX model, or it is too large.
        CorruptModel: it is damaged.
    """
    repository.require_onnx(model)
    model = repository.only_file(model)
    is_file = repository.is_file(model)
    settings = settings_of(model)
    try:
        chosen = version or _newest(model)
        path = model if is_file else repository.file_of(model / chosen, "fp32", settings.file_name)
        size = sum(each.stat().st_size for each in _files_with(path))
        if size > max_bytes:
            raise ConfigurationError(
                f"{model}: {size:,} bytes; quantizers take at most {max_bytes:,}"
            )
        manifest, onnx, weights = repository.load(
            model, chosen, file_name=settings.file_name, is_described=False
        )
    except ModelNotFound as err:
        raise ConfigurationError(str(err)) from err
    described = model / chosen / MANIFEST
    document = json.loads(described.read_bytes()) if not is_file and described.exists() else {}
    companion = repository.companion(model, SETTINGS)
    digests = {path.name: manifest.digests[FILES["fp32"]]}
    return OptimizedSource(
        manifest.name,
        chosen,
        model,
        onnx,
        weights,
        digests | {name: manifest.digests[name] for name in weights},
        document,
        FILES["fp32"] if document or is_file else path.name,
        companion.read_bytes() if companion is not None and companion.is_file() else None,
    )


def _newest(model: Path) -> str:
    """Return the version that a server answers with by itself."""
    found = repository.versions(model)
    return found[0] if len(found) == 1 else load_model(model, tries_file=True).version


def _files_with(path: Path) -> list[Path]:
    """Return a graph's file, and what may be its weights: large files beside it."""
    if not path.is_file():
        return []
    others = [each for each in path.parent.iterdir() if each.suffix != ".onnx" and each.is_file()]
    has_weights = b"location" in path.read_bytes()
    return [path, *(others if has_weights else [])]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep quantizers from printing, and from logging advice by a handler of their own.

    One of their modules sets the root logger up when it is imported.
    """
    root = logging.root
    before, handlers, level = root.manager.disable, list(root.handlers), root.level
    with redirect_stdout(StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)
            root.handlers[:] = handlers
            root.setLevel(level)


def prepared(source: OptimizedSource, folder: Path) -> Path:
    """Write the graph that quantizers take.

    Args:
        source: the model.
        folder: where to write it, and what is made on the way.

    Returns:
        The file.

    Raises:
        NothingToGain: it is quantized already, or has nothing to quantize.
        ConfigurationError: it can't be prepared.
    """
    import onnx  # late, here and below: the extra
    from onnxruntime.quantization.shape_inference import quant_pre_process

    given = folder / "given.onnx"
    given.write_bytes(source.onnx)
    for name, data in source.weights.items():
        (folder / name).write_bytes(data)
    try:
        model = onnx.load(given)
    except Exception as err:  # of protobuf, or of weights that are not as they should be
        raise ConfigurationError(f"{source.folder}: {_line(err)}") from err
    _require_worth(model)
    whole = folder / "whole.onnx"
    with quiet():
        model = _modern(model)
        onnx.save(model, whole)
        ready = folder / "prepared.onnx"
        try:
            quant_pre_process(str(whole), str(ready), skip_symbolic_shape=True)
        except Exception:  # of shapes that can't be inferred: quantizers take it as it is
            ready = whole
        model = onnx.load(ready)
        _name_nodes(model)
        onnx.save(model, ready)
    return ready


def _require_worth(model: Any) -> None:
    nodes = list(_nodes(model.graph))
    quantized = sorted({each.op_type for each in nodes} & _QUANTIZED)
    if quantized:
        raise NothingToGain(f"it is quantized already: it has {', '.join(quantized)}")
    if not any(each.op_type in _WORTH for each in nodes):
        kinds = sorted({each.domain for each in nodes if each.domain})
        of = f" (its nodes are of {', '.join(kinds)})" if kinds else ""
        raise NothingToGain(f"it has no convolution or matrix product to quantize{of}")
    floats = (1, 10, 16)
    if not any(each.data_type in floats for each in model.graph.initializer) and not any(
        each.op_type == "Constant" for each in nodes
    ):
        raise NothingToGain("it has no weights of floats")


def _nodes(graph: Any) -> Iterator[Any]:
    """Yield the nodes of a graph and of those inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _modern(model: Any) -> Any:
    """Return a model of an opset that quantizers can write: of an older one it is converted."""
    import onnx

    own = [each for each in model.opset_import if each.domain in ("", "ai.onnx")]
    if not own or own[0].version >= _LEAST_OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, _LEAST_OPSET)
    except Exception:  # an operator that the converter does not know: quantizers say what they lack
        return model


def _name_nodes(model: Any) -> None:
    """Give each node a name of its own: quantizers leave nodes out by their names."""
    seen: set[str] = set()
    for number, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_node_{number}"
        seen.add(node.name)


def _line(err: BaseException) -> str:
    return " ".join(str(err).split())[:200] or type(err).__name__


@contextmanager
def workplace() -> Iterator[Path]:
    """Make a folder for what is made on the way; gone afterwards, after Ctrl-C and SIGTERM, too."""
    with (
        ended_by_sigterm(),
        tempfile.TemporaryDirectory(prefix="optimize-", ignore_cleanup_errors=True) as name,
    ):
        before = tempfile.tempdir
        tempfile.tempdir = name  # for the quantizers' own, which a killed one leaves
        try:
            yield Path(name)
        finally:
            tempfile.tempdir = before


def write_version_of(source: OptimizedSource, folder: Path, file: Path | bytes) -> Path:
    """Write a graph as the only version of a model, to be loaded as a server does.

    Args:
        source: the model, whose name and settings it gets.
        folder: a new folder for it.
        file: the graph.

    Returns:
        The model's folder.
    """
    model = folder / source.name
    (model / "1").mkdir(parents=True)
    target = model / "1" / source.file_name
    if isinstance(file, bytes):
        target.write_bytes(file)
        for name, data in source.weights.items():
            (target.parent / name).write_bytes(data)
    else:
        os.link(file, target)
    if source.settings is not None:
        (model / SETTINGS).write_bytes(source.settings)
    return model
