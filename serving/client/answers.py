"""Decodes and checks answers: a server may be broken, or be another program."""

from dataclasses import fields

from google.protobuf.message import DecodeError

from serving.errors import Unavailable
from serving.model.info import ModelInfo
from serving.predictions import Predictions, Probabilities
from serving.protocols.digits_v1 import wire
from serving.protocols.pb.digits.v1 import digits_pb2
from serving.signature import Signature

_FEW_NUMBERS = 64
"""Probabilities that Python checks faster than numpy: 1 µs of a call instead of 5."""
_MOST_PROBABLE = 1.001
"""1 and a margin for rounding."""


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
    try:
        predictions = wire.decode_response(data, signature.labels)
    except (DecodeError, ValueError, OverflowError) as err:
        raise _malformed(address, "no ClassifyResponse") from err
    expected, found = (num_images, signature.num_classes), predictions.probabilities.shape
    if found != expected:
        raise _malformed(address, f"probabilities of shape {found}, not {expected}")
    low, high = _range(predictions.probabilities)
    if not (low >= 0 and high <= _MOST_PROBABLE):  # also refuses NaN
        raise _malformed(address, f"probabilities from {low:g} to {high:g}")
    return predictions


def _range(probabilities: Probabilities) -> tuple[float, float]:
    """Return the least and the greatest, or NaN if there is one."""
    if probabilities.size > _FEW_NUMBERS:
        return float(probabilities.min()), float(probabilities.max())
    numbers = probabilities.ravel().tolist()
    total = sum(numbers)
    return (total, total) if total != total else (min(numbers), max(numbers))


def model_info_of(data: bytes, address: str) -> ModelInfo:
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
        raise _malformed(address, "no GetModelResponse") from err
    if response.max_request_images < 1:
        raise _malformed(address, f"max_request_images {response.max_request_images}")
    info = {each.name: getattr(response, each.name) for each in fields(ModelInfo)}
    info["test_accuracy"] = response.test_accuracy or None
    try:
        info["signature"] = wire.signature_of(response)
    except ValueError as err:
        raise _malformed(address, f"a model of {err}") from err
    return ModelInfo(**info)


def _malformed(address: str, what: str) -> Unavailable:
    return Unavailable(f"{address}: the server is broken: it answered {what}")
