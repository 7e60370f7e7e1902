"""ModelInfer over gRPC, unary and on a stream, where errors are answers.

A request that ends with its tensors as raw contents is parsed once. From then on its prefix is
known, with their names, types and shapes, and the next one like it needs no message object, nor
does its answer:

    prefix | tensor | tag, length | tensor | ...     all but the values of the tensors is constant
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from serving.batching.entry import Entry
from serving.batching.layout import Layout, Piece
from serving.batching.run import answers_in_parts
from serving.errors import RequestError, ServingError, Unavailable
from serving.oip import protobuf
from serving.oip.encoder import InferEncoder
from serving.oip.inference_pb import ModelInferRequest, ModelStreamInferResponse
from serving.oip.large_messages import as_raw, id_of, is_slow
from serving.oip.parameters import REASON
from serving.oip.request import MAX_ID_CHARACTERS, InferRequest, Sent, understand
from serving.protocols import varint
from serving.protocols.known import Known
from serving.protocols.method import Elsewhere, ReadRows
from serving.protocols.status import row_of
from serving.router import Route, Router
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
        self.known = Known()
        self._router = router
        self._pool = pool
        self._is_stream, self._method = is_stream, None if is_stream else "ModelInfer"
        self._writer = protobuf.Messages(is_stream=is_stream)

    @property
    def elsewhere(self) -> Elsewhere:
        """How messages are read that would take long here."""
        return Elsewhere(is_slow, as_raw, self.read_raw, self._pool)

    def read_raw(self, converted: tuple[bytes, bool]) -> ReadRows:
        """Read what `as_raw` has made of a request; one of typed contents is answered by them."""
        message, is_typed = converted
        if not is_typed:
            return self.read(message)
        found, sent = protobuf.read(message)
        asked = self._asked(found, sent._replace(as_bytes=False))
        return asked.rows, self._encoder(asked, sent.id)

    def read(self, message: bytes) -> ReadRows:
        if (found := self.known.find(message)) is not None:
            return found
        found, sent = protobuf.read(message)
        asked = self._asked(found, sent)
        ending = None
        if sent.as_bytes and not found.model_version and not asked.signature.in_parts:
            ending = values_alone(sent, asked, _before_input)
        if ending is not None and _ends_request(message, ending[0], found):
            encoder = self._encoder(asked, is_repeated=True)
            encoder.layout = ending[1]
            self.known.learn(message, len(ending[0]), encoder)
        return asked.rows, self._encoder(asked, sent.id)

    def _asked(self, found: Any, sent: Sent) -> "Asked":
        target, signature = find(self._router, found.model_name, found.model_version)
        if signature.in_parts and not self._is_stream:
            raise answers_in_parts(found.model_name)
        return ask(self._router, target, signature, sent, found.model_name)

    def _encoder(
        self, asked: "Asked", identifier: str = "", *, is_repeated: bool = False
    ) -> InferEncoder:
        facts = asked.target, self._method, asked.request, self._writer, identifier
        in_parts, is_stream = asked.signature.in_parts, self._is_stream
        return InferEncoder(
            *facts, is_repeated=is_repeated, in_parts=in_parts and is_stream, is_stream=is_stream
        )

    def error_message(self, request: bytes, error: ServingError) -> bytes | None:
        """Encode the answer to a refused request of a stream; a drain ends the stream."""
        if isinstance(error, Unavailable):
            return None
        identifier = id_of(request)[:MAX_ID_CHARACTERS]
        response = ModelStreamInferResponse(
            error_message=str(error), infer_response={"id": identifier}
        )
        response.infer_response.parameters[REASON].string_param = row_of(error).reason
        data: bytes = response.SerializeToString()
        return data


class Asked(NamedTuple):
    """A request that a model takes."""

    target: "Route | Entry"
    """Runs its rows."""
    signature: TensorSignature
    request: InferRequest
    rows: bytes | tuple[Array, ...]


def find(router: Router, name: str, version: str) -> "tuple[Route | Entry, TensorSignature]":
    """Return the receiver of calls for a model and a version or label, and its signature.

    Raises:
        ModelNotFound: there is none.
    """
    target = router.find(name).find(version)
    return target, target.tensors


def ask(
    router: Router,
    target: "Route | Entry",
    signature: TensorSignature,
    sent: Sent,
    name: str,
) -> Asked:
    """Compare a request with its model; see `understand`. One that is refused counts as failed."""
    try:
        found = understand(sent, name, signature, router.batching.max_request_rows)
    except RequestError as err:
        err.model = target.label
        router.metrics.count_failure(target.label, 0.0, 1)
        raise
    return Asked(target, signature, *found)


def values_alone(
    sent: Sent, asked: Asked, before: Callable[[int], bytes]
) -> tuple[bytes, Layout | None] | None:
    """Return the values of a request as bytes, and where its inputs lie in them.

    Args:
        sent: what it says; it names no version.
        asked: the same, understood.
        before: the bytes before each input but the first, by its length.

    Returns:
        None if requests with other values may be answered otherwise but for values: they name an
        id or a timeout, have texts, whose lengths differ, or no elements.
    """
    signature = asked.signature
    datatypes = {each.datatype for each in signature.inputs}
    if sent.id or asked.request.timeout_s is not None or not datatypes or "BYTES" in datatypes:
        return None
    if any(0 in each.shape for each in sent.inputs):  # rows without elements run alone
        return None
    if isinstance(asked.rows, bytes):
        # Rows of one input travel without a layout: bytes of BOOL are checked.
        return None if "BOOL" in datatypes else (asked.rows, None)
    if not all(isinstance(each, bytes) for each in sent.values):
        return None
    data, between = bytearray(), []
    pieces: dict[str, Piece] = {}
    for tensor, raw in zip(sent.inputs, sent.values, strict=True):
        if pieces and (constant := before(len(raw))):
            between.append((len(data), constant))
            data += constant
        begin = len(data)
        data += raw
        shape = tuple(tensor.shape)
        pieces[tensor.name] = Piece(begin, len(data), DTYPES[tensor.datatype], shape)
    ordered = tuple(pieces[tensor.name] for tensor in signature.inputs)
    return bytes(data), Layout(ordered, tuple(between))


def _before_input(num_bytes: int) -> bytes:
    """Return the tag and the length of one of raw_input_contents."""
    return b"\x3a" + varint(num_bytes)


def _ends_request(message: bytes, data: bytes, request: Any) -> bool:
    """Return whether a message is a prefix and these values, as `values_alone` has them."""
    end = _before_input(len(request.raw_input_contents[0])) + data
    if not message.endswith(end):
        return False
    # The bytes before the tag must be whole fields, or the tag would be part of another one.
    try:
        before = ModelInferRequest.FromString(message[: -len(end)])
        return not before.raw_input_contents
    except DecodeError:
        return False
