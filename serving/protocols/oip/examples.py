"""Filled-in requests for a model, as lines that run as they are pasted."""

import json
import math
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from serving.protocols.oip.tensors import MAX_JSON_VALUES
from serving.tensors import Tensor, TensorSignature

_MOST = 64
"""Values of an input that are written out; of larger ones there are zeros, or a file."""
_VALUES: dict[str, Any] = {"b": True, "f": 0.5, "O": "text"}
"""By the kind of numpy's types. Of integers 1: every table has it, and masks take it."""

Shapes = Mapping[str, tuple[int, ...]]
"""Sizes for inputs whose axes are open, by name."""


class Access(NamedTuple):
    """Where a server answers, and what callers need."""

    grpc: str
    """HOST:PORT."""
    http: str = ""
    """Such as "http://127.0.0.1:8080"; empty if it is off."""
    has_tls: bool = False
    has_tokens: bool = False


def shape_of(tensor: Tensor, shapes: Shapes) -> tuple[int, ...]:
    """Return a shape that an input can have: 1 for axes of which nothing is known."""
    return shapes.get(tensor.name, tuple(max(1, size) for size in tensor.shape))


def sample_of(tensor: Tensor, shapes: Shapes) -> Any:
    """Return values for an input, in nested lists; None if they are too many."""
    shape = shape_of(tensor, shapes)
    if math.prod(shape) > _MOST:
        return None
    return np.full(shape, _VALUES.get(tensor.dtype.kind, 1), tensor.dtype).tolist()


def requests_of(
    model: tuple[str, str], tensors: TensorSignature, shapes: Shapes, access: Access
) -> dict[str, str]:
    """Write the same request for several clients.

    Args:
        model: its name, and a version, or "" for the server's choice.
        tensors: its inputs and outputs.
        shapes: those of inputs with open axes.
        access: the server.

    Returns:
        The lines by the client's name; without HTTP none for curl.
    """
    lines = {
        "digit-serving": shell_line(model, tensors, shapes, access),
        "Python": _python(model, tensors, shapes, access),
        "tritonclient": _triton(model, tensors, shapes, access),
    }
    return {"curl": _curl(model, tensors, shapes, access), **lines} if access.http else lines


def request_body(tensors: TensorSignature, shapes: Shapes) -> tuple[dict[str, Any], int]:
    """Return a request as JSON, and how many bytes of zeros follow it."""
    inputs, num_bytes = [], 0
    for tensor in tensors.inputs:
        shape, values = shape_of(tensor, shapes), sample_of(tensor, shapes)
        item = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(shape)}
        if values is None and tensor.datatype != "BYTES":
            size = math.prod(shape) * tensor.dtype.itemsize
            num_bytes += size
            inputs.append({**item, "parameters": {"binary_data_size": size}})
        else:
            flat = ["text"] * math.prod(shape) if values is None else np.ravel(values).tolist()
            inputs.append({**item, "data": flat})
    return {"inputs": inputs}, num_bytes


def shell_line(
    model: tuple[str, str], tensors: TensorSignature, shapes: Shapes, access: Access,
    inputs: list[str] | None = None,
) -> str:  # fmt: skip
    """Write the command of this package; `inputs` are its last words instead of sample values."""
    name, version = model
    words = ["digit-serving", "infer", name, "--target", access.grpc]
    words += ["--version", version] if version else []
    words += ["--tls-ca", "ca.pem"] * access.has_tls
    words += inputs or []
    for tensor in tensors.inputs if inputs is None else ():
        values = sample_of(tensor, shapes)
        shown = f"@{_file_name(tensor)}" if values is None else json.dumps(values)
        words.append(f"{tensor.name}={shown}")
    return ("SERVING_TOKEN=$TOKEN " if access.has_tokens else "") + shlex.join(words)


def _file_name(tensor: Tensor) -> str:
    return "".join(each if each.isalnum() else "-" for each in tensor.name) + ".npy"


def _curl(model: tuple[str, str], tensors: TensorSignature, shapes: Shapes, access: Access) -> str:
    body, num_zeros = request_body(tensors, shapes)
    is_large = any(math.prod(map(abs, each.shape)) > MAX_JSON_VALUES for each in tensors.outputs)
    if is_large:
        body["parameters"] = {"binary_data_output": True}
    text = json.dumps(body)
    words = ["curl"]
    words += ["--cacert", "ca.pem"] * access.has_tls + ["--output", "answer.bin"] * is_large
    command = shlex.join(words)
    if access.has_tokens:
        command += ' -H "Authorization: Bearer $TOKEN"'
    name, version = model
    path = quote(name, safe="") + (f"/versions/{version}" if version else "")
    url = shlex.quote(f"{access.http}/v2/models/{path}/infer")
    if not num_zeros:
        return f"{command} {url} \\\n  -d {shlex.quote(text)}"
    length = len(text.encode())
    return (
        f"{{ printf %s {shlex.quote(text)}; head -c {num_zeros} /dev/zero; }} |\n  {command} "
        f"-H 'Inference-Header-Content-Length: {length}' --data-binary @- {url}"
    )


def _python(
    model: tuple[str, str], tensors: TensorSignature, shapes: Shapes, access: Access
) -> str:
    parts = ", ".join(f"{each.name!r}: {_literal(each, shapes)}" for each in tensors.inputs)
    imports = ["import os"] * access.has_tokens + ["import numpy as np"] * ("np." in parts)
    options = repr(access.grpc) + ', token=os.environ["TOKEN"]' * access.has_tokens
    options += ', tls_ca="ca.pem"' * access.has_tls
    name, version = model
    more = f", version={version!r}" if version else ""
    return "\n".join([
        *imports, "from serving import Client", "", f"with Client({options}) as client:",
        f"    print(client.infer({name!r}, {{{parts}}}{more}))",
    ])  # fmt: skip


def _triton(
    model: tuple[str, str], tensors: TensorSignature, shapes: Shapes, access: Access
) -> str:
    made = [
        f"    ({each.name!r}, {each.datatype!r}, {_array(each, shapes)}),"
        for each in tensors.inputs
    ]
    options = repr(access.grpc) + ', ssl=True, root_certificates="ca.pem"' * access.has_tls
    name, version = model
    more = f", model_version={version!r}" if version else ""
    more += ', headers={"authorization": "Bearer " + os.environ["TOKEN"]}' * access.has_tokens
    return "\n".join([
        *["import os"] * access.has_tokens, "import numpy as np", "from tritonclient import grpc",
        "",
        f"client = grpc.InferenceServerClient({options})", "inputs = []",
        "for name, datatype, array in [", *made, "]:",
        "    inputs.append(grpc.InferInput(name, array.shape, datatype))",
        "    inputs[-1].set_data_from_numpy(array)",
        f"answer = client.infer({name!r}, inputs{more})",
        f"print([answer.as_numpy(name) for name in {[each.name for each in tensors.outputs]}])",
    ])  # fmt: skip


def _literal(tensor: Tensor, shapes: Shapes) -> str:
    values = sample_of(tensor, shapes)
    return _array(tensor, shapes) if values is None else repr(values)


def _array(tensor: Tensor, shapes: Shapes) -> str:
    shape, values = shape_of(tensor, shapes), sample_of(tensor, shapes)
    if tensor.datatype == "BYTES":
        return f"np.full({shape}, 'text', object)"
    if values is None:
        return f"np.zeros({shape}, {tensor.dtype.name!r})"
    return f"np.array({values}, {tensor.dtype.name!r})"
