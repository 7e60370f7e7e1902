"""ModelInfer, unary and on a stream, where errors are answers; `tensors` has the messages.

A request whose images are its last bytes is parsed once. From then on its prefix is known, and the
next one like it needs no message object, nor does its answer.
"""

import time
from functools import partial
from typing import Any

from google.protobuf.message import DecodeError

from serving.classifier import Classifier
from serving.errors import DigitsError, InvalidRequest, ModelNotFound, Unavailable
from serving.predictions import ClassNumbers
from serving.protocols.digits_v1 import wire
from serving.protocols.messages import parse
from serving.protocols.oip import metadata, tensors
from serving.protocols.oip.inference_pb import ModelInferRequest, ModelStreamInferResponse
from serving.protocols.oip.statistics import Statistics
from serving.protocols.oip.tensors import Inference
from serving.protocols.oip.typed import TypedContents
from serving.protocols.plan import Layouts, Plan

_RAW_CONTENTS = b"\x3a"
"""The tag of raw_input_contents."""


class Infer:
    """Decodes ModelInferRequests and encodes their answers."""

    def __init__(
        self, classifier: Classifier, statistics: Statistics, *, is_stream: bool = False
    ) -> None:
        """Serve `classifier`; on a stream each answer has another message around it."""
        self.layouts = Layouts()
        self.statistics = statistics
        self._classifier = classifier
        self._is_stream = is_stream
        self._method = None if is_stream else "ModelInfer"

    def read(self, message: bytes) -> tuple[bytes | memoryview, Plan]:
        """See `Read`."""
        known = self.layouts.find(message, self._classifier.signature.image_bytes)
        if known is not None:
            return known
        received_s = time.monotonic()
        typed = TypedContents(message)
        request = parse(ModelInferRequest, typed.rest)
        inference = self._decode(request, typed)
        if _is_plain(request, inference, message):
            write = _RawWriter(partial(self._write, inference)).write
            plan = Plan(self._method, inference.num_images, write, statistics=self.statistics)
            self.layouts.learn(message, len(inference.pixels), plan)
        return inference.pixels, Plan(
            self._method,
            inference.num_images,
            partial(self._write, inference),
            timeout_s=inference.timeout_s,
            statistics=self.statistics,
            decode_s=time.monotonic() - received_s,
        )

    def _decode(self, request: Any, typed: TypedContents) -> Inference:
        info = self._classifier.model_info()
        metadata.check_model(request.model_name, request.model_version, info)
        image_bytes, max_images = info.signature.image_bytes, info.max_request_images
        return tensors.decode(request, image_bytes, max_images, typed)

    def _write(
        self, inference: Inference, digits: ClassNumbers, rows: bytes | bytearray, version: str
    ) -> bytes:
        name = self._classifier.model_info().name
        response = tensors.encode(inference, rows, name, version)
        if self._is_stream:
            response = ModelStreamInferResponse(infer_response=response)
        data: bytes = response.SerializeToString()
        return data

    def note_failure(self, error: DigitsError, duration_s: float) -> None:
        """Count a request that ends with an error."""
        if not isinstance(error, ModelNotFound):  # it was for another model
            self.statistics.count_failure(self._classifier.model_info().version, duration_s)

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


class _RawWriter:
    """Encodes answers that differ only in their last bytes, the probabilities."""

    def __init__(self, write: Any) -> None:
        self._write = write
        self._version: str | None = None
        self._head = b""

    def write(self, digits: ClassNumbers, rows: bytes | bytearray, version: str) -> bytes:
        """See `Write`."""
        if version != self._version:
            self._head = self._write(digits, rows, version)[: -len(rows)]
            self._version = version
        return b"".join((self._head, rows))


def _is_plain(request: Any, inference: Inference, message: bytes) -> bool:
    """Return whether all requests that differ only in their images have the same plan.

    They have if the message ends with the images and names no id, version or timeout.
    """
    if request.model_version or request.id or inference.timeout_s is not None:
        return False
    size = len(inference.pixels)
    end = _RAW_CONTENTS + wire.varint(size) + inference.pixels
    if not inference.is_raw or not message.endswith(end):
        return False
    # The bytes before the tag must be whole fields, or the tag would be part of another one.
    try:
        head = ModelInferRequest.FromString(message[: -len(end)])
        return not head.raw_input_contents
    except DecodeError:
        return False
