"""A server's digits.v1: images to messages, and answers to predictions."""

import math
import time
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from digit_classifier import wire
from digit_classifier.pb.digits.v1 import digits_pb2
from digit_classifier.predictions import DIGITS, Predictions, as_images, as_pixels
from serving.client.client import AsyncClient, Client
from serving.client.failures import malformed
from serving.errors import Unavailable
from serving.tensors import Images, ModelInfo, Probabilities, Signature

CLASSIFY = "/digits.v1.DigitClassifier/Classify"
GET_MODEL = "/digits.v1.DigitClassifier/GetModel"
_CHUNK_BYTES = 256 * DIGITS.image_bytes
"""Images in one message of a large request: enough to make the cost of a call small, few enough
that the server works on one message while the next travels."""
_FEW_NUMBERS = 64
"""Probabilities that Python checks faster than numpy: 1 µs of a call instead of 5."""
_TOLERANCE = 1e-3
"""How far from 1 a sum of probabilities may be, by rounding."""


class ServedModel(NamedTuple):
    """The model that a server answers digits.v1 with."""

    name: str
    version: str
    signature: Signature
    """The shape of its images, and its classes."""
    max_request_images: int
    """The most images in one message."""
    test_accuracy: float | None
    """Share of the test images answered correctly, 0 to 1; None if unknown."""

    message_images: int
    """The images that are sent in one message."""


class RemoteDigits:
    """A server's digits.v1, called by threads."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._model: ServedModel | None = None
        """The served model, once the server was asked."""

    def __reduce__(self) -> "tuple[type[RemoteDigits], tuple[Client]]":
        return RemoteDigits, (self._client,)

    def classify(self, images: npt.ArrayLike) -> Predictions:
        """Classify images."""
        model, timeout_s = self._model, self._client.timeout_s
        if model is None:
            begin_s = time.monotonic()
            as_pixels(images)  # images that no model takes are refused without a call
            model = self._asked()
            timeout_s -= time.monotonic() - begin_s
        checked = as_images(images, model.signature)
        if len(checked) <= model.message_images:
            message = wire.encode_request(checked.data.cast("B"))
            return self._part(self._client.call(CLASSIFY, message, timeout_s=timeout_s), checked)
        parts = _divided(checked, model)
        answers = self._client.call_many(
            CLASSIFY,
            (wire.encode_request(part.data.cast("B")) for part in parts),
            timeout_s=timeout_s,
        )
        pairs = zip(answers, parts, strict=True)
        return Predictions.concatenate([self._part(data, part) for data, part in pairs])

    def _asked(self) -> ServedModel:
        data = self._client.call(GET_MODEL, b"")
        model = self._model = served_model_of(data, self._client.target)
        return model

    def _part(self, data: bytes, images: Images) -> Predictions:
        model = self._model or self._asked()
        try:
            return predictions_of(data, len(images), model.signature, self._client.target)
        except Unavailable:
            self._model = None  # another model may be served now: the next call asks
            raise

    @property
    def signature(self) -> Signature:
        """The shape of the images, and the classes; the server is asked for them once."""
        return (self._model or self._asked()).signature

    def describe(self) -> ModelInfo:
        """Return the model's description."""
        return self._client.describe(self._asked().name)

    def wait_ready(self, timeout_s: float = 30.0) -> None:
        """Wait until calls can be answered."""
        self._client.wait_ready(timeout_s)

    def close(self) -> None:
        """Free the model, or the connection."""
        self._client.close()


class AsyncRemoteDigits:
    """A server's digits.v1, called by one event loop."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._model: ServedModel | None = None

    async def classify(self, images: npt.ArrayLike) -> Predictions:
        begin_s, model = time.monotonic(), self._model
        if model is None:
            as_pixels(images)
            model = await self._asked()
        checked = as_images(images, model.signature)
        timeout_s = self._client.timeout_s - (time.monotonic() - begin_s)
        parts = _divided(checked, model)
        messages = [wire.encode_request(part.data.cast("B")) for part in parts]
        if len(messages) == 1:
            answers = [await self._client.call(CLASSIFY, messages[0], timeout_s=timeout_s)]
        else:
            answers = await self._client.call_many(CLASSIFY, messages, timeout_s=timeout_s)
        try:
            return Predictions.concatenate(
                [
                    predictions_of(data, len(part), model.signature, self._client.target)
                    for data, part in zip(answers, parts, strict=True)
                ]
            )
        except Unavailable:
            self._model = None  # another model may be served now: the next call asks
            raise

    async def _asked(self) -> ServedModel:
        data = await self._client.call(GET_MODEL, b"")
        model = self._model = served_model_of(data, self._client.target)
        return model

    async def describe(self) -> ModelInfo:
        return await self._client.describe((await self._asked()).name)

    async def wait_ready(self, timeout_s: float = 30.0) -> None:
        await self._client.wait_ready(timeout_s)

    async def close(self) -> None:
        await self._client.close()


def _divided(images: Images, model: ServedModel) -> list[Images]:
    """Return the images of each message."""
    size = model.message_images
    return [images[first : first + size] for first in range(0, len(images), size)]


def predictions_of(data: bytes, num_images: int, signature: Signature, address: str) -> Predictions:
    """Decode a ClassifyResponse.

    Args:
        data: the message.
        num_images: the number of images in the request.
        signature: the model's.
        address: the server's, for errors.

    Raises:
        Unavailable: it is not a ClassifyResponse, or does not fit the request.
    """
    shape = num_images, signature.num_classes
    try:
        predictions = wire.decode_response(data, signature.labels, shape)
    except (DecodeError, ValueError, OverflowError) as err:
        raise malformed(address, "no ClassifyResponse") from err
    if predictions.probabilities.shape != shape:
        found = predictions.probabilities.shape
        raise malformed(address, f"probabilities of shape {found}, not {shape}")
    if not _are_distributions(predictions.probabilities):
        raise malformed(address, "probabilities that are not 0 to 1 with a sum of 1")
    return predictions


def _are_distributions(probabilities: Probabilities) -> bool:
    """Return whether each row has numbers of at least 0 that add up to 1; NaN is neither."""
    if probabilities.size > _FEW_NUMBERS:
        sums = probabilities @ np.ones(probabilities.shape[1], np.float32)
        return bool(probabilities.min() >= 0 and abs(sums - 1).max() <= _TOLERANCE)
    rows = probabilities.tolist()
    return all(abs(sum(row) - 1) <= _TOLERANCE and min(row) >= 0 for row in rows)


def served_model_of(data: bytes, address: str) -> ServedModel:
    """Decode a GetModelResponse.

    Args:
        data: the message.
        address: the server's, for errors.

    Raises:
        Unavailable: it is not one, or its limits or shapes are impossible.
    """
    try:
        response = digits_pb2.GetModelResponse.FromString(data)
    except DecodeError as err:
        raise malformed(address, "no GetModelResponse") from err
    if response.max_request_images < 1:
        raise malformed(address, f"max_request_images {response.max_request_images}")
    accuracy, most = response.test_accuracy, response.max_request_images
    try:
        signature = wire.signature_of(response)
    except ValueError as err:
        raise malformed(address, f"a model of {err}") from err
    largest = max(signature.image_bytes, signature.row_bytes)
    return ServedModel(
        response.name,
        response.version,
        signature,
        most,
        accuracy if accuracy and math.isfinite(accuracy) else None,
        min(most, max(1, _CHUNK_BYTES // largest)),
    )
