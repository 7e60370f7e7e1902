"""Model versions, good and bad, published into a copy of the repository."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx


def publish(model_dir: Path, version: str, onnx_bytes: bytes) -> None:
    """Publish a version with these bytes, its manifest otherwise that of version 1."""
    manifest = json.loads((model_dir / "1" / "manifest.json").read_text())
    manifest["version"] = version
    manifest["files"] = {"model.onnx": hashlib.sha256(onnx_bytes).hexdigest()}
    (model_dir / version).mkdir()
    (model_dir / version / "model.onnx").write_bytes(onnx_bytes)
    (model_dir / version / "manifest.json").write_text(json.dumps(manifest))


def tampered(model_dir: Path, *, seed: int = 0) -> bytes:
    """A valid model of the right shape with other weights in its first layer."""
    model = onnx.load(str(model_dir / "1" / "model.onnx"))
    kernel = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    noise = np.random.default_rng(seed).normal(size=kernel.dims).astype(np.float32)
    kernel.raw_data = noise.tobytes()
    return model.SerializeToString()


def good(model_dir: Path, version: str) -> None:
    """Publish a version that answers as version 1 does."""
    publish(model_dir, version, (model_dir / "1" / "model.onnx").read_bytes())


def _garbage(model_dir: Path, version: str) -> None:
    publish(model_dir, version, b"no model")


def _truncated(model_dir: Path, version: str) -> None:
    good(model_dir, version)
    with (model_dir / version / "model.onnx").open("r+b") as file:
        file.truncate(100_000)


def _bit_flipped(model_dir: Path, version: str) -> None:
    good(model_dir, version)
    with (model_dir / version / "model.onnx").open("r+b") as file:
        file.seek(5000)
        (byte,) = file.read(1)
        file.seek(5000)
        file.write(bytes([byte ^ 1]))


def _wrong_weights(model_dir: Path, version: str) -> None:
    publish(model_dir, version, tampered(model_dir))


def _wrong_shape(model_dir: Path, version: str) -> None:
    model = onnx.load(str(model_dir / "1" / "model.onnx"))
    model.graph.output[0].name = model.graph.node[-1].output[0] = "scores"
    publish(model_dir, version, model.SerializeToString())


def _external_data(model_dir: Path, version: str) -> None:
    """Weights that would be read from the folder above, where version 1 lies."""
    model = onnx.load(str(model_dir / "1" / "model.onnx"))
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > 1000:
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="../1/model.onnx")
    publish(model_dir, version, model.SerializeToString())


def _no_manifest(model_dir: Path, version: str) -> None:
    good(model_dir, version)
    (model_dir / version / "manifest.json").unlink()


def _foreign_manifest(model_dir: Path, version: str) -> None:
    good(model_dir, version)
    manifest = (model_dir / "1" / "manifest.json").read_bytes()
    (model_dir / version / "manifest.json").write_bytes(manifest)


BAD: dict[str, Callable[[Path, str], None]] = {
    "garbage": _garbage,
    "truncated": _truncated,
    "bit flipped": _bit_flipped,
    "wrong weights": _wrong_weights,
    "wrong shape": _wrong_shape,
    "external data": _external_data,
    "no manifest": _no_manifest,
    "foreign manifest": _foreign_manifest,
}
"""Every way in which a version can be bad, as what publishes it."""
