"""Filled-in requests for a model, as lines that run as they are pasted."""

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from serving.oip.request import MAX_JSON_VALUES
from serving.tensors import Tensor, TensorSignature

_MOST = 64
"""Values of an input that are written out; of larger ones there are zeros."""
_VALUES: dict[str, Any] = {"b": True, "f": 0.5, "O": "text"}
"""By the kind of numpy's types. Of integers 1: every table has it, and masks take it."""
_JSON = '{"key": 1}'
_PICTURE = "R0lGODlhAQABAIAAAAAAAP///ywAAAAAAQABAAACAUwAOw=="
"""The smallest GIF, in base64."""
_FILES = {"picture": "picture.jpg", "bytes": "file.bin"}
"""Names of files for inputs of handlers, by their content."""

_CERT, _KEY = "<your certificate>.pem", "<its key>.pem"

Shapes = Mapping[str, tuple[int, ...]]
"""Sizes for inputs whose axes are open, by name."""


class Access(NamedTuple):
    """Where a server answers, and what callers need."""

    grpc: str
    """HOST:PORT."""
    http: str = ""
    """Such as "http://127.0.0.1:8080"; empty if it is off."""
    tls_ca: str = ""
    """The file of the authorities of its certificate; empty without TLS."""
    needs_certificate: bool = False
    """Whether callers need a certificate of their own."""
    has_tokens: bool = False
    token_file: str = ""
    """The file of a token, if the caller is on the server's machine."""


def shape_of(tensor: Tensor, shapes: Shapes) -> tuple[int, ...]:
    """Return a shape that an input can have: 1 for axes of which nothing is known."""
    return shapes.get(tensor.name, tuple(max(1, size) for size in tensor.shape))


def sample_of(tensor: Tensor, shapes: Shapes) -> Any:
    """Return values for an input, in nested lists; None if they are too many."""
    shape = shape_of(tensor, shapes)
    if math.prod(shape) > _MOST:
        return None
    if tensor.is_binary:  # as JSON has it
        return np.full(shape, _PICTURE if tensor.is_picture else "AAE=", object).tolist()
    if tensor.is_json:
        return np.full(shape, _JSON, object).tolist()
    return np.full(shape, _VALUES.get(tensor.dtype.kind, 1), tensor.dtype).tolist()


def word_of(tensor: Tensor, shapes: Shapes) -> str:
    """Return an input's value as `digit-serving infer` reads it, such as "x=[[0.5]]"."""
    values, shape = sample_of(tensor, shapes), shape_of(tensor, shapes)
    text = f"zeros{[*shape]}".replace(" ", "") if values is None else json.dumps(values)
    return f"{tensor.name}={_file_of(tensor, '@') or text}"


def request_body(tensors: TensorSignature, shapes: Shapes) -> tuple[dict[str, Any], int]:
    """Return a request as JSON, and how many bytes of zeros follow it."""
    inputs, num_bytes = [], 0
    for tensor in tensors.inputs:
        shape, values = shape_of(tensor, shapes), sample_of(tensor, shapes)
        item = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(shape)}
        if values is None:  # of a text the four bytes are its length
            size = math.prod(shape) * (4 if tensor.datatype == "BYTES" else tensor.dtype.itemsize)
            num_bytes += size
            inputs.append({**item, "parameters": {"binary_data_size": size}})
        else:
            inputs.append({**item, "data": np.ravel(values).tolist()})
    return {"inputs": inputs}, num_bytes


