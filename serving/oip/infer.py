"""ModelInfer, unary and on a stream, where errors are answers; `tensors` has the messages.

A request that ends with its tensors as raw contents is parsed once. From then on its prefix is
known, with their names, types and shapes, and the next one like it needs no message object, nor
does its answer:

    prefix | tensor | tag, length | tensor | ...     all but the values of the tensors is constant
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from google.protobuf.message import DecodeError

from serving.batching.layout import Layout, Piece
from serving.batching.run import NUM_BYTES, ResponseEncoder, Result, Target
from serving.errors import RequestError, ServingError, Unavailable
from serving.http2 import Pieces, Written
from serving.http2.pieces import Buffer
from serving.oip import tensors
from serving.oip.inference_pb import ModelInferRequest, ModelStreamInferResponse
from serving.oip.long_answers import LONG_BYTES, is_long, raw_part
from serving.oip.tensors import InferRows
from serving.oip.typed import as_raw, id_of, is_slow
from serving.protocols import parse, varint
from serving.protocols.method import Elsewhere, PrefixCache, ReadRows, frame, frame_prefix
from serving.router import AnyBatcher, Route, Router
from serving.tensors import DTYPES, Array, TensorSignature


class Infer:
    """Reads ModelInferRequests."""

    def __init__(self, router: Router, pool: Any = None, *, is_stream: bool = False) -> None:
        """Serve the models of a router.

        Args:
            router: the models.
            pool: a `Pool` of processes for large messages; None for the transport's threads.
            is_stream: whether each answer has another message around it.
        """
        self.prefixes = PrefixCache()
        self._router = router
        self._pool = pool
        self._method = None if is_stream else "ModelInfer"
        self._write = _write_streamed if is_stream else _write

    @property
    def elsewhere(self) -> Elsewhere:
        """How messages are read that would take long here."""
        return Elsewhere(is_slow, as_raw, self._read_raw, self._pool)

    def _read_raw(self, converted: tuple[bytes, bool]) -> ReadRows:
        message, is_typed = converted
        if not is_typed:
            return self.read(message)
        request, target, signature, inference = self._decoded(message)
        inference = inference._replace(is_raw=False)  # and so is the answer
        facts = request.model_name, signature, self._write
        return inference.message, InferEncoder(target, self._method, inference, *facts)

    def _decoded(self, message: bytes) -> tuple[Any, Target, TensorSignature, InferRows]:
        request = parse(ModelInferRequest, message)
        target, signature = find(self._router, request.model_name, request.model_version)
        return request, target, signature, decode(self._router, target, request, signature)

    def read(self, message: bytes) -> ReadRows:
        if (known := self.prefixes.find(message)) is not None:
            return known
        request, target, signature, inference = self._decoded(message)
        facts = request.model_name, signature, self._write
        found = raw_ending(request, inference, signature, _before_input)
        if found is not None and _ends_request(message, found[0], request):
            raw = RawEncoder(target, self._method, inference, *facts)
            raw.layout = found[1]
            self.prefixes.learn(message, len(found[0]), raw)
        return inference.message, InferEncoder(target, self._method, inference, *facts)

    def error_message(self, request: bytes, error: ServingError) -> bytes | None:
        """Encode the answer to a refused request of a stream; a drain ends the stream."""
        if isinstance(error, Unavailable):
            return None
        identifier = id_of(request)[: tensors.MAX_ID_CHARACTERS]
        data: bytes = ModelStreamInferResponse(
            error_message=str(error), infer_response={"id": identifier}
        ).SerializeToString()
        return data


class InferEncoder(ResponseEncoder):
    """Encodes the answer to one request."""

    def __init__(
        self,
        target: Target,
        method: str | None,
        inference: InferRows,
        name: str,
        signature: TensorSignature,
        write: Callable[[Any], Any],
    ) -> None:
        super().__init__(target, method, inference.num_rows, inference.timeout_s)
        self._inference = inference
        self._name = name
        self._signature = signature
        self._write = write
        self.write_long: Callable[[Sequence[Array], str], Any] | None = None
        """Writes an answer of long outputs from their arrays, with the version; None over gRPC."""
        self._is_grpc = inference.is_raw and write in _WRAPPERS
        self.parameters = inference.parameters
        """The request's parameters, for a handler."""

    def encode(self, result: Result, at: int, number: int) -> list[Any]:
        step, inference, name = self.num_rows, self._inference, self._name
        parts = (result.cut(at + i * step, step) for i in range(number))
        long = self.write_long or (self._pieces if self._is_grpc else None)
        return [
            long(part, result.version)
            if long is not None and is_long([part[each] for each in inference.outputs])
            else self._write(tensors.encode(inference, part, self._signature, name, result.version))
            for part in parts
        ]

    def _pieces(self, outputs: Sequence[Array], version: str) -> Pieces:
        """Write an answer around the arrays: `raw_output_contents` are its last field."""
        inference, signature = self._inference, self._signature
        head = tensors.encode_head(inference, outputs, signature, self._name, version)
        parts: list[Buffer | Written] = [head]
        size = len(head)
        for at in inference.outputs:
            num_bytes, data = raw_part(outputs[at])
            before = RawEncoder.before(num_bytes)
            parts += (before, data)
            size += len(before) + num_bytes
        around = _WRAPPERS[self._write](size)
        return Pieces([frame_prefix(len(around) + size), around, *parts])


