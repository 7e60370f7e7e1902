"""ModelInfer: see `unary` for what this is to a transport, and `tensors` for the messages."""

import time
from typing import Any

from google.protobuf.message import DecodeError

from serving.classifier import Classifier
from serving.errors import DigitsError, ModelNotFound
from serving.images import IMAGE_BYTES
from serving.predictions import ROW_BYTES
from serving.requests import Answer, Request
from serving.rpc import catalog, inference_pb, tensors
from serving.rpc.inference_pb import ModelInferRequest, parse
from serving.rpc.statistics import Statistics
from serving.rpc.tensors import Inference
from serving.rpc.unary import MAX_HEAD_BYTES

_ONE_IMAGE = b"\x3a\x90\x06"  # the tag of raw_input_contents, and 784 as its length
_MAX_HEADS = 16
"""How many clients' ways to write the same request are kept; there are a few."""


class ModelInfer:
    """The inference.GRPCInferenceService/ModelInfer method, and its statistics."""

    name = "ModelInfer"
    path = f"/{inference_pb.SERVICE}/ModelInfer"

    def __init__(self, classifier: Classifier) -> None:
        """Describe what `classifier` serves."""
        self.heads: set[bytes] = set()
        self.statistics = Statistics()
        self._classifier = classifier
        self._response_heads: dict[str, bytes] = {}

    def read(self, data: bytes) -> Inference:
        """See `UnaryMethod`."""
        received_s = time.monotonic()
        try:
            request = parse(ModelInferRequest, data)
            inference = self.decode(request)
        except DigitsError as err:
            self.count_failure(err, received_s)
            raise
        inference.received_s = received_s
        if len(data) < MAX_HEAD_BYTES + IMAGE_BYTES and _is_plain(request, inference, data):
            if len(self.heads) >= _MAX_HEADS:
                self.heads.clear()
            self.heads.add(data[:-IMAGE_BYTES])
        return inference

    def ask(self, image: bytes) -> Inference:
        """See `UnaryMethod`."""
        return Inference(image, None, "", is_raw=True)

    def decode(self, request: Any) -> Inference:
        """Check a parsed ModelInferRequest.

        Raises:
            DigitsError: it is for another model, or no request that this one can answer.
        """
        info = self._classifier.model_info()
        catalog.check_model(request.model_name, request.model_version, info)
        return tensors.decode(request, info.max_request_images)

    def write(self, question: Inference, call: Request, answer: Answer) -> bytes:
        """See `UnaryMethod`."""
        response: bytes = self.encode(question, call, answer).SerializeToString()
        return response

    def encode(self, inference: Inference, call: Request, answer: Answer) -> Any:
        """Build the ModelInferResponse, and count it."""
        answered_s = time.monotonic()
        response = tensors.encode(inference, answer, self._name)
        moments_s = (inference.received_s, inference.decoded_s, answered_s, time.monotonic())
        self.statistics.count_success(call, answer, moments_s)
        return response

    def write_each(self, call: Request, answer: Answer) -> list[bytes]:
        """See `UnaryMethod`."""
        answered_s = time.monotonic()
        head, rows = self._response_head(answer), answer.probabilities
        responses = [head + rows[at : at + ROW_BYTES] for at in range(0, len(rows), ROW_BYTES)]
        moments_s = (call.arrived_s, call.arrived_s, answered_s, time.monotonic())
        self.statistics.count_success(call, answer, moments_s)
        return responses

    def _response_head(self, answer: Answer) -> bytes:
        """Give how a one-image answer of this version begins: all but its probabilities."""
        version = answer.batch.model.version
        if version not in self._response_heads:
            one = Answer(b"\0", bytes(ROW_BYTES), answer.batch)
            response = tensors.encode(self.ask(b""), one, self._name).SerializeToString()
            self._response_heads[version] = response[:-ROW_BYTES]
        return self._response_heads[version]

    def note_failure(self, question: Inference, error: DigitsError) -> None:
        """See `UnaryMethod`."""
        self.count_failure(error, question.received_s)

    def count_failure(self, error: DigitsError, received_s: float) -> None:
        """Count a request that ends now with an error."""
        if not isinstance(error, ModelNotFound):  # that was for another model
            self.statistics.count_failure(self._classifier.model_info().version, received_s)

    @property
    def _name(self) -> str:
        return self._classifier.model_info().name


def _is_plain(request: Any, inference: Inference, data: bytes) -> bool:
    """Tell whether requests that differ in their last 784 bytes only are all answered alike.

    They are if these bytes are the one image, and nothing names an id, a version or a time.
    """
    head = data[: -IMAGE_BYTES - len(_ONE_IMAGE)]
    if request.model_version or request.id or inference.timeout_s is not None:
        return False
    if head + _ONE_IMAGE + inference.pixels != data:
        return False
    # What comes before the tag must be whole fields, or the tag would be part of another one.
    try:
        return not ModelInferRequest.FromString(head).raw_input_contents
    except DecodeError:
        return False
