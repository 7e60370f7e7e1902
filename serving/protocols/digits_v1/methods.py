"""The methods of the digits.v1.DigitClassifier service."""

from dataclasses import asdict

from serving.classifier import Classifier
from serving.protocols.digits_v1 import wire
from serving.protocols.method import ImagesStream, ImagesUnary, Method, Unary
from serving.protocols.pb.digits.v1 import digits_pb2
from serving.protocols.plan import Layouts, Plan

SERVICE = "digits.v1.DigitClassifier"


def digits_methods(classifier: Classifier, transport: str) -> list[Method]:
    """Return the service's methods; GetModel names the `transport`."""
    unary, stream = _Reader("Classify", classifier), _Reader(None, classifier)

    def get_model(request: bytes) -> bytes:
        """Encode what is served; the request is empty and is not read."""
        signature = classifier.signature.document()
        info = asdict(classifier.model_info()) | {"transport": transport, "signature": signature}
        return digits_pb2.GetModelResponse(**info).SerializeToString()

    return [
        ImagesUnary(path=f"/{SERVICE}/Classify", name="Classify",
                    read=unary.read, layouts=unary.layouts),
        ImagesStream(path=f"/{SERVICE}/ClassifyStream", name="ClassifyStream",
                     read=stream.read, layouts=stream.layouts),
        Unary(path=f"/{SERVICE}/GetModel", name="GetModel", answer=get_model),
    ]  # fmt: skip


class _Reader:
    """Reads ClassifyRequests."""

    def __init__(self, name: str | None, classifier: Classifier) -> None:
        self.layouts = Layouts()
        self._name = name
        self._max_images = classifier.batching.max_request_images
        self._image_bytes = classifier.signature.image_bytes
        self.read(wire.encode_request(bytes(self._image_bytes)))  # the most frequent one

    def read(self, message: bytes) -> tuple[bytes | memoryview, Plan]:
        """See `Read`."""
        if (known := self.layouts.find(message, self._image_bytes)) is not None:
            return known
        pixels = wire.decode_request(message, self._image_bytes, self._max_images)
        plan = Plan(self._name, len(pixels) // self._image_bytes, wire.encode_response)
        if message == wire.encode_request(pixels):
            self.layouts.learn(message, len(pixels), plan)
        return pixels, plan
