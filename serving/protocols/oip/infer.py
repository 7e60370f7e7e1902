"""ModelInfer, unary and on a stream, where errors are answers; `tensors` has the messages.

A request whose rows are its last bytes is parsed once. From then on its prefix is known, and the
next one like it needs no message object, nor does its answer.
"""

from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError

from serving.batching.batcher import Batcher
from serving.batching.queue import ResponseEncoder, Result, Target
from serving.errors import DigitsError, InvalidRequest, Unavailable
from serving.protocols.digits_v1 import wire
from serving.protocols.encoding import PrefixCache, frame
from serving.protocols.messages import parse
from serving.protocols.oip import tensors
from serving.protocols.oip.inference_pb import ModelInferRequest, ModelStreamInferResponse
from serving.protocols.oip.tensors import Inference, TypedContents
from serving.router import Route, Router
from serving.tensors import TensorSignature

_RAW_CONTENTS = b"\x3a"
"""The tag of raw_input_contents."""


class Infer:
    """Reads ModelInferRequests."""

    def __init__(self, router: Router, *, is_stream: bool = False) -> None:
        """Serve the models of `router`; on a stream each answer has another message around it."""
        self.prefixes = PrefixCache()
        self._router = router
        self._method = None if is_stream else "ModelInfer"
        self._write = _write_streamed if is_stream else _write

    def read(self, message: bytes) -> tuple[Any, ResponseEncoder]:
        """See `Read`."""
        if (known := self.prefixes.find(message)) is not None:
            return known
        typed = TypedContents(message)
        request = parse(ModelInferRequest, typed.rest)
        target, signature = find(self._router, request.model_name, request.model_version)
        inference = decode(self._router, target, request, signature, typed)
        facts = request.model_name, signature, self._write
        if _is_plain(request, inference, signature, message):
            raw = RawEncoder(target, self._method, inference, *facts)
            self.prefixes.learn(message, len(inference.message), raw)
        return inference.message, InferEncoder(target, self._method, inference, *facts)

    def error_message(self, request: bytes, error: DigitsError) -> bytes | None:
        """Encode the answer to a refused request of a stream; a drain ends the stream."""
        if isinstance(error, Unavailable):
            return None
        try:
            rest = TypedContents(request).rest
            identifier = parse(ModelInferRequest, rest).id[: tensors.MAX_ID_CHARACTERS]
        except InvalidRequest:
            identifier = ""
        data: bytes = ModelStreamInferResponse(
            error_message=str(error), infer_response={"id": identifier}
        ).SerializeToString()
        return data


class InferEncoder(ResponseEncoder):
    """Encodes the answer to one request."""

    def __init__(
        self, target: Target, method: str | None, inference: Inference, name: str,
        signature: TensorSignature, write: Callable[[Any], Any],
    ) -> None:  # fmt: skip
        """Describe a request."""
        super().__init__(target, method, inference.num_rows, inference.timeout_s)
        self._inference = inference
        self._name = name
        self._signature = signature
        self._write = write

    def encode(self, result: Result, at: int, number: int) -> list[Any]:
        """See `ResponseEncoder`."""
        step, inference, name = self.num_rows, self._inference, self._name
        parts = (result.part(at + i * step, step) for i in range(number))
        return [
            self._write(tensors.encode(inference, part, self._signature, name, result.version))
            for part in parts
        ]


class RawEncoder(InferEncoder):
    """Encodes answers that differ only in their last bytes, the rows of the only output."""

    _version: str | None = None
    _head = b""

    def encode(self, result: Result, at: int, number: int) -> list[bytes]:
        """See `ResponseEncoder`."""
        if len(result.outputs[0]) != result.num_rows:  # of a call that ran alone
            return super().encode(result, at, number)
        rows = result.rows or result.outputs[0].tobytes()
        row_bytes = len(rows) // result.num_rows
        step = row_bytes * self.num_rows
        if result.version != self._version:
            self._head = super().encode(result, at, 1)[0][:-step]
            self._version = result.version
        head, begin = self._head, at * row_bytes
        return [head + rows[i : i + step] for i in range(begin, begin + number * step, step)]


def find(router: Router, name: str, version: str) -> tuple[Route | Batcher, TensorSignature]:
    """Return the receiver of calls for a model and a version or label, and its signature.

    Raises:
        ModelNotFound: there is none.
    """
    target = router.find(name).find(version)
    return target, target.tensors if isinstance(target, Route) else target.model.tensors


def decode(
    router: Router, target: Route | Batcher, request: Any, signature: TensorSignature,
    typed: TypedContents | None = None,
) -> Inference:  # fmt: skip
    """Decode a request for a model; see `tensors.decode`. One that is refused counts as failed."""
    try:
        return tensors.decode(request, signature, router.batching.max_request_images, typed)
    except InvalidRequest:
        router.metrics.count_failure((request.model_name, target.model.version), 0.0, 1)
        raise


def is_alike(request: Any, inference: Inference, signature: TensorSignature) -> bool:
    """Return whether requests that differ only in their rows are answered alike but for rows.

    They are if they name no id, version or timeout, and ask for the only output, whose rows have a
    fixed size.
    """
    if request.model_version or request.id or inference.timeout_s is not None:
        return False
    if signature.row_bytes and signature.inputs[0].datatype == "BOOL":  # bytes have to be checked
        return False
    outputs = signature.outputs
    return bool(signature.row_bytes and len(outputs) == 1 and outputs[0].row_bytes)


def _write(response: Any) -> bytes:
    return frame(response.SerializeToString())


def _write_streamed(response: Any) -> bytes:
    return _write(ModelStreamInferResponse(infer_response=response))


def _is_plain(
    request: Any, inference: Inference, signature: TensorSignature, message: bytes
) -> bool:
    """Return whether all requests that differ only in their rows have the same encoder.

    They have if they are alike, and the message ends with the rows.
    """
    if not is_alike(request, inference, signature):
        return False
    size = len(inference.message)
    end = _RAW_CONTENTS + wire.varint(size) + inference.message
    if not inference.is_raw or not message.endswith(end):
        return False
    # The bytes before the tag must be whole fields, or the tag would be part of another one.
    try:
        head = ModelInferRequest.FromString(message[: -len(end)])
        return not head.raw_input_contents
    except DecodeError:
        return False
