"""Model versions, good and bad, published into a copy of the repository."""

import base64
import hashlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from digit_classifier.predictions import DIGITS


def publish(model_dir, version, onnx_bytes):
    """Publish a version with these bytes, its manifest otherwise that of version 1."""
    manifest = json.loads((model_dir / "1" / "manifest.json").read_text())
    manifest["version"] = version
    manifest["files"] = {"model.onnx": hashlib.sha256(onnx_bytes).hexdigest()}
    manifest.pop("batching", None)  # of another graph
    (model_dir / version).mkdir()
    (model_dir / version / "model.onnx").write_bytes(onnx_bytes)
    (model_dir / version / "manifest.json").write_text(json.dumps(manifest))


def tampered(model_dir, *, seed=0):
    """A valid model of the right shape with other weights in its first layer."""
    model = onnx.load(str(model_dir / "1" / "model.onnx"))
    kernel = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    noise = np.random.default_rng(seed).normal(size=kernel.dims).astype(np.float32)
    kernel.raw_data = noise.tobytes()
    return model.SerializeToString()


def good(model_dir, version):
    """Publish a version that answers as version 1 does."""
    publish(model_dir, version, (model_dir / "1" / "model.onnx").read_bytes())


def _truncated(model_dir, version):
    good(model_dir, version)
    with (model_dir / version / "model.onnx").open("r+b") as file:
        file.truncate(100_000)


def _bit_flipped(model_dir, version):
    good(model_dir, version)
    with (model_dir / version / "model.onnx").open("r+b") as file:
        file.seek(5000)
        (byte,) = file.read(1)
        file.seek(5000)
        file.write(bytes([byte ^ 1]))


def _wrong_shape(model_dir, version):
    model = onnx.load(str(model_dir / "1" / "model.onnx"))
    model.graph.output[0].name = model.graph.node[-1].output[0] = "scores"
    publish(model_dir, version, model.SerializeToString())


def _external_data(model_dir, version):
    """Weights that would be read from the folder above, where version 1 lies."""
    model = onnx.load(str(model_dir / "1" / "model.onnx"))
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > 1000:
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="../1/model.onnx")
    publish(model_dir, version, model.SerializeToString())


def _no_manifest(model_dir, version):
    good(model_dir, version)
    (model_dir / version / "manifest.json").unlink()


def _foreign_manifest(model_dir, version):
    good(model_dir, version)
    manifest = (model_dir / "1" / "manifest.json").read_bytes()
    (model_dir / version / "manifest.json").write_bytes(manifest)


def edit_manifest(model_dir, version, change):
    """Change the manifest of a version that is published already."""
    path = model_dir / version / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def _with_manifest(change):
    def publish_changed(model_dir, version):
        good(model_dir, version)
        edit_manifest(model_dir, version, change)

    return publish_changed


def _with_signature(**changed):
    signature = DIGITS.document() | changed
    return _with_manifest(lambda manifest: manifest.update(signature=signature))


def _keep_one_sample(manifest):
    golden = manifest["golden"]
    golden["images"] = base64.b64encode(base64.b64decode(golden["images"])[:784]).decode()
    golden["probabilities"] = golden["probabilities"][:1]


def _with_last_node(model_dir, version, operator, *inputs, **attributes):
    """Publish version 1 with one more node behind its output, and one golden sample."""
    model = onnx.load(str(model_dir / "1" / "model.onnx"))
    model.graph.node[-1].output[0] = "before"
    model.graph.initializer.extend(inputs)
    names = ["before", *(tensor.name for tensor in inputs)]
    model.graph.node.append(helper.make_node(operator, names, ["probabilities"], **attributes))
    publish(model_dir, version, model.SerializeToString())
    edit_manifest(model_dir, version, _keep_one_sample)


def _one_row(model_dir, version):
    """A model that answers one row, the mean, whatever the batch."""
    axes = helper.make_tensor("axes", onnx.TensorProto.INT64, [1], [0])
    _with_last_node(model_dir, version, "ReduceSum", axes, keepdims=1)


def neighbours(model_dir, version):
    """A model whose rows depend on the others in the batch: a sum over those before each."""
    axis = helper.make_tensor("axis", onnx.TensorProto.INT64, [], [0])
    _with_last_node(model_dir, version, "CumSum", axis)


def endless(model_dir, version):
    """Publish a model that never answers: its output goes through a loop that has no end."""
    model = onnx.load(str(model_dir / "1" / "model.onnx"))
    model.graph.node[-1].output[0] = "before"
    node, tensor, kinds = helper.make_node, helper.make_tensor_value_info, onnx.TensorProto
    body = helper.make_graph(
        [node("Identity", ["go_on"], ["goes_on"]), node("Identity", ["state"], ["next_state"])],
        "body",
        [tensor("number", kinds.INT64, []), tensor("go_on", kinds.BOOL, []),
         tensor("state", kinds.FLOAT, None)],
        [tensor("goes_on", kinds.BOOL, []), tensor("next_state", kinds.FLOAT, None)],
    )  # fmt: skip
    model.graph.initializer.append(helper.make_tensor("true", kinds.BOOL, [], [True]))
    model.graph.node.append(node("Loop", ["", "true", "before"], ["probabilities"], body=body))
    publish(model_dir, version, model.SerializeToString())


SPECIAL: dict[str, Callable[[Path], object]] = {
    "FIFO": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "socket": lambda path: _bind(path),
    "directory": Path.mkdir,
    "64 GiB": lambda path: _make_sparse(path, 64 << 30),
    "symlink loop": lambda path: path.symlink_to(path.name),
}
"""Functions that make something else where a file is expected."""


def _bind(path):
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's path may not be long
        try:
            listener.bind(path.name)
        finally:
            os.chdir(here)


def _make_sparse(path, size):
    with path.open("wb") as file:
        file.truncate(size)


def special(model_dir, version, file_name, kind):
    """Publish a good version in which one file is none."""
    good(model_dir, version)
    (model_dir / version / file_name).unlink()
    SPECIAL[kind](model_dir / version / file_name)


BAD: dict[str, Callable[[Path, str], None]] = {
    "garbage": lambda model_dir, version: publish(model_dir, version, b"no model"),
    "truncated": _truncated,
    "bit flipped": _bit_flipped,
    "wrong weights": lambda model_dir, version: publish(model_dir, version, tampered(model_dir)),
    "wrong shape": _wrong_shape,
    "external data": _external_data,
    "no manifest": _no_manifest,
    "foreign manifest": _foreign_manifest,
    "another model's name": _with_manifest(lambda manifest: manifest.update(name="letters")),
    "empty name": _with_manifest(lambda manifest: manifest.update(name="")),
    "no name": _with_manifest(lambda manifest: manifest.pop("name")),
    "name of 1 MB": _with_manifest(lambda manifest: manifest.update(name="d" * 1_000_000)),
    "long name": _with_manifest(lambda manifest: manifest.update(name="d" * 1000)),
    "manifest over 512 KiB": _with_manifest(lambda manifest: manifest.update(note="d" * 2**19)),
    "no signature": _with_manifest(lambda manifest: manifest.update(signature=None)),
    "pixels of floats": _with_signature(dtype="float32"),
    "another shape": _with_signature(input_shape=[32, 32]),
    "other classes": _with_signature(classes=26),
    "one row for every batch": _one_row,
}
"""Functions that publish a bad version, one for each way to be bad."""