@dataclass(frozen=True, slots=True)
class Example:
    """A request for a model, in the words of several clients."""

    name: str
    version: str
    """Empty for the server's choice."""
    tensors: TensorSignature
    shapes: Shapes
    access: Access

    def lines(self) -> dict[str, str]:
        """Return the lines by the client's name; without HTTP none for curl."""
        lines = {"curl": self._curl()} if self.access.http else {}
        python, triton = self._python(), self._triton()
        return lines | {"digit-serving": self.shell(), "Python": python, "tritonclient": triton}

    def shell(self) -> str:
        """Return the command of this package."""
        words = ["digit-serving", "infer", self.name, "--target", self.access.grpc]
        words += ["--version", self.version] if self.version else []
        access = self.access
        words += ["--tls-ca", access.tls_ca] if access.tls_ca else []
        words += ["--tls-cert", _CERT, "--tls-key", _KEY] * access.needs_certificate
        words += ["--token-file", access.token_file] if access.token_file else []
        words += [word_of(each, self.shapes) for each in self.tensors.inputs]
        needs_token = access.has_tokens and not access.token_file
        token = "$TOKEN" if access.http else "'<token>'"  # as curl's line beside it has it
        return f"SERVING_TOKEN={token} " * needs_token + shlex.join(words)

    def _curl(self) -> str:
        if self.tensors.in_parts:
            return self._curl_of_parts()
        body, num_zeros = request_body(self.tensors, self.shapes)
        most = max(math.prod(map(abs, each.shape)) for each in self.tensors.outputs)
        is_large = most > MAX_JSON_VALUES
        if is_large:
            body["parameters"] = {"binary_data_output": True}
        words = self._curl_words()
        command = shlex.join(words + ["--output", "answer.bin"] * is_large)
        command += ' -H "Authorization: Bearer $TOKEN"' * self.access.has_tokens
        path = self._path
        (first, *others) = self.tensors.inputs or (None,)
        if first is not None and first.content and not others:  # the body is its value
            url = shlex.quote(f"{self.access.http}/v2/models/{path}/infer")
            if file := _file_of(first):
                return f"{command} -T {file} {url}"
            value = shlex.quote(_JSON) if first.is_json else "text"
            return f"{command} {url} -H 'content-type: text/plain' -d {value}"
        url, text = shlex.quote(f"{self.access.http}/v2/models/{path}/infer"), json.dumps(body)
        if not num_zeros:
            return f"{command} {url} \\\n  -d {shlex.quote(text)}"
        return (
            f"{{ printf %s {shlex.quote(text)}; head -c {num_zeros} /dev/zero; }} |\n  {command} "
            f"-H 'Inference-Header-Content-Length: {len(text)}' --data-binary @- {url}"
        )

    def _curl_words(self) -> list[str]:
        words = ["curl", *(["--cacert", self.access.tls_ca] if self.access.tls_ca else [])]
        return words + ["--cert", _CERT, "--key", _KEY] * self.access.needs_certificate

    @property
    def _path(self) -> str:
        return quote(self.name, safe="") + (f"/versions/{self.version}" if self.version else "")

    def _curl_of_parts(self) -> str:
        """Return a request of Triton's generate extension."""
        command = shlex.join([*self._curl_words(), "-N"])
        command += ' -H "Authorization: Bearer $TOKEN"' * self.access.has_tokens
        values = {each.name: self._values_of(each) for each in self.tensors.inputs}
        url = shlex.quote(f"{self.access.http}/v2/models/{self._path}/generate_stream")
        return f"{command} {url} \\\n  -d {shlex.quote(json.dumps(values))}"

    def _values_of(self, tensor: Tensor) -> Any:
        """Return values for an input, however many: of a long one zeros."""
        values = sample_of(tensor, self.shapes)
        shape = shape_of(tensor, self.shapes)
        return np.zeros(shape, tensor.dtype).tolist() if values is None else values

    def _python(self) -> str:
        parts = ", ".join(f"{each.name!r}: {self._value(each)}" for each in self.tensors.inputs)
        more = f", version={self.version!r}" if self.version else ""
        options = ', token=os.environ["TOKEN"]' * self.access.has_tokens
        options += f", tls_ca={self.access.tls_ca!r}" if self.access.tls_ca else ""
        options += f", tls_cert={_CERT!r}, tls_key={_KEY!r}" * self.access.needs_certificate
        return "\n".join(
            [
                *["import os"] * self.access.has_tokens,
                *["import numpy as np"] * ("np." in parts),
                "from serving import Client",
                "",
                f"with Client({self.access.grpc!r}{options}) as client:",
                *self._python_calls(f"{self.name!r}, {{{parts}}}{more}"),
            ]
        )

    def _python_calls(self, arguments: str) -> list[str]:
        if not self.tensors.in_parts:
            return [f"    print(client.infer({arguments}))"]
        return [f"    for part in client.stream({arguments}):", "        print(part)"]

    def _triton_calls(self, more: str) -> list[str]:
        names = [each.name for each in self.tensors.outputs]
        shown = f"[answer.as_numpy(name) for name in {names}]"
        if not self.tensors.in_parts:
            return [f"answer = client.infer({self.name!r}, inputs{more})", f"print({shown})"]
        of_stream = ', headers={"authorization": "Bearer " + os.environ["TOKEN"]}'
        headers = of_stream * self.access.has_tokens
        return [
            "parts = queue.Queue()",
            f"client.start_stream(lambda *part: parts.put(part){headers})",
            f"client.async_stream_infer({self.name!r}, inputs{more.removesuffix(of_stream)}, "
            "enable_empty_final_response=True)",
            "answer, error = parts.get()",
            'while not (error or answer.get_response().parameters["triton_final_response"]'
            ".bool_param):",
            f"    print({shown})",
            "    answer, error = parts.get()",
            "client.stop_stream()",
        ]

    def _triton(self) -> str:
        ca = self.access.tls_ca
        options = f", ssl=True, root_certificates={ca!r}" if ca else ""
        own = f", certificate_chain={_CERT!r}, private_key={_KEY!r}"
        options += own * self.access.needs_certificate
        more = f", model_version={self.version!r}" if self.version else ""
        more += ', headers={"authorization": "Bearer " + os.environ["TOKEN"]}' * (
            self.access.has_tokens
        )
        return "\n".join(
            [
                *["import os"] * self.access.has_tokens,
                *["import queue", ""] * self.tensors.in_parts,
                "import numpy as np",
                "from tritonclient import grpc",
                "",
                f"client = grpc.InferenceServerClient({self.access.grpc!r}{options})",
                "inputs = []",
                "for name, datatype, array in [",
                *(
                    f"    ({each.name!r}, {each.datatype!r}, {self._array(each)}),"
                    for each in self.tensors.inputs
                ),
                "]:",
                "    inputs.append(grpc.InferInput(name, array.shape, datatype))",
                "    inputs[-1].set_data_from_numpy(array)",
                *self._triton_calls(more),
            ]
        )

    def _value(self, tensor: Tensor) -> str:
        values = sample_of(tensor, self.shapes)
        if file := _file_of(tensor):
            return f"[open({file!r}, 'rb').read()]"
        return self._array(tensor) if values is None else repr(values)

    def _array(self, tensor: Tensor) -> str:
        shape, values = shape_of(tensor, self.shapes), sample_of(tensor, self.shapes)
        if file := _file_of(tensor):
            return f"np.array([open({file!r}, 'rb').read()], object)"
        if tensor.is_json:
            return f"[{_JSON}]"
        if tensor.datatype == "BYTES":
            return f"np.full({shape}, 'text', object)"
        what = f"zeros({shape}" if values is None else f"array({values}"
        return f"np.{what}, {tensor.dtype.name!r})"


def _file_of(tensor: Tensor, before: str = "") -> str:
    """Return the name of a file for an input that is one; empty for others."""
    file = _FILES.get(tensor.content, "")
    return before + file if file else ""
