"""Classify: see `unary` for what this is to a transport, and `wire` for the bytes."""

from serving.config import BatchingConfig
from serving.errors import DigitsError
from serving.requests import Answer, Request
from serving.rpc import wire
from serving.rpc.unary import Question


class Classify:
    """The digits.v1.DigitClassifier/Classify method."""

    name = "Classify"
    path = "/digits.v1.DigitClassifier/Classify"
    heads = frozenset((wire.ONE_IMAGE,))

    def __init__(self, batching: BatchingConfig) -> None:
        """Accept up to `max_request_images` images in a request."""
        self._max_images = batching.max_request_images

    def read(self, data: bytes) -> Question:
        """See `UnaryMethod`."""
        return Question(wire.decode_request(data, self._max_images))

    def ask(self, image: bytes) -> Question:
        """See `UnaryMethod`."""
        return Question(image)

    def write(self, question: Question, call: Request, answer: Answer) -> bytes:
        """See `UnaryMethod`."""
        return wire.encode_response(answer.digits, answer.probabilities, answer.batch.model.version)

    def write_each(self, call: Request, answer: Answer) -> list[bytes]:
        """See `UnaryMethod`."""
        return wire.encode_each(answer.digits, answer.probabilities, answer.batch.model.version)

    def note_failure(self, question: Question, error: DigitsError) -> None:
        """See `UnaryMethod`: calls are counted by status elsewhere."""
