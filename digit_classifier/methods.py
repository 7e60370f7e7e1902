"""The methods of the digits.v1.DigitClassifier service."""

from array import array

from digit_classifier import wire
from digit_classifier.pb.digits.v1 import digits_pb2
from serving.batching.run import ResponseEncoder, Result, Target
from serving.errors import ModelNotFound, ServingError
from serving.protocols.framing import frame
from serving.protocols.known import Known
from serving.protocols.method import BatchedStream, BatchedUnary, Method, Unary
from serving.router import Route, Router

SERVICE = "digits.v1.DigitClassifier"
FILE = digits_pb2.DESCRIPTOR
"""The description of the file that has it."""

_MARK = bytes(range(200, 240))
"""Probabilities whose bytes occur nowhere else in a response."""


def methods(router: Router, transport: str) -> list[Method]:
    """Return the methods of digits.v1; GetModel names the `transport`."""
    unary, stream = _Reader("Classify", router), _Reader(None, router)

    def get_model(request: bytes) -> bytes:
        """Encode the model's description; the request is empty and is not read."""
        route = find_classifier(router)
        info = route.model.describe(router.batching)
        response = digits_pb2.GetModelResponse(
            name=route.name,
            version=info.version,
            device=info.device,
            precision=info.precision,
            transport=transport,
            max_request_images=router.batching.max_request_rows,
            max_batch_size=info.max_batch_size,
            test_accuracy=info.test_accuracy,
            signature=route.model.image_signature.document(),
        )
        return response.SerializeToString()

    return [
        BatchedUnary(path=f"/{SERVICE}/Classify", name="Classify",
                     read=unary.read, known=unary.known),
        BatchedStream(path=f"/{SERVICE}/ClassifyStream", name="ClassifyStream",
                      read=stream.read, known=stream.known),
        Unary(path=f"/{SERVICE}/GetModel", name="GetModel", answer=get_model),
    ]  # fmt: skip


def model_name(router: Router) -> str:
    """Return the model that health knows as this service."""
    route = route_of(router)
    return "" if route is None else route.name


def route_of(router: Router) -> Route | None:
    """Return the model of digits.v1: the one called digits, or the only one that classifies images.

    None if there is none.
    """
    able = [route for route in router.routes.values() if route.signature is not None]
    named = [route for route in able if route.name == "digits"]
    if named:
        return named[0]
    return able[0] if len(able) == 1 else None


def find_classifier(router: Router) -> Route:
    """Return the model of digits.v1.

    Raises:
        ModelNotFound: it is served no longer.
    """
    if (route := route_of(router)) is None:
        raise ModelNotFound("no classifier of images is served")
    return route


class _Reader:
    """Reads ClassifyRequests."""

    def __init__(self, name: str | None, router: Router) -> None:
        self.known = Known()
        self._name = name
        self._router = router
        if (route := route_of(router)) is not None:
            image_bytes = route.model.image_signature.image_bytes
            self.read(wire.encode_request(bytes(image_bytes)))  # the most frequent one

    def read(self, message: bytes) -> tuple[bytes | memoryview, ResponseEncoder]:
        if (found := self.known.find(message)) is not None:
            return found
        route = find_classifier(self._router)
        image_bytes = route.model.image_signature.image_bytes
        most = self._router.batching.max_request_rows
        try:
            pixels = wire.decode_request(message, image_bytes, most)
        except ServingError as err:
            err.model = route.label
            raise
        encoder = _ClassEncoder(route, self._name, len(pixels) // image_bytes)
        if message == wire.encode_request(pixels):
            self.known.learn(message, len(pixels), encoder)
        return pixels, encoder


class _ClassEncoder(ResponseEncoder):
    """Encodes ClassifyResponses."""

    def __init__(self, target: Target, method: str | None, num_images: int) -> None:
        super().__init__(target, method, num_images)
        self._version: str | None = None
        self._starts: tuple[bytes, ...] = ()
        """The bytes before the probabilities of one image, by its class."""
        self._tail = b""
        """The bytes after them."""

    def encode(self, result: Result, at: int, number: int) -> list[bytes]:
        classes, rows, version, step = result.classes, result.rows, result.version, self.num_rows
        assert classes is not None, "a classifier's"
        width = len(rows) // result.num_rows
        if step == 1:
            if version != self._version:
                self._prepare(version, width // 4)
            starts, tail = self._starts, self._tail
            return [
                starts[classes[i]] + rows[i * width : i * width + width] + tail
                for i in range(at, at + number)
            ]
        write = wire.encode_response
        return [
            frame(write(classes[i : i + step], rows[i * width : (i + step) * width], version))
            for i in range(at, at + number * step, step)
        ]

    def _prepare(self, version: str, num_classes: int) -> None:
        mark = (_MARK * (num_classes // 10 + 1))[: 4 * num_classes]
        framed = (
            frame(wire.encode_response(array("I", (number,)), mark, version))
            for number in range(num_classes)
        )
        parts = [each.partition(mark) for each in framed]
        self._starts, self._tail = tuple(start for start, _, _ in parts), parts[0][2]
        self._version = version