class RawEncoder(InferEncoder):
    """Encodes answers that differ in the values of their tensors only: these are the last bytes."""

    before: Callable[[int], bytes] = staticmethod(lambda size: b"\x32" + varint(size))
    """The bytes before each tensor but the first, by its length: the tag of raw_output_contents."""
    _known: tuple[str, list[tuple[int, ...]]] | None = None
    """The version and the shapes that the constant parts are of."""
    _constants: Sequence[bytes] = ()
    """The bytes before each tensor."""
    _head, _version = b"", ""
    """The bytes before the tensor of a classifier, and the version that they name."""

    def encode(self, result: Result, at: int, number: int) -> list[Any]:
        step, end = self.num_rows, at + number * self.num_rows
        rows = result.rows  # of a classifier, the bytes of its only output
        if rows and result.version == self._version:
            head, size = self._head, len(rows) // result.num_rows
            parts = range(at * size, end * size, step * size)
            step *= size
            return [head + rows[i : i + step] for i in parts]
        outputs = [result.outputs[each] for each in self._inference.outputs]
        if sum(map(NUM_BYTES, outputs)) * step >= LONG_BYTES * result.num_rows:
            return super().encode(result, at, number)
        is_all = step == result.num_rows  # then the outputs may have any shape
        shapes = [each.shape if is_all else (step, *each.shape[1:]) for each in outputs]
        if (result.version, shapes) != self._known and not self._prepare(result, at, shapes):
            return super().encode(result, at, number)
        if rows:
            self._head, self._version = self._constants[0], result.version
        data = ((each if is_all else each[at:end]).tobytes() for each in outputs)
        columns = zip(*(_cut(each, number) for each in data), strict=True)
        return [b"".join(chain(*zip(self._constants, parts, strict=True))) for parts in columns]

    def _prepare(self, result: Result, at: int, shapes: list[tuple[int, ...]]) -> bool:
        """Keep the constant parts of an answer; return whether there are any."""
        parts = result.cut(at, self.num_rows)
        answer = super().encode(result, at, 1)[0]
        constants: list[bytes] = []
        for number in reversed(self._inference.outputs):
            data = tensors.to_raw(parts[number])
            if self._signature.outputs[number].datatype == "BYTES" or not answer.endswith(data):
                return False
            answer, before = answer[: len(answer) - len(data)], self.before(len(data))
            if not answer.endswith(before):
                return False
            answer = answer.removesuffix(before)
            constants.append(before)
        constants[-1] = answer + constants[-1]
        self._constants, self._known = constants[::-1], (result.version, shapes)
        return True


def _cut(data: bytes, number: int) -> list[bytes]:
    size = len(data) // number
    if not size:
        return [b""] * number
    return [data[i : i + size] for i in range(0, len(data), size)]


def find(router: Router, name: str, version: str) -> "tuple[Route | AnyBatcher, TensorSignature]":
    """Return the receiver of calls for a model and a version or label, and its signature.

    Raises:
        ModelNotFound: there is none.
    """
    target = router.find(name).find(version)
    return target, target.tensors if isinstance(target, Route) else target.model.tensors


def decode(
    router: Router,
    target: "Route | AnyBatcher",
    request: Any,
    signature: TensorSignature,
) -> InferRows:
    """Decode a request for a model; see `tensors.decode`. One that is refused counts as failed."""
    try:
        return tensors.decode(request, signature, router.batching.max_request_rows)
    except RequestError as err:
        err.model = target.label
        router.metrics.count_failure(target.label, 0.0, 1)
        raise


def raw_ending(
    request: Any, inference: InferRows, signature: TensorSignature, before: Callable[[int], bytes]
) -> tuple[bytes, Layout | None] | None:
    """Return the tensors of a request as its last bytes, and where they lie in them.

    Args:
        request: the message.
        inference: its content.
        signature: the inputs and outputs of its model.
        before: the bytes before each tensor but the first, by its length.

    Returns:
        None if requests with other values may be answered otherwise but for values: they name an
        id, a version or a timeout, have texts, whose lengths differ, or no elements.
    """
    if request.model_version or request.id or inference.timeout_s is not None:
        return None
    datatypes = {each.datatype for each in signature.inputs}
    if not inference.is_raw or not signature.inputs or "BYTES" in datatypes:
        return None
    if any(0 in each.shape for each in request.inputs):  # rows without elements run alone
        return None
    if signature.row_bytes:  # rows of one input travel without a layout: bytes of BOOL are checked
        return None if "BOOL" in datatypes else (inference.message, None)
    data, between = bytearray(), []
    pieces: dict[str, Piece] = {}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        if pieces and (constant := before(len(raw))):
            between.append((len(data), constant))
            data += constant
        begin = len(data)
        data += raw
        shape = tuple(tensor.shape)
        pieces[tensor.name] = Piece(begin, len(data), DTYPES[tensor.datatype], shape)
    ordered = tuple(pieces[tensor.name] for tensor in signature.inputs)
    return bytes(data), Layout(ordered, tuple(between))


def _write(response: Any) -> bytes:
    return frame(response.SerializeToString())


def _write_streamed(response: Any) -> bytes:
    return _write(ModelStreamInferResponse(infer_response=response))


_WRAPPERS: dict[Callable[[Any], Any], Callable[[int], bytes]] = {
    _write: lambda size: b"",
    _write_streamed: lambda size: b"\x12" + varint(size),
}
"""The bytes before an answer of a length, by the function that writes it whole."""


def _before_input(num_bytes: int) -> bytes:
    """Return the tag and the length of one of raw_input_contents."""
    return b"\x3a" + varint(num_bytes)


def _ends_request(message: bytes, data: bytes, request: Any) -> bool:
    """Return whether a message is a prefix and these tensors, as `raw_ending` has them."""
    end = _before_input(len(request.raw_input_contents[0])) + data
    if not message.endswith(end):
        return False
    # The bytes before the tag must be whole fields, or the tag would be part of another one.
    try:
        head = ModelInferRequest.FromString(message[: -len(end)])
        return not head.raw_input_contents
    except DecodeError:
        return False
